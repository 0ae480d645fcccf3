"""Drafted decoding gives what plain decoding gives, and really keeps and refuses guesses."""

import pytest
import torch
from short_calls import decode_loop, generate_codes, request_of, speculative_loop
from tiny_models import ARRANGEMENTS, HEADS, NEED_LENGTH, make_conditions, make_lm

from tessera.generate.decoding.speculative import SpeculativeLoop
from tessera.generate.requests.settings import Length
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.heads.multi_token_prediction import AheadConfig

FRAMES = 12
AHEAD = AheadConfig(steps=3)


def make(arrangement="delay", seed=0, **settings):
    return make_lm(arrangement, ahead=AHEAD, seed=seed, **settings)


@pytest.mark.sample(1)
@pytest.mark.parametrize("head", [name for name in HEADS if name != "parallel"])
def test_equals_plain_decoding_with_every_head(head):
    lm = make(head=HEADS[head])
    length = Length(FRAMES, min_frames=2)
    plain = generate_codes(lm, ConditionBatch(), [1, 2], length)
    assert torch.equal(plain.codes, generate_codes(lm, ConditionBatch(), [1, 2], length, draft=3).codes)


@pytest.mark.sample(2)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["none", "text"])
@pytest.mark.parametrize("arrangement", [name for name in ARRANGEMENTS if name not in NEED_LENGTH])
def test_equals_plain_decoding(arrangement, kind, guidance):
    if kind == "none" and guidance != 1:
        pytest.skip("guidance needs a condition")
    configs, batch = make_conditions(kind, 3)
    lm = make(arrangement, conditions=configs)
    length, sampling = Length(FRAMES, min_frames=2), GenerationConfig(temperature=0.8, top_k=3)
    plain = generate_codes(lm, batch, [1, 2, 3], length, sampling, guidance)
    for draft in (1, 3):
        drafted = generate_codes(lm, batch, [1, 2, 3], length, sampling, guidance, draft=draft)
        assert torch.equal(plain.codes, drafted.codes) and torch.equal(plain.lengths, drafted.lengths)
        assert torch.equal(plain.ended, drafted.ended)


def test_of_fixed_length_and_with_a_prompt_and_one_row_at_a_time():
    lm = make("coarse first", variable=False)
    length, prompt = Length(6, fixed=True), torch.ones(2, 3, 2, dtype=torch.long)
    plain = generate_codes(lm, ConditionBatch(), [1, 2], length, prompt=prompt)
    for exact in (False, True):
        drafted = generate_codes(lm, ConditionBatch(), [1, 2], length, prompt=prompt, draft=2, exact=exact)
        assert torch.equal(plain.codes, drafted.codes)


def run(loop):
    while loop.position < loop.num_steps:
        loop.step()
    return loop


def test_right_guesses_save_runs_and_wrong_ones_cost_none():
    """With the model's own next ids for guesses every run but the first makes 4 steps; with others, 1."""
    lm = make("parallel", variable=False)
    arguments = (lm, ConditionBatch(), [5], Length(FRAMES, fixed=True), GenerationConfig(temperature=0.0))
    told = run(decode_loop(*arguments)).columns

    class Told(SpeculativeLoop):
        wrong = False

        def _write_drafts(self, hidden):
            super()._write_drafts(hidden)
            behind = slice(self.position + 1, self.position + 1 + self.drafted)
            self.columns[:, :, behind] = (told[:, :, behind] + 1) % 4 if self.wrong else told[:, :, behind]

    right, wrong = (Told(lm, request_of(*arguments[1:], draft=3)) for _ in range(2))
    wrong.wrong = True
    assert torch.equal(run(right).columns, told) and right.reads == 1 + 11 // 4 + 1
    assert torch.equal(run(wrong).columns, told) and wrong.reads == FRAMES


def test_frames_of_a_drafted_loop_are_those_of_the_whole():
    lm = make("delay")
    loop = speculative_loop(lm, ConditionBatch(), [7], Length(FRAMES, min_frames=FRAMES), draft=2)
    plain = generate_codes(lm, ConditionBatch(), [7], Length(FRAMES, min_frames=FRAMES))
    assert torch.equal(torch.cat(list(loop.frames()), dim=1), plain.codes[0])


@pytest.mark.sample(1)
@pytest.mark.parametrize("head", ["parallel", pytest.param("depth", marks=pytest.mark.slow)])
@pytest.mark.parametrize("arrangement", ["parallel", "delay", pytest.param("flat", marks=pytest.mark.slow)])
def test_a_trained_model_guesses_right(arrangement, head):
    """On codes that count upwards from anywhere, each guess is certain once it looks at the right step."""
    lm = make(arrangement, variable=False, dtype=torch.float32, head=HEADS[head]).train()
    start = torch.arange(4).repeat(8)[:, None, None]
    codes = (start + torch.arange(6)[None, None, :] + torch.arange(3)[None, :, None]) % 4
    optimizer = torch.optim.Adam(lm.parameters(), lr=0.02)
    for _ in range(100):
        report = lm.loss(codes)
        assert report.ahead is not None
        (report.loss + 5 * report.ahead.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    arguments = (lm.eval(), ConditionBatch(), [0], Length(6, fixed=True), GenerationConfig(temperature=0.0))
    loop = run(speculative_loop(*arguments, draft=3))
    assert torch.equal(loop.columns, run(decode_loop(*arguments)).columns)
    assert loop.reads <= 0.7 * loop.num_steps  # the first steps cannot be guessed; a wrong step never would


def test_the_loss_of_guesses_is_that_of_a_loop():
    lm = make("delay", dtype=torch.float64).train()
    codes = torch.stack([torch.randint(0, V, (2, 5)) for V in lm.arrangement.cardinalities], dim=1)
    lengths = torch.tensor([5, 3])
    arranged, hidden = lm.hidden_states(codes, lengths, None)
    expected = torch.zeros(3, dtype=torch.float64)
    for steps in (1, 2, 3):
        for b in range(2):
            for s in range(steps, arranged.ids.shape[2]):
                logits = lm.head(lm.ahead(hidden[b, s - steps], steps)[None, None])[0, 0]
                for k in range(3):
                    if arranged.mask[b, k, s]:
                        expected[k] -= torch.log_softmax(logits[k], -1)[arranged.ids[b, k, s]]
    counts = arranged.mask.sum(dim=(0, 2))
    torch.testing.assert_close(lm.loss(codes, lengths).ahead.double(), AHEAD.weight * expected / counts)
    assert lm.eval().loss(codes, lengths).ahead is None


def test_a_model_that_does_not_look_ahead_is_refused():
    with pytest.raises(ValueError, match="draft is 2, but the model predicts 0 steps ahead; train it with lm.ahead"):
        generate_codes(make_lm(), ConditionBatch(), [0], Length(4), draft=2)
    with pytest.raises(ValueError, match="draft is 5, but the model predicts 3 steps ahead; use a draft from 1 to 3"):
        generate_codes(make(), ConditionBatch(), [0], Length(4), draft=5)
