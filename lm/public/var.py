"""Read and write VAR's next-scale models in their own layout.

A folder with the files as they are downloaded

    var_d16.pth               the language model, a pickle of tensors: `pos_1LC`, `blocks.0.attn.mat_qkv.weight`, ...
    vae_ch160v4096z32.pth     its image tokenizer (tokenize/public/images/var_vq.py), whose scales the model reads
    config.json               optional: {"model_type": "var", "v_patch_nums": [1, 2, ...], "image_size": 256}, needed
                              for other scales than those published for images of 256 and 512 pixels

All sizes follow from the tensors. Parts of the model, and what they are here:

    class_emb, pos_start                the condition `label`, joined adaptively and added to the start token
    word_embed, lvl_embed, pos_1LC      the input layer, its scale vectors, learned positions
    blocks.N.ada_lin, head_nm.ada_lin   adaptive norms; shared_ada_lin and blocks.N.ada_gss at 512 pixels
    blocks.N.attn.scale_mul_1H11        logarithm of the factor of a head, for queries and keys of length 1

The buffers `lvl_1L` and `attn_bias_for_masking` follow from the scales; they are written, but not read.
Source: VAR, arXiv:2404.02905; tensor names and mathematics of FoundationVision/VAR (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...configs.files import write_json
from ...configs.schema import make_config
from ...configs.tensor_checks import WeightsError
from ...tokenize.base import Tokenizer
from ...tokenize.public.checkpoint import Checkpoint, write_pickle
from ...tokenize.public.folder import PublicFolder, check_whole
from ...tokenize.public.images.var_vq import PUBLISHED_SCALES, is_var_vq, read_var_vq, write_var_vq
from ...tokenize.public.survey import survey_part
from ...tokenize.public.tensor_map import Concat, Shape, Source, TensorMap, Term, View
from ...tokenize.quantizers.registry import ScalesConfig, VQConfig, make_quantizer
from ...tokenize.spec import ImageGeometry, TokenSpec
from ..checkpoints.model_directory import LoadedModel
from ..checkpoints.parameter_shapes import parameter_shapes
from ..checkpoints.weights_file import DTYPES, StorageName, lm_of_tensors
from ..conditioning.registry import LabelConfig
from ..config import LMConfig
from ..generation_config import GenerationConfig
from ..guidance_config import LinearGuidance
from ..heads.parallel import ParallelHeadConfig
from ..layers.adaptive_norm import AdaptiveName
from ..models.base import LanguageModel
from ..models.next_scale import NextScaleConfig, NextScaleLM
from ..models.registry import make_lm
from ..ops.rotary import LearnedConfig
from .conversion import check_layout

UNKNOWN_TOKENIZER = "0" * 64
"""Fingerprint if the tokenizer was not loaded."""
VAR_DEFAULTS = GenerationConfig(guidance=LinearGuidance(scale=5.0), top_k=900, top_p=0.95)
"""Of the authors' notebook: its cfg 4 is a guidance that grows from 1 to 5."""
POSITIONS, LEVELS, CLASSES, WORDS, HEAD = (
    *("pos_1LC", "lvl_embed.weight", "class_emb.weight"),
    *("word_embed.weight", "head.weight"),
)
FACTORS = "blocks.0.attn.scale_mul_1H11"
SHARED = "shared_ada_lin.1.weight"
SCALE_OF, MASK = "lvl_1L", "attn_bias_for_masking"
"""Buffers that follow from the scales."""
PIXELS = 16
"""Of the published tokenizer, pixels a side of a code."""
TOKENIZER = "the image tokenizer (vae_ch160v4096z32.pth)"


def is_var(folder: PublicFolder) -> bool:
    """Whether there are weights with the names of VAR's language model."""
    return folder.holding(POSITIONS) is not None


def read_var_tokenizer(folder: PublicFolder) -> Tokenizer | None:
    """The image tokenizer beside the language model, with the model's scales; None if there is none.

    Raises as `load_var` and `read_var_vq`.
    """
    if not is_var_vq(folder):
        return None
    side = folder.config.get("image_size", PIXELS * _scales(folder, _held(folder))[-1])
    return read_var_vq(folder, check_whole(side, "image_size", f"{folder.config_path}: image_size"))


