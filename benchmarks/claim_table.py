"""The claims of claims.yaml, and the configs of their sides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from claim_fairness import Size, check_fair, size_of
from claim_measures import ROOT
from claim_verdict import Wanted

from tessera.configs.schema import check_config, override, read_yaml
from tessera.train.tokenizer.trainer import TokenizerTrainConfig

CONFIGS = ROOT / "configs/tokenize"
SEEDS = 5
"""Trainings of each side."""
FEWER_SEEDS = 3
"""The same where one takes more than five minutes."""
Side = Literal["own", "baseline", "worse"]


@dataclass(frozen=True, eq=False)  # compared as objects, so that what is made of one can be kept
class Claim:
    """A statement of a paper, and how it is looked at here; the head of claims.yaml explains the fields."""

    system: str
    says: str
    measure: str
    wanted: Wanted
    baseline: str
    differs: Mapping[str, str]
    change: Sequence[str]
    row: str | None = None
    own: Sequence[str] = ()
    compared: str | None = None
    margin: float = 0.0
    worse: str | None = None
    worse_change: Sequence[str] = ()
    seeds: int = SEEDS
    changed: str = ""
    note: str = ""

    @property
    def name(self) -> str:
        """Of the row."""
        return self.system if self.row is None else f"{self.system}, {self.row}"

    @property
    def sides(self) -> tuple[Side, ...]:
        """What is trained."""
        return ("own", "baseline", "worse") if self.worse else ("own", "baseline")

    def measure_of(self, side: Side) -> str:
        """Key of MEASURES."""
        return self.compared if side == "baseline" and self.compared else self.measure

    def settings(self, side: Side) -> list[str]:
        """What makes the system's config that of a side, as --set takes it."""
        return [*self.own, *{"own": (), "baseline": self.change, "worse": self.worse_change}[side]]

    @cached_property
    def key(self) -> str:
        """Hash of all that the row's figures depend on, but for the code."""
        plans = [[plan(self, side, 0), self.measure_of(side)] for side in self.sides]
        said = json.dumps([plans, self.seeds], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:16]


def plan(claim: Claim, side: Side, seed: int, found: int | None = None) -> dict[str, Any]:
    """The config of a side as plain data. `found`: number of codes that the system found, for FOUND in its changes."""
    sets = [one if found is None else one.replace("FOUND", str(found)) for one in claim.settings(side)]
    data = override(read_yaml(CONFIGS / f"{claim.system}.yaml"), sets)
    data["tokenizer"]["name"] = "t"  # the same settings are trained once, whatever their names
    return data | {"seed": seed, "device": "cpu"}


def needs_found(claim: Claim, side: Side) -> bool:
    """Whether a side's settings depend on what the system's training found."""
    return any("FOUND" in one for one in claim.settings(side))


@cache
def config_of(claim: Claim, side: Side, seed: int, found: int | None = None) -> TokenizerTrainConfig:
    """The config of a side, checked, with nothing left out."""
    return check_config(plan(claim, side, seed, found), TokenizerTrainConfig, claim.name).resolved()


@cache
def run_name(claim: Claim, side: Side, seed: int, found: int | None = None) -> str:
    """Of a training's folder: a hash of its settings."""
    said = json.dumps(config_of(claim, side, seed, found).model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def check(claim: Claim) -> dict[str, Size]:
    """Raise ValueError if the sides are unequal in what the row does not name; the sizes of own and baseline."""
    probed = 2 if needs_found(claim, "baseline") else None
    sides = [config_of(claim, side, 0, probed) for side in ("own", "baseline")]
    sizes = (size_of(sides[0]), size_of(sides[1]))
    check_fair(claim.name, claim.differs, sides[0], sides[1], sizes)
    return dict(zip(("own", "baseline"), sizes, strict=True))


TABLE: dict[str, Any] = read_yaml(Path(__file__).with_name("claims.yaml"))
CLAIMS = [Claim(**row) for row in TABLE["claims"]]
GONE: dict[str, str] = TABLE["gone"]
"""Row of the earlier table -> why it is gone."""
NOT_HERE: dict[str, str] = TABLE["not_here"]
"""System -> why its claim cannot be looked at here."""
