"""Mimi of transformers and of the package `moshi`: codes and samples are equal, streams too, and back again."""

import json
import random
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from tessera.tokenize.public.moshi import interleaved_rows
from tessera.tokenize.public.registry import read_public_codec, recognize_codec, write_public_codec
from tessera.tokenize.tokenizer import load_tokenizer

transformers = pytest.importorskip("transformers")
FILE = "tokenizer-1234-checkpoint5.safetensors"


def make(seed, **settings):
    """A tiny MimiModel of a random shape with random weights."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    ratios, stride, heads = rng.choice([[3, 2], [2, 2], [5]]), rng.choice([2, 3]), rng.choice([1, 2, 4])
    hop = stride * torch.tensor(ratios).prod().item()
    config = transformers.MimiConfig(
        num_filters=4, hidden_size=16, upsampling_ratios=ratios, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=heads, head_dim=16 // heads, intermediate_size=24,
        num_quantizers=5, num_semantic_quantizers=rng.choice([1, 2]), codebook_size=16, codebook_dim=6,
        vector_quantization_hidden_dimension=6, upsample_groups=16, sampling_rate=hop * 10, frame_rate=10.0,
        layer_scale_initial_scale=0.7, attn_implementation="eager",
        num_residual_layers=rng.choice([1, 2]), pad_mode="constant" if seed < 3 else "replicate",
        rope_parameters={"rope_type": "default", "rope_theta": rng.choice([100.0, 10000.0])},
        **{"sliding_window": rng.choice([3, 7])} | settings,
    )  # fmt: skip
    model = transformers.MimiModel(config).eval()
    for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
        if name.endswith("embed_sum"):
            tensor.data.normal_(std=0.5)
        elif name.endswith("cluster_usage"):
            tensor.data.uniform_(0.5, 2)
            tensor.data[0] = 0  # a dead code, whose sum has vanished too
        elif "norm" in name or name.endswith("bias"):
            tensor.data.uniform_(0.3, 1.2)
    for book in (module for module in model.modules() if hasattr(module, "embed_sum")):
        book.embed_sum.data[0] *= 1e-5
    return model


def opened(model, folder, codebooks=None):
    model.save_pretrained(folder)
    assert recognize_codec(folder) == "mimi"
    return read_public_codec(folder, codebooks)


def check_close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.sample(4)
@torch.no_grad()
@pytest.mark.parametrize("seed", range(6))
def test_codes_and_samples_are_equal(seed, tmp_path):
    theirs = make(seed, use_conv_shortcut=seed % 2 > 0)
    for codebooks in (None, 3):
        ours = opened(theirs, tmp_path, codebooks)
        assert ours.spec.num_codebooks == (codebooks or 5)
        hop = ours.config.hop
        for length in (1, hop - 1, hop, hop + 1, 9 * hop + seed, 20 * hop):
            samples = torch.randn(1, 1, length)
            codes = theirs.encode(samples, num_quantizers=codebooks).audio_codes
            assert torch.equal(ours.encode(samples).codes, codes)
            check_close(ours.decode(codes), theirs.decode(codes).audio_values)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_streams_equal_the_whole_and_their_stream(seed, tmp_path):
    theirs = make(seed)
    ours = opened(theirs, tmp_path)
    hop, samples = ours.config.hop, torch.randn(1, 1, ours.config.hop * 37)
    encoder, decoder, codes, parts, state = ours.stream_encoder(), ours.stream_decoder(), [], [], {}
    their_codes = []
    for piece in samples.split(hop, dim=2):
        codes.append(encoder.push(piece[0]))
        parts.append(decoder.push(codes[-1]))
        found = theirs.encode(piece, use_streaming=True, **state)
        state = {"encoder_cache": found.encoder_cache, "padding_cache": found.padding_cache}
        their_codes.append(found.audio_codes)
    codes.append(encoder.finish())
    parts += [decoder.push(codes[-1]), decoder.finish()]
    whole = ours.encode(samples).codes
    assert torch.equal(torch.cat(codes, dim=1), whole[0]) and torch.equal(whole, torch.cat(their_codes, dim=2))
    assert torch.equal(torch.cat(parts, dim=1), ours.decode(whole)[0])
    check_close(ours.decode(whole), theirs.decode(whole).audio_values)


@torch.no_grad()
@pytest.mark.parametrize(("seed", "codebooks"), [(0, None), (1, 3), (2, None)])
def test_what_we_write_is_read_there_and_here(seed, codebooks, tmp_path):
    theirs = make(seed)
    ours = opened(theirs, tmp_path / "theirs", codebooks)
    write_public_codec("mimi", tmp_path / "written", ours)
    model, report = transformers.MimiModel.from_pretrained(tmp_path / "written", output_loading_info=True)
    assert not any(report.values())
    samples = torch.randn(1, 1, ours.config.hop * 9)
    codes = theirs.encode(samples, num_quantizers=codebooks).audio_codes
    assert torch.equal(model.eval().encode(samples).audio_codes, codes)
    again = read_public_codec(tmp_path / "written")
    assert again.spec == ours.spec  # to the bit: nothing is folded
    before, after = load_file(tmp_path / "theirs/model.safetensors"), load_file(tmp_path / "written/model.safetensors")
    assert after.keys() <= before.keys() and (codebooks or after.keys() == before.keys())
    assert all(torch.equal(after[name], before[name]) for name in after if "codebook" not in name)


RENAMED = (
    (r"^(encoder|decoder)\.layers\.", r"\1.model."),
    (r"^(\w+\.model\..*)conv\.", r"\1conv.conv."),
    (r"^downsample\.conv\.", "downsample.conv.conv.conv."),
    (r"^upsample\.conv\.", "upsample.convtr.convtr.convtr."),
    (r"^(\w+_transformer)\.", r"\1.transformer."),
    ("self_attn_layer_scale", "layer_scale_1"),
    ("mlp_layer_scale", "layer_scale_2"),
    ("input_layernorm", "norm1"),
    ("post_attention_layernorm", "norm2"),
    (r"mlp\.fc", "linear"),
    ("o_proj", "out_proj"),
    ("semantic_residual_vector_quantizer", "rvq_first"),
    ("acoustic_residual_vector_quantizer", "rvq_rest"),
    ("embed_sum", "embedding_sum"),
    ("initialized", "_initialized"),
    (r"\.codebook\.", "._codebook."),
    (r"(rvq_\w+)\.layers", r"\1.vq.layers"),
)


def native_file(model, folder):
    """Write a saved MimiModel with the names of the package `moshi`: the slow, obvious way. Returns the tensors."""
    model.save_pretrained(folder / "hub")
    native, heads = {}, model.config.num_attention_heads
    transposed = [f"decoder.model.{number}.conv" for number, layer in enumerate(model.decoder.decoder_seanet.layers)
                  if "Transpose" in type(layer).__name__]  # fmt: skip
    for name, tensor in load_file(folder / "hub/model.safetensors").items():
        for before, after in RENAMED:
            name = re.sub(before, after, name)
        if name.rpartition(".conv.")[0] in transposed:
            name = name.replace("conv.conv", "convtr.convtr")
        native[name] = tensor
    for name in [name for name in native if name.endswith("q_proj.weight")]:
        parts = [native.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        for number in (0, 1):  # rotary pairs (e, e + E / 2) become (2 e, 2 e + 1)
            head = parts[number].unflatten(0, (heads, 2, -1))
            parts[number] = torch.stack([head[:, 0], head[:, 1]], dim=2).flatten(0, 2)
        native[name.replace("q_proj.weight", "in_proj_weight")] = torch.cat(parts)
    save_file(native, folder / FILE)
    return native


def settings(config):
    """The package's settings for a MimiConfig."""
    dim = config.hidden_size
    seanet = {
        "channels": 1, "dimension": dim, "causal": True, "n_filters": config.num_filters, "activation": "ELU",
        "n_residual_layers": config.num_residual_layers, "compress": 2, "dilation_base": 2, "kernel_size": 7,
        "residual_kernel_size": 3, "last_kernel_size": 3, "norm": "none", "pad_mode": config.pad_mode,
        "ratios": config.upsampling_ratios, "true_skip": not config.use_conv_shortcut, "disable_norm_outer_blocks": 0,
    }  # fmt: skip
    quantizer = {"dimension": config.codebook_dim, "n_q": config.num_quantizers, "bins": config.codebook_size,
                 "n_q_semantic": config.num_semantic_quantizers, "input_dimension": dim,
                 "output_dimension": dim}  # fmt: skip
    transformer = {
        "d_model": dim, "num_heads": config.num_attention_heads, "num_layers": config.num_hidden_layers,
        "causal": True, "layer_scale": 0.7, "context": config.sliding_window, "conv_layout": True,
        "max_period": config.rope_parameters["rope_theta"], "gating": "none", "norm": "layer_norm",
        "positional_embedding": "rope", "dim_feedforward": config.intermediate_size, "input_dimension": dim,
        "output_dimensions": [dim],
    }  # fmt: skip
    return {"sample_rate": config.sampling_rate, "channels": 1, "frame_rate": 10.0, "seanet": seanet,
            "quantizer": quantizer, "transformer": transformer}  # fmt: skip


