"""Which caption of an item a training step reads.

    whole          the text as it is
    alternatives   one of several captions; of a list of keywords, some in any order

With `alternatives` a text lists captions, separated by "|", and a caption may list parts, separated by commas:

    red apple | a red apple | red apple, fruit, healthy

A step reads one of them; of a list of parts it reads a random subset, at least one, in random order. So a model reads
the words instead of recognizing the caption. The choice is a pure function of (seed, draw, item), where draw is the
step in training; in evaluation it is 0, and the first caption is read as it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ...configs.schema import Config
from .batch_sampler import mix

BETWEEN, PARTS = "|", ","


class WholeTextConfig(Config):
    """The text as it is."""

    kind: Literal["whole"] = "whole"


class AlternativesConfig(Config):
    """Captions separated by "|", of which each step reads one; of one with commas, some of its parts in any order."""

    kind: Literal["alternatives"] = "alternatives"
    part_share: float = Field(default=0.5, gt=0, le=1)
    """Probability that a part is read; at least one is."""


CaptionsConfig = Annotated[WholeTextConfig | AlternativesConfig, Field(discriminator="kind")]


@dataclass(frozen=True)
class CaptionReader:
    """Reads the captions of the items of a run."""

    config: CaptionsConfig
    seed: int = 0

    def __call__(self, text: str, draw: int, item: int, size: Callable[[str], int] = len) -> str:
        """The caption of an item's text that is read in step `draw`; 0: in evaluation.

        Args:
            size: how many characters of a text the model reads; captions and parts without any are left out ("-").
        """
        if isinstance(self.config, WholeTextConfig):
            return text

        def readable(texts: list[str]) -> list[str]:
            return [text.strip() for text in texts if text.strip() and size(text.strip())]

        captions = readable(text.split(BETWEEN)) or [text]
        if draw == 0:
            return captions[0]
        words = (self.seed, 7, draw, item)
        caption = captions[mix(*words, 0) % len(captions)]
        if PARTS not in caption:
            return caption
        parts = readable(caption.split(PARTS)) or [caption]
        order = sorted(range(len(parts)), key=lambda place: mix(*words, 1, place))
        limit = self.config.part_share * (1 << 32)
        kept = [place for place in order if mix(*words, 2, place) % (1 << 32) < limit] or order[:1]
        return ", ".join(parts[place] for place in kept)


WHOLE = CaptionReader(WholeTextConfig())
