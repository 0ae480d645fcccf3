"""Config of the language model: backbone, codebook pattern, head, input and conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ..configs.schema import Config, ConfigError
from .attention.registry import AttentionName
from .conditioning.registry import (
    AlignedConditionConfig,
    ConditionConfig,
    DualTrackConfig,
    TextConditionConfig,
    fill_sizes,
)
from .heads.multi_token_prediction import AheadConfig
from .heads.registry import AutoHeadConfig, DepthHeadConfig, HeadConfig, ParallelHeadConfig
from .layers.config import QKNorm, TransformerConfig
from .layers.feed_forward import FeedForwardName
from .layers.input_embedding import EmbeddingInputConfig, InputConfig, embedding_kind
from .layers.norm import NormName
from .ops.rotary import PAIRS, RopeConfig, TimeRopeConfig
from .patterns.pattern import DelayConfig, FlatConfig, ParallelConfig, SpecialsConfig
from .patterns.presets import PRESETS, AnyArrangementConfig, AutoArrangementConfig, PresetConfig
from .patterns.text_stream import TextStreamConfig, check_stream_pattern


class LMConfig(Config):
    """Config of the language model."""

    kind: Literal["causal"] = "causal"
    width: int = Field(default=256, ge=8, le=65536)
    """Width of a hidden state, D."""
    layers: int = Field(default=6, ge=1, le=1024)
    """Number of transformer layers."""
    heads: int = Field(default=4, ge=1, le=1024)
    """Number of query heads, a divisor of width unless head_dim is set."""
    kv_heads: PositiveInt | None = None
    """Number of key/value heads, a divisor of heads; null: equal to heads."""
    head_dim: int | None = Field(default=None, ge=2, le=4096)
    """Width of a head, E; null: width / heads."""
    ffn: int | None = Field(default=None, ge=8, le=1 << 20)
    """Width of the feed-forward layer; null: 8/3 of width, rounded up to a multiple of 32 (gelu: 4 times width)."""
    feed_forward: FeedForwardName = "swiglu"
    """Feed-forward layer. swiglu: down(silu(gate x) * up x). gelu: down(gelu(up x)). gelu_tanh: with the tanh
    approximation of GELU."""
    norm: NormName = "rms"
    """Normalization layers. rms: RMSNorm. layer: LayerNorm with a bias."""
    norm_eps: float = Field(default=1e-6, gt=0, lt=1)
    """Epsilon added to the mean square (or the variance)."""
    qk_norm: QKNorm = False
    """Normalize queries and keys of each head: more stable at high learning rates. true: RMSNorm. l2: to length 1, and
    their products are multiplied by a learned factor for each head, at most 100 (VAR)."""
    qkv_bias: bool = False
    """Queries, keys and values of the self-attention have a bias, as in Qwen2."""
    bias: bool = False
    """The output of the self-attention and the layers of the feed-forward have a bias, and the input layer of a
    next-scale model."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout after each attention, each feed-forward and the input."""
    rope: RopeConfig = TimeRopeConfig()
    """Position encoding: rotary by time or on a grid, sinusoidal, or learned (next-scale models)."""
    arrangement: AnyArrangementConfig = AutoArrangementConfig()
    """Codebook pattern. auto: the one that goes with the head. preset: that of a published system, which also sets
    specials and variable_length."""
    specials: SpecialsConfig = SpecialsConfig()
    """Ids of the start, pad and end of a codebook."""
    start: Literal["token", "condition"] = "token"
    """What the first step is predicted from. token: a special start id. condition: the last prefix token, which must be
    of a label, an embedding or a dual track; each step is then at the position of its frame, one earlier."""
    variable_length: bool = False
    """true: sequences end with an end token (speech); false: the number of frames is known (images)."""
    head: HeadConfig = AutoHeadConfig()
    """Output layers that predict the codes of a step from the hidden state. auto: depth, if there are several codebooks
    and arrangement is auto, too; else parallel."""
    loss_weights: tuple[PositiveFloat, ...] | None = None
    """Relative weight of each codebook in the loss, with text_stream first that of the text; null: equal."""
    input: InputConfig = EmbeddingInputConfig()
    """Input embedding of the codes of a step."""
    conditions: tuple[ConditionConfig, ...] = ()
    """What generation is conditioned on (label, text, aligned, embedding, codes, melody, dual_track), at most one of
    each kind; empty: nothing."""
    text_stream: TextStreamConfig | None = None
    """A text channel beside the codebooks: text and audio are one sequence, and the model speaks and writes. Delays and
    loss_weights have one more entry, the first. null: the sequence holds codes alone."""
    window: PositiveInt | None = None
    """Attention window in steps, current one included, besides the conditions' prefix; null: full causal attention."""
    ahead: AheadConfig | None = None
    """Multi-token prediction, for speculative decoding; null: none."""
    attention: AttentionName = "auto"
    """Attention backend: auto (chosen by device, precision and installed packages; lm/attention/auto.py), sdpa, flash
    (flash-attn), xformers or flex."""

    @model_validator(mode="after")
    def _read_auto(self) -> LMConfig:
        """Choose what does not depend on the number of codebooks: all but head and pattern that are both auto."""
        pattern, head = self.arrangement, self.head
        if isinstance(head, AutoHeadConfig):
            if isinstance(pattern, AutoArrangementConfig) and self.kind == "causal" and self.ahead is None:
                return self
            head = ParallelHeadConfig()
        if isinstance(pattern, AutoArrangementConfig):
            if head.kind == "flat":
                pattern = FlatConfig()
            else:
                at_once = head.kind == "depth" or self.kind != "causal" or self.dual_track is not None
                pattern = ParallelConfig() if at_once else DelayConfig()
        object.__setattr__(self, "arrangement", pattern)  # the config is frozen for everyone else
        object.__setattr__(self, "head", head)
        return self

    @model_validator(mode="after")
    def _read_preset(self) -> LMConfig:
        if isinstance(self.arrangement, PresetConfig):
            preset = PRESETS[self.arrangement.name]
            for name in ("specials", "variable_length"):
                found, required = getattr(self, name), getattr(preset, name)
                if name in self.model_fields_set and found != required:
                    raise ValueError(
                        f"{name}: arrangement preset '{self.arrangement.name}' needs {_in_yaml(required)}, found "
                        f"{_in_yaml(found)}; leave {name} out, or write the arrangement in full"
                    )
                object.__setattr__(self, name, required)  # the config is frozen for everyone else
        return self

    @model_validator(mode="after")
    def _read_text_stream(self) -> LMConfig:
        if self.text_stream is not None:
            self._check_text_stream()
            object.__setattr__(self, "specials", self.specials.with_absent)
        elif self.specials.absent is not None:
            raise ValueError("specials.absent is for an lm with text_stream; leave it out")
        return self

    @model_validator(mode="after")
    def _check(self) -> LMConfig:
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.num_kv_heads}")
        pairs = PAIRS[self.rope.kind]
        if self.head_width % pairs:
            raise ValueError(
                f"head width is {self.head_width}, but rope kind '{self.rope.kind}' needs a multiple of {pairs}"
            )
        if any(condition.kind == "aligned" for condition in self.conditions):
            self._check_aligned()
        if self.kind != "next_scale":
            self._check_next_scale_only()
        prefix = [condition for condition in self.conditions if condition.join in ("prefix", "dual")]
        if getattr(self.head, "input", None) == "backbone" and embedding_kind(self.input) != "embedding":
            raise ValueError(
                "head input 'backbone' reads the table of input kind 'embedding', found "
                f"'{embedding_kind(self.input)}'; use head input 'projected', which has its own table"
            )
        if self.start == "condition" and not (prefix and _can_start(prefix[-1])):
            found = [condition.kind for condition in prefix] or "none"
            raise ValueError(
                "start 'condition' needs a label, or an embedding with mask padding, as the last condition with join "
                f"prefix, found {found}"
            )
        dual = any(condition.kind == "dual_track" for condition in self.conditions)
        if dual and (self.kind != "causal" or self.start != "condition" or len(self.conditions) > 1):
            raise ValueError(
                "condition 'dual_track' needs an lm of kind 'causal', no other condition, and start: condition"
            )
        if dual and (self.arrangement.kind not in ("parallel", "auto") or not self.variable_length):
            raise ValueError("condition 'dual_track' needs the arrangement parallel and variable_length: true")
        return self

    def _check_next_scale_only(self) -> None:
        """ValueError for what only next-scale models have."""
        if self.rope.kind == "learned":
            raise ValueError("rope kind 'learned' is for an lm of kind 'next_scale'; use sinusoidal, time or grid")
        if any(condition.join == "adaptive" for condition in self.conditions):
            raise ValueError("condition join 'adaptive' is for an lm of kind 'next_scale'; use prefix, cross or sum")

    def _check_aligned(self) -> None:
        """ValueError unless a pointer through a text can end the sequence."""
        if self.kind != "causal":
            raise ValueError(
                f"condition 'aligned' needs an lm that generates step by step; kind is '{self.kind}', use 'causal'"
            )
        if not self.variable_length:
            raise ValueError("condition 'aligned' decides where the sequence ends; set variable_length: true")
        if self.ahead is not None:
            raise ValueError("condition 'aligned' has no multi-token prediction; leave `ahead` out")

    def _check_text_stream(self) -> None:
        """ValueError unless text and audio can be one sequence."""
        assert self.text_stream is not None
        if self.kind != "causal":
            raise ValueError(f"text_stream needs an lm that generates step by step, kind 'causal'; found '{self.kind}'")
        if isinstance(self.arrangement, PresetConfig):
            raise ValueError("text_stream: a preset has no place for the text; write the arrangement in full")
        if not isinstance(self.arrangement, AutoArrangementConfig):
            check_stream_pattern(self.arrangement)
        if not self.variable_length:
            raise ValueError(
                "text_stream: the end of a sequence is that of its text channel; set variable_length: true"
            )
        for condition in self.conditions:
            if condition.kind in ("text", "aligned", "dual_track"):
                raise ValueError(
                    f"text_stream and the condition '{condition.kind}' both read the text; keep one of them"
                )
        if self.ahead is not None:
            raise ValueError("text_stream has no multi-token prediction; leave `ahead` out")
        if self.rope.kind == "grid":
            raise ValueError("text_stream is for audio, whose positions are in time; rope kind 'grid' is for images")
        predict = self.text_stream.predict
        if self.text_stream.loss == "all" and predict != "text":
            raise ValueError(f"text_stream.loss is all, but predict '{predict}' predicts no text; use predict: text")
        auto = self.arrangement.kind == self.head.kind == "auto"
        if predict == "none" and not auto and (self.arrangement.kind != "parallel" or self.head.kind != "depth"):
            raise ValueError(
                "text_stream.predict 'none' ends with a frame, whose codes must be chosen one after another in one "
                f"step: arrangement parallel and head depth, found {self.arrangement.kind} and {self.head.kind}"
            )
        if predict == "none" and self.text_stream.positions == "shared":
            raise ValueError("text_stream.positions 'shared' needs a text channel that predicts; found predict 'none'")

    @property
    def head_width(self) -> int:
        """E."""
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @property
    def num_kv_heads(self) -> int:
        """G."""
        return self.kv_heads if self.kv_heads is not None else self.heads

    @property
    def num_ffn(self) -> int:
        """Width of the feed-forward layer."""
        if self.ffn is not None:
            return self.ffn
        return 4 * self.width if self.feed_forward != "swiglu" else -(-8 * self.width // 3 // 32) * 32

    @property
    def transformer(self) -> TransformerConfig:
        """Config of the backbone."""
        return TransformerConfig(
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.num_kv_heads,
            ffn=self.num_ffn,
            qk_norm=self.qk_norm,
            dropout=self.dropout,
            cross=any(condition.join == "cross" for condition in self.conditions),
            cross_rotary=isinstance(self.rope, TimeRopeConfig) and self.rope.cross == "queries",
            norm=self.norm,
            norm_eps=self.norm_eps,
            feed_forward=self.feed_forward,
            head_dim=self.head_dim,
            qkv_bias=self.qkv_bias,
            bias=self.bias,
        )

    @property
    def text_part(self) -> TextConditionConfig | AlignedConditionConfig | DualTrackConfig | TextStreamConfig | None:
        """The part with a text tokenizer: a condition, or the text stream; None: the model has no text."""
        for condition in self.conditions:
            if isinstance(condition, TextConditionConfig | AlignedConditionConfig | DualTrackConfig):
                return condition
        return self.text_stream

    @property
    def dual_track(self) -> DualTrackConfig | None:
        """The condition `dual_track`; None: the model has none."""
        return next((c for c in self.conditions if isinstance(c, DualTrackConfig)), None)

    @property
    def needs_code_vectors(self) -> bool:
        """Whether the model reads the tokenizer's code vectors."""
        of_conditions = [condition.input for condition in self.conditions if condition.kind == "codes"]
        read = [embedding_kind(config) == "codes" for config in (self.input, *of_conditions) if config is not None]
        return any(read) or getattr(self.head, "input", None) == "codes"

    def filled(
        self, classes: int | None = None, vocab_size: int | None = None, silent: Sequence[int] | None = None
    ) -> LMConfig:
        """The config with what conditions leave unset filled in from the data; ConfigError on a mismatch.

        Args:
            classes: number of labels. vocab_size: of the text tokenizer. silent: its ids of units without sound.
        """
        filled: dict[str, object] = {"conditions": fill_sizes(self.conditions, classes, vocab_size, silent)}
        stream = self.text_stream
        if stream is not None and vocab_size is not None:
            if stream.vocab_size not in (None, vocab_size):
                raise ConfigError(
                    f"text_stream.vocab_size is {stream.vocab_size}, but the data has {vocab_size}; leave it out or "
                    f"set it to {vocab_size}"
                )
            filled["text_stream"] = stream.model_copy(update={"vocab_size": vocab_size})
        return self.model_copy(update=filled)

    def _recommended_head(self) -> DepthHeadConfig:
        """For several codebooks: what benchmarks/compare_heads.py measures, in proportion to the backbone."""
        reads = "codes" if embedding_kind(self.input) == "codes" else "embedding"
        layers = max(1, self.layers // 4)
        return DepthHeadConfig(layers=layers, heads=self.heads, head_dim=self.head_dim, input=reads)

    def explicit(self, num_codebooks: int) -> LMConfig:
        """The config with codebook pattern and head written out; ConfigError if a preset does not fit."""
        if isinstance(self.head, AutoHeadConfig):
            several = num_codebooks > 1 or self.text_stream is not None
            head = self._recommended_head() if several else ParallelHeadConfig()
            return self.model_copy(update={"arrangement": ParallelConfig(), "head": head})
        if not isinstance(self.arrangement, PresetConfig):
            return self
        try:
            arrangement, specials, variable_length = PRESETS[self.arrangement.name](num_codebooks)
        except ConfigError as error:
            raise ConfigError(f"arrangement preset '{self.arrangement.name}': {error}") from None
        return self.model_copy(
            update={"arrangement": arrangement, "specials": specials, "variable_length": variable_length}
        )


def _can_start(condition: ConditionConfig) -> bool:
    """Whether the last token of each row is one of the condition, and no padding."""
    if condition.kind == "embedding":
        return condition.mask == "padding"
    return condition.kind in ("label", "dual_track")


def _in_yaml(value: Config | bool) -> str:
    return str(value.model_dump() if isinstance(value, Config) else value).lower()
