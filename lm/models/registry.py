"""The kinds of language model: the union of their configs and the function that builds them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag
from torch import Tensor

from ...tokenize.quantizers.registry import Quantizer
from ...tokenize.spec import TokenSpec
from ..clustering.clustering import Clustering
from ..config import LMConfig
from .causal import TokenLM
from .masked import MaskedConfig, MaskedLM
from .next_scale import NextScaleConfig, NextScaleLM
from .transformer_lm import TransformerLM


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


def make_lm(
    config: LMConfig,
    spec: TokenSpec,
    code_vectors: Tensor | None = None,
    clustering: Clustering | None = None,
    quantizer: Quantizer | None = None,
) -> TransformerLM:
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
