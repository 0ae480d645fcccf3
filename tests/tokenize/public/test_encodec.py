"""EnCodec of transformers: codes and samples are equal at every length, and what we write is read there."""

import json
import random

import pytest
import torch

from tessera.tokenize.public.registry import read_public_codec, recognize_codec, write_public_codec

transformers = pytest.importorskip("transformers")


def make(seed):
    """A tiny EncodecModel of a random shape with random weights."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    causal = rng.random() < 0.5
    config = transformers.EncodecConfig(
        num_filters=rng.choice([2, 4]), hidden_size=8, codebook_dim=8, codebook_size=rng.choice([8, 16]),
        upsampling_ratios=rng.choice([[3, 2], [4, 2], [5]]), use_causal_conv=causal,
        pad_mode=rng.choice(["constant", "reflect"]), use_conv_shortcut=rng.random() < 0.5,
        num_residual_layers=rng.choice([1, 2]), num_lstm_layers=rng.choice([1, 2]), kernel_size=rng.choice([5, 7]),
        trim_right_ratio=rng.choice([0.5, 1.0]) if causal else 1.0, sampling_rate=rng.choice([600, 800]),
        audio_channels=rng.choice([1, 2]),
    )  # fmt: skip
    config.target_bandwidths = [(3.5 * config.frame_rate * config.codebook_nbits) / 1000]  # three codebooks
    assert config.num_quantizers == 3
    model = transformers.EncodecModel(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("embed"):
            buffer.normal_(std=0.3)
    return model


def their_codes(model, samples):
    """[B, K, T]."""
    return model.encode(samples, bandwidth=model.config.target_bandwidths[-1]).audio_codes[0]


@pytest.mark.sample(6)
@torch.no_grad()
@pytest.mark.parametrize("seed", range(12))
def test_codes_and_samples_are_equal(seed, tmp_path):
    theirs = make(seed)
    theirs.save_pretrained(tmp_path / "theirs")
    assert recognize_codec(tmp_path / "theirs") == "encodec"
    ours = read_public_codec(tmp_path / "theirs")
    hop = ours.config.hop
    for length in (1, 2, hop - 1, hop, hop + 1, 7 * hop, 9 * hop + seed + 1, 40 * hop, 41 * hop - 1):
        samples = torch.randn(2, theirs.config.audio_channels, length)
        codes = their_codes(theirs, samples)
        assert torch.equal(ours.encode(samples).codes, codes)
        decoded = theirs.decode(codes[None], [None]).audio_values
        torch.testing.assert_close(ours.decode(codes), decoded, rtol=1e-5, atol=1e-5 * float(decoded.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
def test_audio_that_arrives_in_pieces_has_the_same_codes(seed, tmp_path):
    theirs = make(seed)
    theirs.save_pretrained(tmp_path)
    ours = read_public_codec(tmp_path)
    for frames, rest in ((70, 0), (70, 1), (33, 3), (0, 1)):
        samples = torch.randn(1, theirs.config.audio_channels, frames * ours.config.hop + rest)
        stream, codes = ours.stream_encoder(), []
        for piece in samples[0].split(random.Random(seed).choice([1, 5, 37]), dim=1):
            codes.append(stream.push(piece))
        codes = torch.cat([*codes, stream.finish()], dim=1)
        assert torch.equal(codes, their_codes(theirs, samples)[0])


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_what_we_write_is_read_there_and_here(seed, tmp_path):
    theirs = make(seed)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = read_public_codec(tmp_path / "theirs")
    write_public_codec("encodec", tmp_path / "written", ours)
    model, report = transformers.EncodecModel.from_pretrained(tmp_path / "written", output_loading_info=True)
    assert not any(report.values())
    samples = torch.randn(1, theirs.config.audio_channels, ours.config.hop * 9)
    assert torch.equal(their_codes(model.eval(), samples), their_codes(theirs, samples))
    again = read_public_codec(tmp_path / "written")
    assert again.config == ours.config
    for name, tensor in again.net.state_dict().items():
        torch.testing.assert_close(tensor, ours.net.state_dict()[name])


def test_fewer_codebooks_are_the_first_ones(tmp_path):
    theirs = make(1)
    theirs.save_pretrained(tmp_path)
    whole, two = read_public_codec(tmp_path), read_public_codec(tmp_path, 2)
    samples = torch.randn(1, theirs.config.audio_channels, whole.config.hop * 5)
    assert two.spec.num_codebooks == 2
    assert torch.equal(two.encode(samples).codes, whole.encode(samples).codes[:, :2])
    with pytest.raises(ValueError, match="4 codebooks were asked for, the file has 3"):
        read_public_codec(tmp_path, 4)


def test_a_config_that_does_not_fit_the_tensors(tmp_path):
    make(2).save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    for key, value, message in (
        ("num_filters", 3, "the config asks for"),
        ("num_residual_layers", 3, "the config asks for"),
        ("pad_mode", "circular", "pad_mode is 'circular'"),
        ("norm_type", "time_group_norm", "norm_type 'time_group_norm' is supported only with chunk_length_s"),
        ("norm_type", "batch_norm", "norm_type is 'batch_norm'; only 'weight_norm' or 'time_group_norm'"),
        ("normalize", True, "normalize True is supported only with chunk_length_s, which is null"),
        ("chunk_length_s", 1.001, "overlap must be a number from 0 to 1, found 'None'"),
        ("chunk_length_s", "1", "chunk_length_s must be a number from 0 to 600, found '1'"),
        ("num_filters", "4", "num_filters must be of type int, found '4'"),
        ("upsampling_ratios", [4, "x"], r"upsampling_ratios\[1\] must be of type int"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(described | {key: value}))
        with pytest.raises(ValueError, match=message):
            read_public_codec(tmp_path)


def test_the_command_and_the_loader(tmp_path, capsys):
    import tessera
    from tessera.cli.app import run

    make(3).save_pretrained(tmp_path / "theirs")
    assert run(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours"), "--codebooks", "2"]) == 0
    assert "encodec, 2 codebooks of" in capsys.readouterr().err
    saved, direct = tessera.load_tokenizer(tmp_path / "ours"), tessera.load_tokenizer(tmp_path / "theirs", codebooks=2)
    assert saved.spec == direct.spec
    samples = torch.randn(1, direct.config.channels, direct.config.hop * 5)
    assert torch.equal(saved.encode(samples).codes, direct.encode(samples).codes)
    assert run(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "encodec"]) == 0
    assert tessera.load_tokenizer(tmp_path / "back").config == direct.config


def test_weights_that_are_no_numbers_are_named(tmp_path):
    from safetensors.torch import load_file, save_file

    make(2).save_pretrained(tmp_path)
    path, name = tmp_path / "model.safetensors", "decoder.layers.0.conv.bias"
    tensors = load_file(path)
    for bad in (torch.full_like(tensors[name], float("nan")), torch.ones_like(tensors[name], dtype=torch.long)):
        save_file(tensors | {name: bad}, path)
        with pytest.raises(ValueError, match=f"{name}: weights must be finite floating point numbers"):
            read_public_codec(tmp_path)
