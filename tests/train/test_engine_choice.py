"""engine: {kind: auto}: the rule, what is written down of it, and that a run keeps its engine."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from tessera.configs.schema import ConfigError, read_config
from tessera.train.distributed.process_group import ONE_PROCESS
from tessera.train.engines import auto
from tessera.train.engines.auto import choose_engine, engine_for, saved_engine
from tessera.train.engines.config import AutoEngineConfig, DeepSpeedEngineConfig, TorchEngineConfig
from tessera.train.lm.config import TrainConfig
from tessera.train.lm.trainer import train_lm

SHORT = {"steps": 2}


def test_auto_is_the_default(tiny_config):
    assert tiny_config().engine.kind == "auto"


@pytest.mark.parametrize(
    "device, processes, installed, kind, said",
    [
        ("cpu", 1, True, "torch", "on the CPU DeepSpeed is not faster"),
        ("cpu", 2, True, "torch", "on the CPU DeepSpeed is not faster"),
        ("cuda", 1, True, "torch", "one GPU"),
        ("cuda", 8, True, "deepspeed", "8 GPUs"),
        ("cuda", 8, False, "torch", "not installed"),
        ("cpu", 1, False, "torch", "not installed"),
    ],
)
def test_the_rule(device, processes, installed, kind, said):
    found = engine_for(device, processes, installed)
    assert found.kind == kind and found.because is not None and said in found.because


def test_the_choice_is_in_the_log_and_the_resolved_config(tiny_config, tmp_path, capsys):
    assert train_lm(tiny_config(**SHORT), tmp_path / "run")
    assert "torch engine (auto: " in capsys.readouterr().err
    written = json.loads((tmp_path / "run" / "config.json").read_text())["engine"]
    assert written["kind"] == "torch" and written["because"].startswith("auto: ")


def test_a_run_keeps_its_engine(tiny_config, tmp_path, monkeypatch):
    out = tmp_path / "run"
    assert train_lm(tiny_config(**SHORT), out)
    monkeypatch.setattr(auto, "engine_for", lambda *a: DeepSpeedEngineConfig(because="another rule"))
    assert train_lm(tiny_config(**{**SHORT, "steps": 3}), out, resume=True)
    assert json.loads((out / "config.json").read_text())["engine"]["kind"] == "torch"
    with pytest.raises(ConfigError, match=r"engine.kind: this run was started with 'torch' .* now says 'deepspeed'"):
        pytest.importorskip("deepspeed")
        train_lm(tiny_config({"engine": {"kind": "deepspeed"}}, **SHORT), out, resume=True)


def test_a_run_of_deepspeed_is_not_gone_on_with_without_it(tiny_config, tmp_path, monkeypatch):
    out = tmp_path / "run"
    assert train_lm(tiny_config(**SHORT), out)
    state = out / "steps" / "step-00000002" / "run.json"
    found = json.loads(state.read_text())
    found["config"]["engine"] = DeepSpeedEngineConfig(zero_stage=2).model_dump(mode="json")
    state.write_text(json.dumps(found))
    assert saved_engine(out / "steps") == DeepSpeedEngineConfig(zero_stage=2)
    monkeypatch.setattr(auto, "has_deepspeed", lambda: False)
    with pytest.raises(ImportError, match="was started with DeepSpeed, which is not installed here; pip install"):
        choose_engine(AutoEngineConfig(), out / "steps", ONE_PROCESS)
    shutil.rmtree(out / "steps")
    assert saved_engine(out / "steps") is None


@pytest.mark.slow
def test_nothing_of_deepspeed_is_imported_to_find_out():
    code = (
        "import sys; from tessera.train.engines.auto import engine_for, has_deepspeed; has_deepspeed(); "
        "sys.exit('deepspeed' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_torch_by_hand_where_the_file_says_deepspeed(tiny_config, tmp_path):
    settings = tiny_config().model_dump(mode="json")
    settings["engine"] = {"kind": "deepspeed", "zero_stage": 2}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(settings))
    assert read_config(path, TrainConfig, ["engine.kind=torch"]).engine == TorchEngineConfig()
    with pytest.raises(ConfigError, match="zero_stage: unknown key; it belongs to kind 'deepspeed', not to 'au"):
        read_config(path, TrainConfig, ["engine.kind=auto", "engine.zero_stage=1"])
