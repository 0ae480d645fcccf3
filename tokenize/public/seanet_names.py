"""Names of SEANet layers in public checkpoints, from the names of our tensors.

Both sides number the layers alike, activations included; only the recurrence is a separate part here.

              ours                            transformers                    audiocraft, encodec, moshi
    encoder   encoder.down.3.conv.weight      encoder.layers.3.conv           encoder.model.3.conv.conv
    block     encoder.down.1.layers.1.conv    encoder.layers.1.block.1.conv   encoder.model.1.block.1.conv.conv
    LSTM      encoder.recurrence.lstm         encoder.layers.13.lstm          encoder.model.13.lstm
    decoder   decoder.up.1.conv               decoder.layers.3.conv           decoder.model.3.convtr.convtr
    norm      decoder.up.1.norm               decoder.layers.3.norm           decoder.model.3.convtr.norm
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..audio.seanet import SEANetConfig
from .building import WeightNorm
from .tensor_map import Source, Term

_LAYER = re.compile(
    r"(encoder|decoder)\.(down|last|first|up)\.(\d+)\.(layers\.\d+\.|shortcut\.)?(conv|norm)\.(weight|bias)"
)
_LSTM = re.compile(r"(encoder|decoder)\.recurrence\.lstm\.(\w+)")


@dataclass(frozen=True)
class SEANetNames:
    """Spelling of a library: where the layers are, and the attribute path of a convolution inside its layer."""

    layers: str = "layers"
    conv: str = "conv"
    transposed: str = "conv"


TRANSFORMERS = SEANetNames()
NATIVE = SEANetNames("model", "conv.conv", "convtr.convtr")


def seanet_terms(
    ours: Iterable[str],
    encoder: SEANetConfig,
    decoder: SEANetConfig,
    weight: WeightNorm,
    names: SEANetNames,
    prefix: str = "",
) -> dict[str, Term]:
    """Terms of all SEANet tensors among our names. prefix: of their names, for a codec inside another model."""
    terms: dict[str, Term] = {}
    before = 1 + sum(encoder.residual_layers + 2 for _ in encoder.ratios)
    starts = {"down": 0, "last": before + 1, "first": 0, "up": 2 if decoder.lstm_layers else 0}
    recurrences = {"encoder": before, "decoder": 1}
    transposed = _transposed(decoder)
    for name in ours:
        layer, lstm = _LAYER.fullmatch(name), _LSTM.fullmatch(name)
        if layer is not None:
            side, part, place, inside, kind, leaf = layer.groups()
            number = int(place) + starts[part]
            path = names.transposed if part == "up" and not inside and int(place) in transposed else names.conv
            inner = (inside or "").replace("layers.", "block.")
            theirs = f"{prefix}{side}.{names.layers}.{number}.{inner}{path}"
            if kind == "norm":
                terms[name] = Source(f"{theirs.rpartition('.')[0]}.norm.{leaf}")
            else:
                terms[name] = weight(theirs) if leaf == "weight" else Source(f"{theirs}.bias")
        elif lstm is not None:
            side, leaf = lstm.groups()
            terms[name] = Source(f"{prefix}{side}.{names.layers}.{recurrences[side]}.lstm.{leaf}")
    return terms


def _transposed(decoder: SEANetConfig) -> set[int]:
    """Places of the transposed convolutions in our `up`."""
    first = 1 if decoder.lstm_layers else 2  # an activation comes before each
    return {first + number * (decoder.residual_layers + 2) for number in range(len(decoder.ratios))}
