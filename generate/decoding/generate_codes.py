"""Autoregressive generation of codes: selects the decode loop for the settings and runs it to its end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...lm.conditioning.registry import ConditionBatch
from ...lm.generation_config import Guidance
from ...lm.kv_cache.registry import CacheChoice
from ...lm.models.causal import TokenLM
from ...tokenize.codes import pad_and_cat
from ..execution.step_runner import StepName
from ..requests.settings import Length, check_seeds
from ..sampling.filters import SamplingConfig
from .loop import DecodeLoop, Generated, Progress, one_row
from .speculative import DraftedLoop

CHECK_EVERY = 8
"""Steps between checks whether all rows have ended, except on the CPU: each check synchronizes with the device."""


def generate_codes(
    lm: TokenLM,
    conditions: ConditionBatch,
    seeds: Sequence[int],
    length: Length,
    sampling: SamplingConfig | None = None,
    guidance: Guidance = 1.0,
    prompt: Tensor | None = None,
    exact: bool = False,
    on_progress: Progress | None = None,
    cache: CacheChoice | None = None,
    draft: int = 0,
    step: StepName = "auto",
) -> Generated:
    """Generate codes for a batch of conditions.

    Args:
        conditions: B rows; kinds that the model is not conditioned on are None.
        seeds: B 64-bit whole numbers. All randomness of row i is a function of seeds[i].
        guidance: s in l_null + s (l_condition - l_null), 1 uses the condition alone; or a config of
            lm/generation_config.py.
        prompt: codes [B, K, t] that the rows begin with, unchanged; None: none.
        exact: run the rows one at a time, so that not even kernel rounding depends on the batch: a seed and a
            condition always give the same codes, bit for bit. Slower for many rows.
        cache: kind of KV cache (lm/kv_cache/registry.py); None: exact.
        draft: draft steps of speculative decoding (speculative.py); 0: off.
        step: how steps are run (generate/execution/step_runner.py).
    Raises:
        ValueError: settings that contradict each other or the model; names the setting.
    """
    check_seeds(seeds)
    if not exact:
        loop = make_loop(lm, conditions, seeds, length, sampling, guidance, prompt, cache, draft, step)
        return _run(loop, 0, len(seeds), on_progress)
    rows = []
    for i, seed in enumerate(seeds):
        row, row_prompt = one_row(conditions, i), None if prompt is None else prompt[i : i + 1]
        loop = make_loop(lm, row, [seed], length, sampling, guidance, row_prompt, cache, draft, step)
        rows.append(_run(loop, i, len(seeds), on_progress))
    return _stack(rows)


def make_loop(
    lm: TokenLM,
    conditions: ConditionBatch,
    seeds: Sequence[int],
    length: Length,
    sampling: SamplingConfig | None,
    guidance: Guidance,
    prompt: Tensor | None,
    cache: CacheChoice | None,
    draft: int,
    step: StepName = "auto",
) -> DecodeLoop:
    """The decode loop for the settings; arguments and errors as in `generate_codes`."""
    if not draft:
        return DecodeLoop(lm, conditions, seeds, length, sampling, guidance, prompt, cache, step)
    return DraftedLoop(lm, conditions, seeds, length, sampling, guidance, prompt, cache, draft, step)


def warm_up(
    lm: TokenLM,
    conditions: ConditionBatch,
    length: Length,
    sampling: SamplingConfig | None = None,
    guidance: Guidance = 1.0,
    cache: CacheChoice | None = None,
    draft: int = 0,
    step: StepName = "auto",
    num_rows: int | None = None,
) -> None:
    """Compile or capture the steps for generations up to this length; arguments and errors as in `generate_codes`.

    Args:
        num_rows: B, needed if the model has no conditions.
    """
    B = num_rows or conditions.num_rows or 1
    loop = make_loop(lm, conditions, [0] * B, length, sampling, guidance, None, cache, draft, step)
    while loop.position < min(loop.num_steps, 1 + lm.head.period):
        loop.step()


def _run(loop: DecodeLoop, first_row: int, num_rows: int, on_progress: Progress | None) -> Generated:
    """Run a loop to its end; its rows begin at first_row of num_rows."""
    B, every = len(loop.board.seeds), 1 if loop.lm.device.type == "cpu" else CHECK_EVERY

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
    codes = pad_and_cat([row.codes for row in rows])
    return Generated(codes, torch.cat([row.lengths for row in rows]), torch.cat([row.ended for row in rows]))
