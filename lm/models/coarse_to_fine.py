"""CoarseToFine: a language model of coarse labels and a refiner, combined into one model of the codes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...configs.schema import ConfigError
from ...tokenize.spec import TokenSpec, check_same_tokenizer
from ..clustering.clustering import Clustering
from ..conditioning.registry import ConditionBatch, Conditioner
from ..config import LMConfig
from ..ops.loss import LossParts, LossReport
from ..patterns.pattern import CodebookPattern
from .base import DecodePlan, LanguageModel
from .causal import TokenLM
from .masked import MaskedLM


class CoarseToFine(LanguageModel):
    """p(codes) = p(coarse labels) p(codes | coarse labels): the first factor by `coarse`, the second by `refiner`.

    Args:
        coarse: predicts the labels; its spec is that of the refiner's clustering.
        refiner: predicts codes from labels; it has the same conditions as `coarse`, or none.
    Raises:
        ConfigError: the refiner has no clusters, or different conditions. ValueError: the labels are of another
            clustering.
    """

    decode_plan = DecodePlan("coarse_to_fine")

    def __init__(self, coarse: LanguageModel, refiner: LanguageModel):
        super().__init__()
        if not isinstance(coarse, TokenLM):
            raise ConfigError("the model of the coarse labels must be causal; give one whose lm has kind causal")
        if coarse.text_stream is not None:
            raise ConfigError("the model of the coarse labels has a text_stream; a refiner reads codes alone")
        if not isinstance(refiner, MaskedLM) or refiner.clustering is None:
            raise ConfigError("the refiner reads no coarse labels: it was trained without clusters")
        check_same_tokenizer(coarse.spec, refiner.clustering.spec, "the language model of the coarse labels")
        kinds = [[condition.kind for condition in lm.config.conditions] for lm in (coarse, refiner)]
        if kinds[1] and sorted(kinds[0]) != sorted(kinds[1]):
            raise ConfigError(
                f"the language model of the coarse labels is conditioned on {', '.join(kinds[0]) or 'nothing'}, the "
                f"refiner on {', '.join(kinds[1])}; give the refiner the same conditions, or none"
            )
        self.coarse, self.refiner = coarse, refiner

    @property
    def stages(self) -> tuple[LanguageModel, ...]:
        """The coarse model and the refiner."""
        return self.coarse, self.refiner

    @property
    def clustering(self) -> Clustering:
        """The mapping from codes to labels."""
        assert self.refiner.clustering is not None
        return self.refiner.clustering

    @property
    def spec(self) -> TokenSpec:
        """The tokenizer's TokenSpec."""
        return self.refiner.spec

    @property
    def config(self) -> LMConfig:
        """The config of the first stage, whose conditions are those of the whole model."""
        return self.coarse.config

    @property
    def arrangement(self) -> CodebookPattern:
        """The codebook pattern of the first stage, which determines the sequence length."""
        return self.coarse.arrangement

    @property
    def loss_parts(self) -> LossParts:
        """The parts for which the loss is reported."""
        return self.refiner.loss_parts

    @property
    def conditions(self) -> Conditioner:
        """The conditions of the first stage."""
        return self.coarse.conditions

    def check_conditions(self, batch: ConditionBatch, num_rows: int | None = None) -> None:
        """Like `TokenLM.check_conditions`, for both stages."""
        self.refiner.check_conditions(self.for_refiner(batch), None)
        self.coarse.check_conditions(self.for_coarse(batch), num_rows)

    def for_coarse(self, conditions: ConditionBatch) -> ConditionBatch:
        """The conditions for the label model: prompt codes are replaced by their labels."""
        codes, lengths = conditions.codes, conditions.codes_lengths
        if codes is None or lengths is None:
            return conditions
        beyond = torch.arange(codes.shape[2], device=codes.device) >= lengths[:, None, None]
        return replace(conditions, codes=self.clustering.coarse(codes.masked_fill(beyond, 0)))

    def for_refiner(self, conditions: ConditionBatch) -> ConditionBatch:
        """The conditions for the refiner."""
        return conditions if self.refiner.config.conditions else ConditionBatch()

    def loss(
        self,
        codes: Tensor,
        lengths: Tensor | None = None,
        conditions: ConditionBatch | None = None,
        label_smoothing: float = 0.0,
        side: int = 1,
    ) -> LossReport:
        """Sum of both losses per code: nats of the label plus those of the code given the label (see `MaskedLM.loss`).

        Arguments and errors as for `TokenLM.forward`.
        """
        given = None if conditions is None else self.for_coarse(conditions)
        labels = self.coarse.loss(self.clustering.coarse(codes), lengths, given, label_smoothing, side)
        fine = self.refiner.loss(
            codes, lengths, self.for_refiner(conditions or ConditionBatch()), label_smoothing, side
        )
        per_codebook = fine.per_codebook + labels.per_codebook * labels.count / fine.count
        return LossReport((fine.weights * per_codebook).sum(), per_codebook, fine.count, fine.weights)
