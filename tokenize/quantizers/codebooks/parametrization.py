"""Codebook parametrizations other than V free vectors; one class per form, listed in the table at the end.

Forms, with their sources:
    linear     a frozen random basis times one learned layer: every step moves every code     SimVQ, arXiv:2411.02038
    file       frozen vectors of a file through a learned projector                           VQGAN-LC, arXiv:2406.11837
    bridge     the output of a network over all V free vectors                                VQBridge, arXiv:2509.10140
    affine     free vectors with a shared scale and shift per channel                         VQ-STE++, arXiv:2305.08842
    clusters   k-means centers of another codebook, frozen
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from ....configs.schema import Config, ConfigError, LayerCount
from ..projection import project
from .nearest import exact_dtype, first_by_priority, kmeans
from .vector_file import VectorFile, read_vectors


class CodebookForm(nn.Module):
    """V code vectors as a function of parameters: `forward()` -> [V, D]."""

    settable = False
    """Whether single vectors can be assigned, for the k-means start and the revival of dead codes."""

    def set(self, which: Tensor, vectors: Tensor) -> None:
        """Set the codes with indices `which` [n] to vectors [n, D]."""
        raise NotImplementedError


class FrozenBasis(CodebookForm):
    """Form with a frozen `basis` [V, F] that layers map to codes."""

    basis: Tensor

    def _rows(self) -> Tensor:
        """The basis; in eval mode float64, so that rounding (it can depend on memory layout) affects no code vector."""
        return self.basis.float() if self.training else self.basis.to(exact_dtype(self.basis))


class LinearFormConfig(Config):
    """Frozen random basis, learned linear layer."""

    kind: Literal["linear"] = "linear"


class LinearForm(FrozenBasis):
    """V * D frozen and D * D + D learned parameters."""

    def __init__(self, config: LinearFormConfig, size: int, dim: int, where: str, read_files: bool):
        super().__init__()
        self.register_buffer("basis", torch.randn(size, dim) / dim**0.5)
        self.linear = nn.Linear(dim, dim)

    def forward(self) -> Tensor:
        """[V, D]."""
        rows = self._rows()
        return project(self.linear, rows, rows.dtype).float()


class FileFormConfig(Config):
    """Frozen vectors, learned projector."""

    kind: Literal["file"] = "file"
    file: VectorFile
    """One row per code, for example feature centers of a pretrained encoder."""
    width: PositiveInt
    """Columns of the file."""
    layers: Literal[1, 2] = 1
    """1: a linear projector; 2: one hidden layer as wide as the file."""


class FileForm(FrozenBasis):
    """Frozen vectors from a file, mapped by a learned projector."""

    def __init__(self, config: FileFormConfig, size: int, dim: int, where: str, read_files: bool):
        super().__init__()
        basis = torch.zeros(size, config.width)
        if read_files:
            basis = read_vectors(config.file, size, config.width, f"{where}.file")
        self.register_buffer("basis", basis)
        self.hidden = nn.Linear(config.width, config.width) if config.layers == 2 else None
        self.linear = nn.Linear(config.width, dim)

    def forward(self) -> Tensor:
        """[V, D]."""
        rows = self._rows()
        if self.hidden is not None:
            rows = F.gelu(project(self.hidden, rows, rows.dtype))
        return project(self.linear, rows, rows.dtype).float()


class BridgeFormConfig(Config):
    """Compress patches of codes, process them jointly, and expand them to codes again."""

    kind: Literal["bridge"] = "bridge"
    patch: PositiveInt = 16
    """Codes per patch; must divide the number of codes."""
    width: PositiveInt = 128
    """Hidden width per patch; a multiple of 16."""
    layers: LayerCount = 2
    """Transformer blocks over the patches."""


class BridgeForm(CodebookForm):
    """Follows only the abstract of the source. There is no skip connection around the bridge: it would take the
    gradient of the used codes, and the unused ones would not move."""

    def __init__(self, config: BridgeFormConfig, size: int, dim: int, where: str, read_files: bool):
        super().__init__()
        if size % config.patch:
            raise ConfigError(f"{where}.patch: {config.patch} does not divide {size} codes")
        if config.width % 16:
            raise ConfigError(f"{where}.width: {config.width} is not a multiple of 16")
        self.patch = config.patch
        self.weight = nn.Parameter(torch.randn(size, dim) / dim**0.5)
        self.compress = nn.Linear(config.patch * dim, config.width)
        self.process = nn.Sequential(*(PatchBlock(config.width) for _ in range(config.layers)))
        self.recover = nn.Linear(config.width, config.patch * dim)
        nn.init.zeros_(self.recover.bias)

    def forward(self) -> Tensor:
        """[V, D]."""
        patches = self.weight.reshape(-1, self.patch * self.weight.shape[1])
        return self.recover(self.process(self.compress(patches))).reshape(self.weight.shape)


class PatchBlock(nn.Module):
    """Pre-norm transformer block over all patches [P, width]: self-attention, then an MLP, both residual."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = width // 16
        self.norm, self.mix_in, self.mix_out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[P, width] -> [P, width]."""
        query, key, value = (
            part.view(len(x), self.heads, 16).transpose(0, 1)[None]
            for part in self.mix_in(self.norm(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).reshape(x.shape)
        x = x + self.mix_out(mixed)
        return x + self.hidden(x)


class AffineFormConfig(Config):
    """Free vectors with a shared scale and shift."""

    kind: Literal["affine"] = "affine"


class AffineForm(CodebookForm):
    """Free vectors times a scale plus a shift; their gradients move every code, used or not."""

    settable = True

    def __init__(self, config: AffineFormConfig, size: int, dim: int, where: str, read_files: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, dim) / dim**0.5)
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.shift = nn.Parameter(torch.zeros(dim))

    def forward(self) -> Tensor:
        """[V, D]."""
        return self.weight.float() * self.log_scale.float().exp() + self.shift.float()

    def set(self, which: Tensor, vectors: Tensor) -> None:
        """See CodebookForm.set."""
        self.weight[which] = ((vectors - self.shift) / self.log_scale.exp()).to(self.weight.dtype)


class ClustersFormConfig(Config):
    """K-means of a trained codebook, for a smaller codebook in the same space."""

    kind: Literal["clusters"] = "clusters"
    file: VectorFile
    """The source codebook: any number of rows, and as many columns as this codebook has dimensions."""
    iterations: PositiveInt = 100
    """Maximum number of iterations of Lloyd's algorithm."""


class ClustersForm(CodebookForm):
    """Frozen centers, computed when the quantizer is built and stored in its state."""

    centres: Tensor

    def __init__(self, config: ClustersFormConfig, size: int, dim: int, where: str, read_files: bool):
        super().__init__()
        centres = torch.zeros(size, dim)
        if read_files:
            rows = read_vectors(config.file, None, dim, f"{where}.file")
            centres = kmeans(first_by_priority(rows, 0, len(rows)), size, config.iterations)[0]
        self.register_buffer("centres", centres)

    def forward(self) -> Tensor:
        """[V, D]."""
        return self.centres.float()


CodebookFormConfig = Annotated[
    LinearFormConfig | FileFormConfig | BridgeFormConfig | AffineFormConfig | ClustersFormConfig,
    Field(discriminator="kind"),
]

FORMS = {
    "linear": LinearForm,
    "file": FileForm,
    "bridge": BridgeForm,
    "affine": AffineForm,
    "clusters": ClustersForm,
}
