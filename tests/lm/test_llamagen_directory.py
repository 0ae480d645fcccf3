"""LlamaGen's language model and image tokenizer from one directory, with the files as they are downloaded, to a PNG."""

import argparse
import json

import pytest
import torch
from PIL import Image
from test_llamagen import CODES, HEADS, SIDE, make_tensors
from vqgan_reference import fill, janus_state

from tessera.generate.model import Model
from tessera.lm.public.llamagen import LLAMAGEN_DEFAULTS, is_llamagen, load_llamagen, read_llamagen_tokenizer
from tessera.tokenize.public.folder import PublicFolder
from tessera.tokenize.tokenizer import load_tokenizer

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
