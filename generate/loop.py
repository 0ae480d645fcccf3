"""The decode loop: one step function from logits to the next column of ids, until every row has its frames.

Drawn for delays [0, 1, 2] and a row whose codebook 0 ends after 3 frames; E = end, P = pad, s = start:

    step        0  1  2  3  4  5  6
    codebook 0  a0 a1 a2 E  P  P  P      codebook 0 draws its end; the row's length becomes 3
    codebook 1  s  b0 b1 b2 E  P  P      the others follow: end in the cell of frame 3, pad after it
    codebook 2  s  s  c0 c1 c2 E  P      frames 0..2 are complete after step 4, and so is the row

What a cell gets depends on the frame it stands for and on the row's length alone (`Arrangement.forced_ids`), so the
cascade is the same few tensor operations at every step, for every arrangement. A finished row is fed pad until the last
row is done; rows never see each other, so that changes nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lm.caches import CacheChoice
from ..lm.conditions import ConditionBatch
from ..lm.defaults import Guidance
from ..lm.model import TokenLM
from .guidance import Guide
from .sampler import Sampler
from .sampling import Sampling

CHECK_EVERY = 8
"""Steps between two looks at whether all rows have ended, except on the CPU: each look waits for the device."""

Progress = Callable[[int, int], None]
"""on_progress(done, total), in steps times rows; done jumps to total where rows end early."""


@dataclass(frozen=True)
class Length:
    """How many frames to make."""

    max_frames: int
    """Frames at most, the prompt included; exactly so many when `fixed`."""
    min_frames: int = 1
    """No end before this many frames."""
    fixed: bool = False
    """The end is never drawn. Models without an end code and pictures need it."""


@dataclass(frozen=True)
class Generated:
    """Codes of a batch."""

    codes: Tensor
    """[B, K, T] long, T the frames of the longest row; 0 beyond a row's length. A prompt comes first."""
    lengths: Tensor
    """[B] long, frames of each row."""
    ended: Tensor
    """[B] bool: the row drew its end; everywhere True when the length is fixed."""


def generate_codes(
    lm: TokenLM,
    conditions: ConditionBatch,
    seeds: Sequence[int],
    length: Length,
    sampling: Sampling | None = None,
    guidance: Guidance = 1.0,
    prompt: Tensor | None = None,
    exact: bool = False,
    on_progress: Progress | None = None,
    cache: CacheChoice | None = None,
    draft: int = 0,
) -> Generated:
    """Generate codes for a batch of conditions.

    Args:
        conditions: B rows; what the model is not conditioned on is None.
        seeds: B whole numbers of 64 bits. All that is random in row i is a function of seeds[i].
        guidance: s in l_null + s (l_condition - l_null), 1 uses the condition alone; or a config of lm/defaults.py.
        prompt: codes [B, K, t] that the rows begin with, word for word; None: nothing.
        exact: run the rows one at a time, so that not even the kernels' rounding depends on the batch: a seed and a
            condition give the same codes in any company, bit for bit. Slower for many rows.
        cache: how keys and values are remembered (lm/caches.py); None: exactly.
        draft: steps to guess at a time and have checked by the model (draft.py); 0: none.
    Raises:
        ValueError: settings that contradict each other or the model; names the setting.
    """
    if not exact:
        loop = make_loop(lm, conditions, seeds, length, sampling, guidance, prompt, cache, draft)
        return _run(loop, 0, len(seeds), on_progress)
    rows = []
    for i, seed in enumerate(seeds):
        row, row_prompt = one_row(conditions, i), None if prompt is None else prompt[i : i + 1]
        loop = make_loop(lm, row, [seed], length, sampling, guidance, row_prompt, cache, draft)
        rows.append(_run(loop, i, len(seeds), on_progress))
    return _stack(rows)


