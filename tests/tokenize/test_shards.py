"""Shards: what is written is what is read; kills, flipped bits, bad media and foreign folders."""

import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kill_process import kill_at

from tessera.configs.files import read_safetensors, write_sealed_json
from tessera.configs.folder_lock import lock_folder
from tessera.configs.schema import check_config
from tessera.tokenize.alignment.alignment import Alignment, TimedUnits
from tessera.tokenize.alignment.alignment_file import write_alignment
from tessera.tokenize.data.corpus import FolderCorpus, ManifestCorpus
from tessera.tokenize.data.media import read_audio, write_audio
from tessera.tokenize.data.shard_reader import Shards
from tessera.tokenize.data.shard_writer import build_shards
from tessera.tokenize.data.shards_config import ShardsConfig, SplitConfig
from tessera.tokenize.spec import AudioGeometry, TokenSpec

RATE, HOP = 8000, 80


class FakeTokenizer:
    """Codes are the loudness of a frame, in K scales; counts its calls and can be told to fail at one."""

    def __init__(self, cardinalities=(4, 300), name="fake", fail_at=None):
        geometry = AudioGeometry(sample_rate=RATE, samples_per_frame=HOP)
        self.spec = TokenSpec(name=name, cardinalities=cardinalities, geometry=geometry, fingerprint=name * 8)
        self.calls, self.fail_at = 0, fail_at

    def encode(self, media, lengths=None):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        samples = media[0, 0]
        frames = torch.nn.functional.pad(samples, (0, -len(samples) % HOP)).reshape(-1, HOP).abs().amax(1)
        codes = torch.stack([(frames * (size - 1)).long() for size in self.spec.cardinalities])
        return SimpleNamespace(codes=codes[None], lengths=torch.tensor([codes.shape[1]]))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    generator = torch.Generator().manual_seed(0)
    for number in range(11):
        samples = torch.rand(1, 200 + 90 * number, generator=generator) - 0.5
        path = folder / f"voice{number % 3}" / f"{number:02d}.wav"
        write_audio(path, samples * (number + 1) / 12, RATE)
        if number != 4:
            path.with_suffix(".txt").write_text(f"text {number}")
    return folder


