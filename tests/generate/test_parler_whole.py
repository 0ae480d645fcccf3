"""Parler-TTS from one directory: texts to codes and samples of its package, converted, and written back."""

import json
from pathlib import Path

import make_parler_codes
import pytest
import torch
from make_parler_codes import DESCRIPTIONS, LONGEST, PROMPTS

import tessera
from tessera.cli.app import run
from tessera.configs.files import read_safetensors
from tessera.lm.checkpoints.model_directory import load_model
from tessera.lm.public.registry import layout_of

pytest.importorskip("transformers")
TINY = Path(make_parler_codes.__file__).parent / "tiny_parler"
EXPECTED = read_safetensors(TINY / "expected.safetensors")[0]
GREEDY = {"temperature": 0, "max_frames": LONGEST}


@pytest.fixture(scope="module", params=["projected", "grouped"])
def converted(request, tmp_path_factory):
    """A model directory, named like the checkpoint it is of."""
    folder = tmp_path_factory.mktemp("converted") / request.param
    assert run(["convert", str(TINY / request.param), str(folder), "--dtype", "float16"]) == 0
    return folder


@pytest.fixture(scope="module")
def back(converted, tmp_path_factory):
    """The same written back."""
    folder = tmp_path_factory.mktemp("back") / converted.name
    assert run(["convert", str(converted), str(folder), "--to", "parler", "--dtype", "float16"]) == 0
    return folder


def check_clips(model, name):
    result = model.generate(text=PROMPTS, description=DESCRIPTIONS, **GREEDY)
    for row in (0, 1):
        expected = EXPECTED[f"{name}.codes.{row}"].long()
        assert torch.equal(result.codes[row, :, : int(result.lengths[row])], expected)
        samples = EXPECTED[f"{name}.samples.{row}"].flatten()
        torch.testing.assert_close(result.media[row].flatten(), samples, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["projected", "grouped"])
def test_texts_give_the_codes_and_samples_of_the_package(name):
    check_clips(tessera.load(TINY / name, device="cpu"), name)


@pytest.mark.sample(1)
def test_converted_and_written_back(converted, back):
    for folder in (converted, back):
        check_clips(tessera.load(folder, device="cpu"), back.name)
    there, here = (tessera.load(folder, device="cpu") for folder in (TINY / back.name, back))
    for part in ("lm", "tokenizer"):
        first, second = (getattr(one, part) for one in (there, here))
        first, second = (one.state_dict() if part == "lm" else one.net.state_dict() for one in (first, second))
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            assert torch.equal(second[name], tensor), name
    assert here.defaults == there.defaults
    again = back.parent / "again"
    assert run(["convert", str(back), str(again / "model"), "--dtype", "float16"]) == 0
    assert run(["convert", str(again / "model"), str(again / "back"), "--to", "parler", "--dtype", "float16"]) == 0
    for file in ("model.safetensors", "config.json", "generation_config.json", "spiece.model"):
        assert (again / "back" / file).read_bytes() == (back / file).read_bytes(), file


def test_what_is_written(back):
    """Names and shapes of the original, without the rows of its tables that no id uses."""
    first, second = (read_safetensors(folder / "model.safetensors")[0] for folder in (TINY / back.name, back))
    first.pop("text_encoder.encoder.embed_tokens.weight")  # tied, once in what is written
    fused = first.pop("decoder.lm_heads.weight", None)
    if fused is not None:
        first |= {f"decoder.lm_heads.{k}.weight": head for k, head in enumerate(fused.chunk(make_parler_codes.K))}
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        written = second[name]
        if "embed_positions" in name:
            n = len(tensor)
            torch.testing.assert_close(written[:n], tensor)
        else:
            assert torch.equal(written, tensor[: len(written)].to(written.dtype)), name
            short = name.startswith(("decoder.lm_heads.", "decoder.model.decoder.embed_tokens."))
            assert short == (written.shape != tensor.shape)
    described = json.loads((back / "config.json").read_text())
    codes = first["audio_encoder.quantizer.quantizers.0.codebook.weight"].shape[0]
    assert described["decoder"]["vocab_size"] == codes + 1 and described["transformers_version"] == "4.46.1"