class DecodeLoop:
    """A batch being generated: call `step` until `done`, then `result`; or, for one row, iterate over `frames`."""

    def __init__(
        self,
        lm: TokenLM,
        conditions: ConditionBatch,
        seeds: Sequence[int],
        length: Length,
        sampling: Sampling | None = None,
        guidance: Guidance = 1.0,
        prompt: Tensor | None = None,
        cache: CacheChoice | None = None,
    ):
        """Check the settings and read the conditions; arguments and errors as `generate_codes`."""
        arrangement = lm.arrangement
        B, K, device = len(seeds), arrangement.num_codebooks, lm.device
        self.lm, self.arrangement = lm, arrangement
        self.length = _check_length(length, arrangement.variable_length)
        self.seeds = torch.tensor(check_seeds(seeds), dtype=torch.long, device=device)
        prompt = check_prompt(prompt, B, arrangement.cardinalities, length)
        self.num_steps = arrangement.num_steps(length.max_frames)
        self.guide = Guide(guidance, lm, self.num_steps)

        self.row_lengths = torch.full((B,), length.max_frames, dtype=torch.long, device=device)
        self.ended = torch.full((B,), length.fixed, dtype=torch.bool, device=device)
        self.broken = torch.zeros((), dtype=torch.bool, device=device)
        self.steps_of = arrangement.steps_of(torch.arange(length.max_frames, device=device), length.max_frames)
        """[K, T]: where each code stands."""
        self.complete_after: list[int] = self.steps_of.amax(dim=0).tolist()
        """The step that completes each frame; rising."""
        first_end_step = None
        if not length.fixed:
            self.first_book_frames = arrangement.table(length.max_frames + 1)[0].to(device)
            first_end_frame = torch.tensor([max(length.min_frames, prompt.shape[2])])
            first_end_step = int(arrangement.steps_of(first_end_frame)[0, 0])
        self.sampler = Sampler(
            sampling or Sampling(), arrangement, lm.head.symbols, length.max_frames, first_end_step, device
        )
        self.columns = torch.zeros(B, K, 1 + self.num_steps, dtype=torch.long, device=device)
        """What the model reads: `start`, then the ids of each step."""
        self.columns[:, :, 0] = lm.start_ids(B)
        self.given = torch.zeros(K, self.num_steps, dtype=torch.bool, device=device)
        """Cells that hold a code of the prompt; never overwritten."""
        self.position = self._write_prompt(prompt.to(device)) if prompt.shape[2] else 0
        """The step that is made next."""

        conditions = self.guide.conditions(conditions.to(device))
        rows = self.guide.branches * B
        num_frames = length.max_frames if length.fixed else None
        self.state = lm.start(conditions, self.num_steps, rows, num_frames, cache)

    @torch.no_grad()
    def step(self) -> None:
        """Make the ids of the next step."""
        self._choose(self.position, self._read(self.position))
        self.position += 1

    @property
    def done(self) -> bool:
        """Whether all frames of all rows are complete. Waits for the device."""
        return self.num_complete >= int(self.row_lengths.max())

    @property
    def num_complete(self) -> int:
        """Leading frames of which all codes are known, in rows that are so long."""
        return bisect_right(self.complete_after, self.position - 1)

    def frames(self) -> Iterator[Tensor]:
        """Step until done and yield codes [K, n] as soon as their frames are complete; for a batch of one row."""
        assert len(self.seeds) == 1
        sent = 0
        while True:
            ready = min(self.num_complete, int(self.row_lengths[0]))
            self._check_numbers()
            if ready > sent:
                yield self._codes(sent, ready)[0]
                sent = ready
            if self.done:
                return
            self.step()

    def result(self) -> Generated:
        """What was generated, on the CPU. ValueError: the model gave logits that are not numbers."""
        self._check_numbers()
        longest = int(self.row_lengths.max())
        codes = self._codes(0, longest)
        beyond = torch.arange(longest, device=codes.device) >= self.row_lengths[:, None, None]
        return Generated(codes.masked_fill(beyond, 0).cpu(), self.row_lengths.cpu(), self.ended.cpu())

    def _read(self, s: int) -> Tensor:
        """Hidden states [R, D] of step s, of all rows the model runs."""
        return self._read_to(s, 1)[:, 0]

    def _read_to(self, s: int, count: int) -> Tensor:
        """Hidden states [R, count, D] of the last steps up to s; the model reads the columns it has not read: one, or
        at first the prompt."""
        return self.lm.read(self.state, self.guide.rows(self.columns[:, :, self.state.step : s + 1]))[:, -count:]

    def _choose(self, s: int, hidden: Tensor, is_guess: bool = False) -> None:
        """Draw and write the ids of step s, stage by stage of the head, from hidden states [R, D]; from a guess nothing
        follows yet."""
        head, column = self.lm.head, self.columns[:, :, s + 1]
        symbols, draws = head.symbols, self.sampler.begin(self.seeds, s, self.columns)
        begun = head.begin(self.state.head, hidden, s)
        for stage, places in enumerate(head.stages_at(s)):
            known, rules = symbols.split(column), self.sampler.stage(places)
            logits = head.predict(begun, stage, self.guide.rows(known)).double()
            self.broken = self.broken | (logits < float("inf")).logical_not().any()
            logits = self.sampler.forbid(draws, rules, logits.unflatten(0, (-1, len(self.seeds))))
            drawn = self.sampler.draw(draws, rules, self.guide(logits, s, rules.books))
            if rules.first is not None and not is_guess:
                self._end_rows(s, drawn[:, rules.first])
            self._write(s, symbols.join(drawn if rules.whole else known.index_copy(1, rules.places, drawn)))

    def _end_rows(self, s: int, drawn: Tensor) -> None:
        """An end among the values [B] drawn for symbol 0 sets the row's length."""
        if self.length.fixed:
            return
        frame = self.first_book_frames[s]
        ends = (drawn == self.lm.head.symbols.end) & (frame >= 0) & (frame < self.row_lengths)
        self.row_lengths = torch.where(ends, frame, self.row_lengths)
        self.ended = self.ended | ends

    def _write(self, s: int, drawn: Tensor) -> None:
        """Fill the column of step s: what the arrangement forces, else what the prompt gives, else what was drawn [B,
        K]."""
        column = self.columns[:, :, s + 1]
        forced = self.arrangement.forced_ids(s, self.row_lengths)
        written = torch.where(forced >= 0, forced, torch.where(self.given[:, s], column, drawn))
        self.columns[:, :, s + 1] = written

    def _write_prompt(self, prompt: Tensor) -> int:
        """Put the prompt [B, K, t] in its cells; returns the first step with a cell that it leaves open."""
        where = self.steps_of[:, : prompt.shape[2]]
        self.given.scatter_(1, where, True)
        self.columns.scatter_(2, where.expand(len(prompt), -1, -1) + 1, prompt)
        for s in range(self.num_steps):
            if not bool(((self.arrangement.forced_ids(s, self.row_lengths[:1])[0] >= 0) | self.given[:, s]).all()):
                return s
            self._write(s, self.columns[:, :, s + 1])
        raise AssertionError("a prompt is shorter than what is to be made")

    def _codes(self, first: int, last: int) -> Tensor:
        """Ids [B, K, last - first] of the frames first .. last - 1."""
        where = self.steps_of[:, first:last] + 1
        return self.columns.gather(2, where.expand(len(self.columns), -1, -1))

    def _check_numbers(self) -> None:
        if bool(self.broken):
            raise ValueError("the model's logits are not numbers (NaN); its weights are damaged or its dtype too small")


