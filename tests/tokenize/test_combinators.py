"""Combinators of quantizers, each beside a slow, obvious version of itself, and what trees are refused."""

import itertools

import pytest
import torch
from quantizer_trees import Tree, make
from torch.nn import functional as F

from tessera.configs.schema import ConfigError, check_config

V8 = {"kind": "vq", "size": 8, "kmeans_init": False}
RESIDUAL = {"kind": "residual", "levels": 2, "quantizer": V8}


def test_group_is_its_parts_side_by_side():
    quantizer = make(6, kind="group", groups=3, quantizer=V8, disentangle=1.0).eval()
    x = torch.randn(9, 6)
    result = quantizer(x)
    parts = [group(piece) for group, piece in zip(quantizer.groups, x.chunk(3, dim=-1), strict=True)]
    assert torch.equal(result.codes, torch.cat([part.codes for part in parts], dim=-1))
    assert torch.equal(result.values, torch.cat([part.values for part in parts], dim=-1))
    torch.testing.assert_close(result.losses["commitment"], sum(part.losses["commitment"] for part in parts) / 3)
    pairs = [F.cosine_similarity(a.values, b.values, dim=-1) ** 2 for a, b in itertools.combinations(parts, 2)]
    torch.testing.assert_close(result.losses["disentangle"], sum(pairs) / 3)


def test_shared_parts_have_one_state():
    for settings in ({"kind": "residual", "levels": 4}, {"kind": "group", "groups": 2}):
        shared = make(6, **settings, shared=True, quantizer=V8)
        assert len([name for name in shared.state_dict() if name.endswith("codebook.sum")]) == 1
        vectors = shared.vectors()
        tables = vectors if settings["kind"] == "residual" else torch.stack(vectors.chunk(2, -1))[[0, 1], [0, 1]]
        assert all(torch.equal(table, tables[0]) for table in tables)


def test_language_codec_is_a_chain():
    """Its first three levels see a third of the channels each, the others what is left of all."""
    stages = [{"kind": "group", "groups": 3, "quantizer": V8}, {"kind": "residual", "levels": 5, "quantizer": V8}]
    quantizer = make(6, kind="chain", stages=stages).eval()
    x = torch.randn(11, 6)
    rest, codes = x, []
    for table in quantizer.vectors()[:3]:
        own = (table.abs().sum(dim=0) > 0).nonzero()[:, 0]
        codes.append(torch.cdist(x[:, own], table[:, own]).argmin(dim=-1))
    rest = x - sum(quantizer.vectors()[level, code] for level, code in enumerate(codes))
    for level in range(3, 8):
        codes.append(torch.cdist(rest, quantizer.vectors()[level]).argmin(dim=-1))
        rest = rest - quantizer.vectors()[level, codes[-1]]
    assert torch.equal(quantizer.encode(x), torch.stack(codes, dim=-1))
    torch.testing.assert_close(quantizer(x).values, x - rest)


def test_level_choices_are_drawn_per_sample():
    quantizer = make(4, kind="residual", levels=4, quantizer=V8, level_dropout=1.0, level_choices=[0, 2, 4])
    kept = (quantizer(torch.randn(300, 2, 4)).codes >= 0).sum(dim=-1)
    assert set(kept.flatten().tolist()) == {0, 2, 4} and (kept[:, 0] == kept[:, 1]).all()
    nested = make(4, kind="group", groups=4, quantizer=V8, level_dropout=1.0)
    codes = nested(torch.randn(300, 2, 4)).codes
    assert ((codes >= 0).long().diff(dim=-1) <= 0).all() and set((codes >= 0).sum(dim=-1).flatten().tolist()) == {
        1,
        2,
        3,
        4,
    }


def test_strides_average_and_repeat():
    quantizer = make(3, kind="stride", every=3, quantizer=V8).eval()
    x = torch.randn(2, 7, 3)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    codes = quantizer.encode(x, mask=mask)
    for sample, places in ((0, [0, 3, 6, 7]), (1, [0, 3, 4])):
        for first, end in itertools.pairwise(places):
            mean = x[sample, first:end].mean(dim=0)
            assert (codes[sample, first:end] == quantizer.inner.encode(mean)).all()
    assert (codes[1, 4:] == -1).all()


def test_later_levels_do_not_pull_the_codes_of_earlier_ones():
    """A rest with a gradient through the level before would: its codes then serve two masters."""
    levels = {"kind": "residual", "levels": 3, "quantizer": {**V8, "update": "gradient"}}
    quantizer = make(4, **levels)
    x = torch.randn(20, 4)
    sum(loss.sum() for loss in quantizer(x).losses.values()).backward()
    alone = make(4, **levels).levels[0]
    alone(x).losses["codebook"].sum().backward()
    torch.testing.assert_close(quantizer.levels[0].codebook.weight.grad, alone.codebook.weight.grad)


