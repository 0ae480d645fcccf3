"""VAR: logits and codes of its authors' code, tensors of published models, files in and out, and what is refused."""

import json
import math

import make_var_codes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_parler import hollow, spelled
from vqgan_reference import fill, var_tensors

import tessera
from tessera.cli.app import run
from tessera.configs.files import read_safetensors
from tessera.configs.tensor_checks import WeightsError
from tessera.generate import generate
from tessera.lm.checkpoints.model_directory import LoadedModel
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.guidance_config import LinearGuidance
from tessera.lm.public.registry import load_public_model, recognize_model
from tessera.lm.public.summary import summarize
from tessera.lm.public.var import VAR_DEFAULTS, load_var, read_var_tokenizer, save_var, save_var_whole
from tessera.tokenize.public.checkpoint import open_checkpoint
from tessera.tokenize.public.folder import PublicFolder

pytest.importorskip("transformers")
TINY = make_var_codes.TINY
EXPECTED = read_safetensors(TINY / "expected.safetensors")[0]
PUBLISHED = sorted(make_var_codes.PUBLISHED.glob("var-*.json"))
ROWS, SIDES = len(make_var_codes.LABELS), make_var_codes.SIDES
LABELS = [None if label == make_var_codes.CLASSES else label for label in make_var_codes.LABELS]
SIZE = 2 * SIDES[-1]


def write(folder, language_model, quantizer, sides, **described):
    """A folder with both files under the names that they are downloaded under, and a config.json for small pictures."""
    codes, dim = quantizer["quantize.embedding.weight"].shape
    sizes = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
    vq = fill(var_tensors(dim, codes, scales=len(sides), **sizes), 0) | quantizer
    folder.mkdir(exist_ok=True)
    torch.save(language_model, folder / "var_d16.pth")
    torch.save(vq, folder / "vae_ch160v4096z32.pth")
    said = {"model_type": "var", "v_patch_nums": list(sides), "image_size": 2 * sides[-1]} | described
    (folder / "config.json").write_text(json.dumps({key: value for key, value in said.items() if value is not None}))
    return folder


def parts_of(name):
    """The tensors of a stored language model, and of its quantizer."""
    stored = read_safetensors(TINY / f"{name}.safetensors")[0]
    floats = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in stored.items()}
    quantizer = {key: tensor for key, tensor in floats.items() if key.startswith("quantize.")}
    return {key: tensor for key, tensor in floats.items() if key not in quantizer}, quantizer


@pytest.fixture(scope="module", params=make_var_codes.NAMES)
def tiny(request, tmp_path_factory):
    """(name, folder, loaded model)."""
    folder = write(tmp_path_factory.mktemp("var") / request.param, *parts_of(request.param), SIDES)
    return request.param, folder, load_public_model(folder)


def both_ways(lm, codes, batch):
    """Logits [B, T, V] of whole pictures, and scale by scale."""
    with torch.no_grad():
        whole = lm(codes, None, batch).logits[:, 0]
        state, chosen, steps = lm.begin(batch), None, []
        for own in codes[:, 0].split(lm.counts, dim=1):
            steps.append(lm.step_scale(state, chosen)[:, 0])
            chosen = own
    return whole, torch.cat(steps, dim=1)


