"""What a frozen tokenizer is worth: fidelity, use of its codes, bits, stability of the codes, speed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..tokenize.corpus import ArraysCorpus, Corpus, FolderCorpus, open_corpus
from ..tokenize.media import Fit, MediaError
from ..tokenize.spec import AudioGeometry, TokenSpec
from ..tokenize.tokenizer import Tokenizer
from .fidelity import AUDIO_MEASURES, PICTURE_MEASURES

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
STABILITY_ITEMS = 16
"""Items whose codes are compared; each is encoded four times more."""


@dataclass(frozen=True)
class Measured:
    """One measure of fidelity."""

    mean: float | None
    """Over the items where it is defined; None: not measured."""
    items: int
    note: str = ""
    """Why it is missing, or for how many items it is not defined."""


@dataclass(frozen=True)
class CodebookUse:
    """How the codes of one codebook occurred in all items."""

    size: int
    used: int
    usage: float
    """used / size; a few items cannot use many codes, see the number of frames."""
    perplexity: float
    nominal_bits: float
    """log2(size), per frame."""
    unigram_bits: float
    """Entropy of the codes as if each were drawn alone, per frame."""


@dataclass(frozen=True)
class Bits:
    """Bits of all codebooks together."""

    frames: int
    """All frames encoded here."""
    nominal_per_frame: float
    unigram_per_frame: float
    per: str
    """What the next three are counted for: "second" or "picture"."""
    frames_per: float
    nominal_per: float
    unigram_per: float


@dataclass(frozen=True)
class Stability:
    """Share of codes that differ from the item encoded alone; anything above 0 is a fault of the tokenizer."""

    items: int
    codes: int
    """Codes compared, each time."""
    batch: float
    """In a batch with others, in two orders."""
    padding: float | None
    """With noise behind the item's length; None for pictures, which have one size."""
    autocast: float
    """With bfloat16 autocast around the call."""

    @property
    def stable(self) -> bool:
        """No code changed."""
        return not (self.batch or self.padding or self.autocast)


@dataclass(frozen=True)
class Speed:
    """One item at a time on `device`, after a warm-up."""

    unit: str
    """"seconds of sound per second" or "pictures per second"."""
    encode: float
    decode: float
    device: str
    threads: int


@dataclass(frozen=True)
class TokenizerReport:
    """The answer of `evaluate_tokenizer`."""

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
    """Open the media to evaluate on: a folder, a .safetensors file of pictures, or (None) the bundled test samples.

    Raises:
        FileNotFoundError: no such path. ValueError: neither a folder nor a .safetensors file, or an empty one.
    """
    if data is None:
        data = SAMPLES / ("speech/test" if spec.geometry.kind == "audio" else "digits/test.safetensors")
    if data.is_dir():
        return open_corpus(FolderCorpus(path=str(data), fit=fit))
    if not data.exists():
        raise FileNotFoundError(f"{data}: no such folder or file; pass --data a folder of media")
    if data.suffix != ".safetensors":
        raise ValueError(f"{data}: expected a folder of media or a .safetensors file of pictures")
    return open_corpus(ArraysCorpus(path=str(data)))


