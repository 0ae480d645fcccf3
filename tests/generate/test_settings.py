"""Settings of a generation: what a call or a model's file says is checked by name before anything is made."""

import pytest

from tessera.configs.schema import ConfigError
from tessera.generate.requests.request import choose
from tessera.lm.guidance_config import ConstantGuidance, CosineGuidance, IntervalGuidance, LinearGuidance, TwoConditions

INF, NAN = float("inf"), float("nan")
NUMBERS = ("temperature", "fine_temperature", "repetition_penalty", "choice_temperature")

REFUSED = [
    *[({"temperature": bad}, "temperature: must be 0, or from 1e-30 to 1e9") for bad in (1e-320, 1e-300, 1e300)],
    *[({"fine_temperature": bad}, "fine_temperature: must be 0, or from 1e-30") for bad in (-1.0, [1.0, 1e-31])],
    *[({"repetition_penalty": bad}, "repetition_penalty: must be from 1e-9") for bad in (0.0, 1e-320, 1e308)],
    *[({name: bad}, f"{name}: Input should be a finite number") for name in NUMBERS for bad in (INF, NAN)],
    *[({"top_k": bad}, r"top_k: must be a whole number from 0 to 2\^40") for bad in (-1, 10**30, [1, 2**50])],
    *[({"guidance": bad}, "guidance.*less than or equal to 1000000000") for bad in ([1.0, 1e10], 1e300)],
    *[({"guidance": bad}, "guidance.*Input should be ") for bad in (NAN, INF, -1.0, [1.0, NAN])],
    ({"guidance": {"kind": "linear", "scale": 2.0, "first": INF}}, "guidance.linear.first"),
    ({"guidance": {"kind": "cosine", "scale": 2.0, "power": INF}}, "guidance.cosine.power"),
    ({"guidance": {"kind": "constant", "scale": INF}}, r"guidance.constant.scale: .* \(found inf\)"),
    ({"guidance": {"scale": 2.0, "two": {"keep": ["label"], "beta": INF}}}, "guidance.*two.beta"),
    ({"fine_guidance": 1e10}, "fine_guidance.*less than or equal to 1000000000"),
    ({"choice_temperature": 1e10}, "choice_temperature: .*less than or equal to 1000000000"),
    ({"frames_per_character": [1.0, INF]}, "frames_per_character.1"),
    ({"max_silence": NAN}, "max_silence"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=str)
def test_numbers_that_would_overflow_are_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=f"^generate: {message}") as refused:
        choose(None, settings)
    assert "\n" not in str(refused.value)


def test_the_ends_of_the_ranges_are_allowed():
    for settings in (
        {"temperature": [0.0, 1e-30, 1e9], "repetition_penalty": [1e-9, 1e9], "top_k": 2**40},
        {"guidance": 1e9, "choice_temperature": 1e9},
    ):
        choose(None, settings)


@pytest.mark.parametrize("kind", [ConstantGuidance, IntervalGuidance, LinearGuidance, CosineGuidance])
def test_guidance_made_in_python_is_checked_as_well(kind):
    for bad, message in ((1e10, "less than or equal to 1000000000"), (INF, "finite number")):
        with pytest.raises(ValueError, match=message):
            kind(scale=bad)
        with pytest.raises(ValueError, match=message):
            TwoConditions(keep=("label",), beta=bad)
