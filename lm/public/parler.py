"""Read and write Parler-TTS in the layout of its package (`ParlerTTSForConditionalGeneration`).

    text_encoder.*                the encoder of a flan-T5, which reads the description of a voice
    enc_to_dec_proj.*             from its width to the decoder's; absent if they are equal
    embed_prompts.weight          the table of the transcript's pieces, a prefix of the sequence
    decoder.model.decoder.*       MusicGen's decoder, with positions counted from the first piece of the transcript:
                                  sinusoids, or rotations of queries and keys, of cross-attention its queries alone
    decoder.lm_heads.k.weight     an output layer per codebook, or decoder.lm_heads.weight of all
    audio_encoder.model.*         a DAC of its authors' library, or audio_encoder.*: transformers' DacModel

Description and transcript are read by one tokenizer, T5's: the conditions `embedding` and `text`. Rows of the tables
that no id uses (1026 to 1088 of the published models) are not read. What is written has tables without them
(`vocab_size` 1025), separate output layers and transformers' DacModel.
Source: huggingface/parler-tts d108732 (Apache-2.0): tensor names, config keys and class defaults.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch

from ...configs.files import read_json, write_atomic, write_json, write_safetensors
from ...configs.json_limits import NAMED
from ...configs.schema import make_config
from ...tokenize.base import Tokenizer
from ...tokenize.public.checkpoint import open_checkpoint
from ...tokenize.public.dac import DEFAULTS as DAC_DEFAULTS
from ...tokenize.public.dac import dac_part, read_dac_part, read_dac_tensors
from ...tokenize.public.dac_native import DEFAULTS as NATIVE_DEFAULTS
from ...tokenize.public.dac_native import NATIVE
from ...tokenize.public.folder import PublicFolder
from ...tokenize.public.tensor_map import Concat, Constant, Part, Permuted, Source, TensorMap, Term
from ...tokenize.spec import AudioGeometry, TokenSpec
from ...tokenize.text.base import MAX_FILE_BYTES, TextTokenizer
from ...tokenize.text.sentencepiece_json import sentencepiece_of_json
from ...tokenize.text.t5_text import T5Text, T5TextConfig
from ..checkpoints.model_directory import LoadedModel
from ..checkpoints.parameter_shapes import parameter_shapes
from ..checkpoints.weights_file import DTYPES, StorageName
from ..conditioning.registry import EmbeddingConditionConfig, TextConditionConfig
from ..conditioning.text_encoder import TextEncoder, open_text_encoder
from ..config import LMConfig
from ..generation_config import GenerationConfig
from ..models.causal import TokenLM
from ..ops.rotary import SinusoidalConfig, TimeRopeConfig, sinusoidal_embedding
from ..patterns.layouts import DelayConfig
from ..patterns.pattern import SpecialsConfig
from .conversion import check_codec, check_layout, read_lm
from .musicgen import PROJECTION, UNKNOWN_CODEC
from .rotary_order import interleaved_rows

MODEL_TYPES = ("parler_tts",)
"""Values of model_type in config.json."""
TEXT, CODEC, DECODER, PROMPTS = "text_encoder", "audio_encoder", "decoder", "embed_prompts.weight"
CODEC_TYPES = ("dac", "dac_on_the_hub")
SINUSOIDS = f"{DECODER}.model.decoder.embed_positions.weights"
IN_WRAPPER = f"{CODEC}.model."
"""Prefix of the tensors of a codec of the original library."""
CODEC_SIZES: dict[str, Any] = {key: value for key, value in NATIVE_DEFAULTS.items() if value is not None}
CODEC_SIZES |= {"codebook_dim": 8}
"""Of a codec of the original library: those that the package's wrapper does not set."""
PIECES, PIECES_AS_JSON, TOKENIZER_CONFIG = "spiece.model", "tokenizer.json", "tokenizer_config.json"
WRITTEN_BY = "4.46.1"
"""The version of transformers that the package is written for; from 4.45 on `dac` is transformers' own class."""
POSITIONS = 4096
"""Sinusoids in a written file, as in the published models."""
LONGEST = 2580
"""`max_length` of the published models, 30 seconds."""

