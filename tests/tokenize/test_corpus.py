"""Corpora: order, labels, transcripts, and what is refused."""

import json
import os

import pytest
import torch

from tessera.configs.files import write_safetensors
from tessera.tokenize.alignment.alignment import TimedUnits
from tessera.tokenize.data.corpus import MAX_TEXT_BYTES, ArraysCorpus, FolderCorpus, Item, open_corpus
from tessera.tokenize.data.media import MediaError, bytes_to_image, write_audio, write_image
from tessera.tokenize.spec import AudioGeometry, ImageGeometry

SPEECH = AudioGeometry(sample_rate=8000, samples_per_frame=80)
GREY = ImageGeometry(height=4, width=6, channels=1, rows=2, columns=3)


def tone(num_samples: int = 400) -> torch.Tensor:
    return torch.sin(torch.arange(num_samples) / 7)[None] / 2


def picture(seed: int = 0, channels: int = 1, height: int = 4, width: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, channels), generator=generator, dtype=torch.uint8)
    return bytes_to_image(pixels)


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
        write_image(tmp_path / f"{name}.png", picture())
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
        ("{", "line 2: not valid JSON"),
        ("[" * 10_000, "line 2: not valid JSON .nested too deep"),
        ("[" * 60_000, "line 2: more than 50000 lists"),
        ('{"file": "y.wav", "alignment": [[0, 1]]}', "line 2: alignment.0.2: Field required"),
        ('{"file": "y.wav", "alignment": [[0, "1", "a"]]}', "line 2: alignment.0.1: .*number"),
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
    with pytest.raises(ValueError, match=message):
        open_corpus(FolderCorpus(path=str(tmp_path)))