def make_config(recordings: Path, out: Path, **more) -> ShardsConfig:
    return ShardsConfig(
        corpus=FolderCorpus(path=str(recordings)), tokenizer="unused", out=str(out), items_per_shard=4, **more
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_read_what_was_written(recordings, tmp_path):
    tokenizer = FakeTokenizer()
    shards = build_shards(make_config(recordings, tmp_path / "s"), tokenizer)
    assert sorted(contents(tmp_path / "s")) == [
        "00000.safetensors",
        "00001.safetensors",
        "00002.safetensors",
        "index.json",
    ]
    assert len(shards) == 11 and shards.spec == tokenizer.spec and shards.skipped == []
    assert shards.label_names == ["voice0", "voice1", "voice2"]
    paths = sorted(recordings.rglob("*.wav"))
    for number in torch.randperm(11).tolist():
        item, path = shards.item(number), paths[number]
        codes = tokenizer.encode(read_audio(path, RATE)[None]).codes[0]
        assert item.codes.dtype == torch.long and torch.equal(item.codes, codes)
        assert item.id == str(path.relative_to(recordings)) and shards.lengths[number] == codes.shape[1]
        assert shards.label_names[item.label] == path.parent.name and shards.labels[number] == item.label
        assert item.text == (None if path.stem == "04" else f"text {int(path.stem)}")
    assert [text for text in shards.texts() if text is None] == [None]
    shards.verify()
    again = pickle.loads(pickle.dumps(shards))  # as a data loader's worker gets it
    assert torch.equal(again.item(3).codes, shards.item(3).codes)
    with pytest.raises(IndexError, match="item 11 of 11"):
        shards.item(11)


@pytest.mark.parametrize(
    "cardinalities, dtype",
    [
        ((2,), torch.uint8),
        ((256, 3), torch.uint8),
        ((257,), torch.uint16),
        ((65536,), torch.uint16),
        ((65537,), torch.uint32),
    ],
)
def test_smallest_type(recordings, tmp_path, cardinalities, dtype):
    tokenizer = FakeTokenizer(cardinalities)
    shards = build_shards(make_config(recordings, tmp_path, max_items=2), tokenizer)
    tensors, metadata = read_safetensors(tmp_path / "00000.safetensors")
    assert tensors["codes"].dtype == dtype
    assert tensors["offsets"].tolist() == [0, *np.cumsum(shards.lengths)]
    assert list(tensors["codes"].shape) == [len(cardinalities), int(shards.lengths.sum())]
    assert TokenSpec.model_validate_json(metadata["spec"]) == tokenizer.spec
    paths = sorted(recordings.rglob("*.wav"))
    assert torch.equal(shards.item(1).codes, tokenizer.encode(read_audio(paths[1], RATE)[None]).codes[0])


@pytest.mark.sample(3)
@pytest.mark.parametrize("fail_at", [1, 4, 5, 7, 8, 11])
def test_interrupted_build_goes_on(recordings, tmp_path, fail_at):
    build_shards(make_config(recordings, tmp_path / "whole"), FakeTokenizer())
    config = make_config(recordings, tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        build_shards(config, FakeTokenizer(fail_at=fail_at))
    with pytest.raises(FileNotFoundError, match=r"no index\.json there"):
        Shards(config.out)
    (Path(config.out) / ".00002.safetensors.x.part").write_bytes(b"half")  # what a kill while writing leaves
    tokenizer = FakeTokenizer()
    build_shards(config, tokenizer)
    assert tokenizer.calls == 11 - (fail_at - 1) // 4 * 4, "whole shards are not made again"
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")
    tokenizer = FakeTokenizer()
    assert len(build_shards(config, tokenizer)) == 11 and tokenizer.calls == 0


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_point_leaves_nothing_behind(recordings, tmp_path, step):
    """SIGKILL at every call (at every eleventh); the next build gives the same files and no other, also hidden ones."""
    build_shards(make_config(recordings, tmp_path / "whole"), FakeTokenizer())
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    count, through = 1, False
    while not through:
        config = make_config(recordings, tmp_path / str(count))
        through = kill_at(count, lambda config=config: build_shards(config, FakeTokenizer(), progress=False))
        build_shards(config, FakeTokenizer(), progress=False)
        assert {path.name for path in Path(config.out).iterdir()} == names
        assert contents(tmp_path / "whole") == contents(tmp_path / str(count))
        count += step
    assert count > 40  # the counting works


def test_a_second_build_into_a_folder_is_refused_by_name(recordings, tmp_path):
    config = make_config(recordings, tmp_path / "s")
    with lock_folder(tmp_path / "s", "tessera shards"), pytest.raises(ValueError, match="another process is writing"):
        build_shards(config, FakeTokenizer())
    assert len(build_shards(config, FakeTokenizer())) == 11


def test_kill_between_index_and_tidying(recordings, tmp_path):
    config = make_config(recordings, tmp_path / "s")
    build_shards(config, FakeTokenizer())
    before = contents(tmp_path / "s")
    (tmp_path / "s" / "part-00000.json").write_text("{}")
    build_shards(config, FakeTokenizer())
    assert contents(tmp_path / "s") == before


def test_damaged_shard_is_made_again(recordings, tmp_path):
    config = make_config(recordings, tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        build_shards(config, FakeTokenizer(fail_at=9))
    flip_bit(tmp_path / "s" / "00001.safetensors", -1)
    tokenizer = FakeTokenizer()
    build_shards(config, tokenizer)
    assert tokenizer.calls == 4 + 3
    build_shards(make_config(recordings, tmp_path / "whole"), FakeTokenizer())
    assert contents(tmp_path / "whole") == contents(tmp_path / "s")


def flip_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_other_things_in_the_folder_are_refused(recordings, tmp_path):
    config = make_config(recordings, tmp_path / "s")
    build_shards(config, FakeTokenizer())
    for other, tokenizer in (
        (config, FakeTokenizer(name="other")),
        (make_config(recordings, tmp_path / "s", max_items=5), FakeTokenizer()),
        (config.model_copy(update={"items_per_shard": 5}), FakeTokenizer()),
    ):
        with pytest.raises(ValueError, match="holds shards of another corpus, tokenizer or setting"):
            build_shards(other, tokenizer)
    unfinished = make_config(recordings, tmp_path / "u")
    with pytest.raises(KeyboardInterrupt):
        build_shards(unfinished, FakeTokenizer(fail_at=9))
    with pytest.raises(ValueError, match="holds shards of another corpus, tokenizer or setting"):
        build_shards(unfinished, FakeTokenizer(name="other"))


def test_where_the_corpus_lies_does_not_matter(recordings, tmp_path):
    shutil.copytree(recordings, tmp_path / "copy")
    build_shards(make_config(recordings, tmp_path / "a"), FakeTokenizer())
    build_shards(make_config(tmp_path / "copy", tmp_path / "b"), FakeTokenizer())
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def unsealed_index(folder: Path) -> dict:
    """The index as an earlier version wrote it, without a hash of itself."""
    index = json.loads((folder / "index.json").read_text())
    del index["sha256"]
    return index


def test_index_of_an_earlier_version_is_read(recordings, tmp_path):
    build_shards(make_config(recordings, tmp_path), FakeTokenizer())
    (tmp_path / "index.json").write_text(json.dumps(unsealed_index(tmp_path)))
    tokenizer = FakeTokenizer()
    assert len(build_shards(make_config(recordings, tmp_path), tokenizer)) == 11 and tokenizer.calls == 0


@pytest.fixture
def version_1(tmp_path) -> Path:
    """Shards of the recordings with codes [frames, K], written by version 0.1 of `tessera shards`."""
    return Path(shutil.copytree(Path(__file__).parent / "shards_v1", tmp_path / "v1"))


def test_shards_of_version_1_are_read(recordings, version_1, tmp_path):
    old, current = Shards(version_1), build_shards(make_config(recordings, tmp_path / "s"), FakeTokenizer())
    assert (old.index.version, current.index.version) == (1, 2)
    assert read_safetensors(version_1 / "00000.safetensors")[0]["codes"].shape == (int(old.lengths[:4].sum()), 2)
    for number in torch.randperm(11).tolist():
        mine, other = old.item(number), current.item(number)
        assert torch.equal(mine.codes, other.codes) and mine.codes.is_contiguous() and mine.codes.dtype == torch.long
        assert (mine.id, mine.label, mine.text) == (other.id, other.label, other.text)
    before, tokenizer = contents(version_1), FakeTokenizer()
    assert len(build_shards(make_config(recordings, version_1), tokenizer)) == 11 and tokenizer.calls == 0
    assert contents(version_1) == before, "a complete folder stays as it is"


@pytest.mark.parametrize("unfinished", [False, True])
def test_builds_of_version_1_go_on(recordings, version_1, tmp_path, unfinished):
    """Shards that are there are converted, not encoded again."""
    if unfinished:  # as the earlier version left it after two of three shards
        index = json.loads((version_1 / "index.json").read_text())
        for shard, (first, last) in enumerate([(0, 4), (4, 8)]):
            part = {name: index[name][first:last] for name in ("ids", "lengths", "texts")}
            part["labels"] = [index["label_names"][label] for label in index["labels"][first:last]]
            part |= {"build": index["build"], "file": index["files"][shard], "skipped": []}
            write_sealed_json(version_1 / f"part-{shard:05d}.json", part)
        (version_1 / "index.json").unlink()
    (version_1 / "00002.safetensors").unlink()
    build_shards(make_config(recordings, tmp_path / "whole"), FakeTokenizer())
    tokenizer = FakeTokenizer()
    build_shards(make_config(recordings, version_1), tokenizer)
    assert tokenizer.calls == 3 and contents(version_1) == contents(tmp_path / "whole")


@pytest.mark.parametrize("old, new", [(b'"labels": [\n  0', b'"labels": [\n  1'), (b"text 3", b"text 2")])
def test_changed_index_is_refused(recordings, tmp_path, old, new):
    path = tmp_path / "index.json"
    build_shards(make_config(recordings, tmp_path), FakeTokenizer())
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(
        ValueError, match=r"index\.json: damaged or changed since it was written; remove it and run tess"
    ):
        Shards(tmp_path)


def test_lengths_must_be_those_of_the_shard(recordings, tmp_path):
    build_shards(make_config(recordings, tmp_path), FakeTokenizer())
    index = unsealed_index(tmp_path)
    index["lengths"][:2] = index["lengths"][1::-1]  # the sum stays
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"00000\.safetensors: its items have other lengths than in index\.json"):
        Shards(tmp_path).item(0)


DAMAGE = {
    "deleted": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "changed": lambda path: flip_bit(path, -1),
    "emptied": lambda path: path.write_bytes(b""),
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "earlier"])
def test_finished_shards_are_repaired(recordings, tmp_path, damage, sealed, capsys):
    folder = tmp_path / "corpus"
    shutil.copytree(recordings, folder)
    (folder / "voice0" / "00.wav").write_bytes(b"")  # skipped items stay where they are
    config = make_config(folder, tmp_path / "s")
    build_shards(config, FakeTokenizer())
    whole = contents(tmp_path / "s")
    if not sealed:
        (tmp_path / "s" / "index.json").write_text(json.dumps(unsealed_index(tmp_path / "s")))
    DAMAGE[damage](tmp_path / "s" / "00001.safetensors")
    tokenizer = FakeTokenizer()
    assert len(build_shards(config, tokenizer)) == 10
    assert tokenizer.calls == 4, "only the damaged shard is made again"
    assert contents(tmp_path / "s") == whole
    assert "00001.safetensors" in capsys.readouterr().err


def test_repair_goes_on_after_a_kill(recordings, tmp_path):
    config = make_config(recordings, tmp_path)
    build_shards(config, FakeTokenizer())
    whole = contents(tmp_path)
    for name in ("00000.safetensors", "00002.safetensors"):
        (tmp_path / name).unlink()
    with pytest.raises(KeyboardInterrupt):
        build_shards(config, FakeTokenizer(fail_at=6))
    tokenizer = FakeTokenizer()
    build_shards(config, tokenizer)
    assert tokenizer.calls == 3 and contents(tmp_path) == whole


@pytest.mark.parametrize("content", [b"{}", b"", b'{"sha256": 1}', None])
def test_damaged_part_index_is_made_again(recordings, tmp_path, content):
    config = make_config(recordings, tmp_path / "s")
    with pytest.raises(KeyboardInterrupt):
        build_shards(config, FakeTokenizer(fail_at=9))
    path = tmp_path / "s" / "part-00001.json"
    path.write_bytes(path.read_bytes().replace(b"text 7", b"text 8") if content is None else content)
    tokenizer = FakeTokenizer()
    build_shards(config, tokenizer)
    assert tokenizer.calls == 4 + 3
    build_shards(make_config(recordings, tmp_path / "whole"), FakeTokenizer())
    assert contents(tmp_path / "whole") == contents(tmp_path / "s")


def test_a_shard_that_changes_under_a_reader_is_refused(recordings, tmp_path):
    build_shards(make_config(recordings, tmp_path), FakeTokenizer())
    path = tmp_path / "00001.safetensors"
    whole = path.read_bytes()
    shards = Shards(tmp_path)
    before = [shards.item(number).codes for number in range(11)]
    with open(path, "r+b") as file:  # in place
        file.seek(-3, 2)
        file.write(b"\0\1\0")
    with pytest.raises(ValueError, match=r"00001\.safetensors: damaged: its SHA-256 is"):
        shards.item(5)
    path.write_bytes(whole)  # put back
    assert torch.equal(shards.item(5).codes, before[5])
    os.truncate(path, len(whole) - 40)
    with pytest.raises(ValueError, match=r"00001\.safetensors: damaged: its SHA-256 is"):
        shards.item(7)
    os.truncate(path, 0)
    with pytest.raises(ValueError, match=r"00001\.safetensors: damaged: its SHA-256 is"):
        pickle.loads(pickle.dumps(shards)).item(7)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"00001\.safetensors: missing"):
        shards.item(7)
    assert torch.equal(shards.item(0).codes, before[0]), "other files are as they were"


