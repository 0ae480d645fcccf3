"""The map between the tensors of public checkpoints and ours: every term is read as its definition says, and what is
written is read back."""

import random

import pytest
import torch

from tessera.tokenize.public.tensor_map import (
    CannotWrite,
    Concat,
    Constant,
    Folded,
    Part,
    Permuted,
    Quotient,
    Scaled,
    Source,
    TensorMap,
    Transposed,
    Unused,
    View,
)


def random_term(rng, shape, names, depth=0):
    """A random term of this shape, and a function that computes it from the tensors in plain torch."""
    kinds = (
        ["source", "constant", "folded"] if depth > 2 else ["view", "concat", "permuted", "turned", "scaled", "source"]
    )
    kind = rng.choice(kinds)
    name = f"t{len(names)}"
    names.append(name)
    axis = rng.randrange(len(shape))
    if kind == "view":
        inner = (*shape, 1) if rng.random() < 0.5 else (torch.Size(shape).numel(),)
        term, slow = random_term(rng, inner, names, depth + 1)
        return View(term, inner), lambda t: slow(t).reshape(shape)
    if kind == "concat" and shape[axis] > 1:
        first = rng.randrange(1, shape[axis])
        sizes = (first, shape[axis] - first)
        made = [random_term(rng, (*shape[:axis], size, *shape[axis + 1 :]), names, depth + 1) for size in sizes]
        return Concat(tuple(term for term, _ in made), sizes, axis), lambda t: torch.cat([s(t) for _, s in made], axis)
    if kind == "permuted":
        index = torch.randperm(shape[axis])
        term, slow = random_term(rng, shape, names, depth + 1)
        return Permuted(term, index, axis), lambda t: torch.stack([slow(t).select(axis, int(i)) for i in index], axis)
    if kind == "turned" and len(shape) > 1:
        term, slow = random_term(rng, (*shape[:-2], shape[-1], shape[-2]), names, depth + 1)
        return Transposed(term), lambda t: slow(t).mT
    if kind == "scaled":
        term, slow = random_term(rng, shape, names, depth + 1)
        return Scaled(term, 0.25), lambda t: slow(t) / 4
    if kind == "constant":
        return Constant(2.5, required=False), lambda t: torch.full(shape, 2.5)
    if kind == "folded":
        others = [place for place in range(len(shape)) if place != axis]
        if not others:  # the norm of each number is its size
            return Folded(f"{name}g", f"{name}v", axis), lambda t: t[f"{name}g"] * t[f"{name}v"].sign()

        def slow_fold(t):
            return t[f"{name}g"] * t[f"{name}v"] / t[f"{name}v"].square().sum(dim=others, keepdim=True).sqrt()

        return Folded(f"{name}g", f"{name}v", axis), slow_fold
    return Source(name), lambda t: t[name]


@pytest.mark.parametrize("seed", range(60))
def test_terms_are_read_by_definition_and_written_back(seed):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    shape = tuple(rng.randrange(1, 5) for _ in range(rng.randrange(1, 4)))
    term, slow = random_term(rng, shape, [])
    tensor_map = TensorMap({"ours": term})
    theirs = {name: torch.randn(size) for name, size in tensor_map.expected({"ours": shape}).items()}
    found = tensor_map.read({"ours": shape}, lambda names: {name: theirs[name] for name in names})["ours"]
    assert found.shape == shape
    torch.testing.assert_close(found, slow(theirs))
    written = tensor_map.write({"ours": found})
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == tensor_map.expected({"ours": shape})
    again = tensor_map.read({"ours": shape}, lambda names: {name: written[name] for name in names})["ours"]
    if "Folded" in repr(term):
        torch.testing.assert_close(again, found)
    else:
        assert torch.equal(again, found)
        assert all(torch.equal(written[name], theirs[name]) for name in theirs)


def test_pieces_write_the_whole_tensor():
    whole = torch.randn(6, 2)
    tensor_map = TensorMap({"q": Part("qkv", (6, 2), 0), "kv": Part("qkv", (6, 2), 2)})
    shapes = {"q": (2, 2), "kv": (4, 2)}
    found = tensor_map.read(shapes, lambda _: {"qkv": whole})
    assert torch.equal(torch.cat([found["q"], found["kv"]]), whole)
    assert torch.equal(tensor_map.write(found)["qkv"], whole)


def test_tied_tensors_must_be_equal_to_be_written():
    tensor_map = TensorMap({"table": Source("tied"), "head": Source("tied")})
    table = torch.randn(3, 2)
    assert torch.equal(tensor_map.write({"table": table, "head": table.clone()})["tied"], table)
    with pytest.raises(CannotWrite, match="tensor 'head': tensor 'tied' is shared in this layout"):
        tensor_map.write({"table": table, "head": table + 1})


def test_a_constant_with_another_value_is_refused_by_name():
    tensor_map = TensorMap({"scale": Constant(1.0, "the scale")})
    assert tensor_map.write({"scale": torch.ones(3)}) == {}
    with pytest.raises(CannotWrite, match="tensor 'scale': the scale must be 1 in this layout"):
        tensor_map.write({"scale": torch.full((3,), 2.0)})


def test_moving_averages():
    tensor_map = TensorMap({"codes": Quotient("sum", "usage", 1e-5)})
    total, usage = torch.randn(4, 3), torch.tensor([2.0, 0.0, 1.0, 4.0])
    found = tensor_map.read({"codes": (4, 3)}, lambda _: {"sum": total, "usage": usage})["codes"]
    expected = torch.stack([total[i] / max(float(usage[i]), 1e-5) for i in range(4)])
    torch.testing.assert_close(found, expected)
    written = tensor_map.write({"codes": found})
    assert torch.equal(tensor_map.read({"codes": (4, 3)}, lambda _: written)["codes"], found)


def test_unused_tensors_are_written():
    unused = {"started": Unused((1,), 1.0), "copy": Unused((2,), "a"), "table": Unused((3,), required=False)}
    tensor_map = TensorMap({"ours": Source("a")}, unused, ignored=("other.",))
    assert tensor_map.expected({"ours": (2,)}) == {"a": (2,), "started": (1,), "copy": (2,)}
    written = tensor_map.write({"ours": torch.tensor([3.0, 4.0])})
    assert {name: tensor.tolist() for name, tensor in written.items()} == {"a": [3, 4], "copy": [3, 4], "started": [1]}
    assert tensor_map.is_known("table") and tensor_map.is_known("other.x") and not tensor_map.is_known("b")
