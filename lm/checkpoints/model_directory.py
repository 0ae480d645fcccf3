"""The model directory: exported by `tessera train`, loaded by `tessera.load`.

    config.json          the LM, the tokenizer's TokenSpec, label names, generation defaults
    lm.safetensors       the weights, in float32, bfloat16 or float16
    clusters/            of coarse labels, if the LM predicts them or is their refiner
    coarse.safetensors   the weights of the LM of the coarse labels, next to those of its refiner
    tokenizer/           the frozen tokenizer
    text.model           the text tokenizer, if text is used and needs a file
    text.json            that of one of byte-pair encoding, a tokenizer.json
    units.json           that of one with units; lexicon.tsv and english.zip beside it for phonemes
    text_encoder/        the frozen text encoder whose states the LM reads, in the layout of transformers
    README.md            the model card
    fingerprint.json     size and SHA-256 of everything but the card (fingerprint.py)

No file is pickled. Loading checks every file against the fingerprint, the names and shapes of all tensors against the
config before a model is allocated, and the tokenizer's fingerprint against that of the training codes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...configs.files import (
    json_bytes,
    write_atomic,
    write_safetensors,
)
from ...configs.fingerprint import check_model_files, write_fingerprint
from ...configs.schema import check_config
from ...tokenize.spec import TokenSpec, check_same_tokenizer
from ..clustering.clustering import ClusteredTokenizer, Clustering, load_clustering
from ..conditioning.registry import EmbeddingConditionConfig, LabelConfig
from ..conditioning.text_encoder import TextEncoder, open_text_encoder
from ..config import LMConfig
from ..generation_config import GenerationConfig
from ..models.base import LanguageModel
from ..models.coarse_to_fine import CoarseToFine
from ..models.registry import make_lm
from ..models.transformer_lm import TransformerLM
from ..quantization.packed_linear import WeightsName, check_weights
from .config_file import ModelFile, check_described, check_is_model, read_model_config
from .weights_file import StorageName, read_weights, tensors_of

if TYPE_CHECKING:
    from ...tokenize.text.base import TextTokenizer
    from ...tokenize.tokenizer import Tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A language model with everything needed to turn a request into media."""

    lm: LanguageModel
    tokenizer: Tokenizer
    """A ClusteredTokenizer if the LM only predicts coarse labels."""
    text: TextTokenizer | None
    """None if the model has no text condition."""
    labels: list[str]
    """Names of the labels in the order of their ids; empty without labels."""
    defaults: GenerationConfig
    text_encoder: TextEncoder | None = None
    """Makes the vectors of the condition `embedding` from text; None: they are given as they are."""

    @property
    def config(self) -> LMConfig:
        """The language model's config."""
        return self.lm.config

    @property
    def spec(self) -> TokenSpec:
        """The tokenizer's TokenSpec."""
        return self.lm.spec


