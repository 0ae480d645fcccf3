"""The depth head: its alignment, what it is for, its training on a share of the steps, its cache, its errors."""

import copy

import pytest
import torch
from small_models import ARRANGEMENTS, PUBLIC_DEPTHS, make_codes, make_config, make_lm, make_spec

from tessera.configs.schema import ConfigError, check_config
from tessera.lm.config import LMConfig
from tessera.lm.heads.depth_transformer import DepthHeadConfig, RopePositionsConfig
from tessera.lm.heads.parallel import ParallelHeadConfig
from tessera.lm.kernels import cpu_gemv
from tessera.lm.layers.input_embedding import EmbeddingInputConfig, NoisyInputConfig
from tessera.lm.layers.lora import LoRAConfig, add_lora_, lora_layers, merged_copy
from tessera.lm.ops.rotary import rotary_table, rotate
from tessera.lm.patterns.pattern import ParallelConfig
from tessera.lm.quantization.cpu_fast_decode import enable_fast_cpu_decode_
from tessera.lm.quantization.packed_linear import pack_

DEPTHS = {
    "all by depth": DepthHeadConfig(layers=1, heads=2),
    "first by backbone": DepthHeadConfig(layers=1, heads=2, first="backbone"),
    "code vectors": DepthHeadConfig(layers=1, heads=2, input="codes", output="shared"),
    "csm": PUBLIC_DEPTHS["csm"],
    "qwen": DepthHeadConfig(
        layers=1, heads=2, head_dim=16, qk_norm=True, input="backbone", projection="affine",
        positions=RopePositionsConfig(base=1e6),
    ),
    "moshi": PUBLIC_DEPTHS["moshi"],
}  # fmt: skip
depths = pytest.mark.parametrize("head", DEPTHS.values(), ids=DEPTHS.keys())


def leaks(lm, codes, shift=0) -> bool:
    """Whether a code changes the prediction of itself or of a code before it in its step, where the head of each step
    is given the state that is `shift` steps later."""

    def logits(codes):
        arranged, hidden = lm.hidden_states(codes, None, None)
        return lm.head(hidden.roll(-shift, dims=1), arranged.ids)

    before = logits(codes)
    for k, V in enumerate(lm.arrangement.cardinalities):
        changed = codes.clone()
        changed[:, k, 3] = (changed[:, k, 3] + 1) % V
        at = int(lm.arrangement.steps_of(torch.tensor([3]), codes.shape[2])[k, 0])
        if not logits(changed)[:, at, : k + 1].equal(before[:, at, : k + 1]):
            return True
    return False


@pytest.mark.sample(5)
@depths
@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_the_head_gets_the_state_that_has_not_read_its_own_step(arrangement, head):
    lm = make_lm(make_config(arrangement=ARRANGEMENTS[arrangement], head=head, variable_length=False))
    codes = make_codes(2, 6)
    assert not leaks(lm, codes)
    assert leaks(lm, codes, shift=1), "the state of its own step would be noticed"


