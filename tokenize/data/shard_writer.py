"""Shard writer: encodes a corpus to shards of codes on disk.

    out/00000.safetensors   codes [sum of T, K] in the smallest unsigned type, offsets [items + 1] int64
    out/00001.safetensors   ...
    out/index.json          TokenSpec, label names; SHA-256 per file; id, length, label, text per item; skipped items

A shard holds the items of one range of the corpus, so a killed build resumes after its last complete shard and yields
the same bytes as an uninterrupted one. index.json is written last: a folder without it is not finished. Building
finished shards again verifies them, and rebuilds those that are missing or damaged.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import FailFast, Field, PositiveFloat, PositiveInt
from torch import Tensor
from tqdm import tqdm

from ...configs.files import read_sealed_json, sha256_file, write_safetensors, write_sealed_json
from ...configs.folder_lock import lock_folder
from ...configs.json_limits import INDEX
from ...configs.printable import say
from ...configs.schema import Config, check_config
from ..spec import AudioGeometry, TokenSpec
from .codes_file import code_dtype
from .corpus import Corpus, CorpusConfig, open_corpus
from .media import MediaError, print_notes
from .shard_reader import INDEX_FILE, Index, ShardFile, ShardItem, Shards, Skipped

__all__ = ["ShardItem", "Shards", "ShardsConfig", "SplitConfig", "build_shards"]


class SplitConfig(Config):
    """A part of the corpus: the split that the corpus defines for an item (a manifest column), otherwise a hash of its
    id, so that an item stays in its part when items are added."""

    part: Literal["train", "test"]
    test_share: float = Field(0.1, gt=0, lt=1)


class ShardsConfig(Config):
    """A complete `tessera shards` file."""

    corpus: CorpusConfig
    tokenizer: str
    """Directory of the frozen tokenizer."""
    out: str
    """Output folder."""
    items_per_shard: PositiveInt = 1000
    split: SplitConfig | None = None
    """Use only one part of the corpus; run once per part, each with its own `out`."""
    window_seconds: PositiveFloat | None = None
    """Split audio into items of this length, rounded to frames. The remainder and shorter files are dropped; the items
    have no transcripts, which belong to whole files. null: one item per file."""
    max_items: PositiveInt | None = None
    """Use only the first items."""


class Encoder(Protocol):
    """The part of a Tokenizer that is used here."""

    spec: TokenSpec

    def encode(self, media: Tensor, lengths: Tensor | None = None) -> Any: ...


class PartIndex(Config):
    """Index of one shard; a separate file until the build is finished."""

    build: str
    file: ShardFile | None
    """None if every item of the range was skipped."""
    ids: Annotated[list[str], FailFast()]
    lengths: Annotated[list[int], FailFast()]
    labels: Annotated[list[str | None], FailFast()]
    texts: Annotated[list[str | None], FailFast()]
    skipped: Annotated[list[Skipped], FailFast()]


def build_shards(config: ShardsConfig, tokenizer: Encoder | None = None, progress: bool = True) -> Shards:
    """Encode a corpus to shards; resumes an interrupted build with the same inputs, and repairs damaged files.

    Args:
        tokenizer: a loaded tokenizer; None: load config.tokenizer.
        progress: show a progress bar on stderr.
    Returns:
        the finished shards; `.skipped` lists the unusable items.
    Raises:
        ValueError: `out` holds shards of other inputs or is in use by another process (FolderInUse), or no item of the
            corpus is usable.
        FileNotFoundError: corpus or tokenizer not found.
    """
    if tokenizer is None:
        from ..tokenizer import load_tokenizer

        tokenizer = load_tokenizer(config.tokenizer)
    corpus = open_corpus(config.corpus)
    numbers = _choose_items(corpus, config)
    with lock_folder(config.out, "tessera shards"):
        return _build(config, tokenizer, corpus, numbers, progress)


def _build(config: ShardsConfig, tokenizer: Encoder, corpus: Corpus, numbers: Sequence[int], progress: bool) -> Shards:
    """`build_shards` in a locked folder."""
    out = Path(config.out)
    window = _window_frames(config, tokenizer.spec)
    build = _build_id(config, tokenizer.spec, window, [corpus.ids()[number] for number in numbers])
    ranges = [
        numbers[first : first + config.items_per_shard] for first in range(0, len(numbers), config.items_per_shard)
    ]
    if (out / INDEX_FILE).is_file():
        shards = Shards(out)
        _check_build(shards.index.build, build, out)
        damaged = _find_damaged(shards)
        if not damaged:
            _remove_parts(out)
            print_notes(corpus.notes, progress)
            return shards
        _reopen(shards, damaged, ranges, corpus.ids())

    parts = []
    with tqdm(
        total=len(numbers), desc="encoding", unit="item", file=sys.stderr, disable=None if progress else True
    ) as bar:
        for shard, members in enumerate(ranges):
            part = _read_part(out, shard, build)
            if part is None:
                part = _write_part(out, shard, build, corpus, members, tokenizer, window, bar)
            else:
                bar.update(len(members))
            parts.append(part)
    print_notes(corpus.notes, progress)
    index = _join(parts, tokenizer.spec, build)
    if not index.ids:
        raise ValueError(
            f"{config.corpus.path}: none of the {len(numbers)} items can be used; the first: {index.skipped[0].reason}"
        )
    write_sealed_json(out / INDEX_FILE, index.model_dump(mode="json"))
    _remove_parts(out)
    return Shards(out)


def _choose_items(corpus: Corpus, config: ShardsConfig) -> list[int]:
    """Indices of the corpus items to encode, in corpus order."""
    numbers = list(range(len(corpus)))
    if config.split is not None:
        ids, given = corpus.ids(), corpus.splits()
        by_id = ["test" if _place(name) < config.split.test_share else "train" for name in ids]
        # A corpus with only a validation split uses it as what is called test here.
        called = {"validation": "test"} if given is not None and "test" not in given else {}
        parts = by_id if given is None else [called.get(a, a) if a else b for a, b in zip(given, by_id, strict=True)]
        numbers = [number for number in numbers if parts[number] == config.split.part]
        unused = Counter(part for part in parts if part not in ("train", "test"))
        if unused:
            named = ", ".join(f"{name} {count}" for name, count in sorted(unused.items()))
            corpus.notes.say(f"{sum(unused.values())} items are of splits that are neither train nor test: {named}")
        if not numbers:
            raise ValueError(
                f"split: no item of {config.corpus.path} falls into '{config.split.part}'; change split.test_share"
            )
    return numbers[: config.max_items]


def _place(item_id: str) -> float:
    """A pseudo-random number in [0, 1) that is a pure function of the id."""
    return int.from_bytes(hashlib.sha256(item_id.encode()).digest()[:6], "big") / 2**48


def _window_frames(config: ShardsConfig, spec: TokenSpec) -> int | None:
    """Frames per window when splitting audio; None: no splitting."""
    if config.window_seconds is None:
        return None
    if not isinstance(spec.geometry, AudioGeometry):
        raise ValueError(f"window_seconds: tokenizer '{spec.name}' is for pictures, which have no seconds; remove it")
    return max(1, round(config.window_seconds * spec.geometry.frame_rate))


def _build_id(config: ShardsConfig, spec: TokenSpec, window: int | None, ids: Sequence[str]) -> str:
    """Identifier of a build's inputs; independent of the paths of corpus, tokenizer and output."""
    corpus = config.corpus.model_dump(mode="json", exclude={"path"})
    description = [corpus, spec.model_dump(mode="json"), config.items_per_shard, list(ids)]
    description += [] if window is None else [window]
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _check_build(found: str, wanted: str, where: Path) -> None:
    if found != wanted:
        raise ValueError(
            f"{where}: holds shards of another corpus, tokenizer or setting; choose another out, or remove the folder "
            "to build again"
        )


