"""Laws of every part of a picture network: exact in any company, and any encoder goes with any decoder."""

import pytest
import torch

from tessera.configs.schema import ConfigError, check_config
from tessera.tokenize.image.movq import SpatialNorm
from tessera.tokenize.image.networks import IMAGE_DECODERS, IMAGE_ENCODERS, ImageNet, ImageTokenizerConfig
from tessera.tokenize.image.token_merging import merge
from tessera.tokenize.tokenizer import load_tokenizer, make_tokenizer

RVQ = {"kind": "residual", "levels": 2, "quantizer": {"kind": "vq", "size": 16}}
VQGAN = {"kind": "vqgan", "channels": 4, "multipliers": [1, 2], "blocks": 1, "inner_dim": 6, "norm_groups": 2}
MAGVIT2 = {"kind": "magvit2", "channels": 4, "multipliers": [1, 2], "blocks": 1, "norm_groups": 2}
VIT = {"kind": "vit1d", "tokens": 24, "patch": 2, "width": 16, "layers": 2, "heads": 2, "expansion": 2}
PLAIN = {"kind": "vit", "patch": 2, "width": 16, "layers": 2, "heads": 2, "expansion": 2}
TITOK = {"kind": "titok", "tokens": 24, "patch": 2, "width": 16, "layers": 2, "heads": 2}
MASKGIT = {"codes": 12, "code_dim": 6, "channels": 4, "multipliers": [1, 2], "blocks": 1, "norm_groups": 2}
PARTS = {
    "convolutional": {"kind": "convolutional"},
    "conditioned": {"kind": "conditioned"},
    "vit": PLAIN,
    "vit-taps": PLAIN | {"taps": [2, 1]},
    "merged-row": PLAIN | {"kind": "merged", "tokens": 24, "patch": 1},
    "transposed-row": {"kind": "transposed", "tokens": 24},
    "transposed-vqgan-row": {"kind": "transposed", "tokens": 24, "part": VQGAN},
    "vqgan": VQGAN,
    "vqgan-wide": VQGAN | {"attention": [0], "latent_kernel": 3},
    "magvit2": MAGVIT2,
    "vit1d": VIT,
    "vit1d-causal": VIT | {"order": "causal"},
    "vit1d-wide": VIT | {"patch": 4},
    "titok-row": TITOK,
    "titok-codes-row": TITOK | {"latents": "reshaped", "pixels": MASKGIT},
}
"""One entry for each kind of part, and for each of its choices that changes what it reads. All make 24 codes."""

every = pytest.mark.parametrize("encoder", PARTS)
any_decoder = pytest.mark.parametrize(
    "decoder", ["convolutional", "conditioned", "vqgan", "magvit2", "vit", "vit1d", "merged-row", "titok-codes-row"]
)


def picture(encoder, decoder=None, **other):
    data = {"kind": "picture", "name": "x", "height": 8, "width": 12, "features": 8, "blocks": 1, "latent_dim": 8}
    data |= {"encoder": encoder, "decoder": decoder or encoder, "quantizer": RVQ}
    return check_config(data | other, ImageTokenizerConfig)


def tokenizer_of(encoder, decoder=None, **other):
    torch.manual_seed(0)
    net = ImageNet(picture(PARTS[encoder], PARTS[decoder or encoder], **other))
    net(torch.rand(8, 3, 8, 12) * 2 - 1)
    net.quantizer.update()  # codes start among the latents, so that many of them occur
    return make_tokenizer(net.config, net)


def test_every_part_is_in_the_list():
    kinds = {part["kind"] for part in PARTS.values()}
    assert kinds == set(IMAGE_ENCODERS) == set(IMAGE_DECODERS)


@pytest.mark.sample(4)
@every
@any_decoder
def test_codes_do_not_depend_on_batch_or_autocast(encoder, decoder):
    tokenizer = tokenizer_of(encoder, decoder)
    pictures = torch.rand(5, 3, 8, 12) * 2 - 1
    encoded = tokenizer.encode(pictures)
    geometry = tokenizer.spec.geometry
    assert (geometry.rows, geometry.columns) == ((1, 24) if "vit1d" in encoder or "row" in encoder else (4, 6))
    assert encoded.codes.shape == (5, 2, 24) and len(encoded.codes.unique()) > 4
    decoded = tokenizer.decode(encoded.codes)
    assert decoded.shape == pictures.shape and float(decoded.abs().max()) <= 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.encode(pictures[3:4]).codes[0], encoded.codes[3])
        assert torch.equal(tokenizer.decode(encoded.codes[3:4])[0], decoded[3])


