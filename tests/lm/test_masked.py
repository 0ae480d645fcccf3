"""Masked models: what is hidden, what a prediction may depend on, what the loss means, files."""

import itertools
import math

import pytest
import torch
from small_models import CONDITIONS, make_codes, make_conditions, make_spec

from tessera.configs.schema import ConfigError, check_config
from tessera.lm.clustering.clustering import Clustering
from tessera.lm.config import LMConfig
from tessera.lm.heads.depth_transformer import DepthHeadConfig
from tessera.lm.layers.input_embedding import CodesInputConfig, EmbeddingInputConfig
from tessera.lm.models.mask_schedule import MaskingConfig, SampledMask, fixed_numbers, sample_mask
from tessera.lm.models.masked import MaskedConfig, MaskedLM
from tessera.lm.models.registry import make_lm
from tessera.lm.ops.rotary import GridRopeConfig, TimeRopeConfig
from tessera.train.lm.config import TrainConfig

CARDINALITIES = (7, 5, 6)
LABELS = torch.tensor([[0, 1, 2, 0, 1, 2, 0], [0, 0, 1, 1, 0, -1, -1], [0, 1, 1, 1, 0, 0, -1]])


def make(refines=False, condition="nothing", rope=None, input_kind=None, seed=0, **settings) -> MaskedLM:
    rope = rope or TimeRopeConfig()
    spec = make_spec(CARDINALITIES, picture=rope.kind == "grid")
    shape = {"width": 32, "layers": 2, "heads": 4, **settings}
    reads = input_kind or EmbeddingInputConfig()
    config = MaskedConfig(rope=rope, input=reads, conditions=CONDITIONS[condition], **shape)
    torch.manual_seed(seed)
    vectors = torch.randn(3, 7, 4) if config.input.kind == "codes" else None
    lm = make_lm(config, spec, vectors, Clustering(spec, LABELS) if refines else None)
    assert isinstance(lm, MaskedLM)
    return lm.double().eval()


def make_mask(B, T, seed=3) -> torch.Tensor:
    return torch.rand(B, 3, T, generator=torch.Generator().manual_seed(seed)) < 0.5


def labels_of(lm, codes):
    return None if lm.clustering is None else lm.clustering.coarse(codes)


# What is hidden


@pytest.mark.parametrize("unit", ["cell", "frame"])
@pytest.mark.parametrize("share", ["uniform", "cosine", "arccos"])
def test_as_many_are_hidden_as_the_share_says(unit, share):
    B, K, T = 64, 3, 5
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, T + 1, (B,), generator=generator)
    numbers, cells = torch.rand(B, 2, generator=generator), torch.rand(B, K, T, generator=generator)
    numbers[0, 1], numbers[1, 1] = 0.0, 1 - 2**-24
    masked = sample_mask(MaskingConfig(unit=unit, share=share), lengths, numbers, cells)
    for b in range(B):
        length, u = int(lengths[b]), float(numbers[b, 1])
        units = length * (K if unit == "cell" else 1)
        shares = {"cosine": math.cos(math.pi / 2 * u), "arccos": math.acos(u) * 2 / math.pi}
        count = math.floor(u * units) + 1 if share == "uniform" else max(1, math.ceil(shares[share] * units))
        assert not masked.mask[b, :, length:].any()
        row = masked.mask[b, :, :length]
        if unit == "frame":
            assert torch.equal(row, row[:1].expand(K, -1))
            row, of = row[0], cells[b, 0, :length]
        else:
            of = cells[b, :, :length]
        assert int(row.sum()) == count and float(masked.weight[b]) == pytest.approx(units / count)
        assert row.all() or float(of[row].max()) < float(of[~row].min()), "the lowest are hidden"


