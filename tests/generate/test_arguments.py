"""Arguments of a call of a type that they never have: one line that names the argument, before anything is made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_models

import tessera
from tessera.generate import generate
from tessera.generate.requests.arguments import plain, shown


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = save_tiny_models(tmp_path_factory.mktemp("models"))
    return {name: tessera.load(folder / name, "cpu") for name in ("clones", "shapes")}


VOICE = torch.ones(3, 4, dtype=torch.long)
SOUND = {"text": "ab", "label": 0, "voice": VOICE, "num_frames": 4}
WRONG = {
    "None in a list": [None],
    "bytes": b"x",
    "path": Path("x/y"),
    "set": {1},
    "object": object(),
    "function": len,
    "complex": 1j,
    "surrogate": "\ud800",
    "matrix": torch.ones(3, 2, 2, 2),
    "array": np.ones((1, 2, 3)),
    "meta": torch.ones(3, 2, dtype=torch.long, device="meta"),
}
ARGUMENTS = [
    "label", "text", "description", "n", "seed", "num_frames", "max_seconds", "unconditional", "exact", "batch",
    "prompt", "prompt_frames", "voice", "voice_frames", "temperature", "top_k", "top_p", "min_p", "repetition_penalty",
    "repetition_window", "ras", "ras_tau", "end_bias", "end_rule", "max_silence", "silence_codes", "guidance",
    "max_frames", "min_frames", "split", "carry", "retries", "text_characters", "frames_per_character",
    "window_frames", "stride_frames", "passes", "pass_schedule", "choice_temperature", "fine_temperature",
    "fine_guidance", "cache", "draft", "step",
]  # fmt: skip
NOT_WRONG = {("text", "surrogate")} | {(name, "path") for name in ("prompt", "voice")}  # a file's name
NOT_WRONG |= {(name, "surrogate") for name in ("prompt", "voice")}
NOT_WRONG |= {("prompt", "matrix"), ("voice", "matrix")}  # media of another shape: the tokenizer says so
SPELLED = {"prompt_frames": "prompt.frames", "voice": "voice", "label": "label"}


def refused(call, name: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    said = str(caught.value)
    assert name in said and "\n" not in said and len(said) < 400, said


@pytest.mark.parametrize("name", ARGUMENTS)
def test_values_of_other_types_are_refused_by_name(models, name):
    given = dict(SOUND)
    if name in ("max_seconds", "max_frames", "min_frames", "frames_per_character"):
        del given["num_frames"]
    if name == "prompt_frames":
        given["prompt"] = VOICE[:, :2]
    for kind, wrong in WRONG.items():
        if (name, kind) not in NOT_WRONG:
            refused(lambda wrong=wrong: models["clones"].generate(**{**given, name: wrong}), name)


@pytest.mark.parametrize("name", ["label", "seed", "prompt", "temperature", "guidance", "unconditional"])
def test_streams_and_pictures_refuse_the_same(models, name):
    for kind, wrong in WRONG.items():
        if (name, kind) not in NOT_WRONG:
            refused(lambda wrong=wrong: models["clones"].stream(**{**SOUND, name: wrong}), name)
            refused(lambda wrong=wrong: models["shapes"].stream(**{"label": 0, name: wrong}), name)


@pytest.mark.parametrize("name", ["n", "seed", "num_frames", "exact", "batch", "prompt", "temperature", "on_progress"])
def test_so_does_the_function_for_a_model_of_ones_own(models, name):
    model = models["clones"]
    given = {"label": 0, "text_ids": [1], "voice": VOICE, "num_frames": 4}
    for kind, wrong in WRONG.items():
        if (name, kind) != ("on_progress", "function"):
            refused(lambda wrong=wrong: generate(model.lm, model.tokenizer, **{**given, name: wrong}), name)


def test_one_number_is_no_prompt(models):
    refused(lambda: models["clones"].generate(**{**SOUND, "prompt": torch.tensor(1.0)}), "prompt")
    refused(lambda: models["clones"].generate(**{**SOUND, "voice": torch.tensor(1.0)}), "voice")


NUMBERS = [
    {"seed": np.int64(3), "n": np.int32(2), "batch": torch.tensor(1), "num_frames": np.array(4)},
    {"temperature": np.float32(0.5), "top_k": np.int64(3)},
    {"temperature": np.array([0.5, 1.0, 0.25]), "top_k": torch.tensor([3, 2, 1])},
    {"guidance": torch.tensor([2.0, 1.0, 1.5])},
    {"label": np.array([1, 2]), "exact": np.bool_(True)},
    {"text": np.array(["ab", "cd"])},
]


@pytest.mark.parametrize("given", NUMBERS, ids=str)
def test_numbers_of_numpy_and_torch_are_those_of_python(models, given):
    model = models["clones"]
    said = {name: value.tolist() for name, value in given.items()}
    assert torch.equal(model.generate(**{**SOUND, **given}).codes, model.generate(**{**SOUND, **said}).codes)


@pytest.mark.parametrize("frames", [10**11, 10**30])
def test_absurd_limits_of_frames_are_refused(models, frames):
    with pytest.raises(ValueError, match="max_frames: Input should be less than or equal to 10000000"):
        models["clones"].generate(text="ab", label=0, voice=VOICE, max_frames=frames)


def test_what_is_shown_is_one_short_line():
    for value in (torch.ones(9, 9), np.ones((9, 9)), "a\nb" * 999, ["x"] * 999):
        assert len(shown(value)) < 200 and "\n" not in shown(value)
    assert plain((1, [np.int64(2)], torch.tensor([3.0]))) == [1, [2], [3.0]]
