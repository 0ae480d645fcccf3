"""SNAC in the files of its authors: codes at every rate and samples are equal, and what we write is read there."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from make_native_codecs import FOLDER, SNAC_FORM, listing, lively
from safetensors.torch import load_file

from tessera.configs.schema import check_config
from tessera.tokenize.audio.networks import AudioNet, AudioTokenizerConfig
from tessera.tokenize.audio.snac import BlockAttention, seeded_normal
from tessera.tokenize.public.building import tokenizer_shapes
from tessera.tokenize.public.checkpoint import open_checkpoint
from tessera.tokenize.public.folder import PublicFolder
from tessera.tokenize.public.registry import read_public_codec, recognize_codec, write_public_codec
from tessera.tokenize.public.snac import read_snac, rotary_rates, snac_config, snac_tensor_map
from tessera.tokenize.public.tensor_map import CannotWrite

HERE = Path(__file__).parent
SNAC = FOLDER / "snac"


def close(found, wanted):
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def streamed(tokenizer, codes, sizes):
    """Codes [K, T] through a stream decoder in pieces."""
    stream, start, chunks = tokenizer.stream_decoder(), 0, []
    for size in sizes:
        chunks.append(stream.push(codes[:, start : start + size]))
        start += size
    return torch.cat([*chunks, stream.push(codes[:, start:]), stream.finish()], dim=1)


def repeated(codes, strides):
    """Their codes, a list of [B, T / stride] -> ours, [B, K, T]."""
    return torch.stack([part.repeat_interleave(s, dim=1) for part, s in zip(codes, strides, strict=True)], dim=1)


@torch.no_grad()
def test_a_file_of_the_authors():
    expected = load_file(FOLDER / "expected.safetensors")
    assert recognize_codec(SNAC) == "snac"
    ours = read_public_codec(SNAC)
    codes = repeated([expected[f"snac.codes.{k}"] for k in range(3)], SNAC_FORM["vq_strides"])
    found = ours.encode(expected["samples"])
    frames = math.ceil(expected["samples"].shape[-1] / 6)  # codes of silence alone are dropped
    assert frames < codes.shape[2] and torch.equal(found.codes, codes[:, :, :frames])
    close(ours.decode(codes), expected["snac.decoded"])
    codes_per_second, _ = ours.rate(codes)
    assert codes_per_second.tolist() == [codes.shape[2] * (1 + 1 / 2 + 1 / 4)]


def make(seed, folder, **other):
    """A tiny SNAC of a random shape with random weights, saved in a folder."""
    snac = pytest.importorskip("snac")
    rng = random.Random(seed)
    torch.manual_seed(seed)
    attention = rng.choice([2, 4, 6]) if seed % 2 else None
    rates = rng.choice([[2, 3, 2], [4, 3, 3], [7, 2, 5]])
    form = {"sampling_rate": 600, "encoder_dim": 8 if attention else rng.choice([2, 3]), "encoder_rates": rates}
    form |= {"decoder_dim": 64 if attention else rng.choice([8, 16]), "decoder_rates": rates[::-1]}
    form |= {"attn_window_size": attention, "codebook_size": rng.choice([9, 16]), "codebook_dim": rng.choice([2, 4])}
    form |= {"vq_strides": rng.choice([[4, 2, 1], [6, 3, 1, 1], [2], [1, 1]]), "noise": rng.random() < 0.7}
    form |= {"depthwise": rng.random() < 0.7} | other
    model = lively(snac.SNAC(**form), seed)
    folder.mkdir(exist_ok=True)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(form))
    return model


def draws(monkeypatch, draw):
    """Let their NoiseBlock draw from `draw(shape)`."""
    monkeypatch.setattr(torch, "randn", lambda shape, **kind: draw(shape))


@pytest.mark.sample(4)
@torch.no_grad()
@pytest.mark.parametrize("seed", range(8))
def test_codes_and_samples_are_equal(seed, tmp_path, monkeypatch):
    theirs = make(seed, tmp_path)
    ours = read_public_codec(tmp_path)
    hop, block = ours.config.hop, ours.config.pad_frames
    examples = [torch.randn(1, 1, length) for length in (1, hop * block, hop * 50 - 1)]
    draws(monkeypatch, torch.zeros)
    for samples in examples:
        codes = repeated(theirs.encode(samples), theirs.vq_strides)
        found = ours.encode(samples).codes
        assert codes.shape[2] % block == 0 and found.shape[2] == -(-samples.shape[-1] // hop)
        assert torch.equal(found, codes[:, :, : found.shape[2]])
        shorter = [codes[:, k, ::stride] for k, stride in enumerate(theirs.vq_strides)]
        close(ours.decode(codes), theirs.decode(shorter))
    whole = ours.decode(codes)[0]
    for sizes in ([1] * 48, [3, 0, 20]):
        assert torch.equal(streamed(ours, codes[0], sizes), whole)


@torch.no_grad()
@pytest.mark.parametrize("seed", [2, 5])
def test_seeded_noise_is_theirs_with_these_draws(seed, tmp_path, monkeypatch):
    theirs = make(seed, tmp_path, noise=True)
    ours, off = read_snac(PublicFolder(tmp_path), noise="seeded"), read_public_codec(tmp_path)
    codes = ours.encode(torch.randn(1, 1, ours.config.hop * 48)).codes
    given = iter(range(99))
    draws(monkeypatch, lambda shape: seeded_normal(0, next(given), torch.arange(shape[2]))[None, None])
    wanted = theirs.decode([codes[:, k, ::stride] for k, stride in enumerate(theirs.vq_strides)])
    close(ours.decode(codes), wanted)
    assert not torch.allclose(off.decode(codes), wanted, atol=1e-3)
    assert torch.equal(streamed(ours, codes[0], [7, 7]), ours.decode(codes)[0])
    assert torch.equal(off.encode(torch.ones(1, 1, 99)).codes, ours.encode(torch.ones(1, 1, 99)).codes)


@pytest.mark.sample(2)
@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_what_we_write_is_read_there_and_here(seed, tmp_path, monkeypatch):
    theirs = make(seed, tmp_path / "theirs")
    ours = read_public_codec(tmp_path / "theirs")
    write_public_codec("snac", tmp_path / "written", ours)
    before, after = open_checkpoint(tmp_path / "theirs"), open_checkpoint(tmp_path / "written")
    assert before.shapes == after.shapes
    again = read_public_codec(tmp_path / "written")
    assert again.config == ours.config
    back = type(theirs).from_pretrained(str(tmp_path / "written"))
    samples = torch.randn(1, 1, ours.config.hop * 9)
    draws(monkeypatch, torch.zeros)
    codes, found = theirs.encode(samples), back.encode(samples)
    assert all(torch.equal(a, b) for a, b in zip(codes, found, strict=True))
    close(back.decode(codes), theirs.decode(codes))


def test_written_without_their_library(tmp_path):
    ours = read_public_codec(SNAC)
    write_public_codec("snac", tmp_path, ours)
    assert open_checkpoint(tmp_path).shapes == open_checkpoint(SNAC).shapes
    assert json.loads((tmp_path / "config.json").read_text()) == SNAC_FORM
    again = read_public_codec(tmp_path)
    for name, tensor in again.net.state_dict().items():
        torch.testing.assert_close(tensor, ours.net.state_dict()[name])


@torch.no_grad()
def test_fewer_codebooks_are_the_first_ones():
    whole, two = read_public_codec(SNAC), read_public_codec(SNAC, 2)
    samples = torch.randn(1, 1, 99)
    assert torch.equal(two.encode(samples).codes, whole.encode(samples).codes[:, :2])
    with pytest.raises(ValueError, match="4 codebooks were asked for, the file has 3"):
        read_public_codec(SNAC, 4)


@torch.no_grad()
def test_silence_beyond_the_end_is_encoded_with_the_rest():
    """Codes do not depend on whether the last block is filled up by the caller."""
    ours = read_public_codec(SNAC)
    samples = torch.randn(1, 1, 6 * 9)
    filled = torch.nn.functional.pad(samples, (0, 6 * 12 - samples.shape[-1]))
    assert torch.equal(ours.encode(samples).codes, ours.encode(filled).codes[:, :, :9])
    with pytest.raises(ValueError, match="pad_frames"):
        check_config(ours.config.model_dump(mode="json") | {"pad_frames": 0}, AudioTokenizerConfig)


@torch.no_grad()
def test_attention_stays_in_its_block_and_on_valid_frames():
    """The slow obvious way: each block by itself, without its padding, one query at a time."""
    torch.manual_seed(0)
    layer = BlockAttention(8, 2, 5)
    x, frames = torch.randn(1, 13, 1, 8), 12
    mask = torch.arange(13)[None] < frames
    found = layer(x, mask)
    for start in range(0, frames, 5):
        rows = x[0, start : min(start + 5, frames), 0]
        query, key, value = layer.query_key_value(layer.norm(rows)).unflatten(1, (3, 2, 4)).unbind(1)
        for i in range(len(rows)):
            heads = []
            for head in range(2):
                angles = (i - torch.arange(len(rows)))[:, None] * torch.tensor([1.0, 0.01])
                one, two = query[i, head].chunk(2)
                turned = torch.cat(
                    [one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()], 1
                )
                weights = ((turned * key[:, head]).sum(dim=1) / 2).softmax(dim=0)
                heads.append(weights @ value[:, head])
            wanted = rows[i] + layer.out(torch.cat(heads))
            torch.testing.assert_close(found[0, start + i, 0], wanted, rtol=1e-4, atol=1e-5)


def test_seeded_noise_is_normal_and_a_function_of_place():
    draws = seeded_normal(3, 1, torch.arange(20000))
    assert abs(float(draws.mean())) < 0.03 and abs(float(draws.std()) - 1) < 0.02 and bool(draws.isfinite().all())
    assert abs(float((draws[1:] * draws[:-1]).mean())) < 0.03
    assert torch.equal(seeded_normal(3, 1, torch.arange(100, 200)), draws[100:200])
    for other in (seeded_normal(4, 1, torch.arange(20000)), seeded_normal(3, 2, torch.arange(20000))):
        assert abs(float((draws * other).mean())) < 0.03


def test_noise_in_training_is_random():
    part = {"kind": "snac", "channels": 2, "strides": [2]}
    described = {"kind": "audio", "name": "x", "hop": 2, "latent_dim": 4, "encoder": part}
    described |= {"decoder": part | {"noise": "off"}, "quantizer": {"kind": "vq", "size": 4}}
    net, latents = AudioNet(check_config(described, AudioTokenizerConfig)), torch.randn(1, 5, 4)
    mask = torch.ones(1, 5, dtype=torch.bool)
    assert not torch.equal(net.decode_latents(latents, mask), net.decode_latents(latents, mask))
    net.eval()
    assert torch.equal(net.decode_latents(latents, mask), net.decode_latents(latents, mask))


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["snac-24khz", "snac-32khz", "snac-44khz"])
def test_tensors_of_the_published_models(name):
    described = json.loads((HERE / "published" / f"{name}.json").read_text())
    config = snac_config({"latent_dim": None} | described.pop("config"))
    assert config.name == name
    assert listing(snac_tensor_map(config).expected(tokenizer_shapes(config))) == described


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vq_strides": [4, 2]}, "vq_strides has 2 entries, the file has 3"),
        ({"vq_strides": [4, 3, 1]}, r"vq_strides \[4, 3, 1\] must all divide the first"),
        ({"vq_strides": [4, 2, 0]}, r"vq_strides\[2\] must be from 1 to 4096, found 0"),
        ({"attn_window_size": "x"}, "attn_window_size must be a whole number, found 'x'"),
        ({"attn_window_size": 4}, "no whole number of heads of 64"),
        ({"latent_dim": 7}, "latent_dim is 7, but the encoder makes 16"),
        ({"encoder_rates": [2] * 40}, "must be at most 16 strides"),
        ({"encoder_dim": "x"}, "encoder_dim must be of type int, found 'x'"),
        ({"noise": False}, "decoder.model.2.block.2.linear|the config asks for"),
        ({"decoder_dim": 10}, "decoder.channels: 10 cannot be halved 2 times"),
        ({"depthwise": False}, "decoder.model|encoder.block"),
    ],
)
def test_a_config_that_does_not_fit(change, message, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes((SNAC / "pytorch_model.bin").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(SNAC_FORM | change))
    with pytest.raises(ValueError, match=message):
        read_public_codec(tmp_path)


def test_other_rotary_rates_are_refused(tmp_path):
    form = SNAC_FORM | {"encoder_dim": 16, "decoder_dim": 64, "attn_window_size": 4}
    config = snac_config(form)
    shapes = snac_tensor_map(config).expected(tokenizer_shapes(config))
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    names = [name for name in shapes if name.endswith("inv_freq")]
    (tmp_path / "config.json").write_text(json.dumps(form))
    for rates, refused in ((rotary_rates(), False), (2 * rotary_rates(), True)):
        torch.save(tensors | {name: rates for name in names}, tmp_path / "pytorch_model.bin")
        if refused:
            with pytest.raises(ValueError, match="rel_pos.inv_freq' has other rotary rates"):
                read_public_codec(tmp_path)
        else:
            write_public_codec("snac", tmp_path / "written", read_public_codec(tmp_path))
    written = torch.load(tmp_path / "written" / "pytorch_model.bin", weights_only=True)
    assert len(names) == 2 and all(torch.equal(written[name], rotary_rates()) for name in names)


def test_what_the_layout_cannot_hold(tmp_path):
    ours = read_public_codec(SNAC)
    described = ours.config.model_dump(mode="json")
    for change, message in (
        ({"decoder": described["decoder"] | {"depthwise": False}}, "encoder.depthwise: found True, it needs False"),
        ({"pad_frames": 1}, "pad_frames: found None, it needs 4"),
        ({"decoder": {"kind": "spectrum"}, "window": 8}, "encoder and decoder of kind snac"),
        ({"quantizer": {"kind": "vq", "size": 8}}, "a quantizer of kind chain, found 'vq'"),
    ):
        ours.config = check_config(described | change, AudioTokenizerConfig)
        with pytest.raises(CannotWrite, match=message):
            write_public_codec("snac", tmp_path, ours)
    assert not list(tmp_path.iterdir())
