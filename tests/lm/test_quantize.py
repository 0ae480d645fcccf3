"""Weights at rest: what the kernels compute against float64, what quantizing loses, models with packed layers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from small_models import CASES, EmbeddingInputConfig, make_codes, make_conditions, make_config, make_lm
from tiny_models import save_tiny_models

from tessera.lm.attention.sdpa import sdpa
from tessera.lm.checkpoints.model_directory import load_model, save_model
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.kernels import cpu_gemv
from tessera.lm.kernels.huge_pages import HUGE, on_huge_pages
from tessera.lm.ops.rotary import TimeRopeConfig
from tessera.lm.quantization import packed_linear
from tessera.lm.quantization.packed_linear import (
    PackedLinear,
    pack_,
    quantize_int4,
    quantize_int8,
    sdpa_or_gemv,
)

TEXT_CASE = ("delay", "text cross", TimeRopeConfig(), EmbeddingInputConfig(), 2, True)
needs_compiler = pytest.mark.skipif(bool(cpu_gemv.why_not()), reason=cpu_gemv.why_not())


@pytest.fixture(params=[pytest.param("compiled", marks=needs_compiler), "torch alone"])
def way(request, monkeypatch):
    """With the compiled kernels, and as on a machine without a compiler."""
    if request.param == "torch alone":
        monkeypatch.setattr(cpu_gemv, "library", lambda: cpu_gemv.Library(why_not="no C compiler"))
    return request.param


def make_layer(kind, N, D, group=64, bias=True, seed=0) -> PackedLinear:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(N, D, generator=generator) * torch.rand(N, 1, generator=generator)
    return PackedLinear(weight, torch.randn(N, generator=generator) if bias else None, kind, group)


@pytest.mark.sample(12)
@pytest.mark.parametrize("kind", cpu_gemv.KINDS)
@pytest.mark.parametrize(("N", "D"), [(1, 1), (10, 40), (64, 128), (7, 200), (12, 65)])
def test_layer_is_a_product_with_what_its_weights_stand_for(way, kind, N, D):
    layer = make_layer(kind, N, D, group=32 if D < 100 else 64)
    assert layer.tiles == (way == "compiled")
    weight = layer.dequantized(torch.float64)
    assert weight.shape == (N, D)
    for rows in (1, 2, 3, 4, 5, 7, 9, 40):
        for dtype, tolerance in (
            (torch.float32, 1e-5),
            (torch.bfloat16, 1e-2),
        ):  # of sums in float32, and their rounding
            x = torch.randn(rows, D, generator=torch.Generator().manual_seed(rows)).to(dtype)
            assert layer.bias is not None
            wanted = F.linear(x.double(), weight, layer.bias.double())
            found = layer(x)
            assert found.dtype == dtype and found.shape == (rows, N)
            scale = F.linear(x.double().abs(), weight.abs()).max() + 1
            torch.testing.assert_close(found.double() / scale, wanted / scale, rtol=0, atol=tolerance)


def rounded_groups(x, size, most):
    """x [rows, D] as integers up to `most` with a scale per group of inputs, and back: what integer products read. Also
    the steps of the inputs that lie half way between two integers, where either is right."""
    groups = F.pad(x.float(), (0, -x.shape[1] % size)).unflatten(1, (-1, size))
    largest = groups.abs().amax(dim=2, keepdim=True)
    numbers = groups * (most / largest).nan_to_num(posinf=0)
    step = (largest / most).double()
    unsure = (numbers.abs() % 1 - 0.5).abs() < 0.01
    return [(part * step).flatten(1)[:, : x.shape[1]] for part in (numbers.round().double(), unsure.double())]


@needs_compiler
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_integer_products_are_those_of_rounded_inputs(kind, group):
    """x in bfloat16 is either used as it is, or rounded per group of inputs; wide and narrow, one row and many."""
    for N, D, rows in ((9, 33, 1), (8, 400, 2), (20, 640, 5), (5, 129, 16)):
        layer = make_layer(kind, N, D, group, bias=False, seed=D)
        spread = torch.logspace(-3, 3, D)[torch.randperm(D, generator=torch.Generator().manual_seed(D))]
        x = (torch.randn(rows, D, generator=torch.Generator().manual_seed(D)) * spread).bfloat16()
        size, most = (128, 32767) if kind == "int8" else (min(group, 64), 127)
        weight = layer.dequantized(torch.float64)
        found = layer(x).double()
        errors = []
        for read, unsure in ((x.double(), torch.zeros_like(x).double()), rounded_groups(x, size, most)):
            wanted = F.linear(read, weight)
            # rounding of the output to bfloat16, and of sums to float32
            allowed = wanted.abs() * 2**-8 + 1e-6 * F.linear(read.abs(), weight.abs()) + F.linear(unsure, weight.abs())
            errors.append(((found - wanted).abs() / allowed).max())
        assert min(errors) <= 1, errors


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", cpu_gemv.KINDS)
def test_threads_and_company_change_nothing(kind, dtype):
    """Rows are summed alike whatever stands beside them, so a batch equals its rows bit for bit."""
    for N, D, group in ((50, 96, 32), (30, 300, 64), (13, 640, 128)):
        layer = make_layer(kind, N, D, group)
        x = (torch.randn(70, D) * torch.logspace(-2, 2, 70)[:, None]).to(dtype)
        alone = torch.cat([layer(row[None]) for row in x])
        assert torch.equal(layer(x.view(35, 2, D)).flatten(0, 1), alone)
        for rows in (2, 3, 5, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65):
            start = rows % 6
            assert torch.equal(layer(x[start : start + rows]), alone[start : start + rows]), (N, D, rows)
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            assert torch.equal(layer(x), alone)
        finally:
            torch.set_num_threads(threads)


@needs_compiler
@pytest.mark.parametrize("kind", cpu_gemv.KINDS)
def test_special_values(kind):
    """A -inf in the bias forbids an output, what is not a number stays visible, strided rows are read rightly."""
    bias = torch.zeros(5)
    bias[3] = float("-inf")
    layer = PackedLinear(torch.ones(5, 64), bias, kind)
    x = torch.ones(2, 64)
    assert torch.equal(layer(x)[:, 3], torch.full((2,), float("-inf")))
    assert torch.allclose(layer(x)[0, 0], torch.tensor(64.0))
    broken = x.clone()
    broken[1, 7] = float("nan")
    for dtype in (torch.float32, torch.bfloat16):
        assert layer(broken.to(dtype))[1, :3].isnan().all() and layer(broken.to(dtype))[0, :3].isfinite().all()
    wide = torch.randn(2, 128)
    assert torch.equal(layer(wide[:, ::2]), layer(wide[:, ::2].contiguous()))


@needs_compiler
@pytest.mark.parametrize("kind", cpu_gemv.KINDS)
def test_many_rows_are_near_those_of_dequantized_weights(kind, monkeypatch):
    """On either side of the numbers of rows where another way begins."""
    layer = make_layer(kind, 20, 96)
    assert layer.bias is not None
    for rows in (packed_linear.MAX_GEMV_ROWS, packed_linear.MAX_GEMV_ROWS + 1, packed_linear.MAX_TILE_ROWS + 1):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows)).to(dtype)
            wanted = F.linear(x.double(), layer.dequantized(torch.float64), layer.bias.double())
            torch.testing.assert_close(layer(x).double(), wanted, rtol=2e-2, atol=0.15)
    monkeypatch.setattr(layer, "dequantized", lambda dtype: pytest.fail("dequantized"))
    layer(torch.randn(packed_linear.MAX_GEMV_ROWS, 96))
    tiles = cpu_gemv.multiplies_tiles(layer.described, torch.bfloat16)
    if tiles:
        layer(torch.randn(packed_linear.MAX_TILE_ROWS, 96).bfloat16())


def test_tiles_hold_every_weight_once():
    for N, D in ((1, 1), (4, 32), (9, 70)):
        weight = torch.arange(1, N * D + 1).view(N, D)
        tiles = cpu_gemv.tiled(weight)
        assert tiles.shape == (-(-N // 4), -(-D // 32), 4, 32)
        assert tiles[tiles > 0].sort().values.tolist() == weight.flatten().tolist()
        assert torch.equal(cpu_gemv.untiled(tiles, N, D), weight)
        if not cpu_gemv.why_not():
            for dtype in (torch.float32, torch.bfloat16, torch.int8):
                for stored in (weight, weight.T.contiguous().T, torch.cat([weight, weight], dim=1)[:, :D]):
                    assert torch.equal(cpu_gemv.stored_tiles(stored.to(dtype)), tiles.to(dtype))
        numbers = (weight % 16).to(torch.uint8)
        packed = cpu_gemv.tiled_int4(numbers)
        assert packed.shape == (-(-N // 4), -(-D // 128), 4, 64)
        assert torch.equal(cpu_gemv.untiled_int4(packed, N, D), numbers)


def test_int8_error_is_half_a_step():
    weight = torch.randn(20, 50) * torch.logspace(-3, 3, 20)[:, None]
    quantized = quantize_int8(weight)
    assert quantized.numbers.dtype == torch.int8 and int(quantized.numbers.abs().max()) == 127
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((quantized.weights() - weight).abs() <= step * 0.5001).all())
    assert torch.equal(quantize_int8(torch.zeros(2, 3)).weights(), torch.zeros(2, 3))


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_is_as_good_as_a_search_by_hand(group):
    """Not worse than the plain range of each group, and no worse for an offset of all weights."""
    weight = torch.randn(16, 160, generator=torch.Generator().manual_seed(3))
    quantized = quantize_int4(weight, group)
    assert int(quantized.numbers.max()) <= 15
    error = (quantized.weights() - weight).square()
    for start in range(0, 160, group):
        part = weight[:, start : start + group]
        low, high = part.amin(dim=1, keepdim=True), part.amax(dim=1, keepdim=True)
        plain = ((part - low) / (high - low) * 15).round() / 15 * (high - low) + low
        assert error[:, start : start + group].sum() <= (plain - part).square().sum() * 1.05  # bfloat16 scales
    assert quantize_int4(torch.full((2, 64), 0.5)).weights().eq(0.5).all()
    shifted = (quantize_int4(weight + 4, group).weights() - weight - 4).square()
    assert shifted.mean() < error.mean() * 1.5  # the offset's rounding
    with pytest.raises(ValueError, match="32, 64 or 128, found 48"):
        quantize_int4(weight, 48)


def bytes_of(*modules):
    return sum(tensor.nbytes for part in modules for tensor in (*part.parameters(), *part.buffers()))


@pytest.mark.parametrize("kind", cpu_gemv.KINDS)
def test_packed_model_is_the_model_of_its_weights(way, kind):
    """Whole sequences and single steps of a packed model equal those of an ordinary model given the same weights."""
    config = make_config(TEXT_CASE)
    lm, plain = make_lm(config), make_lm(config)
    parameters, size = lm.num_parameters, bytes_of(lm.transformer, lm.head)
    pack_(lm, kind)
    assert lm.num_parameters == parameters
    if kind in ("int8", "int4"):
        assert bytes_of(lm.transformer, lm.head) < size * 0.5  # tiny layers: scales and padding weigh
    layers = {name: module for name, module in lm.named_modules() if isinstance(module, PackedLinear)}
    assert len(layers) == 2 * 7 + 1
    with torch.no_grad():
        for name, layer in layers.items():
            at = "head" if name == "head.packed" else name
            plain.get_submodule(at).weight.copy_(layer.dequantized())
    codes, conditions = make_codes(3, 6), make_conditions(config, 3)
    with torch.no_grad():
        whole, wanted = lm(codes, conditions=conditions), plain(codes, conditions=conditions)
    torch.testing.assert_close(whole.logits, wanted.logits, rtol=1e-4, atol=1e-5)
    state, ids = lm.start(conditions, capacity=8), lm.start_ids(3)
    for s in range(5):
        hidden = lm.read(state, ids)
        torch.testing.assert_close(lm.head(hidden), wanted.logits[:, :, s], rtol=1e-4, atol=1e-5)
        ids = whole.targets[:, :, s]


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4"])
def test_every_kind_of_model_can_be_packed(kind):
    for case in list(CASES)[:: len(CASES) // 7]:
        config = make_config(CASES[case])
        lm = pack_(make_lm(config), kind)
        conditions = make_conditions(config, 2) if config.conditions else ConditionBatch()
        with torch.no_grad():
            output = lm(make_codes(2, 6, lm.arrangement.cardinalities), conditions=conditions)
        asked = output.mask.repeat_interleave(lm.head.sub_tokens.parts, dim=1)
        assert output.logits[asked].isfinite().any(dim=-1).all()


def test_load_with_weights(tmp_path):
    folder = save_tiny_models(tmp_path) / "tones"
    loaded = load_model(folder, weights="int8")
    assert isinstance(loaded.lm.transformer.blocks[0].attention.qkv, PackedLinear)
    assert not any(parameter.requires_grad for parameter in loaded.lm.parameters())
    with pytest.raises(ValueError, match=r"weights 'int3' are unknown; choose float32, bfloat16, int8, int4"):
        load_model(folder, weights="int3")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="packed weights cannot be saved"):
        save_model(tmp_path / "again", loaded.lm, loaded.tokenizer, loaded.text, loaded.labels)
    half = load_model(folder, dtype="bfloat16", weights="int4").lm
    assert half.start(num_rows=1, conditions=ConditionBatch.make(texts=[[1, 2]]), capacity=3).summed is None


def test_without_a_compiler(monkeypatch, tmp_path):
    """The reason is kept, and so is a compiler's complaint."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cpu_gemv, "_find_compiler", lambda name: None)
    with pytest.raises(RuntimeError, match="no C compiler was found"):
        cpu_gemv._load_library()
    monkeypatch.setattr(cpu_gemv, "_find_compiler", lambda name: "/bin/false" if name == "gcc" else None)
    with pytest.raises(RuntimeError, match="false could not compile cpu_gemv.c"):
        cpu_gemv._load_library()
    assert not (tmp_path / "tessera").exists()