DEFAULTS: dict[str, Any] = {"vocab_size": 1024, "prompt_cross_attention": False}
"""Class defaults of ParlerTTSConfig."""
DECODER_DEFAULTS: dict[str, Any] = {
    "vocab_size": 2049,
    "num_hidden_layers": 24,
    "ffn_dim": 4096,
    "num_attention_heads": 16,
    "num_key_value_heads": None,
    "num_cross_attention_key_value_heads": None,
    "activation_function": "gelu",
    "hidden_size": 1024,
    "dropout": 0.1,
    "scale_embedding": False,
    "num_codebooks": 4,
    "pad_token_id": 2048,
    "bos_token_id": 2049,
    "eos_token_id": 2048,
    "tie_word_embeddings": False,
    "rope_embeddings": False,
    "rope_theta": 10000.0,
    "use_fused_lm_heads": False,
    "cross_attention_hidden_size": None,
}
"""Class defaults of ParlerTTSDecoderConfig, of the settings that determine the model."""


def load_parler(
    folder: str | Path,
    spec: TokenSpec | None = None,
    device: torch.device | str = "cpu",
    dtype: StorageName | torch.dtype = "float32",
) -> TokenLM:
    """Read the decoder of a Parler-TTS checkpoint, in eval mode.

    Args:
        spec: of the codec; None: a spec from the config, whose codec is not loaded.
        dtype: of the weights in memory.
    Raises:
        FileNotFoundError: config.json or weights are missing. WeightsError: tensors missing, left over or of another
            shape than the config requires. ValueError: a setting that is not supported, by name, or a spec that does
            not fit.
    """
    opened = PublicFolder(folder)
    described, decoder = read_parler_config(opened)
    config = parler_config(described, decoder, _text_width(opened), str(opened.config_path))
    spec = spec or parler_spec(opened, decoder)
    check_codec(folder, spec, decoder["num_codebooks"], decoder["eos_token_id"])
    tensor_map = parler_tensor_map(config, spec, decoder["vocab_size"], decoder["use_fused_lm_heads"])
    return read_lm(open_checkpoint(opened.path), tensor_map, config, spec, device, dtype)


def read_parler_codec(folder: PublicFolder) -> Tokenizer:
    """The codec of a folder.

    Raises:
        ValueError: an unsupported codec, by name. WeightsError: tensors missing or misshapen.
    """
    decoder = read_parler_config(folder)[1]
    books = decoder["num_codebooks"]
    if not _in_wrapper(folder):
        return read_dac_part(folder, books, CODEC, f"{CODEC}.")
    found = folder.values({"latent_dim": 1024, "codebook_size": 1024, "sampling_rate": 44100}, CODEC)
    settings = CODEC_SIZES | found | {"sample_rate": found.pop("sampling_rate")}
    checkpoint = folder.checkpoint.within(IN_WRAPPER)
    return read_dac_tensors(checkpoint, settings, books, NATIVE, str(folder.config_path), IN_WRAPPER)


def read_parler_text_encoder(folder: PublicFolder) -> TextEncoder:
    """The text encoder of a folder; raises as `open_text_encoder`."""
    return open_text_encoder(folder, TEXT, f"{TEXT}.")


def read_parler_text(folder: PublicFolder) -> TextTokenizer:
    """The tokenizer of transcripts.

    Raises:
        FileNotFoundError: there is none. ValueError: it is not T5's, or does not fit the table.
    """
    described = folder.path / TOKENIZER_CONFIG
    # Not parsed: transformers writes whole numbers beyond 64 bits into it.
    held = described.read_bytes()[: 1 << 20].decode(errors="replace") if described.is_file() else ""
    named = re.search(r'"tokenizer_class"\s*:\s*"([^"]*)"', held)
    if named is not None and named[1] not in ("T5Tokenizer", "T5TokenizerFast"):
        raise ValueError(
            f"{described}: tokenizer_class is {named[1][:80]!r}; only transcripts in the pieces of T5 are supported "
            "(those of the first English models, mini and large)"
        )
    config = _text_config(read_parler_config(folder)[0], str(folder.config_path))
    path, as_json = folder.path / PIECES, folder.path / PIECES_AS_JSON
    if not path.is_file() and as_json.is_file():
        return T5Text(config, sentencepiece_of_json(read_json(as_json, NAMED), str(as_json)), str(as_json))
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; transcripts are read by the tokenizer of T5 ({PIECES} or {PIECES_AS_JSON}), copy "
            "it from the public model, or from flan-T5, whose tokenizer it is"
        )
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, the limit is {MAX_FILE_BYTES}")
    return T5Text(config, path.read_bytes(), str(path))


