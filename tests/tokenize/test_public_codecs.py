"""The networks of the public codecs, as transformers has them: with the same weights they compute the same."""

import pytest
import torch
from torch import nn

from tessera.configs.schema import check_config
from tessera.tokenize.audio.networks import AudioNet, AudioTokenizerConfig
from tessera.tokenize.layers.weight_norm import fold_norms

transformers = pytest.importorskip("transformers")

# float32 on both sides; kernels may add up in another order
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
VQ = {"kind": "vq", "size": 4}


def net_of(encoder, decoder, hop, dim):
    data = {"kind": "audio", "name": "x", "hop": hop, "latent_dim": dim, "quantizer": VQ}
    net = AudioNet(check_config(data | {"encoder": encoder, "decoder": decoder}, AudioTokenizerConfig))
    fold_norms(net)
    return net.eval()


def take(ours, theirs):
    """Copy all weights by the order in which the layers stand."""
    fold_norms(theirs)
    kinds = (nn.Conv1d, nn.ConvTranspose1d, nn.LSTM)
    own, other = ([m for m in net.modules() if isinstance(m, kinds)] for net in (ours, theirs))
    assert [type(m) for m in own] == [type(m) for m in other]
    for mine, its in zip(own, other, strict=True):
        mine.load_state_dict(its.state_dict())


def take_transformer(ours, theirs):
    for block, layer in zip(ours.blocks, theirs.layers, strict=True):
        attention = layer.self_attn
        projections = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        block.query_key_value.weight.copy_(torch.cat(projections))
        block.out.weight.copy_(attention.o_proj.weight)
        block.attention_norm.load_state_dict(layer.input_layernorm.state_dict())
        block.mlp_norm.load_state_dict(layer.post_attention_layernorm.state_dict())
        block.widen.load_state_dict(layer.mlp.fc1.state_dict())
        block.narrow.load_state_dict(layer.mlp.fc2.state_dict())
        block.attention_scale.copy_(layer.self_attn_layer_scale.scale)
        block.mlp_scale.copy_(layer.mlp_layer_scale.scale)


def everything(frames):
    return torch.ones(1, frames, dtype=torch.bool)


@pytest.mark.sample(2)
@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 9])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize("shortcut", ["convolution", "identity"])
def test_encodec(frames, causal, padding, shortcut):
    torch.manual_seed(0)
    config = transformers.EncodecConfig(
        num_filters=4, hidden_size=8, codebook_dim=8, codebook_size=4, upsampling_ratios=[3, 2], use_causal_conv=causal,
        pad_mode="constant" if padding == "zeros" else padding, use_conv_shortcut=shortcut == "convolution",
        num_residual_layers=2, target_bandwidths=[100.0], trim_right_ratio=1.0,
    )  # fmt: skip
    theirs = transformers.EncodecModel(config).eval()
    part = {"kind": "seanet", "channels": 4, "ratios": [3, 2], "residual_layers": 2, "causal": causal}
    part |= {"padding": padding, "shortcut": shortcut}
    ours = net_of(part, part, 6, 8)
    take(ours.encoder, theirs.encoder)
    take(ours.decoder, theirs.decoder)
    samples = torch.randn(1, 6 * frames)
    latents = theirs.encoder(samples[None])
    assert torch.allclose(ours.encode_samples(samples, everything(frames)), latents.transpose(1, 2), **CLOSE)
    decoded = theirs.decoder(latents)[:, 0]
    assert torch.allclose(ours.decode_latents(latents.transpose(1, 2), everything(frames)), decoded, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 9])
@pytest.mark.parametrize("strides", [[2, 4], [2, 3, 5]])
def test_dac(frames, strides):
    torch.manual_seed(0)
    config = transformers.DacConfig(
        encoder_hidden_size=4, downsampling_ratios=strides, decoder_hidden_size=32, upsampling_ratios=strides[::-1],
        hidden_size=8, n_codebooks=1, codebook_size=4, hop_length=int(torch.tensor(strides).prod()),
    )  # fmt: skip
    theirs = transformers.DacModel(config).eval()
    for name, parameter in theirs.named_parameters():
        if "alpha" in name:
            parameter.uniform_(0.5, 1.5)
    part = {"kind": "dac", "channels": 4, "strides": strides}
    ours = net_of(part, part | {"channels": 32, "strides": strides[::-1]}, config.hop_length, 8)
    for mine, its in ((ours.encoder, theirs.encoder), (ours.decoder, theirs.decoder)):
        take(mine, its)
        alphas = [[p for name, p in net.named_parameters() if "alpha" in name] for net in (mine, its)]
        for found, wanted in zip(*alphas, strict=True):
            found.copy_(wanted[0])
    samples = torch.randn(1, config.hop_length * frames)
    latents = theirs.encoder(samples[None]).transpose(1, 2)
    assert torch.allclose(ours.encode_samples(samples, everything(frames)), latents, **CLOSE)
    decoded = theirs.decoder(latents.transpose(1, 2))[:, 0]
    found = ours.decode_latents(latents, everything(frames))
    assert found.shape[1] == config.hop_length * frames
    if all(stride % 2 == 0 for stride in strides):
        assert torch.allclose(found, decoded, **CLOSE)
    else:  # theirs ends earlier, so what lies near its end differs; before that it is the same
        assert decoded.shape[1] < found.shape[1]
        same = max(0, decoded.shape[1] - ours.decoder.up.reach_ahead * config.hop_length)
        assert torch.allclose(found[:, :same], decoded[:, :same], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 12])
def test_mimi(frames):
    torch.manual_seed(0)
    config = transformers.MimiConfig(
        num_filters=4, hidden_size=16, upsampling_ratios=[3, 2], num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, intermediate_size=24, sliding_window=5, num_quantizers=2, codebook_size=4,
        codebook_dim=4, vector_quantization_hidden_dimension=4, upsample_groups=16, sampling_rate=120, frame_rate=10,
        layer_scale_initial_scale=0.7, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.MimiModel(config).eval()
    transformer = {"stride": 2, "layers": 2, "heads": 2, "feed_forward": 24, "window": 5}
    part = {"kind": "seanet", "channels": 4, "ratios": [3, 2], "last_kernel": 3, "lstm_layers": 0, "norm": "none"}
    ours = net_of(part | {"bottleneck": transformer}, part | {"bottleneck": transformer}, 12, 16)
    assert theirs.encoder.downsample is not None
    for mine, its in ((ours.encoder, theirs.encoder), (ours.decoder, theirs.decoder)):
        take(mine, its)
    take_transformer(ours.encoder.bottleneck.transformer, theirs.encoder.encoder_transformer)
    take_transformer(ours.decoder.bottleneck.transformer, theirs.decoder.decoder_transformer)
    samples = torch.randn(1, 12 * frames)
    latents = theirs.encoder(samples[None]).latents.transpose(1, 2)
    assert torch.allclose(ours.encode_samples(samples, everything(frames)), latents, **CLOSE)
    decoded = theirs.decoder(latents.transpose(1, 2)).audio_values[:, 0]
    assert torch.allclose(ours.decode_latents(latents, everything(frames)), decoded, **CLOSE)
