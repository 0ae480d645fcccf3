"""TiTok: codes and pixels are those that its own code made of the same weights, and those of a slow loop."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from make_native_codecs import listing
from make_titok_codes import CASES, DEFAULTS, PIXELS, SEEDS, SIZES, STEP, WHOLE, config_of, fill, images_of
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from vqgan_reference import nearest

import tessera
from tessera.configs.recognize import folder_kind
from tessera.lm.public.summary import summarize
from tessera.tokenize.image.maskgit import MaskGITConfig
from tessera.tokenize.public.building import tokenizer_shapes
from tessera.tokenize.public.images import titok
from tessera.tokenize.public.registry import read_public_codec, recognize_codec, write_public_codec
from tessera.tokenize.public.tensor_map import CannotWrite

HERE = Path(__file__).parent
EXPECTED = load_file(HERE / "titok_codes.safetensors")
PUBLISHED = json.loads((HERE / "published" / "titok.json").read_text())


@pytest.fixture
def tiny(monkeypatch):
    """Sizes of the tiny models in place of the published ones."""
    monkeypatch.setattr(titok, "SIZES", SIZES)
    monkeypatch.setattr(titok, "PIXELS", MaskGITConfig(**PIXELS))


def shapes_of(described):
    """Names and shapes of the tensors that a model of TiTok with this config has."""
    config = titok.titok_config(described)
    return titok.titok_tensor_map(config).expected(tokenizer_shapes(config))


def save(folder, described, seed):
    """A folder as `save_pretrained` leaves it; its tensors."""
    folder.mkdir(exist_ok=True)
    tensors = fill(shapes_of(described), seed)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(described))
    return tensors


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def unlimited(tokenizer, codes):
    """Images [B, 3, side, side] of codes [B, T], about 0..1, before they are limited."""
    return (tokenizer.net.decode_latents(tokenizer.embed(codes[:, None]).transpose(1, 2)) + 1) / 2


@torch.no_grad()
@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("case", CASES)
def test_codes_and_pixels_are_those_of_the_original(case, seed, tiny, tmp_path):
    save(tmp_path, config_of(case), seed)
    assert recognize_codec(tmp_path) == "titok"
    ours = tessera.load_tokenizer(tmp_path)
    images = images_of(case, seed, CASES[case]["crop_size"])
    codes, pixels = EXPECTED[f"{case}.{seed}.codes"].long(), EXPECTED[f"{case}.{seed}.images"]
    assert len(codes.unique()) > 5 and not torch.equal(codes[0], codes[1])
    assert torch.equal(ours.encode(2 * images - 1).codes[:, 0], codes)
    close(unlimited(ours, codes), pixels)
    torch.testing.assert_close(ours.decode(codes[:, None]), 2 * pixels.clamp(0, 1) - 1, rtol=0, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_a_whole_model_of_the_paper(tmp_path):
    save(tmp_path, PUBLISHED[WHOLE]["config"], 0)
    ours = tessera.load_tokenizer(tmp_path)
    codes = EXPECTED[f"{WHOLE}.codes"].long()
    assert torch.equal(ours.encode(2 * images_of(WHOLE, 0, 256)[:1] - 1).codes[:, 0], codes)
    close(unlimited(ours, codes)[..., ::STEP, ::STEP], EXPECTED[f"{WHOLE}.images"])


class Slow:
    """The published formulas on the tensors of a checkpoint, one head of one image at a time, in float64."""

    def __init__(self, tensors, described):
        self.tensors = {name: tensor.double() for name, tensor in tensors.items()}
        self.settings = described["model"]["vq_model"]
        self.legacy = self.settings["is_legacy"]
        self.side = described["dataset"]["preprocessing"]["crop_size"]

    def __getitem__(self, name):
        return self.tensors[name]

    def norm(self, x, name):
        scaled = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return scaled * self[f"{name}.weight"] + self[f"{name}.bias"]

    def linear(self, x, name):
        return x @ self[f"{name}.weight"].flatten(1).T + self[f"{name}.bias"]

    def transformer(self, x, side):
        """[S, width] -> [S, width]."""
        _, layers, heads = SIZES[self.settings[f"vit_{side[:3]}_model_size"]]
        x = self.norm(x, f"{side}.ln_pre")
        for number in range(layers):
            base = f"{side}.transformer.{number}"
            rows = self.norm(x, f"{base}.ln_1") @ self[f"{base}.attn.in_proj_weight"].T
            parts = (rows + self[f"{base}.attn.in_proj_bias"]).chunk(3, dim=-1)
            found = []
            for q, k, v in zip(*(part.chunk(heads, dim=-1) for part in parts), strict=True):
                found.append((q @ k.T / q.shape[1] ** 0.5).softmax(dim=-1) @ v)
            x = x + self.linear(torch.cat(found, dim=-1), f"{base}.attn.out_proj")
            h = self.linear(self.norm(x, f"{base}.ln_2"), f"{base}.mlp.c_fc")
            x = x + self.linear(h * (1 + torch.erf(h / 2**0.5)) / 2, f"{base}.mlp.c_proj")
        return self.norm(x, f"{side}.ln_post")

    def encode(self, image):
        """Image [3, side, side] from 0 to 1 -> latents [1, D, 1, T]."""
        weight = self["encoder.patch_embed.weight"]
        patch, rows = weight.shape[-1], [self["encoder.class_embedding"][0]]
        for top in range(0, self.side, patch):
            for left in range(0, self.side, patch):
                cut = image[:, top : top + patch, left : left + patch].double()
                rows.append((weight * cut).sum(dim=(1, 2, 3)) + self["encoder.patch_embed.bias"])
        x = torch.stack(rows) + self["encoder.positional_embedding"]
        tokens = self["latent_tokens"] + self["encoder.latent_token_positional_embedding"]
        x = self.transformer(torch.cat([x, tokens]), "encoder")[-len(tokens) :]
        if self.legacy:
            numbers = x.flatten()
            x = torch.stack([numbers[place :: len(tokens)] for place in range(len(tokens))])
        return self.linear(x, "encoder.conv_out").T[None, :, None]

    def decode(self, vectors):
        """Code vectors [T, D] -> image [3, side, side]."""
        masks = self["decoder.mask_token"][0].expand(len(self["decoder.positional_embedding"]) - 1, -1)
        masks = torch.cat([self["decoder.class_embedding"], masks]) + self["decoder.positional_embedding"]
        tokens = self.linear(vectors, "decoder.decoder_embed") + self["decoder.latent_token_positional_embedding"]
        x = self.transformer(torch.cat([masks, tokens]), "decoder")[1 : len(masks)]
        patch = self.settings["vit_dec_patch_size"]
        columns = self.side // patch
        if self.legacy:
            scores = self.linear(self.linear(x, "decoder.ffn.0").tanh(), "decoder.ffn.2")
            mixed = scores.softmax(dim=-1) @ self["pixel_quantize.embedding.weight"]
            return self.pixels(mixed.T.unflatten(1, (columns, columns))[None])[0]
        x = self.linear(x, "decoder.ffn.0")
        image = torch.zeros(3, self.side, self.side, dtype=torch.double)
        for place, cell in enumerate(x):
            for number, value in enumerate(cell):
                inside, channel = divmod(number, 3)
                row, column = place // columns * patch + inside // patch, place % columns * patch + inside % patch
                image[channel, row, column] = value
        return self.conv(image[None], "decoder.conv_out")[0]

    def conv(self, x, name):
        weight = self[f"{name}.weight"]
        return F.conv2d(x, weight, self.tensors.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def active(self, x, name):
        groups = x.reshape(1, 32, -1)
        scaled = (groups - groups.mean(-1, keepdim=True)) / (groups.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        x = scaled.view(x.shape) * self[f"{name}.weight"][:, None, None] + self[f"{name}.bias"][:, None, None]
        return x * x.sigmoid()

    def block(self, x, name):
        h = self.conv(self.active(x, f"{name}.norm1"), f"{name}.conv1")
        h = self.conv(self.active(h, f"{name}.norm2"), f"{name}.conv2")
        return h + (self.conv(h, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in self.tensors else x)

    def pixels(self, grid):
        """MaskGIT-VQGAN's decoder."""
        x = self.conv(grid, "pixel_decoder.conv_in")
        for number in range(PIXELS["blocks"]):
            x = self.block(x, f"pixel_decoder.mid.{number}")
        for level in reversed(range(len(PIXELS["multipliers"]))):
            for number in range(PIXELS["blocks"]):
                x = self.block(x, f"pixel_decoder.up.{level}.block.{number}")
            if level:
                larger = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self.conv(larger, f"pixel_decoder.up.{level}.upsample_conv")
        return self.conv(self.active(x, "pixel_decoder.norm_out"), "pixel_decoder.conv_out")


