"""The sampler: all rules of drawing, checked and laid out once, applied step by step and stage by stage.

For each stage of the head, in this order:

    forbidden      ids that must not be drawn at all: the end before its time, silence after too much of it
    bias, penalty  the end's bias, the penalty on ids drawn lately, the end's rule
    filters        temperature, top-k, top-p, min-p (filters.py), and the draw
    second draw    repetition-aware sampling: an id that repeats is drawn again from the unfiltered distribution

Everything is a tensor operation on what has been written so far: no look at a value, nothing that depends on the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...lm.generation_config import RANGES
from ...lm.patterns.pattern import CodebookPattern
from ...lm.patterns.sub_tokens import SubTokens
from .counter_rng import uniform
from .filter_tensors import Filters
from .filters import SamplingConfig, make_filters, per_codebook, sample
from .repetition import LookBack, Repetition, penalize, repeats
from .silence import is_silent

MAX_WINDOW = 4096
"""Frames a rule may look back."""
NEVER = 1 << 60
"""A step that is not reached."""


@dataclass(frozen=True)
class StepDraws:
    """What the draws of one step need."""

    step: int | Tensor
    numbers: Tensor
    """[B, J] uniform numbers, float64."""
    again: Tensor | None
    """[B, J] those of second draws."""
    recent: Tensor | None
    """[B, K, W] codes before the step, -1 for none; None where no rule looks back."""


@dataclass(frozen=True)
class Stage:
    """The rules of the symbols that are drawn together."""

    places: Tensor
    """[n] long, which of the J symbols of a step."""
    books: Tensor
    """[n] long, the codebook of each."""
    whole: bool
    """Whether these are all symbols in order."""
    first: int | None
    """Place of symbol 0 among them, the one that can end."""
    filters: Filters
    repetition: Repetition

    def of(self, by_symbol: Tensor) -> Tensor:
        """Its symbols of a tensor [B, J, *]."""
        return by_symbol if self.whole else by_symbol.index_select(1, self.places)


class Sampler:
    """Draws the symbols of a generation; `begin` once a step, then `forbid` and `draw` for each stage of the head."""

    def __init__(
        self,
        sampling: SamplingConfig,
        arrangement: CodebookPattern,
        symbols: SubTokens,
        num_frames: int,
        first_end_step: int | None,
        device: torch.device | str,
        room: int = 0,
    ):
        """Check the settings against the model.

        Args:
            symbols: what the head draws.
            num_frames: the most frames to be made.
            first_end_step: no end before this step; None: no end at all.
            room: steps there shall be room for, should they be more.
        Raises:
            ValueError: names the setting, what was found and what to do.
        """
        K, V = arrangement.num_codebooks, max(symbols.output_sizes)
        self.symbols, self.device = symbols, device
        self.has_end = arrangement.variable_length
        self.first_end_step = torch.tensor(NEVER if first_end_step is None else first_end_step, device=device)
        self.filters = make_filters(sampling, K, device)
        repetition = self.repetition = _make_repetition(sampling, K, device)
        self.penalizes = bool((repetition.penalty != 1).any())
        self.draws_again = bool((repetition.ras_window > 0).any())
        _check_whole_codes(symbols, self.penalizes, self.draws_again, sampling.max_silence_frames)
        self.end_bias = _check_end_bias(sampling.end_bias, self.has_end)
        self.end_rule = _check_end_rule(sampling.end_rule)
        self.max_silence, self.silent = _check_silence(sampling, arrangement.cardinalities[0], V, device)
        window = max(
            self.max_silence,
            int(repetition.penalty_window[repetition.penalty != 1].max()) if self.penalizes else 0,
            int(repetition.ras_window.max()),
        )
        self.look_back = LookBack(arrangement, num_frames, window, device, room) if window else None
        self.end = torch.zeros(V, dtype=torch.bool, device=device)
        """[V'] True on the end of codebook 0."""
        if self.has_end:
            self.end[symbols.end] = True
        codes = symbols.end - (arrangement.end_ids[0] - arrangement.cardinalities[0])
        self.unused = torch.zeros(V, dtype=torch.bool, device=device)
        """[V'] True on the values of symbol 0 between those of codes and the end."""
        self.unused[codes : symbols.end] = self.has_end
        self.has_unused = self.has_end and symbols.end > codes
        self._stages: dict[tuple[int, ...], Stage] = {}

    def parts(self) -> tuple:
        """All that decides what it does, besides the rules of its stages."""
        rules = self.first_end_step, self.end_bias, self.end_rule, self.max_silence, self.silent
        return *rules, self.penalizes, self.draws_again, None if self.look_back is None else self.look_back.parts()

    def begin(self, seeds: Tensor, step: int | Tensor, columns: Tensor) -> StepDraws:
        """Prepare the draws of a step: seeds [B], columns [B, K, 1 + S] as written so far."""
        J = len(self.symbols)
        again = uniform(seeds, step, J, draw=1) if self.draws_again else None
        recent = None if self.look_back is None else self.look_back(columns, step)
        return StepDraws(step, uniform(seeds, step, J), again, recent)

    def stage(self, places: tuple[int, ...]) -> Stage:
        """The rules of the symbols at these places, laid out when they are first asked for."""
        if places not in self._stages:
            books = [self.symbols.codebooks[j] for j in places]
            self._stages[places] = Stage(
                places=torch.tensor(places, device=self.device),
                books=torch.tensor(books, device=self.device),
                whole=places == tuple(range(len(self.symbols))),
                first=places.index(0) if 0 in places else None,
                filters=self.filters.of(books),
                repetition=self.repetition.of(books),
            )
        return self._stages[places]

    def forbid(self, begun: StepDraws, rules: Stage, logits: Tensor) -> Tensor:
        """-inf on values of the stage's symbols that must not be drawn: logits [*, B, n, V'], changed or not."""
        if rules.first is None:
            return logits
        V = logits.shape[-1]
        ids = (self.end[:V] & (begun.step < self.first_end_step))[None] if self.has_end else None
        if self.has_unused:
            ids = self.unused[None, :V] if ids is None else ids | self.unused[:V]
        if self.max_silence:
            assert begun.recent is not None
            silence = is_silent(begun.recent[:, 0], self.silent, self.max_silence)[:, None] & self.silent[:V]
            ids = silence if ids is None else ids | silence
        if ids is None:
            return logits
        is_first = rules.places == 0
        return logits.masked_fill(is_first[:, None] & ids[:, None, :], float("-inf"))

    def draw(self, begun: StepDraws, rules: Stage, logits: Tensor) -> Tensor:
        """Values [B, n] of the stage's symbols, from logits [B, n, V'] float64, -inf on what is forbidden."""
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
        """-inf on the end where another id is likelier, if that is the rule."""
        if self.end_rule == "drawn" or not self.has_end or rules.first is None:
            return logits
        is_end = (rules.places == 0)[:, None] & self.end[: logits.shape[-1]]
        other = logits.masked_fill(is_end, float("-inf")).amax(dim=-1, keepdim=True)
        return logits.masked_fill(is_end & (logits < other), float("-inf"))


def _check_whole_codes(symbols: SubTokens, penalizes: bool, draws_again: bool, max_silence: int) -> None:
    """Rules about codes drawn before cannot be applied to parts of a code."""
    if symbols.parts > 1 and (penalizes or draws_again or max_silence):
        name = "repetition_penalty" if penalizes else "ras" if draws_again else "max_silence_frames"
        raise ValueError(f"{name} looks at whole codes, but the model's head draws them in parts; leave it off")


def _make_repetition(sampling: SamplingConfig, num_codebooks: int, device: torch.device | str) -> Repetition:
    def spread(name: str, allowed: str, is_allowed) -> list:
        return per_codebook(name, getattr(sampling, name), num_codebooks, allowed, is_allowed)

    whole = "a whole number of frames from"
    penalty = spread("repetition_penalty", "above 0", lambda x: x > 0)
    penalty = spread("repetition_penalty", *RANGES["repetition_penalty"])
    penalty_window = spread(
        "repetition_window", f"{whole} 1 to {MAX_WINDOW}", lambda x: 1 <= x <= MAX_WINDOW and x % 1 == 0
    )
    ras = spread("ras", f"{whole} 0 to {MAX_WINDOW}", lambda x: 0 <= x <= MAX_WINDOW and x % 1 == 0)
    tau = spread("ras_tau", "above 0 and at most 1", lambda x: 0 < x <= 1)
    # A product like 10 * 0.3 may come out a rounding error above the whole number that is meant.
    repeats = [max(1, -int(-(w * t - 1e-9) // 1)) for w, t in zip(ras, tau, strict=True)]
    return Repetition(
        penalty=torch.tensor(penalty, dtype=torch.float64, device=device),
        penalty_window=torch.tensor([int(w) for w in penalty_window], device=device),
        ras_window=torch.tensor([int(w) for w in ras], device=device),
        ras_repeats=torch.tensor(repeats, device=device),
    )


def _check_end_bias(bias: float, has_end: bool) -> float:
    if isinstance(bias, bool) or not isinstance(bias, int | float) or not abs(bias) < 1e9:
        raise ValueError(f"end_bias must be a number, found {bias!r}")
    if bias and not has_end:
        raise ValueError(f"end_bias is {bias}, but the model has no end code: its number of frames is fixed; use 0")
    return float(bias)


def _check_end_rule(rule: str) -> str:
    if rule not in ("drawn", "likeliest"):
        raise ValueError(f"end_rule must be 'drawn' or 'likeliest', found {rule!r}")
    return rule


def _check_silence(
    sampling: SamplingConfig, num_codes: int, num_outputs: int, device: torch.device | str
) -> tuple[int, Tensor]:
    """The limit in frames and a bool [V'], True on the silent ids of codebook 0."""
    limit, ids = sampling.max_silence_frames, sampling.silence_codes
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit <= MAX_WINDOW:
        raise ValueError(f"max_silence_frames must be a whole number from 0 to {MAX_WINDOW}, found {limit!r}")
    silent = torch.zeros(num_outputs, dtype=torch.bool, device=device)
    if not limit:
        return 0, silent
    if not ids:
        raise ValueError(
            f"max_silence_frames is {limit}, but no silence_codes were given; "
            "pass those of the tokenizer: silence_codes(tokenizer)"
        )
    for code in ids:
        if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code < num_codes:
            raise ValueError(f"silence_codes must be codes of codebook 0, 0 to {num_codes - 1}, found {code!r}")
    if len(set(ids)) == num_codes:
        raise ValueError(f"silence_codes are all {num_codes} codes of codebook 0; nothing else could be drawn")
    silent[torch.tensor(sorted(set(ids)), device=device)] = True
    return limit, silent