def test_everything_is_hidden_in_its_share_of_the_rows():
    lengths, cells = torch.tensor([4, 2, 4]), torch.rand(3, 2, 4)
    numbers = torch.tensor([[0.2, 0.1], [0.2, 0.1], [0.4, 0.1]])
    masked = sample_mask(MaskingConfig(share="uniform", everything=0.3), lengths, numbers, cells)
    assert masked.mask.sum((1, 2)).tolist() == [8, 4, 1] and masked.weight.tolist() == [1, 1, 8]


def test_in_eval_mode_the_codes_say_what_is_hidden():
    lm, codes = make(), make_codes(4, 6)
    lengths = torch.tensor([6, 3, 5, 1])
    first = lm.sample_mask(codes, lengths)
    torch.manual_seed(99)
    changed = codes.clone()
    changed[1, :, 3:] = 0
    again = lm.sample_mask(changed, lengths)
    assert torch.equal(first.mask, again.mask), "neither a generator nor what is beyond a row's length"
    alone = lm.sample_mask(codes[1:2, :, :3], lengths[1:2])
    assert torch.equal(alone.mask[0], first.mask[1, :, :3]) and float(alone.weight) == float(first.weight[1])
    assert (
        len(
            {
                tuple(lm.sample_mask(make_codes(1, 6, seed=s), torch.tensor([6])).mask.flatten().tolist())
                for s in range(9)
            }
        )
        > 5
    )
    assert torch.equal(fixed_numbers(codes, lengths)[1][1, :, 3:], torch.zeros(3, 3))


# What a prediction depends on


@pytest.mark.parametrize("refines", [False, True])
@pytest.mark.parametrize(
    ("condition", "rope", "input_kind"),
    [
        ("nothing", TimeRopeConfig(), EmbeddingInputConfig()),
        ("label prefix", GridRopeConfig(), CodesInputConfig()),
        ("text prefix", TimeRopeConfig(), CodesInputConfig(combine="sum")),
        ("label sum, text cross", TimeRopeConfig(), EmbeddingInputConfig()),
        ("codes prefix", GridRopeConfig(), CodesInputConfig()),
        ("label, codes and text", TimeRopeConfig(), EmbeddingInputConfig()),
    ],
)
def test_a_row_alone_equals_a_row_of_a_batch(refines, condition, rope, input_kind):
    lm = make(refines, condition, rope, input_kind)
    codes, mask, lengths = make_codes(4, 6), make_mask(4, 6), torch.tensor([6, 2, 5, 3])
    conditions, coarse = make_conditions(lm.config, 4), labels_of(lm, codes)
    together = lm(codes, mask, lengths, conditions, coarse)
    assert together.shape == (4, 3, 6, 7)
    assert together[:, 1, :, 5:].isneginf().all() and together[:, 2, :, 6:].isneginf().all()
    for b, length in enumerate(lengths.tolist()):
        row, cut = slice(b, b + 1), (slice(b, b + 1), slice(None), slice(length))
        labels = None if coarse is None else coarse[cut]
        one = conditions.rows(row).trimmed()
        alone = lm(codes[cut], mask[cut], None, one, labels)
        torch.testing.assert_close(alone[0], together[b, :, :length], rtol=0, atol=1e-9)


@pytest.mark.parametrize("refines", [False, True])
def test_known_codes_and_labels_matter_and_hidden_codes_do_not(refines):
    lm = make(refines, candidates="codebook")
    codes, mask = make_codes(1, 4), torch.zeros(1, 3, 4, dtype=torch.bool)
    mask[0, :, 1:3] = True
    coarse = labels_of(lm, codes)
    before = lm(codes, mask, coarse=coarse)
    for k, t in itertools.product(range(3), range(4)):
        other = codes.clone()
        other[0, k, t] = (codes[0, k, t] + 1) % CARDINALITIES[k]
        after = lm(other, mask, coarse=coarse)
        assert torch.equal(before, after) if mask[0, k, t] else not torch.allclose(before[0, :, 1], after[0, :, 1])
        if coarse is not None:
            label = coarse.clone()
            label[0, k, t] = (coarse[0, k, t] + 1) % lm.clustering.clusters[k]
            assert not torch.allclose(before[0, :, 2], lm(codes, mask, coarse=label)[0, :, 2])


