"""Conditions given by name: label names, texts and recordings become ids and codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..lm.conditioning.dual_track import AUTO, DualTrackCondition, Track, make_track
from ..lm.conditioning.registry import CodesConditionConfig, DualTrackConfig, MelodyConditionConfig
from ..lm.patterns.text_stream import Turn
from .parts import Label, ModelParts
from .requests.arguments import plain, shown, tensor
from .requests.conditions import ARGUMENT_NAMES, ConditionInputs
from .requests.melody import melody_classes
from .requests.prompt import Prompt, prompt_codes, recording_samples

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
    voice_text: str | None = None,
    turns: Sequence[tuple[str, Prompt]] = (),
    language: str | Sequence[str] | None = None,
) -> ConditionInputs:
    """The conditions as ids and codes. Warnings are appended to `notes`.

    Raises:
        ValueError: the model lacks a given condition, or needs a missing one.
    """
    description = plain(description)
    dual = parts.dual_track
    spoken = [] if dual is not None and not turns else _turns(parts, voice, voice_frames, voice_text, turns)
    if spoken:
        voice = voice_frames = None
    given = {"label": label, "text": text, "codes": voice, "embedding": embedding, "melody": melody}
    check_conditions(parts, given | {"description": description, "language": language}, unconditional)
    if dual is not None:
        said = {"description": description, "language": language, "voice_text": voice_text}
        return ConditionInputs(tracks=dual_tracks(parts, dual, given | said, voice_frames))
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
    return ConditionInputs(**ids, turns=spoken)


def recording_codes(parts: ModelParts, audio: Prompt, num_frames: int | None = None, name: str = "recording") -> Tensor:
    """Codes [K, T] of a recording; ValueError: it has no whole frame, or another shape."""
    codes = prompt_codes(audio, parts.tokenizer, num_frames, name)
    if codes is None or codes.dim() != 2 or not codes.shape[1]:
        found = "nothing" if codes is None else list(codes.shape)
        raise ValueError(f"a {name} is a file, samples [C, N] or codes [K, T], found {found}")
    return codes


def _turns(parts: ModelParts, voice: Any, voice_frames: int | None, voice_text: Any, turns: Any) -> list[Turn]:
    """The earlier turns of a conversation, ids and codes; a voice with its words is one, before the others.

    Raises:
        ValueError: the model knows no turns, or a voice and its words were not given together.
    """
    stream = parts.lm.text_stream
    if stream is None or not stream.has_end_frame:
        if voice_text is not None or turns:
            name = "turns were" if turns else "voice_text was"
            raise ValueError(f"{name} given, but '{parts.name}' reads no earlier turns of a conversation; leave it out")
        return []
    said = [("turn", None, one) for one in turns]
    if (voice is None) != (voice_text is None):
        lacks = "voice_text, the words of the voice" if voice_text is None else "voice, the recording of voice_text"
        raise ValueError(f"'{parts.name}' reads a voice as an earlier turn, text and recording; give {lacks}, as well")
    if voice is not None:
        if is_list(voice) or is_list(voice_text):
            raise ValueError("a voice and its words are one recording and one text; give several as turns")
        said = [("voice", voice_frames, (voice_text, voice)), *said]
    found: list[Turn] = []
    for name, frames, turn in said:
        if not is_list(turn) or len(turn) != 2 or not isinstance(turn[0], str):
            raise ValueError(f"a {name} is a pair, its text and its recording, found {shown(turn)}")
        assert parts.text is not None
        found.append((parts.text.encode(turn[0]), recording_codes(parts, turn[1], frames, name).cpu()))
    return found


def dual_tracks(
    parts: ModelParts, dual: DualTrackConfig, given: dict[str, Any], voice_frames: int | None
) -> Track | list[Track]:
    """The tracks of texts, of which each other condition is one for all or a list as well.

    Args:
        given: by kind, checked: text, label, embedding (the vector of a speaker), description, language, codes (the
            recording of a voice), and voice_text, its words.
    Raises:
        ValueError: lists of unequal lengths, an unknown language, or what `make_track` refuses.
    """
    assert parts.text is not None
    if given["voice_text"] is not None and given["codes"] is None:
        raise ValueError("voice_text was given without its recording; give voice as well, or leave it out")
    lists: dict[str, list[Any]] = {}
    for name, value in given.items():
        several = is_list(value) or (isinstance(value, Tensor) and value.dim() == 3)
        lists[name] = list(value) if several else [value]
    count = max(map(len, lists.values()))
    for name, values in lists.items():
        if len(values) not in (1, count):
            what = ARGUMENT_NAMES.get(name, name)
            raise ValueError(f"{len(values)} {what}s, but {count} of others; give as many, or one for all")
    voices = [(voice, voice_frames, words) for voice in lists["codes"] for words in lists["voice_text"]]
    if len(lists["codes"]) == len(lists["voice_text"]):
        pairs = zip(lists["codes"], lists["voice_text"], strict=True)
        voices = [(voice, voice_frames, words) for voice, words in pairs]
    heard = [_heard(parts, dual, *voice) for voice in voices]
    tracks = []
    for i in range(count):
        own = {name: values[i % len(values)] for name, values in lists.items()}
        vector, recording = heard[i % len(heard)]
        if own["text"] is None:
            raise ValueError(f"'{parts.name}' reads a text always; give one")
        if own["embedding"] is not None and vector is not None:
            raise ValueError("a voice and embedding, the vector of a speaker, were both given; give one of them")
        if own["embedding"] is not None:
            vector = _speaker_vector(parts, own["embedding"])
        label = parts.defaults.default_label if own["label"] is vector is None else own["label"]
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
                vector,
                recording,
            )
        )
    return tracks if any(is_list(value) for value in given.values()) else tracks[0]


def _heard(
    parts: ModelParts, dual: DualTrackConfig, voice: Prompt | None, voice_frames: int | None, words: Any
) -> tuple[Tensor | None, tuple[str, Tensor] | None]:
    """What is read of the recording of a voice: the vector of its speaker, and with its words also its codes."""
    if voice is None:
        return None, None
    condition = parts.lm.conditions.parts["dual_track"]
    assert isinstance(condition, DualTrackCondition)
    encoder = condition.speaker_encoder
    if encoder is None:
        raise ValueError(f"'{parts.name}' has no speaker encoder, so it takes no recording of a voice; leave voice out")
    vector = encoder.of(recording_samples(voice, parts.tokenizer, "voice").mean(dim=0))
    if words is None:
        if voice_frames is not None:
            raise ValueError(f"voice_frames is {voice_frames}, but only the speaker of the voice is read; leave it out")
        return vector, None
    if not isinstance(words, str):
        raise ValueError(f"voice_text must be a string, found {shown(words)}")
    return vector, (words, recording_codes(parts, voice, voice_frames, "voice").cpu())


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
        if not isinstance(one, str) and (one is not None or parts.dual_track is None):
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
