"""Tiny models with random weights, strong enough to prefer some ids to others."""

import torch

from tessera.lm.checkpoints.model_directory import save_model
from tessera.lm.conditioning.registry import CodesConditionConfig, ConditionBatch, LabelConfig, TextConditionConfig
from tessera.lm.config import LMConfig
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.heads.bits import BitsHeadConfig
from tessera.lm.heads.depth_transformer import DepthHeadConfig, FactorHeadConfig, RopePositionsConfig
from tessera.lm.heads.parallel import ParallelHeadConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.patterns.pattern import (
    CoarseFirstConfig,
    DelayConfig,
    FlatConfig,
    GroupedConfig,
    ParallelConfig,
    PartialFlatConfig,
)
from tessera.tokenize.audio.networks import AudioStackConfig, AudioTokenizerConfig
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import ResidualConfig, VQConfig
from tessera.tokenize.spec import AudioGeometry, ImageGeometry, TokenSpec
from tessera.tokenize.text.byte_text import ByteTextConfig
from tessera.tokenize.text.registry import make_text
from tessera.tokenize.tokenizer import make_tokenizer

ARRANGEMENTS = {
    "parallel": ParallelConfig(),
    "delay": DelayConfig(),
    "partial delay": DelayConfig(delays=(0, 1, 1)),
    "late delay": DelayConfig(delays=(1, 3, 2)),
    "flatten first": DelayConfig(flatten_first=1),
    "flat": FlatConfig(),
    "partial flat": PartialFlatConfig(groups=(0, 1, 1)),
    "coarse first": CoarseFirstConfig(),
    "grouped": GroupedConfig(sizes=(2, 1)),
}
NEED_LENGTH = ("coarse first", "grouped")
CARDINALITIES = (4, 7, 6)
HEADS = {
    "parallel": ParallelHeadConfig(),
    "depth": DepthHeadConfig(layers=1, heads=2),
    "depth behind backbone": DepthHeadConfig(width=8, layers=2, heads=1, first="backbone", input="codes"),
    "depth with rope": DepthHeadConfig(
        width=8, layers=1, heads=2, qk_norm=True, first="backbone", input="backbone", positions=RopePositionsConfig()
    ),
    "factor": FactorHeadConfig(sizes=(2, 3), layers=1, heads=2),
    "bits": BitsHeadConfig(),
}


def cardinalities_for(head):
    """Codebooks the head can split."""
    return {"factor": (6, 6, 6), "bits": (4, 4, 4)}.get(head.kind, CARDINALITIES)


def make_lm(arrangement="delay", variable=True, conditions=(), dtype=torch.float64, seed=0, **settings) -> TokenLM:
    """A TokenLM of 3 codebooks: audio of variable length, or a picture of 2 x 3 frames."""
    if variable:
        geometry = AudioGeometry(sample_rate=16000, samples_per_frame=4)
    else:
        geometry = ImageGeometry(height=4, width=6, channels=1, rows=2, columns=3)
    sizes = cardinalities_for(settings.get("head", HEADS["parallel"]))
    spec = TokenSpec(name="tiny", cardinalities=sizes, geometry=geometry, fingerprint="0" * 64)
    config = LMConfig(
        width=16, layers=1, heads=2, arrangement=ARRANGEMENTS[arrangement], variable_length=variable,
        conditions=conditions, **settings,
    )  # fmt: skip
    torch.manual_seed(seed)
    vectors = torch.randn(3, max(sizes), 2) if config.needs_code_vectors else None
    return strong(TokenLM(config, spec, vectors)).to(dtype).eval()


def strong(lm: TokenLM) -> TokenLM:
    """With larger weights, so that some ids are clearly likelier than others."""
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(1.5)
    return lm


def make_conditions(kind: str, count: int):
    """(condition configs, a batch of `count` different rows) for "none", "label", "text" or "codes"."""
    if kind == "codes":  # codes that every head's codebooks have
        prompts = [torch.arange(3 * (1 + i % 4)).reshape(3, -1) % 4 for i in range(count)]
        return (CodesConditionConfig(max_frames=4),), ConditionBatch.make(codes=prompts)
    if kind == "label":
        return (LabelConfig(classes=4),), ConditionBatch.make(labels=[i % 4 for i in range(count)])
    if kind == "text":
        texts = [[1 + (7 * i + j) % 11 for j in range(1 + 3 * i % 5)] for i in range(count)]
        return (TextConditionConfig(text=ByteTextConfig(), vocab_size=16),), ConditionBatch.make(texts=texts)
    return (), ConditionBatch()


def save_tiny_models(folder):
    """Model directories "tones" (audio, text), "voices" (audio, text and label), "clones" (audio, text, label and a
    voice of at most 8 frames), "shapes" (picture, label) and "styles" (picture, text and label)."""
    quantizer = ResidualConfig(levels=3, quantizer=VQConfig(size=16))
    stack = AudioStackConfig(width=16, layers=2, kernel=3, chunk=4)
    torch.manual_seed(0)
    audio = make_tokenizer(
        AudioTokenizerConfig(
            name="tones", sample_rate=8000, hop=16, window=64, latent_dim=8, encoder=stack, decoder=stack,
            quantizer=quantizer,
        )
    )  # fmt: skip
    picture = make_tokenizer(
        ImageTokenizerConfig(
            name="shapes", height=4, width=6, channels=1, features=8, blocks=1, latent_dim=8, quantizer=quantizer
        )
    )
    text = make_text(ByteTextConfig(), [])
    reads = TextConditionConfig(text=ByteTextConfig(), vocab_size=text.vocab_size)
    names = ["circle", "square", "star", "7"]
    common = dict(width=16, layers=1, heads=2, arrangement=DelayConfig())
    speaks = LMConfig(**common, variable_length=True, conditions=(reads,))
    imitates = LMConfig(**common, variable_length=True, conditions=(LabelConfig(classes=4), reads))
    clones = LMConfig(
        **common, variable_length=True, conditions=(LabelConfig(classes=4), reads, CodesConditionConfig(max_frames=8))
    )
    draws = LMConfig(**common, conditions=(LabelConfig(classes=4),))
    limits = GenerationConfig(max_frames=12, min_frames=2, guidance=1.5)
    save_model(folder / "tones", strong(TokenLM(speaks, audio.spec)), audio, text, [], limits)
    save_model(folder / "voices", strong(TokenLM(imitates, audio.spec)), audio, text, names, limits)
    save_model(folder / "clones", strong(TokenLM(clones, audio.spec)), audio, text, names, limits)
    save_model(folder / "shapes", strong(TokenLM(draws, picture.spec)), picture, None, names, GenerationConfig())
    illustrates = LMConfig(**common, conditions=(LabelConfig(classes=4), reads))
    save_model(folder / "styles", strong(TokenLM(illustrates, picture.spec)), picture, text, names, GenerationConfig())
    return folder
