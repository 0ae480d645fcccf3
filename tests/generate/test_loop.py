"""The decode loop against a slow one that runs the whole model again for every step, and its laws."""

import pytest
import torch
from short_calls import decode_loop, generate_codes
from tiny_models import HEADS, NEED_LENGTH, make_conditions, make_lm

from tessera.generate.requests.settings import Length
from tessera.generate.sampling.counter_rng import uniform
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.heads.flat import FlatHeadConfig

ARRANGEMENTS = ("parallel", "delay", "partial delay", "late delay", "flatten first", "flat", "partial flat")
FRAMES = 6  # of a picture too: 2 x 3
UP_TO = Length(max_frames=FRAMES)
EXACTLY = Length(max_frames=FRAMES, fixed=True)


def slow_generate(lm, conditions, seed, length, temperature=1.0, guidance=1.0, prompt=None):
    """Codes [K, n] and whether the end was drawn: the full forward for every step, Python for everything else."""
    arrangement, K = lm.arrangement, lm.num_codebooks
    codes = torch.zeros(1, K, length.max_frames, dtype=torch.long)
    given = 0 if prompt is None else prompt.shape[1]
    if prompt is not None:
        codes[0, :, :given] = prompt
    end, ended = length.max_frames, False
    table = arrangement.table(length.max_frames).tolist()

    def logits_at(step):
        logits = lm(codes[:, :, :end], None, conditions).logits[0, :, step]
        if guidance != 1:
            null = lm(codes[:, :, :end], None, conditions.null()).logits[0, :, step]
            logits = torch.where(logits.isneginf(), logits, null + guidance * (logits - null))
        return logits

    sub_tokens = lm.head.sub_tokens
    for step in range(len(table[0])):
        u = uniform(torch.tensor([seed]), step, len(sub_tokens))[0]
        chosen = torch.zeros(1, len(sub_tokens), dtype=torch.long)
        for places in lm.head.stages_at(step):
            if all(not 0 <= table[k][step] < end for k in range(K)):
                break  # nothing is left to choose in this step
            logits = logits_at(step)
            for j in places:
                row = logits[j].clone()
                if j == 0 and lm.arrangement.variable_length:
                    if length.fixed or table[0][step] < max(length.min_frames, given):
                        row[sub_tokens.end] = -torch.inf
                cumulative = torch.softmax(row.double() / temperature, 0).cumsum(0)
                chosen[0, j] = int((cumulative <= u[j] * cumulative[-1]).sum())
            if 0 in places and lm.arrangement.variable_length and 0 <= table[0][step] < end:
                if chosen[0, 0] == sub_tokens.end:
                    end, ended = table[0][step], True
            ids = sub_tokens.join(chosen)[0]
            for k in {sub_tokens.codebooks[j] for j in places}:
                if given <= table[k][step] < end:
                    codes[0, k, table[k][step]] = ids[k]
    return codes[0, :, :end], ended or length.fixed


def check_equal(generated, i, expected, ended):
    n = expected.shape[1]
    assert int(generated.lengths[i]) == n
    assert torch.equal(generated.codes[i, :, :n], expected)
    assert not generated.codes[i, :, n:].any()
    assert bool(generated.ended[i]) == ended


heads = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
arrangements_and_heads = pytest.mark.parametrize(
    ("arrangement", "head"),
    [
        *[
            pytest.param(a, head, id=f"{a}, {name}")
            for a in (*ARRANGEMENTS, *NEED_LENGTH)
            for name, head in HEADS.items()
        ],
        *[pytest.param(a, FlatHeadConfig(), id=f"{a}, flat") for a in ("flat", "partial flat")],
    ],
)


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", ["none", "label", "text"])
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_equals_the_full_forward(arrangement, kind):
    check_against_the_full_forward(arrangement, kind)


