"""MusicGen from one directory: codes and samples of transformers from text, converted and written back."""

import json
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch
from tiny_musicgen import PIECES, TEXT_WIDTH, D, make_composite, make_tokenizer, save_whole, transformers

import tessera
from tessera.cli.app import run
from tessera.configs.files import read_safetensors
from tessera.lm.conditioning.text_encoder import open_text_encoder

FRAMES = 48
TEXTS = ["a calm piano", "drums", "a piano and drums and a calm piano", "calm drums"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(model, folder) of a mono model."""
    model, folder = make_composite(), tmp_path_factory.mktemp("whole")
    save_whole(folder, model)
    return model, folder


@pytest.fixture(scope="module")
def converted(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "model"
    assert run(["convert", str(whole[1]), str(folder)]) == 0
    return folder


@torch.no_grad()
def theirs(model, texts, guidance, monkeypatch, frames=FRAMES, **more):
    """(codes [B, K, T], samples [B, C, N]) of transformers' greedy generation from padded texts."""
    decode, codes = model.audio_encoder.decode, []

    def spy(audio_codes, *rest, **named):
        codes.append(audio_codes[0])
        return decode(audio_codes, *rest, **named)

    monkeypatch.setattr(model.audio_encoder, "decode", spy)
    pad = model.config.decoder.pad_token_id
    given = make_tokenizer()(texts, padding=True, return_tensors="pt")
    samples = model.generate(
        **given,
        **more,
        guidance_scale=guidance if guidance != 1 else None,
        pad_token_id=pad,
        decoder_start_token_id=pad,
        do_sample=False,
        max_length=frames + model.config.decoder.num_codebooks // model.config.decoder.audio_channels,
    )
    monkeypatch.undo()
    if len(codes) == 2:  # left, right
        codes = [torch.stack(codes, dim=2).flatten(1, 2)]
    return codes[0], samples


def check_same(result, expected):
    codes, samples = expected
    assert torch.equal(result.codes, codes)
    assert len({tuple(column) for column in codes[0].T.tolist()}) > 8  # not one frame for ever
    torch.testing.assert_close(torch.stack(result.media), samples, rtol=1e-5, atol=1e-5 * float(samples.abs().max()))


@pytest.mark.sample(2)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("rows", [1, 4])
def test_text_gives_the_codes_and_samples_of_transformers(rows, guidance, whole, monkeypatch):
    model = tessera.load(whole[1], device="cpu")
    result = model.generate(text=TEXTS[:rows], num_frames=FRAMES, temperature=0, guidance=guidance)
    check_same(result, theirs(whole[0], TEXTS[:rows], guidance, monkeypatch))


def test_the_defaults_are_those_of_its_authors(whole):
    model = tessera.load(whole[1], device="cpu")
    found = model.defaults
    assert (found.guidance, found.top_k, found.temperature) == (3.0, 250, 1.0)
    assert (found.max_frames, found.window_frames, found.stride_frames) == (1500, 1500, 900)  # 30 s, by 18 s
    assert model.condition_kinds == ["text", "embedding"]
    assert repr(model).endswith("audio, conditioned on text, embedding, 0.0 M parameters)")


def test_states_do_not_depend_on_the_batch(whole):
    encoder = tessera.load(whole[1], device="cpu").text_encoder
    given = make_tokenizer()(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = whole[0].text_encoder(**given).last_hidden_state
    for states, row, mask in zip(encoder.encode(TEXTS), expected, given["attention_mask"].bool(), strict=True):
        torch.testing.assert_close(states, row[mask], rtol=1e-5, atol=1e-5)
    assert encoder.num_parameters == whole[0].text_encoder.num_parameters()


def test_longer_than_a_window(whole):
    model = tessera.load(whole[1], device="cpu")
    settings = {"window_frames": 24, "stride_frames": 15, "max_frames": 54, "seed": 5}
    result = model.generate(text=TEXTS[0], **settings)
    assert result.codes.shape == (1, 4, 54)
    chunks = torch.cat(list(model.stream(text=TEXTS[0], **settings)), dim=1)
    assert torch.equal(chunks, result.media[0])
    first = model.generate(text=TEXTS[0], max_frames=24, window_frames=None, seed=5)
    assert torch.equal(first.codes, result.codes[:, :, :24])


def test_converted_it_is_an_ordinary_model(whole, converted):
    assert {file.name for file in (converted / "text_encoder").iterdir()} >= {"config.json", "model.safetensors"}
    one, other = tessera.load(whole[1], device="cpu"), tessera.load(converted, device="cpu")
    assert other.defaults == one.defaults
    for weights in (None, "int8"):
        call = {"text": TEXTS, "num_frames": 20, "seed": 3}
        first = tessera.load(whole[1], device="cpu", weights=weights).generate(**call)
        second = tessera.load(converted, device="cpu", weights=weights).generate(**call)
        assert torch.equal(first.codes, second.codes)
        assert torch.equal(first.media[0], second.media[0])


def test_written_back_it_is_read_by_transformers(whole, converted, tmp_path, monkeypatch):
    back = tmp_path / "back"
    assert run(["convert", str(converted), str(back), "--to", "musicgen"]) == 0
    kind = transformers.MusicgenForConditionalGeneration
    model, report = kind.from_pretrained(back, output_loading_info=True)
    assert not any(report.values())
    found, expected = theirs(model.eval(), TEXTS, 3.0, monkeypatch), theirs(whole[0], TEXTS, 3.0, monkeypatch)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5 * float(expected[1].abs().max()))
    assert model.generation_config.guidance_scale == 3.0
    processor = transformers.MusicgenProcessor.from_pretrained(back)
    assert processor(text=TEXTS[:1], return_tensors="pt")["input_ids"].tolist() == [
        make_tokenizer()(TEXTS[0]).input_ids
    ]
    there, here = (read_safetensors(folder / "model.safetensors")[0] for folder in (whole[1], back))
    assert there.keys() == here.keys()
    for name, tensor in there.items():  # what was not folded is the same to the bit
        if not name.startswith("audio_encoder."):
            assert torch.equal(here[name], tensor), name
    again = tessera.load(back, device="cpu")
    for name, tensor in again.tokenizer.net.state_dict().items():
        torch.testing.assert_close(tensor, tessera.load(converted, device="cpu").tokenizer.net.state_dict()[name])


@pytest.mark.sample(1)
@pytest.mark.parametrize("rows", [1, 3])
def test_stereo_is_two_streams_of_one_codec(rows, tmp_path, monkeypatch):
    theirs_ = make_composite(seed=3, books=8, channels=2)
    save_whole(tmp_path / "theirs", theirs_)
    model = tessera.load(tmp_path / "theirs", device="cpu")
    assert model.spec.geometry.channels == 2
    result = model.generate(text=TEXTS[:rows], num_frames=FRAMES, temperature=0)
    check_same(result, theirs(theirs_, TEXTS[:rows], 3.0, monkeypatch))
    assert run(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    assert run(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "musicgen"]) == 0
    kind = transformers.MusicgenForConditionalGeneration
    again, report = kind.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values())
    assert again.config.audio_encoder.audio_channels == 1
    found = theirs(again.eval(), TEXTS[:rows], 3.0, monkeypatch)
    assert torch.equal(found[0], result.codes)
    first, second = theirs_.audio_encoder.config.num_quantizers, again.audio_encoder.config.num_quantizers
    assert first == second == 4


