"""Public language models: how a folder is recognized, and the functions that read and write it.

To add one, write a file with the functions of `PublicLayout` and add a line to `PUBLIC`. Layouts are asked in this
order; the first that recognizes a folder reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ...configs.schema import nearest_name
from ...tokenize.base import Tokenizer
from ...tokenize.public.folder import PublicFolder
from ...tokenize.spec import TokenSpec
from ...tokenize.text.base import TextTokenizer
from ..checkpoints.model_directory import LoadedModel
from ..checkpoints.weights_file import StorageName
from ..conditioning.text_encoder import TextEncoder
from ..generation_config import GenerationConfig
from ..models.transformer_lm import TransformerLM
from ..quantization.packed_linear import WeightsName, check_weights, pack_
from .conversion import only_whole
from .csm import MODEL_TYPES as CSM_TYPES
from .csm import csm_defaults, load_csm, read_csm_codec, read_csm_text, save_csm_whole
from .llamagen import (
    is_llamagen,
    llamagen_defaults,
    load_llamagen,
    read_llamagen_text_encoder,
    read_llamagen_tokenizer,
    save_llamagen,
    save_llamagen_whole,
)
from .musicgen import MODEL_TYPES, MUSICGEN_DEFAULTS, load_musicgen, save_musicgen
from .musicgen_composite import read_musicgen_codec, read_musicgen_text_encoder, save_musicgen_composite
from .musicgen_native import (
    is_musicgen_native,
    load_musicgen_native,
    native_defaults,
    read_native_codec,
    read_native_text_encoder,
    save_musicgen_native,
    save_native_whole,
)
from .parler import MODEL_TYPES as PARLER_TYPES
from .parler import (
    load_parler,
    parler_defaults,
    read_parler_codec,
    read_parler_text,
    read_parler_text_encoder,
    save_parler_whole,
)
from .qwen3_tts import MODEL_TYPES as QWEN3_TTS_TYPES
from .qwen3_tts import (
    load_qwen3_tts,
    qwen3_tts_defaults,
    read_qwen3_tts_codec,
    read_qwen3_tts_text,
    save_qwen3_tts_whole,
)
from .unknown import refuse_unknown
from .var import TOKENIZER as VAR_TOKENIZER
from .var import VAR_DEFAULTS, is_var, load_var, read_var_tokenizer, save_var, save_var_whole


@dataclass(frozen=True)
class PublicLayout:
    """The layout of one public system."""

    model_types: tuple[str, ...]
    """Values of model_type in config.json."""
    load: Callable[..., TransformerLM]
    """load(folder, spec, device, dtype); spec None: the tokenizer is unknown."""
    save: Callable[..., None]
    """save(folder, lm, dtype) of the language model alone; ValueError if the layout cannot represent the model."""
    defaults: Callable[[PublicFolder, TokenSpec], GenerationConfig]
    """Default sampling settings of its authors, for codes of this spec."""
    tokenizer: str
    """What the tokenizer of its codes is, for messages."""
    text_encoder: str = "the text encoder"
    """What the text encoder is, for messages."""
    read_tokenizer: Callable[[PublicFolder], Tokenizer | None] = lambda folder: None
    """The tokenizer in a folder; None: there is none."""
    read_text_encoder: Callable[[PublicFolder], TextEncoder | None] = lambda folder: None
    """The text encoder in a folder, for models with the condition `embedding`; None: there is none."""
    read_text: Callable[[PublicFolder], TextTokenizer | None] = lambda folder: None
    """The text tokenizer in a folder, for models with the condition `text` or a text stream."""
    save_whole: Callable[[Path, LoadedModel, StorageName], None] | None = None
    """save_whole(folder, model, dtype) of a model with its tokenizer and text encoder; None: no such layout exists."""
    reads_tokenizer: bool = False
    """The model reads more of its tokenizer than the codes: `load` takes it as `tokenizer`, None is its folder's."""
    recognize: Callable[[PublicFolder], bool] = lambda folder: False
    """Whether a folder without such a model_type is one, by its other files."""


PUBLIC = {
    "musicgen": PublicLayout(
        MODEL_TYPES,
        load_musicgen,
        save_musicgen,
        lambda folder, spec: MUSICGEN_DEFAULTS,
        "the audio codec",
        read_tokenizer=read_musicgen_codec,
        read_text_encoder=read_musicgen_text_encoder,
        save_whole=save_musicgen_composite,
    ),
    "parler": PublicLayout(
        PARLER_TYPES,
        load_parler,
        only_whole("Parler", "its codec and its text encoder"),
        parler_defaults,
        "the audio codec",
        read_tokenizer=read_parler_codec,
        read_text_encoder=read_parler_text_encoder,
        read_text=read_parler_text,
        save_whole=save_parler_whole,
    ),
    "csm": PublicLayout(
        CSM_TYPES,
        load_csm,
        only_whole("CSM", "its codec"),
        csm_defaults,
        "the audio codec",
        read_tokenizer=read_csm_codec,
        read_text=read_csm_text,
        save_whole=save_csm_whole,
    ),
    "qwen3-tts": PublicLayout(
        QWEN3_TTS_TYPES,
        load_qwen3_tts,
        only_whole("Qwen3-TTS", "its codec"),
        qwen3_tts_defaults,
        "the audio codec in speech_tokenizer/",
        read_tokenizer=read_qwen3_tts_codec,
        read_text=read_qwen3_tts_text,
        save_whole=save_qwen3_tts_whole,
    ),
    "llamagen": PublicLayout(
        ("llamagen",),
        load_llamagen,
        save_llamagen,
        lambda folder, spec: llamagen_defaults(folder),
        "the image tokenizer",
        "the text encoder in t5/",
        read_llamagen_tokenizer,
        read_llamagen_text_encoder,
        save_whole=save_llamagen_whole,
        recognize=is_llamagen,
    ),
    "var": PublicLayout(
        ("var",),
        load_var,
        save_var,
        lambda folder, spec: VAR_DEFAULTS,
        VAR_TOKENIZER,
        read_tokenizer=read_var_tokenizer,
        save_whole=save_var_whole,
        reads_tokenizer=True,
        recognize=is_var,
    ),
    "musicgen-audiocraft": PublicLayout(
        (),
        load_musicgen_native,
        save_musicgen_native,
        native_defaults,
        "the audio codec",
        "the text encoder in t5/",
        read_native_codec,
        read_native_text_encoder,
        save_whole=save_native_whole,
        recognize=is_musicgen_native,
    ),
}


