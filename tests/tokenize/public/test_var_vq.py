"""VAR's multi-scale tokenizer: codes of all scales and pixels are those of the published formulas."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from vqgan_reference import Reference, fill, nearest, var_tensors

import tessera
from tessera.tokenize.public.building import tokenizer_shapes
from tessera.tokenize.public.images.var_vq import PUBLISHED_SCALES, var_vq_config, var_vq_tensor_map
from tessera.tokenize.public.registry import read_public_codec, recognize_codec, write_public_codec
from tessera.tokenize.public.tensor_map import CannotWrite

pytest.importorskip("transformers")
PUBLISHED = json.loads((Path(__file__).parent / "published" / "var-vq.json").read_text())


def make(seed):
    """Tensors of a tiny tokenizer that halves once."""
    rng = random.Random(seed)
    tensors = var_tensors(
        rng.choice([4, 8]), rng.choice([16, 40]), base_channels=32, channel_multiplier=rng.choice([[1, 2], [1, 1]]),
        num_res_blocks=rng.choice([1, 2]),
    )  # fmt: skip
    fill(tensors, seed)
    tensors["quantize.ema_vocab_hit_SV"].zero_()
    return tensors


def slow_scales(tensors, latents, sides):
    """VAR's codes [B, T] of latents [B, D, h, w], and the sum of vectors that they decode to."""
    table, rest, total, codes = tensors["quantize.embedding.weight"], latents, torch.zeros_like(latents), []
    phis = sum(name.endswith(".bias") for name in tensors if "qresi_ls" in name)
    edge = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    ticks = np.linspace(edge, 1 - edge, phis)
    for number, side in enumerate(sides):
        last = number == len(sides) - 1
        codes.append(nearest(rest if last else F.interpolate(rest, size=(side, side), mode="area"), table))
        vectors = table[codes[-1]].transpose(1, 2).unflatten(2, (side, side))
        large = vectors if last else F.interpolate(vectors, size=latents.shape[2:], mode="bicubic")
        phi = f"quantize.quant_resi.qresi_ls.{np.argmin(np.abs(ticks - number / (len(sides) - 1)))}"
        large = 0.5 * large + 0.5 * F.conv2d(large, tensors[f"{phi}.weight"], tensors[f"{phi}.bias"], padding=1)
        total, rest = total + large, rest - large
    return torch.cat(codes, dim=1), total


@pytest.mark.sample(2)
@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_codes_and_pixels_are_equal(seed, tmp_path):
    tensors = make(seed)
    torch.save(tensors, tmp_path / "vae_ch160v4096z32.pth")
    assert recognize_codec(tmp_path) == "var-vq"
    ours = read_public_codec(tmp_path, image_size=32)
    assert ours.spec.geometry.scales == tuple((side, side) for side in PUBLISHED_SCALES[16])
    assert ours.net.quantizer.phi_numbers == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    slow = Reference(tensors, "var")
    codes, total = slow_scales(tensors, slow.encode(images), PUBLISHED_SCALES[16])
    assert torch.equal(ours.encode(images).codes[:, 0], codes) and codes.unique().numel() > 8
    # before they are clamped, pixels reach several times 1
    torch.testing.assert_close(ours.decode(codes[:, None]), slow.decode(total).clamp(-1, 1), rtol=1e-5, atol=2e-5)


def test_written_back_nothing_has_changed(tmp_path):
    tensors = make(1)
    torch.save(tensors, tmp_path / "vae.pth")
    ours = read_public_codec(tmp_path / "vae.pth", image_size=32)
    write_public_codec("var-vq", tmp_path / "out", ours)
    written = torch.load(tmp_path / "out" / "vae.pth", weights_only=True)
    assert written.keys() == tensors.keys() and all(torch.equal(written[name], tensors[name]) for name in tensors)
    assert tessera.load_tokenizer(tmp_path / "out").spec == ours.spec
    ours.save(tmp_path / "ours")
    assert tessera.load_tokenizer(tmp_path / "ours").spec == ours.spec
    del tensors["quantize.ema_vocab_hit_SV"]
    torch.save(tensors, tmp_path / "vae.pth")
    assert read_public_codec(tmp_path / "vae.pth", image_size=32).spec == ours.spec


@pytest.mark.slow
def test_sizes_of_images_and_scales(tmp_path):
    torch.save(make(2), tmp_path / "vae.pth")
    assert tessera.load_tokenizer(tmp_path, image_size=64).spec.geometry.scales[-2] == (24, 24)
    with pytest.raises(ValueError, match="no scales are published for images of 256 pixels; .* size of 32 or 64, or"):
        tessera.load_tokenizer(tmp_path)
    for sides, message in (
        ([1, 2, 3, 4], None),
        ([1, 2, 3], "v_patch_nums must increase to 4 at 8 pixels, found"),
        ([2, 1, 4], "v_patch_nums must increase to 4"),
        (["1", 4], "v_patch_nums must be a list of whole numbers"),
        (4, "v_patch_nums must be a list of whole numbers, found '4'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"image_size": 8, "v_patch_nums": sides}))
        if message is None:
            assert tessera.load_tokenizer(tmp_path).spec.geometry.num_frames == 30
            continue
        with pytest.raises(ValueError, match=message):
            tessera.load_tokenizer(tmp_path)


def test_other_scales_are_not_written(tmp_path):
    torch.save(make(3), tmp_path / "vae.pth")
    ours = read_public_codec(tmp_path, image_size=32)
    quantizer = ours.config.quantizer
    for change, message in (
        ({"phi": "even"}, "quantizer.phi: found None, it needs 'var'"),
        ({"convolutions": 1}, "two or more phi, found quantizer.convolutions 1"),
        ({"shared": False}, "quantizer.shared: found False, it needs True"),
        ({"sizes": ((1, 1), (1, 2), (16, 16))}, "quantizer.sizes: found"),
    ):
        ours.config = ours.config.model_copy(update={"quantizer": quantizer.model_copy(update=change)})
        with pytest.raises(CannotWrite, match=message):
            write_public_codec("var-vq", tmp_path / "out", ours)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tensors(name):
    entry = PUBLISHED[name]
    with torch.device("meta"):
        tensors = var_tensors(entry["z_channels"], entry["vocab_size"], **entry["config"])
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    for side, rows in ((256, 16), (512, 32)):
        config = var_vq_config(shapes, side, None, Path(name))
        assert var_vq_tensor_map(config, (10, 4096)).expected(tokenizer_shapes(config)) == shapes
        assert config.geometry.rows == rows
        assert [one for one, _ in config.quantizer.sizes] == entry["v_patch_nums"][str(side)]