def test_alignments(tmp_path):
    for name in ("a", "b", "c", "d"):
        write_audio(tmp_path / f"{name}.wav", tone(), 8000)
    (tmp_path / "a.align").write_text("0\t0.03\t|\n0.03\t0.05\ta\n")
    (tmp_path / "b.TextGrid").write_text(
        '"ooTextFile"\n"TextGrid"\n0 1 <exists> 1 "IntervalTier" "phones" 0 1 1 0 1 "b"'
    )
    (tmp_path / "c.align").write_text("0\t1\n")
    corpus = open_corpus(FolderCorpus(path=str(tmp_path)))
    assert corpus.alignment(0) == TimedUnits(("|", "a", "|"), (0.0, 0.03, 0.05, 0.05))
    assert corpus.alignment(1) == TimedUnits(("|", "b", "|"), (0.0, 0.0, 1.0, 1.0))
    assert corpus.alignment(3) is None
    with pytest.raises(MediaError, match=r"c\.align: line 1 is not start<TAB>end<TAB>unit"):
        corpus.alignment(2)
    (tmp_path / "a.TextGrid").write_text("")
    with pytest.raises(MediaError, match=r"a: has \.align and \.TextGrid; keep one of them"):
        corpus.alignment(0)
    assert not corpus.notes.lines()
    lines = [{"file": "a.wav", "alignment": [[0, 0.05, "x"]]}, {"file": "b.wav"}, {"file": "d.wav", "alignment": []}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    corpus = open_corpus(FolderCorpus(path=str(tmp_path)))
    assert corpus.alignment(0) == TimedUnits(("|", "x", "|"), (0.0, 0.0, 0.05, 0.05))
    assert corpus.alignment(1) == TimedUnits(("|", "b", "|"), (0.0, 0.0, 1.0, 1.0))
    with pytest.raises(MediaError, match=r"metadata\.jsonl: alignment of 'd\.wav': 0 intervals"):
        corpus.alignment(2)


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


def test_names_that_are_not_utf8(tmp_path):
    """The index of shards is UTF-8: ids, labels and reasons must be, whatever a file is called."""
    strange = os.fsdecode(b"l\xe4bel")
    (tmp_path / strange).mkdir()
    write_audio(tmp_path / strange / os.fsdecode(b"\xff.wav"), tone(), 8000)
    (tmp_path / strange / os.fsdecode(b"\xff.txt")).write_text("one")
    (tmp_path / strange / os.fsdecode(b"\xfe.wav")).write_bytes(b"RIFF")
    write_audio(tmp_path / "x\x1b[31m\n.wav", tone(), 8000)
    corpus = open_corpus(FolderCorpus(path=str(tmp_path)))
    assert [(name, item.label, item.text) for name, item in zip(corpus.ids(), items(corpus), strict=True)] == [
        ("l\\xe4bel/\\xfe.wav", "l\\xe4bel", None),
        ("l\\xe4bel/\\xff.wav", "l\\xe4bel", "one"),
        ("x\x1b[31m\n.wav", None, None),
    ]
    assert corpus.media(1, SPEECH).shape == (1, 400) == corpus.media(2, SPEECH).shape
    with pytest.raises(MediaError) as error:
        corpus.media(0, SPEECH)
    str(error.value).encode()


def test_ids_are_unique(tmp_path):
    for name in (b"\xff.wav", b"\\xff.wav"):
        (tmp_path / os.fsdecode(name)).touch()
    assert len(set(open_corpus(FolderCorpus(path=str(tmp_path))).ids())) == 2


def test_links_that_leave_the_folder(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "corpus"
    (outside / "more").mkdir(parents=True)
    folder.mkdir()
    write_audio(outside / "x.wav", tone(), 8000)
    write_audio(outside / "more/y.wav", tone(), 8000)
    (outside / "secret").write_text("root:x:0:0")
    write_audio(folder / "a.wav", tone(), 8000)
    (folder / "a.txt").symlink_to(outside / "secret")
    (folder / "b.wav").symlink_to(outside / "x.wav")
    (folder / "c").symlink_to(outside / "more")
    (folder / "d.wav").symlink_to("a.wav")  # stays inside
    (folder / "loop").symlink_to(".")
    (folder / "e.wav").symlink_to("e.wav")
    corpus = open_corpus(FolderCorpus(path=str(folder)))
    assert list(corpus.ids()) == ["a.wav", "d.wav"]
    (line,) = corpus.notes.lines()
    assert line == (
        "4 links that lead out of the folder or nowhere (to follow them: follow_links: true): a.txt, b.wav, c, ..."
    )
    with pytest.raises(MediaError, match=r"a\.txt: a link that leads out of the corpus folder"):
        corpus.item(0)
    corpus = open_corpus(FolderCorpus(path=str(folder), follow_links=True))
    assert list(corpus.ids()) == ["a.wav", "b.wav", "c/y.wav", "d.wav"]
    assert corpus.item(0).text == "root:x:0:0" and corpus.media(2, SPEECH).shape == (1, 400)


def test_links_in_metadata(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_audio(tmp_path / "x.wav", tone(), 8000)
    (folder / "b.wav").symlink_to(tmp_path / "x.wav")
    (folder / "metadata.jsonl").write_text('{"file": "b.wav"}')
    with pytest.raises(MediaError, match="leads out of the corpus folder"):
        open_corpus(FolderCorpus(path=str(folder))).media(0, SPEECH)
    assert open_corpus(FolderCorpus(path=str(folder), follow_links=True)).media(0, SPEECH).shape == (1, 400)


def test_the_corpus_itself_may_be_a_link(tmp_path):
    write_audio(tmp_path / "real/a.wav", tone(), 8000)
    (tmp_path / "link").symlink_to("real")
    assert open_corpus(FolderCorpus(path=str(tmp_path / "link"))).media(0, SPEECH).shape == (1, 400)


def test_sidecars_that_are_no_files(tmp_path):
    write_audio(tmp_path / "a.wav", tone(), 8000)
    os.mkfifo(tmp_path / "a.txt")
    os.mkfifo(tmp_path / "b.wav")
    corpus = open_corpus(FolderCorpus(path=str(tmp_path)))
    with pytest.raises(MediaError, match=r"a\.txt: not a file"):
        corpus.item(0)
    assert "2 pipes, sockets or devices are not read: a.txt, b.wav" in corpus.notes.lines()


def test_files_of_other_kinds_are_counted(tmp_path):
    write_audio(tmp_path / "a.wav", tone(), 8000)
    for name in ("a.txt", "a.label", "metadata.csv.bak", "x.XYZ", "y.xyz", "README", "alone.txt", "\x1b.q\x1b"):
        (tmp_path / name).write_text("x")
    assert open_corpus(FolderCorpus(path=str(tmp_path))).notes.lines() == [
        "6 files of kinds that are not read: .xyz 2, .bak 1, .q\\x1b 1, .txt 1, without extension 1"
    ]


def test_corpus_settings_of_before_keep_their_fingerprint():
    """The build of finished shards is named by them."""
    described = FolderCorpus(path="x").model_dump(mode="json")
    assert set(described) == {"kind", "path", "labels", "fit", "limits"}
    assert FolderCorpus(path="x", follow_links=True).model_dump(mode="json")["follow_links"] is True


def test_separators_inside_a_text_of_metadata(tmp_path):
    line = json.dumps({"file": "a.wav", "text": "one\u2028two\x85three"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_text(line, encoding="utf-8")
    assert open_corpus(FolderCorpus(path=str(tmp_path))).item(0).text == "one\u2028two\x85three"


def test_one_bad_file_leaves_the_others(tmp_path):
    write_audio(tmp_path / "a.wav", tone(), 8000)
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    write_image(tmp_path / "c.png", picture())
    corpus = open_corpus(FolderCorpus(path=str(tmp_path)))
    assert corpus.media(0, SPEECH).shape == (1, 400)
    with pytest.raises(MediaError, match=r"b\.wav: cannot be read"):
        corpus.media(1, SPEECH)
    with pytest.raises(MediaError, match=r"c\.png: an audio file is needed here"):
        corpus.media(2, SPEECH)


def test_fit(tmp_path):
    write_image(tmp_path / "a.png", picture(height=8, width=8))
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
    assert torch.equal(corpus.media(1, GREY), bytes_to_image(pixels[1, ..., None]))
    with pytest.raises(ValueError, match=r"images are \[4, 6, 1\], the tokenizer encodes \[4, 6, 3\]"):
        corpus.media(0, ImageGeometry(height=4, width=6, channels=3, rows=2, columns=3))
    with pytest.raises(ValueError, match="holds images, the tokenizer encodes audio"):
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
