"""A voice given as codes, media or a file; with other conditions, guided, streamed; and what is refused."""

import pytest
import soundfile
import torch
from short_calls import generate_codes
from test_stages import build
from tiny_models import save_tiny_models, strong

from tessera.generate import generate
from tessera.generate.loading import load
from tessera.generate.model import Model
from tessera.generate.requests.settings import Length
from tessera.lm.conditioning.registry import CodesConditionConfig, ConditionBatch, EmbeddingConditionConfig, LabelConfig
from tessera.lm.config import LMConfig
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.guidance_config import ConstantGuidance, TwoConditions
from tessera.lm.models.causal import TokenLM
from tessera.lm.models.masked import MaskedConfig, MaskedLM
from tessera.tokenize.data.codes_file import CodesItem, write_codes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def clones(folder):
    return load(folder / "clones")


@pytest.fixture(scope="module")
def sound():
    return torch.rand(1, 16 * 5 + 3, generator=torch.Generator().manual_seed(0)) - 0.5


def test_codes_media_and_files_are_one_voice(clones, sound, tmp_path):
    codes = clones.tokenizer.encode(sound[None, :, : 16 * 5]).codes[0]
    soundfile.write(tmp_path / "ref.wav", sound[0].numpy(), 8000, subtype="FLOAT")
    write_codes(tmp_path / "ref.safetensors", clones.spec, [CodesItem("a", codes)])
    wanted = clones.generate(text="a", voice=codes, num_frames=9)
    for voice in (sound, tmp_path / "ref.wav", str(tmp_path / "ref.safetensors"), codes[None], [codes]):
        assert torch.equal(clones.generate(text="a", voice=voice, num_frames=9).codes, wanted.codes)
    assert not torch.equal(clones.generate(text="a", num_frames=9).codes, wanted.codes)
    begins = clones.generate(text="a", voice=codes, voice_frames=2, num_frames=9).codes
    assert torch.equal(begins, clones.generate(text="a", voice=codes[:, :2], num_frames=9).codes)
    assert not torch.equal(begins, wanted.codes)
    assert not torch.equal(wanted.codes[0, :, :5], codes), "nothing of it is part of the result"
    before, clones.defaults = clones.defaults, clones.defaults.model_copy(update={"default_label": "star"})
    assert torch.equal(clones.generate(text="a", voice=codes, num_frames=9).codes, wanted.codes), "it is the voice"
    clones.defaults = before


