"""Compiled and recorded steps: the same codes as step by step in Python, one program for many lengths, and nothing in a
step that a CUDA graph could not record."""

import copy
from functools import partial

import pytest
import torch
from short_calls import FRAME, decode_loop, filters_only, generate_codes, warm_up
from tiny_models import ARRANGEMENTS, HEADS, NEED_LENGTH, make_conditions, make_lm
from torch.utils._python_dispatch import TorchDispatchMode

from tessera.generate.execution import step_runner, torch_compile
from tessera.generate.execution.tensor_tree import tensors_in
from tessera.generate.requests.settings import Length
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.guidance_config import LinearGuidance
from tessera.lm.heads.flat import FlatHeadConfig
from tessera.lm.heads.multi_token_prediction import AheadConfig
from tessera.lm.models.shape_buckets import bucket
from tessera.lm.quantization.packed_linear import pack_

FRAMES = 7
CACHES = {
    "static": None,
    "ring": {"kind": "ring", "window": 3},
    "int8": {"kind": "int8", "group": 2, "recent": 1},
    "int4": {"kind": "int4", "group": 4, "recent": 3, "outliers": 1},
    "evict": {"kind": "evict", "budget": 4, "recent": 1},
}
RULES = {
    "plain": GenerationConfig(),
    "filters": GenerationConfig(temperature=[1.0, 0.0, 1.3], top_k=[0, 3, 2], min_p=0.01),
    "sorted": GenerationConfig(top_p=0.9),
    "repetition": GenerationConfig(repetition_penalty=1.4, ras=4, ras_tau=0.3),
    "ends": GenerationConfig(end_bias=0.5, end_rule="likeliest", max_silence=2 * FRAME, silence_codes=[1]),
}
WHOLE_CODES = ("repetition", "ends")  # rules that heads of several sub-tokens refuse


def plain(step):
    """A program that is neither compiled nor recorded: the step's tensors count, Python runs it."""
    return [partial(step.advance, phase) for phase in range(step.period)]


