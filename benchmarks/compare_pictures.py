"""Ways to model pictures of a large codebook: code by code, coarse to fine, next-patch, multi-token prediction.

    pip install -e ".[eval,bench]"                        and the packages that samples/make_emoji.py names
    python -m tessera.samples.make_emoji --packages out/emoji/packages --out out/emoji/corpus
    python benchmarks/compare_pictures.py --resume [--workers 2]  train and measure what is missing; can be stopped
    python benchmarks/compare_pictures.py --speed                 measure the speed of generation; on an idle machine
    python benchmarks/compare_pictures.py --table                 tables of the stored results, as Markdown

32 x 32 pictures in five styles have 8 x 8 codes of 4096 or of 16384. From the configs of configs/emoji-large, for the
same number of steps each unless said otherwise, with SEEDS seeds:

- plain           one code after the other
- deep            the same with twice the layers: as many parameters as the two stages below together
- coarse to fine  a model of the clusters of the codes, and a refiner that fills in the codes in one pass; 128 clusters
                  of 4096 codes, 512 of 16384, as in the paper (arXiv:2503.16194)
- random          the same with codes assigned to clusters of the same sizes at random
- next-patch      plain, trained on squares of 2 x 2 codes in the first half (arXiv:2412.15321)
- next-patch, same time   with as many steps as take the CPU as long as those of plain
- multi-token     plain with three further predictions a step, for speculative decoding
- multi-token, same time  likewise

There is one tokenizer for each size of codebook, and one clustering, for all kinds of a seed. Measured on test
pictures, and on as many generated ones in the same styles:

- bits       of the codes of a test picture, all of the corpus, given its style. Coarse to fine: of the clusters, and
             of the codes given all clusters, in one pass, as they are generated
- precision, recall, density, coverage   of generated pictures against 300 test pictures, whose pairs of idea and style
             are in no training picture (arXiv:2002.09797, package prdc, 5 neighbors), in the features of a network that
             was trained to name the ideas of training pictures (picture_judge.py). As many training pictures in the
             same styles are what a perfect model of the training data, which holds colors and scenes besides, would
             give; test pictures after encode and decode show what codes lose
- temperatures   density, recall and coverage at other temperatures, of the models of one seed: whether what a kind
             gains is more than what a lower temperature gives
- accepted   steps per forward pass in speculative decoding with three drafts, of four at most; one picture at a time
- ms         milliseconds a picture, in batches of 50 and alone, medians of three
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from picture_judge import train_judge
from picture_quality import Entry, load, of_kind, read_entries, spread, to_bytes
from provenance import ROOT, here, waited_lock
from torch import Tensor
from trainings import Results, Training, cpu_minutes, run_comparison, scaled, step_times, train_all

import tessera
from tessera.configs.schema import read_config
from tessera.generate.decoding.speculative import SpeculativeLoop
from tessera.generate.model import Model
from tessera.lm.clustering.clustering import Clustering, cluster_codes
from tessera.lm.models.coarse_to_fine import CoarseToFine
from tessera.lm.models.mask_schedule import MaskingConfig
from tessera.tokenize.data.shard_reader import Shards
from tessera.tokenize.data.shard_writer import build_shards
from tessera.tokenize.data.shards_config import ShardsConfig
from tessera.tokenize.tokenizer import load_tokenizer
from tessera.train.distributed.process_group import ProcessGroup
from tessera.train.lm.config import TrainConfig
from tessera.train.lm.dataset import CodesDataset
from tessera.train.lm.evaluate import evaluate_loss
from tessera.train.tokenizer.trainer import TokenizerTrainConfig, train_tokenizer

CONFIGS = ROOT / "configs/emoji-large"
CLUSTERS = {4096: 128, 16384: 512}
SEEDS = {4096: 3, 16384: 1}
"""Of each codebook; chosen before any training was done, for the trainings of the larger one take hours."""
KINDS: Mapping[str, tuple[str, list[str]]] = {
    "plain": ("lm", []),
    "deep": ("lm", ["lm.layers=8"]),
    "coarse to fine": ("lm-refiner", []),
    "random": ("lm-refiner", []),
    "next-patch": ("lm-patches", []),
    "next-patch, same time": ("lm-patches", []),
    "multi-token": ("lm-ahead", []),
    "multi-token, same time": ("lm-ahead", []),
}
"""The config and its changes; coarse to fine has a first stage as well."""
PICTURES = 300
TEMPERATURES = (0.7, 0.8, 0.9, 1.0)
TEMPERATURES_OF = {4096: 1, 16384: 0}
"""The seed of the models whose temperature is varied."""
CORPUS = Path("out/emoji/corpus")


def main() -> None:
    run_comparison(__doc__, __file__, "out/emoji-large", measure, tables, measure_speed)


def measure(results: Results) -> None:
    """Train and measure what is missing."""
    prepare(results)
    test = Test(results.out)
    drop_others(results, test.tokenizers)
    if results.stored().get("tokenizers") != test.tokenizers:
        results.add(
            tokenizers=test.tokenizers,
            reconstructed={str(size): test.neighbors(test.reconstructed(size)) for size in CLUSTERS},
            training_pictures=test.neighbors(test.training_pictures()),
            codes_used={str(size): codes_used(results.out / str(size) / "shards/train", size) for size in CLUSTERS},
        )
    train_all(trainings(results), results, test.measure)


def drop_others(results: Results, current: Mapping[str, str]) -> None:
    """Forget the rows of a seed that is not whole and has rows of tokenizers that are no longer there: kinds are
    compared seed by seed, with the same codes."""
    rows = results.rows()
    for seed in range(max(SEEDS.values())):
        names = [each.name for each in trainings(results) if each.facts["seed"] == seed]
        if not set(names) <= set(rows):
            found = [name for name in names if name in rows]
            results.drop([name for name in found if rows[name]["tokenizer"] != current[str(rows[name]["codes"])]])


def tokenizers(out: Path) -> dict[str, str]:
    """Fingerprints of the tokenizers by size of codebook."""
    return {str(size): load_tokenizer(out / str(size) / "tokenizer").spec.fingerprint for size in CLUSTERS}


def prepare(results: Results) -> None:
    """Tokenizers, shards and clusters of both codebooks, and how long a training step takes."""
    with waited_lock(results.out / "prepare", results.purpose):
        for size, clusters in CLUSTERS.items():
            out = results.out / str(size)
            if not (out / "tokenizer/tokenizer.safetensors").is_file():
                sets = [f"tokenizer.quantizer.size={size}", f"data.path={CORPUS / 'train'}"]
                config = read_config(CONFIGS / "tokenizer.yaml", TokenizerTrainConfig, sets)
                if train_tokenizer(config, out / "tokenizer", resume=(out / "tokenizer").is_dir()) is None:
                    raise SystemExit("stopped; run the same command with --resume")
            tokenizer = load_tokenizer(out / "tokenizer")
            for part in ("train", "test"):
                sets = [
                    f"tokenizer={out / 'tokenizer'}", f"corpus.path={CORPUS / part}", f"out={out / 'shards' / part}"
                ]  # fmt: skip
                if not (out / "shards" / part / "index.json").is_file():
                    build_shards(read_config(CONFIGS / "shards.yaml", ShardsConfig, sets), tokenizer)
            if not (out / "clusters/config.json").is_file():
                clustering = cluster_codes(tokenizer, clusters)
                shuffled(clustering).save(out / "random")
                clustering.save(out / "clusters")
        fast = ["train.eval_every=null", "data.test=null"]
        configs = {
            f"{size} {kind}": lambda steps, size=size, kind=kind: config_of(
                results.out, size, KINDS[kind][0], 0, [*scaled(steps), *fast]
            )
            for size in CLUSTERS
            for kind in ("plain", "next-patch", "multi-token")
        }
        step_times(results, configs)


def shuffled(clustering: Clustering) -> Clustering:
    """Clusters of the same sizes with codes thrown together at random."""
    labels, generator = clustering.labels.clone(), torch.Generator().manual_seed(0)
    for row, size in zip(labels, clustering.tokenizer.cardinalities, strict=True):
        row[:size] = row[:size][torch.randperm(size, generator=generator)]
    return Clustering(clustering.tokenizer, labels)


def config_of(out: Path, size: int, name: str, seed: int, more: Sequence[str] = ()) -> TrainConfig:
    """A config of configs/emoji-large for a codebook of this size."""
    folder = out / str(size)
    sets = [
        f"seed={seed}", f"tokenizer={folder / 'tokenizer'}",
        f"data={{shards: {folder / 'shards/train'}, test: {folder / 'shards/test'}}}", *more,
    ]  # fmt: skip
    return read_config(CONFIGS / f"{name}.yaml", TrainConfig, sets)


def trainings(results: Results) -> list[Training]:
    """All of the tables; seed by seed, so that a stopped run has whole rows."""
    return [
        training(results, size, kind, seed)
        for seed in range(max(SEEDS.values()))
        for size in CLUSTERS
        for kind in KINDS
        if seed < SEEDS[size]
    ]


def steps_of(size: int, kind: str, took: Mapping[str, float]) -> int:
    """Steps of a kind, from the seconds that a step of each takes."""
    steps = read_config(CONFIGS / "lm.yaml", TrainConfig).train.steps
    name, _, same = kind.partition(", ")
    return round(steps * took[f"{size} plain"] / took[f"{size} {name}"]) if same else steps


def training(results: Results, size: int, kind: str, seed: int) -> Training:
    """One of them."""
    config, changes = KINDS[kind]
    steps = steps_of(size, kind, results.stored()["seconds_per_step"])

    def configs(folder: Path) -> list[TrainConfig]:
        sets = [*changes, *scaled(steps)]
        if config != "lm-refiner":
            return [config_of(results.out, size, config, seed, sets)]
        clusters = results.out / str(size) / ("random" if kind == "random" else "clusters")
        sets.append(f"clusters={clusters}")
        coarse = f"export.coarse_model={folder / 'run-0/model'}"
        return [
            config_of(results.out, size, "lm-coarse", seed, sets),
            config_of(results.out, size, config, seed, [*sets, coarse]),
        ]

    name = f"{size}-{kind.replace(', ', '-').replace(' ', '-')}-{steps}-{seed}"
    facts = {"codes": size, "kind": kind, "steps": steps, "seed": seed}
    return Training(name, facts, configs, 2 if config == "lm-refiner" else 1)


class Test:
    """What models are measured with: real pictures, and a network whose features compare them with generated ones."""

    def __init__(self, out: Path):
        self.out, self.tokenizers = out, tokenizers(out)
        train, test = read_entries(CORPUS / "train"), of_kind(read_entries(CORPUS / "test"), "pairs")
        self.entries: list[Entry] = spread(test, PICTURES)
        self.training: list[Entry] = train
        singles = [entry for entry in train if entry.word == "" and entry.path.parent.name != "scenes"]
        ideas = [entry.idea for entry in singles]
        with waited_lock(out / "judges", "benchmarks/compare_pictures.py"):
            judge = train_judge(to_bytes(load(singles)), ideas, sorted(set(ideas)), cache=out / "judges")
        self.features = torch.nn.Sequential(*list(judge.net)[:-1]).eval()
        """Pictures [N, 3, 32, 32] in [-1, 1] -> [N, D]: what the judge's last layer reads."""
        self.real: Tensor = load(self.entries)
        """The test pictures [N, 3, 32, 32]."""

    def reconstructed(self, size: int) -> Tensor:
        """The test pictures after encode and decode."""
        tokenizer = load_tokenizer(self.out / str(size) / "tokenizer")
        return tokenizer.decode(tokenizer.encode(self.real).codes)

    def training_pictures(self) -> Tensor:
        """As many training pictures as test pictures, chosen at random, in the same styles."""
        generator, found = torch.Generator().manual_seed(0), []
        for label in sorted({entry.label for entry in self.entries}):
            own = [entry for entry in self.training if entry.label == label]
            count = sum(entry.label == label for entry in self.entries)
            found += [own[place] for place in torch.randperm(len(own), generator=generator)[:count].tolist()]
        return load(found)

    def generated(self, model: Model, seed: int, **settings: Any) -> Tensor:
        """A picture for each test picture, in its style."""
        made = model.generate(label=[entry.label for entry in self.entries], seed=seed, **settings)
        return torch.stack(made.media)

    @torch.no_grad()
    def neighbors(self, pictures: Tensor) -> dict[str, float]:
        """Precision, recall, density and coverage of pictures against the test pictures."""
        from prdc import compute_prdc

        real, made = (self.features(each).numpy() for each in (self.real, pictures))
        return {name: float(value) for name, value in compute_prdc(real, made, nearest_k=5).items()}

    def measure(self, training: Training, folder: Path) -> dict[str, Any]:
        """All figures of a model directory but its speed."""
        model, size = tessera.load(folder), training.facts["codes"]
        items = CodesDataset(Shards(self.out / str(size) / "shards/test"), model.labels, None)
        seed = training.facts["seed"]
        found = {**self.neighbors(self.generated(model, seed)), "tokenizer": self.tokenizers[str(size)]}
        found |= {"parameters": model.lm.num_parameters, "bits": bits(model, items)}
        if seed == TEMPERATURES_OF[size]:
            found["temperatures"] = {
                str(value): self.neighbors(self.generated(model, seed, temperature=value)) for value in TEMPERATURES
            }
        if training.facts["kind"].startswith("multi-token"):
            found["accepted"] = accepted(model, [entry.label for entry in self.entries[:20]])
        return found


