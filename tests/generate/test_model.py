"""Model and Result: names and texts in, media and files out."""

import re
import struct
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from short_calls import generate_codes
from tiny_models import save_tiny_models

import tessera
from tessera.generate import generate, stream_audio
from tessera.generate.execution import step_runner
from tessera.generate.loading import load
from tessera.generate.sampling.silence import silence_codes
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.kv_cache.config import RingCacheConfig
from tessera.tokenize.data.codes_file import CodesItem, write_codes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def tones(folder):
    return load(folder / "tones")


@pytest.fixture(scope="module")
def voices(folder):
    return load(folder / "voices")


@pytest.fixture(scope="module")
def clones(folder):
    return load(folder / "clones")


@pytest.fixture(scope="module")
def shapes(folder):
    return tessera.load(folder / "shapes", device="cpu")


@pytest.mark.slow
def test_silence_is_what_the_tokenizer_makes_of_zeros(tones, shapes):
    silent = silence_codes(tones.tokenizer, seconds=0.1)
    codes = tones.tokenizer.encode(torch.zeros(1, 1, 16 * 50)).codes[0, 0]
    assert silent == sorted(set(codes.tolist())) and len(silent) < 16

    def longest_silence(seed, **settings):
        longest = run = 0
        for code in tones.generate(text="a", num_frames=60, seed=seed, **settings).codes[0, 0].tolist():
            run = run + 1 if code in wanted else 0
            longest = max(longest, run)
        return longest

    wanted = silence_codes(tones.tokenizer)
    # Two frames of 16 samples at 8000 Hz.
    assert all(longest_silence(seed, max_silence=0.004) <= 2 for seed in range(2))
    wanted = list(range(12))
    assert longest_silence(0, max_silence=0.0039, silence_codes=wanted) == 1
    assert longest_silence(0) > 2
    refuse("'shapes' makes images, which have no silence", lambda: shapes.generate(label=0, max_silence=1.0))


def test_a_stream_makes_nothing_ahead(tones):
    """Its first chunk comes as soon as the stream decoder has its frames."""
    chunks = tones.stream(text="a", max_frames=400, min_frames=400)
    first = next(chunks)
    assert first.shape[1] < 20 * 16
    assert chunks.gi_frame.f_locals["frames"].gi_frame.f_locals["self"].position < 30


def test_generate_is_codes_then_decode(shapes):
    """The words and numbers of the face arrive at the loop, and its codes at the tokenizer."""
    settings = {"temperature": [0.8, 1.0, 1.2], "top_k": 9, "top_p": 0.9, "min_p": 0.01, "guidance": 2.0}
    result = shapes.generate(label="star", n=2, seed=3, **settings)
    functional = generate(shapes.lm, shapes.tokenizer, label=2, n=2, seed=3, **settings)
    from tessera.generate.requests.settings import Length
    from tessera.lm.conditioning.registry import ConditionBatch

    sampling = GenerationConfig(temperature=[0.8, 1.0, 1.2], top_k=9, top_p=0.9, min_p=0.01)
    codes = generate_codes(
        shapes.lm, ConditionBatch.make(labels=[2, 2]), [3, 4], Length(6, fixed=True), sampling, 2.0
    ).codes
    assert torch.equal(result.codes, codes) and torch.equal(functional.codes, codes)
    assert torch.equal(torch.stack(result.media), shapes.tokenizer.decode(codes))
    assert result.codes.shape == (2, 3, 6) and result.media[0].shape == (1, 4, 6)
    assert result.spec == shapes.spec and result.ended == (True, True)


def test_labels_by_name_and_id(shapes):
    by_name = shapes.generate(label=["circle", "square", "star", "7"], seed=1)
    by_id = shapes.generate(label=[0, 1, 2, 3], seed=1)
    assert torch.equal(by_name.codes, by_id.codes)
    assert shapes.label_id("7") == 3, "names come before numbers"


def test_the_label_of_a_call_that_gives_none(folder):
    voices = load(folder / "voices")
    call = {"text": "one two three four", "seed": 3}
    none, star = voices.generate(**call), voices.generate(**call, label="star")
    voices.defaults = voices.defaults.model_copy(update={"default_label": "star"})
    assert voices.generate(**call).codes.equal(star.codes) and not none.codes.equal(star.codes)
    assert torch.cat(list(voices.stream(**call)), dim=1).equal(star.media[0])
    long = {"text": "one. two. three.", "text_characters": 6, "seed": 1}
    assert voices.generate(**long).codes.equal(voices.generate(**long, label="star").codes)
    with pytest.raises(ValueError, match="default_label belongs to the model; give label instead"):
        voices.generate(**call, default_label="circle")


