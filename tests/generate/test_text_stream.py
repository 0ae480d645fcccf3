"""Text and audio in one sequence: the decode loop against a slow one, and its laws."""

import pytest
import torch
from small_models import make_conditions
from stream_models import CASES, NUM_IDS, make_model, make_prompts
from tiny_models import strong

from tessera.configs.schema import check_config
from tessera.generate.decoding.generate_codes import generate_codes
from tessera.generate.decoding.loop import DecodeLoop
from tessera.generate.requests.request import Request, StreamPrompt
from tessera.generate.requests.settings import Length
from tessera.generate.sampling.counter_rng import uniform
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.models.packed_sequences import packed_loss
from tessera.lm.patterns.pattern import DelayConfig
from tessera.lm.quantization.cpu_fast_decode import enable_fast_cpu_decode_
from tessera.lm.quantization.packed_linear import pack_

TASKS = ("speak", "write", None)
FEWEST, MOST = 1, 5


def make_request(lm, task, count=6, seed=0, fewest=FEWEST, most=MOST, fixed=False, prompts=None, **settings) -> Request:
    """Rows of different prompts and conditions; the settings are those of generation."""
    prompts = make_prompts(lm, task, count, seed) if prompts is None else prompts
    stream = StreamPrompt.make(task, prompts, fewest, most)
    config = check_config({"temperature": 2.0, "step": "eager", **settings}, GenerationConfig)
    conditions = make_conditions(lm.config, len(prompts))
    length = Length(int(stream.longest.max()), 0, fixed)
    return Request(conditions, [10 + i for i in range(len(prompts))], length, config, stream=stream)


def tasks_of(lm):
    return ["speak"] if lm.text_stream.unpredicted else list(TASKS)


def slow_sequence(lm, request, i):
    """Text, codes and whether row i ended: the full forward for every step, Python for everything else."""
    stream, prompt, config = lm.text_stream, request.stream, request.config
    task, given, longest = prompt.task, int(prompt.lengths[i]), int(prompt.longest[i])
    conditions = request.conditions.rows(slice(i, i + 1))
    table, offsets, slot = lm.arrangement.table(longest).tolist(), lm.arrangement.layout.offsets, stream.slot
    assert all(table[k][p + offset] == p for k, offset in enumerate(offsets) for p in range(longest))
    codes = stream.speak([], torch.zeros(len(stream.cardinalities) - 1, longest, dtype=torch.long))[None]
    codes[0, :, :given] = prompt.codes[i, :, :given]
    end, ended, apart = longest, False, task == "write" or lm.config.text_stream.positions == "apart"

    def logits_at(step):
        found = lm(codes[:, :, :end], None, conditions).logits[0, :, step]
        if config.guidance == 1:
            return found
        bare = stream.without_text(codes) if task == "speak" else codes
        null = lm_unchecked(lm, bare[:, :, :end], conditions.null()).logits[0, :, step]
        return torch.where(found.isneginf(), found, null + config.guidance * (found - null))

    sub_tokens = lm.head.sub_tokens
    for step in range(len(table[0])):
        u = uniform(torch.tensor([request.seeds[i]]), step, len(sub_tokens))[0]
        chosen = torch.zeros(1, len(sub_tokens), dtype=torch.long)
        for places in lm.head.stages_at(step):
            cells = {k: table[k][step] for k in {sub_tokens.codebooks[j] for j in places}}
            if all(not given <= p < end or codes[0, k, p] == stream.absent_ids[k] for k, p in cells.items()):
                continue  # nothing is left to choose
            logits = logits_at(step)
            for j in places:
                row = logits[j].double().clone()
                wrong = request.length.fixed or table[0][step] < int(prompt.shortest[i])
                if stream.has_end_frame and j == len(sub_tokens) - 1 and wrong and not codes[0, 1:-1, step].any():
                    row[0] = -torch.inf
                if j == 0:
                    ids = torch.arange(len(row)) + stream.unpredicted
                    if task == "speak":
                        row[ids < slot] = -torch.inf
                    if task == "write":
                        row[ids == slot] = -torch.inf
                    row[slot + 1 - stream.unpredicted : sub_tokens.end] = -torch.inf
                    if request.length.fixed or table[0][step] < int(prompt.shortest[i]):
                        row[sub_tokens.end] = -torch.inf
                cumulative = torch.softmax(row / config.temperature, 0).cumsum(0)
                chosen[0, j] = int((cumulative <= u[j] * cumulative[-1]).sum())
            ids = sub_tokens.join(chosen)[0]
            for k, position in cells.items():
                if not given <= position < end:
                    continue
                if k == 0 and chosen[0, 0] == sub_tokens.end:
                    end, ended = position, True
                elif k == 0:
                    codes[0, 0, position] = ids[0]
                    if apart and ids[0] < slot:
                        codes[0, 1:, position] = torch.tensor(stream.absent_ids[1:])
                elif codes[0, k, position] != stream.absent_ids[k]:
                    codes[0, k, position] = ids[k]
        if stream.has_end_frame and given <= step < end and not codes[0, 1:, step].any():
            end, ended = step, True
    text, frames = stream.split(codes[0, :, :end])
    return text, frames, ended or request.length.fixed


