"""The laws every quantizer keeps, over a table of configs. A new quantizer or option is one line in CONFIGS.

Run as a script this file is one of the two processes of `test_two_processes_equal_one`.
"""

import copy
import functools
import os
import random
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from tessera.tokenize.codebook import REVIVE_EVERY
from tessera.tokenize.config import Config, check_config
from tessera.tokenize.halting import HaltingQuantizer
from tessera.tokenize.quantizer import (
    FSQConfig,
    QuantizerConfig,
    ResidualConfig,
    VQConfig,
    make_quantizer,
    pack_codes,
    unpack_codes,
)

DIM = 6
VQ = VQConfig(size=16, decay=0.9)


class Tree(Config):
    quantizer: QuantizerConfig


def tree(**settings):
    """A quantizer as it would be written in a YAML file."""
    return check_config({"quantizer": settings}, Tree).quantizer


V16 = {"kind": "vq", "size": 16, "decay": 0.9}
GRADIENT = {**V16, "update": "gradient"}
ENTROPY = {"sample": 0.1, "batch": 0.2, "temperature": 0.5}
CONFIGS = {
    "vq": VQ,
    "vq-random-start": VQConfig(size=16, kmeans_init=False),
    "vq-gradient": VQConfig(size=16, decay=0.9, update="gradient"),
    "vq-normalised": VQConfig(size=16, decay=0.9, normalise=True),
    "vq-projected": VQConfig(size=16, code_dim=3),
    "vq-projected-normalised": VQConfig(size=16, decay=0.9, code_dim=3, normalise=True),
    "vq-projected-gradient": VQConfig(size=16, code_dim=3, update="gradient", normalise=True),
    "fsq": FSQConfig(levels=(2, 3, 4, 5, 2, 3)),
    "fsq-projected": FSQConfig(levels=(8, 5, 4)),
    "residual-1": ResidualConfig(levels=1, quantizer=VQ),
    "residual-3": ResidualConfig(levels=3, quantizer=VQ),
    "residual-8": ResidualConfig(levels=8, quantizer=VQ),
    "residual-dropout": ResidualConfig(levels=4, quantizer=VQ, level_dropout=0.7),
    "residual-gradient": ResidualConfig(levels=3, quantizer=VQConfig(size=16, update="gradient")),
    "residual-projected": ResidualConfig(levels=3, quantizer=VQConfig(size=16, code_dim=2)),
    "residual-fsq": ResidualConfig(levels=3, quantizer=FSQConfig(levels=(3, 3, 4, 4, 5, 5))),
    "residual-fsq-dropout": ResidualConfig(levels=2, quantizer=FSQConfig(levels=(4, 4)), level_dropout=0.5),
    # How codes move, and what they are made of.
    "vq-keep-length": tree(**V16, normalise=True, keep_length=True),
    "vq-keep-length-gradient-projected": tree(**GRADIENT, normalise=True, keep_length=True, code_dim=3),
    "vq-index-gradient": tree(**{**V16, "update": "index"}, entropy=ENTROPY),
    "vq-index-gradient-projected": tree(**{**V16, "update": "index"}, code_dim=3, normalise=True),
    "vq-alternating": tree(**{**V16, "update": "alternating"}, inner_steps=2),
    "vq-linear-gradient": tree(**GRADIENT, codebook={"kind": "linear"}),
    "vq-bridge-gradient": tree(**GRADIENT, codebook={"kind": "bridge", "patch": 4, "width": 16, "layers": 1}),
    "vq-affine-gradient": tree(**GRADIENT, codebook={"kind": "affine"}, moments=0.5),
    "vq-affine-index-gradient": tree(**{**V16, "update": "index"}, codebook={"kind": "affine"}),
    "vq-linear-gradient-normalised": tree(**GRADIENT, codebook={"kind": "linear"}, normalise=True, code_dim=3),
    "vq-entropy": tree(**V16, entropy=ENTROPY, moments=0.1),
    "vq-blend": tree(**V16, revive="blend"),
    "vq-blend-gradient": tree(**GRADIENT, revive="blend"),
    # Leaves without a table, and with numbers per channel.
    "lfq": tree(kind="lfq", bits=6, entropy=ENTROPY),
    "lfq-projected": tree(kind="lfq", bits=4, entropy={**ENTROPY, "group": 3}),
    "bsq": tree(kind="bsq", bits=6, entropy={**ENTROPY, "group": 6}),
    "bsq-projected": tree(kind="bsq", bits=9, entropy=ENTROPY),
    "bernoulli": tree(kind="bernoulli", bits=6, entropy=ENTROPY),
    "bernoulli-projected": tree(kind="bernoulli", bits=8),
    "scalar-gradient": tree(kind="scalar", size=5),
    "scalar-fitted": tree(kind="scalar", size=7, values="quantile"),
    "lattice-gradient": tree(kind="lattice", size=8),
    "kmeans-fitted": tree(kind="kmeans", size=8, commitment=0.1),
    "structural-fitted": tree(kind="structural", size=9, nodes=48, neighbours=4, commitment=0.1),
    "structural-cosine-fitted": tree(kind="structural", size=48, nodes=48, neighbours=3, similarity="cosine"),
    "residual-structural-fitted": tree(
        kind="residual", levels=2, quantizer={"kind": "structural", "size": 30, "nodes": 64, "neighbours": 3}
    ),
    "shared-index": tree(
        kind="shared_index", size=16, parts={"deep": {"channels": 2, "normalise": True}, "fine": {"channels": 4}}
    ),
    "shared-index-gradient": tree(
        kind="shared_index",
        size=16,
        update="gradient",
        parts={"a": {"channels": 5, "weight": 0.3}, "b": {"channels": 1}},
    ),
    # Combinators.
    "residual-shared": tree(kind="residual", levels=3, shared=True, quantizer=V16),
    "residual-choices-dropout": tree(
        kind="residual", levels=4, quantizer=V16, level_dropout=0.8, level_choices=[0, 1, 3, 4]
    ),
    "residual-bsq": tree(kind="residual", levels=3, quantizer={"kind": "bsq", "bits": 6}),
    "residual-lattice-gradient": tree(kind="residual", levels=2, quantizer={"kind": "lattice", "size": 5}),
    "residual-scalar-gradient": tree(kind="residual", levels=2, quantizer={"kind": "scalar", "size": 4}),
    "group": tree(kind="group", groups=3, quantizer=V16, disentangle=0.3),
    "group-shared": tree(kind="group", groups=2, shared=True, quantizer=GRADIENT),
    "group-dropout": tree(kind="group", groups=3, quantizer=V16, level_dropout=0.5, disentangle=0.1),
    "group-lfq": tree(kind="group", groups=2, quantizer={"kind": "lfq", "bits": 3, "entropy": ENTROPY}),
    "group-residual": tree(kind="group", groups=2, quantizer={"kind": "residual", "levels": 2, "quantizer": V16}),
    "chain-group-residual": tree(
        kind="chain",
        stages=[
            {"kind": "group", "groups": 3, "quantizer": V16},
            {"kind": "residual", "levels": 2, "quantizer": V16, "level_dropout": 0.7, "level_choices": [0, 1, 2]},
        ],
    ),
    "branches-split": tree(
        kind="branches",
        branches={
            "semantic": {"quantizer": {"kind": "project", "dim": 4, "quantizer": V16}},
            "acoustic": {
                "quantizer": {
                    "kind": "project",
                    "dim": 3,
                    "quantizer": {"kind": "residual", "levels": 2, "quantizer": V16},
                }
            },
        },
    ),
    "branches-strided": tree(
        kind="branches",
        disentangle=0.2,
        branches={
            "slow": {"source": [0, 3], "stride": 3, "quantizer": GRADIENT},
            "fine": {"source": [3, 6], "quantizer": {"kind": "lfq", "bits": 3}},
        },
    ),
    "branches-overlapping-fitted": tree(
        kind="branches",
        branches={"a": {"source": [0, 4], "quantizer": {"kind": "kmeans", "size": 5}}, "b": {"quantizer": V16}},
    ),
    "project": tree(kind="project", dim=4, quantizer={"kind": "fsq", "levels": [3, 4, 3, 4]}),
    "strided": tree(kind="stride", every=2, quantizer=V16),
    "snac-strided": tree(
        kind="chain",
        stages=[
            {"kind": "stride", "every": 4, "quantizer": V16},
            {"kind": "stride", "every": 2, "quantizer": V16},
            V16,
        ],
    ),
    "regions-noise": tree(kind="regions", columns=4, quantizer=V16),
    "regions-gradient-residual": tree(
        kind="regions",
        columns=6,
        side=3,
        noise=0.0,
        quantizer={"kind": "residual", "levels": 2, "quantizer": GRADIENT},
    ),
    "rotation": tree(kind="rotation", quantizer=V16),
    "rotation-residual": tree(kind="rotation", quantizer={"kind": "residual", "levels": 3, "quantizer": V16}),
    "skip-dropout": tree(kind="skip", share=0.4, quantizer={"kind": "residual", "levels": 2, "quantizer": V16}),
    "tail-dropout": tree(kind="tail", shortest=2, quantizer={"kind": "residual", "levels": 2, "quantizer": V16}),
    "gaussian-noise": tree(kind="gaussian", divergence=0.1, quantizer={**V16, "moments": 0.1}),
    "gaussian-residual-dropout": tree(
        kind="gaussian", quantizer={"kind": "residual", "levels": 3, "quantizer": GRADIENT, "level_dropout": 0.5}
    ),
    "tail-lengths-dropout": tree(kind="tail", lengths=[1, 4], share=0.6, quantizer={"kind": "bsq", "bits": 4}),
    "halting-dropout": tree(kind="halting", wanted_error=0.1, shortest=2, quantizer=V16),
    "halting-residual-dropout": tree(
        kind="halting", wanted_error=0.1, quantizer={"kind": "residual", "levels": 3, "quantizer": GRADIENT}
    ),
}
HANGING = ("strided", "regions", "halting")
"""Where codes of places hang together."""
PER_PLACE = [name for name in CONFIGS if not any(word in name for word in HANGING)]
STRAIGHT = [name for name in CONFIGS if "rotation" not in name]
NOT_RANDOM = [
    name for name in CONFIGS if not any(word in name for word in ("dropout", "bernoulli", "noise", "chain-group"))
]
SHAPES = [(DIM,), (37, DIM), (2, 3, 5, DIM), (0, DIM), (3, 0, DIM)]
every_config = pytest.mark.parametrize("name", CONFIGS)


