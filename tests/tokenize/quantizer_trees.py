"""The quantizers that are held to laws, as a table of configs. A new quantizer or option is one line in CONFIGS."""

import copy
import functools
from contextlib import nullcontext

import pytest
import torch

from tessera.configs.schema import Config, check_config
from tessera.tokenize.quantizers.combinators.adaptive_length import HaltingQuantizer
from tessera.tokenize.quantizers.registry import FSQConfig, QuantizerConfig, ResidualConfig, VQConfig, make_quantizer

DIM = 6
VQ = VQConfig(size=16, decay=0.9)


class Tree(Config):
    quantizer: QuantizerConfig


def tree(**settings):
    """A quantizer as it would be written in a YAML file."""
    return check_config({"quantizer": settings}, Tree).quantizer


def make(channels, /, read_files=True, **settings):
    """That quantizer, with the same random start each time."""
    torch.manual_seed(0)
    return make_quantizer(tree(**settings), channels, read_files=read_files)


V16 = {"kind": "vq", "size": 16, "decay": 0.9}
GRADIENT = {**V16, "update": "gradient"}
ENTROPY = {"sample": 0.1, "batch": 0.2, "temperature": 0.5}
CONFIGS = {
    "vq": VQ,
    "vq-random-start": VQConfig(size=16, kmeans_init=False),
    "vq-gradient": VQConfig(size=16, decay=0.9, update="gradient"),
    "vq-product": VQConfig(size=16, decay=0.9, update="gradient", search="product"),
    "vq-product-index": VQConfig(size=16, code_dim=3, update="index", search="product"),
    "vq-normalised": VQConfig(size=16, decay=0.9, normalise=True),
    "vq-projected": VQConfig(size=16, code_dim=3),
    "vq-projected-normalised": VQConfig(size=16, decay=0.9, code_dim=3, normalise=True),
    "vq-projected-gradient": VQConfig(size=16, code_dim=3, update="gradient", normalise=True),
    "fsq": FSQConfig(levels=(2, 3, 4, 5, 2, 3)),
    "fsq-projected": FSQConfig(levels=(8, 5, 4)),
    "fsq-paper": FSQConfig(levels=(2, 3, 4, 5, 2, 3), rounding="paper"),
    "fsq-vq-pytorch": FSQConfig(levels=(2, 3, 4, 5, 2, 3), rounding="vq_pytorch"),
    "fsq-vq-pytorch-projected": FSQConfig(levels=(8, 5, 4), rounding="vq_pytorch"),
    "residual-1": ResidualConfig(levels=1, quantizer=VQ),
    "residual-3": ResidualConfig(levels=3, quantizer=VQ),
    "residual-8": ResidualConfig(levels=8, quantizer=VQ),
    "residual-dropout": ResidualConfig(levels=4, quantizer=VQ, level_dropout=0.7),
    "residual-gradient": ResidualConfig(levels=3, quantizer=VQConfig(size=16, update="gradient")),
    "residual-projected": ResidualConfig(levels=3, quantizer=VQConfig(size=16, code_dim=2)),
    "residual-fsq": ResidualConfig(levels=3, quantizer=FSQConfig(levels=(3, 3, 4, 4, 5, 5))),
    "residual-fsq-vq-pytorch": ResidualConfig(
        levels=3, quantizer=FSQConfig(levels=(3, 3, 4, 4, 5, 5), rounding="vq_pytorch")
    ),
    "residual-fsq-dropout": ResidualConfig(levels=2, quantizer=FSQConfig(levels=(4, 4)), level_dropout=0.5),
    # How codes move, and what they are made of.
    "vq-keep-length": tree(**V16, normalise=True, keep_length=True),
    "vq-keep-length-gradient-projected": tree(**GRADIENT, normalise=True, keep_length=True, code_dim=3),
    "vq-index-gradient": tree(**{**V16, "update": "index"}, entropy=ENTROPY),
    "vq-index-gradient-projected": tree(**{**V16, "update": "index"}, code_dim=3, normalise=True),
    "vq-alternating": tree(**{**V16, "update": "alternating"}, inner_steps=2),
    "vq-linear-gradient": tree(**GRADIENT, codebook={"kind": "linear"}),
    "vq-bridge-gradient": tree(**GRADIENT, codebook={"kind": "bridge", "patch": 4, "width": 16, "layers": 1}),
    "vq-affine-gradient": tree(**GRADIENT, codebook={"kind": "affine"}, moments=0.5),
    "vq-affine-index-gradient": tree(**{**V16, "update": "index"}, codebook={"kind": "affine"}),
    "vq-linear-gradient-normalised": tree(**GRADIENT, codebook={"kind": "linear"}, normalise=True, code_dim=3),
    "vq-entropy": tree(**V16, entropy=ENTROPY, moments=0.1),
    "vq-blend": tree(**V16, revive="blend"),
    "vq-blend-gradient": tree(**GRADIENT, revive="blend"),
    # Leaves without a table, and with numbers per channel.
    "lfq": tree(kind="lfq", bits=6, entropy=ENTROPY),
    "lfq-projected": tree(kind="lfq", bits=4, entropy={**ENTROPY, "group": 3}),
    "bsq": tree(kind="bsq", bits=6, entropy={**ENTROPY, "group": 6}),
    "bsq-projected": tree(kind="bsq", bits=9, entropy=ENTROPY),
    "bernoulli": tree(kind="bernoulli", bits=6, entropy=ENTROPY),
    "bernoulli-projected": tree(kind="bernoulli", bits=8),
    "scalar-gradient": tree(kind="scalar", size=5),
    "scalar-fitted": tree(kind="scalar", size=7, values="quantile"),
    "lattice-gradient": tree(kind="lattice", size=8),
    "kmeans-fitted": tree(kind="kmeans", size=8, commitment=0.1),
    "structural-fitted": tree(kind="structural", size=9, nodes=48, neighbours=4, commitment=0.1),
    "structural-cosine-fitted": tree(kind="structural", size=48, nodes=48, neighbours=3, similarity="cosine"),
    "residual-structural-fitted": tree(
        kind="residual", levels=2, quantizer={"kind": "structural", "size": 30, "nodes": 64, "neighbours": 3}
    ),
    "shared-index": tree(
        kind="shared_index", size=16, parts={"deep": {"channels": 2, "normalise": True}, "fine": {"channels": 4}}
    ),
    "shared-index-gradient": tree(
        kind="shared_index",
        size=16,
        update="gradient",
        parts={"a": {"channels": 5, "weight": 0.3}, "b": {"channels": 1}},
    ),
    # Combinators.
    "residual-shared": tree(kind="residual", levels=3, shared=True, quantizer=V16),
    "residual-choices-dropout": tree(
        kind="residual", levels=4, quantizer=V16, level_dropout=0.8, level_choices=[0, 1, 3, 4]
    ),
    "residual-bsq": tree(kind="residual", levels=3, quantizer={"kind": "bsq", "bits": 6}),
    "residual-lattice-gradient": tree(kind="residual", levels=2, quantizer={"kind": "lattice", "size": 5}),
    "residual-scalar-gradient": tree(kind="residual", levels=2, quantizer={"kind": "scalar", "size": 4}),
    "group": tree(kind="group", groups=3, quantizer=V16, disentangle=0.3),
    "group-shared": tree(kind="group", groups=2, shared=True, quantizer=GRADIENT),
    "group-levels": tree(
        kind="group",
        groups=2,
        shared=True,
        order="levels",
        quantizer={"kind": "chain", "stages": [V16, {"kind": "lfq", "bits": 2}]},
    ),
    "group-dropout": tree(kind="group", groups=3, quantizer=V16, level_dropout=0.5, disentangle=0.1),
    "group-lfq": tree(kind="group", groups=2, quantizer={"kind": "lfq", "bits": 3, "entropy": ENTROPY}),
    "group-residual": tree(kind="group", groups=2, quantizer={"kind": "residual", "levels": 2, "quantizer": V16}),
    "chain-group-residual": tree(
        kind="chain",
        stages=[
            {"kind": "group", "groups": 3, "quantizer": V16},
            {"kind": "residual", "levels": 2, "quantizer": V16, "level_dropout": 0.7, "level_choices": [0, 1, 2]},
        ],
    ),
    "branches-split": tree(
        kind="branches",
        branches={
            "semantic": {"quantizer": {"kind": "project", "dim": 4, "quantizer": V16}},
            "acoustic": {
                "quantizer": {
                    "kind": "project",
                    "dim": 3,
                    "quantizer": {"kind": "residual", "levels": 2, "quantizer": V16},
                }
            },
        },
    ),
    "branches-strided": tree(
        kind="branches",
        disentangle=0.2,
        branches={
            "slow": {"source": [0, 3], "stride": 3, "quantizer": GRADIENT},
            "fine": {"source": [3, 6], "quantizer": {"kind": "lfq", "bits": 3}},
        },
    ),
    "branches-overlapping-fitted": tree(
        kind="branches",
        branches={"a": {"source": [0, 4], "quantizer": {"kind": "kmeans", "size": 5}}, "b": {"quantizer": V16}},
    ),
    "project": tree(kind="project", dim=4, quantizer={"kind": "fsq", "levels": [3, 4, 3, 4]}),
    "strided": tree(kind="stride", every=2, quantizer=V16),
    "snac-strided": tree(
        kind="chain",
        stages=[
            {"kind": "stride", "every": 4, "quantizer": V16},
            {"kind": "stride", "every": 2, "quantizer": V16},
            V16,
        ],
    ),
    "regions-noise": tree(kind="regions", columns=4, quantizer=V16),
    "regions-gradient-residual": tree(
        kind="regions",
        columns=6,
        side=3,
        noise=0.0,
        quantizer={"kind": "residual", "levels": 2, "quantizer": GRADIENT},
    ),
    "rotation": tree(kind="rotation", quantizer=V16),
    "rotation-residual": tree(kind="rotation", quantizer={"kind": "residual", "levels": 3, "quantizer": V16}),
    "skip-dropout": tree(kind="skip", share=0.4, quantizer={"kind": "residual", "levels": 2, "quantizer": V16}),
    "tail-dropout": tree(kind="tail", shortest=2, quantizer={"kind": "residual", "levels": 2, "quantizer": V16}),
    "gaussian-noise": tree(kind="gaussian", divergence=0.1, quantizer={**V16, "moments": 0.1}),
    "gaussian-residual-dropout": tree(
        kind="gaussian", quantizer={"kind": "residual", "levels": 3, "quantizer": GRADIENT, "level_dropout": 0.5}
    ),
    "tail-lengths-dropout": tree(kind="tail", lengths=[1, 4], share=0.6, quantizer={"kind": "bsq", "bits": 4}),
    "two-sided-gradient": tree(kind="two_sided", search=V16, lookup={**GRADIENT, "kmeans_init": False}),
    "two-sided-residual-gradient": tree(
        kind="two_sided",
        search={"kind": "residual", "levels": 2, "quantizer": V16},
        lookup={"kind": "residual", "levels": 2, "quantizer": {**GRADIENT, "kmeans_init": False}},
    ),
    "halting-dropout": tree(kind="halting", wanted_error=0.1, shortest=2, quantizer=V16),
    "halting-residual-dropout": tree(
        kind="halting", wanted_error=0.1, quantizer={"kind": "residual", "levels": 3, "quantizer": GRADIENT}
    ),
}
HANGING = ("strided", "regions", "halting")
"""Where codes of places hang together."""
PER_PLACE = [name for name in CONFIGS if not any(word in name for word in HANGING)]
STRAIGHT = [name for name in CONFIGS if "rotation" not in name]
NOT_RANDOM = [
    name for name in CONFIGS if not any(word in name for word in ("dropout", "bernoulli", "noise", "chain-group"))
]
SHAPES = [(DIM,), (37, DIM), (2, 3, 5, DIM), (0, DIM), (3, 0, DIM)]
every_config = pytest.mark.parametrize("name", CONFIGS)


