"""The sampler against a slow one with Python lists, rule by rule and all together, and its laws."""

import random

import pytest
import torch
from short_calls import FRAME, generate_codes
from test_sampling import at, slow_distribution, slow_draw
from tiny_models import ARRANGEMENTS, CARDINALITIES, HEADS, NEED_LENGTH, make_conditions, make_lm

from tessera.generate.requests.settings import Length
from tessera.generate.sampling.counter_rng import step_numbers, uniform
from tessera.generate.sampling.repetition import LookBack
from tessera.generate.sampling.token_sampler import Sampler
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.patterns.sub_tokens import SubTokens

SILENT = [1, 3]
RULES = {
    "penalty": GenerationConfig(repetition_penalty=3.0, repetition_window=4),
    "penalty by codebook": GenerationConfig(repetition_penalty=[1.0, 5.0, 0.2], repetition_window=[9, 1, 3],
    temperature=0.8), "ras": GenerationConfig(top_k=2, ras=10),
    "ras by codebook": GenerationConfig(top_p=[0.3, 0.5, 0.8], ras=[0, 7, 3], ras_tau=[0.1, 0.3, 0.7], temperature=[1,
    0, 2.0]), "end bias": GenerationConfig(end_bias=1.5),
    "silence": GenerationConfig(max_silence=2 * FRAME, silence_codes=SILENT),
    "end where likeliest": GenerationConfig(end_rule="likeliest", temperature=2.0, end_bias=2.0),
    "all": GenerationConfig(
        temperature=1.2, top_k=3, min_p=0.05, repetition_penalty=1.5, repetition_window=5, ras=4, ras_tau=0.5,
        end_bias=-0.5, max_silence=FRAME, silence_codes=SILENT,
    ),
}  # fmt: skip
HISTORY = 12


def slow_choice(logits, past, s, k, u, again, end_id, may_end):
    """The id that one row draws for codebook k, given the list of its past codes in that codebook."""
    logits = list(logits)
    if k == 0:
        limit = round(s.max_silence / FRAME)
        if limit and len(past) >= limit and all(code in s.silence_codes for code in past[-limit:]):
            for code in s.silence_codes:
                logits[code] = float("-inf")
        if end_id is not None:
            logits[end_id] = logits[end_id] + s.end_bias if may_end else float("-inf")
    for code in set(past[-at(s.repetition_window, k) :]):
        penalty = at(s.repetition_penalty, k)
        logits[code] = logits[code] / penalty if logits[code] > 0 else logits[code] * penalty
    if k == 0 and s.end_rule == "likeliest" and max(logits) > logits[end_id]:
        logits[end_id] = float("-inf")
    drawn = slow_draw(slow_distribution(logits, s, k), u)
    window = at(s.ras, k)
    if window and past[-window:].count(drawn) >= window * at(s.ras_tau, k) - 1e-6 and drawn in past[-window:]:
        plain = GenerationConfig(temperature=at(s.temperature, k) or 1.0)
        drawn = slow_draw(slow_distribution(logits, plain, k), again)
    return drawn


