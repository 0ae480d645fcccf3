"""The language model's config: backbone, arrangement, head, input and conditions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ..configs.schema import Config, ConfigError
from .attention.registry import AttentionName
from .conditioning.registry import ConditionConfig, fill_sizes
from .heads.multi_token_prediction import AheadConfig
from .heads.registry import HeadConfig, ParallelHeadConfig
from .layers.input_embedding import EmbeddingInputConfig, InputConfig
from .layers.transformer import FeedForwardName, NormName
from .ops.rotary import PAIRS, RopeConfig, TimeRopeConfig
from .patterns.pattern import ParallelConfig, SpecialsConfig
from .patterns.presets import PRESETS, AnyArrangementConfig, PresetConfig


class LMConfig(Config):
    """The language model."""

    kind: Literal["causal"] = "causal"
    width: int = Field(default=256, ge=8, le=65536)
    """Numbers in a hidden state, D."""
    layers: int = Field(default=6, ge=1, le=1024)
    heads: int = Field(default=4, ge=1, le=1024)
    """Query heads; they share the width."""
    kv_heads: PositiveInt | None = None
    """Key/value heads, a divisor of heads; null: as many as heads."""
    ffn: int | None = Field(default=None, ge=8, le=1 << 20)
    """Width of the feed-forward; null: 8/3 of the width, rounded up to a multiple of 32 (gelu: 4 times the width)."""
    feed_forward: FeedForwardName = "swiglu"
    """swiglu: down(silu(gate x) * up x). gelu: down(gelu(up x))."""
    norm: NormName = "rms"
    """rms: by the root of the mean square. layer: LayerNorm with a bias."""
    norm_eps: float = Field(default=1e-6, gt=0, lt=1)
    """Added to the mean square (the variance)."""
    qk_norm: bool = False
    """Normalise queries and keys of each head: steadier at high learning rates."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """After each attention, each feed-forward and the input."""
    rope: RopeConfig = TimeRopeConfig()
    """Positions: rotated by time or on a grid, or sinusoidal."""
    arrangement: AnyArrangementConfig = ParallelConfig()
    """Where codes stand; kind preset also says specials and variable_length."""
    specials: SpecialsConfig = SpecialsConfig()
    start: Literal["token", "condition"] = "token"
    """What the first step is predicted from. token: a special id of its own. condition: the last token of the prefix,
    which must be a label's; a step stands where its frame does, one position earlier."""
    variable_length: bool = False
    """Sequences end by themselves (speech); false: the number of frames is known (pictures)."""
    head: HeadConfig = ParallelHeadConfig()
    loss_weights: tuple[PositiveFloat, ...] | None = None
    """How much each codebook counts in the loss, relative to each other; null: all alike."""
    input: InputConfig = EmbeddingInputConfig()
    conditions: tuple[ConditionConfig, ...] = ()
    window: PositiveInt | None = None
    """Steps that a step sees, itself included, besides the conditions' prefix; null: all before it."""
    ahead: AheadConfig | None = None
    """Guess steps ahead, for drafted generation; null: none."""
    attention: AttentionName = "auto"
    """Attention backend: auto (chosen by device, precision and what is installed; lm/attention/auto.py), sdpa, flash
    (flash-attn), xformers or flex."""

    @model_validator(mode="after")
    def _read_preset(self) -> LMConfig:
        if isinstance(self.arrangement, PresetConfig):
            preset = PRESETS[self.arrangement.name]
            for name in ("specials", "variable_length"):
                said, meant = getattr(self, name), getattr(preset, name)
                if name in self.model_fields_set and said != meant:
                    raise ValueError(
                        f"{name}: arrangement preset '{self.arrangement.name}' means {_in_yaml(meant)}, found "
                        f"{_in_yaml(said)}; leave {name} out, or write the arrangement out"
                    )
                object.__setattr__(self, name, meant)  # the model is frozen for everyone else
        return self

    @model_validator(mode="after")
    def _check(self) -> LMConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.num_kv_heads}")
        pairs = PAIRS[self.rope.kind]
        if self.head_width % pairs:
            raise ValueError(
                f"a head is {self.head_width} wide; rope kind '{self.rope.kind}' needs a multiple of {pairs}"
            )
        prefix = [condition.kind for condition in self.conditions if condition.join == "prefix"]
        if self.start == "condition" and prefix[-1:] != ["label"]:
            raise ValueError(
                f"start 'condition' needs a label as the last condition with join prefix, found {prefix or 'none'}"
            )
        return self

    @property
    def head_width(self) -> int:
        """E."""
        return self.width // self.heads

    @property
    def num_kv_heads(self) -> int:
        """G."""
        return self.kv_heads if self.kv_heads is not None else self.heads

    @property
    def num_ffn(self) -> int:
        """Width of the feed-forward."""
        if self.ffn is not None:
            return self.ffn
        return 4 * self.width if self.feed_forward == "gelu" else -(-8 * self.width // 3 // 32) * 32

    @property
    def needs_code_vectors(self) -> bool:
        """Whether the model reads the tokenizer's code vectors."""
        of_conditions = [condition.input for condition in self.conditions if condition.kind == "codes"]
        read = [config.kind for config in (self.input, *of_conditions) if config is not None]
        return "codes" in (*read, getattr(self.head, "input", None))

    def filled(self, classes: int | None = None, vocab_size: int | None = None) -> LMConfig:
        """The config with the conditions' open sizes filled in from the data; ConfigError where it says otherwise."""
        return self.model_copy(update={"conditions": fill_sizes(self.conditions, classes, vocab_size)})

    def explicit(self, num_codebooks: int) -> LMConfig:
        """The config with a preset arrangement written out; ConfigError where the preset does not fit."""
        if not isinstance(self.arrangement, PresetConfig):
            return self
        try:
            arrangement, specials, variable_length = PRESETS[self.arrangement.name](num_codebooks)
        except ConfigError as error:
            raise ConfigError(f"arrangement preset '{self.arrangement.name}': {error}") from None
        return self.model_copy(
            update={"arrangement": arrangement, "specials": specials, "variable_length": variable_length}
        )


def _in_yaml(value: Config | bool) -> str:
    return str(value.model_dump() if isinstance(value, Config) else value).lower()