def test_only_codes_of_the_cluster_are_candidates():
    lm, codes = make(True), make_codes(2, 5)
    mask, coarse = make_mask(2, 5), labels_of(make(True), codes)
    logits = lm(codes, mask, coarse=coarse)
    free = make(True, candidates="codebook")(codes, mask, coarse=coarse)
    for b, k, t, v in itertools.product(range(2), range(3), range(5), range(7)):
        allowed = int(LABELS[k, v]) == int(coarse[b, k, t])
        assert bool(logits[b, k, t, v].isneginf()) != allowed
        assert not allowed or logits[b, k, t, v] == free[b, k, t, v]
    drawn = logits.argmax(-1)
    assert torch.equal(lm.clustering.coarse(drawn), coarse)


# The loss


@pytest.mark.parametrize("refines", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_equals_a_slow_one(refines, smoothing):
    lm, codes, lengths = make(refines, "label prefix"), make_codes(4, 5), torch.tensor([5, 2, 4, 1])
    conditions, masked = (
        make_conditions(lm.config, 4),
        make(refines, "label prefix").sample_mask(make_codes(4, 5), lengths),
    )
    report = lm.loss(codes, lengths, conditions, smoothing)
    logits = lm(codes, masked.mask, lengths, conditions, labels_of(lm, codes)).log_softmax(-1)
    sums = [0.0, 0.0, 0.0]
    for b, k, t in masked.mask.nonzero().tolist():
        row = logits[b, k, t]
        spread = -row[row.isfinite()].mean()
        term = (1 - smoothing) * -row[codes[b, k, t]] + smoothing * spread
        sums[k] += float(term.detach() * masked.weight[b])
    assert report.count.tolist() == [12, 12, 12]
    assert report.per_codebook.tolist() == pytest.approx([value / 12 for value in sums], rel=1e-5)  # float32 terms
    assert report.loss.item() == pytest.approx(sum(sums) / 36, rel=1e-5)


def test_the_uniform_loss_is_the_mean_over_orders_of_the_likelihood(monkeypatch):
    """Averaged over all that can be hidden; against filling one code after another, in every order."""
    lm, codes = make(), make_codes(1, 1)
    cells = [(k, 0) for k in range(3)]

    def nats(mask, cell):
        logits = lm(codes, mask)
        return -logits[0, cell[0], cell[1]].log_softmax(-1)[codes[0, cell[0], cell[1]]].item()

    slow = 0.0
    for order in itertools.permutations(cells):
        mask = torch.ones(1, 3, 1, dtype=torch.bool)
        for cell in order:
            slow += nats(mask, cell) / 6
            mask[0, cell[0], cell[1]] = False
    fast = 0.0
    for count in (1, 2, 3):
        choices = list(itertools.combinations(cells, count))
        for chosen in choices:
            mask = torch.zeros(1, 3, 1, dtype=torch.bool)
            for cell in chosen:
                mask[0, cell[0], cell[1]] = True
            found = SampledMask(mask, torch.tensor([3 / count]))
            monkeypatch.setattr(lm, "sample_mask", lambda *_, found=found: found)
            fast += 3 * lm.loss(codes).loss.item() / (3 * len(choices))
    assert fast == pytest.approx(slow, rel=1e-5)  # float32 terms


@pytest.mark.parametrize("refines", [False, True])
def test_the_gradient_reaches_every_codebook(refines):
    lm, codes = make(refines, candidates="codebook").train(), make_codes(4, 5)
    torch.manual_seed(0)
    report = lm.loss(codes)
    for k in range(3):
        (gradient,) = torch.autograd.grad(report.per_codebook[k], lm.head.weight, retain_graph=True)
        assert (gradient.view(3, 7, -1)[k, : CARDINALITIES[k]].abs().sum(-1) > 0).all()
    report.loss.backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in lm.parameters())


