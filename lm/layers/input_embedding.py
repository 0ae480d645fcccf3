"""Input embeddings: one vector per step from its K ids."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ...configs.schema import Config, ConfigError
from ..ops.linear import Linear
from ..ops.row_rng import rand
from ..patterns.pattern import CodebookPattern
from ..patterns.sub_tokens import SubTokens, count_bits, equal_digits
from .embedding import SpecialVectors, Table


class EmbeddingInputConfig(Config):
    """A learned embedding for every id of every codebook, summed over codebooks."""

    kind: Literal["embedding"] = "embedding"


class CodesInputConfig(Config):
    """The tokenizer's frozen code vectors through a learned linear layer; special ids have learned embeddings."""

    kind: Literal["codes"] = "codes"
    combine: Literal["sum", "concat"] = "concat"
    """sum: one layer for the sum over codebooks. concat: a separate layer per codebook (with delays, codebooks hold
    different frames)."""


class FactorInputConfig(Config):
    """Split each code into sub-tokens with small vocabularies (see lm/patterns/sub_tokens.py): a learned embedding for
    every value of every sub-token, summed."""

    kind: Literal["factor"] = "factor"
    sizes: tuple[Annotated[int, Field(ge=2)], ...] = Field(min_length=2)
    """Vocabulary sizes of a code's sub-tokens; their product is the codebook size: [64, 4096] for 2^18 codes."""


class BitsInputConfig(Config):
    """A learned embedding for every bit of every codebook, added where the bit is 1 and subtracted where it is 0;
    special ids have learned embeddings."""

    kind: Literal["bits"] = "bits"


class NoisyInputConfig(Config):
    """Another input embedding that reads some wrong codes in training: a model that cannot rely on what came before
    reads its conditions instead, and is prepared for its own errors."""

    kind: Literal["noisy"] = "noisy"
    share: float = Field(default=0.1, gt=0, lt=1)
    """Probability that a code is replaced by a random one of its codebook. The codes to predict are never replaced."""
    varied: bool = False
    """Each example draws its own share, uniform between 0 and `share`: from clean codes to next to none."""
    input: Annotated[EmbeddingInputConfig | CodesInputConfig, Field(discriminator="kind")] = EmbeddingInputConfig()
    """The embedding of the codes."""


InputConfig = Annotated[
    EmbeddingInputConfig | CodesInputConfig | FactorInputConfig | BitsInputConfig | NoisyInputConfig,
    Field(discriminator="kind"),
]


def embedding_kind(config: InputConfig) -> str:
    """The kind of the embedding of the codes, behind noise or not; `codes` needs the tokenizer's code vectors."""
    return (config.input if isinstance(config, NoisyInputConfig) else config).kind


class EmbeddingInput(nn.Module):
    """ids [B, K, S] -> [B, S, D] by summed embedding tables, concatenated into one."""

    def __init__(
        self, config: EmbeddingInputConfig, arrangement: CodebookPattern, width: int, code_vectors: Tensor | None
    ):
        super().__init__()
        self.table = Table(sum(arrangement.input_sizes), width)
        _register_starts(self, arrangement.input_sizes)

    starts: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        rows_BSK = (ids + self.starts).transpose(1, 2)
        return self.table(rows_BSK).sum(dim=2)


class FactorInput(nn.Module):
    """ids [B, K, S] -> [B, S, D] by summed embedding tables of their sub-tokens."""

    def __init__(
        self, config: FactorInputConfig, arrangement: CodebookPattern, width: int, code_vectors: Tensor | None = None
    ):
        super().__init__()
        self.sub_tokens = SubTokens(arrangement, equal_digits(config.sizes, arrangement, "lm.input.sizes"))
        self.table = Table(sum(self.sub_tokens.input_sizes), width)
        _register_starts(self, self.sub_tokens.input_sizes)

    starts: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        return self.table((self.sub_tokens.split(ids) + self.starts).transpose(1, 2)).sum(dim=2)


class BitsInput(nn.Module):
    """ids [B, K, S] -> [B, S, D].

    With masked [B, J, S], True where one of the J / K groups of bits is masked, masked bits contribute neither +1 nor
    -1.
    """

    cardinalities: Tensor
    books: Tensor
    shifts: Tensor
    code_bits: Tensor
    """[n]: the number of bits of each bit's codebook."""

    def __init__(
        self, config: BitsInputConfig, arrangement: CodebookPattern, width: int, code_vectors: Tensor | None = None
    ):
        super().__init__()
        bits = count_bits(arrangement.cardinalities, "lm.input kind 'bits'")
        places = [(k, shift) for k, count in enumerate(bits) for shift in range(count)]
        books, shifts = torch.tensor(places, device="cpu").unbind(1)
        self.register_buffer("books", books, persistent=False)
        self.register_buffer("shifts", shifts[:, None], persistent=False)
        self.register_buffer("code_bits", torch.tensor(bits, device="cpu")[books], persistent=False)
        self.register_buffer("cardinalities", torch.tensor(arrangement.cardinalities, device="cpu")[:, None], False)
        self.linear = Linear(len(places), width, bias=False)
        self.specials = SpecialVectors(arrangement.cardinalities, arrangement.num_specials, width)

    def forward(self, ids: Tensor, masked: Tensor | None = None) -> Tensor:
        known = (ids < self.cardinalities)[:, self.books]
        if masked is not None:
            groups = masked.shape[1] // ids.shape[1]
            group = groups - 1 - self.shifts[:, 0] // (self.code_bits // groups)  # the first group has the largest bits
            known = known & ~masked[:, self.books * groups + group]
        signs = torch.where(known, 2 * (ids[:, self.books] >> self.shifts & 1) - 1, 0)
        learned = self.specials(ids)
        return self.linear(signs.transpose(1, 2).to(learned.dtype)) + learned


