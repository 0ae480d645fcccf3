"""Read and write language models in audiocraft's own layout: MusicGen (mono, stereo, melody) and AudioGen.

A folder with the files as they are downloaded

    state_dict.bin                the language model: {'best_state': tensors by name, 'xp.cfg': its config in YAML}
    compression_state_dict.bin    the audio codec (tokenize/public/encodec_native.py); of one channel, also for stereo
    codec/                        the codec in any known layout, where the file above holds only the name of one
    t5/                           the text encoder in the layout of transformers, which audiocraft loads by its name

The tensors are those of musicgen.py under other names: queries, keys and values are the rows of one `in_proj_weight`,
of cross-attention as well. Sizes come from the config, compared with the tensors, and where it lacks one from the
tensors; without `num_heads` a head has 64 numbers, as in the published models. audiocraft pads and does not mask the
texts of a batch; here padding is masked (conditions[..].mask), so each row is what audiocraft computes for it alone.
Source: tensor names, config keys and sampling settings of audiocraft 1.3 (MIT); MusicGen, arXiv:2306.05284; AudioGen,
arXiv:2209.15352.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...configs.schema import make_config
from ...configs.tensor_checks import WeightsError
from ...tokenize.audio.networks import AudioTokenizerConfig
from ...tokenize.base import Tokenizer
from ...tokenize.public.channels import for_channels, of_one_channel
from ...tokenize.public.checkpoint import PICKLE_ENDINGS, Checkpoint, open_checkpoint, read_pickle, write_pickle
from ...tokenize.public.encodec_native import CONFIG, config_value, read_xp_config, write_audiocraft
from ...tokenize.public.encodec_native import FILE as CODEC_FILE
from ...tokenize.public.folder import PublicFolder
from ...tokenize.public.registry import read_public_codec
from ...tokenize.public.tensor_map import CannotWrite, Part, Source, TensorMap, Term, equal_parts
from ...tokenize.spec import AudioGeometry, TokenSpec
from ..checkpoints.model_directory import LoadedModel
from ..checkpoints.parameter_shapes import parameter_shapes
from ..checkpoints.weights_file import DTYPES, StorageName
from ..conditioning.chroma import ChromaConfig
from ..conditioning.melody import MelodyConditionConfig
from ..conditioning.registry import EmbeddingConditionConfig
from ..conditioning.text_encoder import TextEncoder, open_text_encoder
from ..config import LMConfig
from ..generation_config import GenerationConfig
from ..models.causal import TokenLM
from .conversion import check_codec, read_lm
from .musicgen import MUSICGEN_DEFAULTS, TEXT_DROPOUT, describe_musicgen, musicgen_config, musicgen_spec

FILE = "state_dict.bin"
CODEC_FOLDER, TEXT_FOLDER = "codec", "t5"
FRAME_RATE = 50
"""Frames a second of the codecs of the published models. Used if there is no codec."""
SECONDS, STRIDE_SHARE, AUDIOGEN_STRIDE = 30, 0.6, 2.0
"""Longest training example if the config has none; MusicGen extends audio by 18 of 30 seconds at a time, AudioGen by 2
seconds."""
HEAD_WIDTH, PUBLISHED_WIDTHS = 64, (1024, 1536, 2048)

CONDITIONER = "condition_provider.conditioners."
TEXT, MELODY = "description", "self_wav"
CHROMA = f"{CONDITIONER}{MELODY}.chroma."
"""Tensors of the analysis of melodies: a window, which is computed."""

REQUIRED: dict[str, Any] = {
    "lm_model": "transformer_lm",
    "codebooks_pattern.modeling": "delay",
    "codebooks_pattern.delay.flatten_first": 0,
    "codebooks_pattern.delay.empty_initial": 0,
    "interleave_stereo_codebooks.per_timestep": False,
    **{f"transformer_lm.bias_{part}": False for part in ("attn", "ff", "proj")},
    "transformer_lm.norm": "layer_norm",
    "transformer_lm.norm_first": True,
    "transformer_lm.activation": "gelu",
    "transformer_lm.causal": True,
    "transformer_lm.past_context": None,
    "transformer_lm.layer_scale": None,
    "transformer_lm.positional_embedding": "sin",
    "transformer_lm.positional_scale": 1.0,
    "transformer_lm.max_period": 10000,
    "transformer_lm.qk_layer_norm": False,
    "transformer_lm.qk_layer_norm_cross": False,
    "transformer_lm.kv_repeat": 1,
    "fuser.cross_attention_pos_emb": False,
    "fuser.sum": [],
    "fuser.input_interpolate": [],
    f"conditioners.{TEXT}.model": "t5",
    f"conditioners.{TEXT}.t5.finetune": False,
    f"conditioners.{TEXT}.t5.normalize_text": False,
}
"""The only supported values of settings; an absent one has this value."""
REQUIRED_OF_MELODY: dict[str, Any] = {f"conditioners.{MELODY}.model": "chroma_stem"}
REQUIRED_OF_MELODY |= {f"conditioners.{MELODY}.chroma_stem.argmax": True}
T5_NAMES = {512: "t5-small", 768: "t5-base", 1024: "t5-large"}
"""Name of the text encoder that is written, by width: audiocraft loads it by this name."""


def is_musicgen_native(folder: PublicFolder) -> bool:
    """Whether this is audiocraft's file of a language model, or a folder with it."""
    if folder.path.is_dir():
        return (folder.path / FILE).is_file()
    return folder.path.suffix in PICKLE_ENDINGS and "emb.0.weight" in folder.checkpoint.shapes


