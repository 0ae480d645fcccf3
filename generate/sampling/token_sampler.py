"""The sampler: all sampling rules, checked and converted to tensors once, then applied at each step and stage.

For each stage of the head, in this order:

    forbidden      ids that must not be sampled: the end before the minimum length, silence after too much of it
    bias, penalty  the end bias, the repetition penalty, the end rule
    filters        temperature, top-k, top-p, min-p (filters.py), and the draw
    second draw    repetition-aware sampling: a repeated id is resampled from the unfiltered distribution

All rules are tensor operations on the ids written so far: Python reads no value, and nothing depends on the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...lm.generation_config import MAX_LOOK_BACK, GenerationConfig
from ...lm.patterns.pattern import CodebookPattern
from ...lm.patterns.sub_tokens import SubTokens
from ...lm.patterns.text_stream import Task, TextStream
from .counter_rng import StepNumbers
from .filter_tensors import Filters
from .filters import make_filters, per_codebook, sample
from .repetition import LookBack, Repetition, penalize, repeats
from .silence import is_silent


@dataclass(frozen=True)
class StepDraws:
    """Random numbers and recent codes for one step."""

    step: Tensor
    numbers: Tensor
    """[B, J] uniform numbers, float64."""
    again: Tensor | None
    """[B, J] uniform numbers of second draws."""
    recent: Tensor | None
    """[B, K, W] codes before the step, -1 for none; None if no rule looks back."""


@dataclass(frozen=True)
class Stage:
    """The rules of sub-tokens that are sampled together."""

    places: Tensor
    """[n] long, indices among the J sub-tokens of a step."""
    books: Tensor
    """[n] long, the codebook of each."""
    whole: bool
    """Whether these are all sub-tokens in order."""
    first: int | None
    """Index of sub-token 0 among them, the one that can be the end; None if it is in another stage."""
    filters: Filters
    repetition: Repetition
    voiced: bool
    """Whether the sub-token that can be silent is among them."""
    never: Tensor | None
    """[n, V'] True for values that no step samples; None if there are none."""

    def of(self, by_symbol: Tensor) -> Tensor:
        """Select the stage's sub-tokens of a tensor [B, J, *]."""
        return by_symbol if self.whole else by_symbol.index_select(1, self.places)


class Sampler:
    """Samples sub-tokens; call `begin` once per step, then `forbid` and `draw` for each stage of the head."""

    def __init__(
        self,
        config: GenerationConfig,
        arrangement: CodebookPattern,
        sub_tokens: SubTokens,
        num_frames: int,
        first_end_steps: Tensor | None,
        device: torch.device | str,
        capacity: int = 0,
        frame_rate: float = 0.0,
        stream: TextStream | None = None,
        task: Task | None = None,
    ):
        """Check the settings against the model.

        Args:
            sub_tokens: the sub-tokens of the head.
            num_frames: maximum number of frames.
            first_end_steps: [B] or [1] long, no end of a row before this step; None: no end at all.
            capacity: minimum capacity in steps.
            frame_rate: frames per second of audio, for `max_silence`.
            stream, task: the model's text stream, and whether it speaks a text or writes one; None: either.
        Raises:
            ValueError: names the setting, what was found and what to do.
        """
        K, V = arrangement.num_codebooks, max(sub_tokens.output_sizes)
        self.sub_tokens, self.device = sub_tokens, device
        self.has_end = arrangement.variable_length
        self.first_end_steps = None if first_end_steps is None else first_end_steps.to(device)[:, None]
        """[B or 1, 1]."""
        self.filters = make_filters(config, K, device)
        repetition = self.repetition = _make_repetition(config, K, device)
        self.penalizes = bool((repetition.penalty != 1).any())
        self.draws_again = bool((repetition.ras_window > 0).any())
        _check_whole_codes(sub_tokens, self.penalizes, self.draws_again, config.max_silence)
        if config.end_bias and not self.has_end:
            raise ValueError(
                f"end_bias is {config.end_bias}, but the model has no end code: its number of frames is fixed; use 0"
            )
        if stream is not None and stream.has_end_frame and (config.end_bias or config.end_rule != "drawn"):
            name = "end_bias" if config.end_bias else "end_rule"
            raise ValueError(f"{name} was set, but the end of this model is a frame of zeros, not an id; leave it out")
        self.end_bias, self.end_rule = config.end_bias, config.end_rule
        self.voice = 0 if stream is None else 1
        """The channel whose codes can be silence: codebook 0."""
        num_codes = arrangement.cardinalities[self.voice]
        self.max_silence, self.silent = _check_silence(config, frame_rate, num_codes, V, device)
        """Maximum number of frames of silence, 0 for no limit; and a bool [V'], True for the silent ids."""
        window = max(
            self.max_silence,
            int(repetition.penalty_window[repetition.penalty != 1].max()) if self.penalizes else 0,
            int(repetition.ras_window.max()),
        )
        sizes = list(arrangement.cardinalities)
        if stream is not None:  # a slot is no repetition; text that is not predicted has no logits to penalize
            sizes[0] = 0 if stream.unpredicted else stream.num_ids
        self.look_back = LookBack(arrangement, num_frames, window, device, capacity, sizes) if window else None
        self.end = torch.zeros(V, dtype=torch.bool, device=device)
        """[V'] True for the end of codebook 0."""
        if self.has_end:
            self.end[sub_tokens.end] = True
        codes = sub_tokens.end - (arrangement.end_ids[0] - arrangement.cardinalities[0])
        self.unused = torch.zeros(V, dtype=torch.bool, device=device)
        """[V'] True for the values of sub-token 0 between the codes and the end."""
        self.unused[codes : sub_tokens.end] = self.has_end
        self.never = self.unused | self.end if first_end_steps is None else self.unused
        """[V'] True for the values of sub-token 0 that no step samples."""
        if stream is not None and task is not None:
            value = torch.arange(V, device=device) + stream.unpredicted
            self.never = self.never | (value < stream.slot if task == "speak" else value == stream.slot)
        self._stages: dict[tuple[int, ...], Stage] = {}

    def parts(self) -> tuple:
        """All tensors and settings that determine sampling, besides the rules of the stages."""
        rules = self.first_end_steps, self.end_bias, self.end_rule, self.max_silence, self.silent
        return *rules, self.penalizes, self.draws_again, None if self.look_back is None else self.look_back.parts()

    def begin(self, step: Tensor, columns: Tensor, numbers: StepNumbers, again: StepNumbers | None) -> StepDraws:
        """Prepare the draws of a step from the columns [B, K, 1 + S] written so far, and the random numbers of draws
        and second draws (None unless `draws_again`)."""
        recent = None if self.look_back is None else self.look_back(columns, step)
        return StepDraws(step, numbers.at(step), None if again is None else again.at(step), recent)

    def stage(self, places: tuple[int, ...]) -> Stage:
        """The rules of the sub-tokens at these places, built on first use."""
        if places not in self._stages:
            books = [self.sub_tokens.codebooks[j] for j in places]
            self._stages[places] = Stage(
                places=torch.tensor(places, device=self.device),
                books=torch.tensor(books, device=self.device),
                whole=places == tuple(range(len(self.sub_tokens))),
                first=places.index(0) if 0 in places else None,
                voiced=self.voice in places,
                filters=self.filters.of(books),
                repetition=self.repetition.of(books),
                never=self._never(places),
            )
        return self._stages[places]

    def forbid(self, begun: StepDraws, rules: Stage, logits: Tensor) -> Tensor:
        """Set forbidden values of the stage's sub-tokens to -inf in logits [*, B, n, V']."""
        V = logits.shape[-1]
        if rules.never is not None:
            logits = logits.masked_fill(rules.never[:, :V], float("-inf"))
        if rules.first is not None and self.has_end and self.first_end_steps is not None:
            early = self.end[:V] & (begun.step < self.first_end_steps)
            logits = logits.masked_fill((rules.places == 0)[:, None] & early[:, None, :], float("-inf"))
        if rules.voiced and self.max_silence:
            assert begun.recent is not None
            silence = is_silent(begun.recent[:, self.voice], self.silent, self.max_silence)[:, None] & self.silent[:V]
            logits = logits.masked_fill((rules.places == self.voice)[:, None] & silence[:, None, :], float("-inf"))
        return logits

    def _never(self, places: tuple[int, ...]) -> Tensor | None:
        if 0 not in places or not bool(self.never.any()):
            return None
        never = self.never.new_zeros(len(places), len(self.never))
        never[places.index(0)] = self.never
        return never

    def draw(self, begun: StepDraws, rules: Stage, logits: Tensor) -> Tensor:
        """Sample values [B, n] of the stage's sub-tokens from logits [B, n, V'], float64, -inf for forbidden values."""
        if self.end_bias and rules.first is not None:
            is_end = (rules.places == 0)[:, None] & self.end[: logits.shape[-1]]
            logits = logits + is_end * self.end_bias
        if begun.recent is None or self.look_back is None:
            return sample(self._with_end_rule(rules, logits), rules.of(begun.numbers), rules.filters)
        recent, ages = rules.of(begun.recent), self.look_back.ages
        if self.penalizes:
            logits = penalize(logits, recent, ages, rules.repetition)
        logits = self._with_end_rule(rules, logits)
        drawn = sample(logits, rules.of(begun.numbers), rules.filters)
        if begun.again is not None:
            second = sample(logits, rules.of(begun.again), rules.filters.unfiltered())
            drawn = torch.where(repeats(drawn, recent, ages, rules.repetition), second, drawn)
        return drawn

    def _with_end_rule(self, rules: Stage, logits: Tensor) -> Tensor:
        """With end_rule "likeliest", set the end to -inf where another id is likelier."""
        if self.end_rule == "drawn" or not self.has_end or rules.first is None:
            return logits
        is_end = (rules.places == 0)[:, None] & self.end[: logits.shape[-1]]
        other = logits.masked_fill(is_end, float("-inf")).amax(dim=-1, keepdim=True)
        return logits.masked_fill(is_end & (logits < other), float("-inf"))


def _check_whole_codes(sub_tokens: SubTokens, penalizes: bool, draws_again: bool, max_silence: float) -> None:
    """ValueError: rules about earlier codes cannot be applied to sub-tokens of a code."""
    if sub_tokens.parts > 1 and (penalizes or draws_again or max_silence):
        name = "repetition_penalty" if penalizes else "ras" if draws_again else "max_silence"
        raise ValueError(f"{name} needs whole codes, but the model's head samples them in parts; leave it out")


def _make_repetition(config: GenerationConfig, num_codebooks: int, device: torch.device | str) -> Repetition:
    penalty, window, ras, tau = (
        per_codebook(name, getattr(config, name), num_codebooks)
        for name in ("repetition_penalty", "repetition_window", "ras", "ras_tau")
    )
    # A product like 10 * 0.3 may exceed the intended whole number by a rounding error.
    repeats = [max(1, -int(-(w * t - 1e-9) // 1)) for w, t in zip(ras, tau, strict=True)]
    return Repetition(
        penalty=torch.tensor(penalty, dtype=torch.float64, device=device),
        penalty_window=torch.tensor(window, device=device),
        ras_window=torch.tensor(ras, device=device),
        ras_repeats=torch.tensor(repeats, device=device),
    )


def _check_silence(
    config: GenerationConfig, frame_rate: float, num_codes: int, num_outputs: int, device: torch.device | str
) -> tuple[int, Tensor]:
    """The limit in frames and a bool [V'], True for the silent ids of codebook 0."""
    silent = torch.zeros(num_outputs, dtype=torch.bool, device=device)
    if not config.max_silence:
        return 0, silent
    if not frame_rate:
        raise ValueError(f"max_silence is {config.max_silence}, but images have no silence; leave it out")
    limit, ids = max(1, math.floor(config.max_silence * frame_rate + 1e-6)), config.silence_codes
    if limit > MAX_LOOK_BACK:
        raise ValueError(
            f"max_silence is {config.max_silence} s, which are {limit} frames; the limit is {MAX_LOOK_BACK}"
        )
    if not ids:
        raise ValueError(
            f"max_silence is {config.max_silence}, but no silence_codes were given; "
            "pass those of the tokenizer: silence_codes(tokenizer)"
        )
    for code in ids:
        if not 0 <= code < num_codes:
            raise ValueError(f"silence_codes must be codes of codebook 0, 0 to {num_codes - 1}, found {code!r}")
    if len(set(ids)) == num_codes:
        raise ValueError(f"silence_codes are all {num_codes} codes of codebook 0; nothing else could be sampled")
    silent[torch.tensor(sorted(set(ids)), device=device)] = True
    return limit, silent
