"""Shards: the codes of a corpus on disk.

    out/00000.safetensors   codes [sum of T, K] in the smallest unsigned type, offsets [items + 1] int64
    out/00001.safetensors   ...
    out/index.json          TokenSpec, label names; SHA-256 per file; id, length, label, text per item; what was skipped

A shard holds the items of one range of the corpus, so a build that was killed goes on after its last whole shard and
ends with the same bytes as one that was not. index.json is written last: without it there are no shards.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from tqdm import tqdm

from .codes_file import code_dtype
from .config import Config, check_config
from .corpus import Corpus, CorpusConfig, open_corpus
from .files import read_json, sha256_file, write_json, write_safetensors
from .media import MediaError
from .shard_reader import INDEX_FILE, Index, ShardFile, ShardItem, Shards, Skipped
from .spec import TokenSpec

__all__ = ["ShardItem", "Shards", "ShardsConfig", "SplitConfig", "build_shards"]


class SplitConfig(Config):
    """A part of the corpus: which one an item belongs to is a hash of its id, so it stays when others come."""

    part: Literal["train", "test"]
    test_share: float = Field(0.1, gt=0, lt=1)


class ShardsConfig(Config):
    """A complete `tessera shards` file."""

    corpus: CorpusConfig
    tokenizer: str
    """Directory of the frozen tokenizer."""
    out: str
    """Folder to write."""
    items_per_shard: PositiveInt = 1000
    split: SplitConfig | None = None
    """Take one part of the corpus only; run once for each part, with another `out`."""
    max_items: PositiveInt | None = None
    """Take the first items only."""


class Encoder(Protocol):
    """What is needed of a Tokenizer here."""

    spec: TokenSpec

    def encode(self, media: Tensor, lengths: Tensor | None = None) -> Any: ...


class PartIndex(Config):
    """Everything of one shard; a file of its own until the build is done."""

    build: str
    file: ShardFile | None
    """None: every item of the range was skipped."""
    ids: list[str]
    lengths: list[int]
    labels: list[str | None]
    texts: list[str | None]
    skipped: list[Skipped]


def build_shards(config: ShardsConfig, tokenizer: Encoder | None = None, progress: bool = True) -> Shards:
    """Encode a corpus; going on where an earlier build of the same things was stopped.

    Args:
        tokenizer: an opened tokenizer; None: the one in config.tokenizer.
        progress: draw a progress bar on stderr.
    Returns:
        the finished shards; `.skipped` lists the items that could not be used.
    Raises:
        ValueError: `out` holds shards of something else, or no item of the corpus can be used.
        FileNotFoundError: no corpus or tokenizer there.
    """
    if tokenizer is None:
        from .tokenizer import load_tokenizer

        tokenizer = load_tokenizer(config.tokenizer)
    corpus = open_corpus(config.corpus)
    numbers = _choose_items(corpus, config)
    out = Path(config.out)
    build = _build_id(config, tokenizer.spec, [corpus.ids()[number] for number in numbers])
    ranges = [
        numbers[first : first + config.items_per_shard] for first in range(0, len(numbers), config.items_per_shard)
    ]
    out.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(out)
    if (out / INDEX_FILE).is_file():
        shards = Shards(out)
        _check_build(shards.index.build, build, out)
        _remove_parts(out)
        return shards

    parts = []
    with tqdm(
        total=len(numbers), desc="encoding", unit="item", file=sys.stderr, disable=None if progress else True
    ) as bar:
        for shard, members in enumerate(ranges):
            part = _read_part(out, shard, build)
            if part is None:
                part = _write_part(out, shard, build, corpus, members, tokenizer, bar)
            else:
                bar.update(len(members))
            parts.append(part)
    index = _join(parts, tokenizer.spec, build)
    if not index.ids:
        raise ValueError(
            f"{config.corpus.path}: none of the {len(numbers)} items can be used; the first: {index.skipped[0].reason}"
        )
    write_json(out / INDEX_FILE, index.model_dump(mode="json"))
    _remove_parts(out)
    return Shards(out)


def _choose_items(corpus: Corpus, config: ShardsConfig) -> list[int]:
    """Numbers of the corpus items to encode, in the corpus' order."""
    numbers = list(range(len(corpus)))
    if config.split is not None:
        wanted = config.split.part == "test"
        ids = corpus.ids()
        numbers = [number for number in numbers if (_place(ids[number]) < config.split.test_share) == wanted]
        if not numbers:
            raise ValueError(
                f"split: no item of {config.corpus.path} falls into '{config.split.part}'; change split.test_share"
            )
    return numbers[: config.max_items]