def load_var(
    folder: str | Path,
    spec: TokenSpec | None = None,
    device: torch.device | str = "cpu",
    dtype: StorageName | torch.dtype = "float32",
    tokenizer: Tokenizer | None = None,
) -> NextScaleLM:
    """Read a VAR model, in eval mode.

    Args:
        folder: as described above.
        spec: must be that of the tokenizer; None: not checked.
        dtype: of the weights in memory.
        tokenizer: whose scales the model reads; None: the one in the folder.
    Raises:
        FileNotFoundError: no weights, or no tokenizer. WeightsError: tensors missing, left over or misshapen.
            ValueError: unusable files, a config that the tensors contradict, or a tokenizer that does not fit.
    """
    opened = PublicFolder(folder)
    checkpoint, where = _held(opened), str(opened.config_path)
    sides = _scales(opened, checkpoint)
    config, codes, dim = _config_of(checkpoint.shapes, opened.path, where)
    own = _spec(codes, sides, where)
    tensor_map = var_tensor_map(config, own)
    shapes = var_shapes(config, own, dim)
    survey_part(config, tensor_map, shapes, checkpoint, own)
    checkpoint.check(tensor_map, shapes)
    tokenizer = tokenizer or read_var_tokenizer(opened)
    if tokenizer is None:
        raise FileNotFoundError(
            f"{opened.path}: {TOKENIZER} is not in the folder, and the language model reads its scales; put it there, "
            "or convert with --tokenizer DIR"
        )
    found = tokenizer.spec
    scales = getattr(found.geometry, "scales", None)
    if found.cardinalities != (codes,) or scales != tuple((side, side) for side in sides) or spec not in (None, found):
        raise ValueError(
            f"{opened.path}: the model has {codes} codes on scales of {_words(sides)}, the tokenizer '{found.name}' "
            f"{list(found.cardinalities)} on {scales or 'none'}; pass the tokenizer it was trained with"
        )
    if tokenizer.quantizer.dim != dim:
        raise ValueError(
            f"{opened.path}: the model reads code vectors of {dim} numbers, the tokenizer '{found.name}' has "
            f"{tokenizer.quantizer.dim}; pass the tokenizer it was trained with"
        )
    make = partial(make_lm, quantizer=tokenizer.quantizer)
    tensors = checkpoint.read(tensor_map, shapes)
    lm = lm_of_tensors(config, found, tensors, device, dtype, checkpoint.path, None, make)
    assert isinstance(lm, NextScaleLM)
    return lm


def save_var(folder: str | Path, lm: LanguageModel, dtype: StorageName = "float32") -> None:
    """Write a model as VAR's `var_dN.pth`, N its depth, and config.json for its scales; raises as `describe_var`."""
    folder, described = Path(folder), describe_var(lm)
    assert isinstance(lm, NextScaleLM)
    tensors = var_tensor_map(lm.config, lm.spec).write(lm.state_dict())
    tensors = {name: tensor.to(DTYPES[dtype]) for name, tensor in tensors.items()} | _buffers(lm.counts)
    folder.mkdir(parents=True, exist_ok=True)
    write_pickle(folder / f"var_d{lm.config.layers}.pth", tensors)
    write_json(folder / "config.json", described)


def save_var_whole(folder: Path, model: LoadedModel, dtype: StorageName = "float32") -> None:
    """Write a model with its tokenizer as `vae.pth`.

    Args:
        dtype: of the language model's weights; the tokenizer stays as it is.
    Raises:
        ValueError: the layout cannot represent the model or its tokenizer; names the first setting that differs.
    """
    describe_var(model.lm)
    write_var_vq(folder, model.tokenizer)
    save_var(folder, model.lm, dtype)  # with the config.json of both


def describe_var(lm: LanguageModel) -> dict[str, Any]:
    """config.json of a model; ValueError if the layout cannot represent it, which names the first setting that
    differs."""
    config, geometry = lm.config, lm.spec.geometry
    if not isinstance(lm, NextScaleLM) or not isinstance(geometry, ImageGeometry):
        raise ValueError(f"VAR's layout holds an lm of kind next_scale, found {config.kind}")
    scales = geometry.scales
    if geometry.height != geometry.width or any(rows != columns for rows, columns in scales) or scales[0] != (1, 1):
        raise ValueError(f"VAR's layout has square scales, the first of one code, found {str(scales)[:80]}")
    label = next((one for one in config.conditions if isinstance(one, LabelConfig)), None)
    classes = label.classes if label is not None and label.classes is not None else 1
    expected = var_config(
        config.width, config.layers, config.heads, config.num_ffn, classes, lm.config.adaptive, config.dropout,
        0.1 if label is None else label.dropout,
    )  # fmt: skip
    check_layout("VAR", config, expected, 1)
    return {"model_type": "var", "image_size": geometry.height, "v_patch_nums": [rows for rows, _ in scales]}