@pytest.mark.sample(2)
@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_native_files_hold_the_same_codec(seed, tmp_path):
    theirs = make(seed, use_conv_shortcut=seed % 2 > 0)
    native = native_file(theirs, tmp_path)
    described = {"mimi_name": FILE, "mimi_config_name": "codec.json", "dim": 8}
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "codec.json").write_text(json.dumps(settings(theirs.config)))
    assert recognize_codec(tmp_path) == "moshi"
    ours = read_public_codec(tmp_path)
    samples = torch.randn(1, 1, ours.config.hop * 9)
    codes = theirs.encode(samples).audio_codes
    assert torch.equal(ours.encode(samples).codes, codes)
    check_close(ours.decode(codes), theirs.decode(codes).audio_values)
    short = torch.randn(1, 1, ours.config.hop * 4 + 1)  # the package appends zeros to whole frames
    padded = torch.nn.functional.pad(short, (0, ours.config.hop - 1))
    assert torch.equal(ours.encode(short).codes, theirs.encode(padded).audio_codes)
    write_public_codec("moshi", tmp_path / "back", ours)
    written = load_file(tmp_path / "back/mimi.safetensors")
    assert written.keys() == native.keys()
    assert all(torch.equal(written[name], native[name]) for name in native if "_codebook" not in name)
    assert read_public_codec(tmp_path / "back").spec == ours.spec
    write_public_codec("mimi", tmp_path / "hub_again", ours)
    assert torch.equal(read_public_codec(tmp_path / "hub_again").encode(samples).codes, codes)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_the_package_itself(seed, tmp_path):
    loaders = pytest.importorskip("moshi.models.loaders")
    theirs = make(seed)
    native_file(theirs, tmp_path)
    ours = opened(theirs, tmp_path / "hub", 4)
    package = loaders.get_mimi(tmp_path / FILE, settings(theirs.config), num_codebooks=4)
    samples = torch.randn(1, 1, ours.config.hop * 23)
    codes = ours.encode(samples).codes
    assert torch.equal(package.encode(samples), codes)
    check_close(ours.decode(codes), package.decode(codes))
    write_public_codec("moshi", tmp_path / "back", ours)
    config = json.loads((tmp_path / "back/mimi_config.json").read_text())
    again = loaders.get_mimi(tmp_path / "back/mimi.safetensors", config, num_codebooks=4)
    assert torch.equal(again.encode(samples), codes)