@pytest.mark.sample(2)
@arrangements_and_heads
def test_every_head_equals_the_full_forward(arrangement, head):
    if arrangement not in NEED_LENGTH:
        check_against_the_full_forward(arrangement, "label", head=head)
    configs, batch = make_conditions("label", 1)
    lm = make_lm(arrangement, variable=False, conditions=configs, head=head)
    found = generate_codes(lm, batch, [5], EXACTLY)
    check_equal(found, 0, *slow_generate(lm, batch, 5, EXACTLY))


def check_against_the_full_forward(arrangement, kind, **settings):
    """One row of each length that comes up among many: some end at once, some are cut."""
    configs, batch = make_conditions(kind, 24)
    lm = make_lm(arrangement, conditions=configs, **settings)
    found = generate_codes(lm, batch, range(24), UP_TO, GenerationConfig(temperature=2.0))
    rows = {length: i for i, length in enumerate(found.lengths.tolist())}
    assert len(rows) > 1
    for i in rows.values():
        check_equal(found, i, *slow_generate(lm, batch.rows(slice(i, i + 1)), i, UP_TO, 2.0))


@pytest.mark.sample(2)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_model_with_a_window_equals_the_full_forward(arrangement):
    configs, batch = make_conditions("text", 2)
    lm = make_lm(arrangement, conditions=configs, window=2)
    found = generate_codes(lm, batch, range(2), UP_TO, GenerationConfig(temperature=1.3), 2.0)
    for i in range(2):
        check_equal(found, i, *slow_generate(lm, batch.rows(slice(i, i + 1)), i, UP_TO, 1.3, 2.0))
    again = generate_codes(lm, batch, range(2), UP_TO, GenerationConfig(temperature=1.3), 2.0, cache="static")
    assert torch.equal(again.codes, found.codes)


def test_the_cache_asked_for_is_used():
    lm = make_lm("delay")
    _, none = make_conditions("none", 1)
    narrow = {"kind": "ring", "window": 1}
    for exact in (False, True):
        whole = generate_codes(lm, none, range(4), UP_TO, exact=exact)
        wide = generate_codes(lm, none, range(4), UP_TO, exact=exact, cache={"kind": "ring", "window": 50})
        assert torch.equal(wide.codes, whole.codes)
        assert not torch.equal(generate_codes(lm, none, range(4), UP_TO, exact=exact, cache=narrow).codes, whole.codes)
    assert decode_loop(lm, none, [0], UP_TO, cache=narrow).state.cache.capacity == 1


@pytest.mark.sample(2)
@pytest.mark.parametrize("rope", ["time", "grid"])
@pytest.mark.parametrize("arrangement", [*ARRANGEMENTS, *NEED_LENGTH])
def test_fixed_length_equals_the_full_forward(arrangement, rope):
    configs, batch = make_conditions("label", 3)
    lm = make_lm(arrangement, variable=False, conditions=configs, rope={"kind": rope})
    found = generate_codes(lm, batch, [5, 6, 7], EXACTLY)
    for i in range(3):
        check_equal(found, i, *slow_generate(lm, batch.rows(slice(i, i + 1)), 5 + i, EXACTLY))


@pytest.mark.sample(2)
@heads
@pytest.mark.parametrize(
    ("arrangement", "guidance"), [*zip(ARRANGEMENTS, [0.0, 2.5] * 4, strict=False), ("delay", 0.0)]
)
def test_guidance_equals_two_forwards(arrangement, guidance, head):
    configs, batch = make_conditions("text", 2)
    lm = make_lm(arrangement, conditions=configs, head=head)
    found = generate_codes(lm, batch, range(2), UP_TO, GenerationConfig(temperature=1.3), guidance)
    for i in range(2):
        check_equal(found, i, *slow_generate(lm, batch.rows(slice(i, i + 1)), i, UP_TO, 1.3, guidance))


