"""Image streaming: decodes the codes sampled so far and leaves the rest neutral.

A missing code counts as a dropped residual level: its vector adds nothing. With residual codes each frame therefore
appears coarsely first, and with the coarse-first codebook pattern the whole image does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ...lm.conditioning.dual_track import Track
from ...lm.generation_config import GenerationConfig
from ...lm.models.base import LanguageModel
from ...lm.patterns.text_stream import Turn
from ...tokenize.spec import ImageGeometry, check_same_tokenizer
from ...tokenize.tokenizer import Tokenizer
from ..decoding.custom_lm import CustomLM, check_pair
from ..decoding.dispatch import partial_codes
from ..decoding.media import decode_one
from ..requests.arguments import whole
from ..requests.conditions import ConditionInputs
from ..requests.request import Settings, make_request

if TYPE_CHECKING:
    from typing_extensions import Unpack


def stream_images(
    lm: LanguageModel | CustomLM,
    tokenizer: Tokenizer,
    *,
    label: int | None = None,
    text_ids: Sequence[int] | None = None,
    embedding: Tensor | None = None,
    voice: Tensor | None = None,
    melody: Tensor | None = None,
    turns: Sequence[Turn] = (),
    tracks: Track | None = None,
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
    inputs = ConditionInputs(label, text_ids, embedding, voice, melody, turns, tracks)
    request = make_request(lm, tokenizer, inputs, 1, seed, prompt, num_frames, defaults, settings)
    if len(request.seeds) != 1:
        raise ValueError(f"a stream is one sample, but {len(request.seeds)} were requested; create one stream for each")
    codes_so_far = partial_codes(lm, tokenizer, request, every)
    return (decode_one(tokenizer, codes[0].cpu()) for codes in codes_so_far)
