"""The head of a sequence of text and audio: a layer for the text channel, then any head for the codebooks.

    stage 0     the text channel: an id of the text, or slot (a frame follows), or the end
    stage 1 ..  the stages of the audio head, which is not told what stage 0 chose

If the text channel predicts nothing (`predict: none`), there is neither such a layer nor stage 0.
The two vocabularies are never padded to each other, in training or in decoding: that of a text may have 150,000 ids.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..ops.linear import Linear
from ..ops.loss import IGNORED, cross_entropy
from ..patterns.pattern import CodebookPattern
from ..patterns.sub_tokens import SubTokens
from ..patterns.text_stream import TextStream


class StreamSubTokens(SubTokens):
    """The sub-tokens of an audio head after one sub-token of the text channel: its id, counted from the first that is
    predicted."""

    def __init__(self, stream: TextStream, arrangement: CodebookPattern, audio: SubTokens):
        self.audio, self.first, self.parts = audio, stream.unpredicted, audio.parts
        self.codebooks = (0, *(1 + k for k in audio.codebooks))
        self.values = (stream.cardinalities[0] - self.first, *audio.values)
        self.output_sizes = (arrangement.output_sizes[0] - self.first, *audio.output_sizes)
        self.input_sizes = (arrangement.input_sizes[0] - self.first, *audio.input_sizes)
        self.end = arrangement.end_ids[0] - self.first

    def split(self, ids: Tensor) -> Tensor:
        """See SubTokens; ids of the text channel that are not predicted become negative."""
        return torch.cat([ids[:, :1] - self.first, self.audio.split(ids[:, 1:])], dim=1)

    def join(self, sub_tokens: Tensor) -> Tensor:
        """See SubTokens."""
        return torch.cat([sub_tokens[:, :1] + self.first, self.audio.join(sub_tokens[:, 1:])], dim=1)

    def targets(self, ids: Tensor, mask: Tensor) -> Tensor:
        """See SubTokens."""
        text = torch.where(mask[:, :1] & (ids[:, :1] >= self.first), ids[:, :1] - self.first, IGNORED)
        return torch.cat([text, self.audio.targets(ids[:, 1:], mask[:, 1:])], dim=1)

    def sum(self, terms: Tensor) -> Tensor:
        """See SubTokens."""
        return torch.cat([terms[:, :1], self.audio.sum(terms[:, 1:])], dim=1)


class StreamHead(nn.Module):
    """The head of a text channel and codebooks; the methods implement `base.Head`.

    Args:
        arrangement: of all channels.
        audio: the head of the codebooks, built for `stream.audio`.
    """

    def __init__(self, stream: TextStream, arrangement: CodebookPattern, width: int, audio: Any):
        super().__init__()
        self.sub_tokens = StreamSubTokens(stream, arrangement, audio.sub_tokens)
        silent = stream.has_end_frame
        self.text = None if silent else Linear(width, self.sub_tokens.output_sizes[0], bias=False)
        self.audio = audio
        self.period: int = audio.period

    def initialize_(self) -> None:
        self.audio.initialize_()

    def forward(self, hidden: Tensor, ids: Tensor | None, first_step: int = 0) -> Tensor:
        """The logits of whole sequences, here padded to each other for `LMOutput`."""
        audio = self.audio(hidden, None if ids is None else ids[:, 1:], first_step)
        if self.text is None:
            return nn.functional.pad(audio, (0, 0, 1, 0), value=float("-inf"))
        text = self.text(hidden).unsqueeze(2)
        V = max(text.shape[-1], audio.shape[-1])
        padded = [nn.functional.pad(x, (0, V - x.shape[-1]), value=float("-inf")) for x in (text, audio)]
        return torch.cat(padded, dim=2)

    def losses(self, hidden: Tensor, ids: Tensor, mask: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """See base.Head. Only the steps with a loss are computed, which synchronizes a GPU."""
        targets, said, heard = self.sub_tokens.targets(ids, mask)[:, 0], mask[:, 0], mask[:, 1:].any(dim=1)
        terms = torch.zeros(mask.transpose(1, 2).shape, device=hidden.device)
        text = terms[..., :1]
        if self.text is not None:
            found = cross_entropy(self.text(hidden[said]), targets[said], label_smoothing)
            text = terms[..., 0].masked_scatter(said, found).unsqueeze(-1)
        heard[0, 0] = True  # so that there is one step at least
        chosen = [x[:, 1:].transpose(1, 2)[heard].t().unsqueeze(0) for x in (ids, mask)]
        audio = self.audio.losses(hidden[heard].unsqueeze(0), *chosen, label_smoothing)
        audio = terms[..., 1:].masked_scatter(heard.unsqueeze(-1), audio[0].t())
        return torch.cat([text, audio], dim=-1).transpose(1, 2)

    # Decoding, one step at a time

    def stages_at(self, step: int) -> tuple[tuple[int, ...], ...]:
        first = () if self.text is None else ((0,),)
        return *first, *(tuple(1 + j for j in places) for places in self.audio.stages_at(step))

    def start(self, num_rows: int, dtype: torch.dtype, device: torch.device) -> Any:
        return self.audio.start(num_rows, dtype, device)

    def begin(self, memory: Any, hidden: Tensor, step: int) -> tuple[Tensor, Any]:
        return hidden, self.audio.begin(memory, hidden, step)

    def predict(self, begun: tuple[Tensor, Any], stage: int, sub_tokens: Tensor) -> Tensor:
        hidden, audio = begun
        if self.text is None:
            return self.audio.predict(audio, stage, sub_tokens[:, 1:])
        if stage == 0:
            return self.text(hidden).unsqueeze(1)
        return self.audio.predict(audio, stage - 1, sub_tokens[:, 1:])
