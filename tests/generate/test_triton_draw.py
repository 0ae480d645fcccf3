"""What the Triton kernels draw is what is drawn op by op: on the CPU with Triton's interpreter, and on a GPU."""

from importlib.util import find_spec

import pytest
import torch

from tessera.generate.sampling import counter_rng, triton_sampling
from tessera.generate.sampling import filters as sampling
from tessera.generate.sampling.filters import make_filters
from tessera.lm.generation_config import GenerationConfig

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def here(monkeypatch):
    if DEVICE == "cpu":  # with Triton's interpreter
        monkeypatch.setattr(triton_sampling, "supports_device", lambda x: True)


@pytest.fixture
def op_by_op(monkeypatch):
    """Calls a function without the kernels."""

    def run(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(triton_sampling, "supports", lambda x: False)
            return function(*arguments)

    return run


@pytest.mark.parametrize("num_codebooks", [1, 3, 9])
def test_the_same_numbers_to_the_last_bit(num_codebooks, op_by_op):
    seeds = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 123456789], device=DEVICE)
    for step, draw in ((0, 0), (1, 1), (100_000, 2**30)):
        arguments = seeds, torch.tensor(step, device=DEVICE), num_codebooks, draw
        assert triton_sampling.supports(seeds)
        assert counter_rng.uniform(*arguments).equal(op_by_op(counter_rng.uniform, *arguments))


SETTINGS = {
    "plain": {},
    "temperature": {"temperature": [0.3, 1.7, 1.0]},
    "top-k": {"top_k": 5},
    "top-k of each": {"top_k": [1, 0, 90]},
    "min-p": {"min_p": [0.0, 0.2, 0.9]},
    "all": {"temperature": 0.8, "top_k": [3, 7, 0], "min_p": 0.05},
    "greedy": {"temperature": [0.0, 1.0, 0.0], "top_k": 4},
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_same_ids(settings, op_by_op):
    """Also where probabilities are equal, ids forbidden, and numbers at both ends."""
    torch.manual_seed(0)
    filters = make_filters(GenerationConfig(**settings), 3, DEVICE)
    for rows in range(1, 9) if DEVICE == "cuda" else (1, 4):  # the interpreter takes seconds for eight
        logits = (3 * torch.randn(rows, 3, 77, dtype=torch.float64)).round(decimals=rows % 3)
        logits[torch.rand(logits.shape) < 0.3] = float("-inf")
        logits[..., 40] = 2.0
        numbers = torch.rand(rows, 3, dtype=torch.float64)
        numbers[0] = torch.tensor([2.0**-53, 1 - 2.0**-53, 0.5], dtype=torch.float64)
        arguments = logits.to(DEVICE), numbers.to(DEVICE), filters
        assert sampling.sample(*arguments).equal(op_by_op(sampling.sample, *arguments))


def test_never_what_is_forbidden():
    """Numbers so near to 1 that a sum in another order may not reach them."""
    filters = make_filters(GenerationConfig(), 1, DEVICE)
    logits = torch.randn(8, 1, 300, dtype=torch.float64, device=DEVICE)
    logits[..., 200:] = float("-inf")
    numbers = torch.full((8, 1), 1 - 2.0**-53, dtype=torch.float64, device=DEVICE)
    assert bool((sampling.sample(logits, numbers, filters) < 200).all())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*encountered")  # of NumPy, in the interpreter
@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1.0, 1e9])
def test_an_id_that_exists_whatever_the_logits_are(temperature, op_by_op):
    """The same rules as op by op: the likeliest id wins at tiny temperatures, and what cannot be drawn from gives an id
    that exists."""
    inf, nan = float("inf"), float("nan")
    rows = [[5.0, 3.0, 1.0], [-inf, 1e300, -1e300], [-inf, -inf, -7.0], [-inf, inf, 1.0], [-inf] * 3, [nan] * 3]
    rows += [[1.0, nan, -inf], [nan, inf, -inf]]
    logits = torch.tensor(rows, dtype=torch.float64, device=DEVICE)[:, None]
    numbers = torch.full((len(rows), 1), 0.5, dtype=torch.float64, device=DEVICE)
    for settings in ({}, {"top_k": 2}, {"min_p": 1.0}):
        filters = make_filters(GenerationConfig(temperature=temperature, **settings), 1, DEVICE)
        found = sampling.sample(logits, numbers, filters)
        assert bool(((found >= 0) & (found < 3)).all())
        assert found[:4].equal(op_by_op(sampling.sample, logits, numbers, filters)[:4])
        assert found[1:4].flatten().tolist() == [1, 2, 1]
