"""Config of `tessera train`: the YAML file describes a run completely."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from ...configs.names import FolderName, GivenPath
from ...configs.schema import BatchSize, Config, LayerCount, StepCount
from ...lm.generation_config import GenerationConfig
from ...lm.layers.lora import LoRAConfig
from ...lm.models.next_patch import PatchPhase
from ...lm.models.packed_sequences import check_packable
from ...lm.models.registry import ModelConfig
from ..common.captions import CaptionsConfig, WholeTextConfig
from ..common.optimizer_config import OptimizerConfig, Ratio
from ..common.tasks import TasksConfig
from ..engines.config import AutoEngineConfig, EngineConfig
from ..initialization.config import LORA_ALONE, LMInitConfig
from .reference_prompts import PromptConfig
from .sequence_packing import PackingConfig, PaddedConfig


class DataConfig(Config):
    """Shards of codes (folders written by `tessera shards`)."""

    shards: GivenPath
    """Folder of the training shards."""
    test: GivenPath | None = None
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
    captions: CaptionsConfig = WholeTextConfig()
    """What a step reads of an item's text. whole: all of it. alternatives: one of several captions separated by "|"; of
    one with commas, some of its parts in any order."""
    tasks: TasksConfig | None = None
    """For an lm with text_stream: how often a step reads an item as text to speak and as frames to write down, relative
    to each other; null: as often."""
    embedding: Literal["none", "text"] | None = None
    """Vectors of the condition embedding, which shards do not hold. text: the states of the item's text, of the text
    encoder of init.from or text_encoder. none: every item is without, as one whose vectors are dropped."""
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
    """Number of newest checkpoints that are kept."""
    best: NonNegativeInt = 1
    """Number of checkpoints kept because they have the lowest loss on data.test; each is saved right after its
    evaluation. 0: none."""


class TrainSettings(OptimizerConfig):
    """Optimization, and the intervals of logging, evaluation and saving."""

    steps: StepCount
    """Optimizer steps of the whole run."""
    batch: BatchSize
    """Examples (packed rows for data.packing best_fit) in a global batch, for any number of processes."""
    min_lr_ratio: Ratio = 0.1
    """Learning rate of the last step, as a fraction of the peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two moments of AdamW."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the probability that is spread over all codes in the cross-entropy."""
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
    """Steps between lines in metrics.jsonl."""
    eval_every: PositiveInt | None = None
    """Steps between evaluations on data.test; null: only at the end."""
    sample_every: PositiveInt | None = None
    """Steps between generated samples; null: none during training."""
    samples: BatchSize = 8
    """Number of samples generated each time."""
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
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch}")
        return self


class ExportConfig(Config):
    """The model directory written at the end."""

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Storage type of the weights."""
    coarse_model: GivenPath | None = None
    """For a refiner: the exported model of the coarse labels. The export then holds both and generates on its own."""


class TrainConfig(Config):
    """A complete training run."""

    name: FolderName
    """Name of the model; without --out the run goes to runs/NAME."""
    seed: NonNegativeInt = 0
    """Random seed of initialization, data order, dropout and generated samples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto: CUDA if available, else CPU."""
    data: DataConfig
    """Training and test data."""
    tokenizer: GivenPath
    """Folder of the frozen tokenizer that made the codes."""
    text_encoder: GivenPath | None = None
    """Folder of the frozen T5 whose states the condition embedding reads, as in a model directory; null: that of
    init.from."""
    clusters: GivenPath | None = None
    """Folder written by `tessera coarse`: a causal lm predicts the coarse labels of the codes; a masked one is
    conditioned on them and predicts the codes."""
    lm: ModelConfig
    """The language model."""
    init: LMInitConfig | None = None
    """Weights to start from; null: random ones."""
    lora: LoRAConfig | None = None
    """Learn low-rank changes of the weights of init instead of the weights themselves; null: all weights learn."""
    train: TrainSettings
    """Optimization, and the intervals of logging, evaluation and saving."""
    engine: EngineConfig = AutoEngineConfig()
    """Training engine: plain torch or DeepSpeed."""
    generation: GenerationConfig = GenerationConfig()
    """Generation defaults, stored in the model directory."""
    export: ExportConfig = ExportConfig()
    """The model directory written at the end."""

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
                "lm.conditions has codes, but data.prompt does not define where an item's prompt comes from; set it to "
                "{kind: same_label} or {kind: crop}"
            )
        self._check_text_stream()
        if self.data.captions.kind != "whole" and "text" not in kinds and self.data.embedding != "text":
            raise ValueError(
                f"data.captions {self.data.captions.kind} is for an lm with the condition text; add it to "
                "lm.conditions, or leave captions out"
            )
        if self.text_encoder is not None and "embedding" not in kinds:
            raise ValueError("text_encoder is for an lm with the condition embedding; leave it out")
        if self.data.prompt is not None and "codes" not in kinds:
            raise ValueError(
                "data.prompt is for an lm with the condition codes; add it to lm.conditions, or leave it out"
            )
        longest = next((condition.max_frames for condition in self.lm.conditions if condition.kind == "codes"), None)
        if self.data.prompt is not None and longest is not None and self.data.prompt.min_frames > longest:
            raise ValueError(
                f"data.prompt.min_frames is {self.data.prompt.min_frames}, but the condition codes of lm.conditions "
                f"reads at most {longest} (its max_frames); lower min_frames or raise max_frames"
            )
        if "dual_track" in kinds:
            raise ValueError(
                "lm.conditions: shards hold no tracks for the condition dual_track; train such a model from Python, or "
                "leave it out"
            )
        if "melody" in kinds:
            raise ValueError(
                "lm.conditions: shards hold no melodies for the condition melody; train such a model from Python, or "
                "leave it out"
            )
        if ("embedding" in kinds) != (self.data.embedding is not None):
            raise ValueError(
                "lm.conditions: shards hold no vectors for the condition embedding; set data.embedding: text for the "
                "states of the items' texts, or data.embedding: none to train without"
                if "embedding" in kinds
                else "data.embedding is for an lm with the condition embedding; leave it out"
            )
        if self.lora is not None and self.init is None:
            raise ValueError(f"lora: {LORA_ALONE}")
        if self.lora is not None and self.init is not None and self.init.freeze:
            raise ValueError("init.freeze: with lora nothing learns but lora.targets and lora.train; leave it out")
        if self.data.packing.kind != "padded":
            check_packable(self.lm)
            if self.train.patches:
                raise ValueError(
                    f"data.packing {self.data.packing.kind}: patches of frames (train.patches) need "
                    "images of one size; use packing kind padded"
                )
        if refines and self.export.coarse_model is None and self.train.sample_every is not None:
            raise ValueError(
                "train.sample_every: a refiner cannot generate without a model of coarse labels; set "
                "export.coarse_model, or leave it out"
            )
        return self

    def _check_text_stream(self) -> None:
        if self.lm.text_stream is None:
            if self.data.tasks is not None:
                raise ValueError("data.tasks is for an lm with text_stream; leave it out")
            return
        if self.clusters is not None:
            raise ValueError("clusters: a model with text_stream predicts the codes themselves; leave clusters out")
        if self.data.captions.kind != "whole":
            raise ValueError("data.captions: an lm with text_stream reads and writes whole texts; leave captions out")
        if self.lm.text_stream.positions == "shared":
            raise ValueError(
                "lm.text_stream.positions: in training text and frames are apart (data.tasks), found 'shared'; train "
                "such a model from Python, or leave it out"
            )
