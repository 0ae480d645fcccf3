"""Terms of a tokenizer's loss, over a table: the loss of an item is its own, padding is not looked at, and gradients
reach what they should. Formulas stand beside slow copies of their papers."""

import atexit
import functools
import math
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from tessera.configs.schema import Config, ConfigError, check_config, read_config
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import HaltingConfig, ResidualConfig, VQConfig, make_quantizer
from tessera.tokenize.spec import AudioGeometry, ImageGeometry
from tessera.tokenize.tokenizer import load_tokenizer, make_tokenizer
from tessera.train.discriminators.registry import Discriminators, DiscriminatorsConfig
from tessera.train.losses.base import LatentLoss, LatentLossInputs, LossContext, MediaBatch, ReconstructionLossInputs
from tessera.train.losses.distillation import DISTANCES, normalise
from tessera.train.losses.perceptual import layer_distance
from tessera.train.losses.registry import TERMS, AnyLossConfig, make_losses
from tessera.train.losses.teachers import cosine_transform, feature_size, fit_places, make_teacher
from tessera.train.tokenizer.config import TokenizerTrainConfig
from tessera.train.tokenizer.dataset import MediaInMemory

HOP, RATE, DIM, BATCH, FRAMES = 40, 4000, 6, 3, 12
SOUND = AudioGeometry(sample_rate=RATE, samples_per_frame=HOP)
PICTURE = ImageGeometry(height=16, width=16, channels=3, rows=4, columns=3)
TEXTS = ("abc", None, "ba c")
RVQ = ResidualConfig(levels=2, quantizer=VQConfig(size=8, kmeans_init=False))


class Filters(nn.Module):
    """A teacher given in Python."""

    def __init__(self, inputs, two):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList([nn.Conv2d(inputs, 4, 3), nn.Conv2d(4, 5, 3, stride=2)])
        if not two:
            self.layers = nn.ModuleList([nn.Conv1d(inputs, 4, 9, stride=20), nn.Conv1d(4, 5, 3, padding=1)])
        self.flat = not two

    def forward(self, media):
        h, found = media[:, None] if self.flat else media, []
        for layer in self.layers:
            h = torch.relu(layer(h))
            found.append(h)
        return found


GIVEN = {"filters": Filters(1, two=False), "filters2d": Filters(3, two=True)}
MEL = {"kind": "mel", "window": 256, "bands": 20}
CASES = {
    "mel": {"kind": "mel"},
    "spectrum": {"kind": "spectrum"},
    "waveform-1": {"kind": "waveform"},
    "waveform-2": {"kind": "waveform", "power": 2},
    "pixels-1": {"kind": "pixels", "power": 1},
    "pixels-2": {"kind": "pixels"},
    "perceptual": {"kind": "perceptual", "teacher": {"kind": "module", "name": "filters"}},
    "perceptual-mel": {"kind": "perceptual", "teacher": MEL},
    "perceptual-pictures": {"kind": "perceptual", "teacher": {"kind": "module", "name": "filters2d"}},
    "adversarial": {"kind": "adversarial"},
    "features": {"kind": "features"},
    "quantizer": {"kind": "quantizer"},
    "normal": {"kind": "normal"},
    "distil-d": {"kind": "distil", "teacher": MEL},
    "distil-t": {"kind": "distil", "teacher": {**MEL, "kind": "mfcc"}, "distance": "t_axis", "levels": [0, 1]},
    "distil-squared": {
        "kind": "distil", "teacher": {"kind": "module", "name": "filters"}, "levels": "all", "distance": "squared",
        "hidden": 8, "layer": 0,
    },
    "distil-normalised": {
        "kind": "distil", "teacher": {**MEL, "kind": "mfcc"}, "levels": "all", "distance": "squared", "normalise": True,
    },
    "distil-channels": {"kind": "distil", "teacher": MEL, "levels": "all", "channels": [2, 5], "hidden": 4},
    "distil-latents": {"kind": "distil", "teacher": MEL, "levels": "latents"},
    "distil-pictures": {"kind": "distil", "teacher": {"kind": "hog", "cell": 4}, "distance": "t_axis"},
    "ctc": {"kind": "ctc", "width": 16, "blocks": 1},
    "caption": {"kind": "caption", "width": 16, "heads": 2, "blocks": 1},
    "label": {"kind": "label"},
    "halting": {"kind": "halting"},
    "codes": {"kind": "codes", "tokenizer": "OTHER", "width": 16, "heads": 2, "blocks": 1},
    "contrast-text": {"kind": "contrast", "width": 16, "blocks": 1, "token": "last"},
    "contrast-label": {"kind": "contrast", "width": 16, "caption": "label", "loss": "sigmoid", "levels": [1]},
}  # fmt: skip
FOR_PICTURES = {"codes", "halting", "pixels-1", "pixels-2", "perceptual-pictures", "distil-pictures"}
INNER = {"codes", "halting", "quantizer", "normal", "ctc", "caption", "label"}
INNER |= {name for name in CASES if name.startswith(("distil", "contrast"))}
each = pytest.mark.parametrize("name", CASES)


