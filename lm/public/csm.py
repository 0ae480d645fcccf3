"""Read and write CSM in the layout of transformers (`CsmForConditionalGeneration`), with its codec.

    embed_text_tokens.weight                     the table of the text
    depth_decoder.model.embed_tokens.weight      the table of the codes, codebook after codebook: read by the backbone
                                                 and the depth transformer; a file may have it also, or only, as
                                                 backbone_model.embed_tokens.embed_audio_tokens.weight
    backbone_model.*, depth_decoder.model.*      the blocks of a Llama each
    lm_head.weight                               codebook 0, from the backbone
    depth_decoder.codebooks_head.weight          the others [K - 1, D', 2051], inputs before outputs
    codec_model.*                                a Mimi

A sequence is the text with its begin and end, then frames until one of zeros; before it there may be other such turns
(lm/patterns/text_stream.py, `predict: none`). The three ids after the codes have rows in all tables and output layers:
they are kept, and never sampled.
Source: tensor names, config keys and class defaults of transformers 5 (Apache-2.0); SesameAILabs/csm 2d72082
(Apache-2.0) for the sequence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...configs.files import read_json, write_atomic, write_json, write_safetensors
from ...configs.schema import make_config
from ...tokenize.base import Tokenizer
from ...tokenize.public.folder import PublicFolder, typed_values
from ...tokenize.public.mimi import mimi_part, mimi_part_config, read_mimi_part
from ...tokenize.public.tensor_map import Concat, Constant, Part, Source, TensorMap, Term, Transposed, Unused, View
from ...tokenize.spec import AudioGeometry, TokenSpec
from ...tokenize.text.base import MAX_FILE_BYTES, TextTokenizer
from ...tokenize.text.bpe_text import BPEText, BPETextConfig
from ..checkpoints.model_directory import LoadedModel
from ..checkpoints.parameter_shapes import parameter_shapes
from ..checkpoints.weights_file import DTYPES, StorageName
from ..config import LMConfig
from ..generation_config import GenerationConfig
from ..heads.depth_transformer import DepthHeadConfig, RopePositionsConfig
from ..layers.config import TransformerConfig
from ..models.causal import TokenLM
from ..ops.rotary import Llama3ScalingConfig, TimeRopeConfig
from ..patterns.layouts import ParallelConfig
from ..patterns.text_stream import TextStreamConfig
from .conversion import check_codec, check_layout, read_lm
from .musicgen import UNKNOWN_CODEC
from .text_lm import rope_settings, stack_terms

MODEL_TYPES = ("csm",)
"""Values of model_type in config.json."""
CODEC, DEPTH = "codec_config", "depth_decoder_config"
IN_CODEC = "codec_model."
TABLE, OTHER_TABLE = (
    "depth_decoder.model.embed_tokens.weight",
    "backbone_model.embed_tokens.embed_audio_tokens.weight",
)
HEADS = "depth_decoder.codebooks_head.weight"
SPARE = 3
"""Ids after the codes in all tables and output layers; the last is the padding of rows that have ended."""
TEXT_FILE = "tokenizer.json"
AUDIO_TOKENS = ("<|AUDIO|>", "<|audio_eos|>")
"""Special tokens of the text that stand for a frame and the end frame in transformers' input."""
MOST_POSITIONS = 2048
"""`max_position_embeddings` of a written config, as published."""
LONGEST = 125
"""Default number of frames where no file says one: 10 seconds, as published."""

DEFAULTS: dict[str, Any] = {
    "num_codebooks": 32,
    "vocab_size": 2051,
    "text_vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "codebook_pad_token_id": 2050,
    "codebook_eos_token_id": 0,
    "bos_token_id": 128000,
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_codebooks_embeddings": True,
}
"""Class defaults of CsmConfig, of the settings that determine the model."""
DEPTH_DEFAULTS: dict[str, Any] = {
    "num_codebooks": 32,
    "backbone_hidden_size": 2048,
    "vocab_size": 2051,
    "hidden_size": 1024,
    "intermediate_size": 8192,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_parameters": None,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "attention_bias": False,
    "mlp_bias": False,
}
"""Class defaults of CsmDepthDecoderConfig."""


