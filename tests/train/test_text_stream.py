"""Training of a model of text and audio in one sequence: tasks, batches, the loss, a run, and what it exports."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from conftest import _write_shards
from run_files import assert_same_run, killed_at
from test_launch import losses
from test_launch import tessera as launched
from test_lm_trainer import make_config

from tessera.cli.app import run as tessera
from tessera.configs.schema import ConfigError, check_config
from tessera.generate.loading import load
from tessera.lm.checkpoints.model_directory import load_model, save_model
from tessera.lm.layers.lora import LoRAConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.patterns.text_stream import ExampleShape, TextStream
from tessera.tokenize.data.codes_file import CodesItem, write_codes
from tessera.tokenize.data.shard_reader import Shards
from tessera.tokenize.text.byte_text import ByteTextConfig
from tessera.tokenize.text.registry import make_text
from tessera.tokenize.tokenizer import load_tokenizer, make_tokenizer
from tessera.train.common.tasks import TaskReader, TasksConfig, task_reader
from tessera.train.distributed.process_group import ProcessGroup
from tessera.train.lm.config import TrainConfig
from tessera.train.lm.dataset import CodesDataset
from tessera.train.lm.evaluate import evaluate_loss, evaluate_tasks
from tessera.train.lm.objective import Objective, TermCounter
from tessera.train.lm.trainer import LMTrainer, train_lm

LM = {
    **{"width": 16, "layers": 1, "heads": 2, "dropout": 0.1, "variable_length": True},
    "arrangement": {"kind": "delay", "delays": [0, 0, 1]},
    "conditions": [{"kind": "label", "join": "sum", "dropout": 0.3}],
    "text_stream": {"text": {"kind": "bytes"}, "dropout": 0.3},
}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A folder with tokenizer/, and train/ and test/ (shards) of audio with texts and labels."""
    from tessera.tokenize.audio.networks import AudioTokenizerConfig
    from tessera.tokenize.audio.vocos import AudioStackConfig
    from tessera.tokenize.quantizers.registry import ResidualConfig, VQConfig

    folder = tmp_path_factory.mktemp("spoken")
    stack = AudioStackConfig(width=16, layers=1, kernel=3, chunk=8)
    quantizer = ResidualConfig(levels=2, quantizer=VQConfig(size=8, kmeans_init=False))
    torch.manual_seed(0)
    shape = {"name": "s", "sample_rate": 4000, "hop": 40, "window": 160, "latent_dim": 8}
    tokenizer = make_tokenizer(AudioTokenizerConfig(**shape, encoder=stack, decoder=stack, quantizer=quantizer))
    tokenizer.save(folder / "tokenizer")
    for name, count in (("train", 23), ("test", 7)):
        _write_shards(folder / name, tokenizer, count, seed=1)
    return folder


def config_of(spoken, data=None, lm=None, **settings) -> TrainConfig:
    folders = {"shards": str(spoken / "train"), "test": str(spoken / "test")}
    changes = {"data": folders | (data or {}), "lm": LM | (lm or {}), "generation": {"max_frames": 12}}
    return make_config(spoken, changes, **({"steps": 6, "eval_every": 3} | settings))


@pytest.fixture(scope="module")
def trained(spoken):
    """A finished run."""
    assert train_lm(config_of(spoken, save_every=3), spoken / "run")
    return spoken / "run"


def items_of(spoken, tasks=None):
    """(items, their TextStream, a model of them)."""
    config = config_of(spoken)
    tokenizer, text = load_tokenizer(spoken / "tokenizer"), make_text(ByteTextConfig(), [])
    lm_config = config.lm.filled(3, text.vocab_size)
    torch.manual_seed(0)
    lm = TokenLM(lm_config, tokenizer.spec)
    stream = TextStream(lm_config.text_stream, lm_config.specials, tokenizer.spec.cardinalities)
    shards = Shards(spoken / "train")
    reader = TaskReader(tasks or TasksConfig(), 3)
    return CodesDataset(shards, shards.label_names, text, stream=stream, tasks=reader), stream, lm


def test_the_tasks_of_items():
    reader = TaskReader(TasksConfig(speak=3, write=1), 5)
    found = Counter(reader(draw, item) for draw in range(40) for item in range(100))
    assert 2880 < found["speak"] < 3120 and found["speak"] + found["write"] == 4000
    again = TaskReader(TasksConfig(speak=0.75, write=0.25), 5)
    assert [reader(draw, 4) for draw in range(99)] == [again(draw, 4) for draw in range(99)]
    assert [reader(draw, 4) for draw in range(99)] != [TaskReader(again.config, 6)(draw, 4) for draw in range(99)]
    assert {TaskReader(TasksConfig(write=0))(draw, 0) for draw in range(99)} == {"speak"}
    assert TaskReader(TasksConfig(speak=0)).tasks == ("write",)


