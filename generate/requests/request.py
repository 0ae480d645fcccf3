"""A request for samples, checked against the model, with one row per sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...configs.memory import check_memory
from ...configs.schema import check_config
from ...lm.conditioning.registry import ConditionBatch
from ...lm.generation_config import GenerationConfig
from ...lm.models.base import LanguageModel
from ...lm.patterns.text_stream import Task, TextStream, Turn
from ...tokenize.codes import pad_and_cat
from ...tokenize.spec import AudioGeometry, ImageGeometry
from ...tokenize.tokenizer import Tokenizer
from ..sampling.silence import silence_codes
from .arguments import number, setting, tensor, whole
from .conditions import ConditionInputs
from .keyword_types import Settings
from .settings import Length, check_length, check_prompt, check_seeds, seeds_from

DEFAULT_MAX_SECONDS = 30.0
"""Maximum audio length if neither the call nor the model sets one."""


@dataclass(frozen=True)
class StreamPrompt:
    """The beginning of each of B sequences of text and audio (lm/patterns/text_stream.py), and how it goes on."""

    task: Task | None
    """speak: the given text is followed by frames. write: the given frames are followed by text. None: by either."""
    codes: Tensor
    """[B, K + 1, S] long, what is given, right-padded."""
    lengths: Tensor
    """[B] long, given positions of each row."""
    shortest: Tensor
    """[B] long: no end before this many positions."""
    longest: Tensor
    """[B] long, maximum number of positions, the given ones included; the exact number if the length is fixed."""
    before: Tensor
    """[B] long, leading given positions that are no part of the result: earlier turns."""

    @classmethod
    def make(
        cls,
        task: Task | None,
        given: Sequence[Tensor],
        fewest: Sequence[int] | int,
        most: Sequence[int] | int,
        before: Sequence[int] | int = 0,
    ) -> StreamPrompt:
        """The prompt of rows that begin with the sequences [K + 1, S] and go on for `fewest` to `most` positions; the
        result begins after `before` (one number for all rows, or one for each)."""
        lengths = torch.tensor([row.shape[1] for row in given])
        shortest, longest = (lengths + torch.as_tensor(number) for number in (fewest, most))
        begun = torch.as_tensor(before).expand(len(given))
        return cls(task, pad_and_cat([row[None] for row in given]), lengths, shortest, longest, begun)

    def rows(self, rows: slice) -> StreamPrompt:
        """The selected rows."""
        lengths = self.lengths[rows]
        codes = self.codes[rows, :, : int(lengths.max())]
        return StreamPrompt(self.task, codes, lengths, self.shortest[rows], self.longest[rows], self.before[rows])


@dataclass(frozen=True)
class Request:
    """A batch of B samples to generate."""

    conditions: ConditionBatch
    """B rows; kinds that the model is not conditioned on are None."""
    seeds: list[int]
    """B 64-bit whole numbers. All randomness of row i is a function of seeds[i]."""
    length: Length
    config: GenerationConfig = field(default_factory=GenerationConfig)
    """Sampling and decoding settings; `length`, `window` and `stride` replace those of frames."""
    prompt: Tensor | None = None
    """Codes [B, K, t] that the samples begin with, unchanged."""
    window: int | None = None
    """Frames generated per window; None: all at once."""
    stride: int = 1
    """New frames per window."""
    stream: StreamPrompt | None = None
    """What the sequences of a model with a text stream begin with. `length` then counts positions, and there is no
    `prompt`."""

    def rows(self, first: int, last: int) -> Request:
        """The rows first ... last - 1."""
        stream = None if self.stream is None else self.stream.rows(slice(first, last))
        longest = self.length.max_frames if stream is None else int(stream.longest.max())
        return replace(
            self,
            length=replace(self.length, max_frames=longest),
            conditions=self.conditions.rows(slice(first, last)),
            seeds=self.seeds[first:last],
            prompt=None if self.prompt is None else self.prompt[first:last],
            stream=stream,
        )


def check_request(lm: LanguageModel, request: Request) -> None:
    """Raise ValueError if length, seeds or prompt contradict each other or the model."""
    check_length(request.length, lm.arrangement.variable_length)
    check_seeds(request.seeds)
    check_stream(lm, request)
    if request.prompt is not None:
        check_prompt(request.prompt, len(request.seeds), lm.spec.cardinalities, request.length)


def check_stream(lm: LanguageModel, request: Request) -> None:
    """Raise ValueError unless a model with a text stream, and no other, is given what its sequences begin with."""
    prompt = request.stream
    if (lm.text_stream is None) != (prompt is None):
        has = "has a text stream, but the request does not say" if prompt is None else "has no text stream to say"
        raise ValueError(f"the model {has} what its sequences begin with; use Model.generate or Model.transcribe")
    if prompt is None or lm.text_stream is None:
        return
    if request.prompt is not None:
        raise ValueError("a prompt of a model with a text stream belongs to `stream`; leave `prompt` out")
    if len(prompt.lengths) != len(request.seeds):
        raise ValueError(f"{len(prompt.lengths)} sequences are begun for {len(request.seeds)} seeds; give as many")
    if prompt.codes.shape[2]:
        filled = prompt.lengths.clamp(min=1)
        lm.arrangement.check(prompt.codes, filled)
        lm.text_stream.check(prompt.codes, prompt.lengths)
    if bool((prompt.longest <= prompt.lengths).any()) or bool((prompt.shortest > prompt.longest).any()):
        raise ValueError("a sequence has no room beyond its beginning, or ends before its minimum; raise `longest`")
    if request.length.max_frames != int(prompt.longest.max()):
        raise ValueError(f"length is {request.length.max_frames} positions, the longest {int(prompt.longest.max())}")
    if prompt.task == "write" and lm.text_stream.unpredicted:
        predict = lm.text_stream.config.predict
        raise ValueError(
            f"the model predicts no text (text_stream.predict is '{predict}'), so it cannot write; let it speak"
        )


def make_request(
    lm: LanguageModel,
    tokenizer: Tokenizer,
    inputs: ConditionInputs,
    n: int,
    seed: int,
    prompt: Tensor | None,
    num_frames: int | None,
    defaults: GenerationConfig | None,
    settings: Settings,
) -> Request:
    """Check a call's arguments and expand them to rows.

    With a list of conditions there are n consecutive rows for each entry; row i has the seed `seed + i`.

    Args:
        inputs: condition inputs.
        prompt: codes [K, t] for all rows, or [B, K, t].
        num_frames: generate exactly this number of frames, without an end.
        defaults: values of the settings that are not given.
    Raises:
        ValueError: names the argument, what was found and what to do.

    A model with a text stream speaks the texts, and the prompt follows them.
    """
    chosen = choose(defaults, settings)
    n, seed = whole("n", n, 1), whole("seed", seed)
    seeds_from(seed, 1)
    if num_frames is not None:
        num_frames = whole("num_frames", num_frames, 1)
    length = check_length(_length(lm, num_frames, chosen, "min_frames" in settings), lm.arrangement.variable_length)
    check_decode_memory(lm, n, length.max_frames if length.fixed else None)
    if not length.fixed and chosen.window_frames is None:
        check_decode_memory(lm, 1, length.max_frames)  # the buffers hold all frames from the start
    if chosen.window_frames is not None and lm.conditions.aligned is not None:
        raise ValueError(
            f"window_frames is {chosen.window_frames}, but a window would begin within the model's aligned text; leave "
            "it out"
        )
    if chosen.window_frames is not None and lm.text_stream is not None:
        raise ValueError(
            f"window_frames is {chosen.window_frames}, but a window would begin without the text of the model's text "
            "stream; leave it out"
        )
    conditions, count = inputs.rows(lm, n)
    seeds = seeds_from(seed, count)
    if prompt is not None:
        prompt = tensor("prompt", prompt, "codes, long [K, t] or [B, K, t]")
        prompt = prompt.expand(count, -1, -1) if prompt.dim() == 2 else prompt
        if prompt.shape[0] != count:
            rows = f"the prompt has {prompt.shape[0]} rows for {count} samples"
            raise ValueError(f"{rows}; give one [K, t] for all, or as many rows")
        check_prompt(prompt, count, lm.spec.cardinalities, length)
    stream = None
    if inputs.turns and (lm.text_stream is None or not lm.text_stream.has_end_frame):
        raise ValueError("turns were given, but the model reads no earlier turns of a conversation; leave them out")
    if lm.text_stream is not None:
        stream = _spoken(lm.text_stream, inputs.texts(count), prompt, length, inputs.turns)
        length, prompt = Length(int(stream.longest.max()), 0, length.fixed), None
    return Request(
        conditions=conditions,
        seeds=seeds,
        length=length,
        config=with_silence_codes(chosen, tokenizer),
        prompt=prompt,
        window=chosen.window_frames if isinstance(lm.spec.geometry, AudioGeometry) else None,
        stride=_stride(chosen),
        stream=stream,
    )


def _spoken(
    stream: TextStream,
    texts: Sequence[Sequence[int]],
    prompt: Tensor | None,
    length: Length,
    turns: Sequence[Turn] = (),
) -> StreamPrompt:
    """Sequences that begin with earlier turns, then with a text, and with the prompt [B, K, t] after it; `length`
    counts the frames of the prompt and those that follow."""
    none = torch.zeros(len(stream.cardinalities) - 1, 0, dtype=torch.long)
    prompts = [none] * len(texts) if prompt is None else list(prompt.cpu())
    given = [stream.speak(text, codes, turns) for text, codes in zip(texts, prompts, strict=True)]
    begun = [
        len(row[0]) - len(stream.speak(text, codes)[0]) for row, text, codes in zip(given, texts, prompts, strict=True)
    ]
    before = prompts[0].shape[1]
    fewest, most = max(length.min_frames - before, 0), length.max_frames - before
    return StreamPrompt.make("speak", given, fewest, most, begun)


def check_decode_memory(lm: LanguageModel, count: int, num_frames: int | None = None) -> None:
    """Raise ValueError if the codes and media of `count` samples do not fit into memory.

    Args:
        num_frames: frames per sample; None: those of an image, or one frame of audio.
    """
    geometry = lm.spec.geometry
    if isinstance(geometry, AudioGeometry):
        frames, values = num_frames or 1, (num_frames or 1) * geometry.samples_per_frame * geometry.channels
    else:
        frames, values = geometry.num_frames, geometry.height * geometry.width * geometry.channels
    size = 8 * frames * lm.spec.num_codebooks + 4 * values
    asked = f"{count} samples" if count > 1 else f"a sample of {frames} frames"
    check_memory(count * size, asked, "generate fewer at a time, or shorter ones")


def check_count(n: int) -> None:
    """ValueError unless n is a valid number of samples."""
    whole("n", n, 1)


def choose(defaults: GenerationConfig | None, settings: Settings) -> GenerationConfig:
    """The defaults updated with a call's settings. ConfigError: names an unknown or invalid setting."""
    if "default_label" in settings:
        raise ValueError("default_label belongs to the model; give label instead")
    given = {name: setting(name, value) for name, value in settings.items()}
    chosen = GenerationConfig() if defaults is None else defaults
    return check_config({**chosen.model_dump(mode="json"), **given}, GenerationConfig, "generate")


