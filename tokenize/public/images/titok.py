"""TiTok of 1d-tokenizer: a folder with config.json and model.safetensors, or a `.bin` and the yaml of its config.

The config is needed: tensors do not tell the number of heads, nor whether codes are searched on the unit sphere. Two
kinds are published: of the paper (`is_legacy`; its decoder chooses codes of a MaskGIT-VQGAN, whose decoder is in the
same file), and later ones that give pixels. The size of the images is that of the position embeddings. Licence:
Apache-2.0.
Source: TiTok, arXiv:2406.07550; tensor names, config keys and sizes of bytedance/1d-tokenizer (Apache-2.0).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ....configs.files import write_json, write_safetensors
from ....configs.schema import check_config, read_yaml
from ...base import Tokenizer
from ...image.maskgit import MaskGITConfig
from ...image.networks import ImageTokenizerConfig
from ...image.titok import TiTokConfig
from ...quantizers.vq import VQConfig
from ..building import any_codebook_terms, public_tensors, read_tokenizer, tokenizer_shapes
from ..folder import PublicFolder, typed_values
from ..layout import check_tokenizer_layout
from ..tensor_map import CannotWrite, Permuted, Shape, Source, TensorMap, Term, View

FIRST = "encoder.latent_token_positional_embedding"
CAPTION = "decoder.text_guidance_proj.weight"
SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}
"""Width, layers and heads of a transformer by its name in the config."""
PIXELS = MaskGITConfig()
"""The MaskGIT-VQGAN of the models of the paper, of the only size that the original's class has."""
REQUIRED = {
    **{"codebook_size": 1, "token_size": 1, "use_l2_norm": True, "num_latent_tokens": 1},
    **{"vit_enc_model_size": "", "vit_dec_model_size": "", "vit_enc_patch_size": 1, "vit_dec_patch_size": 1},
}
"""Keys of `model.vq_model`, with a value of their type."""
OPTIONAL = {"quantize_mode": "vq", "is_legacy": True, "finetune_decoder": True}
"""Further ones, with the original's defaults."""


def is_titok(folder: PublicFolder) -> bool:
    """Whether there are weights with TiTok's names."""
    return folder.holding(FIRST) is not None


def read_titok(folder: PublicFolder) -> Tokenizer:
    """Read a tokenizer of TiTok.

    Raises:
        ValueError: no config, or settings that are not supported, by name. WeightsError: tensors missing, left over or
            of another shape than the config requires.
    """
    checkpoint = folder.holding(FIRST) or folder.checkpoint
    if CAPTION in checkpoint.shapes:
        raise ValueError(
            f"{checkpoint.path}: tensor '{CAPTION}' is of TA-TiTok, whose decoder reads a caption beside the codes; "
            f"it is not supported"
        )
    where, described = _described(folder)
    config = titok_config(described, where)
    return read_tokenizer(config, titok_tensor_map(config), checkpoint)


def _described(folder: PublicFolder) -> tuple[str, dict[str, Any]]:
    """The config beside the weights, and where it is."""
    inside = folder.path if folder.path.is_dir() else folder.path.parent
    found = {PublicFolder(inside).config_path: PublicFolder(inside).config}
    found |= {file: read_yaml(file) for file in sorted(inside.glob("*.y*ml"))}
    found = {str(file): one for file, one in found.items() if isinstance(_within(one, "model", "vq_model"), dict)}
    if len(found) != 1:
        many = f"several configs may be of the weights: {', '.join(found)}; leave one of them"
        none = "no config of TiTok; put its config.json, or the yaml of configs/infer/TiTok, beside the weights"
        raise ValueError(f"{inside}: {many if found else none}")
    return next(iter(found.items()))


def _within(described: Any, *keys: str) -> Any:
    """The value below nested keys; None if there is none."""
    for key in keys:
        described = described.get(key) if isinstance(described, dict) else None
    return described


