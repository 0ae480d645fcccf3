"""What papers say of their tokenizers, at small scale: each system beside its baseline, trained for equal steps.

    python benchmarks/tokenizer_claims.py --threads 1 --write docs/tokenizers.md [--only simvq fsq ...] [--steps 200]

The claims are in tokenizer_claims.yaml, what is measured in tokenizer_measures.py. Every system is the config of its
name in configs/tokenize, trained on patches of two photographs (python -m tessera.samples.make_patches; made here when
missing), on the bundled digits or on the bundled speech, and so is its baseline: the same config with another part.

What is trained already is not trained again (--out), and results are kept in tokenizer_claims.json, each with a hash of
the settings of both sides: a row whose settings have changed since counts as not measured. So --only measures some rows
and leaves the others as they are, and without it only what is missing is measured; --again measures all that is asked
for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizer_measures import MEASURES, PATCHES, ROOT, Trained

from tessera.configs.files import read_json, write_json, write_safetensors
from tessera.configs.schema import check_config, override, read_yaml
from tessera.samples.make_patches import write_patches
from tessera.tokenize.data.corpus import ArraysCorpus, open_corpus
from tessera.tokenize.quantizers.codebooks.nearest import kmeans
from tessera.tokenize.spec import ImageGeometry
from tessera.tokenize.tokenizer import load_tokenizer
from tessera.train.tokenizer.trainer import TokenizerTrainConfig, train_tokenizer

CONFIGS = ROOT / "configs/tokenize"
NEAR = 1.1
"""How far above the baseline's a figure may be that should be near it."""
EVEN = 0.03
"""Share of the baseline's figure within which one training a side says nothing about higher or lower."""


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, and how it is looked at here."""

    system: str
    """File in configs/tokenize."""
    says: str
    measure: str
    """Key of MEASURES."""
    wanted: str
    """Whether the system's figure should be "higher" or "lower" than the baseline's, or "near" it: at most a tenth
    above."""
    baseline: str
    """In words."""
    change: Sequence[str] = ()
    """What makes the system's config the baseline's, as --set takes it."""
    own: Sequence[str] = ()
    """Settings of both sides for this comparison."""
    compared: str | None = None
    """Measure of the baseline, where it is another one than the system's."""
    longer: int = 1
    """Times the steps of the other rows."""
    seeds: int = 1
    """Trainings of each side; figures are their means."""
    every: int = 0
    """Steps between looks on the way; 0: at the end only."""
    beside: str | None = None
    """Another measure of both sides, for the note."""
    note: str = ""
    """What was found out about the row."""

    def key(self, steps: int) -> str:
        """Hash of all that the row's figures depend on, but for the code."""
        sides = [plan(self, sets, steps, 0) for sets in (self.own, [*self.own, *self.change])]
        named = [self.measure, self.compared, self.seeds, *([self.beside] if self.beside else [])]
        said = json.dumps([sides, *named], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:16]


