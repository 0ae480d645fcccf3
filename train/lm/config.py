"""The YAML file of `tessera train`, whole: nothing about a run is said anywhere else."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ...configs.names import FolderName
from ...configs.schema import BatchSize, Config, ConfigError, LayerCount, StepCount, check_config
from ...lm.generation_config import GenerationConfig
from ...lm.models.next_patch import PatchPhase
from ...lm.models.packed_sequences import check_packable
from ...lm.models.registry import ModelConfig
from ..engines.config import AutoEngineConfig, EngineConfig
from .reference_prompts import PromptConfig
from .sequence_packing import PackingConfig, PaddedConfig


class DataConfig(Config):
    """Where the codes are (folders made by `tessera shards`)."""

    shards: str
    """Folder of the training shards."""
    test: str | None = None
    """Folder of held-out shards, for evaluation."""
    max_frames: PositiveInt | None = None
    """Leave out items longer than this; their number is reported."""
    missing: Literal["refuse", "skip"] = "refuse"
    """Items without the label or the text that lm.conditions ask for, or with a text that cannot be read: name them and
    do not begin, or leave them out; their number is reported."""
    pool_batches: LayerCount = 16
    """Batches that are sorted by length together: more wastes less on padding, fewer mixes better. Of packing
    padded."""
    prompt: PromptConfig | None = None
    """Where the prompt of an item comes from, for an lm with the condition codes."""
    packing: PackingConfig = PaddedConfig()
    """How items of different lengths make a batch. padded: side by side. best_fit: end to end, without padding."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.packing.kind != "padded" and "pool_batches" in self.model_fields_set and self.pool_batches != 16:
            raise ValueError(f"pool_batches is for packing padded, not for {self.packing.kind}; leave it out")
        return self


class KeepConfig(Config):
    """Checkpoints that stay."""

    last: PositiveInt = 2
    """The newest."""
    best: NonNegativeInt = 1
    """Those with the lowest loss on data.test; each is saved right after its evaluation. 0: none."""


class TrainSettings(Config):
    """Optimisation, and what happens how often."""

    steps: StepCount
    """Optimizer steps of the whole run."""
    batch: BatchSize
    """Items of a global batch, whatever the number of processes; with data.packing best_fit packed rows."""
    micro_batch: BatchSize | None = None
    """Items (packed rows) of one forward pass; null: the global batch divided by the processes. The rest is
    accumulated."""
    lr: PositiveFloat
    """Peak learning rate of AdamW."""
    warmup_steps: NonNegativeInt = 100
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Learning rate of the last step, as a share of the peak."""
    weight_decay: NonNegativeFloat = 0.01
    """On matrices; vectors (norms, biases) are not decayed."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    clip: NonNegativeFloat = 1.0
    """Largest gradient norm; 0 does not clip."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    patches: tuple[PatchPhase, ...] = ()
    """Phases at the beginning of the run that predict squares of a picture's frames at once
    (lm/models/next_patch.py)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward and backward pass; the weights that are updated stay float32."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of the moving average of the weights that is evaluated and exported; 0 uses the weights themselves."""
    max_consecutive_bad: PositiveInt = 3
    """A step whose loss or gradient is not finite changes nothing; after this many in a row the run stops."""
    log_every: PositiveInt = 10
    eval_every: PositiveInt | None = None
    """Steps between evaluations on data.test; null: at the end only."""
    sample_every: PositiveInt | None = None
    """Steps between generated samples; null: none while training."""
    samples: BatchSize = 8
    """Samples generated each time."""
    save_every: PositiveInt | None = None
    """Steps between checkpoints, besides those of keep.best; null: at the end only."""
    keep: KeepConfig = KeepConfig()
    """Checkpoints to keep: {last: 2, best: 1}."""
    keep_last: PositiveInt | None = None
    """Earlier spelling of keep.last."""

    @property
    def kept(self) -> KeepConfig:
        """`keep`, however it was spelled."""
        return self.keep if self.keep_last is None else self.keep.model_copy(update={"last": self.keep_last})

    @model_validator(mode="after")
    def _check(self) -> TrainSettings:
        if self.keep_last is not None and "last" in self.keep.model_fields_set and self.keep.last != self.keep_last:
            raise ValueError(
                f"keep_last {self.keep_last} is the earlier spelling of keep.last, which is {self.keep.last}; leave "
                "keep_last out"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be at least 0 and below 1, found {list(self.betas)}")
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch}")
        return self


