"""Mimi in the layout of its authors, the package `moshi`: one safetensors file with the names of its modules.

Repositories of Moshi's family hold it beside a language model, as `tokenizer-e351c8d8-checkpoint125.safetensors` or
under the name that `mimi_name` of their config.json gives; `mimi_config_name` there may give a JSON file with its
settings. Without one, they are those of the published codec. Licence of the weights: CC-BY 4.0.
Source: Moshi, arXiv:2410.00037; tensor names, config keys and defaults of moshi 0.2 (MIT).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...configs.files import read_json, write_json, write_safetensors
from ...configs.names import check_file_name
from ..audio.networks import AudioTokenizerConfig
from ..base import Tokenizer
from .building import public_tensors, read_tokenizer
from .folder import PublicFolder, typed_values
from .mimi import MimiNames, chosen_levels, describe_mimi, held_levels, mimi_config, mimi_tensor_map
from .seanet_names import NATIVE
from .tensor_map import Permuted, Source, Term

WEIGHTS, SETTINGS = "mimi.safetensors", "mimi_config.json"

PUBLISHED: dict[str, Any] = {
    "sample_rate": 24000,
    "channels": 1,
    "frame_rate": 12.5,
    "seanet": {
        "channels": 1,
        "dimension": 512,
        "causal": True,
        "n_filters": 64,
        "n_residual_layers": 1,
        "activation": "ELU",
        "compress": 2,
        "dilation_base": 2,
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 3,
        "norm": "none",
        "pad_mode": "constant",
        "ratios": [8, 6, 5, 4],
        "true_skip": True,
    },
    "quantizer": {
        "dimension": 256,
        "n_q": 32,
        "n_q_semantic": 1,
        "bins": 2048,
        "input_dimension": 512,
        "output_dimension": 512,
    },
    "transformer": {
        "d_model": 512,
        "num_heads": 8,
        "num_layers": 8,
        "causal": True,
        "layer_scale": 0.01,
        "context": 250,
        "conv_layout": True,
        "max_period": 10000.0,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "dim_feedforward": 2048,
        "input_dimension": 512,
        "output_dimensions": [512],
    },
}
"""Settings of the published codec."""


def interleaved_rows(heads: int, width: int) -> Tensor:
    """Index of the rows of query, key and value [3 * width] whose rotary pairs (2 e, 2 e + 1) become (e, e + E / 2)."""
    rows = torch.arange(width).view(heads, -1, 2).transpose(1, 2).flatten()
    return torch.cat([rows, width + rows, 2 * width + torch.arange(width)])


def _block(theirs: str, heads: int, width: int, numbered: bool = False) -> dict[str, Term]:
    """numbered: the package's own spelling since 0.2, which reads both."""
    projections = ("in_projs.0.weight", "out_projs.0.weight") if numbered else ("in_proj_weight", "out_proj.weight")
    inputs, outputs = (Source(f"{theirs}self_attn.{name}") for name in projections)
    return {
        "attention_norm.weight": Source(f"{theirs}norm1.weight"),
        "attention_norm.bias": Source(f"{theirs}norm1.bias"),
        "query_key_value.weight": Permuted(inputs, interleaved_rows(heads, width)),
        "out.weight": outputs,
        "mlp_norm.weight": Source(f"{theirs}norm2.weight"),
        "mlp_norm.bias": Source(f"{theirs}norm2.bias"),
        "widen.weight": Source(f"{theirs}linear1.weight"),
        "narrow.weight": Source(f"{theirs}linear2.weight"),
        "attention_scale": Source(f"{theirs}layer_scale_1.scale"),
        "mlp_scale": Source(f"{theirs}layer_scale_2.scale"),
    }


def moshi_names(numbered: bool = False) -> MimiNames:
    """Names of the package's modules; see `_block`."""
    return MimiNames(
        seanet=NATIVE,
        down="downsample.conv.conv.conv.weight",
        up="upsample.convtr.convtr.convtr.weight",
        blocks="{side}_transformer.transformer.layers.{number}.",
        block=partial(_block, numbered=numbered),
        parts=("quantizer.rvq_first.", "quantizer.rvq_rest."),
        book="vq.layers.{}._codebook.",
        codebook=("embedding_sum", "cluster_usage", "_initialized"),
    )


FIRST = "quantizer.rvq_first.vq.layers.0._codebook.embedding_sum"


def is_moshi(folder: PublicFolder) -> bool:
    """Whether this is a file of Mimi's weights, or a folder with one."""
    return FIRST in _weights(folder).checkpoint.shapes


def _weights(folder: PublicFolder) -> PublicFolder:
    """The file of Mimi's weights in a folder."""
    if not folder.path.is_dir():
        return folder
    name = folder.config.get("mimi_name")
    if name is not None:
        check_file_name(name, f"{folder.config_path}: mimi_name")
        return PublicFolder(folder.path / name)
    found = sorted(folder.path.glob("tokenizer-*-checkpoint*.safetensors"))
    return PublicFolder(found[0]) if len(found) == 1 else folder


def read_moshi(folder: PublicFolder, codebooks: int | None = None) -> Tokenizer:
    """Read a Mimi of the package `moshi`; see read_encodec for arguments and errors."""
    weights, values = _weights(folder), PUBLISHED
    where = f"{weights.path}: settings"
    name = folder.config.get("mimi_config_name")
    if name is not None:
        check_file_name(name, f"{folder.config_path}: mimi_config_name")
        where = str(folder.path / name)
        values = _typed(read_json(folder.path / name), where)
    checkpoint = weights.checkpoint
    names = moshi_names("encoder_transformer.transformer.layers.0.self_attn.in_projs.0.weight" in checkpoint.shapes)
    held = held_levels(checkpoint, names)
    config = mimi_config(
        _settings(values, held[0], where), chosen_levels(held, codebooks, weights.path), where, "zeros"
    )
    return read_tokenizer(config, mimi_tensor_map(config, names, held), checkpoint)


