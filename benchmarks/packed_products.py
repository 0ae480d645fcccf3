"""Products with packed weights by the number of rows: the C kernels of decode steps and short prompts, and torch.

    python benchmarks/packed_products.py --threads 1

A row of the table is a kind of weights and a number of rows (of a batch, of its guidance, of a prompt): the time of
x [rows, N] @ W.T [N, N] in bfloat16, the weights that are read per second, the time of torch with the same matrix in
bfloat16, and what the kernel is faster by. Medians after one run to warm up, with the smallest and largest in brackets;
the matrices are larger than a core's own cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from tessera.lm.quantization.packed_linear import PackedLinear

KINDS = ("bfloat16", "int8", "int4")
BITS = {"bfloat16": 16, "int8": 8, "int4": 4}
ROWS = (1, 2, 4, 8, 16, 64, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=4096, help="N")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(arguments.size, arguments.size, generator=generator).bfloat16()
    print(f"{'weights':9} {'rows':>5} {'ms':>8} {'range':>17} {'GB/s':>6} {'torch, ms':>10} {'ratio':>6}")
    for kind in KINDS:
        layer = PackedLinear(weight.float(), None, kind)
        for rows in arguments.rows:
            x = torch.randn(rows, arguments.size, generator=generator).bfloat16()

            def product(layer: PackedLinear = layer, x: torch.Tensor = x) -> object:
                return layer(x)

            def plain(x: torch.Tensor = x) -> object:
                return torch.nn.functional.linear(x, weight)

            ours, theirs = (milliseconds(each, arguments.turns) for each in (product, plain))
            took, other = statistics.median(ours), statistics.median(theirs)
            read = weight.numel() * BITS[kind] / 8 / took / 1e6
            print(
                f"{kind:9} {rows:5d} {took:8.2f} {f'({min(ours):.2f} - {max(ours):.2f})':>17} {read:6.1f} "
                f"{other:10.2f} {other / took:6.2f}",
                flush=True,
            )


def milliseconds(run: Callable[[], object], turns: int) -> list[float]:
    """Times of so many runs, after one to warm up."""
    times = []
    for _ in range(turns + 1):
        began = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - began))
    return times[1:]


if __name__ == "__main__":
    main()
