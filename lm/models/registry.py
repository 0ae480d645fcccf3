"""The kinds of language model: their configs as one union, and the one way to make them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag
from torch import Tensor

from ...tokenize.quantizers.registry import Quantizer
from ...tokenize.spec import TokenSpec
from ..clustering.clustering import Clustering
from .causal import LMConfig, TokenLM
from .coarse_to_fine import CoarseToFine
from .masked import MaskedConfig, MaskedLM
from .next_scale import NextScaleConfig, NextScaleLM


def _kind(config: Any) -> str:
    """Files that say no kind are of before there was a second one."""
    kind = config.get("kind", "causal") if isinstance(config, dict) else getattr(config, "kind", "causal")
    return kind if isinstance(kind, str) else "?"


ModelConfig = Annotated[
    Annotated[LMConfig, Tag("causal")]
    | Annotated[MaskedConfig, Tag("masked")]
    | Annotated[NextScaleConfig, Tag("next_scale")],
    Discriminator(_kind),
]

AnyLM = TokenLM | CoarseToFine
"""What makes codes; a MaskedLM and a NextScaleLM are a TokenLM by their parts."""


def make_lm(
    config: LMConfig,
    spec: TokenSpec,
    code_vectors: Tensor | None = None,
    clustering: Clustering | None = None,
    quantizer: Quantizer | None = None,
) -> TokenLM:
    """A model with random weights.

    Args:
        spec: of the codes that are predicted: for a causal model with clusters the clustering's, else the tokenizer's.
        code_vectors: of the same codes, where config.input reads them.
        clustering: for a refiner.
        quantizer: the tokenizer's, for a next-scale model.
    """
    if isinstance(config, NextScaleConfig):
        return NextScaleLM(config, spec, quantizer)
    if isinstance(config, MaskedConfig):
        return MaskedLM(config, spec, code_vectors, clustering)
    return TokenLM(config, spec, code_vectors)
