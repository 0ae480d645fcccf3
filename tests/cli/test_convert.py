"""`tessera convert` as it is typed: in, out, and one line where it cannot."""

import json

import pytest
import torch
from test_llamagen import CLASSES, CODES, SIDE, make_tensors, write

import tessera
from tessera.cli.app import run
from tessera.configs.files import read_safetensors
from tessera.lm.checkpoints.config_file import read_model_config
from tessera.lm.checkpoints.model_directory import load_lm, load_model
from tessera.lm.models.causal import TokenLM
from tessera.lm.public.llamagen import load_llamagen
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import VQConfig
from tessera.tokenize.tokenizer import make_tokenizer


@pytest.fixture
def checkpoint(tmp_path):
    """A LlamaGen folder."""
    return write(tmp_path / "llamagen", make_tensors())


def refused(capsys, *arguments):
    """The one line of an error, of a command that must exit with 2."""
    assert run(["convert", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def same_tensors(one: TokenLM, other: TokenLM) -> bool:
    tensors = other.state_dict()
    return all(tensor.equal(tensors[name]) for name, tensor in one.state_dict().items())


def test_in_and_back_out(checkpoint, tmp_path, capsys):
    assert run(["convert", str(checkpoint), str(tmp_path / "lm")]) == 0
    said = capsys.readouterr().err
    assert "llamagen, 0.0 M parameters; left out: the image tokenizer" in said
    assert f'load it with: tessera.lm.checkpoints.model_directory.load_lm("{tmp_path / "lm"}")' in said
    lm = load_lm(tmp_path / "lm")
    assert same_tensors(lm, load_llamagen(checkpoint))
    described = read_model_config(tmp_path / "lm")
    assert described.labels == tuple(str(i) for i in range(CLASSES))
    assert described.generation.guidance == 4
    assert "The image tokenizer is not in it" in (tmp_path / "lm" / "README.md").read_text()
    with pytest.raises(FileNotFoundError, match=r"tokenizer/ is missing, so this is only a language model"):
        load_model(tmp_path / "lm")
    assert run(["convert", str(tmp_path / "lm"), str(tmp_path / "back"), "--to", "llamagen"]) == 0
    there, back = (read_safetensors(folder / "model.safetensors")[0] for folder in (checkpoint, tmp_path / "back"))
    assert there.keys() == back.keys()
    assert all(tensor.equal(back[name]) for name, tensor in there.items())


def test_with_a_tokenizer_the_model_is_whole(checkpoint, tmp_path):
    torch.manual_seed(0)
    size = 2 * SIDE
    net = {"height": size, "width": size, "channels": 1, "features": 4, "blocks": 1, "latent_dim": 4}
    config = ImageTokenizerConfig(name="tiny", quantizer=VQConfig(size=CODES), **net)
    make_tokenizer(config).save(tmp_path / "tokenizer")
    arguments = ["--tokenizer", str(tmp_path / "tokenizer"), "--dtype", "bfloat16"]
    assert run(["convert", str(checkpoint), str(tmp_path / "model"), *arguments]) == 0
    model = tessera.load(tmp_path / "model", device="cpu")
    assert model.generate(label=3, top_k=0).media[0].shape == (1, size, size)
    assert read_safetensors(tmp_path / "model" / "lm.safetensors")[0]["head.weight"].dtype == torch.bfloat16


def test_misuse_is_one_line(checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    assert "is a llamagen checkpoint, not a Tessera model" in refused(capsys, checkpoint, out, "--to", "musicgen")
    assert "is not empty; choose another folder" in refused(capsys, checkpoint, checkpoint)
    assert "no such file; a checkpoint is a folder of config.json" in refused(capsys, tmp_path / "none", out)
    run(["convert", str(checkpoint), str(tmp_path / "lm")])
    capsys.readouterr()
    lm = tmp_path / "lm"
    assert "choose the layout to write: --to musicgen or --to llamagen" in refused(capsys, lm, out)
    assert "no layout 'lamagen'; did you mean 'llamagen'?" in refused(capsys, lm, out, "--to", "lamagen")
    assert "MusicGen's layout has codebooks" in refused(capsys, lm, out, "--to", "musicgen")
    assert "cannot contain a Tessera tokenizer" in refused(capsys, lm, out, "--to", "llamagen", "--tokenizer", "digits")
    assert "the tokenizer 'digits-4x4'" in refused(capsys, checkpoint, out, "--tokenizer", "digits")
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert "model_type is 'gpt2'; supported are musicgen, musicgen_decoder, musicgen_melody, llamagen" in refused(
        capsys, checkpoint, out
    )
    assert not out.exists()


def test_help_shows_an_example(capsys):
    assert run(["convert", "--help"]) == 0
    assert "Example: tessera convert musicgen-small out/musicgen" in capsys.readouterr().out


def test_nothing_is_overwritten_and_nothing_goes_into_the_source(checkpoint, tmp_path, capsys):
    full = tmp_path / "full"
    full.mkdir()
    (full / "weights.pth").write_text("precious")
    assert "is not empty; choose another folder" in refused(capsys, checkpoint, full)
    assert [path.name for path in full.iterdir()] == ["weights.pth"]
    assert "lies inside" in refused(capsys, checkpoint, checkpoint / "inside")
    assert not (checkpoint / "inside").exists()
