"""Laws of text and audio in one sequence: the layout and its inverse, the loss, and the model."""

from dataclasses import replace

import pytest
import torch
from small_models import make_codes, make_lm, make_spec
from small_models import make_config as make_plain_config
from stepping import close, stage_through, step_through
from stream_models import CASES, NUM_IDS, make_all, make_config, make_model, make_sequences

from tessera.configs.schema import ConfigError, check_config
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.config import LMConfig
from tessera.lm.heads.depth_transformer import DepthHeadConfig
from tessera.lm.heads.text_stream import StreamHead
from tessera.lm.models.causal import TokenLM
from tessera.lm.models.packed_sequences import packed_loss
from tessera.lm.ops.loss import IGNORED
from tessera.lm.patterns.pattern import CodebookPattern, DelayConfig, ParallelConfig, SpecialsConfig
from tessera.lm.patterns.text_stream import ExampleShape, TextStream

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
MANY = range(40)


# The layout


def make_stream(**settings) -> TextStream:
    config = make_config(settings)
    return TextStream(config.text_stream, config.specials, (7, 5, 6))


@pytest.mark.parametrize("seed", MANY)
def test_a_sequence_gives_back_its_text_and_codes(seed):
    generator = torch.Generator().manual_seed(seed)
    L, T = (int(torch.randint(9, (), generator=generator)) for _ in range(2))
    stream, text = make_stream(), torch.randint(NUM_IDS, (L,), generator=generator)
    codes = make_codes(1, T, seed=seed)[0]
    for made in (stream.speak(text, codes), stream.write(codes, text.tolist())):
        assert made.shape == (4, L + T)
        found_text, found_codes = stream.split(made)
        assert found_text.equal(text) and found_codes.equal(codes)
        if L + T:
            stream.check(made[None], None)
    assert stream.speak(text, codes)[:, L:].equal(stream.write(codes, text)[:, :T])
    beside = stream.speak([], codes)
    beside[0, :L] = text[:T]
    found_text, found_codes = stream.split(beside)
    assert found_text.equal(text[:T]) and found_codes.equal(codes)


def test_the_layout_is_as_drawn():
    stream = make_stream()
    codes = torch.tensor([[1, 2], [3, 4], [0, 5]])
    S, (_, a, b, c) = stream.slot, stream.absent_ids
    assert (S, a, b, c) == (NUM_IDS, 7 + 3, 5 + 3, 6 + 3)
    assert stream.speak([8, 9, 10], codes).tolist() == [
        [8, 9, 10, S, S],
        [a, a, a, 1, 2],
        [b, b, b, 3, 4],
        [c, c, c, 0, 5],
    ]
    assert stream.write(codes, [8]).tolist() == [[S, S, 8], [1, 2, a], [3, 4, b], [0, 5, c]]
    assert stream.without_text(stream.speak([8], codes)[None])[0, 0].tolist() == [NUM_IDS + 1 + 3, S, S]


@pytest.mark.parametrize("seed", MANY)
def test_what_counts_in_the_loss(seed):
    """A slow reference: each cell by itself."""
    name, case = list(CASES.items())[seed % len(CASES)]
    lm, codes, lengths, conditions = make_all(case, 3, seed)
    arranged = lm.arranged(codes, lengths, conditions)
    expected_mask, expected_ids = torch.zeros_like(arranged.mask), lm.arrangement.arrange(codes, lengths).ids
    offsets, answers = lm.arrangement.layout.offsets, lm.config.text_stream.loss == "answer"
    for b, length in enumerate(lengths.tolist()):
        given = int(conditions.given[b]) if answers else 0
        for k, offset in enumerate(offsets):
            for frame in range(given, length):
                assert arranged.ids[b, k, frame + offset] == codes[b, k, frame]
                absent = codes[b, k, frame] == lm.text_stream.absent_ids[k]
                expected_mask[b, k, frame + offset] = not absent
        expected_mask[b, 0, length + offsets[0]] = True
    expected_mask[:, 0] &= not lm.text_stream.has_end_frame
    assert arranged.mask.equal(expected_mask), name
    assert arranged.ids.equal(expected_ids)
    targets = lm.head.sub_tokens.targets(arranged.ids, arranged.mask)
    assert (targets >= 0).equal(arranged.mask.repeat_interleave(parts_of(lm), dim=1) & (targets != IGNORED))
    sizes = torch.tensor(lm.head.sub_tokens.output_sizes)[:, None]
    assert bool((targets < sizes).all())