def test_it_is_the_condition_of_every_row(clones, sound):
    """Against the loop with a batch made by hand: several kinds at once, lists beside single entries."""
    codes = clones.tokenizer.encode(sound[None, :, : 16 * 5]).codes[0]
    given = {"text": ["one", "two"], "label": "star", "voice": [codes, codes[:, 1:3]], "num_frames": 7, "guidance": 2.0}
    found = clones.generate(**given, n=2, seed=3)
    texts = [clones.text.encode(text) for text in ("one", "one", "two", "two")]
    batch = ConditionBatch.make([2] * 4, texts, codes=[codes, codes, codes[:, 1:3], codes[:, 1:3]])
    expected = generate_codes(clones.lm, batch, [3, 4, 5, 6], Length(7, fixed=True), GenerationConfig(), 2.0).codes
    assert torch.equal(found.codes, expected)
    for i in range(4):  # a voice of another length in the batch changes nothing
        alone = clones.generate(text=["one", "two"][i // 2], label="star", voice=given["voice"][i // 2], seed=3 + i,
                                num_frames=7, guidance=2.0, exact=True)  # fmt: skip
        assert torch.equal(alone.codes[0], found.codes[i])


def test_it_goes_with_what_the_sample_begins_with(clones, sound):
    whole = clones.generate(text="a", voice=sound, num_frames=9)
    again = clones.generate(text="a", voice=sound, num_frames=9, prompt=whole.codes[0, :, :4])
    assert torch.equal(again.codes, whole.codes)


@pytest.mark.parametrize("keep", [("codes",), ("text",), ("label", "codes")])
def test_guidance_with_two_conditions(clones, sound, keep):
    """One greedy step against three forwards."""
    codes = clones.tokenizer.encode(sound[None, :, : 16 * 5]).codes[0]
    guidance = ConstantGuidance(scale=2.5, two=TwoConditions(keep=keep, beta=3.0))
    found = clones.generate(text="a", label=1, voice=codes, num_frames=1, temperature=0.0, guidance=guidance).codes
    batch = ConditionBatch.make([1], [clones.text.encode("a")], codes=[codes])

    def first(conditions):
        logits = clones.lm(torch.zeros(1, 3, 1, dtype=torch.long), None, conditions).logits[0, 0, 0]
        return logits[: clones.spec.cardinalities[0]].double()

    c, k, n = first(batch), first(batch.null(keep)), first(batch.null())
    assert int(found[0, 0, 0]) == int((n + 2.5 * (k + 3.0 * (c - k) - n)).argmax())


def test_a_coarse_to_fine_model_reads_its_labels_and_its_codes(folder, sound):
    conditions = (LabelConfig(classes=4), CodesConditionConfig(max_frames=6))
    tones = load(folder / "tones")
    both = build(tones.tokenizer, True, conditions)
    model = Model(both, tones.tokenizer, None, ["circle", "square", "star", "7"], GenerationConfig(max_frames=6))
    found = model.generate(label=0, voice=sound, n=3, passes=2)
    again = model.generate(label=0, voice=sound, seed=1, passes=2)
    assert torch.equal(again.codes[0], found[1].codes[0, :, : again.codes.shape[2]])
    assert not torch.equal(found.codes, model.generate(label=0, n=3, passes=2).codes)
    codes = tones.tokenizer.encode(sound[None, :, : 16 * 5]).codes
    given = ConditionBatch.make([0, 1], codes=[codes[0], codes[0, :, :2]])
    coarse = both.for_coarse(given)
    assert torch.equal(coarse.codes[0], both.clustering.coarse(codes)[0]) and coarse.label is given.label
    assert torch.isfinite(both.loss(codes.expand(2, -1, -1), None, given).loss)


def test_pictures_follow_pictures(folder):
    shapes = load(folder / "shapes")
    conditions = (CodesConditionConfig(max_frames=6, join="cross"),)
    torch.manual_seed(0)
    for lm in (
        TokenLM(LMConfig(width=16, layers=1, heads=2, conditions=conditions), shapes.spec),
        MaskedLM(MaskedConfig(width=16, layers=1, heads=2, conditions=conditions), shapes.spec),
    ):
        model = Model(strong(lm).eval(), shapes.tokenizer, None, [], GenerationConfig(), "sketch")
        pictures = torch.rand(2, 1, 4, 6) * 2 - 1
        one, other = (model.generate(voice=picture, n=2).codes for picture in pictures)
        assert not torch.equal(one, other)
        assert torch.equal(model.generate(voice=list(pictures), n=2).codes, torch.cat([one, model.generate(
            voice=pictures[1], n=2, seed=2).codes]))  # fmt: skip
        with pytest.raises(ValueError, match="'sketch' needs a voice; give a file or codes, or ask for unconditional"):
            model.generate()
        assert model.generate(unconditional=True).codes.shape == (1, 3, 6)


def test_given_vectors(folder):
    tones = load(folder / "tones")
    torch.manual_seed(0)
    lm = TokenLM(LMConfig(width=16, layers=1, heads=2, variable_length=True,
                          conditions=(EmbeddingConditionConfig(width=5),)), tones.spec)  # fmt: skip
    model = Model(strong(lm).eval(), tones.tokenizer, None, [], GenerationConfig(max_frames=5), "given")
    vectors = torch.randn(2, 3, 5)
    found = model.generate(embedding=[vectors[0], vectors[1, :2]], seed=1, num_frames=5)
    batch = ConditionBatch.make(embeddings=[vectors[0], vectors[1, :2]])
    expected = generate_codes(lm, batch, [1, 2], Length(5, fixed=True), GenerationConfig()).codes
    assert torch.equal(found.codes, expected)
    assert torch.equal(model.generate(embedding=vectors[0], seed=1, num_frames=5).codes[0], expected[0])
    assert model.generate(unconditional=True).codes.shape[:2] == (1, 3)
    refuse("'given' needs an embedding; give vectors", lambda: model.generate())
    refuse(r"embedding must be floating point \[B, L, 5\]", lambda: model.generate(embedding=torch.ones(2, 4)))
    refuse(
        "'tones' takes no embedding; leave embedding out", lambda: named(tones).generate(text="a", embedding=vectors)
    )


def refuse(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def named(model):
    model.name = "tones"
    return model


def long(*shape):
    return torch.zeros(shape, dtype=torch.long)


def test_errors(clones, folder, tmp_path):
    tones, shapes = load(folder / "tones"), load(folder / "shapes")
    clones.name = "clones"

    def say(voice, **settings):
        return lambda: clones.generate(text="a", voice=voice, **settings)

    refuse(
        "the voice has 9 frames, 'clones' reads at most 8; give a shorter one, or set voice_frames to 8",
        say(long(3, 9)),
    )
    assert len(say(long(3, 9), voice_frames=8)()) == 1
    refuse("codes have 2 codebooks", say(long(2, 4)))
    refuse("codes range from 16 to 16, tokenizer 'tones' has", say(long(3, 4) + 16))
    refuse(r"a voice is codes \(long, .*found torch.int64 \[4\]", say(long(4)))
    refuse("voice_frames must be from 1 to the voice's 4 frames, found 5", say(long(3, 4), voice_frames=5))
    refuse("voice_frames is 5, but no voice was given", lambda: clones.generate(text="a", voice_frames=5))
    refuse("the voice has 15 samples, a frame of 'tones' has 16", say(torch.zeros(1, 15)))
    refuse("the list of voices is empty", say([]))
    refuse("2 texts but 3 voices", lambda: clones.generate(text=["a", "b"], voice=[long(3, 4)] * 3))
    refuse(r"'tones' takes no voice, it has no condition 'codes' \(to continue a recording, give it as prompt\)",
           lambda: named(tones).generate(text="a", voice=long(3, 4)))  # fmt: skip
    refuse("takes no voice", lambda: tones.stream(text="a", voice=long(3, 4)))
    write_codes(tmp_path / "other.safetensors", shapes.spec, [CodesItem("a", long(3, 4))])
    refuse("codes of tokenizer 'shapes'", say(tmp_path / "other.safetensors"))
    with pytest.raises(FileNotFoundError):
        say("nowhere.wav")()
    refuse("a prompt of codes has 9 frames, the model reads at most 8",
           lambda: generate(clones.lm, clones.tokenizer, text_ids=[1], voice=long(3, 9)))  # fmt: skip
    undropped = (*clones.lm.config.conditions[:2], CodesConditionConfig(max_frames=8, dropout=0.0))
    lm = TokenLM(clones.lm.config.model_copy(update={"conditions": undropped}), clones.spec).eval()
    refuse(r"never trained without a voice \(dropout 0\)", lambda: generate(lm, clones.tokenizer, text_ids=[1]))
    given = {"text_ids": [1], "voice": long(3, 4)}
    refuse("without dropping its codes", lambda: generate(lm, clones.tokenizer, **given, guidance=2.0))
    assert len(generate(lm, clones.tokenizer, **given, num_frames=3)) == 1
