"""Train a tokenizer from a YAML file, then freeze it.

`OUT` becomes a tokenizer directory (config.json, tokenizer.safetensors) with train.json, the resolved config, and
metrics.jsonl beside it. Batches are a pure function of (seed, step).
"""

from __future__ import annotations

import copy
import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..tokenize.audio_net import AudioNet, AudioTokenizerConfig
from ..tokenize.config import Config
from ..tokenize.corpus import CorpusConfig, open_corpus
from ..tokenize.files import write_json
from ..tokenize.media import MediaError
from ..tokenize.picture_net import PictureNet, PictureTokenizerConfig
from ..tokenize.quantizer import Quantized
from ..tokenize.tokenizer import Tokenizer, TokenizerConfig, make_tokenizer
from .discriminator import DiscriminatorConfig, Discriminators
from .tokenizer_losses import AudioLossConfig, PictureLossConfig, spectral_losses


class TokenizerTraining(Config):
    """How long and how fast."""

    steps: PositiveInt
    batch: PositiveInt = 16
    """Pictures, or excerpts of sound, per step."""
    crop_seconds: PositiveFloat = 1.0
    """Length of an excerpt; ignored for pictures."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate; linear warm-up, then a cosine to 2 % of it."""
    warmup_steps: NonNegativeInt = 100
    weight_decay: float = 0.01
    clip: PositiveFloat = 1.0
    """Largest norm of the gradient."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the layers; quantizer, spectra and losses stay in float32."""
    log_every: PositiveInt = 20
    snapshot_every: NonNegativeInt = 0
    """Freeze and write the tokenizer as it is every so often; 0: only at the end."""
    max_consecutive_bad: PositiveInt = 3
    """Stop after so many losses in a row that are not finite; their steps are skipped."""


class TokenizerTrainConfig(Config):
    """The whole YAML file of `tessera tokenizer train`."""

    seed: int = 0
    tokenizer: TokenizerConfig
    data: CorpusConfig
    train: TokenizerTraining
    losses: AudioLossConfig | PictureLossConfig | None = Field(default=None, discriminator="kind")
    """Left out: the defaults for the kind of tokenizer."""
    discriminator: DiscriminatorConfig = Field(default_factory=DiscriminatorConfig)
    """Used for sound when losses.adversarial or losses.features is above 0."""

    @model_validator(mode="after")
    def _losses_fit(self) -> TokenizerTrainConfig:
        if self.losses is not None and self.losses.kind != self.tokenizer.kind:
            raise ValueError(
                f"losses are for {self.losses.kind}, the tokenizer is for {self.tokenizer.kind}; set "
                f"losses.kind: {self.tokenizer.kind}"
            )
        return self


def train_tokenizer(config: TokenizerTrainConfig, out: str | Path, progress: bool = True) -> Tokenizer:
    """Train and freeze a tokenizer; returns it, having written it to `out`.

    Raises:
        FileExistsError: `out` holds a tokenizer already. ValueError: no usable media, or the loss stays non-finite.
    """
    out = Path(out)
    if (out / "config.json").exists():
        raise FileExistsError(f"{out}: holds a tokenizer already; choose another --out or remove it")
    torch.manual_seed(config.seed)
    media = _MediaInMemory(config)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "train.json", config.model_dump(mode="json"))
    run = _make_run(config, media)
    with open(out / "metrics.jsonl", "w") as log, _stop_on_interrupt() as stopped:
        _loop(config, run, log, out, stopped, progress)
    tokenizer = make_tokenizer(config.tokenizer, run.net)
    tokenizer.save(out)
    return tokenizer


