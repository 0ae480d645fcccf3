"""However weights change between two generations, the second is that of a fresh model with the weights as they are."""

import copy

import pytest
import torch
from short_calls import generate_codes
from small_models import make_conditions, make_spec
from torch import nn

from tessera.generate.execution import step_runner
from tessera.generate.requests.settings import Length
from tessera.lm.conditioning.registry import LabelConfig, TextConditionConfig
from tessera.lm.config import LMConfig
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.heads.depth_transformer import DepthHeadConfig, RopePositionsConfig
from tessera.lm.kernels import cpu_gemv, triton_fused_block
from tessera.lm.kernels.weight_versions import hash_of, stamp_of
from tessera.lm.layers.norm import RMSNorm
from tessera.lm.models.causal import TokenLM
from tessera.lm.ops.linear import Linear
from tessera.lm.ops.rotary import SinusoidalConfig
from tessera.lm.quantization.cpu_fast_decode import enable_fast_cpu_decode_
from tessera.lm.quantization.packed_linear import pack_
from tessera.tokenize.text.byte_text import ByteTextConfig

pytestmark = pytest.mark.skipif(bool(cpu_gemv.why_not()), reason=cpu_gemv.why_not())

KINDS = {
    "rms, swiglu": {},
    "layer, gelu, qk norm": {"norm": "layer", "feed_forward": "gelu", "qk_norm": True, "rope": SinusoidalConfig()},
    "depth head": {"head": DepthHeadConfig(layers=1, heads=2)},
    "depth head, shared table": {
        "head": DepthHeadConfig(layers=1, heads=2, qk_norm=True, input="backbone", positions=RopePositionsConfig())
    },
}
CONDITIONS = (LabelConfig(classes=4), TextConditionConfig(text=ByteTextConfig(), vocab_size=11, join="cross", layers=1))
T, ROWS = 5, 2


def make(kind="rms, swiglu", dtype=torch.float32):
    torch.manual_seed(0)
    spec = make_spec()
    config = LMConfig(width=32, layers=2, heads=2, kv_heads=1, conditions=CONDITIONS, **KINDS[kind])
    return TokenLM(config, spec).to(dtype).eval()


@torch.no_grad()
def logits(lm):
    """Of some steps, through the cache; 0 for values that a codebook does not have."""
    state = lm.start(make_conditions(lm.config, ROWS), T)
    ids, chosen, found = lm.start_ids(ROWS), torch.ones(ROWS, 3, dtype=torch.long), []
    for step in range(T):
        found.append(lm.step(state, ids, chosen))
        ids = torch.full((ROWS, 3), step % 5)
    found = torch.stack(found).float()
    return found.masked_fill(found.isneginf(), 0.0)


def same(lm, fresh):
    """Whether a generation is that of a model that never had copies, up to the order of sums."""
    wanted = logits(fresh)
    torch.testing.assert_close(logits(lm), wanted, rtol=2e-4, atol=2e-4)
    return wanted


def plain_copy(lm):
    """The same weights in new modules, with nothing made of them."""
    fresh = copy.deepcopy(lm)
    for part in fresh.modules():
        part.fused = None
    return fresh


def noise(x):
    return x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x.dtype)


class LowRank(nn.Module):
    """A layer with something added, as LoRA wraps one."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.down = layer, nn.Linear(layer.in_features, 2)
        self.up = nn.Linear(2, layer.out_features)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


class LowRankLinear(Linear):
    """The same as a class of its own."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.weight = layer.weight
        self.down = nn.Parameter(torch.randn(2, layer.in_features))

    def forward(self, input):
        return super().forward(input) + (input @ self.down.T).sum(-1, keepdim=True)


def load(lm):
    lm.load_state_dict({name: noise(x) for name, x in lm.state_dict().items()})


def load_by_assignment(lm):
    lm.load_state_dict({name: noise(x) for name, x in lm.state_dict().items()}, assign=True)


@torch.no_grad()
def in_place(lm):
    lm.transformer.blocks[1].attention.qkv.weight[3, 5] += 7


def one_number_through_data(lm):
    lm.transformer.blocks[0].ffn.down.weight.data[0, 0] = -9.0


def two_signs_through_data(lm):
    lm.transformer.blocks[0].attention.out.weight.data[:4] *= -8


def through_numpy(lm):
    lm.transformer.blocks[0].attention.qkv.weight.detach().numpy()[1] = 3.0


def average_swapped_in(lm):
    for parameter in lm.parameters():
        parameter.data, _kept = noise(parameter.data), parameter.data


