"""What a folder is and what loading it would read, without reading weights: public models, codecs, Tessera's own.

    summarize("musicgen-small")    Summary(kind="musicgen", parts=(codec, language model, text encoder), ...)

Names and shapes of all tensors are compared with those that the configs require.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from ...configs.files import read_header, read_json
from ...configs.fingerprint import check_model_files
from ...configs.recognize import describe_wrong, folder_kind, run_model
from ...configs.schema import check_config
from ...tokenize.hub.config import TransformersCodecConfig
from ...tokenize.kinds import NETS, FrozenConfig
from ...tokenize.public.building import tokenizer_shapes
from ...tokenize.public.folder import PublicFolder
from ...tokenize.public.registry import PUBLIC_CODECS, recognize_codec
from ...tokenize.public.survey import Survey, Surveyed, surveying
from ...tokenize.public.tensor_map import Shape
from ...tokenize.spec import AudioGeometry, TokenSpec
from ...tokenize.tokenizer import TokenizerFile, find_tokenizer
from ..checkpoints.config_file import read_model_config
from ..checkpoints.parameter_shapes import parameter_shapes
from ..conditioning.text_encoder import TextEncoder, open_text_encoder
from ..config import LMConfig
from ..models.registry import make_lm
from .registry import PUBLIC, model_types, recognize_model
from .unknown import refuse_unknown


@dataclass(frozen=True)
class PartSummary:
    """One model in a folder."""

    name: str
    """ "language model", "tokenizer" or "text encoder"."""
    described: str
    """Its configuration in one line."""
    num_tensors: int
    """Tensors of the files that are read."""
    num_parameters: int
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    """Each with the shapes found and required."""


@dataclass(frozen=True)
class Summary:
    """A folder, or a file of weights."""

    kind: str
    """Name of the public system, "model" or "tokenizer" (Tessera's own)."""
    parts: tuple[PartSummary, ...]
    lacks: tuple[str, ...] = ()
    """Parts that generation from text needs and that are not in the folder."""
    left_out: tuple[str, ...] = ()
    """Names of the tensors that are known and not read."""

    @property
    def fits(self) -> bool:
        """Whether all tensors are as the configs require."""
        return not any(part.missing or part.unexpected or part.misshapen for part in self.parts)


def summarize(path: str | Path) -> Summary:
    """Summarize a folder or file.

    Raises:
        FileNotFoundError, ValueError: it is nothing that can be loaded, or a config is unusable; one line.
    """
    path = Path(path)
    own = folder_kind(path)
    model = path if own == "model" else run_model(path)
    if model is not None:
        return _own_model(model)
    if own not in (None, "foreign", "tokenizer"):
        raise ValueError(describe_wrong(path, "a model or tokenizer"))
    if own in (None, "foreign"):
        name = recognize_model(path)
        if name is not None:
            return _public_model(path, name)
        name = recognize_codec(path)
        if name is not None:
            opened = PublicFolder(path)
            if name == "transformers":  # only its class tells which tensors it needs: it is loaded
                return Summary(name, (_hub_codec(opened),))
            part, survey = _surveyed("tokenizer", lambda: PUBLIC_CODECS[name].read(opened))
            return Summary(name, (part,), left_out=_left_out(opened, [survey], None))
        if "tokenizer" not in PublicFolder(path).config:  # else a damaged one of ours, of which more is said below
            raise refuse_unknown(path, "a model or tokenizer", model_types())
    return Summary("tokenizer", (_own_tokenizer(find_tokenizer(path)),))


def _hub_codec(opened: PublicFolder) -> PartSummary:
    tokenizer = PUBLIC_CODECS["transformers"].read(opened)
    shapes = [tensor.shape for tensor in tokenizer.net.state_dict().values()]
    return PartSummary("tokenizer", _tokenizer_words(tokenizer.config), len(shapes), sum(map(prod, shapes)))


def _public_model(path: Path, name: str) -> Summary:
    layout, opened = PUBLIC[name], PublicFolder(path)
    parts, surveys, lacks = [], [], []
    reads = {"tokenizer": lambda: layout.read_tokenizer(opened), "language model": lambda: layout.load(path)}
    for part, read in reads.items():
        found, survey = _surveyed(part, read)
        if survey is None:
            lacks.append(layout.tokenizer)
        else:
            parts.append(found)
            surveys.append(survey)
    try:
        layout.read_text(opened)
    except FileNotFoundError:
        lacks.append("the text tokenizer")
    encoder = layout.read_text_encoder(opened)
    if encoder is not None:
        parts.append(_text_encoder(encoder))
        lacks += [] if encoder.has_tokenizer else ["the files of the text encoder's tokenizer"]
    elif any(condition.kind == "embedding" for condition in surveys[-1].config.conditions):
        lacks.append(layout.text_encoder)
    return Summary(name, tuple(parts), tuple(lacks), _left_out(opened, surveys, encoder))


def _surveyed(name: str, read: Callable[[], Any]) -> tuple[Any, Any]:
    """The part that `read` would read, and its survey; (None, None) if there is none."""
    with surveying():
        try:
            read()
        except Surveyed as stopped:
            survey = stopped.survey
        else:
            return None, None
    if survey.spec is None:
        described = _tokenizer_words(survey.config)
    else:
        described = _lm_words(survey.config, survey.spec)
    misshapen = tuple(f"{one} {list(found)}, required {list(wanted)}" for one, found, wanted in survey.misshapen)
    part = PartSummary(
        name, described, len(survey.read), survey.num_values, survey.missing, survey.unexpected, misshapen
    )
    return part, survey


def _left_out(folder: PublicFolder, surveys: list[Survey], encoder: TextEncoder | None) -> tuple[str, ...]:
    used = {name for survey in surveys for name in (*survey.read, *survey.unexpected)}
    if encoder is not None:
        used |= {encoder.prefix + name for name in encoder.shapes}
    return tuple(sorted(folder.names - used))


def _text_encoder(encoder: TextEncoder) -> PartSummary:
    described = f"T5 of width {encoder.width}"
    return PartSummary("text encoder", described, len(encoder.shapes), encoder.num_parameters)


def _own_model(folder: Path) -> Summary:
    check_model_files(folder)
    described = read_model_config(folder)
    parts = []
    if (folder / "tokenizer").is_dir():
        parts.append(_own_tokenizer(folder / "tokenizer"))
    for file, config in (("lm.safetensors", described.lm), ("coarse.safetensors", described.coarse_lm)):
        if config is not None:
            parts.append(_own_lm(folder / file, config, described.spec, described.clusters is not None))
    lacks = [] if (folder / "tokenizer").is_dir() else ["the tokenizer"]
    if (folder / "text_encoder").is_dir():
        parts.append(_text_encoder(open_text_encoder(folder / "text_encoder")))
    elif any(condition.kind == "embedding" for condition in described.lm.conditions):
        lacks.append("the text encoder")
    return Summary("model", tuple(parts), tuple(lacks))


def _own_lm(path: Path, config: LMConfig, spec: TokenSpec, clustered: bool) -> PartSummary:
    found = {name: entry.shape for name, entry in read_header(path).tensors.items()}
    if clustered or config.needs_code_vectors or config.kind == "next_scale":  # its tensors depend on the tokenizer
        wanted = found
    else:
        wanted = parameter_shapes(config, spec, make=make_lm)
    return _compared("language model", _lm_words(config, spec), found, wanted)


def _own_tokenizer(folder: Path) -> PartSummary:
    file = folder / "config.json"
    config = check_config(read_json(file), TokenizerFile, str(file)).tokenizer
    found = {name: entry.shape for name, entry in read_header(folder / "tokenizer.safetensors").tensors.items()}
    return _compared("tokenizer", _tokenizer_words(config), found, tokenizer_shapes(config))


def _compared(name: str, described: str, found: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> PartSummary:
    both = sorted(found.keys() & wanted.keys())
    return PartSummary(
        name,
        described,
        len(both),
        sum(prod(shape) for shape in wanted.values()),
        tuple(sorted(wanted.keys() - found.keys())),
        tuple(sorted(found.keys() - wanted.keys())),
        tuple(f"{one} {list(found[one])}, required {list(wanted[one])}" for one in both if found[one] != wanted[one]),
    )


def _lm_words(config: LMConfig, spec: TokenSpec) -> str:
    conditions = ", ".join(condition.kind for condition in config.conditions) or "nothing"
    return (
        f"{config.kind}, {config.layers} layers of width {config.width}, {config.heads} heads, "
        f"{_codes(spec.cardinalities)}, conditioned on {conditions}"
    )


def _tokenizer_words(config: FrozenConfig) -> str:
    if isinstance(config, TransformersCodecConfig):
        cardinalities = (config.codebook_size,) * config.codebooks
    else:
        with torch.device("meta"):
            cardinalities = NETS[config.kind](config, read_files=False).quantizer.cardinalities
    geometry = config.geometry
    if isinstance(geometry, AudioGeometry):
        channels = "" if geometry.channels == 1 else f" in {geometry.channels} channels"
        rate = f"{geometry.frame_rate:g} frames a second of {geometry.sample_rate} Hz{channels}"
    else:
        rate = f"{geometry.num_frames} frames of {geometry.height} x {geometry.width} pixels"
    return f"{config.name}: {_codes(cardinalities)}, {rate}"


def _codes(cardinalities: tuple[int, ...]) -> str:
    sizes = sorted(set(cardinalities))
    each = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"{len(cardinalities)} codebook{'s' if len(cardinalities) > 1 else ''} of {each} codes"
