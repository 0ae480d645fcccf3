"""The evaluation of tokenizers: each measure against a slow or outside one, the report, and the verb."""

import json
import math
import sys
from collections import Counter

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import make_conditions, make_lm
from torch.nn import functional as F

from tessera.cli.app import run
from tessera.cli.report.tokenizer_report import render
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.tokenize.audio.networks import AudioStackConfig, AudioTokenizerConfig
from tessera.tokenize.base import Encoded
from tessera.tokenize.compression.integer_network import CoderConfig, CoderNet
from tessera.tokenize.data.media import write_audio
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import ChainConfig, FSQConfig, ResidualConfig, StrideConfig, VQConfig
from tessera.tokenize.spec import AudioGeometry, TokenSpec
from tessera.tokenize.tokenizer import make_tokenizer
from tessera.train.evaluation.code_stability import _can_move, changed_share, code_stability
from tessera.train.evaluation.code_usage import codebook_use, conditional_bits, language_model_bits, usage_growth
from tessera.train.evaluation.reconstruction_metrics import (
    log_mel_distance,
    ms_ssim,
    multi_stft,
    pesq,
    psnr,
    si_sdr,
    ssim,
    stoi,
)
from tessera.train.evaluation.tokenizer_eval import corpus_for, evaluate_tokenizer
from tessera.train.evaluation.tokenizer_speed import peak_memory
from tessera.train.evaluation.tokenizer_table import report_table


@pytest.fixture
def picture_tokenizer():
    torch.manual_seed(0)
    quantizer = ResidualConfig(levels=2, quantizer=VQConfig(size=16))
    config = ImageTokenizerConfig(
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


@pytest.mark.slow
def test_speech_measures_are_undefined_where_there_is_no_speech():
    pytest.importorskip("pystoi")
    pytest.importorskip("pesq")
    silence = torch.zeros(8000)
    assert stoi(silence, silence, 8000) is None
    assert pesq(silence, silence, 8000) is None
    assert stoi(tone(1.0), tone(1.0), 8000) == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_measures_agree_with_torchmetrics():
    image = pytest.importorskip("torchmetrics.functional.image")
    audio = pytest.importorskip("torchmetrics.functional.audio")
    torch.manual_seed(0)
    a, b = torch.rand(2, 3, 40, 44, dtype=torch.double) * 2 - 1
    b = 0.3 * a + 0.7 * b
    assert psnr(a, b) == pytest.approx(image.peak_signal_noise_ratio(a, b, data_range=2.0).item())
    x, y = torch.randn(2, 8000, dtype=torch.double)
    theirs = audio.scale_invariant_signal_distortion_ratio(x + 0.3 * y, x, zero_mean=True)
    assert si_sdr(x + 0.3 * y, x, 8000) == pytest.approx(theirs.item())
    pytest.importorskip("skimage")
    window = {"gaussian_kernel": False, "kernel_size": 7, "data_range": 1.0}
    theirs = image.structural_similarity_index_measure((a[None] + 1) / 2, (b[None] + 1) / 2, **window).item()
    assert ssim(a, b) == pytest.approx(theirs, abs=0.01)  # variances over n, and over n - 1


def test_ms_ssim_needs_size():
    pytest.importorskip("torchmetrics")
    a, noise = torch.rand(2, 1, 176, 180, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert ms_ssim(a, a) == pytest.approx(1)
    assert ms_ssim(a + 0.5 * noise, a) < ms_ssim(a + 0.1 * noise, a) < 1
    assert ms_ssim(a[:, :175], a[:, :175]) is None


def test_multi_stft():
    pytest.importorskip("auraloss")
    wanted, noise = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0))
    assert multi_stft(wanted, wanted, 8000) == pytest.approx(0, abs=1e-6)
    assert 0 < multi_stft(wanted + 0.1 * noise, wanted, 8000) < multi_stft(wanted + noise, wanted, 8000)
    assert multi_stft(torch.zeros(8000), torch.zeros(8000), 8000) is None
    assert multi_stft(wanted[:2048], wanted[:2048], 8000) is None