def train(lm, make_batch, steps, lr=1e-2):
    optimizer = torch.optim.AdamW(lm.train().parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        lm.loss(make_batch()).loss.backward()
        optimizer.step()
    lm.eval()


@pytest.mark.sample(1)
@pytest.mark.parametrize("head", [ParallelHeadConfig(), *DEPTHS.values()], ids=["parallel", *DEPTHS])
def test_depth_learns_what_codes_of_a_frame_say_of_each_other(head):
    """Codebook 0 is noise and the others follow from it: only a head that reads it can know them."""
    config = make_config(arrangement=ParallelConfig(), head=head, layers=1, variable_length=False)
    lm = make_lm(config, spec=make_spec((6, 6, 6)))
    generator = torch.Generator().manual_seed(0)

    def make_batch():
        first = torch.randint(6, (16, 1, 8), generator=generator)
        return torch.cat([first, (first + 2) % 6, 5 - first], dim=1)

    train(lm, make_batch, 40)
    losses = lm.loss(make_batch()).per_codebook.tolist()
    chance = torch.tensor(6.0).log()
    assert losses[0] > chance - 0.1
    if head.kind == "parallel":
        assert min(losses[1:]) > chance - 0.1
    else:
        assert max(losses[1:]) < 0.3


@pytest.mark.sample(1)
@depths
def test_training_on_a_share_of_the_steps_is_right_on_average(head):
    config = make_config(head=head.model_copy(update={"trained_share": 0.3}))
    lm, codes, lengths = make_lm(config), make_codes(3, 6), torch.tensor([6, 3, 5])
    whole = lm.loss(codes, lengths)
    lm.train()
    torch.manual_seed(0)
    reports = [lm.loss(codes, lengths) for _ in range(64)]
    found = torch.stack([report.per_codebook for report in reports]).detach()
    # the mean of 64 draws lies within 4 of its own standard errors
    error = found.std(0) / 8
    assert bool(((found.mean(0) - whole.per_codebook).abs() <= 4 * error + 1e-6).all())
    assert all(report.count.equal(whole.count) for report in reports)
    assert bool((error[1:] > 0.001).all())
    assert (float(error[0]) < 1e-6) == (head.first == "backbone")


@depths
def test_the_cache_of_a_generation_is_allocated_once(head):
    lm = make_lm(make_config(head=head))
    state = lm.start(capacity=3, num_rows=2)
    cache = state.head.cache
    where = cache.keys.data_ptr()
    ids = lm.start_ids(2)
    for s in range(3):
        begun = lm.head.begin(state.head, lm.read(state, ids), s)
        for stage in range(3):
            lm.head.predict(begun, stage, torch.zeros(2, 3, dtype=torch.long))
        assert cache.length == 3 and cache.keys.data_ptr() == where
    assert cache.capacity == 3


@depths
def test_packed_weights_are_those_of_the_head(head):
    lm, packed = make_lm(make_config(head=head)), pack_(make_lm(make_config(head=head)), "int8")
    codes = make_codes(2, 5)
    found, expected = packed(codes).logits.detach(), lm(codes).logits.detach()
    some = expected.isfinite()
    # 8 bits: a weight is off by at most 1/254 of the largest of its row
    assert 0 < float((found - expected)[some].abs().max()) < 0.1


@pytest.mark.sample(6)
@pytest.mark.skipif(bool(cpu_gemv.why_not()), reason=cpu_gemv.why_not())
@pytest.mark.parametrize("rows", [1, cpu_gemv.MAX_ROWS, cpu_gemv.MAX_ROWS + 1])
@pytest.mark.parametrize("how", [enable_fast_cpu_decode_, lambda lm: pack_(lm, "float32")], ids=["quick", "packed"])
@depths
def test_a_step_of_a_small_model_on_a_cpu_is_quick(head, how, rows):
    lm = make_lm(make_config(width=64, head=head.model_copy(update={"width": 32, "heads": 2})))
    hidden, sub_tokens = torch.randn(rows, 64), make_codes(rows, 1)[:, :, 0]
    wanted = positions(lm, hidden, sub_tokens)
    stack, calls = how(lm).head.transformer.fused, []
    lm.head.transformer.fused = lambda *arguments: calls.append(stack(*arguments)) or calls[-1]
    found = positions(lm, hidden, sub_tokens)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)
    quick = [call is not None for call in calls]
    if rows > cpu_gemv.MAX_ROWS:
        assert not any(quick)
    else:  # where the backbone predicts the first symbol, two positions are read at once before the second
        assert quick == ([False, True] if lm.head.backbone_first else [True] * 3)


@torch.no_grad()
def positions(lm, hidden, sub_tokens):
    """Logits of a step's sub-tokens, one after the other."""
    begun = lm.head.begin(lm.head.start(len(hidden), hidden.dtype, hidden.device), hidden, 0)
    return [lm.head.predict(begun, stage, sub_tokens) for stage in range(3)]


def test_a_head_reads_special_ids_too():
    """In a step of `delay`, whether codebook 0 holds a code or has ended tells the depth head of codebook 1."""
    lm = make_lm(make_config(head=DEPTHS["code vectors"]))
    hidden, ids = torch.randn(1, 1, 32), torch.zeros(1, 3, 1, dtype=torch.long)
    found = [lm.head(hidden, ids.index_fill(1, torch.tensor([0]), value))[0, 0, 1] for value in range(7 + 3)]
    assert all(not one.equal(other) for i, one in enumerate(found) for other in found[:i])


