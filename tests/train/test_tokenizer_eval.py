"""The evaluation of tokenizers: each measure against a slow or outside one, the report, and the verb."""

import json
import math
from collections import Counter

import pytest
import torch
from safetensors.torch import save_file

from tessera.cli.app import run
from tessera.tokenize.audio_net import AudioStackConfig, AudioTokenizerConfig
from tessera.tokenize.media import write_audio
from tessera.tokenize.picture_net import PictureTokenizerConfig
from tessera.tokenize.quantizer import FSQConfig, ResidualConfig, VQConfig
from tessera.tokenize.tokenizer import make_tokenizer
from tessera.train.fidelity import log_mel_distance, pesq, psnr, si_sdr, ssim, stoi
from tessera.train.tokenizer_eval import (
    changed_share,
    code_stability,
    codebook_use,
    corpus_for,
    evaluate_tokenizer,
    report_table,
)


@pytest.fixture
def picture_tokenizer():
    torch.manual_seed(0)
    quantizer = ResidualConfig(levels=2, quantizer=VQConfig(size=16))
    config = PictureTokenizerConfig(
        name="tiny", height=8, width=8, channels=1, features=8, blocks=1, latent_dim=8, quantizer=quantizer
    )
    return make_tokenizer(config)


@pytest.fixture
def audio_tokenizer():
    torch.manual_seed(0)
    stack = AudioStackConfig(width=16, layers=1, kernel=3, chunk=16)
    config = AudioTokenizerConfig(
        name="tiny",
        sample_rate=8000,
        hop=160,
        window=640,
        latent_dim=8,
        encoder=stack,
        decoder=stack,
        quantizer=FSQConfig(levels=(5, 4)),
    )
    return make_tokenizer(config)


@pytest.fixture
def digits(tmp_path):
    path = tmp_path / "pictures.safetensors"
    images = torch.randint(0, 256, (12, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_file({"images": images, "labels": torch.arange(12)}, path)
    return path


def tone(seconds, sample_rate=8000):
    time = torch.arange(int(seconds * sample_rate)) / sample_rate
    return 0.3 * torch.sin(2 * math.pi * 300 * time) * (1 + torch.sin(2 * math.pi * 4 * time)) / 2


# Measures.


def test_psnr():
    torch.manual_seed(0)
    a, b = torch.rand(3, 5, 7) * 2 - 1, torch.rand(3, 5, 7) * 2 - 1
    squares = [(x - y) ** 2 for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)]
    assert psnr(a, b) == pytest.approx(10 * math.log10(2**2 / (sum(squares) / len(squares))))
    assert psnr(a, a) == 100


def test_ssim():
    pytest.importorskip("skimage")
    a, noise = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(-a, a) < 0 < ssim(a + noise, a) < ssim(a + 0.1 * noise, a) < 1
    assert ssim(a[:, :2, :2], a[:, :2, :2]) is None


def test_si_sdr_does_not_depend_on_scale():
    torch.manual_seed(0)
    wanted, noise = torch.randn(16000), torch.randn(16000)
    assert si_sdr(wanted + 0.1 * noise, wanted, 16000) == pytest.approx(20, abs=0.3)  # noise of a tenth: 20 dB
    assert si_sdr(0.01 * (wanted + 0.1 * noise), wanted, 16000) == pytest.approx(20, abs=0.3)
    assert si_sdr(wanted, wanted, 16000) == 100
    assert si_sdr(wanted, torch.zeros(16000), 16000) is None


def test_log_mel_distance_of_a_gain_is_its_logarithm():
    wanted = torch.randn(16000, generator=torch.Generator().manual_seed(0))
    assert log_mel_distance(wanted, wanted, 16000) == 0
    assert log_mel_distance(math.e * wanted, wanted, 16000) == pytest.approx(1, abs=0.01)


def test_speech_measures_are_undefined_where_there_is_no_speech():
    pytest.importorskip("pystoi")
    pytest.importorskip("pesq")
    silence = torch.zeros(8000)
    assert stoi(silence, silence, 8000) is None
    assert pesq(silence, silence, 8000) is None
    assert stoi(tone(1.0), tone(1.0), 8000) == pytest.approx(1, abs=1e-3)


def test_codebook_use():
    codes = torch.tensor([0, 0, 0, 3, 3, 7])
    use = codebook_use(codes, 8)
    entropy = -sum(n / 6 * math.log2(n / 6) for n in Counter(codes.tolist()).values())
    assert (use.used, use.usage, use.nominal_bits) == (3, 3 / 8, 3)
    assert use.unigram_bits == pytest.approx(entropy) and use.perplexity == pytest.approx(2**entropy)


# Stability.


def test_stability_of_a_frozen_tokenizer_is_zero(audio_tokenizer, picture_tokenizer):
    sound = [tone(0.1 + 0.17 * number)[None] for number in range(3)]
    found = code_stability(audio_tokenizer, sound)
    assert (found.batch, found.padding, found.autocast, found.items) == (0, 0, 0, 3) and found.stable
    found = code_stability(picture_tokenizer, list(torch.rand(3, 1, 8, 8)))
    assert (found.batch, found.padding, found.autocast) == (0, None, 0) and found.codes == 3 * 2 * 16


@pytest.mark.parametrize("fault", ["batch", "padding", "autocast"])
def test_stability_finds_each_fault(audio_tokenizer, fault, monkeypatch):
    right = audio_tokenizer.encode

    def wrong(media, lengths=None):
        found = {
            "batch": len(media) > 1,
            "padding": lengths is not None and len(media) == 1,
            "autocast": torch.is_autocast_enabled("cpu"),
        }
        encoded = right(media, lengths)
        if found[fault]:
            encoded.codes[0, 0, 0] = (encoded.codes[0, 0, 0] + 1) % 20
        return encoded

    monkeypatch.setattr(audio_tokenizer, "encode", wrong)
    found = code_stability(audio_tokenizer, [tone(0.3)[None], tone(0.2)[None]])
    shares = {"batch": found.batch, "padding": found.padding, "autocast": found.autocast}
    assert [name for name, share in shares.items() if share > 0] == [fault] and not found.stable


def test_changed_share():
    a, b = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1, 2, 3, 5]])
    assert changed_share([a, b], [a, a]) == 1 / 8
    assert changed_share([a[:, :3]], [a]) == 1


