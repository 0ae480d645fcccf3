"""Conditions: embedded as tokens and joined as a prefix, by cross-attention, as a sum, or by adaptive norms.

Each kind is a file and a line in `CONDITIONS`. Each has a null token for rows without it. In training a row's condition
is replaced by the null with probability `dropout`, as classifier-free guidance requires (arXiv:2207.12598).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from ...configs.schema import ConfigError
from ..layers.norm import RMSNorm
from .aligned import AlignedCondition, AlignedConditionConfig, AlignedUnits
from .base import ConditionContext
from .batch import KINDS, ConditionBatch
from .codes import CodesCondition, CodesConditionConfig
from .dual_track import DualTrackCondition, DualTrackConfig
from .embedding import EmbeddingCondition, EmbeddingConditionConfig
from .label import LabelCondition, LabelConfig
from .melody import MelodyCondition, MelodyConditionConfig
from .text import TextCondition, TextConditionConfig

ConditionConfig = Annotated[
    LabelConfig
    | TextConditionConfig
    | EmbeddingConditionConfig
    | CodesConditionConfig
    | AlignedConditionConfig
    | MelodyConditionConfig
    | DualTrackConfig,
    Field(discriminator="kind"),
]

CONDITIONS: dict[str, Any] = {
    "label": LabelCondition,
    "text": TextCondition,
    "embedding": EmbeddingCondition,
    "codes": CodesCondition,
    "aligned": AlignedCondition,
    "melody": MelodyCondition,
    "dual_track": DualTrackCondition,
}
"""Built as CONDITIONS[kind](config, context). `check(batch)` raises ValueError, calling it returns tokens [B, L, D] and
their mask [B, L] (None: all are real; `aligned` returns AlignedUnits instead, `dual_track` also what is added to the
steps), `none(B)` the fields of rows without it; `described` is its name in messages."""


@dataclass(frozen=True)
class FusedConditions:
    """The conditions of a batch, embedded for the model's input."""

    prefix: Tensor | None
    """[B, P, D] tokens before the first step."""
    prefix_mask: Tensor | None
    """[B, P] bool, True on real tokens; None: all are."""
    memory: Tensor | None
    """[B, L, D] tokens for cross-attention."""
    memory_mask: Tensor | None
    """[B, L] bool; None: all are real."""
    summed: Tensor | None
    """[B, 1, D] added to every step."""
    units: AlignedUnits | None = None
    """Added to each step as a pointer moves through them."""
    adaptive: Tensor | None = None
    """[B, D], read by adaptive norms."""
    beside: Tensor | None = None
    """[B, 1 + n, D] added to the steps: to step s that at s, from step n on the last."""


def beside_at(beside: Tensor, steps: Tensor) -> Tensor:
    """What is added to the inputs of the steps [S], [B, S, D] (FusedConditions.beside)."""
    return beside.index_select(1, steps.clamp(max=beside.shape[1] - 1))


