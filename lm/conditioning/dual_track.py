"""The condition `dual_track`: a text and the frames are two tracks of one sequence, whose vectors are added.

    order beside: the text goes on beside the frames that are generated

                   before the frames: a prefix                    steps
    text           d0 d1 r0 r1 r2  .  .  .  .  .  B  t0           t1 t2 E  .  .
    codes          -  -  -  -  -   n  (  l  )  v  p  b            f0 f1 f2 f3 f4

    order before: the whole text comes first

    text           d0 d1 r0 r1 r2  .  .  .  .  .  B  t0 t1 t2 E  .      .  .  .
    codes          -  -  -  -  -   n  (  l  )  v  p  p  p  p  p  b      f0 f1 f2

    d  the description (how it sounds)         r  what opens every text         t  the text, B and E its begin and end
    .  the text's pad id                       -  nothing: a zero vector
    n ( ) p b  tags, ids after the codes: whether a language follows, its brackets, padding, the begin of the frames
    l  a language, a tag      v  a speaker: a tag, or a given vector     f  a frame, the sum of its code vectors

A recording with its words may go before: its words before the text, its frames after the begin of the frames.
Nothing of the text is predicted; the frames end with the end id of codebook 0. The vectors of the text are those of a
table of its own width, through two layers with a SiLU between them.

Source: the dual-track representation of Qwen3-TTS (arXiv:2601.15621) and its package qwen-tts (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from ...configs.schema import Config, ConfigError, nearest_name
from ...tokenize.text.registry import TextConfig
from ..layers.embedding import Table
from ..ops.linear import Linear
from .base import ConditionContext
from .batch import ConditionBatch
from .padding import check_lengths, mask_or_none
from .speaker_encoder import SpeakerEncoder, SpeakerEncoderConfig

NOTHING, VOICE = -1, -2
"""In a track, in the place of an id: a zero vector; of codebook 0 also the vector of the row's speaker."""
AUTO = "auto"
"""The name of no particular language."""


class TrackTags(Config):
    """Tags by number: the ids after those of codebook 0, counted from 0."""

    pad: NonNegativeInt
    """Beside text without a frame."""
    begin: NonNegativeInt
    """Before the first frame."""
    end: NonNegativeInt
    """The end of the frames; read by nothing, its output is that of the end id."""
    think: NonNegativeInt
    """A language follows."""
    no_think: NonNegativeInt
    """No language follows."""
    open: NonNegativeInt
    """Before the language."""
    close: NonNegativeInt
    """After it."""


class SpeakerTag(Config):
    """A speaker of the model."""

    tag: NonNegativeInt
    """Its tag."""
    dialect: str | None = None
    """The language that it speaks instead of Chinese; null: none."""


class TrackTemplate(Config):
    """How a text is written for the text tokenizer."""

    text: str
    """{} stands for the text."""
    opening: NonNegativeInt = 0
    """Ids before the text."""
    closing: NonNegativeInt = 0
    """Ids after it, which the model does not read."""

    @model_validator(mode="after")
    def _holds_the_text(self) -> TrackTemplate:
        if self.text.count("{}") != 1:
            raise ValueError("a template has {} once, for the text")
        return self

    def encode(self, text: str, encode: Callable[[str], Sequence[int]]) -> tuple[list[int], list[int]]:
        """The ids before a text, and those of the text; ValueError: none are left of the text."""
        ids = list(encode(self.text.replace("{}", text)))
        inside = ids[self.opening : len(ids) - self.closing]
        if not text.strip() or not inside:
            raise ValueError(f"the text {text!r} is empty")
        return ids[: self.opening], inside


