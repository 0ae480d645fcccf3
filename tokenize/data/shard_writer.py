"""Shard writer: encodes a corpus to shards of codes on disk.

    out/00000.safetensors   codes [K, T1 + T2 + ...] and the items' offsets (shard_file.py)
    out/00001.safetensors   ...
    out/index.json          TokenSpec, label names; SHA-256 per file; id, length, label, text, alignment per item

A shard holds the items of one range of the corpus, so a killed build resumes after its last complete shard and yields
the same bytes as an uninterrupted one. index.json is written last: a folder without it is not finished. Building
finished shards again verifies them, and rebuilds those that are missing or damaged.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from tqdm import tqdm

from ...configs.files import read_safetensors, read_sealed_json, sha256_file, write_safetensors, write_sealed_json
from ...configs.folder_lock import lock_folder
from ...configs.json_limits import INDEX
from ...configs.printable import say
from ...configs.schema import check_config
from ..alignment.alignment import format_alignment, to_frames
from ..spec import AudioGeometry, TokenSpec
from .corpus import Corpus, open_corpus
from .item_alignments import ItemAlignments
from .media import MediaError, print_notes
from .shard_file import write_shard
from .shard_index import INDEX_FILE, LAYOUT, Index, PartIndex, Skipped
from .shard_reader import Shards
from .shards_config import ShardsConfig, choose_items, window_frames


class Encoder(Protocol):
    """The part of a Tokenizer that is used here."""

    @property
    def spec(self) -> TokenSpec: ...

    def encode(self, media: Tensor, lengths: Tensor | None = None) -> Any: ...


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
    numbers = choose_items(corpus, config)
    with lock_folder(config.out, "tessera shards"):
        return _build(config, tokenizer, corpus, numbers, progress)


def _build(config: ShardsConfig, tokenizer: Encoder, corpus: Corpus, numbers: Sequence[int], progress: bool) -> Shards:
    """`build_shards` in a locked folder."""
    out = Path(config.out)
    window = window_frames(config, tokenizer.spec)
    alignments = _open_alignments(config, tokenizer.spec, corpus)
    aligned = None if alignments is None else alignments.digest(numbers)
    build = _build_id(config, tokenizer.spec, window, [corpus.ids()[number] for number in numbers], aligned)
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
                captioned = window is None or config.window_text == "whole"
                part = _write_part(out, shard, build, corpus, alignments, members, tokenizer, window, captioned, bar)
            else:
                bar.update(len(members))
            parts.append(part)
    print_notes(corpus.notes, progress)
    index = _join(parts, tokenizer.spec, build)
    if not index.ids:
        _remove_parts(out)  # the next build, of other settings or repaired files, tries all again
        raise ValueError(
            f"{config.corpus.path}: none of the {len(numbers)} items can be used; the first: {index.skipped[0].reason}"
        )
    write_sealed_json(out / INDEX_FILE, index.model_dump(mode="json"))
    _remove_parts(out)
    return Shards(out)


def _open_alignments(config: ShardsConfig, spec: TokenSpec, corpus: Corpus) -> ItemAlignments | None:
    """Alignments of whole audio files; None for windows of them and for images, which have none."""
    if isinstance(spec.geometry, AudioGeometry) and config.window_seconds is None:
        return ItemAlignments(corpus, config.alignments)
    if config.alignments is not None:
        raise ValueError("alignments: they belong to whole audio files; remove the key, or window_seconds")
    return None


def _build_id(
    config: ShardsConfig, spec: TokenSpec, window: int | None, ids: Sequence[str], aligned: str | None
) -> str:
    """Identifier of a build's inputs; independent of the paths of corpus, tokenizer and output."""
    corpus = config.corpus.model_dump(mode="json", exclude={"path"})
    description = [corpus, spec.model_dump(mode="json"), config.items_per_shard, list(ids)]
    description += [] if window is None else [window]
    description += [] if config.window_text == "none" else [config.window_text]
    description += [] if aligned is None else [aligned]
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
                version=index.version,
                build=index.build,
                file=file,
                ids=index.ids[first:last],
                lengths=index.lengths[first:last],
                labels=[None if label < 0 else index.label_names[label] for label in index.labels[first:last]],
                texts=index.texts[first:last],
                alignments=_column(index.alignments[first:last]),
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
    return part if part.version == LAYOUT else _convert_part(out, shard, part)


def _convert_part(out: Path, shard: int, part: PartIndex) -> PartIndex:
    """Rewrite a shard of an earlier version in the current layout."""
    assert part.file is not None
    path = out / part.file.file
    tensors, metadata = read_safetensors(path)
    write_safetensors(path, {**tensors, "codes": tensors["codes"].T.contiguous()}, metadata)
    file = part.file.model_copy(update={"sha256": sha256_file(path)})
    converted = part.model_copy(update={"version": LAYOUT, "file": file})
    write_sealed_json(_part_file(out, shard), converted.model_dump(mode="json"))
    return converted


def _write_part(
    out: Path,
    shard: int,
    build: str,
    corpus: Corpus,
    alignments: ItemAlignments | None,
    members: Sequence[int],
    tokenizer: Encoder,
    window: int | None,
    captioned: bool,
    bar: tqdm,
) -> PartIndex:
    """Encode one range of the corpus; writes the shard, then its index, each atomically."""
    spec = tokenizer.spec
    ids, labels, texts, aligned, skipped = [], [], [], [], []
    codes: list[Tensor] = []
    for number in members:
        try:
            item = corpus.item(number)
            found = tokenizer.encode(corpus.media(number, spec.geometry)[None]).codes[0].cpu()
            parts = {item.id: found} if window is None else _cut(item.id, found, window)
            alignment = _alignment(alignments, number, spec, found.shape[1])
        except MediaError as error:
            skipped.append(Skipped(id=corpus.ids()[number], reason=str(error)))
        else:
            codes += parts.values()
            ids += parts
            labels += [item.label] * len(parts)
            texts += [item.text if captioned else None] * len(parts)
            aligned += [alignment] * len(parts)
        bar.update(1)
        bar.set_postfix(skipped=len(skipped), refresh=False) if skipped else None
    part = PartIndex(
        version=LAYOUT,
        build=build,
        file=write_shard(out / _shard_name(shard), spec, codes) if codes else None,
        ids=ids,
        lengths=[item.shape[1] for item in codes],
        labels=labels,
        texts=texts,
        skipped=skipped,
        alignments=_column(aligned),
    )
    write_sealed_json(_part_file(out, shard), part.model_dump(mode="json"))
    return part


def _alignment(alignments: ItemAlignments | None, number: int, spec: TokenSpec, num_frames: int) -> str | None:
    """The alignment of an item in frames, as in the index."""
    timed = None if alignments is None else alignments.read(number)
    if alignments is None or timed is None:
        return None
    assert isinstance(spec.geometry, AudioGeometry)
    try:
        return format_alignment(to_frames(timed, spec.geometry.frame_rate, num_frames))
    except ValueError as error:
        raise MediaError(f"{alignments.ids[number]}: {error}") from None


def _column(values: list[str | None]) -> list[str | None]:
    """An optional column of the index: empty if no item has a value."""
    return values if any(value is not None for value in values) else []


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
        alignments=_column([entry for part in parts for entry in part.alignments or [None] * len(part.ids)]),
    )
