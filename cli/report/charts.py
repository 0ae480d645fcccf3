"""Charts for the reports, as inline SVG and PNG bytes: curves, bars, mosaics of codes, spectrograms.

Colors are CSS variables of the page (`--series-0` ...), so every chart follows its light and dark theme.
"""

from __future__ import annotations

import base64
import html
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NUM_SERIES_COLOURS = 8


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(curves: Sequence[Curve], x_label: str, y_label: str, log: bool = False) -> str:
    """Curves on one pair of axes, each labeled at its right end; jagged curves are also drawn smoothed.

    Args:
        curves: at most 8; points whose y is not finite (or not positive if log) are omitted.
        log: logarithmic y axis.
    """
    width, height, left, right, top, bottom = 720, 270, 48, 136, 26, 40
    lines = [(curve, _drawable(curve, log)) for curve in curves[:NUM_SERIES_COLOURS]]
    lines = [(curve, points) for curve, points in lines if points]
    if not lines:
        return '<p class="quiet">No points to draw.</p>'
    xs = [x for _, points in lines for x, _ in points]
    # The first steps of training are outliers: scale to the range of 99 % of the points.
    ys = sorted(y for _, points in lines for _, y in points)
    low, high = ys[0], ys[min(len(ys) - 1, math.ceil(0.99 * len(ys)))]
    ticks = _log_ticks(low, high) if log else _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    scale = math.log if log else float
    x_low, x_span = min(xs), max(max(xs) - min(xs), 1e-9)
    y_low, y_span = scale(low), max(scale(high) - scale(low), 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (x - x_low) / x_span * (width - left - right)
        up = (scale(min(y, high)) - y_low) / y_span
        return round(across, 1), round(height - bottom - up * (height - top - bottom), 1)

    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(y_label)} by {html.escape(x_label)}">'
    ]
    for tick in ticks:
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(x_low, x_low + x_span):
        if x_low <= tick <= x_low + x_span:
            x, _ = place(tick, high)
            parts.append(
                f'<text class="tick" x="{x}" y="{height - bottom + 18}" text-anchor="middle">{tick:,.0f}</text>'
            )
    middle = (left + width - right) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{height - 4}" text-anchor="middle">{html.escape(x_label)}</text>')
    parts.append(f'<text class="axis" x="{left}" y="{top - 14}">{html.escape(y_label)}</text>')
    ends = []
    for number, (curve, points) in enumerate(lines):
        colour = f'style="stroke: var(--series-{number})"'
        smooth = _smooth(points)
        if len(points) > 30:
            parts.append(f'<polyline class="raw" {colour} points="{_points(place, points)}"/>')
        title = (
            f"<title>{html.escape(curve.name)}: {points[0][1]:.3g} at the start, {smooth[-1][1]:.3g} at the end</title>"
        )
        parts.append(f'<polyline class="curve" {colour} points="{_points(place, smooth)}">{title}</polyline>')
        ends.append((place(*smooth[-1])[1], number, f"{curve.name} {smooth[-1][1]:.2g}"))
    for y, number, text in _spread(ends, 14, top, height - bottom):
        style = f'style="fill: var(--series-{number})"'
        parts.append(f'<circle {style} cx="{width - right + 8}" cy="{y - 4}" r="3.5"/>')
        parts.append(f'<text class="name" x="{width - right + 16}" y="{y}">{html.escape(text)}</text>')
    return "".join(parts) + "</svg>"


def usage_chart(counts: Sequence[int], number: int) -> str:
    """Usage count of each code of one codebook, most used first: flat is good, a cliff means unused codes."""
    width, height = 220, 64
    ordered = sorted(counts, reverse=True)
    total, top = max(sum(ordered), 1), max(ordered[0], 1)
    step = width / len(ordered)
    bars = "".join(
        f'<rect x="{index * step:.2f}" y="{height - count / top * height:.2f}" width="{max(step - 0.5, 0.4):.2f}" '
        f'height="{count / top * height:.2f}"/>'
        for index, count in enumerate(ordered)
        if count
    )
    fair = height - min(1.0, total / len(ordered) / top) * height
    line = f'<line class="fair" x1="0" x2="{width}" y1="{fair:.1f}" y2="{fair:.1f}"><title>uniform use</title></line>'
    label = f"codebook {number}: {len(ordered)} codes by use"
    return (
        f'<svg class="usage" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
        f'<g style="fill: var(--series-{number % NUM_SERIES_COLOURS})">{bars}</g>{line}</svg>'
    )


def perplexity(counts: Sequence[int]) -> float:
    """Perplexity of code usage: 2 to the power of its entropy in bits."""
    total = sum(counts)
    return 2.0 ** -sum(count / total * math.log2(count / total) for count in counts if count) if total else 0.0


def time_bars(stages: Sequence[tuple[str, float]]) -> str:
    """Horizontal bars of the seconds of each stage."""
    return bars([(name, seconds, f"{seconds:,.1f} s") for name, seconds in stages])


