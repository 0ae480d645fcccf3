"""Ids as sub-tokens: there and back, and heads whose sub-tokens are parts of codes."""

import itertools
import math

import pytest
import torch
from small_models import make_codes, make_config, make_lm, make_spec

from tessera.configs.schema import ConfigError
from tessera.lm.heads.bits import BitsHeadConfig
from tessera.lm.heads.depth_transformer import FactorHeadConfig
from tessera.lm.heads.flat import FlatHeadConfig
from tessera.lm.heads.parallel import ParallelHeadConfig
from tessera.lm.layers.input_embedding import BitsInputConfig, FactorInputConfig
from tessera.lm.ops.loss import IGNORED
from tessera.lm.patterns.pattern import (
    CodebookPattern,
    DelayConfig,
    FlatConfig,
    ParallelConfig,
    PartialFlatConfig,
    SpecialsConfig,
)
from tessera.lm.patterns.sub_tokens import SubTokens

DIGITS = [
    ((6, 6), None),
    ((6, 6), [(2, 3), (3, 2)]),
    ((12, 8), [(2, 3, 2), (2, 2, 2)]),
    ((1 << 18,), [(1 << 6, 1 << 12)]),
]
SPLIT_HEADS = {
    "factor": (FactorHeadConfig(sizes=(2, 4), layers=1, heads=2), (8, 8)),
    "factor behind backbone": (FactorHeadConfig(sizes=(2, 2, 2), layers=1, heads=2, first="backbone"), (8, 8)),
    "bits": (BitsHeadConfig(), (8, 8)),
    "groups of bits": (BitsHeadConfig(groups=2), (16, 4)),
}
split_heads = pytest.mark.parametrize(("head", "sizes"), SPLIT_HEADS.values(), ids=SPLIT_HEADS.keys())


@pytest.mark.parametrize(("variable", "end"), [(False, 0), (True, 0), (True, 3)])
@pytest.mark.parametrize(("sizes", "digits"), DIGITS)
def test_ids_are_split_and_joined(sizes, digits, variable, end):
    arrangement = CodebookPattern(ParallelConfig(), sizes, variable, SpecialsConfig(start=4, pad=2, end=end))
    sub_tokens = SubTokens(arrangement, digits)
    highest = min(arrangement.input_sizes)
    ids = torch.stack([torch.arange(max(0, size - highest), size) for size in arrangement.input_sizes])
    ids = torch.cat([ids, torch.zeros(len(sizes), 1, dtype=torch.long)], dim=1)[None]
    split = sub_tokens.split(ids)
    assert sub_tokens.join(split).equal(ids)
    assert sub_tokens.join(split[..., 0]).equal(ids[..., 0]) and sub_tokens.split(ids[..., 0]).equal(split[..., 0])
    assert split.shape == (1, len(sub_tokens), ids.shape[2])
    for j, size in enumerate(sub_tokens.input_sizes):
        assert 0 <= int(split[:, j].min()) and int(split[:, j].max()) < size
    if digits is None:
        assert sub_tokens.input_sizes == arrangement.input_sizes and sub_tokens.output_sizes == arrangement.output_sizes


def test_the_drawing():
    sub_tokens = SubTokens(CodebookPattern(ParallelConfig(), (6,), True), [(2, 3)])
    assert sub_tokens.split(torch.arange(9)[None, None])[0].tolist() == [
        [0, 0, 0, 1, 1, 1, 2, 3, 4],
        [0, 1, 2, 0, 1, 2, 3, 3, 3],
    ]
    assert sub_tokens.output_sizes == (3, 3) and sub_tokens.end == 2
    mask = torch.tensor([True] * 7 + [False] * 2)[None, None]
    assert sub_tokens.targets(torch.arange(9)[None, None], mask)[0].tolist() == [
        [0, 0, 0, 1, 1, 1, 2, IGNORED, IGNORED],
        [0, 1, 2, 0, 1, 2, IGNORED, IGNORED, IGNORED],
    ]


@split_heads
@pytest.mark.parametrize("variable", [False, True])
def test_probabilities_of_all_ids_sum_to_one(head, sizes, variable):
    """The loss of every id that can be drawn, the end included, is minus the logarithm of its probability."""
    config = make_config(head=head, arrangement=ParallelConfig(), variable_length=variable)
    lm = make_lm(config, spec=make_spec(sizes))
    hidden, mask = 3 * torch.randn(1, 1, 32), torch.ones(1, 2, 1, dtype=torch.bool)
    for k, size in enumerate(lm.arrangement.output_sizes):
        ids = torch.zeros(size, 2, 1, dtype=torch.long)
        ids[:, k, 0] = torch.arange(size)
        terms = lm.head.losses(hidden.expand(size, -1, -1), ids, mask.expand(size, -1, -1))
        torch.testing.assert_close((-terms[:, k]).exp().sum(), torch.tensor(1.0))


@split_heads
def test_logits_by_frame(head, sizes):
    lm = make_lm(make_config(head=head, arrangement=DelayConfig()), spec=make_spec(sizes))
    output = lm(make_codes(2, 4, sizes))
    frames, sub_tokens = output.undo(), lm.head.sub_tokens
    for j, t in itertools.product(range(len(sub_tokens)), range(4)):
        assert frames[:, j, t].equal(output.logits[:, j, t + sub_tokens.codebooks[j]])


