"""The condition `aligned`: a text whose units (phonemes or characters) a pointer reads one after another.

    units     |  h  ə  l  ˈO  .  |        text encoder: E [L, D]
    vectors   W [E(u - 1), E(u), E(u + 1)]        for each unit u; a learned vector for the end

At each step the vector of the unit at the pointer and an embedding of the frames since the unit began are added to the
input. A linear layer on the step's hidden state predicts how many units the pointer advances before the next frame
(pointers.py); the sequence ends when it passes the last unit. So no word is skipped, repeated or invented.

Source: the monotonic pointer is that of VALL-T (arXiv:2401.14321), a transducer in a decoder-only codec model; VALL-R
(arXiv:2406.07855) and ELLA-V (arXiv:2401.07333) align phonemes and frames in the sequence itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from ...configs.schema import Config, ConfigError
from ...tokenize.text.registry import UnitTextConfig
from ..layers.embedding import Table
from ..ops.linear import Linear
from ..ops.loss import cross_entropy
from .base import ConditionContext
from .batch import ConditionBatch
from .encoder import Encoder
from .padding import check_lengths, drop_rows, initial_position_scale
from .pointers import Pointers, longest_advances, pointers_of


class AlignedConditionConfig(Config):
    """A text that a monotonic pointer reads unit by unit; shards must hold durations."""

    kind: Literal["aligned"] = "aligned"
    text: UnitTextConfig
    """The text tokenizer, which defines the units: phonemes or characters."""
    vocab_size: PositiveInt | None = None
    """Number of different units; null: filled in from the text tokenizer."""
    silent: tuple[NonNegativeInt, ...] | None = None
    """Ids of the units without sound (pauses and punctuation), which may be skipped; null: filled in from the text
    tokenizer."""
    join: Literal["step"] = "step"
    """Added to the input of each step."""
    layers: int = Field(default=3, ge=0, le=64)
    """Layers of the bidirectional transformer over the units, with the model's width; 0: embeddings and convolution
    only."""
    kernel: int = Field(default=5, ge=1, le=63)
    """Units that the convolution before these layers reads; odd."""
    max_advance: int = Field(default=3, ge=1, le=16)
    """Most units that the pointer advances per frame: skipped silent units, and the next one."""
    max_unit_frames: PositiveInt = 100
    """Frames since a unit began are told apart up to this number; generation advances from a unit that has lasted as
    long."""
    loss_weight: float = Field(default=1.0, gt=0, le=1000)
    """Weight of the loss of the advance, relative to the mean of the codebooks."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability of dropping the text of a training row; 0: no guidance later."""


@dataclass(frozen=True)
class AlignedUnits:
    """The encoded units of a batch: what the pointer reads."""

    vectors: Tensor
    """[B, L + 1, D]: the vector of each unit, and of the end after a row's last unit."""
    reach: Tensor
    """[B, L + 1] long: how far the pointer may advance from each unit (pointers.py); 0 at the end."""
    counts: Tensor
    """[B] long: units of each row, 0 without text."""
    present: Tensor
    """[B] bool: the row has a text, which was not dropped."""
    since: Tensor
    """[max_unit_frames + 1, D]: embedding of the frames since a unit began."""
    frames: Tensor | None
    """[B, L] long: how long each unit lasts; None: generation samples it."""

    def at(self, pointers: Pointers) -> Tensor:
        """[B, S, D] to be added to the input of the steps with these pointers [B, S]."""
        index = pointers.unit.unsqueeze(-1).expand(-1, -1, self.vectors.shape[2])
        since = F.embedding(pointers.since.clamp(max=len(self.since) - 1), self.since)
        return self.vectors.gather(1, index) + since * self.present[:, None, None]

    def pointers(self, num_frames: int) -> Pointers:
        """The pointers of frames 0 .. num_frames - 1, from the durations."""
        assert self.frames is not None, "AlignedCondition.check"
        return pointers_of(self.frames, self.counts, num_frames)

    def padded(self, length: int) -> AlignedUnits:
        """The same with L units."""
        missing = length - (self.vectors.shape[1] - 1)
        return replace(self, vectors=F.pad(self.vectors, (0, 0, 0, missing)), reach=F.pad(self.reach, (0, missing)))