def _loop(config: TokenizerTrainConfig, run: _Run, log, out: Path, stopped: list, progress: bool) -> None:
    settings = config.train
    optimizer = torch.optim.AdamW(
        run.net.parameters(), lr=settings.lr, betas=(0.8, 0.99), weight_decay=settings.weight_decay
    )
    started, bad = time.monotonic(), 0
    bar = tqdm(range(settings.steps), desc=f"tokenizer {config.tokenizer.name}", disable=not progress, unit="step")
    for step in bar:
        if stopped:
            bar.write("stopped early: the tokenizer is frozen as it is now")
            break
        rate = settings.lr * cosine_factor(step, settings.steps, settings.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, terms, quantized = run.loss(step, rate)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(run.net.parameters(), settings.clip)
        if not bool(torch.isfinite(loss) & torch.isfinite(norm)):
            bad += 1
            if bad == settings.max_consecutive_bad:
                raise ValueError(
                    f"the loss was not finite {bad} times in a row (step {step}); lower train.lr or use "
                    f"train.dtype=float32"
                )
            continue
        bad = 0
        optimizer.step()
        run.net.quantizer.update()
        if step % settings.log_every == 0 or step == settings.steps - 1:
            used = [len(codes[codes >= 0].unique()) for codes in quantized.codes.flatten(0, -2).T]
            row = {"step": step, "lr": rate, "grad_norm": float(norm), "seconds": round(time.monotonic() - started, 2)}
            row |= {name: float(value.detach()) for name, value in terms.items()} | {"codes_in_batch": used}
            log.write(json.dumps(row) + "\n")
            log.flush()
            bar.set_postfix({name: f"{float(value.detach()):.3f}" for name, value in terms.items()})
        if settings.snapshot_every and step and step % settings.snapshot_every == 0:
            make_tokenizer(config.tokenizer, copy.deepcopy(run.net)).save(out / f"snapshot-{step}")


def _make_run(config: TokenizerTrainConfig, media: _MediaInMemory) -> _PictureRun | _AudioRun:
    if isinstance(config.tokenizer, PictureTokenizerConfig):
        weights = config.losses if isinstance(config.losses, PictureLossConfig) else PictureLossConfig()
        return _PictureRun(config, config.tokenizer, weights, media)
    weights = config.losses if isinstance(config.losses, AudioLossConfig) else AudioLossConfig()
    return _AudioRun(config, config.tokenizer, weights, media)


class _Run:
    """One kind of tokenizer in training: its network, its batches, its losses."""

    net: AudioNet | PictureNet

    def loss(self, step: int, rate: float) -> tuple[Tensor, dict[str, Tensor], Quantized]:
        """Total loss of the batch of this step, its terms by name, and what the quantizer did."""
        raise AssertionError

    def precision(self, config: TokenizerTrainConfig):
        """Autocast to the configured precision."""
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.train.dtype == "bfloat16")


class _PictureRun(_Run):
    def __init__(
        self,
        config: TokenizerTrainConfig,
        tokenizer: PictureTokenizerConfig,
        weights: PictureLossConfig,
        media: _MediaInMemory,
    ):
        self.config, self.weights, self.media = config, weights, media
        self.net = PictureNet(tokenizer)

    def loss(self, step: int, rate: float) -> tuple[Tensor, dict[str, Tensor], Quantized]:
        pictures = self.media.pictures(step)
        with self.precision(self.config):
            found, quantized = self.net(pictures)
        squared = F.mse_loss(found, pictures)
        own = sum_losses(quantized)
        terms = {"squared": squared, "quantizer": own}
        return self.weights.squared * squared + self.weights.quantizer * own, terms, quantized


class _AudioRun(_Run):
    def __init__(
        self,
        config: TokenizerTrainConfig,
        tokenizer: AudioTokenizerConfig,
        weights: AudioLossConfig,
        media: _MediaInMemory,
    ):
        self.config, self.weights, self.media = config, weights, media
        self.sample_rate, self.hop = tokenizer.sample_rate, tokenizer.hop
        self.net = AudioNet(tokenizer)
        self.judged = self.weights.adversarial > 0 or self.weights.features > 0
        if self.judged:
            self.judges = Discriminators(config.discriminator)
            self.judge_optimizer = torch.optim.AdamW(self.judges.parameters(), lr=config.train.lr, betas=(0.8, 0.99))

    def loss(self, step: int, rate: float) -> tuple[Tensor, dict[str, Tensor], Quantized]:
        samples, mask, frame_mask = self.media.excerpts(step, self.sample_rate, self.hop)
        with self.precision(self.config):
            found, quantized = self.net(samples, frame_mask)
        found, weights = found.float(), self.weights
        mel, spectrum = spectral_losses(found, samples, mask, self.sample_rate)
        own = sum_losses(quantized, frame_mask)
        terms = {"mel": mel, "spectrum": spectrum, "quantizer": own}
        loss = weights.mel * mel + weights.spectrum * spectrum + weights.quantizer * own
        if self.judged and step >= weights.adversarial_from and step % weights.adversarial_every == 0:
            adversarial, features, judge = self._judge(samples, found, step, rate)
            loss = loss + weights.adversarial * adversarial + weights.features * features
            terms |= {"adversarial": adversarial, "features": features, "judge": judge}
        return loss, terms, quantized

    def _judge(self, samples: Tensor, found: Tensor, step: int, rate: float) -> tuple[Tensor, Tensor, Tensor]:
        length = min(samples.shape[1], int(self.weights.adversarial_seconds * self.sample_rate))
        start = int(torch.randint(samples.shape[1] - length + 1, (), generator=seeded(self.config.seed, step, 7)))
        real, fake = samples[:, start : start + length], found[:, start : start + length]
        with self.precision(self.config):
            judge = self.judges.loss(real, fake)
        self.judge_optimizer.param_groups[0]["lr"] = rate
        self.judge_optimizer.zero_grad(set_to_none=True)
        judge.backward()
        torch.nn.utils.clip_grad_norm_(self.judges.parameters(), self.config.train.clip)
        if bool(torch.isfinite(judge)):
            self.judge_optimizer.step()
        self.judges.requires_grad_(False)
        with self.precision(self.config):
            adversarial, features = self.judges.generator_losses(real, fake)
        self.judges.requires_grad_(True)
        return adversarial, features, judge


