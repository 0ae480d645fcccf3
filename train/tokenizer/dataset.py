"""Training dataset of a tokenizer: the corpus, decoded once into memory; batches are a pure function of (seed,
step)."""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...tokenize.data.corpus import open_corpus
from ...tokenize.data.media import MediaError, print_notes
from ...tokenize.spec import AudioGeometry
from ..common.batch_sampler import Sampler, mix
from ..losses.base import MediaBatch
from .config import TokenizerTrainConfig

MAX_LISTED = 20
"""Maximum number of skipped items named individually."""


class MediaInMemory:
    """The corpus in memory; audio as 16-bit samples (115 MB per hour at 16 kHz).

    Args:
        show: whether to report progress and unreadable items.
    Raises:
        ValueError: there are no usable media.
    """

    def __init__(self, config: TokenizerTrainConfig, show: bool = True):
        self.settings, self.seed = config.train, config.seed
        corpus = open_corpus(config.data)
        self.geometry = config.tokenizer.geometry
        self.audio = self.geometry if isinstance(self.geometry, AudioGeometry) else None
        self.items: list[Tensor] = []
        self.texts: list[str | None] = []
        labels: list[str | None] = []
        digest = hashlib.sha256()
        skipped = 0
        for number in tqdm(range(len(corpus)), desc="reading media", leave=False, disable=not show):
            try:
                item = corpus.item(number)
                media = corpus.media(number, self.geometry)
            except MediaError as error:
                skipped += 1
                if show and skipped <= MAX_LISTED:
                    tqdm.write(f"skipped: {error}", file=sys.stderr)
                continue
            self.items.append((self._as_batched(media) * 32767).round().short() if self.audio else media)
            self.texts.append(item.text)
            labels.append(item.label)
            digest.update(json.dumps([item.id, item.label, item.text, list(media.shape)]).encode())
        if skipped > MAX_LISTED:
            corpus.notes.say(f"{skipped - MAX_LISTED} more items were skipped")
        print_notes(corpus.notes, show)
        if not self.items:
            kind = "audio" if self.audio else "image"
            raise ValueError(f"no usable {kind} files in {config.data.path}; see the messages above")
        self.fingerprint = digest.hexdigest()
        """Hash of the items' ids, labels, texts and shapes."""
        self.alphabet = "".join(sorted(set().union(*(text or "" for text in self.texts))))
        self.label_names = sorted({label for label in labels if label is not None})
        number_of = {name: number for number, name in enumerate(self.label_names)}
        self.labels = torch.tensor([-1 if label is None else number_of[label] for label in labels])
        lengths = np.array([item.shape[-1] if self.audio else 1 for item in self.items])
        self.sampler = Sampler(lengths, self.settings.batch, config.seed, pool_batches=1)

    @staticmethod
    def _as_batched(media: Tensor) -> Tensor:
        """Audio as in MediaBatch: [N] for one channel, [C, N] for several."""
        return media[0] if len(media) == 1 else media

    @property
    def crop_frames(self) -> int:
        """Frames per excerpt."""
        assert self.audio is not None
        samples = self.settings.crop_seconds * self.audio.sample_rate
        return max(1, round(samples / self.audio.samples_per_frame))

    def rows(self, step: int) -> np.ndarray:
        """Item numbers [batch] of a step."""
        return self.sampler.batch(step)

    def batch(self, step: int, rows: np.ndarray, first: int, count: int) -> MediaBatch:
        """Examples first .. first + count - 1 of the batch `rows` of a step."""
        here = slice(first, first + count)
        numbers = rows[here].tolist()
        texts, labels = [self.texts[number] for number in numbers], self.labels[numbers]
        all_texts, all_labels = [self.texts[number] for number in rows.tolist()], self.labels[rows.tolist()]
        if self.audio is None:
            images = torch.stack([self.items[number] for number in numbers])
            whole = torch.ones(len(numbers), dtype=torch.bool)
            return MediaBatch(images, None, None, whole, labels, texts, len(rows), 0, all_labels, all_texts)
        hop = self.audio.samples_per_frame
        size = self.crop_frames * hop
        lengths = np.minimum([self.items[number].shape[-1] for number in rows], size)
        generator = torch.Generator().manual_seed(mix(self.seed, 2, step))
        places = torch.rand(len(rows), generator=generator)[here].tolist()
        samples = torch.zeros(len(numbers), *self.items[0].shape[:-1], size)
        for row, number, place in zip(samples, numbers, places, strict=True):
            item = self.items[number]
            start = int(place * max(0, item.shape[-1] - size + 1))
            excerpt = item[..., start : start + size]
            row[..., : excerpt.shape[-1]] = excerpt.float() / 32767
        mask = torch.arange(size) < torch.as_tensor(lengths[here])[:, None]
        whole = torch.tensor([self.items[number].shape[-1] <= size for number in numbers])
        frames = int((-(-lengths // hop)).sum())
        frame_mask = mask[:, ::hop]
        return MediaBatch(samples, mask, frame_mask, whole, labels, texts, len(rows), frames, all_labels, all_texts)

    def excerpt(self, step: int, seconds: float) -> slice:
        """Samples that the discriminators receive in a step, the same for all examples."""
        if self.audio is None:
            return slice(None)
        total = self.crop_frames * self.audio.samples_per_frame
        length = min(total, int(seconds * self.audio.sample_rate))
        generator = torch.Generator().manual_seed(mix(self.seed, 3, step))
        start = int(torch.randint(total - length + 1, (), generator=generator))
        return slice(start, start + length)
