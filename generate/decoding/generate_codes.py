"""Autoregressive generation of codes: runs a decode loop (loop.py), for all rows together or one by one."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...lm.models.causal import TokenLM
from ...tokenize.alignment.spoken_text import join_units
from ...tokenize.codes import pad_and_cat
from ..requests.request import Request
from ..requests.settings import check_seeds
from .loop import DecodeLoop, Generated, Progress
from .speculative import SpeculativeLoop


def generate_codes(
    lm: TokenLM, request: Request, exact: bool = False, on_progress: Progress | None = None
) -> Generated:
    """Generate the codes of a request.

    Args:
        exact: run the rows one at a time, so that not even kernel rounding depends on the batch: a seed and a
            condition always give the same codes, bit for bit. Slower for many rows.
    Raises:
        ValueError: settings that contradict each other or the model; names the setting.
    """
    B = len(check_seeds(request.seeds))
    batches = [(i, i + 1) for i in range(B)] if exact else [(0, B)]
    made = []
    for first, last in batches:
        rows = request.rows(first, last)
        if exact:  # no padding caused by longer texts or embeddings in the batch
            rows = replace(rows, conditions=rows.conditions.trimmed())
        loop = make_loop(lm, rows)

        def report(steps: int, loop: DecodeLoop = loop, first: int = first, count: int = last - first) -> None:
            if on_progress is not None:
                on_progress(first * loop.num_steps + steps * count, B * loop.num_steps)

        made.append(loop.run(report))
        report(loop.num_steps)
    return made[0] if len(made) == 1 else stack(made)


def make_loop(lm: TokenLM, request: Request) -> DecodeLoop:
    """The decode loop of a request: speculative if drafts are asked for; errors as in `generate_codes`."""
    return SpeculativeLoop(lm, request) if request.config.draft else DecodeLoop(lm, request)


def warm_up(lm: TokenLM, request: Request) -> None:
    """Compile or capture the steps of generations like this one, up to its length; errors as in `generate_codes`."""
    loop = make_loop(lm, request)
    while loop.position < min(loop.num_steps, 1 + lm.head.period):
        loop.step()


def stack(rows: list[Generated]) -> Generated:
    """One batch of several."""
    codes = pad_and_cat([row.codes for row in rows])
    units = join_units([row.units for row in rows])
    texts = None if rows[0].texts is None else tuple(text for row in rows for text in row.texts or ())
    lengths, ended = torch.cat([row.lengths for row in rows]), torch.cat([row.ended for row in rows])
    return Generated(codes, lengths, ended, units, texts)
