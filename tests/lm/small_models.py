"""Tiny models of every kind, and codes and conditions that fit them."""

import itertools

import torch

from tessera.lm.conditioning.chroma import ChromaConfig
from tessera.lm.conditioning.registry import (
    CodesConditionConfig,
    ConditionBatch,
    EmbeddingConditionConfig,
    LabelConfig,
    MelodyConditionConfig,
    TextConditionConfig,
)
from tessera.lm.config import LMConfig
from tessera.lm.heads.bits import BitsHeadConfig
from tessera.lm.heads.depth_transformer import (
    DepthHeadConfig,
    FactorHeadConfig,
    NoPositionsConfig,
    RopePositionsConfig,
)
from tessera.lm.heads.flat import FlatHeadConfig
from tessera.lm.heads.parallel import ParallelHeadConfig
from tessera.lm.layers.input_embedding import BitsInputConfig, CodesInputConfig, EmbeddingInputConfig, FactorInputConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.ops.rotary import GridRopeConfig, Llama3ScalingConfig, SinusoidalConfig, TimeRopeConfig
from tessera.lm.patterns.pattern import (
    CoarseFirstConfig,
    DelayConfig,
    FlatConfig,
    GroupedConfig,
    ParallelConfig,
    PartialFlatConfig,
    UnrolledConfig,
)
from tessera.tokenize.spec import AudioGeometry, ImageGeometry, TokenSpec
from tessera.tokenize.text.byte_text import ByteTextConfig

CARDINALITIES = (7, 5, 6)

ARRANGEMENTS = {
    "parallel": ParallelConfig(),
    "delay": DelayConfig(),
    "partial delay": DelayConfig(delays=(0, 2, 2)),
    "flatten first": DelayConfig(flatten_first=1),
    "flat": FlatConfig(),
    "partial flat": PartialFlatConfig(groups=(0, 1, 1)),
    "unrolled": UnrolledConfig(flattening=(0, 1, 1), delays=(0, 2, 2)),
    "coarse first": CoarseFirstConfig(),
    "grouped": GroupedConfig(sizes=(2, 1)),
}
NEED_LENGTH = ("coarse first", "grouped")


def label(join="prefix"):
    return LabelConfig(classes=4, join=join)


def text(join="prefix", layers=0):
    return TextConditionConfig(text=ByteTextConfig(), vocab_size=11, join=join, layers=layers)


def embedding(join="prefix", **settings):
    return EmbeddingConditionConfig(width=6, join=join, **settings)


def codes(join="prefix", **settings):
    return CodesConditionConfig(max_frames=4, join=join, **settings)


def melody(**settings):
    return MelodyConditionConfig(chroma=ChromaConfig(bins=5), length=4, **settings)


# An odd number: half of the cases, every other one, still have each of them.
CONDITIONS = {
    "nothing": (),
    "label prefix": (label(),),
    "label sum": (label("sum"),),
    "label cross": (label("cross"),),
    "text prefix": (text(),),
    "text cross": (text("cross"),),
    "text encoder": (text("cross", layers=1),),
    "label and text": (label(), text()),
    "text and label": (text(), label()),
    "label sum, text cross": (label("sum"), text("cross")),
    "embedding prefix": (embedding(),),
    "embedding cross": (embedding("cross", norm="none", null="zero"),),
    "embedding and text cross": (embedding("cross"), text("cross")),
    "codes prefix": (codes(),),
    "codes encoder": (codes("cross", layers=1),),
    "text, codes of its own input": (text(), codes(input=CodesInputConfig())),
    "melody": (melody(),),
    "melody and embedding": (melody(), embedding()),
    "label, codes and text": (label(), codes("cross", input=EmbeddingInputConfig()), text("cross")),
}

ROPES = (TimeRopeConfig(), GridRopeConfig(), SinusoidalConfig(), SinusoidalConfig(prefix="counted"))
INPUTS = (EmbeddingInputConfig(), CodesInputConfig(combine="sum"), CodesInputConfig(combine="concat"))
KV_HEADS = (None, 2, 1)
BLOCKS = ({}, {"norm": "layer", "norm_eps": 1e-5, "feed_forward": "gelu"})
# Seven, so that as the cases go round each head meets every arrangement and every condition.
HEADS = (
    ParallelHeadConfig(),
    DepthHeadConfig(layers=2, heads=2),
    DepthHeadConfig(width=16, layers=1, heads=4, kv_heads=2, first="backbone", input="codes", output="shared"),
    FlatHeadConfig(),
    FactorHeadConfig(sizes=(2, 3), layers=1, heads=2),
    BitsHeadConfig(),
    BitsHeadConfig(groups=2),
)

