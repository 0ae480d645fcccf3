"""Read and write LlamaGen's class-conditional model (GPT c2i) in its own layout.

A folder with the files as they are downloaded

    c2i_B_256.pt         the language model (FSDP checkpoints and safetensors of the same names, too): tensors
                         `tok_embeddings.weight`, `layers.0.attention.wqkv.weight`, ...
    vq_ds16_c2i.pt       the image tokenizer (tokenize/public/images/llamagen_vq.py); optional
    config.json          optional: {"model_type": "llamagen", "image_size": 256}, and where they differ from a released
                         model's `downsample_size` (16), `n_head` and `num_classes` (1000) or `class_dropout_prob` (0.1;
                         0: the class table has no row for "no class", so there is no guidance)

The sizes follow from the tensors, the size of the images from config.json or the name of the file (`_256`, `_384`).

The class token takes the place of the start token; its queries and keys are multiplied by zero, not rotated by an angle
of zero, so they vanish. Without a tokenizer's TokenSpec, the fingerprint is `UNKNOWN_TOKENIZER`, which matches none.
Source: tensor names and mathematics of LlamaGen (arXiv:2406.06525), FoundationVision/LlamaGen (MIT).
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch

from ...configs.files import write_json, write_safetensors
from ...configs.schema import make_config
from ...configs.tensor_checks import WeightsError
from ...tokenize.base import Tokenizer
from ...tokenize.public.checkpoint import Checkpoint
from ...tokenize.public.folder import PublicFolder, check_whole
from ...tokenize.public.images.llamagen_vq import is_llamagen_vq, read_llamagen_vq
from ...tokenize.public.tensor_map import Concat, Constant, Source, TensorMap, Term, equal_parts
from ...tokenize.spec import ImageGeometry, TokenSpec
from ..checkpoints.parameter_shapes import parameter_shapes
from ..checkpoints.weights_file import DTYPES, StorageName
from ..conditioning.registry import LabelConfig
from ..config import LMConfig
from ..generation_config import GenerationConfig
from ..models.causal import TokenLM
from ..ops.rotary import GridRopeConfig
from ..patterns.pattern import SpecialsConfig
from .conversion import check_layout, read_lm

UNKNOWN_TOKENIZER = "0" * 64
"""Fingerprint if the tokenizer was not loaded."""

LLAMAGEN_DEFAULTS = GenerationConfig(guidance=4.0, top_k=2000)
"""For visual quality; the scores in the paper use less guidance and all codes."""

HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 2560: 40, 3200: 32, 4096: 32}
"""Number of heads of LlamaGen's models by width."""

RELEASED_CLASSES = 1000
"""Number of ImageNet classes; the class tables have one more row, for no class."""

FIRST = "tok_embeddings.weight"
IGNORED = ("freqs_cis",)
"""Rotary tables in older files."""


def is_llamagen(folder: PublicFolder) -> bool:
    """Whether there are weights with the names of LlamaGen's language model."""
    return folder.holding(FIRST) is not None


def read_llamagen_tokenizer(folder: PublicFolder) -> Tokenizer | None:
    """The image tokenizer beside the language model, for the size of its images; None if there is none.

    Raises as `load_llamagen` and `read_llamagen_vq`.
    """
    if not is_llamagen_vq(folder):
        return None
    return read_llamagen_vq(folder, _image_size(_read_config(folder), _held(folder)))


