"""A tokenizer's run that would end in a later stage is refused before its first step."""

import pytest
import torch

from tessera.configs.files import write_safetensors
from tessera.configs.schema import ConfigError, check_config
from tessera.tokenize.data.media import write_audio
from tessera.tokenize.kinds import NETS
from tessera.train.common import disk_space
from tessera.train.distributed.process_group import ONE_PROCESS
from tessera.train.tokenizer import trainer
from tessera.train.tokenizer.preflight import check_terms
from tessera.train.tokenizer.trainer import TokenizerTrainConfig, TokenizerTrainer, train_tokenizer

VQ = {"kind": "vq", "size": 8, "kmeans_init": False}
KMEANS = {"kind": "kmeans", "size": 8}
FIRST = {"kind": "train", "name": "a", "steps": 1}
CONTINUOUS = {**FIRST, "name": "c", "latents": "continuous"}
FIT = {"kind": "fit", "name": "bins", "items": 8}
TERMS = [{"kind": "pixels"}, {"kind": "quantizer"}]
PATCH = {"nets": [{"kind": "patch", "layers": 5}], "first_step": 1}


@pytest.fixture
def pictures(tmp_path):
    images = torch.randint(0, 256, (8, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    write_safetensors(tmp_path / "p.safetensors", {"images": images}, {})

    def make(quantizer=VQ, **changes):
        tokenizer = {"kind": "picture", "name": "p", "height": 8, "width": 8, "channels": 1, "features": 8, "blocks": 1}
        return {
            "data": {"kind": "arrays", "path": str(tmp_path / "p.safetensors")},
            "tokenizer": {**tokenizer, "latent_dim": 4, "quantizer": quantizer},
            "train": {"batch": 4, "warmup_steps": 1},
            "terms": TERMS,
            **changes,
        }

    return make


@pytest.fixture
def refuse(tmp_path, monkeypatch):
    """Start a run; returns what it is refused with, before a step."""

    def start(data) -> str:
        monkeypatch.setattr(TokenizerTrainer, "run", lambda *a: pytest.fail("the run began"))
        with pytest.raises(ConfigError) as caught:
            train_tokenizer(check_config(data, TokenizerTrainConfig), tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    return start


@pytest.mark.parametrize(
    "quantizer, stages, said",
    [
        (VQ, [FIRST, {**FIRST, "name": "b", "freeze": ["decodr"]}], "stages.1.freeze: no part is called 'decodr'"),
        (
            VQ,
            [FIRST, {**FIRST, "name": "b", "terms": ["quantizer"], "latents": "continuous"}],
            "stages.1.terms: no active term",
        ),
        (
            VQ,
            [FIRST, {**FIRST, "name": "b", "freeze": ["*"]}],
            "stages.1.freeze: all parts are frozen",
        ),
        (VQ, [FIRST, FIT], "'bins': this quantizer .* has no part to fit"),
        (KMEANS, [CONTINUOUS], "stages: no stage fits the codes of this quantizer; end with a stage of kind fit"),
        (KMEANS, [CONTINUOUS, FIRST], "stages.1: the codes of this quantizer are not fitted yet"),
        (KMEANS, [FIRST, FIT], "stages.0: the codes of this quantizer are not fitted yet"),
    ],
)
def test_later_stages(pictures, refuse, quantizer, stages, said):
    import re

    assert re.search(said, refuse(pictures(quantizer, stages=stages)))


def test_stages_that_fit_are_begun(pictures, tmp_path):
    data = pictures(KMEANS, stages=[CONTINUOUS, FIT, {**FIRST, "freeze": ["encoder"]}])
    assert train_tokenizer(check_config(data, TokenizerTrainConfig), tmp_path / "run", progress=False) is not None


def test_discriminators_that_cannot_look_at_pictures_so_small(pictures, refuse):
    data = pictures(terms=[*TERMS, {"kind": "adversarial"}], judges=PATCH, stages=[{**FIRST, "steps": 9}])
    said = refuse(data)
    assert "judges.nets: a " in said and "cannot process images of 8 x 8; make the discriminator smaller" in said


def test_discriminators_that_cannot_look_at_sounds_so_short(tmp_path, refuse):
    write_audio(tmp_path / "0.wav", torch.zeros(1, 4000), 4000)
    stack = {"width": 16, "layers": 1, "kernel": 3, "chunk": 8}
    net = {"hop": 40, "window": 160, "latent_dim": 8, "encoder": stack, "decoder": stack, "quantizer": VQ}
    data = {
        "data": {"kind": "folder", "path": str(tmp_path), "labels": "none"},
        "tokenizer": {"kind": "audio", "name": "s", "sample_rate": 4000, **net},
        "train": {"steps": 4, "batch": 1},
        "losses": {"kind": "audio", "adversarial_from": 3, "adversarial_seconds": 0.0001},
    }
    assert "judges.nets: a STFTDiscriminator cannot process 0 samples; raise judges.seconds" in refuse(data)


def test_room_for_a_checkpoint(pictures, refuse, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: usage(1, 1, 10_000))
    assert "no disk space for a checkpoint and the model" in refuse(pictures(stages=[FIRST]))


def test_nothing_that_is_trained_is_touched(pictures, tmp_path):
    data = pictures(stages=[{**FIRST, "freeze": ["encoder"]}])
    made = TokenizerTrainer(check_config(data, TokenizerTrainConfig), tmp_path / "run", ONE_PROCESS, {}, False)
    before = {name: tensor.clone() for name, tensor in made.objective.state_dict().items()}
    made.check()
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.objective.state_dict().items())
    assert all(parameter.requires_grad for parameter in made.objective.parameters()) and made.objective.net.training


def test_discriminators_that_never_come_in_are_noted(pictures, tmp_path, capsys):
    judges = {"nets": [{"kind": "patch", "layers": 1}]}
    for changes, said in (
        ({"judges": judges}, "judges (discriminators) are configured, but no term is adversarial or features"),
        (
            {"terms": [*TERMS, {"kind": "adversarial"}], "judges": {**judges, "first_step": 1}},
            "judges.first_step 1 is not below the 1 steps of the run",
        ),
    ):
        data = check_config(pictures(stages=[FIRST], **changes), TokenizerTrainConfig)
        train_tokenizer(data, tmp_path / str(len(changes)))
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"terms": [*TERMS, {"kind": "perceptual", "teacher": {"kind": "tokenizer", "path": "nowhere"}}]}, "nowhere"),
        ({"terms": [*TERMS, {"kind": "codes", "tokenizer": "nowhere"}]}, "nowhere"),
        ({"terms": [*TERMS, {"kind": "perceptual", "teacher": {"kind": "module", "name": "x"}}]}, "terms.2.teacher"),
        ({"stages": [{**FIRST, "freeze": ["decodr"]}]}, "stages.0.freeze"),
        ({"warm_start": {"tokenizer": "nowhere"}}, "init.from"),
        ({"init": {"from": "nowhere"}}, "init.from"),
    ],
)
def test_what_needs_no_media_is_said_before_they_are_read(pictures, refuse, monkeypatch, changes, said):
    monkeypatch.setattr(trainer, "MediaInMemory", lambda *a: pytest.fail("the media were read"))
    assert said in refuse(pictures(**{"stages": [FIRST], **changes}))


def test_the_check_of_terms_changes_nothing_of_the_run(pictures):
    contrast = {"kind": "contrast", "caption": "label"}
    config = check_config(pictures(terms=[*TERMS, contrast], stages=[FIRST]), TokenizerTrainConfig)
    net = NETS["picture"](config.tokenizer)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    check_terms(config, net, {})
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())
