"""Guidance: every schedule against its formula, every combination against full forwards, and its laws."""

import math

import pytest
import torch
from short_calls import generate_codes
from tiny_models import make_conditions, make_lm

from tessera.configs.schema import ConfigError, check_config
from tessera.generate.requests.settings import Length
from tessera.generate.sampling.guidance import ClassifierFreeGuidance, filtered, guidance_words, make_scales
from tessera.lm.conditioning.registry import ConditionBatch, LabelConfig, TextConditionConfig
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.guidance_config import (
    ConstantGuidance,
    CosineGuidance,
    GuidanceConfig,
    IntervalGuidance,
    LinearGuidance,
    TwoConditions,
)
from tessera.tokenize.text.byte_text import ByteTextConfig

STEPS, K, FRAMES = 8, 3, 6

# A config and its formula of the scale s and the progress p.
SCHEDULES = {
    "constant": (ConstantGuidance(scale=3.0), lambda s, p: s),
    "interval": (
        IntervalGuidance(scale=3.0, start=0.25, stop=0.75),
        lambda s, p: s if 0.25 <= p < 0.75 else 1.0,
    ),
    "linear": (LinearGuidance(scale=3.0), lambda s, p: 1 + (s - 1) * p),
    "falling": (LinearGuidance(scale=0.5, first=4.0), lambda s, p: 4 * (1 - p) + s * p),
    "cosine": (CosineGuidance(scale=3.0), lambda s, p: 1 + (s - 1) * 0.5 * (1 - math.cos(math.pi * p))),
    "late cosine": (
        CosineGuidance(scale=16.0, power=2.75),
        lambda s, p: 1 + (s - 1) * 0.5 * (1 - math.cos(math.pi * p**2.75)),
    ),
}
schedules = pytest.mark.parametrize("name", SCHEDULES)


def two_conditions(count):
    """Label and text, both dropped in training."""
    configs = (LabelConfig(classes=4), TextConditionConfig(text=ByteTextConfig(), vocab_size=16))
    texts = [[1 + (3 * i + j) % 11 for j in range(1 + i % 3)] for i in range(count)]
    return configs, ConditionBatch.make(labels=[i % 4 for i in range(count)], texts=texts)


@schedules
def test_scales_follow_the_formula(name):
    config, formula = SCHEDULES[name]
    found = make_scales(config, K, STEPS)
    expected = [[formula(config.scale, step / STEPS)] * K for step in range(STEPS)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-14)
    several = config.model_copy(update={"scale": (3.0, 1.5, 0.0)})
    expected = [[formula(s, step / STEPS) for s in (3.0, 1.5, 0.0)] for step in range(STEPS)]
    torch.testing.assert_close(
        make_scales(several, K, STEPS), torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-14
    )


def test_published_numbers_in_our_scale():
    """VAR: (1 + t) l_c - t l_u with t = s p; MaskBit: l_c + s_i (l_c - l_u) with s_i = s (1 - cos(pi p^power)) / 2."""
    c, u = torch.randn(2, 5, dtype=torch.float64)
    for step in range(STEPS):
        p = step / STEPS
        w = make_scales(LinearGuidance(scale=1 + 4.0), 1, STEPS)[step]
        torch.testing.assert_close(u + w * (c - u), (1 + 4.0 * p) * c - 4.0 * p * u)
        w = make_scales(CosineGuidance(scale=1 + 6.0, power=2.0), 1, STEPS)[step]
        torch.testing.assert_close(u + w * (c - u), c + 6.0 * 0.5 * (1 - math.cos(math.pi * p**2)) * (c - u))


def test_settings_without_a_schedule_are_constant():
    assert make_scales(GuidanceConfig(scale=(2.0, 3.0)), 2, 3).tolist() == [[2.0, 3.0]] * 3


def greedy_by_hand(lm, batch, combine, num_frames=FRAMES):
    """Codes [B, K, T] of taking the likeliest id of logits combined from full forwards; parallel, fixed length."""
    codes = torch.zeros(batch.num_rows, K, num_frames, dtype=torch.long)
    for step in range(num_frames):

        def logits_given(conditions, step=step):
            logits = lm(codes, None, conditions).logits[:, :, step]
            if lm.arrangement.variable_length:
                logits[:, 0, lm.arrangement.end_ids[0]] = -torch.inf
            return torch.where(logits.isneginf(), -1e9, logits)

        codes[:, :, step] = combine(step / num_frames, logits_given).argmax(-1)
    return codes


