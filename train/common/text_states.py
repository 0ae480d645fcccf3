"""States of a frozen text encoder for the texts of training items: the vectors of the condition `embedding`.

They are those of generation, bit for bit: one text at a time, without padding (lm/conditioning/text_encoder.py). A text
is encoded when it is first read and then held in memory; beyond a limit the text that was read least recently is
dropped, and encoded again if it comes back.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from functools import cached_property

from torch import Tensor

from ...lm.checkpoints.weights_file import weights_fingerprint
from ...lm.conditioning.text_encoder import TextEncoder

MOST_BYTES = 1 << 30
"""Of the states that are held; about 10,000 captions of 30 tokens with T5-base."""


class TextStates:
    """Texts to their states."""

    def __init__(self, encoder: TextEncoder, most_bytes: int = MOST_BYTES):
        self.encoder, self.most_bytes = encoder, most_bytes
        self._held: OrderedDict[str, Tensor] = OrderedDict()
        self._num_bytes = 0

    def __call__(self, text: str) -> Tensor:
        """States [L, width] float32 on the CPU, of L tokens; errors as `TextEncoder.encode`."""
        if text not in self._held:
            found = self.encoder.encode([text])[0]
            self._held[text] = found
            self._num_bytes += found.nbytes
            while self._num_bytes > self.most_bytes and len(self._held) > 1:
                self._num_bytes -= self._held.popitem(last=False)[1].nbytes
        self._held.move_to_end(text)
        return self._held[text]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the encoder: its weights in float32, and the files of its tokenizer."""
        digest = hashlib.sha256(weights_fingerprint(self.encoder.own_tensors()).encode())
        for path in self.encoder.tokenizer_files():
            digest.update(path.name.encode() + path.read_bytes())
        return digest.hexdigest()
