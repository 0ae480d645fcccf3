"""Text and audio in one sequence: a text channel beside the codebooks.

The codes of such a model are [K + 1, P] at P positions, which are the frames of its codebook pattern: channel 0 is the
text, channels 1 to K are the tokenizer's codebooks.

                     speak: a text, then its frames      write: frames, then their text
    text             t0 t1 t2 .  .  .  .  E              .  .  .  .  t0 t1 t2 E
    codebook 0       -  -  -  a0 a1 a2 a3                a0 a1 a2 a3 -  -  -
    codebook 1       -  -  -  b0 b1 b2 b3                b0 b1 b2 b3 -  -  -
    given            ********                            ***********

    .  `slot`: this position has a frame and no text
    -  `absent`: nothing is there. It is read, and neither predicted nor sampled.
    E  the end of the sequence, as in every pattern

A model whose end is a frame (`predict: none`) has no E: a frame whose codes are all 0 ends its audio, and may be
followed by another text and its frames, so that a sequence holds the turns of a conversation:

    text             t0 t1 .  .  .  t2 t3 .  .
    codebook 0       -  -  a0 a1 0  -  -  b0 0
    codebook 1       -  -  c0 c1 0  -  -  d0 0

`absent` in the text channel is dropped text: a row whose text dropout leaves out reads it in place of each id, and so
does the null branch of guidance. The count of positions stays. A position may also hold text and a frame (`positions:
shared`).

Sources: text and codes as channels of one sequence in Moshi (arXiv:2410.00037), whose text is beside the frames, CSM
(SesameAILabs/csm), whose end is a frame, and MOSS-TTS (OpenMOSS/MOSS-TTS), whose slot is the id
`audio_assistant_gen_slot`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...configs.schema import Config, ConfigError
from ...tokenize.text.registry import TextConfig
from .layouts import ArrangementConfig, DelayConfig, ParallelConfig
from .pattern import CodebookPattern, SpecialsConfig

Task = Literal["speak", "write"]
"""speak: frames of a given text. write: the text of given frames."""
Turn = tuple[Sequence[int], Tensor]
"""A text, its ids, and how it was spoken, codes [K, T]."""


class TextStreamConfig(Config):
    """A text channel beside the codebooks: the model speaks text and writes what it hears."""

    text: TextConfig
    """The text tokenizer."""
    vocab_size: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    """Size of the text tokenizer; null: filled in when it is built."""
    positions: Literal["apart", "shared"] = "apart"
    """apart: a position holds a text id or a frame. shared: it may hold both, the text beside the frame."""
    predict: Literal["text", "end", "none"] = "text"
    """What the text channel predicts. text: ids of the text, or that a frame follows, or the end. end: the last two
    alone, for a model that never writes; its output layer has two outputs. none: nothing, it has no output layer: after
    a text come frames, until one whose codes are all 0 (CSM)."""
    begin: Annotated[int, Field(ge=0, le=1 << 24)] | None = None
    """The text id with which every text begins: at the beginning of a sequence it takes the place of the start id.
    null: none."""
    empty: Literal["learned", "zero"] = "learned"
    """What a position without text, or without a frame, adds to the input in their place. learned: a learned vector.
    zero: nothing."""
    loss: Literal["answer", "all"] = "answer"
    """answer: no loss on what is given, the text to speak or the frames to write down. all: on every position."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability of dropping the given text of a training row; 0: no guidance by text later."""


@dataclass(frozen=True)
class ExampleShape:
    """What determines the loss terms of an example with a text."""

    text: int
    """Number of text ids."""
    frames: int
    """Number of frames."""
    task: Task