def generate_greedily(lm, batch, guidance):
    return generate_codes(
        lm, batch, range(batch.num_rows), Length(FRAMES, fixed=True), GenerationConfig(temperature=0.0), guidance
    ).codes


@pytest.mark.sample(3)
@schedules
def test_a_schedule_equals_two_forwards(name):
    configs, batch = make_conditions("text", 6)
    lm = make_lm("parallel", conditions=configs)
    config, formula = SCHEDULES[name]

    def combine(p, given):
        c, n = given(batch), given(batch.null())
        return n + formula(config.scale, p) * (c - n)

    found = generate_greedily(lm, batch, config)
    assert torch.equal(found, greedy_by_hand(lm, batch, combine))
    assert not torch.equal(found, generate_greedily(lm, batch, 1.0))


@pytest.mark.parametrize("keep", ["label", "text"])
def test_two_conditions_equal_three_forwards(keep):
    configs, batch = two_conditions(6)
    lm = make_lm("parallel", conditions=configs)
    s, beta = 2.5, 3.0
    kept = (
        ConditionBatch.make(labels=batch.label.tolist(), texts=[None] * 6)
        if keep == "label"
        else ConditionBatch(label=torch.full((6,), -1), text=batch.text, text_lengths=batch.text_lengths)
    )

    def combine(p, given):
        c, w, u = given(batch), given(kept), given(batch.null())
        return u + s * (w + beta * (c - w) - u)

    found = generate_greedily(lm, batch, ConstantGuidance(scale=s, two=TwoConditions(keep=(keep,), beta=beta)))
    assert torch.equal(found, greedy_by_hand(lm, batch, combine))
    plain = generate_greedily(lm, batch, ConstantGuidance(scale=s, two=TwoConditions(keep=(keep,), beta=1.0)))
    assert torch.equal(plain, generate_greedily(lm, batch, s)), "beta 1 is one condition"


def test_a_filter_chooses_but_does_not_weigh():
    configs, batch = make_conditions("label", 6)
    lm = make_lm("parallel", conditions=configs)

    def combine(p, given):
        c, n = given(batch), given(batch.null())
        guided = c + 2.0 * (c - n)  # as Dia writes it: scale 3 here
        chosen = guided.argsort(-1, descending=True)[..., :2]
        return torch.full_like(c, -torch.inf).scatter(-1, chosen, c.gather(-1, chosen))

    found = generate_greedily(lm, batch, ConstantGuidance(scale=3.0, filter_top_k=2))
    assert torch.equal(found, greedy_by_hand(lm, batch, combine))
    conditioned, guided = torch.tensor([1.0, 5.0, 3.0, -math.inf]), torch.tensor([9.0, 1.0, 8.0, -math.inf])
    assert filtered(conditioned, guided, 2).tolist() == [1.0, -math.inf, 3.0, -math.inf]
    assert filtered(conditioned, guided, 50).tolist() == conditioned.tolist()


def test_a_filter_leaves_something_where_the_end_is_forbidden():
    """The end is likeliest by far; before its time the filter must choose among the others."""
    configs, batch = make_conditions("label", 4)
    lm = make_lm("parallel", conditions=configs)
    with torch.no_grad():
        lm.head.weight[lm.arrangement.end_ids[0]] *= 50
    found = generate_codes(
        lm, batch, range(4), Length(FRAMES, min_frames=4), None, ConstantGuidance(scale=2.0, filter_top_k=1)
    )
    assert int(found.lengths.min()) >= 4


@pytest.mark.sample(4)
@pytest.mark.parametrize("variable", [True, False])
@pytest.mark.parametrize("name", ["constant", "interval", "linear", "cosine"])
def test_guidance_1_is_the_condition_alone(name, variable):
    configs, batch = make_conditions("label", 4)
    lm = make_lm("delay", variable=variable, conditions=configs)
    length = Length(FRAMES, fixed=not variable)
    alone = generate_codes(lm, batch, range(4), length, guidance=1.0)
    config = SCHEDULES[name][0].model_copy(update={"scale": 1.0})
    found = generate_codes(lm, batch, range(4), length, guidance=config)
    assert torch.equal(found.codes, alone.codes)
    assert ClassifierFreeGuidance(config, lm, STEPS).branches == 1


