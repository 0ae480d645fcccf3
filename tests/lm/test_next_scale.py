"""Next-scale models: what a prediction may depend on, scale by scale equals the whole, the loss per scale, files."""

import pytest
import torch
import torch.nn.functional as F
from small_models import CONDITIONS, label, make_conditions, make_spec, text

from tessera.configs.schema import ConfigError, check_config
from tessera.lm.attention.masks import block_mask
from tessera.lm.checkpoints.model_directory import load_lm, load_model, save_model
from tessera.lm.checkpoints.parameter_shapes import parameter_shapes
from tessera.lm.conditioning.batch import ConditionBatch
from tessera.lm.config import LMConfig
from tessera.lm.heads.bits import BitsHeadConfig
from tessera.lm.heads.depth_transformer import DepthHeadConfig
from tessera.lm.heads.parallel import ParallelHeadConfig
from tessera.lm.layers.input_embedding import CodesInputConfig
from tessera.lm.models.next_scale import NextScaleConfig, NextScaleLM
from tessera.lm.models.registry import make_lm
from tessera.lm.ops.rotary import GridRopeConfig, LearnedConfig, SinusoidalConfig, TimeRopeConfig, scale_coordinates
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import ScalesConfig, VQConfig
from tessera.tokenize.spec import ImageGeometry
from tessera.tokenize.tokenizer import make_tokenizer

SIZES = {"square": ((1, 1), (2, 2), (4, 4)), "wide first": ((1, 2), (2, 3), (4, 6)), "line": ((1, 1), (1, 3), (1, 6))}


def make_scales_tokenizer(sizes=SIZES["square"], size=8, shared=True):
    rows, columns = sizes[-1]
    torch.manual_seed(5)
    config = ImageTokenizerConfig(
        **{"name": "tiny", "height": rows, "width": columns, "channels": 1, "downsamplings": 0, "latent_dim": 3},
        **{"features": 4, "blocks": 1},
        quantizer=ScalesConfig(sizes=sizes, convolutions=2, shared=shared, quantizer=VQConfig(size=size)),
    )
    return make_tokenizer(config)


