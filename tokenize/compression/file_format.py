"""A file of compressed codes (.tsc): what `tessera encode --compress` writes.

    8 bytes    "TESSERAC"
    4 bytes    version, 1
    4 bytes    length of the header as it stands
    4 bytes    CRC-32 of the header as it stands
    header     zlib: a JSON object (spec, items, model, chunk_frames), a zero byte, the unigram table (model "unigram"),
               and for each chunk 4 bytes of length and the CRC-32 of its codes
    chunks     one after the other (chunk_coder.py), the last to the end of the file

Numbers are unsigned, 32 bits, little-endian. A chunk's CRC is over its codes, [frames, K] as 32-bit numbers: what was
read is what was written, whatever happened to the bytes or to the decoder. A chunk that fails loses only its own
frames.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import PositiveInt

from ...configs.files import write_atomic
from ...configs.json_limits import INDEX, parse_json
from ...configs.schema import Config, check_config
from ..data.codes_file import CodesItem, check_length
from ..spec import TokenSpec, check_same_tokenizer
from .chunk_coder import Layout, read_chunks, write_chunks
from .context import SymbolTable, symbol_table
from .integer_network import CoderNet
from .probability_models import Model, NetworkModel, UniformModel, UnigramModel

MAGIC = b"TESSERAC"
VERSION = 1
CHUNK_FRAMES = 500
MAX_HEADER = 64 << 20
MAX_SYMBOLS_PER_BYTE = 1000
"""Codes per byte of a file, at most: what repeats costs nearly nothing, but an empty file must not fill the memory."""


class DecoderDisagrees(RuntimeError):
    """A whole file whose codes come out as others than were written."""


class _Item(Config):
    name: str
    frames: PositiveInt
    num_samples: PositiveInt | None = None


class _Header(Config):
    spec: TokenSpec
    items: list[_Item]
    model: Literal["uniform", "unigram", "network"]
    network: str | None = None
    """Fingerprint of the CoderNet."""
    chunk_frames: PositiveInt
    bytes_crc: int
    """CRC-32 of the bytes of all chunks: tells a damaged file from a decoder that disagrees."""


@dataclass(frozen=True)
class Compressed:
    """What was written."""

    model: str
    frames: int
    size: int
    """Bytes of the file."""
    chunk_bytes: int
    """Of them for codes."""
    nominal_bits: float
    """Of all codes, each at log2 of its codebook's size."""
    coded_bits: float
    """What the chosen model needs for them: the chunks, but for their ends."""
    per_codebook: list[float]
    """[K] bits a frame under the chosen model."""


@dataclass(frozen=True)
class Restored:
    """What was read."""

    spec: TokenSpec
    items: list[CodesItem]
    """Codes of lost frames are -1."""
    damage: list[str]
    """One line for each chunk that was lost."""


def write_compressed(
    path: str | Path,
    spec: TokenSpec,
    items: Sequence[CodesItem],
    net: CoderNet | None = None,
    chunk_frames: int = CHUNK_FRAMES,
) -> Compressed:
    """Write codes, with the kind of model that makes the file smallest: uniform, unigram, or the given network.

    Args:
        chunk_frames: frames that are lost together.
    Raises:
        ValueError: no items, or a network for another tokenizer. ImportError: no constriction.
    """
    if not items:
        raise ValueError(f"{path}: no codes to write")
    table = symbol_table(spec.cardinalities)
    codes = np.concatenate([item.codes.cpu().numpy() for item in items], axis=1)
    symbols = table.split(codes)
    layout = Layout.of([item.codes.shape[1] for item in items], chunk_frames)
    if net is not None:
        check_same_tokenizer(net.spec, spec, "the coder's model")
    notes = [
        _Item(name=item.name, frames=item.codes.shape[1], num_samples=item.num_samples).model_dump(mode="json")
        for item in items
    ]
    best: tuple[bytes, Compressed] | None = None
    nominal = codes.shape[1] * float(np.log2(np.array(spec.cardinalities)).sum())
    for model, own in _candidates(table, UnigramModel.measure(symbols, table), net):
        chunks, costs = write_chunks(symbols, layout, spec, model)
        described = {
            "spec": spec.model_dump(mode="json"),
            "items": notes,
            "model": model.kind,
            "network": model.net.fingerprint if isinstance(model, NetworkModel) else None,
            "chunk_frames": chunk_frames,
            "bytes_crc": zlib.crc32(b"".join(chunks)),
        }
        sums = [_checksum(codes[:, start:end]) for start, end in layout.chunks]
        ledger = b"".join(struct.pack("<II", len(chunk), crc) for chunk, crc in zip(chunks, sums, strict=True))
        header = zlib.compress(json.dumps(described, separators=(",", ":")).encode() + b"\0" + own + ledger, 9)
        data = MAGIC + struct.pack("<III", VERSION, len(header), zlib.crc32(header)) + header + b"".join(chunks)
        if best is None or len(data) < len(best[0]):
            books = np.array(table.of_codebook)
            per_codebook = [
                float(costs[:, books == book].sum() / len(costs)) for book in range(len(spec.cardinalities))
            ]
            size = sum(map(len, chunks))
            best = (
                data,
                Compressed(model.kind, len(costs), len(data), size, nominal, float(costs.sum()), per_codebook),
            )
    assert best is not None
    write_atomic(path, best[0])
    return best[1]


