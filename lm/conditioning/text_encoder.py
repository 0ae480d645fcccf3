"""A frozen text encoder: text to the vectors of the condition `embedding`.

    "a calm piano" ──► tokenizer ──► ids [L] ──► T5 encoder ──► hidden states [L, width] ──► the condition `embedding`

The encoder is one of transformers, an optional package (`pip install 'tessera-lm[hub]'`). A folder has config.json
(`T5Config`), the weights of a `T5EncoderModel` (those of a whole T5 do as well) and the files of its tokenizer. Inside
another model's checkpoint its config is a section and its tensors have a prefix.
Names and shapes of the tensors are compared with the config when it is opened; weights are read at the first text.
Source: T5, arXiv:1910.10683; tensor names, config keys and class defaults of transformers 5 (Apache-2.0).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...configs.files import read_safetensors, write_json, write_safetensors
from ...configs.printable import one_line
from ...configs.tensor_checks import check_tensors
from ...tokenize.base import exact_float32
from ...tokenize.hub.package import import_transformers
from ...tokenize.public.folder import PublicFolder
from ...tokenize.public.tensor_map import Shape
from ...tokenize.text.base import check_unicode

DEFAULTS: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "relu",
}
"""Class defaults of T5Config, of the settings that determine the tensors."""
TOKENIZER_FILES = (
    *("tokenizer.json", "spiece.model"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
"""Files of the tokenizer; one of the first two is needed."""
MAX_CHARACTERS = 4096
SHARED, TIED = "shared.weight", "encoder.embed_tokens.weight"
"""The embedding table under its two names; a file may have either or both."""
NOT_READ = ("decoder.", "lm_head.")
"""Prefixes of the tensors of a whole T5 that its encoder does not need."""


class TextEncoder:
    """A frozen T5 encoder with its tokenizer. It computes in float32, one text at a time: the vectors of a text do not
    depend on the others in a batch."""

    def __init__(
        self, folder: PublicFolder, within: str | None = None, prefix: str = "", sha256: str | None = None
    ) -> None:
        """See `open_text_encoder`."""
        self.folder, self.prefix, self.sha256 = folder, prefix, sha256
        values = folder.values(DEFAULTS, within)
        where = str(folder.config_path) if within is None else f"{folder.config_path}: {within}"
        described = folder.config if within is None else folder.config[within]
        self.described: dict[str, Any] = {"model_type": "t5"} | described
        """The encoder's config.json."""
        self.width: int = values["d_model"]
        """Width of the vectors."""
        self.device = torch.device("cpu")
        wanted = encoder_shapes(values, where)
        shapes = folder.checkpoint.shapes
        found = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        found = {name: shape for name, shape in found.items() if not name.startswith(NOT_READ)}
        if SHARED not in found and TIED in found:
            wanted[TIED] = wanted.pop(SHARED)
        elif TIED in found:
            wanted[TIED] = wanted[SHARED]
        check_tensors(found, wanted, folder.path)
        self.shapes: dict[str, Shape] = wanted
        """Names, without the prefix, and shapes of its tensors."""

    @property
    def num_parameters(self) -> int:
        """Number of weights, the embedding table once."""
        return sum(torch.Size(shape).numel() for name, shape in self.shapes.items() if not self._is_copy(name))

    @property
    def has_tokenizer(self) -> bool:
        """Whether the files of its tokenizer are there."""
        return any((self.folder.path / name).is_file() for name in TOKENIZER_FILES[:2])

    def to(self, device: torch.device | str) -> TextEncoder:
        """Compute on a device from now on; returns self."""
        self.device = torch.device(device)
        if "net" in vars(self):
            self.net.to(self.device)
        return self

    def encode(self, texts: Sequence[str]) -> list[Tensor]:
        """Hidden states of the last layer, [L, width] float32 on the CPU for each text of L tokens.

        Raises:
            ValueError: an empty text, one that is too long, or an unusable tokenizer. FileNotFoundError: there is no
                tokenizer. ImportError: transformers is not installed.
        """
        return [self._encode_one(text) for text in texts]

    def check(self, text: str) -> None:
        """ValueError: a text that is empty, too long, or no Unicode."""
        check_unicode(text)
        if not text.strip():
            raise ValueError(f"the text {text!r} is empty")
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"the text has {len(text)} characters, the limit is {MAX_CHARACTERS}; shorten it")

    def _encode_one(self, text: str) -> Tensor:
        self.check(text)
        ids = torch.tensor([self.tokenizer(text, verbose=False)["input_ids"]])
        rows = self.shapes.get(SHARED, self.shapes.get(TIED, (0,)))[0]
        if not 0 <= int(ids.min()) <= int(ids.max()) < rows:
            raise ValueError(
                f"{self.folder.path}: the tokenizer gives id {int(ids.max())}, the text encoder has {rows}; they do "
                "not belong together"
            )
        with exact_float32():
            return self.net(input_ids=ids.to(self.device)).last_hidden_state[0].float().cpu()

    @cached_property
    def tokenizer(self) -> Any:
        """transformers' T5Tokenizer; no code of the folder is run."""
        if not self.has_tokenizer:
            raise FileNotFoundError(
                f"{self.folder.path}: the text encoder's tokenizer is missing ({' or '.join(TOKENIZER_FILES[:2])}); "
                "copy it from the public model"
            )
        transformers = import_transformers("the text encoder of this model")
        try:
            return transformers.T5Tokenizer.from_pretrained(str(self.folder.path), local_files_only=True)
        except ImportError:
            raise
        except Exception as error:  # the packages behind it raise exceptions of every kind
            raise ValueError(
                f"{self.folder.path}: the text encoder's tokenizer is unusable ({one_line(error)[:150]})"
            ) from None

    @cached_property
    def net(self) -> Any:
        """transformers' T5EncoderModel, float32, in eval mode."""
        transformers = import_transformers("the text encoder of this model")
        try:
            config = transformers.T5Config.from_dict(dict(self.described))
        except Exception as error:  # StrictDataclassError and others
            raise ValueError(f"{self.folder.config_path}: text encoder: {one_line(error)[:150]}") from None
        with torch.device("meta"):
            net = transformers.T5EncoderModel(config)
        tensors = {name: tensor.float() for name, tensor in self.tensors().items()}
        table = tensors.get(SHARED, tensors.get(TIED))
        net.load_state_dict(tensors | {SHARED: table, TIED: table}, assign=True)
        return net.to(self.device).requires_grad_(False).eval()

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors as they are stored, by name without the prefix."""
        if self.sha256 is not None:
            return read_safetensors(self.folder.path / "model.safetensors", sha256=self.sha256)[0]
        found = self.folder.checkpoint.tensors(self.prefix + name for name in self.shapes)
        return {name.removeprefix(self.prefix): tensor for name, tensor in found.items()}

    def own_tensors(self) -> dict[str, Tensor]:
        """Its tensors, the embedding table once."""
        return {name: tensor for name, tensor in self.tensors().items() if not self._is_copy(name)}

    def save(self, folder: Path) -> None:
        """Write config.json, model.safetensors and the tokenizer's files into a folder, which is created."""
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(folder / "model.safetensors", self.own_tensors(), {"format": "pt"})
        self.save_tokenizer(folder)
        write_json(folder / "config.json", self.described)

    def tokenizer_files(self) -> list[Path]:
        """The files of its tokenizer."""
        return [path for name in TOKENIZER_FILES if (path := self.folder.path / name).is_file()]

    def save_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer's files into a folder."""
        for source in self.tokenizer_files():
            if source.resolve() != (folder / source.name).resolve():
                shutil.copyfile(source, folder / source.name)

    def _is_copy(self, name: str) -> bool:
        return name == TIED and SHARED in self.shapes


