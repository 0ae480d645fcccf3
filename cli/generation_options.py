"""Code shared by generate, tts and image: generate samples with a progress bar, save them, print a summary."""

from __future__ import annotations

import json
import math
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from tqdm import tqdm

from ..configs.printable import printable, say

if TYPE_CHECKING:
    from ..generate.model import Model

WEIGHTS_HELP = "How matrices are kept: float32, bfloat16, int8 or int4; fewer bits are faster."
MAX_NUMBER = 2**31
CACHE_HELP = "How keys and values are kept: static, ring, int8, int4, evict; or {kind: ring, window: 500}."
STEP_HELP = "How steps are run: auto, eager, compiled (torch.compile), graph (CUDA)."


SCALE_HELP = "Write each pixel N times as wide and high; default: pictures under 128 pixels at 256 or more."
GRID_HELP = "All pictures on one sheet, which -o names."
TINY, SHOWN = 128, 256
"""Images with both sides below TINY pixels are enlarged until one side has SHOWN or more."""
LARGEST_SHEET = 4096
"""Maximum side in pixels to which a grid is enlarged without --scale."""


def make_samples(
    model: Model, output: Path, count: int, as_json: bool, scale: int | None = None, grid: bool = False, **call
) -> None:
    """Generate samples and save them.

    Args:
        output: a media file for one sample or a grid, otherwise a directory.
        count: total number of samples of the call; the output is checked for them before generation.
        as_json: print a summary on stdout.
        scale: enlargement of images; None: see SCALE_HELP.
        grid: write all images as one grid.
        call: arguments of `Model.generate`; None values are omitted.
    """
    from ..generate.requests.request import check_room
    from ..generate.result import check_images, output_files

    check_room(model.lm, count, call.get("num_frames"))
    if scale is not None or grid:
        check_images(model.spec, "--grid was given" if grid else f"--scale is {scale}")
    entries = max(len(value) for value in map(as_list, (call.get("text"), call.get("label"), call.get("voice"))))
    columns = count // entries if entries > 1 and count > entries else None
    factor = image_scale(model, scale, count if grid else 1, columns)
    targets = output_files(output, 1 if grid else count, model.spec)
    if grid and targets != [output]:
        raise ValueError(f"--grid writes one picture; name it with -o, for instance -o {output}.png")
    before = prepare_outputs(targets)
    given = {name: value for name, value in call.items() if value is not None}
    started = time.monotonic()
    with tqdm(desc="generating", unit="step", file=sys.stderr, leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        with warnings_in_one_line():
            result = model.generate(on_progress=show, **given)
    seconds = time.monotonic() - started
    if grid:
        files = [result.save_grid(output, columns, factor)] * len(result)
    else:
        files = result.save(output, factor)
    rate = result.num_frames / seconds
    kind = "sounds" if result.seconds else "pictures"
    length = f", {result.seconds:.1f} s of sound" if result.seconds else ""
    many = f"{len(files)} {kind} " + (f"on {output}" if grid else f"in {output}")
    where = files[0] if len(files) == 1 else many
    say(f"{where}: {result.num_frames} frames{length} in {seconds:.1f} s ({rate:.0f} frames/s)")
    say_scale(model, factor, scale)
    say_older(before, targets)
    cut = result.ended.count(False)
    if cut:
        limit = int(result.lengths.max())
        print(
            f"tessera: {cut} of {len(result)} samples did not end within {limit} frames and were cut; "
            "raise --max-seconds, or try another --seed",
            file=sys.stderr,
        )
    if as_json:
        labels = [model.labels[model.label_id(one)] for one in as_list(call.get("label")) if one is not None]
        texts = [one for one in as_list(call.get("text")) if one is not None]
        samples = []
        for i, file in enumerate(files):
            entry = i * entries // len(files)
            samples.append(
                {
                    "file": str(file),
                    "label": labels[entry % len(labels)] if labels else None,
                    "text": texts[entry % len(texts)] if texts else None,
                    "seed": result.seeds[i],
                    "frames": int(result.lengths[i]),
                    "ended": result.ended[i],
                }
            )
        summary = {"model": model.name, "samples": samples, "seconds": seconds, "frames_per_second": rate}
        print(json.dumps({**summary, "warnings": list(result.warnings)}, indent=2))


def as_list(value: Any) -> list:
    """Wrap a single value in a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def image_scale(model: Model, scale: int | None, count: int = 1, columns: int | None = None) -> int:
    """Enlargement factor of images, or of a grid of `count`; 1 for audio. ValueError: the scale is too large."""
    from ..generate.result import grid_gap
    from ..tokenize.data.media import check_scale
    from ..tokenize.spec import ImageGeometry

    geometry = model.spec.geometry
    if not isinstance(geometry, ImageGeometry):
        return 1
    across = min(count, math.ceil(count**0.5) if columns is None else columns)
    gap, down = grid_gap(geometry.height, geometry.width), math.ceil(count / across)
    height, width = down * (geometry.height + gap) - gap, across * (geometry.width + gap) - gap
    if scale is not None:
        check_scale(scale, height, width, "--scale" if count == 1 else "--grid")
        return scale
    longest = max(geometry.height, geometry.width)
    factor = math.ceil(SHOWN / longest) if longest < TINY else 1
    factor = factor if count == 1 else max(1, min(factor, LARGEST_SHEET // max(height, width)))
    check_scale(factor, height, width, "--grid")
    return factor


def say_scale(model: Model, factor: int, scale: int | None) -> None:
    """Print a note if images were enlarged without --scale."""
    geometry: Any = model.spec.geometry
    if scale is None and factor > 1:
        made = f"{geometry.width} x {geometry.height} pixels"
        told = f"pictures of {made} are written {factor} times as large; --scale 1 writes them as made"
        say(told)


def prepare_outputs(targets: list[Path]) -> list[Path]:
    """Create the folders of output files; returns the media already present in a folder of numbered files.

    Raises:
        OSError: a file cannot be written there, see `prepare_file`.
    """
    from ..configs.output_place import prepare_file
    from ..generate.result import SUFFIXES

    prepare_file(targets[0])  # the others are in the same folder
    if len(targets) == 1 and not re.fullmatch(r"0+", targets[0].stem):
        return []
    known = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
    return sorted(path for path in targets[0].parent.iterdir() if path.suffix.lower() in known)


def say_older(before: list[Path], written: list[Path]) -> None:
    """Print which media in the folder are from earlier runs, and how many were replaced."""
    now = {path.name for path in written}
    older = [path.name for path in before if path.name not in now]
    replaced = len(before) - len(older)
    if older:
        names = ", ".join(older if len(older) <= 5 else [*older[:4], f"... {older[-1]}"])
        also = f"; {replaced} others were replaced" if replaced else ""
        count = f"{len(older)} older file{'s' if len(older) > 1 else ''}"
        say(f"tessera: {before[0].parent} also holds {count}, not of this run: {names}{also}")
    elif replaced:
        say(f"replaced {replaced} older file{'s' if replaced > 1 else ''} there")


@contextmanager
def warnings_in_one_line() -> Iterator[list[str]]:
    """Print each GenerationWarning as one line on stderr, without deduplication; yields the list of printed ones."""
    from ..generate.result import GenerationWarning

    printed: list[str] = []
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message, category, *rest, **named) -> None:
            if not issubclass(category, GenerationWarning):
                return shown(message, category, *rest, **named)
            printed.append(str(message))
            with tqdm.external_write_mode(file=sys.stderr):
                say(f"tessera: {' '.join(str(message).split())}")

        warnings.simplefilter("always", GenerationWarning)
        warnings.showwarning = show
        yield printed


def numbers(text: str | None, option: str, whole: bool = False) -> float | list | None:
    """Parse "0.9" or "0.9,0.8,0.7"; typer.BadParameter names the option."""
    if text is None:
        return None
    try:
        values = [int(part) if whole else float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or any(not abs(value) < MAX_NUMBER for value in values):
        wanted = "a whole number" if whole else "a number"
        found = f"found '{printable(text, 100)}'"
        raise typer.BadParameter(f"{option} takes {wanted}, or one per codebook with commas; {found}") from None
    return values[0] if len(values) == 1 else values


def guidance_of(text: str | None) -> Any:
    """Parse "3", "3,2,1" or "{kind: linear, scale: 3}"; typer.BadParameter names the option."""
    from ..configs.schema import parse_yaml

    if text is None or not text.lstrip().startswith("{"):
        return numbers(text, "--guidance")
    return parse_yaml(text, "--guidance")


def voice_of(model: Model, text: str) -> dict[str, Any]:
    """Arguments for --voice: a label of the model, or a reference file."""
    if text in model.labels or (model.labels and text.isdecimal()):
        return {"label": label_of(model, text)}
    takes_files = any(condition.kind == "codes" for condition in model.lm.config.conditions)
    return {"voice": text} if takes_files or not model.labels else {"label": text}


def label_of(model: Model, text: str) -> str | int:
    """A label as typed: its name, or its id if no label has that name."""
    return int(text) if text not in model.labels and text.isdecimal() else text
