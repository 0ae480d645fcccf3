"""Corpora: order, labels, transcripts, and what is refused."""

import json

import pytest
import torch

from tessera.tokenize.config import ConfigError
from tessera.tokenize.corpus import MAX_TEXT_BYTES, ArraysCorpus, FolderCorpus, Item, open_corpus
from tessera.tokenize.files import write_safetensors
from tessera.tokenize.media import MediaError, bytes_to_picture, write_audio, write_picture
from tessera.tokenize.spec import AudioGeometry, PictureGeometry

SPEECH = AudioGeometry(sample_rate=8000, samples_per_frame=80)
GREY = PictureGeometry(height=4, width=6, channels=1, rows=2, columns=3)


def tone(num_samples: int = 400) -> torch.Tensor:
    return torch.sin(torch.arange(num_samples) / 7)[None] / 2


def picture(seed: int = 0, channels: int = 1, height: int = 4, width: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, channels), generator=generator, dtype=torch.uint8)
    return bytes_to_picture(pixels)


def items(corpus) -> list[Item]:
    return [corpus.item(number) for number in range(len(corpus))]


def test_sound_with_transcripts(tmp_path):
    for name, text in (("b", "two"), ("a", " one \n"), ("sub/c", None)):
        write_audio(tmp_path / f"{name}.wav", tone(), 8000)
        if text:
            (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "notes.txt").write_text("not a transcript of anything")
    (tmp_path / ".hidden.wav").write_bytes(b"")
    corpus = open_corpus(FolderCorpus(path=str(tmp_path)))
    assert items(corpus) == [Item("a.wav", None, "one"), Item("b.wav", None, "two"), Item("sub/c.wav", "sub", None)]
    assert list(corpus.ids()) == ["a.wav", "b.wav", "sub/c.wav"]
    assert corpus.media(2, SPEECH).shape == (1, 400)


@pytest.mark.parametrize(
    "labels, expected",
    [
        ("auto", ["seven", "8", None]),
        ("folder", ["7", "8", None]),
        ("sidecar", ["seven", None, None]),
        ("none", [None, None, None]),
    ],
)
def test_pictures_with_labels(tmp_path, labels, expected):
    for name in ("7/x", "8/x", "top"):
        write_picture(tmp_path / f"{name}.png", picture())
    (tmp_path / "7/x.label").write_text("seven")
    corpus = open_corpus(FolderCorpus(path=str(tmp_path), labels=labels))
    assert [item.label for item in items(corpus)] == expected
    assert torch.equal(corpus.media(0, GREY), picture())


def test_metadata(tmp_path):
    for name in ("x", "deep/y", "unlisted"):
        write_audio(tmp_path / f"{name}.flac", tone(), 8000)
    lines = [{"file": "deep/y.flac", "text": "yes", "label": 3}, {"file": "./x.flac"}, {"file": "gone.flac"}]
    (tmp_path / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    corpus = open_corpus(FolderCorpus(path=str(tmp_path)))
    expected = [Item("deep/y.flac", "3", "yes"), Item("x.flac", None, None), Item("gone.flac", None, None)]
    assert items(corpus) == expected
    assert corpus.media(0, SPEECH).shape == (1, 400)
    with pytest.raises(MediaError, match=r"gone\.flac: no such file"):
        corpus.media(2, SPEECH)


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2: not JSON"),
        ("[" * 10_000, "line 2: not JSON"),
        ("[]", "line 2: expected a mapping"),
        ('{"text": "x"}', "line 2: file: Field required"),
        ('{"file": "y.wav", "lable": "x"}', "line 2: lable: unknown key; did you mean 'label'"),
        ('{"file": "y.wav", "text": 7}', r"line 2: text: .*string \(found 7\)"),
        ('{"file": "../y.wav"}', "line 2: file '../y.wav' must be a path inside"),
        ('{"file": "/etc/y.wav"}', "line 2: file '/etc/y.wav' must be a path inside"),
        ('{"file": ""}', "line 2: file '' must be a path inside"),
        ('{"file": "x.wav"}', "line 2: file 'x.wav' occurs twice"),
    ],
)
def test_wrong_metadata(tmp_path, line, message):
    (tmp_path / "metadata.jsonl").write_text('{"file": "x.wav"}\n' + line)
    with pytest.raises(ConfigError, match=message):
        open_corpus(FolderCorpus(path=str(tmp_path)))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r"a\.txt: is empty"),
        (b" \n", r"a\.txt: is empty"),
        (b"\xff\xfe1", r"a\.txt: not UTF-8 text"),
        (b"x" * (MAX_TEXT_BYTES + 1), r"a\.txt: more than 65536 bytes"),
    ],
)
def test_wrong_transcript(tmp_path, content, message):
    write_audio(tmp_path / "a.wav", tone(), 8000)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(MediaError, match=message):
        open_corpus(FolderCorpus(path=str(tmp_path))).item(0)


