"""EnCodec in its authors' layouts: `compression_state_dict.bin` of audiocraft, and files of the package `encodec`.

audiocraft stores {'best_state': tensors by name, 'xp.cfg': its config in YAML}: the codecs of MusicGen (32 kHz) and
AudioGen (16 kHz). The package's files hold the tensors alone; the settings that they do not show are those of its two
models: causal at 24 kHz, and stereo in normalized segments of a second at 48 kHz where there are group norms. Licences:
code MIT; weights of audiocraft CC-BY-NC 4.0.
Source: tensor names, config keys and class defaults of audiocraft 1.3 and encodec 0.1 (MIT); EnCodec, arXiv:2210.13438.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...configs.schema import parse_yaml
from ...configs.tensor_checks import WeightsError
from ..audio.networks import AudioTokenizerConfig
from ..base import Tokenizer
from ..quantizers.combinators.residual import ResidualConfig
from .building import count_levels, found_weight_norm, public_tensors, read_tokenizer, tokenizer_shapes, weight_g
from .checkpoint import PICKLE_ENDINGS, Checkpoint, read_pickle
from .encodec import describe_encodec, encodec_config, encodec_tensor_map
from .folder import PublicFolder, typed_values
from .layout import check_tokenizer_layout
from .seanet_names import NATIVE
from .tensor_map import CannotWrite, Shape, TensorMap

BOOK = "quantizer.vq.layers.{}._codebook."
FILE = "compression_state_dict.bin"
CONFIG = "xp.cfg"
PACKAGE_FILE = "encodec.th"

SEANET: dict[str, Any] = {
    "channels": 1,
    "dimension": 128,
    "n_filters": 32,
    "n_residual_layers": 3,
    "ratios": [8, 5, 4, 2],
    "norm": "none",
    "kernel_size": 7,
    "last_kernel_size": 7,
    "residual_kernel_size": 3,
    "dilation_base": 2,
    "causal": False,
    "pad_mode": "reflect",
    "true_skip": True,
    "compress": 2,
    "lstm": 0,
}
"""Class defaults of audiocraft's SEANetEncoder and SEANetDecoder."""
THEIR_KEYS = {
    "hidden_size": "dimension",
    "num_filters": "n_filters",
    "num_residual_layers": "n_residual_layers",
    "upsampling_ratios": "ratios",
    "kernel_size": "kernel_size",
    "last_kernel_size": "last_kernel_size",
    "residual_kernel_size": "residual_kernel_size",
    "dilation_growth_rate": "dilation_base",
    "use_causal_conv": "causal",
    "pad_mode": "pad_mode",
    "compress": "compress",
    "num_lstm_layers": "lstm",
}
"""Keys of EncodecConfig -> keys of audiocraft's section `seanet`."""


def is_audiocraft(folder: PublicFolder) -> bool:
    """Whether this is audiocraft's file of a codec, or a folder with it."""
    if folder.path.is_dir():
        return (folder.path / FILE).is_file()
    if folder.path.suffix not in PICKLE_ENDINGS:
        return False
    described = read_pickle(folder.path)
    return isinstance(described, dict) and ("pretrained" in described or (CONFIG in described and _has_codec(folder)))


def _has_codec(folder: PublicFolder) -> bool:
    return f"{BOOK.format(0)}embed" in folder.checkpoint.shapes


def read_audiocraft(folder: PublicFolder, codebooks: int | None = None) -> Tokenizer:
    """Read audiocraft's codec; see read_encodec."""
    if folder.path.is_dir():
        folder = PublicFolder(folder.path / FILE)
    content = read_pickle(folder.path)
    if isinstance(content, dict) and "pretrained" in content:
        raise ValueError(
            f"{folder.path}: holds only the name of a codec, {str(content['pretrained'])[:100]!r}; give that one"
        )
    if not _has_codec(folder):
        raise WeightsError(f"{folder.path}: tensor '{BOOK.format(0)}embed' is missing; this is no EnCodec")
    config, where = read_xp_config(folder.checkpoint)
    return _read(folder.checkpoint, _settings(config, where), codebooks, where)


def read_xp_config(checkpoint: Checkpoint) -> tuple[Any, str]:
    """The config in one of audiocraft's files, and its place for messages.

    Raises:
        ValueError: it is not text, or no YAML.
    """
    where = f"{checkpoint.path}: {CONFIG}"
    text = (checkpoint.described or {}).get(CONFIG)
    if not isinstance(text, str):
        raise ValueError(f"{where} must be text, found {type(text).__name__}")
    return parse_yaml(text, where), where


