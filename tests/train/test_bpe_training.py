"""A language model that reads BPE: trained, killed and resumed, exported, loaded, started from."""

import json
import sys
from pathlib import Path

import pytest
from run_files import assert_same_run, killed_at
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

import tessera
from tessera.cli.app import run as cli
from tessera.configs.files import write_json
from tessera.configs.schema import ConfigError
from tessera.lm.checkpoints.model_directory import load_model
from tessera.tokenize.text.bpe_text import BPE_FILE
from tessera.train.distributed.process_group import ONE_PROCESS
from tessera.train.export_run import export_run
from tessera.train.lm.trainer import LMTrainer, train_lm

LEARNED = {"kind": "bpe", "vocab_size": 262, "specials": ["<|end|>"]}


def model(text: dict, **condition) -> dict:
    return {
        "lm": {
            **{"width": 16, "layers": 1, "heads": 2, "dropout": 0.1, "variable_length": True},
            "conditions": [{"kind": "text", "dropout": 0.3, "text": text, **condition}],
        }
    }


@pytest.fixture
def given(tmp_path) -> Path:
    """A tokenizer.json of bytes and one added token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_tokens([AddedToken("one", normalized=False)])
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.sample(2)
@pytest.mark.filterwarnings("ignore:the model was not trained on")
@pytest.mark.parametrize("source", ["learned", "file"])
@pytest.mark.parametrize("join", ["prefix", "cross"])
def test_a_killed_and_resumed_run_is_the_run_left_alone(tiny_config, given, tmp_path, source, join):
    text = LEARNED if source == "learned" else {"kind": "bpe", "file": str(given), "vocab_size": 300}
    config = tiny_config(model(text, join=join), steps=4, save_every=2)
    assert train_lm(config, tmp_path / "whole", command="tessera train tiny.yaml")
    with killed_at(LMTrainer, 3):
        train_lm(config, tmp_path / "run", command="tessera train tiny.yaml")
    content = given.read_bytes()
    given.unlink()  # a run has its own copy
    assert train_lm(config, tmp_path / "run", resume=True, command="tessera train tiny.yaml")
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    again = export_run(tmp_path / "whole", tmp_path / "again").folder
    for name in (BPE_FILE, "config.json", "fingerprint.json", "lm.safetensors"):
        assert (again / name).read_bytes() == (tmp_path / "run" / "model" / name).read_bytes()
    loaded = tessera.load(again)
    special = "<|end|>" if source == "learned" else "one"
    assert loaded.text.vocab_size == (loaded.text.num_ids if source == "learned" else 300)
    assert loaded.text.encode(special) == [loaded.text.special_id(special)]
    assert loaded.text.decode(loaded.text.encode(f"two {special} three")) == f"two {special} three"
    if source == "file":
        assert (again / BPE_FILE).read_bytes() == content
    texts = ["one two", f"two {special}"]
    made = loaded.generate(text=texts, seed=1, max_frames=4)
    assert len(made) == 2 and made.codes.equal(loaded.generate(text=texts, seed=1, max_frames=4).codes)


@pytest.mark.parametrize("why", ["package", "file", "kind"])
def test_the_command_line_refuses_in_one_line(tiny_config, given, tmp_path, monkeypatch, capsys, why):
    text, said = {
        "package": (LEARNED, "'bpe' needs the package tokenizers: pip install 'tessera-lm[bpe]'"),
        "file": ({"kind": "bpe", "file": str(given)}, f"{given}: not valid JSON"),
        "kind": ({"kind": "bpe"}, "needs a vocab_size, to be learned from the corpus, or the file of one"),
    }[why]
    write_json(tmp_path / "lm.yaml", tiny_config(steps=1).model_dump(mode="json") | model(text))
    if why == "package":
        monkeypatch.setitem(sys.modules, "tokenizers", None)
    given.write_bytes(given.read_bytes()[:-9])
    assert cli(["train", str(tmp_path / "lm.yaml"), "--out", str(tmp_path / "run")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if said in line]
    assert len(lines) == 1 and not (tmp_path / "run" / "text" / BPE_FILE).exists()


def test_a_changed_byte_of_the_text_tokenizer_is_refused(tiny_config, tmp_path):
    assert train_lm(tiny_config(model(LEARNED), steps=1), tmp_path / "run")
    path = tmp_path / "run" / "model" / BPE_FILE
    path.write_bytes(path.read_bytes().replace(b"<|end|>", b"<|and|>"))
    with pytest.raises(ValueError, match=rf"{BPE_FILE}: damaged or changed"):
        load_model(path.parent)


def test_the_file_of_a_model_to_start_from_may_lie_elsewhere(tiny_config, given, tmp_path):
    def start(text: dict, out: str, **init) -> LMTrainer:
        changes = {"init": {"from": str(tmp_path / "base" / "model"), **init}, **model(text)}
        return LMTrainer(tiny_config(changes, steps=1), tmp_path / out, ONE_PROCESS)

    assert train_lm(tiny_config(model({"kind": "bpe", "file": str(given)}), steps=1), tmp_path / "base")
    given.rename(tmp_path / "moved.json")
    own = tmp_path / "base" / "model" / BPE_FILE
    for path in (tmp_path / "moved.json", own):
        assert start({"kind": "bpe", "file": str(path)}, "a").parts.text.model == own.read_bytes()
    described = json.loads(own.read_text())
    described["added_tokens"][0]["content"] = "two"
    write_json(tmp_path / "other.json", described)
    other = {"kind": "bpe", "file": str(tmp_path / "other.json")}
    with pytest.raises(ConfigError, match=r"init: lm.conditions has the text .*other.json.*init.adapt: \[text\]"):
        start(other, "b")
    made = start(other, "c", adapt=["text"])
    name = "conditions.parts.text.table.weight"
    before, after = load_model(own.parent).lm.state_dict()[name], made.average.model.state_dict()[name]
    assert after[:256].equal(before[:256]) and not after[256].equal(before[256])