def load_llamagen(
    folder: str | Path,
    spec: TokenSpec | None = None,
    device: torch.device | str = "cpu",
    dtype: StorageName | torch.dtype = "float32",
) -> TokenLM:
    """Read a LlamaGen c2i model, in eval mode.

    Args:
        folder: as described above, or the file of the language model.
        spec: of the image tokenizer; None: a spec for the size of the images, whose tokenizer is not loaded.
        dtype: of the weights in memory.
    Raises:
        FileNotFoundError: no weights. WeightsError: tensors missing, left over or misshapen. ValueError: unusable
            files, a size that cannot be inferred, or a spec that does not fit.
    """
    opened = PublicFolder(folder)
    folder, described, checkpoint = opened.path, _read_config(opened), _held(opened)
    shapes, where = checkpoint.shapes, str(opened.config_path)
    codes, width = _matrix(shapes, FIRST, folder)
    rows = _matrix(shapes, "cls_embedding.embedding_table.weight", folder)[0]
    classes, class_dropout = _classes(described, rows, opened.config_path)
    ffn = _matrix(shapes, "layers.0.feed_forward.w1.weight", folder)[0]
    projected = _matrix(shapes, "layers.0.attention.wqkv.weight", folder)[0]
    heads = described.get("n_head", HEADS.get(width))
    if heads is None:
        raise ValueError(f"{folder}: no released model has width {width}; set n_head in config.json")
    if spec is None:
        spec = llamagen_spec(codes, _image_size(described, checkpoint), described.get("downsample_size", 16), where)
    if spec.cardinalities != (codes,) or not isinstance(spec.geometry, ImageGeometry):
        raise ValueError(
            f"{folder}: the model has one codebook of {codes} image codes, the tokenizer '{spec.name}' "
            f"{list(spec.cardinalities)} of {spec.geometry.kind}; pass the spec of the tokenizer it was trained with"
        )
    layers = len({name.split(".")[1] for name in shapes if name.startswith("layers.")})
    key_heads = (projected - width) // 2 * heads // width
    config = llamagen_config(width, layers, heads, key_heads, ffn, classes, class_dropout=class_dropout, where=where)
    return read_lm(checkpoint, llamagen_tensor_map(config, spec), config, spec, device, dtype)