def _remove_parts(out: Path) -> None:
    for path in out.glob("part-*.json"):
        path.unlink()


def _find_damaged(shards: Shards) -> set[str]:
    """Names of the files that are missing or do not match the index."""
    damaged = set()
    for number, file in enumerate(shards.index.files):
        try:
            shards.verify_file(number)
        except (ValueError, FileNotFoundError) as error:
            say(f"note: {' '.join(str(error).split())}; building it now")
            damaged.add(file.file)
    return damaged


def _reopen(shards: Shards, damaged: set[str], ranges: Sequence[Sequence[int]], ids: Sequence[str]) -> None:
    """Turn finished shards into an interrupted build without the damaged files."""
    index, first = shards.index, 0
    files = {file.file: file for file in index.files}
    for shard, members in enumerate(ranges):
        file = files.get(_shard_name(shard))
        last = first + (file.items if file is not None else 0)
        _part_file(shards.folder, shard).unlink(missing_ok=True)
        if file is None or file.file not in damaged:
            known = {ids[number] for number in members}
            part = PartIndex(
                build=index.build,
                file=file,
                ids=index.ids[first:last],
                lengths=index.lengths[first:last],
                labels=[None if label < 0 else index.label_names[label] for label in index.labels[first:last]],
                texts=index.texts[first:last],
                skipped=[entry for entry in index.skipped if entry.id in known],
            )
            write_sealed_json(_part_file(shards.folder, shard), part.model_dump(mode="json"))
        first = last
    (shards.folder / INDEX_FILE).unlink()


