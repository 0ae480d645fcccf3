"""Tokenizers of several channels: the laws of one channel hold, both channels are read, made and told apart."""

import pytest
import torch

from tessera.configs.schema import check_config
from tessera.tokenize.audio.networks import AudioNet, AudioTokenizerConfig
from tessera.tokenize.data.media import read_audio, write_audio
from tessera.tokenize.data.transcode import decode_to_files, encode_files
from tessera.tokenize.tokenizer import load_tokenizer, make_tokenizer
from tessera.train.losses.base import loss_signals, mixed

HOP = 12
SEANET = {"kind": "seanet", "channels": 4, "ratios": [3, 2, 2], "lstm_layers": 0, "chunk": 5}
DAC = {"kind": "dac", "channels": 8, "strides": [2, 3, 2], "dilations": [1, 3], "chunk": 5}
SPECTRUM = {"kind": "spectrum", "width": 8, "layers": 2, "kernel": 3, "chunk": 5}
PARTS = {
    "spectrum": SPECTRUM,
    "seanet": SEANET,
    "seanet-lstm": SEANET | {"lstm_layers": 1},
    "dac": DAC,
    "mel2d": {"kind": "mel2d", "bands": 8, "rows": 2, "channels": 4, "chunk": 5},
    "fused": {"kind": "fused", "acoustic": SEANET, "semantic": SPECTRUM, "semantic_dim": 5, "chunk": 5},
}
parts = pytest.mark.parametrize("name", PARTS)


def config_of(name: str, channels: int = 2, **other) -> AudioTokenizerConfig:
    part = PARTS[name]
    data = {"kind": "audio", "name": "x", "sample_rate": 4000, "channels": channels, "hop": HOP, "window": 32}
    data |= {"latent_dim": 8, "encoder": part, "decoder": SPECTRUM if name == "fused" else part}
    data |= {"quantizer": {"kind": "residual", "levels": 2, "quantizer": {"kind": "vq", "size": 16}}}
    return check_config(data | other, AudioTokenizerConfig)


def net_of(name: str, channels: int = 2) -> AudioNet:
    torch.manual_seed(0)
    net = AudioNet(config_of(name, channels))
    shape = (4, channels, 16 * HOP) if channels > 1 else (4, 16 * HOP)
    net(torch.randn(shape), torch.ones(4, 16, dtype=torch.bool))
    net.quantizer.update()
    return net


@pytest.mark.sample(2)
@parts
@pytest.mark.parametrize("channels", [2, 3])
def test_codes_alone_and_in_company_and_channels_that_differ(name, channels):
    tokenizer = make_tokenizer(config_of(name, channels), net_of(name, channels))
    assert tokenizer.spec.geometry.channels == channels
    media, lengths = torch.randn(3, channels, 200), torch.tensor([200, 50, 133])
    together = tokenizer.encode(media, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = tokenizer.encode(media[row : row + 1, :, :length]).codes[0]
        assert torch.equal(alone, together.codes[row, :, : alone.shape[1]])
    whole = tokenizer.decode(together.codes)
    assert whole.shape == (3, channels, 17 * HOP) and bool(whole.isfinite().all())
    assert not torch.equal(whole[0, 0], whole[0, 1])


@pytest.mark.sample(2)
@parts
def test_every_channel_is_read_and_made(name):
    net = net_of(name)
    samples = torch.randn(1, 2, 10 * HOP, requires_grad=True)
    mask = torch.ones(1, 10, dtype=torch.bool)
    net.encode_samples(samples, mask).square().sum().backward()
    assert bool((samples.grad.abs().amax(-1) > 0).all())
    latents = torch.randn(1, 10, 8, requires_grad=True)
    found = net.decode_latents(latents, mask)
    assert found.shape == (1, 2, 10 * HOP)
    for channel in range(2):
        (gradient,) = torch.autograd.grad(found[:, channel].square().sum(), latents, retain_graph=True)
        assert float(gradient.abs().max()) > 0


@pytest.mark.sample(2)
@parts
def test_one_channel_has_the_config_and_fingerprint_of_before(name):
    mono = config_of(name, 1)
    assert "channels" not in mono.model_dump(mode="json") and "channels" in config_of(name).model_dump(mode="json")
    samples, mask = torch.randn(2, 10 * HOP), torch.ones(2, 10, dtype=torch.bool)
    net = net_of(name, 1).eval()
    with torch.no_grad():
        assert torch.equal(net.encode_samples(samples, mask), net.encode_samples(samples[:, None], mask))
        assert net(samples, mask)[0].shape == (2, 10 * HOP)


def test_saved_and_read_again(tmp_path):
    tokenizer = make_tokenizer(config_of("seanet"), net_of("seanet"))
    tokenizer.save(tmp_path / "t")
    assert load_tokenizer(tmp_path / "t").spec == tokenizer.spec


def test_other_numbers_of_channels_are_refused(tmp_path):
    tokenizer = make_tokenizer(config_of("spectrum"), net_of("spectrum"))
    with pytest.raises(ValueError, match=r"audio must be \[B, 2, N\] .* found \[1, 1, 50\]; repeat or mix it"):
        tokenizer.encode(torch.zeros(1, 1, 50))
    for channels in (0, 9):
        with pytest.raises(ValueError, match="channels"):
            config_of("spectrum", channels)


def test_files_there_and_back(tmp_path):
    """Encode and decode whole files: stereo as it is, mono repeated, five channels refused and named."""
    tokenizer = make_tokenizer(config_of("seanet"), net_of("seanet"))
    sound = torch.rand(5, 4000) - 0.5
    for name, channels in (("one", 1), ("two", 2), ("five", 5)):
        write_audio(tmp_path / f"{name}.wav", sound[:channels], 4000)
    items, skipped = encode_files([tmp_path / f"{name}.wav" for name in ("one", "two", "five")], tokenizer)
    assert [item.name for item in items] == ["one.wav", "two.wav"]
    assert len(skipped) == 1 and "5 channels, expected 2" in skipped[0]
    for path in decode_to_files(items, tokenizer, tmp_path / "out"):
        assert read_audio(path, 4000, 2).shape == (2, 4000)


def test_what_losses_listen_to():
    media = torch.randn(3, 2, 8)
    heard = loss_signals(media).unflatten(0, (3, 4))
    assert torch.equal(heard[:, :2], media)
    assert torch.allclose(heard[:, 2] + heard[:, 3], media[:, 0]) and torch.allclose(
        heard[:, 2] - heard[:, 3], media[:, 1]
    )
    assert torch.equal(loss_signals(media[:, 0]), media[:, 0]) and loss_signals(torch.randn(3, 5, 8)).shape == (15, 8)
    assert torch.equal(mixed(media), media.mean(1)) and torch.equal(mixed(media[:, 0]), media[:, 0])
