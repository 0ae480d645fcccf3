"""Generate samples with a progress bar, save them, and print a summary: what generate, tts and image do."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ..configs.files import write_atomic
from ..configs.output_place import prepare_file
from ..configs.printable import say
from ..tokenize.alignment.subtitles import to_srt
from .option_groups import ImageOptions, OutputOptions
from .output_files import prepare_outputs, say_older, warnings_in_one_line
from .setting_options import as_list

if TYPE_CHECKING:
    from ..generate.model import Model
    from ..generate.result import Result

TINY, SHOWN = 128, 256
"""Images with both sides below TINY pixels are enlarged until one side has SHOWN or more."""
LARGEST_SHEET = 4096
"""Maximum side in pixels to which a grid is enlarged without --scale."""


def make_samples(
    model: Model,
    count: int,
    output: OutputOptions,
    image: ImageOptions | None = None,
    srt: Path | None = None,
    **call: Any,
) -> None:
    """Generate samples and save them.

    Args:
        count: total number of samples of the call; the output is checked for them before generation.
        output: a media file for one sample or a grid, otherwise a directory.
        image: for a verb that can make images.
        srt: write the subtitles of the one sample there.
        call: arguments of `Model.generate`; None values are omitted.
    """
    from ..generate.requests.request import check_decode_memory
    from ..generate.result import check_images, output_files

    path, image = output.output, image or ImageOptions()
    check_decode_memory(model.lm, count, call.get("num_frames"))
    if image.scale is not None or image.grid:
        check_images(model.spec, "--grid was given" if image.grid else f"--scale is {image.scale}")
    entries = max(len(as_list(call.get(name))) for name in ("text", "label", "voice", "melody", "description"))
    columns = count // entries if entries > 1 and count > entries else None
    factor = image_scale(model, image.scale, count if image.grid else 1, columns)
    targets = output_files(path, 1 if image.grid else count, model.spec)
    if image.grid and targets != [path]:
        raise ValueError(f"--grid writes one image; name it with -o, for instance -o {path}.png")
    if srt is not None:
        _prepare_subtitles(model, count, srt)
    before = prepare_outputs(targets)
    started = time.monotonic()
    result = _generate_with_progress(model, call)
    seconds = time.monotonic() - started
    if image.grid:
        files = [result.save_grid(path, columns, factor)] * len(result)
    else:
        files = result.save(path, factor)
    if srt is not None:
        write_atomic(srt, to_srt(result.alignment.words).encode())
    _say_summary(result, files, path, image.grid, seconds)
    say_scale(model, factor, image.scale)
    say_older(before, targets)
    _say_cut(result)
    if output.as_json:
        _print_json(model, result, files, entries, seconds, call)


def _prepare_subtitles(model: Model, count: int, srt: Path) -> None:
    """Create the folder of a file of subtitles; ValueError if the model or the number of samples has none."""
    if model.lm.conditions.aligned is None:
        raise ValueError(
            f"--srt {srt}: '{model.name}' has no aligned text, so the times of words are unknown; leave it out"
        )
    if count != 1:
        raise ValueError(f"--srt {srt}: subtitles are of one sample, but {count} were asked for; use -n 1 and one text")
    prepare_file(srt)


def _generate_with_progress(model: Model, call: dict[str, Any]) -> Result:
    given = {name: value for name, value in call.items() if value is not None}
    with tqdm(desc="generating", unit="step", file=sys.stderr, leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        with warnings_in_one_line():
            return model.generate(on_progress=show, **given)


def _say_summary(result: Result, files: list[Path], path: Path, grid: bool, seconds: float) -> None:
    kind = "audio files" if result.seconds else "images"
    length = f", {result.seconds:.1f} s of audio" if result.seconds else ""
    several = f"{len(files)} {kind} " + (f"on {path}" if grid else f"in {path}")
    where = files[0] if len(files) == 1 else several
    rate = result.num_frames / seconds
    say(f"{where}: {result.num_frames} frames{length} in {seconds:.1f} s ({rate:.0f} frames/s)")


def _say_cut(result: Result) -> None:
    """Warn about samples that reached the limit of frames."""
    cut = result.ended.count(False)
    if cut:
        print(
            f"tessera: {cut} of {len(result)} samples did not end within {int(result.lengths.max())} frames and were "
            "cut; raise --max-seconds, or try another --seed",
            file=sys.stderr,
        )


def _print_json(
    model: Model, result: Result, files: list[Path], entries: int, seconds: float, call: dict[str, Any]
) -> None:
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
                **({"words": [asdict(word) for word in result.alignments[i].words]} if result.alignments else {}),
            }
        )
    summary = {
        "model": model.name,
        "samples": samples,
        "seconds": seconds,
        "frames_per_second": result.num_frames / seconds,
        "warnings": list(result.warnings),
    }
    print(json.dumps(summary, indent=2))


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
        size = f"{geometry.width} x {geometry.height} pixels"
        say(f"images of {size} are enlarged {factor} times; --scale 1 writes them as generated")


def voice_of(model: Model, text: str) -> dict[str, Any]:
    """Arguments for --voice: a label of the model, or a reference file."""
    if text in model.labels or (model.labels and text.isdecimal()):
        return {"label": label_of(model, text)}
    takes_files = any(condition.kind == "codes" for condition in model.lm.config.conditions)
    return {"voice": text} if takes_files or not model.labels else {"label": text}


def label_of(model: Model, text: str) -> str | int:
    """A label as typed: its name, or its id if no label has that name."""
    return int(text) if text not in model.labels and text.isdecimal() else text
