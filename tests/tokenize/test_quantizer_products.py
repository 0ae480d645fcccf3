"""The laws over the whole product: every leaf, in every way its codes move and are made, inside every combinator.

test_quantizer_laws.py asks more, of chosen trees. `scales` and `identity` have files of their own: the one is for a
sample as a whole, the other has no codes.
"""

import copy
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import quantizer_trees as trees
import torch
from torch import distributed as dist

from tessera.configs.files import write_safetensors
from tessera.tokenize.quantizers import registry
from tessera.tokenize.quantizers.codebooks.codebook import REVIVE_EVERY
from tessera.tokenize.quantizers.registry import make_quantizer

DIM = 12


@functools.cache
def file_of_vectors():
    """Of 16 code vectors [16, 5]."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "vectors.safetensors"
    write_safetensors(path, {"v": torch.randn(16, 5, generator=torch.Generator().manual_seed(9))}, {})
    return folder, {"path": str(path), "tensor": "v"}  # the folder lives as long as the cache


BOOK = {"kind": "vq", "size": 8, "decay": 0.9}
MOVED = {**BOOK, "update": "gradient"}
ENTROPY = {"sample": 0.1, "batch": 0.1, "temperature": 0.5}


def leaves():
    """Name -> settings for a number of channels."""
    file = file_of_vectors()[1]
    projected = {"width": 5, "file": file}
    halves = {"kind": "shared_index", "size": 8}
    return {
        "vq": lambda dim: BOOK,
        "vq-projected-normalised": lambda dim: {**BOOK, "code_dim": 3, "normalise": True},
        "vq-gradient": lambda dim: {**MOVED, "entropy": ENTROPY, "moments": 0.1},
        "vq-index": lambda dim: {**BOOK, "update": "index"},
        "vq-alternating": lambda dim: {**BOOK, "update": "alternating"},
        "vq-blend": lambda dim: {**BOOK, "revive": "blend"},
        "vq-linear": lambda dim: {**MOVED, "codebook": {"kind": "linear"}},
        "vq-linear-index": lambda dim: {**BOOK, "update": "index", "codebook": {"kind": "linear"}},
        "vq-bridge": lambda dim: {**MOVED, "codebook": {"kind": "bridge", "patch": 4, "width": 16, "layers": 1}},
        "vq-affine": lambda dim: {**MOVED, "codebook": {"kind": "affine"}},
        "vq-file": lambda dim: {**MOVED, "size": 16, "codebook": {"kind": "file", **projected}},
        "vq-clusters": lambda dim: {**MOVED, "code_dim": 5, "codebook": {"kind": "clusters", "file": file}},
        "fsq": lambda dim: {"kind": "fsq", "levels": [4, 3]},
        "lfq": lambda dim: {"kind": "lfq", "bits": 4, "entropy": ENTROPY},
        "bsq": lambda dim: {"kind": "bsq", "bits": 4, "entropy": {**ENTROPY, "group": 2}},
        "bernoulli": lambda dim: {"kind": "bernoulli", "bits": 4},
        "scalar": lambda dim: {"kind": "scalar", "size": 3},
        "scalar-fitted": lambda dim: {"kind": "scalar", "size": 3, "values": "quantile"},
        "lattice": lambda dim: {"kind": "lattice", "size": 3},
        "kmeans-fitted": lambda dim: {"kind": "kmeans", "size": 8},
        "structural-fitted": lambda dim: {"kind": "structural", "size": 20, "nodes": 40, "neighbours": 3},
        "shared-index": lambda dim: {
            **halves,
            "parts": {"a": {"channels": dim // 2}, "b": {"channels": dim - dim // 2}},
        },
    }


COMBINATORS = {
    "residual": lambda leaf: {"kind": "residual", "levels": 2, "quantizer": leaf(DIM)},
    "residual-shared": lambda leaf: {"kind": "residual", "levels": 2, "shared": True, "quantizer": leaf(DIM)},
    "residual-dropout": lambda leaf: {"kind": "residual", "levels": 3, "level_dropout": 0.6, "quantizer": leaf(DIM)},
    "group": lambda leaf: {"kind": "group", "groups": 2, "disentangle": 0.1, "quantizer": leaf(DIM // 2)},
    "group-shared": lambda leaf: {"kind": "group", "groups": 2, "shared": True, "quantizer": leaf(DIM // 2)},
    "chain": lambda leaf: {"kind": "chain", "stages": [BOOK, leaf(DIM)]},
    "branches": lambda leaf: {
        "kind": "branches",
        "branches": {
            "a": {"source": [0, 6], "stride": 2, "quantizer": leaf(6)},
            "b": {"source": [6, 12], "quantizer": leaf(6)},
        },
    },
    "project": lambda leaf: {"kind": "project", "dim": 6, "quantizer": leaf(6)},
    "stride": lambda leaf: {"kind": "stride", "every": 3, "quantizer": leaf(DIM)},
    "regions": lambda leaf: {"kind": "regions", "columns": 2, "quantizer": leaf(DIM)},
    "rotation": lambda leaf: {"kind": "rotation", "quantizer": leaf(DIM)},
    "skip": lambda leaf: {"kind": "skip", "share": 0.4, "quantizer": leaf(DIM)},
    "tail": lambda leaf: {"kind": "tail", "shortest": 2, "quantizer": leaf(DIM)},
    "gaussian": lambda leaf: {"kind": "gaussian", "quantizer": leaf(DIM)},
    "two-sided": lambda leaf: {"kind": "two_sided", "search": leaf(DIM), "lookup": leaf(DIM)},
    "halting": lambda leaf: {"kind": "halting", "wanted_error": 0.1, "shortest": 2, "quantizer": leaf(DIM)},
}
LEAVES = list(leaves())
each_leaf = pytest.mark.parametrize("leaf", LEAVES)


def fresh(leaf, combinator):
    torch.manual_seed(0)
    quantizer = make_quantizer(trees.tree(**COMBINATORS[combinator](leaves()[leaf])), DIM)
    if "fitted" in leaf:
        quantizer.fit(torch.randn(6, 9, DIM))
    return quantizer


@functools.cache
def _trained(leaf, combinator):
    quantizer = fresh(leaf, combinator)
    for _ in range(5):
        quantizer(torch.randn(6, 9, DIM))
        quantizer.update()
    return quantizer


def trained(leaf):
    """Every combinator of a leaf, after a few updates."""
    for combinator in COMBINATORS:
        yield combinator, copy.deepcopy(_trained(leaf, combinator))


def test_every_kind_is_in_the_product():
    whole = {settings(DIM)["kind"] for settings in leaves().values()}
    whole |= {combinator(leaves()["vq"])["kind"] for combinator in COMBINATORS.values()}
    assert whole == set(registry.LEAVES | registry.COMBINATORS) - {"scales", "identity"}


@pytest.mark.sample(2)
@each_leaf
@pytest.mark.parametrize("half", [False, True])
def test_decoding_codes_gives_the_values_of_evaluation_in_range_and_in_any_batch(leaf, half):
    for combinator, quantizer in trained(leaf):
        quantizer.eval()
        x = torch.randn(5, 9, DIM)
        x = x.bfloat16() if half else x
        with trees.autocast(half):
            result, codes = quantizer(x), quantizer.encode(x)
            assert torch.equal(result.codes, codes), combinator
            assert torch.equal(result.values, quantizer.decode(codes)), combinator
            assert torch.equal(codes[2:3], quantizer.encode(x[2:3])), combinator
        assert torch.equal(codes, quantizer.encode(x.double())), combinator  # no precision of the caller's changes one
        sizes = torch.tensor(quantizer.cardinalities)
        assert bool(((codes >= 0) & (codes < sizes)).all()), combinator
        if quantizer.span == 1:
            assert torch.equal(quantizer.unpack(quantizer.pack(codes)), codes), combinator


@pytest.mark.sample(2)
@each_leaf
@pytest.mark.parametrize("half", [False, True])
def test_the_gradient_is_one_and_training_values_are_those_of_the_codes(leaf, half):
    for combinator, quantizer in trained(leaf):
        x, weight = torch.randn(5, 9, DIM, requires_grad=True), torch.randn(5, 9, DIM)
        with trees.autocast(half):
            result = quantizer(x)
        values = quantizer.decode(result.codes)
        if combinator == "skip":
            values = torch.where((result.codes < 0).all(dim=-1, keepdim=True), x, values)
        assert torch.equal(result.values, values), combinator
        (result.values * weight).sum().backward()
        wanted = torch.where(trees.follows(quantizer, result.codes), weight, 0.0)
        assert combinator == "rotation" or torch.equal(x.grad, wanted), combinator


@pytest.mark.sample(1)
@each_leaf
def test_padding_changes_nothing(leaf):
    for combinator, first in trained(leaf):
        second = copy.deepcopy(first)
        for step in range(REVIVE_EVERY + 1):
            x, mask = torch.randn(4, 9, DIM), torch.rand(4, 9) < 0.7
            found = []
            for quantizer, latents in ((first, x), (second, torch.where(mask[..., None], x, float("nan")))):
                torch.manual_seed(step)
                result = quantizer(latents, mask)
                quantizer.update()
                found.append(result)
            assert torch.equal(found[0].codes, found[1].codes), combinator
            assert torch.equal(found[0].values, found[1].values), combinator
            assert all(torch.equal(loss, found[1].losses[name]) for name, loss in found[0].losses.items()), combinator
            assert bool((found[0].codes[~mask] == -1).all()), combinator
        assert trees.same_state(trees.state_of(first), trees.state_of(second)), combinator


@pytest.mark.sample(1)
@each_leaf
def test_frozen_and_saved_stay_the_same(leaf):
    for combinator, quantizer in trained(leaf):
        other = make_quantizer(trees.tree(**COMBINATORS[combinator](leaves()[leaf])), DIM)
        other.load_state_dict(quantizer.state_dict())
        for one in (quantizer, other):
            one.freeze()
            one.train()
        before, x = trees.state_of(quantizer), torch.randn(3, 9, DIM)
        for _ in range(REVIVE_EVERY + 1):
            assert torch.equal(quantizer(x).codes, other(x).codes), combinator
            quantizer.update()
        assert trees.same_state(before, trees.state_of(quantizer)), combinator


def run_shared(leaf, combinator, part):
    """State after a few updates: of one process with all samples (None), or the first or second of two."""
    quantizer = fresh(leaf, combinator)
    generator = torch.Generator().manual_seed(5)
    for step in range(REVIVE_EVERY + 2):
        x, mask = torch.randn(7, 6, DIM, generator=generator), torch.rand(7, 6, generator=generator) < 0.8
        first = 1 + step % 4
        rows = {None: slice(None), 0: slice(first), 1: slice(first, None)}[part]
        trees.draw_alike(quantizer, rows)
        quantizer(x[rows], mask[rows])
        quantizer.update()
    return quantizer.state_dict()


def run_as_process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    states = {(leaf, how): run_shared(leaf, how, rank) for leaf in LEAVES for how in COMBINATORS}
    torch.save(states, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve())]
    running = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment, cwd=tmp_path) for rank in (0, 1)]
    alone = {(leaf, how): run_shared(leaf, how, None) for leaf in LEAVES for how in COMBINATORS}
    assert [process.wait(timeout=240) for process in running] == [0, 0]
    zero, one = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, state in alone.items():
        assert trees.same_state(zero[name], one[name]), name
        for key, value in state.items():
            torch.testing.assert_close(zero[name][key], value, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_as_process(int(sys.argv[1]), sys.argv[2])
