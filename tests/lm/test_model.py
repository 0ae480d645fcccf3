"""Laws of the language model, over every arrangement, condition, position and input."""

from dataclasses import replace

import pytest
import torch
from small_models import CASES, make_codes, make_conditions, make_config, make_lm, make_spec
from stepping import close, stage_through, step_through

from tessera.configs.schema import ConfigError, check_config
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.config import LMConfig
from tessera.lm.heads.depth_transformer import DepthHeadConfig
from tessera.lm.heads.flat import FlatHeadConfig
from tessera.lm.heads.parallel import ParallelHeadConfig
from tessera.lm.layers.input_embedding import CodesInputConfig
from tessera.lm.ops.rotary import GridRopeConfig

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
half_of_the_cases = pytest.mark.parametrize("case", [*CASES.values()][::2], ids=[*CASES.keys()][::2])


def make_all(config, num_rows):
    lm = make_lm(config)
    return lm, make_codes(num_rows, 6, lm.arrangement.cardinalities), make_conditions(config, num_rows)


@pytest.mark.sample(8)
@cases
def test_steps_equal_the_full_forward(case):
    config = make_config(case)
    lm, codes, conditions = make_all(config, 4)
    lengths = torch.tensor([6, 1, 4, 5]) if config.variable_length else None
    with torch.no_grad():
        output = lm(codes, lengths, conditions)
    logits = step_through(lm, output.targets, conditions)
    close(logits, output.logits)
    assert logits.argmax(-1).equal(output.logits.argmax(-1))
    S = output.targets.shape[2]
    close(step_through(lm, output.targets, conditions, [2, 1, S - 3]), output.logits)
    with torch.no_grad():
        staged = stage_through(lm, output.targets, conditions)
    asked = output.mask.repeat_interleave(lm.head.sub_tokens.parts, dim=1)
    close(staged[asked], output.logits[asked])
    sizes = lm.head.sub_tokens.output_sizes
    assert output.undo().shape == (4, len(sizes), 6, max(sizes))


@pytest.mark.sample(10)
@half_of_the_cases
def test_a_later_code_never_changes_an_earlier_logit(case):
    config = make_config(case)
    lm, codes, conditions = make_all(config, 2)
    before = lm(codes, None, conditions).logits
    for k, V in enumerate(lm.arrangement.cardinalities):
        changed = codes.clone()
        changed[:, k, 3] = (changed[:, k, 3] + 1) % V
        at = int(lm.arrangement.steps_of(torch.tensor([3]), 6)[k, 0])
        after = lm(changed, None, conditions).logits
        assert after[:, :, :at].equal(before[:, :, :at])
        check_step(lm, at, k, after[:, :, at], before[:, :, at])
        if at + 1 < before.shape[2]:
            assert not after[:, :, at + 1].equal(before[:, :, at + 1])


def check_step(lm, step, k, after, before):
    """Logits [B, J, V'] of the step in which a code of codebook k was changed: only those drawn after it differ."""
    books = lm.head.sub_tokens.codebooks
    stages = lm.head.stages_at(step)
    known = next(stage for stage, places in enumerate(stages) if k in [books[j] for j in places])
    for stage, places in enumerate(stages):
        for j in places:
            if stage <= known:
                assert after[:, j].equal(before[:, j])
            elif books[j] != k:
                assert not after[:, j].equal(before[:, j])


@pytest.mark.sample(8)
@half_of_the_cases
def test_a_row_of_a_batch_equals_the_row_alone(case):
    config = make_config(case)
    lm, codes, conditions = make_all(config, 4)
    lengths = torch.tensor([6, 1, 4, 5])
    if lm.spec.geometry.kind == "picture":
        lengths = torch.full((4,), 6)
    whole = lm(codes, lengths, conditions)
    for b, length in enumerate(lengths.tolist()):
        row = conditions.rows(slice(b, b + 1)).trimmed()
        alone = lm(codes[b : b + 1, :, :length], None, row)
        S = alone.logits.shape[2]
        close(whole.logits[b, :, :S], alone.logits[0])
        assert whole.targets[b, :, :S].equal(alone.targets[0])


