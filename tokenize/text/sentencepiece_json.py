"""A SentencePiece model from the tokenizer.json of the same pieces.

Packages that only write tokenizer.json leave out spiece.model, of which it was made: the same pieces, scores and table
of normalization. Here the other way: the message `ModelProto` is written field by field.
Source: sentencepiece_model.proto of google/sentencepiece (Apache-2.0): numbers of fields and of types of pieces; the
keys are those of Hugging Face tokenizers.
"""

from __future__ import annotations

import base64
import binascii
import struct
from typing import Any

NORMAL, UNKNOWN, CONTROL = 1, 2, 3
"""Types of pieces; a control piece is never found in a text."""
UNIGRAM = 1
END, PAD = "</s>", "<pad>"


def sentencepiece_of_json(described: Any, where: str) -> bytes:
    """The content of spiece.model.

    Args:
        described: the content of tokenizer.json.
    Raises:
        ValueError: it is no Unigram model; begins with `where`.
    """
    model = described.get("model") if isinstance(described, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) and model.get("type", "Unigram") == "Unigram" else None
    if not isinstance(vocab, list) or not all(_is_piece(one) for one in vocab):
        raise ValueError(f"{where}: holds no pieces of a Unigram model")
    assert isinstance(described, dict) and isinstance(model, dict)
    unknown, names = model.get("unk_id"), [piece for piece, _ in vocab]
    added = described.get("added_tokens")
    control = {
        one["id"] for one in (added if isinstance(added, list) else []) if isinstance(one, dict) and one.get("special")
    }
    pieces = b""
    for number, (piece, score) in enumerate(vocab):
        kind = UNKNOWN if number == unknown else CONTROL if number in control else NORMAL
        pieces += _bytes(1, _bytes(1, piece.encode()) + _float(2, score) + _number(3, kind))
    specials = {40: unknown if isinstance(unknown, int) else -1, 41: -1}
    specials |= {field: names.index(name) if name in names else -1 for field, name in ((42, END), (43, PAD))}
    trainer = _number(3, UNIGRAM) + b"".join(_number(field, value) for field, value in specials.items())
    try:
        table = base64.b64decode(_table(described.get("normalizer")), validate=True)
    except binascii.Error:
        raise ValueError(f"{where}: its table of normalization is damaged") from None
    normalizer = _bytes(2, table) + b"".join(_number(field, 1) for field in (3, 4, 5))  # a space before, no double ones
    return pieces + _bytes(2, trainer) + _bytes(3, normalizer)


def _is_piece(one: Any) -> bool:
    return isinstance(one, list) and len(one) == 2 and isinstance(one[0], str) and isinstance(one[1], int | float)


def _table(normalizer: Any) -> str:
    """The table of normalization in base 64, wherever it is in a sequence of normalizers; "" if there is none."""
    if not isinstance(normalizer, dict):
        return ""
    found = normalizer.get("precompiled_charsmap")
    inner = normalizer.get("normalizers")
    return (
        found
        if isinstance(found, str)
        else next(filter(None, map(_table, inner if isinstance(inner, list) else [])), "")
    )


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers in two's complement
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)