# Depth transformers like those of public systems; their settings meet the arrangements in CASES below.
PUBLIC_DEPTHS = {
    "csm": DepthHeadConfig(
        width=16, layers=1, heads=2, kv_heads=1, first="backbone", input="backbone", norm_eps=1e-5,
        positions=RopePositionsConfig(base=9.0, scaling=Llama3ScalingConfig(factor=4, steps=16)),
    ),
    "qwen": DepthHeadConfig(
        layers=1, heads=2, kv_heads=1, head_dim=6, qk_norm=True, first="backbone", input="backbone", projection="none",
        positions=RopePositionsConfig(base=1e6),
    ),
    "moshi": DepthHeadConfig(
        width=16, layers=1, heads=2, input="projected", projection="affine", positions=NoPositionsConfig()
    ),
}  # fmt: skip


def head_for(head, arrangement):
    """The flat head fits two arrangements; elsewhere another one takes its place, and it has its two kinds."""
    if head.kind != "flat":
        return head
    if arrangement == "partial flat":
        return FlatHeadConfig(output="shared")
    return head if arrangement == "flat" else DepthHeadConfig(layers=1, heads=1, first="backbone", input="embedding")


def input_for(head, config):
    """What is predicted in parts is read in parts too, in one of three cases."""
    inputs = {"bits": BitsInputConfig(), "factor": FactorInputConfig(sizes=(3, 2))}
    return inputs.get(head.kind, config) if config == INPUTS[2] else config


def cardinalities_for(config):
    """Codebooks that the model's head and input can split; few codes where a frame of zeros is the end."""
    if config.text_stream is not None and config.text_stream.predict == "none":
        return (3, 2, 3)
    if "bits" in (config.head.kind, config.input.kind):
        return (8, 8, 8) if getattr(config.head, "groups", None) is None else (16, 4, 64)
    return (6, 6, 6) if config.head.kind == "factor" else CARDINALITIES