@torch.no_grad()
def test_streams_of_the_package(tmp_path):
    """Its stream keeps a window of keys that includes the new ones, so it loses some of the window's start; hence a
    window that is longer than the audio."""
    loaders = pytest.importorskip("moshi.models.loaders")
    theirs = make(1, sliding_window=80)
    native_file(theirs, tmp_path)
    ours = opened(theirs, tmp_path / "hub", 4)
    package = loaders.get_mimi(tmp_path / FILE, settings(theirs.config), num_codebooks=4)
    samples = torch.randn(1, 1, ours.config.hop * 23)
    codes = ours.encode(samples).codes
    with package.streaming(1):
        pieces = [package.encode(piece) for piece in samples.split(ours.config.hop, dim=2)]
        decoded = [package.decode(piece) for piece in codes.split(1, dim=2)]
    assert torch.equal(torch.cat(pieces, dim=2), codes)
    check_close(ours.decode(codes), torch.cat(decoded, dim=2))


def test_what_is_not_used_is_not_prepared(tmp_path):
    """Weights are reordered for the products at the first use of their side, and hashed when the fingerprint is asked
    for, which is that of a tokenizer saved and loaded."""
    tokenizer = opened(make(0), tmp_path)
    weights = dict(tokenizer.net.named_parameters())
    weights = {name: tensor for name, tensor in weights.items() if tensor.dim() > 1 and min(tensor.shape[:2]) > 1}

    def laid_out(side):
        return [not tokenizer.net.get_parameter(name).is_contiguous() for name in weights if name.startswith(side)]

    assert not any(laid_out("encoder.") + laid_out("decoder.")) and "_spec" not in vars(tokenizer)
    codes = tokenizer.encode(torch.randn(1, 1, tokenizer.config.hop * 3)).codes
    assert sum(laid_out("encoder.")) > 5 and not any(laid_out("decoder.")) and "_spec" not in vars(tokenizer)
    samples = tokenizer.decode(codes)
    assert sum(laid_out("decoder.")) > 5 and "_spec" not in vars(tokenizer)
    tokenizer.save(tmp_path / "ours")
    again = load_tokenizer(tmp_path / "ours")
    assert again.spec == tokenizer.spec and torch.equal(again.decode(codes), samples)
    assert read_public_codec(tmp_path).spec == tokenizer.spec


