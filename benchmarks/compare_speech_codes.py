"""Speech codes that learn to recognize: what is heard of them, of the first codebook alone, and of a language model.

    pip install -e ".[eval]" && apt install espeak-ng
    python -m tessera.samples.make_speech --count 8000 --seed 1 --exclude samples/speech/test/metadata.jsonl \\
        --out out/speech-codes/corpus
    python benchmarks/compare_speech_codes.py --resume [--workers 2]  train and measure what is missing; can be stopped
    python benchmarks/compare_speech_codes.py --table                 the stored results, as Markdown

Tokenizers of configs/tokenize, with their settings but for the number of steps, which is the same for all, and the
corpus; each with SEEDS seeds:

- qdac               residual codes, trained together with an autoregressive network that writes the transcript (QTTS)
- qdac, first codebook  the same, and the network reads the first codebook only
- qdac, no recognizer   the same without that network
- cosyvoice          one codebook, taught by recognition alone; then a decoder learns to make sound of finished codes
- xy-tokenizer       first meaning and sound together; then codes stay, and the decoder learns with discriminators

Then a language model of the codes, configs/speech-codes/lm.yaml, is trained on each. Pocketsphinx with a grammar of
digits hears 100 digit strings that no recording of the corpus says, in:

- recordings; and those of other texts, which is what guessing gives
- all codes          the recordings after encode and decode
- first codebook     the same, with the codes of all other codebooks left out
- spoken             generated from the text by the language model

heard: words heard in order; inserted: words too many; both per word said. word error: all errors per word said. The
decoders differ by design: that of cosyvoice learns in the last third of the steps and has no discriminator, and that of
xy-tokenizer, in its last quarter, does not see the first codebook alone. Whether a system's word error is lower than
that of `qdac, no recognizer` is judged by the rule of claim_verdict.py, seed by seed.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile
import torch
from claim_verdict import claimed, judge
from provenance import ROOT
from recogniser import DigitRecogniser, compare_words
from trainings import Results, Training, run_comparison, train_all

import tessera
from tessera.configs.schema import read_config
from tessera.tokenize.data.shard_writer import build_shards
from tessera.tokenize.data.shards_config import ShardsConfig
from tessera.tokenize.tokenizer import Tokenizer, load_tokenizer
from tessera.train.lm.config import TrainConfig
from tessera.train.tokenizer.trainer import TokenizerTrainConfig

SEEDS = 3
STEPS = 3000
"""Of each tokenizer, all of its stages together."""
STAGES = {
    "cosyvoice": [
        "stages=[{kind: train, name: recognise, steps: 2000, terms: [quantizer, ctc], freeze: [decoder]}, "
        "{kind: train, name: decode, steps: 1000, terms: [mel, spectrum], freeze: [encoder, quantizer]}]"
    ],
    "xy-tokenizer-stages": [
        "stages=[{kind: train, name: align, steps: 2250, terms: [mel, spectrum, quantizer, caption]}, "
        "{kind: train, name: refine, steps: 750, terms: [mel, spectrum, adversarial, features], "
        "freeze: [encoder, quantizer]}]"
    ],
}
"""With the shares of the steps that the configs have."""
TERMS = (
    "terms=[{kind: mel, weight: 2.0}, {kind: spectrum}, {kind: quantizer}, %s{kind: adversarial, weight: 0.1}, "
    "{kind: features, weight: 0.2}]"
)
"""Those of configs/tokenize/qdac.yaml, with another recognizer or none."""
QUIET = [TERMS % ""]
FIRST = [TERMS % "{kind: caption, weight: 1.0, levels: [0], width: 64, heads: 4, blocks: 1}, "]
SYSTEMS: Mapping[str, tuple[str, list[str]]] = {
    "qdac": ("qdac", [f"train.steps={STEPS}"]),
    "qdac, first codebook": ("qdac", [f"train.steps={STEPS}", *FIRST]),
    "qdac, no recognizer": ("qdac", [f"train.steps={STEPS}", *QUIET]),
    "cosyvoice": ("cosyvoice", STAGES["cosyvoice"]),
    "xy-tokenizer": ("xy-tokenizer-stages", STAGES["xy-tokenizer-stages"]),
}
"""The config and its changes."""
LOSS_WEIGHTS = [4, 2, 1, 1, 1, 1, 1, 1]
"""Of the codebooks, if there are eight: the first is half of what is heard, as for the bundled speech."""
TEST = ROOT / "samples/speech/test"
FRAME_RATE = 50
"""Of all tokenizers, Hz."""
BASELINE = "qdac, no recognizer"
GROUPS = ("all codes", "first codebook", "spoken")


def main() -> None:
    run_comparison(__doc__, __file__, "out/speech-codes", measure, table)


def measure(results: Results) -> None:
    """Train and measure what is missing."""
    test = Test()
    if "recordings" not in results.stored():
        results.add(recordings=test.heard(test.sounds), others=test.heard([*test.sounds[1:], test.sounds[0]]))
    trainings = [training(results.out, name, seed) for seed in range(SEEDS) for name in SYSTEMS]
    train_all(trainings, results, test.measure)


def training(out: Path, name: str, seed: int) -> Training:
    """A tokenizer, and a language model of its codes."""
    config, changes = SYSTEMS[name]

    def configs(folder: Path) -> Iterator[TokenizerTrainConfig | TrainConfig]:
        sets = [f"seed={seed}", f"data.path={out / 'corpus'}", *changes]
        yield read_config(ROOT / f"configs/tokenize/{config}.yaml", TokenizerTrainConfig, sets)
        for part, corpus in (("train", out / "corpus"), ("test", TEST)):
            described = {"kind": "folder", "path": str(corpus)}
            build_shards(
                ShardsConfig.model_validate(
                    {"corpus": described, "tokenizer": str(folder / "run-0"), "out": str(folder / "shards" / part)}
                )
            )
        sets = [
            f"seed={seed}", f"tokenizer={folder / 'run-0'}",
            f"data={{shards: {folder / 'shards/train'}, test: {folder / 'shards/test'}}}",
        ]  # fmt: skip
        if len(load_tokenizer(folder / "run-0").spec.cardinalities) > 1:
            sets.append(f"lm.loss_weights={LOSS_WEIGHTS}")
        yield read_config(ROOT / "configs/speech-codes/lm.yaml", TrainConfig, sets)

    folder_name = f"{name.replace(', ', '-').replace(' ', '-')}-{STEPS}-{seed}"
    return Training(folder_name, {"system": name, "seed": seed}, configs, 2)


class Test:
    """The recordings, and who listens."""

    def __init__(self) -> None:
        rows = [json.loads(line) for line in (TEST / "metadata.jsonl").read_text().splitlines()]
        self.texts, self.labels = [row["text"] for row in rows], [row["label"] for row in rows]
        self.sounds = [torch.from_numpy(soundfile.read(TEST / row["file"], dtype="float32")[0]) for row in rows]
        self.listener = DigitRecogniser()

    def heard(self, sounds: Sequence[torch.Tensor]) -> dict[str, float]:
        """What is heard in samples [N] of each text, per word said."""
        spoken = [text.split() for text in self.texts]
        counts = compare_words(spoken, [self.listener.words(sound.numpy()) for sound in sounds])
        said = sum(map(len, spoken))
        return {"heard": counts.right / said, "inserted": counts.inserted / said, "word_error": counts.errors / said}

    def decoded(self, tokenizer: Tokenizer, levels: int | None) -> list[torch.Tensor]:
        """The recordings after encode and decode, by the codes of the first codebooks; None: of all."""
        found = []
        for sound in self.sounds:
            codes = tokenizer.encode(sound[None, None]).codes
            if levels is not None:
                codes[:, levels:] = -1
            found.append(tokenizer.decode(codes)[0, 0, : len(sound)])
        return found

    def measure(self, training: Training, folder: Path) -> dict[str, Any]:
        """All figures of a model and its tokenizer."""
        model = tessera.load(folder)
        result = model.generate(text=self.texts, label=self.labels, seed=training.facts["seed"], split="off")
        cards = model.tokenizer.spec.cardinalities
        return {
            "codebooks": list(cards),
            "all codes": self.heard(self.decoded(model.tokenizer, None)),
            "first codebook": self.heard(self.decoded(model.tokenizer, 1 if len(cards) > 1 else None)),
            "spoken": self.heard([sound[0] for sound in result.media]),
            "ended": sum(result.ended) / len(result),
        }


def table(results: Mapping[str, Any]) -> str:
    """The results as Markdown: means and standard deviations over the seeds."""
    lines = ["| | kbit/s | seeds | | words heard | inserted | word error |", "|---|---|---|---|---|---|---|"]
    for name, title in (("recordings", "recordings"), ("others", "recordings of other texts")):
        if name in results:
            lines.append(line(title, "", 0, "", [results[name]]))
    for name in SYSTEMS:
        rows = [row for row in results.get("rows", {}).values() if row["system"] == name]
        for group in GROUPS if rows else ():
            books = rows[0]["codebooks"][: 1 if group == "first codebook" else None]
            rate = f"{FRAME_RATE * sum(map(math.log2, books)) / 1000:.1f}"
            lines.append(line(name, rate, len(rows), group, [row[group] for row in rows]))
    return "\n".join([*lines, "", *comparison(results.get("rows", {}).values())])


def comparison(rows: Collection[Mapping[str, Any]]) -> list[str]:
    """The difference of the word errors of each system and of BASELINE, paired by seed, with its standard error, and
    the verdict on being lower."""
    titles = " | ".join(GROUPS)
    lines = [f"| word error, less that of `{BASELINE}` | {titles} |", "|---" * (1 + len(GROUPS)) + "|"]
    for name in SYSTEMS:
        own, baseline = ({row["seed"]: row for row in rows if row["system"] == each} for each in (name, BASELINE))
        seeds = sorted(own.keys() & baseline.keys())
        if name == BASELINE or len(seeds) < 2:
            continue
        cells = []
        for group in GROUPS:
            left, right = ([100 * side[seed][group]["word_error"] for seed in seeds] for side in (own, baseline))
            found = claimed("lower", left, right)
            error = statistics.stdev(found) / math.sqrt(len(found))
            cells.append(f"{-statistics.mean(found):+.1f} ± {error:.1f} points: {judge(found)}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def line(name: str, rate: str, seeds: int, group: str, found: Sequence[Mapping[str, float]]) -> str:
    """A line of the table."""
    cells = []
    for figure in ("heard", "inserted", "word_error"):
        values = [100 * each[figure] for each in found]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.1f}{spread} %")
    return f"| {name} | {rate} | {seeds or ''} | {group} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
