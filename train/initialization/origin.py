"""The model that a language model starts from: `init.from` in the config of `tessera train`.

    init.from               what is taken
    a model, a run          the tensors of the same names; its text tokenizer and labels, if their tables are taken
    a public checkpoint     the same, through its layout (lm/public/registry.py)
    a text language model   its blocks (lm/public/text_lm.py)

The text tokenizer of a model whose text table is taken stays: a new one would give its rows other meanings. Its labels
stay too, with those of the data behind them if `adapt` has labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...configs.module_names import fits_any
from ...configs.recognize import describe_wrong, folder_kind, run_model
from ...configs.schema import ConfigError, nearest_name
from ...lm.checkpoints.config_file import read_model_config
from ...lm.checkpoints.model_directory import load_lm, load_model
from ...lm.checkpoints.weights_file import weights_fingerprint
from ...lm.clustering.clustering import ClusteredTokenizer
from ...lm.conditioning.text_encoder import TextEncoder
from ...lm.config import LMConfig
from ...lm.models.named_rows import NamedRows, fill_rows, named_rows
from ...lm.models.transformer_lm import TransformerLM
from ...lm.public.registry import layout_of, public_layout, recognize_model
from ...lm.public.text_lm import is_text_lm, read_backbone
from ...lm.public.unknown import describe_known
from ...tokenize.bundled import bundled_model, bundled_models, shipped_path
from ...tokenize.public.folder import PublicFolder
from ...tokenize.spec import TokenSpec
from ...tokenize.text.base import TextTokenizer
from ...tokenize.text.registry import TextConfig, make_text, text_of_files
from ...tokenize.tokenizer import Tokenizer, check_same_codes
from .choose_tensors import choose_tensors, describe_start
from .config import LMInitConfig

UNKNOWN = "0" * 64
"""Fingerprint of a tokenizer that a public checkpoint does not hold."""
BLOCKS = "transformer."
SAME_BLOCKS = ("heads", "num_kv_heads", "head_width", "feed_forward", "norm")
"""Settings without which the weights of the blocks mean something else, whatever their shapes."""
FOR_TRAINING = ("dropout", "loss_weights", "attention")
"""Settings that do not change what the weights compute, or choose among equal ways."""


@dataclass(frozen=True)
class Origin:
    """The opened `init.from`."""

    init: LMInitConfig
    tensors: Mapping[str, Tensor]
    """Its weights by their names in our models, float32 on the CPU."""
    lm: TransformerLM | None = None
    """The model; None: a text language model, of which only the blocks are read."""
    labels: Sequence[str] = ()
    text: TextTokenizer | None = None
    tokenizer: Tokenizer | None = None
    """None: it is not in the folder."""
    text_encoder: TextEncoder | None = None
    """None: it is not in the folder."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the weights."""
        return weights_fingerprint(self.tensors)

    def takes(self, name: str) -> bool:
        """Whether a tensor of this name is taken, if both models have it."""
        init = self.init
        wanted = init.modules is None or fits_any(name, init.modules)
        return wanted and not fits_any(name, init.leave) and (name in self.tensors)

    def keeps(self, kind: str) -> bool:
        """Whether the embedding table of a condition is taken, or for kind "stream" that of the text stream."""
        return self.takes(f"{_table(kind)}.weight")

    def label_names(self, of_data: Sequence[str]) -> list[str]:
        """The labels of the model to be trained: those of this one, then further ones of the data.

        Raises:
            ConfigError: the data has further labels, and `adapt` does not say so.
        """
        if not self.keeps("label"):
            return list(of_data)
        further = [label for label in of_data if label not in self.labels]
        if further and "labels" not in self.init.adapt:
            raise ConfigError(
                f"init: the data has the label '{further[0]}', {self.init.source} has {_some(self.labels)}; keep those "
                "and add the new ones with init.adapt: [labels], or start with the labels of the data alone with "
                "init.leave: [conditions.parts.label]"
            )
        return [*self.labels, *further]

    def kept_text(self, kind: str, config: TextConfig) -> TextTokenizer | None:
        """The text tokenizer of the model to be trained if it is that of this one, with `config`; None: the data's.

        Raises:
            ConfigError: its text table is taken, but the config asks for another text tokenizer.
        """
        if not self.keeps(kind) or "text" in self.init.adapt or self.text is None:
            return None
        limit = {"max_characters"}
        own, wanted = (one.model_dump(mode="json", exclude=limit) for one in (self.text.config, config))  # type: ignore
        given = make_text(config, ()) if wanted.get("file") else None
        if _without_path(own) != _without_path(wanted) or (given and given.files() != self.text.files()):
            raise ConfigError(
                f"init: lm.{'text_stream' if kind == 'stream' else 'conditions'} has the text tokenizer {wanted}, "
                f"{self.init.source} has {own}; use that one, "
                "take the rows of the pieces that both have with init.adapt: [text], or start with a new text table "
                f"with init.leave: [{_table(kind)}]"
            )
        return text_of_files(config, self.text.files(), self.init.source)

    def give_(
        self,
        labels: Sequence[str],
        text: TextTokenizer | None,
        tokenizer: Tokenizer,
        notes: list[str],
        lm: TransformerLM,
    ) -> set[str]:
        """Copy the tensors that are taken into a model, in place; returns the names of those that are taken whole.

        Args:
            labels, text, tokenizer: of the model to be trained.
            notes: what is taken, and which settings differ, is added.
        Raises:
            ConfigError: a tensor has another shape, or its rows or blocks mean something else; names it.
        """
        own = dict(lm.state_dict())
        ours = named_rows(lm, labels, text)
        theirs = {} if self.lm is None else named_rows(self.lm, self.labels, self.text)
        hints = {name: self._hint(rows, theirs[name]) for name, rows in ours.items() if name in theirs}
        taken = choose_tensors(own, self.tensors, self.init, adapted=hints)
        self._check_codes([name for name in taken if name in ours and ours[name].kind == "codebooks"], tokenizer)
        self._check_blocks(lm.config, taken)
        whole = set(taken)
        with torch.no_grad():
            for name, other in taken.items():
                rows, given = ours.get(name), self.tensors[other]
                if rows is None or other not in theirs or rows.names == theirs[other].names:
                    own[name].copy_(given)
                    continue
                if hints[name]:
                    raise ConfigError(
                        f"init: the rows of '{name}' stand for other {rows.kind} than in {self.init.source}; "
                        f"{hints[name]}, or start it at random with init.leave: [{name}]"
                    )
                try:
                    own[name].copy_(fill_rows(own[name], rows, given, theirs[other]))
                except ValueError as error:
                    raise ConfigError(f"init: tensor '{name}': {error}; leave it with init.leave: [{name}]") from None
                whole -= {name} if set(rows.names) - set(theirs[other].names) - {None} else set()
        notes.append(describe_start(own, taken, self.tensors, self.init.source))
        different = [] if self.lm is None else different_settings(lm.config, self.lm.config)
        if different:
            named = ", ".join(f"lm.{one}" for one in different)
            notes.append(f"settings that differ from {self.init.source}: {named}")
        return whole

    def _hint(self, rows: NamedRows, given: NamedRows) -> str:
        """ "" if the rows of a tensor may be others here, else how to ask for it."""
        asked = rows.kind in self.init.adapt and rows.axis == given.axis
        return "" if asked else f"take the rows that both have with init.adapt: [{rows.kind}]"

    def _check_codes(self, names: Sequence[str], tokenizer: Tokenizer) -> None:
        """Raise ConfigError unless the codes of both models are the same, or `adapt` says so."""
        if not names or self.lm is None or "codebooks" in self.init.adapt:
            return
        found, wanted = self.lm.spec.fingerprint, tokenizer.spec.fingerprint
        if found in (wanted, UNKNOWN):
            return
        plain = not isinstance(tokenizer, ClusteredTokenizer) and not isinstance(self.tokenizer, ClusteredTokenizer)
        if self.tokenizer is not None and plain:
            try:
                check_same_codes(tokenizer, self.tokenizer)
                return
            except ValueError:
                pass  # said below, with what to do
        raise ConfigError(
            f"init: {self.init.source} has the codes of tokenizer '{self.lm.spec.name}' ({found[:12]}), the data those "
            f"of '{tokenizer.spec.name}' ({wanted[:12]}); start what reads and predicts codes at random with "
            "init.leave: [input, head], or say that they are the same codes with init.adapt: [codebooks]"
        )

    def _check_blocks(self, config: LMConfig, taken: Mapping[str, str]) -> None:
        """Raise ConfigError if the blocks that are taken would compute something else."""
        if self.lm is None or not any(name.startswith(BLOCKS) for name in taken):
            return
        for name in SAME_BLOCKS:
            found, wanted = getattr(config, name), getattr(self.lm.config, name)
            if found != wanted:
                key = name.removeprefix("num_").replace("head_width", "head_dim")
                raise ConfigError(
                    f"lm.{key} is {found!r}, {self.init.source} has {wanted!r}, so its weights mean something else; "
                    "set the same, or leave the key out"
                )

    def difference(
        self, lm: TransformerLM, labels: Sequence[str], text: TextTokenizer | None, spec: TokenSpec
    ) -> str | None:
        """The first thing in which a model is another one than this with other weights; None: it is the same."""
        if self.lm is None:
            return f"{self.init.source} is a text language model"
        settings = different_settings(lm.config, self.lm.config)
        if settings:
            return f"lm.{settings[0]} differs from that of {self.init.source}"
        if list(labels) != list(self.labels):
            return "its labels differ"
        if (text is None) != (self.text is None) or (text and self.text and text.files() != self.text.files()):
            return "its text tokenizer differs"
        if spec.fingerprint != self.lm.spec.fingerprint:
            return "its tokenizer differs"
        own = {name: tensor.shape for name, tensor in lm.state_dict().items()}
        given = {name: tensor.shape for name, tensor in self.tensors.items()}
        different = (name for name in sorted(own.keys() | given.keys()) if own.get(name) != given.get(name))
        return next((f"tensor '{name}' differs" for name in different), None)


