"""taming-transformers' VQGAN: codes as ChameleonVQVAE, which is its encoder, and pixels as JanusVQVAE's decoder."""

import json
import random
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from vqgan_reference import Reference, fill, grid, janus_state, nearest, theirs

import tessera
from tessera.tokenize.public.building import tokenizer_shapes
from tessera.tokenize.public.images.taming import check_params, taming_config, taming_tensor_map
from tessera.tokenize.public.registry import read_public_codec, recognize_codec, write_public_codec
from tessera.tokenize.public.tensor_map import CannotWrite

transformers = pytest.importorskip("transformers")
PUBLISHED = json.loads((Path(__file__).parent / "published" / "taming.json").read_text())


def make(seed, attention=None):
    """Tensors of a tiny VQGAN, the side of its images, and the config of its networks."""
    rng = random.Random(seed)
    multipliers = rng.choice([[1, 2], [1, 1, 2], [2, 1]])
    config = transformers.JanusVQVAEConfig(
        embed_dim=rng.choice([4, 8]), num_embeddings=rng.choice([16, 50]), latent_channels=rng.choice([6, 32]),
        base_channels=32, channel_multiplier=multipliers, num_res_blocks=rng.choice([1, 2]), num_patches=4,
    )  # fmt: skip
    _, tensors = janus_state(config, "taming")
    if attention is not None:
        tensors = move_attention(tensors, config, attention)
    return fill(tensors, seed), 4 * 2 ** (len(multipliers) - 1), config


def move_attention(tensors, config, levels):
    """Attention at other resolutions."""
    kept = {name: tensor for name, tensor in tensors.items() if ".attn." not in name}
    for side, more in (("encoder.down", 0), ("decoder.up", 1)):
        for level in levels:
            width = config.base_channels * config.channel_multiplier[level]
            for number in range(config.num_res_blocks + more):
                for part in ("norm", "q", "k", "v", "proj_out"):
                    shape = (width,) if part == "norm" else (width, width, 1, 1)
                    name = f"{side}.{level}.attn.{number}.{part}"
                    kept |= {f"{name}.weight": torch.zeros(shape), f"{name}.bias": torch.zeros(width)}
    return kept


def yaml_of(tensors, side, config, attention, **other):
    ddconfig = {
        "double_z": False, "z_channels": config.latent_channels, "resolution": side, "in_channels": 3, "out_ch": 3,
        "ch": 32, "ch_mult": list(config.channel_multiplier), "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": attention, "dropout": 0.0,
    }  # fmt: skip
    params = {"embed_dim": config.embed_dim, "n_embed": config.num_embeddings, "ddconfig": ddconfig | other}
    params["lossconfig"] = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"}
    return yaml.safe_dump({"model": {"target": "taming.models.vqgan.VQModel", "params": params}})


def save(tensors, path):
    losses = {
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1),
        "loss.discriminator.main.0.weight": torch.zeros(2),
    }
    torch.save({"epoch": 3, "global_step": 7, "state_dict": tensors | losses, "lr_schedulers": []}, path)


@pytest.mark.sample(4)
@torch.no_grad()
@pytest.mark.parametrize("attention", [None, [], [0], [0, 1]])
@pytest.mark.parametrize("seed", range(2))
def test_codes_and_pixels_are_equal(seed, attention, tmp_path):
    tensors, side, config = make(seed, attention)
    lowest = [len(config.channel_multiplier) - 1]
    at = [side // 2**level for level in (lowest if attention is None else attention)]
    save(tensors, tmp_path / "last.ckpt")
    (tmp_path / "model.yaml").write_text(yaml_of(tensors, side, config, at))
    assert recognize_codec(tmp_path) == "taming"
    ours = read_public_codec(tmp_path)
    images = torch.rand(2, 3, side, side) * 2 - 1
    oracle = transformers.ChameleonVQVAE(
        transformers.models.chameleon.configuration_chameleon.ChameleonVQVAEConfig(
            embed_dim=config.embed_dim,
            num_embeddings=config.num_embeddings,
            latent_channels=config.latent_channels,
            resolution=side,
            base_channels=32,
            channel_multiplier=config.channel_multiplier,
            num_res_blocks=config.num_res_blocks,
            attn_resolutions=at,
        )
    ).eval()
    oracle.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.startswith("decoder.")})
    codes = oracle.encode(images).image_tokens.view(2, -1)
    slow = Reference(tensors)
    assert torch.equal(nearest(slow.encode(images), tensors["quantize.embedding.weight"]), codes)
    assert torch.equal(ours.encode(images).codes[:, 0], codes)
    pixels = slow.decode(grid(codes, tensors["quantize.embedding.weight"], 4)).clamp(-1, 1)
    if attention is None:
        janus, _ = janus_state(config, "taming")
        levels = len(config.channel_multiplier)
        janus.load_state_dict({name: tensors[theirs(name, "taming", levels)] for name in janus.state_dict()})
        vectors = grid(codes, tensors["quantize.embedding.weight"], 4)
        decoded = janus.decoder(janus.post_quant_conv(vectors)).clamp(-1, 1)
        torch.testing.assert_close(pixels, decoded, rtol=1e-4, atol=1e-5)
        pixels = decoded
    torch.testing.assert_close(ours.decode(codes[:, None]), pixels, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", [None, [0]])
def test_written_back_nothing_has_changed(attention, tmp_path):
    tensors, side, _ = make(3, attention)
    save(tensors, tmp_path / "last.ckpt")
    ours = read_public_codec(tmp_path / "last.ckpt", image_size=side)
    write_public_codec("taming", tmp_path / "out", ours)
    written = torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)["state_dict"]
    assert written.keys() == tensors.keys() and all(torch.equal(written[name], tensors[name]) for name in tensors)
    assert tessera.load_tokenizer(tmp_path / "out").spec == ours.spec  # with the size of model.yaml
    ours.config = ours.config.model_copy(
        update={"quantizer": ours.config.quantizer.model_copy(update={"normalise": True})}
    )
    with pytest.raises(CannotWrite, match="quantizer.normalise: found True, it needs False"):
        write_public_codec("taming", tmp_path / "no", ours)