@pytest.mark.sample(3)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize("arrangement", ["delay", "flat", "flatten first"])
def test_equals_the_slow_reference(arrangement, rules):
    lm = make_lm(arrangement)
    B, K, end_id = 40, 3, CARDINALITIES[0]
    arranged = lm.arrangement
    generator = torch.Generator().manual_seed(len(arrangement))
    # Few different codes, so that they repeat.
    codes = torch.stack([torch.randint(min(V, 4), (B, HISTORY), generator=generator) for V in CARDINALITIES], dim=1)
    codes[: B // 2, 0] = torch.randint(2, (B // 2, HISTORY), generator=generator) * 2 + 1
    columns = torch.cat([lm.start_ids(B)[..., None], arranged.arrange(codes).ids], dim=2)
    table = arranged.table(HISTORY).tolist()
    seeds = torch.arange(B)
    first_end_step = arranged.num_steps(HISTORY) // 2
    sampler = Sampler(
        rules, arranged, SubTokens(arranged), HISTORY, torch.tensor([first_end_step]), "cpu", 0, 1 / FRAME
    )
    draw = random.Random(0)
    for step in draw.sample(range(arranged.num_steps(HISTORY)), 6):
        begun = sampler.begin(torch.tensor(step), columns, step_numbers(seeds, 99, K), step_numbers(seeds, 99, K, 1))
        u, again = uniform(seeds, step, K), uniform(seeds, step, K, draw=1)
        for books in ((0,), (2, 1)):
            logits = torch.randn(B, len(books), 7, generator=generator).double() * 2
            for i, k in enumerate(books):
                logits[:, i, CARDINALITIES[k] + (k == 0) :] = float("-inf")
            stage = sampler.stage(books)
            found = sampler.draw(begun, stage, sampler.forbid(begun, stage, logits))
            for i, k in enumerate(books):
                before = table[k][step] if table[k][step] >= 0 else 0
                for b in range(B):
                    expected = slow_choice(
                        logits[b, i].tolist(), codes[b, k, :before].tolist(), rules, k, float(u[b, k]),
                        float(again[b, k]), end_id, step >= first_end_step,
                    )  # fmt: skip
                    assert found[b, i] == expected, (step, b, k)


@pytest.mark.parametrize("arrangement", [*ARRANGEMENTS])
def test_look_back_finds_the_codes_before(arrangement):
    lm = make_lm(arrangement, variable=arrangement not in NEED_LENGTH)
    codes = torch.stack([torch.randint(V, (2, 6)) for V in CARDINALITIES], dim=1)
    ids = lm.arrangement.arrange(codes).ids
    columns = torch.cat([torch.zeros(2, 3, 1, dtype=torch.long), ids], dim=2)
    look_back = LookBack(lm.arrangement, 6, 4, "cpu")
    table = lm.arrangement.table(6)
    for step in range(table.shape[1]):
        found = look_back(columns, step)
        assert torch.equal(found, look_back(columns, torch.tensor(step)))
        for k in range(3):
            frame = max(0, int(table[k, step]))
            expected = torch.cat([torch.full((2, 4), -1), codes[:, k, :frame]], dim=1)[:, -4:]
            assert torch.equal(found[:, k], expected)


@pytest.mark.sample(2)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
def test_continuing_the_beginning_of_a_result_gives_the_result(rules):
    lm = make_lm()
    _, none = make_conditions("none", 4)
    length = Length(14, min_frames=5)
    whole = generate_codes(lm, none, range(4), length, rules)
    again = generate_codes(lm, none, range(4), length, rules, prompt=whole.codes[:, :, :5])
    assert torch.equal(again.codes, whole.codes) and torch.equal(again.lengths, whole.lengths)


def make_codes(rules, n=64, frames=30, **length):
    lm = make_lm("delay")
    return generate_codes(lm, make_conditions("none", 1)[1], range(n), Length(frames, **length), rules)


def longest_run(codes: list[int], of) -> int:
    longest = run = 0
    for code in codes:
        run = run + 1 if code in of else 0
        longest = max(longest, run)
    return longest


def test_silence_is_limited():
    for limit in (1, 3):
        rules = GenerationConfig(max_silence=limit * FRAME, silence_codes=SILENT)
        found = make_codes(rules, fixed=True).codes[:, 0].tolist()
        assert max(longest_run(row, SILENT) for row in found) == limit
    free = make_codes(GenerationConfig(), fixed=True).codes[:, 0].tolist()
    assert max(longest_run(row, SILENT) for row in free) > 3


def test_the_end_follows_its_bias():
    lengths = [int(make_codes(GenerationConfig(end_bias=bias)).lengths.sum()) for bias in (-3.0, 0.0, 3.0)]
    assert lengths[0] > lengths[1] > lengths[2]
    assert not bool(make_codes(GenerationConfig(end_bias=-100.0)).ended.any())


def test_repetition_is_less_than_without():
    def repeated(rules):
        codes = make_codes(rules, fixed=True).codes
        return float((codes[:, :, 1:] == codes[:, :, :-1]).double().mean())

    greedy = GenerationConfig(temperature=0.0)
    assert repeated(GenerationConfig(temperature=0.0, ras=2, ras_tau=0.5)) < repeated(greedy)
    assert repeated(GenerationConfig(repetition_penalty=4.0, repetition_window=2)) < repeated(GenerationConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repetition_penalty": 0.0}, "repetition_penalty: must be from 1e-9 to 1e9, found 0.0"),
        ({"repetition_penalty": [1.0, 2.0]}, "repetition_penalty has 2 values but the model has 3 codebooks"),
        ({"repetition_window": 0}, "repetition_window: must be a whole number of frames from 1 to 4096, found 0"),
        ({"ras": -1}, "ras: must be a whole number of frames from 0 to 4096, found -1"),
        ({"ras": 2.5}, "ras: Input should be a valid integer .found 2.5"),
        ({"ras": 10, "ras_tau": 0.0}, "ras_tau: must be above 0 and at most 1, found 0.0"),
        ({"end_bias": float("nan")}, "end_bias: Input should be a finite number"),
        ({"max_silence": -1.0}, "max_silence: Input should be greater than or equal to 0"),
        ({"max_silence": 600.0}, "max_silence is 600.0 s, which are 2400000 frames; the limit is 4096"),
        ({"max_silence": 2 * FRAME}, "no silence_codes were given"),
        ({"max_silence": FRAME, "silence_codes": [4]}, "silence_codes must be codes of codebook 0, 0 to 3, found 4"),
        ({"max_silence": FRAME, "silence_codes": [0, 1, 2, 3]}, "silence_codes are all 4 codes of codebook 0"),
    ],
    ids=repr,
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make_codes(settings)


def test_a_bias_needs_an_end():
    lm = make_lm("delay", variable=False)
    with pytest.raises(ValueError, match="end_bias is 1.0, but the model has no end code"):
        generate_codes(lm, make_conditions("none", 1)[1], [0], Length(6, fixed=True), GenerationConfig(end_bias=1.0))


def test_an_output_between_codes_and_end_is_never_drawn():
    """With the end at V + 2 codebook 0 has two outputs that mean nothing; here they are by far the likeliest."""
    lm = make_lm("parallel", specials={"start": 0, "pad": 1, "end": 2})
    V = CARDINALITIES[0]
    assert lm.arrangement.output_sizes[0] == V + 3
    with torch.no_grad():
        rows = lm.head.weight.view(3, -1, lm.config.width)
        rows[0, V : V + 2] = 50 * lm.transformer.norm.weight.new_ones(2, lm.config.width)
        rows[0, V + 1] *= -1
    for length in (Length(8), Length(8, min_frames=3), Length(8, fixed=True)):
        found = generate_codes(lm, make_conditions("none", 1)[1], range(8), length)
        assert int(found.codes[:, 0].max()) < V


@pytest.mark.parametrize("rule", ["repetition_penalty", "ras", "max_silence"])
def test_rules_on_whole_codes_need_whole_codes(rule):
    lm = make_lm(head=HEADS["bits"])
    settings = {rule: 2, "silence_codes": [0]}
    with pytest.raises(ValueError, match=f"{rule} needs whole codes, but the model's head samples them in parts"):
        generate_codes(lm, make_conditions("none", 1)[1], [0], Length(6), settings)


def test_the_rule_of_the_end_touches_no_other_symbol():
    """A code of 2 x 3 parts: 2 is the end of its first part and a value of its second."""
    lm = make_lm(head=HEADS["factor"])
    columns, numbers = torch.zeros(50, 3, 8, dtype=torch.long), step_numbers(torch.arange(50), 8, 6)
    logits = torch.randn(50, 6, 3, generator=torch.Generator().manual_seed(0)).double()
    ids = []
    for rule in ("drawn", "likeliest"):
        sampler = Sampler(
            GenerationConfig(end_rule=rule), lm.arrangement, lm.head.sub_tokens, 6, torch.tensor([0]), "cpu"
        )
        begun = sampler.begin(torch.tensor(3), columns, numbers, None)
        ids.append(sampler.draw(begun, sampler.stage(tuple(range(6))), logits))
    assert torch.equal(ids[0][:, 1:], ids[1][:, 1:])
    ends = ids[1][:, 0] == 2
    assert bool(ends.any())
    assert bool((logits[ends, 0].argmax(-1) == 2).all())
