"""Conditions: labels, text and given embeddings, turned into tokens that the model reads as a prefix, by
cross-attention, or as a sum.

Each condition has a learned null for rows without it. In training a row's condition is replaced by the null with
probability `dropout`, which is what classifier-free guidance needs (arXiv:2207.12598).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from ..tokenize.config import Config, ConfigError
from ..tokenize.text import TextConfig
from .attention import sdpa
from .rope import rotary_table
from .transformer import RMSNorm, Table, Transformer


class LabelConfig(Config):
    """One of a fixed list of labels."""

    kind: Literal["label"] = "label"
    classes: PositiveInt | None = None
    """Number of labels; null: filled in from the data."""
    join: Literal["prefix", "cross", "sum"] = "prefix"
    """prefix: a token before the first step. cross: a token of the cross-attention memory. sum: added to every step."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability that a training row is given no label; 0: no guidance later."""


class TextConditionConfig(Config):
    """A transcript or a caption."""

    kind: Literal["text"] = "text"
    text: TextConfig
    """The text tokenizer."""
    vocab_size: PositiveInt | None = None
    """Size of the text tokenizer; null: filled in when it is built."""
    join: Literal["prefix", "cross"] = "prefix"
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability that a training row is given no text; 0: no guidance later."""
    layers: int = Field(default=0, ge=0, le=64)
    """Layers of a bidirectional transformer over the text, of the model's width; 0: embeddings only."""


class EmbeddingConditionConfig(Config):
    """Vectors that another model made of a condition, for instance a text encoder's states."""

    kind: Literal["embedding"] = "embedding"
    width: PositiveInt
    """Numbers in a given vector."""
    projection: Literal["linear", "none"] = "linear"
    """linear: a learned layer with a bias takes them to the model's width. none: they have it already."""
    join: Literal["prefix", "cross"] = "cross"
    mask: Literal["padding", "none"] = "padding"
    """What stands beyond a row's length is zero; padding: and it is not seen. none: attention sees the zeros, so a
    row's output depends on how far it is padded (audiocraft's MusicGen)."""
    norm: Literal["rms", "none"] = "rms"
    """Of the vectors that cross-attention reads, after the projection."""
    null: Literal["learned", "zero"] = "learned"
    """What a row without vectors reads."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability that a training row is given none; 0: no guidance later."""


ConditionConfig = Annotated[LabelConfig | TextConditionConfig | EmbeddingConditionConfig, Field(discriminator="kind")]


