"""Coarse to fine against plain on digits and on photograph patches: bits per picture, recognisability, time.

    python -m tessera.samples.make_patches --out out/patches/data
    tessera tokenizer train configs/patches/tokenizer.yaml --out out/patches/tokenizer
    python benchmarks/coarse_to_fine.py --threads 1 [--data digits patches] [--steps 600] [--out DIR] [--json FILE]

It trains, from the configs in configs/digits, configs/digits-ctf, configs/patches and configs/patches-ctf and for the
same number of steps each,

- plain    the model that predicts one code after another
- deep     the same with twice the layers, so that it has about as many learned numbers as both stages below together
- fine     coarse to fine: a model of the clusters, and a refiner that fills in the codes
- random   the same with clusters of codes thrown together at random, of the same sizes

and then measures on test pictures and on generated ones:

- bits         negative log-likelihood of a test picture's codes given its label. Of coarse to fine: that of its labels
               and of its codes given the labels, all codes in one pass, as they are generated with passes: 1
- many passes  the same with the codes filled in one by one in a random order
- right        share of 500 generated digits that a classifier of real digits takes for what was asked
- ms           milliseconds a picture, in batches of 64 and alone, medians of three
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path

import torch

import tessera
from tessera.cli.report.digit_classifier import DigitClassifier
from tessera.configs.schema import read_config
from tessera.generate.model import Model
from tessera.lm.clustering.clustering import Clustering, cluster_codes
from tessera.lm.models.coarse_to_fine import CoarseToFine
from tessera.lm.models.mask_schedule import MaskingConfig
from tessera.tokenize.data.shard_reader import Shards
from tessera.tokenize.data.shard_writer import build_shards
from tessera.tokenize.data.shards_config import ShardsConfig
from tessera.tokenize.tokenizer import Tokenizer, load_tokenizer
from tessera.train.distributed.process_group import ProcessGroup
from tessera.train.lm.config import TrainConfig
from tessera.train.lm.dataset import CodesDataset
from tessera.train.lm.evaluate import evaluate_loss
from tessera.train.lm.trainer import train_lm

ROOT = Path(__file__).resolve().parent.parent
CLUSTERS = {"digits": 8, "patches": 64}
KINDS = ("plain", "deep", "fine", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(CLUSTERS), default=list(CLUSTERS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("out/coarse-to-fine"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    heads = ("M numbers", "bits", "many passes", "right", "ms of 64", "ms alone")
    print(f"{'data':<8} {'kind':<7} " + " ".join(f"{head:>11}" for head in heads))
    rows = []
    for data in args.data:
        tokenizer, test = prepare(data, args.out / data)
        for kind in args.kinds:
            folder = train(data, kind, args.out / data, tokenizer, args.steps)
            row = {"data": data, "kind": kind, "steps": args.steps, **measure(folder, data, test)}
            rows.append(row)
            print_row(row)
    if args.json:
        args.json.write_text(json.dumps({"command": sys.argv, "rows": rows}, indent=1) + "\n")


def prepare(data: str, out: Path) -> tuple[Tokenizer, Shards]:
    """The tokenizer, and the test shards; the shards for training are made as well."""
    folder = ROOT / "bundled/digits/tokenizer" if data == "digits" else Path("out/patches/tokenizer")
    tokenizer, made = load_tokenizer(folder), []
    for part in ("train", "test"):
        pictures = ROOT / "samples/digits" if data == "digits" else Path("out/patches/data")
        sets = [f"tokenizer={folder}", f"corpus.path={pictures / part}.safetensors", f"out={out / 'shards' / part}"]
        made.append(build_shards(read_config(ROOT / f"configs/{data}/shards.yaml", ShardsConfig, sets), tokenizer))
    return tokenizer, made[1]


def train(data: str, kind: str, out: Path, tokenizer: Tokenizer, steps: int) -> Path:
    """Folder of the finished model; what is there already is not trained again."""
    folder = ROOT / "bundled/digits/tokenizer" if data == "digits" else Path("out/patches/tokenizer")
    sets = [
        f"tokenizer={folder}", f"data.shards={out / 'shards/train'}", f"data.test={out / 'shards/test'}",
        f"train.steps={steps}", f"train.warmup_steps={min(100, steps // 4)}",
    ]  # fmt: skip
    if kind in ("plain", "deep"):
        more = ["lm.layers=8"] if kind == "deep" else []
        return run(ROOT / f"configs/{data}/lm.yaml", out / kind, [*sets, *more])
    clustering = cluster_codes(tokenizer, CLUSTERS[data])
    if kind == "random":
        clustering = shuffled(clustering)
    clustering.save(out / kind / "clusters")
    sets.append(f"clusters={out / kind / 'clusters'}")
    coarse = run(ROOT / f"configs/{data}-ctf/lm.yaml", out / kind / "coarse", sets)
    sets.append(f"export.coarse_model={coarse}")
    return run(ROOT / f"configs/{data}-ctf/lm-refiner.yaml", out / kind / "refiner", sets)


def shuffled(clustering: Clustering) -> Clustering:
    """Clusters of the same sizes with codes thrown together at random."""
    labels, generator = clustering.labels.clone(), torch.Generator().manual_seed(0)
    for row, size in zip(labels, clustering.tokenizer.cardinalities, strict=True):
        row[:size] = row[:size][torch.randperm(size, generator=generator)]
    return Clustering(clustering.tokenizer, labels)


def run(config: Path, out: Path, sets: list[str]) -> Path:
    if not (out / "model" / "config.json").is_file():
        sampling = ["train.sample_every=null", "train.eval_every=null"]
        train_lm(read_config(config, TrainConfig, [*sets, *sampling]), out, resume=out.is_dir())
    return out / "model"


def measure(folder: Path, data: str, test: Shards) -> dict:
    """All figures of a model directory."""
    model = tessera.load(folder)
    items = CodesDataset(test, model.labels, None)
    lm, frames = model.lm, test.spec.geometry.num_frames  # pyright: ignore[reportAttributeAccessIssue]

    def bits() -> float:
        return float(evaluate_loss(lm, items, 64, ProcessGroup(0, 1, lm.device)).sum()) * frames / math.log(2)

    many = None
    if isinstance(lm, CoarseToFine):
        many = bits_with(lm, MaskingConfig(share="uniform"), bits)
        one = bits_with(lm, MaskingConfig(everything=1.0), bits)
    else:
        one = bits()
    asked = [label for label in model.labels for _ in range(50)]
    pictures = torch.stack(model.generate(label=model.labels, n=50, seed=0).media)
    return {
        "parameters": lm.num_parameters,
        "bits": one,
        "bits_many_passes": many,
        "recognised": DigitClassifier().share(pictures, asked) if data == "digits" else None,
        "ms_64": 1000 / 64 * seconds(model, 64),
        "ms_alone": 1000 * seconds(model, 1),
    }


def bits_with(lm: CoarseToFine, masking: MaskingConfig, bits) -> float:
    """bits() with the refiner's codes hidden in another way."""
    before = lm.refiner.config
    lm.refiner.config = before.model_copy(update={"masking": masking})
    try:
        return bits()
    finally:
        lm.refiner.config = before


def seconds(model: Model, count: int) -> float:
    """Time of generating `count` pictures at once, without guidance; the median of three after one to warm up."""
    times = []
    for seed in range(4):
        began = time.perf_counter()
        model.generate(label=model.labels[0], n=count, seed=seed, guidance=1.0)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def print_row(row: dict) -> None:
    many = "" if row["bits_many_passes"] is None else f"{row['bits_many_passes']:.1f}"
    right = "" if row["recognised"] is None else f"{row['recognised']:.1%}"
    print(
        f"{row['data']:<8} {row['kind']:<7} {row['parameters'] / 1e6:>11.2f} {row['bits']:>11.1f} {many:>11} "
        f"{right:>11} {row['ms_64']:>11.2f} {row['ms_alone']:>11.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
