"""The kinds of language model: the union of their configs and the function that builds them."""

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
    """Files without a kind predate the second kind and are causal."""
    kind = config.get("kind", "causal") if isinstance(config, dict) else getattr(config, "kind", "causal")
    return kind if isinstance(kind, str) else "?"


ModelConfig = Annotated[
    Annotated[LMConfig, Tag("causal")]
    | Annotated[MaskedConfig, Tag("masked")]
    | Annotated[NextScaleConfig, Tag("next_scale")],
    Discriminator(_kind),
]

AnyLM = TokenLM | CoarseToFine
"""Any model that generates codes; MaskedLM and NextScaleLM are subclasses of TokenLM."""


def make_lm(
    config: LMConfig,
    spec: TokenSpec,
    code_vectors: Tensor | None = None,
    clustering: Clustering | None = None,
    quantizer: Quantizer | None = None,
) -> TokenLM:
    """Build a model with random weights.

    Args:
        spec: of the predicted codes: for a causal model with clusters that of the clustering, else that of the
            tokenizer.
        code_vectors: of the same codes, if config.input reads them.
        clustering: for a refiner.
        quantizer: the tokenizer's, for a next-scale model.
    """
    if isinstance(config, NextScaleConfig):
        return NextScaleLM(config, spec, quantizer)
    if isinstance(config, MaskedConfig):
        return MaskedLM(config, spec, code_vectors, clustering)
    return TokenLM(config, spec, code_vectors)
