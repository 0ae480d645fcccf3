"""Training a tokenizer: it learns, the same seed gives the same tokenizer, the cut of a batch does not matter, and
errors are one line. That a resumed run equals the run left alone is in test_resume.py."""

import shutil

import pytest
import torch
from run_files import assert_same_run, killed_at

from tessera.configs.files import write_safetensors
from tessera.configs.schema import ConfigError, check_config
from tessera.tokenize.data.media import write_audio
from tessera.tokenize.tokenizer import load_tokenizer, make_tokenizer
from tessera.train.common.metrics import read_metrics
from tessera.train.common.signals import StopRequest
from tessera.train.distributed.process_group import ProcessGroup
from tessera.train.losses.reconstruction import RESOLUTIONS
from tessera.train.losses.stft import magnitudes, mel_filters
from tessera.train.tokenizer import objective
from tessera.train.tokenizer.trainer import TokenizerTrainConfig, TokenizerTrainer, TrainingFailed, train_tokenizer

RVQ = {"kind": "residual", "levels": 2, "quantizer": {"kind": "vq", "size": 8}}


@pytest.fixture
def pictures(tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (24, 8, 8), generator=generator).to(torch.uint8)
    images[:, ::2] = 0
    write_safetensors(tmp_path / "p.safetensors", {"images": images, "labels": torch.arange(24) % 3}, {})
    return {
        "data": {"kind": "arrays", "path": str(tmp_path / "p.safetensors")},
        "tokenizer": {
            "kind": "picture", "name": "p", "height": 8, "width": 8, "channels": 1,
            "features": 8, "blocks": 1, "latent_dim": 8, "quantizer": RVQ,
        },
        "train": {"steps": 30, "batch": 8, "lr": 5e-3, "warmup_steps": 5, "log_every": 1},
    }  # fmt: skip


@pytest.fixture
def sounds(tmp_path):
    for number in range(4):
        time = torch.arange(1000 + 400 * number) / 4000
        write_audio(tmp_path / f"{number}.wav", 0.5 * torch.sin(2 * torch.pi * (200 + 100 * number) * time)[None], 4000)
    stack = {"width": 16, "layers": 1, "kernel": 3, "chunk": 8}
    return {
        "data": {"kind": "folder", "path": str(tmp_path), "labels": "none"},
        "tokenizer": {
            "kind": "audio", "name": "s", "sample_rate": 4000, "hop": 40, "window": 160, "latent_dim": 8,
            "encoder": stack, "decoder": stack, "quantizer": RVQ,
        },
        "train": {"steps": 16, "batch": 4, "crop_seconds": 0.3, "lr": 5e-3, "warmup_steps": 2, "log_every": 1},
        "losses": {"kind": "audio", "adversarial_from": 10, "adversarial_every": 2, "adversarial_seconds": 0.2},
        "discriminator": {"windows": [256], "channels": 4, "layers": 2},
    }  # fmt: skip


def run(data, out):
    tokenizer = train_tokenizer(check_config(data, TokenizerTrainConfig), out, progress=False)
    return tokenizer, read_metrics(out)


@pytest.mark.slow
def test_pictures_are_learned_and_the_same_seed_gives_the_same_tokenizer(pictures, tmp_path):
    tokenizer, rows = run(pictures, tmp_path / "a")
    assert len(rows) == 30 and rows[-1]["squared"] < 0.7 * rows[0]["squared"]
    assert load_tokenizer(tmp_path / "a").spec == tokenizer.spec
    again, _ = run(pictures, tmp_path / "b")
    assert again.spec.fingerprint == tokenizer.spec.fingerprint
    other, _ = run(pictures | {"seed": 1}, tmp_path / "c")
    assert other.spec.fingerprint != tokenizer.spec.fingerprint


def test_sound_is_learned_and_judged(sounds, tmp_path):
    tokenizer, rows = run(sounds, tmp_path / "a")
    assert rows[-1]["mel"] < rows[0]["mel"] and rows[-1]["spectrum"] < rows[0]["spectrum"]
    judged = [row["step"] for row in rows if "judge" in row]
    assert judged == [11, 13, 15], "after 10, 12 and 14 steps"
    codes = tokenizer.encode(torch.randn(1, 1, 500) * 0.1)
    assert tokenizer.decode(codes.codes).shape == (1, 1, 13 * 40)


