"""The demo's report: one HTML file that holds everything (pictures, sound, drawings) and asks the network for nothing.

`DemoResults` is what the demo found out; `write_report` turns it into the page. Each figure stands beside one sentence
that says what it shows to a reader who has never trained a model.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path

from .charts import Curve, data_url, line_chart, mosaic, perplexity, time_bars, usage_chart
from .page import figure, page, picture, section


@dataclass(frozen=True)
class Journey:
    """One picture on its way: real, as codes, and back."""

    picture: bytes
    """PNG of the real picture."""
    codes: list[list[list[int]]]
    """Code ids [K][rows][columns]."""
    decoded: bytes
    """PNG of the picture decoded from the codes."""


@dataclass(frozen=True)
class TokenizerStory:
    """The tokenizer that was just trained."""

    command: str
    curves: list[Curve]
    pairs: list[tuple[bytes, bytes]]
    """(real, reconstructed) PNGs of pictures it was not trained on."""
    counts: list[list[int]]
    """How often each code of each codebook was used on those pictures."""
    psnr: float
    """Peak signal-to-noise ratio on those pictures, dB."""
    journey: Journey


@dataclass(frozen=True)
class ModelStory:
    """The language model that was just trained."""

    command: str
    engine: str
    parameters: int
    curves: list[Curve]
    """Training loss per codebook."""
    test_losses: list[float]
    """Loss per codebook on held-out pictures."""
    tokens_per_second: float


@dataclass(frozen=True)
class ImageRow:
    """Pictures asked for under one label, beside real ones of that label."""

    label: str
    real: list[bytes]
    generated: list[bytes]


@dataclass(frozen=True)
class ImageGallery:
    """What one picture model generated."""

    command: str
    rows: list[ImageRow]
    seconds: float
    count: int
    recognised: float | None = None
    """Share that a classifier trained on real pictures recognises as asked; None where it was not measured."""
    recognised_real: float | None = None
    """The same classifier on real held-out pictures."""


@dataclass(frozen=True)
class Utterance:
    """One piece of speech."""

    text: str
    wav: bytes
    spectrogram: bytes
    """PNG."""
    seconds: float
    made_in: float | None = None
    """Seconds it took to generate; None for a recording."""
    origin: str = ""
    """The voice, or where a recording comes from."""


@dataclass(frozen=True)
class SpeechGallery:
    """What the speech model said, and a recording for comparison."""

    command: str
    generated: list[Utterance]
    recorded: list[Utterance]
    """Recordings from the sample data, each as it is and through the tokenizer."""


@dataclass(frozen=True)
class DemoResults:
    """Everything the report shows; a part that could not run is None, and `notes` says why."""

    version: str
    machine: str
    when: str
    stages: list[tuple[str, float]]
    """(what, seconds), in order."""
    tokenizer: TokenizerStory
    model: ModelStory
    fresh: ImageGallery
    bundled_pictures: ImageGallery | None = None
    speech: SpeechGallery | None = None
    notes: list[str] = field(default_factory=list)


def write_report(results: DemoResults, path: str | Path) -> Path:
    """Write the page; returns its path."""
    from ...configs.files import write_atomic

    path = Path(path)
    write_atomic(path, render(results).encode("utf-8"))
    return path


def render(results: DemoResults) -> str:
    """The page as HTML text."""
    sections = [_tiles(results), _journey(results.tokenizer), _tokenizer(results.tokenizer), _model(results.model)]
    sections.append(_pictures("fresh", "Digits from the model trained a minute ago", results.fresh, _FRESH_WORDS))
    if results.bundled_pictures:
        sections.append(_pictures("digits", "Digits from the bundled model", results.bundled_pictures, _BUNDLED_WORDS))
    if results.speech:
        sections.append(_speech(results.speech))
    sections.append(_timings(results))
    subtitle = f"From pictures to codes to a trained model to new pictures and speech. {results.when}"
    return page("Tessera demo", subtitle, sections, "tessera demo")


_FRESH_WORDS = (
    "For each label the language model wrote codes one frame at a time, and the tokenizer turned them into a picture. "
    "After so short a training some are clumsy."
)
_BUNDLED_WORDS = "The same recipe with more time: this model comes with Tessera, so it needs no training."


def _tiles(results: DemoResults) -> str:
    total = sum(seconds for _, seconds in results.stages)
    tiles = [
        (f"{total / 60:.1f} min", "from data to this page"),
        (f"{results.model.parameters / 1e6:.2f} M", "weights in the model trained here"),
        (f"{results.model.tokens_per_second:,.0f}", "tokens a second in training"),
    ]
    if results.bundled_pictures and results.bundled_pictures.recognised is not None:
        tiles.append(
            (f"{100 * results.bundled_pictures.recognised:.0f} %", "of the bundled model's digits recognised as asked")
        )
    if results.speech and results.speech.generated:
        speed = sum(u.seconds for u in results.speech.generated) / sum(
            u.made_in or 1e-9 for u in results.speech.generated
        )
        tiles.append((f"{speed:.1f} x", "real time: speech generated per second of work"))
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{what}</span></div>' for value, what in tiles)
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in results.notes)
    return f'<div class="tiles">{cells}</div>{notes}'


def _journey(story: TokenizerStory) -> str:
    journey, grids = story.journey, []
    for number, codes in enumerate(story.journey.codes):
        cardinality = len(story.counts[number])
        caption = f"codebook {number}" + (" (coarse)" if number == 0 else "")
        grids.append(f"<figure>{mosaic(codes, cardinality, caption)}<figcaption>{caption}</figcaption></figure>")
    steps = [
        figure(picture(journey.picture, "a real digit", "large"), "a real digit"),
        _arrow("encode"),
        f'<div class="grids">{"".join(grids)}</div>',
        _arrow("decode"),
        figure(picture(journey.decoded, "the digit decoded", "large"), "from its codes alone"),
    ]
    size = len(journey.codes) * len(journey.codes[0]) * len(journey.codes[0][0])
    words = (
        f"A <em>tokenizer</em> turns each picture into {size} small whole numbers, its <em>codes</em>, and codes back "
        "into a picture. A <em>language model</em> learns which codes follow which, as it would with words; to make a "
        "new picture it writes new codes. Sound goes the same way."
    )
    return section("idea", "The idea in one picture", words, f'<div class="journey">{"".join(steps)}</div>')


def _tokenizer(story: TokenizerStory) -> str:
    pairs = "".join(
        f'<div class="pair">{picture(real, "real")}{picture(found, "reconstructed")}</div>'
        for real, found in story.pairs
    )
    usage = []
    for number, counts in enumerate(story.counts):
        used = sum(count > 0 for count in counts)
        varied = f"as varied as {perplexity(counts):.0f} equally likely codes"
        text = f"codebook {number}: {used} of {len(counts)} used, {varied}"
        usage.append(f"<figure>{usage_chart(counts, number)}<figcaption>{text}</figcaption></figure>")
    body = (
        figure(
            line_chart(story.curves, "training step", "loss (log scale)", log=True),
            "Falling: pictures come back more alike.",
        )
        + f"<h3>Pictures it has never seen</h3><p>Left the real one, right what comes back from its codes; on average "
        f'{story.psnr:.1f} dB PSNR (higher is closer).</p><div class="pairs">{pairs}</div>'
        + "<h3>Use of the codes</h3><p>Each bar is one code, the most used first; the dashed line is equal use. "
        f'A codebook in which few codes do all the work wastes capacity.</p><div class="usages">{"".join(usage)}</div>'
    )
    words = (
        "First a tokenizer is trained to bring pictures back from few codes; then it is frozen and gets a fingerprint."
    )
    return section("tokenizer", "Step 1: a tokenizer", words, body, story.command)


def _model(story: ModelStory) -> str:
    test = ", ".join(f"{loss:.2f}" for loss in story.test_losses)
    body = figure(
        line_chart(story.curves, "training step", "loss per codebook"),
        "Falling: the model is less surprised by the next code. Codebook 0 carries the shape, later ones the detail.",
    )
    held_out = f"Loss per codebook on digits of other writers: {test}." if test else ""
    body += f"<p>{held_out} Engine: {html.escape(story.engine)}.</p>"
    words = (
        f"Then a transformer with {story.parameters:,} weights learns to predict the codes of a picture from its label."
    )
    return section("model", "Step 2: a language model over codes", words, body, story.command)


def _pictures(anchor: str, title: str, gallery: ImageGallery, words: str) -> str:
    rows = []
    for row in gallery.rows:
        generated = "".join(picture(png, f"generated {row.label}") for png in row.generated)
        real = "".join(picture(png, f"real {row.label}") for png in row.real)
        rows.append(
            f'<tr><th scope="row">{html.escape(row.label)}</th><td>{generated}</td><td class="real">{real}</td></tr>'
        )
    table = (
        '<div class="wide"><table class="gallery">'
        "<thead><tr><th>asked for</th><th>generated</th><th>real</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    facts = f"{gallery.count} pictures in {gallery.seconds:.1f} s."
    if gallery.recognised is not None:
        share = f"{100 * gallery.recognised:.1f} %"
        facts += f" A classifier trained on real digits recognises {share} of them as the digit asked for"
        if gallery.recognised_real is not None:
            facts += f" (of real digits it has not seen: {100 * gallery.recognised_real:.1f} %)"
        facts += "."
    return section(anchor, title, words, f"{table}<p>{facts}</p>", gallery.command)


def _speech(gallery: SpeechGallery) -> str:
    def card(utterance: Utterance) -> str:
        facts = [f"{utterance.seconds:.1f} s"]
        if utterance.made_in is not None:
            facts.append(f"made in {utterance.made_in:.1f} s")
        if utterance.origin:
            facts.append(html.escape(utterance.origin))
        text = html.escape(utterance.text)
        return (
            f'<figure class="utterance"><figcaption><b title="{text}">{text}</b>'
            f"<span>{', '.join(facts)}</span></figcaption>"
            f'<img src="{data_url(utterance.spectrogram, "image/png")}" alt="spectrogram of {text}">'
            f'<audio controls preload="metadata" src="{data_url(utterance.wav, "audio/wav")}"></audio></figure>'
        )

    body = f'<div class="utterances">{"".join(card(utterance) for utterance in gallery.generated)}</div>'
    if gallery.recorded:
        cards = "".join(card(utterance) for utterance in gallery.recorded)
        body += (
            "<h3>For comparison</h3><p>A recording from the test data, and the same recording after a way through the "
            f'tokenizer: what the model could at best sound like.</p><div class="utterances">{cards}</div>'
        )
    words = (
        "The same machinery with sound: text goes in, codes come out step by step until the model says it is done, and "
        "the audio tokenizer turns them into 16 kHz speech. Under each text is a spectrogram: time to the right, pitch "
        "upwards."
    )
    return section("speech", "Speech from the bundled model", words, body, gallery.command)


def _timings(results: DemoResults) -> str:
    body = (
        time_bars(results.stages)
        + f'<p class="quiet">{html.escape(results.machine)}; Tessera {html.escape(results.version)}.</p>'
    )
    return section("time", "Where the time went", "Measured on this machine while this page was made.", body)


def _arrow(word: str) -> str:
    return (
        f'<div class="arrow"><span>{word}</span><svg viewBox="0 0 56 12" aria-hidden="true">'
        '<path d="M0 6 H50 M44 1 L50 6 L44 11"/></svg></div>'
    )
