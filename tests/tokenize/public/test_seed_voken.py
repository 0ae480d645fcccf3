"""IBQ and Open-MAGVIT2 of SEED-Voken: codes and pixels are those of the published formulas."""

import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F
from vqgan_reference import Reference, fill, grid, janus_state

import tessera
from tessera.tokenize.public.building import tokenizer_shapes
from tessera.tokenize.public.images.ibq import ibq_config, ibq_tensor_map
from tessera.tokenize.public.images.open_magvit2 import open_magvit2_config, open_magvit2_tensor_map
from tessera.tokenize.public.images.taming import check_params, taming_config
from tessera.tokenize.public.registry import read_public_codec, recognize_codec, write_public_codec
from tessera.tokenize.public.tensor_map import CannotWrite

transformers = pytest.importorskip("transformers")
PUBLISHED = json.loads((Path(__file__).parent / "published" / "seed-voken.json").read_text())


def with_averages(tensors, seed):
    """The tensors as averages, beside other ones of the weights themselves."""
    other = fill({name: tensor.clone() for name, tensor in tensors.items()}, seed + 100)
    averages = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in tensors.items()}
    return other | averages | {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7)}


def save(tensors, path):
    losses = {"loss.discriminator.main.0.weight": torch.zeros(2)}
    if "model_ema.decay" in tensors:
        losses["model_ema.lossdiscriminatormain0weight"] = torch.zeros(2)
    torch.save({"epoch": 3, "state_dict": tensors | losses}, path)


def make_ibq(seed):
    config = transformers.JanusVQVAEConfig(
        embed_dim=8, num_embeddings=40, latent_channels=16, base_channels=32, channel_multiplier=[1, 2],
        num_res_blocks=1 + seed % 2,
    )  # fmt: skip
    return fill(janus_state(config, "taming")[1], seed), config


def write_yaml(path, config, **other):
    ddconfig = {
        "double_z": False, "z_channels": config.latent_channels, "resolution": 8, "in_channels": 3, "out_ch": 3,
        "ch": 32, "ch_mult": [1, 2], "num_res_blocks": config.num_res_blocks, "attn_resolutions": [4], "dropout": 0.0,
    }  # fmt: skip
    params = {"n_embed": config.num_embeddings, "embed_dim": config.embed_dim, "ddconfig": ddconfig, "use_ema": True}
    described = {"class_path": "src.IBQ.models.ibqgan.IBQ", "init_args": params | other}
    path.write_text(yaml.safe_dump({"trainer": {"max_epochs": 3}, "model": described}))


@pytest.mark.sample(2)
@torch.no_grad()
@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_ibq(seed, averaged, tmp_path):
    tensors, config = make_ibq(seed)
    save(with_averages(tensors, seed) if averaged else tensors, tmp_path / "imagenet256_16384.ckpt")
    write_yaml(tmp_path / "imagenet_ibqgan_16384.yaml", config, use_ema=averaged)
    assert recognize_codec(tmp_path) == "ibq"
    ours = read_public_codec(tmp_path)
    images = torch.rand(3, 3, 8, 8) * 2 - 1
    slow, table = Reference(tensors), tensors["quantize.embedding.weight"]
    latents = slow.encode(images)
    codes = torch.einsum("bdhw,vd->bvhw", latents, table).flatten(2).argmax(dim=1)
    assert torch.equal(ours.encode(images).codes[:, 0], codes)
    pixels = slow.decode(grid(codes, table, 4)).clamp(-1, 1)
    torch.testing.assert_close(ours.decode(codes[:, None]), pixels, rtol=1e-5, atol=1e-5)
    write_public_codec("ibq", tmp_path / "out", ours)
    written = torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in tensors.items():
        assert torch.equal(written[name], tensor) and torch.equal(written[f"model_ema.{name.replace('.', '')}"], tensor)
    assert tessera.load_tokenizer(tmp_path / "out").spec == ours.spec
    with pytest.raises(CannotWrite, match="quantizer.search: found 'product', it needs None"):
        write_public_codec("taming", tmp_path / "no", ours)


