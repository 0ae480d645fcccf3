"""LlamaGen's image tokenizers: networks as JanusVQVAE has them, codes by a slow search on the unit sphere."""

import argparse
import json
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from vqgan_reference import Reference, fill, grid, janus_state, nearest

import tessera
from tessera.cli.app import run
from tessera.configs.schema import check_config, read_yaml
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.public.building import tokenizer_shapes
from tessera.tokenize.public.images.llamagen_vq import llamagen_vq_config, llamagen_vq_tensor_map
from tessera.tokenize.public.registry import read_public_codec, recognize_codec, write_public_codec
from tessera.tokenize.public.tensor_map import CannotWrite
from tessera.tokenize.tokenizer import make_tokenizer

transformers = pytest.importorskip("transformers")
PUBLISHED = json.loads((Path(__file__).parent / "published" / "llamagen-vq.json").read_text())


def make(seed, rows=2):
    """A JanusVQVAE of a random shape, and LlamaGen's tensors of it."""
    rng = random.Random(seed)
    multipliers = rng.choice([[1, 2], [1, 1, 2], [1, 2, 2]])
    config = transformers.JanusVQVAEConfig(
        embed_dim=rng.choice([4, 8]), num_embeddings=rng.choice([16, 50]), latent_channels=rng.choice([6, 32]),
        base_channels=32, channel_multiplier=multipliers, num_res_blocks=rng.choice([1, 2]), num_patches=rows,
    )  # fmt: skip
    model, tensors = janus_state(config, "llamagen")
    fill(tensors, seed)
    with torch.no_grad():
        for own, filled in zip(model.state_dict().values(), tensors.values(), strict=True):
            own.copy_(filled)
    tensors["quantize.codebook_used"] = torch.zeros(65536)
    return model.eval(), tensors, rows * 2 ** (len(multipliers) - 1)


def save(tensors, path):
    torch.save({"model": tensors, "optimizer": {"state": {}}, "args": argparse.Namespace(vq_model="VQ-16")}, path)