@dataclass(frozen=True)
class NativeModel:
    """An opened state_dict.bin."""

    checkpoint: Checkpoint
    config: Any
    """Content of xp.cfg."""
    where: str
    """Place of the config, for messages."""

    def value(self, key: str, default: Any) -> Any:
        """The setting at a.b.c, of the default's type."""
        return config_value(self.config, key, default, self.where)

    @property
    def melody(self) -> bool:
        """Whether it follows melodies."""
        return f"{CONDITIONER}{MELODY}.output_proj.weight" in self.checkpoint.shapes

    @property
    def channels(self) -> int:
        """Channels that share the codebooks."""
        return 2 if self.value("interleave_stereo_codebooks.use", False) else 1

    @property
    def codebooks(self) -> int:
        """Number of codebooks of all channels."""
        found = len([name for name in self.checkpoint.shapes if re.fullmatch(r"emb\.\d+\.weight", name)])
        return self.value("transformer_lm.n_q", found)

    @property
    def text_width(self) -> int:
        """Width of the text encoder's states."""
        return self.matrix(f"{CONDITIONER}{TEXT}.output_proj.weight")[1]

    @property
    def text_encoder(self) -> str:
        """The text encoder's name."""
        return str(self.value(f"conditioners.{TEXT}.t5.name", None) or T5_NAMES.get(self.text_width, "T5"))

    def matrix(self, name: str) -> tuple[int, int]:
        """Shape of a tensor that determines the model's size."""
        shape = self.checkpoint.shapes.get(name)
        if shape is None or len(shape) != 2:
            found = "missing" if shape is None else f"{list(shape)}, no matrix"
            raise WeightsError(f"{self.checkpoint.path}: tensor '{name}' is {found}; this is no MusicGen or AudioGen")
        return shape[0], shape[1]