def var_config(
    width: int,
    layers: int,
    heads: int,
    ffn: int,
    classes: int,
    adaptive: AdaptiveName = "own",
    dropout: float = 0.0,
    class_dropout: float = 0.1,
    where: str = "var",
) -> NextScaleConfig:
    """The config of a VAR model; ConfigError messages begin with `where`."""
    return make_config(
        NextScaleConfig,
        where,
        width=width,
        layers=layers,
        heads=heads,
        ffn=ffn,
        feed_forward="gelu_tanh",
        norm="layer",
        norm_eps=1e-6,
        qk_norm="l2",
        qkv_bias=True,
        bias=True,
        dropout=dropout,
        rope=LearnedConfig(),
        head=ParallelHeadConfig(bias=True),
        sums="plain",
        adaptive=adaptive,
        conditions=(make_config(LabelConfig, where, classes=classes, join="adaptive", dropout=class_dropout),),
    )


def var_shapes(config: NextScaleConfig, spec: TokenSpec, dim: int) -> dict[str, Shape]:
    """Names and shapes of our tensors of a model over code vectors of `dim` numbers, without a tokenizer."""
    geometry = spec.geometry
    assert isinstance(geometry, ImageGeometry)
    scales = ScalesConfig(sizes=geometry.scales, quantizer=VQConfig(size=spec.cardinalities[0]))

    def make(config: LMConfig, spec: TokenSpec, vectors: Tensor | None) -> Any:
        return make_lm(config, spec, vectors, quantizer=make_quantizer(scales, dim))

    return parameter_shapes(config, spec, make=make)


def var_tensor_map(config: NextScaleConfig, spec: TokenSpec) -> TensorMap:
    """The mapping from their tensors to ours."""
    D, T = config.width, spec.geometry.num_frames  # pyright: ignore[reportAttributeAccessIssue]
    terms: dict[str, Term] = {
        "conditions.parts.label.table.weight": Source(CLASSES),
        "positions.vectors": View(Source(POSITIONS), (1, T, D)),
        "input.start": View(Source("pos_start"), (1, 1, D)),
        "input.levels.weight": Source(LEVELS),
        "head.weight": Source(HEAD),
        "head.bias": Source("head.bias"),
    }
    layers = {"input.linear": "word_embed", "transformer.norm.modulation.linear": "head_nm.ada_lin.1"}
    if config.adaptive == "shared":
        layers["transformer.modulation.linear"] = "shared_ada_lin.1"
    for n in range(config.layers):
        ours, theirs = f"transformer.blocks.{n}.", f"blocks.{n}."
        layers |= {
            f"{ours}attention.out": f"{theirs}attn.proj",
            f"{ours}ffn.up": f"{theirs}ffn.fc1",
            f"{ours}ffn.down": f"{theirs}ffn.fc2",
        }
        if config.adaptive == "shared":
            terms[f"{ours}modulation.weight"] = Source(f"{theirs}ada_gss")
        else:
            layers[f"{ours}modulation.linear"] = f"{theirs}ada_lin.1"
        biases = tuple(Source(f"{theirs}attn.{name}") for name in ("q_bias", "zero_k_bias", "v_bias"))
        terms[f"{ours}attention.qkv.weight"] = Source(f"{theirs}attn.mat_qkv.weight")
        terms[f"{ours}attention.qkv.bias"] = Concat(biases)
        terms[f"{ours}attention.log_factor"] = View(Source(f"{theirs}attn.scale_mul_1H11"), (1, config.heads, 1, 1))
    for ours, theirs in layers.items():
        terms |= {f"{ours}.{leaf}": Source(f"{theirs}.{leaf}") for leaf in ("weight", "bias")}
    return TensorMap(terms, ignored=(SCALE_OF, MASK))