def test_a_shard_that_is_replaced_is_looked_at_again(recordings, tmp_path):
    build_shards(make_config(recordings, tmp_path), FakeTokenizer())
    shards, path, other = Shards(tmp_path), tmp_path / "00000.safetensors", tmp_path / "other"
    before = shards.item(0).codes
    shutil.copy(path, other)
    os.replace(other, path)
    assert torch.equal(shards.item(0).codes, before), "another file of the same bytes"
    path.chmod(0o600)
    assert torch.equal(shards.item(0).codes, before)
    shutil.copy(tmp_path / "00001.safetensors", other)
    os.replace(other, path)
    with pytest.raises(ValueError, match=r"00000\.safetensors: damaged"):
        shards.item(0)


@pytest.mark.parametrize("position", [0, 8, 60, -1, -9, -200])
def test_flipped_bit_is_found(recordings, tmp_path, position):
    build_shards(make_config(recordings, tmp_path), FakeTokenizer())
    flip_bit(tmp_path / "00001.safetensors", position)
    shards = Shards(tmp_path)
    shards.item(0)  # another file
    with pytest.raises(ValueError, match=r"00001\.safetensors: damaged: its SHA-256 is"):
        shards.item(5)
    with pytest.raises(ValueError, match=r"00001\.safetensors: damaged"):
        shards.verify()