@pytest.mark.sample(10)
@half_of_the_cases
def test_the_gradient_reaches_every_codebook(case):
    config = make_config(case)
    lm, codes, conditions = make_all(config, 48)
    lm.train()
    report = lm.loss(codes, None, conditions)
    report.loss.backward()
    assert report.count.tolist() == [48 * 6 + 48 * config.variable_length, 288, 288]
    for name, parameter in lm.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        # Where a step holds one code alone, none is read that matters; special ids do not stand everywhere, in a
        # prompt nowhere.
        alone = config.arrangement.kind in ("flat", "grouped")
        in_prompt = name == "conditions.parts.codes.input.specials.weight"
        if not in_prompt and not (name.startswith("head.reader.") and ("specials" in name or alone)):
            assert float(parameter.grad.abs().sum()) > 0, name
    if config.head.kind == "parallel":
        V = max(lm.arrangement.output_sizes)
        rows = lm.head.weight.grad.view(3, V, -1).abs().sum(-1)
        for k, size in enumerate(lm.arrangement.output_sizes):
            assert bool((rows[k, :size] > 0).all())
            assert bool((rows[k, size:] == 0).all())
    for name, parameter in lm.head.named_parameters():
        if "output" in name:
            assert bool((parameter.grad.abs().sum(-1) > 0).all()), name
    if config.input.kind == "embedding":
        used = lm.input.table.weight.grad.abs().sum(-1).split(lm.arrangement.input_sizes)
        for k, V in enumerate(lm.arrangement.cardinalities):
            assert bool((used[k][codes[:, k, :3].unique()] > 0).all())
            read_at_all = config.start == "token" or k > 0
            assert (float(used[k][V + 1]) > 0) == read_at_all  # start


@pytest.mark.parametrize(
    "condition",
    [
        "label prefix",
        "label sum",
        "label cross",
        "text prefix",
        "text cross",
        "codes prefix",
        "codes encoder",
    ],
)
def test_a_condition_and_its_null_differ(condition):
    config = make_config(("delay", condition, *make_case()[2:]))
    lm, codes, conditions = make_lm(config), make_codes(1, 4), make_conditions(config, 1)
    given, null = lm(codes, None, conditions).logits, lm(codes, None, conditions.null()).logits
    assert float((given - null).detach()[:, 0, :, :7].abs().max()) > 1e-3
    other = replace(conditions, label=None if conditions.label is None else conditions.label + 1)
    if other.text is not None:
        other = replace(other, text=other.text + 1)
    if other.codes is not None:
        other = replace(other, codes=(other.codes + 1) % 5)
    assert float((given - lm(codes, None, other).logits).detach()[:, 0, :, :7].abs().max()) > 1e-3


def test_order_of_text_matters_to_cross_attention():
    config = make_config(("delay", "text cross", *make_case()[2:]))
    lm, codes = make_lm(config), make_codes(1, 4)
    one, other = (lm(codes, None, ConditionBatch.make(texts=[ids])).logits for ids in ([1, 2, 3], [3, 2, 1]))
    assert float((one - other).detach()[:, 0, :, :7].abs().max()) > 1e-4


@pytest.mark.sample(10)
@half_of_the_cases
def test_the_loss_is_the_cross_entropy_of_the_logits(case):
    config = make_config(case)
    lm, codes, conditions = make_all(config, 3)
    lengths = torch.tensor([6, 2, 3]) if config.variable_length else None
    output, report = lm(codes, lengths, conditions), lm.loss(codes, lengths, conditions)
    logs, sub_tokens = output.logits.log_softmax(-1), lm.head.sub_tokens.split(output.targets)
    books, sizes = lm.head.sub_tokens.codebooks, lm.head.sub_tokens.output_sizes
    for k in range(3):
        sums = torch.zeros(3, output.targets.shape[2])
        for j in [j for j, book in enumerate(books) if book == k]:
            drawn = sub_tokens[:, j] < sizes[j]  # an end is said by the first symbol alone
            found = logs[:, j].gather(-1, torch.where(drawn, sub_tokens[:, j], 0).unsqueeze(-1)).squeeze(-1)
            sums = sums - torch.where(drawn, found, 0.0)
        close(report.per_codebook[k], sums[output.mask[:, k]].mean())


def make_case():
    return next(iter(CASES.values()))


@pytest.mark.parametrize("name", ["label", "text", "embedding", "codes"])
def test_dropout_replaces_whole_conditions_by_the_null(name):
    config = make_config(("delay", f"{name} prefix", *make_case()[2:]))
    often = config.conditions[0].model_copy(update={"dropout": 0.5})
    lm = make_lm(config.model_copy(update={"conditions": (often,)})).train()
    batch = make_conditions(config, 1).rows(torch.zeros(64, dtype=torch.long))
    codes = make_codes(1, 4).expand(64, -1, -1).contiguous()
    torch.manual_seed(0)
    found = lm(codes, None, batch).logits[:, 0]
    lm.eval()
    given, null = lm(codes, None, batch).logits[:, 0], lm(codes, None, batch.null()).logits[:, 0]
    is_given = (found - given).abs().amax((1, 2)) < 1e-5
    is_null = (found - null).abs().amax((1, 2)) < 1e-5
    assert bool((is_given ^ is_null).all())
    assert 16 < int(is_null.sum()) < 48
    state = lm.train().start(batch, capacity=1)  # a generation never drops, also while the model trains
    close(lm.step(state, lm.start_ids(64))[:, 0], given[:, 0])