def titok_config(described: dict[str, Any], where: str = "TiTok") -> ImageTokenizerConfig:
    """Our config of a tokenizer with this config.json or yaml; where: its path, for messages.

    Raises:
        ValueError: a setting that is missing, of another type or not supported, by name.
    """
    held = described["model"]["vq_model"]
    where = f"{where}: model.vq_model"
    kind = typed_values(held, OPTIONAL, where)
    if kind["quantize_mode"] != "vq":
        raise ValueError(
            f"{where}: quantize_mode is {kind['quantize_mode'][:80]!r}; continuous latents are not supported, only 'vq'"
        )
    if kind["is_legacy"] and not kind["finetune_decoder"]:
        raise ValueError(
            f"{where}: is_legacy without finetune_decoder is the first stage of training, which makes codes of a "
            f"MaskGIT-VQGAN that is in another file; only whole tokenizers are supported"
        )
    if kind["finetune_decoder"] and not kind["is_legacy"]:
        raise ValueError(f"{where}: finetune_decoder is true, which needs is_legacy: a decoder of codes, not of pixels")
    missing = [key for key in REQUIRED if key not in held]
    if missing:
        raise ValueError(f"{where}: {missing[0]} is missing")
    values = typed_values(held, REQUIRED, where)
    crop = _within(described, "dataset", "preprocessing")
    side = typed_values(crop, {"crop_size": 256}, f"{where.removesuffix('model.vq_model')}dataset.preprocessing")
    encoder, decoder = (_part(values, name, where) for name in ("enc", "dec"))
    config = {
        "kind": "picture",
        "name": f"titok-{values['num_latent_tokens']}",
        "height": side["crop_size"],
        "width": side["crop_size"],
        "latent_dim": values["token_size"],
        "encoder": encoder | ({"latents": "reshaped"} if kind["is_legacy"] else {}),
        "decoder": decoder | ({"pixels": PIXELS.model_dump(mode="json")} if kind["is_legacy"] else {}),
        "quantizer": _quantizer(values["codebook_size"], values["use_l2_norm"]).model_dump(mode="json"),
    }
    return check_config(config, ImageTokenizerConfig, where)


def _part(values: dict[str, Any], side: str, where: str) -> dict[str, Any]:
    """Our config of an encoder (enc) or decoder (dec), without its kinds of latents and pixels."""
    key = f"vit_{side}_model_size"
    if values[key] not in SIZES:
        raise ValueError(f"{where}: {key} must be one of {', '.join(SIZES)}, found {values[key][:80]!r}")
    sizes = dict(zip(("width", "layers", "heads"), SIZES[values[key]], strict=True))
    tokens, patch = values["num_latent_tokens"], values[f"vit_{side}_patch_size"]
    return {"kind": "titok", "tokens": tokens, "patch": patch} | sizes


def _quantizer(size: int, normalise: bool) -> VQConfig:
    return VQConfig(size=size, normalise=normalise, update="gradient", commitment=0.25)


_LAYERS = {
    "encoder.enter": "encoder.patch_embed",
    "encoder.queries": "latent_tokens",
    "encoder.leave": "encoder.conv_out",
    "decoder.enter": "decoder.decoder_embed",
    "decoder.mask": "decoder.mask_token",
    "decoder.head.widen": "decoder.ffn.0",
    "decoder.head.score": "decoder.ffn.2",
    "decoder.head.codebook": "pixel_quantize.embedding.weight",
    "decoder.head.leave": "decoder.ffn.0",
    "decoder.head.smooth": "decoder.conv_out",
}
_BODY = {
    **{"class_token": "class_embedding", "patch_places": "positional_embedding"},
    **{"token_places": "latent_token_positional_embedding", "enter_norm": "ln_pre", "leave_norm": "ln_post"},
}
_BLOCK = {
    **{"attention_norm": "ln_1", "query_key_value": "attn.in_proj", "out": "attn.out_proj"},
    **{"mlp_norm": "ln_2", "widen": "mlp.c_fc", "narrow": "mlp.c_proj"},
}
_PIXELS = {
    **{"enter": "conv_in", "middle": "mid", "levels": "up", "blocks": "block", "grow": "upsample_conv"},
    **{"shortcut": "nin_shortcut", "leave_norm": "norm_out", "leave": "conv_out"},
}
_CONVOLUTIONS = ("encoder.leave.weight", "decoder.head.widen.weight", "decoder.head.score.weight")
"""Linear layers that are convolutions of kernel 1 there."""


