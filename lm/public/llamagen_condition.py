"""What LlamaGen's language models are conditioned on: a class (c2i) or a caption (t2i), as their tensors tell.

    cls_embedding.embedding_table.weight   c2i: a row for each class, and one for no class
    cls_embedding.cap_proj.fc1.weight      t2i: the states of a flan-T5 through two layers with a GELU between them
    cls_embedding.cap_proj.fc2.weight
    cls_embedding.uncond_embedding         t2i: in place of the states of a caption, of no caption

Captions have up to 120 states. There they are padded on the left to 120, the padding is masked, and the last state
predicts the first code; here the states of a row end where its codes begin, which is the same. The mask of a caption is
that of its null as well: the last n rows of `uncond_embedding` stand for n states.
Source: LlamaGen (arXiv:2406.06525), FoundationVision/LlamaGen (MIT): autoregressive/models/gpt.py, generate.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...configs.schema import make_config
from ...configs.tensor_checks import WeightsError
from ...tokenize.public.tensor_map import Concat, Constant, Shape, Source, Term
from ..conditioning.registry import ConditionConfig, EmbeddingConditionConfig, LabelConfig

RELEASED_CLASSES = 1000
"""Number of ImageNet classes; the class tables have one more row, for no class."""
TABLE = "cls_embedding.embedding_table.weight"
CAPTION = "cls_embedding.cap_proj.fc1.weight"
CAPTION_OUT = "cls_embedding.cap_proj.fc2.weight"
UNCONDITIONED = "cls_embedding.uncond_embedding"
DROPOUT = 0.1
"""Class default of `class_dropout_prob`."""


def read_condition(described: Mapping[str, Any], shapes: Mapping[str, Shape], where: Path) -> ConditionConfig:
    """The condition of a model with these tensors and this config.json.

    Args:
        where: path of config.json, for messages.
    Raises:
        WeightsError: the tensors are of neither kind. ValueError: config.json says otherwise.
    """
    kind = "t2i" if CAPTION in shapes else "c2i"
    if described.get("gpt_type", kind) != kind:
        raise ValueError(
            f"{where}: gpt_type is {str(described['gpt_type'])[:80]!r}, but the tensors are of a {kind} model"
        )
    if kind == "c2i":
        classes, dropout = _classes(described, matrix(shapes, TABLE, where.parent)[0], where)
        return label_condition(classes, dropout, str(where))
    width = matrix(shapes, CAPTION, where.parent)[1]
    length = matrix(shapes, UNCONDITIONED, where.parent)[0]
    for key, found in (("cls_token_num", length), ("caption_dim", width)):
        if described.get(key, found) != found:
            raise ValueError(f"{where}: {key} is {described[key]}, but the tensors have {found}")
    return caption_condition(width, length, float(described.get("class_dropout_prob", DROPOUT)), str(where))


def label_condition(classes: int, dropout: float = DROPOUT, where: str = "llamagen") -> LabelConfig:
    """The condition of c2i; ConfigError messages begin with `where`."""
    return make_config(LabelConfig, where, classes=classes, dropout=dropout)


def caption_condition(
    width: int, length: int, dropout: float = DROPOUT, where: str = "llamagen"
) -> EmbeddingConditionConfig:
    """The condition of t2i; ConfigError messages begin with `where`.

    Args:
        width: of the text encoder's states. length: most states of a caption.
    """
    return make_config(
        EmbeddingConditionConfig,
        where,
        width=width,
        length=length,
        projection="mlp",
        join="prefix",
        mask="padding",
        null="vectors",
        dropout=dropout,
    )


def describe_condition(condition: ConditionConfig | None) -> dict[str, Any]:
    """The keys of config.json that describe a condition."""
    if isinstance(condition, EmbeddingConditionConfig):
        keys = {"gpt_type": "t2i", "caption_dim": condition.width, "cls_token_num": condition.length or 1}
    else:
        classes = condition.classes if isinstance(condition, LabelConfig) else None
        keys = {"num_classes": 1 if classes is None else classes}
    return keys | {"class_dropout_prob": 0.0 if condition is None else condition.dropout}


def expected_condition(condition: ConditionConfig | None) -> ConditionConfig:
    """What a written condition is read back as."""
    keys = describe_condition(condition)
    if "caption_dim" in keys:
        return caption_condition(keys["caption_dim"], keys["cls_token_num"], keys["class_dropout_prob"])
    return label_condition(keys["num_classes"], keys["class_dropout_prob"])


def condition_terms(condition: ConditionConfig, shapes: Mapping[str, Shape]) -> dict[str, Term]:
    """The terms of the condition's tensors, for a model with these shapes."""
    if isinstance(condition, EmbeddingConditionConfig):
        part = "conditions.parts.embedding."
        return {
            f"{part}projection.first.weight": Source(CAPTION),
            f"{part}projection.second.weight": Source(CAPTION_OUT),
            f"{part}null_vectors": Source(UNCONDITIONED),
        }
    table = "conditions.parts.label.table.weight"
    if condition.dropout > 0:
        return {table: Source(TABLE)}
    null = Constant(0.0, required=False)  # a class table trained without dropout has no row for no class
    return {table: Concat((Source(TABLE), null), (shapes[table][0] - 1, 1))}


def matrix(shapes: Mapping[str, Shape], name: str, folder: Path) -> tuple[int, int]:
    """Shape of a tensor that determines the model's size; WeightsError: it is missing, or no matrix."""
    shape = shapes.get(name)
    if shape is None or len(shape) != 2:
        found = "missing" if shape is None else f"{list(shape)}, no matrix"
        raise WeightsError(f"{folder}: tensor '{name}' is {found}; this is no model of LlamaGen (c2i or t2i)")
    return shape[0], shape[1]


def _classes(described: Mapping[str, Any], rows: int, where: Path) -> tuple[int, float]:
    """Classes and dropout of a class table with this many rows: with dropout, the last row is for no class."""
    classes, dropout = described.get("num_classes"), described.get("class_dropout_prob")
    if classes is None and dropout is None and rows != RELEASED_CLASSES + 1:
        warnings.warn(
            f"{where}: the class table has {rows} rows; it is read as {rows} classes and no null class, so "
            f"without guidance; if the last row is the null class, set num_classes {rows - 1} in the file",
            stacklevel=4,
        )
        dropout = 0.0
    if classes is None:
        classes = rows if dropout == 0 else rows - 1
    if dropout is None:
        dropout = 0.0 if classes == rows else DROPOUT
    if rows != classes + (dropout > 0):
        raise ValueError(
            f"{where}: num_classes {classes} with class_dropout_prob {dropout} makes a class table of "
            f"{classes + (dropout > 0)} rows, but it has {rows}"
        )
    return classes, float(dropout)
