"""Quantizers by config: the table of kinds and the one way to make them.

A new kind is one file with a config and a Quantizer, one entry in the union and in the table here, and one line in the
table of tests/tokenize/quantizer_trees.py.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .bernoulli import BernoulliConfig, BernoulliQuantizer
from .branches import BranchConfig, BranchesConfig, BranchesQuantizer
from .bsq import BinarySphericalQuantizer, BSQConfig
from .chain import ChainConfig, ChainQuantizer
from .fsq import FiniteScalarQuantizer, FSQConfig
from .gaussian import GaussianConfig, GaussianQuantizer
from .group import GroupConfig, GroupQuantizer
from .halting import HaltingConfig, HaltingQuantizer
from .identity import IdentityConfig, IdentityQuantizer
from .kmeans_leaf import KMeansConfig, KMeansQuantizer
from .lattice import LatticeConfig, LatticeQuantizer
from .lfq import LFQConfig, LookupFreeQuantizer
from .project import ProjectConfig, ProjectedQuantizer
from .quantized import Quantized, Quantizer, pack_codes, unpack_codes
from .regions import RegionsConfig, RegionsQuantizer
from .residual import ResidualConfig, ResidualQuantizer
from .rotation import RotationConfig, RotationQuantizer
from .scalar import ScalarConfig, ScalarQuantizer
from .scales import ScalesConfig, ScalesQuantizer
from .shared_index import SharedIndexConfig, SharedIndexQuantizer
from .skip import SkipConfig, SkippingQuantizer
from .stride import StrideConfig, StridedQuantizer
from .structural import StructuralConfig, StructuralQuantizer
from .tail import TailConfig, TailQuantizer
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
CombinatorConfig = ResidualConfig | ChainConfig | GroupConfig | BranchesConfig | ScalesConfig
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

QUANTIZERS = {
    "vq": VectorQuantizer,
    "fsq": FiniteScalarQuantizer,
    "lfq": LookupFreeQuantizer,
    "bsq": BinarySphericalQuantizer,
    "bernoulli": BernoulliQuantizer,
    "scalar": ScalarQuantizer,
    "lattice": LatticeQuantizer,
    "kmeans": KMeansQuantizer,
    "structural": StructuralQuantizer,
    "shared_index": SharedIndexQuantizer,
    "identity": IdentityQuantizer,
    "residual": ResidualQuantizer,
    "chain": ChainQuantizer,
    "group": GroupQuantizer,
    "branches": BranchesQuantizer,
    "scales": ScalesQuantizer,
    "project": ProjectedQuantizer,
    "stride": StridedQuantizer,
    "regions": RegionsQuantizer,
    "rotation": RotationQuantizer,
    "skip": SkippingQuantizer,
    "tail": TailQuantizer,
    "gaussian": GaussianQuantizer,
    "halting": HaltingQuantizer,
}

# Their parts may be any of the union, which did not exist when they were defined.
_tree = (ResidualConfig, ChainConfig, GroupConfig, BranchConfig, BranchesConfig, ScalesConfig)
_around = (ProjectConfig, StrideConfig, RegionsConfig, RotationConfig, SkipConfig, TailConfig, GaussianConfig)
for _part in (*_tree, *_around, HaltingConfig):
    _part.model_rebuild(_types_namespace={"QuantizerConfig": QuantizerConfig})


def make_quantizer(
    config: LeafConfig | CombinatorConfig | WrapperConfig, dim: int, depth: int = 0, where: str = "quantizer"
) -> Quantizer:
    """A fresh quantizer of latents with `dim` channels.

    Raises:
        ConfigError: a tree that cannot be; it begins with the path of the node, "quantizer.stages.1.groups: ...".
    """
    return QUANTIZERS[config.kind](config, dim, depth, where)


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
    "VQConfig",
    "make_quantizer",
    "pack_codes",
    "unpack_codes",
]