def different_settings(one: LMConfig, other: LMConfig) -> list[str]:
    """Names of the settings in which two models differ, but for those that matter only in training."""
    ours, theirs = (config.model_dump(mode="json", exclude=set(FOR_TRAINING)) for config in (one, other))
    for described in (ours, theirs):
        for condition in described["conditions"]:
            condition.pop("dropout", None)
            condition["text"] = _without_path(condition.get("text", {}))
            condition["text"].pop("max_characters", None)
        stream = described["text_stream"]
        if stream is not None:
            kept = ("vocab_size", "positions", "predict", "begin", "empty")
            described["text_stream"] = {name: stream[name] for name in kept} | {"text": _without_path(stream["text"])}
            described["text_stream"]["text"].pop("max_characters", None)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def _without_path(text: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a text tokenizer, of its file only whether there is one: where it lies changes nothing."""
    return {name: bool(value) if name == "file" else value for name, value in text.items()}


def open_origin(init: LMInitConfig, config: LMConfig) -> Origin:
    """Open `init.from` for a model with this config.

    Raises:
        ConfigError: there is nothing that can be used; the message begins with init.from.
    """
    folder = find_origin(init.source)
    try:
        if is_text_lm(folder):
            return Origin(init, read_backbone(folder, config))
        if folder_kind(folder) != "model":
            layout = layout_of(public_layout(folder))
            lm: Any = layout.load(folder)
            labels = [str(i) for c in lm.config.conditions if c.kind == "label" for i in range(c.classes or 0)]
            encoder = layout.read_text_encoder(PublicFolder(folder))
            return Origin(init, lm.state_dict(), lm, labels, text_encoder=encoder)
        if not (folder / "tokenizer").is_dir():
            lm = load_lm(folder)
            return Origin(init, lm.state_dict(), lm, read_model_config(folder).labels)
        loaded = load_model(folder)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(f"init.from: {error}") from None
    lm = next((stage for stage in loaded.lm.stages if stage.config.kind == config.kind), loaded.lm.stages[-1])
    return Origin(init, lm.state_dict(), lm, loaded.labels, loaded.text, loaded.tokenizer, loaded.text_encoder)


def find_origin(source: str) -> Path:
    """The folder of `init.from`. ConfigError: there is none, or it holds something else."""
    folder = shipped_path(source)
    kind = folder_kind(folder)
    if kind in ("model", "foreign") or (kind is None and recognize_model(folder) is not None):
        return folder
    found = run_model(folder) or (None if folder.exists() else bundled_model(source))
    if found is not None:
        return found
    wrong = (describe_known(folder, "a model") or describe_wrong(folder, "a model")) if folder.exists() else None
    if wrong is None and folder.exists():
        wrong = f"{folder}: no model here (config.json is missing)"
    known = nearest_name(source, bundled_models()) if bundled_models() else "this installation has none"
    raise ConfigError(
        f"init.from: {wrong}"
        if wrong
        else f"init.from: no model '{source}': no such directory, and no bundled model of that name; {known}"
    )


def _table(kind: str) -> str:
    """The module that embeds the ids of a condition, or of the text stream."""
    return "input.text" if kind == "stream" else f"conditions.parts.{kind}.table"


def _some(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:5]) or "none"
    return f"{shown} and {len(labels) - 5} more" if len(labels) > 5 else shown