def context(picture):
    geometry = PICTURE if picture else SOUND
    return LossContext(geometry, DIM, 2, alphabet=" abc", labels=("x", "y"), teachers=GIVEN)


def made(name):
    config = terms_of(CASES[name] | ({"tokenizer": other_tokenizer()} if name == "codes" else {}))
    torch.manual_seed(1)
    return make_losses(config, context(name in FOR_PICTURES))[config[0].key]


@functools.cache
def other_tokenizer():
    """A folder with a frozen tokenizer of PICTURE, of 2 x 8 x 8 codes."""
    data = {"kind": "picture", "name": "other", "height": 16, "width": 16, "features": 4, "blocks": 1, "latent_dim": 4}
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    torch.manual_seed(6)
    book = {"kind": "vq", "size": 8, "kmeans_init": False}
    config = check_config(data | {"quantizer": {"kind": "group", "groups": 2, "quantizer": book}}, ImageTokenizerConfig)
    make_tokenizer(config).save(folder)
    return str(folder)


class OnlyTerms(Config):
    """A file with nothing but terms."""

    terms: tuple[AnyLossConfig, ...]


def terms_of(settings):
    return check_config({"terms": [settings]}, OnlyTerms).terms


def teacher_of(settings, geometry):
    config = terms_of({"kind": "perceptual", "teacher": settings})[0].teacher
    return make_teacher(config, geometry, GIVEN, "teacher")


def batch_of(picture, rows=slice(None)):
    generator = torch.Generator().manual_seed(2)
    labels = torch.tensor([1, -1, 0])
    texts = list(TEXTS)[rows]
    if picture:
        media = torch.rand(BATCH, 3, 16, 16, generator=generator) * 2 - 1
        whole = torch.ones(BATCH, dtype=torch.bool)
        return MediaBatch(media[rows], None, None, whole[rows], labels[rows], texts, 3, 0, labels, TEXTS)
    media = torch.randn(BATCH, FRAMES * HOP, generator=generator) * 0.1
    lengths = torch.tensor([FRAMES * HOP, FRAMES * HOP - HOP - 7, FRAMES * HOP - 100])
    mask = torch.arange(FRAMES * HOP) < lengths[:, None]
    frames = int(mask[:, ::HOP].sum())
    whole = torch.tensor([True, True, True])
    return MediaBatch(
        (media * mask)[rows],
        mask[rows],
        mask[:, ::HOP][rows],
        whole[rows],
        labels[rows],
        texts,
        3,
        frames,
        labels,
        TEXTS,
    )


def quantizer_of(kind):
    torch.manual_seed(0)
    config = HaltingConfig(wanted_error=0.1, quantizer=RVQ) if kind == "halting" else RVQ
    return make_quantizer(config, DIM).eval()


def views(picture, rows=slice(None), noise=0.0, kind="residual"):
    """An inner and an output view of the same batch, and what gradients should reach."""
    batch = batch_of(picture, rows)
    count = 12 if picture else FRAMES
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(BATCH, count, DIM, generator=generator)[rows]
    found = torch.randn(batch_of(picture).media.shape, generator=generator)[rows] * 0.1
    if noise and batch.sample_mask is not None and batch.frame_mask is not None:  # what stands on padding
        batch = MediaBatch(**{**vars(batch), "media": torch.where(batch.sample_mask, batch.media, noise)})
        latents = torch.where(batch.frame_mask[..., None], latents, noise)
        found = torch.where(batch.sample_mask, found, noise)
    latents.requires_grad_(), found.requires_grad_()
    quantizer = quantizer_of(kind)
    quantized = quantizer(latents, batch.frame_mask)
    inner = LatentLossInputs(batch, latents, quantized, quantizer, PICTURE if picture else SOUND, found.detach())
    torch.manual_seed(0)
    kind = {"kind": "patch", "channels": 4} if picture else {"kind": "period", "channels": 2, "layers": 1}
    judges = Discriminators(check_config({"nets": [kind]}, DiscriminatorsConfig), 3 if picture else 1)
    if batch.sample_mask is None:
        return inner, ReconstructionLossInputs(batch, found, batch.media, judges), latents, found
    silent = (found * batch.sample_mask, batch.media * batch.sample_mask)
    return inner, ReconstructionLossInputs(batch, *silent, judges), latents, found