def fresh(name):
    """A quantizer that has seen nothing but what it must be fitted to."""
    quantizer = make_quantizer(CONFIGS[name], DIM)
    if "fitted" in name:
        quantizer.fit(torch.randn(64, DIM, generator=torch.Generator().manual_seed(3)))
    return quantizer


def trained(name, seed=0, updates=None):
    """A quantizer in training mode that has seen a few batches; by default all levels have started."""
    quantizer = copy.deepcopy(_trained(name, seed, updates))
    torch.manual_seed(seed + 1)
    return quantizer


@functools.cache
def _trained(name, seed, updates):
    torch.manual_seed(seed)
    quantizer = fresh(name)
    for _ in range(len(quantizer.cardinalities) + 2 if updates is None else updates):
        quantizer(torch.randn(5, 13, DIM))
        quantizer.update()
    return quantizer


def state_of(quantizer):
    return {key: value.clone() for key, value in quantizer.state_dict().items()}


def same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def autocast(on):
    return torch.autocast("cpu", dtype=torch.bfloat16) if on else nullcontext()


# L1, L2: what training, evaluation and decoding call a value is one thing, to the last bit.


@every_config
@pytest.mark.parametrize("half", [False, True])
def test_eval_forward_equals_decode_of_encode(name, half):
    quantizer = trained(name).eval()
    for shape in SHAPES:
        x = torch.randn(shape, requires_grad=True)
        with autocast(half):
            result = quantizer(x)
            codes = quantizer.encode(x)
            values = quantizer.decode(codes)
        assert torch.equal(result.codes, codes) and torch.equal(result.values, values), shape
        assert codes.shape == (*shape[:-1], len(quantizer.cardinalities)) and codes.dtype == torch.long
        assert values.shape == shape and values.dtype == torch.float32
        assert all(loss.shape == shape[:-1] for loss in result.losses.values())