def _config_of(shapes: Mapping[str, Shape], folder: Path, where: str) -> tuple[NextScaleConfig, int, int]:
    """Config of a model with these tensors, number of codes and numbers of a code vector."""
    if FACTORS not in shapes:
        raise WeightsError(
            f"{folder}: tensor '{FACTORS}' is missing; VAR's models with attn_l2_norm False are not supported"
        )
    classes, width = _shape(shapes, CLASSES, 2, folder)
    codes, dim = _shape(shapes, HEAD, 2, folder)[0], _shape(shapes, WORDS, 2, folder)[1]
    heads, ffn = _shape(shapes, FACTORS, 4, folder)[1], _shape(shapes, "blocks.0.ffn.fc1.weight", 2, folder)[0]
    layers = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    adaptive: AdaptiveName = "shared" if SHARED in shapes else "own"
    if _shape(shapes, "pos_start", 3, folder)[1] != 1:
        raise WeightsError(f"{folder}: the first scale has {shapes['pos_start'][1]} codes; only 1 is supported")
    return var_config(width, layers, heads, ffn, classes - 1, adaptive, where=where), codes, dim


def _scales(folder: PublicFolder, checkpoint: Checkpoint) -> tuple[int, ...]:
    """Sides of the scales: of config.json, else the published ones with as many codes."""
    config, path = folder.config, folder.config_path
    if config and config.get("model_type", "var") != "var":
        raise ValueError(f"{path}: its model_type is not 'var'")
    count = _shape(checkpoint.shapes, POSITIONS, 3, folder.path)[1]
    levels = _shape(checkpoint.shapes, LEVELS, 2, folder.path)[0]
    sides = config.get("v_patch_nums")
    if sides is None:
        sides = next((one for one in PUBLISHED_SCALES.values() if sum(side * side for side in one) == count), None)
        if sides is None:
            raise ValueError(
                f"{checkpoint.path}: the model has {count} codes an image, which no published one has; write "
                f'{{"model_type": "var", "v_patch_nums": [1, 2, ...]}} in a config.json beside it'
            )
    if not isinstance(sides, list | tuple) or not all(type(one) is int and 0 < one <= 1024 for one in sides):
        raise ValueError(f"{path}: v_patch_nums must be a list of whole numbers up to 1024, found {str(sides)[:80]!r}")
    if (sum(side * side for side in sides), len(sides)) != (count, levels):
        raise ValueError(
            f"{path}: v_patch_nums {str(list(sides))[:80]} are {len(sides)} scales of {sum(s * s for s in sides)} "
            f"codes, but the tensors have {levels} of {count}"
        )
    return tuple(sides)


def _spec(codes: int, sides: tuple[int, ...], where: str) -> TokenSpec:
    """The TokenSpec of a square image; the tokenizer itself is not loaded."""
    side, scales = sides[-1], tuple((one, one) for one in sides)
    sizes = {"height": PIXELS * side, "width": PIXELS * side, "rows": side, "columns": side}
    geometry = make_config(ImageGeometry, where, **sizes, scales=scales)
    return make_config(
        TokenSpec,
        where,
        name="var-tokenizer",
        cardinalities=(codes,),
        geometry=geometry,
        fingerprint=UNKNOWN_TOKENIZER,
    )


def _buffers(counts: tuple[int, ...]) -> dict[str, Tensor]:
    """Which scale each code is of, and the mask of what a code may not see."""
    scale = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    mask = torch.where(scale[:, None] >= scale, 0.0, -torch.inf)
    return {SCALE_OF: scale[None], MASK: mask[None, None]}


def _held(folder: PublicFolder) -> Checkpoint:
    """The file with the language model; without one, what else is there, or the error of opening it."""
    return folder.holding(POSITIONS) or folder.checkpoint


def _shape(shapes: Mapping[str, Shape], name: str, axes: int, folder: Path) -> Shape:
    """Shape of a tensor that determines the model's size."""
    shape = shapes.get(name)
    if shape is None or len(shape) != axes:
        found = "missing" if shape is None else f"{list(shape)}, which has not {axes} axes"
        raise WeightsError(f"{folder}: tensor '{name}' is {found}; this is no language model of VAR")
    return shape


def _words(sides: tuple[int, ...]) -> str:
    return ", ".join(map(str, sides))