def open_text_encoder(
    folder: str | Path | PublicFolder, within: str | None = None, prefix: str = "", sha256: str | None = None
) -> TextEncoder:
    """Open a text encoder; its weights are read at the first text.

    Args:
        folder: with config.json, weights and the files of the tokenizer.
        within, prefix: of an encoder inside another model: key of its config, and prefix of its tensors' names.
        sha256: of model.safetensors, checked when it is read.
    Raises:
        FileNotFoundError: a file is missing. ValueError: another kind of model, or an unusable config.
        WeightsError: tensors are missing, left over, or of another shape than the config requires.
    """
    opened = folder if isinstance(folder, PublicFolder) else PublicFolder(folder)
    if not opened.config:
        raise FileNotFoundError(f"{opened.path}: no text encoder here (config.json is missing)")
    return TextEncoder(opened, within, prefix, sha256)


def encoder_shapes(values: dict[str, Any], where: str = "config.json") -> dict[str, Shape]:
    """Names and shapes of the tensors of a T5 encoder with these settings.

    Raises:
        ValueError: a setting that is not supported, by name.
    """
    if values["model_type"] != "t5":
        raise ValueError(f"{where}: model_type is {values['model_type']!r}; only 't5' is supported")
    D, ffn, inner = values["d_model"], values["d_ff"], values["num_heads"] * values["d_kv"]
    gated = values["feed_forward_proj"].startswith("gated-")
    shapes: dict[str, Shape] = {SHARED: (values["vocab_size"], D), "encoder.final_layer_norm.weight": (D,)}
    for n in range(values["num_layers"]):
        block = f"encoder.block.{n}.layer."
        for name in "qkv":
            shapes[f"{block}0.SelfAttention.{name}.weight"] = (inner, D)
        shapes[f"{block}0.SelfAttention.o.weight"] = (D, inner)
        for name in ("wi_0", "wi_1") if gated else ("wi",):
            shapes[f"{block}1.DenseReluDense.{name}.weight"] = (ffn, D)
        shapes[f"{block}1.DenseReluDense.wo.weight"] = (D, ffn)
        for number in (0, 1):
            shapes[f"{block}{number}.layer_norm.weight"] = (D,)
    buckets = values["relative_attention_num_buckets"], values["num_heads"]
    return shapes | {"encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": buckets}