def case(number, arrangement, head_name, head):
    """What one arrangement and head are tried with; the other choices go round."""
    kind = ("none", "label", "text", "codes")[number % 4]
    names = [name for name in RULES if name not in WHOLE_CODES or head.kind not in ("factor", "bits")]
    rules = names[number % len(names)]
    cache = list(CACHES)[number % len(CACHES)]
    guidance = 1.0 if kind == "none" else (2.0, 1.0, {"kind": "linear", "scale": 2.5})[number // 3 % 3]
    rope = ("time", "grid", "sinusoidal")[number // 2 % 3]
    words = f"{arrangement}, {head_name}, {kind}, {rules}, {cache}, {guidance}, {rope}"
    return pytest.param(arrangement, head, kind, RULES[rules], CACHES[cache], guidance, rope, id=words)


PAIRS = [(a, name, head) for a in ARRANGEMENTS for name, head in HEADS.items()]
PAIRS += [(a, "flat", FlatHeadConfig()) for a in ("flat", "partial flat")]
CASES = [case(number, *pair) for number, pair in enumerate(PAIRS)]


def make(arrangement, head, kind, rope="time", rows=3, **settings):
    configs, batch = make_conditions(kind, rows)
    variable = arrangement not in NEED_LENGTH and rope != "grid"
    lm = make_lm(arrangement, variable=variable, conditions=configs, head=head, rope={"kind": rope}, **settings)
    length = Length(FRAMES, min_frames=4) if variable else Length(6, fixed=True)
    return lm, batch, length


def run(lm, batch, length, *arguments, step="compiled", rows=3, **settings):
    return generate_codes(lm, batch, range(rows), length, *arguments, step=step, **settings)


def check_equal(found, expected):
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.lengths, expected.lengths) and torch.equal(found.ended, expected.ended)


def guided(guidance):
    return LinearGuidance(scale=guidance["scale"]) if isinstance(guidance, dict) else guidance


@pytest.mark.sample(2)
@pytest.mark.parametrize(("arrangement", "head", "kind", "rules", "cache", "guidance", "rope"), CASES)
def test_counting_in_tensors_changes_no_code(arrangement, head, kind, rules, cache, guidance, rope, monkeypatch):
    monkeypatch.setitem(step_runner.MAKERS, "compiled", plain)
    lm, batch, length = make(arrangement, head, kind, rope)
    if arrangement in NEED_LENGTH or rope == "grid":
        rules = filters_only(rules)
    settings = dict(cache=cache, prompt=None)
    expected = run(lm, batch, length, rules, guided(guidance), step="eager", **settings)
    check_equal(run(lm, batch, length, rules, guided(guidance), **settings), expected)
    prompt = expected.codes[:, :, :2].contiguous()
    expected = run(lm, batch, length, rules, guided(guidance), step="eager", cache=cache, prompt=prompt)
    check_equal(run(lm, batch, length, rules, guided(guidance), cache=cache, prompt=prompt), expected)
    assert len(lm.programs.kept) == 1


class Recorder(TorchDispatchMode):
    """The operations of a step with their shapes; those that wait for a device or read Python's memory are refused."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "lift_fresh", "bincount")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        assert not any(name.startswith(word) for word in self.WAITS), f"{name} in a step"
        indices = arguments[1] if name in ("index", "index_put", "index_put_") else ()
        assert not any(i is not None and i.dtype == torch.bool for i in indices), "an index of bools has no fixed size"
        found = function(*arguments, **(options or {}))
        self.seen.append((str(function), [(t.shape, t.dtype, t.stride()) for t in tensors_in(_plain(found))]))
        return found


def _plain(found):
    return tuple(found) if isinstance(found, tuple | list) else (found,)


@pytest.mark.sample(1)
@pytest.mark.parametrize(("arrangement", "head", "kind", "rules", "cache", "guidance", "rope"), CASES[::3])
def test_steps_are_all_alike_and_wait_for_nothing(arrangement, head, kind, rules, cache, guidance, rope, monkeypatch):
    """The same operations on the same shapes at every step of a phase, and nothing that looks at a value."""
    monkeypatch.setitem(step_runner.MAKERS, "compiled", plain)
    lm, batch, length = make(arrangement, head, kind, rope)
    if arrangement in NEED_LENGTH or rope == "grid":
        rules = filters_only(rules)
    loop = decode_loop(lm, batch, range(3), length, rules, guided(guidance), cache=cache, step="compiled")
    loop.step()
    loop.step()  # makes the program
    seen, held = {}, None
    while loop.position < loop.num_steps:
        phase = loop.position % lm.head.period
        with Recorder() as recorder:
            loop.step()
        assert seen.setdefault(phase, recorder.seen) == recorder.seen
        where = [tensor.data_ptr() for tensor in tensors_in(loop._step.parts())]
        assert where == (held := held or where), "all that lasts stays where it is"
    assert seen


def test_the_recorder_sees_what_it_must():
    with pytest.raises(AssertionError, match="_local_scalar_dense"), Recorder():
        bool(torch.zeros(1))
    with pytest.raises(AssertionError, match="nonzero"), Recorder():
        torch.ones(2).nonzero()
    with pytest.raises(AssertionError, match="index of bools"), Recorder():
        torch.ones(2)[torch.ones(2, dtype=torch.bool)]
    with pytest.raises(AssertionError, match="lift_fresh"), Recorder():
        torch.tensor([1, 2])


class OnDevice(TorchDispatchMode):
    """Operations whose tensors are all on the device "meta", which stands for one that is not the CPU."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        found = function(*arguments, **(options or {}))
        for given in (*arguments, *(options or {}).values(), found):
            for tensor in _plain(given):
                assert not isinstance(tensor, torch.Tensor) or tensor.is_meta, f"{function} on the CPU"
        return found


@pytest.mark.sample(1)
@pytest.mark.parametrize(("arrangement", "head", "kind", "rules", "cache", "guidance", "rope"), CASES[1::3])
def test_nothing_of_a_step_is_on_the_cpu(arrangement, head, kind, rules, cache, guidance, rope, monkeypatch):
    """A number or constant that stays on the CPU would be copied at every step, or frozen in a recording."""
    lm, batch, length = make(arrangement, head, kind, rope)
    if arrangement in NEED_LENGTH or rope == "grid":
        rules = filters_only(rules)

    def away(step):
        with pytest.MonkeyPatch.context() as patch:
            for kind in (torch.Tensor, torch.nn.Parameter):
                patch.setattr(kind, "__deepcopy__", lambda tensor, memo: memo.setdefault(id(tensor), tensor.to("meta")))
            patch.setitem(copy._deepcopy_dispatch, torch.device, lambda device, memo: torch.device("meta"))
            moved = copy.deepcopy(step)
        with OnDevice(), torch.no_grad():
            for phase in range(step.period):
                moved.advance(phase)
        return plain(step)

    monkeypatch.setitem(step_runner.MAKERS, "compiled", away)
    loop = decode_loop(lm, batch, range(3), length, rules, guided(guidance), cache=cache, step="compiled")
    loop.step()
    loop.step()
    assert loop._program is not None


def test_one_look_at_the_device_a_step():
    """A stream looks once a step, a batch on a device every few steps."""

    class Counter(TorchDispatchMode):
        looks = 0

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            Counter.looks += function.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "equal")
            return function(*arguments, **(options or {}))

    lm = make_lm("delay")
    loop = decode_loop(lm, ConditionBatch(), [0], Length(30, fixed=True), step="eager")
    with Counter():
        frames = sum(piece.shape[1] for piece in loop.frames())
    # tolist() of two numbers reads each where they are already on the CPU; from a device it is one copy
    assert frames == 30 and Counter.looks <= 2 * (loop.num_steps + 1)