def average_copied_in(lm):
    for parameter in lm.parameters():
        parameter.data.copy_(noise(parameter.data))


def parameter_replaced(lm):
    block = lm.transformer.blocks[0]
    block.attention_norm.weight = nn.Parameter(noise(block.attention_norm.weight.detach()))
    block.attention.out.weight = nn.Parameter(noise(block.attention.out.weight.detach()), requires_grad=False)


def module_replaced(lm):
    block = lm.transformer.blocks[1]
    other = Linear(block.attention.out.in_features, block.attention.out.out_features, bias=False)
    block.attention.out = other


def block_replaced(lm):
    lm.transformer.blocks[0] = copy.deepcopy(lm.transformer.blocks[1])


def last_norm_replaced(lm):
    if isinstance(lm.transformer.norm, RMSNorm):
        lm.transformer.norm = RMSNorm(32, eps=0.5)
    else:
        lm.transformer.norm = nn.LayerNorm(32, eps=0.5)


def setting_changed(lm):
    lm.transformer.blocks[0].ffn_norm.eps = 3.0


def low_rank(lm):
    lm.transformer.blocks[0].attention.qkv = LowRank(lm.transformer.blocks[0].attention.qkv).to(lm.dtype)


def low_rank_class(lm):
    lm.transformer.blocks[0].attention.qkv = LowRankLinear(lm.transformer.blocks[0].attention.qkv)


def hook(lm):
    lm.transformer.blocks[0].attention.out.register_forward_hook(lambda module, given, y: 3 * y)


def own_forward(lm):
    layer = lm.transformer.blocks[0].attention.out
    layer.forward = lambda x: 2 * x.flip(-1)


def parametrized(lm):
    nn.utils.parametrizations.weight_norm(lm.transformer.blocks[0].attention.out)
    with torch.no_grad():
        lm.transformer.blocks[0].attention.out.parametrizations.weight.original0.mul_(3)


def no_gradients(lm):
    lm.requires_grad_(False)
    load(lm)


def trained_a_step(lm):
    optimizer = torch.optim.AdamW(lm.parameters(), lr=0.3)
    codes = torch.ones(ROWS, 3, T, dtype=torch.long)
    lm.loss(codes, None, make_conditions(lm.config, ROWS)).loss.backward()
    optimizer.step()


def embeddings_and_conditions(lm):
    for part in (lm.input, lm.conditions, lm.head):
        for parameter in part.parameters():
            parameter.data.copy_(noise(parameter.data))


CHANGES = [
    load, load_by_assignment, in_place, one_number_through_data, two_signs_through_data, through_numpy,
    average_swapped_in, average_copied_in, parameter_replaced, module_replaced, block_replaced, last_norm_replaced,
    setting_changed, low_rank, low_rank_class, hook, own_forward, parametrized, no_gradients, trained_a_step,
    embeddings_and_conditions,
]  # fmt: skip


@pytest.mark.sample(2)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_fast_model_generates_from_the_weights_as_they_are(change):
    for kind in list(KINDS)[:1] if change in (hook, own_forward, parametrized) else KINDS:
        lm = enable_fast_cpu_decode_(make(kind))
        before = logits(lm)
        change(lm)
        assert float((same(lm, plain_copy(lm)) - before).abs().max()) > 1e-3, "the change changes something"


@pytest.mark.slow
def test_any_one_number_of_any_parameter():
    lm = enable_fast_cpu_decode_(make("depth head"))
    for number, (name, parameter) in enumerate(lm.named_parameters()):
        place = number * 7919 % parameter.numel()
        parameter.data.view(-1)[place] += 2.0
        parts = [part for part in (lm.transformer, *(m for m in lm.head.modules() if hasattr(m, "fused")))]
        lm.start(make_conditions(lm.config, ROWS), T)
        for part in parts:
            if hasattr(part.fused, "_made"):
                assert part.fused._made[0] == stamp_of(part), name
    same(lm, plain_copy(lm))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_fast_model_that_is_cast(dtype):
    lm = enable_fast_cpu_decode_(make())
    logits(lm)
    lm.to(dtype)
    wanted = logits(plain_copy(lm))
    found = logits(lm)
    assert float((found - wanted).square().mean().sqrt()) < 0.02 * float(wanted.std())
    lm.to(torch.float32)
    same(lm, plain_copy(lm))