def test_conditions_matter(shapes, voices):
    assert not torch.equal(shapes.generate(label=0, n=8).codes, shapes.generate(label=1, n=8).codes)
    assert torch.equal(shapes.generate(n=8, unconditional=True).codes, shapes.generate(n=8, unconditional=True).codes)
    one = voices.generate(text="one", label="star", num_frames=9)
    assert not torch.equal(one.codes, voices.generate(text="one", num_frames=9).codes)
    assert len(voices.generate(text="one", label=["star", "circle"], n=2)) == 4
    assert len(voices.generate(text=["one", "two"], label=["star", "circle"])) == 2


def test_defaults_are_the_models_own(tones):
    assert int(tones.generate(text="a", n=4).lengths.max()) <= 12
    assert int(tones.generate(text="a", n=4).lengths.min()) >= 2
    own = tones.generate(text="a", num_frames=40, seed=1)
    assert torch.equal(own.codes, tones.generate(text="a", num_frames=40, seed=1, guidance=1.5).codes)
    assert not torch.equal(own.codes, tones.generate(text="a", num_frames=40, seed=1, guidance=1.0).codes)
    assert int(tones.generate(text="a", max_frames=1).lengths[0]) == 1, "a limit below the model's lower bound is met"
    seconds = tones.generate(text="a", n=3, max_seconds=4.5 * 16 / 8000, min_frames=4)
    assert seconds.lengths.tolist() == [4] * 3 and not any(seconds.ended)
    assert seconds.seconds == pytest.approx(3 * 4 * 16 / 8000)


def test_a_cache_is_chosen_by_name_or_mapping(tones):
    own = tones.generate(text="abcdef", num_frames=12).codes
    narrow = {"kind": "ring", "window": 1}
    for cache in (narrow, "{kind: ring, window: 1}", RingCacheConfig(window=1)):
        found = tones.generate(text="abcdef", num_frames=12, cache=cache)
        assert not torch.equal(found.codes, own)
        chunks = list(tones.stream(text="abcdef", num_frames=12, cache=cache))
        assert torch.equal(torch.cat(chunks, dim=1), found.media[0])
        assert torch.equal(found.codes, tones.generate(text="abcdef", num_frames=12, cache=narrow).codes)
    assert torch.equal(tones.generate(text="abcdef", num_frames=12, cache="static").codes, own)
    tones.defaults = tones.defaults.model_copy(update={"cache": RingCacheConfig(window=1)})
    assert torch.equal(tones.generate(text="abcdef", num_frames=12).codes, found.codes), "a model's own default"
    tones.defaults = tones.defaults.model_copy(update={"cache": None})
    refuse("cache.ring.windw: unknown key", lambda: tones.generate(text="a", cache={"kind": "ring", "windw": 1}))
    refuse("cache kind 'ring' needs a window", lambda: tones.generate(text="a", cache="ring"))


def test_warm_up_makes_what_later_calls_need(tones, voices, shapes, monkeypatch):
    made = []

    def plain(step):
        made.append(step)
        return [partial(step.advance, phase) for phase in range(step.period)]

    monkeypatch.setitem(step_runner.MAKERS, "compiled", plain)
    for model, condition in ((tones, {"text": "ab"}), (voices, {"text": "b", "label": "star"}), (shapes, {"label": 1})):
        made.clear()
        limit = {} if model is shapes else {"max_frames": 40}
        model.warmup(batch=2, step="compiled", guidance=2.0, **limit)
        assert len(made) == 1
        found = model.generate(n=2, step="compiled", guidance=1.5, **condition)
        assert torch.equal(found.codes, model.generate(n=2, guidance=1.5, **condition).codes)
        assert len(made) == 1
        model.warmup(**limit)  # steps in Python need none
    assert tones.generate(text="a", n=1, step="compiled", max_frames=5).codes.shape[2] <= 5 and len(made) == 2