def test_ibq_needs_a_yaml_that_fits(tmp_path):
    tensors, config = make_ibq(0)
    save(with_averages(tensors, 0), tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="may be of IBQ, whose search differs; put the yaml"):
        read_public_codec(tmp_path)
    for change, message in (
        ({"n_embed": 41}, "n_embed is 41, but the tensors have 40"),
        ({"use_ema": 1}, "use_ema must"),
    ):
        write_yaml(tmp_path / "model.yaml", config, **change)
        with pytest.raises(ValueError, match=message):
            read_public_codec(tmp_path)


def magvit2_shapes(channels, multipliers, blocks, bits):
    """Names and shapes of Open-MAGVIT2's tensors."""
    shapes = {"encoder.conv_in.weight": (channels, 3, 3, 3)}

    def block(name, inputs, outputs):
        for number, size in ((1, inputs), (2, outputs)):
            shapes[f"{name}.norm{number}.weight"] = shapes[f"{name}.norm{number}.bias"] = (size,)
            shapes[f"{name}.conv{number}.weight"] = (outputs, size, 3, 3)
        if inputs != outputs:
            shapes[f"{name}.nin_shortcut.weight"] = (outputs, inputs, 1, 1)

    def layer(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    widths = [channels * multiplier for multiplier in multipliers]
    for level, width in enumerate(widths):
        for number in range(blocks):
            block(f"encoder.down.{level}.block.{number}", width if number else widths[max(0, level - 1)], width)
            above = widths[min(level + 1, len(widths) - 1)]
            block(f"decoder.up.{level}.block.{number}", width if number else above, width)
        if level < len(widths) - 1:
            layer(f"encoder.down.{level}.downsample", width, width, 3, 3)
        if level:
            layer(f"decoder.up.{level}.upsample.conv1", 4 * width, width, 3, 3)
        for part in ("gamma", "beta"):
            layer(f"decoder.adaptive.{level}.{part}", widths[min(level + 1, len(widths) - 1)], bits)
    for number in range(blocks):
        block(f"encoder.mid_block.{number}", widths[-1], widths[-1])
        block(f"decoder.mid_block.{number}", widths[-1], widths[-1])
    layer("encoder.norm_out", widths[-1])
    layer("encoder.conv_out", bits, widths[-1], 1, 1)
    layer("decoder.conv_in", widths[-1], bits, 3, 3)
    layer("decoder.norm_out", widths[0])
    layer("decoder.conv_out", 3, widths[0], 3, 3)
    return shapes


class SlowMagvit2(Reference):
    """Open-MAGVIT2 by its formulas."""

    def conv(self, x, name, stride=1):
        weight = self.tensors[f"{name}.weight"]
        return F.conv2d(x, weight, self.tensors.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def blocks(self, x, base):
        number = 0
        while self.has(f"{base}.{number}"):
            x, number = self.block(x, f"{base}.{number}"), number + 1
        return x

    def encode(self, images):
        x = self.conv(images, "encoder.conv_in")
        for level in range(self.levels("encoder.down")):
            x = self.blocks(x, f"encoder.down.{level}.block")
            if self.has(f"encoder.down.{level}.downsample"):
                x = self.conv(x, f"encoder.down.{level}.downsample", stride=2)
        x = self.norm(self.blocks(x, "encoder.mid_block"), "encoder.norm_out")
        return self.conv(x * x.sigmoid(), "encoder.conv_out")

    def linear(self, x, name):
        return x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def decode(self, latents):
        x = self.blocks(self.conv(latents, "decoder.conv_in"), "decoder.mid_block")
        places = latents.flatten(2)
        mean = places.mean(dim=-1)
        deviation = ((places - mean[..., None]).square().sum(dim=-1) / (places.shape[-1] - 1) + 1e-6).sqrt()
        for level in reversed(range(self.levels("decoder.up"))):
            name = f"decoder.adaptive.{level}"
            scaled = F.group_norm(x, 32, eps=1e-6) * self.linear(deviation, f"{name}.gamma")[..., None, None]
            x = self.blocks(scaled + self.linear(mean, f"{name}.beta")[..., None, None], f"decoder.up.{level}.block")
            if level:
                wide = self.conv(x, f"decoder.up.{level}.upsample.conv1")
                C = wide.shape[1] // 4
                x = wide.new_zeros(len(wide), C, 2 * wide.shape[2], 2 * wide.shape[3])
                for row in range(2):
                    for column in range(2):
                        place = (2 * row + column) * C
                        x[:, :, row::2, column::2] = wide[:, place : place + C]
        x = self.norm(x, "decoder.norm_out")
        return self.conv(x * x.sigmoid(), "decoder.conv_out")


def make_magvit2(seed):
    rng = random.Random(seed)
    multipliers = rng.choice([[1, 2], [1, 1, 2], [2, 1]])
    shapes = magvit2_shapes(32, multipliers, rng.choice([1, 2]), rng.choice([5, 18]))
    return fill({name: torch.zeros(shape) for name, shape in shapes.items()}, seed), 4 * 2 ** (len(multipliers) - 1)


@torch.no_grad()
@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_open_magvit2(seed, averaged, tmp_path):
    tensors, side = make_magvit2(seed)
    save(with_averages(tensors, seed) if averaged else tensors, tmp_path / "imagenet_256_L.ckpt")
    assert recognize_codec(tmp_path) == "open-magvit2"
    ours = read_public_codec(tmp_path, image_size=side)
    slow = SlowMagvit2(tensors)
    images = torch.rand(3, 3, side, side) * 2 - 1
    bits = (slow.encode(images) > 0).flatten(2)
    codes = (bits.long() * 2 ** torch.arange(bits.shape[1])[:, None]).sum(dim=1)  # the first channel is the lowest bit
    assert torch.equal(ours.encode(images).codes[:, 0], codes)
    pixels = slow.decode((2.0 * bits - 1).unflatten(2, (4, 4))).clamp(-1, 1)
    torch.testing.assert_close(ours.decode(codes[:, None]), pixels, rtol=1e-5, atol=1e-5)
    write_public_codec("open-magvit2", tmp_path / "out", ours)
    written = torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)["state_dict"]
    assert written.keys() == tensors.keys() and all(torch.equal(written[name], tensors[name]) for name in tensors)
    assert tessera.load_tokenizer(tmp_path / "out").spec == ours.spec


def test_wrong_open_magvit2(tmp_path):
    tensors, side = make_magvit2(1)
    torch.save({"state_dict": {n: t for n, t in tensors.items() if n != "encoder.conv_in.weight"}}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="'encoder.conv_in.weight' is missing; it is a convolution of Open-MAGVIT2"):
        read_public_codec(tmp_path / "a.ckpt")
    torch.save({"state_dict": tensors}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="the deviation of one position is not defined"):
        read_public_codec(tmp_path / "a.ckpt", image_size=side // 4)
    ours = read_public_codec(tmp_path / "a.ckpt", image_size=side)
    ours.config = ours.config.model_copy(update={"width": 2 * side})
    with pytest.raises(CannotWrite, match=f"square images, found {side} x {2 * side}"):
        write_public_codec("open-magvit2", tmp_path / "out", ours)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tensors(name):
    entry = PUBLISHED[name]
    if entry["system"] == "open-magvit2":
        sizes = entry["ddconfig"]
        shapes = magvit2_shapes(sizes["ch"], sizes["ch_mult"], sizes["num_res_blocks"], sizes["z_channels"])
        config = open_magvit2_config(shapes, 256, Path(name))
        tensor_map = open_magvit2_tensor_map(config)
    else:
        with torch.device("meta"):
            _, tensors = janus_state(transformers.JanusVQVAEConfig(**entry["config"]), "taming")
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        config = ibq_config(taming_config(shapes, 256, Path(name), "ibq"))
        check_params(entry["params"], config, name)
        tensor_map = ibq_tensor_map(config, averaged=False)
    assert tensor_map.expected(tokenizer_shapes(config)) == shapes
    assert config.geometry.rows == entry["rows"]