def save_model(
    folder: str | Path,
    lm: LanguageModel,
    tokenizer: Tokenizer,
    text: TextTokenizer | None,
    labels: list[str],
    defaults: GenerationConfig | None = None,
    card: str = "",
    dtype: StorageName = "float32",
    text_encoder: TextEncoder | None = None,
) -> None:
    """Write a model directory. Each file is written atomically; config.json comes last, so a directory with one is
    complete.

    Args:
        folder: created if missing.
        labels: names in the order of ids, as many as the label condition has classes.
        card: text of README.md.
        dtype: storage of the weights.
        text_encoder: makes the vectors of the condition `embedding`; its weights are stored as they are.
    Raises:
        ValueError: parts that do not belong together, or a weight that `dtype` cannot represent.
    """
    folder = Path(folder)
    check_same_tokenizer(tokenizer.spec, lm.spec, f"model {folder}: tokenizer to be saved")
    _check_parts(lm.config, text, labels, f"model {folder}")
    _check_text_encoder(lm.config, text_encoder, f"model {folder}")
    *before, last = lm.stages
    first = before[0] if before else None
    tensors = tensors_of(last, dtype)
    first_tensors = None if first is None else tensors_of(first, dtype)
    clustering = clustering_of(last, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    tokenizer.save(folder / "tokenizer")
    if text is not None:
        text.save(folder)
    if text_encoder is not None:
        text_encoder.save(folder / "text_encoder")
    if clustering is not None:
        clustering.save(folder / "clusters")
    if first_tensors is not None:
        write_safetensors(folder / "coarse.safetensors", first_tensors, {"format": "tessera-model"})
    described = ModelFile(
        lm=last.config,
        coarse_lm=None if first is None else first.config,
        clusters=None if clustering is None else clustering.spec.fingerprint,
        spec=lm.spec,
        labels=tuple(labels),
        generation=defaults or GenerationConfig(),
    )
    _write_lm(folder, tensors, described, card)


def seal_model(folder: str | Path) -> list[str]:
    """Write the fingerprint of a model directory whose files were changed on purpose, or that has none.

    Returns:
        Names of the files covered.
    Raises:
        FileNotFoundError, ValueError: as for `load_model`; an unusable model is not sealed.
    """
    folder = Path(folder)
    if (folder / "tokenizer").is_dir():
        _load_model(folder, {}, "cpu", "float32", None)
    else:
        _load_lm(folder, {}, "cpu", "float32")
    return write_fingerprint(folder)


def save_lm(
    folder: str | Path,
    lm: TransformerLM,
    labels: list[str],
    defaults: GenerationConfig | None = None,
    card: str = "",
    dtype: StorageName = "float32",
) -> None:
    """Write a language model alone: a model directory without tokenizer and text tokenizer, which `load_lm` reads.

    Args and errors as for `save_model`.
    """
    folder = Path(folder)
    _check_labels(lm.config, labels, f"model {folder}")
    tensors = tensors_of(lm, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    described = ModelFile(lm=lm.config, spec=lm.spec, labels=tuple(labels), generation=defaults or GenerationConfig())
    _write_lm(folder, tensors, described, card)


def check_saveable(model: LoadedModel) -> None:
    """Raise ValueError if `save_model` would refuse the model, or `load_model` its files, whatever the weights."""
    where = "the exported model"
    check_same_tokenizer(model.tokenizer.spec, model.spec, f"{where}: its tokenizer")
    _check_parts(model.config, model.text, model.labels, where)
    described = ModelFile(
        lm=model.lm.stages[-1].config, spec=model.spec, labels=tuple(model.labels), generation=model.defaults
    )
    check_described(check_config(json.loads(described.model_dump_json()), ModelFile, where), where)


def _write_lm(folder: Path, tensors: dict[str, Tensor], described: ModelFile, card: str) -> None:
    write_safetensors(folder / "lm.safetensors", tensors, {"format": "tessera-model"})
    write_atomic(folder / "README.md", card.encode())
    config = json_bytes(described.model_dump(mode="json"))
    write_fingerprint(folder, {"config.json": config})
    write_atomic(folder / "config.json", config)


def load_model(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: StorageName | torch.dtype = "float32",
    weights: WeightsName | None = None,
) -> LoadedModel:
    """Read a model directory.

    Args:
        folder: as written by `save_model`.
        device: of the language model and the tokenizer.
        dtype: of the language model's weights in memory, however they are stored, and of its computation.
        weights: storage of the matrices in memory if different (lm/quantization/packed_linear.py); None: as dtype.
    Returns:
        LoadedModel, its model in eval mode.
    Raises:
        FileNotFoundError: there is no model, or a part of it is missing.
        WeightsError: tensors are missing, left over, or of another shape than the config requires.
        ValueError: an unusable config, a damaged file, or the codes of another tokenizer; names the file.
    """
    folder = Path(folder)
    if weights is not None:
        check_weights(weights)
    check_is_model(folder)
    return _load_model(folder, check_model_files(folder), device, dtype, weights)


def _load_model(
    folder: Path,
    sha256: Mapping[str, str],
    device: torch.device | str,
    dtype: StorageName | torch.dtype,
    weights: WeightsName | None,
) -> LoadedModel:
    """See `load_model`; sha256: hashes of the weight files, if known."""
    from ...tokenize.text.registry import load_text
    from ...tokenize.tokenizer import load_tokenizer

    described = read_model_config(folder)
    if not (folder / "tokenizer").is_dir():
        raise FileNotFoundError(
            f"{folder}: tokenizer/ is missing, so this is only a language model; load it with "
            "tessera.lm.checkpoints.model_directory.load_lm, or convert it again with --tokenizer"
        )
    tokenizer = load_tokenizer(folder / "tokenizer").to(device)
    clustering = None if described.clusters is None else _load_clusters(folder, tokenizer, described.clusters)
    refines = described.lm.kind == "masked"
    if clustering is not None and not refines:
        tokenizer = ClusteredTokenizer(tokenizer, clustering)
    check_same_tokenizer(tokenizer.spec, described.spec, f"model {folder}: its folder tokenizer/")
    if tokenizer.spec != described.spec:
        raise ValueError(
            f"{folder / 'config.json'}: its spec has codes {list(described.spec.cardinalities)[:8]} or a geometry "
            f"that differs from its tokenizer's, which has codes {list(tokenizer.spec.cardinalities)[:8]}; "
            "copy the model again"
        )
    config = described.coarse_lm or described.lm
    text = None if config.text_part is None else load_text(folder, config.text_part.text)
    _check_parts(config, text, list(described.labels), f"model {folder}")
    encoder = _open_text_encoder(folder, sha256)
    _check_text_encoder(config, encoder, f"model {folder}")
    read = partial(read_weights, sha256=sha256, device=device, dtype=dtype, weights=weights)
    vectors = tokenizer.vectors().cpu() if config.needs_code_vectors or described.lm.needs_code_vectors else None
    make = partial(make_lm, clustering=clustering if refines else None, quantizer=tokenizer.quantizer)
    lm: LanguageModel = read(folder / "lm.safetensors", described.lm, described.spec, vectors=vectors, make=make)
    if described.coarse_lm is not None:
        if clustering is None or lm.clustering is None:
            raise ValueError(f"{folder / 'config.json'}: coarse_lm needs clusters and a masked lm; copy it again")
        centers = None if vectors is None else clustering.centers(vectors)
        coarse = read(folder / "coarse.safetensors", described.coarse_lm, clustering.spec, vectors=centers)
        lm = CoarseToFine(coarse, lm).eval()
    encoder = None if encoder is None else encoder.to(device)
    return LoadedModel(lm, tokenizer, text, list(described.labels), described.generation, encoder)


def _open_text_encoder(folder: Path, sha256: Mapping[str, str]) -> TextEncoder | None:
    if not (folder / "text_encoder").is_dir():
        return None
    return open_text_encoder(folder / "text_encoder", sha256=sha256.get("text_encoder/model.safetensors"))


def clustering_of(lm: LanguageModel, tokenizer: Tokenizer) -> Clustering | None:
    """The clusters that a model predicts or is conditioned on; None for a model of plain codes."""
    if lm.clustering is not None:
        return lm.clustering
    return tokenizer.clustering if isinstance(tokenizer, ClusteredTokenizer) else None


def load_lm(
    folder: str | Path, device: torch.device | str = "cpu", dtype: StorageName | torch.dtype = "float32"
) -> TransformerLM:
    """Read the language model of a model directory, with or without its tokenizer.

    Args and errors as for `load_model`; ValueError for a model that needs its tokenizer's code vectors.
    """
    folder = Path(folder)
    check_is_model(folder)
    return _load_lm(folder, check_model_files(folder), device, dtype)


def _load_lm(
    folder: Path, sha256: Mapping[str, str], device: torch.device | str, dtype: StorageName | torch.dtype
) -> TransformerLM:
    described = read_model_config(folder)
    if described.lm.needs_code_vectors:
        raise ValueError(f"{folder}: the model reads its tokenizer's code vectors; use load_model(...).lm")
    if described.lm.kind == "next_scale":
        raise ValueError(f"{folder}: the model reads its tokenizer's scales; use load_model(...).lm")
    if described.clusters is not None:
        raise ValueError(f"{folder}: the model predicts or refines coarse labels; use load_model(...).lm")
    path = folder / "lm.safetensors"
    return read_weights(path, described.lm, described.spec, sha256=sha256, device=device, dtype=dtype, make=make_lm)


def _check_text_encoder(config: LMConfig, encoder: TextEncoder | None, where: str) -> None:
    if encoder is None:
        return
    condition = next((c for c in config.conditions if isinstance(c, EmbeddingConditionConfig)), None)
    width = None if condition is None else condition.width
    if width != encoder.width:
        reads = "no vectors" if width is None else f"vectors of {width}"
        raise ValueError(f"{where}: the text encoder makes vectors of {encoder.width}, but the model reads {reads}")


def _check_labels(config: LMConfig, labels: list[str], where: str) -> None:
    label = next((condition for condition in config.conditions if isinstance(condition, LabelConfig)), None)
    classes = label.classes if label is not None else 0
    if config.dual_track is not None:
        classes = len(config.dual_track.speakers)
    if len(labels) != classes:
        raise ValueError(f"{where}: {len(labels)} label names, but the model has {classes} labels")
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise ValueError(f"{where}: the label name '{twice[0]}' occurs twice; give each label a different name")


def _load_clusters(folder: Path, tokenizer: Tokenizer, fingerprint: str) -> Clustering:
    clustering = load_clustering(folder / "clusters")
    if clustering.spec.fingerprint != fingerprint:
        raise ValueError(
            f"model {folder}: its folder clusters/ holds clusters {clustering.spec.fingerprint[:12]}, but the model "
            f"was trained with {fingerprint[:12]}; copy the directory again"
        )
    clustering.check(tokenizer.spec)
    return clustering


def _check_parts(config: LMConfig, text: TextTokenizer | None, labels: list[str], where: str) -> None:
    _check_labels(config, labels, where)
    part = config.text_part
    if text is None and part is not None:
        raise ValueError(f"{where}: the model reads text, but no text tokenizer was given")
    if text is not None and part is None:
        raise ValueError(f"{where}: a text tokenizer was given, but the model reads no text")
    if text is not None and part is not None and text.vocab_size != part.vocab_size:
        raise ValueError(
            f"{where}: the text tokenizer has {text.vocab_size} ids but the model has {part.vocab_size}; use the text "
            "tokenizer of the model"
        )
