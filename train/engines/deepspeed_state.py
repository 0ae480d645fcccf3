"""Converts weights and AdamW state from and to DeepSpeed's optimizers, per parameter, for every kind of partitioning.

    stage 0           every process has everything; with bfloat16 weights, also their float32 master copies
    stages 1 and 2    each process has a partition of one flat float32 vector per parameter group
    stage 3           the same, and the weights are partitioned too

DeepSpeed's own checkpoints store the partitions as pickles and fit only one number of processes. (In DeepSpeed's names,
"hp" means high precision and "lp" low precision.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .state_files import MOMENTS, EngineState, stored


def learning(body: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that DeepSpeed's optimizer has; the others never change."""
    return ((name, parameter) for name, parameter in body.named_parameters() if parameter.requires_grad)


def collect_state(engine: Any, body: nn.Module, stage: int, steps: int, keep: bool) -> EngineState | None:
    """Gather the state; all processes call this.

    Args:
        engine: of DeepSpeed. body: the model in it. stage: of ZeRO. steps: of the run.
        keep: whether this process needs the result; others use only the memory of one parameter.
    """
    weights: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    slots = [slot for _, slot in _flat_slots(engine.optimizer)] if stage else []
    for name, parameter in learning(body):
        if stage == 0:
            master, state = _stage_0(engine.optimizer, parameter)
            found = {"": master, **({key: state[key] for key in (*MOMENTS, "step")} if state else {})}
        else:
            found = {"": _read(engine.optimizer, parameter, None)}
            if all(slots):  # empty before the first step
                found |= {key: _read(engine.optimizer, parameter, key) for key in MOMENTS}
                found["step"] = slots[0]["step"].clone()
        if keep:
            weights[name] = stored(found.pop(""))
            moments |= {f"{name}.{key}": stored(value) for key, value in found.items()}
    return EngineState("deepspeed", steps, weights, moments) if keep else None


@torch.no_grad()
def put_state(engine: Any, body: nn.Module, stage: int, state: EngineState) -> None:
    """Load a state into an engine that has made no step; all processes call this."""
    optimizer, device = engine.optimizer, engine.device
    counts = [float(value) for name, value in state.moments.items() if name.endswith(".step")]
    if stage and counts:
        for master, slot in _flat_slots(optimizer):
            slot["step"] = torch.tensor(max(counts))
            slot |= {key: torch.zeros_like(master, requires_grad=False) for key in MOMENTS}
    for name, parameter in learning(body):
        weight = state.weights[name].to(device)
        found = {key: state.moments.get(f"{name}.{key}") for key in MOMENTS}
        if stage == 0:
            master, slot = _stage_0(optimizer, parameter)
            master.copy_(weight)
            parameter.copy_(weight)
            if f"{name}.step" in state.moments:
                slot["step"] = state.moments[f"{name}.step"].clone()  # AdamW keeps its step count on the CPU
                slot |= {key: value.to(device, copy=True) for key, value in found.items() if value is not None}
        else:
            _write(optimizer, parameter, weight, None)
            for key, value in found.items():
                if value is not None:
                    _write(optimizer, parameter, value.to(device), key)
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        for number in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(number)
        if optimizer.persistent_parameters:  # replicated in every process
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def master_weights(engine: Any, body: nn.Module, stage: int) -> dict[str, Tensor]:
    """The full float32 weights that the optimizer updates, by name; all processes call this."""
    if stage == 0:
        return {name: _stage_0(engine.optimizer, parameter)[0] for name, parameter in learning(body)}
    return {name: _read(engine.optimizer, parameter, None) for name, parameter in learning(body)}


def _read(optimizer: Any, parameter: Any, key: str | None) -> Tensor:
    """The full float32 weight (key None) or moment of a parameter, for stages 1 to 3; all processes call this."""
    if hasattr(parameter, "ds_id"):
        return optimizer.get_full_hp_param(parameter, key)
    whole = torch.zeros(parameter.numel(), device=parameter.device)
    fragment, place = _fragment(optimizer, parameter, key)
    whole[place] = fragment
    dist.all_reduce(whole, group=parameter._dp_group)
    return whole.view(parameter.shape)


def _write(optimizer: Any, parameter: Any, value: Tensor, key: str | None) -> None:
    """Inverse of `_read`, for this process's partition."""
    fragment, place = _fragment(optimizer, parameter, key)
    own = value.flatten()[place]
    fragment[: own.numel()].copy_(own)  # in stage 3 the last partition is padded


def _fragment(optimizer: Any, parameter: Any, key: str | None) -> tuple[Tensor, slice]:
    """This process's partition of a parameter, as a view, and its position in the flattened parameter."""
    if hasattr(parameter, "ds_id"):
        fragment, _ = optimizer._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=key
        )
        first = fragment.numel() * optimizer._get_param_partition_rank(parameter)
        return fragment, slice(first, first + fragment.numel())
    mapping = parameter._hp_mapping
    if mapping is None:  # other processes hold all of it
        return torch.empty(0, device=parameter.device), slice(0, 0)
    place, length = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
    if key is None:
        fragment = mapping.hp_fragment
    else:  # DeepSpeed's own mapping of moments covers only the first parameter group (0.19)
        _, slot = list(_flat_slots(optimizer))[mapping.param_group_index]
        fragment = slot[key].narrow(0, mapping.hp_fragment_address.start, length)
    return fragment, slice(place, place + length)


def _stage_0(optimizer: Any, parameter: nn.Parameter) -> tuple[Tensor, dict[str, Any]]:
    """The float32 weight of a stage-0 parameter and its slot in AdamW's state."""
    if not hasattr(optimizer, "fp32_groups"):  # float32: plain AdamW
        return parameter, optimizer.state[parameter]
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    master = next(high for lows, highs in pairs for low, high in zip(lows, highs, strict=True) if low is parameter)
    return master, optimizer.optimizer.state[master]


def _flat_slots(optimizer: Any) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """The flat vectors of this process and their slots in AdamW's state, for stages 1 to 3."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        flat = optimizer.fp32_partitioned_groups_flat
    else:
        flat = [group["params"][0] for group in optimizer.optimizer.param_groups]
    for master in flat:
        yield master, optimizer.optimizer.state[master]
