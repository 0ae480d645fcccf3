"""Read and write Qwen3-TTS in the layout of its package (`Qwen3TTSForConditionalGeneration`), with its codec.

    talker.model.text_embedding                 the table of the text, through talker.text_projection
    talker.model.codec_embedding                the table of codebook 0, then tags: languages, speakers, padding ..
    talker.model.layers.*, talker.model.norm    the blocks of a Qwen3
    talker.codec_head                           codebook 0, and its end among outputs that are never sampled
    talker.code_predictor.*                     the depth transformer, a Qwen3, with tables and outputs of the others
    speaker_encoder.*                           of a recording to the vector of its speaker (Base)
    speech_tokenizer/                           the codec (tokenize/public/qwen3_tts_tokenizer.py)

Text and frames are two tracks of one sequence (lm/conditioning/dual_track.py). Base, CustomVoice and VoiceDesign are
the same networks: Base takes a recording of a voice, the others named speakers or a description.
Source: Qwen3-TTS, arXiv:2601.15621; tensor names, config keys, class defaults and the order of a sequence of qwen-tts
0.1.1 (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...configs.files import read_json, write_json, write_safetensors
from ...configs.schema import make_config
from ...tokenize.base import Tokenizer
from ...tokenize.public.folder import PublicFolder, typed_values
from ...tokenize.public.qwen3_tts_tokenizer import DEFAULTS as CODEC_DEFAULTS
from ...tokenize.public.qwen3_tts_tokenizer import (
    is_qwen3_tts_tokenizer,
    read_qwen3_tts_tokenizer,
    write_qwen3_tts_tokenizer,
)
from ...tokenize.public.tensor_map import Concat, Constant, Part, Source, TensorMap, Term
from ...tokenize.spec import AudioGeometry, TokenSpec
from ...tokenize.text.base import TextTokenizer
from ...tokenize.text.bpe_text import BPEText, BPETextConfig
from ..checkpoints.model_directory import LoadedModel
from ..checkpoints.parameter_shapes import parameter_shapes
from ..checkpoints.weights_file import DTYPES, StorageName
from ..conditioning.dual_track import DualTrackConfig, SpeakerTag, TrackTags, TrackTemplate
from ..conditioning.speaker_encoder import SpeakerEncoderConfig
from ..config import LMConfig
from ..generation_config import MAX_LOOK_BACK, GenerationConfig
from ..heads.depth_transformer import DepthHeadConfig, RopePositionsConfig
from ..layers.config import TransformerConfig
from ..models.causal import TokenLM
from ..ops.rotary import TimeRopeConfig
from ..patterns.layouts import ParallelConfig
from ..patterns.pattern import SpecialsConfig
from .conversion import check_codec, check_layout, read_lm
from .musicgen import UNKNOWN_CODEC
from .qwen_text import LONGEST_TEXT, WHOLE, read_qwen_text, write_qwen_text
from .text_lm import QK_NORM_EPS, rope_settings, stack_terms

MODEL_TYPES = ("qwen3_tts",)
"""Values of model_type in config.json."""
TALKER, PREDICTOR, SPEAKER, CODEC = (
    "talker_config",
    "code_predictor_config",
    "speaker_encoder_config",
    "speech_tokenizer",
)
TAGS = 1024
"""Ids after the codes in the talker's vocabulary."""
KINDS = ("base", "custom_voice", "voice_design")
"""Values of tts_model_type."""
SMALL = "0b6"
"""The value of tts_model_size of 0.6B, whose CustomVoice takes no description."""
SPOKEN = TrackTemplate(text="<|im_start|>assistant\n{}<|im_end|>\n<|im_start|>assistant\n", opening=3, closing=5)
DESCRIBED = TrackTemplate(text="<|im_start|>user\n{}<|im_end|>\n")
HEARD = TrackTemplate(text="<|im_start|>assistant\n{}<|im_end|>\n", opening=3, closing=2)
MARKS = {
    "pad": "codec_pad_id",
    "begin": "codec_bos_id",
    "end": "codec_eos_token_id",
    "think": "codec_think_id",
    "no_think": "codec_nothink_id",
    "open": "codec_think_bos_id",
    "close": "codec_think_eos_id",
}
"""Our names of tags -> keys of the talker's config."""
LONGEST = 2048
"""Default number of new ids, one of them the end: 164 seconds. Published files ask for 8192, whose cache takes
gigabytes."""

