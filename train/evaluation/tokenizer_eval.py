"""Evaluation of a frozen tokenizer: fidelity, code usage, bits, code stability, speed.

Each is implemented in its own file; here they are measured in one run over a corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...lm.models.base import LanguageModel
from ...tokenize.bundled import PACKAGE
from ...tokenize.compression.integer_network import CoderNet
from ...tokenize.data.corpus import ArraysCorpus, Corpus, FolderCorpus, ManifestCorpus, open_corpus
from ...tokenize.data.media import Fit, MediaError, print_notes
from ...tokenize.spec import AudioGeometry, TokenSpec
from ...tokenize.tokenizer import Tokenizer
from .code_stability import Stability, code_stability
from .code_usage import WINDOW, Bits, CodebookUse, codebook_use, conditional_bits, language_model_bits, total_bits
from .reconstruction_metrics import Measured, Scores
from .tokenizer_speed import Speed, Stopwatch, largest_item_peaks

SAMPLES = PACKAGE / "samples"
STABILITY_ITEMS = 16
"""Items of the stability tests; each is encoded up to seven more times."""
EXAMPLES = 12
"""Items that are kept with their reconstructions."""


@dataclass(frozen=True)
class TokenizerReport:
    """Results of an evaluation."""

    name: str
    fingerprint: str
    kind: str
    items: int
    skipped: list[str]
    """One line for each item that could not be read."""
    fidelity: dict[str, Measured]
    codebooks: list[CodebookUse]
    bits: Bits
    stability: Stability
    speed: Speed

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def corpus_for(spec: TokenSpec, data: Path | None, fit: Fit = "exact") -> Corpus:
    """Open the media to evaluate on: a folder, a manifest, a .safetensors file of images, or (None) the bundled test
    samples.

    Raises:
        FileNotFoundError: no such path. ValueError: none of these, or an empty one.
    """
    if data is None:
        data = SAMPLES / ("speech/test" if spec.geometry.kind == "audio" else "digits/test.safetensors")
    if data.is_dir():
        return open_corpus(FolderCorpus(path=str(data), fit=fit))
    if not data.exists():
        raise FileNotFoundError(f"{data}: no such folder or file; pass --data a folder of media")
    if data.suffix in (".csv", ".tsv", ".jsonl"):
        return open_corpus(ManifestCorpus(path=str(data), fit=fit))
    if data.suffix != ".safetensors":
        raise ValueError(
            f"{data}: expected a folder of media, a manifest (.csv, .tsv, .jsonl) or a .safetensors file of images"
        )
    return open_corpus(ArraysCorpus(path=str(data)))


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate_tokenizer`."""

    report: TokenizerReport
    examples: list[tuple[Tensor, Tensor]]
    """Items and their reconstructions, evenly spread over the data."""
    codes: Tensor
    """[K, F] long, of all items concatenated."""