def _their_name(ours: str) -> str:
    """Their name of one of our tensors of the encoder or decoder."""
    layer, _, leaf = ours.rpartition(".")
    if ours in _LAYERS or layer in _LAYERS:
        return _LAYERS[ours] if ours in _LAYERS else f"{_LAYERS[layer]}.{leaf}"
    if layer.startswith("decoder.head.pixels."):
        parts = layer.removeprefix("decoder.head.pixels.").split(".")
        return ".".join(["pixel_decoder", *(_PIXELS.get(part, part) for part in parts), leaf])
    block = re.fullmatch(r"(encoder|decoder)\.blocks\.(\d+)\.(\w+)", layer)
    if block is not None:
        name = f"{block[1]}.transformer.{block[2]}.{_BLOCK[block[3]]}"
        return f"{name}_{leaf}" if block[3] == "query_key_value" else f"{name}.{leaf}"
    side, name = ours.split(".", 1)
    part, *rest = name.split(".")
    return ".".join([side, _BODY[part], *rest])


def titok_tensor_map(config: ImageTokenizerConfig) -> TensorMap:
    """The map of such a tokenizer."""
    ours = tokenizer_shapes(config)
    book = Source("quantize.embedding.weight")
    terms: dict[str, Term] = dict(any_codebook_terms("quantizer.codebook", book, ours))
    for name, shape in ours.items():
        if name in terms:
            continue
        term: Term = Source(_their_name(name))
        if name in _CONVOLUTIONS:
            term = View(term, (*shape, 1, 1))
        elif name.startswith("decoder.head.leave."):
            term = _pixels_of_patches(term, config.decoder, config.channels, shape)
        terms[name] = term
    return TensorMap(terms)


def _pixels_of_patches(term: Term, part: Any, channels: int, shape: Shape) -> Term:
    """The layer to the pixels of a patch: theirs have the color last, ours first."""
    order = torch.arange(shape[0]).view(part.patch, part.patch, channels).permute(2, 0, 1).flatten()
    return Permuted(View(term, (*shape, 1, 1)) if len(shape) == 2 else term, order)


def write_titok(folder: Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as TiTok's config.json and model.safetensors, for `TiTok.from_pretrained`.

    Raises:
        CannotWrite: the layout cannot represent the tokenizer; names the first setting that differs.
    """
    config = tokenizer.config
    described = describe_titok(config)
    check_tokenizer_layout("TiTok", config, titok_config(described))
    assert isinstance(config, ImageTokenizerConfig)
    tensors = public_tensors(tokenizer, titok_tensor_map(config))
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", described)


def describe_titok(config: Any) -> dict[str, Any]:
    """config.json of a tokenizer; CannotWrite if it is of another kind."""
    parts = (config.encoder, config.decoder) if isinstance(config, ImageTokenizerConfig) else (None, None)
    encoder, decoder = parts
    if not isinstance(encoder, TiTokConfig) or not isinstance(decoder, TiTokConfig):
        raise CannotWrite("TiTok's layout holds image tokenizers with an encoder and decoder of kind titok")
    quantizer = config.quantizer
    if not isinstance(quantizer, VQConfig):
        raise CannotWrite(f"TiTok's layout holds a quantizer of kind vq, found '{quantizer.kind}'")
    settings = {
        "codebook_size": quantizer.size,
        "token_size": config.latent_dim,
        "use_l2_norm": quantizer.normalise,
        "commitment_cost": quantizer.commitment,
        "vit_enc_model_size": _size_name(encoder, "encoder"),
        "vit_dec_model_size": _size_name(decoder, "decoder"),
        "vit_enc_patch_size": encoder.patch,
        "vit_dec_patch_size": decoder.patch,
        "num_latent_tokens": encoder.tokens,
        "finetune_decoder": decoder.pixels is not None,
        "is_legacy": decoder.pixels is not None,
    }
    return {"model": {"vq_model": settings}, "dataset": {"preprocessing": {"crop_size": config.height}}}


def _size_name(part: TiTokConfig, side: str) -> str:
    found = (part.width, part.layers, part.heads)
    name = next((name for name, sizes in SIZES.items() if sizes == found), None)
    if name is None:
        known = ", ".join(f"{name} {sizes}" for name, sizes in SIZES.items())
        raise CannotWrite(f"TiTok's layout has no {side} of (width, layers, heads) {found}; it has {known}")
    return name
