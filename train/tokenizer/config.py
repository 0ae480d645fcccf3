"""The YAML file of `tessera tokenizer train`, whole: nothing about a run is said anywhere else."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ...configs.schema import BatchSize, Config, StepCount
from ...tokenize.data.corpus import CorpusConfig
from ...tokenize.tokenizer import TokenizerConfig
from ..discriminators.multi_scale_stft import STFTDiscriminatorConfig
from ..discriminators.registry import DISCRIMINATORS, DiscriminatorsConfig
from ..losses.balancer import BalanceConfig, SumConfig
from ..losses.base import LossConfig
from ..losses.reconstruction import MelConfig, PixelsConfig, SpectrumConfig
from ..losses.registry import TERMS, AdversarialConfig, AnyLossConfig, FeaturesConfig, QuantizerLossConfig
from .phases import FitStageConfig, StageConfig, TrainStageConfig
from .warm_start import WarmStartConfig


class TokenizerTraining(Config):
    """How long and how fast."""

    steps: StepCount | None = None
    """Optimizer steps; needed where there are no stages, and left out where there are."""
    batch: BatchSize = 16
    """Pictures, or excerpts of sound, per step, whatever the number of processes."""
    micro_batch: BatchSize | None = None
    """Of one forward pass; null: the batch divided by the processes. The rest is accumulated."""
    crop_seconds: PositiveFloat = 1.0
    """Length of an excerpt; ignored for pictures."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate of AdamW."""
    warmup_steps: NonNegativeInt = 100
    min_lr_ratio: float = Field(default=0.02, ge=0, le=1)
    """Learning rate of the last step, as a share of the peak."""
    weight_decay: NonNegativeFloat = 0.01
    """On matrices and filters; vectors (norms, biases) are not decayed."""
    betas: tuple[float, float] = (0.8, 0.99)
    eps: PositiveFloat = 1e-8
    clip: NonNegativeFloat = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the layers; quantizer, spectra and losses stay in float32."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the moving average of the weights that is frozen at the end; 0 uses the weights themselves."""
    log_every: PositiveInt = 20
    save_every: PositiveInt | None = None
    """Steps between checkpoints; null: at the end only."""
    keep_last: PositiveInt = 2
    """Checkpoints to keep."""
    snapshot_every: NonNegativeInt = 0
    """Freeze and write the tokenizer as it is every so often; 0: only at the end."""
    max_consecutive_bad: PositiveInt = 3
    """A step whose loss or gradient is not finite changes nothing; after this many in a row the run stops."""


class AudioLossConfig(Config):
    """The usual terms for sound, short; each term is a mean, so weights compare directly."""

    kind: Literal["audio"] = "audio"
    mel: NonNegativeFloat = 2.0
    """Weight of the term `mel`, and so on."""
    spectrum: NonNegativeFloat = 1.0
    quantizer: NonNegativeFloat = 1.0
    adversarial: NonNegativeFloat = 1.0
    features: NonNegativeFloat = 2.0
    adversarial_from: NonNegativeInt = 0
    """Step at which the discriminators come in."""
    adversarial_every: PositiveInt = 1
    """Use them every so many steps; they cost more than everything else together."""
    adversarial_seconds: PositiveFloat = 0.5
    """Length of the excerpt they look at."""

    def terms(self) -> tuple[AnyLossConfig, ...]:
        """Written out."""
        made = (
            MelConfig(weight=self.mel),
            SpectrumConfig(weight=self.spectrum),
            QuantizerLossConfig(weight=self.quantizer),
            AdversarialConfig(weight=self.adversarial),
            FeaturesConfig(weight=self.features),
        )
        return tuple(term for term in made if term.weight or term.kind in ("mel", "spectrum", "quantizer"))

    def judges(self, nets: STFTDiscriminatorConfig) -> DiscriminatorsConfig | None:
        """Written out; None where no term needs them."""
        if not self.adversarial and not self.features:
            return None
        return DiscriminatorsConfig(
            nets=(nets,),
            first_step=self.adversarial_from,
            every=self.adversarial_every,
            seconds=self.adversarial_seconds,
        )