def load_csm(
    folder: str | Path,
    spec: TokenSpec | None = None,
    device: torch.device | str = "cpu",
    dtype: StorageName | torch.dtype = "float32",
) -> TokenLM:
    """Read the language model of a CSM checkpoint, in eval mode.

    Args:
        spec: of the codec; None: a spec from the config, whose codec is not loaded.
        dtype: of the weights in memory.
    Raises:
        FileNotFoundError: config.json or weights are missing. WeightsError: tensors missing, left over or of another
            shape than the config requires. ValueError: a setting that is not supported, by name, or a spec that does
            not fit.
    """
    opened = PublicFolder(folder)
    described, depth = read_csm_config(opened)
    config = csm_config(described, depth, str(opened.config_path))
    spec = spec or csm_spec(opened, described)
    check_codec(folder, spec, described["num_codebooks"], described["vocab_size"] - SPARE)
    checkpoint, table = opened.checkpoint, TABLE
    if OTHER_TABLE in checkpoint.shapes:
        table = TABLE if TABLE in checkpoint.shapes else OTHER_TABLE
    lm = read_lm(checkpoint, csm_tensor_map(config, spec, table), config, spec, device, dtype)
    if {TABLE, OTHER_TABLE} <= checkpoint.shapes.keys() and not torch.equal(
        *checkpoint.tensors([TABLE, OTHER_TABLE]).values()
    ):
        raise ValueError(f"{folder}: {TABLE} and {OTHER_TABLE} differ, though tie_codebooks_embeddings is true")
    return lm


