"""The traps that quantizers have fallen into elsewhere: each is planted here, and a law must then fail.

TRAPS names them; DEFECTS plants each in our code with monkeypatch, beside the laws that see it. Those that only a trap
asks for stand in test_trap_laws.py. Names with a number are issues of the projects where it was found.
"""

import inspect
from dataclasses import dataclass, replace
from functools import partial

import pytest
import quantizer_trees as trees
import test_codebook_life as life
import test_codebooks as codebooks
import test_combinators as combinators
import test_quantizer_laws as laws
import test_quantizer_leaves as leaves
import test_quantizer_references as references
import test_trap_laws as own
import torch
from planting import Overlaid, around
from torch import distributed as dist
from torch import nn
from torch.nn import functional

from tessera.tokenize.quantizers import base, binary, regularization
from tessera.tokenize.quantizers.binary import BinaryQuantizer
from tessera.tokenize.quantizers.codebooks import codebook
from tessera.tokenize.quantizers.codebooks.codebook import Codebook
from tessera.tokenize.quantizers.combinators import residual
from tessera.tokenize.quantizers.combinators.nested_dropout import TailQuantizer
from tessera.tokenize.quantizers.combinators.residual import ChainQuantizer
from tessera.tokenize.quantizers.combinators.rotation_trick import RotationQuantizer
from tessera.tokenize.quantizers.fsq import FiniteScalarQuantizer
from tessera.tokenize.quantizers.scalar import LatticeQuantizer, PerChannelQuantizer, ScalarQuantizer
from tessera.tokenize.quantizers.vq import VectorQuantizer
from tessera.train.evaluation import reconstruction_metrics

TRAPS = {
    1: "an encoder gradient multiplied by the number of levels, or none after the first (encodec#25)",
    2: "a k-means start undone by the first moving average",
    3: "revived codes that the stale average pulls back at once",
    4: "k-means only under torch.distributed; revival to zeros; padding that moves averages",
    5: "entropy over ranks: a dropped all-reduce, then a division by the number of ranks",
    6: "an epsilon that caps the entropy at 11.5 nats",
    7: "codes packed by sums of floats; codes out of range; bits taken after scaling",
    8: "decode(encode(x)) that differs from the forward pass",
    9: "leaves that take no mask",
    10: "learned values without a gradient, or left by their own codes once they have moved",
    11: "a rank without tokens that skips a collective; synchronisation decided before there is a process group",
    12: "a projection in encode only; one all-reduce for every level",
    13: "the commitment weight on the codebook's loss (taming-transformers#57)",
    14: "a codebook as a Parameter without gradient, overwritten by a bf16 trainer",
    15: "an absolute threshold for dead codes, whatever the batch",
    16: "the rotation estimator: values not rescaled, losses of the rotated vector",
    17: "LFQ that never leaves a collapse; NaN from index back-propagation",
    18: "levels and tails dropped for the whole batch at once",
    19: "a measure that failed, reported as a number",
}


@dataclass(frozen=True)
class Defect:
    """A trap: `plant(monkeypatch)` puts it into a function of ours, and the laws that must then fail."""

    trap: int
    says: str
    plant: object
    seen_by: list


def law(function, *arguments, **named):
    """A test of any file, with one set of its parameters."""
    return partial(function, *arguments, **named)


# What the functions of ours do with a defect; the first argument is the function without it.


def with_gradient_of_its_own(quantize, self, x, mask):
    found = quantize(self, x, mask)
    return replace(found, vectors=found.vectors + (x - x.detach()))


class Level:
    """A level of a residual whose latents are changed before it quantizes them."""

    def __init__(self, level, change):
        self.level, self.change = level, change

    def __getattr__(self, name):
        return getattr(self.level, name)

    def quantize(self, x, mask):
        return self.change(self.level.quantize, x, mask)


def with_later_levels_detached(each, self):
    first, *later = each(self)
    return [first, *(Level(level, lambda quantize, x, mask: quantize(x.detach(), mask)) for level in later)]


def with_attached_rest(each, self):
    before = [0.0]

    def attached(quantize, x, mask):
        found = quantize(x - sum(before), mask)
        before.append(found.vectors - found.vectors.detach())
        return found

    return [Level(level, attached) for level in each(self)]


def with_bare_centres(set_codes, self, which, vectors, counts):
    set_codes(self, which, vectors / counts[:, None], counts)


def keeping_the_stale_average(revive, self, data):
    stale = self.sum.clone()
    revive(self, data)
    self.sum.copy_(stale)


