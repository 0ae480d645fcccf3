"""Vector quantization: each latent is replaced by the nearest of V learned vectors.

Source: VQ-VAE, arXiv:1711.00937, moving averages from its appendix A.1; low-dimensional normalized codes:
arXiv:2110.04627.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ...configs.schema import FingerprintedConfig
from .base import Quantizer, QuantizerOutput
from .codebooks.codebook import Codebook
from .codebooks.nearest import SearchTable, exact_dtype, largest_product, nearest_code
from .codebooks.parametrization import FORMS, CodebookFormConfig
from .projection import project, straight_through
from .regularization import PROBABILITIES, EntropyConfig, code_entropies, moment_distance


class VQConfig(FingerprintedConfig):
    """One codebook of learned vectors."""

    added = frozenset(
        {
            *("codebook", "keep_length", "search", "inner_steps", "inner_rate", "index_temperature"),
            *("codebook_weight", "entropy", "moments", "revive"),
        }
    )

    kind: Literal["vq"] = "vq"
    size: PositiveInt
    """Number of codes, V."""
    code_dim: PositiveInt | None = None
    """Dimension of the search space, reached by learned linear layers in and out; null: the latent space."""
    normalise: bool = False
    """Project latents and codes onto the unit sphere before the search (cosine similarity)."""
    keep_length: bool = False
    """With `normalise`: only the search is on the sphere; code vectors keep their norm (DAC, arXiv:2306.06546)."""
    search: Literal["nearest", "product"] = "nearest"
    """Which code a latent gets. nearest: the one at the smallest distance. product: the one with the largest dot
    product (IBQ, arXiv:2412.02692), with update "gradient" or "index"."""
    codebook: CodebookFormConfig | None = None
    """Parametrization of the code vectors; null: V free vectors. The others require update "gradient" or "index";
    only "affine" supports the k-means start and revival."""
    update: Literal["ema", "gradient", "index", "alternating"] = "ema"
    """How codes are updated. ema: moving averages of the latents assigned to them. gradient: by the codebook loss.
    index: additionally, every code gets a gradient through a soft assignment (index back-propagation, IBQ,
    arXiv:2412.02692). alternating: after each optimizer step, the codes take separate steps towards the mean of their
    latents (arXiv:2305.08842)."""
    decay: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the moving averages per update; usage counts are averaged with every kind of update, for revival."""
    inner_steps: PositiveInt = 1
    """With "alternating": codebook steps per update, all with the assignments of the preceding forward passes."""
    inner_rate: float = Field(default=0.5, gt=0, le=1)
    """With "alternating": fraction of the distance to the mean covered by one step."""
    index_temperature: PositiveFloat = 1.0
    """With "index": temperature of the soft assignment, softmax(-distance^2 / temperature)."""
    commitment: NonNegativeFloat = 0.25
    """Weight of the loss that pulls latents towards their codes."""
    codebook_weight: NonNegativeFloat = 1.0
    """Weight of the loss that pulls codes towards their latents, if codes or projections are trained by gradient."""
    entropy: EntropyConfig | None = None
    """Entropy loss for confident assignments and uniform code usage, in training only; null: none."""
    moments: NonNegativeFloat = 0.0
    """Weight of the distance between the distributions of latents and codes, as normals (see regularization.py)."""
    revive_below: float = Field(default=0.1, ge=0, lt=1)
    """A code used less than this fraction of the uniform share is dead and is replaced by a latent; 0: never."""
    revive: Literal["replace", "blend"] = "replace"
    """replace: dead codes are replaced. blend: every code moves towards a latent by the fraction
    exp(-use / revive_below), where use = 1 is the uniform share (CVQ-VAE, arXiv:2307.15139; MGVQ, arXiv:2507.07997)."""
    kmeans_init: bool = True
    """Initialize the codes with the k-means centers of the first latents; false: randomly."""

    @model_validator(mode="after")
    def _fits_together(self) -> VQConfig:
        if self.codebook is not None and self.update not in ("gradient", "index"):
            raise ValueError(
                f"a {self.codebook.kind} codebook cannot be updated by update '{self.update}'; "
                f"set update: gradient (or index)"
            )
        if self.keep_length and not self.normalise:
            raise ValueError("keep_length needs normalise: true")
        if self.search == "product":
            if self.update not in ("gradient", "index") or self.normalise:
                raise ValueError("search: product needs update: gradient (or index) and normalise: false")
            if self.entropy is not None or self.moments:
                raise ValueError(
                    "search: product has no entropy or moments loss; those are of distances, leave them out"
                )
        return self