DEFAULTS: dict[str, Any] = {
    "tts_model_type": None,
    "tts_model_size": None,
    "tts_pad_token_id": 151671,
    "tts_bos_token_id": 151672,
    "tts_eos_token_id": 151673,
}
"""Class defaults of Qwen3TTSConfig."""
STACK: dict[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "use_sliding_window": False,
    "rope_theta": 10000.0,
    "rope_scaling": None,
}
TALKER_DEFAULTS: dict[str, Any] = STACK | {
    "vocab_size": 3072,
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": None,
    "num_code_groups": 32,
    "text_hidden_size": 2048,
    "text_vocab_size": 151936,
    "codec_eos_token_id": 4198,
    "codec_think_id": 4202,
    "codec_nothink_id": 4203,
    "codec_think_bos_id": 4204,
    "codec_think_eos_id": 4205,
    "codec_pad_id": 4196,
    "codec_bos_id": 4197,
    "spk_id": None,
    "spk_is_dialect": None,
    "codec_language_id": None,
}
"""Class defaults of Qwen3TTSTalkerConfig, of the settings that determine the model."""
PREDICTOR_DEFAULTS: dict[str, Any] = STACK | {
    "vocab_size": 2048,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 5,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_code_groups": 32,
}
"""Class defaults of Qwen3TTSTalkerCodePredictorConfig."""
SPEAKER_DEFAULTS: dict[str, Any] = {
    "mel_dim": 128,
    "enc_dim": 1024,
    "enc_channels": [512, 512, 512, 512, 1536],
    "enc_kernel_sizes": [5, 3, 3, 3, 1],
    "enc_dilations": [1, 2, 3, 4, 1],
    "enc_attention_channels": 128,
    "enc_res2net_scale": 8,
    "enc_se_channels": 128,
    "sample_rate": 24000,
}
"""Class defaults of Qwen3TTSSpeakerEncoderConfig."""
Settings = Mapping[str, Any]


def load_qwen3_tts(
    folder: str | Path,
    spec: TokenSpec | None = None,
    device: Any = "cpu",
    dtype: Any = "float32",
) -> TokenLM:
    """Read the language model of a Qwen3-TTS checkpoint, in eval mode.

    Args:
        spec: of the codec; None: a spec from the config, whose codec is not loaded.
        dtype: of the weights in memory.
    Raises:
        FileNotFoundError: config.json or weights are missing. WeightsError: tensors missing, left over or of another
            shape than the config requires. ValueError: a setting that is not supported, by name, or a spec that does
            not fit.
    """
    opened = PublicFolder(folder)
    described = read_qwen3_tts_config(opened)
    config = qwen3_tts_config(described, str(opened.config_path))
    spec = spec or qwen3_tts_spec(opened, described)
    check_codec(folder, spec, described[TALKER]["num_code_groups"], described[PREDICTOR]["vocab_size"])
    return read_lm(opened.checkpoint, qwen3_tts_tensor_map(config, spec), config, spec, device, dtype)


