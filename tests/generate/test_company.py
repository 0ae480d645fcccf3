"""Law: a sample depends on its seed and its conditions alone, not on the batch's size, order or other rows."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import test_filling
import torch
from short_calls import fill_codes
from test_stages import build
from tiny_models import HEADS, strong
from torch import Tensor

from tessera.configs.schema import check_config
from tessera.generate.model import Model
from tessera.lm.conditioning.registry import LabelConfig, TextConditionConfig
from tessera.lm.config import LMConfig
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.heads.bits import BitsHeadConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.models.mask_schedule import MaskingConfig
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

Draw = Callable[..., list[tuple[Tensor, ...]]]
"""draw(rows, seed, exact=True, batch=4): samples of some of four rows; the first has the seed, the next one seed + 1.
A sample is its codes, and its media where a model makes them."""

ROWS = [0, 1, 2, 3]
STACK = AudioStackConfig(width=8, layers=1, kernel=3, chunk=4)
SIZES = {"factor": 6, "bits": 4}
SHAPE = {"width": 16, "layers": 1, "heads": 2}
TEXTS = ["one", "a longer text", "b", "some words"]
NAMES = ["w", "x", "y", "z"]
LABEL = (LabelConfig(classes=4),)
RULES = {"repetition_penalty": 1.5, "ras": 4, "ras_tau": 0.5, "end_bias": -0.5, "top_k": 3, "max_silence": 0.002}
TWO = {"kind": "constant", "scale": 3.0, "two": {"keep": ["text"], "beta": 2.0}}
LINEAR = {"kind": "linear", "scale": 3.0}
PASSES = {"passes": 3, "choice_temperature": 1.0}


def audio_tokenizer(size=16):
    torch.manual_seed(0)
    quantizer = ResidualConfig(levels=3, quantizer=VQConfig(size=size, kmeans_init=False))
    return make_tokenizer(
        AudioTokenizerConfig(
            **{"name": "a", "sample_rate": 8000, "hop": 16, "window": 64, "latent_dim": 8, "quantizer": quantizer},
            **{"encoder": STACK, "decoder": STACK},
        )
    )


def image_tokenizer(quantizer, **shape):
    torch.manual_seed(3)
    shape = {"channels": 1, "features": 4, "blocks": 1, **shape}
    return make_tokenizer(ImageTokenizerConfig(name="p", quantizer=quantizer, **shape))


def asks(model: Model, given: dict, settings: dict) -> Draw:
    """Samples of `Model.generate`; a condition that is a list has an entry for each row."""
    if isinstance(settings.get("guidance"), dict):
        settings |= {"guidance": check_config({"guidance": settings["guidance"]}, GenerationConfig).guidance}

    def draw(rows: Sequence[int], seed: int, exact: bool = True, batch: int = 4) -> list[tuple[Tensor, ...]]:
        own = {name: [value[i] for i in rows] if isinstance(value, list) else value for name, value in given.items()}
        result = model.generate(**own, **settings, seed=seed, exact=exact, batch=batch)
        beyond = torch.arange(result.codes.shape[2]) >= result.lengths[:, None, None]
        assert not result.codes[beyond.expand_as(result.codes)].any()
        return [(one.codes, one.media[0]) for one in result]

    return draw


def audio(head="parallel", masked=False, **settings) -> Draw:
    """A text and a label."""
    tokenizer, text = audio_tokenizer(SIZES.get(head, 16)), make_text(ByteTextConfig(), [])
    conditions = (*LABEL, TextConditionConfig(text=ByteTextConfig(), vocab_size=text.vocab_size))
    if masked:
        lm = make_lm(MaskedConfig(**SHAPE, conditions=conditions), tokenizer.spec)
    else:
        config = LMConfig(
            **SHAPE, head=HEADS[head], arrangement=DelayConfig(), variable_length=True, conditions=conditions
        )
        vectors = torch.randn(3, SIZES.get(head, 16), 2) if config.needs_code_vectors else None
        lm = TokenLM(config, tokenizer.spec, vectors)
    model = Model(strong(lm).eval(), tokenizer, text, NAMES, GenerationConfig(max_frames=7, min_frames=2))
    return asks(model, {"text": TEXTS, "label": "y"}, settings)


def scales(head=None, **settings) -> Draw:
    """A next-scale model of images with a label."""
    quantizer = ScalesConfig(sizes=((1, 1), (2, 2), (3, 4)), quantizer=VQConfig(size=8))
    tokenizer = image_tokenizer(quantizer, height=3, width=4, downsamplings=0, latent_dim=3)
    config = NextScaleConfig(conditions=LABEL, **({} if head is None else {"head": head}), **SHAPE)
    lm = strong(make_lm(config, tokenizer.spec, quantizer=tokenizer.quantizer)).eval()
    return asks(Model(lm, tokenizer, None, NAMES, GenerationConfig()), {"label": ["x", "w", "z", "x"]}, settings)


def stages(kind: str) -> Draw:
    """Coarse labels and then codes, of audio or images, or one masked stage, in float64."""
    if kind == "audio":
        tokenizer = audio_tokenizer()
        lm, limits = build(tokenizer, True, refiner_conditions=()), GenerationConfig(max_frames=9, min_frames=0)
    else:
        quantizer = ResidualConfig(levels=3, quantizer=VQConfig(size=16))
        tokenizer, limits = image_tokenizer(quantizer, height=4, width=6, latent_dim=8), GenerationConfig()
        masked = MaskedConfig(**SHAPE, conditions=LABEL, masking=MaskingConfig(share="uniform"))
        lm = build(tokenizer, False) if kind == "images" else strong(make_lm(masked, tokenizer.spec))
    return asks(Model(lm.double().eval(), tokenizer, None, NAMES, limits), {"label": NAMES}, PASSES)


def fills(refines: bool, condition: str, settings: dict) -> Draw:
    """The passes of masked decoding over rows of different lengths, in float64."""
    lm, conditions = test_filling.make(refines, condition, **settings)
    coarse, lengths = (test_filling.make_labels(4, 6) if refines else None), torch.tensor([6, 2, 5, 6])

    def draw(rows: Sequence[int], seed: int, exact: bool = True, batch: int = 4) -> list[tuple[Tensor, ...]]:
        if len(rows) > batch:
            return [*draw(rows[:batch], seed, exact), *draw(rows[batch:], seed + batch, exact)]
        given = None if condition == "none" else conditions.rows(torch.tensor(rows))
        labels = None if coarse is None else coarse[rows][:, :, : int(lengths[rows].max())]
        found = fill_codes(
            *(lm, given, range(seed, seed + len(rows)), lengths[rows], {"passes": 4, "choice_temperature": 1.0}),
            coarse=labels,
            exact=exact,
        )
        ends = lengths[rows].tolist()
        assert not any(codes[:, end:].any() for codes, end in zip(found, ends, strict=True))
        return [(codes[:, :end],) for codes, end in zip(found, ends, strict=True)]

    return draw


def cases(quick: int, family: str, makers: dict[str, Callable[[], Draw]], exacts: tuple[bool, ...]) -> list:
    """`quick` of a family's cases are run by `make test`."""
    sample = pytest.mark.sample(quick, family)
    return [pytest.param(make, exacts, id=f"{family}: {name}", marks=sample) for name, make in makers.items()]