class _MediaInMemory:
    """The corpus decoded once, sound as 16-bit samples (115 MB an hour at 16 kHz); batches are drawn from (seed,
    step)."""

    def __init__(self, config: TokenizerTrainConfig):
        self.config = config
        corpus = open_corpus(config.data)
        geometry = config.tokenizer.geometry
        self.items: list[Tensor] = []
        for number in tqdm(range(len(corpus)), desc="reading media", leave=False):
            try:
                media = corpus.media(number, geometry)
            except MediaError as error:
                tqdm.write(f"skipped: {error}")
                continue
            self.items.append((media[0] * 32767).round().short() if geometry.kind == "audio" else media)
        if not self.items:
            raise ValueError(f"no usable {geometry.kind} files in {config.data}; see the messages above")

    def pictures(self, step: int) -> Tensor:
        """[batch, C, height, width]."""
        chosen = torch.randint(len(self.items), (self.config.train.batch,), generator=seeded(self.config.seed, step, 1))
        return torch.stack([self.items[number] for number in chosen.tolist()])

    def excerpts(self, step: int, sample_rate: int, hop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Samples [batch, N], their mask [batch, N], and the mask of frames [batch, T]; N is a multiple of hop."""
        generator = seeded(self.config.seed, step, 1)
        frames = max(1, round(self.config.train.crop_seconds * sample_rate / hop))
        chosen = torch.randint(len(self.items), (self.config.train.batch,), generator=generator).tolist()
        places = torch.rand(self.config.train.batch, generator=generator).tolist()
        samples = torch.zeros(len(chosen), frames * hop)
        lengths = torch.zeros(len(chosen), dtype=torch.long)
        for row, (number, place) in enumerate(zip(chosen, places, strict=True)):
            item = self.items[number]
            start = int(place * max(0, item.numel() - frames * hop + 1))
            excerpt = item[start : start + frames * hop]
            samples[row, : excerpt.numel()] = excerpt.float() / 32767
            lengths[row] = excerpt.numel()
        mask = torch.arange(frames * hop) < lengths[:, None]
        return samples, mask, mask[:, ::hop]


def sum_losses(quantized: Quantized, mask: Tensor | None = None) -> Tensor:
    """The quantizer's own losses, added up by name, averaged over frames that exist."""
    total = sum(quantized.losses.values(), torch.zeros(quantized.codes.shape[:-1]))
    return total.mean() if mask is None else (total * mask).sum() / mask.sum().clamp_min(1)


def seeded(seed: int, step: int, stream: int) -> torch.Generator:
    """A generator that depends on nothing but these numbers."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 64 + stream)


def cosine_factor(step: int, steps: int, warmup: int, floor: float = 0.02) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


@contextmanager
def _stop_on_interrupt() -> Iterator[list]:
    """Ctrl-C once: the list becomes non-empty and the loop ends in order. Twice: stop at once."""
    stopped: list[int] = []

    def note(number, frame):
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread: leave interrupts alone
        yield stopped
        return
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