def save_llamagen(folder: str | Path, lm: TokenLM, dtype: StorageName = "float32") -> None:
    """Write a model in LlamaGen's layout.

    Raises:
        ValueError: LlamaGen's layout cannot represent the model; names the first setting that differs.
    """
    folder, config, geometry = Path(folder), lm.config, lm.spec.geometry
    label = next((c for c in config.conditions if isinstance(c, LabelConfig)), None)
    if lm.num_codebooks != 1 or not isinstance(geometry, ImageGeometry) or geometry.rows != geometry.columns:
        raise ValueError(
            f"LlamaGen's layout has one codebook of square images, found {lm.num_codebooks} of {geometry.kind}"
        )
    classes = label.classes if label is not None and label.classes is not None else 1
    expected = llamagen_config(
        config.width, config.layers, config.heads, config.num_kv_heads, config.num_ffn, classes, config.dropout,
        label.dropout if label is not None else 0.0,
    )  # fmt: skip
    check_layout("LlamaGen", config, expected, 1)
    described = {
        "model_type": "llamagen",
        "image_size": geometry.height,
        "downsample_size": geometry.height // geometry.rows,
        "n_head": config.heads,
        "num_classes": classes,
        "class_dropout_prob": label.dropout if label is not None else 0.0,
    }
    tensors = llamagen_tensor_map(config, lm.spec).write(lm.state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", {n: t.to(DTYPES[dtype]) for n, t in tensors.items()})
    write_json(folder / "config.json", described)


def llamagen_config(
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    classes: int,
    dropout: float = 0.1,
    class_dropout: float = 0.1,
    where: str = "llamagen",
) -> LMConfig:
    """The config of a LlamaGen model; ConfigError messages begin with `where`."""
    return make_config(
        LMConfig,
        where,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        ffn=ffn,
        norm_eps=1e-5,
        dropout=dropout,
        rope=GridRopeConfig(before="zero"),
        specials=SpecialsConfig(start=0, pad=0),
        start="condition",
        conditions=(make_config(LabelConfig, where, classes=classes, dropout=class_dropout),),
    )


def llamagen_spec(codes: int, image_size: int, downsample_size: int, where: str = "llamagen") -> TokenSpec:
    """The TokenSpec of a square image; the tokenizer itself is not loaded. ConfigError messages begin with `where`."""
    side = image_size // downsample_size
    geometry = make_config(ImageGeometry, where, height=image_size, width=image_size, rows=side, columns=side)
    return make_config(
        TokenSpec,
        where,
        name="llamagen-tokenizer",
        cardinalities=(codes,),
        geometry=geometry,
        fingerprint=UNKNOWN_TOKENIZER,
    )


def llamagen_tensor_map(config: LMConfig, spec: TokenSpec) -> TensorMap:
    """The mapping from their tensors to ours."""
    names = {
        "head.weight": ["output.weight"],
        "transformer.norm.weight": ["norm.weight"],
        "conditions.parts.label.table.weight": ["cls_embedding.embedding_table.weight"],
    }
    matrices = {
        "attention_norm": ("attention_norm",),
        "attention.qkv": ("attention.wqkv",),
        "attention.out": ("attention.wo",),
        "ffn_norm": ("ffn_norm",),
        "ffn.gate_up": ("feed_forward.w1", "feed_forward.w3"),
        "ffn.down": ("feed_forward.w2",),
    }
    for n in range(config.layers):
        for ours, theirs in matrices.items():
            names[f"transformer.blocks.{n}.{ours}.weight"] = [f"layers.{n}.{name}.weight" for name in theirs]
    shapes, codes = parameter_shapes(config, spec), spec.cardinalities[0]
    rows, table = shapes["input.table.weight"][0], "conditions.parts.label.table.weight"
    terms: dict[str, Term] = {name: equal_parts(names[name]) for name in shapes if name != "input.table.weight"}
    special = Constant(0.0, required=False)  # rows of special ids, which are never read
    terms["input.table.weight"] = Concat((Source("tok_embeddings.weight"), special), (codes, rows - codes))
    if config.conditions[0].dropout == 0:  # a class table trained without dropout has no row for no class
        null = Constant(0.0, required=False)
        terms[table] = Concat((Source(names[table][0]), null), (shapes[table][0] - 1, 1))
    return TensorMap(terms, ignored=IGNORED)


def _classes(described: dict[str, Any], rows: int, where: Path) -> tuple[int, float]:
    """Classes and dropout of a class table with this many rows: with dropout, the last row is for no class."""
    classes, dropout = described.get("num_classes"), described.get("class_dropout_prob")
    if classes is None and dropout is None and rows != RELEASED_CLASSES + 1:
        warnings.warn(
            f"{where}: the class table has {rows} rows; it is read as {rows} classes and no null class, so "
            f"without guidance; if the last row is the null class, set num_classes {rows - 1} in the file",
            stacklevel=3,
        )
        dropout = 0.0
    if classes is None:
        classes = rows if dropout == 0 else rows - 1
    if dropout is None:
        dropout = 0.0 if classes == rows else 0.1
    if rows != classes + (dropout > 0):
        raise ValueError(
            f"{where}: num_classes {classes} with class_dropout_prob {dropout} makes a class table of "
            f"{classes + (dropout > 0)} rows, but it has {rows}"
        )
    return classes, float(dropout)


def _held(folder: PublicFolder) -> Checkpoint:
    """The file with the language model; without one, what else is there, or the error of opening it."""
    return folder.holding(FIRST) or folder.checkpoint


def _image_size(described: dict[str, Any], checkpoint: Checkpoint) -> int:
    """Side of the images in pixels, from config.json or the name of a released file."""
    named = re.search(r"c2i_\w+_(\d{3})\b", checkpoint.path.name)
    size = described.get("image_size", None if named is None else int(named[1]))
    if size is None:
        raise ValueError(
            f"{checkpoint.path}: the size of the images is not in this name (as in c2i_B_256.pt); write "
            f'{{"model_type": "llamagen", "image_size": 256}} in a config.json beside it'
        )
    return size


def _read_config(folder: PublicFolder) -> dict[str, Any]:
    """config.json; empty if there is none."""
    described, path = folder.config, folder.config_path
    if not described:
        return {}
    if described.get("model_type") != "llamagen":
        raise ValueError(f"{path}: its model_type is not 'llamagen'")
    dropout = described.get("class_dropout_prob")
    if dropout is not None and (type(dropout) not in (int, float) or not 0 <= dropout < 1):
        raise ValueError(f"{path}: class_dropout_prob must be from 0 to below 1, found {str(dropout)[:80]!r}")
    for key in ("image_size", "downsample_size", "n_head", "num_classes"):
        if key in described:
            check_whole(described[key], key, f"{path}: {key}")
    return described


def _matrix(shapes: dict[str, tuple[int, ...]], name: str, folder: Path) -> tuple[int, int]:
    """Shape of a tensor that determines the model's size."""
    shape = shapes.get(name)
    if shape is None or len(shape) != 2:
        found = "missing" if shape is None else f"{list(shape)}, no matrix"
        raise WeightsError(
            f"{folder}: tensor '{name}' is {found}; only LlamaGen's class-conditional models (c2i) are supported"
        )
    return shape[0], shape[1]