# Programs are kept


def test_values_change_without_a_new_program(monkeypatch):
    """Everything that may differ between two generations of one program: each is as if it were the first."""
    made = []
    monkeypatch.setitem(step_runner.MAKERS, "compiled", lambda step: made.append(step) or plain(step))
    lm, batch, _ = make("delay", HEADS["parallel"], "text")
    first = GenerationConfig(temperature=0.8, top_k=3, repetition_penalty=1.3, repetition_window=4)
    other = GenerationConfig(
        temperature=[1.5, 1.0, 0.7], top_k=[3, 2, 1], repetition_penalty=[1.0, 2.0, 1.1], repetition_window=4
    )
    for rules, guidance, length in (
        (first, 2.0, Length(9)),
        (other, 1.5, Length(30, min_frames=20)),
        (first, 3.0, Length(1, 0)),
        (first, 2.0, Length(9)),
    ):
        for conditions in (batch, batch.rows(torch.tensor([2, 1, 0]))):
            expected = run(lm, conditions, length, rules, guidance, step="eager")
            check_equal(run(lm, conditions, length, rules, guidance), expected)
    assert len(made) == 1


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "other",
    [
        {"guidance": 1.0},
        {"sampling": GenerationConfig(top_p=0.5)},
        {"cache": "int8"},
        {"length": Length(9, fixed=True)},
        {"length": Length(100)},
        {"rows": 2},
    ],
    ids=str,
)
def test_another_kind_of_step_is_another_program(other, monkeypatch):
    made = []
    monkeypatch.setitem(step_runner.MAKERS, "compiled", lambda step: made.append(step) or plain(step))
    lm, batch, _ = make("delay", HEADS["parallel"], "label")
    common = dict(length=Length(9), sampling=GenerationConfig(), guidance=2.0, cache=None)
    for changed in ({}, other, {}):
        settings = common | changed
        rows = settings.pop("rows", 3)
        conditions = batch.rows(slice(0, rows))
        expected = generate_codes(lm, conditions, range(rows), step="eager", **settings)
        check_equal(generate_codes(lm, conditions, range(rows), step="compiled", **settings), expected)
    # of several programs with room enough the smallest is taken, and a program of another kind has as much room
    assert len(made) == 2


