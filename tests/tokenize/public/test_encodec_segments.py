"""EnCodec at 48 kHz: stereo in normalized segments, with group norm. Codes, scales and samples are transformers'."""

import math
import random

import pytest
import torch

from tessera.configs.schema import ConfigError, check_config
from tessera.tokenize.audio.networks import AudioTokenizerConfig
from tessera.tokenize.layers.masked_conv import PaddedConv, PaddedTranspose, SignalNorm
from tessera.tokenize.public.registry import read_public_codec, write_public_codec
from tessera.tokenize.tokenizer import load_tokenizer

transformers = pytest.importorskip("transformers")


def make(seed):
    """A tiny EncodecModel with segments, of a random shape with random weights."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    ratios, sample_rate = rng.choice([[3, 2], [4, 2], [5]]), 600
    samples = rng.choice([5, 8, 12]) * math.prod(ratios)
    config = transformers.EncodecConfig(
        num_filters=4, hidden_size=8, codebook_dim=8, codebook_size=16, upsampling_ratios=ratios,
        use_causal_conv=rng.random() < 0.3, pad_mode=rng.choice(["reflect", "constant", "replicate"]),
        norm_type="time_group_norm" if seed % 4 else "weight_norm", normalize=seed % 3 > 0, audio_channels=2,
        sampling_rate=sample_rate, chunk_length_s=(samples + 0.5) / sample_rate,
        overlap=0.01 if seed == 1 else rng.choice([0.01, 0.1, 0.25, 0.6, 0.0]),
    )  # fmt: skip
    config.target_bandwidths = [3.5 * config.frame_rate * config.codebook_nbits / 1000]  # three codebooks
    model = transformers.EncodecModel(config).eval()
    for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
        if name.endswith("embed"):
            tensor.data.normal_(std=0.5)
        elif ".norm." in name:
            tensor.data.uniform_(0.5, 1.5)
    return model


def opened(model, folder):
    model.save_pretrained(folder)
    return read_public_codec(folder)


def encode(model, samples):
    """Their codes [1, K, t] and scale of each segment, without segments that only repeat the end of the one before.

    Segment by segment, because `encode` fails where the last segments differ in length."""
    length, stride, bandwidth = model.config.chunk_length, model.config.chunk_stride, model.config.target_bandwidths[-1]
    starts = [at for at in range(0, samples.shape[2], stride) if not at or at + length - stride < samples.shape[2]]
    return [model._encode_frame(samples[..., at : at + length], bandwidth) for at in starts]


def decode(model, segments):
    return model._linear_overlap_add([model._decode_frame(*one) for one in segments], model.config.chunk_stride)


@pytest.mark.sample(4)
@torch.no_grad()
@pytest.mark.parametrize("seed", range(8))
def test_codes_scales_and_samples_are_equal(seed, tmp_path):
    theirs = make(seed)
    ours = opened(theirs, tmp_path)
    length, stride, hop = theirs.config.chunk_length, theirs.config.chunk_stride, ours.config.hop
    for size in (1, 2, hop, hop + 1, length - 1, length, length + 1, stride + 1, 2 * stride, 3 * stride + length,
                 5 * stride + hop + 1):  # fmt: skip
        samples = 0.3 * torch.randn(1, 2, size)
        expected, found = encode(theirs, samples), ours.encode(samples)
        assert found.lengths.tolist() == [found.codes.shape[2]] == [ours.spec.geometry.count_frames(size)]
        assert torch.equal(found.codes, torch.cat([codes for codes, _ in expected], dim=2))
        assert (found.scales is not None) == theirs.config.normalize
        if found.scales is not None:
            torch.testing.assert_close(found.scales[0], torch.cat([scale[0] for _, scale in expected]))
        decoded, made = decode(theirs, expected), ours.decode(found.codes, scales=found.scales)
        assert made.shape == decoded.shape and made.shape[2] == ours.spec.geometry.count_samples(found.codes.shape[2])
        torch.testing.assert_close(made, decoded, rtol=1e-5, atol=1e-5 * float(decoded.abs().max()))


@torch.no_grad()
def test_their_own_encode_and_decode(tmp_path):
    theirs = make(1)
    ours = opened(theirs, tmp_path)
    samples = torch.randn(1, 2, 2 * theirs.config.chunk_stride + theirs.config.chunk_length // 2 + 1)
    found = theirs.encode(samples, bandwidth=theirs.config.target_bandwidths[-1])
    rest = found.last_frame_pad_length
    decoded = theirs.decode(found.audio_codes, found.audio_scales, last_frame_pad_length=rest).audio_values
    codes = torch.cat([*found.audio_codes], dim=2)
    ours_too = ours.encode(samples)
    assert rest and torch.equal(ours_too.codes, codes[..., :-rest])
    torch.testing.assert_close(ours.decode(ours_too.codes, scales=ours_too.scales), decoded, rtol=1e-5, atol=1e-5)


@pytest.mark.sample(2)
@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_a_stream_equals_the_whole_and_a_batch_equals_its_rows(seed, tmp_path):
    ours = opened(make(seed), tmp_path)
    sizes = [7, 300, 211]
    samples = torch.randn(3, 2, 300)
    together = ours.encode(samples, torch.tensor(sizes))
    made = ours.decode(together.codes, together.lengths, together.scales)
    for row, size in enumerate(sizes):
        encoder, codes = ours.stream_encoder(), []
        for piece in samples[row, :, :size].split(11, dim=1):
            codes.append(encoder.push(piece))
        codes = torch.cat([*codes, encoder.finish()], dim=1)
        assert torch.equal(codes, together.codes[row, :, : together.lengths[row]])
        scales = None if together.scales is None else encoder.scales
        if together.scales is not None:
            assert torch.equal(encoder.scales, together.scales[row, : len(encoder.scales)])
        decoder = ours.stream_decoder(scales)
        pieces = [decoder.push(codes[:, at : at + 3]) for at in range(0, codes.shape[1], 3)]
        whole = torch.cat([*pieces, decoder.finish()], dim=1)
        assert torch.equal(whole, made[row, :, : whole.shape[1]]) and not made[row, :, whole.shape[1] :].any()


@torch.no_grad()
def test_without_scales_segments_have_the_level_of_the_config(tmp_path):
    ours = opened(make(1), tmp_path / "theirs")
    found = ours.encode(torch.randn(1, 2, 100))
    assert found.scales is not None and ours.config.segments.normalize
    torch.testing.assert_close(
        ours.decode(found.codes), ours.decode(found.codes, scales=torch.full_like(found.scales, 0.1))
    )
    ours.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.spec == ours.spec and again.spec.geometry.segment.samples == ours.config.segments.stride
    assert torch.equal(again.encode(torch.ones(1, 2, 50)).codes, ours.encode(torch.ones(1, 2, 50)).codes)
    plain = opened(make(3), tmp_path / "plain")
    with pytest.raises(ValueError, match="scales are given, but tokenizer 'encodec-1khz' does not normalize"):
        plain.decode(found.codes, scales=found.scales)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_what_we_write_is_read_there_and_here(seed, tmp_path):
    theirs = make(seed)
    ours = opened(theirs, tmp_path / "theirs")
    write_public_codec("encodec", tmp_path / "written", ours)
    model, report = transformers.EncodecModel.from_pretrained(tmp_path / "written", output_loading_info=True)
    assert not any(report.values())
    assert (model.config.chunk_length, model.config.chunk_stride) == (
        theirs.config.chunk_length,
        theirs.config.chunk_stride,
    )
    samples = torch.randn(1, 2, 3 * theirs.config.chunk_stride + theirs.config.chunk_length)
    for (found, _), (wanted, _) in zip(encode(model.eval(), samples), encode(theirs, samples), strict=True):
        assert torch.equal(found, wanted)
    assert read_public_codec(tmp_path / "written").config == ours.config


def test_group_norm_of_a_signal_is_that_of_the_signal_alone():
    norm = SignalNorm(3)
    torch.nn.init.uniform_(norm.weight)
    plain = torch.nn.GroupNorm(1, 3)
    plain.load_state_dict(norm.state_dict())
    x, mask = torch.randn(2, 3, 9), torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 2:7], mask[1, :4] = True, True
    found = norm(x, mask)
    torch.testing.assert_close(found[:1, :, 2:7], plain(x[:1, :, 2:7]))
    torch.testing.assert_close(found[1:, :, :4], plain(x[1:, :, :4]))


@pytest.mark.parametrize(
    "layer", [PaddedConv(3, 4, 4, 2, norm="time_group"), PaddedTranspose(3, 4, 2, norm="time_group")]
)
def test_normed_convolutions_of_a_batch_are_those_of_its_rows(layer):
    x, mask = torch.randn(2, 3, 10), torch.ones(2, 10, dtype=torch.bool)
    mask[1, 6:] = False
    alone = layer(x[1:, :, :6], mask[1:, :6])
    torch.testing.assert_close(layer(x, mask)[1:, :, : alone.shape[2]], alone)


def test_settings_that_do_not_fit():
    part = {"kind": "seanet", "channels": 2, "ratios": [4], "norm": "time_group"}
    data = {"kind": "audio", "name": "x", "hop": 4, "latent_dim": 4, "encoder": part, "decoder": part}
    data |= {"quantizer": {"kind": "vq", "size": 4}}
    with pytest.raises(ConfigError, match="encoder: norm time_group is over all audio that is encoded at once"):
        check_config(data, AudioTokenizerConfig)
    with pytest.raises(ConfigError, match="segments.stride 21 is above the 20 samples of a segment"):
        check_config(data | {"segments": {"frames": 5, "stride": 21}}, AudioTokenizerConfig)
