"""Read and write MusicGen's decoder in the layout of Hugging Face transformers.

Two kinds of folder, each with config.json and model.safetensors (or several files and their index):

    MusicgenForConditionalGeneration    `decoder.model.decoder.*`, `decoder.lm_heads.*`, `enc_to_dec_proj.*`; for the
                                        text encoder and the audio codec in the folder see musicgen_composite.py
    MusicgenForCausalLM                 `model.decoder.*`, `lm_heads.*`; the projection from the text encoder's width,
                                        which this class lacks, is written to and read from enc_to_dec_proj.safetensors

The hidden states of the text encoder are the model's condition "embedding". The codec is not loaded here: unless you
pass a TokenSpec, the spec's fingerprint is `UNKNOWN_CODEC`, which matches no tokenizer.
Source: tensor names and config keys of transformers 5 (Apache-2.0), MusicGen (arXiv:2306.05284).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...configs.files import read_json, write_json, write_safetensors
from ...configs.schema import make_config
from ...tokenize.public.checkpoint import open_checkpoint
from ...tokenize.public.folder import check_whole, typed_values
from ...tokenize.public.tensor_map import TensorMap, equal_parts
from ...tokenize.spec import AudioGeometry, TokenSpec
from ..checkpoints.parameter_shapes import parameter_shapes
from ..checkpoints.weights_file import DTYPES, StorageName
from ..conditioning.chroma import ChromaConfig
from ..conditioning.registry import ConditionConfig, EmbeddingConditionConfig, MelodyConditionConfig
from ..config import LMConfig
from ..generation_config import GenerationConfig
from ..models.causal import TokenLM
from ..ops.rotary import SinusoidalConfig
from ..patterns.layouts import DelayConfig
from ..patterns.pattern import SpecialsConfig
from .conversion import check_codec, check_layout, read_lm

UNKNOWN_CODEC = "0" * 64
"""Fingerprint if the codec was not loaded."""

MUSICGEN_DEFAULTS = GenerationConfig(top_k=250, guidance=3.0, max_frames=1500, window_frames=1500, stride_frames=900)
"""audiocraft's sampling settings; 1500 frames of 50 Hz is what it was trained on, and longer audio is extended by 18
seconds at a time."""

PUBLISHED_CODEC = {"sampling_rate": 32000, "upsampling_ratios": [8, 5, 4, 4]}
"""The codec of the published models: 50 frames per second. Used if only a decoder is given."""

TEXT_DROPOUT = 0.3
"""Probability of dropping the text of a training row (audiocraft's)."""

MELODY, MELODY_DECODER = "musicgen_melody", "musicgen_melody_decoder"
COMPOSITES = ("musicgen", MELODY)
MODEL_TYPES = ("musicgen", "musicgen_decoder", MELODY)
"""Values of model_type in config.json."""

DECODER_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "ffn_dim": 4096,
    "vocab_size": 2048,
    "num_codebooks": 4,
    "audio_channels": 1,
    "activation_function": "gelu",
    "dropout": 0.1,
    "pad_token_id": 2048,
    "bos_token_id": 2048,
}
"""Class defaults of MusicgenDecoderConfig, for absent keys."""
SIZES = tuple(key for key, value in DECODER_DEFAULTS.items() if type(value) is int and not key.endswith("_id"))

PROJECTION = "enc_to_dec_proj"
MELODY_PROJECTION = "audio_enc_to_dec_proj"
POSITIONS = "model.decoder.embed_positions."
IGNORED = ("text_encoder.", "audio_encoder.", f"decoder.{POSITIONS}", POSITIONS)
"""Other models, and sinusoids that a file may contain."""


def load_musicgen(
    folder: str | Path,
    spec: TokenSpec | None = None,
    device: torch.device | str = "cpu",
    dtype: StorageName | torch.dtype = "float32",
) -> TokenLM:
    """Read the decoder of a MusicGen checkpoint, in eval mode.

    Args:
        folder: as described above.
        spec: of the codec; None: a spec from the config, whose codec is not loaded.
        dtype: of the weights in memory.
    Raises:
        FileNotFoundError: config.json or weights are missing. WeightsError: tensors missing, left over or of another
            shape than the config requires. ValueError: pickled weights, another kind of model, or a spec that does not
            fit.
    """
    folder = Path(folder)
    described = read_musicgen_config(folder)
    beside = folder / f"{PROJECTION}.safetensors"
    composite = _is_composite(described)
    checkpoint = open_checkpoint(folder, (beside,) if beside.is_file() and not composite else ())
    prefix = "decoder." if composite else ""
    if composite:
        width = _text_width(described, folder)
    else:
        width = checkpoint.shapes[f"{PROJECTION}.weight"][-1] if f"{PROJECTION}.weight" in checkpoint.shapes else None
    config = musicgen_config(_decoder(described), width, str(folder / "config.json"), melody_sizes(described, folder))
    spec = spec or musicgen_spec(described, str(folder / "config.json"))
    decoder = _decoder(described)
    check_codec(folder, spec, decoder["num_codebooks"], decoder["vocab_size"])
    return read_lm(checkpoint, musicgen_tensor_map(config, spec, prefix), config, spec, device, dtype)


