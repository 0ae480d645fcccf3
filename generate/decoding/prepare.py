"""What a decode loop starts from: the sampler, the decode buffers, and the prompt written into them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...lm.conditioning.pointers import Pointers, pointers_of
from ...lm.models.causal import TokenLM
from ...tokenize.spec import AudioGeometry
from ..execution.decode_step import DecodeBuffers, DecodeStep
from ..requests.request import Request
from ..sampling.advance import AdvanceSampler
from ..sampling.counter_rng import step_numbers
from ..sampling.token_sampler import Sampler


def make_sampler(lm: TokenLM, request: Request, capacity: int) -> Sampler:
    """The sampler of a request. `capacity`: minimum number of steps in its tables.

    Raises:
        ValueError: a setting does not fit the model; names it.
    """
    pattern, length, geometry = lm.arrangement, request.length, lm.spec.geometry
    first_end_steps, stream = None, request.stream
    if lm.conditions.aligned is not None:
        check_aligned(request)
    elif not length.fixed:
        given = 0 if request.prompt is None else request.prompt.shape[2]
        first_end_frames = torch.tensor([max(length.min_frames, given)]) if stream is None else stream.shortest
        first_end_steps = pattern.steps_of(first_end_frames)[0]
    return Sampler(
        request.config,
        pattern,
        lm.head.sub_tokens,
        length.max_frames,
        first_end_steps,
        lm.device,
        capacity,
        geometry.frame_rate if isinstance(geometry, AudioGeometry) else 0.0,
        lm.text_stream,
        None if stream is None else stream.task,
    )


def make_buffers(lm: TokenLM, request: Request, capacity: int, draws_again: bool) -> DecodeBuffers:
    """Empty decode buffers for `capacity` steps, with `start` in the first column. `draws_again`: see `Sampler`."""
    pattern, length, device = lm.arrangement, request.length, lm.device
    B, K, S = len(request.seeds), pattern.num_codebooks, pattern.num_steps(length.max_frames)
    J, aligned = len(lm.head.sub_tokens), lm.conditions.aligned is not None
    seeds = torch.tensor(request.seeds, dtype=torch.long, device=device)
    end_frames = torch.full((capacity,), -1)
    if not length.fixed:
        end_frames[:S] = pattern.table(length.max_frames + 1)[0, :S]
    columns = torch.zeros(B, K, 1 + capacity, dtype=torch.long, device=device)
    columns[:, :, 0] = lm.start_ids(B)
    longest = torch.tensor(length.max_frames) if request.stream is None else request.stream.longest
    return DecodeBuffers(
        step=torch.zeros((), dtype=torch.long, device=device),
        columns=columns,
        given=torch.zeros(B, K, capacity, dtype=torch.bool, device=device),
        end_frames=end_frames.to(device),
        row_lengths=longest.expand(B).to(device, copy=True),
        ended=torch.full((B,), length.fixed, dtype=torch.bool, device=device),
        broken=torch.zeros((), dtype=torch.bool, device=device),
        numbers=step_numbers(seeds, capacity, J),
        second_numbers=step_numbers(seeds, capacity, J, draw=1) if draws_again else None,
        advance_numbers=step_numbers(seeds, capacity, 1, draw=2) if aligned else None,
        pointers=Pointers(*columns.new_zeros(2, B, 1 + capacity)) if aligned else None,
    )


def check_aligned(request: Request) -> None:
    """Raise ValueError if a request does not fit a model with an aligned text, whose pointer determines the end."""
    if request.length.fixed:
        raise ValueError("the model's aligned text determines the number of frames; leave num_frames out, or set speed")
    if request.prompt is not None and request.prompt.shape[2]:
        raise ValueError("the model reads an aligned text from its first unit; leave the prompt out")
    if request.config.end_bias:
        raise ValueError(
            f"end_bias is {request.config.end_bias}, but the model's aligned text determines the end; set speed"
        )
    lengths = request.conditions.aligned_lengths
    if lengths is not None and bool((lengths == 0).any()):
        raise ValueError(
            f"row {int((lengths == 0).nonzero()[0])} has no text, but the model's aligned text determines the end; "
            "give each row a text"
        )


def make_advances(lm: TokenLM, request: Request) -> AdvanceSampler | None:
    """The sampler of the advances of an aligned text; None without one, or if its durations are given. ValueError:
    settings for it then."""
    aligned, given = lm.conditions.aligned, request.conditions.aligned_frames is not None
    if aligned is not None and not given:
        return AdvanceSampler(request.config, aligned)
    why = "the model has no aligned text" if aligned is None else "the durations of the units are given"
    for name in ("speed", "advance_temperature"):
        if getattr(request.config, name) != 1:
            raise ValueError(f"{name} was set, but {why}; leave it out")
    return None


def write_durations(lm: TokenLM, buffers: DecodeBuffers, counts: Tensor, frames: Tensor, max_frames: int) -> None:
    """Write the pointers of all steps and the lengths of the rows into the decode buffers.

    Args:
        counts: [B] long, units of each row. frames: [B, L] long, how long each unit lasts; values beyond a row's units
            are ignored.
        max_frames: a row that is longer is cut.
    """
    assert buffers.pointers is not None
    S = lm.arrangement.num_steps(max_frames)
    inside = torch.arange(frames.shape[1], device=frames.device) < counts[:, None]
    totals = (frames * inside).sum(dim=1)
    of_frames = pointers_of(frames, counts, max_frames + 1)
    now = lm.arrangement.current_frames(torch.arange(S, device=frames.device)).clamp(max=max_frames)
    buffers.pointers.unit[:, :S], buffers.pointers.since[:, :S] = of_frames.unit[:, now], of_frames.since[:, now]
    buffers.row_lengths.copy_(totals.clamp(max=max_frames))
    buffers.ended.copy_(totals <= max_frames)


def write_prompt(step: DecodeStep, prompt: Tensor, steps_of: Tensor, lengths: Tensor | None = None) -> int:
    """Write the prompt [B, K, t] into the decode buffers; returns the first step with an id to be sampled.

    Args:
        steps_of: [K, T], the step of each code.
        lengths: [B] long, frames of each row's prompt; None: all t. The rows stay at the same step: the ids of a longer
            prompt are in their cells, in steps in which others are sampled.
    """
    buffers, pattern = step.buffers, step.lm.arrangement
    where = steps_of[:, : prompt.shape[2]].expand(len(prompt), -1, -1)
    inside = torch.ones_like(prompt, dtype=torch.bool)
    if lengths is not None:
        inside &= torch.arange(prompt.shape[2], device=prompt.device) < lengths[:, None, None]
    buffers.given.scatter_(2, where, inside)
    buffers.columns.scatter_(2, where + 1, prompt * inside)
    for s in range(pattern.num_steps(steps_of.shape[1])):
        forced = pattern.forced_ids(s, buffers.row_lengths) >= 0
        if not bool((forced | buffers.given[:, :, s]).all()):
            return s
        column = buffers.columns[:, :, s + 1]
        buffers.columns[:, :, s + 1] = step.filled(torch.tensor(s, device=column.device), column, column)
    raise AssertionError("the prompt must be shorter than the samples")
