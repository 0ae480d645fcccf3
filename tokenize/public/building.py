"""From a public checkpoint to a frozen tokenizer, and back to its tensors: what all codecs share."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...configs.printable import one_line
from ...configs.tensor_checks import WeightsError
from ..kinds import FROZEN, empty_net
from ..quantizers.codebooks.codebook import Codebook
from .checkpoint import Checkpoint
from .survey import survey_part
from .tensor_map import Constant, Folded, Shape, Source, TensorMap, Term

if TYPE_CHECKING:
    from ..base import Tokenizer
    from ..kinds import FrozenConfig, TokenizerConfig

WeightNorm = Callable[[str], Term]
"""Term of the weight of a layer, from the layer's name in the checkpoint."""


def plain_weight(layer: str) -> Term:
    """`layer.weight`."""
    return Source(f"{layer}.weight")


def weight_g(layer: str) -> Term:
    """`layer.weight_g` and `layer.weight_v`: torch's weight norm until 2.0, and most published files."""
    return Folded(f"{layer}.weight_g", f"{layer}.weight_v")


def parametrized(layer: str) -> Term:
    """`layer.parametrizations.weight.original0` and `original1`: torch's weight norm since 2.0."""
    return Folded(f"{layer}.parametrizations.weight.original0", f"{layer}.parametrizations.weight.original1")


def found_weight_norm(checkpoint: Checkpoint) -> WeightNorm:
    """The spelling of each layer's weight in a checkpoint; a layer may have no weight norm."""

    def term(layer: str) -> Term:
        for spelling in (weight_g, parametrized):
            if next(iter(spelling(layer).sources((1,)))) in checkpoint.shapes:
                return spelling(layer)
        return plain_weight(layer)

    return term


def codebook_terms(prefix: str, vectors: Term) -> dict[str, Term]:
    """Terms of a codebook with moving averages whose vectors [V, D] are given: sum = vectors, count = 1."""
    return {f"{prefix}.sum": vectors, **_counters(prefix)}


def learned_codebook_terms(prefix: str, vectors: Term) -> dict[str, Term]:
    """Terms of a codebook trained by gradient, whose vectors [V, D] are its weight."""
    return {f"{prefix}.weight": vectors, **_counters(prefix)}


def any_codebook_terms(prefix: str, vectors: Term, ours: Container[str]) -> dict[str, Term]:
    """Terms of a codebook, however it was trained: as its tensors among ours say."""
    make = learned_codebook_terms if f"{prefix}.weight" in ours else codebook_terms
    return make(prefix, vectors)


def _counters(prefix: str) -> dict[str, Term]:
    """State of the codebook's training, which checkpoints do not have: all codes used equally, started."""
    counters = {"count": 1.0, "updates": 0.0, "started": 1.0}
    return {f"{prefix}.{name}": Constant(value, required=False) for name, value in counters.items()}


def tokenizer_shapes(config: FrozenConfig) -> dict[str, Shape]:
    """Names and shapes of a frozen tokenizer's tensors, without allocating them.

    Raises:
        ValueError: the config asks for tensors of a size that does not exist.
    """
    net = next((net for held, net in _last[:] if held == config), None)
    if net is None:
        try:
            with torch.device("meta"):
                net = empty_net(config)
        except (RuntimeError, OverflowError, TypeError) as error:
            raise ValueError(
                f"the config of {config.name} asks for an impossible network: {one_line(error)[:150]}"
            ) from None
        _last[:] = [(config, net)]
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


_last: list[tuple[FrozenConfig, Any]] = []
"""The last config and its network on the meta device: the tensor map and the reader of a checkpoint ask for the same,
and the reader takes it out to fill it. Threads may load at once, so a network is never put back."""


def _net_to_fill(config: FrozenConfig) -> Any:
    """A network all of whose tensors are still to be set: the one that `tokenizer_shapes` made, unless it has tensors
    that no file stores."""
    try:
        held, net = _last.pop()
    except IndexError:
        return empty_net(config)
    tensors = dict(chain(net.named_parameters(), net.named_buffers()))
    return net if held == config and net.state_dict().keys() == tensors.keys() else empty_net(config)


def read_tokenizer(config: TokenizerConfig, tensor_map: TensorMap, checkpoint: Checkpoint) -> Tokenizer:
    """Build a frozen tokenizer from a public checkpoint; its weights stay float32.

    Raises:
        WeightsError: tensors are missing, left over, or of another shape than the config requires.
    """
    shapes = tokenizer_shapes(config)
    survey_part(config, tensor_map, shapes, checkpoint)
    checkpoint.check(tensor_map, shapes)  # before anything is allocated
    net = _net_to_fill(config)
    tensors = tensor_map.read(shapes, checkpoint.tensors)
    for name, parameter in net.named_parameters():
        if not is_finite(tensors[name]):
            sources = ", ".join(tensor_map.terms[name].sources(tuple(parameter.shape)))
            raise WeightsError(f"{checkpoint.path}: {sources}: weights must be finite floating point numbers")
    held = net.state_dict()  # the tensors take the places of the network's: nothing is copied that fits as it is
    tensors = {name: tensor.to(held[name].dtype).contiguous() for name, tensor in tensors.items()}
    net.load_state_dict(tensors, assign=True)
    return FROZEN[config.kind](config, net, "float32")


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds finite floating point numbers alone; in one pass, without a mask of its size."""
    if not tensor.is_floating_point():
        return False
    flat = tensor.reshape(-1)
    if flat.dtype == torch.float32 and torch.dot(flat, flat).isfinite():  # as fast as memory; large numbers overflow
        return True
    return flat.numel() == 0 or all(one.isfinite() for one in flat.aminmax())


def public_tensors(tokenizer: Tokenizer, tensor_map: TensorMap) -> dict[str, Tensor]:
    """A tokenizer's tensors under the names of a public checkpoint, float32.

    Raises:
        CannotWrite: the layout cannot represent a value; the message names the tensor.
    """
    tensors = dict(tokenizer.net.state_dict())
    for name, module in tokenizer.net.named_modules():
        if isinstance(module, Codebook):  # however they were trained, the vectors are what is written
            plain = module.learned and module.form is None  # before they are normalized, which a reader repeats
            tensors[f"{name}.sum"] = tensors[f"{name}.weight"] = module.weight if plain else module.entries()
    return tensor_map.write(tensors)


def count_levels(shapes: Mapping[str, Shape], before: str, after: str) -> int:
    """Number of consecutive levels k = 0, 1, ... for which the checkpoint has `before + k + after`."""
    count = 0
    while f"{before}{count}{after}" in shapes:
        count += 1
    return count
