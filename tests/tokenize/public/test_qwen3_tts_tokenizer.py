"""Qwen3-TTS-Tokenizer-12Hz: codes and samples are those that its own package made of the same weights."""

import json
from pathlib import Path

import pytest
import torch
from make_native_codecs import listing
from make_qwen3_tts_tokenizer import CASES, FRAMES, LENGTHS, LONG, SEEDS, clip, config_of, fill, published, recording
from safetensors.torch import load_file, save_file

import tessera
from tessera.configs.files import read_json
from tessera.tokenize.public import qwen3_tts_tokenizer as layout
from tessera.tokenize.public.building import tokenizer_shapes
from tessera.tokenize.public.folder import PublicFolder, typed_values
from tessera.tokenize.public.mimi import DEFAULTS as ENCODER_DEFAULTS
from tessera.tokenize.public.registry import read_public_codec, recognize_codec, write_public_codec
from tessera.tokenize.public.tensor_map import CannotWrite

HERE = Path(__file__).parent
EXPECTED = load_file(HERE / "qwen3_tts_tokenizer.safetensors")
PUBLISHED = json.loads((HERE / "published" / "qwen3-tts-tokenizer.json").read_text())


def shapes_of(described, held):
    """Names and shapes of the tensors that a tokenizer with this config has; held: codebooks of the encoder."""
    values = typed_values(described, layout.DEFAULTS, "x")
    encoder = typed_values(described["encoder_config"], ENCODER_DEFAULTS, "x")
    decoder = typed_values(described["decoder_config"], layout.DECODER_DEFAULTS, "x")
    levels = [1, values["encoder_valid_num_quantizers"] - 1]
    config = layout.qwen3_tts_tokenizer_config(values, encoder, decoder, levels, "x")
    tensor_map = layout.qwen3_tts_tokenizer_map(config, [[1, held - 1], levels])
    return tensor_map.expected(tokenizer_shapes(config))


def save(folder, case, seed=0, **change):
    """A folder as the package's `save_pretrained` leaves it; its config."""
    folder.mkdir(exist_ok=True)
    described = config_of(case)
    save_file(fill(shapes_of(described, 6), seed), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(described | change))
    return described


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("case", CASES)
def test_codes_and_samples_are_those_of_the_package(case, seed, tmp_path):
    save(tmp_path, case, seed)
    assert recognize_codec(tmp_path) == "qwen3-tts-tokenizer"
    ours = tessera.load_tokenizer(tmp_path)
    for length in LENGTHS:
        wanted = EXPECTED[f"{case}.{seed}.codes.{length}"].long()
        found = ours.encode(recording(case, seed, length)[None, None]).codes[0]
        assert torch.equal(found, wanted), length
    codes = clip(case, seed, FRAMES)
    samples = ours.decode(codes[None])[0, 0]
    close(samples, EXPECTED[f"{case}.{seed}.samples"])
    assert 0.02 < float(samples.std()) and float((samples.abs() == 1).float().mean()) < 0.5


@torch.no_grad()
def test_a_long_clip_is_decoded_as_one_and_a_stream_equals_it(tmp_path):
    """Where the package's chunks of 300 frames would lack their context."""
    save(tmp_path, "small")
    ours, codes = tessera.load_tokenizer(tmp_path), clip("small", 0, LONG)
    whole = ours.decode(codes[None])[0]
    close(whole[0], EXPECTED["long.whole"])
    stream = ours.stream_decoder()
    parts = [stream.push(part) for part in codes.split([1] * 30 + [50] * 6, dim=1)]
    assert torch.equal(torch.cat([*parts, stream.finish()], dim=1), whole)
    assert ours.stream_decoder().delay == 1
    samples, encoder = recording("small", 0, 300)[None], ours.stream_encoder()
    pieces = [encoder.push(piece) for piece in samples.split(12, dim=1)]
    assert torch.equal(torch.cat([*pieces, encoder.finish()], dim=1), ours.encode(samples[None]).codes[0])


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("codebooks", [None, 2])
def test_written_back_and_read_again(case, codebooks, tmp_path):
    save(tmp_path / "theirs", case)
    ours = read_public_codec(tmp_path / "theirs", codebooks)
    ours.save(tmp_path / "saved")
    assert tessera.load_tokenizer(tmp_path / "saved").spec == ours.spec
    write_public_codec("qwen3-tts-tokenizer", tmp_path / "back", ours)
    again = read_public_codec(tmp_path / "back")
    assert again.spec == ours.spec and again.spec.num_codebooks == (codebooks or 4)
    codes = clip(case, 0, 9)[None, : codebooks or 4]
    assert torch.equal(again.decode(codes), ours.decode(codes))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "back"))
    same = [name for name in after if "_sum" not in name and "cluster_usage" not in name]
    assert all(torch.equal(after[name], before[name]) for name in same)
    written = read_json(tmp_path / "back" / "config.json")
    if codebooks is None:  # the same tensors as before but for the encoder's codebooks that no code uses
        assert after.keys() == shapes_of(config_of(case), 4).keys()
        for part, keys in (("encoder_config", ENCODER_DEFAULTS), ("decoder_config", layout.DECODER_DEFAULTS)):
            values = config_of(case)[part]
            assert all(written[part][key] == values[key] for key in keys if key in values)


def test_the_published_tensors():
    assert published() == PUBLISHED["config"]
    wanted = {key: PUBLISHED[key] for key in ("tensors", "elements", "sha256")}
    assert listing(shapes_of(published(), 32)) == wanted


def test_what_is_not_supported_is_refused_by_name(tmp_path):
    described = save(tmp_path, "small")
    for key, value, message in (
        ("encoder_valid_num_quantizers", 5, "5 codebooks were asked for, the file has 4"),
        ("encoder_valid_num_quantizers", 3, "encoder_valid_num_quantizers is 3, decoder_config.num_quantizers 4"),
        ("decode_upsample_rate", 13, "decode_upsample_rate is 13, but encoder_config describes 12"),
        ("output_sample_rate", 16000, "output_sample_rate is 16000, but encoder_config describes 120"),
        ("decoder_config.num_key_value_heads", 1, "num_key_value_heads is 1; only 2 is supported"),
        ("decoder_config.hidden_act", "relu", "hidden_act is 'relu'; only 'silu'"),
        ("decoder_config.codebook_dim", 8, "codebook_dim is 8; only 16"),
        ("decoder_config.rms_norm_eps", 1e-6, "rms_norm_eps is 1e-06; only 1e-05"),
        ("decoder_config.upsample_rates", [3, 3], "make 18 samples a frame, but hop is 12"),
        ("decoder_config.hidden_size", 12, "is \\[10\\], the config asks for \\[12\\]"),
        ("decoder_config.head_dim", 5, "head_width 5 is odd"),
        ("decoder_config.sliding_window", "4", "sliding_window must be of type int"),
        ("encoder_config.use_causal_conv", False, "use_causal_conv is False"),
    ):
        part, _, inner = key.rpartition(".")
        changed = {part: described[part] | {inner: value}} if part else {key: value}
        (tmp_path / "config.json").write_text(json.dumps(described | changed))
        with pytest.raises(ValueError, match=message):
            read_public_codec(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="5 codebooks were asked for, the model has 2 to 4"):
        read_public_codec(tmp_path, 5)
    with pytest.raises(CannotWrite, match="Mimi's layout holds"):
        write_public_codec("mimi", tmp_path / "no", read_public_codec(tmp_path))
    assert layout.is_qwen3_tts_tokenizer(PublicFolder(tmp_path))