@dataclass(frozen=True)
class ConditionBatch:
    """The conditions of B rows. What the model is not conditioned on stays None."""

    label: Tensor | None = None
    """[B] long, -1 for none."""
    text: Tensor | None = None
    """[B, L] long text ids, padded on the right; what stands in the padding does not matter."""
    text_lengths: Tensor | None = None
    """[B] long, 0 for no text."""
    embedding: Tensor | None = None
    """[B, L, width] float, padded on the right; what stands in the padding does not matter."""
    embedding_lengths: Tensor | None = None
    """[B] long, 0 for no vectors."""

    @classmethod
    def make(
        cls,
        labels: Sequence[int | None] | None = None,
        texts: Sequence[Sequence[int] | None] | None = None,
        embeddings: Sequence[Tensor | None] | None = None,
    ) -> ConditionBatch:
        """Build a batch from lists; None in a list is a row without that condition. An embedding is [L, width].

        ValueError: an empty text or embedding, unequal lists.
        """
        given = {"labels": labels, "texts": texts, "embeddings": embeddings}
        counts = {name: len(entries) for name, entries in given.items() if entries is not None}
        if len(set(counts.values())) > 1:
            found = " but ".join(f"{count} {name}" for name, count in counts.items())
            raise ValueError(f"{found}; give one of each for every row, None for none")
        label = text = text_lengths = None
        if labels is not None:
            label = torch.tensor([-1 if entry is None else entry for entry in labels], dtype=torch.long)
        if texts is not None:
            for row, ids in enumerate(texts):
                if ids is not None and len(ids) == 0:
                    raise ValueError(f"text {row} is empty; give at least one token, or None for a row without text")
            rows = [list(ids or ()) for ids in texts]
            longest = max([1, *map(len, rows)])
            text = torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.long)
            text_lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
        return cls(label, text, text_lengths, *_padded_embeddings(embeddings))

    @property
    def num_rows(self) -> int | None:
        """B; None when there is no condition at all."""
        for entry in (self.label, self.text_lengths, self.embedding_lengths):
            if entry is not None:
                return entry.shape[0]
        return None

    def to(self, device: torch.device | str) -> ConditionBatch:
        """The same on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def rows(self, index: Tensor | slice) -> ConditionBatch:
        """The chosen rows."""
        return self._each(lambda tensor: tensor[index])

    def null(self, keep: Sequence[str] = ()) -> ConditionBatch:
        """As many rows, all without conditions, save the kinds that are kept."""
        nulls = {}
        if self.label is not None and "label" not in keep:
            nulls["label"] = torch.full_like(self.label, -1)
        for kind in ("text", "embedding"):
            lengths = getattr(self, f"{kind}_lengths")
            if lengths is not None and kind not in keep:
                nulls[f"{kind}_lengths"] = torch.zeros_like(lengths)
        return replace(self, **nulls)

    def followed_by(self, other: ConditionBatch) -> ConditionBatch:
        """The rows of both (texts of one padded length), for instance `batch.followed_by(batch.null())` for
        guidance."""
        joined = {}
        for name in (field.name for field in fields(self)):
            first, second = getattr(self, name), getattr(other, name)
            if (first is None) != (second is None):
                raise ValueError(f"one batch has '{name}' and the other has not")
            joined[name] = None if first is None else torch.cat([first, second])
        return ConditionBatch(**joined)

    def _each(self, change) -> ConditionBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return ConditionBatch(**{name: None if value is None else change(value) for name, value in values.items()})


@dataclass(frozen=True)
class Joined:
    """What the conditions of a batch add to the model's input."""

    prefix: Tensor | None
    """[B, P, D] tokens before the first step."""
    prefix_mask: Tensor | None
    """[B, P] bool, True on real tokens; None: all are."""
    memory: Tensor | None
    """[B, L, D] tokens for cross-attention."""
    memory_mask: Tensor | None
    """[B, L] bool; None: all are real."""
    summed: Tensor | None
    """[B, 1, D] added to every step."""


class Conditions(nn.Module):
    """All conditions of a model, in the order of the config."""

    def __init__(self, configs: Sequence[ConditionConfig], width: int, heads: int, rope_base: float = 10000.0):
        super().__init__()
        kinds = [config.kind for config in configs]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise ConfigError(f"conditions: '{kind}' is listed {kinds.count(kind)} times; list each kind once")
        self.configs = tuple(configs)
        self.parts = nn.ModuleDict(
            {config.kind: CONDITIONS[config.kind](config, width, heads, rope_base) for config in configs}
        )
        self.memory_norm = RMSNorm(width) if any(map(_reads_normed, configs)) else None

    def check(self, batch: ConditionBatch, num_rows: int | None) -> None:
        """ValueError unless the batch has exactly the model's conditions, in range, for num_rows rows (None: any
        number)."""
        for kind, found in (("label", batch.label), ("text", batch.text), ("embedding", batch.embedding)):
            name = f"an {kind}" if kind == "embedding" else f"a {kind}"
            if found is None and kind in self.parts:
                none = "label -1" if kind == "label" else f"{kind}_lengths 0"
                raise ValueError(
                    f"the model is conditioned on {name}, but none was given; pass one ({none} for a row without)"
                )
            if found is not None and kind not in self.parts:
                known = ", ".join(self.parts) or "nothing"
                raise ValueError(f"{name} was given, but the model is conditioned on {known}; leave it out")
        if batch.num_rows is not None and num_rows is not None and batch.num_rows != num_rows:
            raise ValueError(f"conditions have {batch.num_rows} rows, but {num_rows} rows were asked for")
        for part in self.parts.values():
            part.check(batch)  # type: ignore[operator]

    def forward(self, batch: ConditionBatch) -> Joined:
        """Embed the conditions of a checked batch; in training mode rows are dropped to the null."""
        prefix: list[tuple[Tensor, Tensor | None]] = []
        memory: list[tuple[Tensor, Tensor | None]] = []
        summed = None
        for config in self.configs:
            tokens, mask = self.parts[config.kind](batch)
            if config.join == "prefix":
                prefix.append((tokens, mask))
            elif config.join == "cross":
                if self.memory_norm is not None and _reads_normed(config):
                    tokens = self.memory_norm(tokens)
                memory.append((tokens, mask))
            else:
                summed = tokens
        joined_prefix, prefix_mask = _side_by_side(prefix)
        joined_memory, memory_mask = _side_by_side(memory)
        return Joined(joined_prefix, prefix_mask, joined_memory, memory_mask, summed)