def test_a_tokenizer_is_never_overwritten(pictures, tmp_path):
    pictures["train"]["steps"] = 1
    run(pictures, tmp_path / "a")
    with pytest.raises(FileExistsError, match="contains a tokenizer already"):
        run(pictures, tmp_path / "a")


def test_losses_that_are_not_finite_stop_the_run(pictures, tmp_path):
    pictures["losses"] = {"kind": "picture", "squared": 1e39}  # beyond float32: infinite
    with pytest.raises(TrainingFailed, match="not finite in 3 steps in a row, up to step 3; .* those of step 0"):
        run(pictures, tmp_path / "a")
    assert not (tmp_path / "a" / "config.json").exists()


def test_losses_of_another_kind_are_refused(pictures):
    with pytest.raises(ConfigError, match="losses are for audio, the tokenizer is for picture"):
        check_config(pictures | {"losses": {"kind": "audio"}}, TokenizerTrainConfig)


@pytest.mark.parametrize("size, bands", RESOLUTIONS)
def test_mel_filters_against_a_loop(size, bands):
    filters = mel_filters(16000, size, bands)
    assert filters.shape == (size // 2 + 1, bands)
    assert torch.allclose(filters.sum(0), torch.ones(bands), atol=1e-5), "every band hears something"
    top = 2595 * torch.log10(torch.tensor(1 + 8000 / 700))
    edges = [float(700 * (10 ** (top * i / (bands + 1) / 2595) - 1)) for i in range(bands + 2)]
    for band in (bands // 2, bands - 1):
        peak = float(filters[:, band].argmax()) * 16000 / size
        assert abs(peak - edges[band + 1]) <= 16000 / size


def test_magnitudes_of_noise_are_near_one_at_every_resolution():
    noise = torch.randn(1, 32000, generator=torch.Generator().manual_seed(0))
    for size, _ in RESOLUTIONS:
        assert abs(float(magnitudes(noise, size).square().mean()) - 1) < 0.1


# Every part at once, in stages: what a run may be made of.


def everything(sounds, **train):
    """All kinds of moving state: codebooks, a term's own layers, judges with LeCam, balance, averaged weights."""
    terms = [
        {"kind": "mel", "weight": 2.0},
        {"kind": "waveform"},
        {"kind": "quantizer"},
        {"kind": "adversarial"},
        {"kind": "features", "weight": 2.0},
        {"kind": "distil", "teacher": {"kind": "mel", "window": 256, "bands": 20}},
    ]
    judges = {
        "nets": [{"kind": "stft", "windows": [128], "channels": 2, "layers": 1}],
        "first_step": 2, "every": 2, "seconds": 0.1, "lecam": 0.01,
    }  # fmt: skip
    stages = [
        {"name": "first", "steps": 3, "kind": "train", "terms": ["mel", "quantizer", "distil"]},
        {"name": "game", "steps": 4, "kind": "train", "freeze": ["encoder"], "lr": 1e-3},
    ]
    train = {"batch": 4, "crop_seconds": 0.3, "warmup_steps": 2, "log_every": 1, "ema": 0.5, **train}
    kept = {name: sounds[name] for name in ("data", "tokenizer")}
    return kept | {"terms": terms, "judges": judges, "stages": stages, "train": train, "balance": {"kind": "balancer"}}


def trainer(data, out):
    return TokenizerTrainer(
        check_config(data, TokenizerTrainConfig), out, ProcessGroup(0, 1, torch.device("cpu")), {}, False
    )


def state(made):
    tensors = {name: tensor.clone() for name, tensor in made.objective.state_dict().items()}
    if made.discriminators is not None:
        tensors |= {f"judges.{name}": tensor.clone() for name, tensor in made.discriminators.state_dict().items()}
    return tensors


def test_a_run_of_another_config_or_other_data_is_not_resumed(sounds, pictures, tmp_path):
    pictures["train"] |= {"steps": 2, "save_every": 1}
    run(pictures, tmp_path / "a")

    def resume(changed):
        return train_tokenizer(check_config(changed, TokenizerTrainConfig), tmp_path / "a", progress=False, resume=True)

    with pytest.raises(ConfigError, match=r"train.lr: this run was started with 0.005 .* the config now says 0.1"):
        resume(pictures | {"train": pictures["train"] | {"lr": 0.1}})
    with pytest.raises(ConfigError, match=r"stages.0.steps: 1, but 2 are done .* tessera export .*a --step N"):
        resume(pictures | {"train": pictures["train"] | {"steps": 1}})
    assert resume(pictures | {"train": pictures["train"] | {"steps": 4, "save_every": None}}) is not None
    assert read_metrics(tmp_path / "a")[-1]["step"] == 4
    other = torch.zeros(3, 8, 8, dtype=torch.uint8)
    write_safetensors(tmp_path / "p.safetensors", {"images": other}, {})
    with pytest.raises(ConfigError, match="data: .* is not what .* was trained on"):
        resume(pictures | {"train": pictures["train"] | {"steps": 4}})
    with pytest.raises(FileExistsError, match="contains a run already; resume it with --resume"):
        (tmp_path / "a" / "config.json").unlink()
        run(pictures, tmp_path / "a")


@pytest.mark.slow
def test_micro_batches_add_up_to_the_whole_batch(sounds, tmp_path):
    """Items differ in length; judges, balance and codebooks see the same, however the batch is cut."""
    data = everything(sounds, ema=0.0)
    # k-means and revival choose vectors by their last bits
    book = {"kind": "vq", "size": 8, "kmeans_init": False, "revive_below": 0.0}
    data["tokenizer"] = data["tokenizer"] | {"quantizer": {"kind": "residual", "levels": 2, "quantizer": book}}
    whole = trainer(data, tmp_path / "whole")
    data["train"]["micro_batch"] = 1
    parts = trainer(data, tmp_path / "parts")
    assert whole.run() and parts.run()
    first, second = state(whole), state(parts)
    for name, tensor in first.items():
        # sums in another order, which AdamW's first steps make large
        torch.testing.assert_close(tensor.float(), second[name].float(), atol=2e-3, rtol=1e-2, msg=f"{name} differs")
    lines = [[{k: v for k, v in line.items() if isinstance(v, float) and k != "seconds"} for line in read_metrics(out)]
             for out in (tmp_path / "whole", tmp_path / "parts")]  # fmt: skip
    for one, other in zip(*lines, strict=True):
        assert one == pytest.approx(other, rel=1e-2, abs=1e-5)


def test_frozen_parts_do_not_move_and_others_do(sounds, tmp_path):
    data = everything(sounds, ema=0.0)
    data["stages"] = [{"name": "a", "steps": 3, "kind": "train"}]
    data["judges"]["first_step"] = 0
    made = trainer(data, tmp_path / "a")
    made.run()
    for pattern, moves in (("encoder", "decoder"), ("quantizer", "encoder"), ("decoder.blocks.*", "decoder.leave")):
        data["stages"] = [{"name": "b", "steps": 3, "kind": "train", "freeze": [pattern]}]
        frozen = trainer(data, tmp_path / "b")
        frozen.objective.load_state_dict(made.objective.state_dict())
        before = state(frozen)
        for step in range(3):
            if step == 0:
                frozen.begin(0)
            frozen.stepper.step(step, StopRequest())
        begin = "net." + pattern.removesuffix("*")
        after = state(frozen)
        changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
        assert not {name for name in changed if name.startswith(begin)}, pattern
        assert {name for name in changed if name.startswith("net." + moves)}, pattern


def test_codes_are_final_once_encoder_and_quantizer_are_frozen(sounds, tmp_path):
    """A language model can be trained on the codes of the first snapshot: later ones differ only in the decoder."""
    data = everything(sounds, ema=0.9, snapshot_every=1)
    data["stages"][1] |= {"freeze": ["encoder", "quantizer"], "terms": ["mel"]}
    run(data, tmp_path / "a")
    audio = 0.1 * torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0))
    first, *later = [load_tokenizer(tmp_path / "a" / name) for name in ("snapshot-4", "snapshot-6", "")]
    for one in later:
        assert torch.equal(first.encode(audio).codes, one.encode(audio).codes)
        for name, weight in first.net.encoder.named_parameters():
            assert torch.equal(weight, one.net.encoder.get_parameter(name)), name
    assert not torch.equal(first.decode(first.encode(audio).codes), later[-1].decode(later[-1].encode(audio).codes))


