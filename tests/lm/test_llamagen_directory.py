"""LlamaGen's language model and image tokenizer from one directory, with the files as they are downloaded, to a PNG."""

import argparse
import json

import make_llamagen_codes
import pytest
import torch
from PIL import Image
from test_llamagen import CODES, HEADS, SIDE, make_tensors
from vqgan_reference import fill, janus_state

import tessera
from tessera.cli.app import run
from tessera.configs.files import read_safetensors
from tessera.generate.model import Model
from tessera.lm.checkpoints.model_directory import LoadedModel
from tessera.lm.public.llamagen import (
    LLAMAGEN_DEFAULTS,
    is_llamagen,
    load_llamagen,
    read_llamagen_tokenizer,
    save_llamagen_whole,
)
from tessera.tokenize.public.checkpoint import open_checkpoint
from tessera.tokenize.public.folder import PublicFolder
from tessera.tokenize.tokenizer import load_tokenizer, make_tokenizer

transformers = pytest.importorskip("transformers")


def vq_tensors(codes=CODES):
    """A tokenizer that halves four times, as VQ-16."""
    config = transformers.JanusVQVAEConfig(
        embed_dim=4, num_embeddings=codes, latent_channels=8, base_channels=32, num_res_blocks=1,
        channel_multiplier=[1, 1, 1, 1, 1],
    )  # fmt: skip
    return fill(janus_state(config, "llamagen")[1], 0)


def download(folder, size=16 * SIDE):
    torch.save({"model": make_tensors(), "args": argparse.Namespace(gpt_model="GPT-B")}, folder / f"c2i_B_{size:03}.pt")
    torch.save({"model": vq_tensors(), "args": argparse.Namespace(vq_model="VQ-16")}, folder / "vq_ds16_c2i.pt")
    (folder / "config.json").write_text(json.dumps({"model_type": "llamagen", "n_head": HEADS, "num_classes": 5}))


def test_from_the_downloaded_files_to_a_picture(tmp_path):
    download(tmp_path)
    folder = PublicFolder(tmp_path)
    assert is_llamagen(folder)
    tokenizer = read_llamagen_tokenizer(folder)
    assert tokenizer.spec.geometry.height == 16 * SIDE  # from the name of the language model's file
    lm = load_llamagen(tmp_path, tokenizer.spec)
    assert lm.spec == tokenizer.spec == load_tokenizer(tmp_path, image_size=16 * SIDE).spec
    model = Model(lm, tokenizer, None, [str(number) for number in range(5)], LLAMAGEN_DEFAULTS, name="llamagen")
    result = model.generate(label=["3", "4"], seed=1)
    result.save(tmp_path / "out")
    assert Image.open(tmp_path / "out" / "0001.png").size == (16 * SIDE, 16 * SIDE)
    codes = tokenizer.encode(torch.rand(1, 3, 16 * SIDE, 16 * SIDE) * 2 - 1).codes
    assert codes.shape == (1, 1, SIDE * SIDE) and codes.unique().numel() > 1


def test_one_of_the_two_files(tmp_path):
    download(tmp_path)
    (tmp_path / "vq_ds16_c2i.pt").unlink()
    assert read_llamagen_tokenizer(PublicFolder(tmp_path)) is None
    assert load_llamagen(tmp_path).spec.geometry.rows == SIDE
    torch.save(vq_tensors(), tmp_path / "vq.pt")
    (tmp_path / "c2i_B_048.pt").unlink()
    assert not is_llamagen(PublicFolder(tmp_path))


def test_a_tokenizer_of_another_model(tmp_path):
    download(tmp_path)
    torch.save(vq_tensors(CODES + 1), tmp_path / "vq_ds16_c2i.pt")
    tokenizer = read_llamagen_tokenizer(PublicFolder(tmp_path))
    with pytest.raises(ValueError, match=rf"one codebook of {CODES} image codes, the tokenizer .* \[{CODES + 1}\]"):
        load_llamagen(tmp_path, tokenizer.spec)


