"""Dataset of the language model: items of shards with their conditions; `batch` collates them into padded batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from ...lm.clustering.clustering import Clustering
from ...lm.patterns.text_stream import ExampleShape, Task, TextStream
from ...tokenize.data.shard_reader import Shards
from ...tokenize.text.base import TextTokenizer
from ..common.captions import WHOLE, CaptionReader
from ..common.tasks import TaskReader
from ..common.text_states import TextStates
from .aligned_text import AlignedText
from .collate import Batch, collate
from .reference_prompts import Prompts, PromptSource


class CodesDataset:
    """The usable items of a shards folder, with labels as ids of the model and texts as token ids.

    Args:
        shards: opened shards.
        labels: label names of the model in order, None if it has no label condition.
        text: the model's text tokenizer, None if it has no text condition.
        aligned: reads the units of an item's alignment, None if the text is not aligned.
        max_frames: exclude longer items.
        clustering: return the coarse labels of the codes.
        prompts: source of code prompts, None if the model has no codes condition.
        missing: for items without the label or text that the model is conditioned on: "refuse" or "skip".
        captions: chooses among the captions of a text.
        embedding_width: width of the vectors of the condition embedding; None: there is no such condition.
        states: makes these vectors of the items' texts; None: every item has none.
        stream: the text stream of the model: an item is a sequence of its text and its codes; None: of its codes alone.
        tasks: draws whether a sequence begins with the text or with the codes, for a text stream.
    Raises:
        ValueError: a label unknown to the model, no items, or items without a required label or text; names them.
    """

    def __init__(
        self,
        shards: Shards,
        labels: Sequence[str] | None,
        text: TextTokenizer | None,
        max_frames: int | None = None,
        clustering: Clustering | None = None,
        prompts: PromptSource | None = None,
        missing: str = "refuse",
        aligned: AlignedText | None = None,
        captions: CaptionReader = WHOLE,
        embedding_width: int | None = None,
        states: TextStates | None = None,
        stream: TextStream | None = None,
        tasks: TaskReader | None = None,
    ):
        self.stream, self.tasks = stream, tasks
        self.shards, self.captions, self.embedding_width, self.states = shards, captions, embedding_width, states
        self.clustering = clustering
        self.text, self.aligned = text, aligned
        all_lengths = np.asarray(shards.lengths)
        used = np.arange(len(all_lengths)) if max_frames is None else np.flatnonzero(all_lengths <= max_frames)
        self.left_out = len(all_lengths) - len(used)
        if not len(used):
            raise ValueError(
                f"data.max_frames: no item has at most {max_frames} frames, the shortest has {all_lengths.min()}"
            )
        lacking = find_missing(shards, used, labels is not None, text, aligned, states)
        if lacking and (missing == "refuse" or len(lacking) == len(used)):
            raise ValueError(describe_missing(shards, lacking, len(used), aligned is not None))
        used = used[~np.isin(used, list(lacking))]
        self.skipped = len(lacking)
        """Number of excluded items without a required label or text."""
        self.numbers = used
        self.frames = all_lengths[used]
        """Frames of each item."""
        self.text_ids = np.zeros_like(self.frames)
        """Text ids in the sequence of each item."""
        if stream is not None:
            assert text is not None and tasks is not None
            texts = shards.texts()
            self.text_ids = np.array([len(text.encode(texts[number] or "")) for number in used.tolist()])
        self.lengths = self.frames + self.text_ids
        """Length of the sequence of each item."""
        self.prompts = None
        if prompts is not None:
            self.prompts = Prompts(prompts, self.frames, shards.labels[used], str(shards.folder))
        self._label_ids: list[int] | None = None
        if labels is not None:
            unknown = sorted(set(shards.label_names) - set(labels))
            if unknown:
                raise ValueError(
                    f"label '{unknown[0]}' does not occur in the training shards; known: {', '.join(labels)}"
                )
            place = {name: number for number, name in enumerate(labels)}
            self._label_ids = [place[name] for name in shards.label_names]

    def __len__(self) -> int:
        return len(self.numbers)

    def prompt(self, row: int, draw: int) -> Tensor | None:
        """Codes [K, L] of an item's prompt, or None."""
        found = None if self.prompts is None else self.prompts.choose(int(row), draw)
        if found is None:
            return None
        codes = self.shards.item(int(self.numbers[found.item])).codes[:, found.start : found.stop]
        return codes if self.clustering is None else self.clustering.coarse(codes[None])[0]

    def shapes(self, rows: Sequence[int] | np.ndarray, draw: int = 0) -> list[int | ExampleShape]:
        """What determines the loss terms of these items in step `draw`: the length, or the shape of a sequence with
        text."""
        if self.tasks is None:
            return [int(self.lengths[row]) for row in rows]
        return [
            ExampleShape(int(self.text_ids[row]), int(self.frames[row]), self.tasks(draw, int(row))) for row in rows
        ]

    def batch(self, rows: Sequence[int] | np.ndarray, draw: int = 0, task: Task | None = None) -> Batch:
        """Batch of the items with these numbers (0 .. len - 1), padded to the longest.

        Args:
            draw: selects among their possible prompts (reference_prompts.py), captions (captions.py) and tasks
                (tasks.py).
            task: of all items, instead of one drawn for each.
        """
        items = [self.shards.item(int(self.numbers[row])) for row in rows]
        labels = texts = prompts = aligned = states = None
        if self._label_ids is not None:
            labels = [self._label_ids[item.label] for item in items if item.label is not None]
        if self.aligned is not None:
            aligned = [self.aligned(self.shards.alignment(int(self.numbers[row]))) for row in rows]
        elif self.text is not None:
            read = [(item.text, int(row)) for item, row in zip(items, rows, strict=True) if item.text]
            texts = [self.text.encode(self.captions(text, draw, row, self.text.num_characters)) for text, row in read]
        if self.states is not None:
            read = [(item.text or "", int(row)) for item, row in zip(items, rows, strict=True)]
            states = [self.states(self.captions(text, draw, row)) for text, row in read]
        if self.prompts is not None:
            prompts = [self.prompt(row, draw) for row in rows]
        codes, given = [item.codes for item in items], None
        if self.stream is not None and self.tasks is not None:
            assert texts is not None
            drawn: list[Task] = [task or self.tasks(draw, int(row)) for row in rows]
            made = [self.stream.example(*parts) for parts in zip(texts, codes, drawn, strict=True)]
            codes, given = [codes for codes, _ in made], [given for _, given in made]
            texts = None
        batch = collate(codes, labels, texts, prompts, aligned, self.embedding_width, states, given)
        return batch if self.clustering is None else replace(batch, codes=self.clustering.coarse(batch.codes))