def test_threads_that_load_at_once_have_separate_networks(tmp_path):
    one = opened(make(0), tmp_path)
    codes = torch.randint(16, (1, len(one.cardinalities), 3))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: read_public_codec(tmp_path), range(12)))
    assert len({id(tokenizer.net) for tokenizer in found}) == 12
    assert all(torch.equal(tokenizer.decode(codes), one.decode(codes)) for tokenizer in found)


def test_rotary_rows():
    assert interleaved_rows(2, 8).tolist() == [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15, *range(16, 24)]


def test_settings_that_are_not_supported(tmp_path):
    make(0).save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    for key, value, message in (
        ("num_filters", 3, "the config asks for"),
        ("num_hidden_layers", 3, "24 tensors that the config asks for are missing"),
        ("use_causal_conv", False, "use_causal_conv is False; only True is supported"),
        ("num_key_value_heads", 99, "num_key_value_heads is 99"),
        ("upsample_groups", 4, "upsample_groups is 4; only 16"),
        ("hidden_act", "relu", "hidden_act is 'relu'; only 'gelu'"),
        ("attention_bias", True, "attention_bias is True"),
        ("frame_rate", 20.0, "frame_rate 20.0 makes frames of "),
        ("rope_parameters", {"rope_type": "yarn"}, "only rope_type 'default' is supported"),
        ("codebook_dim", 5, "codebook_dim is 5; only 6"),
        ("sliding_window", "9", "sliding_window must be of type int"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(described | {key: value}))
        with pytest.raises(ValueError, match=message):
            read_public_codec(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="6 codebooks were asked for, the file has 5"):
        read_public_codec(tmp_path, 6)