def with_two_uses_as_threshold(revive, self, data):
    before, self.revive_below = self.revive_below, 2 / self.count.mean()
    revive(self, data)
    self.revive_below = before


def packed_as_floats(_, codes, sizes):
    packed = torch.zeros(codes.shape[:-1])
    for level, size in enumerate(sizes):
        packed = packed * size + codes[..., level].float()
    return packed.long()


def with_a_part_too_many(digits, self, x, exact=True):
    return torch.where(torch.tanh(x.double()) == 1, self.sizes, digits(self, x, exact))


def bits_above_the_scale(_, self, x, mask=None):
    return self._join(self._inner(x.flatten(0, 1)) > self.scale).view(*x.shape[:2], 1)


def decoding_from(table):
    """Codes are looked up in table(quantizer) [V, D]."""
    return lambda _, self, codes: functional.embedding(codes[..., 0].clamp_min(0), table(self))


def rank_among_the_values(digits, self, x):
    rank = self.tables().sort(dim=1, stable=True).indices.argsort(dim=1)
    return rank.gather(1, digits(self, x).T).T


def unbounded_multiples(_, self, x):
    return (x / self.log_spacing.exp() + (self.config.size - 1) / 2).round().long()


def only_with_tokens(update, books):
    if any(book.collected is not None and book.collected[0].any() for book in books):
        update(books)


def with_losses(change):
    """The losses of `quantize` changed by change(self, x, output) -> those that differ."""

    def defect(quantize, self, x, mask):
        found = quantize(self, x, mask)
        return replace(found, losses=found.losses | change(self, x, found))

    return defect


def rotated_latents(estimate, self, x, parts):
    vectors = parts.vectors
    turned = functional.normalize(vectors, dim=-1) * vectors.norm(dim=-1, keepdim=True)
    found = estimate(self, x, parts)
    return turned + (found - found.detach())


def rotation_without_scale(estimate, self, x, parts):
    found = estimate(self, x, parts)
    turned = found * (x.norm(dim=-1, keepdim=True) / parts.vectors.norm(dim=-1, keepdim=True)).detach()
    return found.detach() + (turned - turned.detach())


def the_worst_number(measure, *arguments):
    try:
        found = measure(*arguments)
    except Exception:
        return 1.0
    return 1.0 if found is None else found


def codebook_as_parameter(patch):
    plain = nn.Module.register_buffer

    def register(self, name, tensor, persistent=True):
        if name == "sum":
            self.sum = nn.Parameter(tensor, requires_grad=False)
        else:
            plain(self, name, tensor, persistent)

    patch.setattr(Codebook, "register_buffer", register)


def elsewhere(module, **names):
    """torch.distributed as `module` sees it, with other functions."""
    return lambda patch: patch.setattr(module, "dist", Overlaid(dist, **names))


