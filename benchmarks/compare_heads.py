"""Depth against delay, flat and parallel heads: trained on four hours of speech with equal numbers of parameters, for
the same steps and for the same time, and heard on unseen sentences.

    pip install -e ".[eval]" hibari-tts onnx && apt install wordnet-base flite
    python -m tessera.samples.make_voice --hours heart=4 --out out/heads/corpus
    python benchmarks/compare_heads.py --resume [--workers 2]    train and measure what is missing; can be stopped
    python benchmarks/compare_heads.py --speed                   measure the speed of generation; on an idle machine
    python benchmarks/compare_heads.py --table                   tables of the stored results, as Markdown

The configs are those of configs/heads, which differ in the head, the arrangement, and the layers and widths that give
all the same number of parameters. There are these comparisons, with SEEDS seeds:

    steps   all heads are trained for the steps of their config; `flat` with one seed
    time    a head gets as many steps as take the CPU as long as the steps of `delay`. A head whose steps take within
            10 % as long has the same training in both; what a step takes is measured once, turn by turn.
    twice   twice the steps, one seed, without `flat`: whether the order would change

Warm-up and the averaging of the weights are in proportion to the steps. Seconds a step are those of the CPU, on the
machine that `seconds_per_step_at` names.

bits: of a frame of the 120 test recordings, the sum over its codebooks; and how many fewer they are than after three
quarters of the steps. Words: what pocketsphinx hears, with its general language model, of 100 sentences that no
training text holds; recordings after encode and decode are the bound. All have the temperature and the guidance of
configs/voice; a table of other temperatures, of seed 1 and of 50 other sentences, shows whom that favors. Every
sample ends, since the pointer to the text does; length is the share of sentences that last as long as the recording
within 20 %. A training uses one thread, so its figures do not depend on what else runs. Results, with their machine,
versions and seeds, are in compare_heads.json.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from provenance import ROOT, here, waited_lock
from recogniser import Recogniser, compare_words, plain_words
from trainings import Results, Training, run_comparison, scaled, step_times, train_all
from voice_quality import LISTENER_RATE, Speaker, TestSet

import tessera
from tessera.configs.schema import read_config
from tessera.tokenize.audio.resample import resample
from tessera.tokenize.data.corpus import FolderCorpus
from tessera.tokenize.data.shard_reader import Shards
from tessera.tokenize.data.shard_writer import build_shards
from tessera.tokenize.data.shards_config import ShardsConfig
from tessera.tokenize.spec import AudioGeometry
from tessera.tokenize.tokenizer import Tokenizer, load_tokenizer
from tessera.train.distributed.process_group import ProcessGroup
from tessera.train.lm.aligned_text import AlignedText
from tessera.train.lm.config import TrainConfig
from tessera.train.lm.dataset import CodesDataset
from tessera.train.lm.evaluate import evaluate_loss

HEADS = ("delay", "parallel", "depth", "flat")
"""The first is the one whose time the others get."""
WHOLE: dict[str, Any] = {"split": "off"}
"""Settings of generation: texts of any length in one piece, so that the samples of a batch are made together."""
SEEDS = 3
SAME_TIME = 0.1
SAME_LENGTH = 0.2
SENTENCES = 100
OTHERS = 50
"""Further sentences, for the temperatures."""
TEMPERATURES = (0.3, 0.5, 0.7, 1.0)
TEMPERATURES_OF = 1
"""The seed of the models whose temperature is varied."""
TOKENIZER = ROOT / "bundled/voice/tokenizer"
COMPARISONS = {"steps": SEEDS, "time": SEEDS, "twice": 1}
"""How many seeds each has."""
FEWER = {("steps", "flat"): 1, ("twice", "flat"): 0}
"""How many seeds a head has instead: 2000 steps of `flat` take more than two hours."""
TITLES = {"steps": "Equal steps", "time": "Equal time", "twice": "Twice the steps"}


def main() -> None:
    run_comparison(__doc__, __file__, "out/heads", measure, tables, measure_speed)


def measure(results: Results) -> None:
    """Train and measure what is missing."""
    prepare(results)
    tokenizer = load_tokenizer(TOKENIZER)
    test = Test(results.out, tokenizer)
    if "recordings" not in results.stored():
        results.add(**test.bounds(tokenizer))
    train_all(trainings(results), results, test.measure)


def prepare(results: Results) -> None:
    """Shards of the corpus, and how long a step of each head takes."""
    out = results.out
    with waited_lock(out / "prepare", results.purpose):
        for part, folder in (("train", "train"), ("test", "test/items")):
            if not (out / "shards" / part / "index.json").is_file():
                corpus = FolderCorpus(path=str(out / "corpus" / folder))
                shards = ShardsConfig(corpus=corpus, tokenizer=str(TOKENIZER), out=str(out / "shards" / part))
                build_shards(shards)
        fast = ["train.eval_every=null", "data.test=null"]
        step_times(results, {head: lambda steps, head=head: config_of(head, 0, steps, out, fast) for head in HEADS})


def config_of(head: str, seed: int, steps: int, out: Path, more: Sequence[str] = ()) -> TrainConfig:
    """A config of configs/heads."""
    sets = [
        f"seed={seed}", f"tokenizer={TOKENIZER}", *scaled(steps),
        f"data={{shards: {out / 'shards/train'}, test: {out / 'shards/test'}}}", *more,
    ]  # fmt: skip
    return read_config(ROOT / f"configs/heads/lm-{head}.yaml", TrainConfig, sets)


def steps_of(head: str, comparison: str, took: Mapping[str, float]) -> int:
    """Steps of a head in a comparison, from the seconds that a step of each takes."""
    steps = read_config(ROOT / f"configs/heads/lm-{head}.yaml", TrainConfig).train.steps
    ratio = took[HEADS[0]] / took[head]
    if comparison == "twice":
        return 2 * steps
    return steps if comparison == "steps" or abs(ratio - 1) <= SAME_TIME else round(steps * ratio)


def trainings(results: Results) -> list[Training]:
    """All of the table, each once; seed by seed, so that a stopped run has whole rows."""
    took, out, found = results.stored()["seconds_per_step"], results.out, {}
    for seed in range(SEEDS):
        for comparison, seeds in COMPARISONS.items():
            for head in [head for head in HEADS if seed < FEWER.get((comparison, head), seeds)]:
                steps = steps_of(head, comparison, took)
                name = f"{head}-{steps}-{seed}"
                config = config_of(head, seed, steps, out)
                facts = {"head": head, "steps": steps, "seed": seed}
                found[name] = Training(name, facts, lambda _, config=config: [config])
    return list(found.values())


class Test:
    """What models are measured with."""

    def __init__(self, out: Path, tokenizer: Tokenizer):
        self.out = out
        geometry = tokenizer.spec.geometry
        assert isinstance(geometry, AudioGeometry)
        self.rate = geometry.sample_rate
        everything = TestSet(str(out / "corpus/test/sentences"), 10**6, geometry)
        self.sentences = TestSet(str(out / "corpus/test/sentences"), SENTENCES, geometry)
        rest = [text for text in everything.texts if text not in set(self.sentences.texts)]
        self.others = rest[:: max(1, len(rest) // OTHERS)][:OTHERS]
        self.listener = Recogniser()

    def bounds(self, tokenizer: Tokenizer) -> dict[str, dict[str, float]]:
        """The words of the recordings, and after encode and decode."""
        groups = {"recordings": self.sentences.sounds, "reconstructions": self.sentences.rebuild(tokenizer)}
        return {name: self.words(self.sentences.texts, sounds) for name, sounds in groups.items()}

    def words(self, texts: Sequence[str], sounds: Sequence[torch.Tensor]) -> dict[str, float]:
        """What is heard of the texts in samples [N] of each, per word said."""
        samples = [resample(sound[None].float(), self.rate, LISTENER_RATE)[0].numpy() for sound in sounds]
        spoken = [plain_words(text) for text in texts]
        counts = compare_words(spoken, [self.listener.words(sound) for sound in samples])
        said = sum(map(len, spoken))
        return {
            "heard": counts.right / said, "inserted": counts.inserted / said, "word_error": counts.errors / said,
        }  # fmt: skip

    def measure(self, training: Training, folder: Path) -> dict[str, Any]:
        """All figures of a model directory but its speed."""
        model = tessera.load(folder)
        items = CodesDataset(
            Shards(self.out / "shards/test"), None, None, aligned=AlignedText.of(model.lm.config.conditions, model.text)
        )
        nats = evaluate_loss(model.lm, items, 16, ProcessGroup(0, 1, model.lm.device)).tolist()
        bits = [value / math.log(2) for value in nats]
        books = len(model.tokenizer.spec.cardinalities)
        spoken = Speaker(model, {}, 0, WHOLE).say(self.sentences.texts)
        ratios = [
            result.seconds * self.rate / len(sound)
            for result, sound in zip(spoken, self.sentences.sounds, strict=True)
        ]  # fmt: skip
        return {
            "parameters": model.lm.num_parameters,
            "bits": bits[:books],
            "curve": curve(folder.parent / "metrics.jsonl"),
            "advance_bits": sum(bits[books:]),
            "ended": sum(result.ended[0] for result in spoken) / len(spoken),
            "length": sum(abs(ratio - 1) <= SAME_LENGTH for ratio in ratios) / len(ratios),
            **self.words(self.sentences.texts, [result.media[0][0] for result in spoken]),
            "temperatures": self.temperatures(model) if training.facts["seed"] == TEMPERATURES_OF else None,
        }

    def temperatures(self, model: tessera.Model) -> dict[str, float]:
        """Word error of other sentences by the temperature of sampling."""
        found = {}
        for value in TEMPERATURES:
            spoken = Speaker(model, {}, 0, {**WHOLE, "temperature": value}).say(self.others)
            found[str(value)] = self.words(self.others, [result.media[0][0] for result in spoken])["word_error"]
        return found


def curve(path: Path) -> dict[str, float]:
    """Bits per frame of the test recordings during a training, by step."""
    rows = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
    return {str(row["step"]): sum(row["loss_per_codebook"]) / math.log(2) for row in rows if row.get("split") == "test"}


def gained(row: Mapping[str, Any]) -> float:
    """Bits that the last quarter of the steps gained, from the last evaluation before it; nan: there was none."""
    found = {int(step): bits for step, bits in row["curve"].items()}
    before = [step for step in found if step <= 0.75 * row["steps"]]
    return found[max(before)] - found[max(found)] if before else math.nan


def measure_speed(results: Results) -> None:
    """Frames a second of a model of each head, alone and 16 at once, with the guidance of their config; medians of
    three turns. Which of the trainings it is from makes no difference."""
    geometry = load_tokenizer(TOKENIZER).spec.geometry
    assert isinstance(geometry, AudioGeometry)
    texts = TestSet(str(results.out / "corpus/test/sentences"), 16, geometry).texts
    trained = [training for training in trainings(results) if training.model(results.out).is_dir()]
    folders = {training.facts["head"]: training.model(results.out) for training in trained}
    if missing := [head for head in HEADS if head not in folders]:
        print(f"{results.out} has no model with head {', '.join(missing)}; train it with --resume", file=sys.stderr)
    models = {head: tessera.load(folders[head]) for head in HEADS if head in folders}
    found: dict[str, dict[str, list[float]]] = {head: {"1": [], "16": [], "first": []} for head in models}
    for _ in range(4):
        for head, model in models.items():
            for count in (1, 16):
                began = time.perf_counter()
                frames = sum(int(result.codes.shape[2]) for result in say(model, texts[8 - count // 2 :][:count]))
                found[head][str(count)].append(frames / (time.perf_counter() - began))
            began = time.perf_counter()
            next(iter(model.stream(text=texts[8], seed=0)))
            found[head]["first"].append(time.perf_counter() - began)
    medians = {head: {name: statistics.median(each[1:]) for name, each in by.items()} for head, by in found.items()}
    results.add(speed=medians | {"at": here()})


def say(model: tessera.Model, texts: list[str]) -> list:
    """A result for each text, all generated at once."""
    result = model.generate(text=texts, seed=0, **WHOLE)
    return [result[number] for number in range(len(texts))]


def tables(results: Mapping[str, Any]) -> str:
    """The results as Markdown: a table for each comparison, means and standard deviations over the seeds."""
    lines = []
    for comparison, title in TITLES.items():
        own = []
        for head in HEADS:
            steps = steps_of(head, comparison, results["seconds_per_step"])
            rows = [row for row in results.get("rows", {}).values() if (row["head"], row["steps"]) == (head, steps)]
            own += [line(head, steps, results["seconds_per_step"][head], rows)] if rows else []
        if own:
            lines += [
                f"{title}:", "",
                "| head | steps | seconds a step | bits per frame | in the last quarter | by codebook | advance "
                "| words heard | inserted | word error | length |",
                "|---|---|---|---|---|---|---|---|---|---|---|", *own, "",
            ]  # fmt: skip
    for name in ("reconstructions", "recordings"):
        if name in results:
            found = results[name]
            lines.append(
                f"{name}: heard {found['heard']:.1%}, inserted {found['inserted']:.1%}, "
                f"word error {found['word_error']:.1%}"
            )
    lines += temperature_table(results)
    if "speed" in results:
        lines += ["", "| head | frames/s, one sentence | 16 at once | first audio |", "|---|---|---|---|"]
        lines += [
            f"| `{head}` | {found['1']:.0f} | {found['16']:.0f} | {found['first']:.2f} s |"
            for head, found in results["speed"].items()
            if head in HEADS
        ]
    return "\n".join(lines)


def temperature_table(results: Mapping[str, Any]) -> list[str]:
    """The word error at each temperature, after equal steps."""
    titles = " | ".join(f"temperature {value}" for value in TEMPERATURES)
    lines = ["", f"| word error | {titles} |", "|---|" + "---|" * len(TEMPERATURES)]
    for head in HEADS:
        steps = steps_of(head, "steps", results["seconds_per_step"])
        row = results.get("rows", {}).get(f"{head}-{steps}-{TEMPERATURES_OF}")
        if row is not None:
            errors = [row["temperatures"][str(value)] for value in TEMPERATURES]
            lines.append(f"| `{head}` | " + " | ".join(f"{error:.1%}" for error in errors) + " |")
    return lines if len(lines) > 3 else []


def line(head: str, steps: int, took: float, rows: Sequence[dict[str, Any]]) -> str:
    """A line of a table."""

    def spread(name: str) -> str:
        return mean_and_deviation([100 * row[name] for row in rows], " %")

    bits = mean_and_deviation([sum(row["bits"]) for row in rows], "", 2)
    last = statistics.mean(map(gained, rows))
    books = " ".join(f"{statistics.mean(each):.2f}" for each in zip(*(row["bits"] for row in rows), strict=True))
    advance = statistics.mean(row["advance_bits"] for row in rows)
    return (
        f"| `{head}` ({len(rows)}) | {steps} | {took:.2f} | {bits} | {-last:+.2f} | {books} "
        f"| {advance:.2f} | {spread('heard')} | {spread('inserted')} | {spread('word_error')} "
        f"| {spread('length')} |"
    )


def mean_and_deviation(values: Sequence[float], unit: str, digits: int = 1) -> str:
    """ "12.3 ± 0.4"; one value has no deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "") + unit


if __name__ == "__main__":
    main()