@every_config
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_training_value_equals_decode_of_codes(name, dtype):
    quantizer = trained(name)
    for scale in (0.1, 1.0, 30.0):
        x = (scale * torch.randn(3, 7, DIM)).to(dtype).requires_grad_()
        result = quantizer(x)
        values = quantizer.decode(result.codes)
        if CONFIGS[name].kind == "skip":  # whose samples without codes keep their latents
            values = torch.where((result.codes < 0).all(dim=-1, keepdim=True), x.float(), values)
        assert torch.equal(result.values, values)


@every_config
def test_decode_is_the_sum_of_code_vectors(name):
    quantizer = trained(name).eval()
    codes = quantizer.encode(torch.randn(20, DIM))
    vectors = quantizer.vectors()
    assert vectors.shape == (len(quantizer.cardinalities), max(quantizer.cardinalities), DIM)
    total = sum(vectors[level, codes[:, level]] for level in range(codes.shape[1]))
    torch.testing.assert_close(total, quantizer.decode(codes), atol=1e-6, rtol=1e-5)  # order of the sum


# L3: the encoder's gradient. Trap 1 is one straight-through gradient per level: it gives 2, 4, 8 here.


@pytest.mark.parametrize("name", STRAIGHT)
@pytest.mark.parametrize("half", [False, True])
def test_straight_through_gradient_is_exactly_one(name, half):
    quantizer = trained(name)
    x = torch.randn(4, 9, DIM, requires_grad=True)
    weight = torch.randn(4, 9, DIM)
    with autocast(half):
        result = quantizer(x)
    (result.values * weight).sum().backward()
    assert torch.equal(x.grad, torch.where(follows(quantizer, result.codes), weight, 0.0))


