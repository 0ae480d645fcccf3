"""Long sound in windows: against a slow one, streamed and whole, in memory that does not grow."""

import pytest
import torch
from short_calls import generate_codes
from tiny_models import ARRANGEMENTS, HEADS, save_tiny_models, strong

from tessera.generate import generate, stream_audio
from tessera.generate.loading import load
from tessera.generate.long_form import windows
from tessera.generate.requests.settings import Length
from tessera.generate.sampling.counter_rng import derived_seed
from tessera.lm.conditioning.batch import ConditionBatch
from tessera.lm.config import LMConfig
from tessera.lm.models.causal import TokenLM


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load(save_tiny_models(tmp_path_factory.mktemp("models")) / "tones").tokenizer


def make(tokenizer, arrangement="delay", variable=False, head="parallel"):
    torch.manual_seed(0)
    shape = {"width": 16, "layers": 1, "heads": 2, "head": HEADS[head]}
    config = LMConfig(**shape, arrangement=ARRANGEMENTS[arrangement], variable_length=variable)
    return strong(TokenLM(config, tokenizer.spec)).eval()


def slow_windows(lm, seed, total, window, stride, prompt=None):
    """Whole generations, cut and joined."""
    codes = torch.zeros(1, 3, 0, dtype=torch.long) if prompt is None else prompt[None]
    overlap, number = window - stride, 0
    before = 0 if codes.shape[2] < window else codes.shape[2] - overlap
    while codes.shape[2] < total:
        context = codes[:, :, before:]
        made = generate_codes(
            lm, ConditionBatch(), [derived_seed(seed, number)], Length(min(window, total - before), fixed=True),
            prompt=context if context.shape[2] else None,
        ).codes  # fmt: skip
        codes = torch.cat([codes[:, :, :before], made], dim=2)
        before, number = codes.shape[2] - overlap, number + 1
    return codes[0]


@pytest.mark.sample(2)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize(("total", "window", "stride"), [(13, 5, 3), (12, 6, 4), (7, 6, 1), (9, 3, 2)])
def test_windows_equal_whole_generations_joined(tokenizer, arrangement, total, window, stride):
    lm = make(tokenizer, arrangement)
    settings = {"num_frames": total, "window_frames": window, "stride_frames": stride}
    for given in (None, 2, 8):
        if given is not None and given >= total:
            continue
        prompt = None if given is None else torch.randint(16, (3, given), generator=torch.Generator().manual_seed(1))
        found = generate(lm, tokenizer, seed=4, prompt=prompt, **settings)
        assert torch.equal(found.codes[0], slow_windows(lm, 4, total, window, stride, prompt))
        assert found.ended == (True,)
        samples = torch.cat(list(stream_audio(lm, tokenizer, seed=4, prompt=prompt, **settings)), dim=1)
        assert torch.equal(samples, found.media[0])


def test_within_a_window_nothing_changes(tokenizer):
    lm = make(tokenizer)
    plain = generate(lm, tokenizer, num_frames=6, n=3)
    assert torch.equal(generate(lm, tokenizer, num_frames=6, n=3, window_frames=6).codes, plain.codes)
    longer = generate(lm, tokenizer, num_frames=11, n=3, window_frames=6)
    assert torch.equal(longer.codes[:, :, :6], plain.codes), "the first window is what the seed gives by itself"
    alone = generate(lm, tokenizer, num_frames=11, seed=2, window_frames=6)
    assert torch.equal(longer[2].codes, alone.codes)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["parallel", "depth"])
def test_an_end_in_a_later_window(tokenizer, head):
    lm = make(tokenizer, variable=True, head=head)
    found = generate(lm, tokenizer, n=12, max_frames=40, min_frames=9, window_frames=6, stride_frames=3)
    assert min(found.lengths.tolist()) >= 9 and len(set(found.lengths.tolist())) > 2
    for one in found:
        assert one.ended == (int(one.lengths[0]) < 40,)
        settings = {"max_frames": 40, "min_frames": 9, "window_frames": 6, "stride_frames": 3}
        samples = torch.cat(list(stream_audio(lm, tokenizer, seed=one.seeds[0], **settings)), dim=1)
        assert torch.equal(samples, one.media[0])


def kept(decoder):
    """Frames that a stream decoder holds."""
    return sum(0 if one.frames is None else len(one.frames) for one in decoder.stream.streams)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tokenizer, monkeypatch):
    lm, loops = make(tokenizer), []
    start = windows.decode_loop
    monkeypatch.setattr(windows, "decode_loop", lambda *given: loops.append(start(*given)) or loops[-1])

    def largest(total):
        loops.clear()
        sizes = []
        settings = {"num_frames": total, "window_frames": 8, "stride_frames": 5}
        chunks = stream_audio(lm, tokenizer, **settings)
        for _ in chunks:
            frame = chunks.gi_frame
            decoder = frame.f_locals["decoder"]
            sizes.append((loops[-1].state.cache.bytes, loops[-1].columns.numel(), kept(decoder)))
            del loops[:-1]
        return [max(size) for size in zip(*sizes, strict=True)]

    assert largest(200) == largest(60)


def test_a_stride_must_leave_something_to_go_on_from(tokenizer):
    lm = make(tokenizer)
    for stride, window in ((6, 6), (7, 6), (None, 1)):
        with pytest.raises(ValueError, match="the stride must be below the window"):
            generate(
                lm, tokenizer, num_frames=20, window_frames=window, **({"stride_frames": stride} if stride else {})
            )
