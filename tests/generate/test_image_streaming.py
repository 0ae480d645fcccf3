"""Pictures while they grow: the last is the whole, what is drawn stays, what is not is neutral."""

import pytest
import torch
from tiny_models import ARRANGEMENTS, HEADS, save_tiny_models, strong

import tessera.generate
from tessera.generate import generate, stream_audio, stream_images
from tessera.generate.loading import load
from tessera.lm.clustering.clustering import ClusteredTokenizer, cluster_codes
from tessera.lm.conditioning.registry import LabelConfig
from tessera.lm.config import LMConfig
from tessera.lm.layers.input_embedding import CodesInputConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.models.coarse_to_fine import CoarseToFine
from tessera.lm.models.mask_schedule import MaskingConfig
from tessera.lm.models.masked import MaskedConfig, MaskedLM
from tessera.lm.patterns.pattern import CodebookPattern

SHAPE = {"width": 16, "layers": 1, "heads": 2, "conditions": (LabelConfig(classes=4),)}
CALL = {"label": 2, "guidance": 1.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load(folder / "shapes").tokenizer


def make(tokenizer, seed=0, kind=LMConfig, **settings):
    torch.manual_seed(seed)
    build = MaskedLM if kind is MaskedConfig else TokenLM
    return strong(build(kind(**SHAPE, **settings), tokenizer.spec)).eval()


@pytest.mark.sample(2)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("head", ["parallel", "depth"])
@pytest.mark.parametrize("every", [1, 2, None, 50])
def test_the_last_picture_is_the_whole(tokenizer, arrangement, head, every):
    lm = make(tokenizer, arrangement=ARRANGEMENTS[arrangement], head=HEADS[head])
    whole = generate(lm, tokenizer, **CALL, seed=4)
    pictures = list(stream_images(lm, tokenizer, **CALL, seed=4, every=every))
    assert torch.equal(pictures[-1], whole.media[0])
    assert len(pictures) == {1: 6, 2: 3, None: 2, 50: 1}[every]
    assert all(picture.shape == (1, 4, 6) and picture.dtype == torch.float32 for picture in pictures)


@pytest.mark.parametrize("arrangement", ["delay", "flat", "coarse first"])
def test_what_is_drawn_stays_and_what_is_not_is_neutral(tokenizer, arrangement):
    """Each picture is the decode of the codes whose steps are behind it, -1 elsewhere."""
    lm = make(tokenizer, arrangement=ARRANGEMENTS[arrangement])
    codes = generate(lm, tokenizer, **CALL, seed=1).codes[0]
    table: CodebookPattern = lm.arrangement
    steps, total = table.steps_of(torch.arange(6), 6), table.num_steps(6)
    expected = []
    for done in range(1, total + 1):
        drawn = codes.clone()
        drawn[steps >= done] = -1
        expected.append(tokenizer.decode(drawn[None])[0])
    found = list(stream_images(lm, tokenizer, **CALL, seed=1, every=1))
    assert all(any(torch.equal(picture, one) for one in expected) for picture in found)
    assert not torch.equal(found[0], found[-1])


def test_a_masked_model_shows_each_pass(tokenizer):
    lm = make(tokenizer, kind=MaskedConfig, masking=MaskingConfig(share="uniform"))
    call = {**CALL, "passes": 5, "choice_temperature": 1.0}
    whole = generate(lm, tokenizer, **call, seed=3)
    pictures = list(stream_images(lm, tokenizer, **call, seed=3))
    assert len(pictures) == 5 and torch.equal(pictures[-1], whole.media[0])
    assert not torch.equal(pictures[0], pictures[-1])


def test_coarse_to_fine_shows_a_sketch_first(tokenizer):
    clustering = cluster_codes(tokenizer, [4, 5, 3])
    torch.manual_seed(1)
    coarse = strong(TokenLM(LMConfig(**SHAPE, arrangement=ARRANGEMENTS["delay"]), clustering.spec))
    fine = MaskedConfig(**SHAPE, input=CodesInputConfig())
    refiner = strong(MaskedLM(fine, tokenizer.spec, tokenizer.vectors(), clustering))
    lm = CoarseToFine(coarse.eval(), refiner.eval())
    whole = generate(lm, tokenizer, **CALL, passes=3, seed=3)
    pictures = list(stream_images(lm, tokenizer, **CALL, passes=3, seed=3))
    assert len(pictures) == 2 + 3 and torch.equal(pictures[-1], whole.media[0])
    sketch = ClusteredTokenizer(tokenizer, clustering)
    assert torch.equal(pictures[1], sketch.decode(clustering.coarse(whole.codes))[0])
    # Sketches of labels that are not all there yet: a missing one is a missing code, not the last one of the table.
    labels = clustering.coarse(whole.codes)
    labels[:, 1:] = -1
    kept = whole.codes.clone()
    kept[:, 1:] = -1
    kept[:, 0] = sketch.medoids[0][labels[:, 0]]
    assert torch.equal(sketch.decode(labels), tokenizer.decode(kept))


def test_a_model_streams_pictures_too(folder):
    model = load(folder / "shapes")
    prompt = model.generate(label="7").codes[0, :, :2]
    pictures = list(model.stream(label="star", seed=2, prompt=prompt, top_k=3))
    assert torch.equal(pictures[-1], model.generate(label="star", seed=2, prompt=prompt, top_k=3).media[0])


def test_errors(folder, tokenizer):
    tones, shapes = load(folder / "tones"), load(folder / "shapes")
    for message, call in (
        ("'tones' makes audio; use stream_audio", lambda: stream_images(tones.lm, tones.tokenizer)),
        ("'shapes' makes images; use stream_images", lambda: stream_audio(shapes.lm, shapes.tokenizer)),
        (
            "every must be a whole number, at least 1, found 0",
            lambda: stream_images(shapes.lm, tokenizer, label=0, every=0),
        ),
        ("a stream is one sample, but 2 were requested", lambda: shapes.stream(label=[0, 1])),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_earlier_name_still_works():
    assert tessera.generate.stream_pictures is stream_images