def random_config(seed):
    """A config of the tiny sizes."""
    rng = random.Random(seed)
    legacy = seed % 2 == 0
    side, pixels = rng.choice([12, 16]), 4 if legacy else rng.choice([2, 4])
    patch = rng.choice([2, 4]) if side == 16 else rng.choice([3, 6])
    settings = DEFAULTS | {
        "codebook_size": rng.choice([17, 60]), "token_size": rng.choice([1, 4]), "use_l2_norm": rng.random() < 0.5,
        "num_latent_tokens": rng.choice([2, 6, 11]), "vit_enc_patch_size": patch, "vit_dec_patch_size": pixels,
        "vit_enc_model_size": rng.choice(list(SIZES)), "vit_dec_model_size": rng.choice(list(SIZES)),
        "is_legacy": legacy, "finetune_decoder": legacy,
    }  # fmt: skip
    return {"model": {"vq_model": settings}, "dataset": {"preprocessing": {"crop_size": side}}}


@torch.no_grad()
@pytest.mark.parametrize("seed", range(8))
def test_random_models_are_those_of_the_published_formulas(seed, tiny, tmp_path):
    described = random_config(seed)
    tensors = save(tmp_path, described, seed)
    ours, slow = read_public_codec(tmp_path), Slow(tensors, described)
    images = images_of("random", seed, slow.side)
    normalised = described["model"]["vq_model"]["use_l2_norm"]
    table = slow["quantize.embedding.weight"]
    codes = torch.cat([nearest(slow.encode(image), table, normalised) for image in images])
    assert torch.equal(ours.encode(2 * images - 1).codes[:, 0], codes)
    vectors = F.normalize(table, dim=-1) if normalised else table
    close(unlimited(ours, codes), torch.stack([slow.decode(vectors[row]) for row in codes]).float())


