"""The units and durations of training items, for the condition `aligned`."""

from __future__ import annotations

from collections.abc import Sequence

from ...lm.conditioning.registry import ConditionConfig
from ...tokenize.alignment.alignment import Alignment
from ...tokenize.text.base import TextTokenizer
from ...tokenize.text.units import UnitText


class AlignedText:
    """Alignments as ids of units and their frames.

    Args:
        reader: the model's text tokenizer.
        max_advance: as in the condition's config.
    """

    def __init__(self, reader: UnitText, max_advance: int):
        self.reader, self.max_advance = reader, max_advance

    @classmethod
    def of(cls, conditions: Sequence[ConditionConfig], text: TextTokenizer | None) -> AlignedText | None:
        """For a model with these conditions and this text tokenizer; None if its text is not aligned."""
        config = next((one for one in conditions if one.kind == "aligned"), None)
        if config is None:
            return None
        assert isinstance(text, UnitText)
        return cls(text, config.max_advance)

    def __call__(self, alignment: Alignment | None) -> tuple[list[int], list[int]]:
        """(ids, frames) of the units of an item; a pause before the first frame is left out.

        Raises:
            ValueError: no alignment, a unit that the text tokenizer does not have, or more units without frames in
                succession than the pointer can pass.
        """
        if alignment is None:
            raise ValueError("no alignment")
        ids, frames = self.reader.encode_units(alignment.units), list(alignment.frames)
        first = next(place for place, count in enumerate(frames) if count)
        ids, frames = ids[first:], frames[first:]
        spoken = [place for place, count in enumerate(frames) if count]
        longest = max(then - now for now, then in zip(spoken, [*spoken[1:], len(frames)], strict=True))
        if longest > self.max_advance:
            raise ValueError(f"an advance of {longest} units, max_advance is {self.max_advance}")
        return ids, frames