TITLES = {
    "used": "Code usage",
    "used of all": "Code usage, all images",
    "used each": "Code usage per codebook",
    "error of half": "Error with half of the codebooks",
    "error of four": "Error with four codebooks",
    "error of a quarter": "Error with a quarter of the tokens",
    "error halted": "Error with halting",
    "tokens of plain pictures": "Tokens of simple images",
    "rises": "Monotonicity in the number of tokens",
    "first level": "Share of the first level",
    "alike": "Similarity of codebooks",
    "told": "Information about a teacher, first codebook",
    "told by all": "Information about a teacher, all codebooks",
    "classes": "Information about classes",
    "shares off": "Shares of the gradient",
    "bits": "Bits under a language model",
}
"""Measure -> heading of its table; others are capitalized."""
MEASURED: dict[tuple[Path, int | None, str], float] = {}
"""Run, steps (None: all), measure -> figure, of this call."""
TABLE: dict[str, Any] = read_yaml(Path(__file__).with_suffix(".yaml"))
CLAIMS = [Claim(**row) for row in TABLE["claims"]]
NOT_HERE: dict[str, str] = TABLE["not_here"]
"""System -> why its claim cannot be looked at here."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted({claim.system for claim in CLAIMS}))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--again", action="store_true", help="also repeat measurements that exist")
    parser.add_argument("--out", type=Path, default=Path("out/tokenizers"), help="trained tokenizers")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"), help="results so far")
    parser.add_argument("--write", type=Path, help="write the page (docs/tokenizers.md)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    results: dict[str, dict] = read_json(args.json) if args.json.is_file() else {}
    wanted = [claim for claim in CLAIMS if not args.only or claim.system in args.only]
    wanted = [claim for claim in wanted if args.again or claim.key(args.steps) not in results]
    if wanted:
        write_media(json.dumps([[*claim.own, *claim.change] for claim in wanted]))
    for number, claim in enumerate(wanted):
        print(f"row {number + 1} of {len(wanted)}: {claim.system}, {claim.measure}", file=sys.stderr, flush=True)
        result = {
            "system": claim.system, "measure": claim.measure, "steps": args.steps * claim.longer, "seeds": claim.seeds,
        }  # fmt: skip
        for side, sets, measure in (
            ("own", claim.own, claim.measure),
            ("other", [*claim.own, *claim.change], claim.compared or claim.measure),
        ):
            trained = train(claim, sets, args.steps, args.out)
            result[side] = mean(measure, trained)
            for step in looks(claim, args.steps):
                result.setdefault("way", {}).setdefault(str(step), {})[side] = mean(measure, trained, step)
            if claim.beside:
                result.setdefault("beside", {})[side] = mean(claim.beside, trained)
        results[claim.key(args.steps)] = result
        known = {claim.key(args.steps) for claim in CLAIMS}
        write_json(args.json, {key: results[key] for key in results if key in known})
        figures = f"{result['own']:10.4g} {result['other']:10.4g}"
        print(
            f"{claim.system:<22} {claim.measure:<18} {figures}  {claim.wanted:<6} {verdict(claim, result)}", flush=True
        )
    if args.write:
        args.write.write_text(page(results, args.steps), encoding="utf-8")


def verdict(claim: Claim, result: Mapping[str, Any]) -> str:
    """ "yes" where the system's figure is on the side of the baseline's that was said, else "no"; "even" for a tie."""
    own, other = result["own"], result["other"]
    if claim.wanted == "near":
        return "yes" if own <= NEAR * other else "no"
    if abs(own - other) <= EVEN * abs(other):
        return "even"
    return "yes" if (own > other) == (claim.wanted == "higher") else "no"


# Training


def plan(claim: Claim, sets: Sequence[str], steps: int, seed: int) -> dict[str, Any]:
    """The config of a side as plain data. The steps of stages are cut so that there are as many in all."""
    data = override(read_yaml(CONFIGS / f"{claim.system}.yaml"), sets)
    data["tokenizer"]["name"] = "t"  # the same settings are trained once, whatever their names
    data["seed"] = seed
    data["train"]["snapshot_every"] = claim.every
    steps *= claim.longer
    stages = [stage for stage in data.get("stages") or () if stage["kind"] == "train"]
    if not stages:
        data["train"]["steps"] = steps
    whole = sum(stage["steps"] for stage in stages)
    for stage in stages:
        stage["steps"] = max(1, steps * stage["steps"] // whole)
    return data


def looks(claim: Claim, steps: int) -> range:
    """Steps on the way after which a side is measured."""
    return range(claim.every, steps * claim.longer, claim.every) if claim.every else range(0)


def train(claim: Claim, sets: Sequence[str], steps: int, out: Path) -> list[Trained]:
    """One side with each seed, but for what was trained before."""
    found = []
    for seed in range(claim.seeds):
        config = check_config(plan(claim, sets, steps, seed), TokenizerTrainConfig, claim.system)
        said = json.dumps(config.model_dump(mode="json"), sort_keys=True)
        folder = out / hashlib.sha256(said.encode()).hexdigest()[:16]
        if not (folder / "config.json").is_file() and train_tokenizer(config, folder, resume=folder.is_dir()) is None:
            raise SystemExit("stopped; run the same command to resume")
        found.append(Trained(load_tokenizer(folder), config.resolved(), folder))
    return found


def mean(measure: str, trained: Sequence[Trained], step: int | None = None) -> float:
    """Of a measure, over seeds, at the end or after so many steps; what rows share is measured once."""
    for one in trained:
        if (one.folder, step, measure) not in MEASURED:
            if step is not None:
                one = replace(one, tokenizer=load_tokenizer(one.folder / f"snapshot-{step}"))
            MEASURED[one.folder, step, measure] = MEASURES[measure](one)
    return statistics.mean(MEASURED[one.folder, step, measure] for one in trained)


def write_media(named: str) -> None:
    """What configs read and is not in the repository: patches, and centres of 2 x 2 pixels of them, a stand-in for a
    pretrained encoder's features; the larger file only where the settings `named` have it."""
    if not (PATCHES / "test.safetensors").is_file():
        write_patches(PATCHES, side=16)
    for size, name in ((4096, "centres"), (16384, "centres-16384")):
        path = PATCHES / f"{name}.safetensors"
        if path.is_file() or (size > 4096 and path.name not in named):
            continue
        print(f"making {path}", file=sys.stderr, flush=True)
        corpus = open_corpus(ArraysCorpus(path=str(PATCHES / "train.safetensors")))
        geometry = ImageGeometry(height=16, width=16, channels=3, rows=8, columns=8)
        every = max(1, len(corpus) // 1500)
        patches = torch.stack([corpus.media(number, geometry) for number in range(0, len(corpus), every)[:1500]])
        squares = patches.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
        picked = squares[torch.randperm(len(squares), generator=torch.Generator().manual_seed(0))[:40000]]
        write_safetensors(path, {"centres": kmeans(picked, size, 5)[0].contiguous()}, {})


# The page


def page(results: Mapping[str, dict], steps: int) -> str:
    """The table as Markdown."""
    found = [(claim, results.get(claim.key(steps))) for claim in CLAIMS]
    measured = [(claim, result) for claim, result in found if result is not None]
    said = [verdict(claim, result) for claim, result in measured]
    counts = [f"{said.count('yes')} hold", f"{said.count('no')} do not", f"{said.count('even')} are even"]
    if len(measured) < len(found):
        counts.append(f"{len(found) - len(measured)} are not measured")
    lines = [
        "# Published tokenizers: claims of their papers at small scale",
        "",
        f"Written by `python benchmarks/tokenizer_claims.py --threads 1 --steps {steps} --write docs/tokenizers.md`.",
        "Every row is a config in `configs/tokenize`. Its baseline is the same config with one part replaced, trained",
        "for the same number of steps and with the same number of bits unless the row says otherwise. This scale",
        f"(patches of two photographs, 16 x 16; digits, 8 x 8; six minutes of speech; {steps} steps and one training",
        "per side unless the row says otherwise) can show the direction of an effect, not its size. So a claim holds",
        f"if the difference has the claimed sign. Within {100 * EVEN:.0f} % the sides are even: one training per side",
        f"cannot distinguish them. Near means at most {100 * (NEAR - 1):.0f} % above the baseline.",
        "",
        f"**{len(found)} claims of {len({claim.system for claim in CLAIMS})} systems: {', '.join(counts)}.**",
        "Notes below a table explain claims that do not hold and rows with particular conditions. Systems that are",
        "not available as configs are listed in [tokenizers-open.md](tokenizers-open.md).",
    ]
    for measure in MEASURES:
        rows = [(claim, result) for claim, result in found if claim.measure == measure]
        if rows:
            lines += section(measure, rows, steps)
    named = {claim.system for claim in CLAIMS}
    others = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in named)
    lines += ["", "## Configs without a row", "", "| config | reason |", "|---|---|"]
    lines += [f"| {link(name)} | {NOT_HERE.get(name, 'its claim has not been added yet')} |" for name in others]
    return "\n".join(lines) + "\n"