def test_terms_of_a_stage_are_the_ones_that_are_on(sounds, tmp_path):
    _, lines = run(everything(sounds), tmp_path / "a")
    named = [
        set(line) & {"mel", "waveform", "quantizer", "adversarial", "features", "distil", "judge"} for line in lines
    ]
    game = {"mel", "waveform", "quantizer", "distil", "adversarial", "features", "judge"}
    quiet = {"mel", "waveform", "quantizer", "distil"}
    assert named == [{"mel", "quantizer", "distil"}] * 3 + [quiet, game, quiet, game]
    assert [line["stage"] for line in lines] == ["first"] * 3 + ["game"] * 4
    assert lines[3]["lr"] == pytest.approx(0.5e-3), "its own learning rate, warmed up anew"


def test_averaged_weights_are_what_is_frozen(pictures, tmp_path):
    pictures["train"] |= {"steps": 5, "ema": 0.9}
    made = trainer(pictures, tmp_path / "a")
    made.run()
    tokenizer = made.tokenizer
    average = {name: p.half().float() for name, p in made.average.model.named_parameters()}
    assert made.average.updates == 5
    for name, parameter in tokenizer.net.named_parameters():
        assert torch.equal(parameter, average[name])
        assert not torch.equal(parameter, made.objective.net.get_parameter(name).half().float())
    codebooks = dict(made.objective.net.named_buffers())
    assert all(torch.equal(buffer, codebooks[name]) for name, buffer in tokenizer.net.named_buffers())


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    "quantizer",
    [
        {"kind": "scalar", "size": 16, "values": "quantile"},
        {"kind": "kmeans", "size": 8},
        {"kind": "structural", "size": 99, "nodes": 200, "neighbours": 3},
    ],
)
def test_bins_and_centres_are_fitted_to_a_continuous_autoencoder(pictures, tmp_path, quantizer):
    pictures["tokenizer"] |= {"latent_dim": 4, "quantizer": quantizer}
    pictures["train"].pop("steps")
    stages = [
        {"kind": "train", "name": "continuous", "steps": 12, "latents": "continuous"},
        {"kind": "fit", "name": "bins", "items": 16},
    ]
    pictures["terms"] = [{"kind": "pixels"}, {"kind": "quantizer"}, {"kind": "normal", "weight": 0.01}]
    tokenizer, lines = run(pictures | {"stages": stages}, tmp_path / "a")
    assert "quantizer" not in lines[-1] and "normal" in lines[-1] and lines[-1]["codes_in_batch"] == []
    made = trainer(pictures | {"stages": stages}, tmp_path / "b")
    items = torch.stack(made.media.items)
    codes = tokenizer.encode(items).codes
    assert len(codes.unique()) > 4
    latents = torch.cat([tokenizer.net.encode_images(item[None]) for item in items])
    apart = (tokenizer.embed(codes).transpose(1, 2) - latents).square().mean() / latents.var()
    assert float(apart) < (0.02 if quantizer["kind"] == "scalar" else 0.7)
    assert load_tokenizer(tmp_path / "a").spec == tokenizer.spec
    if quantizer["kind"] == "structural":  # it has found how many codes there are
        assert tokenizer.spec.cardinalities == (int(tokenizer.quantizer.num_codes),) < (99,)