MODELS = {
    **{f"head {name}": partial(audio, name) for name in HEADS},
    "guided": partial(audio, guidance=2.0),
    "guided by a schedule": partial(audio, guidance=LINEAR),
    "guided with two conditions": partial(audio, guidance=TWO),
    "rules": partial(audio, **RULES, silence_codes=[1, 3]),
    "masked": partial(audio, masked=True, num_frames=6, passes=4, choice_temperature=1.0),
    "masked and guided": partial(audio, masked=True, num_frames=6, passes=3, guidance=2.0),
    "scales": partial(scales, guidance=2.0),
    "scales of bits": partial(scales, BitsHeadConfig()),
    "scales of grouped bits": partial(scales, BitsHeadConfig(groups=1)),
}
FILLED = {
    f"{name}, condition {condition}": partial(fills, refines, condition, settings)
    for name, refines, settings in (("codes", False, {}), ("refined", True, {}), ("bits", False, test_filling.BITS))
    for condition in ("none", "text")
}
CASES = [
    *cases(2, "model", MODELS, (True,)),
    # In float64 no rounding is large enough to change a draw, so that samples are the same without `exact`.
    *cases(1, "stages", {kind: partial(stages, kind) for kind in ("images", "audio", "masked")}, (True, False)),
    *cases(3, "passes", FILLED, (True, False)),
]


def same(found: list[tuple[Tensor, ...]], wanted: list[tuple[Tensor, ...]]) -> bool:
    pairs = [pair for one, other in zip(found, wanted, strict=True) for pair in zip(one, other, strict=True)]
    return all(torch.equal(*pair) for pair in pairs)


@pytest.mark.sample(3)
@pytest.mark.parametrize("make, exacts", CASES)
def test_a_sample_depends_on_its_seed_alone(make, exacts):
    draw = make()
    whole = draw(ROWS, 5)
    assert not all(torch.equal(codes, whole[0][0]) for codes, *_ in whole)
    assert not same(draw(ROWS, 15), whole)
    for exact in exacts:
        assert exact or same(draw(ROWS, 5, exact=exact), whole)
        assert same(draw(ROWS, 5, exact=exact, batch=3), whole)
        assert all(same(draw([i], 5 + i, exact=exact), [whole[i]]) for i in ROWS)
        assert same(draw(ROWS[::-1], 6, exact=exact)[1:2], [whole[2]])  # the place of a row does not matter