def lm_unchecked(lm, codes, conditions):
    """The logits of codes in which a frame may be beside dropped text."""
    lm.text_stream.check = lambda codes, lengths: None
    try:
        return lm(codes, None, conditions)
    finally:
        del lm.text_stream.check


def check_row(generated, i, text, frames, ended):
    n = frames.shape[1]
    assert generated.texts[i].equal(text)
    assert int(generated.lengths[i]) == n and generated.codes[i, :, :n].equal(frames)
    assert not generated.codes[i, :, n:].any()
    assert bool(generated.ended[i]) == ended


def rows_of(generated):
    return [
        (text, codes[:, :n], bool(ended))
        for text, codes, n, ended in zip(
            generated.texts, generated.codes, generated.lengths.tolist(), generated.ended, strict=True
        )
    ]


def same(one, other):
    return all(a.equal(b) and c.equal(d) and e == f for (a, c, e), (b, d, f) in zip(one, other, strict=True))


@pytest.mark.sample(2)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_the_full_forward(case):
    lm = strong(make_model(**case)).double()
    for task in tasks_of(lm):
        request = make_request(lm, task, seed=len(str(task)))
        found = generate_codes(lm, request)
        for i in range(task is None, len(request.seeds), 2):
            check_row(found, i, *slow_sequence(lm, request, i))


@pytest.mark.sample(2)
@pytest.mark.parametrize("case", list(CASES.values())[::6], ids=list(CASES)[::6])
@pytest.mark.parametrize("fixed", [False, True])
def test_guidance_drops_the_text(case, fixed):
    lm = strong(make_model(**case)).double()
    request = make_request(lm, "speak", 4, guidance=2.5, fixed=fixed)
    found = generate_codes(lm, request)
    for i in range(len(request.seeds)):
        check_row(found, i, *slow_sequence(lm, request, i))
    plain = generate_codes(lm, make_request(lm, "speak", 4, fixed=fixed))
    assert not fixed or not same(rows_of(found), rows_of(plain))


@pytest.mark.sample(3)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("case", list(CASES.values())[::4], ids=list(CASES)[::4])
def test_a_row_is_the_same_alone_and_in_company(case, task):
    lm = strong(make_model(**case)).double()
    if task not in tasks_of(lm):
        return
    settings = {"repetition_penalty": 1.4, "ras": 3, "ras_tau": 0.5, "max_silence": 0.05, "silence_codes": [0, 1]}
    settings = {} if lm.head.sub_tokens.parts > 1 else settings
    request = make_request(lm, task, 5, top_k=4, **settings)
    together = rows_of(generate_codes(lm, request))
    alone = [rows_of(generate_codes(lm, request.rows(i, i + 1)))[0] for i in range(5)]
    assert same(together, alone)
    assert same(together[2:4], rows_of(generate_codes(lm, request.rows(2, 4))))
    assert same(together, rows_of(generate_codes(lm, request, exact=True)))
    assert len({len(text) for text, _, _ in together} | {codes.shape[1] for _, codes, _ in together}) > 1
    for i in (0, 3):
        chunks = list(DecodeLoop(lm, request.rows(i, i + 1)).frames())
        assert all(chunk.shape[1] for chunk in chunks)
        codes = torch.cat([torch.zeros_like(together[i][1][:, :0]), *chunks], dim=1)
        assert codes.equal(together[i][1])