def test_factors_depend_on_each_other_and_bits_do_not():
    ids = torch.zeros(1, 1, 1, dtype=torch.long)
    for head, depends in ((FactorHeadConfig(sizes=(2, 4), layers=1, heads=2), True), (BitsHeadConfig(), False)):
        lm = make_lm(make_config(head=head), spec=make_spec((8,)))
        hidden = torch.randn(1, 1, 32)
        one, other = lm.head(hidden, ids), lm.head(hidden, ids + 4)
        assert one[:, :, 0].equal(other[:, :, 0]) and one[:, :, 1].equal(other[:, :, 1]) != depends


@pytest.mark.parametrize("head", [FactorHeadConfig(sizes=(64, 4096), heads=2, layers=1), BitsHeadConfig(groups=3)])
def test_large_codebooks_need_no_large_softmax(head):
    lm = make_lm(make_config(head=head, input=BitsInputConfig()), spec=make_spec((1 << 18,)))
    assert lm.num_parameters < 400_000 < 32 << 18
    codes = make_codes(2, 4, (1 << 18,))
    report = lm.loss(codes)
    report.loss.backward()
    assert abs(report.loss.item() - math.log(1 << 18)) < 2
    assert lm(codes).logits.shape[-1] <= 4097


def test_bits_are_read_as_signs():
    lm = make_lm(make_config(input=BitsInputConfig()), spec=make_spec((8, 4)))
    codes = make_codes(2, 5, (8, 4))
    codes[0, 1, 2] = 4 + 1  # start
    weight, special = lm.input.linear.weight, lm.input.specials.weight.view(2, -1, 32)
    found = lm.input(codes)
    for b, t in itertools.product(range(2), range(5)):
        expected = torch.zeros(32)
        for k, bits in enumerate((3, 2)):
            code = int(codes[b, k, t])
            if code >= 1 << bits:
                expected = expected + special[k, code - (1 << bits)]
                continue
            for place in range(bits):
                expected = expected + weight[:, 3 * k + place] * (1 if code >> place & 1 else -1)
        torch.testing.assert_close(found[b, t], expected)


@pytest.mark.parametrize("arrangement", [FlatConfig(), PartialFlatConfig(groups=(0, 1, 1), delays=(0, 1, 2))])
def test_the_flat_head_is_the_parallel_head_where_codebooks_stand(arrangement):
    flat, parallel = (
        make_lm(make_config(arrangement=arrangement, head=head)) for head in (FlatHeadConfig(), ParallelHeadConfig())
    )
    state = flat.state_dict()
    V = max(parallel.arrangement.output_sizes)
    rows = parallel.head.weight.detach().view(3, V, -1)
    for k, size in enumerate(parallel.arrangement.output_sizes):
        state[f"head.outputs.{k}.weight"] = rows[k, :size]
    flat.load_state_dict(state | {n: x for n, x in parallel.state_dict().items() if not n.startswith("head.")})
    codes, lengths = make_codes(3, 5), torch.tensor([5, 1, 3])
    found, expected = flat(codes, lengths), parallel(codes, lengths)
    torch.testing.assert_close(found.logits[found.mask], expected.logits[found.mask])
    torch.testing.assert_close(flat.loss(codes, lengths).loss, parallel.loss(codes, lengths).loss)
    for step in range(6):
        (places,) = flat.head.stages_at(step)
        assert places == tuple(k for k in range(3) if int(flat.head.phases[k]) == step % arrangement_stride(flat))
        begun = flat.head.begin(None, torch.randn(2, 32), step)
        assert flat.head.predict(begun, 0, codes[:2, :, 0]).shape[1] == len(places)


def arrangement_stride(lm):
    return lm.arrangement.layout.strides[0]


def test_parts_of_codes_are_read_by_their_tables():
    lm = make_lm(make_config(input=FactorInputConfig(sizes=(2, 4))), spec=make_spec((8, 8)))
    codes = make_codes(2, 5, (8, 8))
    codes[0, 1, 2] = 8 + 1  # start
    rows = lm.input.table.weight.split(lm.input.sub_tokens.input_sizes)
    found = lm.input(codes)
    for b, t in itertools.product(range(2), range(5)):
        expected = torch.zeros(32)
        for k in range(2):
            code = int(codes[b, k, t])
            high, low = divmod(code, 4) if code < 8 else (2 + code - 8, 4)
            expected = expected + rows[2 * k][high] + rows[2 * k + 1][low]
        torch.testing.assert_close(found[b, t], expected)


def test_errors():
    def refuse(message, sizes=(7, 5, 6), **settings):
        with pytest.raises(ConfigError, match=message):
            make_lm(make_config(**settings), spec=make_spec(sizes))

    refuse("lm.head kind 'flat' needs arrangement flat or partial_flat, found 'delay'", head=FlatHeadConfig())
    refuse(
        r"lm.head.sizes \[2, 3\] make 6 codes, but codebook 0 has 7; give sizes", head=FactorHeadConfig(sizes=(2, 3))
    )
    refuse(r"lm.input.sizes \[2, 3\] make 6 codes", input=FactorInputConfig(sizes=(2, 3)))
    refuse("lm.head kind 'bits' needs codebook sizes that are powers of 2; codebook 0 has 7", head=BitsHeadConfig())
    refuse(
        "lm.input kind 'bits' needs codebook sizes that are powers of 2; codebook 1 has 5",
        (8, 5),
        input=BitsInputConfig(),
    )
    refuse(
        "codes of 3 bits cannot be split into 2 groups; choose a divisor of 3, 4",
        (16, 8),
        head=BitsHeadConfig(groups=2),
    )
    refuse("codes of 2 bits cannot be split into 3 groups", (8, 4), head=BitsHeadConfig())