def bars(rows: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars, each given as (name, length, text at its end)."""
    longest = max((length for _, length, _ in rows), default=1.0) or 1.0
    cells = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>'
        f'<td class="bar"><div style="width: {100 * length / longest:.1f}%"></div></td>'
        f'<td class="number">{html.escape(text)}</td></tr>'
        for name, length, text in rows
    )
    return f'<table class="bars">{cells}</table>'


def mosaic(codes: Sequence[Sequence[int]], cardinality: int, label: str) -> str:
    """A grid of codes as colored tiles with their numbers: rows of code ids of one codebook."""
    size, gap = 34, 3
    rows, columns = len(codes), len(codes[0])
    tiles = []
    for row, line in enumerate(codes):
        for column, code in enumerate(line):
            # Neighboring ids are unrelated, so their hues are spread by the golden angle.
            hue, x, y = code * 137.508 % 360, column * (size + gap), row * (size + gap)
            tiles.append(
                f'<rect x="{x}" y="{y}" width="{size}" height="{size}" rx="4" fill="hsl({hue:.0f} 48% 52%)">'
                f"<title>{label}: code {code} of {cardinality}</title></rect>"
                f'<text x="{x + size / 2}" y="{y + size / 2 + 4}" text-anchor="middle">{code}</text>'
            )
    box = f"0 0 {columns * (size + gap) - gap} {rows * (size + gap) - gap}"
    return f'<svg class="mosaic" viewBox="{box}" role="img" aria-label="{label}">{"".join(tiles)}</svg>'


def image_png(image: Tensor) -> bytes:
    """An image [C, height, width] in [-1, 1], C 1 or 3, as the bytes of a PNG file of the same size."""
    pixels = ((image.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return png_bytes(pixels)


def png_bytes(pixels: Tensor) -> bytes:
    """Pixels [C, height, width] uint8, C 1 (gray) or 3 (RGB), as a PNG file. Source: PNG specification, W3C, 2003."""
    channels, height, width = pixels.shape
    rows = pixels.permute(1, 2, 0).reshape(height, width * channels)
    raw = b"".join(b"\0" + bytes(row.tolist()) for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data)) for tag, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def spectrogram_png(samples: Tensor, sample_rate: int) -> bytes:
    """A log-magnitude spectrogram of samples [N]: time to the right, 0 Hz at the bottom, 70 dB from dark to bright."""
    import torch

    window = max(64, int(sample_rate * 0.032))
    hop = max(1, window // 4)
    padded = torch.nn.functional.pad(samples.float(), (0, max(0, window - samples.numel())))
    power = torch.stft(padded, window, hop, window=torch.hann_window(window), return_complex=True).abs().square()
    decibel = 10 * torch.log10(power.clamp_min(1e-12))
    level = ((decibel - decibel.max()) / 70 + 1).clamp(0, 1).flip(0)
    stops = torch.tensor(_MAGMA, dtype=torch.float32)
    position = level * (len(stops) - 1)
    below = position.floor().long().clamp_max(len(stops) - 2)
    share = (position - below)[..., None]
    colours = stops[below] * (1 - share) + stops[below + 1] * share
    return png_bytes(colours.round().byte().permute(2, 0, 1))


# Nine stops of a dark-to-bright ramp with even lightness steps, similar to matplotlib's magma.
_MAGMA = (
    *((0, 0, 8), (26, 14, 58), (76, 17, 118), (125, 36, 130), (176, 54, 124)),
    *((224, 82, 102), (249, 134, 96), (254, 192, 134), (252, 250, 190)),
)


def data_url(data: bytes, media_type: str) -> str:
    """Bytes as a data URL."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def _drawable(curve: Curve, log: bool) -> list[tuple[float, float]]:
    pairs = zip(curve.x, curve.y, strict=True)
    return [(x, y) for x, y in pairs if y is not None and math.isfinite(y) and (y > 0 or not log)]


def _points(place, points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in (place(*point) for point in points))


def _smooth(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Moving average over about a twentieth of the points; short curves are returned unchanged."""
    reach = len(points) // 40
    values = [y for _, y in points]
    averages = []
    for index, (x, _) in enumerate(points):
        near = values[max(0, index - reach) : index + reach + 1]
        averages.append((x, sum(near) / len(near)))
    return averages


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from just below `low` to just above `high`."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    size = 10 ** math.floor(math.log10(span / 4))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor * 5 >= span)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten around [low, high]."""
    exponents = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 2)
    ticks = [factor * 10.0**exponent for exponent in exponents for factor in (1, 2, 5)]
    first = max((index for index, tick in enumerate(ticks) if tick <= low), default=0)
    last = min((index for index, tick in enumerate(ticks) if tick >= high), default=len(ticks) - 1)
    return [float(f"{tick:.1g}") for tick in ticks[first : last + 1]]


def _spread(ends: list[tuple[float, int, str]], gap: float, top: float, bottom: float) -> list[tuple[float, int, str]]:
    """Move labels apart to a distance of at least `gap`, inside [top, bottom]."""
    placed: list[tuple[float, int, str]] = []
    for y, number, text in sorted(ends):
        y = max(y + 4, top + 8, placed[-1][0] + gap if placed else 0)
        placed.append((y, number, text))
    overflow = max(0.0, placed[-1][0] - bottom - 4)
    return [(y - overflow, number, text) for y, number, text in placed]
