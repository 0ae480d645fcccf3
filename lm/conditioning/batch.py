"""The conditions of a batch: one tensor per kind, with lengths if rows differ in length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

LENGTH_AXES = {"text": 1, "embedding": 1, "codes": 2, "aligned": 1, "melody": 1, "dual_track": 2}
"""Kinds whose rows differ in length, and the length axis. They are right-padded, with lengths in `KIND_lengths`."""
KINDS = ("label", *LENGTH_AXES)


@dataclass(frozen=True)
class ConditionBatch:
    """The conditions of B rows. Conditions that the model does not have stay None."""

    label: Tensor | None = None
    """[B] long, -1 for none."""
    text: Tensor | None = None
    """[B, L] long text ids, right-padded; the values in the padding are ignored."""
    text_lengths: Tensor | None = None
    """[B] long, 0 for no text."""
    embedding: Tensor | None = None
    """[B, L, width] float, right-padded; the values in the padding are ignored."""
    embedding_lengths: Tensor | None = None
    """[B] long, 0 for no vectors."""
    codes: Tensor | None = None
    """[B, K, L] long codes of a prompt, right-padded; the values in the padding are ignored."""
    codes_lengths: Tensor | None = None
    """[B] long frames, 0 for no prompt."""
    melody: Tensor | None = None
    """[B, L, bins] float, one-hot pitch classes of frames, right-padded; the values in the padding are ignored."""
    melody_lengths: Tensor | None = None
    """[B] long, 0 for no melody."""
    aligned: Tensor | None = None
    """[B, L] long ids of the units of an aligned text, right-padded; the values in the padding are ignored."""
    aligned_lengths: Tensor | None = None
    """[B] long, 0 for no text."""
    aligned_frames: Tensor | None = None
    """[B, L] long: frames that each unit lasts; None: generation samples them."""
    dual_track: Tensor | None = None
    """[B, K + 1, L] long, positions of a text and codes before the frames, right-padded (dual_track.py)."""
    dual_track_lengths: Tensor | None = None
    """[B] long, at least 1."""
    beside: Tensor | None = None
    """[B, L] long text ids beside the frames, right-padded; the values in the padding are ignored."""
    beside_lengths: Tensor | None = None
    """[B] long."""
    speaker: Tensor | None = None
    """[B, D] float, the vector of each row's speaker; read where `dual_track` says."""
    given: Tensor | None = None
    """[B] long: leading positions of each sequence of text and audio that are given, and not predicted."""

    @classmethod
    def make(
        cls,
        labels: Sequence[int | None] | None = None,
        texts: Sequence[Sequence[int] | None] | None = None,
        embeddings: Sequence[Tensor | None] | None = None,
        codes: Sequence[Tensor | None] | None = None,
        aligned: Sequence[Sequence[int] | None] | None = None,
        frames: Sequence[Sequence[int]] | None = None,
        melodies: Sequence[Tensor | None] | None = None,
    ) -> ConditionBatch:
        """Build a batch from lists; None in a list is a row without that condition.

        Args:
            embeddings: floating point [L, width] each, not all None.
            codes: of a prompt, long [K, L] each, not all None.
            aligned: ids of the units of aligned texts. frames: how many frames each unit lasts.
            melodies: floating point [L, bins] each, not all None.
        Raises:
            ValueError: an empty text, embedding or prompt, or lists of different lengths.
        """
        given = {
            "labels": labels,
            "texts": texts,
            "embeddings": embeddings,
            "prompts of codes": codes,
            "aligned texts": aligned,
            "melodies": melodies,
        }
        counts = {name: len(entries) for name, entries in given.items() if entries is not None}
        if len(set(counts.values())) > 1:
            found = " but ".join(f"{count} {name}" for name, count in counts.items())
            raise ValueError(f"{found}; give one of each for every row, None for a row without")
        made = {}
        if labels is not None:
            made["label"] = torch.tensor([-1 if entry is None else entry for entry in labels], dtype=torch.long)
        for kind, lists in (("text", texts), ("aligned", aligned)):
            if lists is not None:
                for row, ids in enumerate(lists):
                    if ids is not None and len(ids) == 0:
                        raise ValueError(
                            f"text {row} is empty; give at least one token, or None for a row without text"
                        )
                made |= _padded(kind, [_long(ids) for ids in lists], _long([0]))
        if embeddings is not None:
            one = _check_rows(embeddings, 0, "embeddings must be [L, width], all of the same width")
            made |= _padded("embedding", embeddings, one[:1])
        if melodies is not None:
            one = _check_rows(melodies, 0, "melodies must be [L, bins], all of the same bins")
            made |= _padded("melody", melodies, one[:1])
        if codes is not None:
            one = _check_rows(codes, 1, "prompts of codes must be [K, L], all with the same K")
            made |= _padded("codes", codes, one[:, :1])
        if frames is not None:
            if aligned is None or [len(ids or ()) for ids in aligned] != [len(row) for row in frames]:
                raise ValueError("frames must hold one number for each unit of the aligned texts")
            made["aligned_frames"] = _padded("aligned", [_long(row) for row in frames], _long([0]))["aligned"]
        return cls(**made)

    @property
    def num_rows(self) -> int | None:
        """B; None if there is no condition at all."""
        for tensor in vars(self).values():
            if tensor is not None:
                return tensor.shape[0]
        return None

    def to(self, device: torch.device | str) -> ConditionBatch:
        """The batch on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def rows(self, index: Tensor | slice) -> ConditionBatch:
        """The selected rows."""
        return self._each(lambda tensor: tensor[index])

    def trimmed(self) -> ConditionBatch:
        """The same rows without common padding, but with a length of at least 1."""
        shorter = {}
        for kind, axis in LENGTH_AXES.items():
            tensor, lengths = getattr(self, kind), getattr(self, f"{kind}_lengths")
            if tensor is not None and lengths is not None and tensor.shape[axis] > 1:
                shorter[kind] = tensor.narrow(axis, 0, max(1, int(lengths.max())))
        if self.aligned_frames is not None and "aligned" in shorter:
            shorter["aligned_frames"] = self.aligned_frames[:, : shorter["aligned"].shape[1]]
        return replace(self, **shorter)

    def null(self, keep: Sequence[str] = ()) -> ConditionBatch:
        """The same number of rows with only the kinds in `keep`, all other conditions null."""
        nulls = {}
        if self.label is not None and "label" not in keep:
            nulls["label"] = torch.full_like(self.label, -1)
        for kind in LENGTH_AXES:
            lengths = getattr(self, f"{kind}_lengths")
            if lengths is not None and kind not in keep:
                nulls[f"{kind}_lengths"] = torch.zeros_like(lengths)
        return replace(self, **nulls)

    def followed_by(self, other: ConditionBatch) -> ConditionBatch:
        """The rows of both (texts padded to the same length), for guidance those of a batch and its nulls."""
        joined = {}
        for name in (field.name for field in fields(self)):
            first, second = getattr(self, name), getattr(other, name)
            if (first is None) != (second is None):
                raise ValueError(f"only one of the batches has '{name}'")
            joined[name] = None if first is None else torch.cat([first, second])
        return ConditionBatch(**joined)

    def _each(self, change) -> ConditionBatch:
        return ConditionBatch(**{name: None if value is None else change(value) for name, value in vars(self).items()})


def _long(ids: Sequence[int] | None) -> Tensor:
    return torch.tensor(list(ids or ()), dtype=torch.long)


def _check_rows(rows: Sequence[Tensor | None], axis: int, what: str) -> Tensor:
    """An example row; ValueError unless all rows are nonempty matrices that agree except for the length of an axis."""
    given = [row for row in rows if row is not None]
    if not given or any(
        row.dim() != 2 or row.numel() == 0 or row.shape[1 - axis] != given[0].shape[1 - axis] for row in given
    ):
        found = [None if row is None else list(row.shape) for row in rows]
        raise ValueError(f"{what}, at least one of them not empty, found {found}")
    return given[0]


def _padded(kind: str, rows: Sequence[Tensor | None], one: Tensor) -> dict[str, Tensor]:
    """A kind's tensor and lengths [B] for B rows, None for a row without it; `one` has length 1 and gives the shape."""
    axis = LENGTH_AXES[kind] - 1
    lengths = [0 if row is None else row.shape[axis] for row in rows]
    shape = list(one.shape)
    shape[axis] = max(1, *lengths)
    tensor = one.new_zeros(len(rows), *shape)
    for place, row, length in zip(tensor, rows, lengths, strict=True):
        if row is not None:
            place.narrow(axis, 0, length).copy_(row)
    return {kind: tensor, f"{kind}_lengths": torch.tensor(lengths)}