def test_a_stream_is_the_whole_clip():
    model = tessera.load(TINY / "projected", device="cpu")
    call = {"text": PROMPTS[1], "description": DESCRIPTIONS[1], "seed": 3, "max_frames": 20}
    whole = model.generate(**call)
    assert torch.equal(torch.cat(list(model.stream(**call)), dim=1), whole.media[0])
    both = model.generate(**call | {"text": PROMPTS[::-1], "description": DESCRIPTIONS[::-1], "seed": 3})
    assert torch.equal(both.codes[:1, :, : whole.codes.shape[2]], whole.codes)  # alone as in a batch


def test_one_description_for_several_texts():
    model = tessera.load(TINY / "grouped", device="cpu")
    result = model.generate(text=PROMPTS, description=DESCRIPTIONS[0], **GREEDY)
    assert len(result) == 2
    assert torch.equal(result.codes[0, :, : int(result.lengths[0])], EXPECTED["grouped.codes.0"].long())
    found = model.text_encoder.encode(DESCRIPTIONS[:1])[0]
    same = model.generate(text=PROMPTS, embedding=found, **GREEDY)
    assert torch.equal(same.codes, result.codes)


def test_the_commands(tmp_path, capsys):
    folder, out = str(TINY / "projected"), tmp_path / "hello.wav"
    call = [folder, "--text", PROMPTS[0], "--description", DESCRIPTIONS[0], "--max-seconds", "0.02", "-o", str(out)]
    assert run(["load", "--check", folder]) == 0
    assert "conditioned on text, embedding" in capsys.readouterr().out
    assert run(["generate", *call]) == 0
    assert out.stat().st_size > 100
    tts = ["tts", PROMPTS[0], "--model", folder, "--description", DESCRIPTIONS[0], "--max-seconds", "0.02"]
    assert run([*tts, "-o", str(tmp_path / "again.wav")]) == 0
    assert (tmp_path / "again.wav").read_bytes() == out.read_bytes()
    assert run(["generate", folder, "--text", "hello", "-o", str(out)]) == 2
    assert "needs a description; give a text that says how it sounds" in capsys.readouterr().err
    assert run(["generate", folder, "--description", "calm", "-o", str(out)]) == 2
    assert "needs a text; give a text to speak" in capsys.readouterr().err
    assert run(["generate", "speech", "--text", "one", "--description", "calm", "-o", str(out)]) == 2
    assert "takes no description beside the text; leave description out" in capsys.readouterr().err


def test_what_is_refused():
    model = tessera.load(TINY / "projected", device="cpu")
    assert model.reads_description and model.condition_kinds == ["text", "embedding"]
    for call, message in (
        ({"text": "hello", "description": 3}, "description must be a string, found 3"),
        ({"text": "hello", "description": ["a", None]}, "description must be a string, found None"),
        ({"text": "hello", "description": " "}, "the text ' ' is empty"),
        ({"text": "hello", "description": "a", "embedding": torch.zeros(2, 12)}, "description and embedding were both"),
        ({"text": PROMPTS, "description": ["a"] * 3}, "2 texts but 3 embeddings"),
        ({"unconditional": True}, r"never trained without a text \(dropout 0\)"),
        ({"text": "hello", "description": "a", "guidance": 2.0}, "guidance"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(**call)


def test_other_models_are_not_written(tmp_path, converted):
    with pytest.raises(ValueError, match="together with its codec and its text encoder only"):
        layout_of("parler").save(tmp_path / "out", load_model(converted).lm)
    assert run(["convert", "speech", str(tmp_path / "out"), "--to", "parler"]) == 2
