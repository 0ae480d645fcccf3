"""The published MusicGen models: the tensors that we expect in their files are those of transformers' classes."""

import json
from pathlib import Path

import pytest
import torch

from tessera.lm.checkpoints.parameter_shapes import parameter_shapes
from tessera.lm.conditioning.text_encoder import DEFAULTS, encoder_shapes
from tessera.lm.public.musicgen import melody_sizes, musicgen_config, musicgen_spec, musicgen_tensor_map
from tessera.tokenize.public.building import tokenizer_shapes
from tessera.tokenize.public.encodec import DEFAULTS as CODEC_DEFAULTS
from tessera.tokenize.public.encodec import encodec_config, encodec_tensor_map

transformers = pytest.importorskip("transformers")
PUBLISHED = sorted((Path(__file__).parent / "published").glob("musicgen-*.json"))
MILLION = {1024: 420, 1536: 1840, 2048: 3255}
"""Parameters of the language models with cross-attention, by width."""


@pytest.mark.sample(2)
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_tensors_are_those_of_transformers(path, tmp_path):
    described = json.loads(path.read_text())
    name = "MusicgenMelody" if "melody" in path.stem else "Musicgen"
    kind = getattr(transformers, f"{name}ForConditionalGeneration")
    config = kind.config_class(**{key: value for key, value in described.items() if key != "model_type"})
    with torch.device("meta"):
        theirs = kind(config)
    expected = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    expected.pop("text_encoder.encoder.embed_tokens.weight")  # tied, and not in the files

    decoder, text = described["decoder"], described["text_encoder"]
    melody = melody_sizes(described, tmp_path)
    lm, spec = musicgen_config(decoder, text["d_model"], melody=melody), musicgen_spec(described)
    shapes = parameter_shapes(lm, spec)
    found = dict(musicgen_tensor_map(lm, spec, "decoder.").expected(shapes))
    found |= {f"text_encoder.{name}": shape for name, shape in encoder_shapes(DEFAULTS | text).items()}
    values = {key: described["audio_encoder"].get(key, default) for key, default in CODEC_DEFAULTS.items()}
    codec = encodec_config(values, 4)
    found |= encodec_tensor_map(codec, prefix="audio_encoder.").expected(tokenizer_shapes(codec))
    assert found == expected
    million = sum(torch.Size(shape).numel() for shape in shapes.values()) / 1e6
    cross = 0 if melody is None else 4 * lm.width**2 * lm.layers / 1e6
    assert million + cross == pytest.approx(MILLION[lm.width], rel=0.05)  # more codebooks in stereo models
    assert (spec.geometry.channels, spec.geometry.frame_rate) == (2 if "stereo" in path.stem else 1, 50)
