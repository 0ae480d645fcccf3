"""The traps that quantizers have fallen into elsewhere: each is planted here, and a law must then fail.

TRAPS names them; DEFECTS writes each into our code, for the time of a test, beside the laws that see it. Those that
only a trap asks for stand in test_trap_laws.py. Names with a number are issues of the projects where it was found.
"""

import inspect
from dataclasses import dataclass
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
from planting import written
from torch import nn

from tessera.tokenize.quantizers import base, codebook, fsq, regularization, scalar, vq
from tessera.tokenize.quantizers.binary import BinaryQuantizer
from tessera.tokenize.quantizers.codebook import Codebook
from tessera.tokenize.quantizers.combinators import nested_dropout, residual, rotation_trick
from tessera.tokenize.quantizers.scalar import LatticeQuantizer
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
    """A trap written into a function, and the laws that must then fail."""

    trap: int
    says: str
    plant: object
    seen_by: list


def law(function, *arguments, **named):
    """A test of any file, with one set of its parameters."""
    return partial(function, *arguments, **named)


def codebook_as_parameter(patch):
    plain = nn.Module.register_buffer

    def register(self, name, tensor, persistent=True):
        if name == "sum":
            self.sum = nn.Parameter(tensor, requires_grad=False)
        else:
            plain(self, name, tensor, persistent)

    patch.setattr(Codebook, "register_buffer", register)