class CodesInput(nn.Module):
    """ids [B, K, S] -> [B, S, D] by the tokenizer's code vectors."""

    starts: Tensor
    cardinalities: Tensor
    vectors: Tensor

    def __init__(self, config: CodesInputConfig, arrangement: CodebookPattern, width: int, code_vectors: Tensor | None):
        super().__init__()
        K, V = arrangement.num_codebooks, max(arrangement.cardinalities)
        vectors = check_code_vectors(code_vectors, arrangement, "lm.input kind 'codes'")
        self.combine = config.combine
        self.register_buffer("vectors", vectors.flatten(0, 1), persistent=False)  # saved in the tokenizer's file
        self.register_buffer(
            "cardinalities", torch.tensor(arrangement.cardinalities, device="cpu")[:, None], persistent=False
        )
        self.register_buffer("starts", torch.arange(0, K * V, V, device="cpu")[:, None], persistent=False)
        depth = vectors.shape[-1]
        self.linear = Linear(depth * (K if config.combine == "concat" else 1), width, bias=False)
        self.specials = SpecialVectors(arrangement.cardinalities, arrangement.num_specials, width)

    def forward(self, ids: Tensor) -> Tensor:
        special = ids >= self.cardinalities
        codes = torch.where(special, 0, ids) + self.starts
        vectors_BSKD = F.embedding(codes.transpose(1, 2), self.vectors)
        vectors_BSKD = vectors_BSKD.masked_fill(special.transpose(1, 2).unsqueeze(-1), 0.0)
        combined = vectors_BSKD.flatten(2) if self.combine == "concat" else vectors_BSKD.sum(dim=2)
        learned = self.specials(ids)
        return self.linear(combined.to(learned.dtype)) + learned

    def vectors_of(self, book: int) -> Tensor:
        """[V + special ids, D]: what each id of a codebook adds to a step's vector."""
        V, depth = int(self.cardinalities[book]), self.vectors.shape[1]
        first = book * depth if self.combine == "concat" else 0
        codes = self.vectors[int(self.starts[book]) :][:V].to(self.linear.weight.dtype)
        specials = self.specials.weight.unflatten(0, (len(self.starts), -1))[book]
        return torch.cat([codes @ self.linear.weight[:, first : first + depth].T, specials])


class NoisyInput(nn.Module):
    """ids [B, K, S] -> [B, S, D] by another embedding, of ids with noise in training; special ids stay."""

    cardinalities: Tensor

    def __init__(self, config: NoisyInputConfig, arrangement: CodebookPattern, width: int, code_vectors: Tensor | None):
        super().__init__()
        self.share, self.varied = config.share, config.varied
        self.inner = INPUTS[config.input.kind](config.input, arrangement, width, code_vectors)
        sizes = torch.tensor(arrangement.cardinalities, device="cpu")[:, None]
        self.register_buffer("cardinalities", sizes, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(self.with_noise(ids) if self.training else ids)

    def with_noise(self, ids: Tensor) -> Tensor:
        """The ids [B, K, S] with random codes in the place of some."""
        share = self.share * rand((len(ids), 1, 1), ids.device) if self.varied else self.share
        wrong = (rand(ids.shape, ids.device) < share) & (ids < self.cardinalities)
        return torch.where(wrong, (rand(ids.shape, ids.device) * self.cardinalities).long(), ids)


INPUTS: dict[str, type[nn.Module]] = {
    "embedding": EmbeddingInput,
    "codes": CodesInput,
    "factor": FactorInput,
    "bits": BitsInput,
    "noisy": NoisyInput,
}


def check_code_vectors(code_vectors: Tensor | None, arrangement: CodebookPattern, who: str) -> Tensor:
    """The tokenizer's code vectors [K, V, width], float32 on the CPU, scaled to unit variance.

    Raises:
        ConfigError: they are missing and `who` needs them. ValueError: they have another shape.
    """
    K, V = arrangement.num_codebooks, max(arrangement.cardinalities)
    if code_vectors is None:
        raise ConfigError(f"{who} needs the tokenizer's code vectors; pass code_vectors=tokenizer.vectors()")
    if code_vectors.dim() != 3 or code_vectors.shape[:2] != (K, V):
        raise ValueError(
            f"code vectors have shape {list(code_vectors.shape)}, expected [{K}, {V}, width of a code vector]"
        )
    vectors = code_vectors.detach().to("cpu", torch.float32)
    # One scale for all codebooks preserves their relative sizes (finer residual levels are smaller) and gives the layer
    # unit variance.
    return vectors / vectors.square().mean().sqrt().clamp(min=1e-8)


def _register_starts(module: nn.Module, sizes: tuple[int, ...]) -> None:
    """First row of each codebook's table. On the CPU even when the parameters are created on the meta device."""
    starts = [sum(sizes[:k]) for k in range(len(sizes))]
    module.register_buffer("starts", torch.tensor(starts, device="cpu")[:, None], persistent=False)
