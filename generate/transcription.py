"""Transcription: a model with a text stream writes down the text of audio.

given      the codes of the audio              a0 a1 a2 ..
sampled    text ids until the end, greedily by default: the model's settings are those of its speech
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..lm.generation_config import GenerationConfig
from ..lm.models.base import LanguageModel
from ..tokenize.spec import AudioGeometry
from .decoding.dispatch import make_codes
from .decoding.loop import Progress
from .requests.arguments import flag, function, whole
from .requests.conditions import ConditionInputs
from .requests.request import Request, Settings, StreamPrompt, choose
from .requests.settings import Length, seeds_from

if TYPE_CHECKING:
    from typing_extensions import Unpack

DEFAULT_BATCH = 16
"""Recordings written down at a time."""
IDS_PER_SECOND, MORE_IDS = 32, 16
"""Default limit of a text: so many ids for each second of audio, and some. Fast speech has 25 letters a second."""
OF_TEXT = (
    *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "repetition_window", "ras", "ras_tau"),
    *("end_bias", "end_rule", "guidance", "cache", "step"),
)
"""The settings that apply to text."""


def write_texts(
    lm: LanguageModel,
    codes: Sequence[Tensor],
    *,
    label: Sequence[int] | int | None = None,
    max_ids: int | None = None,
    seed: int = 0,
    exact: bool = False,
    batch: int = DEFAULT_BATCH,
    defaults: GenerationConfig | None = None,
    on_progress: Progress | None = None,
    **settings: Unpack[Settings],
) -> list[list[int]]:
    """The text ids that a model with a text stream writes down for codes.

    Args:
        codes: [K, T] long each, T at least 1.
        label: label id, or one for each.
        max_ids: maximum length of a text; None: 32 for each second of its audio, and 16.
        seed: recording i has the seed `seed + i`.
        exact: one at a time, so that not even a rounding error depends on the others.
        batch: recordings written down at a time.
        defaults: used for settings that are not given; None: greedy decoding.
        on_progress: called with (done, total), in recordings.
        settings: see `Settings`; those of `OF_TEXT`.
    Raises:
        ValueError: an invalid argument, or the model writes no text.
    """
    stream, geometry = lm.text_stream, lm.spec.geometry
    if stream is None or stream.unpredicted or not isinstance(geometry, AudioGeometry):
        raise ValueError("the model writes no text; that needs an lm with text_stream that predicts text")
    chosen = _settings(defaults, settings)
    batch, exact, on_progress = whole("batch", batch, 1), flag("exact", exact), function("on_progress", on_progress)
    most = None if max_ids is None else whole("max_ids", max_ids, 1)
    labels = list(label) if isinstance(label, Sequence) else None if label is None else [label] * len(codes)
    if labels is not None and len(labels) != len(codes):
        raise ValueError(f"{len(labels)} labels but {len(codes)} recordings; give as many, or one for all")
    seeds = seeds_from(whole("seed", seed), len(codes))
    order = sorted(range(len(codes)), key=lambda i: codes[i].shape[1])  # rows of a batch wait for the longest
    written: dict[int, list[int]] = {}
    for first in range(0, len(codes), batch):
        rows = order[first : first + batch]
        limits = [most or math.ceil(IDS_PER_SECOND * codes[i].shape[1] / geometry.frame_rate) + MORE_IDS for i in rows]
        prompt = StreamPrompt.make("write", [stream.write(codes[i].cpu(), []) for i in rows], 0, limits)
        inputs = ConditionInputs(label=None if labels is None else [labels[i] for i in rows])
        batch_of = inputs.rows(lm, 1 if labels is not None else len(rows))[0]
        length = Length(int(prompt.longest.max()), 0)
        made = make_codes(lm, Request(batch_of, [seeds[i] for i in rows], length, chosen, stream=prompt), exact)
        assert made.texts is not None
        written |= {i: text.tolist() for i, text in zip(rows, made.texts, strict=True)}
        if on_progress is not None:
            on_progress(len(written), len(codes))
    return [written[i] for i in range(len(codes))]


def _settings(defaults: GenerationConfig | None, settings: Any) -> GenerationConfig:
    """The settings of a call. ValueError: one that does not apply to text."""
    for name in settings:
        if name in GenerationConfig.model_fields and name not in OF_TEXT:
            raise ValueError(f"{name} was set, but it does not apply to writing text; leave it out")
    return choose(GenerationConfig(temperature=0.0) if defaults is None else defaults, settings)
