"""What generate, tts and image share: make samples with a progress bar, save them, say what was made."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from tqdm import tqdm

from ..tokenize.printable import printable

if TYPE_CHECKING:
    from ..generate.model import Model

WEIGHTS_HELP = "How matrices are kept: float32, bfloat16, int8 or int4; fewer bits are faster."
MAX_NUMBER = 2**31
CACHE_HELP = "How keys and values are kept: static, ring, int8, int4, evict; or {kind: ring, window: 500}."
STEP_HELP = "How steps are run: auto, eager, compiled (torch.compile), graph (CUDA)."


def make_samples(model: Model, output: Path, count: int, as_json: bool, **call) -> None:
    """Generate and save.

    Args:
        output: a media file for one sample, else a directory.
        count: samples that the call makes in all; the output is checked for them before the work begins.
        as_json: print a summary on stdout.
        call: arguments of `Model.generate`; those that are None are left out.
    """
    from ..generate.request import check_room
    from ..generate.result import output_files

    check_room(model.lm, count, call.get("num_frames"))
    for target in output_files(output, count, model.spec):
        target.parent.mkdir(parents=True, exist_ok=True)
    given = {name: value for name, value in call.items() if value is not None}
    started = time.monotonic()
    with tqdm(desc="generating", unit="step", file=sys.stderr, leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        with warnings_in_one_line():
            result = model.generate(on_progress=show, **given)
    seconds = time.monotonic() - started
    files = result.save(output)
    rate = result.num_frames / seconds
    kind = "sounds" if result.seconds else "pictures"
    length = f", {result.seconds:.1f} s of sound" if result.seconds else ""
    where = files[0] if len(files) == 1 else f"{len(files)} {kind} in {output}"
    print(f"{where}: {result.num_frames} frames{length} in {seconds:.1f} s ({rate:.0f} frames/s)", file=sys.stderr)
    cut = result.ended.count(False)
    if cut:
        limit = int(result.lengths.max())
        print(
            f"tessera: {cut} of {len(result)} samples did not end within {limit} frames and were cut; "
            "raise --max-seconds, or try another --seed",
            file=sys.stderr,
        )
    if as_json:
        samples = [
            {"file": str(file), "seed": seed, "frames": int(frames), "ended": ended}
            for file, seed, frames, ended in zip(files, result.seeds, result.lengths, result.ended, strict=True)
        ]
        summary = {"model": model.name, "samples": samples, "seconds": seconds, "frames_per_second": rate}
        print(json.dumps({**summary, "warnings": list(result.warnings)}, indent=2))


@contextmanager
def warnings_in_one_line() -> Iterator[list[str]]:
    """Print each GenerationWarning as one line on stderr, every time; gives the list of those printed so far."""
    from ..generate.result import GenerationWarning

    printed: list[str] = []
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message, category, *rest, **named) -> None:
            if not issubclass(category, GenerationWarning):
                return shown(message, category, *rest, **named)
            printed.append(str(message))
            with tqdm.external_write_mode(file=sys.stderr):
                print(f"tessera: {' '.join(str(message).split())}", file=sys.stderr)

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
    from ..tokenize.config import parse_yaml

    if text is None or not text.lstrip().startswith("{"):
        return numbers(text, "--guidance")
    return parse_yaml(text, "--guidance")


def voice_of(model: Model, text: str) -> dict[str, Any]:
    """What --voice says: a label of the model, or a file whose voice to take."""
    if text in model.labels or (model.labels and text.isdecimal()):
        return {"label": label_of(model, text)}
    takes_files = any(condition.kind == "codes" for condition in model.lm.config.conditions)
    return {"voice": text} if takes_files or not model.labels else {"label": text}


def label_of(model: Model, text: str) -> str | int:
    """A label as typed: its name, or its id where no label has that name."""
    return int(text) if text not in model.labels and text.isdecimal() else text
