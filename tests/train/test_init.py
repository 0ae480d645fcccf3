"""Starting a language model from another one: what is taken is exact, what is frozen stays, and a resumed run equals
the run left alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from run_files import assert_same_run, killed_at
from safetensors.torch import load_file

from tessera.configs.files import write_json
from tessera.configs.schema import ConfigError, check_config
from tessera.lm.checkpoints.model_directory import load_model, save_model
from tessera.tokenize.data.shard_file import write_shard
from tessera.tokenize.data.shard_index import Index
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.tokenizer import load_tokenizer, make_tokenizer
from tessera.train.distributed.process_group import ONE_PROCESS
from tessera.train.export_run import export_run
from tessera.train.lm.config import TrainConfig
from tessera.train.lm.trainer import LMTrainer, train_lm

TEXT = {"kind": "sentencepiece", "vocab_size": 24}


def data_of(tiny_data, changes: dict | None = None, **train) -> dict:
    """The data of a config file, with keys of `changes` such as "lm.width" set in it."""
    data = {
        "name": "tiny",
        "seed": 3,
        "device": "cpu",
        "data": {"shards": str(tiny_data / "train"), "test": str(tiny_data / "test"), "pool_batches": 2},
        "tokenizer": str(tiny_data / "tokenizer"),
        "lm": {
            **{"width": 16, "layers": 2, "heads": 2, "dropout": 0.1, "variable_length": True},
            "arrangement": {"kind": "delay"},
            "conditions": [{"kind": "label", "dropout": 0.3}, {"kind": "text", "dropout": 0.3, "text": TEXT}],
        },
        "train": {"steps": 6, "batch": 4, "lr": 0.01, "warmup_steps": 2, "log_every": 1, "ema": 0.9, **train},
        "engine": {"kind": "torch"},
        "export": {"dtype": "float32"},
    }
    for path, value in (changes or {}).items():
        *above, last = path.split(".")
        place = data
        for key in above:
            place = place[key]
        place[last] = value
    return data


def config_of(tiny_data, changes: dict | None = None, **train) -> TrainConfig:
    return check_config(data_of(tiny_data, changes, **train), TrainConfig)


@pytest.fixture(scope="module")
def base(tiny_data, tmp_path_factory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("base") / "run"
    assert train_lm(config_of(tiny_data, {"seed": 11}, steps=3), out)
    return out


def trainer(config: TrainConfig, out: Path) -> LMTrainer:
    return LMTrainer(config, out, ONE_PROCESS)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "lm.safetensors")


def same(one, other, names=None) -> bool:
    return all(torch.equal(one[name], other[name]) for name in names or one)


@pytest.mark.parametrize("source", ["run", "model", "moved"])
def test_a_run_starts_with_the_weights_of_the_other(tiny_data, base, tmp_path, source, capsys):
    folder = {"run": base, "model": base / "model", "moved": tmp_path / "moved"}[source]
    if source == "moved":
        shutil.copytree(base / "model", folder)
    made = trainer(config_of(tiny_data, {"init": {"from": str(folder)}}), tmp_path / "a")
    assert not capsys.readouterr().err, "not before the config was found to be right"
    made.check()
    given = load_model(base / "model")
    for lm in (made.engine.objective.lm, made.average.model):
        assert same(lm.state_dict(), given.lm.state_dict())
    assert made.parts.labels == given.labels and made.parts.text.files() == given.text.files()
    assert (
        capsys.readouterr().err
        == f"note: {len(given.lm.state_dict())} of {len(given.lm.state_dict())} tensors come from {folder}\n"
    )
    batch = made.parts.items.batch([0, 1, 2])
    with torch.no_grad():
        expected = given.lm.loss(batch.codes, batch.lengths, batch.conditions)
        found = made.average.model.loss(batch.codes, batch.lengths, batch.conditions)
    assert torch.equal(found.per_codebook, expected.per_codebook)


def test_a_resumed_run_does_not_need_the_other(tiny_data, base, tmp_path):
    shutil.copytree(base / "model", tmp_path / "given")
    init = {"from": str(tmp_path / "given"), "freeze": ["transformer.blocks.0", "conditions"]}
    config = config_of(tiny_data, {"init": init}, save_every=1, eval_every=2)
    assert train_lm(config, tmp_path / "whole")
    with killed_at(LMTrainer, 4):
        train_lm(config, tmp_path / "cut")
    shutil.rmtree(tmp_path / "given")
    assert train_lm(config, tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    made = export_run(tmp_path / "cut", tmp_path / "again")
    assert same(load_file(made.folder / "lm.safetensors"), weights_of(tmp_path / "whole"))


@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_frozen_stays(tiny_data, base, tmp_path, engine, dtype):
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    freeze = ["input", "transformer.blocks.*.ffn", "conditions.parts.text.table"]
    init = {"from": str(base), "freeze": freeze}
    config = config_of(tiny_data, {"init": init, "engine": {"kind": engine}}, steps=3, save_every=2, dtype=dtype)
    assert train_lm(config, tmp_path / "a")
    given, made = weights_of(base), weights_of(tmp_path / "a")
    frozen = {name for name in given if name.startswith("input.") or ".ffn." in name or "text.table" in name}
    assert len(frozen) == 6
    for name in given:
        assert torch.equal(given[name], made[name]) == (name in frozen), name
    saved = load_file(tmp_path / "a" / "steps" / "step-00000002" / "weights.safetensors")
    assert saved.keys() == given.keys() and same(given, saved, frozen)
    moments = load_file(tmp_path / "a" / "steps" / "step-00000002" / "optimizer.safetensors")
    assert {name.rsplit(".", 1)[0] for name in moments} == given.keys() - frozen


@pytest.mark.sample(1)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed_resumes_what_torch_froze(tiny_data, base, tmp_path, stage):
    """Frozen weights are in the checkpoint, whatever the engine."""
    pytest.importorskip("deepspeed")
    init = {"from": str(base), "freeze": ["transformer.blocks.0"]}
    first = config_of(tiny_data, {"init": init, "engine": {"kind": "deepspeed", "zero_stage": stage}}, save_every=1)
    with killed_at(LMTrainer, 2):
        train_lm(first, tmp_path / "a")
    assert train_lm(first, tmp_path / "a", resume=True)
    given, made = weights_of(base), weights_of(tmp_path / "a")
    assert {name for name in given if torch.equal(given[name], made[name])} == {
        name for name in given if name.startswith("transformer.blocks.0.")
    }


def test_modules_and_leave_choose_what_is_taken(tiny_data, base, tmp_path, capsys):
    given = weights_of(base)
    init = {"from": str(base), "modules": ["transformer", "conditions"], "leave": ["transformer.blocks.1"]}
    made = trainer(config_of(tiny_data, {"init": init}), tmp_path / "a")
    made.check()
    own = made.average.model.state_dict()
    taken = {name for name in own if torch.equal(own[name], given[name])}
    norms = {name for name in own if own[name].dim() == 1}  # ones at the start, too
    wanted = {name for name in own if name.split(".")[0] in ("transformer", "conditions") and ".1." not in name}
    assert taken - norms == wanted - norms
    assert (
        "the rest, in head, input, transformer, starts at random; not used of it: head, input"
        in capsys.readouterr().err
    )


def test_a_new_text_table_has_the_text_tokenizer_of_the_data(tiny_data, base, tmp_path):
    changes = {"init": {"from": str(base), "leave": ["conditions.parts.text.table"]}}
    changes["lm.conditions"] = [
        {"kind": "label"},
        {"kind": "text", "text": {"kind": "characters", "normalise": "words"}},
    ]
    made = trainer(config_of(tiny_data, changes), tmp_path / "a")
    given, own = weights_of(base), made.average.model.state_dict()
    assert made.parts.text.config.kind == "characters"
    assert own["conditions.parts.text.table.weight"].shape[0] == made.parts.text.vocab_size
    assert same(own, given, own.keys() - {"conditions.parts.text.table.weight"})


def test_adapted_text_keeps_the_pieces_that_both_have(tiny_data, base, tmp_path):
    changes = {"init": {"from": str(base), "adapt": ["text"]}}
    changes["lm.conditions"] = [
        {"kind": "label"},
        {"kind": "text", "text": {"kind": "sentencepiece", "vocab_size": 28, "model": "bpe"}},
    ]
    made = trainer(config_of(tiny_data, changes), tmp_path / "a")
    old, new = load_model(base / "model").text, made.parts.text
    given, own = (
        tensors["conditions.parts.text.table.weight"] for tensors in (weights_of(base), made.average.model.state_dict())
    )
    before, after = old.names_of_ids(), new.names_of_ids()
    assert set(after) - set(before)
    for row, piece in enumerate(after):
        assert (piece in before) == any(torch.equal(own[row], other) for other in given)
        if piece in before:
            assert torch.equal(own[row], given[before.index(piece)])


def with_labels(folder: Path, target: Path, names: list[str]) -> Path:
    """The model in `folder` with other names of its labels."""
    loaded = load_model(folder)
    save_model(target, loaded.lm, loaded.tokenizer, loaded.text, names, loaded.defaults)
    return target


def test_labels_are_kept_by_name_and_further_ones_are_new(tiny_data, base, tmp_path):
    """The data has a, b, c; the other model b, x and a."""
    given = with_labels(base / "model", tmp_path / "given", ["b", "x", "a"])
    with pytest.raises(
        ConfigError, match=r"the data has the label 'c', .* has b, x, a; keep those .* init.adapt: \[labels\]"
    ):
        trainer(config_of(tiny_data, {"init": {"from": str(given)}}), tmp_path / "a")
    config = config_of(tiny_data, {"init": {"from": str(given), "adapt": ["labels"]}}, steps=2, save_every=1)
    made = trainer(config, tmp_path / "a")
    assert made.parts.labels == ["b", "x", "a", "c"]
    old, new = (
        load_model(given).lm.conditions.parts["label"].table.weight,
        made.average.model.conditions.parts["label"].table.weight,
    )
    assert torch.equal(new[:3], old[:3]) and torch.equal(new[4], old[3])
    items = made.parts.items
    names = [items.shards.label_names[items.shards.item(int(items.numbers[row])).label] for row in range(6)]
    assert [made.parts.labels[label] for label in items.batch(range(6)).conditions.label.tolist()] == names
    with killed_at(LMTrainer, 1):
        train_lm(config, tmp_path / "b")
    shutil.rmtree(given)
    assert train_lm(config, tmp_path / "b", resume=True)
    assert load_model(tmp_path / "b" / "model").labels == ["b", "x", "a", "c"]


def test_data_with_some_of_the_labels_keeps_them_all(tiny_data, base, tmp_path):
    loaded = load_model(base / "model")
    more = loaded.lm.config.filled(None)
    given = with_labels(base / "model", tmp_path / "given", ["c", "b", "a"])
    made = trainer(config_of(tiny_data, {"init": {"from": str(given)}}), tmp_path / "a")
    assert made.parts.labels == ["c", "b", "a"] and more.conditions[0].classes == 3
    assert same(made.average.model.state_dict(), weights_of(base))
    left = {"from": str(given), "leave": ["conditions.parts.label"]}
    assert trainer(config_of(tiny_data, {"init": left}), tmp_path / "b").parts.labels == ["a", "b", "c"]


WRONG = [
    ({"init.from": "nowhere"}, "init.from: no model 'nowhere': no such directory, and no bundled model"),
    ({"init.from": "SHARDS"}, "init.from: .*: this is a folder of shards, a model is needed here"),
    ({"init.from": "TOKENIZER"}, "init.from: .*: this is a tokenizer, a model is needed here"),
    ({"init.modules": ["transformr"]}, "init.modules: no module is called 'transformr'; there are .*transformer"),
    ({"init.leave": ["heads"]}, "init.leave: no module is called 'heads'"),
    ({"init.freeze": ["transformer.block"]}, "init.freeze: no module is called 'transformer.block'"),
    ({"init.freeze": ["*"]}, "init.freeze: all weights are frozen; freeze fewer"),
    ({"init.adapt": ["label"]}, "init.adapt"),
    (
        {"lm.width": 24, "lm.heads": 2},
        r"init: tensor '.*' is \[.*24.*\], in .* it is \[.*16.*\]; start it at random with",
    ),
    ({"lm.heads": 4}, "lm.heads is 4, .* has 2, so its weights mean something else"),
    (
        {"lm.kv_heads": 1},
        r"init: tensor 'transformer.blocks.0.attention.qkv.weight' is \[32, 16\], in .* it is \[48, 16\]",
    ),
    ({"lora": {"targets": ["q_proj"]}}, "lora.targets: no linear layer is called 'q_proj'"),
    ({"lora": {"rank": 0}}, "lora.rank"),
    ({"lora": {"train": ["heads"]}}, "lora.train: no module is called 'heads'"),
    ({"lora": {}, "init.freeze": ["input"]}, "init.freeze: with lora nothing learns but"),
    (
        {"lora": {}, "init.leave": ["head"]},
        r"lora.train: 'head.weight' does not come from .* let it learn with lora.train: \[head\]",
    ),
    ({"init": None, "lora": {}}, "lora: it changes the weights of another model; name that as init.from"),
    ({"data.embedding": "none"}, "data.embedding is for an lm with the condition embedding"),
    (
        {"lm.conditions": [{"kind": "label"}, {"kind": "text", "text": {"kind": "characters"}}]},
        r"init: lm.conditions has the text tokenizer .* with init.leave: \[conditions.parts.text.table\]",
    ),
]


@pytest.mark.parametrize(("changes", "said"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_start_says_so(tiny_data, base, tmp_path, changes, said):
    places = {"SHARDS": str(tiny_data / "train"), "TOKENIZER": str(tiny_data / "tokenizer")}
    given = {name: places.get(value, value) if isinstance(value, str) else value for name, value in changes.items()}
    with pytest.raises(ConfigError, match=said) as error:
        trainer(config_of(tiny_data, {"init": {"from": str(base)}} | given), tmp_path / "a")
    assert "\n" not in str(error.value)


def test_codes_of_another_tokenizer_are_refused(tiny_data, base, tmp_path):
    """Unless only the decoder is another, or the config says that the codes are the same."""
    loaded = load_model(base / "model")
    other = load_tokenizer(tiny_data / "tokenizer")
    with torch.no_grad():
        for name, parameter in other.net.named_parameters():
            if name.startswith("encoder."):
                parameter.add_(0.1)
    other = type(other)(other.config, other.net)
    loaded.lm.spec = other.spec
    save_model(tmp_path / "given", loaded.lm, other, loaded.text, loaded.labels)
    init = {"from": str(tmp_path / "given")}
    with pytest.raises(ConfigError, match=r"has the codes of tokenizer 'tiny' .* init.leave: \[input, head\], or say"):
        trainer(config_of(tiny_data, {"init": init}), tmp_path / "a")
    trainer(config_of(tiny_data, {"init": init | {"leave": ["input", "head"]}}), tmp_path / "a")
    trainer(config_of(tiny_data, {"init": init | {"adapt": ["codebooks"]}}), tmp_path / "a")


def test_keys_of_lm_that_are_left_out_are_those_of_the_other(tiny_data, base):
    from tessera.train.initialization.inherit_lm import inherit_lm

    data = data_of(tiny_data, {"init": {"from": str(base)}})
    given = data.pop("lm")
    found = check_config(inherit_lm(data), TrainConfig)
    wanted = check_config(data | {"lm": given}, TrainConfig)
    resolved = {"lm": wanted.lm.model_copy(update={"arrangement": found.lm.arrangement})}
    assert found == wanted.model_copy(update=resolved)
    assert check_config(inherit_lm(data | {"lm": {"dropout": 0.4}}), TrainConfig).lm.dropout == 0.4
    assert inherit_lm(data | {"lm": {"kind": "masked"}})["lm"] == {"kind": "masked"}
    assert inherit_lm({"lm": given}) == {"lm": given} and inherit_lm(3) == 3


def test_the_command_line(tiny_data, base, tmp_path, capsys):
    """A config without lm; a wrong one is one line and exit code 2."""
    from tessera.cli.app import run

    data = data_of(tiny_data, {"init": {"from": str(base)}}, steps=2)
    del data["lm"]
    (tmp_path / "c.yaml").write_text(json.dumps(data))
    assert run(["train", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "a")]) == 0
    assert "tensors come from" in capsys.readouterr().err
    assert run(["train", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "b"), "--set", "init.from=nowhere"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("tessera: init.from: no model 'nowhere'") and said.count("\n") == 1
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"init": "speech"}, "init: Input should be a mapping"),
        ({"init": ["speech"]}, "init: Input should be a mapping"),
        ({"init": {}}, "init.from: Field required"),
        ({"init": {"from": None}}, "init.from: Input should be a valid string (found null)"),
        ({"init": {"from": ["speech"]}}, "init.from: Input should be a valid string"),
        ({"init": {"from": ""}}, "init.from: is empty, which names nothing; give a path or a name"),
        ({"init": {"form": "speech"}}, "init.form: unknown key; did you mean 'from'?"),
        ({"init": {"from": "speech", "freeze": "head"}}, "init.freeze: Input should be a list"),
        ({"init": {"from": "speech"}, "lora": {"rank": 0}}, "lora.rank: Input should be greater than or equal to 1"),
        ({"lora": {}}, "lora: it changes the weights of another model; name that as init.from, or leave lora out"),
        ({"init": {"from": "speech"}, "lora": {"targets": []}}, "lora.targets: an empty list names no layer; list "),
        ({"init": {"from": "speech"}, "lora": {"targets": [""]}}, "lora.targets: an empty name names no layer; list "),
        ({"init": {"from": "speech"}, "lora": {"targets": ["."]}}, "lora.targets: an empty name names no layer; list "),
        ({"data.shards": "", "lm.width": 16}, "data.shards: is empty, which names nothing"),
        ({"tokenizer": "", "lm.width": 16}, "tokenizer: is empty, which names nothing"),
    ],
)
def test_what_is_wrong_is_blamed(tiny_data, tmp_path, capsys, changes, said):
    """The key that is wrong, also where `lm` is left to the other model."""
    from tessera.cli.app import run

    data = data_of(tiny_data, changes)
    for lm in [data["lm"]] if "lm.width" in changes else [data["lm"], None, {}]:
        (tmp_path / "c.yaml").write_text(json.dumps(data | {"lm": lm}))
        assert run(["train", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "a")]) == 2
        found = capsys.readouterr().err
        assert found.startswith(f"tessera: {tmp_path / 'c.yaml'}: {said}") and found.count("\n") == 1, found
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"init.freeze": ["nowhere"]},
        {"init.freeze": ["*"]},
        {"lora": {"targets": ["nowhere"]}},
        {"lora": {"train": ["nowhere"]}},
        {"train.patches": [{"patch": 2, "steps": 1}]},
        {"train.samples": 3, "train.sample_every": 1, "generation": {"stop_below": 0.5}},
    ],
)
def test_nothing_is_said_of_the_start_before_an_error(tiny_data, base, tmp_path, capsys, changes):
    from tessera.cli.app import run

    data = data_of(tiny_data, {"init": {"from": str(base)}} | changes)
    (tmp_path / "c.yaml").write_text(json.dumps(data))
    assert run(["train", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "a")]) == 2
    found = capsys.readouterr().err
    assert "tensors come from" not in found and found.count("\n") == 1, found


def test_more_codebooks_keep_the_old_ones(tiny_data, base, tmp_path):
    """The codes of a residual tokenizer with a third level."""
    quantizer = {"kind": "residual", "levels": 3, "quantizer": {"kind": "vq", "size": 4, "kmeans_init": False}}
    described = {"kind": "picture", "name": "deeper", "height": 4, "width": 4, "channels": 1, "features": 8}
    described |= {"blocks": 1, "latent_dim": 4, "quantizer": quantizer}
    tokenizer = make_tokenizer(check_config(described, ImageTokenizerConfig))
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "train").mkdir()
    file = write_shard(tmp_path / "train" / "0.safetensors", tokenizer.spec, [torch.ones(3, 4, dtype=torch.long)] * 5)
    index = Index(
        spec=tokenizer.spec, build="2" * 64, label_names=["a", "b", "c"], files=[file], skipped=[],
        ids=list("01234"), lengths=[4] * 5, labels=[0] * 5, texts=["one"] * 5,
    )  # fmt: skip
    write_json(tmp_path / "train" / "index.json", index.model_dump(mode="json"))
    changes = {
        "data": {"shards": str(tmp_path / "train"), "pool_batches": 1},
        "tokenizer": str(tmp_path / "tokenizer"),
        "init": {"from": str(base)},
    }
    with pytest.raises(ConfigError, match=r"is \[\d+, 16\], in .* it is .* or take the rows that both have with"):
        trainer(config_of(tiny_data, changes), tmp_path / "a")
    changes["init"]["adapt"] = ["codebooks"]
    made = trainer(config_of(tiny_data, changes, steps=1), tmp_path / "a")
    own, given = made.average.model.state_dict(), weights_of(base)
    different = {name for name in own if own[name].shape != given[name].shape}
    assert different == {"input.table.weight", "head.weight"}
    assert same(own, given, own.keys() - different)
    rows = given["input.table.weight"].shape[0]  # codes and special ids, one codebook after another
    assert torch.equal(own["input.table.weight"][:rows], given["input.table.weight"])
    assert own["input.table.weight"].shape[0] == rows * 3 // 2
    V = given["head.weight"].shape[0] // 2  # 4 codes, and the end of the first codebook
    assert torch.equal(own["head.weight"][:V], given["head.weight"][:V])
    assert torch.equal(own["head.weight"][V : V + 4], given["head.weight"][V : V + 4])
    assert train_lm(config_of(tiny_data, changes, steps=1), tmp_path / "b")