def make_loop(
    lm: TokenLM,
    conditions: ConditionBatch,
    seeds: Sequence[int],
    length: Length,
    sampling: Sampling | None,
    guidance: Guidance,
    prompt: Tensor | None,
    cache: CacheChoice | None,
    draft: int,
) -> DecodeLoop:
    """The loop that a generation's settings ask for; arguments and errors as `generate_codes`."""
    if not draft:
        return DecodeLoop(lm, conditions, seeds, length, sampling, guidance, prompt, cache)
    from .draft import DraftedLoop  # which is made of this one

    return DraftedLoop(lm, conditions, seeds, length, sampling, guidance, prompt, cache, draft)


def one_row(conditions: ConditionBatch, row: int) -> ConditionBatch:
    """Row `row` as it would be alone: without the padding that longer texts or embeddings in the batch gave it."""
    return conditions.rows(slice(row, row + 1)).trimmed()


def _run(loop: DecodeLoop, first_row: int, num_rows: int, on_progress: Progress | None) -> Generated:
    """Run a loop to its end; it makes the rows from first_row on of num_rows."""
    B, every = len(loop.seeds), 1 if loop.seeds.device.type == "cpu" else CHECK_EVERY

    def report(steps: int) -> None:
        if on_progress is not None:
            on_progress(first_row * loop.num_steps + steps * B, num_rows * loop.num_steps)

    checked = 0
    while loop.position < loop.num_steps:
        loop.step()
        report(loop.position)
        if not loop.length.fixed and loop.position - checked >= every:
            checked = loop.position
            if loop.done:
                break
    report(loop.num_steps)
    return loop.result()


def _stack(rows: list[Generated]) -> Generated:
    longest = max(row.codes.shape[2] for row in rows)
    codes = [torch.nn.functional.pad(row.codes, (0, longest - row.codes.shape[2])) for row in rows]
    return Generated(torch.cat(codes), torch.cat([row.lengths for row in rows]), torch.cat([row.ended for row in rows]))


def _check_length(length: Length, variable_length: bool) -> Length:
    if length.max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, found {length.max_frames}")
    if not 0 <= length.min_frames <= length.max_frames:
        raise ValueError(f"min_frames must be from 0 to max_frames ({length.max_frames}), found {length.min_frames}")
    if not length.fixed and not variable_length:
        raise ValueError("the model has no end code, so the number of frames must be fixed; pass Length(fixed=True)")
    return length


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds; ValueError unless there are some, whole numbers of 64 bits."""
    if len(seeds) < 1:
        raise ValueError("no seeds were given; one is needed for each sample")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
            raise ValueError(f"a seed must be a whole number of 64 bits, found {seed!r}")
    return list(seeds)


def check_prompt(prompt: Tensor | None, B: int, cardinalities: Sequence[int], length: Length) -> Tensor:
    """The prompt [B, K, t], t = 0 for none."""
    K = len(cardinalities)
    if prompt is None:
        return torch.zeros(B, K, 0, dtype=torch.long)
    if prompt.dtype != torch.long or prompt.dim() != 3 or tuple(prompt.shape[:2]) != (B, K):
        raise ValueError(f"the prompt must be long [{B}, {K}, t], found {prompt.dtype} {list(prompt.shape)}")
    if prompt.shape[2] >= length.max_frames:
        raise ValueError(
            f"the prompt has {prompt.shape[2]} frames and at most {length.max_frames} are to be made, prompt included; "
            "shorten it or raise max_frames"
        )
    for k, V in enumerate(cardinalities):
        if prompt.shape[2] and not 0 <= int(prompt[:, k].min()) <= int(prompt[:, k].max()) < V:
            raise ValueError(f"the prompt's codebook {k} must hold codes 0 to {V - 1}, found others")
    return prompt