def test_loss_is_the_mean_of_the_means_of_each_codebook():
    config = make_config(make_case())
    lm, codes, lengths = make_lm(config), make_codes(3, 5), torch.tensor([5, 2, 3])
    output, report = lm(codes, lengths), lm.loss(codes, lengths)
    logs = output.logits.log_softmax(-1)
    for k in range(3):
        terms = [
            -logs[b, k, s, output.targets[b, k, s]]
            for b in range(3)
            for s in range(output.targets.shape[2])
            if output.mask[b, k, s]
        ]
        close(report.per_codebook[k], torch.stack(terms).mean())
        assert report.count[k] == len(terms)
    close(report.loss, report.per_codebook.mean())


def test_label_smoothing_spreads_over_the_ids_a_codebook_has():
    config = make_config(make_case())
    lm, codes = make_lm(config), make_codes(2, 3)
    output, report = lm(codes), lm.loss(codes, label_smoothing=0.3)
    for k, size in enumerate(lm.arrangement.output_sizes):
        logs = output.logits[:, k, :, :size].log_softmax(-1)
        wanted = torch.nn.functional.one_hot(output.targets[:, k].clamp(max=size - 1), size)
        soft = 0.7 * wanted + 0.3 / size
        close(report.per_codebook[k], -(soft * logs).sum(-1)[output.mask[:, k]].mean())


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("arrangement", "head"),
    [
        ("parallel", ParallelHeadConfig()),
        ("parallel", DepthHeadConfig(layers=1)),
        ("parallel", DepthHeadConfig(layers=1, first="backbone")),
        ("delay", ParallelHeadConfig()),
        ("flat", FlatHeadConfig()),
        ("coarse first", ParallelHeadConfig()),
    ],
)
def test_the_loss_is_lowest_at_the_right_offset(arrangement, head):
    """A few steps on sequences whose next code follows from the last: shifted by a frame, targets must fit worse."""
    config = make_config((arrangement, "nothing", *make_case()[2:]), layers=1, variable_length=False, head=head)
    lm = make_lm(config, spec=make_spec((7, 7, 7))).train()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)

    def make_batch():
        first = torch.randint(7, (16, 1, 1), generator=generator)
        return (first + 3 * torch.arange(10) + torch.arange(3)[:, None]) % 7

    for _ in range(40):
        optimizer.zero_grad()
        lm.loss(make_batch()).loss.backward()
        optimizer.step()
    codes = make_batch()
    logits = lm.eval()(codes).undo().detach().log_softmax(-1)
    inside = slice(3, 7)
    losses = {
        shift: -logits[:, :, inside].gather(-1, codes[:, :, 3 + shift : 7 + shift, None]).squeeze(-1).mean((0, 2))
        for shift in (-2, -1, 0, 1, 2)
    }
    assert bool((losses[0] < 0.5).all()), losses
    for shift in (-2, -1, 1, 2):
        assert bool((losses[shift] > losses[0] + 1).all()), losses


