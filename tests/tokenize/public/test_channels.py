"""A mono codec for each channel of stereo audio: every channel is coded and decoded as the mono codec does."""

import pytest
import torch

from tessera.configs.schema import check_config
from tessera.tokenize.audio.networks import AudioTokenizerConfig
from tessera.tokenize.public.channels import for_channels, of_one_channel
from tessera.tokenize.public.tensor_map import CannotWrite
from tessera.tokenize.tokenizer import load_tokenizer, make_tokenizer

PART = {"kind": "seanet", "channels": 4, "ratios": [3, 2], "kernel": 5, "last_kernel": 3, "chunk": 5, "lstm_layers": 1}
BOOK = {"kind": "vq", "size": 16}


@pytest.fixture(scope="module")
def mono():
    torch.manual_seed(0)
    described = {
        "kind": "audio", "name": "x", "sample_rate": 600, "hop": 6, "latent_dim": 8, "encoder": PART, "decoder": PART,
        "quantizer": {"kind": "residual", "levels": 3, "quantizer": BOOK},
    }  # fmt: skip
    return make_tokenizer(check_config(described, AudioTokenizerConfig))


@pytest.mark.parametrize("channels", [2, 3])
def test_each_channel_is_that_of_the_mono_codec(mono, channels, tmp_path):
    for_channels(mono, channels).save(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.spec.cardinalities == (16,) * 3 * channels
    samples, lengths = torch.randn(2, channels, 200), torch.tensor([200, 91])
    found = tokenizer.encode(samples, lengths)
    decoded = tokenizer.decode(found.codes, found.lengths)
    for channel in range(channels):
        alone = mono.encode(samples[:, channel : channel + 1], lengths)
        assert torch.equal(found.codes[:, channel::channels], alone.codes)
        own = mono.decode(alone.codes, alone.lengths)
        torch.testing.assert_close(decoded[:, channel : channel + 1], own, rtol=1e-5, atol=1e-6)
    stream, codes = tokenizer.stream_decoder(), found.codes[0]
    chunks = [stream.push(codes[:, start : start + 7]) for start in range(0, codes.shape[1], 7)] + [stream.finish()]
    assert torch.equal(torch.cat(chunks, dim=1), tokenizer.decode(codes[None])[0])


def test_back_to_one_channel(mono):
    back = of_one_channel(for_channels(mono, 2))
    assert back.spec == mono.spec
    assert of_one_channel(mono) is mono
    other = for_channels(mono, 2).config.model_dump(mode="json")
    other["quantizer"]["order"] = "groups"
    with pytest.raises(CannotWrite, match="shared true and order levels"):
        of_one_channel(make_tokenizer(check_config(other, AudioTokenizerConfig)))
