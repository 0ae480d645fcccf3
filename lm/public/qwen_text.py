"""The text tokenizer of Qwen: tokenizer.json, or vocab.json, merges.txt and special tokens in tokenizer_config.json.

Source: the files and the way of splitting a text of Qwen2Tokenizer in transformers (Apache-2.0).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...configs.files import write_atomic, write_json
from ...configs.json_limits import parse_json
from ...tokenize.text.base import MAX_FILE_BYTES
from ...tokenize.text.bpe_text import BPEText, BPETextConfig
from ...tokenize.text.tokenizer_json import LIMITS

WHOLE, PIECES, MERGES, CONFIG = "tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The expression by which a text is split before pieces are merged."""
LONGEST_TEXT = 1 << 15
"""Characters of a text."""


def read_qwen_text(folder: Path, vocab_size: int) -> BPEText:
    """The text tokenizer in a folder, for a table of vocab_size rows.

    Raises:
        FileNotFoundError: its files are missing. ValueError: they are unusable, or have more ids than rows.
    """
    config = BPETextConfig(vocab_size=vocab_size, specials=(), file=WHOLE, max_characters=LONGEST_TEXT)
    whole = folder / WHOLE
    if whole.is_file():
        return BPEText(config, _read(whole), str(whole))
    if not (folder / PIECES).is_file() or not (folder / MERGES).is_file():
        raise FileNotFoundError(
            f"{folder / PIECES}: no such file; the text tokenizer is {WHOLE}, or {PIECES}, {MERGES} and {CONFIG}: copy "
            "them from the public model"
        )
    return BPEText(config, json.dumps(_whole(folder)).encode(), str(folder / PIECES))


def _whole(folder: Path) -> dict[str, Any]:
    """The content of a tokenizer.json."""
    pieces = parse_json(_read(folder / PIECES), str(folder / PIECES), LIMITS)
    lines = _read(folder / MERGES).decode("utf-8", errors="replace").splitlines()
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in merges):
        raise ValueError(f"{folder / MERGES}: a line is no pair of pieces")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(folder / CONFIG),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": pieces, "merges": merges, "byte_fallback": False, "ignore_merges": False},
    }


def _added(path: Path) -> list[dict[str, Any]]:
    """The added tokens of tokenizer_config.json, in the order of their ids."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it has the special tokens, copy it from the public model")
    described = parse_json(_read(path), str(path), LIMITS)
    held = described.get("added_tokens_decoder") if isinstance(described, dict) else None
    if not isinstance(held, dict) or not all(number.isdecimal() and len(number) < 10 for number in held):
        raise ValueError(f"{path}: has no added_tokens_decoder, the special tokens by their ids")
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    tokens = []
    for number, token in sorted(held.items(), key=lambda one: int(one[0])):
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise ValueError(f"{path}: added_tokens_decoder: {number} has no content")
        own = {flag: bool(token.get(flag, False)) for flag in flags}
        tokens.append({"id": int(number), "content": token["content"]} | own)
    return tokens


def write_qwen_text(folder: Path, text: BPEText) -> None:
    """Write the text tokenizer as transformers reads it."""
    write_atomic(folder / WHOLE, text.model)
    described = parse_json(text.model, WHOLE, LIMITS)
    tokens = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in described["added_tokens"]}
    fields = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": tokens, "add_prefix_space": False}
    fields |= {"bos_token": None, "clean_up_tokenization_spaces": False, "split_special_tokens": False}
    names = {token["content"] for token in tokens.values()}
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    fields |= {key: name for key, name in ends.items() if name in names}
    write_json(folder / CONFIG, fields | {"unk_token": None})


def _read(path: Path) -> bytes:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, the limit is {MAX_FILE_BYTES}")
    return path.read_bytes()
