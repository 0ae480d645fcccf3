"""File format of compressed codes (.tsc), written by `tessera encode --compress`.

    8 bytes    "TESSERAC"
    4 bytes    version, 1
    4 bytes    length of the compressed header
    4 bytes    CRC-32 of the compressed header
    header     zlib: a JSON object (spec, items, model, chunk_frames), a zero byte, the unigram table (model "unigram"),
               and for each chunk its length (4 bytes) and the CRC-32 of its codes
    chunks     concatenated (chunk_coder.py); the last ends at the end of the file

Numbers are unsigned 32-bit little-endian. The CRC of a chunk covers its codes, [frames, K] as 32-bit numbers, so it
detects damaged bytes as well as a decoder that disagrees. A damaged chunk loses only its own frames.
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
"""Maximum codes per byte of a file: repetition costs almost nothing, but a tiny file must not fill the memory."""


class DecoderDisagrees(RuntimeError):
    """The file is intact, but its codes decode differently from those written."""


class _Item(Config):
    name: str
    frames: PositiveInt
    num_samples: PositiveInt | None = None


class _Header(Config):
    spec: TokenSpec
    items: list[_Item]
    model: Literal["uniform", "unigram", "network"]
    network: str | None = None
    """Fingerprint of the CoderNet, for model "network"."""
    chunk_frames: PositiveInt
    bytes_crc: int
    """CRC-32 of the bytes of all chunks: distinguishes a damaged file from a decoder that disagrees."""


@dataclass(frozen=True)
class Compressed:
    """Summary of a written file."""

    model: str
    frames: int
    size: int
    """File size in bytes."""
    chunk_bytes: int
    """Bytes of the chunks."""
    nominal_bits: float
    """Bits of all codes at log2 of the codebook size each."""
    coded_bits: float
    """Bits of all codes under the chosen model: the chunks without their termination."""
    per_codebook: list[float]
    """[K] bits per frame under the chosen model."""


@dataclass(frozen=True)
class Restored:
    """Content of a decoded file."""

    spec: TokenSpec
    items: list[CodesItem]
    """Codes of lost frames are -1."""
    damage: list[str]
    """One line for each lost chunk."""


def write_compressed(
    path: str | Path,
    spec: TokenSpec,
    items: Sequence[CodesItem],
    net: CoderNet | None = None,
    chunk_frames: int = CHUNK_FRAMES,
) -> Compressed:
    """Write codes with the model that gives the smallest file: uniform, unigram, or the given network.

    Args:
        chunk_frames: frames per chunk, which are lost together.
    Raises:
        ValueError: no items, or a network for another tokenizer. ImportError: constriction is not installed.
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
    """Candidate models for a file, and the table that each stores."""
    plain: list[tuple[Model, bytes]] = [(UniformModel(table), b""), (UnigramModel(table, stored), stored)]
    return plain if net is None else [*plain, (NetworkModel(net), b"")]


def is_compressed(path: str | Path) -> bool:
    """Whether the path is a file of compressed codes, by its first bytes."""
    if not Path(path).is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_compressed(
    path: str | Path, expected: TokenSpec | None, find: Callable[[str], CoderNet] | None = None
) -> Restored:
    """Read a file of compressed codes.

    Args:
        expected: the tokenizer that the codes will be used with.
        find: returns the CoderNet with a given fingerprint; called if the file was written with one.
    Raises:
        FileNotFoundError: no such file. ValueError: another kind of file, a damaged header, another tokenizer, a wrong
            network. DecoderDisagrees: the file is intact, but the codes decode differently from those written.
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
            f"{path}: the file is whole, but {len(lost)} of {len(chunks)} chunks decode to other codes than were "
            "encoded; it was written with another release of the package constriction"
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
    """Parse a file: header, unigram table, (length, CRC) of each chunk, and their bytes (fewer if it is truncated)."""
    begin = len(MAGIC) + 12
    if data[: len(MAGIC)] != MAGIC or len(data) < begin:
        raise ValueError(f"{path}: not a file of compressed codes; make one with: tessera encode --compress")
    version, length, crc = struct.unpack("<III", data[len(MAGIC) : begin])
    if version != VERSION:
        raise ValueError(f"{path}: version {version}, this Tessera reads version {VERSION}")
    packed = data[begin : begin + length]
    if len(packed) != length or zlib.crc32(packed) != crc:
        raise ValueError(f"{path}: its header is damaged, so it cannot be read; copy the file again")
    try:
        text, _, rest = zlib.decompressobj().decompress(packed, MAX_HEADER).partition(b"\0")
    except zlib.error as error:
        raise ValueError(f"{path}: its header is not zlib data ({error})") from None
    header = check_config(parse_json(text, str(path), INDEX), _Header, str(path))
    frames = sum(item.frames for item in header.items)
    if frames * header.spec.num_codebooks > MAX_SYMBOLS_PER_BYTE * (len(data) + 1000):
        raise ValueError(f"{path}: claims {frames} frames in {len(data)} bytes; it is damaged")
    count = -(-frames // header.chunk_frames)
    own = rest[: len(rest) - 8 * count]
    numbers = list(struct.iter_unpack("<II", rest[len(own) :]))
    if len(numbers) != count:
        raise ValueError(f"{path}: {len(numbers)} chunks are listed, but {frames} frames need {count}")
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
        raise ValueError(f"{path}: was written with the coder {header.network}, but none is given; pass --model")
    net = find(header.network)
    check_same_tokenizer(net.spec, header.spec, "the coder's model")
    return NetworkModel(net)


def _describe(number: int, start: int, end: int, owners: Sequence[tuple[int, int, str]]) -> str:
    """One line about a lost chunk: the frames and items affected."""
    parts = [
        f"frames {max(start, begin) - begin} to {min(end, stop) - begin - 1} of {name}"
        for begin, stop, name in owners
        if begin < end and start < stop
    ]
    shown = ", ".join(parts[:5]) + (f" and {len(parts) - 5} items more" if len(parts) > 5 else "")
    return f"chunk {number} is damaged: {shown}"
