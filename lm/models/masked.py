"""MaskedLM: a bidirectional transformer that predicts all masked codes at once.

One input sequence (label as prefix, 2 codebooks, some codes known; m = masked, c = coarse label):

    position   -1   0   1   2   3        every position attends to every other
    input       L  a0   m   m  a3
                    m  b1   m   m
                   c0  c1  c2  c3        with clusters: the coarse labels of all cells are inputs too
    predicts        .  a1  a2   .
                   b0   .  b2  b3

With a `bits` head a code consists of several sub-tokens, each masked and predicted separately (MaskBit,
arXiv:2409.16211): J per frame, embedded by the known bits.

With clusters it is the refiner of a coarse-to-fine model (arXiv:2503.16194): a TokenLM predicts the coarse labels, and
this model the codes. Without clusters it generates codes from scratch in a few passes (MaskGIT, arXiv:2202.04200).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor

from ...configs.schema import ConfigError
from ...tokenize.spec import TokenSpec
from ..clustering.clustering import Clustering
from ..conditioning.registry import ConditionBatch
from ..config import LMConfig
from ..layers.input_embedding import INPUTS, BitsInput
from ..layers.transformer import initialize_
from ..ops.loss import IGNORED, LossReport, cross_entropy, report_loss
from ..patterns.pattern import CodebookPattern, ParallelConfig, SpecialsConfig
from .base import DecodePlan
from .mask_schedule import MaskingConfig, SampledMask, fixed_numbers, random_numbers, sample_mask
from .transformer_lm import TransformerLM


class MaskedConfig(LMConfig):
    """A masked language model, or the refiner of a coarse-to-fine model."""

    kind: Literal["masked"] = "masked"  # pyright: ignore[reportIncompatibleVariableOverride]
    masking: MaskingConfig = MaskingConfig()
    """How codes are masked in training."""
    candidates: Literal["cluster", "codebook"] = "cluster"
    """For a refiner. cluster: codes of the cell's coarse label. codebook: all, so that it can fix a wrong label."""

    @model_validator(mode="after")
    def _check_masked(self) -> MaskedConfig:
        if self.variable_length or self.arrangement != ParallelConfig() or self.specials != SpecialsConfig():
            raise ValueError(
                "a masked model fills a fixed number of frames in place; leave "
                "variable_length, arrangement and specials out"
            )
        if self.window is not None or self.ahead is not None or self.start != "token":
            raise ValueError("a masked model does not decode in order; leave window, ahead and start out")
        if self.head.kind not in ("parallel", "bits"):
            raise ValueError(
                f"a masked model predicts all codes at once, head '{self.head.kind}' does not; use parallel or bits"
            )
        if self.head.kind == "bits" and self.input.kind != "bits":
            raise ValueError(
                f"a masked model with head 'bits' reads codes bit by bit, input '{self.input.kind}' cannot; use "
                "input: {kind: bits}"
            )
        return self


PLAN = DecodePlan(
    "masked", refused=("cache", "draft"), why="a masked model does not decode step by step", fixed_length=True
)
NO_LABELS = (
    "this model refines coarse labels and has no model that generates them; export it with that model "
    "(export.coarse_model in its config)"
)


