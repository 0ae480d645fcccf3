"""Streaming output: audio to a file or a pipe, and partial images to a folder."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..configs.printable import say
from .option_groups import OutputOptions
from .output_files import warnings_in_one_line

if TYPE_CHECKING:
    from ..generate.model import Model


def stream_audio_to(model: Model, target: OutputOptions, **call) -> None:
    """Write audio during generation, and print the time to first audio on stderr.

    Args:
        target: a .wav file, or - for stdout; the summary as JSON not with -.
        call: arguments of `Model.stream`; None values are omitted.
    """
    from ..configs.output_place import prepare_file

    output, as_json = target.output, target.as_json
    piped = str(output) == "-"
    if piped and as_json:
        raise ValueError("--json and the audio cannot both go to stdout; name a file with -o")
    if not piped and output.suffix.lower() != ".wav":
        raise ValueError(f"{output}: a stream is written as .wav; name a .wav file, or - for stdout")
    if not piped:
        prepare_file(output)
    started = time.monotonic()
    with warnings_in_one_line() as warned:  # all are issued at the call
        chunks = model.stream(**_given(call))
    if piped:
        summary = _write(model, chunks, sys.stdout.buffer, started, seekable=False)
    else:
        with output.open("wb") as file:
            summary = _write(model, chunks, file, started, seekable=True)
    seconds, rate = summary["seconds_of_sound"], summary["seconds_of_sound"] / summary["seconds"]
    say(f"{output}: {seconds:.1f} s of audio in {summary['seconds']:.1f} s ({rate:.1f} s a second)")
    if as_json:
        print(json.dumps({"model": model.name, "file": str(output), **summary, "warnings": warned}, indent=2))


def _write(model: Model, chunks, file: BinaryIO, started: float, seekable: bool) -> dict[str, Any]:
    from ..tokenize.audio.wav_writer import WavWriter
    from ..tokenize.spec import AudioGeometry

    geometry = model.spec.geometry
    assert isinstance(geometry, AudioGeometry)
    writer, first = WavWriter(file, geometry.sample_rate, geometry.channels, seekable), None
    for samples in chunks:
        writer.write(samples)
        if first is None:
            first = time.monotonic() - started
            say(f"first audio after {first:.2f} s")
    writer.finish()
    seconds = writer.num_samples / geometry.sample_rate
    return {"first_sound_seconds": first, "seconds_of_sound": seconds, "seconds": time.monotonic() - started}


def stream_image_to(model: Model, output: OutputOptions, folder: Path, scale: int | None = None, **call) -> None:
    """Save an image, and its partial images in a folder: 0000.png, 0001.png, ...

    Args:
        scale: enlargement; None: see --scale.
        call: arguments of `Model.stream`; None values are omitted.
    """
    from ..generate.result import output_files, save_media
    from .make_samples import image_scale, say_scale
    from .output_files import prepare_outputs, say_older

    (target,) = output_files(output.output, 1, model.spec)
    factor = image_scale(model, scale)
    prepare_outputs([target])
    before = prepare_outputs([folder / "0000.png"])
    files: list[Path] = []
    image = None
    with warnings_in_one_line() as warned:  # all are issued at the call
        images = model.stream(**_given(call))
    for image in images:
        files.append(folder / f"{len(files):04d}.png")
        save_media(files[-1], image, model.spec, factor)
    assert image is not None
    save_media(target, image, model.spec, factor)
    say(f"{target}, and {len(files)} partial images in {folder}")
    say_scale(model, factor, scale)
    say_older(before, files)
    if output.as_json:
        summary = {"model": model.name, "file": str(target), "frames": [str(file) for file in files]}
        print(json.dumps({**summary, "warnings": warned}, indent=2))


def _given(call: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call.items() if value is not None}