def codes_used(shards: Path, size: int) -> dict[str, float]:
    """How many codes the training pictures have, and the bits of their distribution."""
    counts = torch.zeros(size)
    data = Shards(shards)
    for number in range(len(data)):
        codes = data.item(number).codes.flatten().long()
        counts += torch.bincount(codes, minlength=size)
    share = counts[counts > 0] / counts.sum()
    return {"used": len(share), "bits": float(-(share * share.log2()).sum())}


def bits(model: Model, items: CodesDataset) -> float:
    """Of the codes of a picture, the mean; a refiner reads all clusters and no code."""
    lm = model.lm
    if isinstance(lm, CoarseToFine):
        refiner = lm.refiner
        refiner.config = refiner.config.model_copy(update={"masking": MaskingConfig(everything=1.0)})
    nats = evaluate_loss(lm, items, 50, ProcessGroup(0, 1, lm.device)).sum()
    return float(nats) * model.spec.geometry.num_frames / math.log(2)  # pyright: ignore[reportAttributeAccessIssue]


def accepted(model: Model, labels: Sequence[str]) -> float:
    """Steps for each forward pass of speculative decoding, pictures one by one."""
    passes = 0
    original = SpeculativeLoop.step

    def counted(loop: SpeculativeLoop) -> None:
        nonlocal passes
        passes += 1
        original(loop)

    SpeculativeLoop.step = counted  # type: ignore[method-assign]
    try:
        made = [model.generate(label=label, seed=seed, draft=3) for seed, label in enumerate(labels)]
    finally:
        SpeculativeLoop.step = original  # type: ignore[method-assign]
    return sum(result.codes.shape[2] for result in made) / passes


