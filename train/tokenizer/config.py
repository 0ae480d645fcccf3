"""Config of `tessera tokenizer train`: the YAML file describes a run completely."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ...configs.schema import BatchSize, Config, ConfigError, StepCount
from ...tokenize.data.corpus import CorpusConfig
from ...tokenize.kinds import TokenizerConfig
from ..common.optimizer_config import OptimizerConfig, Ratio
from ..discriminators.multi_scale_stft import STFTDiscriminatorConfig
from ..discriminators.registry import DISCRIMINATORS, DiscriminatorsConfig
from ..initialization.config import InitConfig
from ..losses.balancer import BalanceConfig, SumConfig
from ..losses.base import LossConfig
from ..losses.reconstruction import MelConfig, PixelsConfig, SpectrumConfig
from ..losses.registry import TERMS, AdversarialConfig, AnyLossConfig, FeaturesConfig, QuantizerLossConfig
from .phases import FitStageConfig, StageConfig, TrainStageConfig


class TokenizerTraining(OptimizerConfig):
    """Optimization, and the intervals of logging and saving."""

    steps: StepCount | None = None
    """Optimizer steps; required without stages, not allowed with stages."""
    batch: BatchSize = 16
    """Images or audio excerpts per step, for any number of processes."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate of AdamW."""
    min_lr_ratio: Ratio = 0.02
    """Learning rate of the last step, as a fraction of the peak."""
    betas: tuple[float, float] = (0.8, 0.99)
    """Decay rates of the two moments of AdamW."""
    crop_seconds: PositiveFloat = 1.0
    """Length of an excerpt; ignored for images."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the layers; quantizer, spectra and losses stay in float32. A CPU without instructions for bfloat16
    computes in float32, which is faster there."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the moving average of the weights that is frozen at the end; 0 uses the weights themselves."""
    log_every: PositiveInt = 20
    """Steps between lines in metrics.jsonl."""
    save_every: PositiveInt | None = None
    """Steps between checkpoints; null: only at the end."""
    keep_last: PositiveInt = 2
    """Number of newest checkpoints that are kept."""
    snapshot_every: NonNegativeInt = 0
    """Steps between snapshots, each a frozen tokenizer; 0: only at the end."""
    max_consecutive_bad: PositiveInt = 3
    """Consecutive bad steps after which the run stops. A step with a non-finite loss or gradient changes nothing."""


class AudioLossConfig(Config):
    """Shorthand for the usual audio losses; each loss is a mean, so weights compare directly."""

    kind: Literal["audio"] = "audio"
    mel: NonNegativeFloat = 2.0
    """Weight of the loss `mel`."""
    spectrum: NonNegativeFloat = 1.0
    """Weight of the loss `spectrum`."""
    quantizer: NonNegativeFloat = 1.0
    """Weight of the quantizer's own losses."""
    adversarial: NonNegativeFloat = 1.0
    """Weight of the loss `adversarial`; if this and `features` are 0, there are no discriminators."""
    features: NonNegativeFloat = 2.0
    """Weight of the loss `features`, the feature distance in the discriminators."""
    adversarial_from: NonNegativeInt = 0
    """Step at which the discriminators start."""
    adversarial_every: PositiveInt = 1
    """Use the discriminators every so many steps; they cost more than everything else together."""
    adversarial_seconds: PositiveFloat = 0.5
    """Length of the audio excerpt that the discriminators receive."""

    def terms(self) -> tuple[AnyLossConfig, ...]:
        """The losses in full."""
        made = (
            MelConfig(weight=self.mel),
            SpectrumConfig(weight=self.spectrum),
            QuantizerLossConfig(weight=self.quantizer),
            AdversarialConfig(weight=self.adversarial),
            FeaturesConfig(weight=self.features),
        )
        return tuple(term for term in made if term.weight or term.kind in ("mel", "spectrum", "quantizer"))

    def judges(self, nets: STFTDiscriminatorConfig) -> DiscriminatorsConfig | None:
        """The discriminators in full; None if no loss needs them."""
        if not self.adversarial and not self.features:
            return None
        return DiscriminatorsConfig(
            nets=(nets,),
            first_step=self.adversarial_from,
            every=self.adversarial_every,
            seconds=self.adversarial_seconds,
        )


class ImageLossConfig(Config):
    """Shorthand for the usual image losses."""

    kind: Literal["picture"] = "picture"
    squared: NonNegativeFloat = 1.0
    """Weight of the mean squared error of pixels in [-1, 1]."""
    quantizer: NonNegativeFloat = 1.0
    """Weight of the quantizer's own losses."""

    def terms(self) -> tuple[AnyLossConfig, ...]:
        """The losses in full."""
        return PixelsConfig(name="squared", weight=self.squared), QuantizerLossConfig(weight=self.quantizer)

    def judges(self, nets: STFTDiscriminatorConfig) -> DiscriminatorsConfig | None:
        """None: these losses need no discriminators."""
        return None