@needs_compiler
def test_operator_for_the_compiler():
    """What torch.compile sees gives the same, in shape and in numbers."""
    layer, x = make_layer("int8", 12, 64), torch.randn(2, 64)
    operands = (x, layer.numbers, layer.scales, layer.bias, cpu_gemv.KINDS.index("int8"), 12, 32)
    assert torch.equal(torch.ops.tessera.gemv_linear(*operands), layer(x))
    torch.library.opcheck(
        torch.ops.tessera.gemv_linear.default, operands, test_utils=("test_schema", "test_faketensor")
    )


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [16, 48, 64, 128, 272])
def test_attention_of_one_query(dtype, width):
    """Against float64, with shared heads, strided keys, masks, and positions few and many."""
    for H, G, M, masked in ((4, 4, 1, False), (4, 4, 37, True), (6, 2, 300, False), (8, 1, 65, True)):
        generator = torch.Generator().manual_seed(M)
        queries = (4 * torch.randn(2, 1, H, width, generator=generator)).to(dtype).transpose(1, 2)
        room = torch.randn(2, 2, G, M + 3, width, generator=generator).to(dtype)
        keys, values = room[0, :, :, :M], room[1, :, :, :M]
        mask = torch.rand(2, 1, 1, M, generator=generator) < 0.5 if masked else None
        if mask is not None:
            mask[..., 0] = True
        wanted = F.scaled_dot_product_attention(
            queries.double(), keys.double(), values.double(), attn_mask=mask, enable_gqa=True
        )
        assert cpu_gemv.can_attend(queries, keys, values, mask)
        found = cpu_gemv.gemv_attention(queries, keys, values, mask)
        tolerance = 3e-6 if dtype == torch.float32 else 2e-2  # of values of size 1, rounded to bfloat16 at the end
        torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
        assert torch.equal(torch.ops.tessera.gemv_attention(queries, keys, values, mask), found)