@pytest.mark.parametrize("case", CASES)
def test_written_back_nothing_has_changed(case, tiny, tmp_path):
    tensors = save(tmp_path / "in", config_of(case), 1)
    ours = read_public_codec(tmp_path / "in")
    write_public_codec("titok", tmp_path / "out", ours)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == tensors.keys() and all(torch.equal(written[name], tensors[name]) for name in tensors)
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    whole = {"is_legacy": True, "finetune_decoder": True} | config_of(case)["model"]["vq_model"]
    assert described == config_of(case) | {"model": {"vq_model": whole}}
    assert read_public_codec(tmp_path / "out").spec == ours.spec
    ours.save(tmp_path / "tokenizer")
    assert tessera.load_tokenizer(tmp_path / "tokenizer").spec == ours.spec


def test_what_cannot_be_written(tiny, tmp_path):
    save(tmp_path / "in", config_of("small"), 0)
    ours = read_public_codec(tmp_path / "in")
    config, encoder = ours.config, ours.config.encoder
    for change, message in (
        ({"encoder": encoder.model_copy(update={"latents": "transposed"})}, "encoder.latents: found 'transposed', it"),
        (
            {"encoder": encoder.model_copy(update={"heads": 4})},
            r"no encoder of \(width, layers, heads\) \(16, 2, 4\); it",
        ),
        ({"width": 24}, "width: found 24, it needs 16"),
        ({"quantizer": config.quantizer.model_copy(update={"search": "product"})}, "quantizer.search"),
    ):
        ours.config = config.model_copy(update=change)
        with pytest.raises(CannotWrite, match=message):
            write_public_codec("titok", tmp_path / "out", ours)
    assert not (tmp_path / "out").exists()
    with pytest.raises(
        CannotWrite, match="TiTok's layout holds image tokenizers with an encoder and decoder of kind titok"
    ):
        write_public_codec("titok", tmp_path / "out", tessera.load_tokenizer("digits"))