def test_a_fit_with_nothing_to_fit_says_so(pictures, tmp_path):
    pictures["train"].pop("steps")
    stages = [{"kind": "train", "name": "a", "steps": 1}, {"kind": "fit", "name": "bins"}]
    with pytest.raises(ConfigError, match="'bins': this quantizer .* has no part to fit"):
        run(pictures | {"stages": stages}, tmp_path / "a")


def test_a_student_inherits_encoder_and_decoder(pictures, tmp_path):
    """DistilCodec: a single codebook takes over the network of a residual one."""
    pictures["train"]["steps"] = 3
    teacher, _ = run(pictures, tmp_path / "teacher")
    student = pictures | {"init": {"from": str(tmp_path / "teacher")}}
    student["tokenizer"] = pictures["tokenizer"] | {"quantizer": {"kind": "vq", "size": 32}}
    made = trainer(student, tmp_path / "a")
    own, given = made.objective.net.state_dict(), teacher.net.state_dict()
    same = {name for name in own if name in given and torch.equal(own[name], given[name])}
    assert {name for name in own if name.split(".")[0] != "quantizer"} <= same
    student["init"] |= {"leave": ["decoder"], "names": {"quantizer.codebook.": "quantizer.levels.1.codebook."}}
    student["tokenizer"] = pictures["tokenizer"] | {"quantizer": {"kind": "vq", "size": 8}}
    levels = [name for name in given if ".1.codebook." in name]
    student["init"]["names"] = {"quantizer.codebook.": levels[0].rsplit("codebook.", 1)[0] + "codebook."}
    made = trainer(student, tmp_path / "b")
    own = made.objective.net.state_dict()
    for name in levels:
        assert torch.equal(own["quantizer.codebook." + name.rsplit(".", 1)[1]], given[name])
    last = [name for name in own if name.startswith("decoder.") and own[name].dim() > 1][-1]
    assert not torch.equal(own[last], given[last])
    earlier = student | {"warm_start": {"tokenizer": student["init"]["from"], **student["init"]}}
    del earlier["init"], earlier["warm_start"]["from"]
    assert check_config(earlier, TokenizerTrainConfig) == check_config(student, TokenizerTrainConfig)
    student["init"]["names"] = {"quantizer.": "nowhere."}
    with pytest.raises(ConfigError, match="init.names: .* has no tensor whose name begins with 'nowhere.'"):
        trainer(student, tmp_path / "c")