def parler_defaults(folder: PublicFolder, spec: TokenSpec) -> GenerationConfig:
    """The package's sampling: temperature 1, top_k 50 (transformers' default), and the longest clip of
    generation_config.json."""
    path = folder.path / "generation_config.json"
    held = read_json(path) if path.is_file() else {}
    longest = held.get("max_length") if isinstance(held, dict) else None
    longest = longest if type(longest) is int and spec.num_codebooks < longest <= 1 << 20 else LONGEST
    return GenerationConfig(top_k=50, max_frames=longest - spec.num_codebooks)


def read_parler_config(folder: PublicFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of config.json, and those of its decoder, with the class defaults of absent ones.

    Raises:
        FileNotFoundError: there is none. ValueError: another kind of model, or a setting that is not supported.
    """
    if not folder.config:
        raise FileNotFoundError(f"{folder.path}: no checkpoint here (config.json is missing)")
    where = str(folder.config_path)
    if folder.config.get("model_type") not in MODEL_TYPES:
        raise ValueError(f"{where}: model_type is {folder.config.get('model_type')!r}; supported is {MODEL_TYPES[0]!r}")
    described, decoder = folder.values(DEFAULTS), folder.values(DECODER_DEFAULTS, DECODER)
    codec = folder.values({"codebook_size": 1024, "model_type": "dac"}, CODEC)
    heads = decoder["num_attention_heads"]
    kv_heads = heads if decoder["num_key_value_heads"] is None else decoder["num_key_value_heads"]
    codes = codec["codebook_size"]
    refused: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "prompt_cross_attention": (described["prompt_cross_attention"], (False,)),
        f"{CODEC}.model_type": (codec["model_type"], CODEC_TYPES),
        **{
            f"{DECODER}.{key}": (decoder[key], allowed)
            for key, allowed in {
                "activation_function": ("gelu",),
                "scale_embedding": (False,),
                "tie_word_embeddings": (False,),
                "cross_attention_hidden_size": (None,),
                "num_key_value_heads": (None, *range(1, heads + 1)),
                "num_cross_attention_key_value_heads": (None, kv_heads),
                "eos_token_id": (codes,),
                "pad_token_id": (codes,),
                "bos_token_id": (codes + 1,),
            }.items()
        },
    }
    for key, (found, allowed) in refused.items():
        if found not in allowed or isinstance(found, bool) != isinstance(allowed[0], bool):
            known = " or ".join(repr(one) for one in allowed[:3] if one is not None) or "null"
            raise ValueError(f"{where}: {key} is {str(found)[:80]!r}; only {known} is supported")
    if decoder["vocab_size"] <= codes:
        raise ValueError(
            f"{where}: {DECODER}.vocab_size is {decoder['vocab_size']}, too few for {codes} codes and the end of a "
            "sequence"
        )
    return described, decoder | {"num_key_value_heads": kv_heads}


def parler_config(
    described: dict[str, Any], decoder: dict[str, Any], text_width: int, where: str = "config.json"
) -> LMConfig:
    """The config of the model that these settings describe (`read_parler_config`).

    Args:
        text_width: width of the text encoder's states.
    """
    width = decoder["hidden_size"]
    text = _text_config(described, where)
    transcript = make_config(
        TextConditionConfig, where, text=text, vocab_size=text.vocab_size, join="prefix", dropout=0.0
    )
    description = make_config(
        EmbeddingConditionConfig,
        where,
        width=text_width,
        projection="none" if text_width == width else "linear",
        join="cross",
        mask="padding",
        norm="none",
        null="zero",
        dropout=0.0,
    )
    rope = SinusoidalConfig(prefix="counted")
    if decoder["rope_embeddings"]:
        rope = make_config(TimeRopeConfig, where, base=float(decoder["rope_theta"]), cross="queries")
    return make_config(
        LMConfig,
        where,
        width=width,
        layers=decoder["num_hidden_layers"],
        heads=decoder["num_attention_heads"],
        kv_heads=decoder["num_key_value_heads"],
        ffn=decoder["ffn_dim"],
        feed_forward="gelu",
        norm="layer",
        norm_eps=1e-5,
        dropout=float(decoder["dropout"]),
        rope=rope,
        arrangement=DelayConfig(delays=tuple(range(decoder["num_codebooks"]))),
        specials=SpecialsConfig(end=0, start=1, pad=0, after="end"),
        variable_length=True,
        conditions=(transcript, description),
    )


def parler_spec(folder: PublicFolder, decoder: dict[str, Any]) -> TokenSpec:
    """The TokenSpec as far as the config defines it; the codec itself is not loaded."""
    strides, where = CODEC_SIZES["encoder_rates"], str(folder.config_path)
    held = folder.values({"sampling_rate": 44100}, CODEC)
    if not _in_wrapper(folder):
        held = folder.values(DAC_DEFAULTS, CODEC)
        strides = held["downsampling_ratios"]
    geometry = make_config(
        AudioGeometry, where, sample_rate=held["sampling_rate"], channels=1, samples_per_frame=math.prod(strides)
    )
    return make_config(
        TokenSpec,
        where,
        name="parler-codec",
        cardinalities=(decoder["eos_token_id"],) * decoder["num_codebooks"],
        geometry=geometry,
        fingerprint=UNKNOWN_CODEC,
    )


def parler_tensor_map(config: LMConfig, spec: TokenSpec, vocab_size: int, fused: bool = False) -> TensorMap:
    """The mapping from their tensors to ours.

    Args:
        vocab_size: rows of a codebook's output layer; its table of embeddings has one more.
        fused: one matrix holds the output layers of all codebooks.
    """
    books, base, D = range(spec.num_codebooks), f"{DECODER}.model.decoder.", config.width
    table = [f"{base}embed_tokens.{k}.weight" for k in books]
    if fused:
        whole = vocab_size * spec.num_codebooks
        heads = [Part(f"{DECODER}.lm_heads.weight", (whole, D), k * vocab_size) for k in books]
    else:
        heads = [Part(f"{DECODER}.lm_heads.{k}.weight", (vocab_size, D), 0) for k in books]
    terms: dict[str, Term] = {
        "input.table.weight": Concat(tuple(Part(name, (vocab_size + 1, D), 0) for name in table)),
        "head.weight": Concat(tuple(heads)),
        "transformer.norm.weight": Source(f"{base}layer_norm.weight"),
        "transformer.norm.bias": Source(f"{base}layer_norm.bias"),
        "conditions.parts.text.table.weight": Source(PROMPTS),
        "conditions.parts.text.null": Constant(0.0, "the token of rows without a transcript"),
        "conditions.parts.embedding.projection.weight": Source(f"{PROJECTION}.weight"),
        "conditions.parts.embedding.projection.bias": Source(f"{PROJECTION}.bias"),
    }
    H, G, E = config.heads, config.num_kv_heads, config.head_width
    sizes, rotary = (H * E, G * E, G * E), isinstance(config.rope, TimeRopeConfig)

    def matrix(name: str, heads: int = 0) -> Term:
        """A matrix; if given heads, in the order of rotary pairs."""
        source = Source(f"{name}.weight")
        return Permuted(source, interleaved_rows(heads, E)) if heads and rotary else source

    for n in range(config.layers):
        ours, theirs = f"transformer.blocks.{n}.", f"{base}layers.{n}."
        norms = {"attention_norm": "self_attn_layer_norm", "cross_norm": "encoder_attn_layer_norm"}
        for our_norm, norm in (norms | {"ffn_norm": "final_layer_norm"}).items():
            for part in ("weight", "bias"):
                terms[f"{ours}{our_norm}.{part}"] = Source(f"{theirs}{norm}.{part}")
        own, cross = f"{theirs}self_attn.", f"{theirs}encoder_attn."
        qkv = matrix(f"{own}q_proj", H), matrix(f"{own}k_proj", G), matrix(f"{own}v_proj")
        terms[f"{ours}attention.qkv.weight"] = Concat(qkv, sizes)
        terms[f"{ours}attention.out.weight"] = matrix(f"{own}out_proj")
        terms[f"{ours}cross.query.weight"] = matrix(f"{cross}q_proj", H)
        terms[f"{ours}cross.key_value.weight"] = Concat((matrix(f"{cross}k_proj", G), matrix(f"{cross}v_proj")))
        terms[f"{ours}cross.out.weight"] = matrix(f"{cross}out_proj")
        terms[f"{ours}ffn.up.weight"] = matrix(f"{theirs}fc1")
        terms[f"{ours}ffn.down.weight"] = matrix(f"{theirs}fc2")
    ignored = (f"{TEXT}.", f"{CODEC}.", *(() if rotary else (SINUSOIDS,)))
    return TensorMap({name: terms[name] for name in parameter_shapes(config, spec)}, ignored=ignored)


def save_parler_whole(folder: Path, model: LoadedModel, dtype: StorageName = "float32") -> None:
    """Write a model with its codec, text encoder and tokenizer as a `ParlerTTSForConditionalGeneration` folder.

    Args:
        dtype: of the language model's weights; codec and text encoder stay as they are.
    Raises:
        ValueError: the layout cannot represent the model or its codec; names the first setting that differs.
    """
    lm, encoder, text = model.lm, model.text_encoder, model.text
    if not isinstance(lm, TokenLM):
        raise ValueError(f"Parler's layout holds a causal language model, found {type(lm).__name__}")
    if encoder is None or not isinstance(text, T5Text):
        raise ValueError(
            "Parler's layout holds a T5 text encoder and transcripts in T5's pieces; this model lacks them"
        )
    described = describe_parler(lm, encoder.width)
    codec, tensors = dac_part(model.tokenizer, f"{CODEC}.")
    tensors |= {f"{TEXT}.{name}": tensor for name, tensor in encoder.tensors().items()}
    vocab_size = described[DECODER]["vocab_size"]
    of_lm = parler_tensor_map(lm.config, lm.spec, vocab_size).write(lm.state_dict())
    if not described[DECODER]["rope_embeddings"]:
        base = described[DECODER]["rope_theta"]
        of_lm[SINUSOIDS] = sinusoidal_embedding(torch.arange(POSITIONS), lm.config.width, base)
    tensors |= {name: tensor.to(DTYPES[dtype]) for name, tensor in of_lm.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    encoder.save_tokenizer(folder)
    write_atomic(folder / PIECES, text.model)
    codes = lm.spec.cardinalities[0]
    specials = {"bos_token_id": codes + 1, "decoder_start_token_id": codes + 1, "eos_token_id": codes}
    frames = model.defaults.max_frames or LONGEST - lm.num_codebooks
    generation = {**specials, "pad_token_id": codes, "do_sample": True, "max_length": frames + lm.num_codebooks}
    write_json(folder / "generation_config.json", generation)
    write_json(folder / "config.json", described | {TEXT: encoder.described, CODEC: codec, "torch_dtype": dtype})


def describe_parler(lm: TokenLM, text_width: int) -> dict[str, Any]:
    """config.json of a model, without the codec and the text encoder; ValueError if it cannot represent the model."""
    config, spec = lm.config, lm.spec
    text = next((c for c in config.conditions if isinstance(c, TextConditionConfig)), None)
    codes = spec.cardinalities[0]
    if len(set(spec.cardinalities)) > 1 or getattr(spec.geometry, "channels", 0) != 1:
        raise ValueError(f"Parler's layout has codebooks of one size in one channel, found {list(spec.cardinalities)}")
    decoder = {
        "model_type": "parler_tts_decoder",
        "vocab_size": codes + 1,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.num_kv_heads,
        "num_cross_attention_key_value_heads": config.num_kv_heads,
        "ffn_dim": config.num_ffn,
        "activation_function": "gelu",
        "dropout": config.dropout,
        "max_position_embeddings": POSITIONS,
        "num_codebooks": spec.num_codebooks,
        "scale_embedding": False,
        "rope_embeddings": isinstance(config.rope, TimeRopeConfig),
        "rope_theta": getattr(config.rope, "base", 10000.0),
        "use_fused_lm_heads": False,
        "tie_word_embeddings": False,
        "is_decoder": True,
        "pad_token_id": codes,
        "eos_token_id": codes,
        "bos_token_id": codes + 1,
    }
    described = {"vocab_size": 1 if text is None else text.vocab_size, "prompt_cross_attention": False}
    expected = parler_config(described, decoder, text_width)
    if len(config.conditions) == len(expected.conditions):
        pairs = zip(expected.conditions, config.conditions, strict=True)
        unstored = [ours.model_copy(update={"dropout": found.dropout}) for ours, found in pairs]  # of training
        expected = expected.model_copy(update={"conditions": tuple(unstored)})
    check_layout("Parler", config, expected, spec.num_codebooks)
    return described | {
        "architectures": ["ParlerTTSForConditionalGeneration"],
        "model_type": MODEL_TYPES[0],
        "is_encoder_decoder": True,
        "pad_token_id": codes,
        "decoder_start_token_id": codes + 1,
        "transformers_version": WRITTEN_BY,
        DECODER: decoder,
    }


def _in_wrapper(folder: PublicFolder) -> bool:
    """Whether the codec is one of the original library."""
    return any(name.startswith(IN_WRAPPER) for name in folder.checkpoint.shapes)


def _text_config(described: dict[str, Any], where: str) -> T5TextConfig:
    return make_config(T5TextConfig, where, vocab_size=described["vocab_size"])


def _text_width(folder: PublicFolder) -> int:
    return folder.values({"d_model": 512}, TEXT)["d_model"]