def follows(quantizer, codes):
    """Where values follow the latents: everywhere, but for tokens after a halt; [*, 1]."""
    if not isinstance(quantizer, HaltingQuantizer):
        return torch.ones_like(codes[..., :1], dtype=torch.bool)
    return (codes != torch.tensor([size - 1 for size in quantizer.cardinalities])).all(dim=-1, keepdim=True)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_every_level_pulls_the_encoder_towards_its_codes(levels):
    """The opposite of trap 1: an attached residual leaves no commitment gradient after the first level."""
    torch.manual_seed(levels)
    quantizer = trained_residual(levels)
    x = torch.randn(10, DIM, requires_grad=True)
    quantizer(x).losses["commitment"].sum().backward()
    rest, wanted = x.detach(), torch.zeros_like(x)
    vectors = quantizer.vectors().detach()
    for level, codes in enumerate(quantizer.encode(x).unbind(-1)):
        rest = rest - vectors[level, codes]
        wanted += 0.25 * 2 * rest / DIM
    torch.testing.assert_close(x.grad, wanted)


def trained_residual(levels):
    quantizer = make_quantizer(ResidualConfig(levels=levels, quantizer=VQ), DIM)
    for _ in range(levels + 1):
        quantizer(torch.randn(64, DIM))
        quantizer.update()
    return quantizer


@every_config
def test_every_parameter_learns(name):
    quantizer = trained(name)
    if not list(quantizer.parameters()):
        assert "projected" not in name and "gradient" not in name
        return
    x = torch.randn(8, 50, DIM)
    result = quantizer(x)
    total = result.values.square().sum() + sum(loss.sum() for loss in result.losses.values())
    if isinstance(quantizer, HaltingQuantizer):  # its head learns from a term outside
        total = total + quantizer.halting(x, torch.rand(8)).square().sum()
    total.backward()
    for parameter_name, parameter in quantizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


def test_an_averaged_codebook_has_no_parameters():
    """A Parameter that does not require gradients is overwritten by a bf16 trainer's master copy (trap 14)."""
    assert not list(make_quantizer(CONFIGS["residual-3"], DIM).parameters())
    halved = trained("residual-3").bfloat16()
    assert all(tensor.dtype == torch.float32 for tensor in halved.state_dict().values() if tensor.is_floating_point())


# L4: the content of padding changes nothing.