class ImageLossConfig(Config):
    """The usual terms for pictures, short."""

    kind: Literal["picture"] = "picture"
    squared: NonNegativeFloat = 1.0
    """Mean squared error of pixels in [-1, 1]."""
    quantizer: NonNegativeFloat = 1.0

    def terms(self) -> tuple[AnyLossConfig, ...]:
        """Written out."""
        return PixelsConfig(name="squared", weight=self.squared), QuantizerLossConfig(weight=self.quantizer)

    def judges(self, nets: STFTDiscriminatorConfig) -> DiscriminatorsConfig | None:
        """None."""
        return None


class TokenizerTrainConfig(Config):
    """A complete run."""

    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    tokenizer: TokenizerConfig
    data: CorpusConfig
    train: TokenizerTraining
    terms: tuple[AnyLossConfig, ...] = ()
    """What is minimised; none: see `losses`."""
    balance: BalanceConfig = SumConfig()
    """How the terms at the reconstruction become one gradient."""
    judges: DiscriminatorsConfig | None = None
    """Discriminators, for the terms `adversarial` and `features`."""
    stages: tuple[StageConfig, ...] = ()
    """One after the other; none: train.steps steps of everything."""
    warm_start: WarmStartConfig | None = None
    losses: AudioLossConfig | ImageLossConfig | None = Field(default=None, discriminator="kind")
    """The usual terms in short, in place of `terms`; left out: with their default weights."""
    discriminator: STFTDiscriminatorConfig | None = None
    """The discriminators of `losses`; left out: the default ones."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages if stage.kind == "train")

    def resolved(self) -> TokenizerTrainConfig:
        """With terms, judges and stages written out; nothing is left to defaults that depend on something else."""
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

    @model_validator(mode="after")
    def _check(self) -> TokenizerTrainConfig:
        kind = self.tokenizer.kind
        if self.losses is not None and self.terms:
            raise ValueError("losses is short for terms; give one of them")
        if self.losses is not None and self.losses.kind != kind:
            raise ValueError(f"losses are for {self.losses.kind}, the tokenizer is for {kind}; set losses.kind: {kind}")
        if (self.train.steps is None) == (not self.stages):
            raise ValueError("give either train.steps, or stages with steps of their own")
        if not all(0 <= beta < 1 for beta in self.train.betas):
            raise ValueError(f"train.betas must be at least 0 and below 1, found {list(self.train.betas)}")
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
                raise ValueError(f"judges.nets.{number}: '{net.kind}' judges {DISCRIMINATORS[net.kind][1]}, not {kind}")
        known = names or [term.key for term in self.resolved().terms]
        for number, stage in enumerate(self.stages):
            for name in (stage.terms or ()) if isinstance(stage, TrainStageConfig) else ():
                if name not in known:
                    raise ValueError(f"stages.{number}.terms: there is no term '{name}', but: {', '.join(known)}")
        if self.balance.kind == "adaptive":
            for name in self.balance.terms:
                if name not in known:
                    raise ValueError(f"balance.terms: there is no term '{name}', but: {', '.join(known)}")
        return self

    def _check_halting(self) -> None:
        """A halt and what teaches it come together."""
        halts = self.tokenizer.quantizer.kind == "halting"
        taught = [number for number, term in enumerate(self.terms) if term.kind == "halting"]
        if taught and not halts:
            raise ValueError(
                f"terms.{taught[0]}: 'halting' is for a halting quantizer, tokenizer.quantizer is "
                f"'{self.tokenizer.quantizer.kind}'"
            )
        if halts and not taught:
            raise ValueError(
                "tokenizer.quantizer: nothing teaches its halt; write the terms out, with {kind: halting} among them"
            )


def _check_unique(field: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{field}: '{name}' occurs twice; give each a name of its own")


__all__ = [
    "AudioLossConfig",
    "FitStageConfig",
    "ImageLossConfig",
    "LossConfig",
    "TokenizerTrainConfig",
    "TokenizerTraining",
    "TrainStageConfig",
]
