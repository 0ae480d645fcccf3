"""Config of `tessera train`: the YAML file describes a run completely."""

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
    """Shards of codes (folders written by `tessera shards`)."""

    shards: str
    """Folder of the training shards."""
    test: str | None = None
    """Folder of held-out shards, for evaluation."""
    max_frames: PositiveInt | None = None
    """Exclude longer items; their number is reported."""
    missing: Literal["refuse", "skip"] = "refuse"
    """For items without the label or text that lm.conditions requires, or with unreadable text. refuse: name them and
    do not start. skip: exclude them and report their number."""
    pool_batches: LayerCount = 16
    """Batches that are sorted by length together: more reduces padding, fewer improves mixing. For padded packing
    only."""
    prompt: PromptConfig | None = None
    """Source of an item's prompt, for an lm with the condition codes."""
    packing: PackingConfig = PaddedConfig()
    """Batching of items with different lengths. padded: one item per row. best_fit: packed sequences, without
    padding."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.packing.kind != "padded" and "pool_batches" in self.model_fields_set and self.pool_batches != 16:
            raise ValueError(f"pool_batches is for packing padded, not for {self.packing.kind}; leave it out")
        return self


class KeepConfig(Config):
    """Checkpoints to keep."""

    last: PositiveInt = 2
    """Number of newest checkpoints."""
    best: NonNegativeInt = 1
    """Number of checkpoints with the lowest loss on data.test; each is saved right after its evaluation. 0: none."""


class TrainSettings(Config):
    """Optimization, and the intervals of logging, evaluation and saving."""

    steps: StepCount
    """Optimizer steps of the whole run."""
    batch: BatchSize
    """Examples (packed rows for data.packing best_fit) in a global batch, for any number of processes."""
    micro_batch: BatchSize | None = None
    """Examples (packed rows) per forward pass; null: the global batch divided by the processes. Gradients of the rest
    are accumulated."""
    lr: PositiveFloat
    """Peak learning rate of AdamW."""
    warmup_steps: NonNegativeInt = 100
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Learning rate of the last step, as a fraction of the peak."""
    weight_decay: NonNegativeFloat = 0.01
    """Applies to matrices; vectors (norms, biases) are not decayed."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    clip: NonNegativeFloat = 1.0
    """Gradient clipping norm; 0 does not clip."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    patches: tuple[PatchPhase, ...] = ()
    """Phases at the beginning of the run that predict square patches of an image's frames at once
    (lm/models/next_patch.py)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward and backward pass; the optimizer updates float32 weights."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of the moving average of the weights used for evaluation and export; 0 uses the weights themselves."""
    max_consecutive_bad: PositiveInt = 3
    """Consecutive bad steps after which the run stops. A step with a non-finite loss or gradient changes nothing."""
    log_every: PositiveInt = 10
    eval_every: PositiveInt | None = None
    """Steps between evaluations on data.test; null: only at the end."""
    sample_every: PositiveInt | None = None
    """Steps between generated samples; null: none during training."""
    samples: BatchSize = 8
    """Samples generated each time."""
    save_every: PositiveInt | None = None
    """Steps between checkpoints, in addition to those of keep.best; null: only at the end."""
    keep: KeepConfig = KeepConfig()
    """Checkpoints to keep: {last: 2, best: 1}."""
    keep_last: PositiveInt | None = None
    """Old name of keep.last."""

    @property
    def kept(self) -> KeepConfig:
        """`keep`, with keep_last applied."""
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
    """Storage type of the weights."""
    coarse_model: str | None = None
    """For a refiner: the exported model of the coarse labels. The export then holds both and generates on its own."""


class TrainConfig(Config):
    """A complete training run."""

    name: FolderName
    """Name of the model; without --out the run goes to runs/NAME."""
    seed: NonNegativeInt = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    data: DataConfig
    tokenizer: str
    """Folder of the frozen tokenizer that made the codes."""
    clusters: str | None = None
    """Folder written by `tessera coarse`: a causal lm predicts the coarse labels of the codes; a masked one is
    conditioned on them and predicts the codes."""
    lm: ModelConfig
    train: TrainSettings
    engine: EngineConfig = AutoEngineConfig()
    generation: GenerationConfig = GenerationConfig()
    """Generation defaults, stored in the model directory."""
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
    "train.steps",  # run_state.py compares it with the finished steps
    "train.save_every",
    "train.eval_every",
    "train.sample_every",
    "train.samples",
    "train.log_every",
    "data.test",
    "data.shards",  # the folder; run_state.py compares its content
    "tokenizer",
    "clusters",
    "train.max_consecutive_bad",
)


def check_resumable(
    saved: dict[str, Any], config: Config, where: str, may_change: tuple[str, ...] = _MAY_CHANGE
) -> None:
    """Raise ConfigError for the first field in which a config differs from the one a run was started with.

    Settings that do not affect the course of training may change, as may the locations of data and tokenizer, and
    train.steps (train/engines/lr_schedule.py describes the effect on the learning rate).
    """
    # Settings added after the run was started had their default value then.
    with suppress(ConfigError):
        saved = check_config(saved, type(config)).model_dump(mode="json")
    before, after = _flatten(saved), _flatten(config.model_dump(mode="json"))
    # Kinds first: if a kind differs, all its fields do.
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
