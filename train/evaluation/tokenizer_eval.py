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
            f"{data}: expected a folder of media, a manifest (.csv, .tsv, .jsonl) or a .safetensors file of pictures"
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
    encode_peak, decode_peak, note = largest_item_peaks(tokenizer, max(media, key=lambda item: item.shape[-1]))
    scores, encoding, decoding = Scores(spec), Stopwatch(tokenizer.device), Stopwatch(tokenizer.device)
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
    geometry = spec.geometry
    audio = isinstance(geometry, AudioGeometry)
    amount = sum(item.shape[-1] for item in media) / geometry.sample_rate if audio else len(media)
    joined = torch.cat(codes, dim=1).cpu()
    known: Sequence[float | None] = [None] * len(joined)
    if model is not None:
        measure = conditional_bits if isinstance(model, CoderNet) else language_model_bits
        known = measure([item.cpu() for item in codes], model)  # pyright: ignore[reportArgumentType]
    codebooks = [
        codebook_use(row, size, window, bits) for row, size, bits in zip(joined, spec.cardinalities, known, strict=True)
    ]
    report = TokenizerReport(
        name=spec.name,
        fingerprint=spec.fingerprint,
        kind=spec.geometry.kind,
        items=len(media),
        skipped=skipped,
        fidelity=scores.result(),
        codebooks=codebooks,
        bits=total_bits(spec, codebooks, joined.shape[1], _written(tokenizer, codes)),
        stability=code_stability(tokenizer, media[:: max(1, -(-len(media) // STABILITY_ITEMS))], progress),
        speed=Speed(
            unit="seconds of sound per second" if audio else "pictures per second",
            encode=amount / max(encoding.seconds, 1e-9),
            decode=amount / max(decoding.seconds, 1e-9),
            device=str(tokenizer.device),
            threads=torch.get_num_threads(),
            encode_peak_mb=encode_peak,
            decode_peak_mb=decode_peak,
            note=note,
        ),
    )
    return Evaluation(report, examples, joined)


def _written(tokenizer: Tokenizer, codes: Sequence[Tensor]) -> tuple[float, float]:
    """Total codes and bits of items [K, T], where a code shared by several positions counts once."""
    rates = [tokenizer.rate(item[None]) for item in codes]
    return sum(float(number) for number, _ in rates), sum(float(bits) for _, bits in rates)


def _read(corpus: Corpus, spec: TokenSpec, max_items: int, progress: bool) -> tuple[list[Tensor], list[str]]:
    count = min(max_items, len(corpus))
    media, skipped = [], []
    for number in tqdm(range(count), desc="reading media", unit="item", disable=not progress, leave=False):
        try:
            media.append(corpus.media(number * len(corpus) // count, spec.geometry))
        except MediaError as error:
            skipped.append(str(error))
    return media, skipped


def report_table(report: TokenizerReport) -> str:
    """The report as text."""
    lines = [f"tokenizer {report.name} ({report.kind}, {report.fingerprint[:12]}), {report.items} items"]
    lines += [f"  skipped: {line}" for line in report.skipped]
    lines += ["", "fidelity"]
    for name, score in report.fidelity.items():
        lines.append(f"  {name:<12}{_number(score.mean, '.3f'):>10}  {score.note}".rstrip())
    bits = report.bits
    lines += [
        "",
        f"codes ({bits.frames} frames; use in windows of {report.codebooks[0].window} frames)",
        "  codebook   size    used   usage  possible  perplexity  bits nominal  unigram  conditional",
    ]
    for number, book in enumerate(report.codebooks):
        lines.append(
            f"  {number:>8}{book.size:>7}{book.used:>8.1f}{book.usage:>8.1%}{book.possible:>10.1%}"
            f"{book.perplexity:>12.1f}{book.nominal_bits:>14.2f}{book.unigram_bits:>9.2f}"
            f"{_number(book.conditional_bits, '.2f'):>13}"
        )
    lines.append(f"  per frame {_bits(bits, 'per_frame', '.2f')}")
    lines.append(f"  per {bits.per} {_bits(bits, 'per', '.0f')} ({bits.frames_per:g} frames)")
    if bits.written_codes_per < bits.codes_per:
        lines.append(
            f"  per {bits.per} {bits.written_codes_per:.1f} of {bits.codes_per:g} codes to write, "
            f"{bits.written_per:.0f} bits nominal: places share the rest, or need none"
        )
    stability = report.stability
    lines += ["", f"codes that change ({stability.items} items, {stability.codes} codes)"]
    for name, share in (("batch", stability.batch), ("padding", stability.padding), ("autocast", stability.autocast)):
        lines.append(f"  {name:<12}{_number(share, '.4%'):>10}  must be 0")
    for name, words in (("shift", "by one frame"), ("noise", "40 dB below"), ("again", "decoded and encoded again")):
        shares = getattr(stability, name)
        each = "-" if shares is None else " ".join(f"{share:.1%}" for share in shares)
        lines.append(f"  {name:<12}{each}  {words}, by codebook")
    speed = report.speed
    lines += ["", f"speed ({speed.unit}, one item at a time, {speed.device}, {speed.threads} threads) and peak memory"]
    for name in ("encode", "decode"):
        peak = _number(getattr(speed, f"{name}_peak_mb"), ".1f")
        lines.append(f"  {name:<12}{getattr(speed, name):>10.1f}{peak:>10} MB")
    return "\n".join([*lines, *([f"  {speed.note}"] if speed.note else [])])


def _bits(bits: Bits, per: str, form: str) -> str:
    """Text with nominal, unigram and, if known, conditional bits."""
    given = getattr(bits, f"conditional_{per}")
    words = "" if given is None else f", {given:{form}} given the frames before"
    nominal, unigram = getattr(bits, f"nominal_{per}"), getattr(bits, f"unigram_{per}")
    return f"{nominal:{form}} bits nominal, {unigram:{form}} unigram{words}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
