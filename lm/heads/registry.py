"""The table of heads: maps from the backbone's hidden state of a step to the ids of that step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from .bits import BitsHead, BitsHeadConfig
from .depth_transformer import DepthHead, DepthHeadConfig, FactorHeadConfig
from .flat import FlatHead, FlatHeadConfig
from .parallel import ParallelHead, ParallelHeadConfig

HeadConfig = Annotated[
    ParallelHeadConfig | FlatHeadConfig | DepthHeadConfig | FactorHeadConfig | BitsHeadConfig,
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