@pytest.mark.sample(2)
@every
def test_saved_and_loaded_is_the_same_tokenizer(encoder, tmp_path):
    tokenizer = tokenizer_of(encoder)
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.spec == tokenizer.spec == tokenizer_of(encoder).spec
    pictures = torch.rand(2, 3, 8, 12) * 2 - 1
    codes = tokenizer.encode(pictures).codes
    assert torch.equal(loaded.encode(pictures).codes, codes)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))


def test_a_config_without_parts_is_the_one_of_before_there_were_any():
    """What goes into the fingerprint of the bundled tokenizer is what went into it when it was made."""
    data = {"kind": "picture", "name": "x", "height": 8, "width": 8, "quantizer": {"kind": "bsq", "bits": 2}}
    assert {"encoder", "decoder"}.isdisjoint(check_config(data, ImageTokenizerConfig).model_dump())
    parts = {"encoder": PARTS["convolutional"], "decoder": PARTS["vit1d"] | {"tokens": 16}}
    written = check_config(data | parts, ImageTokenizerConfig).model_dump()
    assert "encoder" not in written and written["decoder"]["kind"] == "vit1d"


@pytest.mark.sample(4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every
def test_training_reaches_every_weight(encoder, dtype):
    torch.manual_seed(0)
    net = ImageNet(picture(PARTS[encoder]))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found, quantized = net(torch.rand(2, 3, 8, 12) * 2 - 1)
    assert found.dtype == torch.float32 and found.shape == (2, 3, 8, 12)
    (found.square().mean() + sum(quantized.losses.values(), torch.zeros(())).mean()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name


@torch.no_grad()
def test_causal_tokens_depend_on_those_before_them_alone():
    net = tokenizer_of("vit1d-causal").net
    pictures = torch.rand(2, 3, 8, 12) * 2 - 1
    before = net.encode_images(pictures)
    net.encoder.token_places[10] += torch.randn(16)
    after = net.encode_images(pictures)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not any(torch.equal(before[:, t], after[:, t]) for t in range(10, 24))
    seen = tokenizer_of("vit1d").net  # without that order every token sees all the others
    before = seen.encode_images(pictures)
    seen.encoder.token_places[10] += torch.randn(16)
    assert not any(torch.equal(before[:, t], seen.encode_images(pictures)[:, t]) for t in range(24))


@torch.no_grad()
def test_patches_come_back_to_where_they_were():
    """The slow obvious way: write each patch of the decoder into its place."""
    decoder = tokenizer_of("vit1d-wide").net.decoder
    latents = torch.randn(1, 24, 8)
    tokens = decoder.enter(latents)
    cells = decoder.leave(decoder.run(torch.zeros(1, 6, 16), tokens)[:, :6])
    wanted = torch.zeros(1, 3, 8, 12)
    for number in range(6):
        row, column = divmod(number, 3)
        wanted[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = cells[0, number].view(3, 4, 4)
    assert torch.equal(decoder(latents), wanted)


@torch.no_grad()
def test_tapped_blocks_give_their_own_share_of_the_latents():
    net = tokenizer_of("vit-taps").net
    pictures = torch.rand(2, 3, 8, 12) * 2 - 1
    before = net.encode_images(pictures)
    net.encoder.blocks[1].narrow.weight[:] = 0.5 * torch.randn(16, 32)
    after = net.encode_images(pictures)
    assert torch.equal(before[..., 4:], after[..., 4:]) and not torch.equal(before[..., :4], after[..., :4])


@pytest.mark.parametrize("lost", [0, 1, 3, 5])
def test_merging_against_a_loop(lost):
    x, sizes = torch.randn(3, 9, 5), torch.randint(1, 4, (3, 9, 1)).float()
    found, counts = merge(x, sizes, lost)
    for row in range(3):
        first, second = list(range(0, 9, 2)), list(range(1, 9, 2))
        alike = torch.cosine_similarity(x[row, first][:, None], x[row, second][None], dim=-1)
        gone = alike.max(1).values.argsort(descending=True)[:lost].tolist()
        groups = [[second[b]] for b in range(4)]
        for a in gone:
            groups[int(alike[a].argmax())].append(first[a])
        groups = [[first[a]] for a in range(5) if a not in gone] + groups
        groups = groups if lost else [[place] for place in range(9)]
        wanted = [sum(x[row, i] * sizes[row, i] for i in g) / sum(sizes[row, i] for i in g) for g in groups]
        torch.testing.assert_close(found[row], torch.stack(wanted))
        assert counts[row, :, 0].tolist() == [sum(float(sizes[row, i]) for i in g) for g in groups]


@torch.no_grad()
def test_a_code_moves_the_whole_picture_where_tokens_are_channels():
    net = tokenizer_of("transposed-row").net
    latents = torch.randn(1, 24, 8)
    other = latents.clone()
    other[0, 5] += 1
    moved = (net.decode_latents(latents) - net.decode_latents(other)).abs().sum(1)[0]
    assert bool((moved > 0).all())


@torch.no_grad()
def test_norms_depend_on_the_code_of_their_own_place():
    norm = SpatialNorm(8, 4)
    x, latents = torch.randn(1, 8, 4, 6), torch.randn(1, 4, 2, 3)
    other = latents.clone()
    other[0, :, 1, 2] += 1
    changed = (norm(x, latents) != norm(x, other)).any(1)[0]
    wanted = torch.zeros(4, 6, dtype=torch.bool)
    wanted[2:, 4:] = True
    assert torch.equal(changed, wanted)
    plain = torch.nn.functional.group_norm(x, 8)
    spot = latents[0, :, 0, 1]
    scale, shift = norm.scale.weight[:, :, 0, 0] @ spot + norm.scale.bias, norm.shift.weight[:, :, 0, 0] @ spot
    torch.testing.assert_close(norm(x, latents)[0, :, 1, 3], plain[0, :, 1, 3] * (1 + scale) + shift + norm.shift.bias)


def test_the_first_tokens_alone_decode_where_the_tail_was_dropped():
    tokenizer = tokenizer_of("vit1d", quantizer={"kind": "tail", "quantizer": RVQ})
    codes = tokenizer.encode(torch.rand(1, 3, 8, 12)).codes
    codes[:, :, 8:] = -1
    decoded = tokenizer.decode(codes)
    assert decoded.shape == (1, 3, 8, 12) and bool(decoded.isfinite().all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": VIT | {"tokens": 9}}, "the encoder 'vqgan' gives 4 x 6 codes, the decoder 'vit1d' takes 1 x 9"),
        ({"encoder": VQGAN | {"multipliers": [1, 2, 2]}}, "3 multipliers are 2 halvings, but downsamplings is 1"),
        ({"encoder": VQGAN | {"norm_groups": 3}}, "4 channels are not a multiple of norm_groups 3"),
        ({"encoder": VIT | {"patch": 5}}, "8 x 12 cannot be split into patches of 5"),
        ({"encoder": VIT | {"heads": 3}}, "width 16 is not a multiple of heads 3"),
        (
            {"decoder": TITOK | {"pixels": MASKGIT | {"multipliers": [1, 1, 2]}}},
            "make 4 x 4 pixels of a cell, but patch is 2",
        ),
        (
            {"decoder": TITOK | {"pixels": MASKGIT | {"norm_groups": 3}}},
            "4 channels are not a multiple of norm_groups 3",
        ),
        ({"encoder": PLAIN | {"patch": 5}}, "8 x 12 cannot be split into patches of 5"),
        ({"encoder": PLAIN | {"taps": [1, 3]}}, "taps has block 3, but there are only 2 layers"),
        ({"encoder": PLAIN | {"taps": [1, 2, 2]}}, "latent_dim 8 cannot be divided among 3 taps"),
        ({"encoder": PLAIN | {"kind": "merged", "tokens": 25}}, "24 patches cannot be merged to 25 tokens"),
        ({"encoder": PLAIN | {"kind": "merged", "tokens": 5}}, "halve the tokens 2 times, from 24 to 6, not to 5"),
        ({"encoder": {"kind": "transposed", "part": VQGAN | {"norm_groups": 3}}}, "not a multiple of norm_groups 3"),
        ({"encoder": VIT | {"kind": "vit2d"}}, "encoder: kind 'vit2d' is unknown; did you mean 'vit1d'"),
    ],
)
def test_parts_that_do_not_fit_have_one_clear_error(change, message):
    with pytest.raises(ConfigError, match=message):
        picture(change.get("encoder", VQGAN), change.get("decoder", VQGAN))