# The report and the verb.


def test_report_of_pictures(picture_tokenizer, digits):
    report = evaluate_tokenizer(picture_tokenizer, corpus_for(picture_tokenizer.spec, digits), 5, progress=False)
    assert report.items == 5 and report.skipped == []
    assert report.bits.nominal_per_frame == 8 and report.bits.nominal_per == 8 * 16 and report.bits.per == "picture"
    assert report.bits.frames == 5 * 16
    assert 0 < report.bits.unigram_per_frame <= 8
    assert [book.size for book in report.codebooks] == [16, 16]
    assert report.fidelity["psnr_db"].items == 5
    table = report_table(report)
    assert "psnr_db" in table and "autocast" in table and "0.0000%" in table
    again = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert again["stability"] == {"items": 5, "codes": 160, "batch": 0.0, "padding": None, "autocast": 0.0}


def test_bad_files_are_skipped_and_named(audio_tokenizer, tmp_path):
    for number in range(2):
        write_audio(tmp_path / f"{number}.wav", tone(0.6)[None], 8000)
    (tmp_path / "bad.wav").write_bytes(b"not a wave file at all")
    report = evaluate_tokenizer(audio_tokenizer, corpus_for(audio_tokenizer.spec, tmp_path), progress=False)
    assert report.items == 2 and len(report.skipped) == 1 and "bad.wav" in report.skipped[0]
    assert report.bits.frames_per == 50 and report.bits.frames == 60
    assert report.fidelity["si_sdr_db"].items == 2
    (tmp_path / "0.wav").unlink(), (tmp_path / "1.wav").unlink()
    with pytest.raises(ValueError, match="none of 1 items could be read"):
        evaluate_tokenizer(audio_tokenizer, corpus_for(audio_tokenizer.spec, tmp_path), progress=False)


def test_a_missing_package_is_said(picture_tokenizer, digits, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "skimage.metrics", None)
    report = evaluate_tokenizer(picture_tokenizer, corpus_for(picture_tokenizer.spec, digits), 2, progress=False)
    assert report.fidelity["ssim"].mean is None and "not installed" in report.fidelity["ssim"].note
    assert "not installed" in report_table(report)


def test_verb(picture_tokenizer, digits, tmp_path, capsys):
    picture_tokenizer.save(tmp_path / "tokenizer")
    assert run(["tokenizer", "eval", str(tmp_path / "tokenizer"), "--data", str(digits), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["name"] == "tiny" and answer["items"] == 12
    assert run(["tokenizer", "eval", str(tmp_path / "tokenizer"), "--data", str(tmp_path / "nothing")]) == 2
    assert "no such folder or file" in capsys.readouterr().err
    assert run(["tokenizer", "eval", str(tmp_path / "nothing")]) == 2
    assert "no tokenizer here" in capsys.readouterr().err


def test_verb_fails_when_codes_are_not_stable(picture_tokenizer, digits, tmp_path, capsys, monkeypatch):
    picture_tokenizer.save(tmp_path / "tokenizer")
    monkeypatch.setattr("tessera.train.tokenizer_eval.changed_share", lambda found, wanted: 0.5)
    assert run(["tokenizer", "eval", str(tmp_path / "tokenizer"), "--data", str(digits)]) == 1
    assert "should not be stored" in capsys.readouterr().err


def test_train_verb(digits, tmp_path, capsys):
    config = tmp_path / "tokenizer.yaml"
    config.write_text(
        "tokenizer: {kind: picture, name: tiny, height: 8, width: 8, channels: 1, features: 8, blocks: 1,\n"
        "  latent_dim: 8,\n"
        "  quantizer: {kind: residual, levels: 2, quantizer: {kind: vq, size: 16}}}\n"
        f"data: {{kind: arrays, path: {digits}}}\n"
        "train: {steps: 100, batch: 4}\n"
    )
    out = tmp_path / "out"
    assert run(["tokenizer", "train", str(config), "--set", "train.steps=3", "--out", str(out)]) == 0
    assert "frozen tokenizer tiny" in capsys.readouterr().err
    assert run(["tokenizer", "eval", str(out), "--data", str(digits), "--items", "3"]) == 0
    assert run(["tokenizer", "train", str(config), "--set", "train.stepz=3", "--out", str(tmp_path / "b")]) == 2
    assert "did you mean 'steps'" in capsys.readouterr().err
