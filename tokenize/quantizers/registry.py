"""Registry of quantizers: the table of kinds, and the factory `make_quantizer`.

To add a kind, write one file with a config and a Quantizer, add it to the union and to a table here, and add one line
to the table in tests/tokenize/quantizer_trees.py.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import Field

from .base import Quantized, Quantizer, pack_codes, unpack_codes
from .binary import (
    BernoulliConfig,
    BernoulliQuantizer,
    BinarySphericalQuantizer,
    BSQConfig,
    LFQConfig,
    LookupFreeQuantizer,
)
from .combinators.adaptive_length import HaltingConfig, HaltingQuantizer
from .combinators.branches import BranchConfig, BranchesConfig, BranchesQuantizer
from .combinators.grouped import GroupConfig, GroupQuantizer
from .combinators.multi_scale import ScalesConfig, ScalesQuantizer
from .combinators.nested_dropout import TailConfig, TailQuantizer
from .combinators.projected import ProjectConfig, ProjectedQuantizer
from .combinators.quantizer_dropout import SkipConfig, SkippingQuantizer
from .combinators.region_routing import RegionsConfig, RegionsQuantizer
from .combinators.residual import ChainConfig, ChainQuantizer, ResidualConfig, ResidualQuantizer
from .combinators.rotation_trick import RotationConfig, RotationQuantizer
from .combinators.strided import StrideConfig, StridedQuantizer
from .combinators.two_sided import TwoSidedConfig, TwoSidedQuantizer
from .combinators.variational import GaussianConfig, GaussianQuantizer
from .fsq import FiniteScalarQuantizer, FSQConfig
from .identity import IdentityConfig, IdentityQuantizer
from .kmeans_vq import KMeansConfig, KMeansQuantizer
from .scalar import LatticeConfig, LatticeQuantizer, ScalarConfig, ScalarQuantizer
from .shared_index import SharedIndexConfig, SharedIndexQuantizer
from .structural_entropy_vq import StructuralConfig, StructuralQuantizer
from .vq import VectorQuantizer, VQConfig

LeafConfig = (
    VQConfig
    | FSQConfig
    | LFQConfig
    | BSQConfig
    | BernoulliConfig
    | ScalarConfig
    | LatticeConfig
    | KMeansConfig
    | StructuralConfig
    | SharedIndexConfig
    | IdentityConfig
)
CombinatorConfig = ResidualConfig | ChainConfig | GroupConfig | BranchesConfig | ScalesConfig | TwoSidedConfig
WrapperConfig = (
    ProjectConfig
    | StrideConfig
    | RegionsConfig
    | RotationConfig
    | SkipConfig
    | TailConfig
    | GaussianConfig
    | HaltingConfig
)
QuantizerConfig = Annotated[LeafConfig | CombinatorConfig | WrapperConfig, Field(discriminator="kind")]

FILE_LEAVES = {"vq": VectorQuantizer, "kmeans": KMeansQuantizer, "structural": StructuralQuantizer}
"""Leaves whose vectors may come from a file."""
LEAVES = {
    **FILE_LEAVES,
    "fsq": FiniteScalarQuantizer,
    "lfq": LookupFreeQuantizer,
    "bsq": BinarySphericalQuantizer,
    "bernoulli": BernoulliQuantizer,
    "scalar": ScalarQuantizer,
    "lattice": LatticeQuantizer,
    "shared_index": SharedIndexQuantizer,
    "identity": IdentityQuantizer,
}
COMBINATORS = {
    "residual": ResidualQuantizer,
    "chain": ChainQuantizer,
    "group": GroupQuantizer,
    "branches": BranchesQuantizer,
    "scales": ScalesQuantizer,
    "two_sided": TwoSidedQuantizer,
    "project": ProjectedQuantizer,
    "stride": StridedQuantizer,
    "regions": RegionsQuantizer,
    "rotation": RotationQuantizer,
    "skip": SkippingQuantizer,
    "tail": TailQuantizer,
    "gaussian": GaussianQuantizer,
    "halting": HaltingQuantizer,
}

# Combinators may contain any member of the union, which did not exist yet when they were defined.
_tree = (ResidualConfig, ChainConfig, GroupConfig, BranchConfig, BranchesConfig, ScalesConfig, TwoSidedConfig)
_around = (ProjectConfig, StrideConfig, RegionsConfig, RotationConfig, SkipConfig, TailConfig, GaussianConfig)
for _part in (*_tree, *_around, HaltingConfig):
    _part.model_rebuild(_types_namespace={"QuantizerConfig": QuantizerConfig})


def make_quantizer(
    config: LeafConfig | CombinatorConfig | WrapperConfig,
    dim: int,
    depth: int = 0,
    where: str = "quantizer",
    read_files: bool = True,
) -> Quantizer:
    """Build a new quantizer for latents with `dim` channels.

    Args:
        depth: its level in a residual. where: path of its config, for messages.
        read_files: read the vectors that the config takes from files; False: leave zeros, for a quantizer whose saved
            state is loaded afterwards.
    Raises:
        ConfigError: an invalid tree; the message starts with the path of the node, "quantizer.stages.1.groups: ...".
    """
    if config.kind in FILE_LEAVES:
        return FILE_LEAVES[config.kind](config, dim, depth, where, read_files)
    if config.kind in LEAVES:
        return LEAVES[config.kind](config, dim, depth, where)
    return COMBINATORS[config.kind](config, dim, depth, where, partial(make_quantizer, read_files=read_files))


__all__ = [
    "BSQConfig",
    "BernoulliConfig",
    "BranchConfig",
    "BranchesConfig",
    "ChainConfig",
    "FSQConfig",
    "GaussianConfig",
    "GroupConfig",
    "HaltingConfig",
    "IdentityConfig",
    "KMeansConfig",
    "LFQConfig",
    "LatticeConfig",
    "ProjectConfig",
    "Quantized",
    "Quantizer",
    "QuantizerConfig",
    "RegionsConfig",
    "ResidualConfig",
    "RotationConfig",
    "ScalarConfig",
    "ScalesConfig",
    "SharedIndexConfig",
    "SkipConfig",
    "StrideConfig",
    "StructuralConfig",
    "TailConfig",
    "TwoSidedConfig",
    "VQConfig",
    "make_quantizer",
    "pack_codes",
    "unpack_codes",
]