def loss_of(name, **how):
    inner, output, latents, found = views(name in FOR_PICTURES, kind=name, **how)
    if name == "halting":  # which teaches the tokenizer's head alone
        latents = inner.quantizer.limit.weight
    term = made(name)
    assert isinstance(term, LatentLoss) == (name in INNER)
    if isinstance(term, LatentLoss):
        return term(inner), latents, term
    return term(output), found, term


def test_the_table_of_terms_is_tested():
    assert {case["kind"] for case in CASES.values()} == set(TERMS)


@pytest.mark.sample(3)
@each
def test_the_loss_of_an_item_is_its_own(name):
    together, _, _ = loss_of(name)
    assert together.shape == (BATCH,) and together.dtype == torch.float32
    alone = torch.cat([loss_of(name, rows=slice(row, row + 1))[0] for row in range(BATCH)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.sample(5)
@each
def test_padding_is_not_looked_at(name):
    clean, _, _ = loss_of(name)
    noisy, reached, _ = loss_of(name, noise=7.0)
    torch.testing.assert_close(clean, noisy, atol=1e-6, rtol=1e-5)
    (gradient,) = torch.autograd.grad(noisy.sum(), reached)
    mask = batch_of(False).frame_mask if name in INNER else batch_of(False).sample_mask
    if name not in FOR_PICTURES:
        assert bool((gradient[~mask] == 0).all()) and bool(gradient.isfinite().all())


@pytest.mark.sample(5)
@each
def test_gradients_reach_the_network_and_the_terms_own_layers(name):
    loss, reached, term = loss_of(name)
    loss.sum().backward()
    assert float(reached.grad.abs().sum()) > 0
    for parameter_name, parameter in term.named_parameters() if isinstance(term, LatentLoss) else ():
        assert parameter.grad is not None, parameter_name
    assert all(parameter.grad is None for module in GIVEN.values() for parameter in module.parameters())


@pytest.mark.parametrize("name", ["ctc", "caption", "label", "contrast-text", "contrast-label"])
def test_items_without_an_answer_or_cut_short_count_for_nothing(name):
    loss, _, _ = loss_of(name)
    assert float(loss[1].detach()) == 0 and float(loss[0].detach()) > 0
    inner, _, _, _ = views(False)
    part = MediaBatch(**{**vars(inner.batch), "whole": torch.tensor([False, True, True])})
    cut = made(name)(LatentLossInputs(part, inner.latents, inner.quantized, inner.quantizer, SOUND))
    assert (float(cut[0].detach()) == 0) == ("label" not in name)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "name", ["ctc", "caption", "label", "distil-d", "distil-squared", "contrast-text", "contrast-label"]
)
def test_heads_learn(name):
    inner, _, _, _ = views(False)
    fixed = LatentLossInputs(inner.batch, inner.latents.detach(), inner.quantized, inner.quantizer, SOUND)
    term = made(name)
    levels = {"levels": "latents"}  # codes of random latents tell little
    term.config = term.config.model_copy(update=levels)
    optimizer = torch.optim.Adam(term.parameters(), lr=1e-2)
    first = None
    for _ in range(60):
        loss = term(fixed).sum()
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.8 * first


def test_a_level_gives_its_own_vectors_with_a_gradient_of_one():
    inner, _, latents, _ = views(False)
    codes, books = inner.quantized.codes, inner.quantizer.vectors()
    for levels in ((0,), (1,), (0, 1)):
        found = inner.values(levels)
        wanted = sum(books[level][codes[..., level].clamp_min(0)] for level in levels)
        mask = inner.mask
        torch.testing.assert_close(found[mask], wanted[mask])
        (gradient,) = torch.autograd.grad(found.sum(), latents, retain_graph=True)
        assert bool((gradient == 1).all())
    assert inner.values("latents") is latents and inner.values("all") is inner.quantized.values


def test_distillation_against_the_papers():
    """SpeechTokenizer's formulas, one dimension and one frame after another."""
    torch.manual_seed(0)
    q, s = torch.randn(2, 7, 5), torch.randn(2, 7, 5)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    for row, count in ((0, 7), (1, 4)):
        a, b = q[row, :count].double(), s[row, :count].double()

        def cos(u, v):
            return float((u * v).sum() / (u.norm() * v.norm()))

        def log_sigmoid(x):
            return -math.log(1 + math.exp(-x))

        d_axis = -sum(log_sigmoid(cos(a[:, d], b[:, d])) for d in range(5)) / 5
        t_axis = sum(float((a[t] - b[t]).abs().mean()) - log_sigmoid(cos(a[t], b[t])) for t in range(count)) / count
        squared = float((a - b).square().mean())
        for name, wanted in (("d_axis", d_axis), ("t_axis", t_axis), ("squared", squared)):
            assert float(DISTANCES[name](q, s, mask)[row]) == pytest.approx(wanted, rel=1e-4), name


def test_normalised_features_do_not_know_their_scale():
    torch.manual_seed(0)
    features = torch.randn(2, 7, 5) * torch.tensor([0.1, 1, 10, 100, 1]) + torch.tensor([0.0, 5, -50, 3, 0])
    features[..., 4] = 2
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    found = normalise(features, mask)
    for row, count in ((0, 7), (1, 4)):
        inside = features[row, :count]
        wanted = (inside - inside.mean(dim=0)) / inside.std(dim=0, correction=0).clamp_min(1e-3)
        torch.testing.assert_close(found[row, :count], wanted, rtol=1e-4, atol=1e-4)
    assert bool((found[..., 4] == 0).all())
    torch.testing.assert_close(normalise(3 * features[..., :4] - 8, mask), found[..., :4], rtol=1e-4, atol=1e-4)
    beyond = features.clone()
    beyond[1, 4:] = 1e6  # padding is not looked at
    assert torch.equal(normalise(beyond, mask)[1, :4], found[1, :4])


def test_perceptual_distance_against_a_loop():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4)
    for row in range(2):
        places = [(i, j) for i in range(3) for j in range(4)]
        apart = [
            (a[row, :, i, j] / a[row, :, i, j].norm() - b[row, :, i, j] / b[row, :, i, j].norm()) for i, j in places
        ]
        assert float(layer_distance(a, b)[row]) == pytest.approx(
            sum(float(d.square().sum()) for d in apart) / 12, rel=1e-4
        )
    assert bool((layer_distance(a, 3 * a) < 1e-10).all())


