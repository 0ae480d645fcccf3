"""The table of heads: maps from the backbone's hidden state of a step to the ids of that step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from ...configs.schema import Config
from .bits import BitsHead, BitsHeadConfig
from .depth_transformer import DepthHead, DepthHeadConfig, FactorHeadConfig
from .flat import FlatHead, FlatHeadConfig
from .parallel import ParallelHead, ParallelHeadConfig


class AutoHeadConfig(Config):
    """`depth` for several codebooks whose pattern is auto, too: with a quarter of the backbone's layers, and `input:
    codes` if that of the model is. Else `parallel`."""

    kind: Literal["auto"] = "auto"


HeadConfig = Annotated[
    ParallelHeadConfig | FlatHeadConfig | DepthHeadConfig | FactorHeadConfig | BitsHeadConfig | AutoHeadConfig,
    Field(discriminator="kind"),
]

HEADS: dict[str, Callable[..., Any]] = {
    "parallel": ParallelHead,
    "flat": FlatHead,
    "depth": DepthHead,
    "factor": DepthHead,
    "bits": BitsHead,
}
"""Built as HEADS[kind](config, context), with a `HeadContext`; each returns a module that implements `base.Head`."""