def test_prompts(tones, shapes, tmp_path):
    whole = tones.generate(text="a", num_frames=12)
    codes = whole.codes[0, :, :5]
    again = tones.generate(text="a", num_frames=12, prompt=codes)
    assert torch.equal(again.codes, whole.codes)
    assert torch.equal(torch.cat(list(tones.stream(text="a", num_frames=12, prompt=codes)), 1), whole.media[0])
    item = CodesItem("a", whole.codes[0])
    write_codes(tmp_path / "codes.safetensors", tones.spec, [item])
    from_file = tones.generate(text="a", num_frames=12, prompt=tmp_path / "codes.safetensors", prompt_frames=5)
    assert torch.equal(from_file.codes, whole.codes)

    write_codes(tmp_path / "two.safetensors", tones.spec, [item, item])
    refuse("holds the codes of 2 items", lambda: tones.generate(text="a", prompt=tmp_path / "two.safetensors"))
    refuse("codes of tokenizer 'tones'", lambda: shapes.generate(label=0, prompt=tmp_path / "codes.safetensors"))

    sound = torch.rand(1, 16 * 4 + 5) - 0.5
    begins = tones.tokenizer.encode(sound[None, :, : 16 * 4]).codes
    assert torch.equal(tones.generate(text="a", num_frames=8, prompt=sound).codes[:, :, :4], begins)
    soundfile.write(tmp_path / "in.wav", sound[0].numpy(), 8000, subtype="FLOAT")
    found = tones.generate(text=["a", "b"], num_frames=8, prompt=str(tmp_path / "in.wav")).codes
    assert torch.equal(found[:, :, :4], begins.expand(2, -1, -1))

    picture = shapes.generate(label=0).save(tmp_path / "in.png")[0]
    top = shapes.generate(label=1, prompt=picture, prompt_frames=3)
    assert torch.equal(top.codes[0, :, :3], shapes.generate(label=1, prompt=top.codes[:, :, :3]).codes[0, :, :3])


def test_result(shapes):
    result = shapes.generate(label=[0, 1], n=2, seed=7)
    assert [one.seeds for one in result] == [(7,), (8,), (9,), (10,)]
    assert torch.equal(result[-1].media[0], result.media[3]) and len(result[1]) == 1
    assert result.num_frames == 24 and result.seconds == 0.0
    with pytest.raises(IndexError, match="sample 4 of 4"):
        result[4]


def test_save_pictures(shapes, tmp_path):
    result = shapes.generate(label=0, n=3)
    files = result.save(tmp_path / "a" / "many")
    assert [str(file.relative_to(tmp_path)) for file in files] == [f"a/many/{i:04d}.png" for i in range(3)]
    for file, media in zip(files, result.media, strict=True):
        with Image.open(file) as image:
            assert image.size == (6, 4) and image.mode == "L"
            pixels = torch.from_numpy(np.array(image)).long()
        assert torch.equal(pixels, ((media[0] + 1) * 127.5).round().clamp(0, 255).long())
    assert result[1].save(tmp_path / "b" / "one.PNG") == [tmp_path / "b" / "one.PNG"]
    assert result[1].save(tmp_path / "c") == [tmp_path / "c" / "0000.png"]


def test_save_sound(tones, tmp_path):
    result = tones.generate(text="a", num_frames=10)
    (path,) = result.save(tmp_path / "one.wav")
    header = path.read_bytes()[:44]
    assert struct.unpack("<4sI4s4sIHHIIHH4sI", header) == (
        b"RIFF", 36 + 320, b"WAVE", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16, b"data", 320,
    )  # fmt: skip
    assert path.stat().st_size == 44 + 10 * 16 * 2
    result.save(tmp_path / "one.flac")
    assert soundfile.info(tmp_path / "one.flac").frames == 160
    assert tones.generate(text="a", n=2).save(tmp_path / "many")[1].name == "0001.wav"


def test_save_errors(shapes, tones, tmp_path):
    several = shapes.generate(label=0, n=2)
    with pytest.raises(ValueError, match=r"x.png: 2 samples do not fit into one file; name a directory, for instance"):
        several.save(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"'shapes' makes images; use a name ending in .png"):
        several[0].save(tmp_path / "x.wav")
    with pytest.raises(ValueError, match=r"'tones' makes audio; use a name ending in .wav or .flac"):
        tones.generate(text="a").save(tmp_path / "x.mp3")
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="is an existing file"):
        several.save(tmp_path / "taken")