class DualTrackConfig(Config):
    """A text beside the frames, with tags for language and speaker."""

    kind: Literal["dual_track"] = "dual_track"
    join: Literal["dual"] = "dual"
    """A prefix, and what is added to the steps."""
    text: TextConfig
    """The text tokenizer."""
    vocab_size: PositiveInt | None = None
    """Size of the text tokenizer; null: filled in when it is built."""
    text_width: PositiveInt
    """Width of the text's table."""
    text_pad: NonNegativeInt
    """Text id beside frames and tags without text."""
    text_begin: NonNegativeInt
    """Text id before the text."""
    text_end: NonNegativeInt
    """Text id after the text."""
    num_tags: PositiveInt
    """Number of tags."""
    tags: TrackTags
    """The tags that every sequence has."""
    languages: dict[str, NonNegativeInt] = {}
    """Name of a language -> its tag."""
    speakers: dict[str, SpeakerTag] = {}
    """Name of a speaker -> its tag. The names are the model's labels, in this order."""
    order: Literal["before", "beside"] = "before"
    """Whether the text comes before the frames, or goes on beside them."""
    text_template: TrackTemplate
    """Of the text that is spoken."""
    description_template: TrackTemplate | None = None
    """Of a description; null: the model takes none."""
    recording_template: TrackTemplate | None = None
    """Of the words of a recording; null: the model takes none."""
    takes_vector: bool = False
    """Whether a speaker may be given as a vector."""
    speaker_encoder: SpeakerEncoderConfig | None = None
    """Makes such a vector of a recording; null: the model has none."""
    dropout: float = Field(default=0.0, ge=0, le=0)
    """The text is never dropped: no guidance."""

    @model_validator(mode="after")
    def _fits(self) -> DualTrackConfig:
        named = [*vars(self.tags).values(), *self.languages.values(), *(one.tag for one in self.speakers.values())]
        if max(named) >= self.num_tags:
            raise ValueError(f"tag {max(named)} is not one of the {self.num_tags} tags")
        for name, speaker in self.speakers.items():
            if speaker.dialect is not None and speaker.dialect not in self.languages:
                raise ValueError(f"speaker '{name}' speaks '{speaker.dialect}', which is no language of the model")
        if self.speaker_encoder is not None and not self.takes_vector:
            raise ValueError("speaker_encoder makes a vector of a speaker, but takes_vector is false")
        if AUTO in self.languages:
            raise ValueError(f"languages: '{AUTO}' stands for none; use another name")
        return self

    def language(self, name: str, speaker: str | None) -> int | None:
        """The tag of a language, or of the speaker's dialect of it; None: no tag. ValueError: it is unknown."""
        chosen = name.lower()
        if chosen != AUTO and chosen not in self.languages:
            raise ValueError(f"language '{name}' is unknown; {nearest_name(chosen, [AUTO, *self.languages])}")
        dialect = None if speaker is None else self.speakers[speaker].dialect
        if dialect is not None and chosen in (AUTO, "chinese"):
            chosen = dialect
        return None if chosen == AUTO else self.languages[chosen]


@dataclass(frozen=True)
class Track:
    """What a sample begins with and what goes on beside it."""

    prefix: Tensor
    """[K + 1, L] long: a text id, and the codes of each position; NOTHING in the place of an id, tags after the codes
    of codebook 0, VOICE there for the speaker's vector."""
    beside: tuple[int, ...]
    """Text ids beside the first frames; the pad id follows."""
    vector: Tensor | None = None
    """[D] float: the speaker; None: no position has it."""