def test_training_lowers_the_loss():
    codes = torch.arange(4)[:, None, None].expand(4, 3, 6).clone()  # every code of a row is the row's number
    lm = make(masking=MaskingConfig(share="uniform"), layers=1).float().train()
    optimizer = torch.optim.Adam(lm.parameters(), lr=0.01)
    torch.manual_seed(0)
    for _ in range(25):
        loss = lm.loss(codes).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert float(lm.eval().loss(codes).loss) < 0.9  # log 4 = 1.39 without looking


# Configs and errors


def test_refusals():
    lm, codes = make(True), make_codes(2, 4)
    mask = make_mask(2, 4)
    with pytest.raises(ValueError, match=r"coarse labels for a refiner must be long \[2, 3, 4\], found nothing"):
        lm(codes, mask)
    with pytest.raises(
        ValueError, match=r"coarse labels for a refiner must be long \[2, 3, 4\], found torch.int64 \[2, 3, 3"
    ):
        lm(codes, mask, coarse=codes[:, :, :3])
    other = make_spec(CARDINALITIES).model_copy(update={"fingerprint": "1" * 64, "name": "other"})
    with pytest.raises(ValueError, match="the clusters belong to tokenizer 'other' .* but 'tiny'"):
        MaskedLM(MaskedConfig(width=8, heads=1), make_spec(CARDINALITIES), None, Clustering(other, LABELS))
    with pytest.raises(ValueError, match="leave variable_length, arrangement and specials out"):
        MaskedConfig(variable_length=True)
    with pytest.raises(ValueError, match="does not decode in order; leave window, ahead and start out"):
        MaskedConfig(window=4)
    with pytest.raises(
        ValueError, match="a masked model predicts all codes at once, head 'depth' does not; use parallel or bits"
    ):
        MaskedConfig(head=DepthHeadConfig())
    assert isinstance(make_lm(LMConfig(width=8, heads=1), make_spec()), torch.nn.Module)


def test_kinds_in_a_file():
    run = {"name": "x", "data": {"shards": "a"}, "tokenizer": "t", "train": {"steps": 1, "batch": 1, "lr": 0.1}}
    assert type(check_config({**run, "lm": {"width": 16}}, TrainConfig).lm) is LMConfig
    masked = check_config({**run, "lm": {"kind": "masked", "masking": {"unit": "frame"}}}, TrainConfig).lm
    assert isinstance(masked, MaskedConfig) and masked.masking.unit == "frame"
    again = check_config({**run, "lm": masked.model_dump(mode="json")}, TrainConfig).lm
    assert again == masked
    with pytest.raises(ConfigError, match=r"lm.*widht: unknown key; did you mean 'width'"):
        check_config({**run, "lm": {"widht": 16}}, TrainConfig)
    with pytest.raises(ConfigError, match=r"maskign: unknown key; did you mean 'masking'"):
        check_config({**run, "lm": {"kind": "masked", "maskign": {}}}, TrainConfig)
    with pytest.raises(ConfigError, match="train.patches is for an lm that predicts step by step"):
        patches = {**run["train"], "patches": [{"side": 2, "share": 0.5}]}
        check_config({**run, "lm": {"kind": "masked"}, "train": patches}, TrainConfig)
    with pytest.raises(ConfigError, match="masekd"):
        check_config({**run, "lm": {"kind": "masekd"}}, TrainConfig)
    with pytest.raises(ConfigError, match="export.coarse_model is for a refiner"):
        check_config({**run, "lm": {}, "export": {"coarse_model": "m"}}, TrainConfig)
    sampled = {**run, "clusters": "c", "lm": {"kind": "masked"}, "train": {**run["train"], "sample_every": 1}}
    with pytest.raises(
        ConfigError, match="a refiner cannot generate without a model of coarse labels; set export.coarse_model"
    ):
        check_config(sampled, TrainConfig)