def _typed(described: Any, where: str) -> dict[str, Any]:
    """A settings file with the published settings for absent keys, each of the same type."""
    values = typed_values(described, {key: one for key, one in PUBLISHED.items() if not isinstance(one, dict)}, where)
    for section, defaults in PUBLISHED.items():
        if isinstance(defaults, dict):
            values[section] = typed_values(described.get(section), defaults, f"{where}: {section}")
    return values


def _settings(values: dict[str, Any], semantic: int, where: str) -> dict[str, Any]:
    """The package's settings -> settings by the keys of MimiConfig."""
    seanet, quantizer, transformer = values["seanet"], values["quantizer"], values["transformer"]
    dim = seanet["dimension"]
    supported = {
        "seanet": {"causal": True, "activation": "ELU", "norm": "none", "channels": values["channels"]},
        "quantizer": {"input_dimension": dim, "output_dimension": dim},
        "transformer": {
            **{"d_model": dim, "causal": True, "conv_layout": True, "gating": "none", "norm": "layer_norm"},
            **{"positional_embedding": "rope", "input_dimension": dim, "output_dimensions": [dim]},
        },
    }
    for section, wanted in supported.items():
        for key, value in wanted.items():
            if values[section][key] != value:
                found = repr(values[section][key])[:80]
                raise ValueError(f"{where}: {section}.{key} is {found}; only {value!r} is supported here")
    return {
        "sampling_rate": values["sample_rate"],
        "frame_rate": values["frame_rate"],
        "audio_channels": values["channels"],
        "hidden_size": dim,
        "num_filters": seanet["n_filters"],
        "num_residual_layers": seanet["n_residual_layers"],
        "upsampling_ratios": seanet["ratios"],
        "kernel_size": seanet["kernel_size"],
        "last_kernel_size": seanet["last_kernel_size"],
        "residual_kernel_size": seanet["residual_kernel_size"],
        "dilation_growth_rate": seanet["dilation_base"],
        "use_causal_conv": True,
        "pad_mode": seanet["pad_mode"],
        "compress": seanet["compress"],
        "trim_right_ratio": 1.0,
        "codebook_size": quantizer["bins"],
        "codebook_dim": quantizer["dimension"],
        "use_conv_shortcut": not seanet["true_skip"],
        "vector_quantization_hidden_dimension": quantizer["dimension"],
        "num_semantic_quantizers": semantic,
        "upsample_groups": dim,
        "num_hidden_layers": transformer["num_layers"],
        "intermediate_size": transformer["dim_feedforward"],
        "num_attention_heads": transformer["num_heads"],
        "num_key_value_heads": transformer["num_heads"],
        "head_dim": None,
        "hidden_act": "gelu",
        "norm_eps": 1e-5,
        "rope_theta": transformer["max_period"],
        "rope_parameters": None,
        "sliding_window": transformer["context"],
        "layer_scale_initial_scale": transformer["layer_scale"],
        "attention_bias": False,
    }


def write_moshi(folder: Path, tokenizer: Tokenizer) -> None:
    """Write Mimi's weights and settings for `moshi.models.loaders.get_mimi`; CannotWrite as `write_mimi`."""
    values, levels = describe_mimi("moshi", tokenizer.config)
    assert isinstance(tokenizer.config, AudioTokenizerConfig)
    dim = values["hidden_size"]
    seanet = PUBLISHED["seanet"] | {
        "channels": values["audio_channels"],
        "dimension": dim,
        "n_filters": values["num_filters"],
        "n_residual_layers": values["num_residual_layers"],
        "compress": values["compress"],
        "dilation_base": values["dilation_growth_rate"],
        "kernel_size": values["kernel_size"],
        "residual_kernel_size": values["residual_kernel_size"],
        "last_kernel_size": values["last_kernel_size"],
        "pad_mode": values["pad_mode"],
        "ratios": values["upsampling_ratios"],
        "true_skip": not values["use_conv_shortcut"],
    }
    quantizer = {"dimension": values["codebook_dim"], "n_q": sum(levels), "n_q_semantic": levels[0]}
    quantizer |= {"bins": values["codebook_size"], "input_dimension": dim, "output_dimension": dim}
    transformer = PUBLISHED["transformer"] | {
        "d_model": dim,
        "num_heads": values["num_attention_heads"],
        "num_layers": values["num_hidden_layers"],
        "layer_scale": values["layer_scale_initial_scale"],
        "context": values["sliding_window"],
        "max_period": values["rope_theta"],
        "dim_feedforward": values["intermediate_size"],
        "input_dimension": dim,
        "output_dimensions": [dim],
    }
    described = {"sample_rate": values["sampling_rate"], "channels": values["audio_channels"]}
    described |= {"frame_rate": values["frame_rate"], "seanet": seanet, "quantizer": quantizer}
    tensors = public_tensors(tokenizer, mimi_tensor_map(tokenizer.config, moshi_names()))
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / WEIGHTS, tensors, {"format": "pt"})
    write_json(folder / SETTINGS, described | {"transformer": transformer})
    write_json(folder / "config.json", {"mimi_name": WEIGHTS, "mimi_config_name": SETTINGS})
