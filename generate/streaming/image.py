"""Image streaming: decodes the codes sampled so far and leaves the rest neutral.

A missing code counts as a dropped residual level: its vector adds nothing. With residual codes each frame therefore
appears coarsely first, and with the coarse-first codebook pattern the whole image does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...lm.generation_config import GenerationConfig
from ...lm.models.coarse_to_fine import CoarseToFine
from ...lm.models.masked import MaskedLM
from ...lm.models.next_scale import NextScaleLM
from ...lm.models.registry import AnyLM
from ...tokenize.spec import ImageGeometry, check_same_tokenizer
from ...tokenize.tokenizer import Tokenizer
from ..decoding.custom_lm import CustomLM, check_pair
from ..decoding.dispatch import check_masked, check_next_scale, check_refiner, label_rows, refiner_rows
from ..decoding.generate_codes import make_loop
from ..decoding.loop import DecodeLoop
from ..decoding.masked import fill_in_passes
from ..decoding.media import decode_one
from ..decoding.next_scale import scale_by_scale
from ..requests.arguments import whole
from ..requests.conditions import ConditionInputs
from ..requests.request import Request, Settings, make_request

if TYPE_CHECKING:
    from typing_extensions import Unpack


def stream_images(
    lm: AnyLM | CustomLM,
    tokenizer: Tokenizer,
    *,
    label: int | None = None,
    text_ids: Sequence[int] | None = None,
    embedding: Tensor | None = None,
    voice: Tensor | None = None,
    seed: int = 0,
    prompt: Tensor | None = None,
    num_frames: int | None = None,
    every: int | None = None,
    defaults: GenerationConfig | None = None,
    **settings: Unpack[Settings],
) -> Iterator[Tensor]:
    """Generate one image and yield partial images during generation.

    Args:
        as in `generate`; arguments are checked at the call, not on first iteration.
        every: frames between images; None: one row of the grid. A model that decodes in passes or scales yields an
            image after each.
    Yields:
        [C, height, width] float32 on the CPU. The last equals `generate(...).media[0]` for the same arguments, bit for
        bit.
    Raises:
        ValueError: the tokenizer is not an image tokenizer; and as in `generate`.
    """
    lm = check_pair(lm, tokenizer, "stream_images")
    check_same_tokenizer(tokenizer.spec, lm.spec, "stream: the tokenizer given")
    geometry = tokenizer.spec.geometry
    if not isinstance(geometry, ImageGeometry):
        raise ValueError(f"'{tokenizer.spec.name}' makes audio; use stream_audio")
    every = geometry.columns if every is None else every
    every = whole("every", every, 1)
    inputs = ConditionInputs(label, text_ids, embedding, voice)
    request = make_request(lm, tokenizer, inputs, 1, seed, prompt, num_frames, defaults, settings)
    if len(request.seeds) != 1:
        raise ValueError(f"a stream is one sample, {len(request.seeds)} were asked for; make a stream for each")
    if isinstance(lm, CoarseToFine):
        check_refiner(lm, request)
        stages = _coarse_then_fine(lm, tokenizer, request, make_loop(lm.coarse, label_rows(lm, request)), every)
    elif isinstance(lm, MaskedLM):
        stages = fill_in_passes(lm, check_masked(lm, request))
    elif isinstance(lm, NextScaleLM):
        stages = scale_by_scale(lm, check_next_scale(lm, request))
    else:
        stages = _grow(make_loop(lm, request), every)
    return (decode_one(tokenizer, codes[0].cpu()) for codes in stages)


def _coarse_then_fine(
    lm: CoarseToFine, tokenizer: Tokenizer, request: Request, loop: DecodeLoop, every: int
) -> Iterator[Tensor]:
    """Yield codes [1, K, T]: first the central codes of the coarse labels' clusters, then the refiner's codes as they
    replace them."""
    middles = lm.clustering.middles(tokenizer.vectors())
    for labels in _grow(loop, every):
        yield lm.clustering.codes_of(labels.cpu(), middles)
    made = loop.result()
    sketch = lm.clustering.codes_of(made.codes, middles)
    fine, lengths = refiner_rows(lm, request, made)
    for codes in fill_in_passes(lm.refiner, fine, lengths, made.codes):
        yield torch.where(codes.cpu() < 0, sketch, codes.cpu())


def _grow(loop: DecodeLoop, every: int) -> Iterator[Tensor]:
    """Yield the codes [1, K, T] of an image, -1 where none has been sampled yet, once per `every` frames' share of the
    steps, and finally all codes."""
    steps, shown = every * loop.num_steps / loop.length.max_frames, 0
    while not loop.done:
        loop.step()
        if loop.position >= steps * (shown + 1) and not loop.done:
            shown += 1
            yield loop.so_far()
    yield loop.result().codes