class LabelCondition(nn.Module):
    """A learned vector for each label; the last row is the null."""

    def __init__(self, config: LabelConfig, width: int, heads: int, rope_base: float):
        super().__init__()
        if config.classes is None:
            raise ConfigError("conditions: label.classes is not set; it is the number of labels in the data")
        self.classes = config.classes
        self.dropout = config.dropout
        self.table = Table(config.classes + 1, width)

    def check(self, batch: ConditionBatch) -> None:
        label = batch.label
        assert label is not None
        if label.dim() != 1 or label.dtype != torch.long:
            raise ValueError(f"label must be long [B], found {label.dtype} {list(label.shape)}")
        if (
            label.device.type == "cpu"
            and label.numel()
            and not -1 <= int(label.min()) <= int(label.max()) < self.classes
        ):
            wrong = label[(label < -1) | (label >= self.classes)][0]
            raise ValueError(
                f"label {int(wrong)} is not one of the model's {self.classes} labels 0 to {self.classes - 1} (-1: none)"
            )

    def forward(self, batch: ConditionBatch) -> tuple[Tensor, Tensor | None]:
        """One token a row: [B, 1, D], all real."""
        label = batch.label
        assert label is not None
        label = torch.where(label < 0, self.classes, label)
        if self.training and self.dropout:
            label = torch.where(torch.rand(label.shape, device=label.device) < self.dropout, self.classes, label)
        return self.table(label).unsqueeze(1), None