class VectorQuantizer(Quantizer):
    """Nearest-neighbor vector quantizer with one codebook. Q = 1."""

    def __init__(
        self,
        config: VQConfig,
        dim: int,
        depth: int = 0,
        where: str = "quantizer",
        read_files: bool = True,
    ):
        super().__init__(dim, [config.size])
        self.config = config
        self._kept: tuple[list[tuple[int, int]], tuple[Tensor | SearchTable, Tensor]] | None = None
        code_dim = config.code_dim or dim
        self.project_in = nn.Linear(dim, code_dim) if config.code_dim else None
        self.project_out = nn.Linear(code_dim, dim) if config.code_dim else None
        form = None
        if config.codebook is not None:
            form = FORMS[config.codebook.kind](config.codebook, config.size, code_dim, f"{where}.codebook", read_files)
        self.codebook = Codebook(
            config.size,
            code_dim,
            normalise=config.normalise and not config.keep_length,
            learned=config.update in ("gradient", "index"),
            decay=config.decay,
            revive_below=config.revive_below,
            kmeans_start=config.kmeans_init,
            form=form,
            step=1 - (1 - config.inner_rate) ** config.inner_steps if config.update == "alternating" else None,
            blend=config.revive == "blend",
        )

    def quantize(self, x: Tensor, mask: Tensor | None) -> QuantizerOutput:
        """See Quantizer.quantize.

        Losses: "commitment"; "codebook" if it has trainable parameters; "entropy" and "moments" if configured.
        """
        flat, valid = x.detach().flatten(0, 1), None if mask is None else mask.flatten()
        keys, entries = self._keys(flat), self.codebook.entries()
        places = self._places(entries)
        codes = self._find(keys, places.detach(), exact=not self.training)
        if self.training:
            self.codebook.collect(self._inner(flat) if self.config.keep_length else keys, codes, valid)
        table = self._project_out(entries)
        vectors = F.embedding(codes, table)
        if self.project_in is not None and self.project_out is not None:
            keys = self._keys(flat, torch.float32)
            vectors = vectors + straight_through(keys, self.project_out)
        if self.config.update == "index" and self.training:
            product = self.config.search == "product"
            soft = soft_choice(keys.float(), places, table.detach(), self.config.index_temperature, product)
            vectors = vectors + (soft - soft.detach())  # again 0: adds the gradient of the soft assignment
        if valid is not None:
            codes = codes.masked_fill(~valid, -1)
            vectors = torch.where(valid[:, None], vectors, 0.0)
        vectors = vectors.view_as(x)
        losses = {"commitment": self.config.commitment * (x - vectors.detach()).square().mean(dim=-1)}
        if self.codebook.learned or self.project_in is not None:
            losses["codebook"] = (x.detach() - vectors).square().mean(dim=-1)
            if self.config.codebook_weight != 1:
                losses["codebook"] = self.config.codebook_weight * losses["codebook"]
        if self.training:
            losses |= {name: loss.view(x.shape[:2]) for name, loss in self._regularise(x, places, valid).items()}
        return QuantizerOutput(vectors, codes.view(*x.shape[:2], 1), losses)

    def _regularise(self, x: Tensor, places: Tensor, valid: Tensor | None) -> dict[str, Tensor]:
        """Losses [N] on code usage."""
        wanted, losses = self.config.entropy, {}
        if wanted is None and not self.config.moments:
            return losses
        keys = self._keys(x.flatten(0, 1), torch.float32)
        if wanted is not None:
            per_token, over_batch = code_entropies(keys, places, wanted.temperature, valid)
            losses["entropy"] = wanted.sample * per_token - wanted.batch * over_batch
        if self.config.moments:
            losses["moments"] = (self.config.moments * moment_distance(keys, places, valid)).expand(len(keys))
        return losses if valid is None else {name: torch.where(valid, loss, 0.0) for name, loss in losses.items()}

    def search(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, M, D] -> [B, M, 1]."""
        return self._find(self._keys(x.flatten(0, 1)), self._tables()[0]).view(*x.shape[:2], 1)

    def lookup(self, codes: Tensor) -> Tensor:
        """[B, M, 1] -> [B, M, D]."""
        return torch.where(codes >= 0, F.embedding(codes[..., 0].clamp_min(0), self._tables()[1]), 0.0)

    def vectors(self) -> Tensor:
        """[1, V, D]."""
        return self._project_out(self.codebook.entries())[None]

    def _tables(self) -> tuple[Tensor | SearchTable, Tensor]:
        """Positions of the codes in the search space [V, code_dim], and their vectors [V, D]. Of a frozen quantizer
        both are kept until one of its tensors is another or was changed."""
        if not self.frozen or torch.is_grad_enabled():
            entries = self.codebook.entries()
            return self._places(entries), self._project_out(entries)
        tensors = [*self.parameters(), *self.buffers()]
        state = [(one.data_ptr(), 0 if one.is_inference() else one._version) for one in tensors]
        if self._kept is None or self._kept[0] != state:
            entries = self.codebook.entries()
            places = self._places(entries)
            searched = places if self.config.search == "product" else SearchTable.of(places)
            self._kept = state, (searched, self._project_out(entries))
        return self._kept[1]

    def _find(self, keys: Tensor, places: Tensor | SearchTable, exact: bool = True) -> Tensor:
        """Keys [N, code_dim] and positions of the codes [V, code_dim] -> codes [N]."""
        if self.config.search == "product":
            assert isinstance(places, Tensor)
            return largest_product(keys, places)
        return nearest_code(keys, places, exact)

    def _project_out(self, entries: Tensor) -> Tensor:
        """Code vectors [V, code_dim] -> [V, D]. It always maps the whole table: one shape gives the same bits."""
        if self.project_out is None:
            return entries
        return F.linear(entries, self.project_out.weight.float(), self.project_out.bias.float())

    def _places(self, entries: Tensor) -> Tensor:
        """Code vectors [V, code_dim] -> their positions in the search space [V, code_dim]."""
        return F.normalize(entries, dim=-1) if self.config.keep_length else entries

    def _inner(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Latents [N, D] -> [N, code_dim]."""
        return x if self.project_in is None else project(self.project_in, x, dtype)

    def _keys(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Latents [N, D] -> search keys [N, code_dim], by default float64 so that rounding cannot change the code."""
        x = self._inner(x, dtype)
        return F.normalize(x.to(dtype or exact_dtype(x)), dim=-1) if self.config.normalise else x


def soft_choice(x: Tensor, places: Tensor, table: Tensor, temperature: float, product: bool = False) -> Tensor:
    """Average of the code vectors weighted by softmax(-|x - place|^2 / temperature), computed in chunks of latents.

    product: weighted by softmax(x place / temperature) instead.

    x [N, d], places [V, d], table [V, D] -> [N, D]; the full [N, V] matrix is never held, nor in the backward pass.
    """

    def chunk(rows: Tensor, codes: Tensor, vectors: Tensor) -> Tensor:
        scores = rows @ codes.T if product else 2 * rows @ codes.T - codes.square().sum(dim=-1)
        return torch.softmax(scores / temperature, dim=-1) @ vectors

    found = [x.new_zeros(0, table.shape[1])]
    for rows in x.split(max(1, PROBABILITIES // len(places))):
        found.append(checkpoint(chunk, rows, places, table, use_reentrant=False))  # pyright: ignore[reportArgumentType]
    return torch.cat(found)
