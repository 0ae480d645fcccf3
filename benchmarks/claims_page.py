"""The page of claims.py: every row with its figures and verdict, and what changed since the earlier table."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from claim_fairness import BITS_APART, PARAMETERS_APART, check_measured_bits
from claim_measures import MEASURES
from claim_table import CONFIGS, FEWER_SEEDS, GONE, NOT_HERE, SEEDS, Claim
from claim_verdict import CONTRADICTED, NOT_SHOWN, SHOWN, STANDARD_ERRORS, verdict

from tessera.configs.files import read_json

BEFORE: dict[str, dict[str, Any]] = read_json(Path(__file__).with_name("claims_before.json"))
"""Row of the earlier table -> its figures and verdict: one training a side, unless "seeds" says otherwise."""
SAME = {("yes", SHOWN), ("no", CONTRADICTED), ("even", NOT_SHOWN)}
"""Verdicts of the two tables that say the same."""
UNMEASURED = "not measured"
TITLES = {
    "used": "Code usage",
    "used each": "Code usage per codebook",
    "error of half": "Error with half of the codebooks",
    "error of four": "Error with four codebooks",
    "error of a quarter": "Error with a quarter of the tokens",
    "error halted": "Error with halting",
    "rises": "Monotonicity in the number of tokens",
    "words": "Words, first codebook",
    "words by all": "Words, all codebooks",
    "told": "Information about a teacher, first codebook",
    "classes": "Information about classes",
    "shares off": "Shares of the gradient",
    "bits": "Bits under a language model",
}
"""Measure -> heading of its table; others are capitalized."""
Results = Mapping[str, Mapping[str, Any]]


def page(claims: Sequence[Claim], results: Results) -> str:
    """The page as Markdown. A row without all of its seeds is not measured."""
    lines = [*head(claims, results)]
    for measure in MEASURES:
        rows = [claim for claim in claims if claim.measure == measure]
        if rows:
            lines += section(measure, rows, results)
    lines += [*sizes(claims, results), *changes(claims, results), *unavailable(claims)]
    return "\n".join(lines) + "\n"


def result_of(claim: Claim, results: Results) -> Mapping[str, Any] | None:
    """What is stored of a row, if it has all seeds."""
    found = results.get(claim.key)
    return found if found is not None and len(found["seeds"]) == claim.seeds else None


def verdict_of(claim: Claim, result: Mapping[str, Any] | None) -> str:
    """By the rule of claim_verdict.py."""
    if result is None:
        return UNMEASURED
    return verdict(claim.wanted, result["own"], result["baseline"], claim.margin, result.get("worse"))


def head(claims: Sequence[Claim], results: Results) -> list[str]:
    """What the page is, the rule, the counts, and where the figures come from."""
    found = Counter(verdict_of(claim, result_of(claim, results)) for claim in claims)
    order = (SHOWN, CONTRADICTED, NOT_SHOWN, UNMEASURED)
    counts = ", ".join(f"{found[said]} {said}" for said in order if found[said] or said != UNMEASURED)
    few = sorted({claim.system for claim in claims if claim.seeds < SEEDS})
    fewer = (
        f" A training of {', '.join(few)} takes more than five minutes, so there are {FEWER_SEEDS} a side."
        if few
        else ""
    )
    return [
        "# Published tokenizers: claims of their papers at small scale",
        "",
        "Measured by `python benchmarks/claims.py --resume`, written by `python benchmarks/claims.py --page`.",
        "",
        f"**{len(claims)} claims of {len({claim.system for claim in claims})} systems: {counts}.**",
        "",
        *places(claims, results),
        "",
        "Every row is a config of `configs/tokenize`, with its settings and steps, beside a baseline that has the same",
        "initialization, update rule, revival, steps, data, optimizer and losses, as many bits (within "
        f"{100 * BITS_APART:.0f} %) and as many parameters (within {100 * PARAMETERS_APART:.0f} %). What is unequal",
        "stands in the column *what differs*: the one thing that the claim is about, and what it brings along.",
        "`benchmarks/claim_fairness.py` compares the sides and refuses a row with any other difference. A system",
        "without a trained codebook is compared with one that has all there is: moving averages, k-means start and",
        "revival.",
        "",
        f"Both sides are trained with the seeds 0 to {SEEDS - 1}.{fewer} The difference is that of the two trainings",
        "of one seed, system minus baseline: its mean and standard deviation, and with how many seeds it has the",
        "claimed sign. One rule, fixed beforehand, decides all rows (`benchmarks/claim_verdict.py`):",
        "",
        f"- **{SHOWN}**: the difference has the claimed sign with every seed, and its mean is more than "
        f"{STANDARD_ERRORS} times its standard error",
        f"- **{CONTRADICTED}**: it has the opposite sign with every seed",
        f"- **{NOT_SHOWN}**: else",
        "",
        "*Near* means no higher than the baseline plus a margin: 5 % for images, 2 % for speech. Such a row is shown",
        "only if an obviously worse choice, trained as well, is beyond the margin with every seed.",
        "",
        "This scale (patches of two photographs, 16 x 16; digits, 8 x 8; six minutes of speech; some hundred steps)",
        "can show the direction of an effect, not its size; a claim contradicted here may hold at the paper's scale.",
        "Systems that are not available as configs are listed in [tokenizers-open.md](tokenizers-open.md).",
    ]


def places(claims: Sequence[Claim], results: Results) -> list[str]:
    """Command, machine, versions and seeds of the stored rows, one line for each combination."""
    found: dict[tuple[str, ...], int] = {}
    for claim in claims:
        row = result_of(claim, results)
        if row is not None:
            seeds = " ".join(map(str, row["seeds"]))
            key = (row["command"], row["machine"], row["torch"], row["commit"], seeds)
            found[key] = found.get(key, 0) + 1
    lines = [
        "| rows | command | machine | torch | commit | seeds |", "|---|---|---|---|---|---|",
        *(f"| {number} | `{command}` | {' | '.join(rest)} |" for (command, *rest), number in found.items()),
    ]  # fmt: skip
    return lines if found else ["No row is measured yet."]


def section(measure: str, rows: Sequence[Claim], results: Results) -> list[str]:
    """The rows of one measure."""
    lines = [
        "", f"## {TITLES.get(measure, measure[0].upper() + measure[1:])}", "", about(measure) + ".", "",
        "| config | claim of the paper | should be | baseline | what differs | system | other | difference | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    notes = []
    for claim in rows:
        result = result_of(claim, results)
        differs = "; ".join(f"{aspect}: {said}" for aspect, said in claim.differs.items()) or "the measure alone"
        wanted = f"near, at most {100 * claim.margin:.0f} % above" if claim.wanted == "near" else claim.wanted
        figures = ("", "", "")
        if result is not None:
            means = [f"{statistics.mean(result[side]):.4g}" for side in ("own", "baseline")]
            figures = (*means, difference(claim, result))
            notes += worse_of(claim, result)
        if claim.note:
            notes.append(f"- {claim.name}: {claim.note}")
        if claim.own:
            notes.append(f"- {claim.name}, both sides: `{'`, `'.join(claim.own)}`")
        lines.append(
            f"| {link(claim.system)} | {claim.says} | {wanted} | {claim.baseline} | {differs} | "
            f"{' | '.join(figures)} | {verdict_of(claim, result)} |"
        )
    for name in sorted({claim.compared for claim in rows if claim.compared}):
        notes.append(f"- measure of the baseline, {name}: {about(name)[0].lower()}{about(name)[1:]}")
    return lines + (["", *notes] if notes else [])


def difference(claim: Claim, result: Mapping[str, Any]) -> str:
    """Mean and standard deviation of system minus baseline, and with how many seeds it has the claimed sign."""
    apart = [a - b for a, b in zip(result["own"], result["baseline"], strict=True)]
    mean, spread = statistics.mean(apart), statistics.stdev(apart)
    share = 100 * mean / abs(statistics.mean(result["baseline"])) if any(result["baseline"]) else math.nan
    if claim.wanted == "near":
        right = sum(a < (1 + claim.margin) * b for a, b in zip(result["own"], result["baseline"], strict=True))
    else:
        right = sum(one > 0 if claim.wanted == "higher" else one < 0 for one in apart)
    relative = "" if math.isnan(share) else f" ({share:+.3g} %)"
    return f"{mean:+.3g} ± {spread:.2g}{relative}, {right} of {len(apart)}"


def worse_of(claim: Claim, result: Mapping[str, Any]) -> list[str]:
    """What the obviously worse choice of a near row gives."""
    if "worse" not in result:
        return []
    shares = [100 * (a / b - 1) for a, b in zip(result["worse"], result["baseline"], strict=True)]
    beyond = sum(share > 100 * claim.margin for share in shares)
    return [
        f"- {claim.name}, an obviously worse choice ({claim.worse}): {statistics.mean(result['worse']):.4g}, "
        f"{statistics.mean(shares):+.3g} %, beyond the margin with {beyond} of {len(shares)} seeds"
    ]


def sizes(claims: Sequence[Claim], results: Results) -> list[str]:
    """Parameters, bits and the cost of the measured rows. ValueError: a row's sides took different bits."""
    lines = [
        "", "## Sizes", "",
        "Numbers in the network (code vectors included), bits of a test image or of a second of a test recording at",
        "fixed length, and CPU seconds of one training on one thread; system and baseline.", "",
        "| row | parameters | bits | seconds |", "|---|---|---|---|",
    ]  # fmt: skip
    for claim in claims:
        result = result_of(claim, results)
        if result is not None:
            pairs = [[result[name][side] for side in ("own", "baseline")] for name in ("parameters", "bits", "seconds")]
            (a, b), (c, d), (e, f) = pairs
            check_measured_bits(claim.name, claim.differs, c, d)
            lines.append(f"| {claim.name} | {a:,.0f}, {b:,.0f} | {c:.4g}, {d:.4g} | {e:.0f}, {f:.0f} |")
    return lines