@pytest.mark.sample(2)
@arrangements_and_heads
@pytest.mark.parametrize("t", [1, 5])
def test_a_prompt_is_kept_and_continued(arrangement, head, t):
    variable = arrangement not in NEED_LENGTH
    lm = make_lm(arrangement, variable=variable, head=head)
    length = UP_TO if variable else EXACTLY
    _, none = make_conditions("none", 2)
    prompt = torch.stack([torch.randint(0, V, (2, t)) for V in lm.arrangement.cardinalities], dim=1)
    found = generate_codes(lm, none, range(2), length, prompt=prompt)
    assert torch.equal(found.codes[:, :, :t], prompt)
    for i in range(2):
        check_equal(found, i, *slow_generate(lm, none, i, length, prompt=prompt[i]))


@pytest.mark.sample(2)
@arrangements_and_heads
def test_continuing_the_beginning_of_a_result_gives_the_result(arrangement, head):
    variable = arrangement not in NEED_LENGTH
    lm = make_lm(arrangement, variable=variable, head=head)
    length = Length(FRAMES, min_frames=4) if variable else EXACTLY
    _, none = make_conditions("none", 3)
    whole = generate_codes(lm, none, range(3), length)
    again = generate_codes(lm, none, range(3), length, prompt=whole.codes[:, :, :3])
    assert torch.equal(again.codes, whole.codes) and torch.equal(again.lengths, whole.lengths)


@pytest.mark.sample(2)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_frames_come_as_soon_as_they_are_complete(arrangement):
    lm = make_lm(arrangement)
    for seed in range(3):
        _, none = make_conditions("none", 1)
        whole = generate_codes(lm, none, [seed], UP_TO)
        loop = decode_loop(lm, none, [seed], UP_TO)
        pieces = []
        for piece in loop.frames():
            pieces.append(piece)
            sent = sum(p.shape[1] for p in pieces)
            last = int(lm.arrangement.steps_of(torch.tensor([sent - 1])).max())
            assert loop.position == last + 1, "not later than its last code"
        joined = torch.cat(pieces, dim=1) if pieces else whole.codes[0, :, :0]
        assert torch.equal(joined, whole.codes[0])


@pytest.mark.sample(2)
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_limits(arrangement):
    lm = make_lm(arrangement)
    _, none = make_conditions("none", 1)
    for low, high in ((1, 1), (0, 4), (4, 6)):
        found = generate_codes(lm, none, range(16), Length(high, low))
        assert low <= int(found.lengths.min()) and int(found.lengths.max()) <= high
        assert found.codes.shape == (16, 3, int(found.lengths.max()))
        for k, V in enumerate(lm.arrangement.cardinalities):
            assert bool(((found.codes[:, k] >= 0) & (found.codes[:, k] < V)).all())
    fixed = generate_codes(lm, none, range(4), Length(7, fixed=True))
    assert fixed.lengths.tolist() == [7] * 4 and bool(fixed.ended.all())


def test_stops_when_all_rows_have_ended():
    lm = make_lm("delay")
    _, none = make_conditions("none", 1)
    seen = []
    often = GenerationConfig(temperature=2.0)  # flat enough that the end comes soon
    found = generate_codes(
        lm, none, range(3), Length(500), often, on_progress=lambda done, total: seen.append((done, total))
    )
    steps = len(seen) - 1
    assert bool(found.ended.all()) and steps <= int(found.lengths.max()) + lm.arrangement.max_delay
    assert seen[-1][0] == seen[-1][1] == 3 * lm.arrangement.num_steps(500)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_columns_follow_the_end_rule():
    """What the model reads after the end: end in every codebook's cell of the end frame, then pad."""
    lm = make_lm("delay")
    _, none = make_conditions("none", 1)
    loop = decode_loop(lm, none, range(20), UP_TO)
    for _ in range(loop.num_steps):
        loop.step()
    found = loop.result()
    for i in range(20):
        n = int(found.lengths[i])
        if n == 0 or n > FRAMES - 2:
            continue
        expected = lm.arrangement.arrange(found.codes[i : i + 1, :, :n]).ids[0]
        for s in range(loop.num_steps):
            forced = [lm.arrangement.pad_ids[k] for k in range(3)]
            column = loop.columns[i, :, s + 1].tolist()
            assert column == (expected[:, s].tolist() if s < expected.shape[1] else forced)


