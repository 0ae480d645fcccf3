"""Forward pass of a tokenizer in training, and the gradient of its losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...lm.ops.linear import lacks_bfloat16
from ...tokenize.audio.networks import AudioNet
from ...tokenize.image.networks import ImageNet
from ...tokenize.quantizers.registry import Quantized
from ..engines.base import Trainable
from ..losses.balancer import Balance, group_gradients
from ..losses.base import (
    LatentLoss,
    LatentLossInputs,
    MediaBatch,
    ReconstructionLoss,
    ReconstructionLossInputs,
    loss_signals,
)
from ..losses.codec_forward import decode_latents, encode_latents, last_layer
from .dataset import MediaInMemory


@dataclass(frozen=True)
class Passed:
    """Forward pass of one micro-batch."""

    found: Tensor | None
    """The reconstruction, shaped like the media; None if no output loss is active."""
    inner: dict[str, Tensor]
    """Inner loss -> [B]."""
    quantized: Quantized | None
    """None if latents were not quantized."""


class TokenizerObjective(Trainable):
    """The network and the layers that inner losses train with it.

    Args:
        net: of the tokenizer. terms: see registry.make_losses.
        dtype: "bfloat16" runs the layers under autocast, "float32" without.

    A CPU that lacks instructions for bfloat16 runs them in float32 all the same: its convolutions in bfloat16 take
    three times as long.
    """

    def __init__(self, net: AudioNet | ImageNet, terms: Mapping[str, ReconstructionLoss | LatentLoss], dtype: str):
        super().__init__()
        self.net = net
        self.geometry = net.config.geometry
        self.inner = nn.ModuleDict({name: term for name, term in terms.items() if isinstance(term, LatentLoss)})
        self.output = {name: term for name, term in terms.items() if isinstance(term, ReconstructionLoss)}
        self.use_autocast = dtype == "bfloat16"
        self.set_stage(frozenset(terms), quantize=True)

    @property
    def body(self) -> nn.Module:
        """Network and inner losses: "net.encoder...", "inner.NAME..."."""
        return self

    def set_stage(self, on: frozenset[str], quantize: bool) -> None:
        """Select the active losses, and whether latents are quantized."""
        self.inner_on = {
            name: term
            for name, term in self.inner.items()
            if name in on and isinstance(term, LatentLoss) and (quantize or not term.needs_codes)
        }
        self.output_on = {name: term for name, term in self.output.items() if name in on}
        self.quantize = quantize

    def precision(self, device: torch.device):
        """Autocast to the configured precision."""
        enabled = self.use_autocast and not (device.type == "cpu" and lacks_bfloat16())
        return torch.autocast(device.type, torch.bfloat16, enabled=enabled)

    def forward(self, batch: MediaBatch) -> Passed:
        """Encode, quantize, decode, and compute the inner losses."""
        net, mask = self.net, batch.frame_mask
        with self.precision(batch.media.device):
            latents = encode_latents(net, batch.media, mask)
            quantized = net.quantizer(latents, mask) if self.quantize else None
            values = latents if quantized is None else quantized.values
            wanted = any(term.needs_found for term in self.inner_on.values())
            found = decode_latents(net, values, mask) if self.output_on or wanted else None
            seen = None if found is None else found.detach()
            view = LatentLossInputs(batch, latents, quantized, net.quantizer, self.geometry, seen)
            inner = {name: term(view) for name, term in self.inner_on.items()}
        return Passed(found if self.output_on else None, inner, quantized)

    def view(self, batch: MediaBatch, found: Tensor, **adversarial) -> ReconstructionLossInputs:
        """Inputs of the output losses; padding is silenced in both signals."""
        if batch.sample_mask is None:
            return ReconstructionLossInputs(batch, found, batch.media, **adversarial)
        mask = batch.sample_mask if found.dim() == 2 else batch.sample_mask[:, None]
        return ReconstructionLossInputs(
            batch, loss_signals(found * mask), loss_signals(batch.media * mask), **adversarial
        )

    def output_losses(self, view: ReconstructionLossInputs, names: Mapping[str, float]) -> dict[str, Tensor]:
        """Output loss -> [B], for the given names."""
        with self.precision(view.found.device):
            losses = {name: self.output_on[name](view).float() for name in names}
        # The loss of an example is the mean over its signals.
        return {name: loss.unflatten(0, (len(view.batch.media), -1)).mean(1) for name, loss in losses.items()}

    def at_last_layer(self, found: Tensor) -> Callable[[Tensor], Tensor]:
        """Function from a gradient with respect to `found` to that of the decoder's last layer; keeps the graph."""
        weight = last_layer(self.net)

        def turn(gradient: Tensor) -> Tensor:
            return torch.autograd.grad(found, weight, gradient, retain_graph=True)[0]

        return turn


def output_gradients(
    objective: TokenizerObjective, balance: Balance, losses: Mapping[str, Tensor], weights: Mapping[str, float],
    found: Tensor,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:  # fmt: skip
    """Gradients of the groups with respect to the reconstruction (of the sum over examples), and their statistics."""
    gradients = group_gradients(losses, balance.groups(weights), found)
    turn = objective.at_last_layer(found)
    return gradients, {group: balance.measure(gradients[group], turn) for group in balance.measured(weights)}


def surrogate(passed: Passed, gradient: Tensor | None, inner_weights: Mapping[str, float], items: int) -> Tensor:
    """A scalar with the gradient of the whole loss.

    The gradient of all output losses is multiplied with the reconstruction as a constant: these losses are already
    differentiated, so the backward pass through the network runs once.

    Args:
        gradient: of the output losses, summed over examples, shaped like passed.found; None if there are none.
        items: examples in the whole batch; the loss is a mean over them.
    """
    parts = [weight * passed.inner[name].sum() for name, weight in inner_weights.items() if name in passed.inner]
    if gradient is not None and passed.found is not None:
        parts.append((passed.found * gradient.detach()).sum())
    return torch.stack(parts).sum() / items


@torch.no_grad()
def collect_latents(
    net: AudioNet | ImageNet, objective: TokenizerObjective, media: MediaInMemory, items: int, device: torch.device
) -> Tensor:
    """Latents of the first `items` training examples, rounded up to whole batches, for a fit stage.

    Args:
        net: encodes the media, in eval mode. objective: gives the precision.
    Returns:
        [frames, D], without padding.
    """
    found, size = [], media.settings.batch
    for step in range(-(-items // size)):
        batch = media.batch(step, media.rows(step), 0, size).to(device)
        with objective.precision(device):
            latents = encode_latents(net, batch.media, batch.frame_mask)
        found.append(latents.flatten(0, 1) if batch.frame_mask is None else latents[batch.frame_mask])
    return torch.cat(found)
