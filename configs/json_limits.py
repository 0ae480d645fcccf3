"""JSON parsing with limits on size and number of values, checked before parsing.

A parser allocates 64 bytes for `[],` and more for each short string, so a file of a few megabytes can take gigabytes.
Brackets and commas outside of strings are therefore counted while the file is read, and only JSON within the limits is
parsed.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

BLOCK = 1 << 20
MAX_INTEGER = 2**63 - 1
_DIGITS = bytes(ord("0") if chr(byte).isdecimal() and byte < 128 else ord(" ") for byte in range(256))
"""Table for bytes.translate that maps all digits to 0."""


@dataclass(frozen=True)
class JsonLimits:
    """Limits for a kind of file."""

    num_bytes: int
    containers: int
    """Number of lists and mappings."""
    values: int
    """Number of entries of lists and mappings."""


SMALL = JsonLimits(16 << 20, 50_000, 100_000)
"""Configs and states."""
NAMED = JsonLimits(64 << 20, 50_000, 4_000_000)
"""Model configs, which list all label names."""
HEADER = JsonLimits(8 << 20, 400_000, 1_000_000)
"""Safetensors headers: four lists and mappings for each of 100,000 tensors."""
LINE = JsonLimits(1 << 20, 50_000, 200_000)
"""One line of a JSONL file, which may hold an alignment: a list for each of its units."""
INDEX = JsonLimits(256 << 20, 400_000, 8_000_000)
"""Shard indexes: four values for each of two million items, and a mapping for each skipped item."""


def parse_json(data: bytes | str, where: str, limits: JsonLimits = SMALL) -> Any:
    """Parse JSON.

    Args:
        data: UTF-8, with or without a byte order mark.
        where: prefix of error messages.
    Raises:
        ValueError: over the limits, not JSON, a duplicate key, NaN or infinity, an integer beyond 64 bits, or nesting
            too deep to parse.
    """
    data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return parse_measured(read_measured(io.BytesIO(data), where, limits), where)


def read_json_lines(file: BinaryIO, path: str | Path, max_bytes: int = INDEX.num_bytes) -> Iterator[tuple[str, Any]]:
    """Non-empty lines of an open JSONL file, each with its location "path, line 3" for messages.

    Lines end with a line feed, as JSONL specifies: JSON may contain other line separators unescaped.

    Raises ValueError as `parse_json`; the limits of a line are LINE.
    """
    number = read = 0
    while line := file.readline(LINE.num_bytes + 2):
        number += 1
        read += len(line)
        where = f"{path}, line {number}"
        if read > max_bytes:
            raise ValueError(f"{where}: more than {max_bytes} bytes")
        if len(line) > LINE.num_bytes:
            raise ValueError(f"{where}: more than {LINE.num_bytes} bytes")
        if line.strip() and line.strip() != b"\xef\xbb\xbf":
            yield where, parse_json(line, where, LINE)


def parse_measured(data: bytes, where: str) -> Any:
    """`parse_json` for the result of `read_measured`."""
    try:
        return json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_refuse_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer if b"0" * 19 in data.translate(_DIGITS) else int,  # _integer takes three times as long
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not valid JSON (not UTF-8: {error.reason} at byte {error.start})") from None
    except RecursionError:
        raise ValueError(f"{where}: not valid JSON (nested too deep)") from None
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from None


def read_measured(file: BinaryIO, where: str, limits: JsonLimits) -> bytes:
    """Read the bytes of a JSON file; raises ValueError as soon as they exceed the limits."""
    read: list[bytes] = []
    total = containers = values = 0
    exact: _Counter | None = None
    while block := file.read(BLOCK):
        read.append(block)
        total += len(block)
        if total > limits.num_bytes:
            raise ValueError(f"{where}: more than {limits.num_bytes} bytes of JSON, the limit")
        if exact is None:
            # Counting inside strings as well is much faster and usually enough.
            containers += block.count(b"[") + block.count(b"{")
            values += block.count(b",")
            if containers <= limits.containers and values <= limits.values:
                continue
            exact = _Counter()
            for earlier in read[:-1]:
                exact.feed(earlier)
        exact.feed(block)
        if exact.containers > limits.containers or exact.values > limits.values:
            raise ValueError(
                f"{where}: more than {limits.containers} lists and mappings or {limits.values} values in "
                f"{total} bytes of JSON"
            )
    return b"".join(read)


class _Counter:
    """Counts brackets and commas outside of strings."""

    def __init__(self) -> None:
        self.containers = self.values = 0
        self._inside = False
        self._rest = b""

    def feed(self, block: bytes) -> None:
        block = self._rest + block
        # An escape can be split by the end of the block.
        cut = (len(block) - len(block.rstrip(b"\\"))) % 2
        block, self._rest = block[: len(block) - cut], block[len(block) - cut :]
        parts = block.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b"".join(parts[1 if self._inside else 0 :: 2])
        self.containers += outside.count(b"[") + outside.count(b"{")
        self.values += outside.count(b",")
        self._inside ^= len(parts) % 2 == 0


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"a name occurs twice: '{twice[:100]}'")
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:50]} is beyond the range of numbers")
    return number


def _integer(text: str) -> int:
    if len(text) > 20 or abs(number := int(text)) > MAX_INTEGER:
        raise ValueError(f"{text[:50]} is beyond 64 bits")
    return number
