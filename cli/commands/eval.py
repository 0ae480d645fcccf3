"""`tessera eval`: measures loss per codebook on shards, and generation speed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...configs.printable import say
from ..option_groups import WEIGHTS_HELP
from ..option_limits import MAX_BATCH, MAX_SEED

if TYPE_CHECKING:
    from ...generate.model import Model
    from ...tokenize.data.shard_reader import Shards
    from ...train.lm.reference_prompts import PromptSource


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("eval")(evaluate)


def evaluate(
    model: Annotated[str, typer.Argument(help="Model directory, or the name of a bundled model.")],
    data: Annotated[Path | None, typer.Option(help="Folder of shards (tessera shards) to measure the loss on.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Where an item's prompt of codes comes from, as data.prompt in training: same_label, crop, or "
            "{kind: same_label, min_frames: 25}. Without it same_label where the shards have labels, else crop."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Chooses the prompts.")] = 0,
    batch: Annotated[int, typer.Option(min=1, max=MAX_BATCH, help="Batch size for the loss.")] = 16,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Measure the speed of generation.")] = True,
    weights: Annotated[str | None, typer.Option(help=WEIGHTS_HELP)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Measure a model: loss per codebook on held-out shards, and frames per second of generation.

    Example: tessera eval digits --data runs/digits/shards/test
    """
    from ...generate.loading import load

    if data is None and not speed:
        raise ValueError("nothing to measure: give --data SHARDS, or leave --no-speed out")
    loaded = load(model, device, weights=weights)  # pyright: ignore[reportArgumentType]
    found: dict = {"model": model, "parameters": loaded.lm.num_parameters}
    if data is not None:
        found["loss"] = measure_loss(loaded, data, batch, prompt, seed)
    if speed:
        found["speed"] = measure_speeds(loaded)
    print(json.dumps(found, indent=2) if as_json else format_findings(found))


def measure_loss(model: Model, data: Path, batch: int, prompt: str | None = None, seed: int = 0) -> dict:
    """Loss on all items of a folder of shards, in nats, per codebook (per scale) and their mean.

    Args:
        prompt: as --prompt. seed: that of the training run, to use the same prompts as its evaluations.
    """
    from ...lm.clustering.clustering import ClusteredTokenizer
    from ...tokenize.data.shard_reader import Shards
    from ...tokenize.spec import check_same_tokenizer
    from ...train.common.tasks import task_reader
    from ...train.common.text_states import TextStates
    from ...train.distributed.process_group import ProcessGroup
    from ...train.lm.aligned_text import AlignedText
    from ...train.lm.dataset import CodesDataset
    from ...train.lm.evaluate import evaluate_tasks

    shards = Shards(data)
    labelled = model.tokenizer.clustering if isinstance(model.tokenizer, ClusteredTokenizer) else None
    check_same_tokenizer(shards.spec, model.spec if labelled is None else labelled.tokenizer, f"shards {data}")
    conditions = {condition.kind for condition in model.lm.config.conditions}
    prompts = _prompts(model, shards, prompt, seed)
    labels = model.labels if "label" in conditions else None
    aligned = AlignedText.of(model.lm.config.conditions, model.text)
    width = next((one.width for one in model.lm.config.conditions if one.kind == "embedding"), None)
    reads = width is not None and model.text_encoder is not None and any(shards.texts())
    items = CodesDataset(
        shards,
        labels,
        model.text,
        clustering=labelled,
        prompts=prompts,
        aligned=aligned,
        embedding_width=width,
        states=TextStates(model.text_encoder) if reads and model.text_encoder else None,
        stream=model.lm.text_stream,
        tasks=None if model.lm.text_stream is None else task_reader(None, model.lm.text_stream.config, seed),
    )
    given = "" if prompts is None else f", prompts {prompts.config.kind} of seed {seed}"
    say(f"loss of {len(items)} items of {data}{given}")
    parts = model.lm.loss_parts
    losses, tasks = evaluate_tasks(model.lm, items, batch, ProcessGroup(0, 1, model.lm.device))
    return {
        "data": str(data),
        "items": len(items),
        "frames": int(items.frames.sum()),
        "mean": parts.mean(losses.tolist()),
        **parts.named(losses.tolist()),
        **tasks,
    }


def _prompts(model: Model, shards: Shards, prompt: str | None, seed: int) -> PromptSource | None:
    """The source of reference codes; None for a model without that condition."""
    from ...configs.schema import Config, check_config, parse_yaml
    from ...train.lm.reference_prompts import PromptConfig, PromptSource

    class Rule(Config):
        prompt: PromptConfig

    longest = next((one.max_frames for one in model.lm.config.conditions if one.kind == "codes"), None)
    if longest is None:
        if prompt is not None:
            raise ValueError(f"--prompt: '{model.name}' takes no prompt of codes; leave it out")
        return None
    if prompt is None:
        prompt = "same_label" if shards.label_names else "crop"
    rule = parse_yaml(prompt, "--prompt") if prompt.lstrip().startswith("{") else {"kind": prompt}
    return PromptSource(check_config({"prompt": rule}, Rule, "eval").prompt, longest, seed)


def measure_speeds(model: Model) -> list[dict]:
    """Frames per second for batch sizes 1 and 16, with the model's default settings."""
    from ...generate.sampling.guidance import guidance_words
    from ...generate.throughput import measure_speed

    found = []
    for rows in (1, 16):
        say(f"speed of {rows} at a time")
        speed = measure_speed(model, rows)
        scale = speed.guidance
        found.append(
            {
                "rows": rows,
                "guidance": scale if isinstance(scale, int | float) else guidance_words(scale),
                "frames_per_second": speed.frames_per_second,
                "audio_per_second": speed.audio_seconds / speed.median,
            }
        )
    return found


def format_findings(found: dict) -> str:
    """Format the findings as a table."""
    lines = [f"{found['model']}: {found['parameters'] / 1e6:.2f} M parameters"]
    if "loss" in found:
        loss = found["loss"]
        lines.append(f"\nloss on {loss['data']} ({loss['items']} items, {loss['frames']} frames)")
        part = "scale" if "per_scale" in loss else "codebook"
        lines.append(f"  {part:>8}  {'nats':>7}  {'perplexity':>10}")
        named = [(name, loss[name]) for name in ("text", "mean", "speak", "write") if name in loss]
        for name, nats in [*enumerate(loss[f"per_{part}"]), *named]:
            lines.append(f"  {name:>8}  {nats:7.4f}  {math.exp(min(nats, 700)):10.2f}")
    if "speed" in found:
        lines.append(f"\ngeneration\n  {'at a time':>9}  {'guidance':>8}  {'frames/s':>9}  {'s of audio per s':>16}")
        for one in found["speed"]:
            audio = f"{one['audio_per_second']:16.2f}" if one["audio_per_second"] else f"{'-':>16}"
            lines.append(f"  {one['rows']:9d}  {one['guidance']:>8}  {one['frames_per_second']:9.1f}  {audio}")
    return "\n".join(lines)
