"""Laws of every part of a sound network: exact in any company and honest about what it reads.

That a stream equals the whole is in tests/generate/test_stream.py."""

import copy

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tessera.configs.schema import ConfigError, check_config
from tessera.tokenize.audio.networks import AUDIO_DECODERS, AUDIO_ENCODERS, AudioNet, AudioTokenizerConfig
from tessera.tokenize.audio.streaming import StagesStream, run_stages
from tessera.tokenize.layers.masked_conv import pad_signal
from tessera.tokenize.layers.weight_norm import fold_norms, normed, plain_state, set_plain
from tessera.tokenize.tokenizer import load_tokenizer, make_tokenizer

RVQ = {"kind": "residual", "levels": 2, "quantizer": {"kind": "vq", "size": 16}}
HOP = 12

SEANET = {"kind": "seanet", "channels": 4, "ratios": [3, 2, 2], "kernel": 5, "last_kernel": 3, "chunk": 5}
SEANET |= {"lstm_layers": 0}
SLIDING = {"stride": 2, "layers": 2, "heads": 2, "feed_forward": 8, "window": 5, "layer_scale": 1.0}
DAC = {"kind": "dac", "channels": 8, "strides": [2, 3, 2], "dilations": [1, 3], "chunk": 5}
SNAC = {"kind": "snac", "channels": 4, "strides": [12], "chunk": 6}
SPECTRUM = {"kind": "spectrum", "width": 8, "layers": 2, "kernel": 3, "chunk": 5}
PARTS = {
    "spectrum": SPECTRUM,
    "spectrum-causal": SPECTRUM | {"causal": True},
    "spectrum-split": SPECTRUM | {"causal": True, "spectra": 3},
    "seanet": SEANET,
    "seanet-centred": SEANET | {"causal": False, "residual_layers": 2, "shortcut": "convolution"},
    "seanet-reflect": SEANET | {"causal": False, "padding": "reflect"},
    "seanet-causal-reflect": SEANET | {"padding": "reflect", "norm": "none"},
    "seanet-replicate": SEANET | {"padding": "replicate"},
    "seanet-padded": SEANET | {"ratios": [3, 2], "bottleneck": SLIDING, "last_frame": "padded"},
    "seanet-padded-reflect": SEANET | {"causal": False, "padding": "reflect", "last_frame": "padded"},
    "seanet-padded-replicate": SEANET | {"padding": "replicate", "last_frame": "padded"},
    "seanet-trim": SEANET | {"trim_right": 0.5},
    "seanet-lstm": SEANET | {"lstm_layers": 2},
    "seanet-sliding": SEANET | {"ratios": [3, 2], "bottleneck": SLIDING},
    "seanet-all": SEANET | {"ratios": [3, 2], "causal": False, "lstm_layers": 1, "bottleneck": SLIDING},
    "dac": DAC,
    "dac-causal": DAC | {"causal": True},
    "dac-short": DAC | {"tail": "short"},
    "snac": SNAC,
    "snac-dense": SNAC | {"depthwise": False},
    "snac-attention": SNAC | {"attention": 2, "head_width": 4},
    "snac-noise-off": SNAC | {"noise": "off"},
    "snac-noise-seeded": SNAC | {"noise": "seeded", "noise_seed": 3},
    "mel2d": {"kind": "mel2d", "bands": 8, "rows": 2, "channels": 4, "chunk": 5},
    "fused": {"kind": "fused", "acoustic": DAC, "semantic": SPECTRUM, "semantic_dim": 5, "chunk": 5},
    "fused-seanet": {"kind": "fused", "acoustic": SPECTRUM, "semantic": SEANET, "semantic_dim": 3, "chunk": 7},
    "per-channel": {"kind": "per_channel", "part": SEANET | {"lstm_layers": 1}},
    "dac-sliding": DAC | {"strides": [2, 3], "bottleneck": SLIDING},
    "code2wav": {"kind": "code2wav", "width": 6, "ratios": [2], "channels": 8, "strides": [3, 2], "chunk": 5}
    | {"transformer": {"width": 4, "layers": 2, "heads": 2, "head_width": 4, "feed_forward": 8, "window": 5}},
}
"""One entry for each kind of part, and for each of its choices that changes what it reads."""
CAUSAL = ("seanet", "seanet-replicate", "seanet-lstm", "seanet-sliding", "dac-causal", "code2wav")
PAIRS = [(name, name) for name in PARTS] + [("dac", "spectrum"), ("seanet-sliding", "dac"), ("spectrum", "seanet-all")]