def read_qwen3_tts_config(folder: PublicFolder) -> dict[str, Any]:
    """Settings of config.json with the class defaults of absent ones, those of its parts under their keys.

    Raises:
        FileNotFoundError: there is none. ValueError: another kind of model, or a setting that is not supported.
    """
    if not folder.config:
        raise FileNotFoundError(f"{folder.path}: no checkpoint here (config.json is missing)")
    where = str(folder.config_path)
    if folder.config.get("model_type") not in MODEL_TYPES:
        raise ValueError(f"{where}: model_type is {folder.config.get('model_type')!r}; supported is {MODEL_TYPES[0]!r}")
    described = folder.values(DEFAULTS)
    held = folder.config.get(TALKER)
    talker = folder.values(TALKER_DEFAULTS, TALKER)
    inner = held.get(PREDICTOR, {}) if isinstance(held, dict) else {}
    predictor = typed_values(inner, PREDICTOR_DEFAULTS, f"{where}: {TALKER}: {PREDICTOR}")
    if described["tts_model_type"] not in KINDS:
        found = str(described["tts_model_type"])[:80]
        raise ValueError(f"{where}: tts_model_type is {found!r}; supported are {', '.join(KINDS)}")
    codes, books = predictor["vocab_size"], talker["num_code_groups"]
    required: dict[str, tuple[Any, Any]] = {
        f"{TALKER}.vocab_size": (talker["vocab_size"], codes + TAGS),
        f"{PREDICTOR}.num_code_groups": (predictor["num_code_groups"], books),
    }
    for name, part in ((TALKER, talker), (PREDICTOR, predictor)):
        allowed = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}
        required |= {f"{name}.{key}": (part[key], value) for key, value in allowed.items()}
        required[f"{name}.rms_norm_eps"] = (part["rms_norm_eps"], QK_NORM_EPS)
    for key, (found, allowed) in required.items():
        if found != allowed or isinstance(found, bool) != isinstance(allowed, bool):
            raise ValueError(f"{where}: {key} is {str(found)[:80]!r}; only {allowed!r} is supported here")
    if books < 2:
        raise ValueError(f"{where}: num_code_groups is {books}, a code predictor needs two or more")
    for key in MARKS.values():
        _tag(talker[key], codes, f"{where}: {TALKER}: {key}")
    speaker = folder.values(SPEAKER_DEFAULTS, SPEAKER) if SPEAKER in folder.config else dict(SPEAKER_DEFAULTS)
    return described | {TALKER: talker, PREDICTOR: predictor, SPEAKER: speaker}


def _tag(value: Any, codes: int, where: str) -> int:
    """The number of a tag; ValueError, which begins with `where`: the id is none."""
    if type(value) is not int or not codes <= value < codes + TAGS:
        raise ValueError(f"{where} must be an id from {codes} to {codes + TAGS - 1}, found {str(value)[:80]!r}")
    return value - codes


def qwen3_tts_config(described: Settings, where: str = "config.json") -> LMConfig:
    """The config of the model that these settings describe (`read_qwen3_tts_config`)."""
    talker, predictor = described[TALKER], described[PREDICTOR]
    width = talker["hidden_size"]
    head = make_config(
        DepthHeadConfig,
        where,
        **_sizes(predictor, f"{where}: {PREDICTOR}"),
        qk_norm=True,
        positions=RopePositionsConfig(base=_base(predictor, f"{where}: {PREDICTOR}")),
        projection="none" if predictor["hidden_size"] == width else "affine",
        first="backbone",
        input="backbone",
    )
    return make_config(
        LMConfig,
        where,
        **_sizes(talker, f"{where}: {TALKER}"),
        qk_norm=True,
        rope=TimeRopeConfig(base=_base(talker, f"{where}: {TALKER}")),
        arrangement=ParallelConfig(),
        specials=SpecialsConfig(end=0, start=1, pad=0, after="end"),
        start="condition",
        variable_length=True,
        head=head,
        conditions=(_tracks(described, where),),
    )


def _tracks(described: Settings, where: str) -> DualTrackConfig:
    talker, kind = described[TALKER], described["tts_model_type"]
    codes, base = described[PREDICTOR]["vocab_size"], kind == "base"
    encoder = described[SPEAKER]
    if base and encoder["enc_dim"] != talker["hidden_size"]:
        raise ValueError(f"{where}: {SPEAKER}.enc_dim is {encoder['enc_dim']}, only hidden_size is supported here")
    names = {
        "bands": "mel_dim",
        "channels": "enc_channels",
        "kernels": "enc_kernel_sizes",
        "dilations": "enc_dilations",
        "groups": "enc_res2net_scale",
        "squeeze": "enc_se_channels",
        "attention": "enc_attention_channels",
        "sample_rate": "sample_rate",
    }
    sizes = {ours: encoder[theirs] for ours, theirs in names.items()}
    sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in sizes.items()}
    takes_description = kind == "voice_design" or (kind == "custom_voice" and described["tts_model_size"] != SMALL)
    vocab_size = talker["text_vocab_size"]
    for key in ("tts_pad_token_id", "tts_bos_token_id", "tts_eos_token_id"):
        if not 0 <= described[key] < vocab_size:
            raise ValueError(f"{where}: {key} is {described[key]}, but text_vocab_size {vocab_size}")
    return make_config(
        DualTrackConfig,
        where,
        text=BPETextConfig(vocab_size=vocab_size, specials=(), file=WHOLE, max_characters=LONGEST_TEXT),
        vocab_size=vocab_size,
        text_width=talker["text_hidden_size"],
        text_pad=described["tts_pad_token_id"],
        text_begin=described["tts_bos_token_id"],
        text_end=described["tts_eos_token_id"],
        num_tags=TAGS,
        tags=TrackTags(**{ours: talker[theirs] - codes for ours, theirs in MARKS.items()}),
        languages=_named(talker["codec_language_id"], codes, f"{where}: {TALKER}: codec_language_id"),
        speakers=_speakers(talker, codes, f"{where}: {TALKER}") if kind == "custom_voice" else {},
        order="beside" if base else "before",
        text_template=SPOKEN,
        description_template=DESCRIBED if takes_description else None,
        recording_template=HEARD if base else None,
        takes_vector=base,
        speaker_encoder=make_config(SpeakerEncoderConfig, f"{where}: {SPEAKER}", **sizes) if base else None,
    )


