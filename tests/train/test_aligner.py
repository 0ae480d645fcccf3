"""`tessera align` on synthetic speech: known times are found, runs resume, and bad items are named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.cli.app import run
from tessera.tokenize.alignment.alignment_file import read_alignment
from tessera.tokenize.data.corpus import FolderCorpus
from tessera.tokenize.data.media import write_audio
from tessera.tokenize.text.character_text import CharacterTextConfig
from tessera.train.align import aligner
from tessera.train.align.aligner import align_corpus
from tessera.train.align.config import AlignConfig

RATE = 16_000
FORMANTS = {"a": (700, 1200), "e": (450, 2000), "o": (450, 800), "s": (5000, 6500), "m": (250, 1000)}
"""Two tones for each letter."""


def speak(word: str, generator: np.random.Generator) -> tuple[np.ndarray, list[float]]:
    """A sound for each letter, silence for a space; and the end of each in seconds."""
    parts, ends, at = [], [], 0
    for letter in f" {word} ":
        count = int(RATE * generator.uniform(0.05, 0.15))
        time = np.arange(count) / RATE
        tones = sum(np.sin(2 * np.pi * tone * time + generator.uniform(0, 6)) for tone in FORMANTS.get(letter, ()))
        parts.append(0.1 * tones * np.ones(count) + 0.001 * generator.normal(size=count))
        at += count
        ends.append(at / RATE)
    return np.concatenate(parts), ends


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, dict[str, list[float]]]:
    folder, generator = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    truth = {}
    for number in range(24):
        text = " ".join("".join(generator.permutation(list(FORMANTS))[:3]) for _ in range(3))
        samples, truth[f"{number:02d}"] = speak(text, generator)
        write_audio(folder / f"{number:02d}.wav", torch.from_numpy(samples).float()[None], RATE)
        (folder / f"{number:02d}.txt").write_text(text)
    return folder, truth


def make_config(folder: Path, out: Path, **more) -> AlignConfig:
    return AlignConfig(corpus=FolderCorpus(path=str(folder)), text=CharacterTextConfig(), out=str(out), **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.align"))}


def test_known_times_are_found(corpus, tmp_path):
    folder, truth = corpus
    report = align_corpus(make_config(folder, tmp_path), progress=False)
    assert len(report.items) == 24 and not report.skipped
    errors = []
    for name, ends in truth.items():
        timed = read_alignment((tmp_path / f"{name}.align").read_bytes(), ".align")
        assert list(timed.units) == ["|", *(folder / f"{name}.txt").read_text().replace(" ", "|"), "|"]
        errors += [abs(a - b) for a, b in zip(timed.boundaries[1:-1], ends[:-1], strict=True)]
        assert timed.boundaries[-1] == pytest.approx(ends[-1], abs=1e-6)
    assert np.mean(errors) < 0.012 and np.mean(np.array(errors) < 0.03) > 0.95


def test_a_wrong_transcript_has_the_lowest_score(corpus, tmp_path):
    folder, _ = corpus
    copied = tmp_path / "corpus"
    copied.mkdir()
    for path in folder.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    (copied / "05.txt").write_text("moa moa mes")
    report = align_corpus(make_config(copied, tmp_path / "out"), progress=False)
    assert report.items[0].id == "05.wav" and report.items[0].score < report.items[1].score - 0.5
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["items"][0]["id"] == "05.wav"


@pytest.mark.sample(1)
@pytest.mark.parametrize("stop_at", [1, 5, 30])
def test_a_stopped_run_goes_on(corpus, tmp_path, stop_at, monkeypatch):
    folder, _ = corpus
    align_corpus(make_config(folder, tmp_path / "whole", iterations=3), progress=False)
    calls = 0
    write = aligner.write_atomic

    def stopping(save):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise KeyboardInterrupt
            return save(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(aligner, "write_safetensors", stopping(aligner.write_safetensors))
        patch.setattr(aligner, "write_atomic", stopping(write))
        if stop_at == 30:  # beyond the last file: not stopped
            align_corpus(make_config(folder, tmp_path / "killed", iterations=3), progress=False)
        else:
            with pytest.raises(KeyboardInterrupt):
                align_corpus(make_config(folder, tmp_path / "killed", iterations=3), progress=False)
    counted = []
    reestimate = aligner.reestimate
    monkeypatch.setattr(aligner, "reestimate", lambda *given: (counted.append(1), reestimate(*given))[1])
    align_corpus(make_config(folder, tmp_path / "killed", iterations=3), progress=False)
    assert len(counted) == max(0, 4 - stop_at), "finished iterations are not repeated"
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


def test_unusable_items_are_named_and_leave_no_alignment(corpus, tmp_path):
    folder, out = tmp_path / "corpus", tmp_path / "out"
    folder.mkdir()
    for path in corpus[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    align_corpus(make_config(folder, out, iterations=1), progress=False)
    (folder / "01.txt").unlink()
    (folder / "02.txt").write_text("?!")
    (folder / "03.txt").write_text("same " * 200)
    (folder / "04.wav").write_bytes(b"RIFF")
    write_audio(folder / "05.flac", torch.rand(1, RATE), RATE)
    report = align_corpus(make_config(folder, out, iterations=1), progress=False)
    found = {entry["id"]: entry["reason"] for entry in report.skipped}
    assert sorted(found) == ["01.wav", "02.wav", "03.wav", "04.wav", "05.wav"]
    assert found["01.wav"] == "01.wav: no transcript"
    assert "can be spoken" in found["02.wav"] and "are too short for" in found["03.wav"]
    assert found["05.wav"] == "05.wav: its alignment would have the name of that of 05.flac"
    assert sorted(path.stem for path in out.glob("*.align")) == [f"{n:02d}" for n in range(24) if n not in (1, 2, 3, 4)]
    for path in folder.glob("*.txt"):
        path.unlink()
    with pytest.raises(ValueError, match="no recording has a usable transcript"):
        align_corpus(make_config(folder, out), progress=False)


def test_training_minutes(corpus, tmp_path):
    whole = align_corpus(make_config(corpus[0], tmp_path / "a", iterations=1), progress=False)
    part = align_corpus(make_config(corpus[0], tmp_path / "b", iterations=1, train_minutes=0.2), progress=False)
    assert 0.2 <= part.train_minutes < 0.25 < whole.train_minutes and len(part.items) == len(whole.items)


def test_command(corpus, tmp_path, capsys):
    config = tmp_path / "align.yaml"
    config.write_text("corpus: {kind: folder, path: nowhere}\ntext: {kind: characters}\nout: x\niterations: 2\n")
    sets = ["--set", f"corpus.path={corpus[0]}", "--set", f"out={tmp_path / 'out'}"]
    assert run(["align", str(config), *sets, "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert len(report["items"]) == 24 and report["items"][0]["score"] <= report["items"][-1]["score"]
    assert "the lowest scores" in printed.err and "24 items, 0." in printed.err
    assert run(["align", str(config)]) != 0
    assert "nowhere: no such folder" in capsys.readouterr().err