def evaluate_tokenizer(
    tokenizer: Tokenizer, corpus: Corpus, max_items: int = 100, progress: bool = True
) -> TokenizerReport:
    """Encode and decode items of a corpus and measure.

    Args:
        max_items: at most so many items, spread evenly over the corpus.
        progress: show a bar on stderr.
    Raises:
        ValueError: no item could be read.
    """
    spec = tokenizer.spec
    media, skipped = _read(corpus, spec, max_items, progress)
    if not media:
        raise ValueError(f"none of {len(skipped)} items could be read; the first: {skipped[0]}")
    tokenizer.decode(tokenizer.encode(media[0][None]).codes)  # warm-up
    scores = _Scores(spec)
    codes: list[Tensor] = []
    encode_seconds = decode_seconds = 0.0
    for item in tqdm(media, desc="encode and decode", unit="item", disable=not progress):
        started = time.perf_counter()
        codes.append(tokenizer.encode(item[None]).codes[0])
        encoded = time.perf_counter()
        found = tokenizer.decode(codes[-1][None])[0].cpu()
        decode_seconds += time.perf_counter() - encoded
        encode_seconds += encoded - started
        scores.add(found, item)
    geometry = spec.geometry
    audio = isinstance(geometry, AudioGeometry)
    amount = sum(item.shape[-1] for item in media) / geometry.sample_rate if audio else len(media)
    joined = torch.cat(codes, dim=1).cpu()
    codebooks = [codebook_use(row, size) for row, size in zip(joined, spec.cardinalities, strict=True)]
    return TokenizerReport(
        name=spec.name,
        fingerprint=spec.fingerprint,
        kind=spec.geometry.kind,
        items=len(media),
        skipped=skipped,
        fidelity=scores.result(),
        codebooks=codebooks,
        bits=_bits(spec, codebooks, joined.shape[1]),
        stability=code_stability(tokenizer, media[:: max(1, -(-len(media) // STABILITY_ITEMS))], progress),
        speed=Speed(
            unit="seconds of sound per second" if audio else "pictures per second",
            encode=amount / max(encode_seconds, 1e-9),
            decode=amount / max(decode_seconds, 1e-9),
            device=str(tokenizer.device),
            threads=torch.get_num_threads(),
        ),
    )


def _read(corpus: Corpus, spec: TokenSpec, max_items: int, progress: bool) -> tuple[list[Tensor], list[str]]:
    count = min(max_items, len(corpus))
    media, skipped = [], []
    for number in tqdm(range(count), desc="reading media", unit="item", disable=not progress, leave=False):
        try:
            media.append(corpus.media(number * len(corpus) // count, spec.geometry))
        except MediaError as error:
            skipped.append(str(error))
    return media, skipped


class _Scores:
    """Every measure over all items, and what could not be measured."""

    def __init__(self, spec: TokenSpec):
        self.spec = spec
        self.values: dict[str, list[float | None]] = {name: [] for name in self._measures()}
        self.missing: dict[str, str] = {}

    def add(self, found: Tensor, wanted: Tensor) -> None:
        """One item and its reconstruction."""
        for name, measure in self._measures().items():
            if name in self.missing:
                continue
            try:
                if isinstance(self.spec.geometry, AudioGeometry):
                    value = measure(found[0, : wanted.shape[-1]], wanted[0], self.spec.geometry.sample_rate)
                else:
                    value = measure(found, wanted)
                self.values[name].append(value)
            except ImportError as error:
                self.missing[name] = f"not measured: package '{error.name}' is not installed (extra 'eval')"

    def _measures(self) -> dict[str, Callable[..., float | None]]:
        return AUDIO_MEASURES if self.spec.geometry.kind == "audio" else PICTURE_MEASURES

    def result(self) -> dict[str, Measured]:
        """Means by name."""
        measured = {}
        for name, values in self.values.items():
            defined = [value for value in values if value is not None]
            undefined = len(values) - len(defined)
            note = self.missing.get(name, f"not defined for {undefined} items" if undefined else "")
            measured[name] = Measured(sum(defined) / len(defined) if defined else None, len(defined), note)
        return measured


def codebook_use(codes: Tensor, size: int) -> CodebookUse:
    """Use of one codebook by codes [N] long."""
    counts = torch.unique(codes, return_counts=True)[1].double()
    shares = counts / counts.sum()
    entropy = -(shares * shares.log()).sum().item()
    return CodebookUse(
        size=size,
        used=len(counts),
        usage=len(counts) / size,
        perplexity=math.exp(entropy),
        nominal_bits=math.log2(size),
        unigram_bits=max(0.0, entropy / math.log(2)),
    )


def _bits(spec: TokenSpec, codebooks: Sequence[CodebookUse], frames: int) -> Bits:
    nominal = sum(book.nominal_bits for book in codebooks)
    unigram = sum(book.unigram_bits for book in codebooks)
    geometry = spec.geometry
    audio = isinstance(geometry, AudioGeometry)
    frames_per = geometry.frame_rate if audio else geometry.num_frames
    return Bits(
        frames,
        nominal,
        unigram,
        "second" if audio else "picture",
        frames_per,
        nominal * frames_per,
        unigram * frames_per,
    )


def code_stability(tokenizer: Tokenizer, media: Sequence[Tensor], progress: bool = False) -> Stability:
    """Compare codes of items encoded alone with those of the same items in company, padded, and under autocast.

    Args:
        media: items [1, N] of any lengths, or pictures [C, height, width].
    """
    audio = tokenizer.spec.geometry.kind == "audio"
    batch, lengths = _pad(media) if audio else (torch.stack(list(media)), None)
    backwards = torch.arange(len(media)).flip(0)
    tries = 3 + audio
    bar = tqdm(total=(1 + tries) * len(media), desc="code stability", unit="item", disable=not progress, leave=False)

    def encode(chosen: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
        encoded = tokenizer.encode(chosen, lengths)
        bar.update(len(chosen))
        return [codes[:, :length].cpu() for codes, length in zip(encoded.codes, encoded.lengths.tolist(), strict=True)]

    alone = [encode(item[None])[0] for item in media]
    forwards = encode(batch, lengths)
    reversed_ = encode(batch[backwards], None if lengths is None else lengths[backwards])[::-1]
    with torch.autocast(tokenizer.device.type, dtype=torch.bfloat16):
        autocast = [encode(item[None])[0] for item in media]
    padding = None
    if audio:
        padded = [
            encode(torch.cat([item, _noise_like(item)], -1)[None], torch.tensor([item.shape[-1]]))[0] for item in media
        ]
        padding = changed_share(padded, alone)
    bar.close()
    return Stability(
        items=len(media),
        codes=sum(codes.numel() for codes in alone),
        batch=changed_share([*forwards, *reversed_], [*alone, *alone]),
        padding=padding,
        autocast=changed_share(autocast, alone),
    )


def changed_share(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Share of codes that differ; an item of another length has changed altogether."""
    pairs = list(zip(found, wanted, strict=True))
    changed = sum(int((a != b).sum()) if a.shape == b.shape else b.numel() for a, b in pairs)
    return changed / max(1, sum(codes.numel() for codes in wanted))


def _pad(media: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Items [1, N] -> [B, 1, longest] with noise behind each, and their lengths."""
    lengths = torch.tensor([item.shape[-1] for item in media])
    batch = torch.stack([_noise_like(media[0], int(lengths.max())) for _ in media])
    for row, item in zip(batch, media, strict=True):
        row[:, : item.shape[-1]] = item
    return batch, lengths


def _noise_like(item: Tensor, length: int = 4321) -> Tensor:
    return torch.rand(item.shape[0], length, generator=torch.Generator().manual_seed(length)) * 2 - 1


def report_table(report: TokenizerReport) -> str:
    """The report as lines for a reader."""
    lines = [f"tokenizer {report.name} ({report.kind}, {report.fingerprint[:12]}), {report.items} items"]
    lines += [f"  skipped: {line}" for line in report.skipped]
    lines += ["", "fidelity"]
    for name, score in report.fidelity.items():
        value = "-" if score.mean is None else f"{score.mean:.3f}"
        lines.append(f"  {name:<12}{value:>10}  {score.note}".rstrip())
    bits = report.bits
    lines += [
        "",
        f"codes ({bits.frames} frames)",
        "  codebook   size   used   usage  perplexity  bits nominal  unigram",
    ]
    for number, book in enumerate(report.codebooks):
        lines.append(
            f"  {number:>8}{book.size:>7}{book.used:>7}{book.usage:>7.1%}{book.perplexity:>12.1f}"
            f"{book.nominal_bits:>14.2f}{book.unigram_bits:>9.2f}"
        )
    lines.append(f"  per frame {bits.nominal_per_frame:.2f} bits nominal, {bits.unigram_per_frame:.2f} unigram")
    lines.append(
        f"  per {bits.per} {bits.nominal_per:.0f} bits nominal, {bits.unigram_per:.0f} unigram"
        f" ({bits.frames_per:g} frames)"
    )
    stability = report.stability
    lines += ["", f"codes that change ({stability.items} items, {stability.codes} codes; must be 0)"]
    for name, share in (("batch", stability.batch), ("padding", stability.padding), ("autocast", stability.autocast)):
        lines.append(f"  {name:<12}{'-' if share is None else f'{share:.4%}':>10}")
    speed = report.speed
    lines += ["", f"speed ({speed.unit}, one item at a time, {speed.device}, {speed.threads} threads)"]
    lines += [f"  {'encode':<12}{speed.encode:>10.1f}", f"  {'decode':<12}{speed.decode:>10.1f}"]
    return "\n".join(lines)
