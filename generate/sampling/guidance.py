"""Classifier-free guidance: which rows the model runs for each sample, and how their logits are combined.

The rows of a batch of B samples are ordered branch by branch:

    no guidance       [conditioned]                        l_c
    one condition     [conditioned, null]                  l_n + s (l_c - l_n)
    two conditions    [conditioned, kept, null]            l_n + s (l_k + beta (l_c - l_k) - l_n)

s is a function of the step and the codebook (kinds in lm/generation_config.py). The progress p is step / steps, where
`steps` belongs to the maximum audio length requested; for scales it is scale / (scales - 1), 1 at the last. Guidance
applies to logits, before the bias, penalty and filters of token_sampler.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...lm.conditioning.registry import ConditionBatch
from ...lm.guidance_config import (
    LARGEST,
    ConstantGuidance,
    CosineGuidance,
    Guidance,
    GuidanceConfig,
    IntervalGuidance,
    LinearGuidance,
)
from ...lm.models.base import LanguageModel
from ...lm.patterns.text_stream import Task, TextStream


class ClassifierFreeGuidance:
    """The guidance of one generation, on a device. `branches` is the number of rows the model runs for each sample."""

    def __init__(
        self,
        guidance: Guidance,
        lm: LanguageModel,
        num_steps: int,
        span: int | None = None,
        capacity: int = 0,
        task: Task | None = None,
    ):
        """Check the guidance against the model.

        Args:
            span: divisor of the step that gives the progress; None: num_steps.
            capacity: minimum number of steps in the table of scales.
            task: of a model with a text stream; what it speaks is dropped in the null branch.
        Raises:
            ValueError: names the setting, what was found and what to do.
        """
        config = as_config(guidance)
        self.stream = lm.text_stream if task == "speak" else None
        scales = make_scales(config, lm.num_codebooks, num_steps, span)
        plain, self.has_ones = bool((scales == 1).all()), bool((scales == 1).any())
        missing = scales[-1:].expand(max(0, capacity - num_steps), -1)
        self.scales = torch.cat([scales, missing]).to(lm.device)
        """[S, K], float64."""
        self.beta = config.two.beta if config.two else 1.0
        self.filter_top_k = config.filter_top_k
        self.keep = config.two.keep if config.two else ()
        self.of_model = lm.conditions
        if plain and self.beta == 1:
            self.branches = 1
        else:
            self.branches = 3 if config.two else 2
            _check_conditions(config, lm, self.stream)

    def parts(self) -> tuple:
        """All tensors and settings that determine the guidance."""
        speaks = self.stream is not None, "text" in self.keep
        return self.scales, self.branches, float(self.beta), self.filter_top_k, self.has_ones, speaks

    def conditions(self, batch: ConditionBatch) -> ConditionBatch:
        """Expand the conditions of B samples to all rows that the model runs."""
        if self.branches == 1:
            return batch
        null = self.of_model.null
        both = batch if self.branches == 2 else batch.followed_by(null(batch, self.keep))
        return both.followed_by(null(batch))

    def rows(self, ids: Tensor) -> Tensor:
        """Repeat the ids of B samples for all rows that the model runs."""
        return ids if self.branches == 1 else torch.cat([ids] * self.branches)

    def read(self, ids: Tensor) -> Tensor:
        """`rows` of ids [B, K, *] that the model reads: without the text of a text stream where it is dropped."""
        if self.branches == 1 or self.stream is None:
            return self.rows(ids)
        bare = self.stream.without_text(ids)
        kept = ids if "text" in self.keep else bare
        return torch.cat([ids, bare] if self.branches == 2 else [ids, kept, bare])

    def __call__(self, logits: Tensor, step: int | Tensor, books: Tensor) -> Tensor:
        """The combined logits, [B, n, V'].

        Args:
            logits: [branches, B, n, V'] of the sub-tokens of one stage of the head; -inf in all branches or in none.
            books: [n] long, the codebook of each sub-token.
        """
        conditioned = logits[0]
        if self.branches == 1:
            return conditioned
        step = torch.as_tensor(step, device=logits.device).reshape(1)
        s = self.scales.index_select(0, step).index_select(1, books).transpose(0, 1)
        null, wanted = logits[-1], conditioned
        if self.branches == 3:
            wanted = logits[1] + self.beta * (conditioned - logits[1])
        guided = null + s * (wanted - null)
        if self.has_ones:
            guided = torch.where(s == 1, wanted, guided)
        guided = torch.where(conditioned.isneginf(), conditioned, guided)  # -inf - -inf is NaN
        return filtered(conditioned, guided, self.filter_top_k) if self.filter_top_k else guided


def as_config(guidance: Guidance | GuidanceConfig | Sequence[float]) -> GuidanceConfig:
    """Convert one or several numbers to a constant guidance; ValueError: below 0, above 1e9, or NaN."""
    if isinstance(guidance, GuidanceConfig):
        return guidance
    values = list(guidance) if isinstance(guidance, Sequence) else [guidance]
    for value in values:
        if not 0 <= value <= LARGEST:
            raise ValueError(f"guidance must be at {'most 1e9' if value > 0 else 'least 0'}, found {value}")
    return ConstantGuidance(scale=tuple(map(float, values)) if isinstance(guidance, Sequence) else float(values[0]))


def make_scales(config: GuidanceConfig, num_codebooks: int, num_steps: int, span: int | None = None) -> Tensor:
    """The scale of each step and codebook, [S, K] float64; ValueError: the number of scales is not K."""
    scales = list(config.scale) if isinstance(config.scale, tuple) else [config.scale] * num_codebooks
    if len(scales) != num_codebooks:
        raise ValueError(
            f"guidance has {len(scales)} scales but the model has {num_codebooks} codebooks; "
            f"give one value or {num_codebooks}"
        )
    if not isinstance(config, IntervalGuidance | LinearGuidance | CosineGuidance):
        return torch.tensor(scales, dtype=torch.float64).expand(num_steps, -1)
    rows = [[_scale_at(config, scale, step / (span or num_steps)) for scale in scales] for step in range(num_steps)]
    return torch.tensor(rows, dtype=torch.float64)


def _scale_at(config: IntervalGuidance | LinearGuidance | CosineGuidance, scale: float, p: float) -> float:
    if isinstance(config, IntervalGuidance):
        return scale if config.start <= p < config.stop or p == config.stop == 1 else 1.0
    if isinstance(config, LinearGuidance):
        return config.first + (scale - config.first) * p
    return 1 + (scale - 1) * (1 - math.cos(math.pi * p**config.power)) / 2


def filtered(conditioned: Tensor, guided: Tensor, k: int) -> Tensor:
    """The conditioned logits [B, n, V'] of the k ids with the highest guided logits (more in case of ties), -inf for
    the others. Source: Dia (nari-labs/dia, Apache-2.0), decoder step."""
    least = guided.topk(min(k, guided.shape[-1]), dim=-1).values[..., -1:]
    return conditioned.masked_fill(guided < least, float("-inf"))


def _check_conditions(config: GuidanceConfig, lm: LanguageModel, spoken: TextStream | None) -> None:
    """`spoken`: the text stream, if the model speaks a given text."""
    name = "guidance" if config.two is None else "guidance with two conditions"
    what = f"{name} is {guidance_words(config)}"
    dropouts = {condition.kind: condition.dropout for condition in lm.config.conditions}
    if spoken is not None:
        dropouts["text"] = spoken.config.dropout
    kinds = list(dropouts)
    if not kinds:
        lacks = "has no conditions" if lm.text_stream is None else "writes, and has no conditions that it can drop"
        raise ValueError(f"{what}, but the model {lacks}; use guidance 1")
    if lm.text_stream is not None and isinstance(config, IntervalGuidance | LinearGuidance | CosineGuidance):
        raise ValueError(
            f"{what}, but the progress of a sequence with a text stream depends on its text; use a constant guidance"
        )
    for kind, dropout in dropouts.items():
        if dropout == 0:
            raise ValueError(
                f"{what}, but the model was trained without dropping its {kind} "
                "(dropout 0), so it cannot generate without it; use guidance 1"
            )
    if config.two is None:
        return
    for kind in config.two.keep:
        if kind not in kinds:
            raise ValueError(f"guidance.two.keep names '{kind}', but the model's conditions are {', '.join(kinds)}")
    if set(config.two.keep) == set(kinds):
        raise ValueError(
            f"guidance.two.keep names all conditions of the model ({', '.join(kinds)}); leave out the one that "
            "beta strengthens"
        )


def guidance_words(guidance: Guidance | GuidanceConfig) -> str:
    """Readable form for messages: "3.0", "3.0, 2.0", "3.0 (linear)"."""
    config = as_config(guidance)
    scales = config.scale if isinstance(config.scale, tuple) else (config.scale,)
    kind = getattr(config, "kind", "constant")
    return ", ".join(map(str, scales)) + ("" if kind == "constant" else f" ({kind})")
