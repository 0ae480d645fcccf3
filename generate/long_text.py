"""Generation from texts that are split into chunks (long_form/speech.py), in a stream or as whole samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..lm.generation_config import GenerationConfig
from ..tokenize.alignment.spoken_text import SpokenText, join_spoken, spoken_text
from ..tokenize.spec import AudioGeometry
from ..tokenize.text.units import UnitText
from .decoding.loop import Progress
from .decoding.media import decode_one
from .long_form.speech import carries_audio, make_chunks, speak
from .long_form.windows import Making, make_row
from .parts import ModelParts
from .pipeline import run_request
from .requests.conditions import ConditionInputs
from .requests.keyword_types import Settings
from .requests.request import Request, choose, make_request
from .requests.settings import seeds_from
from .result import Result, join_results
from .text_checks import with_min_frames


@dataclass(frozen=True)
class Entry:
    """A text with its other conditions, for n samples."""

    chunks: Sequence[str]
    """The text; one chunk if it is not split."""
    conditions: ConditionInputs
    """With the first chunk as text."""


def speak_chunks(parts: ModelParts, entry: Entry, seed: int, prompt: Tensor | None, settings: Settings) -> Making:
    """Generate the chunks of a text one after another; yields codes [K, n] as they become final.

    Args:
        prompt: codes [K, t] or [1, K, t] that the first chunk begins with.
    """
    assert parts.text is not None and isinstance(parts.spec.geometry, AudioGeometry)
    seeds_from(seed, 1)
    config, conditions = choose(parts.defaults, settings), entry.conditions
    limits: Any = {name: value for name, value in settings.items() if name not in ("min_frames", "max_frames")}
    if _has_no_voice(parts, conditions, config):
        conditions = replace(conditions, label=seed % len(parts.labels))

    def request_for(ids: Sequence[int], own_seed: int, start: Tensor | None, fewest: int, most: int) -> Request:
        inputs = replace(conditions, text_ids=ids)
        own: Any = {**limits, "max_frames": most, "min_frames": fewest}
        return make_request(parts.lm, parts.tokenizer, inputs, 1, own_seed, start, None, parts.defaults, own)

    fewest, most = settings.get("min_frames", 0), settings.get("max_frames")
    carries = carries_audio(parts.lm, config)
    chunks = make_chunks(
        entry.chunks, parts.text.encode, parts.text.num_characters, carries, parts.spec.geometry,
        _frames_per_character(parts, config), fewest, config.text_characters,
    )  # fmt: skip
    # Settings are checked at the call, not on first iteration.
    if most is not None and fewest > most:
        raise ValueError(f"min_frames must be from 0 to max_frames ({most}), found {fewest}")
    capacity = chunks[0].most if most is None else min(chunks[0].most, most)
    if prompt is not None and prompt.shape[-1] >= capacity:
        raise ValueError(
            f"the prompt has {prompt.shape[-1]} frames, and the text is split into {len(chunks)} chunks; the first, "
            f"{entry.chunks[0]!r}, begins with the prompt and has a capacity of {capacity} frames; "
            "shorten the prompt (prompt_frames), or set split to 'off'"
        )
    make_row(parts.lm, request_for(chunks[0].text_ids, seed, prompt, 0, capacity))
    start = None if prompt is None else prompt.reshape(prompt.shape[-2:])
    return Making(speak(parts.lm, chunks, request_for, seed, config.retries, most, start))


def _frames_per_character(parts: ModelParts, config: GenerationConfig) -> tuple[float, float] | None:
    """The limits of a chunk; an aligned text is never too short, and longer at a lower speed."""
    rates = config.frames_per_character
    if rates is None or parts.lm.conditions.aligned is None:
        return rates
    return 0.0, rates[1] / min(config.speed, 1.0)


def _has_no_voice(parts: ModelParts, conditions: ConditionInputs, config: GenerationConfig) -> bool:
    """Whether each chunk would have a different voice: the model has labels, and nothing selects or carries one."""
    given = (conditions.label, conditions.voice, conditions.embedding)
    return (
        not carries_audio(parts.lm, config) and "label" in parts.condition_kinds and all(one is None for one in given)
    )


def generate_long(
    parts: ModelParts,
    entries: Sequence[Entry],
    n: int,
    seed: int,
    prompt: Tensor | None,
    exact: bool,
    batch: int,
    on_progress: Progress | None,
    settings: Settings,
) -> Result:
    """Generate n samples for each entry, one sample after another; some texts are split into chunks.

    Args:
        prompt: codes [K, t] for all samples, or [B, K, t].
    """
    total = len(entries) * n
    if prompt is not None and prompt.dim() == 3 and len(prompt) != total:
        raise ValueError(
            f"the prompt has {len(prompt)} rows for {total} samples; give one [K, t] for all, or as many rows"
        )
    results = []
    for i, own_seed in enumerate(seeds_from(seed, total)):
        entry = entries[i // n]
        start = prompt if prompt is None or prompt.dim() == 2 else prompt[i]
        if len(entry.chunks) == 1:
            own = with_min_frames(parts, entry.chunks[0], None, settings)
            request = make_request(
                parts.lm, parts.tokenizer, entry.conditions, 1, own_seed, start, None, parts.defaults, own
            )
            made = run_request(parts.lm, parts.tokenizer, request, exact, batch, None)
            results.append(with_alignments(parts, made, entry.chunks))
        else:
            chunks = speak_chunks(parts, entry, own_seed, start, settings)
            results.append(_whole(parts, entry.chunks, chunks, own_seed))
        if on_progress is not None:
            on_progress(i + 1, total)
    return join_results(results)


def with_alignments(parts: ModelParts, result: Result, texts: Sequence[str]) -> Result:
    """The result of n samples of each text, with the times of their words if the model has an aligned text."""
    geometry = parts.spec.geometry
    if result.units is None or not (isinstance(parts.text, UnitText) and isinstance(geometry, AudioGeometry)):
        return result
    n, lengths, made = len(result) // len(texts), result.lengths.tolist(), []
    for i, units in enumerate(result.units):
        made.append(spoken_text(parts.text, texts[i // n], units[: lengths[i]], geometry.frame_rate))
    return replace(result, alignments=tuple(made))


def _whole(parts: ModelParts, texts: Sequence[str], chunks: Making, seed: int) -> Result:
    """The sample of a text in chunks."""
    codes = torch.cat([codes.cpu() for codes in chunks], dim=1)[None]
    return Result(
        alignments=_of_chunks(parts, texts, chunks.end.units),
        codes=codes,
        lengths=torch.tensor([codes.shape[2]]),
        media=[decode_one(parts.tokenizer, codes[0])],
        seeds=(seed,),
        ended=(chunks.ended,),
        spec=parts.spec,
    )


def _of_chunks(parts: ModelParts, texts: Sequence[str], units: Sequence[Tensor]) -> tuple[SpokenText, ...]:
    """The times of the words of chunks that follow each other, from the units [T] of each chunk's frames."""
    geometry = parts.spec.geometry
    if not units or not (isinstance(parts.text, UnitText) and isinstance(geometry, AudioGeometry)):
        return ()
    spoken, starts, start = [], [], 0.0
    for text, of_frames in zip(texts, units, strict=False):  # fewer if the limit of frames was reached
        spoken.append(spoken_text(parts.text, text, of_frames, geometry.frame_rate))
        starts.append(start)
        start += len(of_frames) / geometry.frame_rate
    return (join_spoken(spoken, starts),)