# Use and bits.


def entropy_of(codes):
    return -sum(n / len(codes) * math.log2(n / len(codes)) for n in Counter(codes).values())


def test_codebook_use():
    codes = torch.tensor([0, 0, 0, 3, 3, 7])
    use = codebook_use(codes, 8)
    assert (use.window, use.used, use.usage, use.nominal_bits) == (6, 3, 3 / 8, 3)
    entropy = entropy_of(codes.tolist())
    assert use.unigram_bits == pytest.approx(entropy) and use.perplexity == pytest.approx(2**entropy)
    assert use.possible == pytest.approx(1 - (7 / 8) ** 6)
    pairs = codebook_use(codes, 8, window=2)  # 0 0, 0 3, 3 7
    assert pairs.used == pytest.approx(5 / 3) and pairs.perplexity == pytest.approx((1 + 2 + 2) / 3)
    assert pairs.unigram_bits == pytest.approx(entropy) and pairs.possible == pytest.approx(1 - (7 / 8) ** 2)


def test_even_use_is_what_is_possible():
    """A window of 65,536 codes shows 22 % of 262,144 at most."""
    use = codebook_use(torch.randint(1 << 18, (1 << 16,), generator=torch.Generator().manual_seed(0)), 1 << 18, 1 << 16)
    assert use.possible == pytest.approx(0.2212, abs=1e-4) and use.usage == pytest.approx(use.possible, abs=2e-3)


def test_usage_growth():
    codes = torch.tensor([3, 3, 1, 3, 2, 1, 5])
    assert usage_growth(codes, 100) == [(n, len(set(codes[:n].tolist()))) for n in range(1, 8)]


def test_conditional_bits(picture_tokenizer):
    """A network that leans to code 3 needs little for it, whatever the number of items."""
    spec = picture_tokenizer.spec
    net = CoderNet(CoderConfig(context=((0, -1),), embedding=4, width=8), spec).freeze()
    for number, layer in enumerate(net.out):
        layer.weight.zero_(), layer.bias.zero_()
        if number == 0:
            layer.bias[3] = 32 * 32 * 2.0  # two nats
    found = conditional_bits([torch.full((2, 16), 3)] * 3, net)
    likely = math.exp(2) / (math.exp(2) + 15)
    assert found == pytest.approx([-math.log2(likely), 4], abs=1e-3)


@pytest.mark.parametrize("conditions", ["none", "label", "text"])
def test_language_model_bits(conditions):
    """All items at once, from logits, are the same as one by one."""
    lm = make_lm("delay", variable=False, conditions=make_conditions(conditions, 1)[0]).eval()
    generator = torch.Generator().manual_seed(0)
    sizes = lm.spec.cardinalities
    codes = [torch.stack([torch.randint(size, (6,), generator=generator) for size in sizes]) for _ in range(3)]
    nulls = lm.conditions.with_nulls(ConditionBatch(), 3)
    output = lm(torch.stack(codes), None, nulls)
    targets = torch.where(output.mask, output.targets, 0)[..., None]
    right = output.logits.log_softmax(-1).gather(-1, targets)[..., 0]
    wanted = -(right * output.mask).sum(dim=(0, 2)) / math.log(2) / 18
    assert language_model_bits(codes, lm) == pytest.approx(wanted.tolist())


# Stability.


def test_stability_of_a_frozen_tokenizer_is_zero(audio_tokenizer, picture_tokenizer):
    sound = [tone(0.1 + 0.17 * number)[None] for number in range(3)]
    found = code_stability(audio_tokenizer, sound)
    assert (found.batch, found.padding, found.autocast, found.items) == (0, 0, 0, 3) and found.stable
    found = code_stability(picture_tokenizer, list(torch.rand(3, 1, 8, 8)))
    assert (found.batch, found.padding, found.autocast) == (0, None, 0) and found.codes == 3 * 2 * 16
    assert all(len(shares) == 2 for shares in (found.shift, found.noise, found.again))