def test_what_init_freezes_stays_as_it_was_given(pictures, tmp_path):
    pictures["train"] |= {"steps": 3, "save_every": 1, "ema": 0.9}
    teacher, _ = run(pictures, tmp_path / "teacher")
    student = pictures | {"seed": 1, "init": {"from": str(tmp_path / "teacher"), "freeze": ["encoder", "quantizer"]}}
    made, _ = run(student, tmp_path / "whole")
    own, given = made.net.state_dict(), teacher.net.state_dict()
    frozen = [name for name in own if name.split(".")[0] in ("encoder", "quantizer")]
    assert frozen and all(torch.equal(own[name], given[name]) for name in frozen)
    assert any(not torch.equal(own[name], given[name]) for name in own if name not in frozen)
    with killed_at(TokenizerTrainer, 2):
        run(student, tmp_path / "cut")
    shutil.rmtree(tmp_path / "teacher")  # a resumed run does not read it again
    train_tokenizer(check_config(student, TokenizerTrainConfig), tmp_path / "cut", progress=False, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


WRONG_INIT = [
    ({"from": "nowhere"}, "init.from: .*nowhere"),
    ({"from": "TEACHER"}, r"init: tensor '.*' is \[.*\], in .* it is \[.*\]; start it at random with init.leave: \["),
    ({"from": "TEACHER", "modules": ["decodr"]}, "init.modules: no module is called 'decodr'; there are encoder"),
    ({"from": "TEACHER", "leave": ["encoder", "decoder", "quantizer"]}, "init.from: .* has no tensor that is taken"),
    (
        {"from": "TEACHER", "modules": ["quantizer"], "freeze": ["encoders"]},
        "init.freeze: no part is called 'encoders'",
    ),
    (
        {"from": "TEACHER", "modules": ["quantizer"], "freeze": ["encoder", "decoder", "quantizer"]},
        "init.freeze: all parts are frozen",
    ),
    ({"from": "TEACHER", "module": ["quantizer"]}, "init.module: unknown key; did you mean 'modules'"),
    ({"form": "TEACHER"}, "init.form: unknown key; did you mean 'from'"),
]


@pytest.mark.parametrize(("init", "said"), WRONG_INIT)
def test_a_wrong_init_says_so(pictures, tmp_path, init, said):
    teacher = check_config(pictures, TokenizerTrainConfig).tokenizer
    make_tokenizer(teacher).save(tmp_path / "teacher")
    given = {name: str(tmp_path / "teacher") if value == "TEACHER" else value for name, value in init.items()}
    student = pictures | {"init": given, "tokenizer": pictures["tokenizer"] | {"features": 16}}
    with pytest.raises(ConfigError, match=said):
        trainer(student, tmp_path / "a")


def test_a_module_given_in_python_teaches(pictures, tmp_path):
    torch.manual_seed(0)
    judge = torch.nn.Conv2d(1, 4, 3)
    pictures["train"]["steps"] = 4
    pictures["terms"] = [
        {"kind": "pixels"},
        {"kind": "quantizer"},
        {"kind": "perceptual", "teacher": {"kind": "module", "name": "conv"}},
    ]
    config = check_config(pictures, TokenizerTrainConfig)
    train_tokenizer(config, tmp_path / "a", progress=False, teachers={"conv": judge})
    assert "perceptual" in read_metrics(tmp_path / "a")[-1]
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in judge.parameters())


