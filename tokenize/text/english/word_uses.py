"""The use of a word in its sentence (noun, verb, past, adjective, ...), for words whose sound depends on it.

A linear classifier over the word and its two neighbours on each side, with hashed features; each decision stands by
itself, so only the words that need one are looked at.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .lexicon import USES

CLASSES = ("", *USES[:-1])
"""What the classifier tells apart: no use that matters, or one of USES but PAUSE, which is no matter of grammar."""
BUCKETS = 1 << 15
PAST_TIMES = frozenset(("yesterday", "Yesterday", "ago", "last", "Last"))
FAR = 12
"""Words at which these make a verb one of the past: I read it yesterday."""


class WordUses:
    """Classifier of uses.

    Args:
        weights: int8 [BUCKETS, len(CLASSES)].
    """

    def __init__(self, weights: Tensor):
        self.weights = weights

    def __call__(self, words: Sequence[str], place: int) -> str:
        """The use of the word at a place of a text, one of CLASSES."""
        rows = torch.tensor(features(words, place))
        use = CLASSES[int(self.weights[rows].sum(0, dtype=torch.long).argmax())]
        near = words[max(0, place - FAR) : place + FAR]
        return "PAST" if use == "VERB" and not PAST_TIMES.isdisjoint(near) else use


def features(words: Sequence[str], place: int) -> list[int]:
    """Rows of the weights that a word in its context selects."""

    def at(offset: int) -> str:
        return words[place + offset].lower() if 0 <= place + offset < len(words) else "|"

    word, before, before_2, after, after_2 = (at(offset) for offset in (0, -1, -2, 1, 2))
    named = [
        *("bias", f"word {word}", f"ending {word[-3:]}", f"word {word} {before}", f"word {word} {before_2} {before}"),
        *(f"before {before}", f"before_2 {before_2}", f"after {after}", f"after_2 {after_2}"),
        *(f"before -{before[-2:]}", f"before_2 -{before_2[-2:]}", f"after -{after[-2:]}", f"after_2 -{after_2[-2:]}"),
        *(f"before {before_2} {before}", f"after {after} {after_2}", f"around {before} {after}"),
        *(f"word {word} > {after}", f"around -{before[-2:]} -{after[-2:]}"),
    ]
    return [zlib.crc32(name.encode()) % BUCKETS for name in named]