class Rounding:
    """A tokenizer of sound whose codes are its samples, rounded; frames of 10, 2 codebooks, the second finer."""

    spec = TokenSpec(
        name="r",
        cardinalities=(1000, 1000),
        geometry=AudioGeometry(sample_rate=100, samples_per_frame=10),
        fingerprint="",
    )
    device = torch.device("cpu")

    def encode(self, media, lengths=None):
        if lengths is not None:
            media = torch.where(torch.arange(media.shape[-1]) < lengths[:, None, None], media, 0.0)
        whole = F.pad(media[:, 0], (0, -media.shape[-1] % 10)).unflatten(1, (-1, 10)).mean(dim=-1)
        lengths = torch.full((len(media),), media.shape[-1]) if lengths is None else lengths
        codes = torch.stack([(whole * 4).round() + 500, (whole * 1e5).round() + 500], dim=1)
        return Encoded(codes.long(), -(-lengths // 10))

    def decode(self, codes):
        return ((codes[:, :1] - 500) / 4.0).repeat_interleave(10, dim=2)


def test_changes_where_media_change():
    """Sound of two seconds: moved by a frame nothing changes, noise and another way through change the fine codes."""
    found = code_stability(Rounding(), [0.01 + tone(2.0, 100)[None], 0.3 + tone(1.5, 100)[None]])
    assert found.stable and found.shift == [0, 0]
    assert found.noise[0] < 0.1 < found.noise[1] and found.again[0] == 0 < found.again[1]


def test_pictures_are_moved_by_a_cell(picture_tokenizer, monkeypatch):
    def encode(media, lengths=None):
        cells = media[:, 0].unflatten(1, (4, 2)).unflatten(3, (4, 2)).mean(dim=(2, 4))
        codes = (cells * 15).round().long().flatten(1)[:, None].expand(-1, 2, -1)
        return Encoded(codes, torch.full((len(media),), 16))

    monkeypatch.setattr(picture_tokenizer, "encode", encode)
    assert code_stability(picture_tokenizer, list(torch.rand(3, 1, 8, 8))).shift == [0, 0]


@pytest.mark.parametrize("change", [{"rows": 1, "columns": 16}, {"scales": ((1, 1), (4, 4))}, {"columns": 3}])
def test_frames_without_a_place_cannot_be_moved(picture_tokenizer, change):
    geometry = picture_tokenizer.spec.geometry
    assert _can_move(geometry) and not _can_move(geometry.model_copy(update=change))


def test_peak_memory_of_a_large_tensor():
    peak = peak_memory(torch.device("cpu"), lambda: torch.ones(40_000_000).sum())
    assert peak is None or 100 < peak < 400


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
    report = evaluate_tokenizer(picture_tokenizer, corpus_for(picture_tokenizer.spec, digits), 5, progress=False).report
    assert report.items == 5 and report.skipped == []
    assert report.bits.nominal_per_frame == 8 and report.bits.nominal_per == 8 * 16 and report.bits.per == "picture"
    assert report.bits.frames == 5 * 16
    assert 0 < report.bits.unigram_per_frame <= 8
    assert [book.size for book in report.codebooks] == [16, 16]
    assert report.fidelity["psnr_db"].items == 5
    table = report_table(report)
    assert "psnr_db" in table and "autocast" in table and "0.0000%" in table
    again = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    fixed = {"items": 5, "codes": 160, "batch": 0.0, "padding": None, "autocast": 0.0}
    assert fixed.items() <= again["stability"].items() and len(again["stability"]["again"]) == 2
    assert again["bits"]["conditional_per"] is None and again["speed"]["encode"] > 0


def test_codes_that_places_share_are_counted_once(picture_tokenizer, digits):
    plain = evaluate_tokenizer(picture_tokenizer, corpus_for(picture_tokenizer.spec, digits), 5, progress=False).report
    assert (plain.bits.codes_per, plain.bits.written_codes_per, plain.bits.written_per) == (32, 32, 128)
    assert "codes to write" not in report_table(plain)
    levels = picture_tokenizer.config.quantizer
    quantizer = ChainConfig(stages=(StrideConfig(every=4, quantizer=levels.quantizer), levels))
    slow = make_tokenizer(picture_tokenizer.config.model_copy(update={"quantizer": quantizer}))
    evaluation = evaluate_tokenizer(slow, corpus_for(slow.spec, digits), 5, progress=False)
    bits = evaluation.report.bits
    assert (bits.codes_per, bits.nominal_per) == (48, 192)
    assert (bits.written_codes_per, bits.written_per) == (4 + 32, 16 + 128)
    words = "per picture 36.0 of 48 codes to write, 144 bits nominal: positions share the others or do not need them"
    assert words in report_table(evaluation.report)
    assert "nominal, 36.0 of 48 codes" in render(evaluation, slow.spec, "x")


def test_bad_files_are_skipped_and_named(audio_tokenizer, tmp_path):
    for number in range(2):
        write_audio(tmp_path / f"{number}.wav", tone(0.6)[None], 8000)
    (tmp_path / "bad.wav").write_bytes(b"not a wave file at all")
    report = evaluate_tokenizer(audio_tokenizer, corpus_for(audio_tokenizer.spec, tmp_path), progress=False).report
    assert report.items == 2 and len(report.skipped) == 1 and "bad.wav" in report.skipped[0]
    assert report.bits.frames_per == 50 and report.bits.frames == 60
    assert report.fidelity["si_sdr_db"].items == 2
    (tmp_path / "0.wav").unlink(), (tmp_path / "1.wav").unlink()
    with pytest.raises(ValueError, match="none of 1 items could be read"):
        evaluate_tokenizer(audio_tokenizer, corpus_for(audio_tokenizer.spec, tmp_path), progress=False)


def test_a_missing_package_is_said(picture_tokenizer, digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    corpus = corpus_for(picture_tokenizer.spec, digits)
    report = evaluate_tokenizer(picture_tokenizer, corpus, 2, progress=False).report
    assert report.fidelity["ms_ssim"].mean is None and "not installed" in report.fidelity["ms_ssim"].note
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


def test_page(picture_tokenizer, audio_tokenizer, digits, tmp_path, capsys):
    """One file that asks the network for nothing, with every measure, note and codebook on it."""
    for number in range(2):
        write_audio(tmp_path / "sound" / f"{number}.wav", tone(0.6)[None], 8000)
    for tokenizer, data in ((picture_tokenizer, digits), (audio_tokenizer, tmp_path / "sound")):
        tokenizer.save(tmp_path / "tokenizer")
        torch.manual_seed(0)
        CoderNet(CoderConfig(context=((0, -1),), embedding=4, width=8), tokenizer.spec).save(
            tmp_path / "tokenizer/coder"
        )
        page = tmp_path / "page.html"
        arguments = [str(tmp_path / "tokenizer"), "--data", str(data), "--model", str(tmp_path / "tokenizer")]
        assert run(["tokenizer", "eval", *arguments, "--page", str(page)]) == 0
        assert "given the frames before" in capsys.readouterr().out
        text = page.read_text(encoding="utf-8")
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "") and 'src="data:' in text
        assert all(f"codebook {k}" in text for k in range(tokenizer.spec.num_codebooks))
        assert ("<audio" in text) == (tokenizer is audio_tokenizer) and "codes that change" in text.lower()


def test_verb_fails_when_codes_are_not_stable(picture_tokenizer, digits, tmp_path, capsys, monkeypatch):
    picture_tokenizer.save(tmp_path / "tokenizer")
    monkeypatch.setattr("tessera.train.evaluation.code_stability.changed_share", lambda found, wanted: 0.5)
    assert run(["tokenizer", "eval", str(tmp_path / "tokenizer"), "--data", str(digits)]) == 1
    assert "do not store them" in capsys.readouterr().err


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