def test_the_gradient_of_values_reaches_the_projection_in():
    quantizer = make(5, kind="project", dim=3, quantizer=V8)
    x, weight = torch.randn(20, 5), torch.randn(20, 5)
    (quantizer(x).values * weight).sum().backward()
    wanted = (weight @ quantizer.project_out.weight).T @ x  # as if the quantizer inside were the identity
    torch.testing.assert_close(quantizer.project_in.weight.grad, wanted)


def test_branches_add_up():
    project = {"kind": "project", "dim": 3, "quantizer": V8}
    quantizer = make(4, kind="branches", branches={"a": {"quantizer": project}, "b": {"quantizer": V8}}).eval()
    x = torch.randn(9, 4)
    wanted = quantizer.branches["a"](x).values + quantizer.branches["b"](x).values
    assert torch.equal(quantizer(x).values, wanted)


def test_shared_index_takes_the_lowest_weighted_sum():
    parts = {"deep": {"channels": 2, "normalise": True, "weight": 3.0}, "fine": {"channels": 3, "weight": 0.4}}
    quantizer = make(5, kind="shared_index", size=9, parts=parts, kmeans_init=False).eval()
    x, table = torch.randn(40, 5), quantizer.vectors()[0]
    torch.testing.assert_close(table[:, :2].norm(dim=-1), torch.ones(9))
    deep = torch.cdist(F.normalize(x[:, :2], dim=-1), table[:, :2]).square()
    fine = torch.cdist(x[:, 2:], table[:, 2:]).square()
    assert torch.equal(quantizer.encode(x)[:, 0], (3 * deep + 0.4 * fine).argmin(dim=-1))


def test_skipped_samples_keep_their_latents():
    quantizer = make(3, kind="skip", share=0.5, quantizer={**V8, "revive_below": 0})
    x = torch.randn(200, 4, 3)
    result = quantizer(x)
    skipped = (result.codes < 0)[..., 0]
    assert 60 < skipped[:, 0].sum() < 140 and (skipped == skipped[:, :1]).all()
    assert torch.equal(result.values[skipped], x[skipped]) and (result.losses["commitment"][skipped] == 0).all()
    assert quantizer.inner.codebook.collected[0].sum() == (~skipped).sum()
    assert (quantizer.eval()(x).codes >= 0).all()


def test_tails_are_drawn_per_sample():
    """Trap 18: one length for the whole batch."""
    quantizer = make(3, kind="tail", shortest=3, quantizer=V8)
    kept = (quantizer(torch.randn(300, 6, 3)).codes >= 0)[..., 0]
    assert set(kept.sum(dim=1).tolist()) == {3, 4, 5, 6} and (kept.long().diff(dim=1) <= 0).all()
    assert (quantizer.eval()(torch.randn(20, 6, 3)).codes >= 0).all()


# Scales: whole samples, so the laws are written for them alone.


def make_scales(**settings):
    sizes = [[1, 1], [2, 2], [3, 4]]
    return make(5, kind="scales", sizes=sizes, quantizer={"kind": "vq", "size": 16}, **settings)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("convolutions", [0, 2])
def test_scales(shared, convolutions):
    quantizer = make_scales(shared=shared, convolutions=convolutions)
    for _ in range(5):
        result = quantizer(torch.randn(8, 12, 5))
        assert torch.equal(result.values, quantizer.decode(result.codes))
        quantizer.update()
    x = torch.randn(4, 3, 4, 5, requires_grad=True)
    weight = torch.randn_like(x)
    (quantizer(x).values * weight).sum().backward()
    assert torch.equal(x.grad, weight)
    quantizer.eval()
    result, codes = quantizer(x), quantizer.encode(x)
    assert torch.equal(result.codes, codes) and torch.equal(result.values, quantizer.decode(codes))
    assert torch.equal(codes[1:3], quantizer.encode(x[1:3]))
    used = (codes.view(4, 12, 3) >= 0).sum(dim=1)
    assert (used == torch.tensor([1, 4, 12])).all()
    # The slow way, one picture.
    total, picture = torch.zeros(1, 5, 3, 4), x[:1].detach().permute(0, 3, 1, 2)
    for number, size in enumerate([(1, 1), (2, 2), (3, 4)]):
        level = quantizer.levels[0 if shared else number]
        small = F.adaptive_avg_pool2d(picture - total, size).flatten(2).transpose(1, 2)
        own = level.encode(small)
        assert torch.equal(own[0, :, 0], codes.view(4, 12, 3)[0, : size[0] * size[1], number])
        large = F.interpolate(level.decode(own).transpose(1, 2).view(1, 5, *size), (3, 4), mode="bicubic")
        if convolutions:
            large = 0.5 * large + 0.5 * quantizer.phi[[0, 0, 1][number]](large)
        total = total + large
    torch.testing.assert_close(result.values[0].detach(), total[0].permute(1, 2, 0).detach(), atol=1e-5, rtol=1e-5)


