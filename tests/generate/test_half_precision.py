"""Half precision: every condition, join and kind of model computes and generates in bfloat16 and float16, near to what
float32 computes with the same weights."""

import copy
import itertools

import pytest
import torch
from short_calls import fill_codes, generate_codes, generate_scales

from tessera.generate.requests.settings import Length
from tessera.lm.clustering.clustering import cluster_codes
from tessera.lm.conditioning.registry import (
    CodesConditionConfig,
    ConditionBatch,
    EmbeddingConditionConfig,
    LabelConfig,
    TextConditionConfig,
)
from tessera.lm.config import LMConfig
from tessera.lm.heads.bits import BitsHeadConfig
from tessera.lm.heads.depth_transformer import DepthHeadConfig, FactorHeadConfig, RopePositionsConfig
from tessera.lm.heads.flat import FlatHeadConfig
from tessera.lm.heads.multi_token_prediction import AheadConfig
from tessera.lm.layers.input_embedding import BitsInputConfig, CodesInputConfig, EmbeddingInputConfig, FactorInputConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.models.coarse_to_fine import CoarseToFine
from tessera.lm.models.masked import MaskedConfig, MaskedLM
from tessera.lm.models.next_scale import NextScaleConfig, NextScaleLM
from tessera.lm.ops.rotary import GridRopeConfig, SinusoidalConfig, TimeRopeConfig
from tessera.lm.patterns.pattern import DelayConfig, FlatConfig
from tessera.lm.quantization.cpu_fast_decode import enable_fast_cpu_decode_
from tessera.lm.quantization.packed_linear import pack_
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import ResidualConfig, ScalesConfig, VQConfig
from tessera.tokenize.spec import AudioGeometry, ImageGeometry, TokenSpec
from tessera.tokenize.text.byte_text import ByteTextConfig
from tessera.tokenize.tokenizer import make_tokenizer

WIDTH, T, ROWS = 32, 6, 3
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
NEAR = {torch.bfloat16: 0.1, torch.float16: 0.02}
"""Root mean square of the difference from float32 over the logits' standard deviation: about 2^-8 and 2^-11 for each of
some tens of roundings one after the other."""


def text(**settings):
    return TextConditionConfig(text=ByteTextConfig(), vocab_size=11, **settings)


CONDITIONS = {
    "nothing": (),
    **{f"label {join}": (LabelConfig(classes=4, join=join),) for join in ("prefix", "cross", "sum")},
    **{
        f"text {join} {layers}": (text(join=join, layers=layers),)
        for join, layers in itertools.product(("prefix", "cross"), (0, 2))
    },
    **{
        f"codes {join} {layers} {name}": (CodesConditionConfig(max_frames=4, join=join, layers=layers, input=own),)
        for join, layers, (name, own) in itertools.product(
            ("prefix", "cross"), (0, 2), {"shared": None, "own": EmbeddingInputConfig()}.items()
        )
    },
    "codes of vectors": (CodesConditionConfig(max_frames=4, join="cross", layers=1, input=CodesInputConfig()),),
    **{
        f"embedding {join} {width} {norm} {null}": (
            EmbeddingConditionConfig(
                width=width, projection="none" if width == WIDTH else "linear", join=join, norm=norm, null=null
            ),
        )
        for join, width, norm, null in itertools.product(
            ("prefix", "cross"), (6, WIDTH), ("rms", "none"), ("learned", "zero")
        )
        if join == "cross" or norm == "rms"
    },
    "all": (
        EmbeddingConditionConfig(width=WIDTH, projection="none", null="zero", join="prefix"),
        LabelConfig(classes=4),
        text(join="cross", layers=1),
        CodesConditionConfig(max_frames=4, join="cross"),
    ),
}


def batch_of(config, cardinalities) -> ConditionBatch:
    kinds = [condition.kind for condition in config.conditions]
    width = next((c.width for c in config.conditions if c.kind == "embedding"), 1)
    generator = torch.Generator().manual_seed(0)
    codes = [torch.arange(n + 1).expand(len(cardinalities), -1) % min(cardinalities) for n in range(ROWS)]
    return ConditionBatch.make(
        [0, None, 3] if "label" in kinds else None,
        [[1, 2, 3], [4], None] if "text" in kinds else None,
        [torch.randn(2, width, generator=generator), None, torch.randn(1, width)] if "embedding" in kinds else None,
        [None, *codes[1:]] if "codes" in kinds else None,
    )


def sound(*cardinalities):
    geometry = AudioGeometry(sample_rate=16000, samples_per_frame=4)
    return TokenSpec(name="tiny", cardinalities=cardinalities, geometry=geometry, fingerprint="0" * 64)


