"""Files: whole or absent, the same bytes for the same content, and hostile safetensors refused."""

import json
import os
import stat
import struct

import pytest
import safetensors.torch
import torch

from tessera.configs.files import (
    map_file,
    mapped_tensor,
    read_header,
    read_json,
    read_safetensors,
    read_sealed_json,
    sha256_file,
    write_atomic,
    write_json,
    write_safetensors,
    write_sealed_json,
)
from tessera.configs.json_limits import JsonLimits

TENSORS = {"b": torch.arange(6).reshape(2, 3), "a.x": torch.tensor([1.5], dtype=torch.bfloat16)}


def test_write_atomic(tmp_path):
    path = tmp_path / "new" / "file"
    for content in (b"one", b"three"):
        write_atomic(path, content)
        assert path.read_bytes() == content
    write_atomic(path, lambda part: part.write_text("two"), durable=False)
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == ["file"]


def test_failed_write_leaves_the_old_file(tmp_path):
    write_atomic(tmp_path / "file", b"old")

    def fail(part):
        part.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(tmp_path / "file", fail)
    assert (tmp_path / "file").read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_json(tmp_path):
    write_json(tmp_path / "x.json", {"b": [1, "é"], "a": None})
    assert read_json(tmp_path / "x.json") == {"b": [1, "é"], "a": None}
    with pytest.raises(ValueError):
        write_json(tmp_path / "y.json", float("nan"))
    assert not (tmp_path / "y.json").exists()
    with pytest.raises(ValueError, match=r"x\.json: more than 3 bytes of JSON"):
        read_json(tmp_path / "x.json", JsonLimits(3, 10, 10))
    for content in (b"", b"{", b"\xff", b"[" * 50_000):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.json: not valid JSON"):
            read_json(tmp_path / "x.json")


def test_safetensors_round_trip(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TENSORS, {"format": "mine", "a": 'é\n\u2028"\\'})
    tensors, metadata = read_safetensors(path)
    assert metadata == {"format": "mine", "a": 'é\n\u2028"\\'}
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    write_safetensors(path, {"x": torch.zeros(0)})
    assert read_safetensors(path)[1] == {}


def test_same_content_same_bytes(tmp_path):
    metadata = {f"key{number}": "x" * number for number in range(12)}
    found = set()
    for _ in range(8):
        write_safetensors(tmp_path / "x", TENSORS, dict(reversed(metadata.items())))
        found.add(sha256_file(tmp_path / "x"))
    assert len(found) == 1
    assert read_safetensors(tmp_path / "x")[1] == metadata


def test_what_was_read_does_not_change_with_the_file(tmp_path):
    """A memory map would: cut short, it ends the process with SIGBUS."""
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"x": torch.arange(100_000)})
    tensors, _ = read_safetensors(path)
    with open(path, "r+b") as file:
        file.seek(-800_000, 2)
        file.write(b"\xff" * 8000)
        file.truncate(9000)
    assert torch.equal(tensors["x"], torch.arange(100_000))


def test_every_dtype_is_read_as_safetensors_does(tmp_path):
    path = tmp_path / "x.safetensors"
    names = "float64 float32 float16 bfloat16 bool int64 int32 int16 int8 uint64 uint32 uint16 uint8 complex64"
    dtypes = [getattr(torch, name) for name in (*names.split(), "float8_e4m3fn", "float8_e5m2")]
    written = {str(dtype): torch.tensor([[0.0, 1, 2], [3, 4, 5]]).to(dtype) for dtype in dtypes}
    write_safetensors(path, written | {"scalar": torch.tensor(7), "empty": torch.zeros(0, 3)})
    tensors, _ = read_safetensors(path)
    theirs = safetensors.torch.load_file(path)
    assert tensors.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (tensors[name].dtype, tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert tensors[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))


def test_hash_while_reading(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TENSORS | {"large": torch.rand(700_001)}, {"a": "b"})
    found = sha256_file(path)
    assert read_safetensors(path, sha256=found)[0].keys() == TENSORS.keys() | {"large"}
    for position in (0, 9, 40, -1, -2_000_000):
        flip(path, position)
        with pytest.raises(ValueError, match=r"x\.safetensors: "):
            read_safetensors(path, sha256=found)
        flip(path, position)
    assert list(read_safetensors(path, wanted="b".__eq__)[0]) == ["b"]