def read_csm_config(folder: PublicFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of config.json, and those of its depth decoder, with the class defaults of absent ones.

    Raises:
        FileNotFoundError: there is none. ValueError: another kind of model, or a setting that is not supported.
    """
    if not folder.config:
        raise FileNotFoundError(f"{folder.path}: no checkpoint here (config.json is missing)")
    where = str(folder.config_path)
    if folder.config.get("model_type") not in MODEL_TYPES:
        raise ValueError(f"{where}: model_type is {folder.config.get('model_type')!r}; supported is {MODEL_TYPES[0]!r}")
    described = folder.values(_without_null(DEFAULTS, folder.config))
    held = folder.config.get(DEPTH, {})
    depth = typed_values(held, _without_null(DEPTH_DEFAULTS, held), f"{where}: {DEPTH}")
    codec = folder.values({"codebook_size": 2048, "model_type": "mimi"}, CODEC)
    codes, books = codec["codebook_size"], described["num_codebooks"]
    blocks = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    required: dict[str, tuple[Any, Any]] = {
        "vocab_size": (described["vocab_size"], codes + SPARE),
        "codebook_pad_token_id": (described["codebook_pad_token_id"], codes + SPARE - 1),
        "codebook_eos_token_id": (described["codebook_eos_token_id"], 0),
        "tie_codebooks_embeddings": (described["tie_codebooks_embeddings"], True),
        f"{CODEC}.model_type": (codec["model_type"], "mimi"),
        f"{DEPTH}.vocab_size": (depth["vocab_size"], described["vocab_size"]),
        f"{DEPTH}.num_codebooks": (depth["num_codebooks"], books),
        f"{DEPTH}.backbone_hidden_size": (depth["backbone_hidden_size"], described["hidden_size"]),
        **{key: (described[key], allowed) for key, allowed in blocks.items()},
        **{f"{DEPTH}.{key}": (depth[key], allowed) for key, allowed in blocks.items()},
    }
    for key, (found, allowed) in required.items():
        if found != allowed or isinstance(found, bool) != isinstance(allowed, bool):
            raise ValueError(f"{where}: {key} is {str(found)[:80]!r}; only {allowed!r} is supported here")
    if books < 2:
        raise ValueError(f"{where}: num_codebooks is {books}, a depth decoder needs two or more")
    if not 0 <= described["bos_token_id"] < described["text_vocab_size"]:
        raise ValueError(
            f"{where}: bos_token_id is {described['bos_token_id']}, but text_vocab_size {described['text_vocab_size']}"
        )
    return described, depth


def _without_null(defaults: dict[str, Any], held: Any) -> dict[str, Any]:
    """The defaults without that of a number of heads that is null in a config: as many as query heads."""
    key = "num_key_value_heads"
    return defaults | ({key: None} if isinstance(held, dict) and held.get(key, 1) is None else {})


def csm_config(described: dict[str, Any], depth: dict[str, Any], where: str = "config.json") -> LMConfig:
    """The config of the model that these settings describe (`read_csm_config`)."""
    text = make_config(
        BPETextConfig, where, vocab_size=described["text_vocab_size"], file=TEXT_FILE, speakers="numbered"
    )
    head = make_config(
        DepthHeadConfig,
        where,
        **_sizes(depth, f"{where}: {DEPTH}"),
        positions=RopePositionsConfig(**_without_kind(rope_settings(depth, f"{where}: {DEPTH}"))),
        first="backbone",
        input="backbone",
        spare_outputs=SPARE,
    )
    return make_config(
        LMConfig,
        where,
        **_sizes(described, where),
        rope=TimeRopeConfig.model_validate(rope_settings(described, where)),
        arrangement=ParallelConfig(),
        variable_length=True,
        head=head,
        text_stream=make_config(
            TextStreamConfig,
            where,
            text=text,
            vocab_size=described["text_vocab_size"],
            predict="none",
            begin=described["bos_token_id"],
            empty="zero",
            dropout=0.0,
        ),
    )


def _sizes(described: dict[str, Any], where: str) -> dict[str, Any]:
    """Sizes of a stack of blocks; ValueError: they contradict each other."""
    width, heads, own = described["hidden_size"], described["num_attention_heads"], described["head_dim"]
    if heads < 1 or (own is None and width % heads):
        raise ValueError(f"{where}: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    if own is not None and (type(own) is not int or own < 2):
        raise ValueError(f"{where}: head_dim must be a whole number, found {str(own)[:80]!r}")
    kv_heads = described["num_key_value_heads"]
    return {
        "width": width,
        "layers": described["num_hidden_layers"],
        "heads": heads,
        "kv_heads": heads if kv_heads is None else kv_heads,
        "head_dim": None if own in (None, width / heads) else own,
        "ffn": described["intermediate_size"],
        "norm_eps": float(described["rms_norm_eps"]),
    }


def _without_kind(settings: dict[str, Any]) -> dict[str, Any]:
    scaling = settings["scaling"]
    return {
        "base": settings["base"],
        "scaling": None if scaling is None else Llama3ScalingConfig.model_validate(scaling),
    }


def csm_spec(folder: PublicFolder, described: dict[str, Any]) -> TokenSpec:
    """The TokenSpec as far as the config defines it; the codec itself is not loaded."""
    config, _ = mimi_part_config(folder, described["num_codebooks"], CODEC, IN_CODEC)
    return make_config(
        TokenSpec,
        str(folder.config_path),
        name="csm-codec",
        cardinalities=(described["vocab_size"] - SPARE,) * described["num_codebooks"],
        geometry=config.geometry,
        fingerprint=UNKNOWN_CODEC,
    )


def csm_tensor_map(config: LMConfig, spec: TokenSpec, table: str = TABLE) -> TensorMap:
    """The mapping from their tensors to ours. table: the name of that of the codes."""
    shapes = parameter_shapes(config, spec)
    head, stream = config.head, config.text_stream
    assert isinstance(head, DepthHeadConfig) and head.width is not None and stream is not None
    books, outputs, D = spec.num_codebooks, spec.cardinalities[0] + SPARE, config.width
    text_rows, text_shape = stream.vocab_size or 0, shapes["input.text.weight"]
    absent = Constant(0.0, required=False)  # rows of ids that add nothing, or that are never read
    rows = [Part(table, (books * outputs, D), k * outputs) for k in range(books)]
    terms: dict[str, Term] = {
        "input.text.weight": Concat(
            (Source("embed_text_tokens.weight"), absent), (text_rows, text_shape[0] - text_rows)
        ),
        "input.audio.table.weight": Concat(tuple(term for row in rows for term in (row, absent)), (outputs, 1) * books),
        "head.audio.first.weight": Source("lm_head.weight"),
        "head.audio.project.weight": Source("depth_decoder.model.inputs_embeds_projector.weight"),
    }
    for k in range(books - 1):
        part = Part(HEADS, (books - 1, head.width, outputs), k)
        terms[f"head.audio.outputs.{k}.weight"] = Transposed(View(part, (1, head.width, outputs)))
    depth = TransformerConfig(
        width=head.width,
        layers=head.layers,
        heads=head.heads,
        kv_heads=head.kv_heads or head.heads,
        ffn=head.ffn or 0,
        head_dim=head.head_dim,
    )
    stacks = {
        "transformer.": (config.transformer, "backbone_model."),
        "head.audio.transformer.": (depth, "depth_decoder.model."),
    }
    for ours, (stack, theirs) in stacks.items():
        names = [name.removeprefix(ours) for name in shapes if name.startswith(ours)]
        terms |= {ours + name: term for name, term in stack_terms(stack, names, theirs).items()}
    unused = {} if table == OTHER_TABLE else {OTHER_TABLE: Unused((books * outputs, D), required=False)}
    return TensorMap({name: terms[name] for name in shapes}, unused, (IN_CODEC,))


def read_csm_codec(folder: PublicFolder) -> Tokenizer:
    """The codec of a folder.

    Raises:
        ValueError: an unsupported codec, by name. WeightsError: tensors missing or misshapen.
    """
    books = read_csm_config(folder)[0]["num_codebooks"]
    return read_mimi_part(folder, books, CODEC, IN_CODEC)


def read_csm_text(folder: PublicFolder) -> TextTokenizer:
    """The tokenizer of texts.

    Raises:
        FileNotFoundError: there is none. ValueError: it is unusable, does not fit the table, or does not put the ids of
            begin and end around a text.
    """
    described, depth = read_csm_config(folder)
    path, begin = folder.path / TEXT_FILE, described["bos_token_id"]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it is the text tokenizer, copy it from the public model")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes, the limit is {MAX_FILE_BYTES}")
    stream = csm_config(described, depth, str(folder.config_path)).text_stream
    assert stream is not None and isinstance(stream.text, BPETextConfig)
    text = BPEText(stream.text, path.read_bytes(), str(path))
    ids, special = text.encode("a"), set(text.special_ids().values())
    if ids[0] != begin or ids[-1] == begin or ids[-1] not in special:
        raise ValueError(
            f"{path}: puts {ids[:1]} before a text and {ids[-1:]} after it, but CSM's texts are between bos_token_id "
            f"{begin} and the token of their end; take the {TEXT_FILE} of the public model"
        )
    return text


def csm_defaults(folder: PublicFolder, spec: TokenSpec) -> GenerationConfig:
    """The sampling of generation_config.json, with transformers' defaults for what it leaves out; without the file that
    of the published model. Codebook 0 is sampled by the backbone's settings, the others by those of the depth decoder.

    Raises:
        ValueError: a setting is out of range, by name.
    """
    path = folder.path / "generation_config.json"
    if not path.is_file():
        return GenerationConfig(temperature=0.9, top_k=50, max_frames=LONGEST)
    held = read_json(path)
    if not isinstance(held, dict):
        raise ValueError(f"{path}: is not a JSON object")
    backbone, depth = ({name: held.get(f"{before}{name}") for name in READ} for before in ("", "depth_decoder_"))
    both = [_sampling(settings) for settings in (backbone, depth)]
    chosen = {
        name: both[0][name]
        if both[0][name] == both[1][name]
        else (*[both[0][name]] * 2, *[both[1][name]] * (spec.num_codebooks - 1))
        for name in both[0]
    }
    longest = held.get("max_new_tokens")
    return make_config(GenerationConfig, str(path), **chosen, max_frames=LONGEST if longest is None else longest)


READ = ("do_sample", "temperature", "top_k", "top_p")
"""The keys of generation_config.json that are read."""


def _sampling(held: dict[str, Any]) -> dict[str, Any]:
    """Our settings for those of transformers, null where they are absent."""
    read = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}
    found = {name: default if held[name] is None else held[name] for name, default in read.items()}
    return found if held["do_sample"] else found | {"temperature": 0.0}


def save_csm_whole(folder: Path, model: LoadedModel, dtype: StorageName = "float32") -> None:
    """Write a model with its codec and text tokenizer as a `CsmForConditionalGeneration` folder.

    Args:
        dtype: of the language model's weights; the codec stays as it is.
    Raises:
        ValueError: the layout cannot represent the model or its codec; names the first setting that differs.
    """
    lm, text = model.lm, model.text
    if not isinstance(lm, TokenLM):
        raise ValueError(f"CSM's layout holds a causal language model, found {type(lm).__name__}")
    if not isinstance(text, BPEText):
        raise ValueError("CSM's layout holds a text tokenizer of kind bpe, found none or another kind")
    described = describe_csm(lm)
    codec, tensors = mimi_part(model.tokenizer, IN_CODEC)
    special = text.special_ids()
    for key, name in zip(("audio_token_id", "audio_eos_token_id"), AUDIO_TOKENS, strict=True):
        described[key] = special.get(name, described["text_vocab_size"] - 1)
    end = text.encode("a")[-1]
    described["pad_token_id"] = end
    written = csm_tensor_map(lm.config, lm.spec).write(lm.state_dict())
    tensors |= {name: tensor.to(DTYPES[dtype]) for name, tensor in written.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_atomic(folder / TEXT_FILE, text.model)
    names = {place: name for name, place in special.items()}
    files = {
        "config.json": described | {CODEC: codec, "dtype": dtype},
        "generation_config.json": _generation(model.defaults) | {"bos_token_id": described["bos_token_id"]},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": names.get(described["bos_token_id"]),
            "eos_token": names.get(end),
            "pad_token": names.get(end),
            "model_input_names": ["input_ids", "attention_mask"],
        },
        "preprocessor_config.json": _extractor(lm.spec),
        "processor_config.json": {"processor_class": "CsmProcessor"},
    }
    for name, content in files.items():
        write_json(folder / name, content)
    write_atomic(folder / "chat_template.jinja", CHAT_TEMPLATE.encode())


CHAT_TEMPLATE = """{%- for turn in messages -%}
{{ bos_token }}[{{ turn.role }}]
{%- for part in turn.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
{{ eos_token }}
{%- for part in turn.content if part.type == 'audio' -%}<|AUDIO|><|audio_eos|>{%- endfor -%}
{%- endfor -%}"""
"""Each turn of a conversation as a text and its audio, for `CsmProcessor`."""


def describe_csm(lm: TokenLM) -> dict[str, Any]:
    """config.json of a model, without the codec and the ids of special tokens; ValueError if it cannot represent the
    model."""
    config, spec = lm.config, lm.spec
    head, stream, codes = config.head, config.text_stream, spec.cardinalities[0]
    if not isinstance(head, DepthHeadConfig) or not isinstance(config.rope, TimeRopeConfig) or stream is None:
        raise ValueError("CSM's layout holds a text stream, a depth head and rotary positions in time")
    if not isinstance(head.positions, RopePositionsConfig):
        raise ValueError(f"CSM's layout does not support lm.head.positions '{head.positions.kind}'; it needs 'rope'")
    if len(set(spec.cardinalities)) > 1 or getattr(spec.geometry, "channels", 0) != 1:
        raise ValueError(f"CSM's layout has codebooks of one size in one channel, found {list(spec.cardinalities)}")
    if stream.begin is None or stream.vocab_size is None:
        raise ValueError("CSM's layout needs text_stream.begin, the id with which a text begins")
    own = head.width or config.width
    described = {
        "model_type": MODEL_TYPES[0],
        "num_codebooks": spec.num_codebooks,
        "vocab_size": codes + SPARE,
        "text_vocab_size": stream.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.num_ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": MOST_POSITIONS,
        "rms_norm_eps": config.norm_eps,
        "codebook_pad_token_id": codes + SPARE - 1,
        "codebook_eos_token_id": 0,
        "bos_token_id": stream.begin,
        "tie_codebooks_embeddings": True,
        **_described_rope(config.rope.base, config.rope.scaling),
    }
    depth = {
        "model_type": "csm_depth_decoder_model",
        "num_codebooks": spec.num_codebooks,
        "backbone_hidden_size": config.width,
        "vocab_size": codes + SPARE,
        "hidden_size": own,
        "intermediate_size": head.ffn or -(-8 * own // 3 // 32) * 32,
        "num_hidden_layers": head.layers,
        "num_attention_heads": head.heads,
        "num_key_value_heads": head.kv_heads or head.heads,
        "head_dim": head.head_dim or own // head.heads,
        "max_position_embeddings": spec.num_codebooks + 1,
        "rms_norm_eps": head.norm_eps,
        **_described_rope(head.positions.base, head.positions.scaling),
    }
    expected = csm_config(DEFAULTS | described, DEPTH_DEFAULTS | depth, "CSM's layout")
    unstored = {name: getattr(stream, name) for name in ("dropout", "loss")}
    text = expected.text_stream
    assert text is not None and isinstance(stream.text, BPETextConfig) and isinstance(text.text, BPETextConfig)
    kept = text.text.model_copy(update={name: getattr(stream.text, name) for name in ("file", "max_characters")})
    explicit = {"width": own, "kv_heads": head.kv_heads or head.heads, "ffn": depth["intermediate_size"]}
    check_layout(
        "CSM",
        config.model_copy(update={"head": head.model_copy(update=explicit)}),
        expected.model_copy(
            update={
                "text_stream": text.model_copy(update=unstored | {"text": kept}),
                "dropout": config.dropout,
                "loss_weights": config.loss_weights,
                "head": expected.head.model_copy(update={"dropout": head.dropout, "trained_share": head.trained_share}),
            }
        ),
        spec.num_codebooks,
    )
    return {
        "architectures": ["CsmForConditionalGeneration"],
        **described,
        DEPTH: depth,
    }


def _described_rope(base: float, scaling: Llama3ScalingConfig | None) -> dict[str, Any]:
    """`rope_parameters`, and what earlier versions of transformers read in its place."""
    if scaling is None:
        return {"rope_theta": base, "rope_parameters": {"rope_type": "default", "rope_theta": base}}
    described = {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_factor,
        "high_freq_factor": scaling.high_factor,
        "original_max_position_embeddings": scaling.steps,
    }
    return {"rope_theta": base, "rope_parameters": described | {"rope_theta": base}}


def _generation(defaults: GenerationConfig) -> dict[str, Any]:
    """generation_config.json of our defaults: the backbone's settings are those of codebook 0, the depth decoder's
    those of codebook 1."""
    found: dict[str, Any] = {"max_new_tokens": defaults.max_frames or LONGEST}
    for place, before in ((1, ""), (2, "depth_decoder_")):
        values = {
            name: value[min(place, len(value) - 1)] if isinstance(value, tuple) else value
            for name, value in ((name, getattr(defaults, name)) for name in READ[1:])
        }
        drawn = values["temperature"] > 0
        found[f"{before}do_sample"] = drawn
        found |= {f"{before}{name}": value for name, value in values.items() if drawn}
    return found


def _extractor(spec: TokenSpec) -> dict[str, Any]:
    """preprocessor_config.json of an `EncodecFeatureExtractor`."""
    assert isinstance(spec.geometry, AudioGeometry)
    return {
        "feature_extractor_type": "EncodecFeatureExtractor",
        "processor_class": "CsmProcessor",
        "feature_size": 1,
        "sampling_rate": spec.geometry.sample_rate,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "chunk_length_s": None,
        "overlap": None,
    }
