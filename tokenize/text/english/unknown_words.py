"""Pronunciation of words that are in no lexicon, by a small network.

    letters [B, L]  ->  embeddings, a convolution, transformer layers  ->  two places a letter: units or blank [B, 2 L]

It is trained with connectionist temporal classification (Graves et al. 2006): repetitions are merged, blanks dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..phoneme_symbols import ENGLISH_UNITS
from ..units import is_silent

SOUNDS = tuple(unit for unit in ENGLISH_UNITS if not is_silent(unit))
"""Outputs 1, 2, ...; 0 is the blank."""
LETTERS = "abcdefghijklmnopqrstuvwxyz'"
MOST_LETTERS = 32
WIDTH, HEADS, LAYERS, FEED_FORWARD = 64, 4, 4, 128


class LettersToSounds(nn.Module):
    """The network."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(LETTERS) + 1, WIDTH, padding_idx=0)
        self.from_start = nn.Embedding(MOST_LETTERS, WIDTH)
        self.from_end = nn.Embedding(MOST_LETTERS, WIDTH)
        self.neighbours = nn.Conv1d(WIDTH, WIDTH, 5, padding=2)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, FEED_FORWARD, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.two_places = nn.Linear(WIDTH, 2 * WIDTH)
        self.sounds = nn.Linear(WIDTH, len(SOUNDS) + 1)

    def forward(self, letters: Tensor, lengths: Tensor) -> Tensor:
        """Log-probabilities [B, 2 L, 1 + sounds] of letters [B, L], 0 after each length [B]."""
        num_rows, longest = letters.shape
        place = torch.arange(longest)
        hidden = self.letters(letters)
        hidden = hidden + self.neighbours(hidden.transpose(1, 2)).transpose(1, 2)
        hidden = hidden + self.from_start(place) + self.from_end((lengths[:, None] - 1 - place).clamp(min=0))
        hidden = self.layers(hidden, src_key_padding_mask=place >= lengths[:, None])
        hidden = F.gelu(self.two_places(self.norm(hidden))).view(num_rows, 2 * longest, WIDTH)
        return self.sounds(hidden).log_softmax(-1)

    @torch.no_grad()
    def pronounce(self, word: str) -> str:
        """Phonemes of a word of the letters a to z and apostrophes, of any length; at least one."""
        letters, lengths = letter_ids(
            [word[start : start + MOST_LETTERS] for start in range(0, len(word), MOST_LETTERS)]
        )
        parts = self(letters, lengths).argmax(-1).tolist()
        said = []
        for places, length in zip(parts, lengths.tolist(), strict=True):
            before = [0, *places]
            said += [sound for sound, last in zip(places[: 2 * length], before, strict=False) if sound not in (0, last)]
        return "".join(SOUNDS[sound - 1] for sound in said) or "ə"


def letter_ids(words: list[str]) -> tuple[Tensor, Tensor]:
    """Ids [B, L] and lengths [B] of words of LETTERS."""
    lengths = torch.tensor([len(word) for word in words])
    ids = torch.zeros(len(words), int(lengths.max()), dtype=torch.long)
    for row, word in enumerate(words):
        ids[row, : len(word)] = torch.tensor([1 + LETTERS.index(letter) for letter in word])
    return ids, lengths