@dataclass(frozen=True)
class PublicModel:
    """A model that was read from a public folder."""

    layout: str
    """Its name in `PUBLIC`."""
    lm: TransformerLM
    tokenizer: Tokenizer | None
    """None: it is not in the folder."""
    text_encoder: TextEncoder | None
    """None: it is not in the folder, or the model needs none."""
    labels: list[str]
    defaults: GenerationConfig
    text: TextTokenizer | None = None
    """None: the model has neither a condition `text` nor a text stream."""

    @property
    def missing(self) -> list[str]:
        """What the folder lacks, in words."""
        codec = [] if self.tokenizer is not None else [PUBLIC[self.layout].tokenizer]
        embedding = any(condition.kind == "embedding" for condition in self.lm.config.conditions)
        return [*codec, *([PUBLIC[self.layout].text_encoder] if embedding and self.text_encoder is None else [])]


def recognize_model(folder: str | Path) -> str | None:
    """Name of the layout of a folder; None if it is none that is known."""
    opened = PublicFolder(folder)
    for name, layout in PUBLIC.items():
        try:
            named = opened.config.get("model_type")
            if named in layout.model_types if named is not None else layout.recognize(opened):
                return name
        except (ValueError, OSError):
            continue
    return None


def model_types() -> list[str]:
    """Values of model_type of the models that are known."""
    return [kind for layout in PUBLIC.values() for kind in layout.model_types]


def public_layout(folder: str | Path) -> str:
    """Name of a folder's layout.

    Raises:
        FileNotFoundError, ValueError: it is none that is known; the message says what it is (`refuse_unknown`).
    """
    name = recognize_model(folder)
    if name is None:
        raise refuse_unknown(folder, "a public model", model_types())
    return name


def read_public_model(
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    text_encoder: TextEncoder | None = None,
    device: torch.device | str = "cpu",
    dtype: StorageName | torch.dtype = "float32",
) -> PublicModel:
    """Read a public folder: the language model, and what else is in it.

    Args:
        tokenizer, text_encoder: used instead of those in the folder.
        device: of the language model, the tokenizer and the text encoder.
        dtype: of the language model's weights in memory.
    Raises:
        FileNotFoundError: a file is missing. WeightsError: tensors are missing, left over, or of another shape than the
            config requires. ValueError: an unknown layout, or a setting that is not supported, by name.
    """
    name = public_layout(folder)
    layout = PUBLIC[name]
    opened = PublicFolder(folder)
    tokenizer = tokenizer or layout.read_tokenizer(opened)
    text_encoder = text_encoder or layout.read_text_encoder(opened)
    for part in (tokenizer, text_encoder):
        if part is not None:
            part.to(device)
    more = {"tokenizer": tokenizer} if layout.reads_tokenizer else {}
    lm = layout.load(folder, None if tokenizer is None else tokenizer.spec, device, dtype, **more)
    if text_encoder is not None and not any(c.kind == "embedding" for c in lm.config.conditions):
        raise ValueError(f"{folder}: a text encoder was given, but this {name} model reads no text; leave it out")
    labels = [str(i) for c in lm.config.conditions if c.kind == "label" for i in range(c.classes or 0)]
    labels += [] if lm.config.dual_track is None else list(lm.config.dual_track.speakers)
    defaults = layout.defaults(opened, lm.spec)
    if any(condition.dropout == 0 for condition in lm.config.conditions):  # guidance is impossible
        defaults = defaults.model_copy(update={"guidance": 1.0})
    return PublicModel(name, lm, tokenizer, text_encoder, labels, defaults, layout.read_text(opened))


def load_public_model(
    folder: str | Path,
    device: torch.device | str = "cpu",
    dtype: StorageName | torch.dtype = "float32",
    weights: WeightsName | None = None,
) -> LoadedModel:
    """Read a public folder as a model that generates media. Args and errors as for `load_model` and
    `read_public_model`; ValueError if the folder has no tokenizer of the model's codes."""
    if weights is not None:
        check_weights(weights)
    found = read_public_model(folder, device=device, dtype=dtype)
    if found.tokenizer is None:
        raise ValueError(
            f"{folder}: {PUBLIC[found.layout].tokenizer} of this {found.layout} checkpoint is not in the folder; "
            f"convert it with: tessera convert {folder} DST --tokenizer DIR"
        )
    lm = found.lm if weights is None else pack_(found.lm, weights)
    return LoadedModel(lm, found.tokenizer, found.text, found.labels, found.defaults, found.text_encoder)


def layout_of(name: str) -> PublicLayout:
    """The layout with this name; ValueError names the nearest."""
    if name not in PUBLIC:
        raise ValueError(f"no layout '{name}'; {nearest_name(name, PUBLIC)}")
    return PUBLIC[name]