def test_adaptive_weights_train(pictures, tmp_path):
    pictures["train"]["steps"] = 5
    pictures["terms"] = [{"kind": "pixels"}, {"kind": "quantizer"}, {"kind": "adversarial", "weight": 0.8}]
    pictures["judges"] = {"nets": [{"kind": "patch", "channels": 4, "layers": 1}], "first_step": 2}
    pictures["balance"] = {"kind": "adaptive"}
    made = trainer(pictures, tmp_path / "a")
    made.run()
    lines = read_metrics(tmp_path / "a")
    assert ["adversarial" in line for line in lines] == [False, False, True, True, True]
    assert made.balance.averages.keys() == {"", "adversarial"}


@pytest.mark.parametrize("lacks", [False, True])
def test_bfloat16_is_for_processors_that_have_it(pictures, tmp_path, monkeypatch, lacks):
    pictures["train"] |= {"dtype": "bfloat16"}
    layers = trainer(pictures, tmp_path / "a").objective
    monkeypatch.setattr(objective, "lacks_bfloat16", lambda: lacks)
    with layers.precision(torch.device("cpu")):
        assert torch.nn.functional.linear(*torch.ones(2, 3, 3)).dtype == (torch.float32 if lacks else torch.bfloat16)


@pytest.mark.sample(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_codebooks_are_no_business_of_the_optimizer(pictures, tmp_path, monkeypatch, dtype):
    """Trap 14: a trainer that holds codebooks as weights writes its own copy over them. Here they are float32 averages
    of the latents, in every precision."""
    monkeypatch.setattr(objective, "lacks_bfloat16", lambda: False)
    pictures["train"] |= {"steps": 12, "dtype": dtype}
    pictures["tokenizer"]["quantizer"] = {"kind": "vq", "size": 8, "decay": 0.5, "revive_below": 0}
    made = trainer(pictures, tmp_path / "a")
    made.run()
    held = {id(p) for group in made.engine.optimizer.param_groups for p in group["params"]}
    book = made.objective.net.quantizer.codebook
    assert not held & {id(tensor) for tensor in made.objective.net.quantizer.state_dict(keep_vars=True).values()}
    assert book.sum.dtype == book.count.dtype == torch.float32
    assert read_metrics(tmp_path / "a")[-1]["codes_in_batch"][0] > 2, "not collapsed to one code"
    before = book.entries().clone()
    made.stepper.step(12, StopRequest())
    seen = made.media.batch(12, made.media.rows(12), 0, 8)
    assert not torch.equal(before, book.entries()) and len(seen.media) == 8


def test_a_bad_step_moves_nothing_not_even_codebooks(pictures, tmp_path):
    pictures["train"]["steps"] = 9
    made = trainer(pictures, tmp_path / "a")
    made.begin(0)
    for step in range(4):
        made.stepper.step(step, StopRequest())
    before = state(made)
    made.media.items = [torch.full_like(item, torch.nan) for item in made.media.items]
    assert made.stepper.step(4, StopRequest()).info.skipped
    after = state(made)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"terms": [{"kind": "mel"}]}, r"terms.0: 'mel' is for audio, not for picture"),
        ({"terms": [{"kind": "pixels"}, {"kind": "pixels"}]}, "terms: 'pixels' occurs twice"),
        ({"terms": [{"kind": "adversarial"}]}, "terms.0: 'adversarial' needs discriminators; add judges"),
        ({"terms": [{"kind": "pixel"}]}, "terms.0: kind 'pixel' is unknown; did you mean 'pixels'"),
        ({"judges": {"nets": [{"kind": "period"}]}}, "judges.nets.0: 'period' is for audio, not for picture"),
        (
            {"balance": {"kind": "adaptive"}},
            "no term 'adversarial'; there are: squared, quantizer",
        ),
        ({"stages": [{"name": "a", "kind": "train", "steps": 1}]}, "either train.steps, or stages"),
    ],
)
def test_configs_that_cannot_be(pictures, changes, message):
    with pytest.raises(ConfigError, match=message):
        check_config(pictures | changes, TokenizerTrainConfig)


def test_stages_that_cannot_be(pictures, tmp_path):
    pictures["train"].pop("steps")

    def stage(**settings):
        return pictures | {"stages": [{"name": "a", "kind": "train", "steps": 1, **settings}]}

    with pytest.raises(ConfigError, match=r"stages.0.terms: there is no term 'x'; there are: squared, quantizer"):
        check_config(stage(terms=["x"]), TokenizerTrainConfig)
    with pytest.raises(ConfigError, match=r"stages.0.freeze: no part is called 'x'; the network has encoder"):
        run(stage(freeze=["x"]), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"stages.0.terms: no active term"):
        run(stage(terms=["quantizer"], latents="continuous"), tmp_path / "b")