def _read(checkpoint: Checkpoint, values: dict[str, Any], codebooks: int | None, where: str) -> Tokenizer:
    before, after = f"{BOOK}embed".split("{}")
    held = count_levels(checkpoint.shapes, before, after)
    if codebooks is not None and not 1 <= codebooks <= held:
        raise ValueError(f"{checkpoint.path}: {codebooks} codebooks were asked for, the file has {held}")
    config = encodec_config(values, codebooks or held, where)
    return read_tokenizer(config, _map(config, checkpoint, held), checkpoint)


def _map(config: AudioTokenizerConfig, checkpoint: Checkpoint | None = None, levels: int | None = None) -> TensorMap:
    weight = weight_g if checkpoint is None else found_weight_norm(checkpoint)
    return encodec_tensor_map(config, weight, levels, names=NATIVE, book=BOOK)


def _settings(config: Any, where: str) -> dict[str, Any]:
    """Audiocraft's config -> settings by the keys of EncodecConfig."""
    wanted = {"compression_model": "encodec", "encodec.autoencoder": "seanet", "encodec.quantizer": "rvq"}
    wanted |= {"encodec.renormalize": False, "seanet.activation": "ELU", "seanet.activation_params.alpha": 1.0}
    wanted |= {"seanet.encoder": {}, "seanet.decoder.final_activation": None}
    for key, value in wanted.items():
        found = config_value(config, key, value, where)
        if found != value:
            raise ValueError(f"{where}: {key} is {repr(found)[:80]}; only {value!r} is supported")
    decoder = config_value(config, "seanet.decoder", {}, where)
    other = sorted(decoder.keys() - {"trim_right_ratio", "final_activation", "final_activation_params"})
    if other:
        raise ValueError(f"{where}: seanet.decoder.{other[0]} is set; a decoder unlike the encoder is not supported")
    held = {key: config_value(config, f"seanet.{key}", default, where) for key, default in SEANET.items()}
    norms = {"none": "weight_norm", "weight_norm": "weight_norm", "time_group_norm": "time_group_norm"}
    if held["norm"] not in norms:
        raise ValueError(f"{where}: seanet.norm is {held['norm']!r}; only {' or '.join(norms)} is supported")
    values = {ours: held[theirs] for ours, theirs in THEIR_KEYS.items()}
    return values | {
        "sampling_rate": config_value(config, "encodec.sample_rate", 0, where),
        "audio_channels": held["channels"],
        "normalize": False,
        "chunk_length_s": None,
        "overlap": None,
        "norm_type": norms[held["norm"]],
        "trim_right_ratio": config_value(config, "seanet.decoder.trim_right_ratio", 1.0, where),
        "codebook_size": config_value(config, "rvq.bins", 1024, where),
        "codebook_dim": None,
        "use_conv_shortcut": not held["true_skip"],
    }


def config_value(config: Any, key: str, default: Any, where: str) -> Any:
    """The value at a.b.c of the config; `${d.e}` stands for the value at d.e. It must be of the default's type."""
    asked = key
    for _ in range(8):
        value = config
        for part in key.split("."):
            value = value.get(part, default) if isinstance(value, dict) else default
        reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        if reference is None:
            break
        key = reference[1]
    if isinstance(default, float) and type(value) is int:
        value = float(value)
    if default is not None and type(value) is not type(default):
        raise ValueError(f"{where}: {asked} must be of type {type(default).__name__}, found {str(value)[:80]!r}")
    last = asked.rpartition(".")[2]
    return typed_values({last: value}, {last: default}, f"{where}: {asked.removesuffix(f'.{last}')}")[last]


def write_audiocraft(folder: Path, tokenizer: Tokenizer) -> None:
    """Write `compression_state_dict.bin`; CannotWrite as `write_encodec`."""
    values = _representable("audiocraft", tokenizer)
    seanet = {theirs: values[ours] for ours, theirs in THEIR_KEYS.items()}
    seanet |= {"channels": values["audio_channels"], "true_skip": not values["use_conv_shortcut"]}
    seanet |= {"norm": values["norm_type"], "activation": "ELU", "activation_params": {"alpha": 1.0}, "encoder": {}}
    seanet["decoder"] = {"trim_right_ratio": values["trim_right_ratio"], "final_activation": None}
    encodec = {"autoencoder": "seanet", "quantizer": "rvq", "sample_rate": values["sampling_rate"]}
    encodec |= {"channels": values["audio_channels"], "causal": values["use_causal_conv"], "renormalize": False}
    assert isinstance(tokenizer.config.quantizer, ResidualConfig)
    rvq = {"n_q": tokenizer.config.quantizer.levels, "bins": values["codebook_size"]}
    described = {"compression_model": "encodec", "sample_rate": values["sampling_rate"], "device": "cpu"}
    described |= {"channels": values["audio_channels"], "encodec": encodec, "seanet": seanet, "rvq": rvq}
    _save(folder, FILE, tokenizer, {CONFIG: json.dumps(described), "version": "1.3.0", "exported": True})