def test_ctc_is_the_sum_over_all_alignments():
    """Beside a sum over every path of a few tokens."""
    inner, _, _, _ = views(False)
    small = MediaBatch(
        media=torch.zeros(1, 3 * HOP), sample_mask=torch.ones(1, 3 * HOP, dtype=torch.bool),
        frame_mask=torch.ones(1, 3, dtype=torch.bool), whole=torch.tensor([True]), labels=torch.tensor([-1]),
        texts=["ab"], batch_items=1, batch_frames=3, batch_labels=torch.tensor([-1]), batch_texts=["ab"],
    )  # fmt: skip
    latents = torch.randn(1, 3, DIM)
    term = made("ctc")
    view = LatentLossInputs(small, latents, inner.quantizer(latents), inner.quantizer, SOUND)
    chances = term.head(view.values((0,)), small.frame_mask).double().softmax(-1)[0].detach()
    a, b = 1 + " abc".index("a"), 1 + " abc".index("b")
    paths = [(a, b, 0), (a, 0, b), (0, a, b), (a, a, b), (a, b, b)]
    total = sum(math.prod(float(chances[t, symbol]) for t, symbol in enumerate(path)) for path in paths)
    assert float(term(view).detach()) == pytest.approx(-math.log(total) / 2, rel=1e-4)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_contrast_against_a_loop_over_pairs(loss):
    torch.manual_seed(5)
    config = terms_of({"kind": "contrast", "caption": "label", "loss": loss, "width": 8, "levels": "latents"})
    (term,) = make_losses(config, context(False)).values()
    inner, _, latents, _ = views(False)
    found = term(inner)
    scale, bias = float(term.log_scale.detach().exp()), 0.0 if term.bias is None else float(term.bias.detach())
    for row, label in ((0, 1), (1, None), (2, 0)):
        item = term.project(latents[row][inner.mask[row]].mean(0)).detach()
        names = term.names.weight.detach()
        alike = [scale * float(item @ name / item.norm() / name.norm()) for name in names]
        signs = [1 if label == other else -1 for other in (0, 1)]
        if label is None:
            wanted = 0.0
        elif loss == "softmax":
            wanted = math.log(sum(math.exp(value) for value in alike)) - alike[label]
        else:
            wanted = sum(math.log(1 + math.exp(-s * (v + bias))) for s, v in zip(signs, alike, strict=True)) / 2
        assert found[row].item() == pytest.approx(wanted, rel=1e-4)


