"""Tokens that a picture does not need: where samples halt, what absent tokens are, and what cannot halt."""

import math

import pytest
import torch
from quantizer_trees import tree

from tessera.configs.schema import ConfigError, check_config
from tessera.tokenize.audio.networks import AudioTokenizerConfig
from tessera.tokenize.image.networks import ImageNet, ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import make_quantizer
from tessera.tokenize.tokenizer import load_tokenizer, make_tokenizer

DIM = 5
BOOK = {"kind": "vq", "size": 9, "kmeans_init": False}
RESIDUAL = {"kind": "residual", "levels": 3, "quantizer": BOOK}
UNLIKE = {"kind": "chain", "stages": [BOOK, {**BOOK, "size": 4}]}


def make(inner=BOOK, seed=0, **settings):
    """A halting quantizer whose head says different things of different tokens."""
    torch.manual_seed(seed)
    quantizer = make_quantizer(tree(**{"kind": "halting", "wanted_error": 0.1, "quantizer": inner, **settings}), DIM)
    with torch.no_grad():
        quantizer.mix.weight.mul_(2)
        quantizer.limit.weight[0].mul_(20)
    return quantizer


def slow_log_odds(quantizer, sample, error):
    """Of each token of a sample not being needed; its latents are lists of numbers."""
    hidden = [[silu(total) for total in slow_linear(quantizer.hidden, latent)] for latent in sample]
    whole = [sum(column) / len(hidden) for column in zip(*hidden, strict=True)]
    odds = []
    for own in hidden:
        mixed = [silu(total) for total in slow_linear(quantizer.mix, own + whole)]
        limit, sureness = slow_linear(quantizer.limit, mixed)
        odds.append(math.log(1 + math.exp(sureness)) * (math.log(error) - limit))
    return odds


def slow_linear(layer, row):
    rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [bias + sum(weight * value for weight, value in zip(weights, row, strict=True)) for weights, bias in rows]


def silu(value):
    return value / (1 + math.exp(-value))


@pytest.mark.sample(1)
@pytest.mark.parametrize("inner", [BOOK, RESIDUAL, UNLIKE], ids=["vq", "residual", "unlike"])
@pytest.mark.parametrize(("shortest", "halt_above"), [(1, 0.5), (3, 0.75), (1, 0.3)])
def test_a_sample_halts_at_its_first_token_that_is_not_needed(inner, shortest, halt_above):
    quantizer = make(inner, seed=1, shortest=shortest, halt_above=halt_above).eval()
    x = torch.randn(30, 6, DIM)
    codes = quantizer.encode(x)
    plain = quantizer.inner.encode(x)
    lengths = set()
    for sample, latents in enumerate(x.tolist()):
        length = 0
        for place, odds in enumerate(slow_log_odds(quantizer, latents, 0.1)):
            halts = 1 / (1 + math.exp(-odds)) > halt_above
            if halts and place >= shortest:
                break
            length += 1
        assert torch.equal(codes[sample, :length], plain[sample, :length])
        assert (codes[sample, length:] == torch.tensor(quantizer.inner.cardinalities)).all()
        lengths.add(length)
    assert len(lengths) > 1 and min(lengths) >= shortest


def test_log_odds_are_those_of_the_slow_way():
    quantizer = make()
    x, errors = torch.randn(3, 4, DIM), torch.tensor([0.03, 0.2, 0.5])
    wanted = [slow_log_odds(quantizer, *pair) for pair in zip(x.tolist(), errors.tolist(), strict=True)]
    torch.testing.assert_close(quantizer.halting(x, errors), torch.tensor(wanted, dtype=torch.float64))
    assert quantizer.halting(x, torch.zeros(3)).isfinite().all()  # a picture may come back without any error


@pytest.mark.parametrize("seed", range(5))
def test_who_allows_a_larger_error_never_gets_more_tokens(seed):
    quantizer, x, before = make(seed=seed).eval(), torch.randn(50, 8, DIM), 8
    seen = []
    for error in (1e-5, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0):
        quantizer.wanted_error = error
        lengths = quantizer.present(quantizer.encode(x)).sum(dim=1)
        assert (lengths <= before).all() and (lengths >= 1).all()
        before = lengths
        seen.append(float(lengths.float().mean()))
    assert seen[0] > seen[-1] + 2


@pytest.mark.parametrize("inner", [BOOK, RESIDUAL, UNLIKE], ids=["vq", "residual", "unlike"])
def test_absent_tokens_have_learned_vectors_in_any_mixture(inner):
    """A language model may say "absent" of any codebook of any token."""
    quantizer = make(inner).eval()
    sizes = quantizer.cardinalities
    assert sizes == tuple(size + 1 for size in quantizer.inner.cardinalities)
    codes = torch.stack([torch.randint(-1, size, (40,)) for size in sizes], dim=-1)
    codes[:4] = torch.tensor(quantizer.inner.cardinalities)
    inside, values = quantizer.inner.vectors(), quantizer.decode(codes)
    for row, found in zip(codes.tolist(), values, strict=True):
        wanted = torch.zeros(DIM)
        for book, code in enumerate(row):
            if code >= 0:
                wanted += quantizer.absent[book] if code == sizes[book] - 1 else inside[book, code]
        torch.testing.assert_close(found, wanted)
    here = [any(0 <= code < size - 1 for code, size in zip(row, sizes, strict=True)) for row in codes.tolist()]
    assert quantizer.present(codes).tolist() == here and 0 < sum(here) < 40