def test_two_generations_at_once_do_not_share_a_program(monkeypatch):
    monkeypatch.setitem(step_runner.MAKERS, "compiled", plain)
    lm, length = make_lm("delay"), Length(9, 8)
    wanted = [generate_codes(lm, ConditionBatch(), [seed], length, step="eager") for seed in (1, 2)]
    loops = [decode_loop(lm, ConditionBatch(), [seed], length, step="compiled") for seed in (1, 2)]
    for _ in range(loops[0].num_steps):
        for i in (0, 1):
            loops[i].step()
    check_equal(loops[0].result(), wanted[0])
    check_equal(loops[1].result(), wanted[1])
    kept = lm.programs.kept
    assert len(kept) == 2 and not any(program.idle for program in kept)
    loops.clear()
    assert all(program.idle for program in kept)


def test_new_weights_and_copies_have_no_old_programs(monkeypatch):
    monkeypatch.setitem(step_runner.MAKERS, "compiled", plain)
    lm = make_lm("delay", dtype=torch.float32)
    changes = (lambda model: model, copy.deepcopy, torch.nn.Module.double, lambda model: pack_(model, "int8"))
    for change in changes:
        lm = change(lm)
        expected = run(lm, ConditionBatch(), Length(9), step="eager")
        check_equal(run(lm, ConditionBatch(), Length(9)), expected)
        assert len(lm.programs.kept) == 1
    with torch.no_grad():  # in place, as training changes them
        lm.head.packed.numbers.zero_()
    check_equal(run(lm, ConditionBatch(), Length(9)), run(lm, ConditionBatch(), Length(9), step="eager"))
    assert len(lm.programs.kept) == 1


def test_buckets():
    sizes = [bucket(n) for n in range(1, 5000)]
    assert sizes == sorted(sizes) and len(set(sizes)) < 40
    for n, size in enumerate(sizes, 1):
        assert n <= size <= max(n + 63, n * 9 / 8 + 1) and bucket(size) == size


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("cache", ["static", "int8"])
def test_without_a_graph_auto_goes_on_eagerly(monkeypatch, cache, prompted):
    """What a driver does that refuses to record: no step may be lost."""

    def refuse(step):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setitem(step_runner.MAKERS, "graph", refuse)
    lm, batch, length = make("delay", HEADS["depth"], "label")
    expected = run(lm, batch, length, cache=CACHES[cache], step="eager")
    prompt = expected.codes[:, :, :2].contiguous() if prompted else None
    expected = run(lm, batch, length, cache=CACHES[cache], step="eager", prompt=prompt)
    monkeypatch.setattr("tessera.generate.decoding.loop.choose_step_kind", lambda *_: "graph")
    with pytest.warns(UserWarning, match="no CUDA graph could be"):
        found = run(lm, batch, length, cache=CACHES[cache], step="auto", prompt=prompt)
    check_equal(found, expected)


def test_names():
    lm = make_lm("delay")
    none = ConditionBatch()
    with pytest.raises(ValueError, match="step: Input should be 'auto', 'eager', 'compiled' or 'graph' .found 'fast'"):
        run(lm, none, Length(9), step="fast")
    with pytest.raises(ValueError, match="needs a CUDA device; the model is on 'cpu'"):
        run(lm, none, Length(9), step="graph")
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match="'compiled' under autocast; load the model in that dtype"),
    ):
        run(lm, none, Length(9), step="compiled")
    with pytest.raises(ValueError, match="drafted steps differ in length"):
        run(make_lm("delay", ahead=AheadConfig(steps=1)), none, Length(9), step="compiled", draft=1)


# Through torch.compile


