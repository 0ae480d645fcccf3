"""Laws of the aligned text condition: pointers, losses, decoding step by step, packed rows."""

import itertools
from dataclasses import replace

import pytest
import torch
from small_models import ARRANGEMENTS, CONDITIONS, HEADS, INPUTS, NEED_LENGTH, head_for, input_for, make_codes, make_lm

from tessera.configs.schema import ConfigError, check_config
from tessera.lm.conditioning.aligned import AlignedConditionConfig
from tessera.lm.conditioning.pointers import longest_advances, pointers_of
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.config import LMConfig
from tessera.lm.models.packed_sequences import packed_loss
from tessera.lm.models.pointer_steps import advances_after, step_pointers
from tessera.lm.patterns.pattern import CodebookPattern
from tessera.tokenize.text.character_text import CharacterTextConfig

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SILENT = (0, 1)
PATTERNS = [name for name in ARRANGEMENTS if name not in NEED_LENGTH]


def aligned(**settings):
    return AlignedConditionConfig(**({"text": CharacterTextConfig(), "vocab_size": 9, "silent": SILENT} | settings))


def make_config(case, **settings):
    arrangement, head, others, layers = case
    values = {
        "width": 32,
        "layers": 2,
        "heads": 4,
        "arrangement": ARRANGEMENTS[arrangement],
        "variable_length": True,
        "head": head_for(head, arrangement),
        "input": input_for(head, INPUTS[0]),
        "conditions": (*CONDITIONS[others], aligned(layers=layers)),
    }
    return LMConfig(**(values | settings))