def test_bf16_autocast_stays_near_float32():
    config = make_config(("delay", "label and text", *make_case()[2:]))
    lm, codes, conditions = make_lm(config), make_codes(2, 6), make_conditions(config, 2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = lm(codes, None, conditions)
        logits = step_through(lm, output.targets, conditions)
        assert lm.start(conditions, 3).cache.keys.dtype == torch.bfloat16
    exact = lm(codes, None, conditions).logits.detach()
    valid = exact.isfinite()
    # bf16 has 8 bits: 2 layers of width 32 with logits below 2 stay within a few hundredths
    assert float((output.logits.float() - exact)[valid].abs().max()) < 0.05
    assert float((logits.float() - exact)[valid].abs().max()) < 0.05
    assert lm.loss(codes, None, conditions).loss.dtype == torch.float32


def test_steps_do_not_allocate_the_cache_again():
    config = make_config(make_case())
    lm = make_lm(config)
    state = lm.start(capacity=3, num_rows=2)
    where = state.cache.keys.data_ptr()
    for _ in range(3):
        lm.step(state, lm.start_ids(2))
    assert state.cache.keys.data_ptr() == where
    assert state.cache.length == state.step == 3


def test_bad_inputs_have_one_clear_error():
    config = make_config(("delay", "label and text", *make_case()[2:]))
    lm, codes, conditions = make_lm(config), make_codes(2, 4), make_conditions(config, 2)
    with pytest.raises(ValueError, match="has 3; encode"):
        lm(make_codes(2, 4, (5, 5, 5, 5)), None, conditions)
    with pytest.raises(ValueError, match="have 4 codebooks"):
        lm(make_codes(2, 4, (5, 5, 5, 5)), None, conditions)
    with pytest.raises(ValueError, match="codebook 1 holds codes 0 to 4, found 9"):
        lm(codes.index_fill(1, torch.tensor([1]), 9), None, conditions)
    with pytest.raises(ValueError, match="lengths must be 1 to the 4 frames given, found 4 to 5"):
        lm(codes, torch.tensor([5, 4]), conditions)
    with pytest.raises(ValueError, match="conditioned on a label, but none was given"):
        lm(codes, None, replace(conditions, label=None))
    with pytest.raises(ValueError, match="a text was given, but the model is conditioned on label"):
        make_lm(make_config(("delay", "label prefix", *make_case()[2:])))(codes, None, conditions)
    with pytest.raises(ValueError, match="conditions have 1 rows, but 2"):
        lm(codes, None, conditions.rows(slice(0, 1)))
    with pytest.raises(ValueError, match="label 4 is not one of the model's 4 labels"):
        lm(codes, None, replace(conditions, label=torch.tensor([0, 4])))
    with pytest.raises(ValueError, match="text id 11 is not one of 0 to 10"):
        lm(codes, None, replace(conditions, text=torch.full((2, 3), 11)))
    with pytest.raises(ValueError, match="text_lengths must be 0 to the 2 ids given, found 1 to 4"):
        lm(codes, None, replace(conditions, text_lengths=torch.tensor([4, 1])))
    with pytest.raises(ValueError, match="text_lengths must be long"):
        lm(codes, None, replace(conditions, text_lengths=None))
    with pytest.raises(ValueError, match="text 1 is empty"):
        ConditionBatch.make(texts=[[1], []])
    with pytest.raises(ValueError, match="2 labels but 1 texts"):
        ConditionBatch.make([1, 2], [[1]])
    with pytest.raises(ValueError, match="capacity is 0"):
        lm.start(conditions, capacity=0)
    with pytest.raises(ValueError, match="pass num_rows"):
        make_lm(make_config(make_case())).start(capacity=2)
    state = lm.start(conditions, capacity=2)
    with pytest.raises(ValueError, match="expected 2 rows of 3 codebooks"):
        lm.step(state, lm.start_ids(3))
    lm.step(state, lm.start_ids(2))
    lm.step(state, lm.start_ids(2))
    with pytest.raises(ValueError, match="step 3 is beyond the capacity of 2 steps"):
        lm.step(state, lm.start_ids(2))
    with pytest.raises(ValueError, match="call lm.eval"):
        make_lm(make_config(make_case(), dropout=0.1)).train().start(capacity=2, num_rows=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 30}, "width 30 is not a multiple of heads 4"),
        ({"kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"width": 8, "rope": {"kind": "grid"}}, "head width is 2, but rope kind 'grid' needs a multiple of 4"),
        ({"wdith": 8}, "did you mean 'width'"),
    ],
)
def test_bad_configs_have_one_clear_error(settings, message):
    with pytest.raises(ValueError, match=message):
        check_config(settings, LMConfig)


def test_configs_that_do_not_fit_the_tokenizer():
    spec = make_spec()
    with pytest.raises(ConfigError, match="needs 'columns'"):
        make_lm(make_config(make_case(), rope=GridRopeConfig()), spec=spec)
    with pytest.raises(ConfigError, match="pass code_vectors"):
        type(make_lm(make_config(make_case())))(make_config(make_case(), input=CodesInputConfig()), spec)
    label, text = make_config(("delay", "label and text", *make_case()[2:])).conditions
    with pytest.raises(ConfigError, match="label.classes is not set"):
        make_lm(make_config(make_case(), conditions=(label.model_copy(update={"classes": None}),)))
    with pytest.raises(ConfigError, match="text.vocab_size is not set"):
        make_lm(make_config(make_case(), conditions=(text.model_copy(update={"vocab_size": None}),)))
    with pytest.raises(ConfigError, match="'label' is listed 2 times"):
        make_lm(make_config(make_case(), conditions=(label, label)))
    with pytest.raises(ConfigError, match="label.classes is 4, but the data has 5"):
        make_config(make_case(), conditions=(label,)).filled(classes=5)
    filled = make_config(make_case(), conditions=(text.model_copy(update={"vocab_size": None}),)).filled(vocab_size=9)
    assert filled.conditions[0].vocab_size == 9


def test_default_feed_forward_is_eight_thirds_of_the_width():
    assert LMConfig(width=768).num_ffn == 2048
    assert LMConfig(width=320).num_ffn == 864
    assert LMConfig(width=320, ffn=100).num_ffn == 100
