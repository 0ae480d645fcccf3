"""Memory of the kinds of cache and what they cost in loss, read step by step as in generation.

    python benchmarks/caches.py                          the bundled models on their held-out items
    python benchmarks/caches.py --quick --json out.json
    python benchmarks/caches.py --model runs/mine/lm/model --shards runs/mine/shards/test

Each kind reads the same codes one step at a time (teacher forcing); the loss is over all codes, in nats, and its change
is against the static kind. "far" is the change in the last half of each item, where most is remembered. "bytes" are
those of one row of the longest items, "of static" is their share of the static kind's in the same precision (float32
for the bundled models).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import tessera
from tessera.generate.model import Model
from tessera.lm.kv_cache.registry import read_cache
from tessera.lm.models.causal import TokenLM
from tessera.lm.ops.loss import IGNORED, cross_entropy, report_loss
from tessera.tokenize.data.corpus import ArraysCorpus, FolderCorpus
from tessera.tokenize.data.shard_reader import Shards
from tessera.tokenize.data.shard_writer import build_shards
from tessera.tokenize.data.shards_config import ShardsConfig
from tessera.train.lm.dataset import CodesDataset

KINDS = [
    "static",
    "int8",
    "{kind: int8, recent: 0, group: 8}",
    "int4",
    "{kind: int4, recent: 0}",
    "{kind: int4, recent: 0, group: 8}",
    "{kind: int4, recent: 0, outliers: 1}",
    "{kind: ring, window: 64, sinks: 4}",
    "{kind: ring, window: 32, sinks: 4}",
    "{kind: ring, window: 8, sinks: 1}",
    "{kind: evict, budget: 64}",
    "{kind: evict, budget: 32, recent: 16}",
    "{kind: evict, budget: 8, recent: 4}",
]
QUICK = [
    "static",
    "{kind: int8, recent: 0, group: 8}",
    "{kind: int4, recent: 0, group: 8}",
    "{kind: ring, window: 8, sinks: 1}",
    "{kind: evict, budget: 8, recent: 4}",
]
SAMPLES = Path(__file__).parent.parent / "samples"
HELD_OUT = {
    "speech": FolderCorpus(path=str(SAMPLES / "speech" / "test")),
    "digits": ArraysCorpus(path=str(SAMPLES / "digits" / "test.safetensors")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model directory, with --shards; default: the bundled models")
    parser.add_argument("--shards", type=Path, help="held-out shards of the model's tokenizer")
    parser.add_argument("--caches", nargs="*", help="kinds, as --cache of tessera generate takes them")
    parser.add_argument("--items", type=int, help="number of items")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="fewer kinds and items; within a minute")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    if (args.model is None) != (args.shards is None):
        parser.error("--model and --shards go together")
    count = args.items or (12 if args.quick else None)
    kinds = args.caches or (QUICK if args.quick else KINDS)
    if "static" not in kinds:
        kinds = ["static", *kinds]
    rows = []
    print(
        f"{'model':<8} {'cache':<36} {'loss':>8} {'change':>9} {'far':>9} {'bytes':>9} {'of static':>9} {'ms/step':>8}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name in [args.model] if args.model else HELD_OUT:
            model = tessera.load(name, args.device)
            shards = Shards(args.shards) if args.shards else encode(model, HELD_OUT[name], Path(scratch) / name)
            items = CodesDataset(shards, model.labels or None, model.text)
            chosen = sorted(range(len(items)), key=lambda i: -int(items.lengths[i]))[:count]  # the longest
            rows += measure(model, Path(name).name, items, chosen, kinds, args.batch)
    if args.json:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        about = {"commit": commit.stdout.strip() or "?", "threads": torch.get_num_threads(), "torch": torch.__version__}
        args.json.write_text(json.dumps({**about, "command": sys.argv, "rows": rows}, indent=1) + "\n")


def encode(model: Model, corpus: FolderCorpus | ArraysCorpus, folder: Path) -> Shards:
    """Shards of a corpus, made with the model's tokenizer."""
    config = ShardsConfig(corpus=corpus, tokenizer=str(model.name), out=str(folder))
    return build_shards(config, model.tokenizer, progress=False)


def measure(
    model: Model, name: str, items: CodesDataset, chosen: list[int], kinds: list[str], batch: int
) -> list[dict]:
    """All kinds on one model, printed as they come."""
    rows: list[dict] = []
    for kind in kinds:
        found = read_stepwise(model, items, chosen, kind, batch)
        static = rows[0] if rows else found
        row = {"model": name, "cache": kind, "settings": read_cache(kind).model_dump(), **found}
        row["change"] = found["loss"] / static["loss"] - 1
        row["far_change"] = found["far_loss"] / static["far_loss"] - 1
        rows.append(row)
        print(
            f"{name:<8} {kind:<36} {row['loss']:8.4f} {row['change']:+9.3%} {row['far_change']:+9.3%} "
            f"{row['bytes']:9d} {row['share']:9.1%} {1000 * row['seconds_per_step']:8.2f}",
            flush=True,
        )
    return rows


@torch.no_grad()
def read_stepwise(model: Model, items: CodesDataset, chosen: list[int], kind: str, batch: int) -> dict:
    """Loss over the chosen items, all of it and that of the last half of each item, and what the cache takes."""
    lm = model.lm
    if not isinstance(lm, TokenLM):
        raise ValueError(f"{model.name}: only causal models have a KV cache, and this one is a {type(lm).__name__}")
    sums, counts = torch.zeros(2, lm.num_codebooks).double(), torch.zeros(2, lm.num_codebooks).double()
    steps, seconds, memory = 0, 0.0, (0, 0.0)
    for first in range(0, len(chosen), batch):
        found = items.batch(chosen[first : first + batch]).to(lm.device)
        arranged = lm.arrangement.arrange(found.codes, found.lengths)
        B, _, S = arranged.ids.shape
        read = torch.cat([lm.start_ids(B).unsqueeze(-1), arranged.ids[:, :, :-1]], dim=2)
        state = lm.start(found.conditions, S, B, found.codes.shape[2], kind)
        started = time.perf_counter()
        logits = torch.stack([lm.step(state, read[:, :, s], arranged.ids[:, :, s]) for s in range(S)], dim=2)
        seconds += time.perf_counter() - started
        steps += S
        if first == 0:  # the longest
            static = lm.start(found.conditions, S, B, found.codes.shape[2], "static").cache
            memory = (state.cache.bytes // B, state.cache.bytes / static.bytes)
        ends = arranged.mask.cumsum(2)
        late = arranged.mask & (2 * ends > ends[:, :, -1:])
        for part, mask in enumerate((arranged.mask, late)):
            report = report_loss(cross_entropy(logits, torch.where(mask, arranged.ids, IGNORED)), mask)
            sums[part] += (report.per_codebook * report.count).double().cpu()
            counts[part] += report.count.double().cpu()
    loss, far_loss = (sums / counts).mean(dim=1).tolist()
    return {
        "items": len(chosen),
        "loss": loss,
        "far_loss": far_loss,
        "bytes": memory[0],
        "share": memory[1],
        "seconds_per_step": seconds / steps,
    }


if __name__ == "__main__":
    main()
