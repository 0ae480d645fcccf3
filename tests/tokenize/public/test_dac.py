"""DAC of transformers and of its authors: codes and samples are equal, lengths too, and what we write is read there."""

import json
import random
from pathlib import Path

import pytest
import torch
from make_native_codecs import listing, lively
from safetensors.torch import load_file

from tessera.configs.schema import check_config
from tessera.tokenize.audio.networks import AudioNet, AudioTokenizerConfig
from tessera.tokenize.public.building import tokenizer_shapes, weight_g
from tessera.tokenize.public.checkpoint import open_checkpoint
from tessera.tokenize.public.dac import dac_config, dac_tensor_map
from tessera.tokenize.public.dac_native import NATIVE
from tessera.tokenize.public.registry import read_public_codec, recognize_codec, write_public_codec
from tessera.tokenize.public.tensor_map import CannotWrite
from tessera.tokenize.tokenizer import make_tokenizer

transformers = pytest.importorskip("transformers")
HERE = Path(__file__).parent


def make(seed, **other):
    """A tiny DacModel of a random shape with random weights."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    strides = rng.choice([[2, 3], [3, 5], [4, 2], [2, 5, 3], [7]])
    form = dict(
        encoder_hidden_size=rng.choice([2, 4]), downsampling_ratios=strides, decoder_hidden_size=rng.choice([16, 24]),
        n_codebooks=3, codebook_size=rng.choice([8, 16]), codebook_dim=rng.choice([2, 5]),
        sampling_rate=rng.choice([600, 800]),
    )  # fmt: skip
    config = transformers.DacConfig(**form | other)
    model = transformers.DacModel(config)
    for name, parameter in lively(model, seed).named_parameters():
        if name.endswith("weight") and parameter.dim() == 3:  # not normed here: keep the size of what they read
            parameter.data *= 0.5 / parameter[0].numel() ** 0.5
    return model


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


@pytest.mark.sample(3)
@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
def test_codes_and_samples_are_equal(seed, tmp_path):
    theirs = make(seed)
    theirs.save_pretrained(tmp_path / "theirs")
    assert recognize_codec(tmp_path / "theirs") == "dac"
    ours = read_public_codec(tmp_path / "theirs")
    hop = ours.config.hop
    processor = transformers.DacFeatureExtractor(sampling_rate=ours.config.sample_rate, hop_length=hop)
    for length in (1, 7 * hop, 40 * hop - 1):
        samples = torch.randn(1, 1, length)
        padded = processor(samples[0, 0].numpy(), sampling_rate=ours.config.sample_rate, return_tensors="pt")
        codes = theirs.encode(padded["input_values"]).audio_codes
        assert torch.equal(ours.encode(samples).codes, codes)
        close(ours.decode(codes)[:, 0], theirs.decode(audio_codes=codes).audio_values)
    whole = ours.decode(codes)[0]
    for sizes in ([1] * 40, [3, 0, 20], [40]):
        assert torch.equal(streamed(ours, codes[0], sizes), whole)


@torch.no_grad()
def test_rows_of_different_lengths_each_lose_their_own_tail(tmp_path):
    make(0, downsampling_ratios=[2, 5, 3]).save_pretrained(tmp_path)
    ours = read_public_codec(tmp_path)
    lost = ours.net.decoder.lost
    assert lost == (3 % 2 * 5 + 5 % 2) * 2 + 2 % 2 == 12
    codes = torch.randint(8, (2, 3, 9))
    both = ours.decode(codes, torch.tensor([9, 4]))
    assert both.shape == (2, 1, 9 * 30 - lost)
    assert torch.equal(both[1, :, : 4 * 30 - lost], ours.decode(codes[1:, :, :4])[0])
    assert not both[1, :, 4 * 30 - lost :].any()


@torch.no_grad()
@pytest.mark.parametrize("strides", [[3], [2, 3, 5], [5, 4], [1, 3]])
def test_a_short_tail_is_that_of_a_network_whose_signals_are_shorter(strides):
    """The slow obvious way: every layer sees a tensor that ends where the signal ends."""
    torch.manual_seed(0)
    hop = int(torch.tensor(strides).prod())
    part = {"kind": "dac", "channels": 8, "strides": strides}
    described = {"kind": "audio", "name": "x", "hop": hop, "latent_dim": 4, "encoder": part}
    described |= {"decoder": part | {"tail": "short"}, "quantizer": {"kind": "vq", "size": 4}}
    net = AudioNet(check_config(described, AudioTokenizerConfig)).eval()
    latents = torch.randn(1, 6, 4)
    found = net.decode_latents(latents, torch.ones(1, 6, dtype=torch.bool))
    signal = latents.mT
    for layer in net.decoder.up:
        signal = layer(signal, torch.ones(1, signal.shape[-1], dtype=torch.bool))
        signal = signal[..., : signal.shape[-1] - getattr(layer, "lost", 0)]
    assert signal.shape[-1] == 6 * hop - net.decoder.lost
    close(found[:, : signal.shape[-1]], signal[:, 0])


def test_a_short_tail_where_there_is_none():
    part = {"kind": "dac", "channels": 8, "strides": [3]}
    described = {"kind": "audio", "name": "x", "hop": 3, "latent_dim": 4, "quantizer": {"kind": "vq", "size": 4}}
    with pytest.raises(ValueError, match="decoder: tail 'short' is that of centered convolutions"):
        short = part | {"tail": "short", "causal": True}
        check_config(described | {"encoder": part, "decoder": short}, AudioTokenizerConfig)
    config = check_config(described | {"encoder": part | {"tail": "short"}, "decoder": part}, AudioTokenizerConfig)
    with pytest.raises(ValueError, match="encoder.tail: only a decoder has a short tail"):
        AudioNet(config)
    plain = check_config(described | {"encoder": part, "decoder": part}, AudioTokenizerConfig)
    assert "tail" not in plain.model_dump(mode="json")["decoder"]  # fingerprints of older tokenizers stay


@pytest.mark.sample(1)
@torch.no_grad()
@pytest.mark.parametrize("seed", range(2))
def test_what_we_write_is_read_there_and_here(seed, tmp_path):
    theirs = make(seed)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = read_public_codec(tmp_path / "theirs")
    write_public_codec("dac", tmp_path / "written", ours)
    model, report = transformers.DacModel.from_pretrained(tmp_path / "written", output_loading_info=True)
    assert not any(report.values())
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "written"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert model.config.to_dict() == theirs.config.to_dict() | {"_name_or_path": model.config._name_or_path}
    processor = transformers.DacFeatureExtractor.from_pretrained(tmp_path / "written")
    assert processor.hop_length == ours.config.hop and processor.sampling_rate == ours.config.sample_rate
    again = read_public_codec(tmp_path / "written")
    assert again.spec == ours.spec


@torch.no_grad()
def test_fewer_codebooks_are_the_first_ones(tmp_path):
    theirs = make(1)
    theirs.save_pretrained(tmp_path)
    whole, two = read_public_codec(tmp_path), read_public_codec(tmp_path, 2)
    samples = torch.randn(1, 1, whole.config.hop * 5)
    assert two.spec.num_codebooks == 2
    codes = two.encode(samples).codes
    assert torch.equal(codes, whole.encode(samples).codes[:, :2])
    close(two.decode(codes)[:, 0], theirs.decode(audio_codes=codes).audio_values)
    with pytest.raises(ValueError, match="4 codebooks were asked for, the file has 3"):
        read_public_codec(tmp_path, 4)


def test_a_latent_width_and_decoder_of_their_own(tmp_path):
    theirs = make(2, downsampling_ratios=[2, 3], hidden_size=10, upsampling_ratios=[6])
    theirs.save_pretrained(tmp_path)
    ours = read_public_codec(tmp_path)
    samples = torch.randn(1, 1, 6 * 9)
    with torch.no_grad():
        codes = theirs.encode(samples).audio_codes
        assert torch.equal(ours.encode(samples).codes, codes)
        close(ours.decode(codes)[:, 0], theirs.decode(audio_codes=codes).audio_values)


def test_a_config_that_does_not_fit_the_tensors(tmp_path):
    make(3, downsampling_ratios=[2, 3]).save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    for key, value, message in (
        ("encoder_hidden_size", 3, "the config asks for"),
        ("codebook_dim", 7, "the config asks for"),
        ("downsampling_ratios", [3, 2, 2], "strides .* make 6 samples a frame, but hop is 12"),
        ("encoder_hidden_size", "4", "encoder_hidden_size must be of type int, found '4'"),
        ("hidden_size", None, "hidden_size must be of type int, found 'None'"),
        ("downsampling_ratios", [2] * 99, "downsampling_ratios must be at most 16 strides"),
        ("encoder_hidden_size", 10**15, "encoder_hidden_size must be from 1 to 1048576, found 1000000000000000"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(described | {key: value}))
        with pytest.raises(ValueError, match=message):
            read_public_codec(tmp_path)
    assert described["n_codebooks"] == 3
    (tmp_path / "config.json").write_text(json.dumps(described | {"n_codebooks": 9, "hop_length": 512}))
    assert read_public_codec(tmp_path).spec.num_codebooks == 3  # the tensors decide


def test_what_the_layout_cannot_hold(tmp_path):
    part = {"kind": "dac", "channels": 8, "strides": [3]}
    described = {"kind": "audio", "name": "x", "hop": 3, "latent_dim": 4, "encoder": part, "decoder": part}
    code = {"kind": "vq", "size": 8, "code_dim": 2, "normalise": True, "keep_length": True, "update": "gradient"}
    described["quantizer"] = {"kind": "residual", "levels": 2, "quantizer": code}
    short = {"decoder": part | {"tail": "short"}}
    for change, message in (
        ({}, "decoder.tail: found None, it needs 'short'"),
        ({"decoder": {"kind": "spectrum"}, "window": 8}, "encoder and decoder of kind dac"),
        (short | {"encoder": part | {"dilations": [1, 2]}}, "encoder.dilations"),
        (short | {"quantizer": described["quantizer"] | {"quantizer": code | {"size": 9}}}, "power of 2, found 9"),
        (short | {"quantizer": described["quantizer"] | {"quantizer": code | {"keep_length": False}}}, "keep_length"),
    ):
        config = check_config(described | change, AudioTokenizerConfig)
        with pytest.raises(CannotWrite, match=message):
            write_public_codec("dac", tmp_path, make_tokenizer(config))
    assert not list(tmp_path.iterdir())


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["dac-16khz", "dac-24khz", "dac-44khz"])
def test_tensors_of_the_published_models(name):
    described = json.loads((HERE / "published" / f"{name}.json").read_text())
    with torch.device("meta"):
        theirs = transformers.DacModel(transformers.DacConfig(**described))
    wanted = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    settings = {
        "encoder_dim": 64, "encoder_rates": described["downsampling_ratios"], "latent_dim": 1024, "decoder_dim": 1536,
        "decoder_rates": described["downsampling_ratios"][::-1], "codebook_size": 1024, "codebook_dim": 8,
        "sample_rate": described["sampling_rate"],
    }  # fmt: skip
    config = dac_config(settings, described["n_codebooks"])
    assert config.name == name
    assert dac_tensor_map(config).expected(tokenizer_shapes(config)) == wanted


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", ["16khz", "24khz", "44khz", "44khz-16kbps"])
def test_tensors_of_the_published_files_of_the_authors(name):
    described = json.loads((HERE / "published" / f"dac-native-{name}.json").read_text())
    settings = described.pop("config")
    config = dac_config(settings, settings["n_codebooks"])
    expected = dac_tensor_map(config, NATIVE, weight_g).expected(tokenizer_shapes(config))
    assert listing(expected) == described


@torch.no_grad()
def test_a_file_of_the_authors():
    path, expected = HERE / "native_codecs" / "dac.pth", load_file(HERE / "native_codecs" / "expected.safetensors")
    assert recognize_codec(path) == "dac-native"
    ours = read_public_codec(path)
    assert ours.spec.name == "dac-1khz" and ours.config.sample_rate == 600
    assert torch.equal(ours.encode(expected["samples"]).codes, expected["dac.codes"])
    close(ours.decode(expected["dac.codes"]), expected["dac.decoded"])


@torch.no_grad()
def test_what_we_write_for_the_authors_library_has_its_names(tmp_path):
    path = HERE / "native_codecs" / "dac.pth"
    ours = read_public_codec(path)
    write_public_codec("dac-native", tmp_path, ours)
    before, after = open_checkpoint(path), open_checkpoint(tmp_path)
    assert after.shapes == before.shapes
    wanted = before.described["metadata"]["kwargs"]
    assert after.described["metadata"]["kwargs"] == {key: wanted[key] for key in wanted if key != "quantizer_dropout"}
    again = read_public_codec(tmp_path)
    assert again.config == ours.config
    for name, tensor in again.net.state_dict().items():
        torch.testing.assert_close(tensor, ours.net.state_dict()[name])
    write_public_codec("dac", tmp_path / "other", ours)  # and from one layout into the other
    assert read_public_codec(tmp_path / "other").spec == ours.spec


@pytest.mark.sample(2)
@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_against_the_authors_library(seed, tmp_path):
    native = pytest.importorskip("dac.model")
    rng = random.Random(seed)
    torch.manual_seed(seed)
    strides = rng.choice([[2, 3], [5, 4], [3, 5, 2]])
    theirs = native.DAC(
        encoder_dim=rng.choice([2, 4]), encoder_rates=strides, decoder_dim=16, decoder_rates=strides[::-1],
        latent_dim=rng.choice([None, 6]), n_codebooks=2, codebook_size=rng.choice([9, 16]),
        codebook_dim=[4, 4] if seed == 0 else 4, sample_rate=600,
    )  # fmt: skip
    lively(theirs, seed).save(tmp_path / "weights_x.pth", package=False)
    ours = read_public_codec(tmp_path)
    samples = torch.randn(1, 1, ours.config.hop * 33 - 1)
    codes = theirs.encode(theirs.preprocess(samples, None))[1]
    assert torch.equal(ours.encode(samples).codes, codes)
    decoded = theirs.decode(theirs.quantizer.from_codes(codes)[0])
    close(ours.decode(codes), decoded)
    write_public_codec("dac-native", tmp_path / "written", ours)
    back = native.DAC.load(str(tmp_path / "written" / "weights.pth"), strict=True).eval()
    assert torch.equal(back.encode(back.preprocess(samples, None))[1], codes)
    close(back.decode(back.quantizer.from_codes(codes)[0]), decoded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_dim": [3, 4, 3]}, r"codebook_dim is \[3, 4, 3\]; only one size"),
        ({"encoder_dim": "x"}, "metadata.kwargs: encoder_dim must be of type int, found 'x'"),
        ({"encoder_dim": 5}, "the config asks for"),
        ({"encoder_rates": [2, 0]}, r"metadata.kwargs: encoder_rates\[1\] must be from 1 to 4096, found 0"),
    ],
)
def test_arguments_that_do_not_fit(change, message, tmp_path):
    content = torch.load(HERE / "native_codecs" / "dac.pth", weights_only=True)
    content["metadata"]["kwargs"] |= change
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message):
        read_public_codec(tmp_path)


def test_the_command_and_the_loader(tmp_path, capsys):
    import tessera
    from tessera.cli.app import run

    for source, name in ((HERE / "native_codecs" / "dac.pth", "dac-native"), (HERE / "native_codecs" / "snac", "snac")):
        assert run(["convert", str(source), str(tmp_path / name), "--codebooks", "2"]) == 0
        assert f"{name}, 2 codebooks of 16" in capsys.readouterr().err
        direct = tessera.load_tokenizer(source, codebooks=2)
        assert tessera.load_tokenizer(tmp_path / name).spec == direct.spec
        assert run(["convert", str(tmp_path / name), str(tmp_path / f"{name} back"), "--to", name]) == 0
        assert tessera.load_tokenizer(tmp_path / f"{name} back").config == direct.config


def test_a_cut_file_and_one_with_code_are_no_codec(tmp_path):
    whole = (HERE / "native_codecs" / "dac.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    torch.save(
        {"state_dict": {"a": torch.ones(1)}, "metadata": {"kwargs": {"encoder_rates": print}}}, tmp_path / "p.pth"
    )
    for name in ("cut.pth", "p.pth"):
        assert recognize_codec(tmp_path / name) is None
        with pytest.raises(ValueError, match="not a usable file of tensors|this pickle asks for"):
            read_public_codec(tmp_path / name)