@every_config
@pytest.mark.parametrize("training", [False, True])
def test_masked_positions_change_nothing(name, training):
    first = trained(name, updates=0).train(training)
    second = copy.deepcopy(first)
    for step in range(REVIVE_EVERY + 2):
        x, mask = torch.randn(4, 9, DIM), torch.rand(4, 9) < 0.6
        noisy = torch.where(
            mask[..., None], x, torch.full_like(x, float("nan")) if step % 2 else 100 * torch.randn_like(x)
        )
        x.requires_grad_(), noisy.requires_grad_()
        results = []
        for quantizer, latents in ((first, x), (second, noisy)):
            torch.manual_seed(step)  # level dropout
            result = quantizer(latents, mask)
            (result.values.sum() + sum(loss.sum() for loss in result.losses.values())).backward()
            quantizer.update()
            results.append(result)
        a, b = results
        assert torch.equal(a.codes, b.codes) and torch.equal(a.values, b.values)
        assert all(torch.equal(a.losses[key], b.losses[key]) for key in a.losses)
        assert all(torch.equal(a.stats[key], b.stats[key]) for key in a.stats)
        assert (a.codes[~mask] == -1).all() and (a.values[~mask] == 0).all()
        assert torch.equal(first.encode(x, mask=mask), second.encode(noisy, mask=mask))
        assert all((loss[~mask] == 0).all() for loss in a.losses.values())
        assert torch.equal(x.grad, noisy.grad) and (x.grad[~mask] == 0).all()
    assert same_state(state_of(first), state_of(second))


@pytest.mark.parametrize("name", PER_PLACE)
def test_a_mask_equals_leaving_the_rest_out(name):
    quantizer = trained(name).eval()
    x, mask = torch.randn(4, 9, DIM), torch.rand(4, 9) < 0.6
    masked, alone = quantizer(x, mask), quantizer(x[mask])
    assert torch.equal(masked.codes[mask], alone.codes) and torch.equal(masked.values[mask], alone.values)


@pytest.mark.parametrize("name", [name for name in NOT_RANDOM if name in PER_PLACE])  # dropout is drawn per sample
def test_statistics_with_a_mask_equal_those_without_the_rest(name):
    first, second = trained(name, updates=0), trained(name, updates=0)
    for _ in range(REVIVE_EVERY + 1):
        x, mask = torch.randn(4, 9, DIM), torch.rand(4, 9) < 0.6
        first(x, mask)
        second(x[mask])
        first.update()
        second.update()
    assert same_state(state_of(first), state_of(second))


# L5: two processes equal one.


def shared_steps(name):
    """(latents, mask, number of samples that process 0 has) of each update; process 1 once has nothing but padding."""
    generator = torch.Generator().manual_seed(5)
    for step in range(REVIVE_EVERY + 3):
        x = torch.randn(7, 11, DIM, generator=generator)
        mask = torch.rand(7, 11, generator=generator) < 0.8
        first = 1 + step % 4
        if step == 3:
            mask[first:] = False
        yield x, mask, first


def draw_alike(quantizer, rows):
    """Dropout is drawn for each sample: here by its number among the 7 of both processes, and noise by the latent."""
    drawn = (torch.arange(7) % 4 + 1)[rows]
    for module in quantizer.modules():
        module.draw_levels = module.draw_lengths = lambda *_, drawn=drawn: drawn
        module.draw_passed = lambda _, drawn=drawn: drawn == 2
        module.draw_noise = torch.cos


def run_shared(name, part):
    """State after the updates, for one process with all samples (part None) or the first or second of two."""
    torch.manual_seed(0)
    quantizer = fresh(name)
    for x, mask, first in shared_steps(name):
        rows = {None: slice(None), 0: slice(first), 1: slice(first, None)}[part]
        draw_alike(quantizer, rows)
        for piece in (x[rows], x[rows] * 0.5):  # two backward passes, one update
            quantizer(piece, mask[rows])
        quantizer.update()
    return quantizer.state_dict()


def run_entropies(part):
    """The entropy losses of a joint batch of 12 tokens, and what gradient reaches the latents of each process."""
    x = torch.randn(12, DIM, generator=torch.Generator().manual_seed(8))
    rows = {None: slice(None), 0: slice(6), 1: slice(6, None)}[part]
    found = {}
    for name in ("lfq", "bsq", "vq-entropy"):
        torch.manual_seed(0)
        config = CONFIGS[name].model_copy(update={"commitment": 0.0, **({"moments": 0.0} if "vq" in name else {})})
        own = x[rows].clone().requires_grad_()
        loss = make_quantizer(config, DIM)(own).losses["entropy"].mean()
        loss.backward()
        found[name] = (loss.detach(), own.grad)
    return found