@pytest.fixture
def captioned(tmp_path):
    """A folder with a t2i model, its tokenizer and its text encoder, by the names that they are downloaded under."""
    from tiny_musicgen import make_tokenizer

    folder = tmp_path / "llamagen"
    folder.mkdir()
    tensors = read_safetensors(make_llamagen_codes.TINY / "model.safetensors")[0]
    torch.save({"model": tensors}, folder / f"t2i_XL_stage1_{16 * make_llamagen_codes.SIDE:03}.pt")
    torch.save({"model": vq_tensors(make_llamagen_codes.CODES)}, folder / "vq_ds16_t2i.pt")
    (folder / "config.json").write_text(json.dumps({"model_type": "llamagen", "n_head": make_llamagen_codes.HEADS}))
    torch.manual_seed(0)
    text = transformers.T5Config(
        vocab_size=30, d_model=make_llamagen_codes.CAPTION_WIDTH, d_kv=4, d_ff=20, num_layers=1, num_heads=2
    )
    transformers.T5EncoderModel(text).save_pretrained(folder / "flan-t5-xl")
    make_tokenizer().save_pretrained(folder / "flan-t5-xl")
    return folder


def test_from_a_caption_to_a_picture_and_back(captioned, tmp_path, capsys):
    """As downloaded, converted, and written back: the same pictures; no tensor has changed."""
    assert run(["load", "--check", str(captioned)]) == 0
    assert "conditioned on embedding" in capsys.readouterr().out
    folders = {"there": captioned, "model": tmp_path / "model", "back": tmp_path / "back"}
    assert run(["convert", str(captioned), str(folders["model"])]) == 0
    assert run(["convert", str(folders["model"]), str(folders["back"]), "--to", "llamagen"]) == 0
    pictures = {}
    for name, folder in folders.items():
        out = tmp_path / f"{name}.png"
        assert (
            run(["generate", str(folder), "--text", "a calm piano", "--seed", "3", "--scale", "1", "-o", str(out)]) == 0
        )
        assert Image.open(out).size == (16 * make_llamagen_codes.SIDE,) * 2
        pictures[name] = out.read_bytes()
    assert len(set(pictures.values())) == 1
    assert {path.name for path in folders["back"].iterdir()} == {"config.json", "model.safetensors", "vq_ds16.pt", "t5"}
    for first, second in (("t2i_XL_stage1_064.pt", "model.safetensors"), ("vq_ds16_t2i.pt", "vq_ds16.pt")):
        there = open_checkpoint(captioned / first)
        back = open_checkpoint(folders["back"] / second)
        there, back = (one.tensors(one.shapes) for one in (there, back))
        back.pop("quantize.codebook_used", None)  # counted in training
        assert there.keys() == back.keys()
        assert all(torch.equal(tensor.float(), back[name]) for name, tensor in there.items())
    model = tessera.load(captioned, device="cpu")
    both = model.generate(text=["a calm piano", "drums"], temperature=0, guidance=3.0)
    alone = model.generate(text="drums", temperature=0, guidance=3.0)
    assert torch.equal(both.codes[1:], alone.codes)


def test_a_text_encoder_of_another_width(captioned, tmp_path):
    text = transformers.T5Config(vocab_size=30, d_model=16, d_kv=4, d_ff=20, num_layers=1, num_heads=2)
    transformers.T5EncoderModel(text).save_pretrained(captioned / "t5")
    with pytest.raises(ValueError, match="t5: its states are 16 wide, the model reads those of 12"):
        tessera.load(captioned)


def test_a_tokenizer_of_another_system_is_left_out(tmp_path):
    download(tmp_path)
    tokenizer = read_llamagen_tokenizer(PublicFolder(tmp_path))
    config = tokenizer.config.model_copy(
        update={"quantizer": tokenizer.config.quantizer.model_copy(update={"normalise": False})}
    )
    other = make_tokenizer(config)
    lm = load_llamagen(tmp_path, other.spec)
    with pytest.warns(UserWarning, match="the image tokenizer is left out: .*LlamaGen"):
        save_llamagen_whole(tmp_path / "out", LoadedModel(lm, other, None, [], LLAMAGEN_DEFAULTS, None))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}
