"""Scales as frames of one codebook: a picture tokenizer's codes, and the running sums that a model of them reads."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tessera.configs.schema import ConfigError, check_config
from tessera.lm.models.scale_sums import ScaleSums
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.kinds import NETS
from tessera.tokenize.quantizers.combinators.multi_scale import phi_numbers
from tessera.tokenize.quantizers.registry import (
    FSQConfig,
    LFQConfig,
    ProjectConfig,
    ScalesConfig,
    VQConfig,
    make_quantizer,
)
from tessera.tokenize.spec import ImageGeometry, TokenSpec
from tessera.tokenize.tokenizer import load_tokenizer, make_tokenizer

SIZES = {"square": ((1, 1), (2, 2), (4, 4)), "odd": ((1, 2), (2, 3), (4, 6)), "line": ((1, 1), (1, 3), (1, 7))}
LEAVES = {"vq": VQConfig(size=16), "fsq": FSQConfig(levels=(3, 3, 3, 3, 3)), "lfq": LFQConfig(bits=5)}


def scales(sizes, leaf="vq", shared=True, convolutions=2):
    return ScalesConfig(sizes=sizes, shared=shared, convolutions=convolutions, quantizer=LEAVES[leaf])


def tiny(quantizer, height=8, width=12):
    shape = {"height": height, "width": width, "features": 8, "blocks": 1, "latent_dim": 5}
    torch.manual_seed(0)
    return make_tokenizer(ImageTokenizerConfig(name="tiny-scales", quantizer=quantizer, **shape))


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("shared", [True, False])
def test_codes_are_the_cells_of_all_scales(leaf, shared, tmp_path):
    tokenizer = tiny(scales(SIZES["odd"], leaf, shared))
    spec, quantizer = tokenizer.spec, tokenizer.quantizer
    assert spec.num_codebooks == 1 and spec.cardinalities == (
        LEAVES[leaf].size if leaf == "vq" else quantizer.cardinalities[0],
    )
    assert spec.geometry.scales == SIZES["odd"] and spec.geometry.num_frames == 2 + 6 + 24
    pictures = torch.rand(3, 3, 8, 12) * 2 - 1
    encoded = tokenizer.encode(pictures)
    assert encoded.codes.shape == (3, 1, 32) and encoded.lengths.tolist() == [32] * 3 and int(encoded.codes.min()) >= 0
    by_place = quantizer.encode(tokenizer.net.encode_images(pictures[1:2]))
    slow = [by_place[0, cell, s] for s, (r, c) in enumerate(SIZES["odd"]) for cell in range(r * c)]
    assert encoded.codes[1, 0].tolist() == [int(code) for code in slow]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.encode(pictures[1:2]).codes[0], encoded.codes[1])
    slowly = tokenizer.net.decode_latents(quantizer.decode(by_place))
    assert torch.equal(tokenizer.decode(encoded.codes)[1], slowly[0])
    assert torch.equal(tokenizer.embed(encoded.codes)[1], quantizer.decode(by_place)[0].T)
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.spec == spec and torch.equal(loaded.encode(pictures).codes, encoded.codes)
    if shared:
        assert torch.equal(tokenizer.vectors(), quantizer.vectors()[:1])
    else:
        with pytest.raises(ValueError, match="scales of tokenizer 'tiny-scales' have separate codebooks"):
            tokenizer.vectors()


def phi_as_in_var(scales, convolutions):
    """FoundationVision/VAR 78b9539 (MIT), models/quant.py: PhiPartiallyShared asked for si / (SN - 1)."""
    K = convolutions
    ticks = np.linspace(1 / 3 / K, 1 - 1 / 3 / K, K) if K == 4 else np.linspace(1 / 2 / K, 1 - 1 / 2 / K, K)
    return [np.argmin(np.abs(ticks - si / (scales - 1))).item() for si in range(scales)]


def test_each_scale_has_the_phi_that_var_gives_it():
    assert phi_numbers(10, 4) == [
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        3,
        3,
        3,
    ]  # 7 / 9 is half-way between two points: rounding decides
    for scales_, convolutions in ((s, c) for s in range(2, 40) for c in range(1, 17)):
        assert phi_numbers(scales_, convolutions) == phi_as_in_var(scales_, convolutions)
    assert phi_numbers(10, 0) == [] and phi_numbers(1, 4) == [0]


TEN = ((1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (3, 4), (3, 5), (4, 4), (4, 5), (4, 6))


def test_tokenizers_saved_with_the_old_choice_of_phi_keep_it(tmp_path):
    pictures = torch.rand(2, 3, 8, 12) * 2 - 1
    codes, files = {}, {}
    for rule in ("var", "even"):
        torch.manual_seed(0)
        quantizer = ScalesConfig(sizes=TEN, quantizer=VQConfig(size=16), phi=rule)
        net = NETS["picture"](tiny(quantizer).config)
        for number, layer in enumerate(net.quantizer.phi):
            torch.nn.init.constant_(layer.bias, float(number))
        tokenizer = make_tokenizer(net.config, net)
        assert tokenizer.quantizer.phi_numbers[7] == {"var": 3, "even": 2}[rule]
        codes[rule] = tokenizer.encode(pictures).codes
        tokenizer.save(tmp_path / rule)
        files[rule] = json.loads((tmp_path / rule / "config.json").read_text())["tokenizer"]["quantizer"]
        loaded = load_tokenizer(tmp_path / rule)  # compares the fingerprint
        assert loaded.config == tokenizer.config and torch.equal(loaded.encode(pictures).codes, codes[rule])
    assert not torch.equal(codes["var"], codes["even"])
    assert files["var"].pop("phi") == "var" and files["even"] == files["var"]  # as it was before there was a choice
    assert ScalesConfig(sizes=TEN, quantizer=VQConfig(size=16)).phi == "var"  # what is trained from now on


def test_later_scales_may_be_missing():
    """What is drawn so far can be looked at: codes of -1 add nothing."""
    tokenizer = tiny(scales(SIZES["odd"]))
    codes = tokenizer.encode(torch.rand(1, 3, 8, 12)).codes
    first = codes.clone()
    first[:, :, 2:] = -1
    places = tokenizer.scales.from_frames(codes.transpose(1, 2))
    places[:, :, 1:] = -1
    assert torch.equal(tokenizer.embed(first)[0].T, tokenizer.quantizer.decode(places)[0])


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("convolutions", [0, 2])
def test_running_sums_end_in_what_the_quantizer_decodes(sizes, shared, convolutions):
    torch.manual_seed(1)
    quantizer = make_quantizer(scales(sizes, "vq", shared, convolutions), 5).eval()
    sums = ScaleSums(quantizer)
    codes = [torch.randint(16, (3, count)) for count in sums.counts]
    total = sums.start(3)
    for number, own in enumerate(codes):
        rows, columns = sizes[-1]
        slow = F.adaptive_avg_pool2d(total.transpose(1, 2).unflatten(2, (rows, columns)), sizes[number])
        torch.testing.assert_close(sums.at(total, number), slow.flatten(2).transpose(1, 2))
        total = sums.add(total, number, own)
        known = torch.cat([*codes[: number + 1], *(torch.full_like(one, -1) for one in codes[number + 1 :])], dim=1)
        torch.testing.assert_close(total, quantizer.decode(quantizer.from_frames(known[..., None])))
    assert not sums.state_dict(), "all of it is in the tokenizer's file"


def test_frames_and_places_are_inverse():
    quantizer = make_quantizer(scales(SIZES["line"]), 5).eval()
    codes = quantizer.encode(torch.randn(4, 7, 5))
    assert torch.equal(quantizer.from_frames(quantizer.to_frames(codes)), codes)


def test_refusals():
    with pytest.raises(
        ConfigError, match=r"quantizer.sizes: the last scale is 4 x 4, .* a map of 4 x 6; end with that size"
    ):
        tiny(scales(SIZES["square"]))
    with pytest.raises(ConfigError, match="make it the outermost one"):
        tiny(ProjectConfig(dim=5, quantizer=scales(SIZES["odd"])))
    with pytest.raises(ValueError, match="codes have 3 frames, an image of tokenizer 'tiny-scales' has 32"):
        tiny(scales(SIZES["odd"])).decode(torch.zeros(1, 1, 3, dtype=torch.long))


def test_a_geometry_without_scales_is_written_as_before():
    plain = ImageGeometry(height=8, width=8, rows=4, columns=4)
    assert "scales" not in plain.model_dump() and plain.num_frames == 16
    spec = TokenSpec(name="x", cardinalities=(4,), geometry=plain, fingerprint="0" * 64)
    assert "scales" not in spec.model_dump(mode="json")["geometry"]
    scaled = spec.model_copy(update={"geometry": plain.model_copy(update={"scales": SIZES["square"]})})
    assert check_config(scaled.model_dump(mode="json"), TokenSpec) == scaled
