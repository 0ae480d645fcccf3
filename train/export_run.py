"""Exports a checkpoint of a finished, stopped or killed run as a model (or a frozen tokenizer).

For the last step of a finished run, the export has the same bytes as the run's own: both use `export_lm` with the same
weights, data and names. Nothing is unpickled, and the engine is not needed.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..configs.files import read_json, read_safetensors
from ..configs.folder_lock import lock_folder
from ..configs.output_place import prepare_folder
from ..configs.recognize import describe_wrong, folder_kind
from ..configs.schema import check_config, override
from ..lm.models.transformer_lm import TransformerLM
from ..tokenize.kinds import NETS
from ..tokenize.tokenizer import check_same_codes, load_tokenizer, make_tokenizer
from .common.checkpoint import STATE_FILE, Checkpoints, why_unusable
from .common.run_state import micro_batch_of
from .distributed.process_group import ONE_PROCESS, ProcessGroup
from .engines.ema import WeightAverage
from .lm.config import TrainConfig
from .lm.export import export_adapter, export_lm
from .lm.run_state import RunState, test_loss
from .lm.setup import TrainingSetup, open_parts
from .tokenizer.config import TokenizerTrainConfig


@dataclass(frozen=True)
class Exported:
    """Result of an export."""

    what: str
    """ "model", "adapter" or "tokenizer"."""
    step: int
    folder: Path
    advice: str
    """Advice on what to do with it."""


def export_run(
    run: Path,
    out: Path | None = None,
    *,
    step: int | None = None,
    best: bool = False,
    sets: Sequence[str] = (),
    tokenizer: Path | None = None,
    adapter: bool = False,
) -> Exported:
    """Export a checkpoint of a run.

    Args:
        run: folder of a run of `tessera train` or `tessera tokenizer train`.
        out: folder to write, empty or nonexistent; None: see the command line's help.
        step: the checkpoint after this many steps; None: the newest.
        best: the one with the lowest test loss.
        sets: "a.b=c", for settings that may change in a resumed run (locations of data and tokenizer, export,
            generation).
        tokenizer: of a language model: another tokenizer with the same codes, whose decoder was trained further.
        adapter: of a language model trained with lora: the low-rank changes alone.
    Raises:
        FileNotFoundError: no run, or no such checkpoint. FileExistsError: `out` is not empty.
        ValueError: the checkpoint is damaged, or the run was not trained on this data.
    """
    if step is not None and best:
        raise ValueError("--step and --best were both given; give one")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty; choose another folder with --out")
    if (run / "train.json").is_file():
        if best:
            raise ValueError(f"{run}: a tokenizer run has no test loss; give --step, or neither for the newest")
        if tokenizer is not None:
            raise ValueError(f"{run}: this run is of a tokenizer itself; leave --tokenizer out")
        if adapter:
            raise ValueError(f"{run}: this run is of a tokenizer, which has no adapter; leave --adapter out")
        with _locked(run, out):
            return _export_tokenizer(run, out, step, sets)
    described: Any = read_json(run / "config.json") if (run / "config.json").is_file() else None
    if not isinstance(described, dict) or not {"lm", "train", "data"} <= described.keys():
        wrong = describe_wrong(run, "a run") if folder_kind(run) != "run" else None
        raise FileNotFoundError(wrong or f"{run}: no run of tessera train or tessera tokenizer train here")
    with _locked(run, out):
        return _export_lm(run, described, out, step, best, sets, tokenizer, adapter)


def _locked(run: Path, out: Path | None) -> AbstractContextManager[None]:
    """Lock the run's folder if the model is written there, so that it is not being trained."""
    return lock_folder(run, "tessera export") if out is None else nullcontext()


def find_checkpoint(run: Path, step: int | None = None, best: bool = False) -> Path:
    """A good checkpoint of a run: of a given step, the best, or the newest; errors as `export_run`."""
    checkpoints = Checkpoints(run / "steps", ONE_PROCESS, 1, loss=test_loss)
    known = checkpoints.committed()
    steps = ", ".join(str(int(path.name.removeprefix("step-"))) for path in known)
    if not known:
        raise FileNotFoundError(
            f"{run}: it has no checkpoint yet; resume it (tessera train CONFIG --out {run} --resume) and "
            "stop it with Ctrl-C, which saves one"
        )
    if best:
        found = checkpoints.best()
        if not found:
            raise FileNotFoundError(
                f"{run}: no checkpoint has a test loss (it needs data.test, train.eval_every and train.keep.best); "
                f"choose one with --step: {steps}"
            )
        chosen = found[0]
    elif step is not None:
        chosen = run / "steps" / f"step-{step:08}"
        if chosen not in known:
            raise FileNotFoundError(f"{run}: no checkpoint of step {step}; available: {steps}")
    else:
        newest = checkpoints.newest()
        assert newest is not None
        return newest
    reason = why_unusable(chosen)
    if reason is not None:
        raise ValueError(f"{chosen}: {reason}; choose another one with --step: {steps}")
    return chosen


