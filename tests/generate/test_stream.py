"""Law: a stream equals the whole, sample for sample, whatever network decodes it and whatever a model was asked for."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import pytest
import test_audio_networks
import test_stereo
import test_tokenizer
import torch
from short_calls import decode_loop, generate_codes
from test_programs import plain
from tiny_models import make_lm, save_tiny_models, strong
from torch import Tensor

import tessera
from tessera.generate.execution import step_runner
from tessera.generate.model import Model
from tessera.generate.requests.settings import Length
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.config import LMConfig
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.patterns.pattern import DelayConfig
from tessera.tokenize.audio.tokenizer import AudioTokenizer
from tessera.tokenize.tokenizer import make_tokenizer

Streams = Iterator[tuple[list[Tensor], Tensor]]
"""Pairs of the chunks of a stream, [C, n] each, and the whole, [C, N]. Each case gets the folder of tiny models."""


def decoded(make: Callable[[], AudioTokenizer], frames: int, folder) -> Streams:
    """Codes of three rows, pushed into a stream decoder in pieces of many sizes; the whole is a batch or alone."""
    tokenizer = make()
    geometry = tokenizer.spec.geometry
    codes = torch.stack([torch.randint(size, (3, frames)) for size in tokenizer.spec.cardinalities], dim=1)
    whole = tokenizer.decode(codes)
    samples = frames * geometry.samples_per_frame - tokenizer.net.decoder.lost
    assert whole.shape == (3, geometry.channels, samples) and bool(whole.isfinite().all())
    for rows in (slice(0, 1), slice(1, 3)):
        assert torch.equal(tokenizer.decode(codes[rows]), whole[rows])
    for number, sizes in enumerate((frames, 1, 2, 3, [2, 5, 1, frames], [0, 7, 0, frames, 0])):
        row, stream = number % 3, tokenizer.stream_decoder()
        if isinstance(sizes, list):
            ends = [min(sum(sizes[:i]), frames) for i in range(len(sizes) + 1)]
            sizes = [end - start for start, end in pairwise(ends)]
        chunks = [stream.push(piece) for piece in codes[row].split(sizes, dim=1)]
        if sizes == 1:  # the first chunk comes when it was promised
            silent = [chunk.shape[1] == 0 for chunk in chunks]
            assert silent[: stream.delay - 1] == [True] * min(frames, stream.delay - 1)
            assert not any(silent[stream.delay - 1 : stream.delay])
        yield [*chunks, stream.finish()], whole[row]


def stereo_tokenizer(name: str, channels: int) -> AudioTokenizer:
    return make_tokenizer(test_stereo.config_of(name, channels), test_stereo.net_of(name, channels))


def chunks_of(model: Model, **asked) -> list[Tensor]:
    """The chunks of a model's stream: none is empty, all have whole frames, but for what the decoder loses."""
    chunks, frame = list(model.stream(**asked)), model.spec.geometry.samples_per_frame
    assert all(chunk.dtype == torch.float32 and chunk.shape[0] == 1 for chunk in chunks)
    sizes = [chunk.shape[1] for chunk in chunks[:-1]] + [chunks[-1].shape[1] + model.tokenizer.net.decoder.lost]
    assert all(chunk.shape[1] for chunk in chunks) and all(size % frame == 0 for size in sizes)
    return chunks


def rows_of_a_batch(name: str, folder) -> Streams:
    """Audio network `name`: alone, as a row of a batch, after a prompt, and where the length is given."""
    tokenizer = test_audio_networks.tokenizer_of(name)
    torch.manual_seed(0)
    lm = TokenLM(LMConfig(width=16, layers=1, heads=2, arrangement=DelayConfig(), variable_length=True), tokenizer.spec)
    model = Model(strong(lm).eval(), tokenizer, None, [], GenerationConfig(max_frames=24, min_frames=3))
    results = {rows: model.generate(n=rows, seed=5, exact=True) for rows in (1, 2, 3)}
    for i in range(3):
        chunks = chunks_of(model, seed=5 + i)
        yield from ((chunks, result.media[i]) for rows, result in results.items() if rows > i)
    for more in ({"prompt": results[1].codes[0, :, :3]}, {"num_frames": 11}):
        yield chunks_of(model, seed=2, **more), model.generate(seed=2, **more).media[0]


def asked_of_a_model(name: str, asked: dict, folder) -> Streams:
    """A tiny model with conditions, guidance and rules."""
    model = tessera.load(folder / name, device="cpu")
    for seed in range(2):
        whole, chunks = model.generate(**asked, seed=seed), chunks_of(model, **asked, seed=seed)
        assert len(chunks) > 1 or whole.lengths[0] < 10
        assert torch.equal(whole.media[0], model.tokenizer.decode(whole.codes)[0])
        yield chunks, whole.media[0]


def compiled_steps(folder) -> Streams:
    """Frames of codes, as they leave a decode loop of compiled steps."""
    asked = make_lm("delay"), ConditionBatch(), [3], Length(12, 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(step_runner.MAKERS, "compiled", plain)
        yield list(decode_loop(*asked, step="compiled").frames()), generate_codes(*asked, step="compiled").codes[0]


def cases(quick: int, family: str, makers: dict[str, Callable[..., Streams]]) -> list:
    """`quick` of a family's cases are run by `make test`."""
    sample = pytest.mark.sample(quick, family)
    return [pytest.param(make, id=f"{family}: {name}", marks=sample) for name, make in makers.items()]


RULES = dict(ras=6, ras_tau=0.3, repetition_penalty=1.3, end_bias=-1.0, max_silence=0.004, top_k=5)
VOICE = torch.rand(1, 16 * 5 + 3, generator=torch.Generator().manual_seed(0)) - 0.5
ASKED = {
    "text": ("tones", {"text": "a"}),
    "longer text": ("tones", {"text": "some words"}),
    "every rule": ("tones", {"text": "a", "max_frames": 30, **RULES}),
    "guided label": ("voices", {"text": "one", "label": "star", "guidance": 2.0}),
    "voice": ("clones", {"text": "a", "label": 1, "voice": VOICE}),
}
NETWORKS = {
    f"{encoder}/{decoder}, {frames} frames": partial(
        decoded, partial(test_audio_networks.tokenizer_of, encoder, decoder), frames
    )
    for encoder, decoder in test_audio_networks.PAIRS
    for frames in (1, 4, 23)
}
QUANTIZERS = {
    f"{name}, {frames} frames": partial(decoded, partial(test_tokenizer.tiny, config), frames)
    for name, config in test_tokenizer.AUDIO.items()
    for frames in (1, 4, 5, 23)
}
CHANNELS = {
    f"{name}, {channels} channels": partial(decoded, partial(stereo_tokenizer, name, channels), 17)
    for name in test_stereo.PARTS
    for channels in (2, 3)
}
CASES = [
    *cases(5, "network", NETWORKS),
    *cases(5, "quantizer", QUANTIZERS),
    *cases(2, "several channels", CHANNELS),
    *cases(1, "model", {name: partial(rows_of_a_batch, name) for name in test_audio_networks.PARTS}),
    *cases(1, "asked for", {name: partial(asked_of_a_model, *asked) for name, asked in ASKED.items()}),
    *cases(1, "codes", {"compiled steps": compiled_steps}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.mark.sample(8)
@pytest.mark.parametrize("streams", CASES)
def test_a_stream_equals_the_whole(streams, folder):
    for chunks, whole in streams(folder=folder):
        assert torch.equal(torch.cat(chunks, dim=1), whole)