@pytest.fixture
def traced(monkeypatch):
    """torch.compile takes the whole step as one graph, and is not asked a second time; nothing is generated from it."""
    monkeypatch.setattr(torch_compile, "BACKEND", "eager")
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


TRACED = [
    ("delay", HEADS["parallel"], "text", "repetition", "static", 2.0),
    pytest.param("flatten first", HEADS["depth behind backbone"], "label", "ends", "int8", 1.0, marks=pytest.mark.slow),
    pytest.param("partial flat", FlatHeadConfig(), "none", "sorted", "evict", 1.0, marks=pytest.mark.slow),
    pytest.param("late delay", HEADS["factor"], "text", "filters", "int4", 1.5, marks=pytest.mark.slow),
    ("parallel", HEADS["bits"], "none", "plain", "ring", 1.0),
    pytest.param("delay", HEADS["depth"], "codes", "plain", "static", 2.0, marks=pytest.mark.slow),
    pytest.param("parallel", HEADS["depth with rope"], "label", "plain", "static", 2.0, marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize(("arrangement", "head", "kind", "rules", "cache", "guidance"), TRACED)
def test_the_whole_step_is_one_graph(arrangement, head, kind, rules, cache, guidance, traced):
    """For every step and length; `fullgraph` refuses breaks, `error_on_recompile` a second compilation."""
    lm, batch, _ = make(arrangement, head, kind)
    for length, seeds in ((Length(9, 4), [1, 2, 3]), (Length(14, 10), [7, 8, 9]), (Length(3, 1), [4, 5, 6])):
        arguments = (lm, batch, seeds, length, RULES[rules], guidance)
        expected = generate_codes(*arguments, cache=CACHES[cache], step="eager")
        check_equal(generate_codes(*arguments, cache=CACHES[cache], step="compiled"), expected)
    assert traced() == lm.head.period


@pytest.mark.slow
def test_after_a_warm_up_nothing_is_compiled(traced):
    lm, batch, _ = make("delay", HEADS["parallel"], "text", rows=2)
    warm_up(lm, batch, Length(200), guidance=2.0, step="compiled")
    assert traced() == 1
    for frames in (3, 150, 40):
        run(lm, batch, Length(frames), None, 2.0, rows=2)
    assert traced() == 1 and len(lm.programs.kept) == 1


@pytest.mark.slow
@pytest.mark.parametrize("weights", [pytest.param("bfloat16", marks=pytest.mark.slow), "int4"])
def test_packed_weights_are_traced_too(weights, traced):
    lm, batch, length = make("delay", HEADS["parallel"], "text", dtype=torch.float32)
    pack_(lm, weights)
    run(lm, batch, length, None, 2.0)
    assert traced() == 1


@pytest.mark.slow
@pytest.mark.parametrize(("arrangement", "head", "kind", "rules", "cache", "guidance"), TRACED)
def test_compiled_equals_eager(arrangement, head, kind, rules, cache, guidance):
    lm, batch, length = make(arrangement, head, kind)
    expected = run(lm, batch, length, RULES[rules], guidance, step="eager", cache=CACHES[cache])
    check_equal(run(lm, batch, length, RULES[rules], guidance, cache=CACHES[cache]), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("arrangement", "head", "kind", "rules", "cache", "guidance"), TRACED)
@pytest.mark.parametrize("step", ["graph", pytest.param("compiled", marks=pytest.mark.slow)])
def test_recorded_equals_eager(step, arrangement, head, kind, rules, cache, guidance):
    lm, batch, length = make(arrangement, head, kind)
    lm = lm.to("cuda")
    for frames in (length, Length(20, 12)):
        expected = run(lm, batch, frames, RULES[rules], guidance, step="eager", cache=CACHES[cache])
        check_equal(run(lm, batch, frames, RULES[rules], guidance, step=step, cache=CACHES[cache]), expected)
    assert len(lm.programs.kept) == 1