@pytest.mark.parametrize("case", list(CASES.values())[1::6], ids=list(CASES)[1::6])
def test_cells_are_as_the_layout_says(case):
    """Whatever the model would like: no text that is not allowed, `absent` where there is text and nowhere else."""
    lm = strong(make_model(**case)).double()
    stream = lm.text_stream
    for task in tasks_of(lm):
        request = make_request(lm, task, 6, seed=2, temperature=30.0)
        loop = DecodeLoop(lm, request)
        loop.run()
        ids = lm.arrangement.undo(loop.columns[:, :, 1:], request.length.max_frames)
        for i, prompt in enumerate(make_prompts(lm, task, 6, 2)):
            length, given = int(loop.buffers.row_lengths[i]), prompt.shape[1]
            row = ids[i, :, :length]
            assert row[:, :given].equal(prompt)
            new, codes = row[0, given:], row[1:, given:]
            if task == "speak":
                assert bool((new == stream.slot).all())
            if task == "write":
                assert bool((new < NUM_IDS).all())
            sizes = torch.tensor(stream.cardinalities)[:, None]
            absent = torch.tensor(stream.absent_ids)[1:, None]
            if task == "write" or lm.config.text_stream.positions == "apart":
                assert (codes == absent).equal((new < NUM_IDS).expand_as(codes))
            assert bool(((codes < sizes[1:]) | (codes == absent)).all())
            assert int(request.stream.shortest[i]) <= length <= int(request.stream.longest[i])
            beyond = loop.columns[i, 0, 1 + length + lm.arrangement.layout.offsets[0] : 1 + loop.position]
            assert not bool((beyond[1:] < stream.cardinalities[0]).any())


def test_the_least_and_the_most():
    lm = strong(make_model(arrangement=DelayConfig())).double()
    prompts = make_prompts(lm, "speak", 6)
    frames = [int((row[1] < 7).sum()) for row in prompts]
    short = generate_codes(lm, make_request(lm, "speak", 6, end_bias=1e6))
    assert (short.lengths - torch.tensor(frames)).tolist() == [FEWEST] * 6 and bool(short.ended.all())
    long = generate_codes(lm, make_request(lm, "speak", 6, end_bias=-1e6))
    assert (long.lengths - torch.tensor(frames)).tolist() == [MOST] * 6 and not bool(long.ended.any())
    fixed = generate_codes(lm, make_request(lm, "speak", 6, fixed=True))
    assert (fixed.lengths - torch.tensor(frames)).tolist() == [MOST] * 6 and bool(fixed.ended.all())
    none = generate_codes(lm, make_request(lm, "write", 6, fewest=0, end_bias=1e6))
    assert [len(text) for text in none.texts] == [b % 2 for b in range(6)]


def test_settings_have_a_value_for_the_text():
    lm = strong(make_model(arrangement=DelayConfig())).double()
    prompts = make_prompts(lm, None, 3)
    own = rows_of(generate_codes(lm, make_request(lm, None, prompts=prompts, temperature=[0.0, 2.0, 2.0, 2.0])))
    again = rows_of(generate_codes(lm, make_request(lm, None, prompts=prompts, temperature=2.0)))
    assert not same(own, again)
    with pytest.raises(ValueError, match="temperature has 3 values but the model has 4 codebooks"):
        generate_codes(lm, make_request(lm, None, 3, temperature=[1.0, 1.0, 1.0]))


def test_a_slot_is_no_repetition():
    """The penalty must not push a model that speaks to its end."""
    lm = strong(make_model()).double()
    plain = rows_of(generate_codes(lm, make_request(lm, "speak", 6, temperature=[1.0, 1.0, 1.0, 1.0])))
    penalty = {"repetition_penalty": [1e9, 1.0, 1.0, 1.0], "ras": [8, 0, 0, 0], "ras_tau": 0.1}
    assert same(plain, rows_of(generate_codes(lm, make_request(lm, "speak", 6, temperature=1.0, **penalty))))


def test_silence_is_of_the_first_codebook():
    lm = strong(make_model()).double()
    request = make_request(lm, "speak", 6, most=12, fewest=12, silence_codes=[0, 1, 2], max_silence=0.02)
    for _, codes, _ in rows_of(generate_codes(lm, request)):
        silent = codes[0] < 3
        assert not bool((silent[1:] & silent[:-1])[2:].any())


@pytest.mark.parametrize("head", ["parallel", "depth"])
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_fast_paths_of_a_cpu(head, weights):
    case = CASES[f"delay, {head}"] | {"width": 64, "window": None, "text_stream": {}}
    lm = make_model(**case)
    plain = [rows_of(generate_codes(lm, make_request(lm, task, 4, temperature=0.0))) for task in TASKS]
    fast = enable_fast_cpu_decode_(lm) if weights == "float32" else pack_(lm, weights)
    found = [rows_of(generate_codes(fast, make_request(fast, task, 4, temperature=0.0))) for task in TASKS]
    if weights == "float32":
        assert all(same(one, other) for one, other in zip(plain, found, strict=True))
    if head == "parallel":
        audio = fast.head.audio
        assert (audio.fused is not None) if weights == "float32" else (audio.packed is not None)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_compiled_steps(guidance):
    lm = strong(make_model(arrangement=DelayConfig())).double()
    for task in ("speak", "write") if guidance == 1 else ("speak",):
        for seed in (0, 1):
            request = make_request(lm, task, 3, seed=seed, guidance=guidance)
            compiled = make_request(lm, task, 3, seed=seed, guidance=guidance, step="compiled")
            assert same(rows_of(generate_codes(lm, request)), rows_of(generate_codes(lm, compiled)))


