"""Checks before the first step of a tokenizer run for errors that would occur in a later stage or at the end.

    memory           has room for the weights and a micro-batch
    terms            can be built: their teachers exist and fit (before the media are read)
    stages           each has an active loss, parts to train, and a fitted quantizer if it needs one
    discriminators   accept excerpts of the configured length
    freezing         works

The run's weights, codebooks and random numbers are unaffected.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import nn

from ...configs.printable import say
from ...configs.schema import ConfigError
from ...tokenize.audio.networks import AudioNet
from ...tokenize.image.networks import ImageNet
from ...tokenize.kinds import NETS
from ...tokenize.quantizers.kmeans_vq import KMeansQuantizer
from ...tokenize.quantizers.registry import Quantizer
from ...tokenize.quantizers.scalar import ScalarQuantizer
from ...tokenize.quantizers.structural_entropy_vq import StructuralQuantizer
from ...tokenize.spec import AudioGeometry
from ...tokenize.tokenizer import make_tokenizer
from ..common.memory_check import check_batch_fits, check_weights_fit, count_numbers
from ..discriminators.registry import Discriminators
from ..losses.base import LossContext
from ..losses.registry import make_losses
from .config import TokenizerTrainConfig
from .dataset import MediaInMemory
from .objective import TokenizerObjective
from .phases import TrainStageConfig, freeze_parts


def check_memory(config: TokenizerTrainConfig, micro: int, device: torch.device) -> None:
    """Raise ValueError if the weights or a micro-batch of `micro` examples cannot fit into memory."""
    tokenizer, geometry = config.tokenizer, config.tokenizer.geometry
    numbers = count_numbers(lambda: NETS[tokenizer.kind](tokenizer, read_files=False), "tokenizer")
    check_weights_fit(numbers, "tokenizer", device)
    if isinstance(geometry, AudioGeometry):
        frames = config.train.crop_seconds * geometry.frame_rate
        outputs = geometry.samples_per_frame
    else:
        frames = geometry.num_frames
        outputs = geometry.channels * geometry.height * geometry.width / frames
    check_batch_fits(micro, frames, tokenizer.latent_dim, outputs, False, device)


def check_terms(config: TokenizerTrainConfig, net: AudioNet | ImageNet, teachers: Mapping[str, nn.Module]) -> None:
    """Build all losses and check all stages before the media are read, which may take an hour.

    Labels and characters are known only afterwards, so placeholders are used here. ConfigError: a teacher is missing or
    does not fit, or another setting of a loss is wrong; also as `check_stages`.
    """
    context = LossContext(
        geometry=config.tokenizer.geometry,
        latent_dim=config.tokenizer.latent_dim,
        num_codebooks=len(net.quantizer.cardinalities),
        alphabet="ab",
        labels=("a", "b"),
        teachers=teachers,
    )
    with torch.random.fork_rng(devices=[]):
        check_stages(config, TokenizerObjective(net, make_losses(config.terms, context), config.train.dtype))


def begin_stage(config: TokenizerTrainConfig, objective: TokenizerObjective, number: int) -> None:
    """Activate the losses of a train stage and freeze its parts. ConfigError: no active loss, or nothing to train."""
    stage, where = config.stages[number], f"stages.{number}"
    assert isinstance(stage, TrainStageConfig)
    names = {term.key for term in config.terms if term.weight}
    on = frozenset(names if stage.terms is None else names & set(stage.terms))
    objective.set_stage(on, quantize=stage.latents == "quantized")
    if not objective.output_on and not objective.inner_on:
        raise ConfigError(f"{where}.terms: no active term has a weight above 0; list at least one that has")
    freeze_parts(objective.net, stage.freeze, where)
    if config.init is not None:
        freeze_parts(objective.net, (*stage.freeze, *config.init.freeze), "init")
    if not any(parameter.requires_grad for parameter in objective.parameters()):
        frozen = f"{where}.freeze" if stage.freeze else "init.freeze"
        raise ConfigError(f"{frozen}: all parts are frozen; freeze fewer")


def check_stages(config: TokenizerTrainConfig, objective: TokenizerObjective) -> None:
    """Check all stages. ConfigError: a stage cannot start, or a quantizer is not fitted in time."""
    fitted = not unfitted(objective.net.quantizer)
    for number, stage in enumerate(config.stages):
        if stage.kind == "fit":
            if not can_fit(objective.net.quantizer):
                name = type(objective.net.quantizer).__name__
                raise ConfigError(
                    f"stages: '{stage.name}': this quantizer ({name}) has no part to fit; remove the stage"
                )
            fitted = True
            continue
        begin_stage(config, objective, number)
        if stage.latents == "quantized" and not fitted:
            raise ConfigError(
                f"stages.{number}: the codes of this quantizer are not fitted yet; put a stage of kind fit before "
                "this one, or set latents: continuous"
            )
    if not fitted:
        raise ConfigError("stages: no stage fits the codes of this quantizer; end with a stage of kind fit")
    objective.set_stage(frozenset(term.key for term in config.terms), quantize=True)
    objective.net.train().requires_grad_(True)


def unfitted(quantizer: Quantizer) -> bool:
    """Whether a part of a quantizer has no codes until it is fitted."""
    return any(
        (isinstance(part, KMeansQuantizer) and not bool(part.fitted))
        or (isinstance(part, StructuralQuantizer) and not int(part.num_codes))
        for part in quantizer.modules()
    )


def can_fit(quantizer: Quantizer) -> bool:
    """Whether a fit stage would fit a part of the quantizer."""
    return any(
        isinstance(part, KMeansQuantizer | StructuralQuantizer)
        or (isinstance(part, ScalarQuantizer) and not part.learns)
        for part in quantizer.modules()
    )


@torch.no_grad()
def check_discriminators(
    config: TokenizerTrainConfig, media: MediaInMemory, discriminators: Discriminators | None
) -> None:
    """Run each discriminator on silence or a gray image. ConfigError: the input is too small for it."""
    settings = config.judges
    if discriminators is None or settings is None:
        return
    geometry, device = config.tokenizer.geometry, discriminators.averages.device
    if geometry.kind == "audio":
        excerpt = media.excerpt(0, settings.seconds)
        probe = torch.zeros(1, excerpt.stop - excerpt.start, device=device)
        size, advice = (
            f"{probe.shape[1]} samples",
            "raise judges.seconds or train.crop_seconds, or make the discriminator smaller",
        )
    else:
        probe = torch.zeros(1, geometry.channels, geometry.height, geometry.width, device=device)
        size, advice = f"images of {geometry.height} x {geometry.width}", "make the discriminator smaller"
    for net in discriminators.nets:
        try:
            if not probe.numel():
                raise ValueError("the excerpt is empty")
            net(probe)
        except (RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"judges.nets: a {type(net).__name__} cannot process {size}; {advice} ({reason})"
            ) from None


def check_freezing(config: TokenizerTrainConfig, net: AudioNet | ImageNet) -> None:
    """Freeze a copy of the current network, if it has codes already; errors as make_tokenizer."""
    if not unfitted(net.quantizer):
        make_tokenizer(config.tokenizer, net)


def say_notes(config: TokenizerTrainConfig) -> None:
    """Print notes on contradictory but harmless settings, one line each on stderr."""
    if config.judges is None:
        return
    if not any(term.kind in ("adversarial", "features") and term.weight for term in config.terms):
        say("note: judges (discriminators) are configured, but no term is adversarial or features: they are not used")
    elif config.judges.first_step >= config.total_steps:
        print(
            f"note: judges.first_step {config.judges.first_step} is not below the {config.total_steps} steps of the "
            "run: they are not used",
            file=sys.stderr,
        )
