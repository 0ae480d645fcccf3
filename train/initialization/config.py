"""Config of `init`: what a run starts from.

    init: {from: DIR, modules: [...], leave: [...], names: {...}, freeze: [...], adapt: [...]}

`adapt` is for language models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, model_serializer

from ...configs.names import GivenPath
from ...configs.schema import Config

LORA_ALONE = "it changes the weights of another model; name that as init.from, or leave lora out"


class InitConfig(Config):
    """Weights to start from. Names are those of modules or tensors, and stand for everything below; they may have
    wildcards: "decoder", "quantizer.levels.*.codebook"."""

    source: GivenPath = Field(alias="from")
    """Folder of the other tokenizer, of a model or of a run that has one, or the name of a bundled model."""
    modules: tuple[str, ...] | None = None
    """What is taken; null: everything that the other one has."""
    leave: tuple[str, ...] = ()
    """What is not taken and starts at random."""
    names: dict[str, str] = Field(default_factory=dict)
    """Beginning of a name here -> beginning of the name there, where they differ, as in {"quantizer.":
    "quantizer.levels.0."}. The longest that fits applies."""
    freeze: tuple[str, ...] = ()
    """What does not learn."""

    @model_serializer(mode="wrap")
    def _as_in_the_file(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {"from" if name == "source" else name: value for name, value in handler(self).items()}


class LMInitConfig(InitConfig):
    """Weights to start from. Names are those of modules or tensors, and stand for everything below; they may have
    wildcards: "transformer.blocks.*.ffn". Keys of lm that are left out are those of the other model."""

    source: GivenPath = Field(alias="from")
    """Folder of a model, of a finished run, or of a public checkpoint; the name of a bundled model; or the folder of a
    text language model (Llama, Qwen), whose blocks become the backbone."""
    adapt: tuple[Literal["codebooks", "labels", "text"], ...] = ()
    """What may differ from the other model: rows of the same name are taken, the others start at random. codebooks: the
    codebooks of the other model are the first ones of this one, with the same codes. labels: further labels. text:
    another text tokenizer."""
