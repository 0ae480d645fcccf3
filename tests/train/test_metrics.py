"""metrics.jsonl: one object a line, and what is written after the last checkpoint is written again on resuming."""

import json

import pytest

from tessera.configs.files import DiskFull
from tessera.train.common.metrics import Metrics, read_metrics
from tessera.train.common.progress import Progress, duration


def test_lines_and_truncation_on_resume(tmp_path):
    metrics = Metrics(tmp_path)
    for step in range(1, 5):
        metrics.write(step, "train", {"loss": 1.0 / step, "loss_per_codebook": [float("nan"), 2.0]})
    metrics.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "spl')  # cut short by a kill
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    metrics = Metrics(tmp_path, step=2)
    metrics.write(3, "test", {"loss": 9.0})
    metrics.close()
    lines = read_metrics(tmp_path)
    assert [(line["step"], line["split"]) for line in lines] == [(1, "train"), (2, "train"), (3, "test")]
    assert lines[0]["loss_per_codebook"] == [None, 2.0]  # JSON has no NaN
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_plain_lines_where_stderr_is_no_terminal(capfd):
    progress = Progress(steps=10, done=0)
    progress.advance()
    progress.report(1, "loss 2.500 [2.00 3.00] 1,234 tokens/s", 61.0)
    progress.close()
    found = capfd.readouterr()
    assert "step 1/10  loss 2.500 [2.00 3.00] 1,234 tokens/s  1:01 left" in found.err
    assert found.out == ""


def test_duration():
    assert [duration(value) for value in (5, 3661, float("inf"))] == ["0:05", "1:01:01", "?"]


def test_a_full_disk_is_said_with_the_file_and_closes_quietly(tmp_path, capfd):
    """/dev/full is a file on a full disk."""
    for name in ("metrics", "board"):
        folder = tmp_path / name
        folder.mkdir()
        metrics = Metrics(folder)
        metrics.write(1, "train", {"loss": 1.0})
        full = open("/dev/full", "ab", buffering=0)
        if name == "metrics":
            metrics._file = full
        elif metrics._board is None:
            continue
        else:
            metrics._board._records._writer = full
        with pytest.raises(DiskFull, match=r"no disk space to write this file .*resume with --resume") as caught:
            metrics.write(2, "train", {"loss": 1.0})
        assert str(caught.value).startswith(str(folder)) and "\n" not in str(caught.value)
        metrics.close()
        full.close()
        assert read_metrics(folder)[0]["step"] == 1
    assert capfd.readouterr().err.count("\n") <= 1  # the note where tensorboard is missing


def test_tensorboard_reads_what_is_written_and_drops_what_comes_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, start in ((1, 0), (3, 2)):
        metrics = Metrics(tmp_path, start)
        for step in range(first, 5):
            metrics.write(
                step, "train", {"loss": step + start, "loss_per_codebook": [1.0, float("nan")], "items": ["a"]}
            )
        metrics.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == {"train/loss", "train/loss_per_codebook/0", "train/loss_per_codebook/1"}
    assert [(found.step, found.value) for found in board.Scalars("train/loss")] == [(1, 1), (2, 2), (3, 5), (4, 6)]
