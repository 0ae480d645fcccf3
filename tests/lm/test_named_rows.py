"""Rows by name: a model of more codebooks, labels or pieces of text gets the rows that both have."""

import copy

import pytest
import torch
from small_models import (
    CASES,
    PUBLIC_DEPTHS,
    cardinalities_for,
    make_codes,
    make_conditions,
    make_config,
    make_lm,
    make_spec,
)

from tessera.lm.conditioning.registry import LabelConfig
from tessera.lm.heads.depth_transformer import DepthHeadConfig
from tessera.lm.heads.parallel import ParallelHeadConfig
from tessera.lm.layers.input_embedding import BitsInputConfig, EmbeddingInputConfig
from tessera.lm.models.named_rows import NULL, NamedRows, fill_rows, named_rows
from tessera.lm.ops.rotary import TimeRopeConfig
from tessera.tokenize.text.byte_text import ByteText, ByteTextConfig

LABELS = ["a", "b", "c", "d"]


def rows_of(lm):
    text = ByteText(ByteTextConfig())
    text.names_of_ids = lambda: tuple(f"piece {number}" for number in range(11))  # as many as the tiny models have
    return named_rows(lm, LABELS, text)


@pytest.mark.sample(6)
@pytest.mark.parametrize("case", list(CASES)[::5])
def test_each_row_has_a_name_and_no_two_the_same(case):
    lm = make_lm(make_config(CASES[case]))
    found, tensors = rows_of(lm), lm.state_dict()
    assert found.keys() <= tensors.keys()
    for name, rows in found.items():
        used = [one for one in rows.names if one is not None]
        assert len(rows.names) == tensors[name].shape[rows.axis] and len(set(used)) == len(used), name


def slow_fill(own, rows, given, given_rows):
    filled = own.clone()
    for here, name in enumerate(rows.names):
        for there, other in enumerate(given_rows.names):
            if name is not None and name == other:
                filled.select(rows.axis, here).copy_(given.select(given_rows.axis, there))
    return filled


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_are_copied_by_name(axis):
    names = NamedRows("labels", ("a", "b", None, NULL), axis), NamedRows("labels", ("x", "b", NULL, None, "a"), axis)
    own, given = torch.randn(4, 3), torch.randn(5, 3)
    own, given = (tensor.transpose(0, axis).contiguous() for tensor in (own, given))
    before = own.clone()
    found = fill_rows(own, names[0], given, names[1])
    assert torch.equal(found, slow_fill(own, names[0], given, names[1]))
    assert torch.equal(own, before)
    assert torch.equal(found.select(axis, 2), own.select(axis, 2))
    with pytest.raises(ValueError, match=r"its rows are \[2\], in the other model they are \[3\]"):
        fill_rows(own.narrow(1 - axis, 0, 2), names[0], given, names[1])


HEADS = [
    ({"head": ParallelHeadConfig(), "input": EmbeddingInputConfig()}, "parallel"),
    ({"head": ParallelHeadConfig(), "input": BitsInputConfig()}, "parallel"),
    ({"head": DepthHeadConfig(layers=1, heads=2), "input": EmbeddingInputConfig()}, "parallel"),
    ({"head": DepthHeadConfig(layers=1, heads=2, first="backbone")}, "parallel"),
    ({"head": PUBLIC_DEPTHS["csm"]}, "parallel"),
    ({"head": PUBLIC_DEPTHS["moshi"]}, "parallel"),
    ({"head": ParallelHeadConfig(), "variable_length": True}, "delay"),
]


@pytest.mark.parametrize(("settings", "arrangement"), HEADS)
def test_more_codebooks_leave_what_the_old_ones_predict(settings, arrangement):
    """With the new codebooks' inputs silenced, the logits of the old codebooks are those of the old model."""
    case = (arrangement, "nothing", TimeRopeConfig(), None, *CASES["delay, nothing"][4:6])
    config = make_config((*case[:3], settings.get("input", EmbeddingInputConfig()), *case[4:]), **settings)
    old = make_lm(config, spec=make_spec((8, 8)))
    new = make_lm(config, seed=7, spec=make_spec((8, 8, 8, 16)))
    here, there = named_rows(new, [], None), named_rows(old, [], None)
    tensors = dict(old.state_dict())
    state = new.state_dict()
    for name, tensor in state.items():
        if name in here and name in there:
            with torch.no_grad():
                zeroed = torch.zeros_like(tensor) if name.startswith("input.") else tensor
                state[name] = fill_rows(zeroed, here[name], tensors[name], there[name])
        elif name in tensors and tensors[name].shape == tensor.shape:
            state[name] = tensors[name]
    new.load_state_dict(state)
    codes = make_codes(2, 5, (8, 8, 8, 16))
    with torch.no_grad():
        expected, found = old(codes[:, :2]), new(codes)
    S = expected.logits.shape[2]
    rows = expected.logits.shape[3]
    seen = expected.logits.isfinite()
    torch.testing.assert_close(found.logits[:, :2, :S, :rows][seen], expected.logits[seen], atol=1e-5, rtol=1e-5)


def test_more_labels_keep_the_old_ones():
    config = make_config(CASES["delay, label prefix"])
    old = make_lm(config)
    more = config.model_copy(update={"conditions": (LabelConfig(classes=6),)})
    new = make_lm(more, seed=3)
    labels = ["new", "b", "a", "d", "c", "last"]
    here, there = named_rows(new, labels, None), named_rows(old, LABELS, None)
    state = copy.deepcopy(dict(old.state_dict()))
    name = "conditions.parts.label.table.weight"
    state[name] = fill_rows(new.state_dict()[name], here[name], state[name], there[name])
    new.load_state_dict(state)
    codes, conditions = make_codes(4, 5, cardinalities_for(config)), make_conditions(config, 4)
    moved = [labels.index(LABELS[label]) if label >= 0 else -1 for label in conditions.label.tolist()]
    with torch.no_grad():
        expected = old(codes, None, conditions).logits
        found = new(codes, None, type(conditions)(label=torch.tensor(moved))).logits
    assert torch.equal(found, expected)