def run_as_process(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    states = {name: run_shared(name, rank) for name in CONFIGS}
    torch.save((states, run_entropies(rank)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve())]
    running = [subprocess.Popen([*command, str(rank), str(tmp_path)], env=environment, cwd=tmp_path) for rank in (0, 1)]
    alone = {name: run_shared(name, None) for name in CONFIGS}
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    (zero, entropies), (one, others) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, state in alone.items():
        assert same_state(zero[name], one[name]), name
        for key, value in state.items():
            # Sums are added in another order.
            torch.testing.assert_close(
                zero[name][key], value, atol=1e-5, rtol=1e-4, msg=lambda m, k=f"{name} {key}": f"{k}: {m}"
            )

    for name, (loss, gradient) in run_entropies(None).items():
        # Trap 5: the share of a code is that in the joint batch, for both. DDP halves the sum of gradients.
        torch.testing.assert_close((entropies[name][0] + others[name][0]) / 2, loss)
        torch.testing.assert_close(torch.cat([entropies[name][1], others[name][1]]) / 2, gradient)


# L6: a frozen quantizer never changes; state survives saving.


@every_config
def test_frozen_never_changes(name):
    quantizer = trained(name)
    quantizer.freeze()
    quantizer.train()
    before, x = state_of(quantizer), torch.randn(3, 50, DIM)
    codes = quantizer(x).codes
    for _ in range(REVIVE_EVERY + 1):
        quantizer(x)
        quantizer.update()
    assert same_state(before, state_of(quantizer)) and torch.equal(codes, quantizer(x).codes)
    assert not any(parameter.requires_grad for parameter in quantizer.parameters())


@every_config
def test_eval_changes_nothing(name):
    quantizer = trained(name).eval()
    before = state_of(quantizer)
    quantizer(torch.randn(3, 50, DIM))
    quantizer.update()
    assert same_state(before, state_of(quantizer))


@every_config
def test_saved_state_goes_on_the_same(name):
    first = trained(name, updates=3)
    torch.manual_seed(1)
    second = make_quantizer(CONFIGS[name], DIM)
    second.load_state_dict(first.state_dict())
    for step in range(REVIVE_EVERY + 1):
        for quantizer in (first, second):
            torch.manual_seed(step)
            quantizer(torch.randn(4, 30, DIM))
            quantizer.update()
    assert same_state(state_of(first), state_of(second))


# L7: packing. Trap 7 is packing by sums of floats: wrong above 24 bits in float32.


@pytest.mark.parametrize(
    "cardinalities", [[2] * 62, [1 << 31, 1 << 31], [1024] * 6 + [4], [1 << 62], [7, 11, 13], [1, 5]]
)
def test_pack_is_exact_to_62_bits(cardinalities):
    rows = [[random.Random(row).randrange(size) for size in cardinalities] for row in range(200)]
    rows += [[size - 1 for size in cardinalities], [0 for _ in cardinalities]]
    codes = torch.tensor(rows)
    packed = pack_codes(codes, cardinalities)
    for row, number in zip(rows, packed.tolist(), strict=True):
        expected = 0  # Python's integers have no limit
        for digit, size in zip(row, cardinalities, strict=True):
            expected = expected * size + digit
        assert number == expected
    assert torch.equal(unpack_codes(packed, cardinalities), codes)


def test_pack_says_what_does_not_fit():
    with pytest.raises(ValueError, match=r"above 2\^62"):
        pack_codes(torch.zeros(1, 63, dtype=torch.long), [2] * 63)
    with pytest.raises(ValueError, match=r"-1..3 do not fit"):
        pack_codes(torch.tensor([[3, -1]]), [4, 4])
    with pytest.raises(ValueError, match=r"must be in 0..15, found 3..16"):
        unpack_codes(torch.tensor([3, 16]), [4, 4])


@every_config
def test_quantizers_pack_their_codes(name):
    quantizer = trained(name).eval()
    codes = quantizer.encode(torch.randn(3, 8, DIM))
    packed = quantizer.pack(codes)
    assert packed.shape == (3, 8) and torch.equal(quantizer.unpack(packed), codes)


# L8: precision around the call does not reach the codes.


@every_config
def test_precision_of_the_caller_changes_no_code(name):
    quantizer = trained(name).eval()
    x = torch.randn(500, DIM).bfloat16()
    codes = quantizer.encode(x.float())
    assert torch.equal(codes, quantizer.encode(x))
    assert torch.equal(codes, quantizer.encode(x.double()))
    with autocast(True):
        assert torch.equal(codes, quantizer.encode(x.float()))
        assert torch.equal(quantizer.decode(codes), quantizer(x.float()).values)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(codes, quantizer.encode(x.float()))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


# L9: dropped levels.


@pytest.mark.parametrize("name", ["residual-dropout", "residual-fsq-dropout"])
def test_level_dropout_is_per_sample(name):
    quantizer = trained(name)
    num_levels = len(quantizer.cardinalities)
    result = quantizer(torch.randn(200, 3, DIM))
    kept = (result.codes >= 0).sum(dim=-1)
    assert (kept == kept[:, :1]).all(), "all places of a sample lose the same levels"
    assert set(kept[:, 0].tolist()) == set(range(1, num_levels + 1))
    dropped = CONFIGS[name].level_dropout * (1 - 1 / num_levels)
    assert abs((kept[:, 0] < num_levels).float().mean() - dropped) < 0.15  # 4 standard deviations of 200 draws
    assert ((result.codes >= 0).long().diff(dim=-1) <= 0).all(), "only a tail is dropped"
    assert torch.equal(result.values, quantizer.decode(result.codes))
    assert (quantizer.eval()(torch.randn(50, 3, DIM)).codes >= 0).all()


@every_config
def test_encode_with_fewer_levels_is_a_prefix(name):
    quantizer = trained(name).eval()
    x = torch.randn(30, DIM)
    whole = quantizer.encode(x)
    for levels in range(1, whole.shape[1] + 1):
        codes = quantizer.encode(x, levels)
        assert torch.equal(codes[:, :levels], whole[:, :levels]) and (codes[:, levels:] == -1).all()
        total = sum(quantizer.vectors()[level, codes[:, level]] for level in range(levels))
        torch.testing.assert_close(quantizer.decode(codes), total, atol=1e-6, rtol=1e-5)


# L10: dead codes. Trap 3: a stale average pulls the replacement back. Trap 15: a threshold that is not relative.


@pytest.mark.parametrize("name", ["vq", "vq-gradient", "vq-projected-normalised", "vq-normalised", "vq-blend"])
@pytest.mark.parametrize("batch", [64, 2048])
def test_planted_dead_codes_come_back_to_life(name, batch):
    quantizer = trained(name)
    book = quantizer.codebook
    with torch.no_grad():  # half of the codes far away, with the history of a popular code
        if book.learned:
            book.weight[8:] = 0.0 if book.normalise else 1e3
            book.weight[8:, 0] = -1e6 if book.normalise else 1e3
        else:
            book.sum[8:] = 1e3 * book.count[8:, None]
    planted = book.entries()[8:].clone()
    for _ in range(60):
        x = torch.randn(batch, DIM)
        x[:, 0] += 3.0
        quantizer(x)
        quantizer.update()
    if not book.normalise:  # on the sphere a planted direction may be near the data by itself
        assert (book.entries()[8:] - planted).norm(dim=-1).min() > 1
    used = quantizer.eval().encode(torch.randn(4096, DIM) + torch.tensor([3.0] + [0.0] * (DIM - 1)))
    assert len(used.unique()) == 16


@pytest.mark.parametrize("batch", [16, 64, 4096])
def test_codes_in_fair_use_are_left_alone_whatever_the_batch(batch):
    torch.manual_seed(0)
    quantizer = make_quantizer(VQConfig(size=16, decay=0.99, kmeans_init=False), DIM)
    points = 10 * torch.randn(16, DIM)
    with torch.no_grad():
        quantizer.codebook.sum.copy_(points)
    for _ in range(4 * REVIVE_EVERY):
        quantizer(points[torch.arange(batch) % 16])
        quantizer.update()
    torch.testing.assert_close(quantizer.codebook.entries(), points, rtol=1e-4, atol=1e-4)  # sums of 256 floats


def test_revival_can_be_switched_off_without_harm():
    quantizer = make_quantizer(VQConfig(size=8, decay=0.1, revive_below=0, kmeans_init=False), DIM)
    for _ in range(100):  # a count of 1 decays to 1e-100, below what float32 holds
        quantizer(torch.ones(4, DIM))
        quantizer.update()
    assert quantizer.codebook.entries().isfinite().all()


# L11: the k-means start. Trap 2: averages start from the bare centre, and the first update shrinks all codes.


@pytest.mark.parametrize("name", ["vq", "vq-normalised", "residual-3"])
def test_kmeans_start_survives_the_first_updates(name):
    torch.manual_seed(0)
    config = CONFIGS[name]
    quantizer = make_quantizer(config, DIM)
    x = torch.randn(2000, DIM)
    for _ in quantizer.cardinalities:
        quantizer(x)
        quantizer.update()
    started, error = quantizer.vectors().clone(), (quantizer(x).values - x).square().mean()
    quantizer.update()
    moved = quantizer.vectors()
    assert (moved - started).norm() < 0.1 * started.norm()
    assert abs(moved.norm(dim=-1).mean() / started.norm(dim=-1).mean() - 1) < 0.02
    assert (quantizer(x).values - x).square().mean() < 1.02 * error


def test_a_level_starts_after_the_level_before_it():
    """Its data are the residuals of a codebook that stands: one level an update."""
    quantizer = make_quantizer(CONFIGS["residual-3"], DIM)
    for update in range(4):
        assert [bool(level.codebook.started) for level in quantizer.levels] == [level < update for level in range(3)]
        quantizer(torch.randn(100, DIM))
        quantizer.update()


def test_start_waits_for_data():
    quantizer = make_quantizer(CONFIGS["vq"], DIM)
    quantizer(torch.randn(4, DIM), torch.zeros(4, dtype=torch.bool))
    quantizer.update()
    assert not quantizer.codebook.started
    quantizer(torch.randn(4, DIM))  # fewer vectors than codes: the spare codes come to life later
    quantizer.update()
    assert quantizer.codebook.started and quantizer.codebook.entries().isfinite().all()
    for _ in range(2 * REVIVE_EVERY):
        quantizer(torch.randn(100, DIM))
        quantizer.update()
    assert len(quantizer.eval().encode(torch.randn(1000, DIM)).unique()) > 12


@pytest.mark.parametrize("name", ["vq", "vq-gradient", "residual-3"])
def test_a_non_finite_batch_moves_nothing(name):
    quantizer = trained(name, updates=REVIVE_EVERY - 1)
    for bad in (float("nan"), float("inf")):
        before = quantizer.vectors().clone()
        x = torch.randn(10, DIM)
        x[3, 2] = bad
        quantizer(x)
        quantizer.update()
        assert torch.equal(quantizer.vectors(), before)


# L12: codes do not depend on the rest of the batch.


@every_config
def test_codes_do_not_depend_on_the_batch(name):
    quantizer = trained(name).eval()
    x = torch.randn(300, DIM)
    codes = quantizer.encode(x)
    assert torch.equal(codes[:16], torch.cat([quantizer.encode(row[None]) for row in x[:16]]))
    for size in (2, 5, 100, 255):
        assert torch.equal(codes[-size:], quantizer.encode(x[-size:]))
    assert torch.equal(codes, quantizer.encode(x.flip(0)).flip(0))
    assert torch.equal(codes[:50], quantizer.encode(x.T.contiguous().T[:50]))
    values = quantizer.decode(codes)
    assert torch.equal(values[:16], torch.cat([quantizer.decode(row[None]) for row in codes[:16]]))


# Borders.


def test_wrong_shapes_are_named():
    quantizer = make_quantizer(CONFIGS["residual-3"], DIM)
    with pytest.raises(ValueError, match=r"floats \[..., 6\], found torch.float32 \[2, 6, 5\]"):
        quantizer(torch.randn(2, 6, 5))
    with pytest.raises(ValueError, match=r"floats \[..., 6\], found torch.int64"):
        quantizer.encode(torch.ones(2, 6, dtype=torch.long))
    with pytest.raises(ValueError, match=r"mask is \[5, 2\], the latents are \[2, 5, 6\]"):
        quantizer(torch.randn(2, 5, 6), torch.ones(5, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"codes are \[2, 4\], but a token has 3"):
        quantizer.decode(torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="levels must be between 1 and 3, found 4"):
        quantizer.encode(torch.randn(2, DIM), levels=4)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_as_process(int(sys.argv[1]), sys.argv[2])