def test_while_training_every_sample_halts_somewhere_else():
    quantizer = make(RESIDUAL, shortest=2)
    x = torch.randn(300, 6, DIM, requires_grad=True)
    result = quantizer(x)
    absent = ~quantizer.present(result.codes)
    assert set((~absent).sum(dim=1).tolist()) == {2, 3, 4, 5, 6} and (absent.long().diff(dim=1) >= 0).all()
    assert (result.codes[absent] == 9).all() and (result.codes >= 0).all()
    torch.testing.assert_close(result.values[absent], quantizer.absent.sum(dim=0).expand(int(absent.sum()), -1))
    assert all((loss[absent] == 0).all() for loss in result.losses.values())
    (result.values.sum() + result.losses["commitment"].sum()).backward()
    assert (x.grad[absent] == 0).all() and (x.grad[~absent] != 0).all()
    torch.testing.assert_close(quantizer.absent.grad, absent.sum().float().expand(3, DIM))


def test_absent_tokens_move_no_codebook():
    quantizer = make(shortest=1)
    result = quantizer(torch.randn(50, 6, DIM))
    assert quantizer.inner.codebook.collected[0].sum() == quantizer.present(result.codes).sum()


# Tokenizers


def picture(quantizer):
    part = {"kind": "vit1d", "tokens": 6, "patch": 4, "width": 16, "layers": 1, "heads": 2}
    settings = {"kind": "picture", "name": "p", "height": 8, "width": 8, "latent_dim": DIM}
    return check_config({**settings, "encoder": part, "decoder": part, "quantizer": quantizer}, ImageTokenizerConfig)


@pytest.mark.slow
def test_a_frozen_tokenizer_says_how_many_tokens_its_pictures_take(tmp_path):
    torch.manual_seed(0)
    config = picture({"kind": "halting", "wanted_error": 0.1, "quantizer": RESIDUAL})
    net = ImageNet(config)
    with torch.no_grad():  # a head that says different things of different tokens
        net.quantizer.mix.weight.mul_(8)
        net.quantizer.limit.weight[0].mul_(20)
    tokenizer = make_tokenizer(config, net)
    pictures = torch.rand(12, 3, 8, 8) * 2 - 1
    assert tokenizer.spec.cardinalities == (10, 10, 10)
    seen = set()
    for error in torch.logspace(-3, 0, 30).tolist():
        tokenizer.quantizer.wanted_error = error
        codes = tokenizer.encode(pictures).codes
        assert codes.shape == (12, 3, 6)
        number, bits = tokenizer.rate(codes)
        for item, count, taken in zip(codes, number.tolist(), bits.tolist(), strict=True):
            assert count == sum(code < 9 for code in item.flatten().tolist())
            assert taken == pytest.approx(count * math.log2(9) + math.log2(6))  # it halts after 1, 2, ... or 6
            seen.add(count)
    assert seen >= {3, 18}
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.quantizer.wanted_error == 0.1  # that of the config, whatever was asked for since
    codes[:, :, 2:] = 9
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))
    assert torch.equal(loaded.decode(codes)[3:4], loaded.decode(codes[3:4]))


def test_what_cannot_halt_has_one_clear_error():
    halting = {"kind": "halting", "wanted_error": 0.1, "quantizer": BOOK}
    scales = {"kind": "scales", "sizes": [[1, 1], [1, 6]], "quantizer": BOOK}
    with pytest.raises(ConfigError, match="quantizer.quantizer: halting applies to all tokens of an image"):
        make_quantizer(tree(kind="tail", quantizer=halting), DIM)
    for inner in ({"kind": "identity"}, scales):
        with pytest.raises(
            ConfigError, match=f"quantizer.quantizer: '{inner['kind']}' has no code per token that could be dropped"
        ):
            make_quantizer(tree(**{**halting, "quantizer": inner}), DIM)
    with pytest.raises(ConfigError, match="quantizer.halting.wanted_error: Input should be greater than 0"):
        tree(**{**halting, "wanted_error": 0})
    with pytest.raises(ConfigError, match="quantizer.shortest: 6 tokens are always kept, but an image has only 6"):
        make_tokenizer(picture({**halting, "shortest": 6}))
    sound = {"kind": "audio", "name": "s", "sample_rate": 8000, "hop": 160, "window": 640, "latent_dim": DIM}
    config = check_config({**sound, "quantizer": halting}, AudioTokenizerConfig)
    with pytest.raises(ConfigError, match="quantizer's codes span all frames; quantize frame by frame"):
        make_tokenizer(config)
