"""The verbs generate, tts, image and eval: files written, one line for a mistake."""

import io
import json

import pytest
import soundfile
import torch
from PIL import Image
from tiny_models import save_tiny_models

from tessera.cli.app import run
from tessera.configs.files import read_sealed_json, write_safetensors, write_sealed_json
from tessera.generate.loading import load
from tessera.lm.checkpoints.model_directory import save_model
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.kv_cache.config import RingCacheConfig
from tessera.tokenize.data.codes_file import CodesItem, write_codes
from tessera.tokenize.data.corpus import ArraysCorpus
from tessera.tokenize.data.shard_writer import build_shards
from tessera.tokenize.data.shards_config import ShardsConfig


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_tiny_models(tmp_path_factory.mktemp("models"))


def tessera(*arguments) -> int:
    return run([str(argument) for argument in arguments])


def test_generate_many(models, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        tessera(
            "generate", models / "shapes", "--label", "star", "-n", 3, "--seed", 4, "-o", out, "--json", "--scale", 1
        )
        == 0
    )
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert [sample["seed"] for sample in summary["samples"]] == [4, 5, 6]
    assert [sample["file"] for sample in summary["samples"]] == [str(out / f"000{i}.png") for i in range(3)]
    assert f"3 images in {out}: 18 frames in" in printed.err
    again = load(models / "shapes").generate(label="star", n=3, seed=4)
    again.save(tmp_path / "again")
    for i in range(3):
        assert (out / f"000{i}.png").read_bytes() == (tmp_path / "again" / f"000{i}.png").read_bytes()


