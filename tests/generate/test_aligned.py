"""Generation from an aligned text: every unit with sound is spoken once and in order, whatever the model's weights."""

import copy

import pytest
import torch
from short_calls import generate_codes
from test_programs import plain
from tiny_models import ARRANGEMENTS as ALL
from tiny_models import CARDINALITIES, HEADS, NEED_LENGTH, make_lm

from tessera.generate.decoding.generate_codes import make_loop
from tessera.generate.decoding.loop import DecodeLoop
from tessera.generate.decoding.pacing import durations, scaled
from tessera.generate.execution import step_runner
from tessera.generate.requests.request import Request
from tessera.generate.requests.settings import Length
from tessera.lm.conditioning.aligned import AlignedConditionConfig
from tessera.lm.conditioning.registry import ConditionBatch, LabelConfig
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.models.pointer_steps import step_pointers
from tessera.tokenize.text.character_text import CharacterTextConfig
from tessera.tokenize.text.registry import make_text

ARRANGEMENTS = [name for name in ALL if name not in NEED_LENGTH]
SENTENCES = ["hello, world", "a b c", "no no no no"]
TEXT = make_text(CharacterTextConfig(), SENTENCES)
CONDITION = AlignedConditionConfig(
    text=CharacterTextConfig(), vocab_size=TEXT.vocab_size, silent=tuple(sorted(TEXT.silent)), layers=1
)
ROWS = [TEXT.encode(text) for text in ("hello, world", "no no no", "a", "c, b, a")]


def make(arrangement="delay", head="parallel", label=False, **settings):
    conditions = (LabelConfig(classes=4), CONDITION) if label else (CONDITION,)
    return make_lm(arrangement, conditions=conditions, head=HEADS[head], **settings)


def batch_of(rows, label=False, frames=None):
    return ConditionBatch.make([2] * len(rows) if label else None, aligned=rows, frames=frames)


def lasting(units, length, count):
    """How many frames each unit lasts in the generated units of a row."""
    assert (units[:length] >= 0).all() and (units[length:] == -1).all()
    assert (units[1:length] >= units[: length - 1]).all(), "the pointer moved back"
    return torch.bincount(units[:length], minlength=count)


def check_spoken(found, rows):
    for units, length, ids in zip(found.units, found.lengths.tolist(), rows, strict=True):
        frames = lasting(units, length, len(ids))
        assert len(frames) == len(ids) and frames.sum() == length
        for unit, count in zip(ids, frames.tolist(), strict=True):
            assert count >= 1 or unit in TEXT.silent, f"unit {TEXT.symbols[unit]} was skipped"


@pytest.mark.sample(20)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_every_unit_is_spoken_once_and_in_order(arrangement, head):
    lm = make(arrangement, head, label=True)
    guidance = 2.0 if len(arrangement) % 2 else 1.0
    found = generate_codes(lm, batch_of(ROWS, True), [5, 6, 7, 8], Length(200), guidance=guidance)
    assert found.ended.all()
    check_spoken(found, ROWS)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_what_was_generated_is_what_the_whole_forward_reads(arrangement):
    """The codes and pointers of a greedy generation are the likeliest ones of the model's full forward."""
    lm = make(arrangement)
    found = generate_codes(lm, batch_of(ROWS[:1]), [3], Length(200), {"temperature": 0.0})
    T = int(found.lengths[0])
    frames = [lasting(found.units[0], T, len(ROWS[0])).tolist()]
    batch = batch_of(ROWS[:1], frames=frames)
    with torch.no_grad():
        output = lm(found.codes, None, batch)
    logits = output.undo()
    logits[:, 0, :, CARDINALITIES[0] :] = float("-inf")  # the pointer decides where the end is
    greedy = logits.argmax(-1)
    assert greedy.equal(found.codes)
    units = lm.conditions(batch).units
    places = step_pointers(lm.arrangement, units, torch.arange(output.targets.shape[2]), T, T)
    firsts = lm.arrangement.steps_of(torch.arange(T)).amin(dim=0)
    assert places.read.unit[0, firsts].equal(found.units[0])


@pytest.mark.parametrize("rules", [{}, {"guidance": 3.0}, {"speed": 1.5, "advance_temperature": 0.5}], ids=str)
def test_a_row_is_the_same_in_any_company(rules):
    lm = make(label=True)
    whole = generate_codes(lm, batch_of(ROWS, True), [5, 6, 7, 8], Length(200), **rules)
    for i, seed in enumerate([5, 6, 7, 8]):
        alone = generate_codes(lm, batch_of(ROWS[i : i + 1], True), [seed], Length(200), **rules)
        T = int(alone.lengths[0])
        assert whole.lengths[i] == T
        assert whole.codes[i, :, :T].equal(alone.codes[0]) and whole.units[i, :T].equal(alone.units[0])
    exact = generate_codes(lm, batch_of(ROWS, True), [5, 6, 7, 8], Length(200), exact=True, **rules)
    assert exact.codes.equal(whole.codes) and exact.units.equal(whole.units)


@pytest.mark.sample(5)
@pytest.mark.parametrize("cache", [None, "int8", {"kind": "ring", "window": 4}], ids=str)
@pytest.mark.parametrize("arrangement", ["delay", "flat", "flatten first"])
def test_steps_on_tensors_only_make_the_same_codes(arrangement, cache, monkeypatch):
    monkeypatch.setitem(step_runner.MAKERS, "compiled", plain)
    lm = make(arrangement, label=True)
    rules = {"guidance": 2.0, "cache": cache, "speed": 1.2}
    expected = generate_codes(copy.deepcopy(lm), batch_of(ROWS, True), [1, 2, 3, 4], Length(60), **rules)
    for rows in (ROWS, ROWS[::-1]):  # the second time the program of the first is used
        found = generate_codes(lm, batch_of(rows, True), [1, 2, 3, 4], Length(60), step="compiled", **rules)
        if rows is ROWS:
            assert found.codes.equal(expected.codes) and found.units.equal(expected.units)
    assert len(step_runner.programs_of(lm).kept) == 2  # of the first pass, and of given durations