pairs = pytest.mark.parametrize(("encoder", "decoder"), PAIRS, ids=[f"{a}/{b}" for a, b in PAIRS])
parts = pytest.mark.parametrize("name", PARTS)


def sound(encoder, decoder=None, **other):
    data = {"kind": "audio", "name": "x", "sample_rate": 800, "hop": HOP, "window": 32, "latent_dim": 8}
    own = SPECTRUM if encoder["kind"] == "fused" else encoder  # which is an encoder alone
    if encoder["kind"] == "code2wav":  # which is a decoder alone
        encoder = SEANET
    encoder = {key: value for key, value in encoder.items() if key not in ("tail", "noise", "noise_seed")}
    data |= {"encoder": encoder, "decoder": decoder or own, "quantizer": RVQ}
    return check_config(data | other, AudioTokenizerConfig)


def lively(net):
    """Biases and other vectors away from 0, so that padding with zeros is seen to matter."""
    for parameter in net.parameters():
        if parameter.dim() == 1:
            torch.nn.init.uniform_(parameter, 0.2, 0.8)
    return net


def tokenizer_of(encoder, decoder=None):
    torch.manual_seed(0)
    config = sound(PARTS[encoder], None if decoder in (None, encoder) else PARTS[decoder])
    net = lively(AudioNet(config))
    net(torch.randn(4, 16 * HOP), torch.ones(4, 16, dtype=torch.bool))
    net.quantizer.update()  # codes start among the latents, so that many of them occur
    return make_tokenizer(config, net)


def test_every_part_is_in_the_list():
    kinds = {part["kind"] for part in PARTS.values()}
    assert kinds == {*AUDIO_ENCODERS, "code2wav"} == {*AUDIO_DECODERS, "fused"}


