"""Laws of a text and frames as two tracks of one sequence: the order drawn, and the model that reads it."""

from functools import partial

import pytest
import torch
from short_calls import generate_codes
from small_models import CARDINALITIES, make_codes, make_lm
from small_models import make_config as make_plain_config
from stepping import close, stage_through, step_through

from tessera.configs.schema import ConfigError, check_config
from tessera.generate.execution import step_runner
from tessera.generate.requests.settings import Length
from tessera.lm.conditioning.dual_track import NOTHING, VOICE, DualTrackConfig, make_track, track_fields
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.config import LMConfig
from tessera.lm.heads.depth_transformer import DepthHeadConfig, RopePositionsConfig
from tessera.lm.heads.multi_token_prediction import AheadConfig
from tessera.lm.heads.parallel import ParallelHeadConfig
from tessera.lm.models.packed_sequences import packed_loss

K, V = len(CARDINALITIES), CARDINALITIES[0]
PAD, BEGIN, END, OPEN = 12, 13, 14, 10
DUAL = {
    "kind": "dual_track", "text": {"kind": "bytes"}, "vocab_size": 15, "text_width": 10, "num_tags": 12,
    "text_pad": PAD, "text_begin": BEGIN, "text_end": END,
    "tags": {"pad": 0, "begin": 1, "end": 2, "think": 3, "no_think": 4, "open": 5, "close": 6},
    "languages": {"english": 7, "chinese": 8, "beijing": 9},
    "speakers": {"amy": {"tag": 10}, "bo": {"tag": 11, "dialect": "beijing"}},
    "text_template": {"text": "<{}>", "opening": 1, "closing": 1},
    "description_template": {"text": "{}"},
    "recording_template": {"text": "<{}>", "opening": 1, "closing": 1},
    "takes_vector": True,
}  # fmt: skip
DEPTH = DepthHeadConfig(
    width=16, layers=1, heads=2, first="backbone", input="backbone", positions=RopePositionsConfig()
)
PLAIN = {"arrangement": {"kind": "parallel"}, "start": "condition", "variable_length": True, "head": {"kind": "depth"}}
CASES = {
    "depth, before": {"head": DEPTH},
    "depth, beside": {"head": DEPTH, "order": "beside", "kv_heads": 2, "qk_norm": True},
    "parallel, beside": {"head": ParallelHeadConfig(), "order": "beside", "window": 3},
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def encode(text):
    """Ids of letters, 0 to 9; one for an opening and a closing."""
    return [OPEN if letter in "<> " else "abcdefghij".index(letter) for letter in text]


def dual(**settings):
    return check_config(DUAL | settings, DualTrackConfig, "dual")


def make_model(order="before", seed=0, **settings):
    config = make_plain_config(
        **({"conditions": (dual(order=order),), "start": "condition", "variable_length": True} | settings),
        arrangement=check_config({"arrangement": PLAIN["arrangement"]}, LMConfig, "x").arrangement,
    )
    return make_lm(config, seed)


def make_batch(lm, rows=(0, 1, 2, 3)):
    """Rows with a speaker, a vector, neither, and a recording."""
    (config,) = lm.config.conditions
    track = partial(make_track, config, CARDINALITIES, encode)
    vector = torch.randn(lm.config.width, generator=torch.Generator().manual_seed(3))
    tracks = [
        track("abcdefgh", "English", "amy", description="ij"),
        track("a", vector=vector),
        track("bad"),
        track("cab", recording=("de", make_codes(1, 3, seed=5)[0]), vector=-vector),
    ]
    return ConditionBatch(**track_fields([tracks[row] for row in rows]))


def make_all(case):
    lm = make_model(**case)
    return lm, make_codes(4, 6, CARDINALITIES), torch.tensor([6, 1, 4, 5]), make_batch(lm)


# The order


def drawn(track):
    """A track as in the file's drawing: text ids, and what is in codebook 0."""
    signs = {NOTHING: "-", VOICE: "v", **{V + i: sign for i, sign in enumerate("pbENn()123AB")}}
    said = [{NOTHING: "-", PAD: ".", BEGIN: "B", END: "E", OPEN: "<"}.get(i, str(i)) for i in track.prefix[0].tolist()]
    return "".join(said), "".join(signs.get(i, str(i)) for i in track.prefix[1].tolist()), list(track.beside)


def test_tracks_are_as_drawn():
    make = partial(make_track, dual(), CARDINALITIES, encode, "bc")
    beside = partial(make_track, dual(order="beside"), CARDINALITIES, encode, "bc")
    codes = torch.tensor([[6, 5, 4], [1, 2, 3], [0, 1, 0]])
    vector = torch.zeros(32)
    assert drawn(make()) == ("<...B12E.", "-n()pp" + "ppb", [])
    assert drawn(beside()) == ("<...B1", "-n()pb", [2, END])
    assert drawn(make("english", "amy")) == ("<" + "....." + "B12E.", "-N(1)Apppp" + "b", [])
    assert drawn(beside("auto", "bo", "de")) == ("34<" + "....." + "B1", "---N(3)Bpb", [2, END])
    assert drawn(beside("chinese", "amy"))[1] == "-N(2)Apb"
    assert drawn(make(vector=vector)) == ("<....B12E.", "-n()vpppp" + "b", [])
    found = make(recording=("d", codes), vector=vector)
    assert drawn(found) == ("<....B312E....", "-n()vppppp" + "b654", [])
    assert found.prefix[1:, -3:].equal(codes) and bool((found.prefix[2:, :-3] == NOTHING).all())
    assert drawn(beside(recording=("d", codes[:, :1]))) == ("<...B31", "-n()pb6", [2, END])
    assert drawn(beside(recording=("d", codes[:, :2]))) == ("<...B312", "-n()pb65", [END])
    assert drawn(beside(recording=("d", torch.cat([codes, codes], dim=1)))) == ("<...B312E...", "-n()pb654654", [])


def test_what_a_model_does_not_take_is_refused():
    make = partial(make_track, dual(), CARDINALITIES, encode)
    bare = dual(description_template=None, recording_template=None, takes_vector=False)
    make_bare = partial(make_track, bare, CARDINALITIES, encode, "a")
    codes = torch.zeros(K, 1, dtype=torch.long)
    for message, call in {
        "language 'englisch' is unknown; did you mean 'english'": partial(make, "a", "englisch"),
        "a speaker was given by name and as a vector": partial(make, "a", speaker="amy", vector=torch.zeros(32)),
        "the text '' is empty": partial(make, ""),
        "the text ' ' is empty": partial(make, "a", description=" "),
        "the model takes no description": partial(make_bare, description="b"),
        "the model takes no recording": partial(make_bare, recording=("b", codes)),
        "the model takes no vector": partial(make_bare, vector=torch.zeros(32)),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


BAD = {
    "tag 12 is not one of the 12 tags": {"languages": {"english": 12}},
    "speaker 'amy' speaks 'xi'": {"speakers": {"amy": {"tag": 1, "dialect": "xi"}}},
    "'auto' stands for none": {"languages": {"auto": 3, "beijing": 9}},
    "takes_vector is false": {"speaker_encoder": {}, "takes_vector": False},
    "a template has {} once": {"text_template": {"text": "a"}},
    "dropout": {"dropout": 0.1},
}
BAD_MODELS = {
    "needs an lm of kind 'causal', no other": {"start": "token"},
    "no other condition": {"conditions": [{"kind": "label", "classes": 2}, DUAL]},
    "needs the arrangement parallel and variable_length": {"arrangement": {"kind": "delay"}},
    "arrangement parallel and variable_length: true": {"variable_length": False},
    "both read the text": {"text_stream": {"text": {"kind": "bytes"}}},
}


@pytest.mark.parametrize("message", [*BAD, *BAD_MODELS])
def test_configs_that_do_not_fit(message):
    with pytest.raises(ConfigError, match=message):
        if message in BAD:
            dual(**BAD[message])
        else:
            check_config({"conditions": [DUAL], **PLAIN, **BAD_MODELS[message]}, LMConfig, "lm")


def test_batches_that_do_not_fit():
    lm = make_model(head=DEPTH)
    batch = make_batch(lm).to("cpu")
    good = {name: getattr(batch, name) for name in ("dual_track", "dual_track_lengths", "beside", "beside_lengths")}
    wrong = good["dual_track"].clone()
    wrong[0, 1, 0] = V + 12
    for message, fields in {
        "none was given; pass one": {},
        "dual_track must be long": good | {"dual_track": good["dual_track"][:, 1:]},
        "dual_track holds 19 in its row 1": good | {"dual_track": wrong},
        "but none was given": good,
        "every row needs a text": good | {"dual_track_lengths": torch.tensor([1, 2, 0, 1])},
        "the vector of a speaker must be": good | {"speaker": torch.zeros(4, 3)},
        "text id 15 is not one of 0 to 14": good
        | {"beside": torch.tensor([[15]] * 4), "beside_lengths": torch.tensor([0, 1, 0, 0])},
    }.items():
        with pytest.raises(ValueError, match=message):
            lm.start(ConditionBatch(**fields), 3, 4)
    with pytest.raises(ValueError, match="reads a text always"):
        lm.conditions.with_nulls(ConditionBatch(), 2)


# The model


@cases
def test_steps_equal_the_full_forward(case):
    lm, codes, lengths, conditions = make_all(case)
    with torch.no_grad():
        output = lm(codes, lengths, conditions)
        staged = stage_through(lm, output.targets, conditions)
    S = output.targets.shape[2]
    close(step_through(lm, output.targets, conditions), output.logits)
    close(step_through(lm, output.targets, conditions, [2, 1, S - 3]), output.logits)
    asked = output.mask.repeat_interleave(lm.head.sub_tokens.parts, dim=1)
    close(staged[asked], output.logits[asked])


@cases
def test_a_row_of_a_batch_equals_the_row_alone(case):
    lm, codes, lengths, conditions = make_all(case)
    whole = lm(codes, lengths, conditions)
    for b, length in enumerate(lengths.tolist()):
        alone = lm(codes[b : b + 1, :, :length], None, make_batch(lm, [b]))
        trimmed = lm(codes[b : b + 1, :, :length], None, conditions.rows(slice(b, b + 1)).trimmed())
        close(whole.logits[b, :, : alone.logits.shape[2]], alone.logits[0])
        close(trimmed.logits, alone.logits)


@cases
def test_later_codes_and_text_change_no_earlier_logit(case):
    lm, codes, _, conditions = make_all(case)
    before = lm(codes, None, conditions).logits
    for k, size in enumerate(CARDINALITIES):
        changed = codes.clone()
        changed[:, k, 3] = (changed[:, k, 3] + 1) % size
        after = lm(changed, None, conditions).logits
        assert after[:, :, :3].equal(before[:, :, :3])
        assert not after[:, :, 4].equal(before[:, :, 4])
    if conditions.beside.shape[1]:
        conditions.beside[0, 2] = (conditions.beside[0, 2] + 1) % 15
        after = lm(codes, None, conditions).logits
        assert after[1:].equal(before[1:]) and after[:, :, :3].equal(before[:, :, :3])
        assert not after[0, :, 3].equal(before[0, :, 3])


@cases
def test_packed_equals_padded(case):
    found = []
    for loss in (type(make_model(**case)).loss, packed_loss):
        lm, codes, lengths, conditions = make_all(case)
        report = loss(lm.train(), codes, lengths, conditions)
        report.loss.backward()
        found.append((report, {name: weight.grad for name, weight in lm.named_parameters()}))
    (padded, expected), (packed, gradients) = found
    assert packed.count.equal(padded.count)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
        assert bool(gradient.any()), name


@cases
def test_any_way_of_generating_gives_the_same_codes(case, monkeypatch):
    """In one batch, alone, counted in tensors, with bucketed shapes, and with drafts."""
    lm = make_model(**case, ahead=AheadConfig(steps=2))
    length, conditions = Length(12, min_frames=2), make_batch(lm)
    parts = ([1, 2, 3, 4], length, {"temperature": 0.8, "top_k": 3})
    found = generate_codes(lm, conditions, *parts)
    monkeypatch.setitem(
        step_runner.MAKERS, "compiled", lambda step: [partial(step.advance, phase) for phase in range(step.period)]
    )
    for settings in ({"step": "compiled"}, {"exact": True}, {"draft": 2, "cache": "static"}):
        other = generate_codes(lm, conditions, *parts, **settings)
        assert torch.equal(other.codes, found.codes) and torch.equal(other.lengths, found.lengths), settings
    alone = generate_codes(lm, make_batch(lm, [3]), [4], *parts[1:])
    assert torch.equal(alone.codes[0], found.codes[3, :, : alone.codes.shape[2]])