def make_track(
    config: DualTrackConfig,
    cardinalities: Sequence[int],
    encode: Callable[[str], Sequence[int]],
    text: str,
    language: str = AUTO,
    speaker: str | None = None,
    description: str | None = None,
    vector: Tensor | None = None,
    recording: tuple[str, Tensor] | None = None,
) -> Track:
    """The track of a text.

    Args:
        cardinalities: of the K codebooks.
        encode: of the text tokenizer.
        speaker: name of a speaker. vector: [D] or [1, D], a speaker instead.
        recording: words and codes [K, T], T > 0, of a recording that goes before.
    Raises:
        ValueError: an unknown language, what the model does not take, or an empty text.
    """
    if speaker is not None and vector is not None:
        raise ValueError("a speaker was given by name and as a vector; give one of them")
    for given, template, what in (
        (description, config.description_template, "description"),
        (recording, config.recording_template, "recording with its words"),
    ):
        if given is not None and template is None:
            raise ValueError(f"the model takes no {what}; leave it out")
    if vector is not None and not config.takes_vector:
        raise ValueError("the model takes no vector of a speaker; leave it out")
    K, V, tags = len(cardinalities), cardinalities[0], config.tags
    opening, spoken = config.text_template.encode(text, encode)
    before: list[int] = []
    if description is not None and config.description_template is not None:
        ids, inside = config.description_template.encode(description, encode)
        before = [*ids, *inside]
    tag = config.language(language, speaker)
    marks = [tags.no_think, tags.open, tags.close] if tag is None else [tags.think, tags.open, tag, tags.close]
    first = [V + mark for mark in marks]
    if speaker is not None:
        first.append(V + config.speakers[speaker].tag)
    elif vector is not None:
        first.append(VOICE)
    first.append(V + tags.pad)
    columns = [(i, NOTHING) for i in (*before, *opening)]
    columns += [(config.text_pad, mark) for mark in first[:-1]] + [(config.text_begin, first[-1])]
    frames = torch.zeros(K, 0, dtype=torch.long)
    if recording is not None and config.recording_template is not None:
        spoken = [*config.recording_template.encode(recording[0], encode)[1], *spoken]
        frames = recording[1].long().cpu()
    said, begin = [*spoken, config.text_end], V + tags.begin
    if config.order == "before":
        columns += [(i, V + tags.pad) for i in said]
        beside, beginning = [], [config.text_pad] * (1 + frames.shape[1])
    else:
        count = 1 + frames.shape[1]
        beginning = (said + [config.text_pad] * count)[:count]
        beside = said[count:]
    columns.append((beginning[0], begin))
    prefix = torch.full((K + 1, len(columns)), NOTHING, dtype=torch.long)
    prefix[0], prefix[1] = torch.tensor(columns).T
    heard = torch.cat([torch.tensor(beginning[1:], dtype=torch.long)[None], frames])
    return Track(torch.cat([prefix, heard], dim=1), tuple(beside), None if vector is None else vector.reshape(-1))


def track_fields(tracks: Sequence[Track]) -> dict[str, Tensor]:
    """The fields of a ConditionBatch of these rows."""
    lengths = torch.tensor([track.prefix.shape[1] for track in tracks])
    beside_lengths = torch.tensor([len(track.beside) for track in tracks])
    prefix = tracks[0].prefix.new_full((len(tracks), len(tracks[0].prefix), int(lengths.max())), NOTHING)
    beside = torch.zeros(len(tracks), int(beside_lengths.max()), dtype=torch.long)
    for row, track in enumerate(tracks):
        prefix[row, :, : track.prefix.shape[1]] = track.prefix
        beside[row, : len(track.beside)] = torch.tensor(track.beside, dtype=torch.long)
    found = {"dual_track": prefix, "dual_track_lengths": lengths, "beside": beside, "beside_lengths": beside_lengths}
    vectors = [track.vector for track in tracks]
    given = next((vector for vector in vectors if vector is not None), None)
    if given is not None:
        rows = [torch.zeros_like(given) if vector is None else vector for vector in vectors]
        found["speaker"] = torch.stack(rows).float()
    return found