def test_one_file_and_the_yaml_of_the_repository(tiny, tmp_path):
    described = config_of("small")
    tensors = fill(shapes_of(described), 0)
    torch.save(tensors, tmp_path / "tokenizer_titok_l32.bin")
    torch.save({"model.embeddings.weight": torch.zeros(2)}, tmp_path / "generator_titok_l32.bin")
    with pytest.raises(ValueError, match="no config of TiTok; put its config.json, or the yaml of configs/infer/TiTok"):
        read_public_codec(tmp_path)
    lines = [f"        {key}: {json.dumps(value)}" for key, value in described["model"]["vq_model"].items()]
    lines += ["    generator:", "        image_seq_len: ${model.vq_model.num_latent_tokens}"]
    text = "\n".join(["model:", "    vq_model:", *lines, "dataset:", "    preprocessing:", "        crop_size: 16"])
    (tmp_path / "titok_l32.yaml").write_text(text)
    wanted = EXPECTED["small.0.codes"].long()
    images = 2 * images_of("small", 0, 16) - 1
    for path in (tmp_path, tmp_path / "tokenizer_titok_l32.bin"):
        summary = summarize(path)
        assert summary.fits and summary.parts[0].num_tensors == len(tensors)
        assert torch.equal(tessera.load_tokenizer(path).encode(images).codes[:, 0], wanted)
    (tmp_path / "titok_b64.yaml").write_text(text)
    with pytest.raises(ValueError, match="several configs may be of the weights: .*b64.yaml, .*l32.yaml; leave one"):
        read_public_codec(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"quantize_mode": "vae"}, "quantize_mode is 'vae'; continuous latents are not supported, only 'vq'"),
        ({"finetune_decoder": False}, "is_legacy without finetune_decoder is the first stage of training"),
        ({"is_legacy": False}, "finetune_decoder is true, which needs is_legacy"),
        ({"vit_dec_model_size": "huge"}, "vit_dec_model_size must be one of small, base, found 'huge'"),
        ({"vit_dec_model_size": 3}, "vit_dec_model_size must be of type str, found '3'"),
        ({"use_l2_norm": None}, "use_l2_norm must be of type bool, found 'None'"),
        ({"token_size": 0}, "token_size must be from 1 to 1048576, found 0"),
        ({"vit_enc_patch_size": 5}, "16 x 16 cannot be split into patches of 5"),
        ({"vit_dec_patch_size": 2}, "3 multipliers make 4 x 4 pixels of a cell, but patch is 2"),
        ({"codebook_size": 251}, r"tensor 'quantize.embedding.weight' .*\[250, 3\]"),
        ({"vit_enc_model_size": "base"}, "tensors that the config asks for are missing, first 'encoder.transformer.2"),
        ({"num_latent_tokens": 1 << 20}, "latent_token"),
    ],
)
def test_a_config_that_does_not_fit(change, message, tiny, tmp_path):
    described = config_of("small")
    save(tmp_path, described, 0)
    changed = {"model": {"vq_model": described["model"]["vq_model"] | change}}
    (tmp_path / "config.json").write_text(json.dumps(described | changed))
    with pytest.raises(ValueError, match=message) as error:
        read_public_codec(tmp_path)
    assert "\n" not in str(error.value)


def test_settings_that_are_missing(tiny, tmp_path):
    described = config_of("small")
    tensors = save(tmp_path, described, 0)
    del described["model"]["vq_model"]["use_l2_norm"]
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=re.escape("config.json: model.vq_model: use_l2_norm is missing")):
        read_public_codec(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model": config_of("small")["model"]}))
    with pytest.raises(ValueError, match=re.escape("config.json: dataset.preprocessing: is missing")):
        read_public_codec(tmp_path)
    save_file(tensors | {"decoder.text_guidance_proj.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="is of TA-TiTok, whose decoder reads a caption beside the codes"):
        read_public_codec(tmp_path)
    with pytest.raises(ValueError, match="image_size 512 was asked for, but titok has no such choice"):
        read_public_codec(tmp_path, image_size=512)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tensors(name, tmp_path):
    entry = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(entry["config"]))
    assert folder_kind(tmp_path) is None
    if entry["config"]["model"]["vq_model"].get("quantize_mode") == "vae":
        with pytest.raises(ValueError, match="quantize_mode is 'vae'"):
            titok.titok_config(entry["config"])
        return
    config = titok.titok_config(entry["config"])
    assert [config.encoder.heads, config.decoder.heads] == entry["heads"]
    assert listing(shapes_of(entry["config"])) == {key: entry[key] for key in ("tensors", "elements", "sha256")}
    assert config.geometry.num_frames == entry["config"]["model"]["vq_model"]["num_latent_tokens"]
