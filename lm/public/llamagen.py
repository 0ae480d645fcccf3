"""Read and write LlamaGen's language models, of classes (c2i) and of captions (t2i), in their own layout.

A folder with the files as they are downloaded

    c2i_B_256.pt         the language model (FSDP checkpoints and safetensors of the same names, too), or
    t2i_XL_stage1_256.pt `tok_embeddings.weight`, `layers.0.attention.wqkv.weight`, ...
    vq_ds16_c2i.pt       the image tokenizer (tokenize/public/images/llamagen_vq.py); optional
    t5/ or flan-t5-xl/   t2i: the text encoder, in transformers' layout; optional
    config.json          optional: {"model_type": "llamagen", "image_size": 256}, and where they differ from a released
                         model's `downsample_size` (16), `n_head` and `num_classes` (1000) or `class_dropout_prob` (0.1;
                         0: no guidance, and the class table has no row for "no class")

The sizes follow from the tensors, the size of the images from config.json or the name of the file (`_256`, `_512`).

The class, or the last state of the caption, takes the place of the start token. Queries and keys of the class or the
caption are multiplied by zero, not rotated by an angle of zero, so they vanish. Without a tokenizer's TokenSpec, the
fingerprint is `UNKNOWN_TOKENIZER`, which matches none.
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
from ...tokenize.base import Tokenizer
from ...tokenize.public.checkpoint import Checkpoint
from ...tokenize.public.folder import PublicFolder, check_whole
from ...tokenize.public.images.llamagen_vq import is_llamagen_vq, read_llamagen_vq, write_llamagen_vq
from ...tokenize.public.tensor_map import CannotWrite, Concat, Constant, Source, TensorMap, Term, equal_parts
from ...tokenize.spec import ImageGeometry, TokenSpec
from ..checkpoints.model_directory import LoadedModel
from ..checkpoints.parameter_shapes import parameter_shapes
from ..checkpoints.weights_file import DTYPES, StorageName
from ..conditioning.registry import ConditionConfig
from ..conditioning.text_encoder import TextEncoder, open_text_encoder
from ..config import LMConfig
from ..generation_config import GenerationConfig
from ..models.causal import TokenLM
from ..ops.rotary import GridRopeConfig
from ..patterns.pattern import SpecialsConfig
from .conversion import check_layout, read_lm
from .llamagen_condition import (
    CAPTION,
    condition_terms,
    describe_condition,
    expected_condition,
    matrix,
    read_condition,
)

UNKNOWN_TOKENIZER = "0" * 64
"""Fingerprint if the tokenizer was not loaded."""

LLAMAGEN_DEFAULTS = GenerationConfig(guidance=4.0, top_k=2000)
"""For visual quality; the scores in the paper use less guidance and all codes."""
CAPTION_DEFAULTS = GenerationConfig(guidance=7.5, top_k=1000)
"""Of the script that samples from captions."""

HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 2560: 40, 3200: 32, 4096: 32}
"""Number of heads of LlamaGen's models by width."""

TEXT_FOLDERS = ("t5", "flan-t5-xl")
"""Where the text encoder may be."""

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


def read_llamagen_text_encoder(folder: PublicFolder) -> TextEncoder | None:
    """The text encoder beside a model of captions; None if there is none, or the model is one of classes.

    Raises as `open_text_encoder`; ValueError if its states have another width than the model reads.
    """
    shapes, place = _held(folder).shapes, None
    if folder.path.is_dir() and CAPTION in shapes:
        place = next((folder.path / name for name in TEXT_FOLDERS if (folder.path / name).is_dir()), None)
    if place is None:
        return None
    encoder, width = open_text_encoder(place), matrix(shapes, CAPTION, folder.path)[1]
    if encoder.width != width:
        raise ValueError(f"{place}: its states are {encoder.width} wide, the model reads those of {width}")
    return encoder


def llamagen_defaults(folder: PublicFolder) -> GenerationConfig:
    """Sampling settings of the authors' scripts, for classes or captions."""
    return CAPTION_DEFAULTS if CAPTION in _held(folder).shapes else LLAMAGEN_DEFAULTS