def _place(item_id: str) -> float:
    """A number in [0, 1) that is a pure function of the id."""
    return int.from_bytes(hashlib.sha256(item_id.encode()).digest()[:6], "big") / 2**48


def _build_id(config: ShardsConfig, spec: TokenSpec, ids: Sequence[str]) -> str:
    """Names what is built; where the corpus, the tokenizer and the output lie does not matter."""
    corpus = config.corpus.model_dump(mode="json", exclude={"path"})
    description = [corpus, spec.model_dump(mode="json"), config.items_per_shard, list(ids)]
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _check_build(found: str, wanted: str, where: Path) -> None:
    if found != wanted:
        raise ValueError(
            f"{where}: holds shards of another corpus, tokenizer or setting; choose another out, or remove the folder "
            "to build again"
        )


def _remove_leftovers(out: Path) -> None:
    """Files half written when a build was killed."""
    for path in out.glob(".*.part"):
        path.unlink()


def _remove_parts(out: Path) -> None:
    for path in out.glob("part-*.json"):
        path.unlink()


def _part_file(out: Path, shard: int) -> Path:
    return out / f"part-{shard:05d}.json"


def _read_part(out: Path, shard: int, build: str) -> PartIndex | None:
    """The index of a shard that is already whole, None when there is none."""
    path = _part_file(out, shard)
    if not path.is_file():
        return None
    part = check_config(read_json(path), PartIndex, str(path))
    _check_build(part.build, build, out)
    if part.file is not None and sha256_file(out / part.file.file) != part.file.sha256:
        return None  # damaged since; encoded again
    return part


def _write_part(
    out: Path, shard: int, build: str, corpus: Corpus, members: Sequence[int], tokenizer: Encoder, bar: tqdm
) -> PartIndex:
    """Encode one range of the corpus; first the shard, then its index, each whole or absent."""
    spec = tokenizer.spec
    ids, labels, texts, skipped = [], [], [], []
    codes: list[Tensor] = []
    for number in members:
        try:
            item = corpus.item(number)
            media = corpus.media(number, spec.geometry)
        except MediaError as error:
            skipped.append(Skipped(id=corpus.ids()[number], reason=str(error)))
        else:
            codes.append(tokenizer.encode(media[None]).codes[0].cpu())
            ids.append(item.id)
            labels.append(item.label)
            texts.append(item.text)
        bar.update(1)
        bar.set_postfix(skipped=len(skipped), refresh=False) if skipped else None
    file = None
    if codes:
        name = f"{shard:05d}.safetensors"
        lengths = torch.tensor([0, *(item.shape[1] for item in codes)])
        tensors = {"codes": torch.cat(codes, dim=1).T.contiguous().to(code_dtype(spec)), "offsets": lengths.cumsum(0)}
        write_safetensors(out / name, tensors, {"format": "tessera-shard", "spec": spec.model_dump_json()})
        file = ShardFile(file=name, sha256=sha256_file(out / name), items=len(codes))
    part = PartIndex(
        build=build,
        file=file,
        ids=ids,
        lengths=[item.shape[1] for item in codes],
        labels=labels,
        texts=texts,
        skipped=skipped,
    )
    write_json(_part_file(out, shard), part.model_dump(mode="json"))
    return part


def _join(parts: Sequence[PartIndex], spec: TokenSpec, build: str) -> Index:
    found = {label for part in parts for label in part.labels if label is not None}
    # "10" comes after "9" where all labels are numbers.
    names = (
        sorted(found, key=int) if all(name.isdecimal() and name == str(int(name)) for name in found) else sorted(found)
    )
    place = {name: number for number, name in enumerate(names)}
    return Index(
        spec=spec,
        build=build,
        label_names=names,
        files=[part.file for part in parts if part.file is not None],
        skipped=[entry for part in parts for entry in part.skipped],
        ids=[entry for part in parts for entry in part.ids],
        lengths=[entry for part in parts for entry in part.lengths],
        labels=[-1 if entry is None else place[entry] for part in parts for entry in part.labels],
        texts=[entry for part in parts for entry in part.texts],
    )
