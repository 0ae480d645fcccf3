"""What is checked of a tokenizer.json of Hugging Face tokenizers before that package reads it.

The package trusts its files: a few steps of normalization that each double a text, repeated, fill any memory, and ids
may be as large as a machine word. Truncation and padding are not checked: the text tokenizer turns them off.
Source: the keys are those of tokenizers (Apache-2.0), as `Tokenizer.save` writes them.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from ...configs.json_limits import JsonLimits, parse_json
from ...configs.printable import one_line

MOST_IDS = 1_000_000
LIMITS = JsonLimits(64 << 20, 1_000_000, 4_000_000)
"""A list for each of a million merges, which are pairs of pieces."""
LONGEST_PIECE = 4096
"""Characters of a piece or an added token."""
MOST_GROWTH = 1000
"""Times that a text may grow while it is read, or ids while they are decoded."""
_STAGES = (("normalizer", "pre_tokenizer"), ("post_processor",), ("decoder",))
_LISTS = ("normalizers", "pretokenizers", "processors", "decoders")
_GROWTH = {"BertNormalizer": 12, "NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "WordPiece": 2}
"""Characters that one character may become."""
_BYTES = {"normalizer": 4, "pre_tokenizer": 4}
"""Stages in which the step ByteLevel makes a character of each byte; in the others it adds nothing."""


def check_bpe_json(content: bytes, where: str) -> None:
    """Raise ValueError, which begins with `where`, unless the content is JSON with a model of byte-pair encoding whose
    ids are fixed, and which is within the limits above."""
    described = parse_json(content, where, LIMITS)
    model = described.get("model") if isinstance(described, dict) else None
    if not isinstance(model, dict):
        raise ValueError(f"{where}: not a tokenizer.json of Hugging Face tokenizers, it holds no model")
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        shown = one_line(json.dumps(kind), 40)
        raise ValueError(f"{where}: its model is of type {shown}; the text tokenizer 'bpe' reads type \"BPE\" alone")
    if model.get("dropout"):
        raise ValueError(
            f"{where}: its model has dropout, so a text would have other ids each time; set model.dropout to null in it"
        )
    _check_pieces(model.get("vocab"), described.get("added_tokens"), where)
    for stages in _STAGES:
        growth = 1
        for stage in stages:
            for step in _steps(described.get(stage)):
                growth = min(growth * max(1, _growth(step, stage)), MOST_GROWTH + 1)
        if growth > MOST_GROWTH:
            raise ValueError(
                f"{where}: its {' and '.join(stages)} may make a text more than {MOST_GROWTH} times as long, the limit"
            )


def _check_pieces(vocab: Any, added: Any, where: str) -> None:
    if not isinstance(vocab, dict) or not vocab:
        raise ValueError(f"{where}: model.vocab holds no pieces")
    wrong = next((i for i in vocab.values() if type(i) is not int or not 0 <= i < MOST_IDS), None)
    if wrong is not None:
        raise ValueError(f"{where}: an id is {one_line(json.dumps(wrong), 40)}, expected 0 to {MOST_IDS - 1}")
    tokens = [one.get("content") for one in added if isinstance(one, dict)] if isinstance(added, list) else []
    if len(vocab) + len(tokens) > MOST_IDS:
        raise ValueError(f"{where}: {len(vocab) + len(tokens)} pieces and added tokens, the limit is {MOST_IDS}")
    longest = max(len(piece) for piece in (*vocab, *tokens) if isinstance(piece, str))
    if longest > LONGEST_PIECE:
        raise ValueError(f"{where}: a piece has {longest} characters, the limit is {LONGEST_PIECE}")


def _steps(tree: Any) -> list[dict[str, Any]]:
    """The steps of a stage, those of nested sequences among them."""
    found, waiting = [], [tree]
    while waiting:
        step = waiting.pop()
        if isinstance(step, dict):
            found.append(step)
            for name in _LISTS:
                inner = step.get(name)
                waiting += inner if isinstance(inner, list) else []
    return found


def _growth(step: dict[str, Any], stage: str) -> int:
    """How many times as long as before a text is after a step, at most; what is added once counts as once more."""
    kind = step.get("type")
    if kind == "ByteLevel":
        return _BYTES.get(stage, 1)
    if kind == "Replace":
        return _replaced(step.get("pattern"), _length(step.get("content")))
    if kind in ("Prepend", "Metaspace"):
        return 1 + _length(step.get("prepend")) + _length(step.get("replacement"))
    if kind == "Precompiled":
        return _longest_replacement(step.get("precompiled_charsmap"))
    if kind == "TemplateProcessing":
        return _template(step.get("single"), step.get("special_tokens"))
    return _GROWTH.get(kind, 1) if isinstance(kind, str) else 1


def _length(text: Any) -> int:
    return len(text) if isinstance(text, str) else 0


def _replaced(pattern: Any, length: int) -> int:
    """Replacing a text of fixed length; an expression may also match nothing, between any two characters."""
    replaced = _length(pattern.get("String")) if isinstance(pattern, dict) else 0
    return -(-length // replaced) if replaced else 1 + length


def _longest_replacement(table: Any) -> int:
    """SentencePiece's table of normalization: the size of an index, the index, and strings that end with a zero."""
    try:
        content = base64.b64decode(table) if isinstance(table, str) else b""
    except binascii.Error:
        return 1  # the package refuses it
    return max(map(len, content[4 + int.from_bytes(content[:4], "little") :].split(b"\0")))


def _template(single: Any, specials: Any) -> int:
    """Ids of a text of one id."""
    count = 0
    for part in single if isinstance(single, list) else []:
        special = part.get("SpecialToken") if isinstance(part, dict) else None
        name = special.get("id") if isinstance(special, dict) else None
        entry = specials.get(name) if isinstance(specials, dict) and isinstance(name, str) else None
        ids = entry.get("ids") if isinstance(entry, dict) else None
        count += len(ids) if isinstance(ids, list) else 1
    return count
