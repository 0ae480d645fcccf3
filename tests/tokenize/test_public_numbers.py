"""Numbers in public configs: whatever a file says, it is refused by name or the codec works in little memory."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import tessera
from tessera.configs.files import read_json, write_json
from tessera.tokenize.public import dac, encodec, mimi, snac
from tessera.tokenize.public.folder import RANGES, check_number, typed_values

transformers = pytest.importorskip("transformers")

HOSTILE = [0, -1, 10**7, 10**40, True, "8", 1.5, float("nan")]
CODEC = Path(__file__).parent / "public" / "native_codecs" / "snac"


def save_codec(kind, folder):
    """A tiny codec with random weights, as its library's own class saves it."""
    torch.manual_seed(0)
    if kind == "snac":
        shutil.copytree(CODEC, folder)
    elif kind == "encodec":
        sizes = {"num_filters": 2, "hidden_size": 4, "codebook_size": 8, "upsampling_ratios": [3, 2]}
        made = transformers.EncodecConfig(**sizes, num_lstm_layers=1, target_bandwidths=[24.0])
        transformers.EncodecModel(made).save_pretrained(folder)
    elif kind == "dac":
        sizes = {"encoder_hidden_size": 4, "downsampling_ratios": [2, 3], "decoder_hidden_size": 8}
        made = transformers.DacConfig(**sizes, codebook_size=8, codebook_dim=2, n_codebooks=2)
        transformers.DacModel(made).save_pretrained(folder)
    else:
        sizes = {"hidden_size": 8, "num_filters": 2, "upsampling_ratios": [4, 3], "codebook_size": 8}
        sizes |= {"codebook_dim": 4, "vector_quantization_hidden_dimension": 4, "upsample_groups": 8}
        sizes |= {"num_hidden_layers": 1, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
        made = transformers.MimiConfig(**sizes, head_dim=4, num_quantizers=2, sampling_rate=2400)
        transformers.MimiModel(made).save_pretrained(folder)
    return read_json(folder / "config.json")


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", ["encodec", "dac", "mimi", "snac"])
def test_a_number_is_refused_by_name_or_harmless(kind, tmp_path):
    """Every number of the config, and every number in its lists, exchanged for each hostile one."""
    described = save_codec(kind, tmp_path / "codec")
    defaults = {"encodec": encodec, "dac": dac, "mimi": mimi, "snac": snac}[kind].DEFAULTS
    samples = torch.randn(1, 1, 300)
    kept = shutil.copytree(tmp_path / "codec", tmp_path / "changed")
    refused = set()
    for key, value in described.items():
        if key not in {*defaults, "upsampling_ratios", "hidden_size"}:  # not read
            continue
        number = type(value) in (int, float)
        if not number and not (isinstance(value, list) and value and type(value[0]) in (int, float)):
            continue
        for hostile in HOSTILE:
            (kept / "config.json").write_text(json.dumps(described | {key: hostile if number else [hostile]}))
            try:
                opened = tessera.load_tokenizer(kept)
            except ValueError as error:
                said = str(error)
                assert "\n" not in said and len(said) < 700 and "Traceback" not in said, said
                refused.add(key)
                continue
            assert opened.decode(opened.encode(samples).codes).shape[-1] < 10**6, (key, hostile)
    rates = {"sampling_rate", "upsampling_ratios", "downsampling_ratios", "encoder_rates"}
    assert rates & described.keys() & defaults.keys() <= refused


@pytest.mark.parametrize("value", [0, -1, 10**9, 2**63, True, "24000", 24000.5, float("nan"), None], ids=repr)
def test_a_sampling_rate_that_no_codec_has(value, tmp_path):
    described = save_codec("dac", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(described | {"sampling_rate": value}))
    with pytest.raises(
        ValueError,
        match=r"config.json: (sampling_rate must be (from 1 to 1000000|of type int|a finite)|not valid JSON)",
    ):
        tessera.load_tokenizer(tmp_path)


def test_ranges():
    """What is within is accepted; the first number outside is not."""
    for key, (least, most) in {**RANGES, "hidden_size": (1, 1 << 20)}.items():
        for value in (least, most):
            check_number(value, key, key)
        for value in (least - 1, most + 1):
            with pytest.raises(ValueError, match=f"^{key} must be from {least} to {most}, found {value}"):
                check_number(value, key, key)
    with pytest.raises(ValueError, match=r"c: ratios must be at most 16 strides with a product of at most 1048576"):
        typed_values({"ratios": [1024, 1025]}, {"ratios": [2]}, "c")
    write = {"ratios": [1024, 1024]}
    assert typed_values(write, {"ratios": [2]}, "c") == write


def test_a_block_of_frames_has_a_limit(tmp_path):
    """SNAC encodes whole blocks: frames that both the strides of its codebooks and its attention divide."""
    described = save_codec("snac", tmp_path / "codec")
    strides = [4096] * len(described["vq_strides"])
    write_json(tmp_path / "codec" / "config.json", described | {"vq_strides": strides, "attn_window_size": 4095})
    with pytest.raises(ValueError, match=r"make blocks of 16773120 frames, \d+ samples; the limit is 1048576"):
        tessera.load_tokenizer(tmp_path / "codec")


def test_every_stride_is_checked(tmp_path):
    described = save_codec("snac", tmp_path / "codec")
    write_json(tmp_path / "codec" / "config.json", described | {"vq_strides": [1 << 20] * len(described["vq_strides"])})
    with pytest.raises(ValueError, match="config.json"):
        tessera.load_tokenizer(tmp_path / "codec")


def test_whole_numbers_may_stand_for_fractions():
    """`overlap: 0` and `trim_right_ratio: 0` are not numbers of something."""
    held = {"overlap": 0, "trim_right_ratio": 0, "sampling_rate": 8000}
    assert typed_values(held, {"overlap": None, "trim_right_ratio": 1.0, "sampling_rate": 24000}, "c") == held