def test_a_yaml_that_says_something_else(tmp_path):
    tensors, side, config = make(4)
    lowest = [side // 2 ** (len(config.channel_multiplier) - 1)]
    save(tensors, tmp_path / "last.ckpt")
    for key, value, message in (
        ("ch", 64, "ch is 64, but the tensors have 32"),
        ("attn_resolutions", [side], rf"attn_resolutions is \[{side}\], but the tensors have"),
        ("double_z", True, "double_z is True; only False is supported"),
        ("resolution", "256", "resolution must be a whole number, found '256'"),
        ("num_res_blocks", None, "num_res_blocks is None, but the tensors have"),
    ):
        (tmp_path / "model.yaml").write_text(yaml_of(tensors, side, config, lowest, **{key: value}))
        with pytest.raises(ValueError, match=message):
            read_public_codec(tmp_path)
    (tmp_path / "model.yaml").write_text(yaml_of(tensors, side, config, lowest))
    (tmp_path / "other.yaml").write_text(yaml_of(tensors, side, config, lowest))
    with pytest.raises(ValueError, match="several configs may be of the weights"):
        read_public_codec(tmp_path)


def test_other_quantizers_are_refused(tmp_path):
    tensors, _, _ = make(5)
    book = tensors.pop("quantize.embedding.weight")
    save(
        tensors | {"quantize.embed.weight": book, "quantize.proj.weight": book[..., None, None]}, tmp_path / "last.ckpt"
    )
    with pytest.raises(ValueError, match="'quantize.embed.weight' is of a Gumbel quantizer"):
        read_public_codec(tmp_path)
    save(tensors | {"quantize.embedding.weight": book, "model_ema.decay": torch.zeros(())}, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="so it may be of IBQ, whose search differs"):
        read_public_codec(tmp_path)


class ModelCheckpoint:
    """As Lightning's: a class whose name is a key in the file."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"


def test_a_checkpoint_with_classes_of_callbacks_as_keys(tmp_path, monkeypatch):
    """The released files have them. They are not imported."""
    tensors, side, _ = make(0)
    with monkeypatch.context() as context:
        parts = ModelCheckpoint.__module__.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            context.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[name].ModelCheckpoint = ModelCheckpoint
        state = {ModelCheckpoint: {"best_model_score": torch.ones(()), "best_model_path": "a.ckpt"}}
        torch.save({"state_dict": tensors, "callbacks": state}, tmp_path / "last.ckpt")
    assert tessera.load_tokenizer(tmp_path, image_size=side).spec.geometry.height == side
    assert not any(name.startswith("pytorch_lightning") for name in sys.modules)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tensors(name):
    entry = PUBLISHED[name]
    with torch.device("meta"):
        config = transformers.JanusVQVAEConfig(**entry["config"])
        _, tensors = janus_state(config, "taming")
        if entry["attention"] is not None:
            tensors = move_attention(tensors, config, entry["attention"])
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    ours = taming_config(shapes, 256, Path(name))
    assert taming_tensor_map(ours).expected(tokenizer_shapes(ours)) == shapes
    check_params(entry["params"], ours, name)
    assert ours.geometry.num_frames == entry["frames"]
