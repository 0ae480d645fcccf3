"""Losses that shape how codes are used: entropies of a soft choice, without a cap; unlike sub-codebooks; equal moments.

Entropies are of p(code | x) over a soft choice; nothing is added to a probability or clamped before its logarithm, as
that caps what can be rewarded: log(p + 1e-5) never sees more than 11.5 nats.
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
"""Probabilities held at a time."""


class EntropyConfig(Config):
    """Each latent should choose with certainty, all of them together should use every code.

    Loss of a token: sample * H(p(code | x)) - batch * H(mean of p over the batch), in nats.
    """

    sample: NonNegativeFloat = 0.1
    batch: NonNegativeFloat = 0.1
    temperature: PositiveFloat = 0.01
    """Of the soft choice: p = softmax(-distance^2 / temperature)."""


class BitEntropyConfig(EntropyConfig):
    """The same over binary codes, where p is a product over bits: the first term is exact bit by bit."""

    group: PositiveInt = 1
    """Bits per group of the second term, at most 12: the sum over groups of the entropy of the mean of p over their
    2^group codes. 1: bit by bit. The true entropy is at most that sum, and equal to it with one group of all bits."""


def binary_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of a bit that is 1 with probability sigmoid(logits); exact at any size, gradient too."""
    return F.softplus(logits) - logits * torch.sigmoid(logits)


def entropy(share: Tensor) -> Tensor:
    """Entropy in nats over the last axis of probabilities; 0 log 0 = 0, and no gradient where there is no mass."""
    positive = share > 0
    return torch.where(positive, -share * torch.where(positive, share, 1.0).log(), 0.0).sum(dim=-1)


def bit_entropies(logits: Tensor, group: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Entropies of independent bits, without a table of all codes.

    Args:
        logits: [N, d], of each bit being 1. group: bits per group. mask: [N], which tokens count for the batch.
    Returns:
        per token [N], exact; and over the batch (a scalar), the sum over groups, see BitEntropyConfig.
    """
    per_token = binary_entropy(logits).sum(dim=-1)
    over_batch = logits.new_zeros(())
    for bits in logits.split(group, dim=-1):
        weight = torch.ones(1, device=bits.device)
        for bit in bits.unbind(-1):
            # sigmoid(-x), not 1 - sigmoid(x): small probabilities keep all their digits.
            weight = torch.stack([weight * torch.sigmoid(-bit)[:, None], weight * torch.sigmoid(bit)[:, None]], dim=1)
            weight = weight.flatten(1)
        over_batch = over_batch + entropy(mean_over_batch(weight, mask))
    return per_token, over_batch


def code_entropies(x: Tensor, entries: Tensor, temperature: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Entropies of softmax(-|x - e|^2 / temperature) over all codes, a chunk of tokens at a time.

    Latents [N, D], entries [V, D] -> per token [N] and over the batch (a scalar); [N, V] is never whole, in the
    backward pass neither.
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
    """Mean over the tokens [N, V] of all processes that the mask [N] keeps -> [V]; 0 where there is none."""
    if mask is None:
        return _share_of_all(share.sum(dim=0), torch.tensor(float(len(share)), device=share.device))
    return _share_of_all((share * mask[:, None]).sum(dim=0), mask.float().sum())


def _share_of_all(total: Tensor, count: Tensor) -> Tensor:
    """Sum [V] and number of this process's tokens -> mean over all processes, one all-reduce.

    Every process gets here in every training step, whatever its mask, so none waits for another in vain. The gradient
    is scaled so that its average over processes, as DDP takes it, is that of the joint batch.
    """
    if dist.is_available() and dist.is_initialized() and (world := dist.get_world_size()) > 1:
        everywhere = torch.cat([total.detach(), count.detach()[None]])
        dist.all_reduce(everywhere)
        total = everywhere[:-1] + world * (total - total.detach())
        count = everywhere[-1]
    return total / count.clamp_min(1)


def disentangle(latents: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
    """Squared cosine between the code vectors of each two parts [*, d], the mean over pairs -> [*].

    The gradient goes to the code vectors and straight through them to the latents. Source: FQGAN, arXiv:2411.16681.
    """
    straight = [vector + (latent - latent.detach()) for latent, vector in zip(latents, vectors, strict=True)]
    pairs = list(combinations(straight, 2))
    if not pairs:
        return torch.zeros_like(straight[0][..., 0])
    return sum((F.cosine_similarity(a, b, dim=-1).square() for a, b in pairs), pairs[0][0].new_zeros(())) / len(pairs)


def moment_distance(x: Tensor, entries: Tensor, mask: Tensor | None) -> Tensor:
    """Squared 2-Wasserstein distance, per channel, between normal distributions with the moments of the latents [N, D]
    of this process and of the codes [V, D] -> a scalar, the mean over channels.

    Source: the idea of VAEVQ and VQ-WAE, to match the two distributions; the closed form for diagonal normals.
    """
    kept = torch.ones(len(x), 1, device=x.device) if mask is None else mask[:, None].float()
    number = kept.sum().clamp_min(1)
    mean = (x * kept).sum(dim=0) / number
    spread = (((x - mean).square() * kept).sum(dim=0) / number + 1e-12).sqrt()
    own_spread = (entries.var(dim=0, correction=0) + 1e-12).sqrt()
    distance = (mean - entries.mean(dim=0)).square() + (spread - own_spread).square()
    return distance.mean() * (kept.sum() > 0)
