"""Index of a folder of shards: index.json, and part-NNNNN.json for each finished file of an unfinished build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import FailFast, Field

from ...configs.files import read_sealed_json
from ...configs.json_limits import INDEX
from ...configs.names import check_file_name
from ...configs.schema import Config, FingerprintedConfig, check_config
from ..spec import TokenSpec

INDEX_FILE = "index.json"
LAYOUT = 2
"""Version of the files' layout: codes [K, frames]. Version 1, which is still read, has codes [frames, K]."""
BUILD_AGAIN = "run tessera shards again to rebuild damaged or missing shards"


class ShardFile(Config):
    """A file in the index."""

    file: str
    sha256: str
    items: int = Field(ge=1)


class Skipped(Config):
    """A corpus item that was skipped as unusable."""

    id: str
    reason: str


class Index(FingerprintedConfig):
    """index.json."""

    added = frozenset({"alignments"})

    format: Literal["tessera-shards"] = "tessera-shards"
    version: Literal[1, 2] = LAYOUT
    """Layout of the files."""
    spec: TokenSpec
    build: str
    """SHA-256 of the build inputs: corpus, items and tokenizer."""
    label_names: Annotated[list[str], FailFast()]
    files: Annotated[list[ShardFile], FailFast()]
    skipped: Annotated[list[Skipped], FailFast()]
    ids: Annotated[list[str], FailFast()]
    lengths: Annotated[list[int], FailFast()]
    """Frames of each item."""
    labels: Annotated[list[int], FailFast()]
    """Index into label_names, -1 for none."""
    texts: Annotated[list[str | None], FailFast()]
    alignments: Annotated[list[str | None], FailFast()] = []
    """Units and frames of each item (`format_alignment`); empty if no item has them."""


class PartIndex(FingerprintedConfig):
    """part-NNNNN.json: what the index holds of the items of one file; written after the file."""

    added = frozenset({"alignments"})

    version: Literal[1, 2] = 1
    """As in Index; parts of version 1 do not name it."""
    build: str
    file: ShardFile | None
    """None if every item of the range was skipped."""
    ids: Annotated[list[str], FailFast()]
    lengths: Annotated[list[int], FailFast()]
    labels: Annotated[list[str | None], FailFast()]
    texts: Annotated[list[str | None], FailFast()]
    skipped: Annotated[list[Skipped], FailFast()]
    alignments: Annotated[list[str | None], FailFast()] = []


def read_index(path: Path) -> Index:
    """Read and check index.json. Raises ValueError if it is damaged or contradicts itself."""
    advice = "remove it and run tessera shards again to encode the corpus again"
    index = check_config(read_sealed_json(path, INDEX, advice), Index, str(path))
    count = len(index.ids)
    columns = {"lengths": index.lengths, "labels": index.labels, "texts": index.texts}
    columns |= {"alignments": index.alignments} if index.alignments else {}
    for name, column in columns.items():
        if len(column) != count:
            raise ValueError(
                f"{path}: {len(column)} {name} for {count} ids; the index is damaged, build the shards again"
            )
    stored = sum(file.items for file in index.files)
    if stored != count or not count:
        raise ValueError(f"{path}: its files hold {stored} items, it lists {count}")
    if min(index.lengths) < 1 or not -1 <= min(index.labels) <= max(index.labels) < max(1, len(index.label_names)):
        raise ValueError(f"{path}: a length below 1, or a label that is not one of its {len(index.label_names)} names")
    for file in index.files:
        check_file_name(file.file, str(path))
    return index
