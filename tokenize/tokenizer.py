"""Tokenizers by kind: making, loading and finding them.

A tokenizer directory holds config.json and tokenizer.safetensors; nothing is pickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn

from ..configs.files import TensorHeader, check_format, read_header, read_json, read_safetensors
from ..configs.names import check_path
from ..configs.recognize import describe_wrong, folder_kind, run_model
from ..configs.schema import Config, check_config, nearest_name
from .audio.networks import AudioNet, AudioTokenizerConfig
from .base import STORAGE_DTYPES, Tokenizer, TokenizerStorage, stored_tensors
from .bundled import bundled_model, bundled_models, shipped_path
from .image.networks import ImageNet, ImageTokenizerConfig
from .kinds import FROZEN, NETS, FrozenConfig, empty_net
from .layers.parameter_budget import Budget
from .layers.weight_norm import fold_norms
from .public.folder import PublicFolder, has_pickles_alone
from .public.registry import PUBLIC_CODECS, read_public_codec, recognize_codec
from .quantizers.combinators.multi_scale import restore_phi


class TokenizerFile(Config):
    """config.json of a tokenizer directory."""

    format: Literal[1] = 1
    tokenizer: FrozenConfig
    fingerprint: str
    storage: TokenizerStorage = "float16"


def make_tokenizer(
    config: AudioTokenizerConfig | ImageTokenizerConfig, net: AudioNet | ImageNet | None = None
) -> Tokenizer:
    """Freeze a trained network, rounding its layers to float16, their storage dtype; without `net`, use random weights
    (for tests)."""
    made = NETS[config.kind](config) if net is None else net
    fold_norms(made)
    _round_to_storage(made)
    return FROZEN[config.kind](config, made)


def load_tokenizer(folder: str | Path, codebooks: int | None = None, image_size: int | None = None) -> Tokenizer:
    """Load a tokenizer.

    Args:
        folder: directory of a tokenizer, of a model or of a finished run (its tokenizer is loaded), the name of a
            bundled model, for example "voice", or a public codec (tokenize/public): its directory or file of weights.
        codebooks: of a public codec of audio, the number of codebooks to use, coarse first; None: all.
        image_size: of a public tokenizer of images, their side in pixels; None: as in its files or as published.
    Raises:
        FileNotFoundError: no tokenizer found. ValueError: damaged or foreign files, or weights that do not match the
        config.
    """
    path = shipped_path(check_path(folder, "tokenizer"))
    foreign = path.exists() and folder_kind(path) in (None, "foreign")
    if foreign and (recognize_codec(path) is not None or has_pickles_alone(path)):
        return read_public_codec(path, codebooks, image_size)
    folder = find_tokenizer(folder)
    if codebooks is not None:
        raise ValueError(f"{folder}: the number of codebooks can be chosen for public codecs only; leave it out")
    if image_size is not None:
        raise ValueError(f"{folder}: the image size can be chosen for public tokenizers only; leave it out")
    saved = restore_phi(read_json(folder / "config.json"))
    described = check_config(saved, TokenizerFile, str(folder / "config.json"))
    config = described.tokenizer
    path = folder / "tokenizer.safetensors"
    header = read_header(path)
    with Budget(header.tensors, path):
        net = empty_net(config)
    _check_tensors(path, net, header, described.storage)
    tensors, metadata = read_safetensors(path)
    check_format(path, metadata, "tessera-tokenizer")
    net.load_state_dict(tensors)
    tokenizer = FROZEN[config.kind](config, net, described.storage)
    if tokenizer.spec.fingerprint != described.fingerprint:
        raise ValueError(
            f"{folder}: the files hold tokenizer {tokenizer.spec.fingerprint[:12]}, config.json names "
            f"{described.fingerprint[:12]}; "
            "one of them was changed or damaged, copy the directory again"
        )
    return tokenizer


def check_same_codes(one: Tokenizer, other: Tokenizer) -> None:
    """Raise ValueError unless two tokenizers give the same codes: they may differ in their decoders alone."""
    described, tensors = [], []
    for tokenizer in (one, other):
        described.append(tokenizer.config.model_dump(mode="json", exclude={"decoder", "name"}))
        stored = stored_tensors(tokenizer.net, tokenizer.storage)
        tensors.append({name: tensor for name, tensor in stored.items() if not name.startswith("decoder.")})
    first, second = tensors
    different = sorted(name for name in described[0].keys() | described[1].keys()
                       if described[0].get(name) != described[1].get(name))  # fmt: skip
    if not different and first.keys() == second.keys():
        different = [name for name in sorted(first) if not torch.equal(first[name].cpu(), second[name].cpu())]
    elif not different:
        different = sorted(first.keys() ^ second.keys())
    if different:
        raise ValueError(
            f"tokenizer '{other.spec.name}' ({other.spec.fingerprint[:12]}) gives other codes than '{one.spec.name}' "
            f"({one.spec.fingerprint[:12]}): they differ in {different[0]}; only the decoder may be another"
        )


def _check_tensors(path: Path, net: nn.Module, header: TensorHeader, storage: TokenizerStorage) -> None:
    """Raise ValueError unless a file holds the tensors of this network, layers in their storage dtype."""
    layers = {name for name, _ in net.named_parameters()}
    wanted = {
        name: (STORAGE_DTYPES[storage] if name in layers else tensor.dtype, tuple(tensor.shape))
        for name, tensor in net.state_dict().items()
    }
    found = {name: (entry.dtype, entry.shape) for name, entry in header.tensors.items()}
    if wanted != found:
        name = min(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise ValueError(
            f"{path}: tensor '{name}' is {_describe(found.get(name))}, the config asks for "
            f"{_describe(wanted.get(name))}"
        )


def _describe(tensor: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return "missing" if tensor is None else f"{str(tensor[0]).removeprefix('torch.')} {list(tensor[1])}"


def find_tokenizer(tokenizer: str | Path) -> Path:
    """Resolve the argument of `load_tokenizer` to a tokenizer directory; raises FileNotFoundError in the same cases."""
    folder = shipped_path(tokenizer)
    kind = folder_kind(folder)
    if kind == "model" and (folder / "tokenizer" / "config.json").is_file():
        return folder / "tokenizer"
    model = run_model(folder)
    if model is not None:
        return model / "tokenizer"
    if kind == "tokenizer" or (kind is None and (folder / "config.json").is_file()):
        return folder
    bundled = bundled_model(tokenizer)
    if bundled is not None and kind is None:
        return bundled / "tokenizer"
    if kind == "model":
        raise FileNotFoundError(
            f"{folder}: this model was saved without its tokenizer; name the tokenizer's own folder"
        )
    if kind == "foreign":
        raise FileNotFoundError(_describe_foreign(folder))
    wrong = describe_wrong(folder, "a tokenizer")
    if wrong is not None:
        raise FileNotFoundError(wrong)
    if folder.is_dir() or len(folder.parts) != 1:
        missing = "config.json is missing" if folder.is_dir() else "there is no such folder"
        raise FileNotFoundError(
            f"{folder}: no tokenizer here ({missing}); make one with: tessera tokenizer train CONFIG --out {folder}"
        )
    raise FileNotFoundError(
        f"{tokenizer}: no tokenizer here; there is no such folder, and no bundled model of that name; "
        f"{nearest_name(str(tokenizer), bundled_models())}"
    )


def _describe_foreign(folder: Path) -> str:
    """One line about a checkpoint of another library that is no codec known here."""
    described = PublicFolder(folder).config
    advice = f"the public tokenizers known here are {', '.join(PUBLIC_CODECS)}"
    if "audio_encoder" in described:
        advice = f"the codec inside it is loaded from what this writes: tessera convert {folder} DST"
    return (
        f"{folder}: this is a checkpoint of another library (model_type {str(described.get('model_type'))[:80]!r}), "
        f"a tokenizer is needed here; {advice}"
    )


def _round_to_storage(net: nn.Module) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(parameter.half().float())
            if not bool(parameter.isfinite().all()):
                raise ValueError("a weight is beyond the range of float16; check the training loss")