def test_several_files_and_no_projection(tmp_path, monkeypatch):
    theirs_ = make_composite(seed=2, text_width=D)
    theirs_.save_pretrained(tmp_path, max_shard_size="20KB")
    make_tokenizer().save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    model = tessera.load(tmp_path, device="cpu")
    assert model.lm.config.conditions[0].projection == "none"
    result = model.generate(text=TEXTS[:2], num_frames=FRAMES, temperature=0)
    check_same(result, theirs(theirs_, TEXTS[:2], 3.0, monkeypatch))


def test_the_command(whole, tmp_path, capsys):
    out = tmp_path / "music.wav"
    assert run(["generate", str(whole[1]), "--text", TEXTS[0], "--frames", "20", "-o", str(out)]) == 0
    assert out.stat().st_size > 300
    assert run(["tts", TEXTS[0], "--model", str(whole[1]), "--max-seconds", "0.02", "-o", str(tmp_path / "b.wav")]) == 0
    assert run(["generate", str(whole[1]), "-o", str(out)]) == 2
    assert "needs a text; give a text to speak or depict" in capsys.readouterr().err


def test_what_cannot_be_read_is_said_in_one_line(whole, tmp_path, monkeypatch, capsys):
    model = tessera.load(whole[1], device="cpu")
    with pytest.raises(ValueError, match="the text ' ' is empty"):
        model.generate(text=" ", num_frames=2)
    with pytest.raises(ValueError, match="text and embedding were both given"):
        model.generate(text="a", embedding=torch.zeros(2, TEXT_WIDTH), num_frames=2)
    assert len(model.generate(embedding=torch.zeros(2, TEXT_WIDTH), num_frames=2)) == 1
    assert len(model.generate(unconditional=True, num_frames=2)) == 1
    whole[0].save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="the text encoder's tokenizer is missing"):
        tessera.load(tmp_path, device="cpu").generate(text="a", num_frames=2)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="the text encoder's tokenizer is unusable"):
        tessera.load(tmp_path, device="cpu").generate(text="a", num_frames=2)
    described = json.loads((tmp_path / "config.json").read_text())
    for section, change, message in (
        ("text_encoder", {"d_model": 17}, r"tensor 'encoder.block.0.*' is \[8, 16\], the config asks for \[8, 17\]"),
        ("text_encoder", {"model_type": "bert"}, "text_encoder: model_type is 'bert'; only 't5' is supported"),
        ("text_encoder", {"num_layers": 2}, "tensors that the config asks for are missing, first 'encoder.block.1"),
        ("audio_encoder", {"model_type": "dac"}, "audio_encoder: model_type is 'dac'; only 'encodec' is supported"),
        ("audio_encoder", {"num_filters": 3}, "the config asks for"),
        ("decoder", {"num_codebooks": 5}, "5 codebooks were asked for, the file has 4"),
        ("decoder", {"audio_channels": 3}, "audio_channels is 3; only 1 or 2 is supported"),
    ):
        changed = described | {section: described[section] | change}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message) as refused:
            tessera.load(tmp_path, device="cpu")
        assert "\n" not in str(refused.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert run(["generate", str(whole[1]), "--text", "a", "-o", str(tmp_path / "a.wav")]) == 2
    assert "needs the package transformers: pip install 'tessera-lm[hub]'" in capsys.readouterr().err


def test_a_damaged_text_encoder_is_refused(converted, tmp_path):
    import shutil

    shutil.copytree(converted, tmp_path / "model")
    weights = tmp_path / "model" / "text_encoder" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-3] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"text_encoder/model.safetensors: damaged"):
        tessera.load(tmp_path / "model", device="cpu").generate(text="a", num_frames=2)