class Conditioner(nn.Module):
    """All conditions of a model, in the order of the config."""

    def __init__(self, configs: Sequence[ConditionConfig], context: ConditionContext):
        super().__init__()
        kinds = [config.kind for config in configs]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise ConfigError(f"conditions: '{kind}' is listed {kinds.count(kind)} times; list each kind once")
        reading = [kind for kind in kinds if kind in ("text", "aligned", "dual_track")]
        if len(reading) > 1:
            raise ConfigError(f"conditions: '{reading[0]}' and '{reading[1]}' both read the text; keep one of them")
        self.configs = tuple(configs)
        self.parts = nn.ModuleDict({config.kind: CONDITIONS[config.kind](config, context) for config in configs})
        self.memory_norm = RMSNorm(context.width) if any(map(_reads_normed, configs)) else None

    def check(self, batch: ConditionBatch, num_rows: int | None) -> None:
        """Raise ValueError unless the batch has exactly the model's conditions, in range, for num_rows rows (None: any
        number)."""
        for kind in KINDS:
            found, described = getattr(batch, kind) is not None, CONDITIONS[kind].described
            if kind in self.parts and not found:
                none = "label -1" if kind == "label" else f"{kind}_lengths 0"
                raise ValueError(
                    f"the model is conditioned on {described}, but none was given; pass one ({none} for a row without)"
                )
            if found and kind not in self.parts:
                known = ", ".join(self.parts) or "nothing"
                raise ValueError(f"{described} was given, but the model is conditioned on {known}; leave it out")
        if batch.num_rows is not None and num_rows is not None and batch.num_rows != num_rows:
            raise ValueError(f"conditions have {batch.num_rows} rows, but {num_rows} rows were asked for")
        for part in self.parts.values():
            part.check(batch)  # type: ignore[operator]

    @property
    def aligned(self) -> AlignedCondition | None:
        """The condition `aligned`, which also predicts how its pointer advances; None: the model has none."""
        part = self.parts["aligned"] if "aligned" in self.parts else None
        assert part is None or isinstance(part, AlignedCondition)
        return part

    def with_nulls(self, batch: ConditionBatch, num_rows: int) -> ConditionBatch:
        """The batch with missing kinds added as num_rows null rows."""
        missing = {}
        for kind, part in self.parts.items():
            if getattr(batch, kind) is None:
                missing |= part.none(num_rows)  # type: ignore[operator]
        return replace(batch, **missing)

    def null(self, batch: ConditionBatch, keep: Sequence[str] = ()) -> ConditionBatch:
        """The rows of a batch with only the kinds in `keep`, for guidance beside those of the batch."""
        nulls = batch.null(keep)
        part = self.parts["embedding"] if "embedding" in self.parts else None
        if isinstance(part, EmbeddingCondition) and "embedding" not in keep:
            nulls = replace(nulls, **part.in_place_of(batch))
        return nulls

    def forward(self, batch: ConditionBatch) -> FusedConditions:
        """Embed the conditions of a checked batch; in training mode rows are randomly replaced by the null."""
        prefix: list[tuple[Tensor, Tensor | None]] = []
        memory: list[tuple[Tensor, Tensor | None]] = []
        summed = units = adaptive = beside = None
        for config in self.configs:
            if config.join == "step":
                units = self.parts[config.kind](batch)
                continue
            if config.join == "dual":
                *tokens, beside = self.parts[config.kind](batch)
                prefix.append((tokens[0], tokens[1]))
                continue
            tokens, mask = self.parts[config.kind](batch)
            if config.join == "prefix":
                prefix.append((tokens, mask))
            elif config.join == "cross":
                if self.memory_norm is not None and _reads_normed(config):
                    tokens = self.memory_norm(tokens)
                memory.append((tokens, mask))
            elif config.join == "adaptive":
                adaptive = tokens[:, 0]
            else:
                summed = tokens
        joined_prefix, prefix_mask = _concatenate(prefix)
        joined_memory, memory_mask = _concatenate(memory)
        return FusedConditions(joined_prefix, prefix_mask, joined_memory, memory_mask, summed, units, adaptive, beside)


def fill_sizes(
    configs: Sequence[ConditionConfig],
    classes: NonNegativeInt | None = None,
    vocab_size: NonNegativeInt | None = None,
    silent: Sequence[int] | None = None,
) -> tuple[ConditionConfig, ...]:
    """Fill in what the config leaves unset; ConfigError if the config and the data disagree.

    Args:
        silent: ids of the units without sound, for `aligned`.
    """
    from_data: dict[str, dict[str, Any]] = {
        "label": {"classes": classes},
        "text": {"vocab_size": vocab_size},
        "dual_track": {"vocab_size": vocab_size},
        "aligned": {"vocab_size": vocab_size, "silent": None if silent is None else tuple(sorted(silent))},
    }
    filled = []
    for config in configs:
        known = {name: size for name, size in from_data.get(config.kind, {}).items() if size is not None}
        for name, size in known.items():
            configured = getattr(config, name)
            if configured is not None and configured != size:
                raise ConfigError(
                    f"conditions: {config.kind}.{name} is {configured}, but the data has {size}; leave it out or "
                    f"set it to {size}"
                )
        filled.append(config.model_copy(update=known))
    return tuple(filled)


def _reads_normed(config: ConditionConfig) -> bool:
    """Whether cross-attention normalizes a condition's tokens."""
    return config.join == "cross" and getattr(config, "norm", "rms") == "rms"


def _concatenate(parts: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor | None, Tensor | None]:
    if not parts:
        return None, None
    tokens = torch.cat([part for part, _ in parts], dim=1) if len(parts) > 1 else parts[0][0]
    if all(mask is None for _, mask in parts):
        return tokens, None
    masks = [part.new_ones(part.shape[:2], dtype=torch.bool) if mask is None else mask for part, mask in parts]
    return tokens, torch.cat(masks, dim=1)