def test_per_codebook_settings():
    """A greedy codebook takes the likeliest id while the others are drawn."""
    lm = make_lm("parallel", variable=False)
    _, none = make_conditions("none", 1)
    found = generate_codes(lm, none, range(32), EXACTLY, GenerationConfig(temperature=[1.0, 0.0, 1.0], top_k=[0, 0, 1]))
    first = found.codes[:, :, 0]
    assert len(first[:, 0].unique()) > 1
    assert len(first[:, 1].unique()) == len(first[:, 2].unique()) == 1


def test_greedy_needs_no_seed():
    lm = make_lm()
    _, none = make_conditions("none", 1)
    found = generate_codes(lm, none, range(5), UP_TO, GenerationConfig(temperature=0.0))
    assert all(torch.equal(found.codes[0], found.codes[i]) for i in range(5))


def test_errors():
    configs, batch = make_conditions("label", 2)
    lm = make_lm(conditions=configs)
    plain, none = make_lm(), make_conditions("none", 1)[1]

    def refuse(message, lm=lm, conditions=batch, seeds=(0, 1), length=UP_TO, **settings):
        with pytest.raises(ValueError, match=message):
            generate_codes(lm, conditions, seeds, length, **settings)

    refuse("max_frames must be at least 1, found 0", length=Length(0))
    refuse(r"min_frames must be from 0 to max_frames \(6\), found 10", length=Length(6, 10))
    refuse("has no end code", lm=make_lm(variable=False), conditions=none)
    refuse("no seeds were given", seeds=())
    refuse("a seed must be a whole number of 64 bits, found 1.5", seeds=(0, 1.5))
    refuse("found 9223372036854775808", seeds=(0, 2**63))
    refuse("guidance.scale: Input should be greater than or equal to 0 .found -1", guidance=-1.0)
    refuse("guidance is 3.0, but the model has no conditions", lm=plain, conditions=none, guidance=3.0)
    undropped = (configs[0].model_copy(update={"dropout": 0.0}),)
    refuse("without dropping its label", lm=make_lm(conditions=undropped), guidance=3.0)
    refuse("conditions have 2 rows, but 3 rows", seeds=(0, 1, 2))
    prompt = torch.zeros(2, 3, 4, dtype=torch.long)
    refuse(r"the prompt must be long \[2, 3, t\], found torch.float32", prompt=prompt.float())
    refuse(r"found torch.int64 \[2, 2, 4\]", prompt=prompt[:, :2])
    refuse("the prompt has 6 frames, but at most 6 are generated", prompt=torch.zeros(2, 3, 6, dtype=torch.long))
    refuse("codebook 1 must hold codes 0 to 6", prompt=prompt + torch.tensor([0, 7, 0])[:, None])
    refuse("temperature has 2 values but the model has 3 codebooks", sampling=GenerationConfig(temperature=[1.0, 1.0]))
    refuse("guidance.scale: Input should be a finite number", guidance=float("inf"))
    refuse("repetition_penalty: must be from 1e-9 to 1e9, found 1e-320", sampling={"repetition_penalty": 1e-320})
    refuse(r"top_k: must be a whole number from 0 to 2\^40", sampling={"top_k": 10**30})
    refuse("end_bias: Input should be a finite number", sampling={"end_bias": float("inf")})


@pytest.mark.parametrize("value", [float("nan"), 1e308])  # sums of the second overflow
def test_logits_that_are_not_numbers_are_an_error(value):
    lm = make_lm()
    with torch.no_grad():
        lm.head.weight.fill_(value).mul_(10)
    _, none = make_conditions("none", 1)
    with pytest.raises(ValueError, match="not numbers"):
        generate_codes(lm, none, [0], UP_TO)
    with pytest.raises(ValueError, match="not numbers"):
        list(decode_loop(lm, none, [0], UP_TO).frames())
