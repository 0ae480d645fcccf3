"""`tessera align`: train the acoustic model on a corpus, then write when each unit of each transcript sounds.

out/NAME.align              units with their times, for each recording
out/report.json             score of each recording, lowest first; what was skipped and why
out/aligner.safetensors     the acoustic model after each iteration: a killed run resumes here
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ...configs.files import read_safetensors, write_atomic, write_json, write_safetensors
from ...configs.folder_lock import lock_folder
from ...tokenize.alignment.alignment_file import write_alignment
from ...tokenize.data.corpus import open_corpus
from ...tokenize.data.corpus_items import Corpus
from ...tokenize.data.item_alignments import alignment_path
from ...tokenize.data.media import MediaError, print_notes
from ...tokenize.spec import AudioGeometry
from ...tokenize.text.registry import make_text
from ...tokenize.text.units import UnitText
from .acoustic_model import Scale, Utterance, align, flat_start, measure_scale, reestimate
from .cepstra import FRAMES_PER_SECOND, HOP, SAMPLE_RATE, cepstra
from .config import AlignConfig
from .gaussians import Gaussians
from .unit_graph import SoundTable, unit_graph, unit_times

MODEL_FILE, REPORT_FILE = "aligner.safetensors", "report.json"
GEOMETRY = AudioGeometry(sample_rate=SAMPLE_RATE, samples_per_frame=HOP)
MAX_CELLS = 100_000_000
"""Frames times states of one recording: ten minutes of fast speech."""
GROUP = 256
"""Recordings in memory at a time while all are aligned."""


@dataclass(frozen=True)
class AlignedItem:
    """A recording that was aligned."""

    id: str
    score: float
    """See `acoustic_model.align`; where it is far below the others, the transcript is probably wrong."""
    seconds: float
    units: int


@dataclass(frozen=True)
class AlignReport:
    """Result of `align_corpus`."""

    out: str
    items: list[AlignedItem]
    """Lowest score first."""
    skipped: list[dict[str, str]]
    """id and reason."""
    train_minutes: float
    """Speech in the training."""


def align_corpus(config: AlignConfig, progress: bool = True) -> AlignReport:
    """Train on a corpus and write its alignments; resumes an interrupted training of the same corpus.

    Args:
        progress: show progress on stderr.
    Raises:
        ValueError: no recording with a usable transcript, or another process writes in `out`.
        FileNotFoundError: no such corpus.
    """
    aligner = _Aligner(config, open_corpus(config.corpus), progress)
    with lock_folder(config.out, "tessera align"):
        return aligner.run()


class _Aligner:
    """One run of `tessera align`."""

    def __init__(self, config: AlignConfig, corpus: Corpus, progress: bool):
        self.config, self.corpus, self.progress = config, corpus, progress
        self.out, self.ids = Path(config.out), corpus.ids()
        self.skipped: dict[int, str] = {}
        self.units = self._read_units()
        self.table = SoundTable(self.units.values())

    def run(self) -> AlignReport:
        training = self._read_training()
        if not training:
            reason = next(iter(self.skipped.values()), "")
            raise ValueError(f"{self.config.corpus.path}: no recording can be aligned; the first: {reason}")
        minutes = sum(len(utterance.cepstra) for utterance in training) / FRAMES_PER_SECOND / 60
        scale = measure_scale(training)
        model = self._train(training, scale)
        self._remove(self.skipped)  # before the others are written: one of these may have the name of another
        known = set(self.skipped)
        items = sorted(self._align_all(model, scale), key=lambda item: (item.score, item.id))
        self._remove(set(self.skipped) - known)
        skipped = [{"id": self.ids[number], "reason": reason} for number, reason in sorted(self.skipped.items())]
        report = AlignReport(self.config.out, items, skipped, minutes)
        write_json(self.out / REPORT_FILE, asdict(report))
        print_notes(self.corpus.notes, self.progress)
        return report

    def _read_units(self) -> dict[int, list[str]]:
        """The units of each recording with a usable transcript."""
        texts: dict[int, str] = {}
        names: dict[Path, str] = {}
        for number in range(len(self.corpus)):
            path = alignment_path(self.out, self.ids[number])
            try:
                text = self.corpus.item(number).text
                if text is None:
                    raise MediaError(f"{self.ids[number]}: no transcript")
                if path in names:
                    raise MediaError(f"{self.ids[number]}: its alignment would have the name of that of {names[path]}")
            except MediaError as error:
                self.skipped[number] = str(error)
                continue
            names[path] = self.ids[number]
            texts[number] = text
        if not texts:
            raise ValueError(
                f"{self.config.corpus.path}: no recording has a usable transcript (NAME.txt beside NAME.wav)"
            )
        reader = make_text(self.config.text, texts.values())
        assert isinstance(reader, UnitText)
        found = {}
        for number, text in texts.items():
            try:
                found[number] = reader.units(text)
            except ValueError as error:
                self.skipped[number] = str(MediaError(f"{self.ids[number]}: {error}"))
                continue
            if reader.unread(text):
                self.corpus.notes.add("with words or characters that were not read", self.ids[number])
        return found

    def _read_utterance(self, number: int) -> tuple[Utterance, float] | None:
        """A recording and its length in seconds; None if it cannot be used."""
        try:
            samples = self.corpus.media(number, GEOMETRY)[0]
            found = Utterance(cepstra(samples), unit_graph(self.units[number], self.table))
            frames, states = len(found.cepstra), len(found.graph.sounds)
            seconds = len(samples) / SAMPLE_RATE
            if frames < found.graph.fewest_frames:
                raise MediaError(f"{self.ids[number]}: {seconds:.2f} seconds are too short for {states} units")
            if frames * states > MAX_CELLS:
                raise MediaError(f"{self.ids[number]}: {seconds:.0f} seconds with {states} units; split the recording")
        except MediaError as error:
            self.skipped[number] = str(error)
            return None
        return found, seconds

    def _read_training(self) -> list[Utterance]:
        """Recordings for the training, in an order that depends on names alone, until there are enough minutes."""
        order = sorted(self.units, key=lambda number: hashlib.sha256(self.ids[number].encode()).digest())
        found, left = [], 60 * self.config.train_minutes
        with self._bar("reading recordings", len(order), "item") as bar:
            for number in order:
                if left <= 0:
                    break
                read = self._read_utterance(number)
                if read is not None:
                    found.append(read[0])
                    left -= read[1]
                bar.update()
        return found

    def _train(self, training: Sequence[Utterance], scale: Scale) -> Gaussians:
        key = self._key(training)
        done, model = self._resume(key)
        if model is None:
            model = flat_start(training, scale, len(self.table))
        with self._bar("training", self.config.iterations * len(training), "item") as bar:
            bar.update(done * len(training))
            for iteration in range(done, self.config.iterations):
                for step in reestimate(model, training, scale):
                    if isinstance(step, Gaussians):
                        model = step
                    else:
                        bar.update(step)
                self._save(key, iteration + 1, model)
        return model

    def _key(self, training: Sequence[Utterance]) -> str:
        """Hash of what the training depends on."""
        digest = hashlib.sha256(json.dumps(self.table.names).encode())
        for utterance in training:
            digest.update(utterance.cepstra.tobytes())
            digest.update(utterance.graph.sounds.tobytes())
        return digest.hexdigest()

    def _resume(self, key: str) -> tuple[int, Gaussians | None]:
        """Finished iterations and the model after them, if they are of the same training."""
        try:
            tensors, metadata = read_safetensors(self.out / MODEL_FILE)
        except (FileNotFoundError, ValueError):
            return 0, None
        done = int(metadata.get("iterations", "0"))
        if metadata.get("key") != key or done > self.config.iterations:
            return 0, None
        return done, Gaussians(*(tensors[name].numpy() for name in ("means", "variances", "shares")))

    def _save(self, key: str, iterations: int, model: Gaussians) -> None:
        tensors = {name: torch.from_numpy(value) for name, value in vars(model).items()}
        metadata = {"format": "tessera-aligner", "key": key, "iterations": str(iterations)}
        write_safetensors(self.out / MODEL_FILE, tensors, metadata, sealed=True)

    def _align_all(self, model: Gaussians, scale: Scale) -> Iterator[AlignedItem]:
        """Align all recordings, a group at a time, and write each alignment."""
        numbers = list(self.units)
        with self._bar("aligning", len(numbers), "item") as bar:
            for first in range(0, len(numbers), GROUP):
                group = numbers[first : first + GROUP]
                read = {number: found for number in group if (found := self._read_utterance(number)) is not None}
                kept = list(read)
                for row, path, score in align(model, [read[number][0] for number in kept], scale):
                    number = kept[row]
                    (utterance, seconds), units = read[number], self.units[number]
                    timed = unit_times(path, utterance.graph, units, seconds, FRAMES_PER_SECOND)
                    write_atomic(alignment_path(self.out, self.ids[number]), write_alignment(timed), durable=False)
                    yield AlignedItem(self.ids[number], round(score, 4), round(seconds, 3), len(units))
                bar.update(len(group))

    def _remove(self, numbers: Iterable[int]) -> None:
        """Remove alignments of an earlier run."""
        for number in numbers:
            alignment_path(self.out, self.ids[number]).unlink(missing_ok=True)

    def _bar(self, what: str, total: int, unit: str) -> tqdm:
        return tqdm(total=total, desc=what, unit=unit, file=sys.stderr, disable=None if self.progress else True)
