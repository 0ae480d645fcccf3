"""Training the network of compressed codes, and the verb."""

import pytest
import torch

pytest.importorskip("constriction")

from tessera.cli.app import run
from tessera.tokenize.compression.file_format import write_compressed
from tessera.tokenize.compression.integer_network import load_coder
from tessera.tokenize.data.codes_file import CodesItem
from tessera.tokenize.data.shard_reader import Shards


@pytest.fixture
def shards(tmp_path):
    """Codes that repeat: a frame says the next."""
    from safetensors.torch import save_file

    images = torch.arange(8, dtype=torch.uint8).repeat(12, 8, 1) * 30
    save_file({"images": images, "labels": torch.arange(12)}, tmp_path / "pictures.safetensors")
    config = tmp_path / "tokenizer.yaml"
    config.write_text(
        "tokenizer: {kind: picture, name: tiny, height: 8, width: 8, channels: 1, features: 8, blocks: 1,\n"
        "  latent_dim: 8, quantizer: {kind: residual, levels: 2, quantizer: {kind: vq, size: 16}}}\n"
        f"data: {{kind: arrays, path: {tmp_path / 'pictures.safetensors'}}}\n"
        "train: {steps: 3, batch: 4}\n"
    )
    assert run(["tokenizer", "train", str(config), "--out", str(tmp_path / "tokenizer")]) == 0
    (tmp_path / "shards.yaml").write_text(
        f"corpus: {{kind: arrays, path: {tmp_path / 'pictures.safetensors'}}}\n"
        f"tokenizer: {tmp_path / 'tokenizer'}\nout: {tmp_path / 'shards'}\n"
    )
    assert run(["shards", str(tmp_path / "shards.yaml")]) == 0
    return tmp_path / "shards"


def test_a_coder_learns_and_its_bits_are_true(shards, tmp_path, capsys):
    config = tmp_path / "coder.yaml"
    config.write_text(
        f"shards: {shards}\nnetwork: {{context: [[0, -1], [-1, 0]], embedding: 4, width: 16, by_place: true}}\n"
        "train: {steps: 40, batch: 64, lr: 0.03, warmup_steps: 5, ema: 0.5, dropout: 0.1, forget: 0.1}\n"
    )
    assert run(["tokenizer", "coder", str(config), "--out", str(tmp_path / "coder")]) == 0
    told = float(capsys.readouterr().err.strip().splitlines()[-1].split(": ")[1].split()[0])
    net, opened = load_coder(tmp_path / "coder"), Shards(shards)
    assert net.spec == opened.spec and net.frozen
    items = [CodesItem(str(n), opened.item(n).codes) for n in range(len(opened))]
    wrote = write_compressed(tmp_path / "codes.tsc", opened.spec, items, net, chunk_frames=10_000)
    assert told < 6 < 8 == wrote.nominal_bits / wrote.frames
    if wrote.model == "network":
        # printed with three decimals; weights are rounded to 2^-20
        assert wrote.coded_bits / wrote.frames == pytest.approx(told, abs=5e-4 + 1e-3 * told)


def test_what_cannot_be_is_refused(shards, tmp_path, capsys):
    config = tmp_path / "coder.yaml"
    config.write_text(f"shards: {shards}\nnetwork: {{context: [[0, 1]]}}\n")
    assert run(["tokenizer", "coder", str(config), "--out", str(tmp_path / "coder")]) == 2
    assert "does not precede the frame" in capsys.readouterr().err
    config.write_text(f"shards: {tmp_path / 'nothing'}\nnetwork: {{context: [[0, -1]]}}\n")
    assert run(["tokenizer", "coder", str(config), "--out", str(tmp_path / "coder")]) == 2
    assert "no index.json there" in capsys.readouterr().err
