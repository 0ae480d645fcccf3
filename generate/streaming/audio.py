"""Audio streaming: complete frames are passed directly to the tokenizer's stream decoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ...lm.conditioning.dual_track import Track
from ...lm.generation_config import GenerationConfig
from ...lm.models.base import LanguageModel
from ...lm.patterns.text_stream import Turn
from ...tokenize.audio.tokenizer import AudioTokenizer, StreamDecoder
from ...tokenize.spec import check_same_tokenizer
from ...tokenize.tokenizer import Tokenizer
from ..decoding.custom_lm import CustomLM, check_pair
from ..decoding.dispatch import decode_loop
from ..long_form.windows import make_row
from ..requests.conditions import ConditionInputs
from ..requests.request import Settings, make_request

if TYPE_CHECKING:
    from typing_extensions import Unpack


def stream_audio(
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
    defaults: GenerationConfig | None = None,
    **settings: Unpack[Settings],
) -> Iterator[Tensor]:
    """Generate one sample and yield its audio as it becomes final.

    A frame is final once its last codebook is sampled, at most `max_delay` steps after its first; the stream decoder
    then waits for the context of its network. Stop iterating to cancel: nothing is generated ahead.

    Args:
        as in `generate`; arguments are checked at the call, not on first iteration.
    Yields:
        [C, n] float32 on the CPU, n > 0. Concatenated, the chunks equal `generate(...).media[0]` for the same
        arguments, bit for bit.
    Raises:
        ValueError: the tokenizer is not an audio tokenizer; and as in `generate`.
    """
    lm = check_pair(lm, tokenizer, "stream_audio")
    check_same_tokenizer(tokenizer.spec, lm.spec, "stream: the tokenizer given")
    if not isinstance(tokenizer, AudioTokenizer):
        raise ValueError(f"'{tokenizer.spec.name}' makes images; use stream_images")
    if not lm.decode_plan.in_order:
        raise ValueError(
            f"the model of '{tokenizer.spec.name}' generates all frames together and cannot stream; use generate"
        )
    inputs = ConditionInputs(label, text_ids, embedding, voice, melody, turns, tracks)
    request = make_request(lm, tokenizer, inputs, 1, seed, prompt, num_frames, defaults, settings)
    if len(request.seeds) != 1:
        raise ValueError(f"a stream is one sample, but {len(request.seeds)} were requested; create one stream for each")
    if request.window is not None and request.length.max_frames > request.window:
        return decode_stream(make_row(lm, request), tokenizer.stream_decoder())
    return decode_stream(decode_loop(lm, request).frames(), tokenizer.stream_decoder())


def decode_stream(frames: Iterable[Tensor], decoder: StreamDecoder) -> Iterator[Tensor]:
    """Decode codes [K, n] and yield samples [C, n], n > 0, on the CPU as soon as they are final."""
    for codes in frames:
        samples = decoder.push(codes)
        if samples.shape[-1]:
            yield samples.float().cpu()
    samples = decoder.finish()
    if samples.shape[-1]:
        yield samples.float().cpu()