def open_native(folder: PublicFolder) -> NativeModel:
    """Open the language model of a folder, or such a file.

    Raises:
        FileNotFoundError: there is none. ValueError: an unusable pickle or config, or a setting that is not supported.
    """
    path = folder.path / FILE if folder.path.is_dir() else folder.path
    checkpoint = open_checkpoint(path)
    config, where = read_xp_config(checkpoint)
    opened = NativeModel(checkpoint, config, where)
    conditioners = opened.value("conditioners", {}).keys() - {"args"}
    for name in sorted(conditioners - {TEXT, MELODY}):
        raise ValueError(f"{where}: conditioners.{name} is set; only {TEXT} (T5) and {MELODY} (chroma) are supported")
    wanted = REQUIRED | (REQUIRED_OF_MELODY if MELODY in conditioners else {})
    wanted |= {"fuser.cross": [], "fuser.prepend": [MELODY, TEXT]} if opened.melody else {"fuser.cross": [TEXT]}
    for key, value in wanted.items():
        found = opened.value(key, value)
        if found != value:
            raise ValueError(f"{where}: {key} is {repr(found)[:80]}; only {value!r} is supported")
    return opened


def load_musicgen_native(
    folder: str | Path,
    spec: TokenSpec | None = None,
    device: torch.device | str = "cpu",
    dtype: StorageName | torch.dtype = "float32",
) -> TokenLM:
    """Read audiocraft's language model, in eval mode.

    Args:
        folder: as described above, or state_dict.bin itself.
        spec: of the codec; None: a spec from the config, whose codec is not loaded.
        dtype: of the weights in memory.
    Raises:
        FileNotFoundError: no weights. WeightsError: tensors missing, left over or of another shape than the config
            requires. ValueError: an unusable pickle, a setting that is not supported, or a spec that does not fit.
    """
    opened = open_native(PublicFolder(folder))
    described = _decoder(opened)
    config = musicgen_config(described, opened.text_width, opened.where, _melody(opened))
    dropped = opened.value("classifier_free_guidance.training_dropout", TEXT_DROPOUT)
    conditions = tuple(one.model_copy(update={"dropout": dropped}) for one in config.conditions)
    if not 0 <= dropped < 1:
        raise ValueError(f"{opened.where}: classifier_free_guidance.training_dropout must be below 1, found {dropped}")
    config = config.model_copy(update={"conditions": conditions})
    spec = spec or musicgen_spec(described, opened.where)
    check_codec(folder, spec, described["num_codebooks"], described["vocab_size"])
    return read_lm(opened.checkpoint, musicgen_native_tensor_map(config, spec), config, spec, device, dtype)