def test_faster_and_slower_speech():
    """The durations are those of the model's own rate, divided by the speed."""
    lm, batch, length = make(), batch_of(ROWS * 8), Length(400)
    own = generate_codes(lm, batch, range(32), length)
    for speed in (0.5, 0.8, 1.25, 2.0):
        found = generate_codes(lm, batch, range(32), length, speed=speed)
        for row in range(32):
            count, L = int(batch.aligned_lengths[row]), batch.aligned.shape[1]
            natural = lasting(own.units[row], int(own.lengths[row]), count)
            paced = lasting(found.units[row], int(found.lengths[row]), count)
            assert paced.equal(scaled(natural[None], speed)[0]) and bool(found.ended[row])
            assert abs(int(found.lengths[row]) - int(own.lengths[row]) / speed) <= 1 + L
    cut = generate_codes(lm, batch, range(32), Length(3), speed=0.5)
    assert cut.lengths.unique().tolist() == [3]
    for speed in (0.7, 2.0):
        limit = max(2, int(own.lengths.float().mean() / speed))
        found = generate_codes(lm, batch, range(32), Length(limit), speed=speed)
        assert not bool((found.ended & (own.lengths > limit * speed + 14)).any()), "a row that was cut did not end"


def test_the_first_pass_runs_with_the_first_step(monkeypatch):
    """Not when a loop is made, which is also how a request is checked."""
    lm, made = make(), []
    run = DecodeLoop.run
    monkeypatch.setattr(DecodeLoop, "run", lambda loop, *a: made.append(loop) or run(loop, *a))
    request = Request(batch_of(ROWS[:1]), [0], Length(60), GenerationConfig(speed=1.5))
    loop = make_loop(lm, request)
    assert not made
    loop.step()
    assert len(made) == 1 and loop.state.units.frames is None


def test_given_durations_are_kept():
    frames = [[1 + i % 3 for i in range(len(row))] for row in ROWS]
    found = generate_codes(make(), batch_of(ROWS, frames=frames), [1, 2, 3, 4], Length(60), guidance=2.0)
    for row, (units, length) in enumerate(zip(found.units, found.lengths.tolist(), strict=True)):
        assert lasting(units, length, len(ROWS[row])).tolist() == frames[row]
    with pytest.raises(ValueError, match="speed was set, but the durations of the units are given"):
        generate_codes(make(), batch_of(ROWS, frames=frames), [1, 2, 3, 4], Length(60), speed=1.2)


@pytest.mark.parametrize("seed", range(5))
def test_scaled_durations_keep_their_places(seed):
    chance = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 9, (3, 40), generator=chance)
    for speed in (0.5, 0.9, 1.0, 1.3, 2.0):
        found = scaled(frames, speed)
        assert ((found == 0) == (frames == 0)).all()
        late = found.cumsum(1) - frames.cumsum(1) / speed
        assert float(late.amin()) >= -0.51  # late after many short units, never early
    assert scaled(frames, 1.0).equal(frames)


def test_a_row_that_was_cut_is_cut_again():
    units = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 1, 2, -1, -1]])
    for speed in (0.5, 1.7, 2.0):
        found = durations(units, torch.tensor([False, True]), 3, speed)
        assert int(found[0].sum()) > 6 / speed and found[0, 2] >= 1
        assert found[1].equal(scaled(torch.tensor([[2, 1, 1]]), speed)[0])


def test_a_unit_ends_when_it_has_lasted_as_long_as_the_model_can_tell():
    lm = make()
    lm.conditions.aligned.max_unit_frames = 3
    with torch.no_grad():
        lm.conditions.aligned.advance.weight.zero_()
        lm.conditions.aligned.advance.bias.copy_(torch.tensor([100.0, 0, 0, 0]))  # never advances by itself
    found = generate_codes(lm, batch_of(ROWS[2:3]), [0], Length(100))
    assert lasting(found.units[0], int(found.lengths[0]), 3).tolist() in ([4, 4, 0], [4, 4, 4])  # the last is a pause


def test_the_limit_of_frames_ends_a_row_that_has_not_reached_its_last_unit():
    found = generate_codes(make(), batch_of(ROWS[:1]), [0], Length(4))
    assert found.lengths.tolist() == [4] and not found.ended.any()


REFUSED = {
    "num_frames": ({"length": Length(9, fixed=True)}, "leave num_frames out"),
    "end_bias": ({"end_bias": 1.0}, "aligned text determines the end; set speed"),
    "prompt": ({"prompt": torch.zeros(1, 3, 2, dtype=torch.long)}, "leave the prompt out"),
    "no text": ({"rows": [None]}, "row 0 has no text"),
}


@pytest.mark.parametrize("change, message", REFUSED.values(), ids=REFUSED.keys())
def test_requests_that_do_not_fit_are_refused(change, message):
    change = dict(change)
    rows, length = change.pop("rows", ROWS[:1]), change.pop("length", Length(20))
    with pytest.raises(ValueError, match=message):
        generate_codes(make(), batch_of(rows), [0], length, **change)


@pytest.mark.parametrize("name", ["speed", "advance_temperature"])
def test_other_models_refuse_the_settings_of_an_aligned_text(name):
    with pytest.raises(ValueError, match=f"{name} was set, but the model has no aligned text"):
        generate_codes(make_lm(), None, [0], Length(4), **{name: 1.5})
