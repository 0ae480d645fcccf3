"""Input embedding of a sequence of text and audio: a table for the text channel, beside any embedding of the codes."""

from __future__ import annotations

from torch import Tensor, nn

from ..patterns.text_stream import TextStream
from .embedding import Table
from .input_embedding import INPUTS, InputConfig


class StreamInput(nn.Module):
    """ids [B, K + 1, S] -> [B, S, D]: the vector of the text channel plus that of the codebooks."""

    def __init__(
        self, config: InputConfig, stream: TextStream, num_text_rows: int, width: int, code_vectors: Tensor | None
    ):
        """num_text_rows: ids of the text channel, the special ones included."""
        super().__init__()
        self.text = Table(num_text_rows, width)
        self.audio = INPUTS[config.kind](config, stream.audio, width, code_vectors)
        self.is_sparse = stream.config.empty == "zero"
        self.no_text, self.no_frame = (stream.slot, stream.absent_ids[0]), stream.absent_ids[1]

    def forward(self, ids: Tensor) -> Tensor:
        text, audio = self.text(ids[:, 0]), self.audio(ids[:, 1:])
        if not self.is_sparse:
            return text + audio
        (slot, dropped), said = self.no_text, ids[:, 0]
        text = text.masked_fill(((said == slot) | (said == dropped)).unsqueeze(-1), 0.0)
        return text + audio.masked_fill((ids[:, 1] == self.no_frame).unsqueeze(-1), 0.0)
