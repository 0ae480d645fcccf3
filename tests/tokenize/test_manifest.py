"""Manifests: the usual tables and folders, what is wrong in them, and splits."""

import json
import os

import pytest
import torch

from tessera.configs.schema import ConfigError, check_config
from tessera.tokenize.data.corpus import FolderCorpus, Item, ManifestCorpus, open_corpus
from tessera.tokenize.data.media import MediaError, write_audio, write_image
from tessera.tokenize.data.shards_config import ShardsConfig, SplitConfig, choose_items
from tessera.tokenize.spec import AudioGeometry

SPEECH = AudioGeometry(sample_rate=8000, samples_per_frame=80)


def sound(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, torch.sin(torch.arange(400) / 7)[None] / 2, 8000)


def opened(path, **more):
    return open_corpus(ManifestCorpus(path=str(path), **more))


def items(corpus) -> list[Item]:
    return [corpus.item(number) for number in range(len(corpus))]


def reasons(corpus) -> list[str]:
    found = []
    for number in range(len(corpus)):
        try:
            corpus.item(number)
            corpus.media(number, SPEECH)
        except MediaError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("whole_folder", [True, False])
def test_ljspeech(tmp_path, whole_folder):
    for name in ("LJ001-0001", "LJ001-0002", "LJ001-0003"):
        sound(tmp_path / "wavs" / f"{name}.wav")
    lines = ['LJ001-0001|Dr. "A|Doctor "A', "LJ001-0002|in 1|in one", "LJ001-0003|plain|"]
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    corpus = opened(tmp_path if whole_folder else tmp_path / "metadata.csv")
    assert items(corpus) == [
        Item("wavs/LJ001-0001.wav", None, 'Doctor "A'),
        Item("wavs/LJ001-0002.wav", None, "in one"),
        Item("wavs/LJ001-0003.wav", None, "plain"),
    ]
    assert corpus.media(2, SPEECH).shape == (1, 400) and corpus.splits() is None
    assert opened(tmp_path, text="text").item(1).text == "in 1"


TABLES = {
    "a.csv": 'file_name,text,label,split\nx/a.wav,"one, two",7,train\nb.flac,,8,test\n',
    "a.tsv": "path\tsentence\tspeaker\tsplit\nx/a.wav\tone, two\t7\tTrain\nb.flac\t\t8\ttest\n",
    "a.txt": "audio_file|text|label|split\nx/a.wav|one, two|7|train\nb.flac||8|test\n",
    "b.csv": "\ufeffSplit;Audio;Label;Caption\r\ntrain;x/a.wav;7;one, two\r\ntest;b.flac;8;\r\n",
    "a.jsonl": '{"audio": "x/a.wav", "text": "one, two", "label": 7, "split": "train", "duration": 1.5}\n\n'
    '{"file_name": "./b.flac", "label": "8", "split": "test"}',
    "b.jsonl": '{"audio": {"path": "x/a.wav"}, "caption": "one, two", "label": "7", "split": "train"}\n'
    '{"audio_filepath": "b.flac", "label": 8, "split": "test"}',
}


@pytest.mark.parametrize("name", sorted(TABLES))
def test_tables_say_the_same(tmp_path, name):
    sound(tmp_path / "x/a.wav")
    sound(tmp_path / "b.flac")
    (tmp_path / name).write_text(TABLES[name], encoding="utf-8", newline="")
    corpus = opened(tmp_path / name)
    assert items(corpus) == [Item("x/a.wav", "7", "one, two"), Item("b.flac", "8", None)]
    assert corpus.splits() == ["train", "test"] and not reasons(corpus)
    assert items(opened(tmp_path / name, split="test")) == [Item("b.flac", "8", None)]
    with pytest.raises(ConfigError, match="no item of split 'nine'; the splits are: test, train"):
        opened(tmp_path / name, split="nine")