class AlignedCondition(nn.Module):
    """Units [B, L] to vectors, and hidden states to the advance of the pointer."""

    described = "an aligned text"
    silent: Tensor

    def __init__(self, config: AlignedConditionConfig, context: ConditionContext):
        super().__init__()
        if config.vocab_size is None or config.silent is None:
            raise ConfigError("conditions: aligned.vocab_size and aligned.silent are those of the text tokenizer")
        if config.kernel % 2 == 0:
            raise ConfigError(f"conditions: aligned.kernel must be odd, found {config.kernel}; use {config.kernel + 1}")
        self.vocab_size, self.dropout, self.max_advance = config.vocab_size, config.dropout, config.max_advance
        self.max_unit_frames, self.loss_weight = config.max_unit_frames, config.loss_weight
        silent = torch.zeros(config.vocab_size, dtype=torch.bool, device="cpu")
        silent[list(config.silent)] = True
        self.register_buffer("silent", silent, persistent=False)
        D = context.width
        self.table = Table(config.vocab_size, D)
        self.convolution = nn.Conv1d(D, D, config.kernel, padding=config.kernel // 2)
        self.encoder = Encoder(D, context.heads, config.layers, context.rope_base) if config.layers else None
        self.neighbors = Linear(3 * D, D, bias=False)
        self.since = Table(config.max_unit_frames + 1, D)
        self.scale = nn.Parameter(initial_position_scale(D))
        self.end = nn.Parameter(torch.zeros(1, D))
        self.null = nn.Parameter(torch.zeros(1, D))
        self.advance = Linear(D, config.max_advance + 1)

    def check(self, batch: ConditionBatch) -> None:
        """ValueError: wrong shape or dtype of ids, lengths or durations, or values out of range."""
        units, lengths, frames = batch.aligned, batch.aligned_lengths, batch.aligned_frames
        assert units is not None
        if units.dim() != 2 or units.dtype != torch.long:
            raise ValueError(f"aligned units must be long [B, L], found {units.dtype} {list(units.shape)}")
        check_lengths("aligned_lengths", lengths, units.shape[0], units.shape[1], "units", "no text")
        assert lengths is not None
        if frames is not None and (frames.shape != units.shape or frames.dtype != torch.long):
            raise ValueError(
                f"aligned_frames must be long {list(units.shape)}, one for each unit, found {frames.dtype} "
                f"{list(frames.shape)}"
            )
        if units.device.type != "cpu":
            return
        inside = torch.arange(units.shape[1]) < lengths[:, None]
        wrong = units[inside & ((units < 0) | (units >= self.vocab_size))]
        if wrong.numel():
            raise ValueError(
                f"unit {int(wrong[0])} is not one of 0 to {self.vocab_size - 1}; encode with the model's text tokenizer"
            )
        if frames is not None:
            least = torch.where(self.silent.cpu()[units.masked_fill(~inside, 0)], 0, 1)
            if bool((inside & (frames < least)).any()):
                row, unit = (inside & (frames < least)).nonzero()[0].tolist()
                raise ValueError(
                    f"row {row}: unit {unit} lasts {int(frames[row, unit])} frames; a unit with sound needs at least 1"
                )

    def none(self, num_rows: int) -> dict[str, Tensor]:
        """The fields of rows without text."""
        zeros = torch.zeros(num_rows, 1, dtype=torch.long)
        return {"aligned": zeros, "aligned_lengths": zeros[:, 0]}

    def forward(self, batch: ConditionBatch) -> AlignedUnits:
        """Encode the units; in training mode the text of random rows is replaced by the null."""
        units, counts = batch.aligned, batch.aligned_lengths
        assert units is not None and counts is not None
        if units.shape[1] == 0:
            units = units.new_zeros(units.shape[0], 1)
        place = torch.arange(units.shape[1], device=units.device)
        units = torch.where(place < counts[:, None], units, 0)
        reach = longest_advances(self.silent[units], counts, self.max_advance)
        read = drop_rows(counts, self.dropout) if self.training and self.dropout else counts
        vectors = self._encode(units, place < read[:, None])
        ends = torch.where((read > 0)[:, None, None], self.end, self.null)
        vectors = torch.where((place < read[:, None]).unsqueeze(-1), vectors, ends.to(vectors.dtype))
        vectors = torch.cat([vectors, ends.to(vectors.dtype)], dim=1)
        return AlignedUnits(vectors, reach, counts, read > 0, self.since.weight, batch.aligned_frames)

    def _encode(self, units: Tensor, mask: Tensor) -> Tensor:
        """Vectors [B, L, D] of units [B, L], which depend neither on other rows nor on padding (mask False)."""
        real = mask.unsqueeze(-1)
        tokens = self.table(units).masked_fill(~real, 0.0)
        tokens = tokens + F.gelu(self.convolution(tokens.transpose(1, 2)).transpose(1, 2))
        if self.encoder is not None:
            tokens = self.encoder.read(tokens, mask | ~mask.any(dim=1, keepdim=True))  # a row that is all masked is NaN
        tokens = tokens.masked_fill(~real, 0.0)
        before, after = F.pad(tokens, (0, 0, 1, 0))[:, :-1], F.pad(tokens, (0, 0, 0, 1))[:, 1:]
        return self.neighbors(torch.cat([before, tokens, after], dim=2)) * self.scale

    def advance_logits(self, hidden: Tensor, reach: Tensor) -> Tensor:
        """Logits [*, max_advance + 1] of the advance from hidden states [*, D]; -inf beyond reach [*]."""
        logits = self.advance(hidden)
        beyond = torch.arange(logits.shape[-1], device=logits.device) > reach.unsqueeze(-1)
        return logits.masked_fill(beyond, float("-inf"))

    def advance_losses(self, hidden: Tensor, reach: Tensor, wanted: Tensor) -> Tensor:
        """Losses [*] float32, nats, of the advances wanted [*] (IGNORED: no loss); the others as `advance_logits`."""
        return cross_entropy(self.advance_logits(hidden, reach), wanted)