EVAL = laws.test_eval_forward_equals_decode_of_encode
RANK = law(own.test_a_rank_without_tokens_takes_part, "vq")
REVIVES = law(life.test_planted_dead_codes_come_back_to_life, "vq", 64)
PULLS = own.test_commitment_pulls_latents_and_the_codebook_loss_codes
DEFECTS = [
    Defect(
        1,
        "a straight-through gradient in every level",
        around(VectorQuantizer, "quantize", with_gradient_of_its_own),
        [law(laws.test_straight_through_gradient_is_exactly_one, "residual-3", False)],
    ),
    Defect(
        1,
        "no commitment gradient after the first level",
        around(ChainQuantizer, "each", with_later_levels_detached),
        [law(laws.test_every_level_pulls_the_encoder_towards_its_codes, 4)],
    ),
    Defect(
        1,
        "a rest that is attached to the codes before",
        around(ChainQuantizer, "each", with_attached_rest),
        [law(combinators.test_later_levels_do_not_pull_the_codes_of_earlier_ones)],
    ),
    Defect(
        2,
        "sums that are the bare centre",
        around(
            Codebook, "_set", lambda f, self, which, vectors, counts: f(self, which, vectors / counts[:, None], counts)
        ),
        [law(life.test_kmeans_start_survives_the_first_updates, name) for name in ("vq", "residual-3")],
    ),
    Defect(3, "the stale average stays", around(Codebook, "_revive", keeping_the_stale_average), [REVIVES]),
    Defect(
        4,
        "a k-means start only under torch.distributed",
        around(Codebook, "_start", lambda start, *arguments: start(*arguments) if dist.is_initialized() else None),
        [law(life.test_a_level_starts_after_the_level_before_it)],
    ),
    Defect(4, "revival to zeros", around(codebook, "distinct", lambda distinct, data: 0 * distinct(data)), [REVIVES]),
    Defect(
        4,
        "padding that moves averages",
        around(Codebook, "collect", lambda collect, self, x, codes, mask: collect(self, x, codes, None)),
        [law(laws.test_statistics_with_a_mask_equal_those_without_the_rest, "vq")],
    ),
    Defect(
        5,
        "the all-reduce's result dropped",
        elsewhere(regularization, all_reduce=lambda tensor: dist.all_reduce(tensor.clone())),
        [own.test_entropies_over_two_ranks],
    ),
    Defect(
        5,
        "the mean of the ranks' shares divided again",
        around(regularization, "_share_of_all", lambda share, total, count: share(total, count) / 2),
        [own.test_entropies_over_two_ranks],
    ),
    Defect(
        6,
        "an epsilon under the logarithm",
        around(regularization, "entropy", lambda _, share: -(share * (share + 1e-5).log()).sum(dim=-1)),
        [law(leaves.test_entropy_of_many_codes_has_no_cap)],
    ),
    Defect(
        6,
        "a probability clamped",
        around(regularization, "entropy", lambda _, share: -(share * share.clamp_min(1e-5).log()).sum(dim=-1)),
        [law(leaves.test_entropy_of_many_codes_has_no_cap)],
    ),
    Defect(
        7,
        "levels packed as float32",
        around(laws, "pack_codes", packed_as_floats),
        [law(laws.test_pack_is_exact_to_62_bits, [2] * 62)],
    ),
    Defect(
        7,
        "digits summed as float32",
        around(
            FiniteScalarQuantizer,
            "_join",
            lambda _, self, digits: (digits.float() * self.radix).sum(dim=-1, keepdim=True).long(),
        ),
        [law(references.test_fsq, (64,) * 10)],
    ),
    Defect(
        7,
        "bits summed as float32",
        around(BinaryQuantizer, "_join", lambda _, self, bits: (bits.float() * self.powers).sum(dim=-1).long()),
        [law(leaves.test_signs, "bsq", 36)],
    ),
    Defect(
        7,
        "digits out of range (vector-quantize-pytorch#240)",
        around(FiniteScalarQuantizer, "_digits", with_a_part_too_many),
        [law(own.test_codes_stay_in_range, "fsq")],
    ),
    Defect(
        7,
        "bits taken after scaling (Kronos#295)",
        around(BinaryQuantizer, "search", bits_above_the_scale),
        [law(EVAL, "bsq", False)],
    ),
    Defect(
        8,
        "decode without the codebook's linear layer",
        around(VectorQuantizer, "lookup", decoding_from(lambda quantizer: quantizer.codebook.form.basis)),
        [law(EVAL, "vq-linear-gradient", False)],
    ),
    Defect(
        8,
        "decode without the normalisation",
        around(VectorQuantizer, "lookup", decoding_from(lambda q: q.codebook.sum / q.codebook.count[:, None])),
        [law(EVAL, "vq-normalised", False)],
    ),
    Defect(
        8,
        "a training value that is the code but for rounding",
        around(base.Quantizer, "estimate", lambda _, self, x, parts: x + (parts.vectors - x).detach()),
        [law(laws.test_training_value_equals_decode_of_codes, "vq", torch.bfloat16)],
    ),
    Defect(
        9,
        "padding that keeps its codes",
        around(FiniteScalarQuantizer, "quantize", lambda quantize, self, x, mask: quantize(self, x, None)),
        [law(laws.test_masked_positions_change_nothing, "fsq", True)],
    ),
    Defect(
        9,
        "padding that counts in the entropy",
        around(binary, "bit_entropies", lambda entropies, logits, group, mask: entropies(logits, group, None)),
        [law(own.test_losses_with_a_mask_equal_those_without_the_rest, "lfq")],
    ),
    Defect(
        10,
        "learned values without a gradient",
        around(ScalarQuantizer, "tables", lambda tables, self: tables(self).detach()),
        [law(laws.test_every_parameter_learns, "scalar-gradient")],
    ),
    Defect(
        10,
        "codes that do not follow their values",
        around(ScalarQuantizer, "digits", rank_among_the_values),
        [law(leaves.test_scalar_takes_the_nearest_value_of_each_channel)],
    ),
    Defect(
        10,
        "codes beyond the codebook",
        around(LatticeQuantizer, "digits", unbounded_multiples),
        [law(own.test_codes_stay_in_range, "lattice-gradient")],
    ),
    Defect(11, "a rank without tokens leaves", around(base, "update_codebooks", only_with_tokens), [RANK]),
    Defect(
        11,
        "a process group of later than the quantizer is not seen",
        elsewhere(codebook, is_initialized=lambda: False),
        [RANK],
    ),
    Defect(
        12,
        "an all-reduce for every level",
        around(codebook, "_sum_over_processes", lambda total, reports: [total([report])[0] for report in reports]),
        [own.test_an_update_has_one_collective],
    ),
    Defect(
        12,
        "a projection out that decode leaves away",
        around(VectorQuantizer, "lookup", decoding_from(lambda quantizer: quantizer.codebook.entries())),
        [law(EVAL, "vq-projected", False)],
    ),
    Defect(
        13,
        "commitment that pulls the codes",
        around(
            VectorQuantizer,
            "quantize",
            with_losses(
                lambda self, x, found: {"commitment": 0.25 * (x.detach() - found.vectors).square().mean(dim=-1)}
            ),
        ),
        [law(PULLS, "vq-gradient")],
    ),
    Defect(
        13,
        "the weight of the other loss",
        around(
            PerChannelQuantizer,
            "quantize",
            with_losses(lambda self, x, found: {"codebook": self.commitment() * found.losses["codebook"]}),
        ),
        [law(PULLS, "scalar-gradient")],
    ),
    Defect(
        14,
        "a Parameter under moving averages",
        codebook_as_parameter,
        [law(laws.test_an_averaged_codebook_has_no_parameters)],
    ),
    Defect(
        15,
        "fewer than two uses are dead",
        around(Codebook, "_revive", with_two_uses_as_threshold),
        [law(life.test_codes_in_fair_use_are_left_alone_whatever_the_batch, 16)],
    ),
    Defect(
        16,
        "values that are the rotated latents",
        around(RotationQuantizer, "estimate", rotated_latents),
        [
            law(laws.test_training_value_equals_decode_of_codes, "rotation", torch.float32),
            law(own.test_rotation_leaves_values_and_losses_alone, "vq"),
        ],
    ),
    Defect(
        16,
        "a rotation without its scale",
        around(RotationQuantizer, "estimate", rotation_without_scale),
        [law(own.test_a_rotation_of_many_levels_is_one_rotation, 2), law(codebooks.test_rotation_is_the_rotation)],
    ),
    Defect(
        17,
        "the logarithm of a share of 0",
        around(regularization, "entropy", lambda _, share: -(share * share.log()).sum(dim=-1)),
        [law(own.test_losses_and_gradients_are_finite, "vq-entropy", 1e5)],
    ),
    Defect(
        17,
        "even use punished",
        around(
            binary,
            "bit_entropies",
            lambda entropies, *arguments: (entropies(*arguments)[0], -entropies(*arguments)[1]),
        ),
        [own.test_lookup_free_codes_leave_a_collapse],
    ),
    Defect(
        18,
        "one number of levels for the batch",
        around(residual, "draw_levels", lambda draw, config, levels, number: draw(config, levels, 1).expand(number)),
        [law(laws.test_level_dropout_is_per_sample, "residual-dropout")],
    ),
    Defect(
        18,
        "one tail for the batch",
        around(TailQuantizer, "draw_lengths", lambda draw, self, number, places: draw(self, 1, places).expand(number)),
        [law(combinators.test_tails_are_drawn_per_sample)],
    ),
    Defect(
        19,
        "a failed measure is the worst number",
        around(reconstruction_metrics, "pesq", the_worst_number),
        [own.test_a_measure_that_fails_is_no_number],
    ),
]


@pytest.mark.sample(2)
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: f"{defect.trap}: {defect.says}")
def test_a_planted_trap_is_seen(defect, monkeypatch):
    for check in defect.seen_by:  # without the defect they hold: their own files run them
        with monkeypatch.context() as patch:
            trees._trained.cache_clear()
            torch.manual_seed(0)
            defect.plant(patch)
            with pytest.raises((AssertionError, RuntimeError)):
                run(check, patch)
        trees._trained.cache_clear()


def run(check, patch):
    """A law, given monkeypatch if it wants one."""
    wants = "monkeypatch" in inspect.signature(check).parameters
    check(monkeypatch=patch) if wants else check()


def test_every_trap_is_planted():
    assert {defect.trap for defect in DEFECTS} == set(TRAPS) == set(range(1, 20))
    assert all(defect.seen_by for defect in DEFECTS)
