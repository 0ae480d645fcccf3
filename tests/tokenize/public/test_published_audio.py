"""The tensors that we expect of a published codec are those of the library that made it: names and shapes."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from tessera.tokenize.public import encodec, encodec_native, mimi, moshi
from tessera.tokenize.public.building import tokenizer_shapes, weight_g
from tessera.tokenize.public.folder import typed_values
from tessera.tokenize.public.seanet_names import NATIVE

transformers = pytest.importorskip("transformers")

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("native_names", HERE / "native_names.py")
names = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(names)


def published(name):
    return json.loads((HERE / f"published/{name}.json").read_text())


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def on_meta(kind, config):
    with torch.device("meta"):
        return kind(config)


@pytest.mark.parametrize("name", ["encodec_24khz", "encodec_32khz", "encodec_48khz"])
def test_encodec(name):
    facts = published(name)
    values = typed_values(facts["config"], encodec.DEFAULTS, name)
    config = encodec.encodec_config(values, facts["codebooks"])
    assert config.hop == facts["samples_per_frame"]
    theirs = on_meta(transformers.EncodecModel, transformers.EncodecConfig(**facts["config"]))
    ours = tokenizer_shapes(config)
    assert encodec.encodec_tensor_map(config).expected(ours) == shapes_of(theirs)
    assert theirs.config.num_quantizers == facts["codebooks"]
    package = encodec.encodec_tensor_map(config, weight_g, names=NATIVE, book=encodec_native.BOOK).expected(ours)
    assert package == names.native_names(shapes_of(theirs), theirs)
    if name != "encodec_32khz":  # which the package does not have
        assert encodec.encodec_config(encodec_native._shown(package, Path(name)), facts["codebooks"]) == config


@pytest.mark.parametrize("name", ["audiocraft_32khz", "audiocraft_16khz"])
def test_audiocraft(name):
    facts = published(name)
    config = encodec.encodec_config(encodec_native._settings(facts["config"], name), facts["codebooks"])
    assert config.hop == facts["samples_per_frame"] and config.encoder.padding == "zeros"
    values = encodec.describe_encodec(config)
    theirs = on_meta(transformers.EncodecModel, transformers.EncodecConfig(**values))
    ours = encodec_native._map(config).expected(tokenizer_shapes(config))
    assert ours == names.native_names(shapes_of(theirs), theirs)


def mimi_of(facts, codebooks):
    values = typed_values(facts["config"], mimi.DEFAULTS, "mimi")
    return mimi.mimi_config(values, [1, codebooks - 1], "mimi", "padded")


def test_mimi():
    facts = published("mimi")
    theirs = on_meta(transformers.MimiModel, transformers.MimiConfig(**facts["config"]))
    renamed = {}
    for name, shape in shapes_of(theirs).items():
        for side in ("encoder", "decoder"):
            for part in ("downsample", "upsample", f"{side}_transformer"):
                name = name.replace(f"{side}.{part}.", f"{part}.")
            name = name.replace(f"{side}.{side}_seanet.", f"{side}.")
        renamed[name] = shape
    for codebooks in (32, 8, 1):
        config = mimi_of(facts, codebooks)
        assert config.hop == facts["samples_per_frame"]
        tensor_map = mimi.mimi_tensor_map(config, mimi.HUB_NAMES, [1, 31])
        assert tensor_map.expected(tokenizer_shapes(config)) == renamed


def test_moshi():
    loaders = pytest.importorskip("moshi.models.loaders")
    theirs = shapes_of(loaders.get_mimi(None, device="meta"))
    config = mimi.mimi_config(moshi._settings(moshi.PUBLISHED, 1, "moshi"), [1, 31], "moshi", "zeros")
    assert config.encoder.model_copy(update={"last_frame": "padded"}) == mimi_of(published("mimi"), 32).encoder
    found = mimi.mimi_tensor_map(config, moshi.moshi_names(numbered=True)).expected(tokenizer_shapes(config))
    assert found == theirs