@pytest.mark.parametrize("changed", ["two queries", "float64", "odd width", "strided heads", "mask of a head"])
def test_attention_that_goes_elsewhere(changed):
    queries, keys = torch.randn(2, 4, 1, 16), torch.randn(2, 4, 9, 16)
    mask = None
    if changed == "two queries":
        queries = torch.randn(2, 4, 2, 16)
    elif changed == "float64":
        queries, keys = queries.double(), keys.double()
    elif changed == "odd width":
        queries, keys = queries[..., :12], keys[..., :12]
    elif changed == "strided heads":
        keys = torch.randn(2, 4, 16, 9).transpose(2, 3)
    else:
        mask = torch.ones(2, 4, 1, 9, dtype=torch.bool)
    assert not cpu_gemv.can_attend(queries, keys, keys, mask)
    assert torch.equal(sdpa_or_gemv(queries, keys, keys, mask, False), sdpa(queries, keys, keys, mask, False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.uint8])
def test_memory_of_huge_pages(dtype):
    tensor = (torch.randn(1537, 1 << 11) * 9).to(dtype)
    moved = on_huge_pages(tensor)
    assert torch.equal(moved, tensor) and moved.dtype == dtype and moved.is_contiguous()
    assert moved.data_ptr() % HUGE == 0 or moved is tensor
    kept = copy.deepcopy(moved)
    del tensor
    moved.zero_()  # it may be written to, and copies are apart
    assert not moved.any() and kept.any()
    small = torch.zeros(100, dtype=dtype)
    assert on_huge_pages(small) is small
