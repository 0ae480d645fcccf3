"""What is wrong with a request is said at the call: before a stream's first piece, and before a batch is made."""

import pytest
import torch
from short_calls import fill_codes, fill_in_passes, generate_codes
from test_stages import folder  # noqa: F401
from tiny_models import make_lm

from tessera.generate.loading import load
from tessera.generate.long_form import windows
from tessera.generate.model import Model
from tessera.generate.requests.request import make_request
from tessera.generate.requests.settings import Length, seeds_from
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.models.causal import TokenLM

LAST = 2**63 - 1


@pytest.fixture(scope="module")
def models(folder):  # noqa: F811
    return {name: load(folder / name) for name in ("tones", "shapes", "fine", "masked", "long")}


@pytest.fixture
def no_steps(monkeypatch):
    """A model that makes nothing."""

    def read(*arguments):
        raise AssertionError("a step was made")

    monkeypatch.setattr(TokenLM, "read", read)


WINDOWS = {"window_frames": 6, "stride_frames": 4}
LONG = "abc def ghi. jkl mno pqr. stu vwx yz."


@pytest.mark.sample(1)
@pytest.mark.parametrize("settings", [{}, WINDOWS], ids=["whole", "windows"])
@pytest.mark.parametrize("frames", [10, 12, 20, 30])
def test_a_prompt_that_is_too_long(models, frames, settings, no_steps):
    prompt = torch.ones(3, frames, dtype=torch.long)
    given = {"text": "abc", "prompt": prompt, "max_frames": 10, **settings}
    for call in (models["tones"].generate, models["tones"].stream):
        with pytest.raises(ValueError, match=f"the prompt has {frames} frames, but at most 10 are generated"):
            call(**given)


BAD = [
    ({"temperature": [1.0]}, "temperature has 1 values"),
    ({"top_p": 0.0}, "top_p: must be above 0"),
    ({"guidance": [1.0, 2.0]}, "guidance has 2 scales"),
    ({"seed": 2**63}, r"seed must be from -9223372036854775808 to 9223372036854775807, found"),
    ({"seed": "x"}, "seed must be a whole number, found 'x'"),
    ({"min_frames": 30}, "min_frames must be from 0 to max_frames"),
    ({"draft": 2}, "draft is 2, but the model predicts 0 steps ahead"),
    ({"cache": "ring"}, "cache kind 'ring' needs a window"),
    ({"repetition_window": 0}, "repetition_window: must be"),
    ({"step": "graph"}, "needs a CUDA device"),
]


@pytest.mark.sample(2)
@pytest.mark.parametrize("more", [{}, WINDOWS, {"text": LONG, "text_characters": 12}], ids=["whole", "windows", "long"])
@pytest.mark.parametrize(("wrong", "message"), BAD, ids=lambda x: str(x)[:30])
def test_a_stream_of_sound_is_checked_at_the_call(models, wrong, message, more, no_steps):
    with pytest.raises(ValueError, match=message):
        models["tones"].stream(**{"text": "abc", "max_frames": 20, "frames_per_character": (0.1, 1.0), **more, **wrong})


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("shapes", {"temperature": [1.0]}, "temperature has 1 values"),
        ("masked", {"temperature": [1.0]}, "temperature has 1 values"),
        ("masked", {"passes": 3, "guidance": [1.0]}, "guidance has 1 scales"),
        ("masked", {"ras": 3}, "ras is 3, but a masked model"),
        ("masked", {"cache": "int8"}, "cache was set, but a masked model"),
        ("fine", {"temperature": [1.0]}, "temperature has 1 values"),
        ("fine", {"fine_temperature": [1.0]}, "temperature has 1 values"),
        ("fine", {"fine_guidance": [1.0]}, "guidance has 1 scales"),
        ("fine", {"seed": LAST + 1}, "seed must be from"),
    ],
)
def test_a_stream_of_pictures_is_checked_at_the_call(models, name, wrong, message, no_steps):
    for call in (models[name].stream, models[name].generate):
        with pytest.raises(ValueError, match=message):
            call(label=0, **wrong)


def test_settings_of_a_refiner_are_checked_before_its_labels_are_made(models, no_steps):
    with pytest.raises(ValueError, match="temperature has 1 values"):
        models["long"].generate(label=0, fine_temperature=[1.0])


# Seeds


def test_seeds_of_many_samples_are_all_numbers_of_64_bits(models, no_steps):
    assert seeds_from(LAST - 2, 3) == [LAST - 2, LAST - 1, LAST] and seeds_from(-(2**63), 2)[0] == -(2**63)
    message = f"so 3 samples need one of at most {LAST - 2}, found {LAST}"
    for name, given in (
        ("tones", {"text": ["a", "b", "c"], "batch": 1}),
        ("tones", {"text": ["a", "b", LONG], "text_characters": 12}),
        ("shapes", {"label": 0, "n": 3, "batch": 1}),
        ("masked", {"label": 0, "n": 3, "batch": 2}),
        ("fine", {"label": [0, 1, 2], "exact": True}),
    ):
        with pytest.raises(ValueError, match=message):
            models[name].generate(**given, seed=LAST)
    with pytest.raises(ValueError, match="found 9223372036854775808"):
        generate_codes(make_lm(), ConditionBatch(), [0, LAST + 1], Length(6), exact=True)


def test_a_prompt_is_checked_in_all_rows_before_the_first_batch(models, no_steps):
    prompt = torch.zeros(3, 3, 2, dtype=torch.long)
    prompt[2, 1, 1] = 16
    with pytest.raises(ValueError, match="codes range from 0 to 16"):
        models["tones"].generate(text=["a", "b", "c"], prompt=prompt, batch=1)
    tones: Model = models["tones"]
    from tessera.generate.requests.conditions import ConditionInputs

    with pytest.raises(ValueError, match="codebook 1 must hold codes 0 to 15"):
        make_request(
            tones.lm, tones.tokenizer, ConditionInputs(text_ids=[1]), 3, 0, prompt, None, None, {"max_frames": 9}
        )


# Generators


def test_passes_are_checked_at_the_call(models):
    lm, given = models["masked"].lm, ConditionBatch.make(labels=[0, 1])
    for bad, message in (
        ({"seeds": [0, LAST + 1]}, "a seed must be"),
        ({"lengths": torch.tensor([6])}, "lengths must be 2 numbers of frames"),
        ({"lengths": torch.tensor([0, 6])}, "at least 1, found"),
        ({"filling": {"pass_schedule": "x"}}, "pass_schedule: Input should be 'cosine'"),
        ({"sampling": {"top_p": 2.0}}, "top_p: must be above 0"),
        ({"guidance": [1.0]}, "guidance has 1 scales"),
        ({"conditions": ConditionBatch.make(labels=[0])}, "conditions have 1 rows"),
    ):
        call = {"conditions": given, "seeds": [0, 1], "lengths": torch.tensor([6, 6]), **bad}
        for function in (fill_codes, fill_in_passes):
            with pytest.raises(ValueError, match=message):
                function(lm, **call)


def test_windows_begin_at_the_call(models, monkeypatch):
    started = []
    start = windows.decode_loop
    monkeypatch.setattr(windows, "decode_loop", lambda *arguments: started.append(1) or start(*arguments))
    stream = models["tones"].stream(text="abc", num_frames=14, **WINDOWS)
    assert len(started) == 1
    list(stream)
    assert len(started) == 3