VAR = {
    **{"norm": "layer", "feed_forward": "gelu_tanh", "qk_norm": "l2", "qkv_bias": True, "bias": True, "sums": "plain"},
    **{"rope": LearnedConfig(), "head": ParallelHeadConfig(bias=True)},
}
CONDITIONS = CONDITIONS | {
    "label adaptive": (label("adaptive"),),
    "adaptive, text prefix": (label("adaptive"), text()),
}
CASES = {
    "plain": ("square", "nothing", {}),
    "label starts": ("wide first", "label prefix", {"start": "condition"}),
    "label prefix, qk norm": ("square", "label prefix", {"qk_norm": True, "kv_heads": 2}),
    "label sum": ("line", "label sum", {"rope": TimeRopeConfig()}),
    "text prefix": ("wide first", "text prefix", {}),
    "text and label, label starts": ("square", "text and label", {"start": "condition", "rope": SinusoidalConfig()}),
    "text cross, bits": ("square", "text cross", {"head": BitsHeadConfig(), "norm": "layer", "feed_forward": "gelu"}),
    "grouped bits": ("line", "label cross", {"head": BitsHeadConfig(groups=1)}),
    "var": ("square", "label adaptive", VAR),
    "var, shared": ("wide first", "label adaptive", VAR | {"adaptive": "shared", "dropout": 0.1}),
    "adaptive, text and label": ("square", "adaptive, text prefix", {"norm": "layer", "kv_heads": 2, "qk_norm": "l2"}),
    "learned positions": ("line", "text and label", {"rope": LearnedConfig(), "start": "condition"}),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def make(case=CASES["plain"], seed=0, **settings) -> NextScaleLM:
    sizes, condition, own = case
    tokenizer = make_scales_tokenizer(SIZES[sizes])
    shape = {"width": 32, "layers": 2, "heads": 4, **own, **settings}
    torch.manual_seed(seed)
    config = NextScaleConfig(conditions=CONDITIONS[condition], **shape)
    lm = make_lm(config, tokenizer.spec, quantizer=tokenizer.quantizer)
    assert isinstance(lm, NextScaleLM)
    return lm.double().eval()


def make_codes(lm, num_rows=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(lm.spec.cardinalities[0], (num_rows, 1, sum(lm.counts)), generator=generator)


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


@pytest.mark.sample(3)
@cases
def test_scale_by_scale_equals_the_whole(case):
    lm = make(case)
    codes, conditions = make_codes(lm), make_conditions(lm.config, 4)
    whole = lm(codes, None, conditions).logits
    state, chosen = lm.begin(conditions, 4), None
    for number, own in enumerate(codes[:, 0].split(lm.counts, dim=1)):
        first = sum(lm.counts[:number])
        close(lm.step_scale(state, chosen), whole[:, :, first : first + lm.counts[number]])
        chosen = own
    assert state.scale == lm.num_scales


@pytest.mark.sample(2)
@cases
def test_a_prediction_sees_earlier_scales_and_nothing_else(case):
    """Neither a later scale nor any code of its own scale, its own included."""
    lm = make(case)
    codes, conditions = make_codes(lm, 1), make_conditions(lm.config, 1)
    before = lm(codes, None, conditions).logits
    scale_of = torch.repeat_interleave(torch.arange(lm.num_scales), torch.tensor(lm.counts))
    for cell in range(codes.shape[2]):
        other = codes.clone()
        other[0, 0, cell] = (codes[0, 0, cell] + 1) % 8
        changed = (lm(other, None, conditions).logits - before).abs().amax(dim=(0, 1, 3)) > 1e-12
        assert torch.equal(changed, scale_of > scale_of[cell])


@pytest.mark.sample(3)
@cases
def test_a_row_of_a_batch_equals_the_row_alone(case):
    lm = make(case)
    codes, conditions = make_codes(lm), make_conditions(lm.config, 4)
    together = lm(codes, None, conditions).logits
    for b in range(4):
        row = slice(b, b + 1)
        one = conditions.rows(row)
        if one.text is not None:
            one = ConditionBatch(one.label, one.text[:, : max(1, int(one.text_lengths))], one.text_lengths)
        close(lm(codes[row], None, one).logits[0], together[b])


def test_what_is_read_is_what_the_tokenizer_would_decode():
    """The slow way: decode the scales so far, average the map over the cells of the next one."""
    lm, tokenizer = make(), make_scales_tokenizer()
    codes = make_codes(lm, 2)
    read = []
    lm.input.linear.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    lm(codes)
    for number, found in enumerate(read, start=1):
        known = codes.clone()
        known[:, :, sum(lm.counts[:number]) :] = -1
        picture = tokenizer.embed(known).unflatten(2, (4, 4))
        slow = F.adaptive_avg_pool2d(picture, SIZES["square"][number]).flatten(2).transpose(1, 2)
        slow = slow / tokenizer.vectors().square().mean().sqrt()
        torch.testing.assert_close(found.float(), slow, rtol=1e-4, atol=1e-5)


@pytest.mark.sample(3)
@cases
def test_loss_per_scale_equals_a_slow_one(case):
    lm = make(case)
    codes, conditions = make_codes(lm), make_conditions(lm.config, 4)
    report = lm.loss(codes, None, conditions)
    logits = lm(codes, None, conditions).logits.log_softmax(-1)
    sub_tokens = lm.head.sub_tokens.split(codes)
    terms = -logits.gather(-1, sub_tokens.unsqueeze(-1))[..., 0].sum(dim=1)
    parts = [part.mean().item() for part in terms.split(lm.counts, dim=1)]
    assert report.per_codebook.tolist() == pytest.approx(parts, rel=1e-5)
    assert report.loss.item() == pytest.approx(terms.mean().item(), rel=1e-5)
    assert report.count.tolist() == [4 * count for count in lm.counts]
    assert lm.loss_parts.name == "scale"
    assert lm.loss_parts.mean(parts) == pytest.approx(terms.mean().item())
    assert lm.count_terms(codes.shape[2]).tolist() == list(lm.counts)


@pytest.mark.sample(3)
@cases
def test_the_gradient_reaches_everything(case):
    lm = make(case).train()
    codes, conditions = make_codes(lm), make_conditions(lm.config, 4)
    report = lm.loss(codes, None, conditions)
    for part in report.per_codebook:
        assert any(bool(g.any()) for g in torch.autograd.grad(part, list(lm.head.parameters()), retain_graph=True))
    report.loss.backward()
    untouched = [name for name, p in lm.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not untouched
    assert bool((lm.input.levels.weight.grad.abs().sum(dim=1) > 0).all()), "every scale's vector"


def test_training_lowers_the_loss():
    lm = make().float().train()
    codes = torch.arange(4)[:, None, None].expand(4, 1, 21).clone()  # every code of a row is the row's number
    optimizer = torch.optim.Adam(lm.parameters(), lr=0.01)
    for _ in range(25):
        loss = lm.loss(codes).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    report = lm.loss(codes)
    assert float(report.per_codebook[0].detach()) > 1.3, "the first scale can only be guessed: log 4"
    assert float(report.per_codebook[1:].detach().max()) < 0.3, "the others are known from it"


def test_cells_stand_in_the_middle_of_what_they_cover():
    geometry = ImageGeometry(height=4, width=6, rows=4, columns=6, scales=SIZES["wide first"])
    places = scale_coordinates(geometry)
    assert places[:2].tolist() == [[1.5, 1.0], [1.5, 4.0]] and places[2].tolist() == [0.5, 0.5]
    fine = [[r, c] for r in range(4) for c in range(6)]
    assert places[8:].tolist() == fine
    assert scale_coordinates(geometry.model_copy(update={"scales": ()})) is None


def test_other_models_of_scales_have_these_places_too():
    """A causal model over all cells in order, on the grid."""
    tokenizer = make_scales_tokenizer()
    lm = make_lm(LMConfig(width=32, layers=1, heads=4, rope=GridRopeConfig()), tokenizer.spec).double().eval()
    codes = torch.randint(8, (2, 1, 21))
    whole, state, ids = lm(codes).logits, lm.start(None, 21, 2), lm.start_ids(2)
    for t in range(21):
        close(lm.step(state, ids), whole[:, :, t])
        ids = codes[:, :, t]


def test_block_mask_by_hand():
    blocks, padding = (1, 1, 2, 3), torch.tensor([[True, True], [False, True]])
    mask = block_mask(blocks, padding)
    block = [0, 1, 2, 2, 3, 3, 3]
    for b in range(2):
        for q in range(7):
            for k in range(7):
                real = k > 1 or bool(padding[b, k]) or q == k
                assert bool(mask[b, 0, q, k]) == (block[k] <= block[q] and real)
    assert torch.equal(block_mask(blocks)[0, 0], mask[0, 0])


def test_saved_and_loaded(tmp_path):
    tokenizer = make_scales_tokenizer(shared=False)
    config = NextScaleConfig(width=32, layers=1, heads=4, conditions=CONDITIONS["label prefix"], start="condition")
    lm = make_lm(config, tokenizer.spec, quantizer=tokenizer.quantizer).eval()
    save_model(tmp_path, lm, tokenizer, None, ["a", "b", "c", "d"])
    loaded = load_model(tmp_path)
    assert isinstance(loaded.lm, NextScaleLM) and loaded.config == config
    codes, conditions = make_codes(lm, 2), ConditionBatch.make(labels=[1, None])
    assert torch.equal(loaded.lm(codes, None, conditions).logits, lm(codes, None, conditions).logits)
    assert "lm.safetensors" in {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"reads its tokenizer's scales; use load_model"):
        load_lm(tmp_path)
    half = load_model(tmp_path, dtype="bfloat16").lm
    assert half(codes, None, conditions).logits.dtype == torch.bfloat16
    made = parameter_shapes(config, tokenizer.spec, None, lambda *given: make_lm(*given, quantizer=tokenizer.quantizer))
    assert made == {name: tuple(tensor.shape) for name, tensor in lm.state_dict().items()}


def test_refusals():
    lm = make()
    with pytest.raises(ValueError, match=r"codes are \[2, 1, 20\], but an image of 'tiny' has 21 frames"):
        lm(torch.zeros(2, 1, 20, dtype=torch.long))
    with pytest.raises(ValueError, match="pass whole images"):
        lm(torch.zeros(2, 1, 21, dtype=torch.long), torch.tensor([21, 20]))
    with pytest.raises(ConfigError, match="predicts the scales of an image, but tokenizer 'tiny' has none"):
        make_lm(NextScaleConfig(width=32), make_spec((7,), picture=True))
    with pytest.raises(ConfigError, match="pass quantizer=tokenizer.quantizer"):
        make_lm(NextScaleConfig(width=32), lm.spec)
    for settings, message in (
        ({"variable_length": True}, "leave variable_length, arrangement and specials out"),
        ({"window": 4}, "leave window, ahead, loss_weights out"),
        ({"input": CodesInputConfig()}, "reads the sum of the previous scales; leave input out"),
        ({"head": DepthHeadConfig()}, "predicts all cells of a scale at once, head 'depth' does not"),
        ({"conditions": (label("adaptive"),)}, "modulates norm 'layer', found norm 'rms'; set norm: layer"),
    ):
        with pytest.raises(ValueError, match=message):
            NextScaleConfig(**settings)
    with pytest.raises(ValueError, match="join 'adaptive' is for an lm of kind 'next_scale'"):
        LMConfig(norm="layer", conditions=(label("adaptive"),))
    with pytest.raises(ValueError, match="rope kind 'learned' is for an lm of kind 'next_scale'"):
        LMConfig(rope=LearnedConfig())
    assert NextScaleConfig(head=ParallelHeadConfig()).rope == GridRopeConfig()
    with pytest.raises(ValueError, match="cache kind 'int8' needs sequential steps"):
        lm.begin(None, 1, cache="int8")


def test_sums_of_scales_stay_float32_in_half_precision():
    lm = make(CASES["label prefix, qk norm"])
    before = [buffer.clone() for buffer in lm.input.sums.buffers()]
    for dtype in (torch.bfloat16, torch.float16):
        lm.to(dtype)
        assert all(a.equal(b) for a, b in zip(lm.input.sums.buffers(), before, strict=True))
    assert lm.double().input.sums.vectors.dtype == torch.float64


def test_a_prompt_of_codes_needs_an_input_of_its_own():
    """The model's own input reads sums of scales: what the condition would share is no part of the model."""
    with pytest.raises(ConfigError, match="no code embedding to share with a condition; give the condition 'codes'"):
        check_config({"kind": "next_scale", "conditions": [{"kind": "codes", "max_frames": 4}]}, NextScaleConfig)