class ExportConfig(Config):
    """The model directory written at the end."""

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Storage of the weights."""
    coarse_model: str | None = None
    """Of a refiner: the exported model of the coarse labels. The export then holds both and generates by itself."""


class TrainConfig(Config):
    """A complete run."""

    name: FolderName
    """Name of the model; without --out the run goes to runs/NAME."""
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig
    tokenizer: str
    """Folder of the frozen tokenizer that made the codes."""
    clusters: str | None = None
    """Folder made by `tessera coarse`: a causal lm predicts the coarse labels of the codes, a masked one reads them and
    predicts the codes."""
    lm: ModelConfig
    train: TrainSettings
    engine: EngineConfig = AutoEngineConfig()
    generation: GenerationConfig = GenerationConfig()
    """Defaults of generation, stored in the model directory."""
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        refines = self.clusters is not None and self.lm.kind == "masked"
        if self.export.coarse_model is not None and not refines:
            raise ValueError("export.coarse_model is for a refiner: lm of kind 'masked', with clusters")
        if self.lm.kind != "causal" and self.train.patches:
            raise ValueError(
                f"train.patches is for an lm that predicts step by step, not of kind '{self.lm.kind}'; leave it out"
            )
        if self.clusters is not None and self.lm.kind == "next_scale":
            raise ValueError("clusters: a next-scale model predicts the codes themselves; leave clusters out")
        kinds = [condition.kind for condition in self.lm.conditions]
        if "codes" in kinds and self.data.prompt is None:
            raise ValueError(
                "lm.conditions has codes, but data.prompt does not say where an item's prompt comes from; set it to "
                "{kind: same_label} or {kind: crop}"
            )
        if self.data.prompt is not None and "codes" not in kinds:
            raise ValueError(
                "data.prompt is for an lm with the condition codes; add it to lm.conditions, or leave it out"
            )
        longest = next((condition.max_frames for condition in self.lm.conditions if condition.kind == "codes"), None)
        if self.data.prompt is not None and longest is not None and self.data.prompt.min_frames > longest:
            raise ValueError(
                f"data.prompt.min_frames is {self.data.prompt.min_frames}, but the condition codes of lm.conditions "
                f"reads at most {longest} (its max_frames); lower the one or raise the other"
            )
        if "embedding" in kinds:
            raise ValueError(
                "lm.conditions: shards hold no vectors for the condition embedding; train such a model from Python, or "
                "leave it out"
            )
        if self.data.packing.kind != "padded":
            check_packable(self.lm)
            if self.train.patches:
                raise ValueError(
                    f"data.packing {self.data.packing.kind}: squares of frames (train.patches) are of pictures of one "
                    "size; use packing kind padded"
                )
        if refines and self.export.coarse_model is None and self.train.sample_every is not None:
            raise ValueError(
                "train.sample_every: a refiner alone generates nothing; set export.coarse_model, or leave it out"
            )
        return self


_MAY_CHANGE = (
    "device",
    "engine.because",
    "export",
    "generation",
    "train.keep",
    "train.keep_last",
    "train.steps",  # compared with the steps that are done by run_state.py
    "train.save_every",
    "train.eval_every",
    "train.sample_every",
    "train.samples",
    "train.log_every",
    "data.test",
    "data.shards",  # the folder; what is in it is compared by run_state.py
    "tokenizer",
    "clusters",
    "train.max_consecutive_bad",
)


def check_resumable(
    saved: dict[str, Any], config: Config, where: str, may_change: tuple[str, ...] = _MAY_CHANGE
) -> None:
    """Raise ConfigError that names the first field in which a config differs from the one a run was started with.

    What does not touch the course of training may change, also where data and tokenizer lie, and train.steps (what that
    does to the learning rate is said in train/engines/lr_schedule.py).
    """
    # Settings that are younger than the run had no other value then than their default.
    with suppress(ConfigError):
        saved = check_config(saved, type(config)).model_dump(mode="json")
    before, after = _flatten(saved), _flatten(config.model_dump(mode="json"))
    # The kind first: where that differs all its fields do.
    for name in sorted(before.keys() | after.keys(), key=lambda name: (not name.endswith("kind"), name)):
        old, new = before.get(name), after.get(name)
        if old == new or any(name == free or name.startswith(f"{free}.") for free in may_change):
            continue
        raise ConfigError(
            f"{name}: this run was started with {old!r} ({where}), the config now says {new!r}; "
            "set it back, or start another run with another --out"
        )


def _flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix: data}
    return {
        name: value
        for key, item in data.items()
        for name, value in _flatten(item, f"{prefix}.{key}" if prefix else key).items()
    }