def test_generate_with_packed_weights(models, tmp_path, capsys):
    call = ["generate", models / "shapes", "--label", "star", "-o", tmp_path / "a.png", "--scale", 1]
    assert tessera(*call, "--weights", "int8") == 0
    load(models / "shapes", weights="int8").generate(label="star").save(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert tessera(*call, "--weights", "int5") == 2
    assert "weights 'int5' are unknown; choose float32, bfloat16, int8, int4" in capsys.readouterr().err


def test_generate_with_another_cache(models, tmp_path, capsys):
    call = ["generate", models / "shapes", "--label", "star", "-o", tmp_path / "a.png", "--seed", 1, "--scale", 1]
    assert tessera(*call, "--cache", "{kind: ring, window: 1}") == 0
    load(models / "shapes").generate(label="star", seed=1, cache={"kind": "ring", "window": 1}).save(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    for kind in ("static", "int8", "int4", "evict"):
        assert tessera(*call, "--cache", kind) == 0
    capsys.readouterr()
    assert tessera(*call, "--cache", "int5") == 2
    assert "'int5'" in capsys.readouterr().err
    assert tessera(*call, "--cache", "{kind: ring") == 2
    assert capsys.readouterr().err.startswith("tessera: --cache: not valid YAML")


def test_a_null_cache_replaces_the_models_default(models, tmp_path):
    shapes = load(models / "shapes")
    narrow = GenerationConfig(cache=RingCacheConfig(window=1))
    save_model(tmp_path / "model", shapes.lm, shapes.tokenizer, None, shapes.labels, narrow)
    narrow_model = load(tmp_path / "model")
    call = ["generate", tmp_path / "model", "--label", "star", "-o", tmp_path / "a.png", "--seed", 1, "--scale", 1]
    for text, cache in ((None, narrow.cache), ("null", None), ("", None)):
        assert tessera(*call, *(() if text is None else ("--cache", text))) == 0
        shapes.generate(label="star", seed=1, cache=cache).save(tmp_path / "b.png")
        narrow_model.generate(label="star", seed=1, cache=cache if text is None else text).save(tmp_path / "c.png")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_lists_of_numbers(models, tmp_path, capsys):
    call = ["generate", models / "shapes", "--label", "star", "-o", tmp_path / "a.png", "--scale", 1]
    assert tessera(*call, "--top-k", 1 << 40) == 0  # the largest that its help allows
    assert tessera(*call, "--silence-codes", "") == 0
    capsys.readouterr()
    assert tessera(*call, "--silence-codes", "1,x") == 2
    assert "--silence-codes takes a whole number, or several with commas; found '1,x'" in capsys.readouterr().err
    assert tessera(*call, "--top-k", "1,x") == 2
    assert "--top-k takes a whole number, or one per codebook with commas; found '1,x'" in capsys.readouterr().err


def test_generate_one_with_all_settings(models, tmp_path, capsys):
    codes = load(models / "tones").generate(text="a", num_frames=3).codes[0]
    write_codes(tmp_path / "prompt.safetensors", load(models / "tones").spec, [CodesItem("a", codes)])
    settings = "--temperature 0.9,1,1.1 --top-k 9,8,7 --top-p 0.9 --min-p 0.01 --guidance 2".split()
    settings += "--ras 5,4,0 --ras-tau 0.2 --repetition-penalty 1.2 --repetition-window 3".split()
    settings += "--end-bias 0.5 --max-silence 0.004".split()
    prompt = ["--prompt", tmp_path / "prompt.safetensors", "--prompt-frames", 2]
    out = tmp_path / "deep" / "one.wav"
    assert tessera("generate", models / "tones", "--text", "a", "--frames", 8, *settings, *prompt, "-o", out) == 0
    assert soundfile.info(out).frames == 8 * 16 and soundfile.info(out).samplerate == 8000
    found = load(models / "tones").generate(
        text="a", num_frames=8, temperature=[0.9, 1.0, 1.1], top_k=[9, 8, 7], top_p=0.9, min_p=0.01, guidance=2.0,
        prompt=codes[:, :2], ras=[5, 4, 0], ras_tau=0.2, repetition_penalty=1.2, repetition_window=3, end_bias=0.5,
        max_silence=0.004,
    )  # fmt: skip
    found.save(tmp_path / "found.wav")
    assert out.read_bytes() == (tmp_path / "found.wav").read_bytes()
    assert capsys.readouterr().out == ""


def test_a_guidance_schedule(models, tmp_path):
    schedule = "{kind: linear, scale: [3, 2, 1.5]}"
    draw = ["image", "star", "--model", models / "shapes", "--scale", 1]
    assert tessera(*draw, "--guidance", schedule, "-o", tmp_path / "a.png") == 0
    found = load(models / "shapes").generate(label="star", guidance={"kind": "linear", "scale": [3.0, 2.0, 1.5]})
    found.save(tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_several_texts_and_labels(models, tmp_path, capsys):
    texts = ["--text", "one", "--text", "two"]
    assert tessera("generate", models / "voices", *texts, "--label", "7", "-n", 2, "-o", tmp_path / "o", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["samples"]) == 4


def test_tts(models, tmp_path, capsys):
    say = ["tts", "a word", "--model", models / "voices", "--voice", "star"]
    assert tessera(*say, "-o", tmp_path / "out.wav", "--seed", 2) == 0
    load(models / "voices").generate(text="a word", label="star", seed=2).save(tmp_path / "same.wav")
    assert (tmp_path / "out.wav").read_bytes() == (tmp_path / "same.wav").read_bytes()
    assert tessera(*say, "-o", tmp_path / "out.flac", "--max-seconds", 0.004) == 0
    assert "1 of 1 samples did not end within 2 frames" in capsys.readouterr().err
    assert tessera(*say, "-n", 2, "-o", tmp_path / "many") == 0
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == ["0000.wav", "0001.wav"]


def test_a_voice_from_a_file(models, tmp_path, capsys):
    clones, ref = models / "clones", tmp_path / "ref.wav"
    soundfile.write(ref, torch.linspace(-0.5, 0.5, 16 * 9).numpy(), 8000, subtype="FLOAT")
    say = ["tts", "a word", "--model", clones, "--voice"]
    assert tessera(*say, ref, "-o", tmp_path / "a.wav") == 2
    assert "the voice has 9 frames" in capsys.readouterr().err
    assert tessera(*say, ref, "--voice-frames", 6, "-o", tmp_path / "a.wav") == 0
    found = load(clones).generate(text="a word", voice=ref, voice_frames=6)
    found.save(tmp_path / "same.wav")
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "same.wav").read_bytes()
    call = ["generate", clones, "--text", "a word", "--voice", ref, "--voice-frames", 6]
    assert tessera(*call, "-o", tmp_path / "b.wav") == 0
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "same.wav").read_bytes()
    assert tessera(*call, "--voice", ref, "-n", 2, "-o", tmp_path / "many") == 0
    assert len(list((tmp_path / "many").iterdir())) == 4
    assert tessera(*say[:-1], "--voice-name", "star", "-o", tmp_path / "c.wav") == 0, "a label is a voice too"
    load(clones).generate(text="a word", label="star").save(tmp_path / "same.wav")
    assert (tmp_path / "c.wav").read_bytes() == (tmp_path / "same.wav").read_bytes()


def test_image(models, tmp_path):
    assert tessera("image", "star", "--model", models / "shapes", "-o", tmp_path / "star.png") == 0
    assert Image.open(tmp_path / "star.png").size == (6 * 43, 4 * 43), (
        "a tiny picture is enlarged to 256 pixels or more"
    )
    assert tessera("image", "2", "--model", models / "shapes", "-o", tmp_path / "two.png") == 0
    assert (tmp_path / "two.png").read_bytes() == (tmp_path / "star.png").read_bytes(), "label 2 is 'star'"


def test_image_of_a_caption_in_a_style(models, tmp_path, capsys):
    draw = ["image", "a red apple", "--model", models / "styles", "--scale", 1, "-o", tmp_path / "made.png"]
    styles, same = load(models / "styles"), tmp_path / "same.png"
    for asked, label in (([], None), (["--style", "star"], "star"), (["--style", "1"], 1)):
        assert tessera(*draw, *asked) == 0
        styles.generate(text="a red apple", label=label).save(same)
        assert (tmp_path / "made.png").read_bytes() == same.read_bytes()
    assert tessera(*draw, "--style", "watercolor") == 2
    assert "'watercolor'" in capsys.readouterr().err
    assert tessera("image", "star", "--model", models / "shapes", "--style", "star", "-o", tmp_path / "x.png") == 2
    assert "the prompt of model" in capsys.readouterr().err


def test_tts_as_a_stream(models, tmp_path, capsysbinary):
    say = ["tts", "a word", "--model", models / "voices", "--voice", "star", "--seed", 2]
    assert tessera(*say, "-o", tmp_path / "whole.wav") == 0
    assert tessera(*say, "-o", tmp_path / "deep" / "made.wav", "--stream", "--json") == 0
    printed = capsysbinary.readouterr()
    assert b"first audio after " in printed.err
    assert 0 < json.loads(printed.out)["first_sound_seconds"] <= json.loads(printed.out)["seconds"]
    whole = (tmp_path / "whole.wav").read_bytes()
    assert (tmp_path / "deep" / "made.wav").read_bytes() == whole
    assert tessera(*say, "-o", "-") == 0
    assert capsysbinary.readouterr().out[44:] == whole[44:]
    for arguments, message in (
        (["-o", "-", "--json"], b"cannot both go to stdout"),
        (["-o", "x.flac", "--stream"], b"x.flac: a stream is written as .wav"),
        (["-o", "-", "-n", 2], b"--stream generates one sample, but -n is 2"),
    ):
        assert tessera(*say, *arguments) == 2
        assert message in capsysbinary.readouterr().err


def test_image_frames(models, tmp_path, capsys):
    draw = ["image", "star", "--model", models / "shapes"]
    assert tessera(*draw, "-o", tmp_path / "star.png") == 0
    assert tessera(*draw, "-o", tmp_path / "again.png", "--frames", tmp_path / "grown", "--json") == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "star.png").read_bytes()
    grown = sorted((tmp_path / "grown").iterdir())
    assert json.loads(capsys.readouterr().out)["frames"] == [str(file) for file in grown]
    assert [file.name for file in grown] == ["0000.png", "0001.png"]
    assert grown[-1].read_bytes() == (tmp_path / "star.png").read_bytes() != grown[0].read_bytes()
    assert tessera(*draw, "-o", tmp_path / "many", "--frames", tmp_path / "f", "-n", 2) == 2
    assert "--frames writes the partial images of one image, but -n is 2" in capsys.readouterr().err


