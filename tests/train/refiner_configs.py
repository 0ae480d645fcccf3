"""Configs of a model of coarse labels and of its refiner, on the tiny data."""

from test_lm_trainer import make_config

from tessera.train.lm.config import TrainConfig

LABEL = {"kind": "label", "dropout": 0.3}
SHAPE = {"width": 16, "layers": 1, "heads": 2}


def make(data, lm: dict, changes: dict | None = None, **train) -> TrainConfig:
    return make_config(data[0], {"clusters": str(data[1] / "clusters"), "lm": lm, **(changes or {})}, **train)


def coarse_config(data) -> TrainConfig:
    lm = {**SHAPE, "variable_length": True, "arrangement": {"kind": "delay"}, "conditions": [LABEL]}
    return make(data, lm, steps=4, eval_every=2)


def refiner_config(data, coarse, conditions=(LABEL,), **train) -> TrainConfig:
    lm = {**SHAPE, "kind": "masked", "input": {"kind": "codes"}, "conditions": list(conditions)}
    export = {} if coarse is None else {"coarse_model": str(coarse / "model")}
    return make(data, lm, {"export": export, "name": "fine"}, **train)