def _export_lm(
    run: Path,
    described: dict,
    out: Path | None,
    step: int | None,
    best: bool,
    sets: Sequence[str],
    tokenizer: Path | None,
    adapter: bool,
) -> Exported:
    config = check_config(override(described, sets), TrainConfig, str(run / "config.json"))
    found = find_checkpoint(run, step, best)
    finished = read_json(run / "FINISHED") if (run / "FINISHED").is_file() else None
    try:
        parts = open_parts(config, run, ONE_PROCESS, found)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} (named in {run / 'config.json'}, from the folder where the run was started; to change "
            "it, use --set, for instance --set data.shards=DIR)"
        ) from None
    processes = read_json(found / STATE_FILE)["processes"]
    state = RunState.load(found, config, parts, ProcessGroup(0, processes, ONE_PROCESS.device), micro_batch_of(found))
    if finished is not None and finished["step"] == state.step:  # evaluated or resumed after it was saved
        state.losses, state.command = finished["losses"], finished.get("command", state.command)
    average = WeightAverage(parts.first_lm(config, found), config.train.ema)
    if average.decay:
        average.load(found)
    if average.updates == 0:
        average.refresh(_weights(found))
    if adapter:
        return _export_adapter(average.model, parts, config, state, out or run / "adapter", tokenizer)
    folder = out if out is not None else run / ("model" if finished is None else f"model-{state.step}")
    if out is None and finished is not None and folder.exists():
        raise FileExistsError(f"{folder} exists already; choose another folder with --out")
    prepare_folder(folder.parent)
    with suppress(OSError):
        folder.rmdir()  # if empty
    if tokenizer is not None:
        parts = _with_tokenizer(parts, tokenizer)
        average.model.spec = parts.spec
    options = [("--tokenizer", tokenizer)] if tokenizer is not None else []
    options += [("--set", setting) for setting in sets]
    if options:
        words = " ".join(f"{name} {shlex.quote(str(value))}" for name, value in options)
        state.command = f"{state.command}\ntessera export {run} {words}"
    export_lm(average.model, parts, config, folder, state)
    return Exported("model", state.step, folder, f"generate samples with: tessera generate {folder} -o out")


def _export_adapter(
    lm: TransformerLM,
    parts: TrainingSetup,
    config: TrainConfig,
    state: RunState,
    folder: Path,
    tokenizer: Path | None,
) -> Exported:
    if tokenizer is not None:
        raise ValueError("--adapter and --tokenizer were both given: an adapter has no tokenizer; give one of them")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty; choose another folder with --out")
    prepare_folder(folder.parent)
    export_adapter(lm, parts, config, folder, state)
    assert config.init is not None
    advice = f"generate samples with: tessera generate {config.init.source} --adapter {folder} -o out"
    return Exported("adapter", state.step, folder, advice)


def _with_tokenizer(parts: TrainingSetup, folder: Path) -> TrainingSetup:
    """The inputs of a run with another tokenizer of the same codes. ValueError: its codes are others, or the run is
    part of a coarse-to-fine model, which holds the tokenizer several times."""
    if parts.clustering is not None or parts.coarse is not None:
        raise ValueError("--tokenizer was given, but the run is part of a coarse-to-fine model; leave it out")
    tokenizer = load_tokenizer(folder)
    check_same_codes(parts.tokenizer, tokenizer)
    return replace(parts, tokenizer=tokenizer, spec=tokenizer.spec)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    if not (folder / "weights.safetensors").is_file():
        raise ValueError(
            f"{folder}: saved by an earlier version, in DeepSpeed's own files; resume the run once "
            "(--resume), its next checkpoint can be exported"
        )
    return read_safetensors(folder / "weights.safetensors")[0]


@torch.no_grad()
def _export_tokenizer(run: Path, out: Path | None, step: int | None, sets: Sequence[str]) -> Exported:
    described = override(read_json(run / "train.json"), sets)
    config = check_config(described, TokenizerTrainConfig, str(run / "train.json"))
    found = find_checkpoint(run, step)
    net = NETS[config.tokenizer.kind](config.tokenizer)
    weights, buffers = _weights(found), {}
    if (found / "buffers.safetensors").is_file():
        buffers, _ = read_safetensors(found / "buffers.safetensors")
    own = net.state_dict()
    for name, tensor in (weights | buffers).items():
        if name.startswith("net."):  # the rest belongs to the losses
            own[name.removeprefix("net.")].copy_(tensor)
    average = WeightAverage(NETS[config.tokenizer.kind](config.tokenizer), config.train.ema)
    if average.decay:
        average.load(found)
        if average.updates:
            for name, parameter in net.named_parameters():
                parameter.copy_(average.model.get_parameter(name))
    done = int(read_json(found / STATE_FILE)["step"])
    folder = out if out is not None else run / f"snapshot-{done}"
    if (folder / "config.json").exists():
        raise FileExistsError(f"{folder} contains a tokenizer already; choose another folder with --out")
    make_tokenizer(config.tokenizer, net.train(False)).save(folder)
    return Exported("tokenizer", done, folder, f"measure it with: tessera tokenizer eval {folder}")