def _shard_name(shard: int) -> str:
    return f"{shard:05d}.safetensors"


def _part_file(out: Path, shard: int) -> Path:
    return out / f"part-{shard:05d}.json"


def _read_part(out: Path, shard: int, build: str) -> PartIndex | None:
    """The index of a shard that is already complete, None if it is not."""
    path = _part_file(out, shard)
    if not path.is_file():
        return None
    try:
        part = check_config(read_sealed_json(path, INDEX), PartIndex, str(path))
    except ValueError as error:
        say(f"note: {error}; building its shard again")
        return None
    _check_build(part.build, build, out)
    if part.file is None:
        return part
    shard_file = out / _shard_name(shard)
    if part.file.file != shard_file.name or not shard_file.is_file() or sha256_file(shard_file) != part.file.sha256:
        return None  # missing or damaged: encode it again
    return part


def _write_part(
    out: Path,
    shard: int,
    build: str,
    corpus: Corpus,
    members: Sequence[int],
    tokenizer: Encoder,
    window: int | None,
    bar: tqdm,
) -> PartIndex:
    """Encode one range of the corpus; writes the shard, then its index, each atomically."""
    spec = tokenizer.spec
    ids, labels, texts, skipped = [], [], [], []
    codes: list[Tensor] = []
    for number in members:
        try:
            item = corpus.item(number)
            found = tokenizer.encode(corpus.media(number, spec.geometry)[None]).codes[0].cpu()
            pieces = {item.id: found} if window is None else _cut(item.id, found, window)
        except MediaError as error:
            skipped.append(Skipped(id=corpus.ids()[number], reason=str(error)))
        else:
            codes += pieces.values()
            ids += pieces
            labels += [item.label] * len(pieces)
            texts += [item.text if window is None else None] * len(pieces)
        bar.update(1)
        bar.set_postfix(skipped=len(skipped), refresh=False) if skipped else None
    file = None
    if codes:
        name = _shard_name(shard)
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
    write_sealed_json(_part_file(out, shard), part.model_dump(mode="json"))
    return part


def _cut(name: str, codes: Tensor, window: int) -> dict[str, Tensor]:
    """Split codes [K, T] of an audio file into items of `window` frames, by id: "x.wav@500" starts at frame 500."""
    starts = range(0, codes.shape[1] - window + 1, window)
    if not starts:
        raise MediaError(f"{name}: {codes.shape[1]} frames, fewer than the {window} of window_seconds")
    return {f"{name}@{start}": codes[:, start : start + window] for start in starts}


def _join(parts: Sequence[PartIndex], spec: TokenSpec, build: str) -> Index:
    found = {label for part in parts for label in part.labels if label is not None}
    # If all labels are numbers, sort numerically: "10" after "9".
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
