"""The transformer blocks of a text language model in the layout of Llama or Qwen, as the backbone of a model of codes.

A folder as transformers writes it, with config.json of model_type llama, qwen2 or qwen3 and model.safetensors (or
several files and their index). The blocks and the final norm are read into `transformer.`; the text embeddings and the
output layer are not: a model of codes has its own.

    theirs                                        ours
    self_attn.{q,k,v}_proj                        attention.qkv, rows of q and k in interleaved order (rotary_order.py)
    self_attn.{q,k}_norm (Qwen3)                  attention.{query,key}_norm, in the same order
    self_attn.o_proj                              attention.out
    mlp.{gate,up}_proj                            ffn.gate_up, gate first
    mlp.down_proj                                 ffn.down
    input_layernorm, post_attention_layernorm     attention_norm, ffn_norm

Source: tensor names, config keys and their defaults of transformers 5 (Apache-2.0); a text LM as the backbone of a
codec LM: QTTS (arXiv:2507.12197), Orpheus, CSM.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...configs.files import read_json
from ...configs.schema import nearest_name
from ...tokenize.public.checkpoint import open_checkpoint
from ...tokenize.public.folder import check_whole
from ...tokenize.public.tensor_map import Concat, Permuted, Shape, Source, TensorMap, Term, Unused
from ..config import LMConfig
from ..layers.config import TransformerConfig
from ..layers.transformer import Transformer
from ..ops.rotary import TimeRopeConfig
from .rotary_order import interleaved_rows

IGNORED = ("embed_tokens.", "lm_head.")
"""Tensors that a model of codes has its own of."""
MOST_BASE = 1e12
"""Largest base of the rotary frequencies."""
QK_NORM_EPS = 1e-6
"""Epsilon of our norms of queries and keys."""


@dataclass(frozen=True)
class TextLMLayout:
    """Where the model types differ."""

    bias: bool = False
    """Queries, keys and values have a bias."""
    qk_norm: bool = False
    """Queries and keys are normalized."""
    head_dim: int | None = None
    """Width of a head where config.json does not say; None: hidden_size / num_attention_heads."""
    kv_heads: int | None = None
    """Key and value heads where config.json does not say; None: as many as query heads."""


TEXT_LMS = {
    "llama": TextLMLayout(),
    "qwen2": TextLMLayout(bias=True, kv_heads=32),
    "qwen3": TextLMLayout(qk_norm=True, head_dim=128, kv_heads=32),
}
"""model_type of config.json -> its layout."""


def is_text_lm(folder: str | Path) -> bool:
    """Whether a folder holds a text language model in one of these layouts, by its config.json."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        return False
    described = read_json(path)
    return isinstance(described, dict) and described.get("model_type") in tuple(TEXT_LMS)


def backbone_settings(folder: str | Path) -> dict[str, Any]:
    """The settings of `lm` that the blocks need: sizes, norms and positions, by name.

    Raises:
        FileNotFoundError: no config.json. ValueError: another model type, or a setting that our blocks do not have; the
            message names it.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a text language model is config.json and model.safetensors")
    described = read_json(path)
    kind = described.get("model_type") if isinstance(described, dict) else None
    if kind not in TEXT_LMS:
        raise ValueError(f"{path}: model_type is {kind!r}; {nearest_name(str(kind), TEXT_LMS)}")
    layout = TEXT_LMS[kind]
    _check_supported(described, layout, path)
    width, heads = (_count(described, key, path) for key in ("hidden_size", "num_attention_heads"))
    own = described.get("head_dim", layout.head_dim)
    if own is None and width % heads:
        raise ValueError(f"{path}: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    kv_heads = described.get("num_key_value_heads", layout.kv_heads)
    given = described | {"head_dim": own, "num_key_value_heads": heads if kv_heads is None else kv_heads}
    return {
        "width": width,
        "layers": _count(described, "num_hidden_layers", path),
        "heads": heads,
        "kv_heads": _count(given, "num_key_value_heads", path),
        "head_dim": None if own in (None, width / heads) else _count(given, "head_dim", path),
        "ffn": _count(described, "intermediate_size", path),
        "feed_forward": "swiglu",
        "norm": "rms",
        "norm_eps": float(described.get("rms_norm_eps", 1e-6)),
        "qk_norm": layout.qk_norm,
        "qkv_bias": layout.bias,
        "rope": rope_settings(described, path),
    }


def check_backbone(folder: str | Path, config: LMConfig) -> None:
    """Raise ValueError, which names the first setting, unless `config` computes its blocks as the model in `folder`."""
    for name, value in backbone_settings(folder).items():
        found: Any = getattr(config, {"kv_heads": "num_kv_heads", "ffn": "num_ffn"}.get(name, name))
        if name == "rope":
            found, value = found.model_dump(), TimeRopeConfig.model_validate(value).model_dump()
        if name == "head_dim":
            found, value = config.head_width, value or config.width // config.heads
        if found != value:
            raise ValueError(
                f"lm.{name} is {found!r}, the blocks of {folder} need {value!r}; set it, or leave the key out"
            )


def read_backbone(folder: str | Path, config: LMConfig) -> dict[str, Tensor]:
    """The tensors of the blocks and the final norm, by their names in a model of codes, float32 on the CPU.

    Raises:
        FileNotFoundError: config.json or weights are missing. WeightsError: tensors are missing, left over, or of
            another shape than config.json says. ValueError: `config` computes something else (`check_backbone`).
    """
    folder = Path(folder)
    check_backbone(folder, config)
    checkpoint = open_checkpoint(folder)
    base = "model." if any(name.startswith("model.layers.") for name in checkpoint.shapes) else ""
    shapes = _shapes_of(config)
    tensors = checkpoint.read(_tensor_map(config, shapes, base), shapes)
    return {f"transformer.{name}": tensor.float() for name, tensor in tensors.items()}


def _tensor_map(config: LMConfig, shapes: Mapping[str, Shape], base: str) -> TensorMap:
    """The map of the blocks; base: prefix of their names."""
    ignored = tuple(prefix + name for prefix in ("", base) for name in IGNORED)
    frequencies = {
        f"{base}layers.{n}.self_attn.rotary_emb.inv_freq": Unused((config.head_width // 2,), required=False)
        for n in range(config.layers)
    }
    return TensorMap(stack_terms(config.transformer, shapes, base), frequencies, ignored)


def stack_terms(config: TransformerConfig, names: Iterable[str], base: str) -> dict[str, Term]:
    """The terms of the blocks and the final norm of a transformer.

    Args:
        names: of our tensors, those of a `Transformer`.
        base: prefix of their names.
    """
    heads, groups, head_width = config.heads, config.kv_heads, config.head_width
    orders = {
        "q_proj": interleaved_rows(heads, head_width),
        "k_proj": interleaved_rows(groups, head_width),
        "q_norm": interleaved_rows(1, head_width),
        "k_norm": interleaved_rows(1, head_width),
    }
    terms: dict[str, Term] = {}
    for name in names:
        theirs = _sources(name, base)
        parts: list[Term] = []
        for source in theirs:
            order = orders.get(source.split(".")[-2])
            parts.append(Source(source) if order is None else Permuted(Source(source), order))
        sizes = (heads * head_width, groups * head_width, groups * head_width) if len(theirs) == 3 else None
        terms[name] = Concat(tuple(parts), sizes) if len(parts) > 1 else parts[0]
    return terms


def _shapes_of(config: LMConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of our blocks, without cross-attention, which a text model does not have."""
    with torch.device("meta"):
        net = Transformer(config.transformer)
    names = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    return {name: shape for name, shape in names.items() if ".cross" not in name}