CASES = {
    f"{arrangement}, {HEADS[i % 7].kind} {i % 7}": (
        arrangement,
        HEADS[i % 7],
        ("nothing", "label prefix", "label sum", "embedding cross")[i % 4],
        i % 3,
    )
    for i, (arrangement, _) in enumerate(itertools.product(PATTERNS, range(4)))
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def random_rows(num_rows, seed=0, most=7):
    """Ids and durations of units: silent ones may last 0 frames, the first one may not."""
    generator = torch.Generator().manual_seed(seed)
    ids, frames = [], []
    for _ in range(num_rows):
        count = int(torch.randint(1, most, (1,), generator=generator))
        row = torch.randint(0, 9, (count,), generator=generator).tolist()
        for i in range(2, count):  # at most two silent units in a row
            if all(unit in SILENT for unit in row[i - 2 : i + 1]):
                row[i] = 5
        lasts = torch.randint(0, 4, (count,), generator=generator).tolist()
        ids.append(row)
        frames.append([max(n, int(i == 0 or row[i] not in SILENT)) for i, n in enumerate(lasts)])
    return ids, frames


def make_all(case, num_rows=4, seed=0, **settings):
    """(lm, codes, lengths, conditions) of rows that differ in length; one row has no text."""
    config = make_config(case, **settings)
    lm = make_lm(config)
    ids, frames = random_rows(num_rows, seed)
    lengths = torch.tensor([sum(row) for row in frames])
    kinds = [condition.kind for condition in config.conditions]
    batch = ConditionBatch.make(
        [b % 4 for b in range(num_rows)] if "label" in kinds else None,
        embeddings=[torch.ones(2, 6) * b for b in range(num_rows)] if "embedding" in kinds else None,
        aligned=ids,
        frames=frames,
    )
    return lm, make_codes(num_rows, int(lengths.max()), lm.arrangement.cardinalities), lengths, batch


def plain_pointers(frames, num_frames):
    """[(unit, since)] of each frame, unit by unit."""
    found = [(unit, since) for unit, count in enumerate(frames) for since in range(count)]
    return found + [(len(frames), 0)] * (num_frames - len(found))


@pytest.mark.parametrize("seed", range(20))
def test_pointers_are_those_counted_unit_by_unit(seed):
    ids, frames = random_rows(6, seed)
    batch = ConditionBatch.make(aligned=ids, frames=frames)
    longest = max(map(sum, frames)) + 2
    padding = torch.arange(batch.aligned.shape[1]) >= batch.aligned_lengths[:, None]
    found = pointers_of(batch.aligned_frames + 3 * padding, batch.aligned_lengths, longest)
    for row, lasts in enumerate(frames):
        expected = plain_pointers(lasts, longest)
        assert list(zip(found.unit[row].tolist(), found.since[row].tolist(), strict=True)) == expected


@pytest.mark.parametrize("seed", range(20))
def test_an_advance_ends_at_the_next_unit_with_sound(seed):
    ids = random_rows(6, seed)[0]
    batch = ConditionBatch.make(aligned=ids)
    silent = batch.aligned <= 1
    found = longest_advances(silent, batch.aligned_lengths, 3)
    for row, units in enumerate(ids):
        for u in range(len(units)):
            after = u + 1
            while after < len(units) and units[after] in SILENT:
                after += 1
            assert found[row, u] == min(3, after - u)
        assert (found[row, len(units) :] == 0).all()


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("K", [1, 2, 3, 4])
def test_the_pointer_can_follow_every_pattern_of_unknown_length(name, K):
    config = ARRANGEMENTS[name]
    fits = {"partial delay": 3, "partial flat": 3, "unrolled": 3}
    if fits.get(name, K) != K:
        pytest.skip(f"{name} is for {fits[name]} codebooks")
    pattern = CodebookPattern(config, (5,) * K, variable_length=True)
    steps = torch.arange(pattern.num_steps(9))
    frames = pattern.current_frames(steps)
    assert frames[0] == 0
    assert set((frames[1:] - frames[:-1]).tolist()) <= {0, 1}
    firsts = pattern.steps_of(torch.arange(8)).amin(dim=0)
    assert frames[firsts].tolist() == list(range(8))  # a frame is read at its first code
    moved = advances_after(pattern, steps)
    assert moved[firsts[1:] - 1].all()
    assert moved[: firsts[-1]].sum() == 7


@cases
def test_steps_equal_the_full_forward(case):
    lm, codes, lengths, conditions = make_all(case)
    with torch.no_grad():
        output = lm(codes, lengths, conditions)
    S = output.targets.shape[2]
    units = lm.conditions(conditions).units
    places = step_pointers(lm.arrangement, units, torch.arange(S), lengths, codes.shape[2]).read
    read = torch.cat([lm.start_ids(4)[..., None], output.targets[:, :, :-1]], dim=2)
    for sizes in ([1] * S, [2, 1, S - 3] if S > 3 else [S]):
        state = lm.start(conditions, capacity=S, num_rows=4)
        found, done = [], 0
        for size in sizes:
            here = slice(done, done + size)
            pointers = replace(places, unit=places.unit[:, here], since=places.since[:, here])
            found.append(lm.step(state, read[:, :, here], output.targets[:, :, here], pointers))
            done += size
        torch.testing.assert_close(torch.cat(found, dim=2), output.logits, **CLOSE)


def plain_advance_loss(lm, codes, lengths, conditions):
    """The mean loss of the advances, row by row and frame by frame."""
    losses = []
    for b, length in enumerate(lengths.tolist()):
        row = conditions.rows(slice(b, b + 1)).trimmed()
        hidden = lm.hidden_states(codes[b : b + 1, :, :length], None, row)[1]
        ids, frames = row.aligned[0].tolist(), row.aligned_frames[0].tolist()
        pointers = [unit for unit, _ in plain_pointers(frames, length + 1)]
        firsts = lm.arrangement.steps_of(torch.arange(length + 1)).amin(dim=0).tolist()
        for t in range(length):
            unit = pointers[t]
            allowed = 1
            while unit + allowed < len(ids) and ids[unit + allowed] in SILENT and allowed < 3:
                allowed += 1
            logits = lm.conditions.aligned.advance(hidden[0, firsts[t + 1] - 1])[: allowed + 1]
            losses.append(-logits.log_softmax(-1)[pointers[t + 1] - unit])
    return torch.stack(losses).mean()


@cases
def test_the_loss_has_that_of_every_advance(case):
    lm, codes, lengths, conditions = make_all(case)
    report = lm.loss(codes, lengths, conditions)
    assert report.count[-1] == lengths.sum()
    torch.testing.assert_close(report.per_codebook[-1], plain_advance_loss(lm, codes, lengths, conditions), **CLOSE)
    torch.testing.assert_close(report.loss, (report.weights * report.per_codebook).sum(), **CLOSE)
    assert lm.loss_parts.further == ("advance",)
    counted = sum(lm.count_terms(length) for length in lengths.tolist())
    assert report.count.equal(counted)


@cases
def test_packed_equals_padded(case):
    found = []
    for packed in (False, True):
        lm, codes, lengths, conditions = make_all(case, 5)
        lm.train()
        lm.conditions.eval()
        report = packed_loss(lm, codes, lengths, conditions) if packed else lm.loss(codes, lengths, conditions)
        report.loss.backward()
        found.append((report, {name: weight.grad for name, weight in lm.named_parameters()}))
    (padded, expected), (packed, gradients) = found
    torch.testing.assert_close(packed.per_codebook, padded.per_codebook, rtol=1e-4, atol=1e-5)
    assert packed.count.equal(padded.count)
    for name, gradient in expected.items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5)


