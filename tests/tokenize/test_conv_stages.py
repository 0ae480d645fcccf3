"""Causal convolutions and sliding attention with a state: however a stream is cut, the same bits as at once."""

import itertools
import random

import pytest
import torch
from torch import nn

from tessera.configs.schema import check_config
from tessera.tokenize.audio.bottleneck import BottleneckConfig, SlidingTransformer
from tessera.tokenize.audio.code2wav import ChannelMLP, DepthwiseConv, SnakeBeta, WindowConfig, WindowTransformer
from tessera.tokenize.audio.conv_stages import conv_stages
from tessera.tokenize.audio.dac import Snake
from tessera.tokenize.audio.networks import AudioNet, AudioTokenizerConfig
from tessera.tokenize.audio.streaming import BlockStream, StagesStream, frames_per_call, run_stages
from tessera.tokenize.layers import row_products
from tessera.tokenize.layers.masked_conv import ConvStack, PaddedConv, PaddedTranspose, Pointwise, Residual
from tessera.tokenize.tokenizer import make_tokenizer

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32; products add up in another order
CHUNKS = (1, 2, 5, 16, 33)


def random_stack(rng, padding, ragged, causal=True):
    """Layers as in the codecs: 4 steps a frame come in. Channels are even, so that several blocks run at once."""

    def conv(inputs, outputs, kernel, stride=1, dilation=1):
        return PaddedConv(inputs, outputs, kernel, stride, dilation, causal, padding, ragged=ragged)

    def activation(width):
        return Pointwise(rng.choice([nn.ELU(), nn.Tanh(), nn.Hardtanh(), Snake(width), SnakeBeta(width)]))

    def residual():
        inner = [activation(4), conv(4, 2, 3, dilation=rng.randint(1, 3)), activation(2), conv(2, 4, 1)]
        return Residual(inner, rng.choice([None, conv(4, 4, 1)]))

    layers = [
        *([activation(2)] if rng.random() < 0.3 else []),
        conv(2, 4, rng.randint(1, 7)),
        *([residual()] if rng.random() < 0.7 else []),
        *([activation(4)] if rng.random() < 0.7 else []),
        conv(4, 6, 4, 2),
        *([conv(6, 6, rng.randint(1, 3))] if rng.random() < 0.5 else []),
    ]
    if not ragged:  # that is of encoders, which have no higher rate than that of their input
        depthwise = rng.random() < 0.3
        stride, short = rng.randint(2, 5), not causal and rng.random() < 0.5
        groups = 6 if depthwise else 1
        layers.append(PaddedTranspose(6, 6 if depthwise else 4, stride, causal, groups=groups, short=short))
        layers.append(conv(6 if depthwise else 4, 4, rng.choice([1, 3])))
        layers += [residual() for _ in range(rng.randint(0, 2))]
        if rng.random() < 0.4:  # the block of `code2wav`
            layers.append(PaddedTranspose(4, 4, rng.randint(1, 3), True, overlap=False))
            layers.append(Residual([DepthwiseConv(4, rng.choice([1, 3, 7])), ChannelMLP(4)]))
        layers += [Pointwise(nn.Tanh())] if rng.random() < 0.5 else []
    stack = ConvStack(layers, 4).eval()
    for parameter in stack.parameters():
        nn.init.uniform_(parameter, 0.2, 0.8) if parameter.dim() < 2 else None
    stack.freeze()
    return stack


def random_signal(rng, frames, ragged):
    """Frames, their mask and, if the signal may end inside the last one, the samples that this one has."""
    x, mask = torch.randn(1, frames, 4, 2), torch.ones(1, frames, dtype=torch.bool)
    if not ragged:
        return x, mask, None
    mask = mask[:, :, None].repeat(1, 1, 4)
    mask[0, -1, rng.randint(1, 4) :] = False
    return x, mask, mask[0, -1]


def random_cuts(rng, count):
    """Sizes of pieces, possibly empty."""
    left = count
    while left:
        piece = min(left, rng.choice([0, 1, 1, 2, 3, 7, 40]))
        left -= piece
        yield piece


