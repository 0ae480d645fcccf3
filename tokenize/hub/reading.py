"""Read a codec in the layout of transformers whose class is not implemented here: config.json and model.safetensors.

The tensors are read here, not by transformers: safetensors alone, each checked, nothing mapped to memory. transformers
gets them with `state_dict=`, which renames those of earlier versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...configs.files import read_header, read_json
from ...configs.printable import one_line
from ...configs.schema import check_config
from ...configs.tensor_checks import WeightsError
from ..base import Tokenizer
from ..layers.parameter_budget import Budget, BudgetError
from ..public.checkpoint import INDEX
from ..public.folder import PublicFolder
from ..public.tensor_map import CannotWrite
from .config import NOT_STORED, TransformersCodecConfig, check_settings
from .network import HubNet, codec_class, make_hub_config
from .package import import_transformers
from .probe import probe
from .tokenizer import TransformersTokenizer

KNOWN = (
    *("higgs_audio_v2_tokenizer", "neucodec", "pocket_tts_audio_tokenizer", "vibevoice_acoustic_tokenizer"),
    *("wavtokenizer", "xcodec", "xcodec2"),
)
"""Codecs of transformers 5.24 that are not implemented here: recognized without the package, others by its tables."""
WEIGHTS = "model.safetensors"


def is_transformers_codec(folder: PublicFolder) -> bool:
    """Whether config.json has the model_type of a codec that transformers can compute."""
    model_type = folder.config.get("model_type")
    if not isinstance(model_type, str):
        return False
    if model_type in KNOWN:
        return True
    try:
        codec_class(model_type)
    except (ValueError, ImportError):
        return False
    return True


def read_transformers_codec(folder: PublicFolder, codebooks: int | None = None) -> Tokenizer:
    """Read a codec as a frozen tokenizer that transformers computes.

    Args:
        codebooks: number of codebooks, coarse first; None: all. The class must decode as many.
    Raises:
        ImportError: transformers, or a package that its class needs, is not installed. FileNotFoundError: no weights in
            safetensors. WeightsError: tensors missing, left over or misshapen. ValueError: settings that name code, and
            as `probe`.
    """
    settings = _settings(folder.config, str(folder.config_path))
    model_type = str(settings.get("model_type"))
    _, model_class = codec_class(model_type)
    path = folder.path / "preprocessor_config.json"
    preprocessor = _settings(read_json(path), str(path)) if path.is_file() else None
    model = _read_model(folder, model_class, make_hub_config(settings))
    net = HubNet.around(model.float().eval().requires_grad_(False), preprocessor)
    found = probe(net, codebooks)
    described = {
        "kind": "transformers",
        "name": f"{model_type}-{round(found.sample_rate / 1000)}khz",
        "settings": settings,
        "preprocessor": preprocessor,
        "codebooks": found.all_codebooks if codebooks is None else codebooks,
        **vars(found),
    }
    config = check_config(described, TransformersCodecConfig, str(folder.config_path))
    return TransformersTokenizer(config, net, probed=True)


def write_transformers_codec(folder: Path, tokenizer: Tokenizer) -> None:
    """CannotWrite: such a codec is kept as it was downloaded."""
    raise CannotWrite("codecs that transformers computes are not written in its layout; keep the public folder")


def _settings(found: Any, where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"{where}: is not a JSON object")
    check_settings(found, where)
    return _stored(found)


def _stored(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stored(one) for key, one in value.items() if key not in NOT_STORED}
    return [_stored(one) for one in value] if isinstance(value, list) else value


def _read_model(folder: PublicFolder, model_class: Any, hub_config: Any) -> Any:
    """The model with the folder's weights, float32."""
    index = folder.path / INDEX
    if not (folder.path / WEIGHTS).is_file() and not index.is_file():
        raise FileNotFoundError(f"{folder.path}: {WEIGHTS} is missing; pickles of such a codec are not read")
    checkpoint = folder.checkpoint
    tensors = checkpoint.tensors(checkpoint.shapes)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise WeightsError(f"{folder.path}: {name}: weights must be finite")
    headers = [read_header(file) for file in sorted(folder.path.glob("*.safetensors"))]
    entries = {name: entry for header in headers for name, entry in header.tensors.items()}
    logging = import_transformers("this codec").logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with Budget(entries, folder.path):
            model, info = model_class.from_pretrained(
                None,
                config=hub_config,
                state_dict=tensors,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # they are named below
                output_loading_info=True,
            )
    except (BudgetError, ImportError):
        raise
    except Exception as error:
        raise ValueError(f"{folder.path}: transformers cannot load it ({one_line(error)[:200]})") from None
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
    _check_loaded(folder.path, info)
    _check_left_over(folder.path, tensors, model.state_dict())
    return model


def _check_loaded(path: Path, info: Any) -> None:
    """Raise WeightsError unless every tensor was used and none was made up."""
    for what, key in (("is missing", "missing_keys"), ("does not belong there", "unexpected_keys")):
        names = sorted(info.get(key) or ())
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise WeightsError(f"{path}: tensor '{names[0]}' {what}{more}; the config and the weights do not match")
    for found in sorted(info.get("mismatched_keys") or ()):
        name, shapes = found[0], list(found[1:])
        raise WeightsError(f"{path}: tensor '{name}' has another shape than the config requires: {shapes}")
    if info.get("error_msgs"):
        raise WeightsError(f"{path}: {one_line(ValueError(str(info['error_msgs'])))[:200]}")


def _check_left_over(path: Path, tensors: Mapping[str, Tensor], used: Mapping[str, Tensor]) -> None:
    """Raise WeightsError if a file has more tensors than its model: some classes leave out names without a word."""
    if len(tensors) > len(used):
        left = sorted(name for name in tensors if _present_name(name) not in used)
        raise WeightsError(
            f"{path}: has {len(tensors)} tensors, the config asks for {len(used)}; '{(left or ['one'])[0]}' does not "
            "belong there"
        )


def _present_name(name: str) -> str:
    """A tensor's name with the weight norm of torch since 2.0."""
    for earlier, present in (("weight_g", "original0"), ("weight_v", "original1")):
        if name.endswith(f".{earlier}"):
            return f"{name.removesuffix(earlier)}parametrizations.weight.{present}"
    return name
