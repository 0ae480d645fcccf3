"""What every kind of language model provides: a training loss, and a plan of how its codes are decoded.

    LanguageModel                    decoder             generated
    TokenLM (causal.py)              autoregressive      one step after another
    MaskedLM (masked.py)             masked              all codes, in a few passes
    NextScaleLM (next_scale.py)      next_scale          one scale after another
    CoarseToFine                     coarse_to_fine      coarse labels step by step, then all codes in a few passes

`generate/decoding/dispatch.py` holds the table of decoders.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ...tokenize.spec import TokenSpec
from ..clustering.clustering import Clustering
from ..conditioning.registry import ConditionBatch, Conditioner
from ..config import LMConfig
from ..ops.loss import LossParts, LossReport
from ..patterns.pattern import CodebookPattern
from ..patterns.text_stream import TextStream

DecoderName = Literal["autoregressive", "masked", "next_scale", "coarse_to_fine"]


@dataclass(frozen=True)
class DecodePlan:
    """How a model's codes are generated, and which requests it refuses."""

    decoder: DecoderName
    in_order: bool = False
    """Frames become final one after another: audio can be streamed, and continued beyond the window."""
    refused: tuple[str, ...] = ()
    """Generation settings that do not apply to the decoder."""
    why: str = ""
    """Why they do not apply, for messages: "a masked model fills codes in whole passes"."""
    fixed_length: bool = False
    """The number of frames must be known in advance."""
    incomplete: str = ""
    """What the model lacks to generate codes by itself, for messages; "": nothing."""


class LanguageModel(nn.Module):
    """A language model of any kind."""

    spec: TokenSpec
    """Of the predicted codes."""
    config: LMConfig
    """Its conditions are those of the whole model."""
    arrangement: CodebookPattern
    """The codebook pattern, which determines the sequence length."""
    conditions: Conditioner
    """The condition inputs."""
    text_stream: TextStream | None = None
    """The text channel beside the codebooks, which is channel 0 of its codes; None: there is none."""
    clustering: Clustering | None = None
    """The mapping from codes to the coarse labels that the model is conditioned on; None: there are none."""
    decode_plan: DecodePlan
    """How codes are generated."""

    @property
    def stages(self) -> tuple[LanguageModel, ...]:
        """The networks that generate one after another, each with its own weights: usually the model itself."""
        return (self,)

    @property
    def num_codebooks(self) -> int:
        """K of the codes that it reads and predicts; with a text stream that of `spec` and one."""
        return self.arrangement.num_codebooks

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        packed = sum(getattr(module, "num_packed", 0) for module in self.modules())
        return packed + sum(parameter.numel() for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    def check_conditions(self, batch: ConditionBatch, num_rows: int | None = None) -> None:
        """Raise ValueError unless the batch has exactly the model's conditions, in range, for num_rows rows (None: any
        number). Ids are range-checked on the CPU only: on other devices the check would synchronize."""
        self.conditions.check(batch, num_rows)

    @property
    def loss_parts(self) -> LossParts:
        """The parts for which the loss is reported."""
        further = () if self.conditions.aligned is None else ("advance",)
        leading = () if self.text_stream is None else ("text",)
        return LossParts("codebook", (1 / self.num_codebooks,) * self.num_codebooks, further, leading)

    def loss(
        self,
        codes: Tensor,
        lengths: Tensor | None = None,
        conditions: ConditionBatch | None = None,
        label_smoothing: float = 0.0,
        side: int = 1,
    ) -> LossReport:
        """The training loss.

        Args:
            codes: [B, K, T] long.
            lengths: [B] long, frames of each row; None: all T.
            conditions: for B rows; None only if the model has no conditions.
            side: above 1, squares of side x side frames are predicted at once (next_patch.py).
        Raises:
            ValueError: codes, lengths or conditions do not fit the model; the message names which.
        """
        raise NotImplementedError
