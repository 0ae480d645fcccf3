"""What text means for generation: limits of the length, prompts that match it, and warnings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..tokenize.spec import AudioGeometry
from ..tokenize.text.coverage import named, unseen_in
from .parts import ModelParts
from .requests.conditions import ConditionInputs
from .requests.keyword_types import Settings
from .requests.prompt import Prompt, prompt_codes
from .requests.prompt_fit import UNLIKELY, gain_by_text
from .requests.request import max_frames_for
from .result import Result


def unseen_text(parts: ModelParts, text: str | Sequence[str] | None) -> list[str]:
    """Warnings about text that is unlike the model's training text."""
    if text is None or parts.text is None:
        return []
    texts = [text] if isinstance(text, str) else list(text)
    unread = dict.fromkeys(part for one in texts for part in parts.text.unread(one))
    left_out = f"the text tokenizer cannot read {named(list(unread))}, which is left out" if unread else None
    unseen = unseen_in(texts, parts.text, parts.defaults.text_seen)
    return [warning for warning in (left_out, unseen) if warning is not None]


def start_codes(
    parts: ModelParts, prompt: Prompt | None, num_frames: int | None, text: str | None, notes: list[str]
) -> Tensor | None:
    """Codes of a prompt. For models that read text, silence at the ends is trimmed. If `text`, which must include
    the words of the prompt, does not match it, a warning is appended to `notes`."""
    if prompt is None and num_frames is not None:
        raise ValueError(f"prompt_frames is {num_frames}, but no prompt was given; give one, or leave it out")
    codes = prompt_codes(prompt, parts.tokenizer, num_frames, notes=None if parts.text is None else notes)
    if codes is None or codes.dim() != 2 or text is None or parts.text is None or not codes.shape[1]:
        return codes
    if parts.dual_track is not None:
        return codes
    gain = gain_by_text(parts.lm, ConditionInputs(text_ids=parts.text.encode(text)), codes)
    if gain is not None and gain < -UNLIKELY:
        notes.append(
            "the prompt does not match the beginning of the text, which must include the words of the prompt; "
            "words may be missing"
        )
    return codes


def with_max_seconds(parts: ModelParts, settings: Settings, max_seconds: float | None) -> Settings:
    """Settings with max_frames from max_seconds, if given."""
    if max_seconds is None:
        return settings
    geometry = parts.spec.geometry
    if not isinstance(geometry, AudioGeometry):
        raise ValueError(f"max_seconds is {max_seconds}, but '{parts.name}' makes images; leave it out")
    if "max_frames" in settings:
        raise ValueError("max_seconds and max_frames were both given; give one")
    return {**settings, "max_frames": max_frames_for(max_seconds, geometry)}


def with_min_frames(
    parts: ModelParts, text: str | Sequence[str] | None, num_frames: int | None, settings: Settings
) -> Settings:
    """Settings with min_frames set to the fewest frames of the shortest text, if the model has frames_per_character
    and the call gives no min_frames."""
    rates = settings.get("frames_per_character") or parts.defaults.frames_per_character
    if text is None or parts.text is None or rates is None or num_frames is not None or "min_frames" in settings:
        return settings
    if not parts.lm.arrangement.variable_length:
        return settings
    texts = [text] if isinstance(text, str) else text
    least = math.floor(rates[0] * min(map(parts.text.num_characters, texts)))
    longest = settings.get("max_frames") or parts.defaults.max_frames or least
    return {**settings, "min_frames": max(parts.defaults.min_frames, min(least, longest))}


def note_short(
    parts: ModelParts, text: str | Sequence[str], result: Result, settings: Settings, notes: list[str]
) -> None:
    """Append a warning to `notes` if samples are too short for their text; those of an aligned text say all of it."""
    rates = settings.get("frames_per_character") or parts.defaults.frames_per_character
    if parts.text is None or rates is None or result.alignments:
        return
    texts = [text] if isinstance(text, str) else text
    each, lengths = len(result) // len(texts), result.lengths.tolist()
    least = [math.floor(rates[0] * parts.text.num_characters(texts[i // each])) for i in range(len(result))]
    short = [i for i in range(len(result)) if result.ended[i] and lengths[i] < least[i]]
    if short:
        count = f"{len(short)} of {len(result)} samples are" if len(result) > 1 else "the sample is"
        notes.append(
            f"{count} shorter than the text needs ({lengths[short[0]]} frames of at least {least[short[0]]}), so words "
            "are missing; try another seed"
        )