def test_columns_by_name(tmp_path):
    sound(tmp_path / "a.wav")
    (tmp_path / "t.csv").write_text("clip,said,text\na.wav,this,not this\n")
    assert items(opened(tmp_path / "t.csv", media="clip", text="said")) == [Item("a.wav", None, "this")]
    with pytest.raises(ConfigError, match=r"t\.csv:1: no column names the media files .*found clip,said,text"):
        opened(tmp_path / "t.csv")
    assert reasons(opened(tmp_path / "t.csv", media="clip", label="who")) == [
        f"{tmp_path}/t.csv:2: has no field 'who', which corpus.label asks for"
    ]


def test_huggingface_folders(tmp_path):
    for split in ("train", "validation"):
        sound(tmp_path / split / "a.wav")
        (tmp_path / split / "metadata.csv").write_text(f"file_name,transcription\na.wav,{split}\n")
    corpus = opened(tmp_path)
    assert items(corpus) == [Item("train/a.wav", None, "train"), Item("validation/a.wav", None, "validation")]
    assert corpus.splits() == ["train", "validation"]


def test_tables_of_splits(tmp_path):
    for name in ("a", "b"):
        sound(tmp_path / "clips" / f"{name}.wav")
    (tmp_path / "train.tsv").write_text("path\tsentence\na.wav\tone\n")
    (tmp_path / "dev.tsv").write_text("path\tsentence\nb.wav\ttwo\n")
    corpus = opened(tmp_path)
    assert items(corpus) == [Item("clips/b.wav", None, "two"), Item("clips/a.wav", None, "one")]
    assert corpus.splits() == ["validation", "train"]


def test_folders_of_classes(tmp_path):
    for name in ("train/cat/1", "train/dog/1", "test/cat/1", "train/2"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, torch.zeros(1, 4, 6))
    corpus = opened(tmp_path)
    assert [(item.id, item.label) for item in items(corpus)] == [
        ("test/cat/1.png", "cat"),
        ("train/2.png", None),
        ("train/cat/1.png", "cat"),
        ("train/dog/1.png", "dog"),
    ]
    assert corpus.splits() == ["test", "train", "train", "train"]


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "not JSON"),
        ("[" * 5000, "not JSON"),
        ("[]", "not a JSON object"),
        ('{"text": "x"}', "names no media file"),
        ('{"audio": 7}', "names no media file"),
        ('{"audio": "/etc/passwd.wav"}', "'/etc/passwd.wav' lies outside the folder of the manifest"),
        ('{"audio": "../x.wav"}', "'../x.wav' lies outside"),
        ('{"audio": "a/../../x.wav"}', "lies outside"),
        ('{"audio": "x\\u0000.wav"}', "holds a zero byte"),
        ('{"audio": "\\ud800.wav"}', "is not UTF-8 text"),
        ('{"audio": "y.wav", "text": "\\udfff"}', "is not UTF-8 text"),
        ('{"audio": "y.wav", "text": 7}', "its text is no string"),
        ('{"audio": "y.wav", "label": [1]}', "its label is neither"),
        ('{"audio": "y.wav", "text": "%s"}' % ("x" * 70_000), "more than 65536 bytes of text"),
        ('{"audio": "y.wav", "x": "%s"}' % ("x" * (1 << 20)), "a line of more than"),
        ('{"audio": "ok.wav"}', r"'ok\.wav' occurs twice, first in m\.jsonl:1"),
        ('{"audio": "gone.wav"}', r"gone\.wav: no such file"),
        ('{"audio": "gone"}', "no media file 'gone' beside it or in wavs or clips"),
        ('{"audio": "m.jsonl"}', "no media file 'm.jsonl'"),
    ],
)
def test_bad_lines_are_named_and_the_others_stay(tmp_path, line, message):
    sound(tmp_path / "ok.wav")
    sound(tmp_path / "last.wav")
    path = tmp_path / "m.jsonl"
    path.write_text('{"audio": "ok.wav"}\n' + line + '\n{"audio": "last.wav"}\n')
    corpus = opened(path)
    (reason,) = reasons(corpus)
    assert reason.startswith(f"{path}:2: ")
    with pytest.raises(MediaError, match=message):
        raise MediaError(reason)
    assert corpus.item(2).id == "last.wav" and corpus.media(2, SPEECH).shape == (1, 400)
    json.dumps(list(corpus.ids()), ensure_ascii=False).encode()