class TokenizerTrainConfig(Config):
    """A complete training run."""

    seed: NonNegativeInt = 0
    """Random seed of initialization, data order, excerpts and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto: CUDA if available, else CPU."""
    tokenizer: TokenizerConfig
    """The tokenizer to train."""
    data: CorpusConfig
    """The media to train on."""
    train: TokenizerTraining
    """Optimization, and the intervals of logging and saving."""
    terms: tuple[AnyLossConfig, ...] = ()
    """The losses to minimize; empty: see `losses`."""
    balance: BalanceConfig = SumConfig()
    """Combines the output losses into one gradient."""
    judges: DiscriminatorsConfig | None = None
    """Discriminators for the losses `adversarial` and `features`."""
    stages: tuple[StageConfig, ...] = ()
    """Stages in order; empty: train everything for train.steps steps."""
    init: InitConfig | None = None
    """Weights to start from; null: random ones. `freeze` holds in all stages."""
    losses: AudioLossConfig | ImageLossConfig | None = Field(default=None, discriminator="kind")
    """Shorthand for the usual losses, instead of `terms`; omitted: default weights."""
    discriminator: STFTDiscriminatorConfig | None = None
    """The discriminators of `losses`; omitted: the defaults."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages if stage.kind == "train")

    def resolved(self) -> TokenizerTrainConfig:
        """The config with losses, discriminators and stages in full, so that no default depends on another field."""
        changes: dict = {"losses": None, "discriminator": None}
        if not self.terms:
            short = self.losses or (AudioLossConfig() if self.tokenizer.kind == "audio" else ImageLossConfig())
            changes["terms"] = short.terms()
            changes["judges"] = self.judges or short.judges(self.discriminator or STFTDiscriminatorConfig())
        if not self.stages:
            assert self.train.steps is not None
            changes["stages"] = (TrainStageConfig(name="train", steps=self.train.steps),)
            changes["train"] = self.train.model_copy(update={"steps": None})
        return self.model_copy(update=changes)

    @classmethod
    def of_earlier_files(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Earlier versions wrote warm_start: {tokenizer, names, leave}."""
        if "warm_start" not in data:
            return data
        old, rest = data["warm_start"], {name: value for name, value in data.items() if name != "warm_start"}
        if old is None:
            return rest
        if rest.get("init") is not None:
            raise ConfigError("warm_start is the earlier name of init, and both were given; give init alone")
        renamed = {"tokenizer": "from"}
        given = {renamed.get(name, name): value for name, value in old.items()} if isinstance(old, dict) else old
        return rest | {"init": given}

    @model_validator(mode="after")
    def _check(self) -> TokenizerTrainConfig:
        kind = self.tokenizer.kind
        if self.losses is not None and self.terms:
            raise ValueError("losses and terms were both given; give only one of them")
        if self.losses is not None and self.losses.kind != kind:
            raise ValueError(f"losses are for {self.losses.kind}, the tokenizer is for {kind}; set losses.kind: {kind}")
        if (self.train.steps is None) == (not self.stages):
            raise ValueError("give either train.steps, or stages, each with its steps")
        names = [term.key for term in self.terms]
        _check_unique("terms", names)
        _check_unique("stages", [stage.name for stage in self.stages])
        for number, term in enumerate(self.terms):
            if kind not in TERMS[term.kind][1]:
                raise ValueError(f"terms.{number}: '{term.kind}' is for {TERMS[term.kind][1][0]}, not for {kind}")
            if term.kind in ("adversarial", "features") and self.judges is None:
                raise ValueError(f"terms.{number}: '{term.kind}' needs discriminators; add judges")
        self._check_halting()
        for number, net in enumerate(self.judges.nets if self.judges else ()):
            if DISCRIMINATORS[net.kind][1] != kind:
                raise ValueError(
                    f"judges.nets.{number}: '{net.kind}' is for {DISCRIMINATORS[net.kind][1]}, not for {kind}"
                )
        known = names or [term.key for term in self.resolved().terms]
        for number, stage in enumerate(self.stages):
            for name in (stage.terms or ()) if isinstance(stage, TrainStageConfig) else ():
                if name not in known:
                    raise ValueError(f"stages.{number}.terms: there is no term '{name}'; there are: {', '.join(known)}")
        if self.balance.kind == "adaptive":
            for name in self.balance.terms:
                if name not in known:
                    raise ValueError(f"balance.terms: there is no term '{name}'; there are: {', '.join(known)}")
        return self

    def _check_halting(self) -> None:
        """Check that a halting quantizer and its loss are used together."""
        halts = self.tokenizer.quantizer.kind == "halting"
        taught = [number for number, term in enumerate(self.terms) if term.kind == "halting"]
        if taught and not halts:
            raise ValueError(
                f"terms.{taught[0]}: 'halting' is for a halting quantizer, tokenizer.quantizer is "
                f"'{self.tokenizer.quantizer.kind}'"
            )
        if halts and not taught:
            raise ValueError(
                "tokenizer.quantizer: a halting quantizer needs the loss 'halting'; list the terms, with "
                "{kind: halting} among them"
            )


def _check_unique(field: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{field}: '{name}' occurs twice; give each a different name")


__all__ = [
    "AudioLossConfig",
    "FitStageConfig",
    "ImageLossConfig",
    "LossConfig",
    "TokenizerTrainConfig",
    "TokenizerTraining",
    "TrainStageConfig",
]