class TextCondition(nn.Module):
    """Embeddings of text ids, optionally through a bidirectional transformer; a row without text is the one null
    token."""

    def __init__(self, config: TextConditionConfig, width: int, heads: int, rope_base: float):
        super().__init__()
        if config.vocab_size is None:
            raise ConfigError("conditions: text.vocab_size is not set; it is the size of the text tokenizer")
        self.vocab_size = config.vocab_size
        self.dropout = config.dropout
        self.table = Table(config.vocab_size, width)
        self.null = nn.Parameter(torch.zeros(1, width))
        # As a prefix, text gets its places by rotation in the backbone. Cross-attention rotates nothing: the places are
        # added here.
        self.place_scale = nn.Parameter(torch.full((1,), (4 / (5 * width)) ** 0.5)) if config.join == "cross" else None
        self.head_width, self.rope_base = width // heads, rope_base
        self.encoder = (
            Transformer(
                width=width,
                layers=config.layers,
                heads=heads,
                kv_heads=heads,
                ffn=4 * width,
                qk_norm=False,
                dropout=0.0,
                cross=False,
                attend=sdpa,
            )
            if config.layers
            else None
        )

    def check(self, batch: ConditionBatch) -> None:
        text, lengths = batch.text, batch.text_lengths
        assert text is not None
        if text.dim() != 2 or text.dtype != torch.long:
            raise ValueError(f"text must be long [B, L], found {text.dtype} {list(text.shape)}")
        if lengths is None or lengths.shape != text.shape[:1] or lengths.dtype != torch.long:
            raise ValueError(f"text_lengths must be long [{text.shape[0]}], one for each row of text (0: no text)")
        if text.device.type != "cpu":
            return
        shortest, longest = (int(value) for value in lengths.aminmax())
        if shortest < 0 or longest > text.shape[1]:
            raise ValueError(f"text_lengths must be 0 to the {text.shape[1]} ids given, found {shortest} to {longest}")
        ids = text[torch.arange(text.shape[1]) < lengths[:, None]]
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            wrong = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise ValueError(
                f"text id {int(wrong)} is not one of 0 to {self.vocab_size - 1}; encode with the model's text tokenizer"
            )

    def forward(self, batch: ConditionBatch) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, L, D] and their mask [B, L]."""
        text, lengths = batch.text, batch.text_lengths
        assert text is not None and lengths is not None
        if text.shape[1] == 0:
            text = text.new_zeros(text.shape[0], 1)
        if self.training and self.dropout:
            lengths = torch.where(torch.rand(lengths.shape, device=lengths.device) < self.dropout, 0, lengths)
        place = torch.arange(text.shape[1], device=text.device)
        mask = place < lengths.clamp(min=1)[:, None]
        tokens = self.table(torch.where(place < lengths[:, None], text, 0))
        tokens = torch.where(((lengths == 0)[:, None] & (place == 0)).unsqueeze(-1), self.null, tokens)
        if self.place_scale is not None:
            tokens = tokens + self.place_scale * sinusoids(len(place), tokens.shape[-1], tokens.device)
        if self.encoder is not None:
            table = rotary_table(place.unsqueeze(-1), self.head_width, self.rope_base)
            tokens = self.encoder(tokens, table, mask=mask[:, None, None, :])
        if mask.device.type == "cpu" and bool(mask.all()):
            return tokens, None  # elsewhere this look would wait for the device
        return tokens, mask


class EmbeddingCondition(nn.Module):
    """Given vectors through a linear layer; a row without is one token, learned or zero."""

    def __init__(self, config: EmbeddingConditionConfig, width: int, heads: int, rope_base: float):
        super().__init__()
        if config.projection == "none" and config.width != width:
            raise ConfigError(
                f"conditions: embedding.width is {config.width} and the model's width {width}; "
                "they must be the same with projection none"
            )
        self.width, self.dropout, self.pad = config.width, config.dropout, config.mask == "padding"
        self.projection = nn.Linear(config.width, width) if config.projection == "linear" else nn.Identity()
        if isinstance(self.projection, nn.Linear):
            nn.init.zeros_(self.projection.bias)
        self.null = nn.Parameter(torch.zeros(1, width)) if config.null == "learned" else None

    def check(self, batch: ConditionBatch) -> None:
        vectors, lengths = batch.embedding, batch.embedding_lengths
        assert vectors is not None
        if vectors.dim() != 3 or vectors.shape[-1] != self.width or not vectors.is_floating_point():
            raise ValueError(
                f"embedding must be floating point [B, L, {self.width}], found {vectors.dtype} {list(vectors.shape)}"
            )
        if lengths is None or lengths.shape != vectors.shape[:1] or lengths.dtype != torch.long:
            raise ValueError(f"embedding_lengths must be long [{vectors.shape[0]}], one for each row (0: no vectors)")
        if lengths.device.type == "cpu":
            shortest, longest = (int(value) for value in lengths.aminmax())
            if shortest < 0 or longest > vectors.shape[1]:
                found = f"found {shortest} to {longest}"
                raise ValueError(f"embedding_lengths must be 0 to the {vectors.shape[1]} vectors given, {found}")

    def forward(self, batch: ConditionBatch) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, L, D] and their mask [B, L]."""
        vectors, lengths = batch.embedding, batch.embedding_lengths
        assert vectors is not None and lengths is not None
        if vectors.shape[1] == 0:
            vectors = vectors.new_zeros(vectors.shape[0], 1, self.width)
        if self.training and self.dropout:
            lengths = torch.where(torch.rand(lengths.shape, device=lengths.device) < self.dropout, 0, lengths)
        place = torch.arange(vectors.shape[1], device=vectors.device)
        if isinstance(self.projection, nn.Linear):
            vectors = self.projection(vectors.to(self.projection.weight.dtype))
        tokens = vectors.masked_fill((place >= lengths[:, None]).unsqueeze(-1), 0.0)
        if self.null is not None:
            tokens = torch.where(((lengths == 0)[:, None] & (place == 0)).unsqueeze(-1), self.null, tokens)
        mask = place < lengths.clamp(min=1)[:, None]
        if not self.pad or (mask.device.type == "cpu" and bool(mask.all())):
            return tokens, None
        return tokens, mask