def load_llamagen(
    folder: str | Path,
    spec: TokenSpec | None = None,
    device: torch.device | str = "cpu",
    dtype: StorageName | torch.dtype = "float32",
) -> TokenLM:
    """Read a LlamaGen model, in eval mode.

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
    codes, width = matrix(shapes, FIRST, folder)
    condition = read_condition(described, shapes, opened.config_path)
    ffn = matrix(shapes, "layers.0.feed_forward.w1.weight", folder)[0]
    projected = matrix(shapes, "layers.0.attention.wqkv.weight", folder)[0]
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
    config = llamagen_config(width, layers, heads, key_heads, ffn, condition, where=where)
    return read_lm(checkpoint, llamagen_tensor_map(config, spec), config, spec, device, dtype)


def save_llamagen(folder: str | Path, lm: TokenLM, dtype: StorageName = "float32") -> None:
    """Write a model in LlamaGen's layout; raises as `describe_llamagen`."""
    folder, described = Path(folder), describe_llamagen(lm)
    tensors = llamagen_tensor_map(lm.config, lm.spec).write(lm.state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", {n: t.to(DTYPES[dtype]) for n, t in tensors.items()})
    write_json(folder / "config.json", described)


def save_llamagen_whole(folder: Path, model: LoadedModel, dtype: StorageName = "float32") -> None:
    """Write a model with its image tokenizer as `vq_ds16.pt` (or `vq_ds8.pt`), and its text encoder in t5/. A tokenizer
    that is none of LlamaGen's is left out with a warning.

    Args:
        dtype: of the language model's weights; the tokenizer and the text encoder stay as they are.
    Raises:
        ValueError: the layout cannot represent the model; names the first setting that differs.
    """
    if not isinstance(model.lm, TokenLM):
        raise ValueError(f"LlamaGen's layout holds a causal language model, found {type(model.lm).__name__}")
    describe_llamagen(model.lm)
    try:
        write_llamagen_vq(folder, model.tokenizer)
    except CannotWrite as error:
        warnings.warn(f"{folder}: the image tokenizer is left out: {error}", stacklevel=2)
    save_llamagen(folder, model.lm, dtype)  # with the config.json of both
    if model.text_encoder is not None:
        model.text_encoder.save(folder / TEXT_FOLDERS[0])


def describe_llamagen(lm: TokenLM) -> dict[str, Any]:
    """config.json of a model; ValueError if the layout cannot represent it, which names the first setting that
    differs."""
    config, geometry = lm.config, lm.spec.geometry
    condition = next((one for one in config.conditions if one.kind in ("label", "embedding")), None)
    if lm.num_codebooks != 1 or not isinstance(geometry, ImageGeometry) or geometry.rows != geometry.columns:
        raise ValueError(
            f"LlamaGen's layout has one codebook of square images, found {lm.num_codebooks} of {geometry.kind}"
        )
    expected = llamagen_config(
        config.width, config.layers, config.heads, config.num_kv_heads, config.num_ffn, expected_condition(condition),
        config.dropout,
    )  # fmt: skip
    check_layout("LlamaGen", config, expected, 1)
    return {
        "model_type": "llamagen",
        "image_size": geometry.height,
        "downsample_size": geometry.height // geometry.rows,
        "n_head": config.heads,
        **describe_condition(condition),
    }


def llamagen_config(
    width: int,
    layers: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    condition: ConditionConfig,
    dropout: float = 0.1,
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
        conditions=(condition,),
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
    names = {"head.weight": ["output.weight"], "transformer.norm.weight": ["norm.weight"]}
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
    rows = shapes["input.table.weight"][0]
    terms: dict[str, Term] = {name: equal_parts(theirs) for name, theirs in names.items()}
    terms |= condition_terms(config.conditions[0], shapes)
    special = Constant(0.0, required=False)  # rows of special ids, which are never read
    terms["input.table.weight"] = Concat((Source("tok_embeddings.weight"), special), (codes, rows - codes))
    return TensorMap(terms, ignored=IGNORED)


def _held(folder: PublicFolder) -> Checkpoint:
    """The file with the language model; without one, what else is there, or the error of opening it."""
    return folder.holding(FIRST) or folder.checkpoint


def _image_size(described: dict[str, Any], checkpoint: Checkpoint) -> int:
    """Side of the images in pixels, from config.json or the name of a released file."""
    named = re.search(r"[ct]2i_\w+_(\d{3})\b", checkpoint.path.name)
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
    for key in ("image_size", "downsample_size", "n_head", "num_classes", "caption_dim", "cls_token_num"):
        if key in described:
            check_whole(described[key], key, f"{path}: {key}")
    return described
