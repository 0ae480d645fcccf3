"""Loading of models: directories, finished runs, public checkpoints, and bundled models by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..configs.names import check_path
from ..configs.recognize import describe_wrong, folder_kind, run_model
from ..configs.schema import nearest_name
from ..lm.checkpoints.adapter_directory import load_with_adapter
from ..lm.checkpoints.model_directory import LoadedModel, load_model
from ..lm.checkpoints.weights_file import StorageName, check_dtype
from ..lm.device import choose_device
from ..lm.public.registry import load_public_model, recognize_model
from ..lm.public.unknown import describe_known
from ..lm.quantization.cpu_fast_decode import prepare_fast_cpu_decode_
from ..lm.quantization.packed_linear import WeightsName
from ..tokenize.bundled import bundled_model, bundled_models, shipped_path
from .model import Model


def load(
    model: str | Path,
    device: str | torch.device = "auto",
    dtype: StorageName | torch.dtype = "float32",
    weights: WeightsName | None = None,
    lexicon: str | Path | None = None,
    adapter: str | Path | None = None,
) -> Model:
    """Load a model directory, a bundled model or a public checkpoint.

    Args:
        model: a directory that `tessera train` exported, the name of a bundled model, for example "voice", or the
            directory of a public model with its tokenizer, for example MusicGen's (lm/public/registry.py).
        device: "auto": the first CUDA device if there is one, otherwise the CPU.
        dtype: storage and compute type of the language model.
        weights: storage of its matrices, "float32", "bfloat16", "int8" or "int4"; fewer bits make generation faster
            (see lm/quantization/packed_linear.py). None: dtype, with the fastest exact steps on a CPU
            (lm/quantization/cpu_fast_decode.py).
        lexicon: a file with a word, a tab and its phonemes on each line, for models that speak phonemes; added to the
            model's own.
        adapter: folder that `tessera export RUN --adapter` wrote; its low-rank changes are merged into the weights.
    Raises:
        ValueError: no such directory or bundled model; the message names the bundled ones. FileNotFoundError,
            ValueError: an incomplete model directory, an unavailable device, an unusable lexicon, or an adapter of
            another model.
    """
    where = choose_device(device)
    check_dtype(dtype)
    folder = find_model(model)
    if adapter is not None:
        check_path(adapter, "adapter")
        loaded = load_with_adapter(folder, adapter, where, dtype, weights)
    elif _is_public(folder):
        loaded = load_public_model(folder, where, dtype, weights)
    else:
        loaded = load_model(folder, where, dtype, weights)
    lm = loaded.lm if weights else prepare_fast_cpu_decode_(loaded.lm)
    text = loaded.text
    if lexicon is not None:
        check_path(lexicon, "lexicon")
        if text is None:
            raise ValueError(f"a lexicon was given, but '{model}' reads no text; leave it out")
        text = text.with_lexicon(lexicon)
    return model_of(replace(loaded, lm=lm, text=text), str(model))


def model_of(loaded: LoadedModel, name: str | None = None) -> Model:
    """The Model of loaded parts."""
    encoder = loaded.text_encoder
    return Model(loaded.lm, loaded.tokenizer, loaded.text, loaded.labels, loaded.defaults, name, encoder)


def find_model(model: str | Path) -> Path:
    """The directory of a model given as a directory, a finished run or a bundled name; a directory takes precedence.
    It may be a public checkpoint."""
    folder, names = shipped_path(check_path(model, "model")), bundled_models()
    kind = folder_kind(folder)
    if kind == "model" or _is_public(folder):
        return folder
    known = describe_known(folder, "a model") if kind in (None, "foreign") and folder.exists() else None
    if known is not None:
        raise ValueError(known)
    if kind is None and (folder / "config.json").is_file():
        return folder
    found = run_model(folder)
    if found is not None:
        return found
    bundled = bundled_model(model)
    if bundled is not None and kind is None:
        return bundled
    wrong = describe_wrong(folder, "a model")
    if wrong is not None:
        raise ValueError(wrong)
    if folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no model here (config.json is missing); make one with: tessera train CONFIG"
        )
    known = nearest_name(str(model), names) if names else "this installation has none"
    raise ValueError(f"no model '{model}': no such directory, and no bundled model of that name; {known}")


def _is_public(folder: Path) -> bool:
    return folder_kind(folder) in (None, "foreign") and recognize_model(folder) is not None
