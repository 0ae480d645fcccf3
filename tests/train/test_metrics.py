"""metrics.jsonl: one object a line, and what is written after the last checkpoint is written again on resuming."""

import json

import pytest

from tessera.train.metrics import Metrics, Progress, duration, read_metrics


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
    progress.report(1, 2.5, [2.0, 3.0], 1234.5, 61.0)
    progress.close()
    found = capfd.readouterr()
    assert "step 1/10  loss 2.500 [2.00 3.00] 1,234 tokens/s  1:01 left" in found.err
    assert found.out == ""


def test_duration():
    assert [duration(value) for value in (5, 3661, float("inf"))] == ["0:05", "1:01:01", "?"]