@pytest.mark.sample(2)
@pairs
def test_codes_do_not_depend_on_batch_padding_or_autocast(encoder, decoder):
    tokenizer = tokenizer_of(encoder, decoder)
    lengths = torch.tensor([1, 133, HOP * 7, 200])
    media = torch.randn(4, 1, 200)
    together = tokenizer.encode(media, lengths)
    assert together.codes.shape == (4, 2, -(-200 // HOP))
    assert together.lengths.tolist() == [-(-int(n) // HOP) for n in lengths]
    assert len(together.codes.unique()) > 4
    for row, length in enumerate(lengths.tolist()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            alone = tokenizer.encode(media[row : row + 1, :, :length])
        frames = int(together.lengths[row])
        assert torch.equal(alone.codes[0], together.codes[row, :, :frames])
        assert tokenizer.decode(alone.codes).shape == (1, 1, frames * HOP - tokenizer.net.decoder.lost)


@pytest.mark.sample(4)
@parts
@torch.no_grad()
def test_stages_compute_what_one_pass_over_everything_computes(name):
    """The slow obvious way: no windows, no memories. Equal up to how kernels round by shape."""
    net, frames = tokenizer_of(name).net, 53
    mask = torch.ones(1, frames, dtype=torch.bool)
    samples, latents = torch.randn(1, frames * HOP), torch.randn(1, frames, 8)
    streamed = StagesStream(net.encoder.stages(), 4).run(net.encoder.frame(samples[0]))
    assert torch.allclose(net.encode_samples(samples, mask)[0], streamed, atol=1e-4)
    streamed = StagesStream(net.decoder.stages(), 4).run(latents[0]).flatten()
    assert torch.allclose(net.decode_latents(latents, mask)[0], streamed, atol=1e-4)


@pytest.mark.sample(3)
@parts
@torch.no_grad()
def test_padding_of_a_batch_in_training_changes_nothing(name):
    net, frames, short = tokenizer_of(name).net, 13, 6
    mask = torch.arange(frames) < torch.tensor([frames, short])[:, None]
    samples, latents = torch.randn(2, frames * HOP), torch.randn(2, frames, 8)
    padded = samples * mask.repeat_interleave(HOP, dim=1)  # the trainer's padding is silence
    alone = net.encode_samples(padded[1:, : short * HOP], mask[1:, :short])
    assert torch.allclose(net.encode_samples(padded, mask)[1:, :short], alone, atol=1e-5)
    alone = net.decode_latents(latents[1:, :short], mask[1:, :short])
    assert torch.allclose(net.decode_latents(latents, mask)[1:, : short * HOP], alone, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in PARTS if "padded" in name])
@torch.no_grad()
def test_a_signal_may_end_inside_its_last_frame(name):
    """In a stream, in a batch and alone it has the same latents, whatever stands behind its end."""
    net = tokenizer_of(name).net
    for frames in (1, 2, 14):
        for rest in (1, 4, HOP - 1):
            length = (frames - 1) * HOP + rest
            samples = torch.randn(2, frames * HOP)
            mask = (torch.arange(frames * HOP) < torch.tensor([[length], [frames * HOP]])).unflatten(1, (frames, HOP))
            together = net.encode_samples(samples, mask)[0]
            samples[0, length:] = 9.0
            assert torch.allclose(net.encode_samples(samples[:1], mask[:1])[0], together, atol=1e-5)
            stream = StagesStream(net.encoder.stages(), 4)
            pieces = net.encoder.frame(samples[0])
            found = [*stream.push(pieces[:-1]), *stream.finish(pieces[-1:], mask[0, -1])]
            assert torch.allclose(torch.cat(found), together, atol=1e-4)


@pytest.mark.sample(3)
@parts
def test_codes_of_audio_that_arrives_in_pieces(name):
    tokenizer = tokenizer_of(name)
    for length in (1, 13 * HOP, 13 * HOP + 5):
        samples = torch.randn(1, length)
        stream = tokenizer.stream_encoder()
        pieces = [stream.push(piece) for piece in samples.split(7, dim=1)]
        assert torch.equal(torch.cat([*pieces, stream.finish()], dim=1), tokenizer.encode(samples[None]).codes[0])


def dependence(run, x, at):
    """Frames of x that result frame `at` depends on: those with a gradient."""
    x = x.clone().requires_grad_()
    result = run(x)[:, at]
    (result * torch.randn_like(result)).sum().backward()
    assert x.grad is not None
    return [t for t in range(x.shape[1]) if bool(x.grad[0, t].any())]


@pytest.mark.sample(3)
@parts
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_a_stage_reads_as_far_as_it_says(name, side):
    net = tokenizer_of(name).net
    stages = getattr(net, side).stages()
    frames = 2 * max(stage.back + stage.ahead for stage in stages) + 9
    x = net.encoder.frame(torch.randn(1, frames * HOP)) if side == "encoder" else torch.randn(1, frames, 8)
    mask = torch.ones(1, frames, dtype=torch.bool)
    for stage in stages:
        for at in (0, 1, frames // 2, frames - 2, frames - 1):
            seen = dependence(lambda x, run=stage.run: run(x, mask, None)[0], x, at)
            block = at // stage.block * stage.block
            first = 0 if stage.memory else max(0, block - stage.back)
            last = min(frames - 1, block + stage.block - 1 + stage.ahead)
            assert first <= seen[0] and seen[-1] <= last
            if at == frames // 2 and not stage.memory and "reflect" not in name:
                assert (seen[0], seen[-1]) == (first, last)  # and no further than needed
            if at == 0 and "reflect" in name:
                assert seen[-1] <= stage.ahead
        x = stage.run(x, mask, None)[0].detach()


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_a_causal_network_never_looks_ahead(name):
    net, frames = tokenizer_of(name).net, 15
    mask = torch.ones(1, frames, dtype=torch.bool)
    for stages, x in (
        (net.encoder.stages(), net.encoder.frame(torch.randn(1, frames * HOP))),
        (net.decoder.stages(), torch.randn(1, frames, 8)),
    ):
        whole = run_stages(stages, x, mask)
        for at in (1, 7, 14):
            changed = torch.cat([x[:, :at], torch.randn_like(x[:, at:])], dim=1)
            result = run_stages(stages, changed, mask)
            assert torch.equal(result[:, :at], whole[:, :at]) and not torch.equal(result[:, at:], whole[:, at:])
        assert all(stage.ahead == 0 for stage in stages)
    assert tokenizer_of(name).stream_decoder().delay == net.config.decoder.chunk


@pytest.mark.sample(3)
@parts
def test_a_sliding_memory_stays_constant_in_length(name):
    net, sizes = tokenizer_of(name).net, []
    stream = StagesStream(net.decoder.stages(), 5)
    for _ in range(60):
        stream.push(torch.randn(5, 8))
        held = tree_leaves([(one.state, one.frames) for one in stream.streams])
        sizes.append(sum(tensor.numel() for tensor in held if isinstance(tensor, torch.Tensor)))
    # A causal spectrum holds up to four chunks before it runs, an eager stage a block of up to 16 frames.
    assert max(sizes[20:40]) == max(sizes[40:])


@pytest.mark.sample(6)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@parts
def test_training_reaches_every_weight(name, dtype):
    torch.manual_seed(0)
    config = sound(PARTS[name])
    net = AudioNet(config)
    mask = torch.arange(9) < torch.tensor([9, 5])[:, None]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found, quantized = net(torch.randn(2, 9 * HOP), mask)
    assert found.dtype == torch.float32 and found.shape == (2, 9 * HOP)
    (found.square().mean() + sum(quantized.losses.values(), torch.zeros(())).mean()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


@pytest.mark.sample(2)
@parts
def test_saved_and_loaded_is_the_same_tokenizer(name, tmp_path):
    tokenizer = tokenizer_of(name)
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.spec == tokenizer.spec == tokenizer_of(name).spec
    media = torch.randn(2, 1, 100)
    codes = tokenizer.encode(media).codes
    assert torch.equal(loaded.encode(media).codes, codes)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))
    assert "parametrizations" not in " ".join(loaded.net.state_dict())


def test_fused_parts_must_not_remember():
    config = sound(PARTS["fused"] | {"semantic": PARTS["seanet-lstm"]})
    with pytest.raises(ConfigError, match="encoder.semantic: it is recurrent"):
        AudioNet(config)


@torch.no_grad()
def test_fused_latents_are_the_two_parts_side_by_side_through_one_layer():
    net = tokenizer_of("fused").net
    samples, mask = torch.randn(2, 11 * HOP), torch.ones(2, 11, dtype=torch.bool)
    found = []
    for part in (net.encoder.acoustic, net.encoder.semantic):
        found.append(run_stages(part.stages(), part.frame(samples), mask))
    wanted = net.encoder.join(torch.cat(found, dim=-1))
    assert [part.shape[-1] for part in found] == [8, 5]
    torch.testing.assert_close(net.encode_samples(samples, mask), wanted)


def test_freezing_a_network_with_normed_weights_changes_no_code():
    torch.manual_seed(0)
    net = AudioNet(sound(PARTS["seanet"])).eval()
    samples, mask = torch.randn(1, 9 * HOP), torch.ones(1, 9, dtype=torch.bool)
    with torch.no_grad():
        before = net.encode_samples(samples, mask)
        after = make_tokenizer(net.config, net).net.encode_samples(samples, mask)
    assert torch.allclose(before, after, atol=5e-3)  # weights are stored as float16


def test_a_frozen_network_s_weights_go_back_into_one_with_normed_weights():
    frozen, fresh = tokenizer_of("seanet").net, AudioNet(sound(PARTS["seanet"]))
    for name, value in frozen.state_dict().items():
        assert plain_state(fresh)[name].shape == value.shape
        set_plain(fresh, name, value)
    found = plain_state(fresh)
    assert found.keys() == frozen.state_dict().keys()
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in frozen.state_dict().items())


def test_padding_stands_at_the_signal_s_own_ends():
    """The slow obvious way: cut the signal out, extend a short one with zeros, pad it, cut the surplus off."""
    modes = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate"}
    for padding, mode in modes.items():
        for start, length in ((0, 9), (2, 4), (3, 1), (0, 2), (5, 3)):
            for left, right, stride in ((0, 0, 1), (4, 0, 1), (2, 2, 1), (3, 2, 1), (6, 1, 1), (3, 0, 3), (2, 1, 3)):
                x, mask = torch.randn(1, 2, 9), torch.zeros(1, 9, dtype=torch.bool)
                mask[0, start : start + length] = True
                signal = x[:, :, start : start + length]
                after = right + -length % stride  # completes the last step of the convolution
                surplus = max(0, max(left, after) - length + 1) if padding == "reflect" else 0
                wanted = torch.nn.functional.pad(
                    torch.nn.functional.pad(signal, (0, surplus)), (left, after), mode=mode
                )[..., : left + length + after]
                found = pad_signal(x, mask, left, right, padding, stride)
                assert found.shape == (1, 2, left + 9 + right)
                wanted = wanted[..., : found.shape[2] - start]
                assert torch.equal(found[..., start : start + wanted.shape[2]], wanted)
                found[..., start : start + wanted.shape[2]] = 0
                assert not found.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder": SEANET | {"ratios": [4, 2]}},
            r"encoder: ratios \[4, 2\] .* make 8 samples a frame, but hop is 12",
        ),
        ({"decoder": DAC | {"strides": [5]}}, r"decoder: strides \[5\] .* make 5 samples a frame"),
        ({"encoder": SPECTRUM, "window": 8}, "window 8 must be even and at least hop 12"),
        ({"decoder": SEANET | {"kind": "seenet"}}, "decoder: kind 'seenet' is unknown; did you mean 'seanet'"),
        ({"decoder": SEANET | {"ratio": [2]}}, "decoder.seanet.ratio: unknown key; did you mean 'ratios'"),
        ({"encoder": SPECTRUM | {"widht": 3}}, "widht: unknown key; did you mean 'width'"),
        (
            {"encoder": PARTS["fused"] | {"semantic": DAC | {"strides": [5]}}},
            r"encoder: semantic: strides \[5\] .* make 5",
        ),
        ({"encoder": PARTS["mel2d"] | {"rows": 3}}, "encoder: 8 bands cannot be halved to 3 rows"),
        ({"encoder": PARTS["mel2d"] | {"bands": 12, "rows": 3}}, "latent_dim 8 is not a multiple of rows 3"),
        (
            {"decoder": PARTS["fused"]},
            "decoder: kind 'fused' is unknown; known: code2wav, dac, mel2d, per_channel, seanet, snac, spectrum",
        ),
        (
            {"encoder": PARTS["fused"] | {"semantic": PARTS["seanet-padded-replicate"]}},
            "encoder: semantic: last_frame padded is not supported inside fused encoders",
        ),
        (
            {"encoder": PARTS["seanet-sliding"] | {"bottleneck": SLIDING | {"heads": 3}}},
            "each of bottleneck.heads 3 an even",
        ),
    ],
)
def test_parts_that_do_not_fit_have_one_clear_error(change, message):
    with pytest.raises(ConfigError, match=message):
        sound(change.get("encoder", PARTS["seanet"]), change.get("decoder"), window=change.get("window", 32))


def test_folding_a_copy_leaves_the_network_as_it_is():
    """A tokenizer is frozen from a copy while its training goes on."""
    layer = normed(torch.nn.Conv1d(2, 3, 3), "weight")
    x = torch.randn(1, 2, 8)
    wanted, copied = layer(x), copy.deepcopy(layer)
    fold_norms(copied)
    torch.testing.assert_close(copied(x), wanted)
    assert layer(x).equal(wanted)
    fold_norms(layer)
    assert layer.weight.equal(copied.weight) and type(layer) is type(copied) is torch.nn.Conv1d