def test_logits(tiny):
    name, _, model = tiny
    codes = EXPECTED["given"].long()[:, None]
    for found in both_ways(model.lm, codes, ConditionBatch.make(labels=LABELS)):
        torch.testing.assert_close(found, EXPECTED[f"{name}.logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("rows", [[0, 1], [1]], ids=str)
@pytest.mark.parametrize("growth", make_var_codes.GROWTH)
def test_greedy_pictures(tiny, growth, rows):
    name, _, model = tiny
    guidance = LinearGuidance(scale=1 + make_var_codes.GROWTH[growth])
    labels = [LABELS[row] for row in rows]
    result = generate(model.lm, model.tokenizer, label=labels, temperature=0.0, guidance=guidance)
    assert torch.equal(result.codes[:, 0], EXPECTED[f"{name}.{growth}"].long()[rows])


def test_a_picture_of_no_class(tiny):
    name, _, model = tiny
    result = generate(model.lm, model.tokenizer, temperature=0.0)
    assert torch.equal(result.codes[0], EXPECTED[f"{name}.plain"].long()[2:])


def test_the_settings_of_the_authors(tiny):
    _, folder, model = tiny
    assert recognize_model(folder) == "var"
    assert model.defaults == VAR_DEFAULTS
    assert (model.defaults.top_k, model.defaults.top_p) == (900, 0.95)
    assert model.labels == [str(label) for label in range(make_var_codes.CLASSES)]
    assert model.spec == model.tokenizer.spec


def plain_logits(tensors, quantizer, heads, sides, label, codes):
    """Logits [T, V] of one picture, by the published formulas; codes: a tensor for each scale."""
    D = tensors["word_embed.weight"].shape[0]

    def linear(x, name):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def phi(u, number):
        index = np.argmin(np.abs(np.linspace(1 / 12, 11 / 12, 4) - number / (len(sides) - 1)))  # rounding settles ties
        name = f"quantize.quant_resi.qresi_ls.{index}"
        return u / 2 + F.conv2d(u, quantizer[f"{name}.weight"], quantizer[f"{name}.bias"], padding=1) / 2

    condition = tensors["class_emb.weight"][label]
    inputs, total = [(condition + tensors["pos_start"][0, 0])[None]], 0
    for number, own in enumerate(codes[:-1]):
        small = quantizer["quantize.embedding.weight"][own].T.unflatten(1, (sides[number],) * 2)[None]
        total = total + phi(F.interpolate(small, size=(sides[-1],) * 2, mode="bicubic"), number)
        read = F.interpolate(total, size=(sides[number + 1],) * 2, mode="area")
        inputs.append(linear(read[0].flatten(1).T, "word_embed"))
    scale_of = torch.repeat_interleave(torch.arange(len(sides)), torch.tensor([side * side for side in sides]))
    x = torch.cat(inputs) + tensors["lvl_embed.weight"][scale_of] + tensors["pos_1LC"][0]
    seen = scale_of[:, None] >= scale_of
    for n in range(len([name for name in tensors if name.endswith("mat_qkv.weight")])):
        block = f"blocks.{n}."
        if "shared_ada_lin.1.weight" in tensors:
            six = linear(F.silu(condition), "shared_ada_lin.1").view(6, D) + tensors[f"{block}ada_gss"][0, 0]
        else:
            six = linear(F.silu(condition), f"{block}ada_lin.1").view(6, D)
        gate, ffn_gate, scale, ffn_scale, shift, ffn_shift = six
        y = F.layer_norm(x, (D,), eps=1e-6) * (1 + scale) + shift
        q, k, v = (y @ tensors[f"{block}attn.mat_qkv.weight"].T).view(len(x), 3, heads, D // heads).unbind(1)
        q, v = q + tensors[f"{block}attn.q_bias"].view(heads, -1), v + tensors[f"{block}attn.v_bias"].view(heads, -1)
        q, k = (one / one.square().sum(-1, keepdim=True).sqrt() for one in (q, k))
        factor = tensors[f"{block}attn.scale_mul_1H11"].view(heads, 1, 1).clamp(max=math.log(100)).exp()
        scores = (torch.einsum("she,the->hst", q, k) * factor).masked_fill(~seen, -math.inf)
        mixed = torch.einsum("hst,the->she", scores.softmax(-1), v).flatten(1)
        x = x + gate * linear(mixed, f"{block}attn.proj")
        y = F.layer_norm(x, (D,), eps=1e-6) * (1 + ffn_scale) + ffn_shift
        x = x + ffn_gate * linear(F.gelu(linear(y, f"{block}ffn.fc1"), approximate="tanh"), f"{block}ffn.fc2")
    scale, shift = linear(F.silu(condition), "head_nm.ada_lin.1").view(2, D)
    return linear(F.layer_norm(x, (D,), eps=1e-6) * (1 + scale) + shift, "head")


@pytest.mark.sample(5)
@pytest.mark.parametrize("seed", range(10))
def test_random_shapes(seed, tmp_path):
    generator = torch.Generator().manual_seed(seed)

    def number(first, last):
        return int(torch.randint(first, last + 1, (), generator=generator))

    def random(shape):
        return 0.4 * torch.randn(shape, generator=generator)

    heads, layers, classes, V, dim = number(1, 3), number(1, 2), number(1, 4), number(2, 9), number(1, 4)
    sides = [1, 2, *range(3, number(2, 4) + 1)]
    D, ffn, T = 4 * heads * number(2, 3), 8 * number(1, 3), sum(side * side for side in sides)
    leaves = {"word_embed": (D, dim), "head": (V, D), "head_nm.ada_lin.1": (2 * D, D)}
    shapes = {"pos_1LC": (1, T, D), "pos_start": (1, 1, D), "lvl_embed.weight": (len(sides), D)}
    shapes["class_emb.weight"] = (classes + 1, D)
    if seed % 2:
        leaves["shared_ada_lin.1"] = (6 * D, D)
    for n in range(layers):
        block = f"blocks.{n}."
        leaves |= {f"{block}attn.proj": (D, D), f"{block}ffn.fc1": (ffn, D), f"{block}ffn.fc2": (D, ffn)}
        shapes |= {f"{block}attn.mat_qkv.weight": (3 * D, D), f"{block}attn.scale_mul_1H11": (1, heads, 1, 1)}
        shapes |= {f"{block}attn.{name}": (D,) for name in ("q_bias", "v_bias")}
        if seed % 2:
            shapes[f"{block}ada_gss"] = (1, 1, 6, D)
        else:
            leaves[f"{block}ada_lin.1"] = (6 * D, D)
    for name, shape in leaves.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    tensors = {name: random(shape) for name, shape in shapes.items()}
    quantizer = {"quantize.embedding.weight": random((V, dim))}
    for k in range(4):
        name = f"quantize.quant_resi.qresi_ls.{k}"
        quantizer |= {f"{name}.weight": random((dim, dim, 3, 3)), f"{name}.bias": random((dim,))}
    zeros = {f"blocks.{n}.attn.zero_k_bias": torch.zeros(D) for n in range(layers)}
    lm = load_var(write(tmp_path / "in", tensors | zeros, quantizer, sides))
    B = number(1, 3)
    labels = [number(0, classes) for _ in range(B)]
    codes = torch.randint(V, (B, 1, T), generator=generator)
    given = ConditionBatch.make(labels=[None if label == classes else label for label in labels])
    for found in both_ways(lm, codes, given):
        for row, label in enumerate(labels):
            of_scales = codes[row, 0].split([side * side for side in sides])
            expected = plain_logits(tensors, quantizer, heads, sides, label, of_scales)
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=2e-5)


def test_as_downloaded_converted_and_written_back(tiny, tmp_path, capsys):
    """The same pictures; the language model's file has every tensor of the original, unchanged."""
    _, folder, _ = tiny
    folders = {"there": folder, "model": tmp_path / "model", "back": tmp_path / "back"}
    assert run(["load", "--check", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "next_scale, 2 layers of width 16, 2 heads" in said and "conditioned on label" in said
    assert run(["convert", str(folder), str(folders["model"])]) == 0
    assert run(["convert", str(folders["model"]), str(folders["back"]), "--to", "var"]) == 0
    pictures = {}
    for place, one in folders.items():
        out = tmp_path / f"{place}.png"
        assert run(["generate", str(one), "--label", "3", "--seed", "3", "--scale", "1", "-o", str(out)]) == 0
        assert Image.open(out).size == (SIZE, SIZE)
        pictures[place] = out.read_bytes()
    assert len(set(pictures.values())) == 1
    assert {path.name for path in folders["back"].iterdir()} == {"config.json", "vae.pth", "var_d2.pth"}
    for first, second in (("var_d16.pth", "var_d2.pth"), ("vae_ch160v4096z32.pth", "vae.pth")):
        there, back = (torch.load(path, weights_only=True) for path in (folder / first, folders["back"] / second))
        assert there.keys() == back.keys()
        for key, tensor in there.items():
            assert tensor.dtype == back[key].dtype, key
            assert torch.equal(tensor, back[key]) or "ema_vocab_hit" in key, key
    assert run(["generate", str(folders["model"]), "--weights", "int8", "--label", "3", "-o", str(out)]) == 0


def test_a_tokenizer_from_elsewhere(tiny, tmp_path):
    _, folder, model = tiny
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("var_d16.pth", "config.json"):
        (bare / name).write_bytes((folder / name).read_bytes())
    summary = summarize(bare)
    assert summary.fits and [part.name for part in summary.parts] == ["language model"]
    assert summary.lacks == ("the image tokenizer (vae_ch160v4096z32.pth)",)
    with pytest.raises(FileNotFoundError, match="vae_ch160v4096z32.pth.* is not in the folder"):
        tessera.load(bare)
    assert (
        run(["convert", str(bare), str(tmp_path / "model"), "--tokenizer", str(folder / "vae_ch160v4096z32.pth")]) == 2
    )
    model.tokenizer.save(tmp_path / "tokenizer")
    assert run(["convert", str(bare), str(tmp_path / "model"), "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    found = tessera.load(tmp_path / "model").generate(label="3", temperature=0)
    assert torch.equal(found.codes, tessera.load(folder).generate(label="3", temperature=0).codes)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_tensors_of_published_models(path, tmp_path):
    """Without a config: the number of codes tells the scales, and so the size of the pictures."""
    described = json.loads(path.read_text())
    shapes, name = spelled(described["tensors"]), path.stem.removeprefix("var-")
    hollow(tmp_path / f"var_{name}.safetensors", shapes)
    assert recognize_model(tmp_path) == "var"
    summary = summarize(tmp_path)
    assert summary.fits, summary
    assert summary.left_out == ("attn_bias_for_masking", "lvl_1L")
    (part,) = summary.parts
    depth = int(name.removeprefix("d"))
    assert part.described.startswith(
        f"next_scale, {depth} layers of width {64 * depth}, {depth} heads, 1 codebook of 4096"
    )
    assert part.num_tensors == len(shapes) - 2
    assert part.num_parameters / 1e6 == pytest.approx(MILLION[name], rel=0.04)


MILLION = {"d16": 310, "d20": 600, "d24": 1000, "d30": 2000, "d36": 2300}
"""Parameters of the published models, in the rounded figures of the repository's table."""


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"v_patch_nums": [1, 2, 4]},
            r"v_patch_nums \[1, 2, 4\] are 3 scales of 21 codes, but the tensors have 4 of 30",
        ),
        ({"v_patch_nums": "1"}, "v_patch_nums must be a list of whole numbers up to 1024, found '1'"),
        ({"v_patch_nums": None}, "the model has 30 codes an image, which no published one has; write .*v_patch_nums"),
        ({"image_size": "x"}, "image_size must be a whole number, found 'x'"),
        ({"image_size": 16}, "v_patch_nums must increase to 8 at 16 pixels"),
    ],
)
def test_a_config_that_lies_is_refused_in_one_line(said, message, tmp_path):
    with pytest.raises(ValueError, match=message) as refused:
        load_public_model(write(tmp_path, *parts_of("own"), SIDES, **said))
    assert "\n" not in str(refused.value)


def test_damaged_and_wrong_files_are_refused_in_one_line(tmp_path):
    tensors, quantizer = parts_of("own")

    def refused(kind, message, **changes):
        changed = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
        with pytest.raises(kind, match=message) as stopped:
            load_var(write(tmp_path, changed, quantizer, SIDES))
        assert "\n" not in str(stopped.value)

    refused(WeightsError, "1 tensors .* missing, first 'head.bias'", **{"head.bias": None})
    refused(WeightsError, "do not belong to the config, first 'more'", more=torch.zeros(1))
    refused(WeightsError, "blocks.1.ffn.fc2.weight", **{"blocks.1.ffn.fc2.weight": torch.zeros(16, 8)})
    refused(WeightsError, "attn_l2_norm False are not supported", **{"blocks.0.attn.scale_mul_1H11": None})
    refused(WeightsError, "the first scale has 4 codes; only 1 is supported", pos_start=torch.zeros(1, 4, 16))
    refused(WeightsError, "'class_emb.weight' is missing", **{"class_emb.weight": None})
    folder = write(tmp_path, tensors, quantizer, SIDES)
    whole = (folder / "var_d16.pth").read_bytes()
    (folder / "var_d16.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="vae_ch160v4096z32.pth|var_d16.pth") as stopped:
        load_var(folder)
    assert "\n" not in str(stopped.value)
    (folder / "var_d16.pth").write_bytes(whole)
    (folder / "config.json").write_text(json.dumps({"model_type": "llamagen"}))
    with pytest.raises(ValueError, match="its model_type is not 'var'"):
        load_var(folder)


def test_a_tokenizer_of_another_model(tiny, tmp_path):
    _, folder, _ = tiny
    quantizer = parts_of("own")[1]
    other = quantizer | {"quantize.embedding.weight": torch.zeros(25, make_var_codes.DIM)}
    tokenizer = read_var_tokenizer(PublicFolder(write(tmp_path / "more", parts_of("own")[0], other, SIDES)))
    with pytest.raises(ValueError, match="24 codes on scales of 1, 2, 3, 4, the tokenizer 'var-vq' .25. on"):
        load_var(folder, tokenizer=tokenizer)


def test_what_the_layout_cannot_hold(tiny, tmp_path):
    _, folder, model = tiny
    lm = load_var(folder)
    for change, message in (
        ({"qk_norm": True}, "lm.qk_norm: found True, it needs 'l2'"),
        ({"sums": "normalized"}, "lm.sums: found 'normalized', it needs 'plain'"),
        ({"bias": False}, "lm.bias: found False, it needs True"),
    ):
        lm.config = model.lm.config.model_copy(update=change)
        with pytest.raises(ValueError, match=f"VAR's layout does not support this {message}"):
            save_var_whole(tmp_path / "out", LoadedModel(lm, model.tokenizer, None, model.labels, VAR_DEFAULTS))
    with pytest.raises(ValueError, match="VAR's layout holds an lm of kind next_scale, found causal"):
        from small_models import make_config, make_lm

        save_var(tmp_path / "out", make_lm(make_config()))
    assert not (tmp_path / "out").exists()


def test_files_of_half_precision(tiny, tmp_path):
    model = tiny[2]
    save_var(tmp_path, model.lm, "float16")
    back = open_checkpoint(tmp_path / "var_d2.pth")
    assert back.tensors(["head.weight"])["head.weight"].dtype == torch.float16
    assert back.tensors(["lvl_1L"])["lvl_1L"].dtype == torch.long
