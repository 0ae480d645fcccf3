"""What claims.py measures of a frozen tokenizer: one function each, in the table at the end.

Images and recordings that were not trained on, except for the use of codes, which is counted over 2000 training images
of as many as 128,000 tokens in all, or all training recordings. The same tokenizer gives the same figure.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from tessera.configs.files import read_json
from tessera.tokenize.compression.integer_network import CoderConfig
from tessera.tokenize.data.corpus import ArraysCorpus, FolderCorpus, open_corpus
from tessera.tokenize.data.shard_writer import build_shards
from tessera.tokenize.data.shards_config import ShardsConfig
from tessera.tokenize.image.tokenizer import ImageTokenizer
from tessera.tokenize.spec import AudioGeometry, ImageGeometry
from tessera.tokenize.tokenizer import Tokenizer
from tessera.train.entropy_coder import CoderTrainConfig, CoderTraining, train_coder
from tessera.train.losses.balancer import group_gradients, make_balance
from tessera.train.losses.base import LossContext, MediaBatch, ReconstructionLoss, ReconstructionLossInputs
from tessera.train.losses.reconstruction import mel_distance
from tessera.train.losses.registry import make_losses
from tessera.train.losses.teachers import CepstrumTeacherConfig, GradientTeacherConfig, fit_places, make_teacher
from tessera.train.tokenizer.trainer import TokenizerTrainConfig

ROOT = Path(__file__).resolve().parent.parent
PATCHES = Path("out/patches-16")
"""Where the configs look for them."""
IMAGES = {"train": 2000, "test": 200}
RECORDINGS = {"train": 240, "test": 100}
"""All there are."""
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Words that occur in many recordings of both parts."""
MEMORY: dict[tuple, list[Tensor]] = {}
"""Media, read once."""


@dataclass(frozen=True)
class Trained:
    """One side of a comparison."""

    tokenizer: Tokenizer
    config: TokenizerTrainConfig
    """Resolved."""
    folder: Path
    """Of its run."""


# Media


