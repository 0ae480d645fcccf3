"""Conditions given by name: label names, texts and recordings become ids and codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..lm.conditioning.dual_track import AUTO, Track, make_track
from ..lm.conditioning.registry import CodesConditionConfig, DualTrackConfig, MelodyConditionConfig
from .parts import Label, ModelParts
from .requests.arguments import plain, shown, tensor
from .requests.conditions import ARGUMENT_NAMES, ConditionInputs
from .requests.melody import melody_classes
from .requests.prompt import Prompt, prompt_codes

LACKS = {
    "label": "has no labels",
    "text": "reads no text",
    "codes": "takes no voice, it has no condition 'codes' (to continue a recording, give it as prompt)",
    "embedding": "takes no embedding",
    "melody": "takes no melody, it has no such condition",
    "description": "takes no description beside the text",
    "language": "takes no language, it has no such names",
}
"""Error text for a model without the condition."""
EXAMPLES = {
    **{"text": "a text to speak or depict", "codes": "a file or codes", "embedding": "vectors [L, width]"},
    **{"melody": "a recording", "description": "a text that says how it sounds"},
}


def label_and_text(parts: ModelParts, given: Any, label: Any, text: Any) -> tuple[Any, Any]:
    """(label, text), with the positional argument `given` assigned to one of them."""
    given, label, text = plain(given), plain(label), plain(text)
    if given is None:
        for one in text if is_list(text) else [] if text is None else [text]:
            if not isinstance(one, str):
                raise ValueError(f"text must be a string, found {shown(one)}")
        return label, text
    kinds = parts.condition_kinds
    numbers = all(isinstance(one, int) for one in given) if is_list(given) else isinstance(given, int)
    if "text" in kinds and not (numbers and "label" in kinds):
        name, other = "text", text
    elif "label" in kinds:
        name, other = "label", label
    else:
        raise ValueError(f"'{parts.name}' takes neither text nor label, found {shown(given)}; leave it out")
    if other is not None:
        raise ValueError(
            f"the {name} was given twice, {shown(given)} by position and {shown(other)} by name; give it once"
        )
    return label_and_text(parts, None, label, given) if name == "text" else label_and_text(parts, None, given, text)


def condition_inputs(
    parts: ModelParts,
    label: Label | Sequence[Label] | None,
    text: str | Sequence[str] | None,
    voice: Prompt | Sequence[Prompt] | None,
    voice_frames: int | None,
    embedding: Tensor | Sequence[Tensor] | None,
    unconditional: bool,
    notes: list[str],
    melody: Prompt | Sequence[Prompt] | None = None,
    description: str | Sequence[str] | None = None,
    language: str | Sequence[str] | None = None,
) -> ConditionInputs:
    """The conditions as ids and codes. Warnings are appended to `notes`.

    Raises:
        ValueError: the model lacks a given condition, or needs a missing one.
    """
    description = plain(description)
    given = {"label": label, "text": text, "codes": voice, "embedding": embedding, "melody": melody}
    check_conditions(parts, given | {"description": description, "language": language}, unconditional)
    if parts.dual_track is not None:
        return ConditionInputs(tracks=dual_tracks(parts, parts.dual_track, given | {"description": description}, language))
    if text is not None and parts.text_becomes_embedding:
        embedding, text = _states(parts, text), None
    if description is not None:
        embedding = _states(parts, description)
    if voice is None and voice_frames is not None:
        raise ValueError(f"voice_frames is {voice_frames}, but no voice was given; give one, or leave it out")
    ids: dict[str, Any] = {"embedding": embedding}
    chosen = any(given is not None for given in (label, voice, embedding))
    if not chosen and text is not None and "label" in parts.condition_kinds:
        label = parts.defaults.default_label
    if label is not None:
        ids["label"] = [parts.label_id(one) for one in label] if is_list(label) else parts.label_id(label)  # type: ignore
    if text is not None and parts.text is not None:
        ids["text_ids"] = [parts.text.encode(one) for one in text] if is_list(text) else parts.text.encode(text)  # type: ignore
    if melody is not None:
        config = next(c for c in parts.lm.config.conditions if isinstance(c, MelodyConditionConfig))
        all_of_them = [
            melody_classes(one, parts.spec.geometry, config)  # type: ignore[arg-type]
            for one in (melody if is_list(melody) else [melody])  # type: ignore[union-attr]
        ]
        ids["melody"] = all_of_them if is_list(melody) else all_of_them[0]
    if voice is not None:
        voices = [_voice_codes(parts, one, voice_frames, notes) for one in (voice if is_list(voice) else [voice])]  # type: ignore
        ids["voice"] = voices if is_list(voice) else voices[0]
    return ConditionInputs(**ids)


def dual_tracks(
    parts: ModelParts, dual: DualTrackConfig, given: dict[str, Any], language: str | Sequence[str] | None
) -> Track | list[Track]:
    """The tracks of texts, of which each other condition is one for all or a list as well.

    Args:
        given: by kind, checked: text, label, embedding (the vector of a speaker) and description.
    Raises:
        ValueError: lists of unequal lengths, an unknown language, or what `make_track` refuses.
    """
    assert parts.text is not None
    lists: dict[str, list[Any]] = {}
    for name, value in (given | {"language": language}).items():
        several = is_list(value) or (isinstance(value, Tensor) and value.dim() == 3)
        lists[name] = list(value) if several else [value]
    count = max(map(len, lists.values()))
    for name, values in lists.items():
        if len(values) not in (1, count):
            raise ValueError(f"{len(values)} {ARGUMENT_NAMES[name]}s but {count} others; give as many, or one for all")
    tracks = []
    for i in range(count):
        own = {name: values[i % len(values)] for name, values in lists.items()}
        label = parts.defaults.default_label if own["label"] is own["embedding"] is None else own["label"]
        spoken = own["language"]
        if spoken is not None and not isinstance(spoken, str):
            raise ValueError(f"language must be a string, found {shown(spoken)}")
        tracks.append(
            make_track(
                dual,
                parts.spec.cardinalities,
                parts.text.encode,
                own["text"],
                AUTO if spoken is None else spoken,
                None if label is None else parts.labels[parts.label_id(label)],
                own["description"],
                None if own["embedding"] is None else _speaker_vector(parts, own["embedding"]),
            )
        )
    return tracks if count > 1 or is_list(given["text"]) else tracks[0]


def _speaker_vector(parts: ModelParts, vector: Any) -> Tensor:
    """The vector [D] of a speaker; ValueError: it has another shape."""
    width = parts.lm.config.width
    found = tensor("embedding", vector, f"the vector of a speaker, floating point [{width}]")
    if not found.is_floating_point() or found.numel() != width:
        raise ValueError(
            f"embedding is the vector of a speaker, floating point [{width}], found {found.dtype} {list(found.shape)}"
        )
    return found.detach().cpu().float().reshape(-1)


def check_conditions(parts: ModelParts, given: dict[str, Any], unconditional: bool) -> None:
    """Raise ValueError if the model lacks a given condition, or needs a missing one.

    Args:
        given: a value or None for each kind of condition.
    """
    kinds = parts.condition_kinds
    if parts.reads_description:
        kinds = [*kinds, "description"]
    if parts.dual_track is not None and parts.dual_track.languages:
        kinds = [*kinds, "language"]
    main = next((kind for kind in ("text", "label", "codes", "embedding", "melody") if kind in kinds), None)
    for kind, value in given.items():
        if kind == "text" and value is not None and kind not in kinds and "embedding" in kinds:
            raise ValueError(
                f"'{parts.name}' has no text encoder, whose states it reads in place of a text; add one "
                "(docs/public-models.md says where: t5/, or tessera convert --text-encoder DIR), or give embedding"
            )
        if value is not None and kind not in kinds:
            instead = (
                f", give a {ARGUMENT_NAMES[main]}" if main is not None and {main, kind} == {"text", "label"} else ""
            )
            raise ValueError(f"'{parts.name}' {LACKS[kind]}; leave {ARGUMENT_NAMES[kind]} out{instead}")
        if is_list(value) and not value:
            raise ValueError(f"the list of {ARGUMENT_NAMES[kind]}s is empty; give at least one")
    encoded = parts.text_becomes_embedding and given["embedding"] is not None
    if encoded and given["text"] is not None:
        raise ValueError("text and embedding were both given, and the text is turned into an embedding; give one")
    described = given["description"]
    for one in [] if described is None else described if is_list(described) else [described]:
        if not isinstance(one, str):
            raise ValueError(f"description must be a string, found {shown(one)}")
    if described is not None and given["embedding"] is not None:
        raise ValueError("description and embedding were both given; give one")
    if unconditional:
        return
    if main is not None and given[main] is None and not encoded:
        example = f"one of {', '.join(parts.labels[:10])}" if main == "label" else EXAMPLES[main]
        what = f"{'an' if main == 'embedding' else 'a'} {ARGUMENT_NAMES[main]}"
        raise ValueError(f"'{parts.name}' needs {what}; give {example}, or ask for unconditional")
    always = any(condition.kind == "embedding" and not condition.dropout for condition in parts.lm.config.conditions)
    if parts.reads_description and always and described is None and given["embedding"] is None:
        raise ValueError(f"'{parts.name}' needs a description; give {EXAMPLES['description']}")


def _states(parts: ModelParts, text: str | Sequence[str]) -> Tensor | list[Tensor]:
    """The states of a text, or of each of a list."""
    assert parts.text_encoder is not None
    found = parts.text_encoder.encode([text] if isinstance(text, str) else text)
    return found[0] if isinstance(text, str) else found


def _voice_codes(parts: ModelParts, voice: Prompt, num_frames: int | None, notes: list[str]) -> Tensor:
    """Codes of a voice, checked against the model's limit."""
    codes = prompt_codes(voice, parts.tokenizer, num_frames, "voice", notes)
    if codes is None:
        raise ValueError("the voice is silent: its level is never above -50 dB; give a recording of speech")
    longest = next(c.max_frames for c in parts.lm.config.conditions if isinstance(c, CodesConditionConfig))
    if codes.shape[-1] > longest:
        raise ValueError(
            f"the voice has {codes.shape[-1]} frames, '{parts.name}' reads at most {longest}; give a shorter "
            f"one, or set voice_frames to {longest} to use its beginning"
        )
    return codes


def is_list(value: object) -> bool:
    """Whether a value is several values; a string is one."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