def _stride(chosen: GenerationConfig) -> int:
    window, stride = chosen.window_frames, chosen.stride_frames
    if window is None:
        return 1
    if window < 2 or (stride is not None and stride >= window):
        raise ValueError(
            f"stride_frames is {stride} and window_frames {window}; the stride must be below the "
            "window, so that consecutive windows overlap"
        )
    return stride or max(1, window * 6 // 10)


def with_silence_codes(config: GenerationConfig, tokenizer: Tokenizer) -> GenerationConfig:
    """The settings with the tokenizer's silence codes, if silence is limited and they name none; ValueError for
    images."""
    if not config.max_silence:
        return config
    codes = config.silence_codes or tuple(silence_codes(tokenizer))
    return config.model_copy(update={"silence_codes": codes})


def _length(lm: LanguageModel, num_frames: int | None, chosen: GenerationConfig, min_given: bool) -> Length:
    geometry = lm.spec.geometry
    if isinstance(geometry, ImageGeometry):
        for name, asked in (("num_frames", num_frames), ("max_frames", chosen.max_frames)):
            if asked is not None and asked != geometry.num_frames:
                whole = f"an image of '{lm.spec.name}' has {geometry.num_frames} frames"
                raise ValueError(f"{name} is {asked}, but {whole}; leave it out")
        return Length(geometry.num_frames, fixed=True)
    if num_frames is not None:
        return Length(num_frames, min_frames=0, fixed=True)
    longest = chosen.max_frames or max_frames_for(DEFAULT_MAX_SECONDS, geometry)
    if not lm.arrangement.variable_length:
        return Length(longest, min_frames=0, fixed=True)
    # A limit below the model's default minimum is taken as intended; a contradiction within the call is an error.
    return Length(longest, chosen.min_frames if min_given else min(chosen.min_frames, longest))


def max_frames_for(seconds: float, geometry: AudioGeometry) -> int:
    """The largest number of frames that fit into `seconds`, at least one; ValueError unless seconds > 0."""
    if not 0 < number("max_seconds", seconds) < 1e6:
        raise ValueError(f"max_seconds must be above 0, found {seconds}")
    return max(1, math.floor(seconds * geometry.frame_rate + 1e-6))
