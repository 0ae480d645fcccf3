"""What weights of fewer bits cost in loss, read step by step as in generation.

    python benchmarks/weights.py                        the bundled model `speech` on its held-out recordings
    python benchmarks/weights.py --model runs/mine/lm/model --shards runs/mine/shards/test

Every kind of weights reads the same codes one step at a time (teacher forcing), with the kernels that generate with
them; the loss is over all codes, in nats, and its change is against float32. With activations in bfloat16, products
with int8 and int4 are integer products where the processor has AVX2 or AVX-512: activations are rounded to 16 and to 8
bits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import tessera
from tessera.lm.checkpoints.weights_file import StorageName
from tessera.lm.quantization.packed_linear import WeightsName
from tessera.tokenize.data.shard_reader import Shards
from tessera.train.lm.dataset import CodesDataset

sys.path.insert(0, str(Path(__file__).parent))
from caches import HELD_OUT, encode, read_stepwise

KINDS: tuple[tuple[StorageName, WeightsName | None], ...] = (
    ("float32", None),
    ("float32", "int8"),
    ("float32", "int4"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "int8"),
    ("bfloat16", "int4"),
)
"""Activations (`dtype` of tessera.load), and weights."""
ROWS = 4
"""Recordings at once: few, as the kernels are for few rows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="speech", help="a model directory, with --shards")
    parser.add_argument("--shards", type=Path, help="held-out shards of the model's tokenizer")
    parser.add_argument("--items", type=int, help="number of items")
    args = parser.parse_args()
    if args.shards is None and args.model not in HELD_OUT:
        parser.error(f"--shards is needed, except for {' and '.join(HELD_OUT)}")
    print(f"{'activations':<12} {'weights':<10} {'loss':>8} {'change':>9} {'ms/step':>8}")
    plain = None
    with tempfile.TemporaryDirectory() as scratch:
        for dtype, kind in KINDS:
            model = tessera.load(args.model, dtype=dtype, weights=kind)
            shards = (
                Shards(args.shards) if args.shards else encode(model, HELD_OUT[args.model], Path(scratch, str(kind)))
            )
            items = CodesDataset(shards, model.labels or None, model.text)
            found = read_stepwise(model, items, list(range(len(items)))[: args.items], "static", ROWS)
            plain = plain or found["loss"]
            print(
                f"{dtype:<12} {kind or dtype:<10} {found['loss']:8.4f} {found['loss'] / plain - 1:+9.3%} "
                f"{1000 * found['seconds_per_step']:8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