class MaskedLM(TransformerLM):
    """A masked model of one tokenizer's codes: it is bidirectional and has no steps.

    Args:
        config, spec, code_vectors: as for TransformerLM.
        clustering: for a refiner, of the same tokenizer.
    Raises:
        ValueError: the clusters are of another tokenizer; and as TransformerLM.
    """

    config: MaskedConfig
    clusters: Tensor

    def __init__(
        self,
        config: MaskedConfig,
        spec: TokenSpec,
        code_vectors: Tensor | None = None,
        clustering: Clustering | None = None,
    ):
        super().__init__(config, spec, code_vectors)
        self.clustering = clustering
        self.coarse_input = None
        if clustering is not None:
            if config.head.kind != "parallel":
                raise ConfigError(
                    f"clusters group whole codes, but head '{config.head.kind}' predicts parts of codes; leave "
                    "clusters out"
                )
            clustering.check(spec)
            arrangement = CodebookPattern(ParallelConfig(), clustering.clusters)
            centers = None if code_vectors is None else clustering.centers(code_vectors.detach().cpu())
            self.coarse_input = INPUTS[config.input.kind](config.input, arrangement, config.width, centers)
            self.register_buffer("clusters", clustering.labels, persistent=False)
            initialize_(self.coarse_input, config.width, config.layers)

    @property
    def decode_plan(self) -> DecodePlan:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How codes are generated: a refiner cannot begin without coarse labels."""
        return PLAN if self.clustering is None else replace(PLAN, incomplete=NO_LABELS)

    def forward(
        self,
        codes: Tensor,
        mask: Tensor,
        lengths: Tensor | None = None,
        conditions: ConditionBatch | None = None,
        coarse: Tensor | None = None,
    ) -> Tensor:
        """Compute the logits of every code given the unmasked codes.

        Args:
            codes: [B, K, T] long; masked codes and codes beyond a row's length are ignored.
            mask: [B, J, T] bool, True where a sub-token of the head is masked; J = K unless the head is `bits`.
            lengths: [B] long, frames of each row; None: all T. A row's logits depend neither on codes beyond its length
                nor on other rows.
            conditions: for B rows; None only if the model has no conditions.
            coarse: [B, K, T] long, the coarse labels, for a refiner.
        Returns:
            [B, J, T, V'], -inf for values outside a sub-token's range and, with candidates "cluster", for the codes of
            other clusters.
        Raises:
            ValueError: codes, lengths, conditions or labels do not fit the model; the message names which.
        """
        given = lengths
        whole = mask.unflatten(1, (self.num_codebooks, -1)).all(dim=2)
        lengths = self.arrangement.check(codes.masked_fill(whole, 0), lengths)
        batch = conditions or ConditionBatch()
        self.conditions.check(batch, codes.shape[0])
        joined = self.conditions(batch)
        steps = torch.arange(codes.shape[2], device=codes.device)
        inside = None if given is None else steps < lengths[:, None]
        ids = self._with_specials(codes, whole, inside)
        read = self.input(ids, mask) if isinstance(self.input, BitsInput) else self.input(ids)
        x = self.add_conditions(read, joined.summed, None)
        if self.coarse_input is not None:
            x = x + self.coarse_input(self._checked_labels(coarse, codes, inside))
        P, seen = 0, inside
        if joined.prefix is not None:
            P = joined.prefix.shape[1]
            x = torch.cat([joined.prefix.to(x.dtype), x], dim=1)
            if joined.prefix_mask is not None or inside is not None:
                ones = torch.ones(codes.shape[0], 1, dtype=torch.bool, device=codes.device)
                prefix = ones.expand(-1, P) if joined.prefix_mask is None else joined.prefix_mask
                seen = torch.cat([prefix, ones.expand(-1, len(steps)) if inside is None else inside], dim=1)
        x = self.positions.add(x, steps, P, joined.prefix_mask)
        table = self.positions.table(steps, None, P, joined.prefix_mask)
        memory = self.cross_attention_memory(joined)
        attended = None if seen is None else seen[:, None, None, :]
        hidden = self.transformer(self.dropout(x), table, mask=attended, memory=memory)
        logits_BKTV = self.head(hidden[:, P:], None).transpose(1, 2)
        if self.coarse_input is not None and self.config.candidates == "cluster":
            assert coarse is not None
            other = self.clusters[:, None, : logits_BKTV.shape[-1]] != coarse.unsqueeze(-1)
            logits_BKTV = logits_BKTV.masked_fill(other, float("-inf"))
        return logits_BKTV

    def loss(
        self,
        codes: Tensor,
        lengths: Tensor | None = None,
        conditions: ConditionBatch | None = None,
        label_smoothing: float = 0.0,
        side: int = 1,
    ) -> LossReport:
        """Cross-entropy of masked codes, weighted so that each row counts all its codes (see mask_schedule.py).

        In training mode torch's global generator chooses the mask, in eval mode the codes themselves seed it. A refiner
        is conditioned on the true coarse labels. Arguments and errors as for `TokenLM.forward`.
        """
        assert side == 1, "a masked model reads single frames (TrainConfig checks it)"
        known = self.arrangement.check(codes, lengths)
        masked = self.sample_mask(codes, known)
        coarse = None if self.clustering is None else self.clustering.coarse(codes)
        logits = self(codes, masked.mask, lengths, conditions, coarse)
        sub_tokens = self.head.sub_tokens
        targets = torch.where(masked.mask, sub_tokens.split(codes), IGNORED).transpose(1, 2)
        terms = sub_tokens.sum(cross_entropy(logits.transpose(1, 2), targets, label_smoothing).transpose(1, 2))
        inside = torch.arange(codes.shape[2], device=codes.device) < known[:, None, None]
        return report_loss(terms * masked.weight[:, None, None], inside.expand_as(codes), self.loss_weights)

    def sample_mask(self, codes: Tensor, lengths: Tensor) -> SampledMask:
        """The mask that `loss` uses for codes [B, K, T] with lengths [B]: over their sub-tokens [B, J, T]."""
        sub_tokens = self.head.sub_tokens.split(codes)
        numbers = random_numbers(sub_tokens) if self.training else fixed_numbers(sub_tokens, lengths)
        return sample_mask(self.config.masking, lengths, *numbers)

    # Private

    def _with_specials(self, codes: Tensor, mask: Tensor, inside: Tensor | None) -> Tensor:
        """Codes with the `start` id where masked and the `pad` id beyond a row's length."""
        starts, pads = (
            torch.tensor(ids, device=codes.device)[:, None]
            for ids in (self.arrangement.start_ids, self.arrangement.pad_ids)
        )
        ids = torch.where(mask, starts, codes)
        return ids if inside is None else torch.where(inside.unsqueeze(1), ids, pads)

    def _checked_labels(self, coarse: Tensor | None, codes: Tensor, inside: Tensor | None) -> Tensor:
        if coarse is None or coarse.shape != codes.shape or coarse.dtype != torch.long:
            found = "nothing" if coarse is None else f"{coarse.dtype} {list(coarse.shape)}"
            raise ValueError(f"coarse labels for a refiner must be long {list(codes.shape)}, found {found}")
        return coarse if inside is None else coarse.masked_fill(~inside.unsqueeze(1), 0)