def save_musicgen(folder: str | Path, lm: TokenLM, dtype: StorageName = "float32") -> None:
    """Write a model as a `MusicgenForCausalLM` folder, with the projection from the text width in its own file.

    Raises:
        ValueError: MusicGen's layout cannot represent the model; names the first setting that differs.
    """
    folder = Path(folder)
    described, tensors = musicgen_tensors(lm, dtype)
    if described["model_type"] == MELODY_DECODER:
        raise ValueError("MusicGen's layout holds a model that follows melodies together with its text encoder only")
    projection = {name: tensors.pop(name) for name in list(tensors) if name.startswith(PROJECTION)}
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    beside = folder / f"{PROJECTION}.safetensors"
    if projection:
        write_safetensors(beside, projection, {"format": "pt"})
    else:
        beside.unlink(missing_ok=True)
    write_json(folder / "config.json", described)


def musicgen_tensors(
    lm: TokenLM, dtype: StorageName = "float32", prefix: str = ""
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config of a `MusicgenForCausalLM` and its tensors, their names with a prefix; raises as `save_musicgen`."""
    described = describe_musicgen(lm)
    tensors = musicgen_tensor_map(lm.config, lm.spec, prefix).write(lm.state_dict())
    return described | {"dtype": dtype}, {name: tensor.to(DTYPES[dtype]) for name, tensor in tensors.items()}


def musicgen_config(
    decoder: dict[str, Any],
    text_width: int | None = None,
    where: str = "config.json",
    melody: tuple[ChromaConfig, int] | None = None,
) -> LMConfig:
    """The config of the model that a decoder's config describes.

    Args:
        text_width: width of the text states before the projection; None: there is no projection.
        melody: of a model that follows melodies, their analysis and number of tokens; melody and text are then a prefix
            of the sequence instead of the memory of cross-attention.
    """
    width, vocab = decoder["hidden_size"], decoder["vocab_size"]
    refused = {
        "activation_function": ("gelu",),
        "scale_embedding": (False, None),
        "tie_word_embeddings": (False, None),
        "cross_attention_hidden_size": (None, width),
        "pad_token_id": (None, vocab),
        "bos_token_id": (None, vocab),
        "audio_channels": (1, 2),
    }
    for key, allowed in refused.items():
        if decoder.get(key, allowed[0]) not in allowed:
            known = " or ".join(repr(one) for one in allowed if one is not None)
            raise ValueError(f"{where}: {key} is {decoder[key]!r}; only {known} is supported")
    books, channels = decoder["num_codebooks"], decoder.get("audio_channels", 1)
    if books % channels:
        raise ValueError(f"{where}: {books} codebooks cannot be shared by {channels} channels")
    rate = decoder.get("dropout", 0.0)
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise ValueError(f"{where}: dropout must be a number, found {rate!r}")
    text = make_config(
        EmbeddingConditionConfig,
        where,
        width=width if text_width is None else text_width,
        projection="none" if text_width is None else "linear",
        join="cross" if melody is None else "prefix",
        mask="padding" if melody is None else "none",
        norm="none",
        null="zero",
        dropout=TEXT_DROPOUT,
    )
    conditions: tuple[ConditionConfig, ...] = (text,)
    if melody is not None:
        chroma, length = melody
        tune = make_config(MelodyConditionConfig, where, chroma=chroma, length=length, dropout=TEXT_DROPOUT)
        conditions = (tune, text)
    return make_config(
        LMConfig,
        where,
        width=width,
        layers=decoder["num_hidden_layers"],
        heads=decoder["num_attention_heads"],
        ffn=decoder["ffn_dim"],
        feed_forward="gelu",
        norm="layer",
        norm_eps=1e-5,
        dropout=float(rate),
        rope=SinusoidalConfig(prefix="before" if melody is None else "counted"),
        arrangement=DelayConfig(delays=tuple(k // channels for k in range(books))),
        specials=SpecialsConfig(start=0, pad=0),
        conditions=conditions,
    )


def musicgen_spec(described: dict[str, Any], where: str = "config.json") -> TokenSpec:
    """The TokenSpec as far as the config defines it; the codec itself is not loaded."""
    decoder = _decoder(described)
    codec = described.get("audio_encoder") or PUBLISHED_CODEC
    codec = codec if isinstance(codec, dict) else {}
    rate, ratios = codec.get("sampling_rate"), codec.get("upsampling_ratios")
    if rate is None or ratios is None:
        raise ValueError(f"{where}: audio_encoder has no sampling_rate or upsampling_ratios; pass spec=")
    typed_values(codec, PUBLISHED_CODEC, f"{where}: audio_encoder")
    return make_config(
        TokenSpec,
        where,
        name="musicgen-codec",
        cardinalities=(decoder["vocab_size"],) * decoder["num_codebooks"],
        geometry=make_config(
            AudioGeometry,
            where,
            sample_rate=rate,
            channels=decoder.get("audio_channels", 1),
            samples_per_frame=math.prod(ratios),
        ),
        fingerprint=UNKNOWN_CODEC,
    )


def musicgen_tensor_map(config: LMConfig, spec: TokenSpec, prefix: str = "") -> TensorMap:
    """The mapping from their tensors to ours; prefix precedes the decoder's tensor names."""
    books, base = range(spec.num_codebooks), f"{prefix}model.decoder."
    names: dict[str, list[str]] = {
        "input.table.weight": [f"{base}embed_tokens.{k}.weight" for k in books],
        "head.weight": [f"{prefix}lm_heads.{k}.weight" for k in books],
        "transformer.norm.weight": [f"{base}layer_norm.weight"],
        "transformer.norm.bias": [f"{base}layer_norm.bias"],
        "conditions.parts.embedding.projection.weight": [f"{PROJECTION}.weight"],
        "conditions.parts.embedding.projection.bias": [f"{PROJECTION}.bias"],
        "conditions.parts.melody.projection.weight": [f"{MELODY_PROJECTION}.weight"],
        "conditions.parts.melody.projection.bias": [f"{MELODY_PROJECTION}.bias"],
    }
    for n in range(config.layers):
        ours, theirs = f"transformer.blocks.{n}.", f"{base}layers.{n}."
        norms = {"attention_norm": "self_attn_layer_norm", "cross_norm": "encoder_attn_layer_norm"}
        for our_norm, norm in (norms | {"ffn_norm": "final_layer_norm"}).items():
            for part in ("weight", "bias"):
                names[f"{ours}{our_norm}.{part}"] = [f"{theirs}{norm}.{part}"]
        matrices = {
            "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "attention.out": ("self_attn.out_proj",),
            "cross.query": ("encoder_attn.q_proj",),
            "cross.key_value": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
            "cross.out": ("encoder_attn.out_proj",),
            "ffn.up": ("fc1",),
            "ffn.down": ("fc2",),
        }
        for our_matrix, matrix in matrices.items():
            names[f"{ours}{our_matrix}.weight"] = [f"{theirs}{name}.weight" for name in matrix]
    terms = {name: equal_parts(names[name]) for name in parameter_shapes(config, spec)}
    return TensorMap(terms, ignored=IGNORED)


def describe_musicgen(lm: TokenLM) -> dict[str, Any]:
    """config.json of a MusicgenForCausalLM; ValueError if it cannot represent the model."""
    config, spec = lm.config, lm.spec
    given = next((c for c in config.conditions if isinstance(c, EmbeddingConditionConfig)), None)
    channels = getattr(spec.geometry, "channels", 1)
    described = {
        "architectures": ["MusicgenForCausalLM"],
        "model_type": "musicgen_decoder",
        "vocab_size": spec.cardinalities[0],
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "ffn_dim": config.num_ffn,
        "activation_function": "gelu",
        "dropout": config.dropout,
        "max_position_embeddings": _positions(spec),
        "num_codebooks": spec.num_codebooks,
        "audio_channels": channels,
        "scale_embedding": False,
        "tie_word_embeddings": False,
        "pad_token_id": spec.cardinalities[0],
        "bos_token_id": spec.cardinalities[0],
    }
    if len(set(spec.cardinalities)) > 1 or channels > 2 or spec.num_codebooks % channels:
        raise ValueError(
            f"MusicGen's layout has codebooks of one size in one or two channels, found {list(spec.cardinalities)} "
            f"in {channels}"
        )
    width = given.width if given is not None and given.projection == "linear" else None
    tune = next((c for c in config.conditions if isinstance(c, MelodyConditionConfig)), None)
    if tune is not None:
        described["model_type"], described["architectures"] = MELODY_DECODER, ["MusicgenMelodyForCausalLM"]
    expected = musicgen_config(described, width, melody=None if tune is None else (tune.chroma, tune.length))
    if len(config.conditions) == len(expected.conditions):
        pairs = zip(expected.conditions, config.conditions, strict=True)
        expected = expected.model_copy(update={"conditions": tuple(_with_unstored(*pair) for pair in pairs)})
    check_layout("MusicGen", config, expected, spec.num_codebooks)
    return described


def _with_unstored(expected: ConditionConfig, found: ConditionConfig) -> ConditionConfig:
    """An expected condition with the settings of the found one that the layout does not store: those of training, and
    whether cross-attention masks the padding."""
    if type(found) is not type(expected):
        return expected
    unstored: dict[str, Any] = {"dropout": found.dropout}
    if isinstance(found, EmbeddingConditionConfig) and found.join == "cross":
        unstored["mask"] = found.mask
    return expected.model_copy(update=unstored)


def _positions(spec: TokenSpec) -> int:
    """Number of sinusoids in transformers, which fails beyond them: as in the published models, or more if that is not
    enough for 40 seconds."""
    rate = spec.geometry.frame_rate if isinstance(spec.geometry, AudioGeometry) else 0
    return max(2048, 1 << math.ceil(40 * rate).bit_length())


def read_musicgen_config(folder: Path) -> dict[str, Any]:
    """config.json with the class defaults of absent settings of the decoder.

    Raises:
        FileNotFoundError: there is none. ValueError: another kind of model, or sizes that are not whole numbers.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no checkpoint here (config.json is missing)")
    described = read_json(path)
    kind = described.get("model_type") if isinstance(described, dict) else None
    if kind not in MODEL_TYPES:
        known = ", ".join(repr(one) for one in MODEL_TYPES)
        raise ValueError(f"{path}: model_type is {kind!r}; supported are {known}")
    decoder = described.get("decoder") if kind in COMPOSITES else described
    if not isinstance(decoder, dict):
        raise ValueError(f"{path}: has no decoder")
    decoder = DECODER_DEFAULTS | decoder
    for key in SIZES:
        check_whole(decoder[key], key, f"{path}: {key}")
    return described | {"decoder": decoder} if kind in COMPOSITES else decoder


def melody_sizes(described: dict[str, Any], folder: Path) -> tuple[ChromaConfig, int] | None:
    """The analysis of melodies and their number of tokens; None for a model that does not follow them.

    preprocessor_config.json may hold other sizes than the class defaults of the feature extractor.
    """
    if described["model_type"] != MELODY:
        return None
    path, bins = folder / "preprocessor_config.json", described.get("num_chroma", 12)
    found = read_json(path) if path.is_file() else {}
    found = found if isinstance(found, dict) else {}
    if found.get("num_chroma", bins) != bins:
        raise ValueError(f"{path}: num_chroma is {found['num_chroma']!r}, but the model's config says {bins!r}")
    if bins == described["decoder"]["hidden_size"]:
        raise ValueError(f"{folder}/config.json: num_chroma is hidden_size, {bins}; such a model is not supported")
    names = {"sample_rate": "sampling_rate", "window": "n_fft", "hop": "hop_length", "seconds": "chunk_length"}
    sizes = {ours: found[theirs] for ours, theirs in names.items() if theirs in found}
    chroma = make_config(ChromaConfig, str(path), bins=bins, **sizes)
    length = described.get("chroma_length", 235)
    return chroma, check_whole(length, "chroma_length", f"{folder}/config.json: chroma_length")


def _is_composite(described: dict[str, Any]) -> bool:
    return described["model_type"] in COMPOSITES


def _decoder(described: dict[str, Any]) -> dict[str, Any]:
    return described["decoder"] if _is_composite(described) else described


def _text_width(described: dict[str, Any], folder: Path) -> int | None:
    """Width of the text encoder's states; None if they need no projection."""
    text = described.get("text_encoder")
    width = text.get("d_model", text.get("hidden_size")) if isinstance(text, dict) else None
    if not isinstance(width, int):
        raise ValueError(f"{folder}/config.json: text_encoder has no d_model")
    decoder = _decoder(described)
    same = width == decoder["hidden_size"] or decoder.get("cross_attention_hidden_size") is not None
    return None if same else width
