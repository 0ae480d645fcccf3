"""Custom language models: the interface they implement and the adapter through which the decode loop runs them.

    class Mine:
        spec: TokenSpec                 specification of the codes (tokenizer.spec)
        arrangement: CodebookPattern    the step of each code
        def logits(self, ids): ...      ids [B, K, S] long -> logits [B, K, V] of the next step

The loop requests the logits of one step after another, passing all ids so far, and handles everything else: sampling,
ends, prompts, seeds, decoding. Nothing is cached, so each step costs a forward pass over the whole sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

from ...lm.conditioning.batch import ConditionBatch
from ...lm.models.base import DecodePlan, LanguageModel
from ...lm.patterns.pattern import CodebookPattern
from ...lm.patterns.sub_tokens import SubTokens
from ...tokenize.spec import TokenSpec
from ...tokenize.tokenizer import Tokenizer


class CustomLM(Protocol):
    """The interface of a language model that is not Tessera's."""

    spec: TokenSpec
    """Specification of the codes, equal to that of the tokenizer that decodes them."""
    arrangement: CodebookPattern
    """The step of each code, and whether sequences have an end code (variable_length)."""

    def logits(self, ids: Tensor) -> Tensor:
        """Logits of the next step.

        Args:
            ids: [B, K, S] long: `arrangement.start_ids`, then the ids of all steps so far, including special ids.
        Returns:
            [B, K, V] floating point, V = max(arrangement.output_sizes): the codes of the largest codebook, plus one for
            the end if codebook 0 is the largest and may end. Values beyond a codebook's size are ignored.
        """
        ...


NEEDED = {"spec": "a TokenSpec", "arrangement": "a CodebookPattern", "logits": "ids [B, K, S] -> logits [B, K, V]"}
"""The attributes of a CustomLM."""


def check_pair(lm: Any, tokenizer: Any, who: str) -> LanguageModel:
    """The language model for the decode loop, a custom one wrapped; ValueError if either argument has the wrong type.

    Args:
        who: name of the called function, for messages.
    """
    if isinstance(lm, str) or hasattr(lm, "__fspath__"):
        raise ValueError(f"{who} takes a language model, found the path '{lm}'; use tessera.load('{lm}').{_short(who)}")
    if isinstance(lm, Tokenizer):
        raise ValueError(f"{who} takes the language model first and the tokenizer second; the arguments are swapped")
    if hasattr(lm, "lm") and hasattr(lm, "tokenizer"):
        raise ValueError(f"{who} takes a language model; a Model has both, use model.{_short(who)}(...)")
    found = lm if isinstance(lm, LanguageModel) else _wrapped(lm, who)
    lacking = [name for name in ("spec", "decode") if not hasattr(tokenizer, name)]
    if lacking or isinstance(tokenizer, type):
        raise ValueError(
            f"{who} takes a tokenizer second (tessera.load_tokenizer gives one), found {_described(tokenizer)}"
            + (f" without {', '.join(lacking)}" if lacking else "")
        )
    return found


def _wrapped(lm: Any, who: str) -> LanguageModel:
    if isinstance(lm, type):
        raise ValueError(f"{who} takes a language model, found the class {lm.__name__}; create an instance first")
    missing = [name for name in NEEDED if not hasattr(lm, name)]
    if missing:
        lacks = ", ".join(f"{name} ({NEEDED[name]})" for name in missing)
        raise ValueError(
            f"{who} takes a TokenLM, or an object with {', '.join(NEEDED)} (tessera.generate.CustomLM); "
            f"found {_described(lm)} without {lacks}"
        )
    if not isinstance(lm.spec, TokenSpec) or not isinstance(lm.arrangement, CodebookPattern) or not callable(lm.logits):
        wanted = "spec must be a TokenSpec, arrangement a CodebookPattern and logits a method"
        raise ValueError(f"{who}: of {_described(lm)}, {wanted}")
    if lm.arrangement.cardinalities != tuple(lm.spec.cardinalities):
        raise ValueError(
            f"{who}: the arrangement of {_described(lm)} has codebooks of {list(lm.arrangement.cardinalities)} codes, "
            f"its spec of {list(lm.spec.cardinalities)}"
        )
    return Wrapped(lm)  # type: ignore[return-value]


