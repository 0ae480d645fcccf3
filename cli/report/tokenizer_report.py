"""The page of `tessera tokenizer eval --page`: measurements with images or audio, in one HTML file."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .charts import Curve, bars, data_url, image_png, line_chart, spectrogram_png, usage_chart
from .page import figure, image_tag, page, section

if TYPE_CHECKING:
    from torch import Tensor

    from ...tokenize.spec import TokenSpec
    from ...train.evaluation.tokenizer_eval import Evaluation, TokenizerReport

AUDIO_SHOWN = 4
HEADLINES = ("psnr_db", "stoi")
"""Metrics for the first tile."""
CURVES_SHOWN = 7
MEASURES = {
    "psnr_db": "peak signal-to-noise ratio, dB; higher is closer",
    "ssim": "structural similarity, at most 1",
    "ms_ssim": "structural similarity over five scales, at most 1",
    "si_sdr_db": "scale-invariant signal to distortion, dB; low where the decoder does not keep the phase",
    "log_mel": "distance of log-mel spectra, nats; lower is closer",
    "multi_stft": "distance of spectra of three resolutions; lower is closer",
    "stoi": "short-time objective intelligibility, at most 1",
    "pesq": "perceptual evaluation of speech quality, 1 to 4.6",
}


def write_page(evaluation: Evaluation, spec: TokenSpec, path: str | Path, arguments: str) -> Path:
    """Write the page; returns its path. `arguments`: those of the command shown on the page."""
    from ...configs.files import write_atomic

    path = Path(path)
    write_atomic(path, render(evaluation, spec, arguments).encode("utf-8"))
    return path


def render(evaluation: Evaluation, spec: TokenSpec, arguments: str) -> str:
    """The page as HTML text."""
    report = evaluation.report
    command = f"tessera tokenizer eval {arguments}"
    sections = [
        _tiles(report),
        _fidelity(evaluation, spec, command),
        _usage(evaluation),
        _bits(report),
        _stability(report),
        _speed(report),
    ]
    subtitle = f"{report.items} items of {report.kind}; fingerprint {report.fingerprint[:12]}"
    return page(f"Tokenizer {report.name}", subtitle, sections, command)


def _tiles(report: TokenizerReport) -> str:
    bits, speed = report.bits, report.speed
    best = bits.unigram_per if bits.conditional_per is None else bits.conditional_per
    name = next((name for name in HEADLINES if name in report.fidelity), next(iter(report.fidelity)))
    first = report.fidelity[name]
    pace = "x real time" if report.kind == "audio" else "images per second"
    tiles = [
        ("-" if first.mean is None else f"{first.mean:.2f}", f"{name}: {MEASURES.get(name, '')}"),
        (f"{bits.nominal_per:,.0f}", f"bits a {bits.per}, nominal; worth {best:,.0f}"),
        (f"{min(book.usage / book.possible for book in report.codebooks):.0%}", "of the possible use, worst codebook"),
        (
            "yes" if report.stability.stable else "NO",
            "codes are the same in any batch, with padding and under autocast",
        ),
        (f"{speed.encode:,.0f} / {speed.decode:,.0f}", f"{pace}, encode / decode"),
    ]
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{html.escape(what)}</span></div>' for value, what in tiles)
    notes = "".join(f'<p class="note">skipped: {html.escape(line)}</p>' for line in report.skipped[:10])
    return f'<div class="tiles">{cells}</div>{notes}'


def _fidelity(evaluation: Evaluation, spec: TokenSpec, command: str) -> str:
    rows = []
    for name, score in evaluation.report.fidelity.items():
        value = "-" if score.mean is None else f"{score.mean:.3f}"
        rows.append((name, value, str(score.items), MEASURES.get(name, ""), score.note))
    body = _table(("measure", "mean", "items", "", "note"), rows)
    if evaluation.report.kind == "audio":
        shown = "".join(_audio(*pair, spec, number) for number, pair in enumerate(evaluation.examples[:AUDIO_SHOWN]))
        body += f'<h3>Original and reconstruction</h3><div class="utterances twos">{shown}</div>'
    else:
        pairs = "".join(
            f'<div class="pair">{image_tag(image_png(real), "original", "middle")}'
            f"{image_tag(image_png(found), 'reconstruction', 'middle')}</div>"
            for real, found in evaluation.examples
        )
        body += f'<h3>Original, and beside it the reconstruction</h3><div class="pairs">{pairs}</div>'
    return section("fidelity", "Fidelity", "How close reconstructions are to the originals.", body, command)


def _audio(real: Tensor, found: Tensor, spec: TokenSpec, number: int) -> str:
    rate, cards = spec.geometry.sample_rate, []  # pyright: ignore[reportAttributeAccessIssue]
    for samples, word in ((real, "original"), (found, "reconstruction")):
        label = f"{number}: {word}"
        cards.append(
            f'<figure class="utterance"><figcaption><b>{label}</b><span>{samples.shape[-1] / rate:.1f} s</span>'
            f'</figcaption><img src="{data_url(spectrogram_png(samples[0], rate), "image/png")}" '
            f'alt="spectrogram, {label}"><audio controls preload="metadata" '
            f'src="{data_url(_wav(samples, rate), "audio/wav")}"></audio></figure>'
        )
    return "".join(cards)


def _wav(samples: Tensor, rate: int) -> bytes:
    """Samples [C, N] as a 16-bit WAV file."""
    import wave

    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(samples.shape[0])
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(
            (samples.clamp(-1, 1) * 32767).round().short().T.contiguous().numpy().astype("<i2").tobytes()
        )
    return file.getvalue()


def _usage(evaluation: Evaluation) -> str:
    from ...train.evaluation.code_usage import usage_growth

    report, figures, curves = evaluation.report, [], []
    for number, (book, codes) in enumerate(zip(report.codebooks, evaluation.codes, strict=True)):
        counts = (
            codes.bincount(minlength=book.size).tolist()
            if book.size <= 1 << 16
            else codes.unique(return_counts=True)[1].tolist()
        )
        caption = (
            f"codebook {number}: {book.used:.0f} of {book.size} in {book.window} frames ({book.usage:.1%}; at most "
            f"{book.possible:.1%} if all were used equally), as varied as {book.perplexity:.0f}"
        )
        figures.append(figure(usage_chart(counts, number), caption))
        if number < CURVES_SHOWN:
            growth = usage_growth(codes)
            curves.append(Curve(f"codebook {number}", [x for x, _ in growth], [y / book.size for _, y in growth]))
    size = report.codebooks[0].size
    frames = curves[0].x
    curves.append(Curve("even use", frames, [1 - (1 - 1 / size) ** count for count in frames]))
    body = f'<div class="usages">{"".join(figures)}</div><h3>Codes seen so far</h3>' + figure(
        line_chart(curves, "frames", "share of the codes seen"),
        f"Uniform use: {size} codes, all equally likely.",
    )
    words = "Each bar is one code over all frames, the most used first; the dashed line is uniform use."
    return section("usage", "Use of the codes", words, body)


def _bits(report: TokenizerReport) -> str:
    bits, rows = report.bits, []
    kinds = [("nominal", bits.nominal_per), ("unigram", bits.unigram_per)]
    if bits.written_codes_per < bits.codes_per:
        kinds.append((f"nominal, {bits.written_codes_per:.1f} of {bits.codes_per:g} codes", bits.written_per))
    if bits.conditional_per is not None:
        kinds.append(("given the frames before", bits.conditional_per))
    for name, value in kinds:
        saved = "" if name == "nominal" else f", {1 - value / bits.nominal_per:.0%} saved"
        rows.append((name, value, f"{value:,.0f} bits a {bits.per}{saved}"))
    table = _table(
        ("codebook", "nominal", "unigram", "given the frames before"),
        [
            (
                str(number),
                f"{book.nominal_bits:.2f}",
                f"{book.unigram_bits:.2f}",
                "-" if book.conditional_bits is None else f"{book.conditional_bits:.2f}",
            )
            for number, book in enumerate(report.codebooks)
        ],
    )
    note = (
        ""
        if bits.conditional_per is not None
        else '<p class="note">No --model was given to condition on the previous frames.</p>'
    )
    words = "Bits at fixed-length coding, and the entropy given how often each code occurs."
    return section("bits", "Bits", words, f"{bars(rows)}{note}<h3>Bits a frame</h3>{table}")


def _stability(report: TokenizerReport) -> str:
    stability = report.stability
    must = [("in a batch with others", stability.batch), ("with noise behind", stability.padding)]
    must.append(("under autocast", stability.autocast))
    rows = [(name, "-" if share is None else f"{share:.4%}") for name, share in must]
    body = _table(("must not change", "changed"), rows)
    may = (("moved by one frame", stability.shift), ("noise 40 dB below", stability.noise))
    lines = [
        (name, *(("-" for _ in stability.noise) if shares is None else (f"{share:.1%}" for share in shares)))
        for name, shares in (*may, ("decoded and encoded again", stability.again))
    ]
    books = [f"codebook {number}" for number in range(len(stability.noise))]
    body += "<h3>May change, fewer is better</h3>" + _table(("", *books), lines)
    words = f"Codes that change, of {stability.codes} codes of {stability.items} items."
    return section("stability", "Stability", words, body)


def _speed(report: TokenizerReport) -> str:
    speed, rows = report.speed, []
    for name in ("encode", "decode"):
        peak = getattr(speed, f"{name}_peak_mb")
        rows.append((name, f"{getattr(speed, name):,.1f}", "-" if peak is None else f"{peak:,.1f} MB"))
    note = f'<p class="note">{html.escape(speed.note)}</p>' if speed.note else ""
    words = (
        f"One item at a time on {html.escape(speed.device)} with {speed.threads} threads; memory for the largest item."
    )
    return section("speed", "Speed and memory", words, _table(("", speed.unit, "peak memory"), rows) + note)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table class="facts"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
