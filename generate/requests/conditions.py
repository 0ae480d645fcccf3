"""Condition inputs of a call, one entry for all samples or a list, converted to a ConditionBatch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ...lm.conditioning.dual_track import Track, track_fields
from ...lm.conditioning.registry import ConditionBatch
from ...lm.models.base import LanguageModel
from ...lm.patterns.text_stream import Turn

ARGUMENT_NAMES = {
    **{"label": "label", "text": "text", "embedding": "embedding", "codes": "voice", "aligned": "text"},
    **{"melody": "melody", "description": "description", "dual_track": "text", "language": "language"},
}
"""Kinds of conditions (and what is turned into one) and the argument names used for them."""


@dataclass(frozen=True)
class ConditionInputs:
    """For each kind of condition, one entry for all samples, a list, or None."""

    label: int | Sequence[int] | None = None
    """Label ids."""
    text_ids: Sequence[int] | Sequence[Sequence[int]] | None = None
    """Token ids of each text, or of its units for a model with an aligned text."""
    embedding: Tensor | Sequence[Tensor] | None = None
    """Floating point [L, width] each, or one tensor [B, L, width]."""
    voice: Tensor | Sequence[Tensor] | None = None
    """Reference codes, long [K, L] each, or one tensor [B, K, L]."""
    melody: Tensor | Sequence[Tensor] | None = None
    """Pitch classes, floating point [L, bins] each, or one tensor [B, L, bins]."""
    turns: Sequence[Turn] = ()
    """Earlier turns of a conversation, the same before all samples: text ids and codes [K, T] each."""
    tracks: Track | Sequence[Track] | None = None
    """Texts with what they need beside them, for a model with two tracks."""

    def rows(self, lm: LanguageModel, n: int) -> tuple[ConditionBatch, int]:
        """Conditions of n consecutive rows per entry, and the number of rows.

        Raises:
            ValueError: lists of unequal lengths, a condition that the model lacks, a missing condition that it was
                never trained without, or an invalid value.
        """
        lists = {
            "label": _as_list(self.label, isinstance(self.label, Sequence)),
            "text": _as_list(self.text_ids, _is_nested(self.text_ids)),
            "embedding": _as_list(self.embedding, not _is_matrix(self.embedding)),
            "codes": _as_list(self.voice, not _is_matrix(self.voice)),
            "aligned": None,
            "melody": _as_list(self.melody, not _is_matrix(self.melody)),
            "dual_track": _as_list(self.tracks, isinstance(self.tracks, Sequence)),
        }
        if lm.conditions.aligned is not None:
            lists |= {"text": None, "aligned": lists["text"]}
        count = _common_length(lists)
        if lm.text_stream is not None:
            lists["text"] = None  # it is part of the sequences: see `texts`
        repeated = {
            kind: None if given is None else [one for one in given * (count // len(given)) for _ in range(n)]
            for kind, given in lists.items()
        }
        for condition in lm.config.conditions:
            if condition.dropout == 0 and repeated[condition.kind] is None:
                raise ValueError(
                    f"the model was never trained without a {ARGUMENT_NAMES[condition.kind]} (dropout 0), but none "
                    "was given; give one"
                )
        melodies, tracks = repeated.pop("melody"), repeated.pop("dual_track")
        made = ConditionBatch.make(*repeated.values(), melodies=melodies)
        if tracks is not None:
            made = replace(made, **track_fields(tracks))
        batch = lm.conditions.with_nulls(made, count * n)
        lm.check_conditions(batch, count * n)  # all tensors are still on the CPU
        return batch, count * n

    def texts(self, num_rows: int) -> list[Sequence[int]]:
        """The text of each row; ValueError if there is none."""
        texts = _as_list(self.text_ids, _is_nested(self.text_ids))
        if not texts:
            raise ValueError("the model speaks a text, but none was given; give one")
        return [text for text in texts for _ in range(num_rows // len(texts))]


def _as_list(given: Any, is_list: bool) -> list | None:
    return None if given is None else list(given) if is_list else [given]


def _is_nested(text_ids: Sequence | None) -> bool:
    return text_ids is not None and len(text_ids) > 0 and isinstance(text_ids[0], Sequence)


def _is_matrix(given: Tensor | Sequence[Tensor] | None) -> bool:
    return isinstance(given, Tensor) and given.dim() < 3


def _common_length(lists: dict[str, list | None]) -> int:
    """Length of the longest list, 1 if there is none; ValueError unless every list has this length or length 1."""
    lengths = {kind: len(given) for kind, given in lists.items() if given is not None}
    for kind, length in lengths.items():
        if not length:
            raise ValueError(f"the list of {ARGUMENT_NAMES[kind]}s is empty; give at least one")
    several = {kind: length for kind, length in lengths.items() if length > 1}
    if len(set(several.values())) > 1:
        found = " but ".join(f"{length} {ARGUMENT_NAMES[kind]}s" for kind, length in several.items())
        raise ValueError(f"{found}; give as many, or one of either for all")
    return max(several.values(), default=1)