def flip(path, position, bit=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_sealed_json(tmp_path):
    path = tmp_path / "x.json"
    data = {"b": [1, "é"], "a": None, "c": 0.1}
    write_sealed_json(path, data)
    assert read_sealed_json(path) == data and read_json(path).keys() == {*data, "sha256"}
    write_json(path, data)
    assert read_sealed_json(path) == data, "as an earlier version wrote it"
    write_sealed_json(path, data)
    for position in range(path.stat().st_size):
        bit = 3 * position % 8
        flip(path, position, bit)
        try:
            assert read_sealed_json(path).keys() - data.keys(), "an unknown key in the place of sha256"
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        flip(path, position, bit)


def test_sealed_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TENSORS, {"format": "mine", "note": "x"}, sealed=True)
    tensors, metadata = read_safetensors(path)
    assert metadata == {"format": "mine", "note": "x"} and torch.equal(tensors["b"], TENSORS["b"])
    missed = []
    for position in range(path.stat().st_size):
        flip(path, position)
        try:
            tensors, metadata = read_safetensors(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        else:
            missed.append(position)
        flip(path, position)
    key = path.read_bytes().index(b"content_sha256")
    assert set(missed) <= set(range(key, key + len("content_sha256"))), "the key alone: callers refuse unknown metadata"


def hostile(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
MANY = (b',"t%d":0' % number for number in range(100_000))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a safetensors file, or cut short"),
        (b"\x08", "not a safetensors file, or cut short"),
        (hostile(b"{}", size=2**63), "not a safetensors file, or cut short"),
        (hostile(b"{" + b" " * (9 << 20)), "a safetensors header of 9437185 bytes, the limit is 8388608"),
        (hostile(b"\x80\x05garbage"), "not a safetensors file"),
        (hostile(b"[" * 100_000), "not a safetensors file"),
        (hostile([]), "the header is not a mapping"),
        (hostile(b'{"a":1,"a":1}'), "a name occurs twice"),
        (hostile({"__metadata__": {"a": 1}}), "metadata must map names to strings"),
        (hostile({"__metadata__": [1]}), "metadata must map names to strings"),
        (hostile({"../../etc/x": ONE}, b"\0" * 4), "'../../etc/x' is not a tensor name"),
        (hostile({"": ONE}, b"\0" * 4), "'' is not a tensor name"),
        (hostile({"x" * 600: ONE}, b"\0" * 4), "is not a tensor name"),
        (hostile(b'{"t":0' + b"".join(MANY) + b"}"), "100001 tensors, the limit is 100000"),
        (hostile({"x": ONE}, b"\0" * 3), "not a usable safetensors file"),
        (hostile({"x": ONE}, b"\0" * 5), "not a usable safetensors file"),
        (hostile({"x": ONE, "y": ONE}, b"\0" * 4), "not a usable safetensors file"),
        (hostile({"x": ONE | {"shape": [2**62, 4]}}, b"\0" * 4), "not a usable safetensors file"),
        (hostile({"x": ONE | {"shape": [-1]}}, b"\0" * 4), "not a usable safetensors file"),
        (hostile({"x": ONE | {"dtype": "F33"}}, b"\0" * 4), "not a usable safetensors file"),
        (hostile({"x": ONE | {"data_offsets": [4, 0]}}, b"\0" * 4), "not a usable safetensors file"),
        (hostile({"x": 7}), "not a usable safetensors file"),
    ],
)
def test_hostile_safetensors(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_safetensors(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_truncated_anywhere(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TENSORS, {"a": "b"})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"x\.safetensors: not a"):
            read_safetensors(path)


def test_a_mapped_file(tmp_path):
    """Its tensors are those that are read, wherever they lie; a change stays in memory; a shorter file is refused."""
    path = tmp_path / "x.safetensors"
    for shift in range(5):
        tensors = {"a": torch.arange(shift, dtype=torch.uint8), "b": torch.randn(3, 2), "c": torch.randn(0, 4)}
        tensors |= {"d": torch.tensor(1.5, dtype=torch.bfloat16), "e": torch.arange(4), "f": torch.tensor([True])}
        path.write_bytes(unaligned(tensors))
        header = read_header(path)
        mapped = map_file(path, header)
        found = {name: mapped_tensor(mapped, entry) for name, entry in header.tensors.items()}
        torch.testing.assert_close(found, tensors, rtol=0, atol=0)
        found["b"].zero_()
        torch.testing.assert_close(read_safetensors(path)[0], tensors, rtol=0, atol=0)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated while it was read"):
        map_file(path, header)


def unaligned(tensors):
    """A safetensors file whose tensors follow each other in this order, without gaps."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        dtype = {torch.uint8: "U8", torch.float32: "F32", torch.bfloat16: "BF16", torch.long: "I64", torch.bool: "BOOL"}
        place = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        data += content
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing: no such file"):
        read_safetensors(tmp_path / "nothing")