def _short(who: str) -> str:
    return "stream" if who.startswith("stream") else "generate"


def _described(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


@dataclass
class WrappedState:
    """The ids read so far."""

    ids: Tensor
    """[B, K, S]."""
    step: int = 0
    head: None = None


class Wrapped:
    """A CustomLM as the decode loop sees it: its hidden state is the logits, its head passes them on."""

    config = SimpleNamespace(conditions=(), window=None, attention="none")
    ahead = None
    decode_plan = DecodePlan("autoregressive", in_order=True)
    programs: Any = None
    text_stream = None
    aligned = None
    """As part of `conditions`: there is no aligned text."""

    def __init__(self, own: CustomLM):
        self.own, self.spec, self.arrangement = own, own.spec, own.arrangement
        self.head = _PassOn(SubTokens(own.arrangement), own.arrangement.num_codebooks)
        self.device = torch.device(getattr(own, "device", "cpu"))
        self.conditions = self
        self.num_codebooks = own.arrangement.num_codebooks

    def with_nulls(self, batch: ConditionBatch, num_rows: int) -> ConditionBatch:
        """Return the batch unchanged; there are no conditions."""
        return batch

    def check_conditions(self, batch: ConditionBatch, num_rows: int | None = None) -> None:
        """ValueError for any condition: a custom model holds its own."""
        if batch.num_rows is not None:
            raise ValueError("a custom language model takes no label, text, embedding or voice; leave them out")

    def start_ids(self, num_rows: int) -> Tensor:
        """[B, K] long."""
        return torch.tensor(self.arrangement.start_ids, device=self.device).expand(num_rows, -1)

    def start(
        self, conditions: Any, capacity: int, num_rows: int, num_frames: int | None, cache: Any, bucketed: bool
    ) -> WrappedState:
        """Start a sequence; a custom model manages its own cache."""
        if bucketed:
            raise ValueError("step: a custom language model always runs its steps one by one; leave it out")
        if cache is not None:
            raise ValueError("cache: a custom language model manages its own cache; leave it out")
        return WrappedState(torch.zeros(num_rows, self.num_codebooks, 0, dtype=torch.long, device=self.device))

    def read(self, state: WrappedState, ids: Tensor, pointers: None = None) -> Tensor:
        """The logits [B, 1, K V] of the step after ids [B, K, n]."""
        state.ids = torch.cat([state.ids, ids], dim=2)
        state.step += ids.shape[2]
        with torch.no_grad():
            logits = self.own.logits(state.ids)
        wanted = (len(ids), self.num_codebooks, self.head.width)
        if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted or not logits.is_floating_point():
            found = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, Tensor) else _described(logits)
            raise ValueError(f"logits of {_described(self.own)} must be floating point {list(wanted)}, found {found}")
        return logits.to(self.device).flatten(1)[:, None]


class _PassOn:
    """A head that samples all codebooks of a step at once from given logits."""

    period = 1

    def __init__(self, sub_tokens: SubTokens, num_codebooks: int):
        self.sub_tokens, self.width = sub_tokens, max(sub_tokens.output_sizes)
        self.stages = (tuple(range(num_codebooks)),)
        sizes = torch.tensor(sub_tokens.output_sizes)[:, None]
        self.absent = torch.arange(self.width) >= sizes
        """[K, V] bool: values beyond the size of a codebook."""

    def stages_at(self, step: int) -> tuple[tuple[int, ...], ...]:
        return self.stages

    def begin(self, memory: None, hidden: Tensor, step: int) -> Tensor:
        return hidden

    def predict(self, begun: Tensor, stage: int, sub_tokens: Tensor) -> Tensor:
        logits = begun.unflatten(-1, self.absent.shape)
        return logits.masked_fill(self.absent.to(logits.device), float("-inf"))