def test_scales_refuse_other_maps_and_parts_of_samples():
    quantizer = make_scales()
    with pytest.raises(ValueError, match="scales need 3 x 4 positions per sample, found 13"):
        quantizer(torch.randn(2, 13, 5))
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1] = False
    result = quantizer(torch.randn(2, 12, 5), mask)
    assert (result.codes[1] == -1).all() and (result.values[1] == 0).all()
    mask[0, 3] = False
    with pytest.raises(ValueError, match="mask all of its positions or none"):
        quantizer(torch.randn(2, 12, 5), mask)


# Trees that cannot be.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "residual", "levels": 2, "quantizer": {"kind": "group", "groups": 4, "quantizer": V8}},
            r"quantizer\.quantizer\.groups: 4 groups do not divide 6 channels",
        ),
        (
            {"kind": "chain", "stages": [V8, {"kind": "rotation", "quantizer": V8}]},
            r"quantizer\.stages\.1: rotation .* outermost",
        ),
        (
            {"kind": "branches", "branches": {"a": {"source": [2, 9], "quantizer": V8}}},
            r"quantizer\.branches\.a\.source: channels 2 to 9 are beyond the 6",
        ),
        (
            {"kind": "branches", "branches": {"a": {"source": [0, 3], "quantizer": V8}}},
            r"no branch reads channel 3",
        ),
        (
            {
                **{"kind": "branches", "disentangle": 1.0},
                "branches": {"a": {"source": [0, 3], "quantizer": V8}, "b": {"quantizer": V8}},
            },
            r"quantizer\.disentangle: the branches have different widths",
        ),
        (
            {"kind": "shared_index", "size": 4, "parts": {"a": {"channels": 4}}},
            r"quantizer\.parts: they have 4 channels in total, but the latents have 6",
        ),
        (
            {
                **{"kind": "skip", "share": 0.1},
                "quantizer": {**RESIDUAL, "level_dropout": 1.0, "level_choices": [3]},
            },
            r"quantizer\.quantizer\.level_choices: 3 is above the 2 levels",
        ),
        ({"kind": "residual", "levels": 2, "quantizer": V8, "level_choices": [1]}, "level_dropout is 0"),
        (
            {"kind": "scales", "sizes": [[1, 1], [2, 2]], "quantizer": RESIDUAL},
            r"quantizer\.quantizer: a position of a scale has one code",
        ),
        ({"kind": "scales", "sizes": [[3, 1], [2, 2]], "quantizer": V8}, r"quantizer\.sizes\.0: 3 x 1 is larger"),
        ({"kind": "lfq", "bits": 20, "entropy": {"group": 13}}, r"quantizer\.entropy\.group: 13 bits are too many"),
        (
            {"kind": "vq", "size": 9, "update": "gradient", "codebook": {"kind": "bridge", "patch": 4}},
            r"quantizer\.codebook\.patch: 4 does not divide 9",
        ),
        ({"kind": "vq", "size": 8, "codebook": {"kind": "linear"}}, "a linear codebook cannot be updated by .* 'ema'"),
        ({"kind": "vq", "size": 8, "keep_length": True}, "keep_length needs normalise"),
        ({"kind": "group", "groups": 2, "quantizer": {"kind": "vq", "sise": 8}}, "quantizer"),
        ({"kind": "lfq", "bits": 63}, "less than or equal to 62"),
    ],
)  # fmt: skip
def test_impossible_trees_name_the_node(settings, message):
    with pytest.raises(ConfigError, match=message):
        make(6, **settings)


def test_unknown_keys_deep_in_a_tree_name_the_nearest():
    with pytest.raises(ConfigError, match=r"group\.quantizer\.vq\.decy: unknown key; did you mean 'decay'"):
        make(6, kind="group", groups=2, quantizer={"kind": "vq", "size": 8, "decy": 0.9})


def test_fields_added_later_leave_old_dumps_alone():
    """A fingerprint is over the dump; the bundled tokenizers were made before most fields existed."""
    plain = check_config({"quantizer": {"kind": "residual", "levels": 2, "quantizer": V8}}, Tree)
    dump = plain.model_dump(mode="json")["quantizer"]
    assert set(dump) == {"kind", "levels", "quantizer", "level_dropout"}
    assert set(dump["quantizer"]) == {
        *("kind", "size", "code_dim", "normalise", "update", "decay", "commitment", "revive_below", "kmeans_init")
    }
    rich = check_config({"quantizer": {**V8, "normalise": True, "keep_length": True}}, Tree)
    assert rich.model_dump()["quantizer"]["keep_length"] is True
    assert check_config(rich.model_dump(mode="json"), Tree) == rich
