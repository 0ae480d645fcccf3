"""What codebooks are made of and how their codes move, beside slow, obvious versions."""

import math

import pytest
import torch
from quantizer_trees import make
from torch.nn import functional as F

from tessera.configs.files import write_safetensors
from tessera.configs.schema import ConfigError
from tessera.tokenize.quantizers import vq as vq_file
from tessera.tokenize.quantizers.regularization import moment_distance
from tessera.tokenize.quantizers.vq import soft_choice

V8 = {"kind": "vq", "size": 8, "kmeans_init": False}


def test_index_backpropagation_reaches_every_code(monkeypatch):
    monkeypatch.setattr(vq_file, "PROBABILITIES", 20)
    x, entries = torch.randn(7, 3, requires_grad=True), torch.randn(9, 3, requires_grad=True)
    weight = torch.randn(7, 3)
    share = torch.softmax(-torch.cdist(x, entries).square() / 0.8, dim=-1)
    slow = torch.autograd.grad(((share @ entries.detach()) * weight).sum(), (x, entries))
    fast = torch.autograd.grad((soft_choice(x, entries, entries.detach(), 0.8) * weight).sum(), (x, entries))
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b)
    quantizer = make(3, **V8, update="index")
    quantizer(torch.randn(2, 3)).values.square().sum().backward()
    assert (quantizer.codebook.weight.grad.abs().sum(dim=-1) > 0).all()
    plain = make(3, **V8, update="gradient")
    plain(torch.randn(2, 3)).values.square().sum().backward()
    assert (plain.codebook.weight.grad.abs().sum(dim=-1) > 0).sum() <= 2


def test_a_linear_codebook_moves_as_a_whole():
    quantizer = make(3, kind="vq", size=8, update="gradient", codebook={"kind": "linear"})
    before = quantizer.vectors().detach().clone()
    assert {name for name, _ in quantizer.named_parameters()} == {
        "codebook.form.linear.weight",
        "codebook.form.linear.bias",
    }
    quantizer(torch.randn(1, 3)).losses["codebook"].sum().backward()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter -= 0.1 * parameter.grad
    assert ((quantizer.vectors() - before).norm(dim=-1) > 0).all()
    x = torch.randn(5, 3)  # trap 8: decode that forgets the linear layer
    assert torch.equal(quantizer.eval()(x).values, quantizer.decode(quantizer.encode(x)))


def test_alternating_steps():
    quantizer = make(2, **V8, update="alternating", inner_steps=3, inner_rate=0.3, revive_below=0)
    entries, x = quantizer.vectors()[0].clone(), torch.randn(40, 2)
    codes = quantizer(x).codes[:, 0]
    quantizer.update()
    for code in range(8):
        expected = entries[code]
        for _ in range(3):
            if (codes == code).any():
                expected = expected + 0.3 * (x[codes == code].mean(dim=0) - expected)
        torch.testing.assert_close(quantizer.vectors()[0, code], expected)


def test_search_by_angle_may_keep_lengths():
    quantizer = make(3, **V8, update="gradient", normalise=True, keep_length=True).eval()
    x = torch.randn(20, 3)
    best = (F.normalize(x, dim=-1) @ F.normalize(quantizer.codebook.weight, dim=-1).T).argmax(dim=-1)
    assert torch.equal(quantizer.encode(x)[:, 0], best)
    assert torch.equal(quantizer(x).values, quantizer.codebook.weight[best])


def test_rotation_is_the_rotation():
    quantizer = make(4, kind="rotation", quantizer=V8)
    x = torch.randn(6, 4, requires_grad=True)
    values = quantizer(x).values
    weight = torch.randn(6, 4)
    (values * weight).sum().backward()
    for row, value, factor, found in zip(x.detach(), values.detach(), weight, x.grad, strict=True):
        e, q = F.normalize(row, dim=0), F.normalize(value, dim=0)
        r = F.normalize(e + q, dim=0)
        matrix = torch.eye(4) - 2 * torch.outer(r, r) + 2 * torch.outer(q, e)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(4), atol=1e-5, rtol=0)
        scale = value.norm() / row.norm()
        torch.testing.assert_close(scale * matrix @ row, value)
        torch.testing.assert_close(found, scale * matrix.T @ factor)


def test_moments():
    x, entries, mask = torch.randn(60, 3) + 2, torch.randn(9, 3), torch.rand(60) < 0.5
    kept = x[mask]
    expected = (kept.mean(0) - entries.mean(0)).square() + (
        kept.std(0, correction=0) - entries.std(0, correction=0)
    ).square()
    torch.testing.assert_close(moment_distance(x, entries, mask), expected.mean())


@pytest.fixture
def vectors_file(tmp_path):
    path = tmp_path / "centres.safetensors"
    write_safetensors(path, {"centres": torch.randn(8, 5), "bad": torch.full((8, 3), math.nan)}, {})
    return str(path)


def test_codebooks_from_a_file(vectors_file):
    file = {"path": vectors_file, "tensor": "centres"}
    for layers in (1, 2):
        form = {"kind": "file", "file": file, "width": 5, "layers": layers}
        quantizer = make(3, kind="vq", size=8, update="gradient", codebook=form)
        assert quantizer.codebook.form.basis.abs().sum() > 0
        again = make(3, False, kind="vq", size=8, update="gradient", codebook=form)
        assert again.codebook.form.basis.abs().sum() == 0
        again.load_state_dict(quantizer.state_dict())
        assert torch.equal(again.eval().vectors(), quantizer.eval().vectors())
    clusters = make(5, kind="vq", size=4, update="gradient", codebook={"kind": "clusters", "file": file})
    assert len(clusters.vectors()[0].unique(dim=0)) == 4
    nested = {"kind": "residual", "levels": 2, "quantizer": {"kind": "kmeans", "size": 8, "file": file}}
    assert [bool(make(5, read, **nested).vectors().any()) for read in (True, False)] == [True, False]
    assert len(make(5, kind="kmeans", size=8, file=file).encode(torch.randn(99, 5)).unique()) > 4


@pytest.mark.parametrize(
    ("size", "width", "path", "tensor", "message"),
    [
        (8, 5, "nowhere.safetensors", "centres", r"quantizer.codebook.file.path: nowhere.safetensors: no such file"),
        (8, 5, None, "codes", r"quantizer.codebook.file.tensor: .* has no tensor 'codes'; it has: bad, centres"),
        (9, 5, None, "centres", r"'centres' of .* is \[8, 5\], expected \[9, 5\]"),
        (8, 4, None, "centres", r"'centres' of .* is \[8, 5\], expected \[8, 4\]"),
        (8, 3, None, "bad", r"holds NaN"),
    ],
)
def test_codebooks_of_the_wrong_file(vectors_file, size, width, path, tensor, message):
    file = {"path": path or vectors_file, "tensor": tensor}
    with pytest.raises(ConfigError, match=message):
        make(3, kind="vq", size=size, update="gradient", codebook={"kind": "file", "file": file, "width": width})