class TextStream:
    """The text channel of one model: makes sequences of text and codes, and takes them apart.

    Args:
        config: with the vocabulary size filled in.
        specials: with an absent id.
        cardinalities: of the tokenizer's codebooks.
    Raises:
        ConfigError: the vocabulary size is missing.
    """

    def __init__(self, config: TextStreamConfig, specials: SpecialsConfig, cardinalities: Sequence[int]):
        if config.vocab_size is None:
            raise ConfigError("text_stream.vocab_size is not set; it is the size of the text tokenizer")
        if config.begin is not None and config.begin >= config.vocab_size:
            raise ConfigError(f"text_stream.begin is {config.begin}, but the text has {config.vocab_size} ids")
        assert specials.absent is not None
        self.config = config
        self.num_ids = config.vocab_size
        """Number of text ids, V."""
        self.slot = self.num_ids
        """The id of a frame without text."""
        self.cardinalities = (self.num_ids + 1, *cardinalities)
        """Of all channels."""
        self.absent_ids = tuple(size + specials.absent for size in self.cardinalities)
        self.audio = CodebookPattern(ParallelConfig(), cardinalities, False, specials)
        """The codebooks alone, with the special ids that they have in the sequence."""
        self.unpredicted = 0 if config.predict == "text" else self.num_ids
        """Ids of channel 0 below this one are not predicted."""
        self.has_end_frame = config.predict == "none"
        """Whether a frame of zeros is the end of audio; the text channel then has no output."""

    def speak(self, text: Sequence[int] | Tensor, codes: Tensor, turns: Sequence[Turn] = ()) -> Tensor:
        """The sequence [K + 1, P] of a text, L ids, and its codes [K, T] (of which there may be none yet): P is L + T,
        one less if `begin` is set.

        Args:
            turns: what was said before, for a model whose end is a frame: texts and their codes [K, *].
        """
        assert not turns or self.has_end_frame
        before = [
            part for turn in turns for part in (self._text(turn[0], codes), self._ended(turn[1].to(codes.device)))
        ]
        sequence = torch.cat([*before, self._text(text, codes), self._frames(codes)], dim=1)
        if self.config.begin is None:
            return sequence
        if not sequence.shape[1] or int(sequence[0, 0]) != self.config.begin:
            raise ValueError(f"a text of this model begins with the id {self.config.begin}, found {list(text)[:3]}")
        return sequence[:, 1:]

    def write(self, codes: Tensor, text: Sequence[int] | Tensor) -> Tensor:
        """The sequence [K + 1, T + L] of codes [K, T] and their text, L ids (of which there may be none yet)."""
        return torch.cat([self._frames(codes), self._text(text, codes)], dim=1)

    def example(self, text: Sequence[int], codes: Tensor, task: Task) -> tuple[Tensor, int]:
        """A training example: the sequence [K + 1, P] of a text and codes [K, T], and its given positions."""
        if task == "speak":
            given = self.speak(text, codes[:, :0])
            frames = self._ended(codes) if self.has_end_frame else self._frames(codes)
            return torch.cat([given, frames], dim=1), given.shape[1]
        return self.write(codes, text), codes.shape[1]

    def split(self, sequence: Tensor) -> tuple[Tensor, Tensor]:
        """The text ids [L] and the codes [K, T] of a sequence [K + 1, P], each in order."""
        text, codes = sequence[0], sequence[1:]
        return text[text < self.num_ids], codes[:, codes[0] != self.absent_ids[1]]

    def without_text(self, ids: Tensor) -> Tensor:
        """ids [B, K + 1, *] with every text id replaced by `absent`."""
        text = ids[:, :1]
        return torch.cat([torch.where(text < self.num_ids, self.absent_ids[0], text), ids[:, 1:]], dim=1)

    def count_terms(self, shape: ExampleShape) -> Tensor:
        """Number of predictions of each channel in a sequence of a shape, [K + 1] long."""
        text, frames = shape.text, shape.frames
        if self.has_end_frame:
            return torch.tensor([0, *[frames + 1] * (len(self.cardinalities) - 1)])
        if self.config.loss == "answer":
            text, frames = (0, frames) if shape.task == "speak" else (text, 0)
        return torch.tensor([text + frames + 1, *[frames] * (len(self.cardinalities) - 1)])

    def check(self, codes: Tensor, lengths: Tensor | None) -> None:
        """Raise ValueError if a position of codes [B, K + 1, P] does not hold what it may (on the CPU only)."""
        if codes.device.type != "cpu":
            return
        absent = codes[:, 1:] == torch.tensor(self.absent_ids[1:])[:, None]
        text, empty = codes[:, 0], absent.all(dim=1)
        wrong = absent.any(dim=1) != empty
        what = "some codebooks of a frame are absent and others are not"
        if not bool(wrong.any()):
            wrong = empty & (text == self.slot)
            what = f"the text channel has a slot ({self.slot}), which stands for a frame, and the codebooks are absent"
        if self.config.positions == "apart" and not bool(wrong.any()):
            wrong = ~empty & (text != self.slot)
            what = f"a frame has the text id {{}}; set positions: shared, or give it the slot ({self.slot})"
        if lengths is not None:
            wrong = wrong & (torch.arange(codes.shape[2]) < lengths[:, None])
        if bool(wrong.any()):
            row, place = wrong.nonzero()[0].tolist()
            raise ValueError(f"row {row}, position {place}: {what.format(int(text[row, place]))}")

    def _text(self, text: Sequence[int] | Tensor, codes: Tensor) -> Tensor:
        """[K + 1, L]: positions of text."""
        ids = torch.as_tensor(text, dtype=torch.long, device=codes.device)
        absent = torch.tensor(self.absent_ids[1:], device=codes.device)
        return torch.cat([ids[None], absent[:, None].expand(-1, len(ids))])

    def _frames(self, codes: Tensor) -> Tensor:
        """[K + 1, T]: positions of frames."""
        return torch.cat([torch.full_like(codes[:1], self.slot), codes])

    def _ended(self, codes: Tensor) -> Tensor:
        """[K + 1, T + 1]: positions of frames and the end frame."""
        return self._frames(torch.cat([codes, codes.new_zeros(len(codes), 1)], dim=1))


def check_stream_pattern(arrangement: ArrangementConfig) -> None:
    """Raise ValueError unless a pattern places the text of a position in the step of its codes, or earlier."""
    if arrangement.kind not in ("parallel", "delay") or getattr(arrangement, "flatten_first", 0):
        raise ValueError(
            f"arrangement {arrangement.kind}: text_stream needs the kind parallel, or delay without flatten_first"
        )
    delays = arrangement.delays if isinstance(arrangement, DelayConfig) else None
    if delays is not None and min(delays, default=0) < delays[0]:
        raise ValueError(
            f"arrangement.delays {list(delays)}: the first is that of the text of text_stream, which must not come "
            "after the codes; make it the smallest"
        )