def _representable(layout: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """Settings of a tokenizer by the keys of EncodecConfig; CannotWrite if they do not describe all of it."""
    config = tokenizer.config
    values = describe_encodec(config)
    assert isinstance(config, AudioTokenizerConfig) and isinstance(config.quantizer, ResidualConfig)
    if layout == "audiocraft":
        values |= {"normalize": False, "chunk_length_s": None}
        if config.segments is not None:
            raise CannotWrite("audiocraft's layout does not support this tokenizer's segments")
    check_tokenizer_layout(layout, config, encodec_config(values, config.quantizer.levels))
    return values


def _save(folder: Path, name: str, tokenizer: Tokenizer, described: Mapping[str, Any] | None) -> None:
    assert isinstance(tokenizer.config, AudioTokenizerConfig)
    tensors = public_tensors(tokenizer, _map(tokenizer.config))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors if described is None else {"best_state": tensors, **described}, folder / name)


def is_encodec_package(folder: PublicFolder) -> bool:
    """Whether this is a file of the package `encodec`, or a folder whose only weights are one."""
    return _has_codec(folder) and folder.checkpoint.described is None


def read_encodec_package(folder: PublicFolder, codebooks: int | None = None) -> Tokenizer:
    """Read a file of the package `encodec`; see read_encodec."""
    return _read(folder.checkpoint, _shown(folder.checkpoint.shapes, folder.path), codebooks, str(folder.path))


def _shown(shapes: Mapping[str, Shape], path: Path) -> dict[str, Any]:
    """Settings that the shapes show, and those of the package's two models, by the keys of EncodecConfig."""
    grouped = "encoder.model.0.conv.norm.weight" in shapes
    convs: dict[str, Shape] = {}
    for name, shape in shapes.items():
        found = re.fullmatch(r"(encoder\.model\.\S+)\.conv\.conv\.weight(_v)?", name)
        if found is not None and len(shape) == 3:
            convs[found[1]] = shape
    places = sorted(int(name.rpartition(".")[2]) for name in convs if re.fullmatch(r"encoder\.model\.\d+", name))
    blocks = sorted(int(name.split(".")[2]) for name in convs if name.endswith(".block.1"))
    recurrent = [name for name in shapes if re.fullmatch(r"encoder\.model\.\d+\.lstm\.weight_ih_l\d+", name)]
    if len(places) < 3 or not blocks or blocks[0] != 1:
        raise WeightsError(f"{path}: has codebooks of an EnCodec, but not the layers of its encoder")
    first, last, inner = (convs[f"encoder.model.{name}"] for name in (places[0], places[-1], "1.block.1"))
    ratios = [convs[f"encoder.model.{place}"][2] // 2 for place in reversed(places[1:-1])]
    return {
        "sampling_rate": 48000 if grouped else 24000,
        "audio_channels": first[1],
        "normalize": grouped,
        "chunk_length_s": 1.0 if grouped else None,
        "overlap": 0.01 if grouped else None,
        "hidden_size": last[0],
        "num_filters": first[0],
        "num_residual_layers": len(blocks) // len(ratios),
        "upsampling_ratios": ratios,
        "norm_type": "time_group_norm" if grouped else "weight_norm",
        "kernel_size": first[2],
        "last_kernel_size": last[2],
        "residual_kernel_size": inner[2],
        "dilation_growth_rate": 2,
        "use_causal_conv": not grouped,
        "pad_mode": "reflect",
        "compress": max(1, inner[1] // max(1, inner[0])),
        "num_lstm_layers": len(recurrent),
        "trim_right_ratio": 1.0,
        "codebook_size": shapes[f"{BOOK.format(0)}embed"][0],
        "codebook_dim": None,
        "use_conv_shortcut": "encoder.model.1.shortcut" in convs,
    }


def write_encodec_package(folder: Path, tokenizer: Tokenizer) -> None:
    """Write `encodec.th`; CannotWrite if the tokenizer has other settings than the package's models."""
    _representable("encodec", tokenizer)
    config = tokenizer.config
    assert isinstance(config, AudioTokenizerConfig) and isinstance(config.quantizer, ResidualConfig)
    shapes = _map(config).expected(tokenizer_shapes(config))
    expected = encodec_config(_shown(shapes, folder), config.quantizer.levels)
    check_tokenizer_layout("encodec", config, expected)
    _save(folder, PACKAGE_FILE, tokenizer, None)
