"""Text statistics of a corpus: text length and frames per character, used to split longer text into chunks, and the
characters seen, used to warn about others."""

from __future__ import annotations

import numpy as np

from ...lm.generation_config import GenerationConfig
from ...tokenize.text.base import TextTokenizer
from ...tokenize.text.coverage import seen_in
from .dataset import CodesDataset

TAIL = 0.005
"""Fraction of the items ignored at each end: wrong transcripts, and lengths the model rarely saw."""
MARGIN = 1.5
"""Factor by which speech may be faster or slower than the whole corpus before it counts as failed."""


def text_limits(items: CodesDataset, text: TextTokenizer) -> GenerationConfig:
    """`text_characters` and `frames_per_character` of the texts and lengths of training items.

    Args:
        text: the model's text tokenizer; characters are counted as it reads them.
    Returns:
        defaults with these two set, or with neither if no item has a text.
    """
    texts = items.shards.texts()
    sizes = np.array([text.num_characters(texts[number] or "") for number in items.numbers])
    spoken = sizes > 0
    if not spoken.any():
        return GenerationConfig()
    rates = items.frames[spoken] / sizes[spoken]
    return GenerationConfig(
        text_characters=int(np.quantile(sizes[spoken], 1 - TAIL, method="higher")),
        frames_per_character=(
            round(float(np.quantile(rates, TAIL, method="lower")) / MARGIN, 3),
            round(float(np.quantile(rates, 1 - TAIL, method="higher")) * MARGIN, 3),
        ),
    )


def text_made_of(items: CodesDataset, text: TextTokenizer) -> GenerationConfig:
    """`text_seen` of the texts of training items."""
    texts = items.shards.texts()
    return GenerationConfig(text_seen=seen_in((texts[number] or "" for number in items.numbers), text))


def with_limits(defaults: GenerationConfig, limits: GenerationConfig) -> GenerationConfig:
    """`defaults`, with unset limits filled in from `limits`."""
    names = ("text_characters", "frames_per_character", "text_seen")
    return defaults.model_copy(
        update={name: getattr(limits, name) for name in names if getattr(defaults, name) is None}
    )