# Every arrangement with every condition; the other choices go round, so that each meets each of them.
CASES = {
    f"{arrangement}, {condition}": (
        arrangement,
        condition,
        ROPES[i // 2 % len(ROPES)],
        input_for(HEADS[i % 7], INPUTS[i % 3]),
        KV_HEADS[i // 3 % 3],
        i % 5 == 0,
        BLOCKS[i // 4 % 2] | {"head": head_for(HEADS[i % 7], arrangement)},
    )
    for i, (arrangement, condition) in enumerate(itertools.product(ARRANGEMENTS, CONDITIONS))
}
# The label's token stands where the start would.
CASES |= {
    "start condition, label": (
        *("flat", "label prefix", GridRopeConfig(before="zero"), EmbeddingInputConfig(), None, False),
        {"start": "condition"},
    ),
    "start condition, text and label": (
        *("delay", "text and label", SinusoidalConfig(), EmbeddingInputConfig(), 2, False),
        {"start": "condition"},
    ),
}
CASES |= {
    f"{name} depth, {arrangement}": (
        *(arrangement, "text and label", TimeRopeConfig(), EmbeddingInputConfig(), 2, False),
        {"head": head},
    )
    for name, head in PUBLIC_DEPTHS.items()
    for arrangement in ("parallel", "delay", "flat")
}
# Queries of cross-attention are rotated, so the number of prefix tokens of a row matters.
CONDITIONS["text and embedding cross"] = (text(), embedding("cross"))
CASES |= {
    f"rotated queries, {arrangement}": (
        *(arrangement, "text and embedding cross", TimeRopeConfig(cross="queries"), EmbeddingInputConfig(), 2, qk_norm),
    )
    for arrangement, qk_norm in (("delay", False), ("flat", True), ("coarse first", False))
}
# The last vector of a row stands there, and rows differ in length (LlamaGen t2i).
CONDITIONS["text, vectors"] = (text(), embedding(projection="mlp", null="vectors", length=4))
CASES |= {
    f"start condition, {rope.kind} vectors": (
        *(arrangement, "text, vectors", rope, EmbeddingInputConfig(), 2, False),
        {"start": "condition"},
    )
    for arrangement, rope in (
        ("parallel", GridRopeConfig(before="zero")),
        ("delay", TimeRopeConfig()),
        ("flat", SinusoidalConfig(prefix="counted")),
    )
}
# Blocks and heads with biases, and the attention of VAR.
BIASED = {"bias": True, "qkv_bias": True, "head": ParallelHeadConfig(bias=True)}
CASES |= {
    "biases, swiglu": ("delay", "text and label", TimeRopeConfig(), EmbeddingInputConfig(), 2, False, BIASED),
    "biases, gelu": (
        *("parallel", "label and text", TimeRopeConfig(), EmbeddingInputConfig(), None, True),
        BIASED | BLOCKS[1],
    ),
    "unit queries": (
        *("flat", "text cross", TimeRopeConfig(), EmbeddingInputConfig(), 2, "l2"),
        BIASED | {"norm": "layer", "feed_forward": "gelu_tanh"},
    ),
}


NOT_FUSED = ("rotated queries", "unit queries")
"""Beginnings of the names of cases whose blocks the fused steps leave to torch."""
BIASES = ("biases, swiglu", "biases, gelu")


def make_spec(cardinalities=CARDINALITIES, picture=False) -> TokenSpec:
    geometry = (
        ImageGeometry(height=8, width=8, rows=2, columns=3)
        if picture
        else AudioGeometry(sample_rate=16000, samples_per_frame=320)
    )
    return TokenSpec(name="tiny", cardinalities=cardinalities, geometry=geometry, fingerprint="0" * 64)


def make_config(
    case=("delay", "nothing", TimeRopeConfig(), EmbeddingInputConfig(), None, False), **settings
) -> LMConfig:
    arrangement, condition, rope, input_config, kv_heads, qk_norm, *block = case
    values = {
        "width": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": kv_heads,
        "rope": rope,
        "input": input_config,
        "qk_norm": qk_norm,
        "arrangement": ARRANGEMENTS[arrangement],
        "variable_length": rope.kind != "grid" and arrangement not in NEED_LENGTH,
        "conditions": CONDITIONS[condition],
    }
    return LMConfig(**(values | (block[0] if block else {}) | settings))


def make_lm(config: LMConfig, seed=0, spec=None) -> TokenLM:
    spec = spec or make_spec(cardinalities_for(config), picture=config.rope.kind == "grid")
    torch.manual_seed(seed)
    vectors = torch.randn(spec.num_codebooks, max(spec.cardinalities), 3) if config.needs_code_vectors else None
    return TokenLM(config, spec, vectors).eval()


def make_codes(num_rows, num_frames, cardinalities=CARDINALITIES, seed=1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(V, (num_rows, num_frames), generator=generator) for V in cardinalities], dim=1)


def make_conditions(config: LMConfig, num_rows, seed=2) -> ConditionBatch:
    """Labels, texts, embeddings and prompts of different lengths, with rows that have none."""
    kinds = [condition.kind for condition in config.conditions]
    labels = [None if b == 1 else b % 4 for b in range(num_rows)]
    texts = [None if b == 2 else [(3 * b + i) % 11 for i in range(1 + (5 * b) % 4)] for b in range(num_rows)]
    generator = torch.Generator().manual_seed(seed)
    vectors = [None if b == 3 else torch.randn(1 + (3 * b) % 4, 6, generator=generator) for b in range(num_rows)]
    frames = make_codes(num_rows, 4, cardinalities_for(config), seed + 1)
    prompts = [None if b == 1 else row[:, : 1 + (3 * b + 2) % 4] for b, row in enumerate(frames)]
    tunes = [None if b == 2 else torch.rand(1 + (5 * b) % 6, 5, generator=generator) for b in range(num_rows)]
    return ConditionBatch.make(
        labels if "label" in kinds else None,
        texts if "text" in kinds else None,
        vectors if "embedding" in kinds else None,
        prompts if "codes" in kinds else None,
        melodies=tunes if "melody" in kinds else None,
    )


def count_stack_calls(lm, stack):
    """Use `stack` for the steps of a model; a list with an entry for each: whether it made the step, or left it to the
    blocks."""
    calls = []

    def counted(*arguments):
        found = stack(*arguments)
        calls.append(found is not None)
        return found

    lm.transformer.fused = counted
    return calls