def test_bad_rows_of_a_table(tmp_path):
    sound(tmp_path / "ok.wav")
    path = tmp_path / "m.csv"
    path.write_bytes(b"file,text\nok.wav,one\nok2.wav\nok3.wav,a,b\n\xff.wav,x\n,x\n")
    assert [reason.split(": ", 1)[0] for reason in reasons(opened(path))] == [f"{path}:{n}" for n in (3, 4, 5, 6)]
    path.write_text('file,text\n"never closed,one\nok.wav,two\n')
    assert reasons(opened(path))[0].startswith(f"{path}:2: ")


def test_wrong_manifests(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        opened(tmp_path / "x.csv")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"a manifest is one of \.csv \.tsv \.txt \.jsonl, or a folder"):
        opened(tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(ConfigError, match=r"x\.csv:1: no column"):
        opened(tmp_path / "x.csv")
    for name in ("metadata.csv", "metadata.jsonl"):
        (tmp_path / name).write_text("file\n")
    with pytest.raises(ConfigError, match=r"has metadata\.jsonl and metadata\.csv; choose one"):
        opened(tmp_path)
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(MediaError, match=r"pipe\.csv: not a file"):
        opened(tmp_path / "pipe.csv")


def test_links_of_a_manifest(tmp_path):
    sound(tmp_path / "outside.wav")
    inside = tmp_path / "corpus"
    inside.mkdir()
    (inside / "a.wav").symlink_to(tmp_path / "outside.wav")
    (inside / "m.csv").write_text("file\na.wav\n")
    (reason,) = reasons(opened(inside / "m.csv"))
    assert "a link that leads out of the corpus folder" in reason
    assert not reasons(opened(inside / "m.csv", follow_links=True))


def test_splits_of_shards(tmp_path):
    names = [f"{number}.wav" for number in range(40)]
    for name in names:
        (tmp_path / name).touch()

    def chosen(splits: list[str], part: str) -> list[str]:
        rows = [f"{name},{split}" for name, split in zip(names, splits, strict=True)]
        (tmp_path / "m.csv").write_text("\n".join(["file,split", *rows]))
        config = ManifestCorpus(path=str(tmp_path / "m.csv"))
        corpus = open_corpus(config)
        settings = ShardsConfig(corpus=config, tokenizer="x", out="y", split=SplitConfig(part=part))
        found = [corpus.ids()[number] for number in choose_items(corpus, settings)]
        notes.append(corpus.notes.lines())
        return found

    notes: list[list[str]] = []
    three = ["train"] * 20 + ["dev"] * 5 + ["test"] * 15
    assert chosen(three, "train") == names[:20] and chosen(three, "test") == names[25:]
    assert notes == [["5 items belong to splits that are neither train nor test: validation 5"]] * 2
    two = ["train"] * 30 + ["validation"] * 10
    assert chosen(two, "train") == names[:30] and chosen(two, "test") == names[30:]
    none = [""] * 40
    train, test = chosen(none, "train"), chosen(none, "test")
    assert sorted(train + test) == sorted(names) and train and test
    with pytest.raises(ValueError, match="no item of .* falls into 'test'"):
        chosen(["train"] * 40, "test")


def test_a_folder_with_a_manifest_says_so(tmp_path):
    sound(tmp_path / "wavs" / "a.wav")
    (tmp_path / "metadata.csv").write_text("a|one|one\n")
    (line,) = open_corpus(FolderCorpus(path=str(tmp_path))).notes.lines()
    assert line == (
        f"{tmp_path}/metadata.csv is not read by a corpus of kind folder; to use it, write corpus: "
        f"{{kind: manifest, path: {tmp_path}}}"
    )
    (tmp_path / "metadata.csv").unlink()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "wavs/a.wav", "text": "one"}\n')
    with pytest.raises(ConfigError, match=r"has the key file_name .*kind: manifest"):
        open_corpus(FolderCorpus(path=str(tmp_path)))


def test_config_from_yaml():
    data = {"corpus": {"kind": "manifest", "path": "x"}, "tokenizer": "t", "out": "o"}
    assert check_config(data, ShardsConfig).corpus == ManifestCorpus(path="x")