@pytest.mark.sample(6)
@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rows", [2, 3])
def test_latents_codes_and_pixels_are_equal(seed, rows, tmp_path):
    theirs, tensors, side = make(seed, rows)
    save(tensors, tmp_path / "vq_ds16_c2i.pt")
    assert recognize_codec(tmp_path) == "llamagen-vq"
    ours = read_public_codec(tmp_path, image_size=side)
    images = torch.rand(3, 3, side, side) * 2 - 1
    latents = theirs.quant_conv(theirs.encoder(images))
    found = ours.net.encode_images(images).transpose(1, 2).unflatten(2, (rows, rows))
    torch.testing.assert_close(found, latents, rtol=1e-5, atol=1e-5 * float(latents.abs().max()))
    codes = nearest(latents, tensors["quantize.embedding.weight"], normalised=True)
    assert torch.equal(ours.encode(images).codes[:, 0], codes)
    pixels = theirs.decode(codes).clamp(-1, 1).reshape(3, 3, side, side)
    torch.testing.assert_close(ours.decode(codes[:, None]), pixels, rtol=1e-5, atol=1e-5)
    table = torch.nn.functional.normalize(tensors["quantize.embedding.weight"], dim=-1)
    slow = Reference(tensors, "llamagen").decode(grid(codes, table, rows)).clamp(-1, 1)
    torch.testing.assert_close(pixels, slow, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("buffer", [65536, 16384, None])
def test_written_back_nothing_has_changed(buffer, tmp_path):
    _, tensors, side = make(1)
    if buffer is None:
        del tensors["quantize.codebook_used"]
    else:
        tensors["quantize.codebook_used"] = torch.zeros(buffer)
    save(tensors, tmp_path / "vq.pt")
    ours = read_public_codec(tmp_path / "vq.pt", image_size=side)
    write_public_codec("llamagen-vq", tmp_path / "out", ours)
    written = torch.load(tmp_path / "out" / "vq_ds2.pt", weights_only=True)["model"]
    wanted = tensors | {"quantize.codebook_used": torch.zeros(65536)}
    assert written.keys() == wanted.keys() and all(torch.equal(written[name], wanted[name]) for name in wanted)
    assert tessera.load_tokenizer(tmp_path / "out").spec == ours.spec


def test_the_same_names_in_safetensors(tmp_path):
    _, tensors, side = make(2)
    save_file(tensors, tmp_path / "model.safetensors")
    save(tensors, tmp_path / "vq.pt")
    found = [tessera.load_tokenizer(tmp_path / name, image_size=side) for name in ("model.safetensors", "vq.pt", ".")]
    assert found[0].spec == found[1].spec == found[2].spec


def test_a_tokenizer_trained_here_is_written_if_the_layout_has_it(tmp_path):
    data = {"kind": "picture", "name": "mine", "height": 8, "width": 8, "latent_dim": 4}
    part = {"kind": "vqgan", "channels": 32, "multipliers": [1, 2], "blocks": 1, "inner_dim": 8}
    quantizer = {"kind": "vq", "size": 8, "normalise": True}
    for change, refused in (
        ({}, None),
        ({"width": 16}, "square images, found 8 x 16"),
        ({"quantizer": quantizer | {"normalise": False}}, "quantizer.normalise: found False, it needs True"),
        ({"quantizer": quantizer | {"code_dim": 2}}, "quantizer.code_dim: found 2, it needs None"),
        ({"quantizer": {"kind": "fsq", "levels": [3, 3]}}, "quantizer.kind: found 'fsq', it needs 'vq'"),
        ({"encoder": part | {"norm_groups": 16}}, "encoder.norm_groups: found 16, it needs 32"),
        ({"encoder": part | {"latent_kernel": 3}}, "encoder.latent_kernel: found 3, it needs None"),
        ({"decoder": part | {"attention": []}}, r"decoder.attention: found \[\], it needs None"),
        ({"encoder": {"kind": "convolutional"}}, "encoder and decoder of kind vqgan"),
    ):
        described = data | {"encoder": part, "decoder": part, "quantizer": quantizer} | change
        ours = make_one(described)
        if refused is not None:
            with pytest.raises(CannotWrite, match=refused):
                write_public_codec("llamagen-vq", tmp_path / "no", ours)
            continue
        write_public_codec("llamagen-vq", tmp_path / "out", ours)
        images = torch.rand(2, 3, 8, 8) * 2 - 1
        again = tessera.load_tokenizer(tmp_path / "out")
        assert torch.equal(again.encode(images).codes, ours.encode(images).codes)
    assert not (tmp_path / "no").exists()


def make_one(described):
    torch.manual_seed(0)
    return make_tokenizer(check_config(described, ImageTokenizerConfig))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tensors(name):
    """Names and shapes that we expect are those of JanusVQVAE in the published sizes."""
    with torch.device("meta"):
        _, tensors = janus_state(transformers.JanusVQVAEConfig(**PUBLISHED[name]["config"]), "llamagen")
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()} | {"quantize.codebook_used": (65536,)}
    config = llamagen_vq_config(shapes, 256, Path(name))
    assert llamagen_vq_tensor_map(config).expected(tokenizer_shapes(config)) == shapes
    assert config.geometry.rows == PUBLISHED[name]["rows"]
    if PUBLISHED[name]["parameters"] is not None:
        assert sum(tensor.numel() for tensor in tensors.values()) == PUBLISHED[name]["parameters"]
    shipped = read_yaml(Path(tessera.__file__).parent / "configs" / "tokenize" / PUBLISHED[name]["shipped"])
    assert check_config(shipped["tokenizer"], ImageTokenizerConfig) == config