class TextProjection(nn.Module):
    """second(silu(first(x))), with biases; [*, inputs] -> [*, outputs]."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.first, self.second = Linear(inputs, inputs), Linear(inputs, outputs)
        for layer in (self.first, self.second):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.silu(self.first(x)))


class DualTrackCondition(nn.Module):
    """Tracks to the vectors of a prefix, and to those that are added to the steps."""

    described = "a text"
    unread_outputs: Tensor

    def __init__(self, config: DualTrackConfig, context: ConditionContext):
        super().__init__()
        if config.vocab_size is None:
            raise ConfigError("conditions: dual_track.vocab_size is not set; it is the size of the text tokenizer")
        if len(context.cardinalities) < 2:
            raise ConfigError("conditions: dual_track needs two codebooks or more")
        self.config, self.context, self.cardinalities = config, context, context.cardinalities
        self.vocab_size, self.width = config.vocab_size, context.width
        self.table = Table(config.vocab_size, config.text_width)
        self.projection = TextProjection(config.text_width, context.width)
        self.tags = Table(config.num_tags, context.width)
        self.register_buffer("unread_outputs", torch.zeros(config.num_tags, context.width))
        """[tags, D]: rows of a public model's output layer that no id uses, kept to be written back."""
        encoder = config.speaker_encoder
        self.speaker_encoder = None if encoder is None else SpeakerEncoder(encoder, context.width)

    def check(self, batch: ConditionBatch) -> None:
        """ValueError: wrong shape or dtype, or ids out of range."""
        track, K, V = batch.dual_track, len(self.cardinalities), self.cardinalities[0]
        assert track is not None
        if track.dim() != 3 or track.dtype != torch.long or track.shape[1] != K + 1 or not track.shape[2]:
            raise ValueError(f"dual_track must be long [B, {K + 1}, L], found {track.dtype} {list(track.shape)}")
        B = len(track)
        check_lengths("dual_track_lengths", batch.dual_track_lengths, B, track.shape[2], "positions", "no text")
        beside, speaker = batch.beside, batch.speaker
        if beside is None or beside.dim() != 2 or len(beside) != B or beside.dtype != torch.long:
            raise ValueError(f"beside must be long [{B}, L], the text ids beside the frames of each row")
        check_lengths("beside_lengths", batch.beside_lengths, B, beside.shape[1], "ids", "none")
        if speaker is not None and (speaker.shape != (B, self.width) or not speaker.is_floating_point()):
            found = f"{speaker.dtype} {list(speaker.shape)}"
            raise ValueError(f"the vector of a speaker must be floating point [{self.width}], found {found}")
        if track.device.type != "cpu":
            return
        assert batch.dual_track_lengths is not None and batch.beside_lengths is not None
        if B and int(batch.dual_track_lengths.min()) < 1:
            raise ValueError("every row needs a text; a row of dual_track has none")
        inside = torch.arange(track.shape[2]) < batch.dual_track_lengths[:, None]
        limits = [self.vocab_size, V + self.config.num_tags, *self.cardinalities[1:]]
        for row, limit in enumerate(limits):
            least = NOTHING if row != 1 else VOICE
            wrong = track[:, row][inside & ((track[:, row] < least) | (track[:, row] >= limit))]
            if wrong.numel():
                raise ValueError(f"dual_track holds {int(wrong[0])} in its row {row}, the largest is {limit - 1}")
        ids = beside[torch.arange(beside.shape[1]) < batch.beside_lengths[:, None]]
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise ValueError(f"text id {int(ids.max())} is not one of 0 to {self.vocab_size - 1}")
        if speaker is None and bool((inside & (track[:, 1] == VOICE)).any()):
            raise ValueError("a position has the vector of a speaker, but none was given")

    def none(self, num_rows: int) -> dict[str, Tensor]:
        """ValueError: a model with two tracks reads a text always."""
        raise ValueError("the model reads a text always; give one")

    def forward(self, batch: ConditionBatch) -> tuple[Tensor, Tensor | None, Tensor]:
        """The prefix [B, L, D], its mask [B, L], and what is added to the steps [B, 1 + n, D]: that of step s at s, the
        last from n on."""
        track, lengths, beside = batch.dual_track, batch.dual_track_lengths, batch.beside
        assert track is not None and lengths is not None and beside is not None and batch.beside_lengths is not None
        said = self.text_vectors(track[:, 0])
        mask = torch.arange(track.shape[2], device=track.device) < lengths[:, None]
        place = torch.arange(beside.shape[1], device=track.device)
        ids = torch.where(place < batch.beside_lengths[:, None], beside, self.config.text_pad)
        added = self.text_vectors(F.pad(ids, (1, 1), value=self.config.text_pad))
        added = torch.cat([torch.zeros_like(added[:, :1]), added[:, 1:]], dim=1)
        return said + self._heard(track[:, 1:], batch.speaker).to(said.dtype), mask_or_none(mask), added

    def text_vectors(self, ids: Tensor) -> Tensor:
        """[B, L, D] of text ids [B, L], zero in the place of NOTHING."""
        found = self.projection(self.table(ids.clamp(min=0)))
        return found.masked_fill((ids < 0).unsqueeze(-1), 0.0)

    def _heard(self, codes: Tensor, speaker: Tensor | None) -> Tensor:
        """[B, L, D] of the codes [B, K, L] of a track."""
        first, V = codes[:, 0], self.cardinalities[0]
        found = self.tags((first - V).clamp(min=0)).masked_fill((first < V).unsqueeze(-1), 0.0)
        assert self.context.input is not None
        framed = codes[:, 1] >= 0
        frames = self.context.input(codes.masked_fill(~framed.unsqueeze(1), 0))
        found = found + frames.masked_fill(~framed.unsqueeze(-1), 0.0)
        if speaker is not None:
            voiced = (first == VOICE).unsqueeze(-1)
            found = found + torch.where(voiced, speaker.unsqueeze(1).to(found.dtype), 0.0)
        return found