def test_a_batch_holds_texts_and_codes(spoken):
    items, stream, lm = items_of(spoken)
    counter = TermCounter(lm)
    for draw in range(6):
        rows = np.array([0, 3, 5, 21])
        batch, shapes = items.batch(rows, draw), items.shapes(rows, draw)
        arranged = lm.arranged(batch.codes, batch.lengths, batch.conditions)
        assert counter(shapes).long().equal(arranged.mask.sum(dim=(0, 2)))
        for i, row in enumerate(rows):
            item = items.shards.item(int(items.numbers[row]))
            length = int(items.lengths[row]) if batch.lengths is None else int(batch.lengths[i])
            assert length == items.lengths[row] == len(item.text.encode()) + item.codes.shape[1]
            text, codes = stream.split(batch.codes[i, :, :length])
            assert bytes(text.tolist()).decode() == item.text and codes.equal(item.codes)
            task = items.tasks(draw, int(row))
            assert shapes[i] == ExampleShape(len(text), codes.shape[1], task)
            assert (batch.codes[i, 0, 0] < stream.num_ids) == (task == "speak")
            assert int(batch.conditions.given[i]) == (len(text) if task == "speak" else codes.shape[1])
    for task in ("speak", "write"):
        batch = items.batch([0, 1, 2], task=task)
        assert bool(((batch.codes[:, 0, 0] < stream.num_ids) == (task == "speak")).all())