def vectors_of(config, spec):
    return torch.randn(spec.num_codebooks, max(spec.cardinalities), 3) if config.needs_code_vectors else None


def causal(conditions, **settings):
    config = LMConfig(width=WIDTH, layers=2, heads=2, conditions=conditions, **settings)
    spec = settings.get("spec", sound(8, 8))
    return TokenLM(config, spec, vectors_of(config, spec))


def masked(conditions, **settings):
    config = MaskedConfig(width=WIDTH, layers=2, heads=2, conditions=conditions, **settings)
    return MaskedLM(config, sound(8, 8), vectors_of(config, sound(8, 8)))


SCALES = ImageTokenizerConfig(
    name="tiny", height=4, width=4, channels=1, downsamplings=0, latent_dim=3, features=4, blocks=1,
    quantizer=ScalesConfig(sizes=((1, 1), (2, 2), (4, 4)), convolutions=2, quantizer=VQConfig(size=8)),
)  # fmt: skip


def next_scale(conditions, **settings):
    tokenizer = make_tokenizer(SCALES)
    config = NextScaleConfig(width=WIDTH, layers=2, heads=2, conditions=conditions, **settings)
    return NextScaleLM(config, tokenizer.spec, tokenizer.quantizer)


RESIDUAL = ImageTokenizerConfig(
    name="shapes", height=4, width=6, channels=1, features=8, blocks=1, latent_dim=8,
    quantizer=ResidualConfig(levels=2, quantizer=VQConfig(size=8)),
)  # fmt: skip


def coarse_to_fine(conditions, **settings):
    tokenizer = make_tokenizer(RESIDUAL)
    clustering = cluster_codes(tokenizer, [4, 4])
    config = LMConfig(width=WIDTH, layers=1, heads=2, conditions=conditions)
    coarse = TokenLM(config, clustering.spec, vectors_of(config, clustering.spec))
    fine = MaskedConfig(width=WIDTH, layers=1, heads=2, conditions=conditions, **settings)
    return CoarseToFine(coarse, MaskedLM(fine, tokenizer.spec, tokenizer.vectors(), clustering))


def logits_of(lm, batch):
    """Of whole sequences, in float32, without -inf."""
    if isinstance(lm, CoarseToFine):
        fine = lm.refiner
        labels = lm.clustering.coarse(codes := some_codes(fine))
        first = logits_of(lm.coarse, lm.for_coarse(batch))
        second = fine(codes, torch.ones_like(codes, dtype=torch.bool), None, lm.for_refiner(batch), labels)
        return torch.cat([first, numbers(second)])
    codes = some_codes(lm)
    if isinstance(lm, MaskedLM):
        J = len(lm.head.sub_tokens)
        hidden = torch.arange(J * codes.shape[2]).reshape(1, J, -1).expand(ROWS, -1, -1) % 3 > 0
        return numbers(lm(codes, hidden, torch.tensor([T, 2, 4]), batch))
    return numbers(lm(codes, None, batch).logits)


def some_codes(lm):
    frames = lm.spec.geometry.num_frames if isinstance(lm.spec.geometry, ImageGeometry) else T
    cells = torch.arange(ROWS * frames).reshape(ROWS, 1, frames)
    return torch.cat([(cells * (k + 3) + k) % V for k, V in enumerate(lm.spec.cardinalities)], dim=1)


def numbers(logits):
    return logits[logits > -torch.inf].float()


def generated(lm, batch, guidance, **settings):
    seeds = list(range(ROWS))
    if isinstance(lm, CoarseToFine):
        frames = lm.spec.geometry.num_frames
        labels = generate_codes(lm.coarse, lm.for_coarse(batch), seeds, Length(frames, fixed=True), guidance=guidance)
        lengths = torch.full((ROWS,), frames)
        return fill_codes(lm.refiner, lm.for_refiner(batch), seeds, lengths, guidance=guidance, coarse=labels.codes)
    if isinstance(lm, MaskedLM):
        return fill_codes(lm, batch, seeds, torch.tensor([T, 2, 4]), guidance=guidance)
    if isinstance(lm, NextScaleLM):
        return generate_scales(lm, batch, seeds, guidance=guidance)
    return generate_codes(lm, batch, seeds, Length(T, fixed=True), guidance=guidance, **settings).codes


def cast_(lm, dtype, way):
    """all: what `lm.to` does. loaded: the parameters alone, as a model directory is loaded."""
    if way == "all":
        return lm.to(dtype)
    for parameter in lm.parameters():
        parameter.data = parameter.data.to(dtype)
    return lm


