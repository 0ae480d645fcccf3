"""Speech for text longer than the training examples: split into chunks, each continuing the previous one.

    text      "three one four. one five nine. two six five."

    chunk 0   reads "three one four."                       makes A
    chunk 1   reads "three one four. one five nine."        begins with A, makes B
    chunk 2   reads "one five nine. two six five."          begins with B, makes C         the audio is A B C

Voice and tone carry over, and the text always matches the audio so far. A chunk that is much too short, or does not end
in time, is generated again with another seed; if every attempt fails, the next chunk starts without a prompt.
All codes go through one decoder, so there is no seam between chunks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...lm.generation_config import GenerationConfig
from ...lm.models.base import LanguageModel
from ...tokenize.spec import AudioGeometry
from ...tokenize.text.base import TextTokenizer
from ...tokenize.text.coverage import named
from ..requests.request import Request
from ..sampling.counter_rng import derived_seed
from .text_splitting import split_text
from .windows import Making, RowEnd, beyond, make_row

SECONDS_PER_CHARACTER = (0.015, 0.5)
"""Range for speech in any language, used if the model does not record the frame counts of its training data."""

FAR_TOO_LONG = 1.5
"""Ratio to the longest training text above which unsplit text gets a warning."""


@dataclass(frozen=True)
class Chunk:
    """One chunk of a text."""

    text_ids: Sequence[int]
    """Ids of the chunk alone."""
    joined_ids: Sequence[int] | None
    """Ids of the previous chunk and this one; None: no audio is carried over."""
    least: int
    """Frames below which the result is too short."""
    most: int
    """Maximum number of frames."""
    no_end_before: int
    """Minimum number of frames before an end."""


def split_into_chunks(
    text: str, reader: TextTokenizer, chosen: GenerationConfig, fixed: bool, carries: bool, notes: list[str]
) -> list[str]:
    """Split a text into chunks no longer than the training examples; a short text is one chunk.

    Args:
        reader: the model's text tokenizer: numbers are spelled out before splitting, and lengths refer to the text as
            read.
        fixed: the number of frames is given, so the text is not split.
        carries: see `carries_audio`.
        notes: receives warnings about a far too long text that is not split, and about words that are split.
    """
    limit, size = chosen.text_characters, reader.num_characters
    if limit is None or size(text) <= limit:
        return [text]
    if chosen.split == "off" or fixed:
        if size(text) > FAR_TOO_LONG * limit:
            notes.append(
                f"the text has {size(text)} characters, the training examples have at most {limit}, so the model will "
                "probably omit parts of it; set split to 'auto' and leave the number of frames open"
            )
        return [text]
    # If a chunk continues the previous one, the model reads both and the space between them.
    capacity = limit if not carries else max(1, (limit - 1) // 2)
    cut: list[str] = []
    chunks = split_text(reader.spell(text), capacity, size, limit, cut)
    if cut:
        notes.append(
            f"{named(cut)} {'is' if len(cut) == 1 else 'are'} longer than the {limit} characters that the model "
            "can speak at once, and will be split; put spaces where it may pause"
        )
    return chunks


def carries_audio(lm: LanguageModel, config: GenerationConfig) -> bool:
    """Whether a chunk continues the audio of the previous one; an aligned text is read from its first unit."""
    return config.carry == "audio" and lm.conditions.aligned is None


RequestFor = Callable[[Sequence[int], int, Tensor | None, int, int], Request]
"""(text ids, seed, prompt [K, t] or None, fewest frames, most frames) -> a request of one row."""


def make_chunks(
    texts: Sequence[str],
    encode: Callable[[str], Sequence[int]],
    size: Callable[[str], int],
    carry: bool,
    geometry: AudioGeometry,
    frames_per_character: tuple[float, float] | None,
    min_frames: int = 0,
    limit: int | None = None,
) -> list[Chunk]:
    """Build the chunks of a split text.

    Args:
        encode: text to ids.
        size: number of characters of a text as the model reads it.
        carry: whether a chunk uses the previous one as its prompt.
        frames_per_character: minimum and maximum; None: SECONDS_PER_CHARACTER.
        min_frames: minimum for all chunks together, shared out by their characters.
        limit: maximum number of characters per training example; a chunk that exceeds it together with the previous
            one starts without a prompt. None: unknown.
    """
    least, most = frames_per_character or [seconds * geometry.frame_rate for seconds in SECONDS_PER_CHARACTER]
    shares = shared_out(min_frames, [size(text) for text in texts])
    joined = [f"{texts[i - 1]} {text}" if i else text for i, text in enumerate(texts)]
    return [
        Chunk(
            text_ids=encode(text),
            joined_ids=encode(joined[i]) if i and carry and (limit is None or size(joined[i]) <= limit) else None,
            least=math.floor(least * size(text)),
            most=max(1, shares[i], math.ceil(most * size(text))),
            no_end_before=shares[i],
        )
        for i, text in enumerate(texts)
    ]


def shared_out(total: int, sizes: Sequence[int]) -> list[int]:
    """Whole numbers that sum to `total`, in proportion to the sizes, with cumulative sums rounded down."""
    ends = [total * sum(sizes[: i + 1]) // max(1, sum(sizes)) for i in range(len(sizes))]
    return [end - before for end, before in zip(ends, [0, *ends], strict=False)]


def speak(
    lm: LanguageModel,
    chunks: Sequence[Chunk],
    request_for: RequestFor,
    seed: int,
    retries: int,
    max_frames: int | None = None,
    prompt: Tensor | None = None,
) -> Generator[Tensor, None, RowEnd]:
    """Yield the codes [K, n] of a long text as they become final; returns whether every chunk ended well, and the units
    of each.

    Args:
        retries: how often a failed chunk is generated again. Above 0, codes are yielded one chunk at a time, with 0
            frame by frame.
        max_frames: limit for all chunks together; None: no limit.
        prompt: codes [K, t] that the first chunk begins with; its text includes the words of the prompt.
    """
    before: Tensor | None = None
    all_well, total, units = True, 0, []
    for i, chunk in enumerate(chunks):
        capacity = chunk.most if max_frames is None else min(chunk.most, max_frames - total)
        if capacity < 1:
            return RowEnd(False, tuple(units))
        carried = before if chunk.joined_ids is not None else None
        ids = chunk.text_ids if carried is None or chunk.joined_ids is None else chunk.joined_ids
        given = 0 if carried is None else carried.shape[1]
        start = carried if i else prompt
        found: list[tuple[Tensor, bool, tuple[Tensor, ...]]] = []
        for attempt in range(retries + 1):
            fewest = given + min(chunk.no_end_before, capacity)
            row = request_for(ids, derived_seed(seed, i, attempt), start, fewest, given + capacity)
            made, count, making = [], 0, Making(make_row(lm, row))
            for codes in making:
                fresh = beyond(codes, count, given)
                count += codes.shape[1]
                if fresh.shape[1]:
                    made.append(fresh.cpu())
                    if not retries:
                        yield fresh
            codes = torch.cat(made, dim=1) if made else torch.zeros(lm.spec.num_codebooks, 0, dtype=torch.long)
            well = making.ended and codes.shape[1] >= chunk.least
            found.append((codes, well, making.end.units))
            if well:
                break
        codes, well, spoken = min(found, key=lambda one: (not one[1], _strangeness(one[0].shape[1], chunk)))
        if retries and codes.shape[1]:
            yield codes
        total += codes.shape[1]
        units += spoken
        all_well = all_well and well
        before = codes if well and codes.shape[1] else None
    return RowEnd(all_well, tuple(units))


def _strangeness(frames: int, chunk: Chunk) -> float:
    """Absolute log ratio of a length to the geometric mean of the allowed range."""
    middle = math.sqrt(max(chunk.least, 1) * chunk.most)
    return abs(math.log(max(frames, 0.5) / middle))