def _named(held: Any, codes: int, where: str) -> dict[str, int]:
    """Tags by name; ValueError, which begins with `where`: they are none."""
    if held is not None and not isinstance(held, dict):
        raise ValueError(f"{where} must be a mapping of names to ids, found {str(held)[:80]!r}")
    return {str(name): _tag(value, codes, f"{where}: {name}") for name, value in (held or {}).items()}


def _speakers(talker: Settings, codes: int, where: str) -> dict[str, SpeakerTag]:
    tags, dialects = _named(talker["spk_id"], codes, f"{where}: spk_id"), talker["spk_is_dialect"] or {}
    if not isinstance(dialects, dict):
        raise ValueError(f"{where}: spk_is_dialect must be a mapping, found {str(dialects)[:80]!r}")
    found = {}
    for name, tag in tags.items():
        dialect = dialects.get(name, False)
        if dialect is not False and not isinstance(dialect, str):
            raise ValueError(f"{where}: spk_is_dialect: {name} must be false or a name, found {str(dialect)[:80]!r}")
        found[name] = SpeakerTag(tag=tag, dialect=dialect or None)
    return found


def _sizes(part: Settings, where: str) -> dict[str, Any]:
    """Sizes of a stack of blocks; ValueError: they contradict each other."""
    width, heads, own = part["hidden_size"], part["num_attention_heads"], part["head_dim"]
    if own is None and width % heads:
        raise ValueError(f"{where}: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    if own is not None and (type(own) is not int or own < 2):
        raise ValueError(f"{where}: head_dim must be a whole number, found {str(own)[:80]!r}")
    return {
        "width": width,
        "layers": part["num_hidden_layers"],
        "heads": heads,
        "kv_heads": part["num_key_value_heads"],
        "head_dim": own or width // heads,
        "ffn": part["intermediate_size"],
        "norm_eps": float(part["rms_norm_eps"]),
    }


def _base(part: Settings, where: str) -> float:
    """Base of the rotary embedding. Sections of it (mrope) read the same position in a sequence of speech."""
    scaling = part["rope_scaling"]
    if scaling is not None and not isinstance(scaling, dict):
        raise ValueError(f"{where}: rope_scaling must be a mapping, found {str(scaling)[:80]!r}")
    kind = (scaling or {}).get("rope_type", (scaling or {}).get("type", "default"))
    if kind != "default":
        raise ValueError(f"{where}: rope_scaling.rope_type is {str(kind)[:80]!r}; only 'default' is supported here")
    return rope_settings({"rope_theta": part["rope_theta"]}, where)["base"]


def qwen3_tts_spec(folder: PublicFolder, described: Settings) -> TokenSpec:
    """The TokenSpec as far as the configs define it; the codec itself is not loaded."""
    codec, where = PublicFolder(folder.path / CODEC), str(folder.config_path)
    values = codec.values(CODEC_DEFAULTS) if codec.config else CODEC_DEFAULTS
    rate, hop = values["output_sample_rate"], values["decode_upsample_rate"]
    return make_config(
        TokenSpec,
        where,
        name="qwen3-tts-codec",
        cardinalities=(described[PREDICTOR]["vocab_size"],) * described[TALKER]["num_code_groups"],
        geometry=make_config(AudioGeometry, where, sample_rate=rate, channels=1, samples_per_frame=hop),
        fingerprint=UNKNOWN_CODEC,
    )


def qwen3_tts_tensor_map(config: LMConfig, spec: TokenSpec) -> TensorMap:
    """The mapping from their tensors to ours."""
    shapes, dual, head = parameter_shapes(config, spec), config.dual_track, config.head
    assert dual is not None and isinstance(head, DepthHeadConfig) and head.width is not None
    D, V, K, end = config.width, spec.cardinalities[0], spec.num_codebooks, dual.tags.end
    table, output = "talker.model.codec_embedding.weight", "talker.codec_head.weight"
    whole, predictor = (V + TAGS, D), "talker.code_predictor."
    absent = Constant(0.0, required=False)  # rows of ids that are never read
    tables = [Part(table, whole, 0), *(Source(f"{predictor}model.codec_embedding.{k}.weight") for k in range(K - 1))]
    track = "conditions.parts.dual_track."
    terms: dict[str, Term] = {
        "input.table.weight": Concat(tuple(term for one in tables for term in (one, absent)), (V, 2) * K),
        f"{track}table.weight": Source("talker.model.text_embedding.weight"),
        f"{track}tags.weight": Part(table, whole, V),
        f"{track}unread_outputs": Concat(
            (Part(output, whole, V), absent, Part(output, whole, V + end + 1)), (end, 1, TAGS - end - 1)
        ),
        "head.first.weight": Concat((Part(output, whole, 0), Part(output, whole, V + end)), (V, 1)),
    }
    layers = {f"{track}projection.first": "talker.text_projection.linear_fc1"}
    layers |= {f"{track}projection.second": "talker.text_projection.linear_fc2"}
    layers |= {"head.project": f"{predictor}small_to_mtp_projection"}
    layers |= {f"head.outputs.{k}": f"{predictor}lm_head.{k}" for k in range(K - 1)}
    if dual.speaker_encoder is not None:
        layers |= _speaker_layers(dual.speaker_encoder, f"{track}speaker_encoder.")
    terms |= {f"{ours}.{leaf}": Source(f"{theirs}.{leaf}") for ours, theirs in layers.items() for leaf in LEAVES}
    depth = TransformerConfig(
        width=head.width,
        layers=head.layers,
        heads=head.heads,
        kv_heads=head.kv_heads or head.heads,
        ffn=head.ffn or 0,
        head_dim=head.head_dim,
    )
    stacks = {
        "transformer.": (config.transformer, "talker.model."),
        "head.transformer.": (depth, f"{predictor}model."),
    }
    for ours, (stack, theirs) in stacks.items():
        names = [name.removeprefix(ours) for name in shapes if name.startswith(ours)]
        terms |= {ours + name: term for name, term in stack_terms(stack, names, theirs).items()}
    return TensorMap({name: terms[name] for name in shapes})


LEAVES = ("weight", "bias")


def _speaker_layers(config: SpeakerEncoderConfig, ours: str) -> dict[str, str]:
    """Our names of the layers of the speaker encoder -> theirs."""
    theirs, blocks = "speaker_encoder.", len(config.channels) - 2
    layers = {"first.conv": "blocks.0.conv", "join.conv": "mfa.conv", "attend.conv": "asp.tdnn.conv"}
    layers |= {"weigh": "asp.conv", "out": "fc"}
    for number in range(blocks):
        own, other = f"blocks.{number}", f"blocks.{number + 1}"
        layers |= {f"{own}.enter.conv": f"{other}.tdnn1.conv", f"{own}.leave.conv": f"{other}.tdnn2.conv"}
        layers |= {f"{own}.squeeze": f"{other}.se_block.conv1", f"{own}.excite": f"{other}.se_block.conv2"}
        for part in range(config.groups - 1):
            layers[f"{own}.parts.{part}.conv"] = f"{other}.res2net_block.blocks.{part}.conv"
    return {ours + name: theirs + other for name, other in layers.items()}


def read_qwen3_tts_codec(folder: PublicFolder) -> Tokenizer | None:
    """The codec of a folder; None: there is none.

    Raises:
        ValueError: an unsupported codec, by name. WeightsError: tensors missing or misshapen.
    """
    inner = PublicFolder(folder.path / CODEC)
    if not inner.path.is_dir():
        return None
    if not is_qwen3_tts_tokenizer(inner):
        found = str(inner.config.get("model_type"))[:80]
        raise ValueError(f"{inner.config_path}: model_type is {found!r}; only the tokenizer at 12 Hz is supported here")
    return read_qwen3_tts_tokenizer(inner)


def read_qwen3_tts_text(folder: PublicFolder) -> TextTokenizer:
    """The tokenizer of texts.

    Raises:
        FileNotFoundError: there is none. ValueError: it is unusable, or does not fit the table or the templates.
    """
    described = read_qwen3_tts_config(folder)
    text = read_qwen_text(folder.path, described[TALKER]["text_vocab_size"])
    for template in (SPOKEN, HEARD):
        alone = [text.encode(part) for part in template.text.split("{}")]
        if [len(ids) for ids in alone] != [template.opening, template.closing]:
            found = f"{len(alone[0])} ids before a text and {len(alone[1])} after it"
            raise ValueError(
                f"{folder.path}: the text tokenizer makes {found}, not {template.opening} and {template.closing}"
            )
    return text


def qwen3_tts_defaults(folder: PublicFolder, spec: TokenSpec) -> GenerationConfig:
    """The package's sampling: of generation_config.json, or else its own defaults."""
    path = folder.path / "generation_config.json"
    held = read_json(path) if path.is_file() else {}
    known: dict[str, Any] = {
        "do_sample": True,
        "top_k": 50,
        "top_p": 1.0,
        "temperature": 0.9,
        "max_new_tokens": LONGEST,
    }
    known |= {"subtalker_dosample": True, "subtalker_top_k": 50, "subtalker_top_p": 1.0, "subtalker_temperature": 0.9}
    known["repetition_penalty"] = 1.05
    values = typed_values(held, known, str(path))

    def both(name: str, kind: type) -> tuple[Any, ...]:
        return (kind(values[name]), *[kind(values[f"subtalker_{name}"])] * (spec.num_codebooks - 1))

    temperature = list(both("temperature", float))
    for place, key in ((slice(0, 1), "do_sample"), (slice(1, None), "subtalker_dosample")):
        if not values[key]:
            temperature[place] = [0.0] * len(temperature[place])
    return make_config(
        GenerationConfig,
        str(path),
        temperature=tuple(temperature),
        top_k=both("top_k", int),
        top_p=both("top_p", float),
        repetition_penalty=(float(values["repetition_penalty"]), *[1.0] * (spec.num_codebooks - 1)),
        repetition_window=MAX_LOOK_BACK,
        min_frames=2,
        max_frames=max(2, min(values["max_new_tokens"], LONGEST) - 1),
    )


def save_qwen3_tts_whole(folder: Path, model: LoadedModel, dtype: StorageName = "float32") -> None:
    """Write a model with its codec and text tokenizer as a folder that the package qwen-tts loads.

    Args:
        dtype: of the language model's weights; the codec stays as it is.
    Raises:
        ValueError: the layout cannot represent the model or its codec; names the first setting that differs.
    """
    lm, text = model.lm, model.text
    if not isinstance(lm, TokenLM) or not isinstance(text, BPEText):
        raise ValueError("Qwen3-TTS's layout holds a causal language model with a text tokenizer of kind bpe")
    described = describe_qwen3_tts(lm)
    tensors = qwen3_tts_tensor_map(lm.config, lm.spec).write(lm.state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    write_qwen3_tts_tokenizer(folder / CODEC, model.tokenizer)
    stored = {name: tensor.to(DTYPES[dtype]) for name, tensor in tensors.items()}
    write_safetensors(folder / "model.safetensors", stored, {"format": "pt"})
    write_qwen_text(folder, text)
    write_json(folder / "generation_config.json", _generation(model.defaults, lm.num_codebooks))
    write_json(folder / "config.json", described | {"torch_dtype": dtype})


def describe_qwen3_tts(lm: TokenLM) -> dict[str, Any]:
    """config.json of a model; ValueError if it cannot represent the model."""
    config, spec, head, dual = lm.config, lm.spec, lm.config.head, lm.config.dual_track
    if dual is None or not isinstance(head, DepthHeadConfig) or len(set(spec.cardinalities)) > 1:
        raise ValueError("Qwen3-TTS's layout holds models with the condition dual_track and a depth head")
    kind = "base" if dual.takes_vector else "custom_voice" if dual.speakers else "voice_design"
    codes, small = spec.cardinalities[0], kind == "custom_voice" and dual.description_template is None
    predictor = _described_stack(head, head.width or config.width, 1e-6)
    predictor |= {"model_type": "qwen3_tts_talker_code_predictor", "vocab_size": codes}
    predictor |= {"num_code_groups": spec.num_codebooks, "rope_theta": getattr(head.positions, "base", 0.0)}
    half = config.head_width // 2
    sections = [24, 20, 20] if half == 64 else [half - 2 * (half // 3), half // 3, half // 3]
    talker = _described_stack(config, config.width, config.norm_eps) | {
        "model_type": "qwen3_tts_talker",
        "vocab_size": codes + TAGS,
        "num_code_groups": spec.num_codebooks,
        "rope_theta": getattr(config.rope, "base", 0.0),
        "rope_scaling": {"interleaved": True, "mrope_section": sections, "rope_type": "default", "type": "default"},
        "text_hidden_size": dual.text_width,
        "text_vocab_size": dual.vocab_size,
        **{theirs: codes + getattr(dual.tags, ours) for ours, theirs in MARKS.items()},
        "codec_language_id": {name: codes + tag for name, tag in dual.languages.items()},
        "spk_id": {name: codes + speaker.tag for name, speaker in dual.speakers.items()},
        "spk_is_dialect": {name: speaker.dialect or False for name, speaker in dual.speakers.items()},
    }
    encoder = dual.speaker_encoder or SpeakerEncoderConfig()
    speaker = {
        "mel_dim": encoder.bands,
        "enc_dim": config.width,
        "enc_channels": list(encoder.channels),
        "enc_kernel_sizes": list(encoder.kernels),
        "enc_dilations": list(encoder.dilations),
        "enc_attention_channels": encoder.attention,
        "enc_res2net_scale": encoder.groups,
        "enc_se_channels": encoder.squeeze,
        "sample_rate": encoder.sample_rate,
    }
    described = {
        "tts_model_type": kind,
        "tts_model_size": SMALL if small or config.width == 1024 else "1b7",
        "tts_pad_token_id": dual.text_pad,
        "tts_bos_token_id": dual.text_begin,
        "tts_eos_token_id": dual.text_end,
    }
    expected = qwen3_tts_config(described | {TALKER: talker, PREDICTOR: predictor, SPEAKER: speaker}, "Qwen3-TTS")
    check_layout("Qwen3-TTS", config, expected, spec.num_codebooks)
    return described | {
        "architectures": ["Qwen3TTSForConditionalGeneration"],
        "model_type": MODEL_TYPES[0],
        "tokenizer_type": "qwen3_tts_tokenizer_12hz",
        TALKER: talker | {PREDICTOR: predictor},
        SPEAKER: speaker,
    }


def _described_stack(part: LMConfig | DepthHeadConfig, width: int, eps: float) -> dict[str, Any]:
    """Settings of a stack of blocks by their keys."""
    return STACK | {
        "hidden_size": width,
        "intermediate_size": part.ffn,
        "num_hidden_layers": part.layers,
        "num_attention_heads": part.heads,
        "num_key_value_heads": part.kv_heads or part.heads,
        "head_dim": part.head_dim or width // part.heads,
        "rms_norm_eps": eps,
    }


def _generation(defaults: GenerationConfig, books: int) -> dict[str, Any]:
    """generation_config.json of default settings; what the package has one value for is that of codebooks 0 and 1."""

    def pair(name: str) -> tuple[Any, Any]:
        value = getattr(defaults, name)
        return (value[0], value[1]) if isinstance(value, tuple) else (value, value)

    found: dict[str, Any] = {"max_new_tokens": (defaults.max_frames or LONGEST - 1) + 1}
    found["repetition_penalty"] = pair("repetition_penalty")[0]
    for prefix, place, sample in (("", 0, "do_sample"), ("subtalker_", 1, "subtalker_dosample")):
        warm = pair("temperature")[place]
        found |= {sample: warm > 0, f"{prefix}temperature": warm or 1.0}
        found |= {f"{prefix}{name}": pair(name)[place] for name in ("top_k", "top_p")}
    return found