@torch.no_grad()
def check(make, dtype, way, **settings):
    torch.manual_seed(0)
    lm = cast_(make(**settings).eval(), dtype, way)
    exact = copy.deepcopy(lm).float()
    stages = (lm.coarse, lm.refiner) if isinstance(lm, CoarseToFine) else (lm,)
    batch = batch_of(stages[0].config, stages[-1].spec.cardinalities)
    wanted, found = logits_of(exact, batch), logits_of(lm, batch)
    assert (found - wanted).square().mean().sqrt() < NEAR[dtype] * wanted.std()
    for guidance in (1.0, 2.0) if stages[0].config.conditions else (1.0,):
        codes = generated(lm, batch, guidance)
        for k, V in enumerate(lm.spec.cardinalities):
            assert 0 <= int(codes[:, k].min()) and int(codes[:, k].max()) < V
    return lm, batch


KINDS = {"causal": causal, "masked": masked, "next scale": next_scale, "coarse to fine": coarse_to_fine}
halves = pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
ways = pytest.mark.parametrize("way", ["all", "loaded"])


@pytest.mark.slow
@halves
@pytest.mark.parametrize("kind", KINDS)
def test_conditions(kind, dtype):
    """The way of casting goes round: each condition meets both, in one of the dtypes."""
    for number, (name, conditions) in enumerate(CONDITIONS.items(), dtype == torch.float16):
        if kind == "next scale":  # which has no input of codes, and no code vectors
            own = {"input": EmbeddingInputConfig()}
            conditions = tuple(c.model_copy(update=own) if c.kind == "codes" else c for c in conditions)
        try:
            check(KINDS[kind], dtype, ("all", "loaded")[number % 2], conditions=conditions)
        except Exception as error:
            raise AssertionError(f"{kind}, {name}") from error


PARTS = {
    "codes input": {"input": CodesInputConfig()},
    "codes summed": {"input": CodesInputConfig(combine="sum")},
    "bits": {"input": BitsInputConfig(), "head": BitsHeadConfig()},
    "bits in groups": {"input": BitsInputConfig(), "head": BitsHeadConfig(groups=1)},
    "factor": {"input": FactorInputConfig(sizes=(2, 4)), "head": FactorHeadConfig(sizes=(2, 4), layers=1, heads=2)},
    "depth": {"head": DepthHeadConfig(layers=2, heads=2)},
    "depth of vectors": {"head": DepthHeadConfig(width=16, layers=1, heads=1, first="backbone", input="codes")},
    "depth with rope": {
        "head": DepthHeadConfig(
            layers=1, heads=1, input="backbone", projection="affine", positions=RopePositionsConfig(), qk_norm=True
        )
    },
    "depth shared": {"head": DepthHeadConfig(layers=1, heads=1, output="shared")},
    "flat": {"head": FlatHeadConfig(), "arrangement": FlatConfig()},
    "layer norms": {"norm": "layer", "feed_forward": "gelu", "qk_norm": True},
    "sinusoidal": {"rope": SinusoidalConfig(), "arrangement": DelayConfig()},
    "ahead": {"ahead": AheadConfig(steps=2)},
    "window": {"window": 3},
    "ends": {"variable_length": True},
}


@pytest.mark.sample(1)
@halves
@ways
@pytest.mark.parametrize("name", PARTS)
def test_parts(name, way, dtype):
    conditions = (text(join="cross", layers=1), LabelConfig(classes=4))
    lm, batch = check(causal, dtype, way, conditions=conditions, **PARTS[name])
    settings = {"draft": 2} if lm.config.ahead else {"cache": "int8"} if not lm.config.window else {"cache": "ring"}
    generated(lm, batch, 2.0, **settings)
    if dtype == torch.bfloat16:
        generated(enable_fast_cpu_decode_(copy.deepcopy(lm)), batch, 2.0)
    for weights in ("int8", "int4"):
        generated(pack_(copy.deepcopy(lm), weights), batch, 2.0)
    if name in ("codes input", "codes summed", "bits", "bits in groups"):
        check(masked, dtype, way, conditions=conditions, **PARTS[name])


@pytest.mark.sample(2)
@halves
@ways
@pytest.mark.parametrize("rope", [TimeRopeConfig(), GridRopeConfig(), SinusoidalConfig()])
@pytest.mark.parametrize("start", ["token", "condition"])
def test_pictures_of_scales(rope, start, way, dtype):
    conditions = (text(join="cross"), LabelConfig(classes=4))
    check(next_scale, dtype, way, conditions=conditions, rope=rope, start=start)
    check(next_scale, dtype, way, conditions=conditions, rope=rope, start=start, head=BitsHeadConfig())
