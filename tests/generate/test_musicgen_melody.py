"""MusicGen's melody models: the prefix of pitch classes and text, with the codes and samples of transformers."""

import json

import numpy as np
import pytest
import soundfile
import torch
from test_musicgen_whole import FRAMES, TEXTS, check_same, theirs
from tiny_musicgen import BINS, CHROMA_LENGTH, make_melody, save_whole, transformers

import tessera
from tessera.cli.app import run
from tessera.configs.files import read_safetensors
from tessera.lm.conditioning.chroma import ChromaConfig, chroma, chroma_filters

SIZES = {"sampling_rate": 8000, "n_fft": 256, "hop_length": 64, "num_chroma": BINS, "chunk_length": 1}


@pytest.fixture(scope="module")
def melody(tmp_path_factory):
    """(model, folder); its feature extractor is small."""
    model, folder = make_melody(), tmp_path_factory.mktemp("melody")
    save_whole(folder, model)
    (folder / "preprocessor_config.json").write_text(json.dumps(SIZES))
    return model, folder


def tune(seconds, rate=8000, seed=0):
    """Changing tones, float [1, N]."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(0, 24, 40).repeat(100)[: int(seconds * rate)]
    phase = 2 * np.pi * np.cumsum(440 * 2 ** (steps / 12)) / rate
    return torch.from_numpy(np.sin(phase)).float()[None]


@pytest.mark.parametrize("sizes", [(32000, 16384, 12), (8000, 256, 12), (22050, 4096, 24), (16000, 2048, 6)])
def test_filters_are_those_of_transformers(sizes):
    from transformers.audio_utils import chroma_filter_bank

    rate, window, bins = sizes
    expected = chroma_filter_bank(window, bins, rate, tuning=0)
    found = chroma_filters(ChromaConfig(sample_rate=rate, window=window, bins=bins))
    torch.testing.assert_close(found, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("length", [50, 256, 1000, 1023])
def test_chroma_is_that_of_a_loop_over_frames(length):
    config = ChromaConfig(sample_rate=8000, window=256, hop=64)
    samples = tune(0.2)[0, :length].double().numpy()
    missing = max(0, 256 - length)
    padded = np.pad(samples, (missing // 2, missing - missing // 2))
    padded = np.pad(padded, 128, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(256) / 256)
    filters, classes = chroma_filters(config).double().numpy(), []
    for start in range(0, len(padded) - 255, 64):
        power = np.abs(np.fft.rfft(padded[start : start + 256] * window)) ** 2
        classes.append(int((filters @ power).argmax()))
    found = chroma(tune(0.2)[0, :length], config)
    assert found.argmax(dim=1).tolist() == classes
    assert torch.equal(found.sum(dim=1), torch.ones(1 + max(length, 256) // 64))


def test_a_longer_recording_is_cut():
    config, samples = ChromaConfig(sample_rate=1000, window=256, hop=64, seconds=1), tune(0.5)[0]
    assert torch.equal(chroma(samples, config), chroma(samples[:1000], config))


@pytest.mark.sample(2)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("rows", [1, 4])
def test_text_alone(rows, guidance, melody, monkeypatch):
    model = tessera.load(melody[1], device="cpu")
    result = model.generate(text=TEXTS[:rows], num_frames=FRAMES, temperature=0, guidance=guidance)
    check_same(result, theirs(melody[0], TEXTS[:rows], guidance, monkeypatch))


@pytest.mark.sample(2)
@pytest.mark.parametrize("seconds", [0.03, 0.5])  # shorter than the prefix, and longer
@pytest.mark.parametrize("rows", [1, 4])
def test_text_and_melody(rows, seconds, melody, monkeypatch):
    model = tessera.load(melody[1], device="cpu")
    tunes = [tune(seconds, seed=row) for row in range(rows)]
    config = model.lm.config.conditions[0].chroma
    assert (config.sample_rate, config.window, config.hop) == (8000, 256, 64)
    features = torch.stack([chroma(one[0], config) for one in tunes])
    assert (features.shape[1] < CHROMA_LENGTH) == (seconds < 0.1)
    result = model.generate(text=TEXTS[:rows], melody=tunes, num_frames=FRAMES, temperature=0)
    check_same(result, theirs(melody[0], TEXTS[:rows], 3.0, monkeypatch, input_features=features))
    without = model.generate(text=TEXTS[:rows], num_frames=FRAMES, temperature=0)
    assert not torch.equal(result.codes, without.codes)


def test_steps_streams_and_graphs_of_a_counted_prefix(melody):
    model = tessera.load(melody[1], device="cpu")
    call = {"text": TEXTS[0], "melody": tune(0.5), "num_frames": 12, "seed": 4}
    result = model.generate(**call)
    assert torch.equal(torch.cat(list(model.stream(**call)), dim=1), result.media[0])
    inputs = {"text": TEXTS[0], "melody": tune(0.5), "num_frames": 12, "temperature": 0}
    assert torch.equal(model.generate(**inputs, draft=0).codes, model.generate(**inputs, step="eager").codes)


def test_the_command_converts_and_follows_a_file(melody, tmp_path, capsys):
    soundfile.write(tmp_path / "tune.wav", tune(0.4)[0].numpy(), 8000, subtype="FLOAT")
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert run(["convert", str(melody[1]), str(ours)]) == 0
    call = ["--text", TEXTS[0], "--melody", str(tmp_path / "tune.wav"), "--frames", "20", "-o", str(tmp_path / "a.wav")]
    assert run(["generate", str(ours), *call]) == 0
    one, other = tessera.load(melody[1], device="cpu"), tessera.load(ours, device="cpu")
    inputs = {"text": TEXTS[1], "melody": str(tmp_path / "tune.wav"), "num_frames": 20, "seed": 1}
    assert torch.equal(one.generate(**inputs).codes, other.generate(**{**inputs, "melody": tune(0.4)}).codes)
    assert run(["convert", str(ours), str(back), "--to", "musicgen"]) == 0
    kind = transformers.MusicgenMelodyForConditionalGeneration
    _, report = kind.from_pretrained(back, output_loading_info=True)
    assert not any(report.values())
    there, here = (read_safetensors(folder / "model.safetensors")[0] for folder in (melody[1], back))
    assert there.keys() == here.keys()
    assert all(torch.equal(here[name], there[name]) for name in there if not name.startswith("audio_encoder."))
    assert tessera.load(back, device="cpu").lm.config == one.lm.config
    capsys.readouterr()
    assert run(["load", "--check", str(melody[1])]) == 0
    assert "conditioned on melody, embedding" in capsys.readouterr().out


def test_what_a_melody_must_be(melody):
    model = tessera.load(melody[1], device="cpu")
    with pytest.raises(ValueError, match=r"the melody must be samples, floating point \[C, N\]"):
        model.generate(text="a", melody=torch.zeros(3), num_frames=2)
    with pytest.raises(ValueError, match="NaN or infinite"):
        model.generate(text="a", melody=torch.full((1, 9), float("nan")), num_frames=2)
    with pytest.raises(FileNotFoundError):
        model.generate(text="a", melody="none.wav", num_frames=2)
    with pytest.raises(ValueError, match="takes no melody, it has no such condition; leave melody out"):
        tessera.load("digits", device="cpu").generate(label=1, melody=tune(0.1))