def test_one_bad_file_leaves_the_others(tmp_path):
    write_audio(tmp_path / "a.wav", tone(), 8000)
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    write_picture(tmp_path / "c.png", picture())
    corpus = open_corpus(FolderCorpus(path=str(tmp_path)))
    assert corpus.media(0, SPEECH).shape == (1, 400)
    with pytest.raises(MediaError, match=r"b\.wav: cannot be read"):
        corpus.media(1, SPEECH)
    with pytest.raises(MediaError, match=r"c\.png: audio is needed here"):
        corpus.media(2, SPEECH)


def test_fit(tmp_path):
    write_picture(tmp_path / "a.png", picture(height=8, width=8))
    with pytest.raises(MediaError, match="8 x 8 pixels, needed are 6 x 4"):
        open_corpus(FolderCorpus(path=str(tmp_path))).media(0, GREY)
    for fit in ("crop", "stretch"):
        assert open_corpus(FolderCorpus(path=str(tmp_path), fit=fit)).media(0, GREY).shape == (1, 4, 6)


def test_no_corpus(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        open_corpus(FolderCorpus(path=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match=r"no items in this corpus \(looked for metadata.jsonl, .wav"):
        open_corpus(FolderCorpus(path=str(tmp_path)))
    with pytest.raises(FileNotFoundError):
        open_corpus(ArraysCorpus(path=str(tmp_path / "x.safetensors")))


def test_arrays(tmp_path):
    pixels = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8)
    write_safetensors(tmp_path / "x.safetensors", {"images": pixels, "labels": torch.tensor([5, 0, 12])})
    corpus = open_corpus(ArraysCorpus(path=str(tmp_path / "x.safetensors")))
    assert items(corpus) == [Item("0", "5", None), Item("1", "0", None), Item("2", "12", None)]
    assert torch.equal(corpus.media(1, GREY), bytes_to_picture(pixels[1, ..., None]))
    with pytest.raises(ValueError, match=r"pictures are \[4, 6, 1\], the tokenizer wants \[4, 6, 3\]"):
        corpus.media(0, PictureGeometry(height=4, width=6, channels=3, rows=2, columns=3))
    with pytest.raises(ValueError, match="holds pictures, the tokenizer wants audio"):
        corpus.media(0, SPEECH)


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"pictures": torch.zeros(2, 4, 6, dtype=torch.uint8)}, r"no tensor 'images' \(found pictures\)"),
        ({"images": torch.zeros(2, 4, 6)}, r"images must be uint8 .* found torch.float32 \[2, 4, 6\]"),
        ({"images": torch.zeros(2, 4, dtype=torch.uint8)}, r"images must be uint8 .* \[2, 4\]"),
        ({"images": torch.zeros(0, 4, 4, dtype=torch.uint8)}, "no items in this corpus"),
        (
            {"images": torch.zeros(2, 4, 6, dtype=torch.uint8), "labels": torch.zeros(3).long()},
            "labels must be 2 integers",
        ),
        ({"images": torch.zeros(2, 4, 6, dtype=torch.uint8), "labels": torch.zeros(2)}, "labels must be 2 integers"),
        ({"images": torch.zeros(2, 4, 6, dtype=torch.uint8), "text": torch.zeros(2)}, "unknown tensors text"),
    ],
)
def test_wrong_arrays(tmp_path, tensors, message):
    write_safetensors(tmp_path / "x.safetensors", tensors)
    with pytest.raises(ValueError, match=message):
        open_corpus(ArraysCorpus(path=str(tmp_path / "x.safetensors")))


def test_bundled_samples():
    from importlib.resources import files

    samples = files("tessera.samples")
    for split, count in (("train", 1297), ("test", 500)):
        digits = open_corpus(ArraysCorpus(path=str(samples / "digits" / f"{split}.safetensors")))
        assert len(digits) == count
        assert {item.label for item in items(digits)} == set("0123456789")
    train, test = (open_corpus(FolderCorpus(path=str(samples / "speech" / split))) for split in ("train", "test"))
    assert (len(train), len(test)) == (240, 100)
    texts = {item.text for item in items(test)}
    assert len(texts) == 100 and not texts & {item.text for item in items(train)}
    assert {item.label for item in items(train)} == {"en-us", "en-us+m3", "en-us+f2", "en-us+f4"}
    geometry = AudioGeometry(sample_rate=16000, samples_per_frame=320)
    for corpus in (train, test):
        samples = corpus.media(0, geometry)
        assert 0.3 * 16000 < samples.shape[1] < 4 * 16000 and 0.1 < float(samples.abs().max()) < 0.7