def test_eval(models, tmp_path, capsys):
    shapes = load(models / "shapes")
    pictures = torch.randint(0, 256, (5, 4, 6), dtype=torch.uint8)
    write_safetensors(tmp_path / "x.safetensors", {"images": pictures, "labels": torch.tensor([0, 1, 0, 1, 0])})
    corpus = ArraysCorpus(path=str(tmp_path / "x.safetensors"))
    build_shards(ShardsConfig(corpus=corpus, tokenizer="-", out=str(tmp_path / "shards")), shapes.tokenizer, False)
    # The labels are "0" and "1", which this model has no names for.
    assert tessera("eval", models / "shapes", "--data", tmp_path / "shards", "--no-speed") == 2
    assert "label '0'" in capsys.readouterr().err
    path = tmp_path / "shards" / "index.json"
    text = json.dumps(read_sealed_json(path))
    for number, name in (("0", "circle"), ("1", "star")):
        text = text.replace(f'"{number}"', f'"{name}"')
    write_sealed_json(path, json.loads(text))

    assert tessera("eval", models / "shapes", "--data", tmp_path / "shards", "--json", "--batch", 2) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"]["items"] == 5 and found["loss"]["frames"] == 30 and len(found["loss"]["per_codebook"]) == 3
    codes = shapes.tokenizer.encode(pictures[:, None].float() / 127.5 - 1).codes
    from tessera.lm.conditioning.registry import ConditionBatch

    expected = shapes.lm.loss(codes, None, ConditionBatch.make(labels=[0, 2, 0, 2, 0])).per_codebook
    assert found["loss"]["per_codebook"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert [speed["rows"] for speed in found["speed"]] == [1, 16]
    assert all(speed["frames_per_second"] > 0 for speed in found["speed"])
    assert tessera("eval", models / "shapes", "--data", tmp_path / "shards", "--no-speed") == 0
    assert "perplexity" in capsys.readouterr().out


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("generate nothing -o x", "no model 'nothing'"),
        ("generate {shapes} -o x.png", "needs a label"),
        ("generate {shapes} --label sqare -o x.png", "no label 'sqare'; did you mean 'square'"),
        ("generate {shapes} --label 9 -o x.png", "labels 0 to 3, found 9"),
        ("generate {shapes} --label star -n 3 -o x.png", "3 samples do not fit into one file; name a directory"),
        ("generate {shapes} --label star -o x.wav", "makes images; use a name ending in .png"),
        ("generate {shapes} --label star --temperature warm -o x.png", "--temperature takes a number"),
        ("generate {shapes} --label star --temperature 1,1 -o x.png", "temperature has 2 values but the model has 3"),
        ("generate {shapes} --label star --top-k 1.5 -o x.png", "--top-k takes a whole number"),
        ("generate {shapes} --label star --guidance much -o x.png", "--guidance takes a number"),
        ('generate {shapes} --label star --guidance {{"kind":"a"}} -o x.png', "guidance: kind must be one of"),
        ("generate {shapes} --label star --guidance 1,2 -o x.png", "guidance has 2 scales but the model has 3"),
        ("generate {shapes} --label star --ras many -o x.png", "--ras takes a whole number"),
        ("generate {shapes} --label star --max-silence 1 -o x.png", "makes images, which have no silence"),
        ("generate {shapes} --label star --frames 3 -o x.png", "--frames is 3"),
        ("generate {tones} --text a --prompt nowhere.wav -o x.wav", "nowhere.wav"),
        ("generate {tones} --text a --voice nowhere.wav -o x.wav", "takes no voice"),
        ("tts a --model {tones} --voice nowhere.wav -o x.wav", "takes no voice"),
        ("tts a --model {voices} --voice nowhere.wav -o x.wav", "has no label 'nowhere.wav'"),
        ("tts a --model {clones} --voice nowhere.wav -o x.wav", "nowhere.wav"),
        ("tts a --model {shapes} -o x.wav", "does not turn text into audio"),
        ("image star --model {tones} -o x.png", "makes no images"),
        ("eval {shapes} --no-speed", "nothing to measure"),
        ("eval {shapes} --no-speed --data {shapes}", "this is a model, a folder of shards is needed here"),
    ],
)
def test_misuse_is_one_line(models, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    words = arguments.format(**{name: models / name for name in ("shapes", "tones", "voices", "clones")}).split()
    assert run(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("tessera: ") and error.count("\n") == 1
    assert not list(tmp_path.glob("x*"))


def test_warnings_are_one_line_each_and_stand_in_the_summary(models, tmp_path, capsys, monkeypatch):
    def warned(text, size, chosen, fixed, carries, notes):
        notes.append("words\nare lost")
        return [text]

    monkeypatch.setattr("tessera.generate.model.split_into_chunks", warned)
    say = ["tts", "one", "--model", models / "voices", "--voice", "7", "--max-seconds", 0.2, "--json"]
    for more in ([], [], ["--stream"]):  # every time, not once a place in the code
        assert tessera(*say, "-o", tmp_path / "o.wav", *more) == 0
        printed = capsys.readouterr()
        assert printed.err.count("tessera: words are lost\n") == 1 and "Warning" not in printed.err
        assert json.loads(printed.out)["warnings"] == ["words\nare lost"]


class Stdin:
    def __init__(self, data):
        self.buffer = io.BytesIO(data)


def test_text_from_stdin(models, tmp_path, capsys, monkeypatch):
    def say(text, name, data=b""):
        monkeypatch.setattr("sys.stdin", Stdin(data))
        options = ["--model", models / "voices", "--voice", "7", "--seed", 3]
        return tessera("tts", text, *options, "-o", tmp_path / name)

    assert say("one two", "given.wav") == 0
    assert say("-", "read.wav", b"\xef\xbb\xbfone two\r\n\n") == 0
    assert (tmp_path / "read.wav").read_bytes() == (tmp_path / "given.wav").read_bytes()
    for data, message in [
        (b"", "there is no text on stdin"),
        (b" \n", "there is no text on stdin"),
        (b"caf\xe9", "not UTF-8: byte 3 is 0xe9"),
        (b"a" * ((1 << 20) + 1), "longer than 1048576 bytes"),
    ]:
        capsys.readouterr()
        assert say("-", "refused.wav", data) == 2
        printed = capsys.readouterr().err
        assert message in printed and printed.count("\n") == 1 and not (tmp_path / "refused.wav").exists()