def streamed(stages, chunk, pieces, tail=None):
    *before, last = pieces
    stream = StagesStream(stages, chunk)
    found = [part for piece in before for part in stream.push(piece)]
    return torch.cat([*found, *stream.finish(last, tail)])


@pytest.mark.sample(18)
@pytest.mark.parametrize("padding", ["zeros", "replicate", "reflect"])
@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_a_stack_with_a_state_equals_one_pass_over_everything(seed, padding):
    rng = random.Random(f"{seed}{padding}")
    torch.manual_seed(seed)
    ragged, chunk = rng.random() < 0.4, rng.choice(CHUNKS)
    stack = random_stack(rng, padding, ragged)
    stages = conv_stages(stack, chunk)
    if padding != "reflect":
        assert all(stage.extend is not None for stage in stages)
    for frames in (1, 2, 21, 70):
        x, mask, tail = random_signal(rng, frames, ragged)
        wanted = stack(x, mask)[0]
        whole = streamed(stages, chunk, [x[0]], tail)
        end = frames if tail is None or stack.spans(mask)[-1].end == frames * 2 else frames - 1
        torch.testing.assert_close(whole[:end], wanted[:end], **CLOSE)
        for _ in range(4):
            pieces = x[0].split([*random_cuts(rng, frames - 1), 1])
            assert torch.equal(streamed(stages, chunk, pieces, tail), whole)


@pytest.mark.sample(12)
@pytest.mark.parametrize("seed", range(24))
@torch.no_grad()
def test_a_stack_that_looks_ahead_equals_one_pass_over_everything(seed):
    """Its results are late, by at most one frame more than what they depend on."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    ragged, chunk = rng.random() < 0.4, rng.choice((4, 5, 16, 33))
    stack = random_stack(rng, "zeros", ragged, causal=False)
    stages = conv_stages(stack, chunk)
    assert all(stage.extend is not None for stage in stages)
    assert stack.reach_ahead <= stack.late <= stack.reach_ahead + 1
    for frames in (1, 2, 21, 70):
        x, mask, tail = random_signal(rng, frames, ragged)
        wanted = stack(x, mask)[0]
        whole = streamed(stages, chunk, [x[0]], tail)
        assert len(whole) == frames
        steps = wanted.shape[1]
        end = frames * steps - stack.lost
        if tail is not None and stack.spans(mask)[-1].end < frames * 2:
            end = (frames - 1) * steps
        torch.testing.assert_close(whole.flatten(0, 1)[:end], wanted.flatten(0, 1)[:end], **CLOSE)
        for _ in range(4):
            pieces = x[0].split([*random_cuts(rng, frames - 1), 1])
            assert torch.equal(streamed(stages, chunk, pieces, tail), whole)
        stream = StagesStream(stages, chunk)
        needed = stream.delay
        if needed <= frames:
            assert not any(len(part) for part in stream.push(x[0, : needed - 1]))
            assert any(len(part) for part in stream.push(x[0, needed - 1 : needed]))


@torch.no_grad()
def test_what_runs_in_windows():
    causal = {"causal": True, "padding": "zeros"}
    for layer, stateful in (
        (PaddedConv(3, 3, 3, **causal), True),
        (PaddedConv(3, 3, 3, padding="reflect"), False),
        (PaddedConv(3, 3, 3, padding="replicate"), False),
        (PaddedConv(3, 3, 3, padding="zeros"), True),
        (PaddedConv(3, 3, 3, groups=3, padding="zeros"), False),
        (PaddedConv(3, 3, 3, groups=3, **causal), False),
        (PaddedConv(3, 3, 3, norm="time_group", **causal), False),
        (PaddedConv(3, 3, 9, causal=True, padding="reflect"), False),  # 8 steps after the first, of frames of 4
        (PaddedConv(3, 3, 4, causal=True, padding="reflect"), True),
        (PaddedTranspose(3, 3, 2, causal=True), True),
        (PaddedTranspose(3, 3, 2, causal=True, trim_right=0.5), True),
        (PaddedTranspose(3, 3, 2), True),
        (PaddedTranspose(3, 3, 3, short=True), True),
    ):
        (stage,) = conv_stages(ConvStack([layer], 4), 2)
        assert (stage.extend is not None) == stateful, layer
    (stage,) = conv_stages(ConvStack([PaddedConv(3, 3, 9, causal=True, padding="reflect")], 4), 32)
    assert stage.extend is not None, "a chunk that is not eager has all that the reflection reads"


def test_layers_of_few_rows_are_eager_stages_of_their_own():
    """As in Mimi's decoder: 2, 16, 96 rows a frame."""
    layers = [PaddedConv(2, 2, 3, causal=True), Pointwise(nn.ELU()), PaddedTranspose(2, 2, 8, causal=True)]
    layers += [Pointwise(nn.ELU()), PaddedTranspose(2, 2, 6, causal=True), PaddedConv(2, 1, 3, causal=True)]
    layers += [Pointwise(nn.Tanh())]

    def cut(chunk):
        stages = conv_stages(ConvStack(layers, 2), chunk)
        return [(stage.frames, stage.eager, stage.blocks) for stage in stages]

    assert cut(1) == [(4, True, 16), (1, False, 64), (1, False, 1)]
    assert cut(16) == [(16, False, 4), (16, False, 1)]
    odd = conv_stages(ConvStack([PaddedConv(1, 3, 3, causal=True)], 2), 1)
    assert [stage.blocks for stage in odd] == [1], "the second block would not be aligned in memory"
    assert frames_per_call(1, 3) == (3, True) and frames_per_call(16, 1) == (16, False)
    assert StagesStream(conv_stages(ConvStack(layers, 2), 1), 1).delay == 1
    wide = ConvStack([PaddedConv(1, 128, 3, causal=True), PaddedConv(128, 1, 3, causal=True)], 512)
    for chunk, frames in ((16, 2), (33, 1), (1, 1)):
        (stage,) = conv_stages(wide, chunk)
        assert stage.frames == frames, "more would not stay in the cache, and a rest would wait for the next chunk"


