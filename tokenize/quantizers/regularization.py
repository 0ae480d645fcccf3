"""Losses on code usage: entropies of a soft assignment, disentanglement of sub-codebooks, moment matching.

Entropies are those of p(code | x) under a soft assignment. Probabilities are neither offset nor clamped before the
logarithm, which would cap the loss: log(p + 1e-5) never exceeds 11.5 nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...configs.schema import Config

PROBABILITIES = 1 << 22
"""Number of probabilities held at once."""


class EntropyConfig(Config):
    """Entropy loss for confident assignments per latent and uniform code usage over the batch.

    Loss per token: sample * H(p(code | x)) - batch * H(mean of p over the batch), in nats.
    """

    sample: NonNegativeFloat = 0.1
    """Weight of the entropy of each latent's assignment: more makes assignments more confident."""
    batch: NonNegativeFloat = 0.1
    """Weight of the entropy of the batch's mean assignment: more makes code usage more uniform."""
    temperature: PositiveFloat = 0.01
    """Temperature of the soft assignment p = softmax(-distance^2 / temperature)."""


class BitEntropyConfig(EntropyConfig):
    """Entropy loss over binary codes, where p is a product over bits: the first term is exact bit by bit."""

    group: PositiveInt = 1
    """Bits per group in the second term, at most 12: it is the sum over groups of the entropy of the mean of p over the
    2^group codes. 1: bit by bit. The sum is an upper bound of the true entropy, exact if one group has all bits."""


def binary_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of a bit that is 1 with probability sigmoid(logits); exact, with its gradient, for any logit."""
    return F.softplus(logits) - logits * torch.sigmoid(logits)


def entropy(share: Tensor) -> Tensor:
    """Entropy in nats of probabilities over the last axis; 0 log 0 = 0, without gradient where the probability is 0."""
    positive = share > 0
    return torch.where(positive, -share * torch.where(positive, share, 1.0).log(), 0.0).sum(dim=-1)


def bit_entropies(logits: Tensor, group: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Entropies of independent bits, without a table of all codes.

    Args:
        logits: [N, d], logit of each bit being 1. group: bits per group. mask: [N], tokens included in the batch mean.
    Returns:
        the exact entropy per token [N], and that of the batch (a scalar), summed over groups, see BitEntropyConfig.
    """
    per_token = binary_entropy(logits).sum(dim=-1)
    over_batch = logits.new_zeros(())
    for bits in logits.split(group, dim=-1):
        weight = torch.ones(1, device=bits.device)
        for bit in bits.unbind(-1):
            # sigmoid(-x), not 1 - sigmoid(x): keeps full precision for small probabilities.
            weight = torch.stack([weight * torch.sigmoid(-bit)[:, None], weight * torch.sigmoid(bit)[:, None]], dim=1)
            weight = weight.flatten(1)
        over_batch = over_batch + entropy(mean_over_batch(weight, mask))
    return per_token, over_batch


def code_entropies(x: Tensor, entries: Tensor, temperature: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Entropies of softmax(-|x - e|^2 / temperature) over all codes, computed in chunks of tokens.

    Latents [N, D], entries [V, D] -> per token [N] and over the batch (a scalar). The full [N, V] matrix is never held,
    nor in the backward pass.
    """

    def chunk(rows: Tensor, codes: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        logits = (2 * rows @ codes.T - codes.square().sum(dim=-1)) / temperature
        log_share = torch.log_softmax(logits, dim=-1)
        share = log_share.exp()
        return -torch.where(share > 0, share * log_share, 0.0).sum(dim=-1), (share * counted[:, None]).sum(dim=0)

    counted = torch.ones(len(x), device=x.device) if mask is None else mask.float()
    size = max(1, PROBABILITIES // len(entries))
    per_token, total = [x.new_zeros(0)], x.new_zeros(len(entries))
    for rows, weight in zip(x.split(size), counted.split(size), strict=True):
        own, summed = checkpoint(chunk, rows, entries, weight, use_reentrant=False)  # pyright: ignore[reportGeneralTypeIssues]
        per_token.append(own)
        total = total + summed
    return torch.cat(per_token), entropy(_share_of_all(total, counted.sum()))


def mean_over_batch(share: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of [N, V] over the tokens of all processes inside the mask [N] -> [V]; 0 if there are none."""
    if mask is None:
        return _share_of_all(share.sum(dim=0), torch.tensor(float(len(share)), device=share.device))
    return _share_of_all((share * mask[:, None]).sum(dim=0), mask.float().sum())


def _share_of_all(total: Tensor, count: Tensor) -> Tensor:
    """Sum [V] and token count of this process -> mean over all processes, with one all-reduce.

    Every process calls it in every training step, whatever its mask, so the all-reduce cannot hang. The gradient is
    scaled so that its average over processes, as DDP computes it, is that of the joint batch.
    """
    if dist.is_available() and dist.is_initialized() and (world := dist.get_world_size()) > 1:
        everywhere = torch.cat([total.detach(), count.detach()[None]])
        dist.all_reduce(everywhere)
        total = everywhere[:-1] + world * (total - total.detach())
        count = everywhere[-1]
    return total / count.clamp_min(1)


def disentangle(latents: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
    """Squared cosine between the code vectors [*, d] of each pair of parts, averaged over pairs -> [*].

    Gradients flow to the code vectors and, straight through, to the latents. Source: FQGAN, arXiv:2411.16681.
    """
    straight = [vector + (latent - latent.detach()) for latent, vector in zip(latents, vectors, strict=True)]
    pairs = list(combinations(straight, 2))
    if not pairs:
        return torch.zeros_like(straight[0][..., 0])
    return sum((F.cosine_similarity(a, b, dim=-1).square() for a, b in pairs), pairs[0][0].new_zeros(())) / len(pairs)


def moment_distance(x: Tensor, entries: Tensor, mask: Tensor | None) -> Tensor:
    """Squared 2-Wasserstein distance per channel between normal distributions with the moments of the latents [N, D]
    of this process and of the codes [V, D] -> a scalar, the mean over channels.

    Source: the idea of VAEVQ and VQ-WAE, matching the two distributions; the closed form for diagonal normals.
    """
    kept = torch.ones(len(x), 1, device=x.device) if mask is None else mask[:, None].float()
    number = kept.sum().clamp_min(1)
    mean = (x * kept).sum(dim=0) / number
    spread = (((x - mean).square() * kept).sum(dim=0) / number + 1e-12).sqrt()
    own_spread = (entries.var(dim=0, correction=0) + 1e-12).sqrt()
    distance = (mean - entries.mean(dim=0)).square() + (spread - own_spread).square()
    return distance.mean() * (kept.sum() > 0)