SET_ALL = "self._set(dead, fresh[: len(dead)], fair.expand(len(dead)))"
PACK = law(laws.test_pack_is_exact_to_62_bits, [2] * 62)
RANK = law(own.test_a_rank_without_tokens_takes_part, "vq")
DEFECTS = [
    Defect(
        1,
        "a straight-through gradient in every level",
        written(vq.VectorQuantizer.quantize, "vectors.view_as(x)\n", "vectors.view_as(x) + (x - x.detach())\n"),
        [law(laws.test_straight_through_gradient_is_exactly_one, "residual-3", False)],
    ),
    Defect(
        1,
        "no commitment gradient after the first level",
        written(
            residual.ChainQuantizer.quantize, "rest - part.vectors.detach()", "(rest - part.vectors.detach()).detach()"
        ),
        [law(laws.test_every_level_pulls_the_encoder_towards_its_codes, 4)],
    ),
    Defect(
        1,
        "a rest that is attached to the codes before",
        written(residual.ChainQuantizer.quantize, "rest - part.vectors.detach()", "rest - part.vectors"),
        [law(combinators.test_later_levels_do_not_pull_the_codes_of_earlier_ones)],
    ),
    Defect(
        2,
        "sums that are the bare centre",
        written(Codebook._set, "vectors * counts[:, None]", "vectors"),
        [law(life.test_kmeans_start_survives_the_first_updates, name) for name in ("vq", "residual-3")],
    ),
    Defect(
        3,
        "the stale average stays",
        written(Codebook._revive, SET_ALL, f"stale = self.sum.clone(); {SET_ALL}; self.sum.copy_(stale)"),
        [law(life.test_planted_dead_codes_come_back_to_life, "vq", 64)],
    ),
    Defect(
        4,
        "a k-means start only under torch.distributed",
        written(Codebook.absorb, "if len(data):\n            self._start", "if dist.is_initialized(): self._start"),
        [law(life.test_a_level_starts_after_the_level_before_it)],
    ),
    Defect(
        4,
        "revival to zeros",
        written(Codebook._revive, "fresh[: len(dead)]", "0 * fresh[: len(dead)]"),
        [law(life.test_planted_dead_codes_come_back_to_life, "vq", 64)],
    ),
    Defect(
        4,
        "padding that moves averages",
        written(Codebook.collect, "if mask is not None:", "if False:"),
        [law(laws.test_statistics_with_a_mask_equal_those_without_the_rest, "vq")],
    ),
    Defect(
        5,
        "the all-reduce's result dropped",
        written(regularization._share_of_all, "dist.all_reduce(everywhere)", "dist.all_reduce(everywhere.clone())"),
        [own.test_entropies_over_two_ranks],
    ),
    Defect(
        5,
        "the mean of the ranks' shares divided again",
        written(
            regularization._share_of_all, "return total / count.clamp_min(1)", "return total / count.clamp_min(1) / 2"
        ),
        [own.test_entropies_over_two_ranks],
    ),
    Defect(
        6,
        "an epsilon under the logarithm",
        written(regularization.entropy, "torch.where(positive, share, 1.0).log()", "(share + 1e-5).log()"),
        [law(leaves.test_entropy_of_many_codes_has_no_cap)],
    ),
    Defect(
        6,
        "a probability clamped",
        written(regularization.entropy, "torch.where(positive, share, 1.0).log()", "share.clamp_min(1e-5).log()"),
        [law(leaves.test_entropy_of_many_codes_has_no_cap)],
    ),
    Defect(
        7,
        "levels packed as float32",
        written(base.pack_codes, "packed * size + codes[..., level]", "(packed.float() * size + codes[..., level])"),
        [PACK],
    ),
    Defect(
        7,
        "digits summed as float32",
        written(
            fsq.FiniteScalarQuantizer._join,
            "(digits.long() * self.radix).sum(dim=-1, keepdim=True)",
            "(digits.float() * self.radix).sum(dim=-1, keepdim=True).long()",
        ),
        [law(references.test_fsq, (64,) * 10)],
    ),
    Defect(
        7,
        "bits summed as float32",
        written(
            BinaryQuantizer._join, "(bits * self.powers).sum(dim=-1)", "(bits.float() * self.powers).sum(-1).long()"
        ),
        [law(leaves.test_signs, "bsq", 36)],
    ),
    Defect(
        7,
        "digits out of range (vector-quantize-pytorch#240)",
        written(fsq.FiniteScalarQuantizer._digits, ".minimum(self.sizes - 1)", ""),
        [law(own.test_codes_stay_in_range, "fsq")],
    ),
    Defect(
        7,
        "bits taken after scaling (Kronos#295)",
        written(BinaryQuantizer.search, "> 0", "> self.scale"),
        [law(laws.test_eval_forward_equals_decode_of_encode, "bsq", False)],
    ),
    Defect(
        8,
        "decode without the codebook's linear layer",
        written(vq.VectorQuantizer.lookup, "self.codebook.entries()", "self.codebook.form.basis"),
        [law(laws.test_eval_forward_equals_decode_of_encode, "vq-linear-gradient", False)],
    ),
    Defect(
        8,
        "decode without the normalisation",
        written(
            vq.VectorQuantizer.lookup, "self.codebook.entries()", "self.codebook.sum / self.codebook.count[:, None]"
        ),
        [law(laws.test_eval_forward_equals_decode_of_encode, "vq-normalised", False)],
    ),
    Defect(
        8,
        "a training value that is the code but for rounding",
        written(base.Quantizer.estimate, "parts.vectors + (x - x.detach())", "x + (parts.vectors - x).detach()"),
        [law(laws.test_training_value_equals_decode_of_codes, "vq", torch.bfloat16)],
    ),
    Defect(
        9,
        "padding that keeps its codes",
        written(fsq.FiniteScalarQuantizer.quantize, "if mask is not None:", "if False:"),
        [law(laws.test_masked_positions_change_nothing, "fsq", True)],
    ),
    Defect(
        9,
        "padding that counts in the entropy",
        written(BinaryQuantizer.quantize, "wanted.group, valid)", "wanted.group, None)"),
        [law(own.test_losses_with_a_mask_equal_those_without_the_rest, "lfq")],
    ),
    Defect(
        10,
        "learned values without a gradient",
        written(scalar.ScalarQuantizer.values, "self.tables()", "self.tables().detach()"),
        [law(laws.test_every_parameter_learns, "scalar-gradient")],
    ),
    Defect(
        10,
        "codes that do not follow their values",
        written(scalar.ScalarQuantizer.digits, "number.gather(1, rank).T", "rank.T"),
        [law(leaves.test_scalar_takes_the_nearest_value_of_each_channel)],
    ),
    Defect(
        10,
        "codes beyond the codebook",
        written(LatticeQuantizer.digits, ".clamp(0, self.config.size - 1)", ""),
        [law(own.test_codes_stay_in_range, "lattice-gradient")],
    ),
    Defect(
        11,
        "a rank without tokens leaves",
        written(
            codebook.update_codebooks,
            "if not books:",
            "if all(book.collected is None or not book.collected[0].any() for book in books):",
        ),
        [RANK],
    ),
    Defect(
        11,
        "a process group of later than the quantizer is not seen",
        written(codebook.update_codebooks, "dist.is_initialized() and", "False and"),
        [RANK],
    ),
    Defect(
        12,
        "an all-reduce for every level",
        written(
            codebook.update_codebooks,
            "reports = _sum_over_processes(reports)",
            "reports = [_sum_over_processes([report])[0] for report in reports]",
        ),
        [own.test_an_update_has_one_collective],
    ),
    Defect(
        12,
        "a projection out that decode leaves away",
        written(vq.VectorQuantizer.lookup, "self._project_out(self.codebook.entries())", "self.codebook.entries()"),
        [law(laws.test_eval_forward_equals_decode_of_encode, "vq-projected", False)],
    ),
    Defect(
        13,
        "commitment that pulls the codes",
        written(
            vq.VectorQuantizer.quantize, "commitment * (x - vectors.detach())", "commitment * (x.detach() - vectors)"
        ),
        [law(own.test_commitment_pulls_latents_and_the_codebook_loss_codes, "vq-gradient")],
    ),
    Defect(
        13,
        "the weight of the other loss",
        written(
            scalar.PerChannelQuantizer.quantize,
            "(x.detach() - vectors).square()",
            "self.commitment() * (x.detach() - vectors).square()",
        ),
        [law(own.test_commitment_pulls_latents_and_the_codebook_loss_codes, "scalar-gradient")],
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
        written(Codebook._revive, "self.revive_below * fair", "2"),
        [law(life.test_codes_in_fair_use_are_left_alone_whatever_the_batch, 16)],
    ),
    Defect(
        16,
        "values that are the rotated latents",
        written(rotation_trick.RotationQuantizer.estimate, "vectors + (turned - turned.detach())", "turned"),
        [
            law(laws.test_training_value_equals_decode_of_codes, "rotation", torch.float32),
            law(own.test_rotation_leaves_values_and_losses_alone, "vq"),
        ],
    ),
    Defect(
        16,
        "a rotation without its scale",
        written(rotation_trick.RotationQuantizer.estimate, "turned = scale * turned", "pass"),
        [law(own.test_a_rotation_of_many_levels_is_one_rotation, 2), law(codebooks.test_rotation_is_the_rotation)],
    ),
    Defect(
        17,
        "the logarithm of a share of 0",
        written(regularization.entropy, "torch.where(positive, share, 1.0).log()", "share.log()"),
        [law(own.test_losses_and_gradients_are_finite, "vq-entropy", 1e5)],
    ),
    Defect(
        17,
        "even use punished",
        written(BinaryQuantizer.quantize, "- wanted.batch * over_batch", "+ wanted.batch * over_batch"),
        [own.test_lookup_free_codes_leave_a_collapse],
    ),
    Defect(
        18,
        "one number of levels for the batch",
        written(
            residual.draw_levels, "torch.randint(1, levels + 1, (num_samples,))", "torch.randint(1, levels + 1, (1,))"
        ),
        [law(laws.test_level_dropout_is_per_sample, "residual-dropout")],
    ),
    Defect(
        18,
        "one tail for the batch",
        written(nested_dropout.TailQuantizer.draw_lengths, "places + 1, (num_samples,))", "places + 1, (1,))"),
        [law(combinators.test_tails_are_drawn_per_sample)],
    ),
    Defect(
        19,
        "a failed measure is the worst number",
        written(
            reconstruction_metrics.pesq,
            "except PesqError:\n        return None",
            "except Exception:\n        return 1.0",
        ),
        [own.test_a_measure_that_fails_is_no_number],
    ),
]


@pytest.mark.sample(15)
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
