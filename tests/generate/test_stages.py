"""Coarse to fine: both stages in one model directory, their laws, and masked models behind the same face."""

import shutil

import pytest
import torch
from short_calls import fill_codes, generate_codes
from tiny_models import save_tiny_models, strong

import tessera
from tessera.cli.app import run
from tessera.configs.files import read_json, write_json
from tessera.configs.schema import ConfigError
from tessera.generate.loading import load
from tessera.generate.requests.settings import Length
from tessera.lm.checkpoints.model_directory import load_model, save_model
from tessera.lm.clustering.clustering import ClusteredTokenizer, cluster_codes
from tessera.lm.conditioning.registry import ConditionBatch, LabelConfig
from tessera.lm.config import LMConfig
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.layers.input_embedding import CodesInputConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.models.coarse_to_fine import CoarseToFine
from tessera.lm.models.mask_schedule import MaskingConfig
from tessera.lm.models.masked import MaskedConfig, MaskedLM
from tessera.lm.patterns.pattern import DelayConfig

NAMES = ["circle", "square", "star", "7"]
SHAPE = {"width": 16, "layers": 1, "heads": 2}


def build(tokenizer, has_end: bool, conditions=(LabelConfig(classes=4),), refiner_conditions=None) -> CoarseToFine:
    clustering = cluster_codes(tokenizer, [4, 5, 3])
    torch.manual_seed(1)
    labels = LMConfig(**SHAPE, arrangement=DelayConfig(), variable_length=has_end, conditions=conditions)
    coarse = strong(TokenLM(labels, clustering.spec))
    reads = conditions if refiner_conditions is None else refiner_conditions
    fine = MaskedConfig(**SHAPE, input=CodesInputConfig(), conditions=reads)
    refiner = MaskedLM(fine, tokenizer.spec, tokenizer.vectors(), clustering)
    strong(refiner)
    return CoarseToFine(coarse.eval(), refiner.eval())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Beside the tiny models: "fine" (picture) and "long" (audio) in two stages, "labels" and "masked" in one."""
    out = save_tiny_models(tmp_path_factory.mktemp("models"))
    shapes, tones = load(out / "shapes"), load(out / "tones")
    both = build(shapes.tokenizer, False)
    save_model(out / "fine", both, shapes.tokenizer, None, NAMES)
    sketch = ClusteredTokenizer(shapes.tokenizer, both.clustering)
    save_model(out / "labels", both.coarse, sketch, None, NAMES)
    save_model(out / "refiner", both.refiner, shapes.tokenizer, None, NAMES)
    limits = GenerationConfig(max_frames=9, min_frames=0)
    save_model(out / "long", build(tones.tokenizer, True, refiner_conditions=()), tones.tokenizer, None, NAMES, limits)
    torch.manual_seed(2)
    masked = MaskedConfig(**SHAPE, conditions=(LabelConfig(classes=4),), masking=MaskingConfig(share="uniform"))
    save_model(out / "masked", strong(MaskedLM(masked, shapes.spec)), shapes.tokenizer, None, NAMES)
    return out


def test_a_model_directory_holds_both_stages(folder):
    loaded = load_model(folder / "fine")
    assert isinstance(loaded.lm, CoarseToFine) and loaded.lm.spec == loaded.tokenizer.spec
    assert {path.name for path in (folder / "fine").iterdir()} >= {"lm.safetensors", "coarse.safetensors", "clusters"}
    codes = load(folder / "shapes").generate(label=[0, 1]).codes
    conditions = ConditionBatch.make(labels=[0, 1])
    report = loaded.lm.loss(codes, None, conditions)
    torch.manual_seed(1)
    built = build(loaded.tokenizer, False)
    assert torch.equal(report.per_codebook, built.loss(codes, None, conditions).per_codebook)
    labels = built.coarse.loss(built.clustering.coarse(codes), None, conditions).per_codebook
    fine = built.refiner.loss(codes, None, conditions).per_codebook
    torch.testing.assert_close(report.per_codebook, labels + fine)
    torch.testing.assert_close(report.per_codebook.mean(), report.loss)  # summed in another order
    assert repr(load(folder / "fine")).startswith(f"Model('{folder / 'fine'}': picture, conditioned on label")


def test_generate_is_the_labels_and_then_the_codes(folder):
    model = tessera.load(folder / "fine")
    result = model.generate(
        label=["star", "7"], n=2, seed=3, temperature=0.9, guidance=1.5, fine_guidance=2.0, passes=3
    )
    conditions = ConditionBatch.make(labels=[2, 2, 3, 3])
    seeds = [3, 4, 5, 6]
    labels = generate_codes(
        model.lm.coarse, conditions, seeds, Length(6, fixed=True), GenerationConfig(temperature=0.9), 1.5
    ).codes
    lengths = torch.full((4,), 6)
    codes = fill_codes(model.lm.refiner, conditions, seeds, lengths, {"passes": 3}, guidance=2.0, coarse=labels)
    assert torch.equal(result.codes, codes)
    assert torch.equal(model.lm.clustering.coarse(result.codes), labels), "codes are of the clusters that were drawn"
    assert result.media[0].shape == (1, 4, 6) and all(result.ended)


def test_sound_ends_where_its_labels_end(folder):
    model = load(folder / "long")
    result = model.generate(label=NAMES, n=8, seed=0)
    assert len(set(result.lengths.tolist())) > 2
    for one in result:
        length = int(one.lengths[0])
        assert one.codes.shape[2] == length and one.media[0].shape[1] == 16 * length
    beyond = torch.arange(result.codes.shape[2]) >= result.lengths[:, None, None]
    assert not result.codes[beyond.expand_as(result.codes)].any()
    with pytest.raises(ValueError, match="generates all frames together and cannot stream"):
        model.stream(label="star")


@pytest.mark.parametrize("name", ["fine", "masked"])
def test_a_prompt_is_kept(folder, name):
    model = load(folder / name)
    prompt = model.generate(label="star", seed=9).codes[0, :, :3]
    found = model.generate(label="7", n=3, prompt=prompt, passes=2)
    assert torch.equal(found.codes[:, :, :3], prompt.expand(3, -1, -1))


def test_the_model_of_the_labels_alone_makes_sketches(folder):
    model, fine = load(folder / "labels"), load(folder / "fine")
    assert isinstance(model.tokenizer, ClusteredTokenizer) and model.spec == fine.lm.clustering.spec
    result = model.generate(label="star", n=3)
    medoids = fine.lm.clustering.medoids(fine.tokenizer.vectors())
    codes = torch.stack([medoids[k][result.codes[:, k]] for k in range(3)], dim=1)
    assert torch.equal(torch.stack(result.media), fine.tokenizer.decode(codes))
    pictures = torch.stack(result.media)
    labels = fine.lm.clustering.coarse(fine.tokenizer.encode(pictures).codes)
    assert torch.equal(model.tokenizer.encode(pictures).codes, labels)
    torch.testing.assert_close(model.tokenizer.embed(result.codes), fine.tokenizer.embed(codes))


def test_the_command_line(folder, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--label", "star", "-n", "2", "--passes", "2", "--fine-temperature", "0.5,1,1", "-o", str(out)]
    arguments += ["--scale", "1"]
    assert run(["generate", str(folder / "fine"), *arguments]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["0000.png", "0001.png"]
    load(folder / "fine").generate(label="star", n=2, passes=2, fine_temperature=[0.5, 1.0, 1.0]).save(
        tmp_path / "same"
    )
    assert all(
        (out / name).read_bytes() == (tmp_path / "same" / name).read_bytes() for name in ("0000.png", "0001.png")
    )
    assert run(["generate", str(folder / "refiner"), "--label", "star", "-o", str(out)]) == 2
    assert "this model refines coarse labels and has no model that generates them" in capsys.readouterr().err


def test_weights_at_rest_of_both_stages(folder):
    packed = load(folder / "fine", weights="int8")
    assert packed.generate(label="star", n=2).codes.shape == (2, 3, 6)


def test_refusals(folder, tmp_path):
    shapes = load(folder / "shapes")
    both, other = build(shapes.tokenizer, False), cluster_codes(shapes.tokenizer, 2)
    strange = TokenLM(LMConfig(**SHAPE, arrangement=DelayConfig()), other.spec)
    with pytest.raises(ValueError, match="codes of tokenizer 'shapes-coarse' .* but 'shapes-coarse'"):
        CoarseToFine(strange, both.refiner)
    with pytest.raises(ConfigError, match="conditioned on label, the refiner on text; give the refiner the same"):
        build(shapes.tokenizer, False, refiner_conditions=load(folder / "tones").lm.config.conditions)
    with pytest.raises(ConfigError, match="it was trained without clusters"):
        CoarseToFine(both.coarse, load(folder / "masked").lm)
    with pytest.raises(ConfigError, match="the model of the coarse labels must be causal"):
        CoarseToFine(both.refiner, both.refiner)
    with pytest.raises(ValueError, match="ras is 4, but a masked model"):
        load(folder / "masked").generate(label="star", ras=4)
    with pytest.raises(ValueError, match="draft was set, but a masked model does not decode step by step"):
        load(folder / "masked").generate(label="star", draft=2)
    with pytest.raises(ValueError, match="num_frames is 3, but an image"):
        load(folder / "masked").generate(label="star", num_frames=3)
    moved = shutil.copytree(folder / "fine", tmp_path / "moved")
    (moved / "fingerprint.json").unlink()  # as in a directory of an earlier version
    (moved / "coarse.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"coarse.safetensors: no such file"):
        load_model(moved)
    shutil.rmtree(moved / "clusters")
    other.save(moved / "clusters")
    with pytest.raises(
        ValueError, match=f"holds clusters {other.spec.fingerprint[:12]}, but the model was trained with"
    ):
        load_model(moved)
    described = read_json(moved / "config.json")
    write_json(moved / "config.json", {**described, "clusters": None})
    with pytest.raises(ValueError, match="do not belong to the config, first 'coarse_input"):
        load_model(moved)
