"""From conditions to media in one call: the decode loop generates codes, the tokenizer decodes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..lm.conditioning.dual_track import Track
from ..lm.generation_config import GenerationConfig
from ..lm.models.base import LanguageModel
from ..lm.patterns.text_stream import Turn
from ..tokenize.alignment.spoken_text import join_units
from ..tokenize.codes import pad_and_cat
from ..tokenize.spec import check_same_tokenizer
from ..tokenize.tokenizer import Tokenizer
from .decoding.custom_lm import CustomLM, check_pair
from .decoding.dispatch import make_codes
from .decoding.loop import Generated, Progress
from .decoding.media import decode_one
from .long_form.windows import Making, make_row
from .requests.arguments import flag, function, whole
from .requests.conditions import ConditionInputs
from .requests.request import Request, Settings, make_request
from .result import Result

if TYPE_CHECKING:
    from typing_extensions import Unpack

DEFAULT_BATCH = 64
"""Rows generated at a time; guidance doubles them inside the model."""


def generate(
    lm: LanguageModel | CustomLM,
    tokenizer: Tokenizer,
    *,
    label: int | Sequence[int] | None = None,
    text_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
    embedding: Tensor | Sequence[Tensor] | None = None,
    voice: Tensor | Sequence[Tensor] | None = None,
    melody: Tensor | Sequence[Tensor] | None = None,
    turns: Sequence[Turn] = (),
    tracks: Track | Sequence[Track] | None = None,
    n: int = 1,
    seed: int = 0,
    prompt: Tensor | None = None,
    num_frames: int | None = None,
    exact: bool = False,
    batch: int = DEFAULT_BATCH,
    defaults: GenerationConfig | None = None,
    on_progress: Progress | None = None,
    **settings: Unpack[Settings],
) -> Result:
    """Generate samples with a given language model and tokenizer (`tessera.load` returns a Model that has both).

    Args:
        lm: a Tessera language model, or an object that implements `CustomLM`.
        tokenizer: the tokenizer of the same codes; a custom one needs `spec` and `decode`.
        label: id of the label, or a list of ids; None: none.
        text_ids: ids of the text, or a list of lists; None: none.
        embedding: vectors [L, width], or a list; None: none.
        voice: reference codes [K, L] that condition the samples but are not part of them, or a list; None: none.
        melody: pitch classes [L, bins] (lm/conditioning/chroma.py), or a list; None: none.
        turns: earlier turns of a conversation, text ids and codes [K, T] each; they are not part of the result.
        tracks: texts for the condition `dual_track` (lm/conditioning/dual_track.py), or a list; None: none.
        n: samples for each entry of the lists.
        seed: sample i has the seed `seed + i` and no other randomness: it is the same alone as in a batch.
        prompt: codes [K, t] or [B, K, t] that the samples begin with; they are part of the result.
        num_frames: generate exactly this number of frames; None: until the model ends, or `max_frames`.
        exact: generate samples one at a time, so that not even a rounding error depends on the batch.
        batch: samples generated at a time.
        defaults: used for settings that are not given.
        on_progress: called with (done, total) during generation.
        settings: see `Settings`; sampling settings are one value, or one per codebook.
    Returns:
        Result of n samples for each entry, in the order of the entries.
    Raises:
        ValueError: an invalid argument; the message is one line and names it.
    """
    lm = check_pair(lm, tokenizer, "generate")
    check_same_tokenizer(tokenizer.spec, lm.spec, "generate: the tokenizer given")
    inputs = ConditionInputs(label, text_ids, embedding, voice, melody, turns, tracks)
    request = make_request(lm, tokenizer, inputs, n, seed, prompt, num_frames, defaults, settings)
    batch, exact = whole("batch", batch, 1), flag("exact", exact)
    function("on_progress", on_progress)
    return run_request(lm, tokenizer, request, exact, batch, on_progress)


def run_request(
    lm: LanguageModel, tokenizer: Tokenizer, request: Request, exact: bool, batch: int, on_progress: Progress | None
) -> Result:
    """Generate all rows of a request, `batch` at a time, and decode them."""
    total, parts = len(request.seeds), []
    for first in range(0, total, batch):
        rows = request.rows(first, min(first + batch, total))
        parts.append(_codes_of(lm, rows, exact, first, total, on_progress))
    codes = pad_and_cat([part.codes for part in parts])
    lengths = torch.cat([part.lengths for part in parts])
    return Result(
        codes=codes,
        lengths=lengths,
        media=[decode_one(tokenizer, row[:, :n]) for row, n in zip(codes, lengths.tolist(), strict=True)],
        seeds=tuple(request.seeds),
        ended=tuple(bool(ended) for part in parts for ended in part.ended),
        spec=lm.spec,
        units=join_units([part.units for part in parts]),
    )


def _codes_of(
    lm: LanguageModel, rows: Request, exact: bool, first: int, total: int, on_progress: Progress | None
) -> Generated:
    """Codes of one batch; progress is reported relative to all `total` rows."""

    def report(done: int, of_batch: int) -> None:
        if on_progress is not None:
            per_row = of_batch // len(rows.seeds)
            on_progress(first * per_row + done, total * per_row)

    if rows.window is not None and rows.length.max_frames > rows.window:
        return _in_windows(lm, rows, report)
    return make_codes(lm, rows, exact, report)


def _in_windows(lm: LanguageModel, rows: Request, report: Progress) -> Generated:
    """Generate row by row, as each row reaches the end of a window at a different time."""
    made, ended, longest = [], [], rows.length.max_frames
    for i in range(len(rows.seeds)):
        making, chunks, done = Making(make_row(lm, rows.rows(i, i + 1))), [], 0
        for chunk in making:
            chunks.append(chunk.cpu())
            done += chunk.shape[1]
            report(i * longest + done, len(rows.seeds) * longest)
        made.append(torch.cat([torch.zeros(lm.num_codebooks, 0, dtype=torch.long), *chunks], dim=1))
        ended.append(making.ended)
    lengths = torch.tensor([codes.shape[1] for codes in made])
    return Generated(pad_and_cat([codes[None] for codes in made]), lengths, torch.tensor(ended))