@torch.no_grad()
def test_each_step_is_computed_once():
    """A frame of a decoder with a state multiplies as often as a frame of one pass over everything."""
    torch.manual_seed(0)
    layers = [PaddedTranspose(4, 4, 4, causal=True), PaddedConv(4, 4, 7, causal=True), PaddedConv(4, 1, 3, causal=True)]
    stack = ConvStack(layers, 16)
    stack.freeze()
    seen = []

    class Counted(nn.Module):
        up = down = 1

        def carries(self, steps):
            return True

        def late(self, steps):
            return steps

        def needs(self, low, high, per_frame):
            return low, high

        def rows(self, x, span, before=None, carried=None):
            seen.append(len(x))
            return x.clone()

    counted = ConvStack([*layers, Counted()], 16)
    counted.frozen = True
    streamed(conv_stages(counted, 1), 1, torch.randn(10, 16, 4).split(1))
    assert seen == [64] * 10


@pytest.mark.sample(12)
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
    ("window", "stride", "theta"), [(1, 2, 10.0), (5, 1, 100.0), (20, 2, 1e4), (40, 3, 1e4), (700, 1, 1e4)]
)
@torch.no_grad()
def test_sliding_attention_with_a_cache_equals_one_pass_over_everything(window, stride, theta, chunk):
    torch.manual_seed(window)
    rng = random.Random(window)
    config = BottleneckConfig(
        stride=stride, layers=2, heads=2, feed_forward=12, window=window, layer_scale=1.0, theta=theta
    )
    gated = WindowConfig(width=12, layers=2, heads=2, head_width=4, feed_forward=16, window=window, layer_scale=1.0)
    for transformer in (SlidingTransformer(config, 8).eval(), WindowTransformer(gated, 8).eval()):
        transformer.freeze()
        x = torch.randn(1, 75, transformer.config.stride, 8)
        mask = torch.ones(1, 75, dtype=torch.bool)
        stages = transformer.stages(chunk)
        whole = streamed(stages, chunk, [x[0]])
        torch.testing.assert_close(whole[None], run_stages(stages, x, mask), **CLOSE)
        for _ in range(2):
            assert torch.equal(streamed(stages, chunk, x[0].split([*random_cuts(rng, 74), 1])), whole)