CONDITIONS: dict[str, type[nn.Module]] = {
    "label": LabelCondition,
    "text": TextCondition,
    "embedding": EmbeddingCondition,
}


def _reads_normed(config: ConditionConfig) -> bool:
    """Whether cross-attention reads a condition's tokens normalised."""
    return config.join == "cross" and (not isinstance(config, EmbeddingConditionConfig) or config.norm == "rms")


def _padded_embeddings(rows: Sequence[Tensor | None] | None) -> tuple[Tensor | None, Tensor | None]:
    """[B, L, width] and lengths [B] of B entries [l, width], None for a row without."""
    if rows is None:
        return None, None
    given = [row for row in rows if row is not None]
    if not given or any(row.dim() != 2 or len(row) == 0 or row.shape[1] != given[0].shape[1] for row in given):
        found = [None if row is None else list(row.shape) for row in rows]
        raise ValueError(f"embeddings must be [L, width] of one width, at least one not empty, found {found}")
    longest = max(len(row) for row in given)
    none = given[0].new_zeros(longest, given[0].shape[1])
    padded = [none if row is None else nn.functional.pad(row, (0, 0, 0, longest - len(row))) for row in rows]
    return torch.stack(padded), torch.tensor([0 if row is None else len(row) for row in rows])


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Fixed places [length, width], float32: sines and cosines of wavelengths 2 pi to 20000 pi (arXiv:1706.03762)."""
    half = width // 2
    speeds = 10000.0 ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * speeds
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=-1), (0, width - 2 * half))


def count_back(mask: Tensor) -> Tensor:
    """Positions of prefix tokens: -1 for a row's last real one, -2 before it, and so on; long like mask [B, P]."""
    return -mask.long().flip(1).cumsum(1).flip(1)


def fill_sizes(
    configs: Sequence[ConditionConfig],
    classes: NonNegativeInt | None = None,
    vocab_size: NonNegativeInt | None = None,
) -> tuple[ConditionConfig, ...]:
    """Fill in sizes the config leaves open; ConfigError where the config says another number than the data."""
    filled = []
    for config in configs:
        if isinstance(config, EmbeddingConditionConfig):
            filled.append(config)
            continue
        name, size = ("classes", classes) if isinstance(config, LabelConfig) else ("vocab_size", vocab_size)
        said = getattr(config, name)
        if size is not None and said is not None and said != size:
            raise ConfigError(
                f"conditions: {config.kind}.{name} is {said}, but the data has {size}; leave it out or write {size}"
            )
        filled.append(config if size is None else config.model_copy(update={name: size}))
    return tuple(filled)


def _side_by_side(parts: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor | None, Tensor | None]:
    if not parts:
        return None, None
    tokens = torch.cat([part for part, _ in parts], dim=1) if len(parts) > 1 else parts[0][0]
    if all(mask is None for _, mask in parts):
        return tokens, None
    masks = [part.new_ones(part.shape[:2], dtype=torch.bool) if mask is None else mask for part, mask in parts]
    return tokens, torch.cat(masks, dim=1)