def media(tokenizer: Tokenizer, part: str, count: int) -> list[Tensor]:
    """Pictures [C, height, width] spread over a part ("train" or "test"), or the first recordings [1, N]."""
    geometry = tokenizer.spec.geometry
    key = (part, geometry.kind, geometry.channels, count)
    if key not in MEMORY:
        corpus = open_corpus(corpus_of(geometry, part))
        every = max(1, len(corpus) // count) if geometry.kind == "picture" else 1
        MEMORY[key] = [corpus.media(number, geometry) for number in range(0, len(corpus), every)[:count]]
    return MEMORY[key]


def corpus_of(geometry: AudioGeometry | ImageGeometry, part: str) -> ArraysCorpus | FolderCorpus:
    """Patches of photographs, digits, or speech."""
    if isinstance(geometry, AudioGeometry):
        return FolderCorpus(path=str(ROOT / "samples/speech" / part))
    folder = PATCHES if geometry.channels == 3 else ROOT / "samples/digits"
    return ArraysCorpus(path=str(folder / f"{part}.safetensors"))


@torch.no_grad()
def codes_of(tokenizer: Tokenizer, part: str) -> Tensor:
    """Codes [tokens, Q] of a part."""
    if not isinstance(tokenizer, ImageTokenizer):
        return torch.cat(recorded_codes(tokenizer, part))
    return torch.cat([codes.transpose(1, 2).flatten(0, 1) for _, codes in coded_images(tokenizer, part)])


@torch.no_grad()
def coded_images(tokenizer: ImageTokenizer, part: str, count: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """Batches of images of a part [B, C, height, width], and their codes [B, K, T]. In a batch near-ties may fall
    otherwise than alone; it is no matter here."""
    batches = torch.stack(media(tokenizer, part, count or IMAGES[part])).split(50)
    return [(batch, tokenizer._quantize(tokenizer.net.encode_images(batch)).transpose(1, 2)) for batch in batches]


@torch.no_grad()
def decoded_images(tokenizer: ImageTokenizer, codes: Tensor) -> Tensor:
    """Codes [B, K, T] -> images."""
    return tokenizer.net.decode_latents(tokenizer._lookup(codes.transpose(1, 2)))


def test_batches(tokenizer: Tokenizer) -> tuple[Tensor, ...]:
    """The test images in batches."""
    return torch.stack(media(tokenizer, "test", IMAGES["test"])).split(50)


def recorded_codes(tokenizer: Tokenizer, part: str) -> list[Tensor]:
    """Codes [T, Q] of each recording of a part."""
    return [tokenizer.encode(item[None]).codes[0].T for item in media(tokenizer, part, RECORDINGS[part])]


def first_levels(codes: Tensor, levels: int | None) -> Tensor:
    """Codes [B, K, T] with those of later levels dropped."""
    if levels is None:
        return codes
    return torch.cat([codes[:, :levels], torch.full_like(codes[:, levels:], -1)], dim=1)


def first_tokens(codes: Tensor, tokens: int | None) -> Tensor:
    """Codes [B, K, T] with later tokens dropped."""
    if tokens is None:
        return codes
    return torch.cat([codes[..., :tokens], torch.full_like(codes[..., tokens:], -1)], dim=2)


def bits_of_tests(tokenizer: Tokenizer) -> float:
    """Bits of the codes of a test image, or of a second of a test recording, at fixed length; the mean."""
    if isinstance(tokenizer, ImageTokenizer):
        return statistics.mean(
            b for _, codes in coded_images(tokenizer, "test") for b in tokenizer.rate(codes)[1].tolist()
        )
    chosen = media(tokenizer, "test", RECORDINGS["test"])
    total = sum(float(tokenizer.rate(tokenizer.encode(item[None]).codes)[1]) for item in chosen)
    return total * tokenizer.config.sample_rate / sum(item.shape[1] for item in chosen)  # pyright: ignore[reportAttributeAccessIssue]


# The use of codes


def even_use(size: float, tokens: int) -> float:
    """How many of `size` codes occur among so many tokens, to be expected where all are equally likely."""
    return size * -math.expm1(tokens * math.log1p(-1 / size))


def used(trained: Trained) -> float:
    """Different codes among the training tokens (combinations, if there are several codebooks), in percent of the
    number expected if all codes were equally likely"""
    tokenizer = trained.tokenizer
    packed = tokenizer.quantizer.pack(codes_of(tokenizer, "train").clamp_min(0))
    return 100 * len(packed.unique()) / even_use(math.prod(tokenizer.spec.cardinalities), len(packed))


def used_each(trained: Trained) -> float:
    """The same for each codebook, the mean over codebooks"""
    shares = []
    for column, size in zip(codes_of(trained.tokenizer, "train").T, trained.tokenizer.spec.cardinalities, strict=True):
        kept = column[column >= 0]
        shares.append(len(kept.unique()) / even_use(size, len(kept)))
    return 100 * statistics.mean(shares)


def perplexity(trained: Trained) -> float:
    """Effective number of codes among the training tokens (exp of the entropy of their frequencies), the mean over
    codebooks"""
    found = []
    for column in codes_of(trained.tokenizer, "train").T:
        counts = column[column >= 0].unique(return_counts=True)[1].double()
        found.append(float(torch.special.entr(counts / counts.sum()).sum().exp()))
    return statistics.mean(found)


# The error


def error(trained: Trained, levels: int | None = None, tokens: int | None = None) -> float:
    """Mean squared error of test images (x 1000), or log-mel distance of test recordings"""
    tokenizer, found = trained.tokenizer, []
    if isinstance(tokenizer, ImageTokenizer):
        for pictures, codes in coded_images(tokenizer, "test"):
            codes = first_tokens(first_levels(codes, levels), tokens)
            found += squared_errors(decoded_images(tokenizer, codes), pictures)
        return statistics.mean(found)
    rate = tokenizer.config.sample_rate  # pyright: ignore[reportAttributeAccessIssue]
    for item in media(tokenizer, "test", 40):
        made = tokenizer.decode(first_levels(tokenizer.encode(item[None]).codes, levels))
        found.append(float(mel_distance(made[0, :, : item.shape[1]], item, rate).mean()))
    return statistics.mean(found)


def squared_errors(made: Tensor, wanted: Tensor) -> list[float]:
    """Of each image of a batch, x 1000."""
    return (1000 * (made.clamp(-1, 1) - wanted).square().flatten(1).mean(dim=1)).tolist()


def error_of_half(trained: Trained) -> float:
    """The error when only the first half of the codebooks is decoded"""
    return error(trained, levels=trained.tokenizer.spec.num_codebooks // 2)


def error_of_four(trained: Trained) -> float:
    """The error when only the first four codebooks are decoded"""
    return error(trained, levels=4)


def error_of_quarter(trained: Trained) -> float:
    """The error when only the first quarter of an image's tokens is decoded"""
    frames = trained.tokenizer.spec.geometry.num_frames  # pyright: ignore[reportAttributeAccessIssue]
    return error(trained, tokens=frames // 4)


def rises(trained: Trained) -> float:
    """How often one more token increases the error, in percent of the steps from one token to all"""
    frames = trained.tokenizer.spec.geometry.num_frames  # pyright: ignore[reportAttributeAccessIssue]
    errors = [error(trained, tokens=count) for count in range(1, frames + 1)]
    return 100 * sum(after > before for before, after in pairwise(errors)) / (frames - 1)


def error_halted(trained: Trained) -> float:
    """The error when images halt where the halting head decides, at the wanted error at which they take half of all
    tokens on average"""
    wanted = _error_of_half(trained.tokenizer)
    trained.tokenizer.quantizer.wanted_error = wanted  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return error(trained)


@torch.no_grad()
def error_fixed(trained: Trained) -> float:
    """The error when every image halts after half of all tokens"""
    tokenizer, found = _pictures(trained), []
    inner = tokenizer.quantizer.inner  # pyright: ignore[reportAttributeAccessIssue]
    for pictures in test_batches(tokenizer):
        codes = inner.encode(tokenizer.net.encode_images(pictures))  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        codes[:, codes.shape[1] // 2 :] = torch.tensor(inner.cardinalities)  # pyright: ignore[reportAttributeAccessIssue]
        found += squared_errors(decoded_images(tokenizer, codes.transpose(1, 2)), pictures)
    return statistics.mean(found)


def _error_of_half(tokenizer: Tokenizer) -> float:
    """The smallest wanted error at which the test pictures take at most half of all tokens on average."""
    low, high = math.log(1e-3), math.log(2.0)
    half = tokenizer.spec.geometry.num_frames / 2  # pyright: ignore[reportAttributeAccessIssue]
    for _ in range(30):
        middle = (low + high) / 2
        few = float(_needed(tokenizer, math.exp(middle)).double().mean()) <= half
        low, high = (low, middle) if few else (middle, high)
    return math.exp(high)


@torch.no_grad()
def _needed(tokenizer: Tokenizer, wanted: float) -> Tensor:
    """Tokens that the test pictures take at a wanted error, [pictures]."""
    latents = [tokenizer.net.encode_images(batch) for batch in test_batches(tokenizer)]  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    return torch.cat([tokenizer.quantizer.needed(batch, wanted) for batch in latents]).sum(dim=1)  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]


@torch.no_grad()
def error_unquantized(trained: Trained) -> float:
    """The error of images whose latents are not quantized"""
    tokenizer, found = _pictures(trained), []
    for pictures in test_batches(tokenizer):
        found += squared_errors(tokenizer.net.decode_latents(tokenizer.net.encode_images(pictures)), pictures)
    return statistics.mean(found)


def _pictures(trained: Trained) -> ImageTokenizer:
    """The tokenizer, where a measure is of images alone."""
    assert isinstance(trained.tokenizer, ImageTokenizer)
    return trained.tokenizer


# What codes tell


def words(trained: Trained, levels: int | None = 1) -> float:
    """How well the codes of the first codebook tell which of the words zero to nine a recording contains: ridge
    regression on the share of its frames with each code, fitted on training recordings; percent of the pairs of a test
    recording with the word and one without that are in the right order (50: chance), the mean over words"""
    tokenizer, sides = trained.tokenizer, []
    for part in ("train", "test"):
        rows = torch.stack([shares_of_codes(tokenizer, codes[:, :levels]) for codes in recorded_codes(tokenizer, part)])
        corpus = open_corpus(corpus_of(tokenizer.spec.geometry, part))
        texts = [(corpus.item(number).text or "").split() for number in range(len(rows))]
        sides.append((rows, torch.tensor([[word in text for word in DIGITS] for text in texts])))
    (x, there), (x_test, wanted) = sides
    middle = x.mean(dim=0)
    x, x_test, y = x - middle, x_test - middle, there.double() - there.double().mean(dim=0)
    # The dual form: there are more codes than recordings. The ridge is a tenth of the mean squared norm of a row.
    alike = x @ x.T
    found = x_test @ x.T @ torch.linalg.solve(alike + 0.1 * alike.diagonal().mean() * torch.eye(len(x)).double(), y)
    return 100 * statistics.mean(right_order(found[:, word], wanted[:, word]) for word in range(len(DIGITS)))


def words_by_all(trained: Trained) -> float:
    """The same for the codes of all codebooks together"""
    return words(trained, None)


def shares_of_codes(tokenizer: Tokenizer, codes: Tensor) -> Tensor:
    """Codes [T, Q] of a recording -> the share of its frames with each code, of all Q codebooks in a row, float64."""
    sizes = tokenizer.spec.cardinalities
    columns = zip(codes.T, sizes, strict=False)
    return torch.cat([torch.bincount(column, minlength=size).double() / len(column) for column, size in columns])


def right_order(found: Tensor, wanted: Tensor) -> float:
    """Share of the pairs of a row that is `wanted` [N] and one that is not of which the first is `found` [N] larger; a
    tie counts half. This is the area under the receiver operating characteristic."""
    pairs = found[wanted][:, None] - found[~wanted]
    return float((pairs > 0).double().mean() + (pairs == 0).double().mean() / 2)


def teacher_information(trained: Trained, levels: int | None = 1) -> float:
    """Percentage of the variance of a teacher's features (MFCC of audio, histograms of gradients of images) that a
    linear map of the first codebook's vectors explains: fitted on training media, measured on test media"""
    tokenizer = trained.tokenizer
    geometry = tokenizer.spec.geometry
    if geometry.kind == "audio":
        teacher = make_teacher(CepstrumTeacherConfig(window=1024, coefficients=20), geometry, {}, "teacher")
    else:
        teacher = make_teacher(GradientTeacherConfig(cell=2), geometry, {}, "teacher")
    pairs = [_teacher_pairs(trained, teacher, part, levels) for part in ("train", "test")]
    (x, y), (x_test, y_test) = pairs
    ridge = x.T @ x + 1e-3 * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    wrong = (y_test - x_test @ torch.linalg.solve(ridge, x.T @ y)).square().sum(dim=0)
    return 100 * (1 - float((wrong / (y_test - y_test.mean(dim=0)).square().sum(dim=0)).mean()))


@torch.no_grad()
def _teacher_pairs(trained: Trained, teacher, part: str, levels: int | None) -> tuple[Tensor, Tensor]:
    """Vectors [tokens, D + 1], scaled, with a 1 at the end, and features [tokens, C], float64."""
    tokenizer, vectors, features = trained.tokenizer, [], []
    picture = isinstance(tokenizer, ImageTokenizer)
    for item in media(tokenizer, part, 200 if picture else 240 if part == "train" else 40):
        codes = first_levels(tokenizer.encode(item[None]).codes, levels)
        vectors.append(tokenizer.quantizer.decode(codes.transpose(1, 2))[0])
        geometry = tokenizer.spec.geometry
        places = (geometry.rows, geometry.columns) if isinstance(geometry, ImageGeometry) else codes.shape[2:]
        features.append(fit_places(teacher.layers(item[None] if picture else item)[-1], places)[0])
    x, y = torch.cat(vectors).double(), torch.cat(features).double()
    x = x / x.square().mean().sqrt().clamp_min(1e-12)
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1), y


@torch.no_grad()
def classes(trained: Trained) -> float:
    """Percentage of the test digits that a linear map of all code vectors of an image classifies correctly, fitted on
    1000 training digits"""
    tokenizer, sides = _pictures(trained), []
    for part, count in (("train", 1000), ("test", 500)):
        corpus = open_corpus(corpus_of(tokenizer.spec.geometry, part))
        every = max(1, len(corpus) // count)
        labels = [corpus.item(number).label for number in range(0, len(corpus), every)[:count]]
        codes = torch.cat([codes for _, codes in coded_images(tokenizer, part, count)])
        vectors = tokenizer.quantizer.decode(codes.transpose(1, 2)).flatten(1).double()
        sides.append((torch.cat([vectors, torch.ones_like(vectors[:, :1])], dim=1), labels))
    (x, labels), (x_test, wanted) = sides
    names = sorted(set(labels))
    y = torch.tensor([[float(label == name) for name in names] for label in labels]).double()
    ridge = x.T @ x + 1e-2 * len(x) * x[:, :-1].square().mean() * torch.eye(x.shape[1], dtype=x.dtype)
    found = (x_test @ torch.linalg.solve(ridge, x.T @ y)).argmax(dim=1).tolist()
    return 100 * statistics.mean(names[place] == label for place, label in zip(found, wanted, strict=True))


# Training, and codes after it


def shares_off(trained: Trained) -> float:
    """Difference between the shares of the losses in the gradient at the reconstruction and the shares of their weights
    at the end of training, in percentage points, the mean over losses and test recordings"""
    config, geometry = trained.config, trained.tokenizer.spec.geometry
    made = make_losses(config.terms, LossContext(geometry, config.tokenizer.latent_dim, 1))
    weights = {name: _weight(config, name) for name, term in made.items() if isinstance(term, ReconstructionLoss)}
    factors = weights
    if config.balance.kind == "balancer":
        balance = make_balance(config.balance)
        balance.averages = read_json(sorted((trained.folder / "steps").glob("step-*"))[-1] / "run.json")["balance"]
        factors = balance.factors(weights)
    found = []
    for item in media(trained.tokenizer, "test", 40):
        codes = trained.tokenizer.encode(item[None]).codes
        back = trained.tokenizer.decode(codes)[0].requires_grad_()
        wanted = torch.nn.functional.pad(item, (0, back.shape[1] - item.shape[1]))
        none = torch.full((1,), -1)
        batch = MediaBatch(
            media=wanted, sample_mask=None, frame_mask=None, whole=none < 0, labels=none, texts=[None],
            batch_items=1, batch_frames=codes.shape[2], batch_labels=none, batch_texts=[None],
        )  # fmt: skip
        view = ReconstructionLossInputs(batch, back, wanted)
        losses = {name: made[name](view) for name in weights}
        gradients = group_gradients(losses, {name: {name: 1.0} for name in weights}, back)
        norms = {name: factors[name] * float(gradients[name].norm()) for name in weights}
        for name, weight in weights.items():
            found.append(abs(norms[name] / sum(norms.values()) - weight / sum(weights.values())))
    return 100 * statistics.mean(found)


def _weight(config: TokenizerTrainConfig, name: str) -> float:
    return next(term.weight for term in config.terms if term.key == name)


def lm_bits(trained: Trained) -> float:
    """Bits of the test codes under a small network that reads the previous frames (that of `tessera encode --compress`,
    2000 steps on the training codes), in percent of fixed-length codes"""
    tokenizer, geometry = trained.tokenizer, trained.tokenizer.spec.geometry
    with tempfile.TemporaryDirectory() as folder:
        for part in ("train", "test"):
            corpus = corpus_of(geometry, part)
            build_shards(
                ShardsConfig(corpus=corpus, tokenizer=str(trained.folder), out=f"{folder}/{part}"), progress=False
            )
        network = CoderConfig(context=((0, -1), (0, -2), (0, -3), (0, -4)), layers=1)
        config = CoderTrainConfig(
            shards=f"{folder}/train", test=f"{folder}/test", network=network,
            train=CoderTraining(steps=2000, batch=256, lr=5e-3, weight_decay=0.05, dropout=0.1),
        )  # fmt: skip
        bits = train_coder(config, Path(folder) / "coder", progress=False)
    return 100 * sum(bits) / sum(math.log2(size) for size in tokenizer.spec.cardinalities)


def frequency_bits(trained: Trained) -> float:
    """Bits of the test codes if each has the length that fits its frequency among the training codes of its codebook
    (counted from one), in percent of fixed-length codes"""
    tokenizer, total = trained.tokenizer, 0.0
    train, test = codes_of(tokenizer, "train"), codes_of(tokenizer, "test")
    for column, own, size in zip(train.T, test.T, tokenizer.spec.cardinalities, strict=True):
        counts = torch.bincount(column, minlength=size).double() + 1
        total += float(-(counts / counts.sum()).log2()[own].mean())
    return 100 * total / sum(math.log2(size) for size in tokenizer.spec.cardinalities)


MEASURES: dict[str, Callable[[Trained], float]] = {
    "used": used,
    "used each": used_each,
    "perplexity": perplexity,
    "error": error,
    "error of half": error_of_half,
    "error of four": error_of_four,
    "error of a quarter": error_of_quarter,
    "error halted": error_halted,
    "error fixed": error_fixed,
    "error unquantized": error_unquantized,
    "rises": rises,
    "words": words,
    "words by all": words_by_all,
    "told": teacher_information,
    "classes": classes,
    "shares off": shares_off,
    "bits": lm_bits,
    "bits by frequency": frequency_bits,
}