@torch.no_grad()
def test_attention_does_not_change_far_from_the_start():
    """Rotary angles of late positions are as exact as those of the first ones."""
    torch.manual_seed(0)
    transformer = SlidingTransformer(BottleneckConfig(layers=1, heads=2, feed_forward=12, window=4), 8).eval()
    frames = torch.randn(16, 1, 8)
    (stage,) = transformer.stages(16)
    early, late = BlockStream(stage), BlockStream(stage)
    early.push([frames])
    late.push([frames])
    late.state = late.state._replace(block=2**27 + 1)  # an odd place in the cache, as that of block 1
    torch.testing.assert_close(late.push([frames])[0][4:], early.push([frames])[0][4:], **CLOSE)


def tiny(chunk, **other):
    """A tokenizer like Mimi: causal, with a transformer and frames of several steps."""
    part = {"kind": "seanet", "channels": 4, "ratios": [3, 2], "kernel": 5, "last_kernel": 3, "lstm_layers": 0}
    part |= {"norm": "none", "chunk": chunk, "padding": "replicate"}
    part |= {"bottleneck": {"stride": 2, "layers": 2, "heads": 2, "feed_forward": 8, "window": 5, "layer_scale": 1.0}}
    part |= other
    parts = {"encoder": part, "decoder": {key: value for key, value in part.items() if key != "last_frame"}}
    if "channels_of_audio" in part:
        count = part.pop("channels_of_audio")
        parts = {side: {"kind": "per_channel", "part": part} for side in parts} | {"channels": count}
    described = {"kind": "audio", "name": "x", "sample_rate": 120, "hop": 12, "latent_dim": 8}
    described |= parts | {"quantizer": {"kind": "residual", "levels": 2, "quantizer": {"kind": "vq", "size": 16}}}
    config = check_config(described, AudioTokenizerConfig)
    torch.manual_seed(0)
    net = AudioNet(config)
    net(torch.randn(4, config.channels, 16 * 12), torch.ones(4, 16, dtype=torch.bool))
    net.quantizer.update()  # codes start among the latents, so that many of them occur
    return make_tokenizer(config, net)


TINY = {
    "one frame": (1, {}),
    "ragged": (1, {"last_frame": "padded"}),
    "chunk of two": (2, {"padding": "zeros"}),
    "stereo": (1, {"channels_of_audio": 2}),
    "lstm": (3, {"lstm_layers": 1}),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("at_once", ["as tried", "never"])
@pytest.mark.parametrize("name", TINY)
def test_any_cut_of_a_stream_gives_the_same_bits(name, at_once, monkeypatch):
    """Cuts of 6 frames, after some that are pushed at once so that blocks end among them."""
    if at_once == "never":  # a BLAS that adds up in another order for another number of rows
        monkeypatch.setattr(row_products, "tried", lambda *_: False)
    chunk, other = TINY[name]
    tokenizer = tiny(chunk, **other)
    size = tokenizer.config.channels
    media = torch.randn(1, size, 20 * 12 - 5)
    codes = tokenizer.encode(media).codes
    assert len(codes.unique()) > 4
    samples = tokenizer.decode(codes)[0]
    every = list(itertools.product((False, True), repeat=6))
    for cuts in [every[0], every[-1], *random.Random(name).sample(every, 3)]:
        ends = [14, *(15 + number for number, cut in enumerate(cuts) if cut), 20]
        pieces = [0, *ends]
        decoder, encoder, parts, found = tokenizer.stream_decoder(), tokenizer.stream_encoder(), [], []
        for start, end in itertools.pairwise(pieces):
            parts.append(decoder.push(codes[0, :, start:end]))
            found.append(encoder.push(media[0, :, start * 12 : end * 12]))
            assert sum(part.shape[1] for part in parts) == 12 * (end // chunk * chunk), "nothing is held back"
        assert torch.equal(torch.cat([*parts, decoder.finish()], dim=1), samples)
        assert torch.equal(torch.cat([*found, encoder.finish()], dim=1), codes[0])
