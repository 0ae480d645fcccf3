"""The demo: what it may delete, how it tells what went differently, and (slow) a quick run of the whole."""

import pytest
import torch

from tessera.cli.commands import demo
from tessera.cli.commands.demo import MARK, Run, peak_signal_to_noise, prepare
from tessera.cli.report import digit_classifier


def test_prepare_replaces_only_its_own_folder(tmp_path):
    out = tmp_path / "demo"
    prepare(out)
    (out / "old.txt").touch()
    prepare(out)
    assert [path.name for path in out.iterdir()] == [MARK]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"foreign: contains files that are not from the demo; choose another"):
        prepare(foreign)
    assert (foreign / "thesis.tex").exists()


def test_stages_are_timed_and_notes_kept(tmp_path, capsys):
    run = Run(tmp_path, quick=True)
    with run.stage("first"):
        pass
    run.note("something was left out.")
    assert [name for name, _ in run.stages] == ["first"] and run.notes == ["something was left out."]
    assert capsys.readouterr().err == "\n[1] first\nnote: something was left out.\n"


def test_peak_signal_to_noise():
    wanted = torch.zeros(3, 1, 8, 8)
    assert peak_signal_to_noise(wanted, wanted + 0.2) == pytest.approx(20.0)  # 10 log10(4 / 0.04)


def test_real_digits_are_split_by_writer():
    train, train_labels = digit_classifier.real_digits("train")
    test, test_labels = digit_classifier.real_digits("test")
    assert (len(train), len(test)) == (1297, 500) and train.shape[1:] == (1, 8, 8)
    assert train.min() == -1 and train.max() == 1
    assert set(train_labels) == set(test_labels) == {str(digit) for digit in range(10)}


@pytest.mark.slow
def test_judge_knows_real_digits_and_not_their_names_turned():
    pytest.importorskip("sklearn")
    pictures, labels = digit_classifier.real_digits("test")
    found = digit_classifier.DigitClassifier()
    assert found.share(pictures, labels) > 0.9
    assert found.share(pictures, labels[1:] + labels[:1]) < 0.2


def test_missing_bundled_model_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "PACKAGE", tmp_path)
    run = Run(tmp_path, quick=True)
    assert demo.bundled_voice(run, ["a"]) is None and demo.bundled_captions(run) is None
    assert demo.bundled_digits(run, None) is None
    assert len(run.notes) == 3 and "'voice' is not in this checkout" in run.notes[0]


@pytest.mark.slow
def test_quick_demo(tmp_path):
    import os
    import subprocess
    import sys

    command = [sys.executable, "-m", "tessera", "demo", "--quick", "--out", "demo"]
    done = subprocess.run(command, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "plain torch (auto: " in page or "DeepSpeed (auto: " in page
    assert "report.html; open it in a browser" in done.stderr
    assert len(list((tmp_path / "demo" / "pictures").glob("*.png"))) == 20