def test_the_size_of_the_images(tmp_path, capsys):
    _, tensors, _ = make(4)  # halves twice
    save(tensors, tmp_path / "vq.pt")
    assert tessera.load_tokenizer(tmp_path).spec.geometry.height == 256
    (tmp_path / "config.json").write_text('{"image_size": 16}')
    assert tessera.load_tokenizer(tmp_path).spec.geometry.height == 16
    assert tessera.load_tokenizer(tmp_path, image_size=32).spec.geometry.height == 32
    with pytest.raises(ValueError, match="an image of 7 x 7 cannot be halved"):
        tessera.load_tokenizer(tmp_path, image_size=7)
    with pytest.raises(ValueError, match="codebooks 2 was asked for, but llamagen-vq has no such choice"):
        tessera.load_tokenizer(tmp_path, codebooks=2)
    ours = tmp_path.parent / f"{tmp_path.name}-ours"
    assert run(["convert", str(tmp_path), str(ours), "--image-size", "8"]) == 0
    assert "llamagen-vq, 1 codebooks of" in capsys.readouterr().err
    assert tessera.load_tokenizer(ours).spec.geometry.height == 8
    assert run(["convert", str(ours), str(tmp_path / "back"), "--to", "llamagen-vq"]) == 0
    assert tessera.load_tokenizer(tmp_path / "back").spec == tessera.load_tokenizer(ours).spec
    assert run(["convert", str(ours), str(tmp_path / "x"), "--image-size", "8"]) == 2
    (tmp_path / "config.json").write_text('{"image_size": "256"}')
    with pytest.raises(ValueError, match="image_size must be a whole number, found '256'"):
        tessera.load_tokenizer(tmp_path)


def test_wrong_files_are_refused(tmp_path):
    _, tensors, side = make(5)
    name = "decoder.conv_blocks.0.res.0.conv1.bias"
    for change, message in (
        ({name: None}, f"1 tensors that the config asks for are missing, first '{name}'"),
        ({"more": torch.zeros(1)}, "1 tensors do not belong to the config, first 'more'"),
        ({name: torch.zeros(7)}, rf"tensor '{name}' is \[7\], the config asks for"),
        (
            {"quantize.embedding.weight": torch.zeros(2, 3, 4)},
            r"embedding.weight' has shape \[2, 3, 4\]; it is the code",
        ),
        ({"quant_conv.weight": None}, "tensor 'quant_conv.weight' is missing; it is a convolution"),
        ({"encoder.conv_in.weight": torch.zeros(5, 3, 3, 3)}, "is no VQGAN known here"),
    ):
        changed = {key: value for key, value in (tensors | change).items() if value is not None}
        save(changed, tmp_path / "vq.pt")
        with pytest.raises(ValueError, match=message):
            read_public_codec(tmp_path, image_size=side)
    whole = (tmp_path / "vq.pt").read_bytes()
    for content, message in (
        (whole[: len(whole) // 2], "vq.pt: not a usable file of tensors"),
        (pickle.dumps({"model": tensors, "ran": Payload(tmp_path / "ran")}), "vq.pt: "),
    ):
        (tmp_path / "vq.pt").write_bytes(content)
        for path in (tmp_path, tmp_path / "vq.pt"):
            with pytest.raises(ValueError, match=message):
                tessera.load_tokenizer(path)
    torch.save({"model": tensors, "ran": Payload(tmp_path / "ran")}, tmp_path / "vq.pt")
    with pytest.raises(ValueError, match="vq.pt: this pickle asks for .*mkdir, .* nothing of it was run"):
        tessera.load_tokenizer(tmp_path)
    torch.save({"some.weight": torch.zeros(2)}, tmp_path / "vq.pt")
    with pytest.raises(ValueError, match="no public codec that is known here; known are encodec, "):
        tessera.load_tokenizer(tmp_path / "vq.pt")
    assert not (tmp_path / "ran").exists()


class Payload:
    """Creates a folder when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)
