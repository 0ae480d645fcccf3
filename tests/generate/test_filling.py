"""Masked decoding: against filling one code after another, every code once."""

import pytest
import torch
from short_calls import fill_codes
from tiny_models import CARDINALITIES, make_conditions, strong

from tessera.generate.decoding import masked
from tessera.generate.decoding.masked import SCHEDULES, remaining_counts
from tessera.lm.clustering.clustering import Clustering
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.heads.bits import BitsHeadConfig
from tessera.lm.layers.input_embedding import BitsInputConfig
from tessera.lm.models.mask_schedule import MaskingConfig
from tessera.lm.models.masked import MaskedConfig, MaskedLM
from tessera.tokenize.spec import AudioGeometry, TokenSpec

LABELS = torch.tensor([[0, 1, 0, 1, -1, -1, -1], [0, 1, 2, 0, 1, 2, 0], [0, 1, 1, 1, 0, 0, -1]])


BITS = {"head": BitsHeadConfig(groups=2), "input": BitsInputConfig()}


def make(refines=False, condition="none", count=4, unit="cell", **settings) -> tuple[MaskedLM, ConditionBatch]:
    configs, batch = make_conditions(condition, count)
    spec = TokenSpec(
        name="tiny",
        cardinalities=(16, 4, 64) if "head" in settings else CARDINALITIES,
        geometry=AudioGeometry(sample_rate=16000, samples_per_frame=4),
        fingerprint="0" * 64,
    )
    config = MaskedConfig(width=16, layers=1, heads=2, conditions=configs, masking=MaskingConfig(unit=unit), **settings)
    torch.manual_seed(0)
    lm = strong(MaskedLM(config, spec, None, Clustering(spec, LABELS) if refines else None))
    assert isinstance(lm, MaskedLM)
    return lm.double().eval(), batch


def make_labels(count, frames):
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.randint(M, (count, frames), generator=generator) for M in (2, 3, 2)], dim=1)


def frames_of(*lengths):
    return torch.tensor(lengths)


@torch.no_grad()
def fill_one_by_one(lm, length, coarse, conditions=None, guidance=1.0, unit="cell"):
    """The slow one: the likeliest code of the surest cell (or the likeliest codes of the surest frame), then again."""
    sub_tokens = lm.head.sub_tokens
    codes = torch.zeros(1, len(sub_tokens), length, dtype=torch.long)
    hidden = torch.ones_like(codes, dtype=torch.bool)
    while hidden.any():
        logits = lm(sub_tokens.join(codes), hidden, None, conditions, coarse)
        if guidance != 1:
            null = lm(sub_tokens.join(codes), hidden, None, conditions.null(), coarse)
            logits = torch.where(logits.isneginf(), logits, null + guidance * (logits - null))
        best, likeliest = logits.log_softmax(-1).max(-1)
        best = best.masked_fill(~hidden, 0.0)
        if unit == "frame":
            t = int(best.sum(1).masked_fill(~hidden.any(1), -torch.inf).argmax())
            codes[0, :, t], hidden[0, :, t] = likeliest[0, :, t], False
        else:
            cell = int(best.masked_fill(~hidden, -torch.inf).argmax())
            k, t = divmod(cell, length)
            codes[0, k, t], hidden[0, k, t] = likeliest[0, k, t], False
    return sub_tokens.join(codes)


@pytest.mark.sample(2)
@pytest.mark.parametrize("unit", ["cell", "frame"])
@pytest.mark.parametrize(("refines", "guidance"), [(False, 1.0), (True, 1.0), (True, 2.5)])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_as_many_passes_as_codes_are_one_by_one_by_confidence(refines, guidance, schedule, unit):
    lm, conditions = make(refines, "label", 2, unit=unit)
    coarse = make_labels(2, 5) if refines else None
    lengths = frames_of(5, 3)
    passes = 15 if unit == "cell" else 5
    how, greedy = {"passes": passes, "pass_schedule": schedule}, GenerationConfig(temperature=0)
    found = fill_codes(lm, conditions, [1, 2], lengths, how, greedy, guidance, coarse=coarse)
    for b, length in enumerate(lengths.tolist()):
        labels = None if coarse is None else coarse[b : b + 1, :, :length]
        slow = fill_one_by_one(lm, length, labels, conditions.rows(slice(b, b + 1)), guidance, unit)
        assert torch.equal(found[b, :, :length], slow[0]) and not found[b, :, length:].any()


