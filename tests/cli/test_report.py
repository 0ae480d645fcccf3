"""The report's drawings are right, and the page is whole: nothing outside it is asked for, and text cannot break it."""

import io
import math
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tessera.cli.report.charts import (
    Curve,
    image_png,
    line_chart,
    mosaic,
    perplexity,
    png_bytes,
    spectrogram_png,
    usage_chart,
)
from tessera.cli.report.demo_report import (
    CaptionSheet,
    DemoResults,
    ImageGallery,
    ImageRow,
    Journey,
    ModelStory,
    SpeechGallery,
    TokenizerStory,
    Utterance,
    write_report,
)
from tessera.tokenize.alignment.spoken_text import TimedWord


@pytest.mark.parametrize("channels", [1, 3])
def test_png_reads_back_exactly(channels):
    pixels = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    picture = Image.open(io.BytesIO(png_bytes(pixels)))
    assert picture.size == (7, 5)
    read = torch.tensor(list(picture.tobytes()), dtype=torch.uint8).view(5, 7, channels).permute(2, 0, 1)
    assert torch.equal(read, pixels)


def test_picture_png_maps_the_range():
    picture = Image.open(io.BytesIO(image_png(torch.tensor([[[-1.0, 0.0, 1.0, 9.0]]]))))
    assert list(picture.tobytes()) == [0, 128, 255, 255]


@pytest.mark.parametrize("counts, expected", [([5] * 16, 16), ([9, 0, 0], 1), ([1, 1, 0, 0], 2), ([0, 0], 0)])
def test_perplexity(counts, expected):
    assert perplexity(counts) == pytest.approx(expected)


def test_spectrogram_shows_a_tone_at_its_height():
    rate = 16000
    tone = torch.sin(2 * math.pi * 2000 * torch.arange(rate) / rate)
    picture = Image.open(io.BytesIO(spectrogram_png(tone, rate))).convert("L")
    middle = [picture.getpixel((picture.width // 2, row)) for row in range(picture.height)]
    # 2 kHz of 8 kHz, counted from the bottom
    assert middle.index(max(middle)) / picture.height == pytest.approx(0.75, abs=0.01)


def test_spectrogram_of_next_to_nothing():
    assert spectrogram_png(torch.zeros(3), 16000).startswith(b"\x89PNG")


def test_line_chart_leaves_out_what_cannot_be_drawn():
    drawn = line_chart([Curve("a", [0, 1, 2, 3], [1.0, math.nan, math.inf, 2.0])], "step", "loss")
    assert "nan" not in drawn and "inf" not in drawn
    assert len(re.search(r'class="curve"[^>]*points="([^"]*)"', drawn)[1].split()) == 2
    assert "No points" in line_chart([Curve("a", [0], [0.0])], "step", "loss", log=True)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0], [1e-6, 1e4], [0.031, 0.5, 0.0302]])
def test_line_chart_stays_in_its_frame(values, log):
    drawn = line_chart([Curve("loss", range(len(values)), values)], "step", "loss", log)
    points = re.search(r'class="curve"[^>]*points="([^"]*)"', drawn)[1]
    for point in points.split():
        x, y = map(float, point.split(","))
        assert 48 <= x <= 720 and 26 <= y <= 230


def test_usage_chart_draws_used_codes_only():
    assert usage_chart([4, 0, 1, 0], 0).count("<rect") == 2


def test_mosaic_has_a_tile_for_each_code():
    drawn = mosaic([[1, 2, 3], [4, 5, 6]], 8, "codebook 0")
    assert drawn.count("<rect") == 6 and ">6<" in drawn


def results() -> DemoResults:
    png = image_png(torch.zeros(1, 8, 8))
    curve = Curve("codebook 0", range(50), [4 / (1 + step) + 1 for step in range(50)])
    journey = Journey(png, [[[1, 2], [3, 4]]], png)
    gallery = ImageGallery("tessera generate digits", [ImageRow("7", [png], [png, png])], 0.5, 2, 0.9, 0.98)
    speech = Utterance("three <b>& one", b"RIFF", spectrogram_png(torch.zeros(800), 16000), 1.5, 0.5)
    timed = replace(speech, words=(TimedWord("<i>three", 0.0, 0.4), TimedWord("one", 0.6, 1.2)))
    return DemoResults(
        version="0",
        machine="a machine",
        when="today",
        stages=[("train", 2.0), ("generate", 1.0)],
        tokenizer=TokenizerStory("tessera tokenizer train", [curve], [(png, png)], [[3, 0, 1, 4, 5]], 20.0, journey),
        model=ModelStory("tessera train", "torch", 1000, [curve], [1.5], 1234.0),
        fresh=gallery,
        bundled_images=gallery,
        speech=SpeechGallery('tessera tts "one"', [speech, timed]),
        captions=CaptionSheet("tessera image", [("a <u>cat", "noto", png), ("a dog", "", png)], 1.0),
        notes=["a note <script>"],
    )


def test_report_asks_for_nothing_outside(tmp_path):
    page = write_report(results(), tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    for link in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert link.startswith("data:")
    assert "url(" not in page and "@import" not in page and "http" not in page


def test_report_escapes_text(tmp_path):
    page = write_report(results(), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "three &lt;b&gt;&amp; one" in page and "<script>" not in page
    assert page.count("<section") == page.count("</section>") == 8
    assert page.count('class="words"') == 1 and "left:40.00%;width:40.00%" in page and "<i>three" not in page
    assert "a &lt;u&gt;cat (noto)" in page


def test_report_leaves_out_what_did_not_run(tmp_path):
    without = replace(results(), bundled_images=None, speech=None, captions=None)
    page = write_report(without, tmp_path / "report.html").read_text()
    assert page.count("<section") == 5 and "<audio" not in page