def test_missing_file(recordings, tmp_path):
    build_shards(make_config(recordings, tmp_path), FakeTokenizer())
    (tmp_path / "00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"00002\.safetensors: missing"):
        Shards(tmp_path).item(9)


def test_codes_out_of_range_are_refused(recordings, tmp_path):
    build_shards(make_config(recordings, tmp_path), FakeTokenizer())
    index = unsealed_index(tmp_path)
    index["spec"]["cardinalities"] = [4, 20]
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"item '.*' has codes up to \[\d, \d+\], tokenizer 'fake' has \[4, 20\]"):
        Shards(tmp_path).item(10)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"lengths": [3] * 10}, "10 lengths for 11 ids"),
        ({"texts": []}, "0 texts for 11 ids"),
        ({"labels": [5] * 11}, "not one of its 3 names"),
        ({"labels": [-2] * 11}, "not one of its 3 names"),
        ({"lengths": [0] * 11}, "a length below 1"),
        ({"lengths": [10**6] * 11}, r"codes \[2, \d+\], the index asks for codes \[2, 4000000\]"),
        ({"files": []}, "its files hold 0 items, it lists 11"),
        ({"format": "other"}, "format: "),
        ({"version": 3}, "version: "),
        ({"extra": 1}, "extra: unknown key"),
    ],
)
def test_wrong_index(recordings, tmp_path, change, message):
    build_shards(make_config(recordings, tmp_path), FakeTokenizer())
    index = unsealed_index(tmp_path)
    (tmp_path / "index.json").write_text(json.dumps(index | change))
    with pytest.raises(ValueError, match=message):
        Shards(tmp_path).item(0)