def test_a_row_depends_neither_on_other_rows_nor_on_padding():
    lm, codes, lengths, conditions = make_all(("delay", HEADS[0], "label prefix", 2), 6)
    whole = lm(codes, lengths, conditions)
    for b, length in enumerate(lengths.tolist()):
        alone = lm(codes[b : b + 1, :, :length], None, conditions.rows(slice(b, b + 1)).trimmed())
        S = alone.logits.shape[2]
        torch.testing.assert_close(whole.logits[b, :, :S], alone.logits[0], **CLOSE)


def test_a_row_without_text_reads_the_null_at_every_frame():
    lm, _, _, conditions = make_all(("delay", HEADS[0], "nothing", 1))
    null = lm.conditions(conditions.null()).units
    assert not null.present.any()
    for unit in (0, 1, int(conditions.aligned.shape[1])):
        places = pointers_of(torch.ones(4, 1, dtype=torch.long), torch.ones(4, dtype=torch.long), 3)
        places = replace(places, unit=torch.full((4, 3), unit))
        assert null.at(places).equal(lm.conditions.aligned.null.expand(4, 3, -1))


def test_dropping_the_text_keeps_the_durations():
    lm, codes, lengths, conditions = make_all(("delay", HEADS[0], "nothing", 1))
    lm.train()
    lm.conditions.aligned.dropout = 0.999999
    torch.manual_seed(0)
    assert not lm.conditions(conditions).units.present.any()
    assert lm.loss(codes, lengths, conditions).count[-1] == lengths.sum()


WRONG = {
    "unit without frames": ({"frames": [[1, 0, 2]]}, "unit 1 lasts 0 frames"),
    "sum": ({"frames": [[1, 1, 3]]}, "its units last 5 frames, but it has 4"),
    "no durations": ({"frames": None}, "durations of the units are unknown"),
    "unit": ({"aligned": [[0, 9, 3]]}, "unit 9 is not one of 0 to 8"),
}


@pytest.mark.parametrize("change, message", WRONG.values(), ids=WRONG.keys())
def test_wrong_units_are_refused(change, message):
    lm = make_lm(make_config(("delay", HEADS[0], "nothing", 0)))
    batch = ConditionBatch.make(**({"aligned": [[0, 3, 3]], "frames": [[1, 1, 2]]} | change))
    with pytest.raises(ValueError, match=message):
        lm.loss(make_codes(1, 4), None, batch)


def test_lists_of_durations_must_fit_the_units():
    with pytest.raises(ValueError, match="one number for each unit"):
        ConditionBatch.make(aligned=[[1, 2]], frames=[[1]])


CONFIGS = {
    "length": ({"variable_length": False}, "set variable_length: true"),
    "ahead": ({"ahead": {"steps": 2}}, "leave `ahead` out"),
    "text too": (
        {"conditions": [{"kind": "text", "text": {"kind": "bytes"}, "vocab_size": 9}, "aligned"]},
        "both read the text",
    ),
    "bytes": ({"conditions": [{"kind": "aligned", "text": {"kind": "bytes"}}]}, "characters"),
}


@pytest.mark.parametrize("change, message", CONFIGS.values(), ids=CONFIGS.keys())
def test_configs_that_cannot_work_are_refused(change, message):
    plain = make_config(("delay", HEADS[0], "nothing", 0)).model_dump(mode="json") | change
    own = aligned().model_dump(mode="json")
    plain["conditions"] = [own if one == "aligned" else one for one in plain["conditions"]]
    with pytest.raises(ValueError, match=message):
        make_lm(check_config(plain, LMConfig, "lm"))


def test_the_kernel_must_be_odd():
    with pytest.raises(ConfigError, match="must be odd, found 4; use 5"):
        make_lm(make_config(("delay", HEADS[0], "nothing", 0), conditions=(aligned(kernel=4),)))
