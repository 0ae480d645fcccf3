"""The report of a tokenizer's evaluation as text."""

from __future__ import annotations

from .code_stability import Stability
from .code_usage import Bits, CodebookUse
from .tokenizer_eval import TokenizerReport
from .tokenizer_speed import Speed


def report_table(report: TokenizerReport) -> str:
    """Fidelity, codes, stability and speed, one table each."""
    lines = [f"tokenizer {report.name} ({report.kind}, {report.fingerprint[:12]}), {report.items} items"]
    lines += [f"  skipped: {line}" for line in report.skipped]
    lines += ["", "fidelity"]
    for name, score in report.fidelity.items():
        lines.append(f"  {name:<12}{_number(score.mean, '.3f'):>10}  {score.note}".rstrip())
    lines += ["", *_codes(report.codebooks, report.bits)]
    lines += ["", *_stability(report.stability)]
    lines += ["", *_speed(report.speed)]
    return "\n".join(lines)


def _codes(codebooks: list[CodebookUse], bits: Bits) -> list[str]:
    lines = [
        f"codes ({bits.frames} frames; use in windows of {codebooks[0].window} frames)",
        "  codebook   size    used   usage  possible  perplexity  bits nominal  unigram  conditional",
    ]
    for number, book in enumerate(codebooks):
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
            f"{bits.written_per:.0f} bits nominal: positions share the others or do not need them"
        )
    return lines


def _stability(stability: Stability) -> list[str]:
    lines = [f"codes that change ({stability.items} items, {stability.codes} codes)"]
    for name, share in (("batch", stability.batch), ("padding", stability.padding), ("autocast", stability.autocast)):
        lines.append(f"  {name:<12}{_number(share, '.4%'):>10}  must be 0")
    for name, words in (("shift", "by one frame"), ("noise", "40 dB below"), ("again", "decoded and encoded again")):
        shares = getattr(stability, name)
        each = "-" if shares is None else " ".join(f"{share:.1%}" for share in shares)
        lines.append(f"  {name:<12}{each}  {words}, by codebook")
    return lines


def _speed(speed: Speed) -> list[str]:
    lines = [f"speed ({speed.unit}, one item at a time, {speed.device}, {speed.threads} threads) and peak memory"]
    for name in ("encode", "decode"):
        peak = _number(getattr(speed, f"{name}_peak_mb"), ".1f")
        lines.append(f"  {name:<12}{getattr(speed, name):>10.1f}{peak:>10} MB")
    return [*lines, *([f"  {speed.note}"] if speed.note else [])]


def _bits(bits: Bits, per: str, form: str) -> str:
    """Text with nominal, unigram and, if known, conditional bits."""
    given = getattr(bits, f"conditional_{per}")
    words = "" if given is None else f", {given:{form}} given the frames before"
    nominal, unigram = getattr(bits, f"nominal_{per}"), getattr(bits, f"unigram_{per}")
    return f"{nominal:{form}} bits nominal, {unigram:{form}} unigram{words}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
