"""`tessera convert` as it is typed: in, out, and one line where it cannot."""

import json
from pathlib import Path

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
from tessera.tokenize.bundled import BUNDLED
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import VQConfig
from tessera.tokenize.tokenizer import make_tokenizer

native_codecs = Path(__file__).parents[1] / "tokenize" / "public" / "native_codecs"


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
    assert "is a public language model, which this option is not for; convert it without --to" in refused(
        capsys, checkpoint, out, "--to", "musicgen"
    )
    assert "is not empty; choose another folder" in refused(capsys, checkpoint, checkpoint)
    assert "none: no such file or folder; name a public checkpoint" in refused(capsys, tmp_path / "none", out)
    run(["convert", str(checkpoint), str(tmp_path / "lm")])
    capsys.readouterr()
    lm = tmp_path / "lm"
    assert "choose the layout to write: --to musicgen or --to parler or --to csm" in refused(capsys, lm, out)
    assert "no layout 'lamagen'; did you mean 'llamagen'?" in refused(capsys, lm, out, "--to", "lamagen")
    assert "MusicGen's layout has codebooks" in refused(capsys, lm, out, "--to", "musicgen")
    assert "is a Tessera model, which this option is not for" in refused(
        capsys, lm, out, "--to", "llamagen", "--tokenizer", "digits"
    )
    assert "the tokenizer 'digits-4x4'" in refused(capsys, checkpoint, out, "--tokenizer", "digits")
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    said = refused(capsys, checkpoint, out)
    assert "model_type is 'gpt2'; known are the language models musicgen, musicgen_decoder, musicgen_melody, " in said
    assert "the tokenizers encodec, dac, dac-native, snac, " in said and "the text models llama, qwen2, qwen3" in said
    assert not out.exists()


OPTIONS = {
    "--to": "llamagen",
    "--tokenizer": "digits",
    "--codebooks": "1",
    "--image-size": "16",
    "--text-encoder": "t5",
    "--dtype": "float16",
}


@pytest.mark.parametrize(
    ("source", "taken"),
    [
        ("Tessera model", {"--to", "--dtype"}),
        ("Tessera tokenizer", {"--to"}),
        ("public language model", {"--tokenizer", "--text-encoder", "--dtype"}),
        ("public tokenizer", {"--codebooks", "--image-size"}),
    ],
)
def test_an_option_that_does_not_apply_is_refused(source, taken, checkpoint, tmp_path, capsys):
    """Never dropped in silence, whatever the source."""
    places = {"Tessera model": BUNDLED / "digits", "public language model": checkpoint}
    places["Tessera tokenizer"] = BUNDLED / "digits" / "tokenizer"
    places["public tokenizer"] = native_codecs / "snac"
    for option in OPTIONS.keys() - taken:
        said = refused(capsys, places[source], tmp_path / "out", option, OPTIONS[option])
        assert f"{option} {OPTIONS[option]}: " in said
        assert f"is a {source}, which this option is not for; " in said
    assert not (tmp_path / "out").exists()


def test_a_text_encoder_of_a_model_without_text_is_refused(checkpoint, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=20)
    transformers.T5EncoderModel(config).save_pretrained(tmp_path / "t5")
    capsys.readouterr()
    said = refused(capsys, checkpoint, tmp_path / "out", "--text-encoder", tmp_path / "t5")
    assert "a text encoder was given, but this llamagen model reads no text; leave it out" in said


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
