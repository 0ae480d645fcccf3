"""`tessera tts`: text to speech."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from ..option_groups import LexiconOption, ModelOptions, OutputOptions, SampleOptions, SubtitleOptions, with_groups
from ..option_limits import MAX_FRAMES

MAX_STDIN_BYTES = 1 << 20


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(with_groups(settings=("speed", "guidance", "temperature", "top_k", "top_p"))(tts))


def tts(
    text: Annotated[str, typer.Argument(help="Text to speak; - reads it from stdin, as UTF-8.")],
    output: OutputOptions,
    samples: SampleOptions,
    model: Annotated[str, typer.Option(help="Model directory, or the name of a bundled model.")] = "voice",
    voice: Annotated[
        str | None,
        typer.Option(
            "--voice",
            "--voice-name",
            help="The name of a voice of the model, or a recording of a voice (or its codes).",
        ),
    ] = None,
    voice_frames: Annotated[
        int | None, typer.Option(min=1, max=MAX_FRAMES, help="Use only the first frames of the recording.")
    ] = None,
    voice_text: Annotated[
        str | None, typer.Option(help="The words of the recording, for models that read them (CSM, Qwen3-TTS).")
    ] = None,
    description: Annotated[
        str | None, typer.Option(help="How it sounds, for models that read this beside the text.")
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Language of the text, by name, for models with such names.", show_default="auto")
    ] = None,
    lexicon: LexiconOption = None,
    max_seconds: Annotated[float | None, typer.Option(help="Maximum length.")] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Write the .wav during generation; -o - does so to stdout.")
    ] = False,
    *,
    subtitles: SubtitleOptions,
    loading: ModelOptions,
    settings: dict[str, Any],
) -> None:
    """Speak a text.

    Example: tessera tts "Hello world." -o hello.wav

    Play it during generation: tessera tts "Hello world." -o - | aplay

    Another voice, slower, with subtitles: tessera tts "Hello." --voice slt --speed 0.8 --srt a.srt -o a.wav

    From a file or another program: tessera tts - -o letter.wav < letter.txt

    The bundled model reads English; tessera generate has all settings.
    """
    from ..make_samples import make_samples, voice_of
    from ..open_model import open_model
    from ..streaming_output import stream_audio_to

    text = _read_stdin() if text == "-" else text
    loaded = open_model(model, loading, lexicon)
    if loaded.spec.geometry.kind != "audio" or not loaded.reads_text:
        raise ValueError(f"model '{model}' does not turn text into audio; for images use: tessera image")
    call = {
        "text": text,
        **({} if voice is None else voice_of(loaded, voice)),
        "voice_frames": voice_frames,
        "voice_text": voice_text,
        **({} if description is None else {"description": description}),
        **({} if language is None else {"language": language}),
        "seed": samples.seed,
        "max_seconds": max_seconds,
        **settings,
    }
    if not stream and str(output.output) != "-":
        make_samples(loaded, samples.n, output, srt=subtitles.srt, n=samples.n, **call)
    elif subtitles.srt is not None:
        raise ValueError(f"--srt {subtitles.srt}: subtitles are written after the audio; leave --stream out")
    elif samples.n == 1:
        stream_audio_to(loaded, output, **call)
    else:
        raise typer.BadParameter(f"--stream generates one sample, but -n is {samples.n}; leave one of them out")


def _read_stdin() -> str:
    """The text on stdin without surrounding white space. ValueError: empty, not UTF-8, or longer than 1 MiB."""
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise ValueError(f"the text on stdin is longer than {MAX_STDIN_BYTES} bytes; split it")
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
