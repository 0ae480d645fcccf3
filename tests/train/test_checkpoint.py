"""Checkpoints: whole or absent after a kill anywhere, verified before use, and no foreign pickle is ever run."""

import io
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from kill_process import kill_at

from tessera.train.common import checkpoint
from tessera.train.common.checkpoint import Checkpoints, check_pickles, why_unusable
from tessera.train.distributed.process_group import ProcessGroup

ONE = ProcessGroup(0, 1, torch.device("cpu"))


def make(folder: Path, keep_last: int = 2) -> Checkpoints:
    return Checkpoints(folder, ONE, keep_last)


def writer(step: int):
    def write(folder: Path) -> None:
        (folder / "engine").mkdir()
        (folder / "engine" / "weights.bin").write_bytes(bytes([step]) * 1000)
        (folder / "run.json").write_text(str(step))

    return write


def step_of(path: Path | None) -> int:
    assert path is not None
    step = int((path / "run.json").read_text())
    assert (path / "engine" / "weights.bin").read_bytes() == bytes([step]) * 1000
    return step


def test_newest_is_found_and_old_ones_go(tmp_path):
    checkpoints = make(tmp_path)
    assert checkpoints.newest() is None
    for step in (1, 2, 3):
        checkpoints.save(step, writer(step))
    assert step_of(checkpoints.newest()) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    made = checkpoints.save(3, lambda folder: pytest.fail("a good checkpoint is not written again"))
    assert step_of(made) == 3


@pytest.mark.slow
@pytest.mark.parametrize("keep_last", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_kill_at_any_point_loses_at_most_the_checkpoint_being_written(tmp_path, keep_last):
    """Every system call of the protocol in turn; afterwards there is a good checkpoint, and saving works again."""
    count, through = 0, False
    while not through:
        count += 1
        folder = tmp_path / str(count)
        checkpoints = make(folder, keep_last)
        checkpoints.save(1, writer(1))
        checkpoints.save(2, writer(2))
        through = kill_at(count, lambda checkpoints=checkpoints: checkpoints.save(3, writer(3)))
        newest = step_of(checkpoints.newest())
        assert newest in (2, 3)
        assert newest == 3 or not through
        checkpoints.save(4, writer(4))
        assert step_of(checkpoints.newest()) == 4
        left = sorted(path.name for path in folder.iterdir())
        assert len(left) <= keep_last
        assert all(why_unusable(folder / name) is None for name in left)
        shutil.rmtree(folder)
    assert count > 15  # the counting works


def test_failure_to_write_keeps_the_last_good_one(tmp_path):
    checkpoints = make(tmp_path, keep_last=1)
    checkpoints.save(1, writer(1))

    def full(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(
        OSError, match="no disk space for a checkpoint, .* bytes are free; earlier checkpoints are intact"
    ):
        checkpoints.save(2, full)
    assert step_of(checkpoints.newest()) == 1


@pytest.mark.parametrize("call", ["manifest.json", "COMMITTED"])
def test_a_disk_that_is_full_at_the_end_leaves_nothing_of_the_new_one(tmp_path, monkeypatch, call):
    checkpoints = make(tmp_path, keep_last=1)
    checkpoints.save(1, writer(1))
    replace = os.replace

    def full(source, target):
        if Path(target).name == call:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no disk space for a checkpoint, it needs about 1,234,567 bytes and .* are free"):
        checkpoints.save(2, writer(2), 1234567)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert step_of(checkpoints.newest()) == 1


def test_folders_of_other_names_are_neither_taken_nor_removed(tmp_path):
    checkpoints = make(tmp_path, keep_last=1)
    checkpoints.save(1, writer(1))
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000009-copy")
    (tmp_path / "step-notes").mkdir()
    (tmp_path / ".step-x.tmp").mkdir()
    for step in (2, 3):
        checkpoints.save(step, writer(step))
        checkpoints.clean()
        assert step_of(checkpoints.newest()) == step
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".step-x.tmp", "step-00000003", "step-00000009-copy", "step-notes"]


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "extra", "manifest", "marker", "link"])
def test_a_damaged_newest_is_passed_over_with_a_warning(tmp_path, capsys, damage):
    checkpoints = make(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, writer(step))
    newest = tmp_path / "step-00000002"
    target = newest / "engine" / "weights.bin"
    content = bytearray(target.read_bytes())
    if damage == "flip":
        content[500] ^= 1
        target.write_bytes(content)
    elif damage == "cut":
        target.write_bytes(content[:-1])
    elif damage == "delete":
        target.unlink()
    elif damage == "extra":
        (newest / "more.pt").write_bytes(b"x")
    elif damage == "manifest":
        (newest / "manifest.json").write_text("{}")
    elif damage == "marker":
        (newest / "COMMITTED").unlink()
    else:
        target.rename(tmp_path / "elsewhere")
        target.symlink_to(tmp_path / "elsewhere")
    assert step_of(checkpoints.newest()) == 1
    assert "warning" in capsys.readouterr().err
    checkpoints.save(2, writer(2))  # the run comes to that step again
    assert step_of(checkpoints.newest()) == 2


def test_all_damaged_is_an_error(tmp_path):
    checkpoints = make(tmp_path)
    checkpoints.save(1, writer(1))
    (tmp_path / "step-00000001" / "run.json").write_text("other")
    with pytest.raises(ValueError, match="every checkpoint is damaged"):
        checkpoints.newest()


class Payload:
    def __init__(self, marker: Path, how: str):
        self.marker, self.how = marker, how

    def __reduce__(self):
        if self.how == "nested":
            inner = io.BytesIO()
            torch.save(Payload(self.marker, "system"), inner, _use_new_zipfile_serialization=False)
            return torch.storage._load_from_bytes, (inner.getvalue(),)  # unpickles whatever it is given
        if self.how == "eval":
            return eval, (f"open({str(self.marker)!r}, 'w').close()",)
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("how", ["system", "eval", "legacy", "plain", "protocol4", "nested", "garbage"])
def test_hostile_pickles_are_refused_and_not_run(tmp_path, how):
    marker = tmp_path / "executed"
    folder = tmp_path / "engine"
    folder.mkdir()
    target = folder / "mp_rank_00_model_states.pt"
    payload = {"module": {"weight": torch.zeros(2)}, "extra": [Payload(marker, how)]}
    if how == "legacy":
        torch.save(payload, target, _use_new_zipfile_serialization=False)
    elif how == "plain":
        target.write_bytes(pickle.dumps(payload))
    elif how == "protocol4":
        torch.save(payload, target, pickle_protocol=4)
    elif how == "garbage":
        target.write_bytes(b"\x00" * 100)
    else:
        torch.save(payload, target)
    with pytest.raises(ValueError, match=r"mp_rank_00_model_states.pt: .*not loaded"):
        check_pickles(tmp_path)
    assert not marker.exists()


def test_harmless_torch_files_pass(tmp_path):
    torch.save({"step": 3, "weights": torch.arange(3.0), "names": ["a"]}, tmp_path / "states.pt")
    (tmp_path / "run.json").write_text("{}")
    check_pickles(tmp_path)
    assert "deepspeed.runtime.zero.config.ZeroStageEnum" in checkpoint.ALLOWED_GLOBALS
