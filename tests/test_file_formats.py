"""Every file that Tessera writes: where one bit of it is flipped, reading refuses it by name, or reads the same.

| format | written by | read by | what covers each byte |
|---|---|---|---|
| model directory | `save_model`, `save_lm` | `load_model`, `load_lm` | `fingerprint.json`, which covers itself |
| adapter directory | `save_adapter` | `load_with_adapter` | `adapter.json` covers itself and the tensors |
| tokenizer directory | `Tokenizer.save` | `load_tokenizer` | the fingerprint over config and tensors; header checks |
| coder directory | `CoderNet.save` | `load_coder` | `coder.json` covers itself and the weights |
| clusters | `Clustering.save` | `load_clustering` | `config.json` covers itself and the labels |
| shards | `build_shards` | `Shards` | `index.json` covers itself and each shard |
| unfinished shards | `build_shards` | `build_shards` | `part-*.json` covers itself and its shard |
| codes | `write_codes` | `read_codes` | `content_sha256` in the metadata, over tensors and metadata |
| compressed codes | `write_compressed` | `read_compressed` | CRC-32 of the header, and of the codes of each chunk |
| checkpoint | `Checkpoints.save` | `Checkpoints.newest` | `manifest.json` covers each file, `COMMITTED` the manifest |

Files of other programs (media, arrays, vectors, public checkpoints) hold no hash that they could be compared with.
"""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_shards import FakeTokenizer, make_config, recordings  # noqa: F401 - a fixture

from tessera.lm.checkpoints.adapter_directory import load_with_adapter, save_adapter
from tessera.lm.checkpoints.model_directory import load_model
from tessera.lm.checkpoints.weights_file import weights_fingerprint
from tessera.lm.clustering.clustering import cluster_codes, load_clustering
from tessera.lm.layers.lora import LoRAConfig, add_lora_
from tessera.lm.models.transformer_lm import TransformerLM
from tessera.tokenize.bundled import BUNDLED
from tessera.tokenize.compression.file_format import read_compressed, write_compressed
from tessera.tokenize.compression.integer_network import load_coder
from tessera.tokenize.data.codes_file import CodesItem, read_codes, write_codes
from tessera.tokenize.data.shard_reader import Shards
from tessera.tokenize.tokenizer import load_tokenizer
from tessera.train.common.checkpoint import Checkpoints
from tessera.train.distributed.process_group import ProcessGroup


@dataclass
class Format:
    """A kind of file or folder in `path`, and what reads it all; what it gives is compared by `repr` and tensors."""

    path: Path
    read: Callable[[Path], Any]
    names_folder: bool = False
    """A message may name the folder in place of the file."""


def state(module) -> dict:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def make_model(folder: Path) -> Format:
    shutil.copytree(BUNDLED / "digits", folder / "m", ignore=shutil.ignore_patterns("README.md"))

    def read(path):
        loaded = load_model(path)
        return loaded.lm.config, loaded.spec, loaded.labels, loaded.defaults, state(loaded.lm)

    return Format(folder / "m", read)


def make_adapter(folder: Path) -> Format:
    base = BUNDLED / "digits"
    lm, lora = load_model(base).lm, LoRAConfig(rank=2, targets=("attention.qkv",))
    assert isinstance(lm, TransformerLM)
    weights = weights_fingerprint(lm.state_dict())
    save_adapter(folder / "a", add_lora_(lm, lora), lora, weights, "digits")
    (folder / "a" / "README.md").unlink()
    return Format(folder / "a", lambda path: state(load_with_adapter(base, path).lm), names_folder=True)


def make_tokenizer_folder(folder: Path) -> Format:
    load_tokenizer(BUNDLED / "digits" / "tokenizer").save(folder / "t")

    def read(path):
        tokenizer = load_tokenizer(path)
        return tokenizer.config, tokenizer.spec, state(tokenizer.net)

    return Format(folder / "t", read, names_folder=True)


def make_coder(folder: Path) -> Format:
    load_coder(BUNDLED / "digits" / "coder").save(folder / "c")

    def read(path):
        net = load_coder(path)
        return net.config, net.spec, state(net)

    return Format(folder / "c", read, names_folder=True)


def make_clusters(folder: Path) -> Format:
    cluster_codes(load_tokenizer(BUNDLED / "digits" / "tokenizer"), 8).save(folder / "clusters")

    def read(path):
        found = load_clustering(path)
        return found.tokenizer, found.spec, found.method, found.seed, found.labels

    return Format(folder / "clusters", read)


def some_codes() -> tuple:
    spec = load_tokenizer(BUNDLED / "speech" / "tokenizer").spec
    torch.manual_seed(0)
    sizes = torch.tensor(spec.cardinalities)[:, None]
    items = [CodesItem(f"{n}.wav", (torch.rand(len(sizes), n) * sizes).long(), None) for n in (30, 7)]
    return spec, items