def changes(claims: Sequence[Claim], results: Results) -> list[str]:
    """Rows of the earlier table whose verdict is another, or that are gone, and why."""
    lines = [
        "", "## What changed since the earlier table", "",
        "The earlier table (`benchmarks/claims_before.json`) had one training a side with seed 0 in most rows, mostly",
        "of 200 steps, and called a difference of the claimed sign above 3 % a *yes*, a smaller one *even*. Now the",
        "seeds are those named above, and the steps those of the configs. Rows whose verdict is another:", "",
        "| row | before | system and baseline before | now | what else is different |", "|---|---|---|---|---|",
    ]  # fmt: skip
    both = [(claim, BEFORE[claim.name], result_of(claim, results)) for claim in claims if claim.name in BEFORE]
    for claim, old, result in both:
        now = verdict_of(claim, result)
        if result is not None and (old["verdict"], now) not in SAME:
            seeds = f", {old['seeds']} seeds" if old["seeds"] > 1 else ""
            figures = f"{old['own']:.4g}, {old['baseline']:.4g} ({old['steps']} steps{seeds})"
            why = claim.changed or "nothing: more seeds, and the steps of the config"
            lines.append(f"| {claim.name} | {old['verdict']} | {figures} | {now} | {why} |")
    lines += [
        "", "Rows that are gone, because they could not fail:", "", "| row | before | why |", "|---|---|---|",
        *(f"| {name} | {BEFORE[name]['verdict']} | {why} |" for name, why in GONE.items()),
        "", "Rows whose verdict says the same, but that are measured differently:", "",
        "| row | now | what is different |", "|---|---|---|",
    ]  # fmt: skip
    for claim, old, result in both:
        now = verdict_of(claim, result)
        if claim.changed and (old["verdict"], now) in SAME:
            lines.append(f"| {claim.name} | {now} | {claim.changed} |")
    return lines


def unavailable(claims: Sequence[Claim]) -> list[str]:
    """Configs without a row."""
    named = {claim.system for claim in claims}
    others = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in named)
    return [
        "", "## Configs without a row", "", "| config | reason |", "|---|---|",
        *(f"| {link(name)} | {NOT_HERE.get(name, 'its claim has not been added yet')} |" for name in others),
    ]  # fmt: skip


def about(measure: str) -> str:
    """What a measure is, in a line."""
    return " ".join((MEASURES[measure].__doc__ or "").split())


def link(system: str) -> str:
    """To its config."""
    return f"[{system}](../configs/tokenize/{system}.yaml)"
