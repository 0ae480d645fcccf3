"""How many codes there are to write where places share them: `Quantizer.rate` of every kind that passes it on."""

import pytest
import quantizer_trees as trees
import torch

from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import ScalesConfig, StrideConfig, VQConfig, make_quantizer
from tessera.tokenize.tokenizer import make_tokenizer

V8 = {"kind": "vq", "size": 8}
RESIDUAL = {"kind": "residual", "levels": 2, "quantizer": V8}
CASES = {
    "leaf": (V8, [10, 6], 3),
    "no-table": ({"kind": "fsq", "levels": [2, 2]}, [10, 6], 2),
    "stride": ({"kind": "stride", "every": 4, "quantizer": V8}, [3, 2], 3),
    "group": ({"kind": "group", "groups": 2, "quantizer": V8}, [20, 12], 3),
    "group-stride": (
        {"kind": "group", "groups": 2, "quantizer": {"kind": "stride", "every": 3, "quantizer": V8}},
        [8, 4],
        3,
    ),
    "chain": ({"kind": "chain", "stages": [{"kind": "stride", "every": 5, "quantizer": V8}, RESIDUAL]}, [22, 14], 3),
    "branches": (
        {
            "kind": "branches",
            "branches": {
                "slow": {"stride": 2, "quantizer": V8},
                "fast": {"quantizer": {"kind": "project", "dim": 3, "quantizer": V8}},
            },
        },
        [15, 9],
        3,
    ),
    "identity": ({"kind": "identity"}, [0, 0], 0),
}
"""Settings, how many codes 10 places and 6 places take, and the bits of one."""


@pytest.mark.parametrize("name", CASES)
def test_a_code_of_several_places_counts_once(name):
    settings, wanted, each = CASES[name]
    mask = torch.ones(3, 10, dtype=torch.bool)
    mask[1, 6:] = False
    quantizer = make_quantizer(trees.tree(**settings), 6).eval()
    number, bits = quantizer.rate(quantizer.encode(torch.randn(3, 10, 6), mask=mask))
    assert number.tolist() == [wanted[0], wanted[1], wanted[0]]
    assert torch.equal(bits, each * number)


def test_codes_of_unlike_codebooks_have_their_own_bits():
    stages = [{"kind": "vq", "size": 4}, {"kind": "vq", "size": 1024}]
    quantizer = make_quantizer(trees.tree(kind="chain", stages=stages), 6).eval()
    codes = torch.tensor([[[0, 5], [1, -1]]])
    number, bits = quantizer.rate(codes)
    assert number.tolist() == [3] and bits.tolist() == [2 + 10 + 2]


def tokenizer_with(quantizer):
    torch.manual_seed(0)
    return make_tokenizer(
        ImageTokenizerConfig(
            name="tiny", height=8, width=8, channels=1, features=8, blocks=1, latent_dim=8, quantizer=quantizer
        )
    )


def test_rate_of_a_tokenizer():
    pictures = torch.rand(2, 1, 8, 8)
    for quantizer, count in (
        (VQConfig(size=16), 16),
        (StrideConfig(every=2, quantizer=VQConfig(size=16)), 8),
        (ScalesConfig(sizes=((1, 1), (2, 2), (4, 4)), quantizer=VQConfig(size=16)), 1 + 4 + 16),
    ):
        tokenizer = tokenizer_with(quantizer)
        number, bits = tokenizer.rate(tokenizer.encode(pictures).codes)
        assert number.tolist() == [count] * 2 and bits.tolist() == [4 * count] * 2
    with pytest.raises(ValueError, match="codes have 2 codebooks but the tokenizer 'tiny' has 1"):
        tokenizer.rate(torch.zeros(1, 2, 16, dtype=torch.long))