def slow_logits(lm, hidden, codes):
    """Logits of a step from hidden [D] and codes [K], one position at a time, one attention head at a time: position 0
    reads the hidden state, position k the code of codebook k - 1."""
    head, config = lm.head, lm.config.head
    project, block = head.project, head.transformer.blocks[0]
    rows = (codes + torch.tensor([0, *lm.arrangement.input_sizes[:-1]]).cumsum(0))[:-1]
    read = {
        "backbone": lambda: project(lm.input.table.weight[rows]),
        "projected": lambda: project(head.reader.table.weight[rows]),
        "embedding": lambda: head.reader.table.weight[rows],
    }
    inputs = [project(hidden), *read[config.input]()]
    if config.positions.kind == "table":
        inputs = [x + head.positions.weight[k] for k, x in enumerate(inputs)]
    attention, E, G = block.attention, head.cache_shape[3], head.cache_shape[1]
    keys, values, found = [], [], []
    for k, x in enumerate(inputs):
        parts = attention.qkv(block.attention_norm(x)).view(-1, E).split([config.heads, G, G])
        if config.qk_norm:
            parts = attention.query_norm(parts[0]), attention.key_norm(parts[1]), parts[2]
        queries, key, value = parts
        if config.positions.kind == "rope":
            table = rotary_table(torch.tensor([[k]]), E, config.positions.base, config.positions.scaling)
            queries, key = (rotate(one[None, None], table)[0, 0] for one in (queries, key))
        keys.append(key)
        values.append(value)
        mixed = []
        for h, query in enumerate(queries):
            g = h // (config.heads // G)
            weights = torch.stack([query @ each[g] / E**0.5 for each in keys]).softmax(0)
            mixed.append(sum(weight * each[g] for weight, each in zip(weights, values, strict=True)))
        x = x + attention.out(torch.cat(mixed))
        state = head.transformer.norm(x + block.ffn(block.ffn_norm(x)))
        if k or not head.backbone_first:
            found.append(head.outputs[k - head.backbone_first](state))
    return [head.first(hidden), *found] if head.backbone_first else found


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in DEPTHS if name != "code vectors"])
def test_the_head_is_its_definition(name):
    lm = make_lm(make_config(head=DEPTHS[name]))
    for parameter in lm.head.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    hidden, codes = torch.randn(4, 32), make_codes(4, 1)[:, :, 0]
    staged = positions(lm, hidden, codes)
    for b in range(4):
        for one, other in zip(staged, slow_logits(lm, hidden[b], codes[b]), strict=True):
            torch.testing.assert_close(one[b, 0], other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("noisy", [False, True])
def test_shared_tables_are_those_of_the_backbone(noisy):
    """The model equals one whose head has a copy of the tables; they are saved once and learn from both uses."""
    input_config = NoisyInputConfig(share=0.5) if noisy else EmbeddingInputConfig()
    head = PUBLIC_DEPTHS["csm"]
    shared = make_lm(make_config(head=head, input=input_config))
    apart = make_lm(make_config(head=head.model_copy(update={"input": "projected"}), input=input_config))
    name = "input.inner.table.weight" if noisy else "input.table.weight"
    state = shared.state_dict()
    rows = sum(shared.arrangement.input_sizes[:-1])
    apart.load_state_dict({**state, "head.reader.table.weight": state[name][:rows]})
    assert not any(name.startswith("head.reader") for name in state)
    assert len({id(parameter) for parameter in shared.parameters()}) == len(state)
    codes = make_codes(3, 5)
    reports = [lm.loss(codes) for lm in (shared, apart)]
    assert reports[0].loss.equal(reports[1].loss)
    for report in reports:
        report.loss.backward()
    table, backbone, own = (
        dict(lm.named_parameters())[of].grad
        for lm, of in ((shared, name), (apart, name), (apart, "head.reader.table.weight"))
    )
    torch.testing.assert_close(table, torch.cat([backbone[:rows] + own, backbone[rows:]]))
    assert float(own.abs().sum()) > 0
    copied = copy.deepcopy(shared)
    with torch.no_grad():
        copied.get_parameter(name).add_(1.0)
        assert not copied(codes).logits[:, 1, 0, :5].equal(shared(codes).logits[:, 1, 0, :5])
        hidden = torch.randn(1, 1, 32)
        assert not copied.head(hidden, codes[:1, :, :1]).equal(shared.head(hidden, codes[:1, :, :1]))
    packed = pack_(copy.deepcopy(shared), "int8")
    assert packed.num_parameters == shared.num_parameters


def test_low_rank_changes_reach_what_is_read_from_shared_tables():
    lm = make_lm(make_config(head=DEPTHS["qwen"]))
    changed = add_lora_(copy.deepcopy(lm), LoRAConfig(rank=2, targets=("head.project", "head.transformer.blocks")))
    codes = make_codes(2, 4)
    assert changed(codes).logits.equal(lm(codes).logits)
    with torch.no_grad():
        for _, layer in lora_layers(changed):
            layer.lora_up.normal_()
    merged = merged_copy(changed)
    assert merged.head.reader.embedding[0] is merged.input
    found, expected = merged(codes).logits, changed(codes).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not expected.equal(lm(codes).logits)


def test_autocast_keeps_the_residual_stream_in_float32():
    lm = make_lm(make_config(head=PUBLIC_DEPTHS["csm"])).train()
    seen = []
    lm.head.transformer.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        lm.loss(make_codes(2, 4)).loss.backward()
    assert seen == [torch.float32]


def test_weights_of_the_loss():
    weighted, plain = (make_lm(make_config(loss_weights=weights)) for weights in ((6.0, 1.0, 1.0), None))
    report, same = weighted.loss(make_codes(2, 5)), plain.loss(make_codes(2, 5))
    assert report.per_codebook.equal(same.per_codebook)
    torch.testing.assert_close(report.loss, (report.per_codebook * torch.tensor([0.75, 0.125, 0.125])).sum())
    torch.testing.assert_close(same.loss, same.per_codebook.mean())


def test_errors():
    with pytest.raises(ConfigError, match="lm.loss_weights has 2 entries, but there are 3 codebooks"):
        make_lm(make_config(loss_weights=(1.0, 2.0)))
    with pytest.raises(ValueError, match="head: kind 'dpeth' is unknown; did you mean 'depth'"):
        check_config({"head": {"kind": "dpeth"}}, LMConfig)
    with pytest.raises(ConfigError, match="lm.head: width 30 is not a multiple of heads 4"):
        make_lm(make_config(head=DepthHeadConfig(width=30)))
    with pytest.raises(ConfigError, match="lm.head: head width is 5, but positions kind 'rope' needs a multiple of 2"):
        make_lm(make_config(head=DepthHeadConfig(width=20, positions=RopePositionsConfig())))
    with pytest.raises(ConfigError, match="lm.head: projection 'none' needs width 32, the backbone's, found 16"):
        make_lm(make_config(head=DepthHeadConfig(width=16, projection="none")))
    with pytest.raises(ConfigError, match="head input 'backbone' reads the table of input kind .*, found 'codes'; use"):
        settings = {"head": {"kind": "depth", "input": "backbone"}}
        check_config({**settings, "input": {"kind": "noisy", "input": {"kind": "codes"}}}, LMConfig)
    with pytest.raises(ValueError, match="head.depth.positions: kind 'rpoe' is unknown; did you mean 'rope'"):
        check_config({"head": {"kind": "depth", "positions": {"kind": "rpoe"}}}, LMConfig)
    with pytest.raises(ConfigError, match="lm.head: heads 4 is not a multiple of kv_heads 3"):
        make_lm(make_config(head=DepthHeadConfig(kv_heads=3)))
    with pytest.raises(ConfigError, match="needs two codebooks or more, one of them for the depth transformer"):
        make_lm(make_config(head=DEPTHS["first by backbone"]), spec=make_spec((7,)))
    with pytest.raises(ConfigError, match="lm.head input 'codes' needs the tokenizer's code vectors"):
        config = make_config(head=DEPTHS["code vectors"])
        type(make_lm(config))(config, make_spec())
    lm = make_lm(make_config(head=DEPTHS["all by depth"]))
    with pytest.raises(ValueError, match="head 'depth' reads the codes of the step it predicts; pass them as `chosen`"):
        lm.step(lm.start(capacity=1, num_rows=1), lm.start_ids(1))