def parts_of(lm):
    """Number of sub-tokens of each channel."""
    return torch.bincount(torch.tensor(lm.head.sub_tokens.codebooks))


@pytest.mark.parametrize("task", ["speak", "write"])
@pytest.mark.parametrize("loss", ["answer", "all"])
def test_terms_of_an_example(task, loss):
    lm = make_model({"loss": loss}, arrangement=DelayConfig())
    found = lm.count_terms(ExampleShape(text=5, frames=7, task=task)).tolist()
    text = 5 + 7 if loss == "all" else 7 if task == "speak" else 5
    assert found == [text + 1, *[7 if loss == "all" or task == "speak" else 0] * 3]
    for L, T in ((1, 1), (2, 9), (8, 3), (0, 4)):
        stream, codes = lm.text_stream, torch.zeros(3, T, dtype=torch.long)
        made = stream.speak([0] * L, codes) if task == "speak" else stream.write(codes, [0] * L)
        given = ConditionBatch(given=torch.tensor([L if task == "speak" else T]))
        mask = lm.arranged(made[None], None, given).mask
        assert lm.count_terms(ExampleShape(L, T, task)).equal(mask.sum(dim=(0, 2)))


@cases
def test_sub_tokens_are_the_ids_again(case):
    lm, codes, lengths, _ = make_all(case, 4)
    ids = lm.arrangement.arrange(codes, lengths).ids
    sub_tokens = lm.head.sub_tokens
    assert sub_tokens.join(sub_tokens.split(ids)).equal(ids)
    assert sub_tokens.split(ids).shape[1] == len(sub_tokens) == len(sub_tokens.output_sizes)
    terms = torch.rand(2, len(sub_tokens), 3)
    expected = torch.zeros(2, 4, 3).index_add(1, torch.tensor(sub_tokens.codebooks), terms)
    close(sub_tokens.sum(terms), expected)


# The model


@cases
def test_steps_equal_the_full_forward(case):
    lm, codes, lengths, conditions = make_all(case)
    with torch.no_grad():
        output = lm(codes, lengths, conditions)
    logits = step_through(lm, output.targets, conditions)
    close(logits, output.logits)
    S = output.targets.shape[2]
    close(step_through(lm, output.targets, conditions, [2, 1, S - 3]), output.logits)
    with torch.no_grad():
        staged = stage_through(lm, output.targets, conditions)
    asked = output.mask.repeat_interleave(parts_of(lm), dim=1)
    close(staged[asked], output.logits[asked])
    sizes = lm.head.sub_tokens.output_sizes
    assert output.undo().shape == (4, len(sizes), codes.shape[2], max(sizes))


@cases
def test_a_row_of_a_batch_equals_the_row_alone(case):
    lm, codes, lengths, conditions = make_all(case)
    whole = lm(codes, lengths, conditions)
    for b, length in enumerate(lengths.tolist()):
        row = conditions.rows(slice(b, b + 1)).trimmed()
        alone = lm(codes[b : b + 1, :, :length], None, row)
        S = alone.logits.shape[2]
        close(whole.logits[b, :, :S], alone.logits[0])
        assert whole.mask[b, :, :S].equal(alone.mask[0])


@cases
def test_a_later_position_never_changes_an_earlier_logit(case):
    lm, codes, lengths, conditions = make_all(case)
    before = lm(codes, lengths, conditions).logits
    offsets = lm.arrangement.layout.offsets
    for k, V in enumerate((NUM_IDS, *lm.spec.cardinalities)):
        changed = codes.clone()
        places = [int((codes[b, k, : int(n)] < V).nonzero().max()) for b, n in enumerate(lengths) if k]
        places = places or [int((codes[b, 0, : int(n)] < V).nonzero().max()) for b, n in enumerate(lengths)]
        for b, place in enumerate(places):
            changed[b, k, place] = (changed[b, k, place] + 1) % V
        after = lm(changed, lengths, conditions).logits
        for b, place in enumerate(places):
            at = place + offsets[k]
            assert after[b, :, :at].equal(before[b, :, :at])
            assert after[b, 0, at].equal(before[b, 0, at])  # the text channel is not told of its own step
            assert not after[b, :, at + 1 :].equal(before[b, :, at + 1 :])


