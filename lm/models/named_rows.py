"""Tensors of a model whose rows stand for something with a name: a code, a label, a piece of text.

    input.table.weight                   code v of codebook k, special ids
    head.weight                          the same, as predicted
    conditions.parts.label.table.weight  labels, and the null
    conditions.parts.text.table.weight   pieces of the text tokenizer
    input.text.weight, head.text.weight  the same of a text stream, slot and special ids

Two models with other codebooks, labels or text tokenizers have such tensors in other sizes or orders. `fill_rows`
copies the rows that both have.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ...tokenize.text.base import TextTokenizer
from ..conditioning.aligned import AlignedCondition
from ..conditioning.codes import CodesCondition
from ..conditioning.dual_track import DualTrackCondition
from ..conditioning.label import LabelCondition
from ..conditioning.text import TextCondition
from ..heads.depth_reader import CodeSumEmbedding, SubTokenEmbedding
from ..heads.depth_transformer import DepthHead
from ..heads.flat import FlatHead
from ..heads.parallel import ParallelHead
from ..heads.text_stream import StreamHead
from ..layers.embedding import SpecialVectors
from ..layers.input_embedding import BitsInput, CodesInput, EmbeddingInput, FactorInput, NoisyInput
from ..layers.stream_input import StreamInput
from ..patterns.pattern import CodebookPattern, ParallelConfig
from ..patterns.sub_tokens import SubTokens
from .transformer_lm import TransformerLM

RowKind = Literal["codebooks", "labels", "text"]
NULL = ("null",)
"""Name of the row of rows without a label."""


@dataclass(frozen=True)
class NamedRows:
    """What the rows of a tensor stand for."""

    kind: RowKind
    names: tuple[Hashable | None, ...]
    """One for each row; None: the row is not used."""
    axis: int = 0
    """The axis they are along."""


def named_rows(lm: TransformerLM, labels: Sequence[str], text: TextTokenizer | None) -> dict[str, NamedRows]:
    """The tensors of a model with named rows, by their names in its state_dict.

    Args:
        labels: label names in the order of ids. text: the model's text tokenizer, if it reads text.
    """
    if isinstance(lm.input, StreamInput) and isinstance(lm.head, StreamHead):
        found = _stream_rows(lm, text)
    else:
        found = dict(_input_rows("input", lm.input, lm.arrangement)) | _head_rows("head", lm.head, lm.arrangement)
    for kind, part in lm.conditions.parts.items():
        name = f"conditions.parts.{kind}"
        if isinstance(part, LabelCondition):
            found[f"{name}.table.weight"] = NamedRows("labels", (*labels, NULL))
        elif isinstance(part, TextCondition | AlignedCondition | DualTrackCondition) and text is not None:
            found[f"{name}.table.weight"] = NamedRows("text", text.names_of_ids())
        elif isinstance(part, CodesCondition) and part.input is not None:
            frames = CodebookPattern(ParallelConfig(), part.cardinalities)
            found |= dict(_input_rows(f"{name}.input", part.input, frames))
    return found


def fill_rows(own: Tensor, rows: NamedRows, given: Tensor, given_rows: NamedRows) -> Tensor:
    """A copy of a tensor in which the rows that another tensor has, by name, are those of that tensor.

    Raises:
        ValueError: the tensors differ beyond the number of rows.
    """
    across = (own.transpose(0, rows.axis).shape[1:], given.transpose(0, given_rows.axis).shape[1:])
    if across[0] != across[1]:
        raise ValueError(f"its rows are {list(across[0])}, in the other model they are {list(across[1])}")
    place = {name: row for row, name in enumerate(given_rows.names) if name is not None}
    both = [(row, place[name]) for row, name in enumerate(rows.names) if name is not None and name in place]
    filled = own.clone()
    if both:
        here, there = (torch.tensor(index, device="cpu") for index in zip(*both, strict=True))
        filled.transpose(0, rows.axis)[here] = given.transpose(0, given_rows.axis)[there].to(own.dtype)
    return filled


def _stream_rows(lm: TransformerLM, text: TextTokenizer | None) -> dict[str, NamedRows]:
    """The rows of the input and the head of a model with a text stream."""
    stream = lm.text_stream
    assert stream is not None
    found = dict(_input_rows("input.audio", lm.input.audio, stream.audio))  # type: ignore[union-attr]
    found |= _head_rows("head.audio", lm.head.audio, stream.audio)
    if text is not None:
        names = (*text.names_of_ids(), ("slot",))
        found["input.text.weight"] = NamedRows("text", (*names, *_special_names(lm.arrangement)))
        unused = [None] * (lm.arrangement.end_ids[0] - len(names))
        if lm.head.text is not None:
            found["head.text.weight"] = NamedRows("text", (*names[stream.unpredicted :], *unused, ("end",)))
    return found


def _special_names(arrangement: CodebookPattern) -> list[frozenset[str]]:
    """The roles of each special id of a codebook, in order."""
    V = arrangement.cardinalities[0]
    roles = {"start": arrangement.start_ids[0], "pad": arrangement.pad_ids[0], "end": arrangement.end_ids[0]}
    if arrangement.absent_ids is not None:
        roles["absent"] = arrangement.absent_ids[0]
    return [
        frozenset(role for role, at in roles.items() if at == V + number) for number in range(arrangement.num_specials)
    ]


def _input_rows(name: str, module: nn.Module, arrangement: CodebookPattern) -> Iterator[tuple[str, NamedRows]]:
    specials, sizes = _special_names(arrangement), arrangement.cardinalities
    if isinstance(module, NoisyInput):
        yield from _input_rows(f"{name}.inner", module.inner, arrangement)
    elif isinstance(module, EmbeddingInput):
        names = [(k, 0, value) for k, V in enumerate(sizes) for value in (*range(V), *specials)]
        yield f"{name}.table.weight", NamedRows("codebooks", tuple(names))
    elif isinstance(module, FactorInput):
        yield f"{name}.table.weight", NamedRows("codebooks", tuple(_values_read(module.sub_tokens, specials)))
    elif isinstance(module, BitsInput):
        bits = zip(module.books.tolist(), module.shifts.flatten().tolist(), strict=True)
        yield f"{name}.linear.weight", NamedRows("codebooks", tuple(bits), axis=1)
    elif isinstance(module, CodesInput) and module.combine == "concat":
        depth = module.vectors.shape[1]
        names = [(k, channel) for k in range(len(sizes)) for channel in range(depth)]
        yield f"{name}.linear.weight", NamedRows("codebooks", tuple(names), axis=1)
    if isinstance(getattr(module, "specials", None), SpecialVectors):
        names = [(k, special) for k in range(len(sizes)) for special in specials]
        yield f"{name}.specials.weight", NamedRows("codebooks", tuple(names))


def _values_read(sub_tokens: SubTokens, specials: Sequence[frozenset[str]]) -> Iterator[Hashable]:
    """Names of the values of all sub-tokens in turn, as an embedding table reads them."""
    for j, (size, rows) in enumerate(zip(sub_tokens.values, sub_tokens.input_sizes, strict=True)):
        k, part = sub_tokens.codebooks[j], j % sub_tokens.parts
        beyond = specials if rows - size == len(specials) else ["none"] * (rows - size)
        yield from ((k, part, value) for value in (*range(size), *beyond))


def _values_predicted(sub_tokens: SubTokens, j: int, rows: int) -> Iterator[Hashable | None]:
    """Names of the rows of an output layer of sub-token j: its values, the end, and what is not used."""
    k, part = sub_tokens.codebooks[j], j % sub_tokens.parts
    for row in range(rows):
        if row < sub_tokens.values[j]:
            yield k, part, row
        else:
            yield (k, part, "end") if j == 0 and row == sub_tokens.end < sub_tokens.output_sizes[0] else None


def _head_rows(name: str, head: nn.Module, arrangement: CodebookPattern) -> dict[str, NamedRows]:
    found: dict[str, NamedRows] = {}
    if isinstance(head, ParallelHead):
        J, V = head.shape
        names = [value for j in range(J) for value in _values_predicted(head.sub_tokens, j, V)]
        found[f"{name}.weight"] = NamedRows("codebooks", tuple(names))
        if head.bias is not None:
            found[f"{name}.bias"] = found[f"{name}.weight"]
    elif isinstance(head, FlatHead | DepthHead):
        sub_tokens = head.sub_tokens
        first = int(isinstance(head, DepthHead) and head.backbone_first)
        if len(head.outputs) == len(sub_tokens) - first and len(head.outputs) > 1:  # one layer for each
            for number, layer in enumerate(head.outputs):
                names = _values_predicted(sub_tokens, number + first, int(layer.out_features))  # type: ignore[arg-type]
                found[f"{name}.outputs.{number}.weight"] = NamedRows("codebooks", tuple(names))
    if isinstance(head, DepthHead):
        sub_tokens, specials = head.sub_tokens, _special_names(arrangement)
        if head.positions is not None:
            places = [(sub_tokens.codebooks[j], j % sub_tokens.parts) for j in range(len(sub_tokens))]
            found[f"{name}.positions.weight"] = NamedRows("codebooks", tuple(places))
        if head.first is not None:
            names = _values_predicted(sub_tokens, 0, head.first.out_features)
            found[f"{name}.first.weight"] = NamedRows("codebooks", tuple(names))
        if isinstance(head.reader, SubTokenEmbedding):
            read = tuple(_values_read(sub_tokens, specials))[: sum(sub_tokens.input_sizes[:-1])]
            found[f"{name}.reader.table.weight"] = NamedRows("codebooks", read)
        elif isinstance(head.reader, CodeSumEmbedding):
            names = [(k, special) for k in range(arrangement.num_codebooks - 1) for special in specials]
            found[f"{name}.reader.specials.weight"] = NamedRows("codebooks", tuple(names))
    return found