def fresh(name):
    """A quantizer that has seen nothing but what it must be fitted to."""
    quantizer = make_quantizer(CONFIGS[name], DIM)
    if "fitted" in name:
        quantizer.fit(torch.randn(64, DIM, generator=torch.Generator().manual_seed(3)))
    return quantizer


def trained(name, seed=0, updates=None):
    """A quantizer in training mode that has seen a few batches; by default all levels have started."""
    quantizer = copy.deepcopy(_trained(name, seed, updates))
    torch.manual_seed(seed + 1)
    return quantizer


@functools.cache
def _trained(name, seed, updates):
    torch.manual_seed(seed)
    quantizer = fresh(name)
    for _ in range(len(quantizer.cardinalities) + 2 if updates is None else updates):
        quantizer(torch.randn(5, 13, DIM))
        quantizer.update()
    return quantizer


def state_of(quantizer):
    return {key: value.clone() for key, value in quantizer.state_dict().items()}


def same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def autocast(on):
    return torch.autocast("cpu", dtype=torch.bfloat16) if on else nullcontext()


def follows(quantizer, codes):
    """Where values follow the latents: everywhere, but for tokens after a halt; [*, 1]."""
    if not isinstance(quantizer, HaltingQuantizer):
        return torch.ones_like(codes[..., :1], dtype=torch.bool)
    return (codes != torch.tensor([size - 1 for size in quantizer.cardinalities])).all(dim=-1, keepdim=True)


def draw_alike(quantizer, rows):
    """Dropout is drawn for each sample: here by its number among the 7 of both processes, and noise by the latent."""
    drawn = (torch.arange(7) % 4 + 1)[rows]
    for module in quantizer.modules():
        module.draw_levels = module.draw_lengths = lambda *_, drawn=drawn: drawn
        module.draw_passed = lambda _, drawn=drawn: drawn == 2
        module.draw_noise = torch.cos