def section(measure: str, rows: Sequence[tuple[Claim, dict | None]], steps: int) -> list[str]:
    """The rows of one measure."""
    lines = [
        "", f"## {TITLES.get(measure, measure[0].upper() + measure[1:])}", "", about(measure) + ".", "",
        "| system | claim of the paper | system | should be | baseline | baseline is | holds |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    notes = []
    for claim, result in rows:
        extra = [f"{steps * claim.longer} steps"] * (claim.longer > 1) + [f"{claim.seeds} seeds"] * (claim.seeds > 1)
        says = claim.says + (f" ({', '.join(extra)})" if extra else "")
        figures, answer = ("unmeasured", "unmeasured"), "unmeasured"
        if result is not None:
            figures = (f"{result['own']:.4g}", f"{result['other']:.4g}")
            answer = {"yes": "yes", "no": "**no**", "even": "even"}[verdict(claim, result)]
        notes += notes_of(claim, result or {})
        lines.append(
            f"| {link(claim.system)} | {says} | {figures[0]} | {claim.wanted} | {figures[1]} | {claim.baseline} | "
            f"{answer} |"
        )
    for prefix, names in (
        ("measure of the baseline, ", {claim.compared for claim, _ in rows if claim.compared}),
        ("", {claim.beside for claim, _ in rows if claim.beside}),
    ):
        notes += [f"- {prefix}{name}: {about(name)[0].lower()}{about(name)[1:]}" for name in sorted(names)]
    return lines + (["", *notes] if notes else [])


def notes_of(claim: Claim, result: Mapping[str, Any]) -> list[str]:
    """What is said of a row below its table."""
    notes = [f"- {claim.system}: {claim.note}"] if claim.note else []
    if "way" in result:
        figures = [f"{pair['own']:.4g} and {pair['other']:.4g} after {step}" for step, pair in result["way"].items()]
        notes.append(f"- {claim.system}, system and baseline during training: {', '.join(figures)} steps")
    if "beside" in result:
        notes.append(
            f"- {claim.system}, {claim.beside}: {result['beside']['own']:.4g}, baseline {result['beside']['other']:.4g}"
        )
    return notes


def about(measure: str) -> str:
    """What a measure is, in a line."""
    return " ".join((MEASURES[measure].__doc__ or "").split())


def link(system: str) -> str:
    """To its config."""
    return f"[{system}](../configs/tokenize/{system}.yaml)"


if __name__ == "__main__":
    main()