def test_index_names_no_file_outside(recordings, tmp_path):
    build_shards(make_config(recordings, tmp_path), FakeTokenizer())
    index = unsealed_index(tmp_path)
    index["files"][0]["file"] = "../00000.safetensors"
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="is not a file name in this folder"):
        Shards(tmp_path)


def test_bad_media_is_skipped_and_listed(recordings, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(recordings, folder)
    (folder / "voice0" / "00.wav").write_bytes(b"")
    (folder / "voice1" / "07.txt").write_text("")
    (folder / "aa.wav").write_bytes(b"RIFF....")
    shards = build_shards(make_config(folder, tmp_path / "s"), FakeTokenizer())
    assert [entry.id for entry in shards.skipped] == ["aa.wav", "voice0/00.wav", "voice1/07.wav"]
    assert "00.wav: the file is empty" in shards.skipped[1].reason
    assert len(shards) == 12 - 3 and shards.index.files[0].items == 2
    assert [shards.item(number).id for number in range(9)] == shards.index.ids
    for path in folder.rglob("*.wav"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 12 items can be used; the first: .*aa\.wav: the file is empty"):
        build_shards(make_config(folder, tmp_path / "none"), FakeTokenizer())
    shutil.copy(recordings / "voice0" / "00.wav", folder / "voice0" / "00.wav")
    assert build_shards(make_config(folder, tmp_path / "none"), FakeTokenizer()).index.ids == ["voice0/00.wav"]


def test_split(recordings, tmp_path):
    parts = {}
    for part in ("train", "test"):
        config = make_config(recordings, tmp_path / part, split=SplitConfig(part=part, test_share=0.4))
        parts[part] = set(build_shards(config, FakeTokenizer()).index.ids)
    assert parts["train"] and parts["test"] and not parts["train"] & parts["test"]
    assert len(parts["train"] | parts["test"]) == 11
    folder = tmp_path / "more"
    shutil.copytree(recordings, folder)
    shutil.copy(folder / "voice0" / "00.wav", folder / "added.wav")
    config = make_config(folder, tmp_path / "t", split=SplitConfig(part="test", test_share=0.4))
    assert set(build_shards(config, FakeTokenizer()).index.ids) - {"added.wav"} == parts["test"]
    config = make_config(recordings, tmp_path / "e", split=SplitConfig(part="test", test_share=1e-9))
    with pytest.raises(ValueError, match="falls into 'test'; change split.test_share"):
        build_shards(config, FakeTokenizer())


def test_numbers_as_labels_are_in_the_order_of_numbers(tmp_path):
    for label in ("10", "9", "100"):
        write_audio(tmp_path / "in" / label / "x.wav", torch.zeros(1, 100), RATE)
    assert build_shards(make_config(tmp_path / "in", tmp_path / "out"), FakeTokenizer()).label_names == [
        "9",
        "10",
        "100",
    ]


def test_no_shards(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no index.json there; make it with: tessera shards CONFIG"):
        Shards(tmp_path / "nowhere")
    (tmp_path / "part-00000.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="was not finished; run tessera shards again"):
        Shards(tmp_path)


def test_config_from_yaml():
    data = {"corpus": {"kind": "folder", "path": "x"}, "tokenizer": "t", "out": "o", "split": {"part": "test"}}
    assert check_config(data, ShardsConfig).split == SplitConfig(part="test")
    with pytest.raises(ValueError, match="out: Field required"):
        check_config({"corpus": {"kind": "arrays", "path": "x"}, "tokenizer": "t"}, ShardsConfig)


def test_strange_corpus(tmp_path, capfd):
    """Names that are not UTF-8, pipes, links and other kinds of files end no build, and the index stays UTF-8."""
    folder = tmp_path / "corpus"
    for name in (b"a\xff", b"b"):
        write_audio(folder / os.fsdecode(name + b".wav"), torch.rand(1, 400) - 0.5, RATE)
    (folder / os.fsdecode(b"c\xfe\x1b[31m.wav")).write_bytes(b"RIFF")
    os.mkfifo(folder / "b.txt")
    (folder / "x.m4q").touch()
    (folder / "d.wav").symlink_to(__file__)
    shards = build_shards(make_config(folder, tmp_path / "s"), FakeTokenizer())
    assert [shards.item(0).id] == ["a\\xff.wav"] and len(shards) == 1
    assert [entry.id for entry in shards.skipped] == ["b.wav", "c\\xfe\x1b[31m.wav"]
    (tmp_path / "s" / "index.json").read_text(encoding="utf-8")
    told = capfd.readouterr().err
    assert "1 file of kinds that are not read: .m4q 1" in told
    assert "links that lead out of the folder" in told and "d.wav" in told and "\x1b[31m" not in told


def test_manifest_splits_of_shards(recordings, tmp_path):
    names = [path.relative_to(recordings).as_posix() for path in sorted(recordings.rglob("*.wav"))]
    rows = [f"{name},text {number},{'test' if number < 3 else 'train'}" for number, name in enumerate(names)]
    (recordings / "table.csv").write_text("\n".join(["file,text,split", *rows, "gone.wav,x,train"]))
    corpus = ManifestCorpus(path=str(recordings / "table.csv"))
    for part, count, skipped in (("test", 3, 0), ("train", 8, 1)):
        config = ShardsConfig(corpus=corpus, tokenizer="x", out=str(tmp_path / part), split=SplitConfig(part=part))
        shards = build_shards(config, FakeTokenizer())
        assert len(shards) == count and len(shards.skipped) == skipped
    assert shards.skipped[0].reason.startswith(f"{recordings}/table.csv:13: ")
    (recordings / "table.csv").unlink()


def test_long_sounds_are_cut_into_windows(recordings, tmp_path):
    tokenizer = FakeTokenizer()
    whole = build_shards(make_config(recordings, tmp_path / "w"), tokenizer)
    seconds = 5 * HOP / RATE
    cut = build_shards(make_config(recordings, tmp_path / "c", window_seconds=seconds), tokenizer)
    assert set(cut.lengths.tolist()) == {5} and set(cut.texts()) == {None}
    captioned = make_config(recordings, tmp_path / "d", window_seconds=seconds, window_text="whole")
    captions = build_shards(captioned, tokenizer)
    told = {whole.item(number).id: whole.item(number).text for number in range(len(whole))}
    assert captions.texts() == [told[captions.item(number).id.split("@")[0]] for number in range(len(captions))]
    assert len(captions) == len(cut) and captions.index.build != cut.index.build
    with pytest.raises(ValueError, match="window_text is for items of window_seconds"):
        build_shards(make_config(recordings, tmp_path / "e", window_text="whole"), tokenizer)
    assert cut.label_names == whole.label_names
    pieces = [cut.item(number) for number in range(len(cut))]
    for number in range(len(whole)):
        item = whole.item(number)
        mine = [piece for piece in pieces if piece.id.startswith(f"{item.id}@")]
        frames = item.codes.shape[1] // 5 * 5
        assert [piece.id for piece in mine] == [f"{item.id}@{start}" for start in range(0, frames, 5)]
        assert all(piece.label == item.label for piece in mine)
        if mine:
            assert torch.equal(torch.cat([piece.codes for piece in mine], 1), item.codes[:, :frames])
        else:
            assert item.id in [entry.id for entry in cut.skipped]
    with pytest.raises(ValueError, match="shards of another corpus, tokenizer or setting"):
        build_shards(make_config(recordings, tmp_path / "c"), tokenizer)


def aligned_copy(recordings: Path, folder: Path, numbers: range) -> Path:
    """A copy of the recordings in which some have alignments: two units, each half of the recording."""
    shutil.copytree(recordings, folder)
    for path in [path for path in sorted(folder.rglob("*.wav")) if int(path.stem) in numbers]:
        seconds = read_audio(path, RATE).shape[1] / RATE
        timed = TimedUnits(("|", "a", "ˈO"), (0.0, 0.0, round(seconds / 2, 6), seconds))
        path.with_suffix(".align").write_bytes(write_alignment(timed))
    return folder


def test_alignments_in_shards(recordings, tmp_path):
    folder = aligned_copy(recordings, tmp_path / "corpus", range(3, 8))
    shards = build_shards(make_config(folder, tmp_path / "s"), FakeTokenizer())
    for number, name in enumerate(shards.index.ids):
        length, found = int(shards.lengths[number]), shards.alignment(number)
        if int(Path(name).stem) in range(3, 8):
            assert found.units == ("|", "a", "ˈO", "|") and found.num_frames == length
            assert abs(found.frames[1] - found.frames[2]) <= 1 and found.frames[0] == 0 and found.frames[3] <= 1
        else:
            assert found is None
    plain = build_shards(make_config(recordings, tmp_path / "plain"), FakeTokenizer())
    assert "alignments" not in (tmp_path / "plain" / "index.json").read_text() and plain.alignment(3) is None
    assert [item.codes.tolist() for item in map(plain.item, range(11))] == [
        item.codes.tolist() for item in map(shards.item, range(11))
    ]


@pytest.mark.parametrize("fail_at", [4, 9])
def test_builds_with_alignments_go_on_and_are_repaired(recordings, tmp_path, fail_at):
    folder = aligned_copy(recordings, tmp_path / "corpus", range(5))
    build_shards(make_config(folder, tmp_path / "whole"), FakeTokenizer())
    config = make_config(folder, tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        build_shards(config, FakeTokenizer(fail_at=fail_at))
    build_shards(config, FakeTokenizer())
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")
    (tmp_path / "killed" / "00001.safetensors").unlink()
    build_shards(config, FakeTokenizer())
    assert contents(tmp_path / "whole") == contents(tmp_path / "killed")


def test_changed_alignments_are_another_build(recordings, tmp_path):
    folder = aligned_copy(recordings, tmp_path / "corpus", range(5))
    build_shards(make_config(folder, tmp_path / "s"), FakeTokenizer())
    build_shards(make_config(shutil.move(folder, tmp_path / "moved"), tmp_path / "s"), FakeTokenizer())
    path = next((tmp_path / "moved").rglob("*.align"))
    path.write_text(path.read_text().replace("ˈO", "O"))
    with pytest.raises(ValueError, match="holds shards of another corpus"):
        build_shards(make_config(tmp_path / "moved", tmp_path / "s"), FakeTokenizer())


def test_folder_of_alignments(recordings, tmp_path):
    folder = aligned_copy(recordings, tmp_path / "corpus", range(11))
    beside = build_shards(make_config(folder, tmp_path / "beside"), FakeTokenizer())
    out = tmp_path / "alignments"
    for path in folder.rglob("*.align"):
        (out / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, out / path.parent.name)
    config = make_config(recordings, tmp_path / "s", alignments=str(out))
    shards = build_shards(config, FakeTokenizer())
    assert [shards.alignment(number) for number in range(11)] == [beside.alignment(number) for number in range(11)]
    (out / "voice1" / "07.align").unlink()
    (out / "voice0" / "00.align").write_text("0\t9\ta")
    (out / "voice0" / "03.align").write_text("0\tx")
    few = build_shards(config.model_copy(update={"out": str(tmp_path / "few")}), FakeTokenizer())
    assert [entry.id for entry in few.skipped] == ["voice0/00.wav", "voice0/03.wav", "voice1/07.wav"]
    reasons = [entry.reason for entry in few.skipped]
    assert "voice0/00.wav: the alignment ends at 9 seconds, the recording at 0.03 (3 frames)" in reasons[0]
    assert "03.align: line 1 is not start<TAB>end" in reasons[1] and "07.align: no such file; run tessera" in reasons[2]
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder of alignments"):
        build_shards(config.model_copy(update={"out": str(tmp_path / "x"), "alignments": "nowhere"}), FakeTokenizer())
    with pytest.raises(ValueError, match="alignments: they belong to whole audio files"):
        build_shards(config.model_copy(update={"out": str(tmp_path / "x"), "window_seconds": 0.05}), FakeTokenizer())


def test_too_few_frames_for_the_units(recordings, tmp_path):
    folder = aligned_copy(recordings, tmp_path / "corpus", range(2, 3))
    (folder / "voice0" / "00.align").write_text("0\t0.01\ta\n0.01\t0.015\tb\n0.015\t0.02\tc\n0.02\t0.025\td")
    shards = build_shards(make_config(folder, tmp_path / "s"), FakeTokenizer())
    assert shards.skipped[0].reason == "voice0/00.wav: 4 sounding units but only 3 frames"


@pytest.mark.parametrize(
    "change, message",
    [
        (["a 3"], "1 alignments for 11 ids"),
        (["a 3"] * 11, "does not have the .* frames of the item"),
        ([7] * 11, "alignments.0: "),
    ],
)
def test_wrong_alignments_in_the_index(recordings, tmp_path, change, message):
    build_shards(make_config(recordings, tmp_path), FakeTokenizer())
    (tmp_path / "index.json").write_text(json.dumps(unsealed_index(tmp_path) | {"alignments": change}))
    with pytest.raises(ValueError, match=message):
        Shards(tmp_path).alignment(10)


def test_index_of_alignments_of_the_right_length(recordings, tmp_path):
    shards = build_shards(make_config(recordings, tmp_path), FakeTokenizer())
    given = [f"a {length}" for length in shards.lengths.tolist()]
    (tmp_path / "index.json").write_text(json.dumps(unsealed_index(tmp_path) | {"alignments": given}))
    assert Shards(tmp_path).alignment(10) == Alignment(("a",), (int(shards.lengths[10]),))