def test_contrast_reads_every_caption_as_if_it_were_alone():
    """Shorter captions are padded to the longest; what the padding holds is not read."""
    term = made("contrast-text")
    device = torch.device("cpu")
    captions = [term._spell(text) for text in ("a", "abc b", "cb")]
    together = term._captions(captions, device)
    for row, caption in enumerate(captions):
        torch.testing.assert_close(together[row], term._captions([caption], device)[0], atol=1e-6, rtol=1e-5)


def test_the_codes_of_the_other_tokenizer_are_what_is_told():
    inner, _, _, _ = views(True)
    term = made("codes")
    wanted = load_tokenizer(other_tokenizer()).encode(inner.batch.media).codes
    logits = []
    term.guess.register_forward_hook(lambda module, inputs, output: logits.append(output.detach().double()))
    found = term(inner)
    chances = [logits[0][..., :8].softmax(-1), logits[0][..., 8:].softmax(-1)]
    for row in range(BATCH):
        told = [-math.log(float(chances[k][row, p, wanted[row, k, p]])) for k in range(2) for p in range(64)]
        assert found[row].item() == pytest.approx(sum(told) / 128, rel=1e-4)


def test_a_range_of_channels_alone_is_taught():
    inner, _, latents, _ = views(False)
    made("distil-channels")(inner).sum().backward()
    reached = latents.grad.abs().sum((0, 1)) > 0
    assert reached.tolist() == [False, False, True, True, True, False]


def test_a_caption_does_not_look_ahead():
    inner, _, _, _ = views(False)
    term = made("caption")
    same = {}
    for text in ("abca", "abcb"):
        batch = MediaBatch(**{**vars(inner.batch), "texts": [text, None, None]})
        logits = []
        handle = term.guess.register_forward_hook(lambda module, inputs, output, logits=logits: logits.append(output))
        term(LatentLossInputs(batch, inner.latents, inner.quantized, inner.quantizer, SOUND))
        handle.remove()
        same[text] = logits[0][0]
    assert torch.equal(same["abca"][:4], same["abcb"][:4]) and not torch.equal(same["abca"][4], same["abcb"][4])


def test_cosine_transform_is_orthonormal_and_smooth_first():
    matrix = cosine_transform(16, 16)
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(16), atol=1e-6, rtol=0)
    assert bool((matrix[:, 0] == matrix[0, 0]).all())