_PARTS = {
    "attention_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.query_norm": ("self_attn.q_norm",),
    "attention.key_norm": ("self_attn.k_norm",),
    "attention.out": ("self_attn.o_proj",),
    "ffn_norm": ("post_attention_layernorm",),
    "ffn.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "ffn.down": ("mlp.down_proj",),
}


def _sources(name: str, base: str) -> list[str]:
    """Their tensors, of which one of ours is the concatenation."""
    if name.startswith("norm."):
        return [base + name]
    _, layer, *module, end = name.split(".")
    return [f"{base}layers.{layer}.{theirs}.{end}" for theirs in _PARTS[".".join(module)]]


def _check_supported(described: Mapping[str, Any], layout: TextLMLayout, path: Path) -> None:
    """Raise ValueError for settings that our blocks do not have."""
    refused: dict[str, tuple[Any, ...]] = {
        "hidden_act": ("silu",),
        "attention_bias": (False,) if not layout.bias else (False, True),
        "mlp_bias": (False,),
        "use_sliding_window": (False,),
        "pretraining_tp": (1, None),
        "partial_rotary_factor": (1, 1.0, None),
    }
    for key, allowed in refused.items():
        if described.get(key, allowed[0]) not in allowed:
            raise ValueError(f"{path}: {key} is {described[key]!r}; only {allowed[0]!r} is supported")
    eps = described.get("rms_norm_eps", 1e-6)
    if type(eps) not in (int, float) or not 0 < eps < 1:
        raise ValueError(f"{path}: rms_norm_eps must be a number above 0 and below 1, found {str(eps)[:80]!r}")
    if layout.qk_norm and eps != QK_NORM_EPS:
        raise ValueError(f"{path}: rms_norm_eps is {eps!r}; norms of queries and keys have {QK_NORM_EPS:g} here")


def rope_settings(described: Mapping[str, Any], path: Path | str) -> dict[str, Any]:
    """Settings of our rotary embedding, from rope_parameters, or rope_scaling and rope_theta, of a config; ValueError
    for scalings that it does not have. path: for messages."""
    given = described.get("rope_parameters") or {}
    old = described.get("rope_scaling") or {}
    if not isinstance(given, dict) or not isinstance(old, dict):
        raise ValueError(f"{path}: rope_parameters and rope_scaling must be mappings")
    given = old | given
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"{path}: rope_type is {kind!r}; default and llama3 are supported")
    base = _positive(
        given | {"rope_theta": given.get("rope_theta", described.get("rope_theta", 10000.0))}, "rope_theta", path
    )
    if kind == "default":
        return {"kind": "time", "base": base, "scaling": None}
    low, high, factor = (_positive(given, key, path) for key in ("low_freq_factor", "high_freq_factor", "factor"))
    if low >= high or factor < 1:
        raise ValueError(
            f"{path}: llama3 needs low_freq_factor below high_freq_factor, and factor of at least 1, "
            f"found {low}, {high} and {factor}"
        )
    steps = _count(given, "original_max_position_embeddings", path)
    scaling = {"kind": "llama3", "factor": factor, "low_factor": low, "high_factor": high, "steps": steps}
    return {"kind": "time", "base": base, "scaling": scaling}


def _positive(described: Mapping[str, Any], key: str, path: Path | str) -> float:
    value: Any = described.get(key)
    if type(value) not in (int, float) or not 0 < value <= MOST_BASE:
        found = repr(str(value)[:80])
        raise ValueError(f"{path}: {key} must be a number above 0, at most {MOST_BASE:g}, found {found}")
    return float(value)


def _count(described: Mapping[str, Any], key: str, path: Path | str) -> int:
    return check_whole(described.get(key), key, f"{path}: {key}")
