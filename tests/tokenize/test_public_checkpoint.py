"""Reading public checkpoints: safetensors and pickles of tensors; a pickle that asks for code is refused."""

import argparse
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from tessera.tokenize.public.checkpoint import open_checkpoint

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}


def same(checkpoint):
    found = checkpoint.tensors(STATE)
    assert checkpoint.shapes == {"a.weight": (2, 3), "b": (2,)}
    return all(torch.equal(found[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("ending", ["bin", "pt", "pth", "ckpt", "th"])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "best_state"])
def test_pickles_of_tensors_are_read(tmp_path, ending, key):
    content = STATE if key is None else {key: STATE, "epoch": 3, "args": argparse.Namespace(width=4), "xp.cfg": "a: 1"}
    torch.save(content, tmp_path / f"weights.{ending}")
    assert same(open_checkpoint(tmp_path))
    found = open_checkpoint(tmp_path / f"weights.{ending}")
    assert same(found)
    assert found.described is None if key is None else found.described["epoch"] == 3


def test_pickles_of_old_torch_are_read(tmp_path):
    torch.save(STATE, tmp_path / "weights.pth", _use_new_zipfile_serialization=False)
    assert same(open_checkpoint(tmp_path))


def test_safetensors_are_preferred_and_may_be_sharded(tmp_path):
    torch.save({"a.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    save_file({"a.weight": STATE["a.weight"]}, tmp_path / "model-1.safetensors")
    save_file({"b": STATE["b"]}, tmp_path / "model-2.safetensors")
    index = '{"weight_map": {"a.weight": "model-1.safetensors", "b": "model-2.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert same(open_checkpoint(tmp_path))


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_a_payload_never_runs(tmp_path, zipped, nested):
    bad = Payload(tmp_path / "ran")
    torch.save(
        {"state_dict": STATE, "callbacks": [bad]} if nested else bad,
        tmp_path / "weights.pt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(ValueError, match=r"weights.pt: this pickle asks for \w+.mkdir, .* nothing of it was run"):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_plain_pickle_never_runs(tmp_path):
    (tmp_path / "weights.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(ValueError, match=r"weights.bin: "):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_damaged_and_foreign_files(tmp_path):
    torch.save(STATE, tmp_path / "weights.pt")
    whole = (tmp_path / "weights.pt").read_bytes()
    for content in (whole[:-200], whole[: len(whole) // 2], b"", b"PK\x03\x04", os.urandom(300), b"<html></html>" * 20):
        (tmp_path / "weights.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"weights.pt: not a usable file of tensors"):
            open_checkpoint(tmp_path)
    torch.save([1, 2], tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="holds a list, expected a dictionary of tensors"):
        open_checkpoint(tmp_path)
    torch.save({"a": 1}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        open_checkpoint(tmp_path)


def test_files_that_would_unpack_to_any_size(tmp_path):
    torch.save(STATE, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for entry in plain.infolist():
            small.writestr(entry.filename, plain.read(entry))
    with pytest.raises(ValueError, match=r"small.pt: not a usable file of tensors \(it is compressed\)"):
        open_checkpoint(tmp_path / "small.pt")
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, tmp_path / "large.pt")
    with pytest.raises(ValueError, match=r"large.pt: tensor 'a' is no dense tensor"):
        open_checkpoint(tmp_path / "large.pt")


def test_nothing_and_too_much(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights here"):
        open_checkpoint(tmp_path)
    torch.save(STATE, tmp_path / "one.pt")
    torch.save(STATE, tmp_path / "two.pt")
    with pytest.raises(ValueError, match="several files may hold the weights; name one of them: one.pt, two.pt"):
        open_checkpoint(tmp_path)
    assert same(open_checkpoint(tmp_path / "two.pt"))