@pytest.mark.parametrize("cache", ["static", "int8", {"kind": "ring", "window": 4}])
def test_caches(cache):
    lm = strong(make_model(arrangement=DelayConfig(), window=4 if isinstance(cache, dict) else None)).double()
    request = make_request(lm, "speak", 3, cache=cache)
    found = rows_of(generate_codes(lm, request))
    assert same(found, rows_of(generate_codes(lm, request.rows(0, 3))))
    if cache == "static":
        assert same(found, rows_of(generate_codes(lm, make_request(lm, "speak", 3))))


def test_what_is_sampled_is_what_the_loss_expects():
    """At temperature 1 the mean loss of samples is the entropy: the loss and the decode loop have the same model."""
    lm = strong(make_model(arrangement=DelayConfig())).eval()
    prompt = lm.text_stream.speak([1, 2], torch.zeros(3, 0, dtype=torch.long))
    request = make_request(lm, "speak", prompts=[prompt] * 400, temperature=1.0, fewest=1, most=30)
    found = generate_codes(lm, request)
    kept = [i for i, ended in enumerate(found.ended) if ended]
    rows = [lm.text_stream.speak(found.texts[i], found.codes[i, :, : int(found.lengths[i])]) for i in kept]
    lengths = torch.tensor([row.shape[1] for row in rows])
    codes = torch.stack([torch.nn.functional.pad(row, (0, int(lengths.max()) - row.shape[1])) for row in rows])
    batch = ConditionBatch(given=torch.full((len(rows),), 2))
    report = packed_loss(lm, codes, lengths, batch)
    arranged, hidden = lm.hidden_states(codes, lengths, batch)
    logits = lm.head(hidden, arranged.ids).transpose(1, 2)[:, 1:].log_softmax(-1)
    entropy = -(logits.exp() * logits.nan_to_num(neginf=0.0)).sum(-1)
    expected = (entropy * arranged.mask[:, 1:]).sum(dim=(0, 2)) / arranged.mask[:, 1:].sum(dim=(0, 2))
    torch.testing.assert_close(report.per_codebook[1:], expected, rtol=0.1, atol=0.0)


WRONG = {
    "does not say what its sequences begin with": {"stream": None},
    "belongs to `stream`": {"prompt": torch.zeros(3, 4, 1, dtype=torch.long)},
    "3 sequences are begun for 2 seeds": {"seeds": [1, 2]},
    "length is 2 positions": {"length": Length(2, 0)},
}


@pytest.mark.parametrize("message", WRONG)
def test_requests_that_do_not_fit(message):
    from dataclasses import replace

    lm = make_model()
    with pytest.raises(ValueError, match=message):
        DecodeLoop(lm, replace(make_request(lm, "speak", 3), **WRONG[message]))


def test_requests_that_the_model_cannot_meet():
    lm = make_model({"predict": "end"})
    with pytest.raises(ValueError, match="predicts no text"):
        generate_codes(lm, make_request(lm, "write", 3))
    lm = make_model({"dropout": 0.0})
    with pytest.raises(ValueError, match="trained without dropping its text"):
        generate_codes(lm, make_request(lm, "speak", 3, guidance=2.0))
    lm = make_model()
    with pytest.raises(ValueError, match="writes, and has no conditions that it can drop; use guidance 1"):
        generate_codes(lm, make_request(lm, "write", 3, guidance=2.0))
    with pytest.raises(ValueError, match="depends on its text; use a constant guidance"):
        generate_codes(lm, make_request(lm, "speak", 3, guidance={"kind": "linear", "scale": 2.0}))
    with pytest.raises(ValueError, match="draft is 1, but the model predicts 0 steps ahead"):
        generate_codes(lm, make_request(lm, "speak", 3, draft=1))
    with pytest.raises(ValueError, match="has no room beyond its beginning"):
        generate_codes(lm, make_request(lm, "speak", 3, fewest=0, most=0))
    wrong = make_prompts(lm, "speak", 3)
    wrong[1][0, 0] = NUM_IDS
    with pytest.raises(ValueError, match="the text channel has a slot"):
        generate_codes(lm, make_request(lm, "speak", prompts=wrong))