def measure_speed(results: Results) -> None:
    """Milliseconds a picture of a model of each kind; which of the seeds it has makes no difference."""
    found: dict[str, dict[str, float]] = {}
    folders = {
        (each.facts["codes"], each.facts["kind"]): each.model(results.out)
        for each in trainings(results)
        if each.model(results.out).is_dir()
    }
    for size, kind in itertools.product(CLUSTERS, ("plain", "deep", "coarse to fine", "multi-token")):
        if (size, kind) not in folders:
            raise SystemExit(f"{results.out} has no model of '{kind}' with {size} codes; train it with --resume")
        model = tessera.load(folders[size, kind])
        ways = {"": {}, " with drafts": {"draft": 3}} if kind == "multi-token" else {"": {}}
        for way, settings in ways.items():
            found[f"{size} {kind}{way}"] = {
                str(count): 1000 / count * seconds(model, count, settings) for count in (50, 1)
            }
    results.add(speed=found, speed_at=here())


def seconds(model: Model, count: int, settings: dict[str, Any]) -> float:
    """Time of generating so many pictures at once; the median of three after one to warm up."""
    times = []
    for seed in range(4):
        began = time.perf_counter()
        model.generate(label=model.labels[0], n=count, seed=seed, **settings)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def tables(results: Mapping[str, Any]) -> str:
    """The results as Markdown: means and standard deviations over the seeds."""
    names = ("precision", "recall", "density", "coverage")
    lines = [
        "| codes | | seeds | parameters | steps | CPU minutes | bits | " + " | ".join(names) + " | accepted |",
        "|" + "---|" * (8 + len(names)),
    ]
    rows = list(results.get("rows", {}).values())
    for size in CLUSTERS:
        for kind in KINDS:
            steps = steps_of(size, kind, results["seconds_per_step"])
            own = [row for row in rows if (row["codes"], row["kind"], row["steps"]) == (size, kind, steps)]
            if own:
                cells = [
                    f"{size}", kind, f"{len(own)}", f"{own[0]['parameters'] / 1e6:.2f} M", f"{own[0]['steps']}",
                    cpu_minutes(own), spread_of(own, "bits", 1),
                    *(spread_of(own, name, 2) for name in names),
                    spread_of(own, "accepted", 2) if "accepted" in own[0] else "",
                ]  # fmt: skip
                lines.append("| " + " | ".join(cells) + " |")
        bound = results.get("reconstructed", {}).get(str(size))
        if bound:
            figures = [f"{bound[name]:.2f}" for name in names]
            cells = [f"{size}", "test pictures after encode and decode", *[""] * 5, *figures, ""]
            lines.append("| " + " | ".join(cells) + " |")
    if "training_pictures" in results:
        figures = [f"{results['training_pictures'][name]:.2f}" for name in names]
        lines.append("| " + " | ".join(["", "training pictures", *[""] * 5, *figures, ""]) + " |")
    for size, each in results.get("codes_used", {}).items():
        lines += ["", f"Of {size} codes, the training pictures have {each['used']}; {each['bits']:.2f} bits a code."]
    lines += temperature_table(rows)
    if "speed" in results:
        lines += ["", "| | ms a picture, 50 at once | alone |", "|---|---|---|"]
        lines += [f"| {name} | {each['50']:.1f} | {each['1']:.0f} |" for name, each in results["speed"].items()]
    return "\n".join(lines)


def temperature_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Density, recall and coverage at each temperature, of kinds with as many steps."""
    titles = " | ".join(f"temperature {value}" for value in TEMPERATURES)
    lines = ["", f"| codes | density, recall, coverage | {titles} |", "|---|---|" + "---|" * len(TEMPERATURES)]
    for size, kind in itertools.product(CLUSTERS, KINDS):
        for row in rows:
            if (row["codes"], row["kind"]) == (size, kind) and "same time" not in kind and "temperatures" in row:
                figures = [row["temperatures"][str(value)] for value in TEMPERATURES]
                cells = [
                    ", ".join(f"{each[name]:.2f}" for name in ("density", "recall", "coverage")) for each in figures
                ]
                lines.append(f"| {size} | {kind} | " + " | ".join(cells) + " |")
    return lines if len(lines) > 3 else []


def spread_of(rows: Sequence[Mapping[str, Any]], name: str, digits: int) -> str:
    """Mean and standard deviation of a figure."""
    values = [row[name] for row in rows]
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


if __name__ == "__main__":
    main()