def test_cepstra_hold_the_mel_bands():
    media = batch_of(False).media
    mel, cepstra = (
        teacher_of({**MEL, **kind}, SOUND).layers(media)[0] for kind in ({}, {"kind": "mfcc", "coefficients": 20})
    )
    torch.testing.assert_close(cosine_transform(20, 20) @ cepstra, mel, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("times", [7, 12, 25])
def test_features_are_laid_on_the_tokens(times):
    ramp = torch.linspace(0, 1, times)[None, None].repeat(2, 3, 1)
    found = fit_places(ramp, (12,))
    assert found.shape == (2, 12, 3)
    assert bool((found[:, 1:] > found[:, :-1]).all()) and float(found.mean()) == pytest.approx(0.5, abs=0.02)


def test_gradient_directions_of_stripes():
    """Stripes across, down and aslant have their whole histogram in their own direction."""
    teacher = make_teacher(
        check_config({"terms": [CASES["distil-pictures"]]}, OnlyTerms).terms[0].teacher, PICTURE, {}, "t"
    )
    across, down = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    for course, direction in ((down, 0.0), (across, 4.5), (down + across, 2.25)):
        histogram = teacher.layers((course / 16).expand(1, 3, 16, 16))[0][0, :, 1, 1]
        found = float((histogram * torch.arange(9)).sum() / histogram.sum())
        assert found == pytest.approx(direction, abs=0.05)


def test_a_frozen_tokenizer_teaches(tmp_path, tiny_sound):
    tokenizer = make_tokenizer(tiny_sound)
    tokenizer.save(tmp_path / "t")
    media = torch.randn(2, 10 * tiny_sound.hop) * 0.1
    geometry = tiny_sound.geometry
    settings = {"kind": "tokenizer", "path": str(tmp_path / "t")}
    latents = teacher_of(settings, geometry).layers(media)
    mask = torch.ones(2, 10, dtype=torch.bool)
    assert len(latents) == 1 and torch.equal(latents[0], tokenizer.net.encode_samples(media, mask).transpose(1, 2))
    named = teacher_of({**settings, "layers": ["leave"]}, geometry)
    torch.testing.assert_close(named.layers(media)[0], latents[0])
    assert feature_size(named, geometry, -1, "t") == tiny_sound.latent_dim
    inside = teacher_of({**settings, "layers": ["blocks.*.depthwise"], "channels_last": False}, geometry)
    assert [layer.shape for layer in inside.layers(media)] == [(2, 16, 10)]
    with pytest.raises(ConfigError, match="has no part 'nowhere'; it has, for instance, enter"):
        teacher_of({**settings, "layers": ["nowhere"]}, geometry)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kind": "distil", "teacher": MEL, "levels": [2]}, r"levels: there is no level 2; .* 2 levels, from 0 to 1"),
        ({"kind": "distil", "teacher": {"kind": "hog"}}, "teacher.kind: 'hog' is a teacher for picture"),
        ({"kind": "distil", "teacher": {"kind": "module", "name": "x"}}, "teacher.name: no module 'x' was given"),
        ({"kind": "distil", "teacher": {"kind": "tokenizer", "path": "nowhere"}}, "path: nowhere: no tokenizer here"),
        ({"kind": "distil", "teacher": MEL, "layer": 3}, "terms.0.layer: there is no layer 3; the teacher has 1"),
        ({"kind": "perceptual", "teacher": {**MEL, "kind": "mfcc", "coefficients": 40}}, "40 cannot come from 20"),
        ({"kind": "distil", "teacher": MEL, "channels": [3, 7]}, "channels 3 to 7 are beyond the 6 latent channels"),
        ({"kind": "contrast", "levels": [4]}, "terms.0.levels: there is no level 4"),
        ({"kind": "caption", "width": 10, "heads": 4}, "terms.0.heads: width 10 is not a multiple of 4"),
        ({"kind": "pixels"}, "terms.0.kind: 'pixels' is for picture, this tokenizer is for audio"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        make_losses(terms_of(settings), context(False))


def test_recognition_needs_transcripts_and_labels():
    bare = LossContext(SOUND, DIM, 2)
    for kind in ("ctc", "caption", "label", "contrast"):
        what = "labels" if kind == "label" else "transcripts"
        with pytest.raises(ConfigError, match=f"needs {what}"):
            make_losses(terms_of({"kind": kind}), bare)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_contrast_does_not_depend_on_how_the_batch_is_cut(loss):
    """Captions of the whole batch come with each part of it."""
    root = Path(__file__).resolve().parents[2]
    sets = [f"data.path={root}/samples/digits/test.safetensors", "train.batch=6", f"terms.2.loss={loss}"]
    config = read_config(root / "configs" / "tokenize" / "qlip.yaml", TokenizerTrainConfig, sets)
    media = MediaInMemory(config, show=False)
    rows = media.rows(0)
    quantizer = make_quantizer(config.tokenizer.quantizer, 12).eval()
    given = LossContext(media.geometry, 12, 1, labels=media.label_names)
    term = make_losses(config.terms, given)["contrast"]
    latents = torch.randn(6, 16, 12)
    found = {}
    for size in (6, 2, 1):
        losses = []
        for first in range(0, 6, size):
            own = latents[first : first + size]
            batch = media.batch(0, rows, first, size)
            losses.append(term(LatentLossInputs(batch, own, quantizer(own), quantizer, media.geometry)))
        found[size] = torch.cat(losses)
    assert bool((found[6] > 0).all()) and len(set(media.labels[rows].tolist())) > 1
    torch.testing.assert_close(found[2], found[6])
    torch.testing.assert_close(found[1], found[6])