def evaluate_tokenizer(
    tokenizer: Tokenizer,
    corpus: Corpus,
    max_items: int = 100,
    progress: bool = True,
    model: CoderNet | LanguageModel | None = None,
    window: int = WINDOW,
) -> Evaluation:
    """Encode and decode items of a corpus and measure.

    Args:
        max_items: maximum number of items, evenly spread over the corpus.
        progress: show a progress bar on stderr.
        model: of this tokenizer's codes, for their bits given the previous frames.
        window: frames per window of the usage counts.
    Raises:
        ValueError: no item could be read.
    """
    spec = tokenizer.spec
    media, skipped = _read(corpus, spec, max_items, progress)
    print_notes(corpus.notes, progress)
    if not media:
        raise ValueError(f"none of {len(skipped)} items could be read; the first: {skipped[0]}")
    peaks = largest_item_peaks(tokenizer, max(media, key=lambda item: item.shape[-1]))
    passed = _encode_and_decode(tokenizer, media, progress)
    joined = torch.cat(passed.codes, dim=1).cpu()
    codebooks = _codebooks(spec, passed.codes, joined, model, window)
    report = TokenizerReport(
        name=spec.name,
        fingerprint=spec.fingerprint,
        kind=spec.geometry.kind,
        items=len(media),
        skipped=skipped,
        fidelity=passed.scores.result(),
        codebooks=codebooks,
        bits=total_bits(spec, codebooks, joined.shape[1], _written(tokenizer, passed.codes)),
        stability=code_stability(tokenizer, media[:: max(1, -(-len(media) // STABILITY_ITEMS))], progress),
        speed=_speed(tokenizer, media, passed, peaks),
    )
    return Evaluation(report, passed.examples, joined)


@dataclass(frozen=True)
class _Passed:
    """All items, encoded and decoded one by one."""

    codes: list[Tensor]
    """[K, T] of each item."""
    scores: Scores
    examples: list[tuple[Tensor, Tensor]]
    encode_seconds: float
    decode_seconds: float


def _read(corpus: Corpus, spec: TokenSpec, max_items: int, progress: bool) -> tuple[list[Tensor], list[str]]:
    """Media of evenly spread items, and a line for each that could not be read."""
    count = min(max_items, len(corpus))
    media, skipped = [], []
    for number in tqdm(range(count), desc="reading media", unit="item", disable=not progress, leave=False):
        try:
            media.append(corpus.media(number * len(corpus) // count, spec.geometry))
        except MediaError as error:
            skipped.append(str(error))
    return media, skipped


def _encode_and_decode(tokenizer: Tokenizer, media: Sequence[Tensor], progress: bool) -> _Passed:
    scores = Scores(tokenizer.spec)
    encoding, decoding = Stopwatch(tokenizer.device), Stopwatch(tokenizer.device)
    codes: list[Tensor] = []
    examples: list[tuple[Tensor, Tensor]] = []
    every = -(-len(media) // EXAMPLES)
    for number, item in enumerate(tqdm(media, desc="encode and decode", unit="item", disable=not progress)):
        with encoding.running():
            codes.append(tokenizer.encode(item[None]).codes[0])
        with decoding.running():
            found = tokenizer.decode(codes[-1][None])[0].cpu()
        found = found[..., : item.shape[-1]]
        scores.add(found, item)
        if number % every == 0:
            examples.append((item, found))
    return _Passed(codes, scores, examples, encoding.seconds, decoding.seconds)


def _codebooks(
    spec: TokenSpec, codes: Sequence[Tensor], joined: Tensor, model: CoderNet | LanguageModel | None, window: int
) -> list[CodebookUse]:
    """Usage of each codebook, with the bits under a model if one is given. joined: [K, F], all codes on the CPU."""
    known: Sequence[float | None] = [None] * len(joined)
    if model is not None:
        measure = conditional_bits if isinstance(model, CoderNet) else language_model_bits
        known = measure([item.cpu() for item in codes], model)  # pyright: ignore[reportArgumentType]
    return [
        codebook_use(row, size, window, bits) for row, size, bits in zip(joined, spec.cardinalities, known, strict=True)
    ]


def _written(tokenizer: Tokenizer, codes: Sequence[Tensor]) -> tuple[float, float]:
    """Total codes and bits of items [K, T], where a code shared by several positions counts once."""
    rates = [tokenizer.rate(item[None]) for item in codes]
    return sum(float(number) for number, _ in rates), sum(float(bits) for _, bits in rates)


def _speed(
    tokenizer: Tokenizer, media: Sequence[Tensor], passed: _Passed, peaks: tuple[float | None, float | None, str]
) -> Speed:
    """Seconds of audio, or images, per second. peaks: see `largest_item_peaks`."""
    geometry = tokenizer.spec.geometry
    audio = isinstance(geometry, AudioGeometry)
    amount = sum(item.shape[-1] for item in media) / geometry.sample_rate if audio else len(media)
    encode_peak, decode_peak, note = peaks
    return Speed(
        unit="seconds of audio per second" if audio else "images per second",
        encode=amount / max(passed.encode_seconds, 1e-9),
        decode=amount / max(passed.decode_seconds, 1e-9),
        device=str(tokenizer.device),
        threads=torch.get_num_threads(),
        encode_peak_mb=encode_peak,
        decode_peak_mb=decode_peak,
        note=note,
    )