def _decoder(opened: NativeModel) -> dict[str, Any]:
    """The model's sizes by the keys of transformers' config."""
    rows, width = opened.matrix("emb.0.weight")
    shapes, channels, books = opened.checkpoint.shapes, opened.channels, opened.codebooks
    layers = {name.split(".")[2] for name in shapes if name.startswith("transformer.layers.")}
    width = opened.value("transformer_lm.dim", width)
    heads = opened.value("transformer_lm.num_heads", width // HEAD_WIDTH if width in PUBLISHED_WIDTHS else 0)
    if not heads:
        raise ValueError(
            f"{opened.where}: transformer_lm.num_heads is missing, and no published model has width {width}, so the "
            "number of heads is not known"
        )
    scale = float(opened.value("transformer_lm.hidden_scale", 0.0))
    ffn = opened.matrix("transformer.layers.0.linear1.weight")[0]
    delays = opened.value("codebooks_pattern.delay.delays", [k // channels for k in range(books)])
    if delays != [k // channels for k in range(books)]:
        raise ValueError(
            f"{opened.where}: codebooks_pattern.delay.delays is {str(delays)[:80]}; only "
            f"{[k // channels for k in range(books)]} is supported with {books} codebooks of {channels} channels"
        )
    rate = opened.value("sample_rate", 32000)
    described = {
        "model_type": "musicgen_decoder",
        "vocab_size": opened.value("transformer_lm.card", rows - 1),
        "hidden_size": width,
        "num_hidden_layers": opened.value("transformer_lm.num_layers", len(layers)),
        "num_attention_heads": heads,
        "ffn_dim": int(scale * width) if scale else ffn,
        "num_codebooks": books,
        "audio_channels": channels,
        "dropout": opened.value("transformer_lm.dropout", 0.0),
    }
    for key, value in described.items():
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{opened.where}: {key} must be at least 1, found {value}")
    return described | {"audio_encoder": {"sampling_rate": rate, "upsampling_ratios": [max(1, rate // FRAME_RATE)]}}


def _melody(opened: NativeModel) -> tuple[ChromaConfig, int] | None:
    """The analysis of melodies and their number of tokens; None for a model that does not follow them."""
    if not opened.melody:
        return None
    key = f"conditioners.{MELODY}.chroma_stem"
    exponent, rate = opened.value(f"{key}.radix2_exp", 14), opened.value(f"{key}.sample_rate", 32000)
    window = 1 << min(max(exponent, 0), 30)
    hop, seconds = max(1, window // 4), opened.value("dataset.segment_duration", SECONDS)
    bins = opened.value(f"{key}.n_chroma", opened.matrix(f"{CONDITIONER}{MELODY}.output_proj.weight")[1])
    sizes = {"sample_rate": rate, "window": window, "hop": hop, "bins": bins, "seconds": seconds}
    return make_config(ChromaConfig, f"{opened.where}: {key}", **sizes), 1 + rate * seconds // hop


def musicgen_native_tensor_map(config: LMConfig, spec: TokenSpec) -> TensorMap:
    """The mapping from their tensors to ours."""
    books, width = range(spec.num_codebooks), config.width
    conditions = {"embedding": TEXT, "melody": MELODY}
    terms: dict[str, Term] = {
        "input.table.weight": equal_parts([f"emb.{k}.weight" for k in books]),
        "head.weight": equal_parts([f"linears.{k}.weight" for k in books]),
    }
    for part in ("weight", "bias"):
        terms[f"transformer.norm.{part}"] = Source(f"out_norm.{part}")
        for ours, theirs in conditions.items():
            terms[f"conditions.parts.{ours}.projection.{part}"] = Source(f"{CONDITIONER}{theirs}.output_proj.{part}")
    for n in range(config.layers):
        block, layer = f"transformer.blocks.{n}.", f"transformer.layers.{n}."
        for our_norm, norm in {"attention_norm": "norm1", "cross_norm": "norm_cross", "ffn_norm": "norm2"}.items():
            for part in ("weight", "bias"):
                terms[f"{block}{our_norm}.{part}"] = Source(f"{layer}{norm}.{part}")
        matrices = {
            "attention.qkv": "self_attn.in_proj_weight",
            "attention.out": "self_attn.out_proj.weight",
            "cross.out": "cross_attention.out_proj.weight",
            "ffn.up": "linear1.weight",
            "ffn.down": "linear2.weight",
        }
        for our_matrix, matrix in matrices.items():
            terms[f"{block}{our_matrix}.weight"] = Source(f"{layer}{matrix}")
        rows = partial(Part, f"{layer}cross_attention.in_proj_weight", (3 * width, width))
        terms[f"{block}cross.query.weight"] = rows(start=0)
        terms[f"{block}cross.key_value.weight"] = rows(start=width)
    return TensorMap({name: terms[name] for name in parameter_shapes(config, spec)}, ignored=(CHROMA,))


def read_native_codec(folder: PublicFolder) -> Tokenizer | None:
    """The codec beside a language model; None if there is none.

    Raises:
        ValueError: an unsupported codec, by name. WeightsError: tensors missing or misshapen.
    """
    if not folder.path.is_dir():
        return None
    opened, path, other = open_native(folder), folder.path / CODEC_FILE, folder.path / CODEC_FOLDER
    held = read_pickle(path) if path.is_file() else None
    if held is None or (isinstance(held, dict) and "pretrained" in held):
        if not other.is_dir():
            if held is None:
                return None
            raise ValueError(
                f"{path}: holds only the name of a codec, {str(held['pretrained'])[:100]!r}; put that codec into "
                f"{other}, or convert the model with: tessera convert {folder.path} DST --tokenizer DIR"
            )
        path = other
    channels = opened.channels
    tokenizer = read_public_codec(path, opened.codebooks // channels)
    return tokenizer if channels == 1 else for_channels(tokenizer, channels)


def read_native_text_encoder(folder: PublicFolder) -> TextEncoder | None:
    """The text encoder beside a language model; None if there is none. Raises as `open_text_encoder`; ValueError if it
    is of another width than the model was trained with."""
    path = folder.path / TEXT_FOLDER
    if not path.is_dir():
        return None
    opened, encoder = open_native(folder), open_text_encoder(path)
    if encoder.width != opened.text_width:
        raise ValueError(
            f"{path}: its states are {encoder.width} wide, the model reads those of {opened.text_encoder!r}, "
            f"{opened.text_width} wide"
        )
    return encoder


def native_defaults(folder: PublicFolder, spec: TokenSpec) -> GenerationConfig:
    """audiocraft's sampling settings: as long as the training examples, and longer audio in windows of that length."""
    opened, rate = open_native(folder), _audio(spec).frame_rate
    frames = max(2, round(rate * opened.value("dataset.segment_duration", SECONDS)))
    stride = AUDIOGEN_STRIDE * rate if opened.value("solver", "") == "audiogen" else STRIDE_SHARE * frames
    sizes = {"max_frames": frames, "window_frames": frames, "stride_frames": min(round(stride), frames - 1)}
    guidance = float(opened.value("classifier_free_guidance.inference_coef", 3.0))
    given = MUSICGEN_DEFAULTS.model_dump(exclude_unset=True) | sizes | {"guidance": guidance}
    return make_config(GenerationConfig, opened.where, **given)


def _audio(spec: TokenSpec) -> AudioGeometry:
    assert isinstance(spec.geometry, AudioGeometry)
    return spec.geometry


def save_musicgen_native(
    folder: str | Path, lm: TokenLM, dtype: StorageName = "float32", defaults: GenerationConfig = MUSICGEN_DEFAULTS
) -> None:
    """Write state_dict.bin.

    Raises:
        ValueError: audiocraft's layout cannot represent the model; names the first setting that differs.
    """
    described, spec = describe_musicgen(lm), lm.spec
    text = next(one for one in lm.config.conditions if isinstance(one, EmbeddingConditionConfig))
    tune = next((one for one in lm.config.conditions if isinstance(one, MelodyConditionConfig)), None)
    if text.projection == "none":
        raise CannotWrite("audiocraft's layout has a projection of the text encoder's states, this model has none")
    tensors = musicgen_native_tensor_map(lm.config, spec).write(lm.state_dict())
    tensors = {name: tensor.to(DTYPES[dtype]) for name, tensor in tensors.items()}
    if tune is not None:
        tensors[f"{CHROMA}spec.window"] = torch.hann_window(tune.chroma.window)
    config = json.dumps(_xp_config(described, spec, text, tune, defaults))
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_pickle(path / FILE, {"best_state": tensors, CONFIG: config, "version": "1.3.0", "exported": True})


def _xp_config(
    described: dict[str, Any],
    spec: TokenSpec,
    text: EmbeddingConditionConfig,
    tune: MelodyConditionConfig | None,
    defaults: GenerationConfig,
) -> dict[str, Any]:
    """The config from which audiocraft builds the model."""
    rate, width, channels = _audio(spec).frame_rate, described["hidden_size"], described["audio_channels"]
    frames = defaults.window_frames or SECONDS * rate
    seconds = max(1, round(frames / rate)) if tune is None else tune.chroma.seconds
    strides_as_audiogen = defaults.stride_frames == round(AUDIOGEN_STRIDE * rate)
    scale = described["ffn_dim"] / width
    scale = scale if int(scale * width) == described["ffn_dim"] else (described["ffn_dim"] + 0.5) / width
    nothing: dict[str, Any] = {}
    conditioners: dict[str, Any] = {
        TEXT: {"model": "t5", "t5": {"name": T5_NAMES.get(text.width, "t5"), "finetune": False, "word_dropout": 0.0}}
    }
    conditioners[TEXT]["t5"]["normalize_text"] = False
    if tune is not None:
        chroma = tune.chroma
        exponent = chroma.window.bit_length() - 1
        expected = (1 << exponent, chroma.window // 4, 1 + chroma.sample_rate * chroma.seconds // chroma.hop)
        if (chroma.window, chroma.hop, tune.length) != expected:
            raise CannotWrite(
                f"audiocraft's layout has melodies with window, hop and length {list(expected)}, this model's are "
                f"{[chroma.window, chroma.hop, tune.length]}"
            )
        sizes = {"sample_rate": chroma.sample_rate, "n_chroma": chroma.bins, "radix2_exp": exponent, "argmax": True}
        sizes |= {"match_len_on_eval": False, "eval_wavs": None, "n_eval_wavs": 100, "cache_path": None}
        conditioners[MELODY] = {"model": "chroma_stem", "chroma_stem": sizes}
    delays = [k // channels for k in range(described["num_codebooks"])]
    guidance = float(defaults.guidance) if isinstance(defaults.guidance, int | float) else 3.0
    fixed = {key.removeprefix("transformer_lm."): REQUIRED[key] for key in REQUIRED if key.startswith("transformer_lm")}
    return {
        "solver": "audiogen" if strides_as_audiogen else "musicgen",
        "sample_rate": _audio(spec).sample_rate,
        "channels": channels,
        "device": "cpu",
        "dtype": "float32",
        "lm_model": "transformer_lm",
        "transformer_lm": {
            **{key: value for key, value in fixed.items() if key not in ("positional_scale", "max_period")},
            "dim": width,
            "num_heads": described["num_attention_heads"],
            "num_layers": described["num_hidden_layers"],
            "hidden_scale": scale,
            "n_q": described["num_codebooks"],
            "card": described["vocab_size"],
            "dropout": described["dropout"],
            "memory_efficient": True,
            "attention_as_float32": False,
        },
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {"delays": delays, "flatten_first": 0, "empty_initial": 0},
        },
        "interleave_stereo_codebooks": {"use": channels == 2, "per_timestep": False},
        "classifier_free_guidance": {"training_dropout": text.dropout, "inference_coef": guidance},
        "attribute_dropout": nothing,
        "fuser": {
            "cross_attention_pos_emb": False,
            "cross_attention_pos_emb_scale": 1,
            "sum": [],
            "prepend": [] if tune is None else [MELODY, TEXT],
            "cross": [TEXT] if tune is None else [],
            "input_interpolate": [],
        },
        "conditioners": conditioners,
        "dataset": {"segment_duration": seconds},
    }


def save_native_whole(folder: Path, model: LoadedModel, dtype: StorageName = "float32") -> None:
    """Write a model with its codec, and its text encoder in the layout of transformers.

    Args:
        dtype: of the language model's weights; codec and text encoder stay as they are.
    Raises:
        ValueError: the layout cannot represent the model or its codec; names the first setting that differs.
    """
    lm, codec = model.lm, of_one_channel(model.tokenizer)
    if not isinstance(lm, TokenLM):
        raise ValueError(f"audiocraft's layout holds a causal language model, found {type(lm).__name__}")
    if not isinstance(codec.config, AudioTokenizerConfig) or codec.config.channels != 1:
        raise CannotWrite(f"audiocraft's layout has a codec of one channel for each; '{codec.spec.name}' is another")
    describe_musicgen(lm)
    write_audiocraft(folder, codec)
    save_musicgen_native(folder, lm, dtype, model.defaults)
    if model.text_encoder is not None:
        model.text_encoder.save(folder / TEXT_FOLDER)