@pytest.mark.parametrize("unit", ["cell", "frame"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_parts_of_codes_are_filled_one_by_one_too(unit, guidance):
    lm, conditions = make(False, "label", 2, unit=unit, **BITS)
    how, greedy, lengths = {"passes": 18 if unit == "cell" else 3}, GenerationConfig(temperature=0), frames_of(3, 2)
    found = fill_codes(lm, conditions, [1, 2], lengths, how, greedy, guidance)
    for b, length in enumerate(lengths.tolist()):
        slow = fill_one_by_one(lm, length, None, conditions.rows(slice(b, b + 1)), guidance, unit)
        assert torch.equal(found[b, :, :length], slow[0]) and not found[b, :, length:].any()


@pytest.mark.sample(10)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("passes", [1, 2, 5, 12, 40])
def test_every_code_is_filled_in_once_and_no_pass_is_idle(schedule, passes):
    counts = list(range(30))
    rows = remaining_counts(counts, passes, schedule)
    assert rows[:, 0].tolist() == counts and not rows[:, -1].any()
    steps = rows[:, :-1] - rows[:, 1:]
    for count, step in zip(counts, steps.tolist(), strict=True):
        used = min(count, passes)
        assert sum(step) == count and all(step[:used]) and not any(step[used:])
    shares = remaining_counts([1000], 10, schedule)[0].double() / 1000
    wanted = torch.tensor([SCHEDULES[schedule](i / 10) for i in range(11)], dtype=torch.float64)
    torch.testing.assert_close(shares, wanted, rtol=0, atol=1e-3)


def test_a_code_once_filled_in_is_never_changed(monkeypatch):
    lm, _ = make()
    seen = []
    forward = lm.forward
    monkeypatch.setattr(
        lm, "forward", lambda codes, hidden, *rest: (seen.append((codes, hidden)), forward(codes, hidden, *rest))[1]
    )
    found = fill_codes(lm, None, [5, 6], frames_of(6, 4), {"passes": 4, "choice_temperature": 2.0})
    assert len(seen) == 4 and int(seen[0][1].sum()) == 30
    for (before, hidden), (codes, later) in zip(seen, [*seen[1:], (found, torch.zeros_like(seen[0][1]))], strict=True):
        assert not (later & ~hidden).any() and (hidden & ~later).any(dim=2).any()
        assert torch.equal(codes[~hidden], before[~hidden])


def test_the_seed_is_all_that_is_random():
    lm, _ = make()
    found = fill_codes(lm, None, [7, 8, 7], frames_of(6, 6, 6), {"passes": 4, "choice_temperature": 1.0})
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


def test_one_pass_draws_every_code_from_the_first_logits():
    lm, _ = make(True)
    coarse = make_labels(2, 4)
    hidden = torch.ones(2, 3, 4, dtype=torch.bool)
    found = fill_codes(lm, None, [3, 4], frames_of(4, 4), {"passes": 1}, coarse=coarse)
    likeliest = fill_codes(lm, None, [3, 4], frames_of(4, 4), None, GenerationConfig(temperature=0), coarse=coarse)
    assert torch.equal(likeliest, lm(torch.zeros_like(coarse), hidden, coarse=coarse).argmax(-1)), "a refiner's default"
    noisy = fill_codes(lm, None, [3, 4], frames_of(4, 4), {"passes": 1, "choice_temperature": 9.0}, coarse=coarse)
    assert torch.equal(found, noisy) and not torch.equal(found, likeliest)
    assert lm.clustering is not None and torch.equal(lm.clustering.coarse(found), coarse)


def test_the_bits_of_a_code_are_independent_in_one_pass():
    """The share of each code is the product of the probabilities of its parts."""
    lm, _ = make(**BITS)
    parts = lm(torch.zeros(1, 3, 1, dtype=torch.long), torch.ones(1, 6, 1, dtype=torch.bool))[0, :, 0].softmax(-1)
    found = fill_codes(lm, None, list(range(4000)), torch.ones(4000, dtype=torch.long), {"passes": 1})[:, 1, 0]
    wanted = (parts[2, :2, None] * parts[3, None, :2]).flatten().detach()
    share = torch.bincount(found, minlength=4).double() / 4000
    torch.testing.assert_close(share, wanted, rtol=0, atol=0.03)  # 4 sigma of 4000 draws


def test_draws_follow_the_distribution():
    """One pass over many seeds: the share of each code is its probability."""
    lm, _ = make()
    hidden = torch.ones(1, 3, 1, dtype=torch.bool)
    wanted = lm(torch.zeros(1, 3, 1, dtype=torch.long), hidden)[0, :, 0].softmax(-1)
    found = fill_codes(lm, None, list(range(4000)), torch.ones(4000, dtype=torch.long), {"passes": 1})[:, :, 0]
    for k, size in enumerate(CARDINALITIES):
        share = torch.bincount(found[:, k], minlength=size).double() / 4000
        torch.testing.assert_close(share, wanted[k, :size].detach(), rtol=0, atol=0.03)  # 4 sigma of 4000 draws


def test_a_prompt_is_kept(monkeypatch):
    lm, _ = make()
    prompt = torch.stack([torch.randint(V, (2, 3)) for V in CARDINALITIES], dim=1)
    found = fill_codes(lm, None, [1, 2], frames_of(6, 5), {"passes": 3}, prompt=prompt)
    assert torch.equal(found[:, :, :3], prompt)
    assert not torch.equal(found, fill_codes(lm, None, [1, 2], frames_of(6, 5), {"passes": 3}))


def test_noise_on_the_choice_falls_to_nothing_and_has_numbers_of_its_own():
    lm, _ = make()
    surest = fill_codes(lm, None, [1], frames_of(6), {"passes": 6})
    assert not torch.equal(surest, fill_codes(lm, None, [1], frames_of(6), {"passes": 6, "choice_temperature": 5.0}))
    assert masked.CODES != masked.CHOICES and min(masked.CODES, masked.CHOICES) > 1


def test_progress_is_counted():
    lm, _ = make()
    for exact in (False, True):
        seen: list[tuple[int, int]] = []

        def note(done, total, seen=seen):
            seen.append((done, total))

        fill_codes(lm, None, [1, 2], frames_of(2, 2), {"passes": 3}, exact=exact, on_progress=note)
        assert seen[-1] == (6, 6) and [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filling": {"pass_schedule": "sine"}}, "pass_schedule: Input should be 'cosine', 'linear'"),
        ({"filling": {"passes": 0}}, "passes: Input should be greater than or equal to 1 .found 0"),
        ({"filling": {"choice_temperature": -1.0}}, "choice_temperature: Input should be greater than or equal to 0"),
        ({"guidance": 2.0}, "guidance is 2.0, but the model has no conditions"),
        ({"sampling": GenerationConfig(temperature=[1.0, 1.0])}, "temperature has 2 values but the model has 3"),
        ({"sampling": GenerationConfig(ras=10)}, "ras is 10, but a masked model does not fill codes in order"),
        ({"seeds": [0.5]}, "a seed must be a whole number"),
    ],
)
def test_refusals(settings, message):
    lm, _ = make()
    with pytest.raises(ValueError, match=message):
        fill_codes(**{"lm": lm, "conditions": None, "seeds": [1], "lengths": frames_of(3), **settings})


@pytest.mark.sample(1)
@pytest.mark.parametrize("unit", ["cell", "frame"])
@pytest.mark.parametrize("parts", [{}, BITS], ids=["codes", "bits"])
def test_rounding_does_not_choose_among_cells_that_are_as_sure(parts, unit):
    """Nothing is known in the first pass and positions are told by rotation alone: all positions have the same logits,
    but for rounding, which differs alone and in a batch of other lengths."""
    lm, _ = make(unit=unit, **parts)
    lengths, seeds = frames_of(40, 31, 9, 25, 38, 16), list(range(6))
    codes, hidden = (
        torch.zeros(1, 3, 40, dtype=torch.long),
        torch.ones(1, len(lm.head.sub_tokens), 40, dtype=torch.bool),
    )
    for dtype in (torch.float64, torch.float32):
        lm = lm.to(dtype)
        logits = lm(codes, hidden)
        spread = (logits - logits[:, :, :1]).nan_to_num(0.0).abs().max()
        assert spread < 1e-4  # as sure as each other
        batch = fill_codes(lm, None, seeds, lengths, {"passes": 6})
        assert batch.equal(fill_codes(lm, None, seeds, lengths, {"passes": 6}, exact=True))