@cases
def test_the_audio_head_is_not_told_the_text(case):
    lm = make_all(case)[0]
    hidden = torch.randn(2, 5, lm.config.width)
    ids = torch.stack([torch.randint(V, (2, 5)) for V in lm.arrangement.cardinalities], dim=1)
    other = ids.clone()
    other[:, 0] = (ids[:, 0] + 1) % NUM_IDS
    assert lm.head(hidden, ids).equal(lm.head(hidden, other))


@cases
def test_packed_equals_padded(case):
    found = []
    for packed in (False, True):
        lm, codes, lengths, conditions = make_all(case, 5)
        lm = lm.train()
        lm.conditions.eval()
        lm.input.eval()  # noise and dropped text have their own tests
        object.__setattr__(lm.text_stream.config, "dropout", 0.0)
        report = (packed_loss if packed else TokenLM.loss)(lm, codes, lengths, conditions, 0.1)
        report.loss.backward()
        found.append((report, {name: weight.grad for name, weight in lm.named_parameters()}))
    (padded, expected), (packed, gradients) = found
    assert packed.count.equal(padded.count)
    torch.testing.assert_close(packed.per_codebook, padded.per_codebook, rtol=1e-4, atol=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@cases
def test_the_loss_of_a_batch_is_that_of_its_rows(case):
    lm, codes, lengths, conditions = make_all(case, 6)
    whole = lm.loss(codes, lengths, conditions)
    sums, counts = torch.zeros_like(whole.per_codebook), torch.zeros_like(whole.count)
    for b, length in enumerate(lengths.tolist()):
        row = lm.loss(codes[b : b + 1, :, :length], None, conditions.rows(slice(b, b + 1)))
        sums, counts = sums + row.per_codebook * row.count, counts + row.count
    assert counts.equal(whole.count)
    close(whole.per_codebook * whole.count, sums)
    assert len(whole.weights) == 4


@cases
def test_the_gradient_reaches_every_part(case):
    lm, codes, lengths, conditions = make_all(case, 64)
    lm.train().loss(codes, lengths, conditions).loss.backward()
    for name, parameter in lm.named_parameters():
        unread = name == "head.audio.reader.specials.weight" and lm.config.arrangement.kind == "parallel"
        assert unread or bool(parameter.grad.any()), name
    assert bool(lm.input.text.weight.grad[:NUM_IDS].any(dim=1).all())
    absent = lm.text_stream.absent_ids[0] if lm.config.text_stream.dropout else 0
    assert bool(lm.input.text.weight.grad[absent].any()) == (lm.config.text_stream.empty == "learned")


# Dropped text


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", list(CASES.values())[::4], ids=list(CASES)[::4])
def test_dropped_text_is_read_as_absent(case, packed, monkeypatch):
    """In training a row without its text has the loss of a model that reads `absent` there."""
    lm, codes, lengths, conditions = make_all(case, 5)
    lm.conditions.eval()
    loss = packed_loss if packed else TokenLM.loss
    rows = torch.arange(5) % 2 == 0
    bare = codes.clone()
    in_given = torch.arange(codes.shape[2]) < conditions.given[:, None]
    bare[:, 0][(codes[:, 0] < NUM_IDS) & in_given & rows[:, None]] = lm.text_stream.absent_ids[0]
    # With loss: all the text itself is still predicted, so only what is read may change.
    if lm.config.text_stream.loss == "all":
        lm.config = lm.config.model_copy()
        object.__setattr__(lm.text_stream, "config", lm.text_stream.config.model_copy(update={"loss": "answer"}))
    expected = loss(lm, bare, lengths, conditions)
    monkeypatch.setattr("tessera.lm.models.transformer_lm.drop_rows", lambda given, share: torch.where(rows, 0, given))
    lm.train()
    lm.conditions.eval()
    lm.input.eval()
    found = loss(lm, codes, lengths, conditions)
    close(found.per_codebook, expected.per_codebook)
    assert found.count.equal(expected.count)


def test_the_share_of_dropped_texts():
    lm = make_model({"dropout": 0.25}).train()
    codes = lm.text_stream.speak([1, 2], torch.zeros(3, 2, dtype=torch.long))[None].expand(2000, -1, -1)
    ids = lm.arrangement.arrange(codes).ids
    torch.manual_seed(0)
    read = lm.read_ids(ids, torch.full((2000,), 2))
    dropped = (read[:, 0, 1:3] == lm.text_stream.absent_ids[0]).float().mean(dim=0)
    assert dropped[0] == dropped[1] and 0.2 < dropped[0] < 0.3
    assert read[:, 1:].equal(lm.eval().read_ids(ids, None)[:, 1:])
    assert lm.read_ids(ids, torch.full((2000,), 2)).equal(lm.read_ids(ids, None))


# What is refused


BAD = {
    "needs an lm that generates step by step": {"kind": "masked"},
    "needs the kind parallel, or delay": {"arrangement": {"kind": "flat"}},
    "needs the kind parallel, or delay without": {"arrangement": {"kind": "delay", "flatten_first": 1}},
    "must not come after the codes": {"arrangement": {"kind": "delay", "delays": [1, 0, 0, 0]}},
    "a preset has no place for the text": {"arrangement": {"kind": "preset", "name": "dia"}},
    "set variable_length: true": {"variable_length": False},
    "both read the text": {"conditions": [{"kind": "text", "text": {"kind": "bytes"}}]},
    "has no multi-token prediction": {"ahead": {"steps": 2}},
    "rope kind 'grid' is for images": {"rope": {"kind": "grid"}},
    "predict 'end' predicts no text": {"text_stream": {"text": {"kind": "bytes"}, "loss": "all", "predict": "end"}},
    "predict 'none' predicts no text": {"text_stream": {"text": {"kind": "bytes"}, "loss": "all", "predict": "none"}},
    "arrangement parallel and head depth, found delay and parallel": {
        "text_stream": {"text": {"kind": "bytes"}, "predict": "none"},
        "arrangement": {"kind": "delay"},
    },
    "needs a text channel that predicts; found predict 'none'": {
        "text_stream": {"text": {"kind": "bytes"}, "predict": "none", "positions": "shared"},
        "head": {"kind": "depth"},
    },
    "text_stream.dropout": {"text_stream": {"text": {"kind": "bytes"}, "dropout": 1.0}},
    "text_stream.vocab_size": {"text_stream": {"text": {"kind": "bytes"}, "vocab_size": 0}},
    "text_stream.text": {"text_stream": {}},
    "text_stream.position: unknown key": {"text_stream": {"text": {"kind": "bytes"}, "position": "apart"}},
    "for an lm with text_stream": {"text_stream": None, "specials": {"absent": 3}},
}


@pytest.mark.parametrize("message", BAD)
def test_configs_that_do_not_fit(message):
    from tessera.lm.models.masked import MaskedConfig

    given = {"variable_length": True, "text_stream": {"text": {"kind": "bytes"}}} | BAD[message]
    with pytest.raises(ConfigError, match=message):
        check_config(given, MaskedConfig if given.get("kind") == "masked" else LMConfig)


def test_what_does_not_fit_the_tokenizer():
    with pytest.raises(ConfigError, match="is for audio, but 'tiny' makes images"):
        TokenLM(make_config(), make_spec(picture=True))
    with pytest.raises(ConfigError, match="vocab_size is not set"):
        TokenLM(
            check_config({"variable_length": True, "text_stream": {"text": {"kind": "bytes"}}}, LMConfig), make_spec()
        )
    with pytest.raises(ConfigError, match="has 3 entries, but there are 4 codebooks"):
        make_model(loss_weights=(1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="delays has 3 entries"):
        make_model(arrangement=DelayConfig(delays=(0, 1, 2)))
    with pytest.raises(ConfigError, match="absent and end are both 3"):
        make_model(specials=SpecialsConfig(absent=3, end=3))
    config = make_config()
    with pytest.raises(ConfigError, match="text_stream.vocab_size is 11, but the data has 256"):
        config.filled(vocab_size=256)


def test_sequences_that_do_not_fit():
    lm = make_model()
    stream, codes = lm.text_stream, make_codes(1, 3)[0]
    made = stream.speak([1, 2], codes)[None]
    given = ConditionBatch(given=torch.tensor([2]))
    wrong = made.clone()
    wrong[0, 0, 3] = 5
    with pytest.raises(ValueError, match="row 0, position 3: a frame has the text id 5; set positions: shared"):
        lm.loss(wrong, None, given)
    wrong = made.clone()
    wrong[0, 0, 1] = stream.slot
    with pytest.raises(ValueError, match=r"row 0, position 1: the text channel has a slot \(11\)"):
        lm.loss(wrong, None, given)
    wrong = made.clone()
    wrong[0, 2, 4] = stream.absent_ids[2]
    with pytest.raises(ValueError, match="row 0, position 4: some codebooks of a frame are absent"):
        lm.loss(wrong, None, given)
    with pytest.raises(ValueError, match="given must be 0 to the frames of a row"):
        lm.loss(made, None, ConditionBatch(given=torch.tensor([6])))
    with pytest.raises(ValueError, match=r"given must be long \[1\]"):
        lm.loss(made, None, ConditionBatch(given=torch.tensor([1, 1])))
    with pytest.raises(ValueError, match="codes have 3 codebooks but the model has 4"):
        lm.loss(codes[None], None, given)
    with pytest.raises(ValueError, match="codebook 0 holds codes 0 to 11, found 13"):
        lm.loss(torch.cat([made[:, :1] * 0 + 13, made[:, 1:]], dim=1))


def test_absent_is_nothing_without_a_stream():
    pattern = CodebookPattern(ParallelConfig(), (7, 5, 6))
    assert pattern.absent_ids is None and pattern.num_specials == 3
    with pytest.raises(ValueError, match="given frames are for a model with a text_stream"):
        make_lm(make_plain_config()).loss(make_codes(1, 3), None, ConditionBatch(given=torch.tensor([1])))


@cases
def test_losses_are_those_of_the_logits(case):
    """A slow reference: the log-probability of each predicted sub-token, and nothing where the mask is False."""
    lm, codes, lengths, conditions = make_all(case)
    arranged, hidden = lm.hidden_states(codes, lengths, conditions)
    terms = lm.head.losses(hidden, arranged.ids, arranged.mask)
    found = lm.head(hidden, arranged.ids).transpose(1, 2).log_softmax(-1)
    targets = lm.head.sub_tokens.targets(arranged.ids, arranged.mask)
    costs = -found.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    close(terms, lm.head.sub_tokens.sum(torch.where(targets == IGNORED, 0.0, costs)))


def test_a_batch_without_audio_to_predict():
    lm = make_model().train()
    codes = lm.text_stream.write(make_codes(1, 3)[0], [1, 2])[None]
    report = lm.loss(codes, None, ConditionBatch(given=torch.tensor([3])))
    assert report.count.tolist() == [3, 0, 0, 0] and report.per_codebook[1:].tolist() == [0, 0, 0]
    report.loss.backward()
    assert not bool(lm.head.audio.weight.grad.any())


def test_the_layers_of_the_two_vocabularies():
    lm = make_model({"predict": "end"})
    assert isinstance(lm.head, StreamHead) and lm.head.text.weight.shape == (2, 32)
    assert make_model({"predict": "none"}, head=DepthHeadConfig(heads=2)).head.text is None
    lm = make_model()
    assert lm.head.text.weight.shape == (NUM_IDS + 2, 32)
    assert lm.input.text.weight.shape == (NUM_IDS + 1 + 4, 32)
    assert lm.input.audio.table.weight.shape == (7 + 5 + 6 + 3 * 4, 32)
    assert lm.loss_parts.named([1.0, 2.0, 3.0, 4.0]) == {"text": 1.0, "per_codebook": [2.0, 3.0, 4.0]}


def test_positions_may_share_text_and_frames():
    lm = make_model({"positions": "shared"})
    codes, lengths, given = make_sequences(lm, 8, 3)
    beside = (codes[:, 0] < NUM_IDS) & (codes[:, 1] < 7) & (torch.arange(codes.shape[2]) < lengths[:, None])
    assert bool(beside.any())
    lm.loss(codes, lengths, replace(ConditionBatch(), given=given))