def test_weights_that_count_no_versions():
    with torch.inference_mode():
        lm = enable_fast_cpu_decode_(make())
        logits(lm)
        for parameter in lm.transformer.parameters():
            parameter.mul_(1.5)
    same(lm, plain_copy(lm))


def test_copies_are_made_again_only_where_something_changed():
    lm = enable_fast_cpu_decode_(make())
    logits(lm)
    made = lm.transformer.fused._made
    logits(lm)
    assert lm.transformer.fused._made is made
    lm.load_state_dict({name: x.clone() for name, x in lm.state_dict().items()}, assign=True)
    logits(lm)
    assert lm.transformer.fused._made is made, "the same weights in another place"


PACKED = [last_norm_replaced, setting_changed, low_rank, hook, own_forward, block_replaced]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
def test_packed_models_read_norms_and_modules_as_they_are(weights, dtype):
    def norms_through_data(lm):
        for name, parameter in lm.transformer.named_parameters():
            if "norm" in name:
                parameter.data.mul_(1.5)

    def norms_swapped(lm):
        for name, parameter in lm.transformer.named_parameters():
            if "norm" in name:
                parameter.data = noise(parameter.data)

    def numbers_replaced(lm):
        layer = lm.transformer.blocks[0].attention.out
        layer.numbers = layer.numbers.flip(0).contiguous()

    def numbers_in_place(lm):
        lm.transformer.blocks[0].attention.out.numbers.zero_()

    for kind in list(KINDS)[:2]:
        for change in (*PACKED, norms_through_data, norms_swapped, numbers_replaced, numbers_in_place):
            lm = pack_(make(kind, dtype), weights)
            before = logits(lm)
            change(lm)
            fresh = copy.deepcopy(lm)
            fresh.transformer.fused = None
            for block in fresh.transformer.blocks:
                block.fused = None
            wanted, found = logits(fresh), logits(lm)
            close = 2e-3 if dtype == torch.float32 else 0.05
            assert float((found - wanted).square().mean().sqrt()) < close * float(wanted.std()), change.__name__
            assert float((found - before).abs().max()) > 1e-3, change.__name__


def test_programs_are_of_the_weights_as_they_are(monkeypatch):
    """A recorded step reads weights where they are; where they move or modules change, another is recorded."""
    monkeypatch.setitem(
        step_runner.MAKERS, "compiled", lambda step: [lambda p=p: step.advance(p) for p in range(step.period)]
    )
    lm = make()
    keys = set()

    def run(lm, step):
        batch, length = make_conditions(lm.config, ROWS), Length(T, fixed=True)
        return generate_codes(lm, batch, range(ROWS), length, GenerationConfig(temperature=0.5), step=step).codes

    for change in (lambda lm: None, in_place, load_by_assignment, module_replaced, low_rank, hook, setting_changed):
        change(lm)
        assert run(lm, "compiled").equal(run(plain_copy(lm), "eager"))
        keys.add(lm.programs.kept[-1].key)
    assert len(keys) == 6, "weights changed in place need no new program"


def test_triton_steps_are_described_anew(monkeypatch):
    monkeypatch.setattr(triton_fused_block, "supports_device", lambda x: True)
    stack = triton_fused_block.TritonStack(make().transformer)
    stack.refresh(stack.transformer)
    first = stack.blocks
    stack.refresh(stack.transformer)
    assert first is not None and stack.blocks is first
    stack.transformer.blocks[0].ffn_norm.eps = 0.5
    stack.refresh(stack.transformer)
    assert stack.blocks is not None and stack.blocks[0].ffn_norm.eps == 0.5
    for change in (low_rank, low_rank_class, hook, own_forward):
        lm = make()
        stack = triton_fused_block.TritonStack(lm.transformer)
        assert stack.blocks is not None
        change(lm)
        stack.refresh(stack.transformer)
        assert stack.blocks is None


def test_a_hash_is_of_every_byte():
    generator = torch.Generator().manual_seed(0)
    for count in (1, 7, 63, 64, 65, 1000):
        x = torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8)
        seen = {hash_of(x)}
        for place in range(count):
            changed = x.clone()
            changed[place] ^= 128
            seen.add(hash_of(changed))
            changed[(place + 64) % count] ^= 128  # the same bit of the same lane
            seen.add(hash_of(changed))
        assert len(seen) > (count if count <= 64 else 2 * count)
        assert hash_of(x) == hash_of(x.clone())
    x = torch.randn(6, 4)
    assert hash_of(x.t()) == hash_of(x.t().contiguous()) != hash_of(x)
