"""A text longer than a model has learned to say, piece by piece, each going on from the one before.

    text      "three one four. one five nine. two six five."

    piece 0   reads "three one four."                       makes A
    piece 1   reads "three one four. one five nine."        begins with A, makes B
    piece 2   reads "one five nine. two six five."          begins with B, makes C         the sound is A B C

So voice and tone carry over, and what is read always agrees with what has been said. A piece that comes out much too
short, or does not end in time, is made again with another seed; where none is right, the next piece is begun anew.
The codes go through one decoder: there is no seam between samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...lm.generation_config import GenerationConfig
from ...lm.models.registry import AnyLM
from ...tokenize.spec import AudioGeometry
from ...tokenize.text_coverage import named
from ...tokenize.text_tokenizer import TextTokenizer
from ..requests.request import Request
from ..sampling.counter_rng import derived_seed
from .text_splitting import split_text
from .windows import Making, beyond, make_row

SECONDS_PER_CHARACTER = (0.015, 0.5)
"""Of speech in any language, where the model does not say how many frames its training data had."""

FAR_TOO_LONG = 1.5
"""Times the longest text of the training data."""


@dataclass(frozen=True)
class Piece:
    """What is said at a time."""

    text_ids: Sequence[int]
    """Of the piece alone."""
    joined_ids: Sequence[int] | None
    """Of the piece before it and this one; None: nothing is carried over."""
    least: int
    """Frames below which it is too short."""
    most: int
    """Frames at which it is stopped."""
    no_end_before: int
    """Frames."""


def pieces_of(text: str, reader: TextTokenizer, chosen: GenerationConfig, fixed: bool, notes: list[str]) -> list[str]:
    """The pieces a text is said in, one where it is not long; none is longer than the model has learned.

    Args:
        reader: how the model reads: numbers are spelled before the text is cut, and lengths are those of what is read.
        fixed: the number of frames is given, so the text is said at once.
        notes: gets a warning where a text is far too long and is not cut, and of words that are cut.
    """
    limit, size = chosen.text_characters, reader.num_characters
    if limit is None or size(text) <= limit:
        return [text]
    if chosen.split == "off" or fixed:
        if size(text) > FAR_TOO_LONG * limit:
            notes.append(
                f"the text has {size(text)} characters, the model has learned at most {limit} and will hardly say it "
                "all; leave split on 'auto' and the number of frames open"
            )
        return [text]
    # Two pieces and the space between them are read together where one goes on from the other.
    room = limit if chosen.carry == "nothing" else max(1, (limit - 1) // 2)
    cut: list[str] = []
    pieces = split_text(reader.spell(text), room, size, limit, cut)
    if cut:
        notes.append(
            f"{named(cut)} {'is' if len(cut) == 1 else 'are'} longer than the {limit} characters the model says at a "
            "time, and will be said in parts; put spaces where it may pause"
        )
    return pieces


RequestFor = Callable[[Sequence[int], int, Tensor | None, int, int], Request]
"""(text ids, seed, prompt [K, t] or None, fewest frames, most frames) -> a request of one row."""


def make_pieces(
    texts: Sequence[str],
    encode: Callable[[str], Sequence[int]],
    size: Callable[[str], int],
    carry: bool,
    geometry: AudioGeometry,
    frames_per_character: tuple[float, float] | None,
    min_frames: int = 0,
    limit: int | None = None,
) -> list[Piece]:
    """The pieces of a text that was cut.

    Args:
        encode: text to ids.
        size: characters of a text as the model reads it.
        carry: whether a piece begins with the one before.
        frames_per_character: the fewest and the most; None: SECONDS_PER_CHARACTER.
        min_frames: of all pieces together; each has its share by its characters.
        limit: characters the model has learned to say; a piece that is longer with the one before is begun anew. None:
            unknown.
    """
    least, most = frames_per_character or [seconds * geometry.frame_rate for seconds in SECONDS_PER_CHARACTER]
    shares = shared_out(min_frames, [size(text) for text in texts])
    joined = [f"{texts[i - 1]} {text}" if i else text for i, text in enumerate(texts)]
    return [
        Piece(
            text_ids=encode(text),
            joined_ids=encode(joined[i]) if i and carry and (limit is None or size(joined[i]) <= limit) else None,
            least=math.floor(least * size(text)),
            most=max(1, shares[i], math.ceil(most * size(text))),
            no_end_before=shares[i],
        )
        for i, text in enumerate(texts)
    ]


def shared_out(total: int, sizes: Sequence[int]) -> list[int]:
    """Whole numbers that sum to `total`, in proportion to the sizes as nearly as may be from the first on."""
    ends = [total * sum(sizes[: i + 1]) // max(1, sum(sizes)) for i in range(len(sizes))]
    return [end - before for end, before in zip(ends, [0, *ends], strict=False)]


def speak(
    lm: AnyLM,
    pieces: Sequence[Piece],
    request_for: RequestFor,
    seed: int,
    retries: int,
    max_frames: int | None = None,
    prompt: Tensor | None = None,
) -> Generator[Tensor, None, bool]:
    """Codes [K, n] of a long text as they become final; returns whether every piece ended well.

    Args:
        retries: how often a piece that went wrong is made again. Above 0 a piece is handed on when it is whole, with 0
            frame by frame.
        max_frames: of all pieces together, None: no limit.
        prompt: codes [K, t] that the first piece begins with; its text tells them too.
    """
    before: Tensor | None = None
    all_well, total = True, 0
    for i, piece in enumerate(pieces):
        room = piece.most if max_frames is None else min(piece.most, max_frames - total)
        if room < 1:
            return False
        carried = before if piece.joined_ids is not None else None
        ids = piece.text_ids if carried is None or piece.joined_ids is None else piece.joined_ids
        given = 0 if carried is None else carried.shape[1]
        start = carried if i else prompt
        found: list[tuple[Tensor, bool]] = []
        for attempt in range(retries + 1):
            fewest = given + min(piece.no_end_before, room)
            row = request_for(ids, derived_seed(seed, i, attempt), start, fewest, given + room)
            made, count, making = [], 0, Making(make_row(lm, row))
            for codes in making:
                fresh = beyond(codes, count, given)
                count += codes.shape[1]
                if fresh.shape[1]:
                    made.append(fresh.cpu())
                    if not retries:
                        yield fresh
            codes = torch.cat(made, dim=1) if made else torch.zeros(lm.num_codebooks, 0, dtype=torch.long)
            well = making.ended and codes.shape[1] >= piece.least
            found.append((codes, well))
            if well:
                break
        codes, well = min(found, key=lambda one: (not one[1], _strangeness(one[0].shape[1], piece)))
        if retries and codes.shape[1]:
            yield codes
        total += codes.shape[1]
        all_well = all_well and well
        before = codes if well and codes.shape[1] else None
    return all_well


def _strangeness(frames: int, piece: Piece) -> float:
    """How far a length is from the middle of what is allowed, as a ratio."""
    middle = math.sqrt(max(piece.least, 1) * piece.most)
    return abs(math.log(max(frames, 0.5) / middle))
