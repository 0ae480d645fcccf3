"""`tessera tts`: text to speech."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..generation_options import WEIGHTS_HELP
from ..option_limits import MAX_FRAMES, MAX_SAMPLES, MAX_SEED

MAX_STDIN_BYTES = 1 << 20


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(tts)


def tts(
    text: Annotated[str, typer.Argument(help="What to say; - reads it from stdin, as UTF-8.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--out", help="A .wav or .flac file, a directory for several, or - for WAV on stdout."),
    ],
    model: Annotated[str, typer.Option(help="Model directory, or the name of a bundled model.")] = "speech",
    voice: Annotated[
        str | None,
        typer.Option(help="A voice of the model by its name, or a recording (or its codes) to take it from."),
    ] = None,
    voice_frames: Annotated[
        int | None, typer.Option(min=1, max=MAX_FRAMES, help="Use only so many frames of the recording.")
    ] = None,
    n: Annotated[int, typer.Option("-n", "--count", min=1, max=MAX_SAMPLES, help="Ways of saying it.")] = 1,
    seed: Annotated[
        int, typer.Option(min=-MAX_SEED, max=MAX_SEED, help="Another seed is another way of saying it.")
    ] = 0,
    guidance: Annotated[str | None, typer.Option(help="1: none; higher follows the text closer.")] = None,
    temperature: Annotated[str | None, typer.Option(help="Lower is steadier. A number, or one per codebook.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Longest sound.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Write the .wav while it is made; -o - does so.")] = False,
    weights: Annotated[str | None, typer.Option(help=WEIGHTS_HELP)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Speak a text.

    Example: tessera tts "three one four" -o pi.wav

    Play it during generation: tessera tts "three one four" -o - | aplay

    From a file or another program: tessera tts - -o letter.wav < letter.txt

    The bundled model knows English digits and the phrases of the sample data; tessera generate has all settings.
    """
    from ...generate.model import load
    from ..generation_options import guidance_of, make_samples, numbers, voice_of
    from ..streaming_output import stream_audio_to

    text = _read_stdin() if text == "-" else text
    steadiness = numbers(temperature, "--temperature")
    loaded = load(model, device, weights=weights)  # pyright: ignore[reportArgumentType]
    if loaded.spec.geometry.kind != "audio" or loaded.text is None:
        raise ValueError(f"model '{model}' does not turn text into sound; for pictures use: tessera image")
    call = {
        "text": text,
        **({} if voice is None else voice_of(loaded, voice)),
        "voice_frames": voice_frames,
        "seed": seed,
        "guidance": guidance_of(guidance),
        "temperature": steadiness,
        "max_seconds": max_seconds,
    }
    if not stream and str(output) != "-":
        make_samples(loaded, output, n, as_json, n=n, **call)
    elif n == 1:
        stream_audio_to(loaded, output, as_json, **call)
    else:
        raise typer.BadParameter(f"a stream is one sound, but -n is {n}; leave one of them out")


def _read_stdin() -> str:
    """The text on stdin without surrounding white space. ValueError: empty, not UTF-8, or longer than 1 MiB."""
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise ValueError(f"the text on stdin is longer than {MAX_STDIN_BYTES} bytes; give less of it at a time")
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the text on stdin is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}; convert it, for "
            "instance with: iconv -t UTF-8"
        ) from None
    if not text:
        raise ValueError("there is no text on stdin; pipe some in, or give it as an argument")
    return text
