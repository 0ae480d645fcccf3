"""Config of `tessera shards`, and the items of the corpus that it selects."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from ...configs.names import GivenPath
from ...configs.schema import Config
from ..spec import AudioGeometry, TokenSpec
from .corpus import Corpus, CorpusConfig


class SplitConfig(Config):
    """A part of the corpus: the split that the corpus defines for an item (a manifest column), otherwise a hash of its
    id, so that an item stays in its part when items are added."""

    part: Literal["train", "test"]
    """The part to encode."""
    test_share: float = Field(0.1, gt=0, lt=1)
    """Share of the items that the hash puts into the test part."""


class ShardsConfig(Config):
    """A complete `tessera shards` file."""

    corpus: CorpusConfig
    """The media to encode."""
    tokenizer: GivenPath
    """Directory of the frozen tokenizer."""
    out: GivenPath
    """Output folder."""
    items_per_shard: PositiveInt = 1000
    """Corpus items encoded into one shard; the last shard may have fewer."""
    split: SplitConfig | None = None
    """Use only one part of the corpus; run once per part, each with its own `out`."""
    window_seconds: PositiveFloat | None = None
    """Split audio into items of this length, rounded to frames. The remainder and shorter files are dropped. null: one
    item per file."""
    window_text: Literal["none", "whole"] = "none"
    """Text of these items. none: they have none, as a transcript belongs to the whole file. whole: each has the text of
    its file, a caption of it."""
    max_items: PositiveInt | None = None
    """Use only this many items, the first ones; null: all."""
    alignments: GivenPath | None = None
    """Folder of alignments that `tessera align` wrote; an item without one is skipped. null: use those beside the media
    or in metadata.jsonl, where they exist."""


def choose_items(corpus: Corpus, config: ShardsConfig) -> list[int]:
    """Indices of the corpus items to encode, in corpus order."""
    numbers = list(range(len(corpus)))
    if config.split is not None:
        ids, given = corpus.ids(), corpus.splits()
        by_id = ["test" if _place(name) < config.split.test_share else "train" for name in ids]
        # A corpus with only a validation split uses it as what is called test here.
        called = {"validation": "test"} if given is not None and "test" not in given else {}
        parts = by_id if given is None else [called.get(a, a) if a else b for a, b in zip(given, by_id, strict=True)]
        numbers = [number for number in numbers if parts[number] == config.split.part]
        unused = Counter(part for part in parts if part not in ("train", "test"))
        if unused:
            named = ", ".join(f"{name} {count}" for name, count in sorted(unused.items()))
            corpus.notes.say(f"{sum(unused.values())} items belong to splits that are neither train nor test: {named}")
        if not numbers:
            raise ValueError(
                f"split: no item of {config.corpus.path} falls into '{config.split.part}'; change split.test_share"
            )
    return numbers[: config.max_items]


def _place(item_id: str) -> float:
    """A pseudo-random number in [0, 1) that is a pure function of the id."""
    return int.from_bytes(hashlib.sha256(item_id.encode()).digest()[:6], "big") / 2**48


def window_frames(config: ShardsConfig, spec: TokenSpec) -> int | None:
    """Frames per window when splitting audio; None: no splitting."""
    if config.window_seconds is None:
        if config.window_text != "none":
            raise ValueError("window_text is for items of window_seconds; set that as well, or leave it out")
        return None
    if not isinstance(spec.geometry, AudioGeometry):
        raise ValueError(f"window_seconds: tokenizer '{spec.name}' is for images, which have no duration; remove it")
    return max(1, round(config.window_seconds * spec.geometry.frame_rate))
