"""How long the texts of a corpus are, and how many frames they take: by this a model says longer texts in pieces. And
what they are made of: by this it warns of others."""

from __future__ import annotations

import numpy as np

from ...lm.generation_config import GenerationConfig
from ...tokenize.text_coverage import seen_in
from ...tokenize.text_tokenizer import TextTokenizer
from .dataset import CodesDataset

TAIL = 0.005
"""Share of the items, at each end, that is not looked at: wrong transcripts, and lengths the model hardly ever saw."""
MARGIN = 1.5
"""By which a sound may be faster or slower than all of the corpus before it counts as gone wrong."""


def text_limits(items: CodesDataset, text: TextTokenizer) -> GenerationConfig:
    """`text_characters` and `frames_per_character` as found in the texts and lengths of training items.

    Args:
        text: how the model reads; characters are counted as it reads them.
    Returns:
        defaults with these two set, or with neither where no item has a text.
    """
    texts = items.shards.texts()
    sizes = np.array([text.num_characters(texts[number] or "") for number in items.numbers])
    said = sizes > 0
    if not said.any():
        return GenerationConfig()
    rates = items.lengths[said] / sizes[said]
    return GenerationConfig(
        text_characters=int(np.quantile(sizes[said], 1 - TAIL, method="higher")),
        frames_per_character=(
            round(float(np.quantile(rates, TAIL, method="lower")) / MARGIN, 3),
            round(float(np.quantile(rates, 1 - TAIL, method="higher")) * MARGIN, 3),
        ),
    )


def text_made_of(items: CodesDataset, text: TextTokenizer) -> GenerationConfig:
    """`text_seen` as found in the texts of training items."""
    texts = items.shards.texts()
    return GenerationConfig(text_seen=seen_in((texts[number] or "" for number in items.numbers), text))


def with_limits(defaults: GenerationConfig, limits: GenerationConfig) -> GenerationConfig:
    """`defaults` with the limits in the places that they leave open."""
    names = ("text_characters", "frames_per_character", "text_seen")
    return defaults.model_copy(
        update={name: getattr(limits, name) for name in names if getattr(defaults, name) is None}
    )