def t5(**more):
    return transformers.T5Config(
        **{"vocab_size": 40, "d_model": 12, "d_kv": 3, "d_ff": 10, "num_layers": 2, "num_heads": 4, **more}
    )


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
@pytest.mark.parametrize("kind", ["T5EncoderModel", "T5ForConditionalGeneration"])
def test_any_t5_is_a_text_encoder(kind, feed_forward, tmp_path):
    torch.manual_seed(1)
    model = getattr(transformers, kind)(t5(feed_forward_proj=feed_forward)).eval()
    model.save_pretrained(tmp_path)
    spiece_model(tmp_path / "spiece.model")
    encoder = open_text_encoder(tmp_path)
    ids = transformers.T5Tokenizer.from_pretrained(tmp_path)("a calm piano", return_tensors="pt").input_ids
    assert ids.shape[1] > 2 and int(ids[0, -1]) == 1
    with torch.no_grad():
        expected = model.encoder(ids).last_hidden_state[0]
    found = encoder.encode(["a calm piano"])[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    encoder.save(tmp_path / "saved")
    assert torch.equal(open_text_encoder(tmp_path / "saved").encode(["a calm piano"])[0], found)


def spiece_model(path: Path) -> None:
    """As of T5: pad, end and unknown first."""
    words = " ".join(piece.strip("\u2581") for piece in PIECES)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([words] * 4), model_prefix=str(path.with_suffix("")), vocab_size=26, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