def test_where_a_schedule_is_1_logits_are_those_of_the_condition():
    configs, _ = make_conditions("label", 4)
    guide = ClassifierFreeGuidance(IntervalGuidance(scale=7.3, start=0.5), make_lm("parallel", conditions=configs), 4)
    logits = torch.randn(2, 5, 3, 7, dtype=torch.float64)
    books = torch.arange(3)
    assert guide(logits, 1, books).equal(logits[0])
    assert guide(logits, 2, books).equal(logits[1] + 7.3 * (logits[0] - logits[1]))
    assert guide(logits, torch.tensor(2), books).equal(guide(logits, 2, books))


@pytest.mark.parametrize("arrangement", ["delay", "flat"])
def test_a_number_a_list_and_a_config_say_the_same(arrangement):
    configs, batch = make_conditions("text", 4)
    lm = make_lm(arrangement, conditions=configs)
    one, other, third = (
        generate_codes(lm, batch, range(4), Length(FRAMES), GenerationConfig(temperature=1.3), guidance).codes
        for guidance in (2.5, (2.5, 2.5, 2.5), ConstantGuidance(scale=2.5))
    )
    assert one.equal(other) and one.equal(third)


def test_guidance_by_codebook():
    configs, batch = make_conditions("label", 6)
    lm = make_lm("parallel", conditions=configs)
    scales = torch.tensor([1.0, 4.0, 0.0], dtype=torch.float64)[:, None]

    def combine(p, given):
        c, n = given(batch), given(batch.null())
        return n + scales * (c - n)

    assert torch.equal(generate_greedily(lm, batch, (1.0, 4.0, 0.0)), greedy_by_hand(lm, batch, combine))


def test_yaml():
    def read(value):
        return check_config({"guidance": value}, GenerationConfig).guidance

    assert read(3) == 3.0 and read([1.0, 2]) == (1.0, 2.0)
    assert read({"scale": 3.0}) == ConstantGuidance(scale=3.0)
    linear = LinearGuidance(scale=(3.0, 2.0), first=0.5)
    assert read({"kind": "linear", "scale": [3.0, 2.0], "first": 0.5}) == linear
    saved = GenerationConfig(guidance=linear).model_dump(mode="json")
    assert check_config(saved, GenerationConfig).guidance == linear
    assert GenerationConfig(guidance=2.0).model_dump(mode="json")["guidance"] == 2.0
    assert guidance_words(2.0) == "2.0" and guidance_words(linear) == "3.0, 2.0 (linear)"
    for value, message in (
        (-1.0, "guidance.scale: Input should be greater than or equal to 0"),
        ("x", "guidance.scale: Input should be a valid number"),
        ({"kind": "linear", "scale": 3.0, "frist": 2.0}, "frist: unknown key; did you mean 'first'"),
        ({"kind": "interval", "scale": 3.0, "start": 0.5, "stop": 0.5}, "stop 0.5 must be above start 0.5"),
        ({"kind": "interval", "scale": 3.0, "stop": 1.5}, "less than or equal to 1"),
        ({"kind": "squared", "scale": 3.0}, "guidance: kind must be one of constant, interval, linear, cosine"),
        ({"kind": "cosine"}, "guidance.cosine.scale: Field required"),
    ):
        with pytest.raises(ConfigError, match=message):
            read(value)


def test_errors():
    configs, batch = two_conditions(2)
    lm = make_lm(conditions=configs)

    def refuse(message, guidance, lm=lm):
        with pytest.raises(ValueError, match=message):
            ClassifierFreeGuidance(guidance, lm, STEPS)

    refuse("guidance must be at least 0, found -2", (1.0, -2.0, 1.0))
    refuse("guidance has 2 scales but the model has 3 codebooks; give one value or 3", (1.0, 2.0))
    refuse(r"guidance is 3.0 \(linear\), but the model has no conditions", LinearGuidance(scale=3.0), make_lm())
    undropped = (configs[0], configs[1].model_copy(update={"dropout": 0.0}))
    refuse("without dropping its text", 3.0, make_lm(conditions=undropped))

    def two(*keep):
        return ConstantGuidance(scale=3.0, two=TwoConditions(keep=keep, beta=2.0))

    refuse("keep names 'style', but the model's conditions are label, text", two("style"))
    refuse(r"keep names all conditions of the model \(label, text\)", two("text", "label"))
    with pytest.raises(ValueError, match="end_rule: Input should be 'drawn' or 'likeliest' .found 'never'"):
        generate_codes(lm, batch, [0, 1], Length(FRAMES), {"end_rule": "never"})