def find_missing(
    shards: Shards,
    used: np.ndarray,
    label: bool,
    text: TextTokenizer | None,
    aligned: AlignedText | None = None,
    states: TextStates | None = None,
) -> dict[int, str]:
    """Items among `used` without a required condition input: number -> reason.

    Args:
        label: whether the model has a label condition. text: its text tokenizer, None if it has no text condition.
        aligned: reads the units of alignments, None if the text is not aligned.
        states: encodes texts, None if the model reads no states of texts.
    """
    found: dict[int, str] = {}
    texts = shards.texts()
    for number in used.tolist():
        if label and shards.labels[number] < 0:
            found[number] = "no label"
        elif aligned is not None:
            try:
                aligned(shards.alignment(number))
            except ValueError as error:
                found[number] = str(error)
        elif text is not None and not texts[number]:
            found[number] = "no text"
        elif text is not None:
            try:
                text.prepare(texts[number] or "")
            except ValueError as error:
                found[number] = str(error)
        if states is not None and number not in found:
            try:
                states.encoder.check(texts[number] or "")
            except ValueError as error:
                found[number] = str(error) if texts[number] else "no text"
    return found


def describe_missing(shards: Shards, lacking: dict[int, str], used: int, aligned: bool = False) -> str:
    """One line that names the first items with missing condition inputs."""
    named = "; ".join(f"'{shards.index.ids[number]}': {why}" for number, why in list(lacking.items())[:3])
    more = f"; and {len(lacking) - 3} more" if len(lacking) > 3 else ""
    advice = "" if len(lacking) == used else ", or skip them with data.missing=skip"
    add = "align the corpus with tessera align" if aligned else "add it to the corpus"
    return (
        f"{shards.folder}: {len(lacking)} of {used} items lack a condition input of the model ({named}{more}); {add} "
        f"and build the shards again{advice}"
    )


def data_fingerprint(items: CodesDataset) -> str:
    """Fingerprint of the training items: SHA-256 over the shard files and the numbers of the items in use."""
    files = [file.sha256 for file in items.shards.index.files]
    digest = hashlib.sha256(" ".join([items.shards.index.build, *files]).encode())
    digest.update(np.ascontiguousarray(items.numbers, dtype="<i8").tobytes())
    return digest.hexdigest()


def conditions_fingerprint(items: CodesDataset) -> str:
    """Fingerprint of the condition inputs: SHA-256 over labels, texts, and the text tokenizer or encoder."""
    shards = items.shards
    columns = [shards.label_names, shards.index.labels, shards.index.texts]
    if items.aligned is not None:
        columns.append(shards.index.alignments)
    digest = hashlib.sha256(json.dumps(columns).encode())
    for content in () if items.text is None else items.text.files().values():
        digest.update(content)
    if items.states is not None:
        digest.update(items.states.fingerprint.encode())
    return digest.hexdigest()


def batches_by_length(lengths: np.ndarray, size: int) -> list[np.ndarray]:
    """All items in batches of similar length, for evaluation."""
    order = np.argsort(lengths, kind="stable")
    return [order[start : start + size] for start in range(0, len(order), size)]