def refuse(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def test_errors(shapes, tones, voices):
    refuse("'shapes' has no label 'sqare'; did you mean 'square'?", lambda: named(shapes).generate(label="sqare"))
    refuse("has the labels 0 to 3, found 4", lambda: shapes.generate(label=4))
    refuse("has no label True", lambda: shapes.generate(label=True))
    refuse("needs a label; give one of circle, square, star, 7, or ask for", lambda: shapes.generate())
    refuse("reads no text; leave text out, give a label", lambda: shapes.generate(text="a"))
    refuse("has no labels; leave label out, give a text", lambda: tones.generate(label=0))
    refuse("needs a text; give a text to speak or depict", lambda: tones.generate())
    refuse("needs a text", lambda: voices.generate(label=0))
    refuse("empty", lambda: tones.generate(text=" "))
    refuse("the list of texts is empty", lambda: tones.generate(text=[]))
    refuse("2 labels but 3 texts", lambda: voices.generate(label=[0, 1], text=["a", "b", "c"]))
    refuse("n must be a whole number, at least 1, found 0", lambda: tones.generate(text="a", n=0))
    refuse("seed must be a whole number, found 'x'", lambda: tones.generate(text="a", seed="x"))
    refuse("batch must be a whole number, at least 1", lambda: tones.generate(text="a", batch=0))
    refuse("temprature: unknown key; did you mean 'temperature'", lambda: tones.generate(text="a", temprature=1.0))
    refuse("ras: must be a whole number of frames", lambda: tones.generate(text="a", ras=-1))
    refuse(
        "max_silence: Input should be greater than or equal to 0", lambda: tones.generate(text="a", max_silence=-1.0)
    )
    refuse("end_bias is 1.0, but the model has no end", lambda: shapes.generate(label=0, end_bias=1.0))
    refuse("top_p: must be above 0", lambda: tones.generate(text="a", top_p=0.0))
    refuse("max_seconds must be above 0, found -1", lambda: tones.generate(text="a", max_seconds=-1))
    refuse("both given", lambda: tones.generate(text="a", max_seconds=1, max_frames=5))
    refuse("makes images; leave it out", lambda: shapes.generate(label=0, max_seconds=1))
    refuse("num_frames is 5, but an image of 'shapes' has 6", lambda: shapes.generate(label=0, num_frames=5))
    refuse("max_frames is 5, but an image", lambda: shapes.generate(label=0, max_frames=5))
    refuse("min_frames must be from 0 to max_frames", lambda: tones.generate(text="a", max_frames=3, min_frames=4))
    refuse("needs a text", lambda: tones.stream())
    refuse("a stream is one sample", lambda: tones.stream(text=["a", "b"]))
    refuse("prompt has 3 rows for 2 samples", lambda: tones.generate(text="a", n=2, prompt=long(3, 3, 2)))
    refuse("codes have 2 codebooks", lambda: tones.generate(text="a", prompt=long(2, 4)))
    refuse(re.escape("found torch.int64 [4]"), lambda: tones.generate(text="a", prompt=long(4)))
    short = {"text": "a", "prompt": long(3, 4), "prompt_frames": 5}
    refuse("prompt_frames must be from 1 to the prompt's 4", lambda: tones.generate(**short))
    refuse("the prompt has 6 frames, but at most 6", lambda: shapes.generate(label=0, prompt=long(3, 6)))
    refuse("the prompt has 15 samples", lambda: tones.generate(text="a", prompt=torch.zeros(1, 15)))
    refuse("the tokenizer given: codes of tokenizer 'shapes'", lambda: generate(tones.lm, shapes.tokenizer))
    refuse("the tokenizer given: codes of tokenizer 'shapes'", lambda: stream_audio(tones.lm, shapes.tokenizer))
    with pytest.raises(FileNotFoundError):
        tones.generate(text="a", prompt="nowhere.wav")


def long(*shape):
    return torch.zeros(shape, dtype=torch.long)


def named(model):
    model.name = "shapes"
    return model


def test_a_model_that_never_ran_without_its_condition(shapes):
    undropped = shapes.lm.config.conditions[0].model_copy(update={"dropout": 0.0})
    lm = type(shapes.lm)(shapes.lm.config.model_copy(update={"conditions": (undropped,)}), shapes.spec).eval()
    assert len(generate(lm, shapes.tokenizer, label=0)) == 1
    refuse("never trained without a label", lambda: generate(lm, shapes.tokenizer))
    refuse("without dropping its label", lambda: generate(lm, shapes.tokenizer, label=0, guidance=2.0))


def test_load(folder, tmp_path, monkeypatch):
    from tessera.tokenize import bundled as module

    monkeypatch.setattr(module, "BUNDLED", folder)
    assert module.bundled_models() == ["clones", "shapes", "styles", "tones", "voices"]
    assert repr(tessera.load("tones")).startswith("Model('tones': audio, conditioned on text, 0.0 M")
    assert tessera.load("shapes").suffix == ".png" and tessera.load("tones").suffix == ".wav"
    refuse("no model 'shpaes': no such directory, and no bundled model .* mean 'shapes'", lambda: load("shpaes"))
    with pytest.raises(FileNotFoundError, match="no model here"):
        load(tmp_path)
    monkeypatch.setattr(module, "BUNDLED", tmp_path)
    refuse("this installation has none", lambda: load("digits"))


def test_draft_of_a_model_that_does_not_look_ahead_is_refused(tones):
    with pytest.raises(ValueError, match="draft is 2, but the model predicts 0 steps ahead"):
        tones.generate(text="a", draft=2)
    with pytest.raises(ValueError, match="draft is 2, but the model predicts 0 steps ahead"):
        tones.stream(text="a", draft=2)