def _candidates(table: SymbolTable, stored: bytes, net: CoderNet | None) -> list[tuple[Model, bytes]]:
    """The models that may write a file, and the table each stores."""
    plain: list[tuple[Model, bytes]] = [(UniformModel(table), b""), (UnigramModel(table, stored), stored)]
    return plain if net is None else [*plain, (NetworkModel(net), b"")]


def is_compressed(path: str | Path) -> bool:
    """Whether there is a file and begins as one of these."""
    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_compressed(
    path: str | Path, expected: TokenSpec | None, find: Callable[[str], CoderNet] | None = None
) -> Restored:
    """Read a file of compressed codes.

    Args:
        expected: the tokenizer that will be used on them.
        find: gives the CoderNet with a fingerprint; called where the file was written with one.
    Raises:
        FileNotFoundError: no such file. ValueError: another kind of file, a damaged header, another tokenizer, a wrong
            network. DecoderDisagrees: the file is whole but this machine reads other codes than were written.
    """
    data = Path(path).read_bytes()
    header, own, ledger, chunks = _take_apart(path, data)
    if expected is not None:
        check_same_tokenizer(header.spec, expected, str(path))
    model = _model(path, header, own, find)
    layout = Layout.of([item.frames for item in header.items], header.chunk_frames)
    symbols, refused = read_chunks(chunks, layout, header.spec, model)
    codes = symbol_table(header.spec.cardinalities).join(symbols)
    lost = [
        number
        for number, (start, end) in enumerate(layout.chunks)
        if number in refused or _checksum(codes[:, start:end]) != ledger[number][1]
    ]
    if lost and zlib.crc32(b"".join(chunks)) == header.bytes_crc:
        raise DecoderDisagrees(
            f"{path}: the file is whole, but {len(lost)} of {len(chunks)} chunks come out as other codes than were "
            "written; another release of the package constriction wrote it"
        )
    for number in lost:
        codes[:, slice(*layout.chunks[number])] = -1
    items, begin, owners = [], 0, []
    for note in header.items:
        check_length(path, header.spec.geometry, note.name, note.num_samples, note.frames)
        own_codes = torch.from_numpy(codes[:, begin : begin + note.frames].copy())
        items.append(CodesItem(note.name, own_codes, note.num_samples))
        owners.append((begin, begin + note.frames, note.name))
        begin += note.frames
    return Restored(header.spec, items, [_describe(number, *layout.chunks[number], owners) for number in lost])


def _checksum(codes: np.ndarray) -> int:
    return zlib.crc32(codes.T.astype("<u4").tobytes())


def _take_apart(path: str | Path, data: bytes) -> tuple[_Header, bytes, list[tuple[int, int]], list[bytes]]:
    """The header, the unigram table, (length, CRC) of each chunk, and their bytes; fewer where the file is cut off."""
    begin = len(MAGIC) + 12
    if data[: len(MAGIC)] != MAGIC or len(data) < begin:
        raise ValueError(f"{path}: not a file of compressed codes; make one with: tessera encode --compress")
    version, length, crc = struct.unpack("<III", data[len(MAGIC) : begin])
    if version != VERSION:
        raise ValueError(f"{path}: version {version}, this Tessera reads version {VERSION}")
    packed = data[begin : begin + length]
    if len(packed) != length or zlib.crc32(packed) != crc:
        raise ValueError(f"{path}: its header is damaged, so nothing in it can be read; copy the file again")
    try:
        text, _, rest = zlib.decompressobj().decompress(packed, MAX_HEADER).partition(b"\0")
    except zlib.error as error:
        raise ValueError(f"{path}: its header is no zlib data ({error})") from None
    header = check_config(parse_json(text, str(path), INDEX), _Header, str(path))
    frames = sum(item.frames for item in header.items)
    if frames * header.spec.num_codebooks > MAX_SYMBOLS_PER_BYTE * (len(data) + 1000):
        raise ValueError(f"{path}: claims {frames} frames in {len(data)} bytes; it is damaged")
    count = -(-frames // header.chunk_frames)
    own = rest[: len(rest) - 8 * count]
    numbers = list(struct.iter_unpack("<II", rest[len(own) :]))
    if len(numbers) != count:
        raise ValueError(f"{path}: {len(numbers)} chunks are listed, {frames} frames make {count}")
    chunks, begin = [], begin + length
    for size, _ in numbers:
        chunks.append(data[begin : begin + size])
        begin += size
    return header, own, numbers, chunks


def _model(path: str | Path, header: _Header, own: bytes, find: Callable[[str], CoderNet] | None) -> Model:
    table = symbol_table(header.spec.cardinalities)
    if header.model == "uniform":
        return UniformModel(table)
    if header.model == "unigram":
        return UnigramModel(table, own)
    if find is None or header.network is None:
        raise ValueError(f"{path}: was written with the coder {header.network}, and none is given; pass --model")
    net = find(header.network)
    check_same_tokenizer(net.spec, header.spec, "the coder's model")
    return NetworkModel(net)


def _describe(number: int, start: int, end: int, owners: Sequence[tuple[int, int, str]]) -> str:
    """One line about a lost chunk: which frames of which items."""
    parts = [
        f"frames {max(start, begin) - begin} to {min(end, stop) - begin - 1} of {name}"
        for begin, stop, name in owners
        if begin < end and start < stop
    ]
    shown = ", ".join(parts[:5]) + (f" and {len(parts) - 5} items more" if len(parts) > 5 else "")
    return f"chunk {number} is damaged: {shown}"