def make_codes(folder: Path) -> Format:
    write_codes(folder / "x.safetensors", *some_codes())

    def read(path):
        spec, items = read_codes(path)
        return spec, [(item.name, item.num_samples) for item in items], {item.name: item.codes for item in items}

    return Format(folder / "x.safetensors", read)


def make_compressed(folder: Path) -> Format:
    pytest.importorskip("constriction")
    write_compressed(folder / "x.tsc", *some_codes(), chunk_frames=10)

    def read(path):
        found = read_compressed(path, None)
        if found.damage:
            raise ValueError(f"{path}: {found.damage[0]}")  # as tessera decode says it
        return found.spec, {item.name: item.codes for item in found.items}

    return Format(folder / "x.tsc", read)


def make_shards(folder: Path) -> Format:
    from tessera.tokenize.data.media import write_audio
    from tessera.tokenize.data.shard_writer import build_shards

    for number in range(9):
        path = folder / "corpus" / f"voice{number % 3}" / f"{number}.wav"
        write_audio(path, torch.rand(1, 300 + 40 * number) - 0.5, 8000)
        path.with_suffix(".txt").write_text(f"text {number}")
    build_shards(make_config(folder / "corpus", folder / "s"), FakeTokenizer(), progress=False)

    def read(path):
        shards = Shards(path)
        items = [shards.item(number) for number in range(len(shards))]
        return shards.index, {item.id: item.codes for item in items}

    return Format(folder / "s", read)


def make_checkpoint(folder: Path) -> Format:
    def write(stage):
        (stage / "deep").mkdir()
        (stage / "deep" / "weights.bin").write_bytes(bytes(range(256)))
        (stage / "run.json").write_text('{"step": 3}')

    world = ProcessGroup(0, 1, torch.device("cpu"))
    Checkpoints(folder / "steps", world, 2).save(3, write)

    def read(path):
        found = Checkpoints(path, world, 2).newest()
        if found is None:
            raise ValueError(f"{path / 'step-00000003'}: skipped")
        return {str(name): name.read_bytes() for name in sorted(found.rglob("*")) if name.is_file()}

    return Format(folder / "steps", read, names_folder=True)


FORMATS = {
    "model": make_model,
    "adapter": make_adapter,
    "tokenizer": make_tokenizer_folder,
    "coder": make_coder,
    "clusters": make_clusters,
    "codes": make_codes,
    "compressed": make_compressed,
    "shards": make_shards,
    "checkpoint": make_checkpoint,
}


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(two) and all(equal(a, b) for a, b in zip(one, two, strict=True))
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


def check_flips(form: Format, flips: int) -> None:
    """Flip single bits: as many in each file, spread over all of it, the first and the last byte among them."""
    whole = form.read(form.path)
    files = [form.path] if form.path.is_file() else [path for path in form.path.rglob("*") if path.is_file()]
    for file in files:
        content = file.read_bytes()
        draw = random.Random(file.name)
        positions = [0, len(content) - 1, *(draw.randrange(len(content)) for _ in range(flips - 2))]
        for position in positions[:flips]:
            bit = draw.randrange(8)
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            file.write_bytes(damaged)
            try:
                found = form.read(form.path)
            except (ValueError, FileNotFoundError) as error:
                named = str(file) in str(error) or (form.names_folder and str(form.path) in str(error))
                assert named and "\n" not in str(error), (file.name, position, bit, str(error))
            else:
                assert equal(found, whole), (file.name, position, bit, "was read as something else")
            file.write_bytes(content)
    assert equal(form.read(form.path), whole)


@pytest.mark.parametrize("name", FORMATS)
def test_a_flipped_bit_is_refused_by_name(name, tmp_path):
    torch.manual_seed(0)
    check_flips(FORMATS[name](tmp_path), 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_a_hundred_flipped_bits_are_refused_by_name(name, tmp_path):
    torch.manual_seed(0)
    check_flips(FORMATS[name](tmp_path), 110)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_short_is_refused_by_name(name, tmp_path):
    torch.manual_seed(0)
    form = FORMATS[name](tmp_path)
    files = [form.path] if form.path.is_file() else [path for path in form.path.rglob("*") if path.is_file()]
    for file in files:
        content = file.read_bytes()
        for size in (0, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:size])
            try:
                found = form.read(form.path)
            except (ValueError, FileNotFoundError) as error:
                assert (str(file) in str(error) or form.names_folder) and "\n" not in str(error), (file.name, size)
            else:
                assert content[size:].isspace() and found is not None, (file.name, size)
        file.write_bytes(content)