@pytest.mark.parametrize("packed", [False, True])
def test_the_split_into_micro_batches_does_not_matter(spoken, packed):
    items, _, lm = items_of(spoken)
    lm.eval()
    objective, rows = Objective(lm, packed=packed), np.arange(12)
    totals = TermCounter(lm)(items.shapes(rows, 4))
    whole = items.batch(rows, 4)
    expected, sums, counts = objective(whole.codes, whole.lengths, whole.conditions, totals)
    assert counts.double().equal(totals)
    for size in (1, 3, 6):
        parts = [items.batch(rows[first : first + size], 4) for first in range(0, 12, size)]
        found = [objective(part.codes, part.lengths, part.conditions, totals) for part in parts]
        torch.testing.assert_close(sum(loss for loss, _, _ in found), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(sum(one for _, one, _ in found), sums, rtol=1e-5, atol=1e-5)


def test_evaluation_reads_every_item_as_each_task(spoken):
    items, _, lm = items_of(spoken)
    lm.eval()
    world = ProcessGroup(0, 1, torch.device("cpu"))
    losses, tasks = evaluate_tasks(lm, items, 5, world)
    with torch.no_grad():
        own = {task: [lm.loss(b.codes, b.lengths, b.conditions) for b in each(items, task)] for task in tasks}
    sums = {task: sum(one.per_codebook * one.count for one in found) for task, found in own.items()}
    counts = {task: sum(one.count for one in found) for task, found in own.items()}
    close = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(losses, sum(sums.values()) / sum(counts.values()), **close)
    assert counts["write"][1:].tolist() == [0, 0] and list(tasks) == ["speak", "write"]
    torch.testing.assert_close(torch.tensor(tasks["write"]), (sums["write"] / counts["write"])[0], **close)
    torch.testing.assert_close(torch.tensor(tasks["speak"]), (sums["speak"] / counts["speak"]).mean(), **close)
    torch.testing.assert_close(evaluate_loss(lm, items, 7, world), losses, **close)
    items.tasks = TaskReader(TasksConfig(speak=0))
    assert evaluate_loss(lm, items, 7, world)[1:].tolist() == [0.0, 0.0]


def each(items, task):
    return [items.batch([row], task=task) for row in range(len(items))]


def test_a_trained_model_speaks_and_writes(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    tested = [line for line in lines if line["split"] == "test"][-1]
    assert {"loss_text", "loss_speak", "loss_write"} <= set(tested) and len(tested["loss_per_codebook"]) == 2
    card = (trained / "model" / "README.md").read_text()
    assert "| text | step |" in card and "By task, on the test shards: speak " in card
    model = load(trained / "model")
    assert "conditioned on text, label" in repr(model)
    found = model.generate("one two", label="b", seed=3, n=3)
    assert found.codes.shape[1] == 2 and [len(media[0]) for media in found.media] == (40 * found.lengths).tolist()
    for i in range(3):
        again = model.generate("one two", label="b", seed=3 + i)
        assert again.codes[0].equal(found[i].codes[0])
    streamed = torch.cat(list(model.stream("one two", label="b", seed=4)), dim=1)
    assert streamed.equal(found[1].media[0])
    assert int(model.generate("one", label="b", num_frames=5).lengths[0]) == 5
    begun = model.generate("one two", label="b", prompt=found.codes[1, :, :2], max_frames=6)
    assert begun.codes[0, :, :2].equal(found.codes[1, :, :2]) and 2 <= int(begun.lengths[0]) <= 6
    recordings = [found.codes[0, :, : int(found.lengths[0])], found.media[1], model.generate("a", label=0).media[0]]
    texts = model.transcribe(recordings, label="b")
    assert len(texts) == 3 and all(isinstance(text, str) for text in texts)
    assert [model.transcribe(one, label="b")[0] for one in recordings] == texts
    assert model.transcribe(recordings, label="b", batch=2, exact=True) == texts
    assert model.transcribe(recordings[::-1], label="b", temperature=1.0, seed=0) != texts[::-1]
    assert all(len(text) <= 3 for text in model.transcribe(recordings, label="b", max_ids=3, end_bias=-9.0))
    model.warmup(text="a", label="b")


def test_long_text_is_spoken_in_chunks(trained):
    model = load(trained / "model")
    text = "one two. three four. five one two three four five."
    found = model.generate(text, label="b", seed=1, text_characters=20, max_frames=40, retries=1)
    streamed = torch.cat(
        list(model.stream(text, label="b", seed=1, text_characters=20, max_frames=40, retries=1)), dim=1
    )
    assert streamed.equal(found.media[0]) and int(found.lengths[0]) <= 40


def test_saved_and_loaded(trained, tmp_path):
    first = load_model(trained / "model")
    save_model(tmp_path / "copy", first.lm, first.tokenizer, first.text, first.labels, first.defaults)
    again = load_model(tmp_path / "copy")
    assert again.config == first.config and again.config.text_stream.vocab_size == 256
    for name, tensor in first.lm.state_dict().items():
        assert again.lm.state_dict()[name].equal(tensor)
    with pytest.raises(ValueError, match="reads text, but no text tokenizer"):
        save_model(tmp_path / "other", first.lm, first.tokenizer, None, first.labels)


def test_the_command_line(trained, tmp_path, capsys):
    model = load(trained / "model")
    codes = [model.generate("one", label="a", seed=seed, num_frames=4 + seed).codes[0] for seed in range(2)]
    files = []
    for i, one in enumerate(codes):
        files.append(str(tmp_path / f"{i}.safetensors"))
        write_codes(files[-1], model.spec, [CodesItem(f"{i}", one)])
    texts = model.transcribe(codes, label="a")
    capsys.readouterr()
    assert tessera(["transcribe", str(trained / "model"), *files, "--label", "a", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [one["text"] for one in printed] == texts and [one["file"] for one in printed] == files
    assert tessera(["transcribe", str(trained / "model"), *files, "--label", "a"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    speak = ["one", "--model", str(trained / "model"), "--voice", "a", "--max-seconds", "0.1"]
    capsys.readouterr()
    assert tessera(["eval", str(trained / "model"), "--data", str(trained.parent / "test"), "--no-speed"]) == 0
    table = capsys.readouterr().out
    assert all(f"  {name:>8}  " in table for name in (0, 1, "text", "mean", "speak", "write"))
    assert tessera(["tts", *speak, "-o", str(tmp_path / "one.wav")]) == 0
    assert (tmp_path / "one.wav").is_file()
    assert tessera(["export", str(trained), "--out", str(tmp_path / "exported")]) == 0
    assert load(tmp_path / "exported").transcribe(codes, label="a") == texts
    for wrong, message in {
        f"transcribe speech {files[0]}": "'speech' writes no text",
        f"transcribe {trained / 'model'} nowhere.wav": "nowhere.wav",
        f"transcribe {trained / 'model'} {files[0]} --label nobody": "has no label 'nobody'",
        f"transcribe {trained / 'model'} {files[0]} --label a --guidance nan": "guidance",
        f"transcribe {trained / 'model'} {files[0]} --max-ids 0": "max-ids",
    }.items():
        capsys.readouterr()
        assert tessera(wrong.split()) == 2
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error


def test_calls_that_do_not_fit(trained, spoken):
    model = load(trained / "model")
    codes = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="needs a text"):
        model.generate(label="a")
    with pytest.raises(ValueError, match="speaks a text, but none was given"):
        model.generate(label="a", unconditional=True)
    with pytest.raises(ValueError, match="window_frames is 4, but a window would begin without the text"):
        model.generate("a", label="a", window_frames=4)
    with pytest.raises(ValueError, match="max_frames was set, but it does not apply to writing text"):
        model.transcribe(codes, label="a", max_frames=3)
    with pytest.raises(ValueError, match="2 labels but 1 recordings"):
        model.transcribe(codes, label=["a", "b"])
    with pytest.raises(ValueError, match="the list of recordings is empty"):
        model.transcribe([])
    with pytest.raises(ValueError, match="codes range from 9 to 9"):
        model.transcribe(codes + 9)
    with pytest.raises(ValueError, match="max_ids must be a whole number, at least 1, found 0"):
        model.transcribe(codes, max_ids=0)
    with pytest.raises(ValueError, match="the prompt has 12 frames, but at most 12 are generated"):
        model.generate("a", label="a", prompt=codes.repeat(1, 3))
    with pytest.raises(ValueError, match="'speech' writes no text"):
        load("speech").transcribe(codes)


def test_a_killed_run_continues_as_if_nothing_had_been(spoken, trained, tmp_path):
    config = config_of(spoken, save_every=3)
    with killed_at(LMTrainer, 4):
        train_lm(config, tmp_path / "run")
    assert train_lm(config, tmp_path / "run", resume=True)
    assert_same_run(trained, tmp_path / "run")


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("data", "lm"),
    [
        ({"packing": {"kind": "best_fit", "steps": 60}}, {}),
        (
            {"tasks": {"speak": 0}},
            {"text_stream": {"text": {"kind": "sentencepiece", "vocab_size": 24}, "loss": "all"}},
        ),
        ({}, {"text_stream": {"text": {"kind": "characters"}, "predict": "end"}}),
        (
            {},
            {
                "text_stream": {"text": {"kind": "characters"}, "predict": "none"},
                "arrangement": {"kind": "parallel"},
                "head": {"kind": "depth", "layers": 1, "heads": 2},
            },
        ),
        ({}, {"text_stream": {"text": {"kind": "phonemes", "language": "en"}}}),
        ({}, {"text_stream": {"text": {"kind": "bpe", "vocab_size": 270}}}),
        (
            {"prompt": {"kind": "same_label"}},
            {"conditions": [{"kind": "codes", "max_frames": 4}], "head": {"kind": "depth", "layers": 1, "heads": 2}},
        ),
    ],
    ids=["packed", "writes only", "speaks only", "end frame", "phonemes", "bpe", "a voice"],
)
def test_runs_with_other_settings(spoken, tmp_path, data, lm):
    if lm.get("text_stream", {}).get("text", {}).get("kind") == "bpe":
        pytest.importorskip("tokenizers")
    assert train_lm(config_of(spoken, data, lm, steps=2), tmp_path / "run")
    model = load(tmp_path / "run" / "model")
    given = {"label": "a"} if model.labels else {"voice": torch.zeros(2, 3, dtype=torch.long)}
    model.generate("one", **given)
    assert model.text is not None
    if model.text.config.kind == "phonemes":
        with pytest.raises(ValueError, match="'phonemes' has no decode"):
            model.transcribe(torch.zeros(2, 4, dtype=torch.long), label="a")
    elif model.lm.text_stream.unpredicted:
        with pytest.raises(ValueError, match="writes no text"):
            model.transcribe(torch.zeros(2, 4, dtype=torch.long))
    elif model.labels:
        model.transcribe(torch.zeros(2, 4, dtype=torch.long), label="a")


def test_starts_from_another_model(spoken, trained, tmp_path):
    """Text and codes are taken by name; a model without a text stream gives its blocks and codes."""
    config = config_of(spoken, steps=1)
    init = {"from": str(trained / "model")}
    assert train_lm(config.model_copy(update={"init": check_init(init)}), tmp_path / "one")
    other = config_of(spoken, None, {"text_stream": {"text": {"kind": "characters"}}}, steps=1)
    with pytest.raises(ConfigError, match=r"lm.text_stream has the text tokenizer .* init.leave: \[input.text\]"):
        train_lm(other.model_copy(update={"init": check_init(init)}), tmp_path / "two")
    init["leave"] = ["input.text", "head.text"]
    assert train_lm(other.model_copy(update={"init": check_init(init)}), tmp_path / "three")


def test_low_rank_changes(spoken, trained, tmp_path):
    """Those of the blocks, with the layer of the text learning as a whole; the adapter with its base is the export."""
    lora = {"rank": 2, "targets": ["attention.qkv", "ffn.down"], "train": ["head.text"]}
    changes = {"init": check_init({"from": str(trained / "model")}), "lora": check_config(lora, LoRAConfig)}
    assert train_lm(config_of(spoken, steps=2).model_copy(update=changes), tmp_path / "run")
    assert tessera(["export", str(tmp_path / "run"), "--adapter", "--out", str(tmp_path / "adapter")]) == 0
    batch = items_of(spoken)[0].batch(range(6))
    merged = load(tmp_path / "run" / "model").lm.loss(batch.codes, batch.lengths, batch.conditions)
    added = load(trained / "model", adapter=tmp_path / "adapter").lm.loss(batch.codes, batch.lengths, batch.conditions)
    before = load(trained / "model").lm.loss(batch.codes, batch.lengths, batch.conditions)
    torch.testing.assert_close(added.per_codebook, merged.per_codebook, rtol=1e-3, atol=0.0)  # of float16 weights
    assert not torch.allclose(before.per_codebook, merged.per_codebook, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["torch", 0, 2, 3])
def test_two_processes_equal_one(spoken, tmp_path, stage):
    """Each process has other tasks, texts and frames."""
    if stage != "torch":
        pytest.importorskip("deepspeed")
    engine = (
        "{kind: torch}" if stage == "torch" else f"{{kind: deepspeed, zero_stage: {stage}, persistence_elements: 0}}"
    )
    config = config_of(spoken, batch=8, micro_batch=2, ema=0.9).model_dump(mode="json", by_alias=True)
    (tmp_path / "lm.yaml").write_text(yaml.safe_dump(config))
    launched("train", tmp_path / "lm.yaml", "--out", tmp_path / "one")
    launched("train", tmp_path / "lm.yaml", "--set", f"engine={engine}", "--out", tmp_path / "two", "--nproc", 2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def check_init(settings):
    from tessera.train.initialization.config import LMInitConfig

    return check_config(settings, LMInitConfig)


BAD = {
    "data.tasks is for an lm with text_stream": ({"tasks": {"speak": 1}}, {"text_stream": None}),
    "speak and write are both 0": ({"tasks": {"speak": 0, "write": 0}}, {}),
    "data.tasks.speak": ({"tasks": {"speak": -1}}, {}),
    "data.captions: an lm with text_stream": ({"captions": {"kind": "alternatives"}}, {}),
    "in training text and frames are apart": (
        {},
        {"text_stream": {"text": {"kind": "bytes"}, "positions": "shared"}},
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_configs_that_do_not_fit(spoken, message):
    with pytest.raises(ConfigError, match=message):
        config_of(spoken, *BAD[message])


def test_a_model_that_only_speaks_is_not_asked_to_write(spoken, tmp_path):
    stream = {"text": {"kind": "bytes"}, "predict": "end"}
    with pytest.raises(ConfigError, match=r"data.tasks.write is 1.0, but lm.text_stream.predict is 'end'"):
        train_lm(config_of(spoken, {"tasks": {"write": 1.0}}, {"text_stream": stream}), tmp_path / "run")
    reader = task_reader(None, config_of(spoken, None, {"text_stream": stream}).lm.text_stream, 0)
    assert reader.tasks == ("speak",)


def test_items_without_a_text_are_named(spoken, tmp_path):
    from tessera.configs.files import read_json, write_json

    _write_shards(tmp_path / "train", load_tokenizer(spoken / "tokenizer"), 5, seed=1)
    index = read_json(tmp_path / "train" / "index.json")
    write_json(tmp_path / "train" / "index.json", index | {"texts": [None, *index["texts"][1:]]})
    with pytest.raises(ValueError, match="1 of 5 items lack a condition input of the model .*item0.*no text"):
        train_lm(config_of(spoken, {"shards": str(tmp_path / "train"), "test": None}), tmp_path / "run")
    config = config_of(spoken, {"shards": str(tmp_path / "train"), "test": None, "missing": "skip"}, steps=1)
    assert train_lm(config.model_copy(update={"train": config.train.model_copy(update={"eval_every": None})}),
                    tmp_path / "run")  # fmt: skip
