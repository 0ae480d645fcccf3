"""Threads that generate with one model at the same time get what they get alone."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from short_calls import generate_codes
from small_models import CASES, make_conditions, make_config, make_lm

from tessera.generate.requests.settings import Length
from tessera.lm.heads.depth_transformer import DepthHeadConfig
from tessera.lm.kernels import cpu_gemv
from tessera.lm.quantization.cpu_fast_decode import enable_fast_cpu_decode_
from tessera.lm.quantization.packed_linear import pack_

THREADS = 3
KINDS = {"plain": lambda lm: lm, "quick": enable_fast_cpu_decode_, "packed": lambda lm: pack_(lm, "int8")}


def hand_over(frame, event, argument):
    """Let other threads run before some of the lines that keep something from one step to the next."""
    if Path(frame.f_code.co_filename).name not in ("cpu_fused_block.py", "cpu_fast_decode.py", "transformer.py"):
        return None
    if random.random() < 0.3:
        time.sleep(1e-5)
    return hand_over


@pytest.mark.sample(1)
@pytest.mark.parametrize("cache", [None, "int8"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", [None, DepthHeadConfig(width=32, layers=1, heads=2)], ids=["parallel", "depth"])
def test_threads_do_not_disturb_each_other(kind, head, cache):
    if kind != "plain" and cpu_gemv.why_not():
        pytest.skip(cpu_gemv.why_not())
    case = next(case for case in CASES.values() if case[:2] == ("delay", "embedding cross"))
    config = make_config(case, width=64, **({} if head is None else {"head": head}))

    def make(number, lm):
        conditions = make_conditions(config, 2, seed=number)
        return generate_codes(lm, conditions, [number, number + 1], Length(6, fixed=True), cache=cache).codes

    alone = [make(number, KINDS[kind](make_lm(config))) for number in range(4 * THREADS)]
    lm = KINDS[kind](make_lm(config))
    threading.settrace(hand_over)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            together = list(pool.map(lambda number: make(number, lm), range(4 * THREADS)))
    finally:
        threading.settrace(None)  # type: ignore[arg-type]
    assert all(torch.equal(found, wanted) for found, wanted in zip(together, alone, strict=True))
