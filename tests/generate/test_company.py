"""A sample depends on its seed and its conditions alone: not on the batch, its size or the rows beside it."""

import pytest
import torch
from tiny_models import HEADS, strong

from tessera.configs.schema import check_config
from tessera.generate.model import Model
from tessera.lm.conditioning.registry import LabelConfig, TextConditionConfig
from tessera.lm.config import LMConfig
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.heads.bits import BitsHeadConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.models.masked import MaskedConfig
from tessera.lm.models.next_scale import NextScaleConfig
from tessera.lm.models.registry import make_lm
from tessera.lm.patterns.pattern import DelayConfig
from tessera.tokenize.audio.networks import AudioStackConfig, AudioTokenizerConfig
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import ResidualConfig, ScalesConfig, VQConfig
from tessera.tokenize.text.byte_text import ByteTextConfig
from tessera.tokenize.text.registry import make_text
from tessera.tokenize.tokenizer import make_tokenizer

STACK = AudioStackConfig(width=8, layers=1, kernel=3, chunk=4)
SIZES = {"factor": 6, "bits": 4}
SHAPE = {"width": 16, "layers": 1, "heads": 2}
TEXTS = ["one", "a longer text", "b", "some words"]
RULES = {"repetition_penalty": 1.5, "ras": 4, "ras_tau": 0.5, "end_bias": -0.5, "top_k": 3, "max_silence": 0.002}
TWO = {"kind": "constant", "scale": 3.0, "two": {"keep": ["text"], "beta": 2.0}}
LINEAR = {"kind": "linear", "scale": 3.0}


def audio(head="parallel", masked=False):
    """A model of sound with a text and a label."""
    torch.manual_seed(0)
    quantizer = ResidualConfig(levels=3, quantizer=VQConfig(size=SIZES.get(head, 16), kmeans_init=False))
    tokenizer = make_tokenizer(
        AudioTokenizerConfig(
            **{"name": "a", "sample_rate": 8000, "hop": 16, "window": 64, "latent_dim": 8, "quantizer": quantizer},
            **{"encoder": STACK, "decoder": STACK},
        )
    )
    text = make_text(ByteTextConfig(), [])
    conditions = (LabelConfig(classes=4), TextConditionConfig(text=ByteTextConfig(), vocab_size=text.vocab_size))
    if masked:
        lm = make_lm(MaskedConfig(**SHAPE, conditions=conditions), tokenizer.spec)
    else:
        config = LMConfig(
            **SHAPE, head=HEADS[head], arrangement=DelayConfig(), variable_length=True, conditions=conditions
        )
        vectors = torch.randn(3, SIZES.get(head, 16), 2) if config.needs_code_vectors else None
        lm = TokenLM(config, tokenizer.spec, vectors)
    limits = GenerationConfig(max_frames=7, min_frames=2)
    return Model(strong(lm).eval(), tokenizer, text, ["w", "x", "y", "z"], limits), {"text": TEXTS, "label": "y"}


def scales(head=None):
    """A next-scale model of pictures with a label."""
    torch.manual_seed(3)
    quantizer = ScalesConfig(sizes=((1, 1), (2, 2), (3, 4)), quantizer=VQConfig(size=8))
    tokenizer = make_tokenizer(
        ImageTokenizerConfig(
            **{"name": "p", "height": 3, "width": 4, "channels": 1, "downsamplings": 0, "latent_dim": 3},
            **{"features": 4, "blocks": 1, "quantizer": quantizer},
        )
    )
    heads = {} if head is None else {"head": head}
    config = NextScaleConfig(conditions=(LabelConfig(classes=4),), **heads, **SHAPE)
    lm = strong(make_lm(config, tokenizer.spec, quantizer=tokenizer.quantizer)).eval()
    return Model(lm, tokenizer, None, ["w", "x", "y", "z"], GenerationConfig()), {"label": ["x", "w", "z", "x"]}


CASES = {
    **{f"head {name}": (lambda name=name: audio(name), {}) for name in HEADS},
    "guided": (audio, {"guidance": 2.0}),
    "guided by a schedule": (audio, {"guidance": LINEAR}),
    "guided with two conditions": (audio, {"guidance": TWO}),
    "rules": (audio, {**RULES, "silence_codes": [1, 3]}),
    "masked": (lambda: audio(masked=True), {"num_frames": 6, "passes": 4, "choice_temperature": 1.0}),
    "masked and guided": (lambda: audio(masked=True), {"num_frames": 6, "passes": 3, "guidance": 2.0}),
    "scales": (scales, {"guidance": 2.0}),
    "scales of bits": (lambda: scales(BitsHeadConfig()), {}),
    "scales of grouped bits": (lambda: scales(BitsHeadConfig(groups=1)), {}),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize("case", CASES)
def test_a_sample_depends_on_its_seed_alone(case):
    make, settings = CASES[case]
    model, given = make()
    settings = dict(settings)
    if isinstance(settings.get("guidance"), dict):
        settings["guidance"] = check_config({"guidance": settings["guidance"]}, GenerationConfig).guidance
    whole = model.generate(**given, **settings, seed=5, exact=True)
    assert len(whole) == 4 and len({tuple(whole[i].codes.flatten().tolist()) for i in range(4)}) > 1
    split = model.generate(**given, **settings, seed=5, batch=3, exact=True)
    assert torch.equal(split.lengths, whole.lengths) and torch.equal(split.codes, whole.codes)
    for i in range(4):
        own = {name: value[i] if isinstance(value, list) else value for name, value in given.items()}
        alone = model.generate(**own, **settings, seed=5 + i, exact=True)
        assert torch.equal(alone.codes, whole[i].codes) and torch.equal(alone.media[0], whole.media[i])
    turned = {name: value[::-1] if isinstance(value, list) else value for name, value in given.items()}
    second = model.generate(**turned, **settings, seed=6, exact=True)[1]  # the place of a row says nothing
    own = {name: value[2] if isinstance(value, list) else value for name, value in given.items()}
    assert torch.equal(second.codes, model.generate(**own, **settings, seed=7, exact=True).codes)
