"""The bundled models: their size, their cards, and that the voice says what it is asked to say."""

import pytest
import torch

import tessera
from tessera.tokenize.bundled import BUNDLED, PACKAGE, bundled_models

MODELS = [name for name in ("voice", "digits", "speech", "emoji") if name in bundled_models()]
MEBIBYTES = {"voice": 35, "emoji": 20}
LIMIT = 90
"""Mebibytes of all models and sample data together."""
TEXT = "Dr. Smith paid $3.50 for 21 apples."
SENTENCES = (
    "The weather is beautiful today.",
    "She bought seven apples and a loaf of bread.",
    "Where did you leave the car?",
    "Nobody knew the answer to the last question.",
    "Thank you very much for your help.",
    "The old house stood at the end of the street.",
    "Please open the window and close the door.",
    "He walked slowly along the river.",
    "They have never seen the ocean.",
    "My brother works in a small office.",
    "It was raining when we came home.",
    "The children played in the garden until evening.",
)
WORDS = ["Dr.", "Smith", "paid", "$3.50", "for", "21", "apples."]

voice = pytest.mark.skipif("voice" not in MODELS, reason="the bundled voice is not in this checkout")


def mebibytes(*folders) -> float:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()) / 2**20


def test_they_are_small():
    assert mebibytes(BUNDLED, PACKAGE / "samples") < LIMIT
    for name, limit in MEBIBYTES.items():
        assert name not in MODELS or mebibytes(BUNDLED / name) < limit


@pytest.mark.parametrize("name", MODELS)
def test_card_says_how_it_was_made(name):
    card = (BUNDLED / name / "README.md").read_text(encoding="utf-8")
    for part in ("## Data", "## Quality", "## How it was made", "tessera train"):
        assert part in card, part


@voice
def test_voice_card_names_its_sources():
    card = (BUNDLED / "voice" / "README.md").read_text(encoding="utf-8")
    assert "synthesized speech" in card
    assert all(source in card for source in ("hibari-tts", "flite", "WordNet", "Apache-2.0", "CMU"))


@voice
def test_voice_reads_every_word_in_order():
    model = tessera.load("voice")
    assert set(model.labels) == {"heart", "slt", "rms", "awb"} and model.defaults.default_label == "heart"
    result = model.generate(TEXT, seed=0)
    assert result.ended[0] and [word.word for word in result.alignment.words] == WORDS
    times = [time for word in result.alignment.words for time in (word.start, word.end)]
    assert times == sorted(times) and 1.5 < result.seconds < 8
    assert torch.equal(result.media[0], model.generate(TEXT, label="heart", seed=0).media[0]), "the default voice"


@voice
@pytest.mark.slow
@pytest.mark.parametrize("label", ["heart", "slt", "rms", "awb"])
def test_a_recognizer_understands_the_voice(label, monkeypatch):
    """pocketsphinx, with these sentences as its grammar, recognizes each of them."""
    pytest.importorskip("pocketsphinx")
    monkeypatch.syspath_prepend(str(PACKAGE / "benchmarks"))
    from recogniser import SAMPLE_RATE, SentenceRecogniser

    from tessera.tokenize.audio.resample import resample

    model, picker = tessera.load("voice"), SentenceRecogniser(SENTENCES)
    rate = model.spec.geometry.sample_rate
    result = model.generate(list(SENTENCES), label=[label] * len(SENTENCES), seed=0)
    sounds = [resample(sound.float(), rate, SAMPLE_RATE)[0].numpy() for sound in result.media]
    assert [picker.sentence(sound) for sound in sounds] == list(range(len(SENTENCES)))
