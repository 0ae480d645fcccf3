"""Tokenizers that cannot be: each ends `tessera tokenizer train` at once, with one line and exit code 2.

The corpus is not there either: a bad tree is said before any media are read.
"""

from pathlib import Path

import pytest

from tessera.cli.app import run

ROOT = Path(__file__).resolve().parents[2]
BOOKS = ROOT / "bundled" / "digits" / "tokenizer" / "tokenizer.safetensors"  # sums of codes [64, 24]
V8 = "{kind: vq, size: 8}"
FILE = "{kind: vq, size: %d, update: gradient, codebook: {kind: file, width: 24, file: {path: %s, tensor: %s}}}"
SUM = "quantizer.levels.0.codebook.sum"
TREES = {
    "groups": (
        f"{{kind: residual, levels: 2, quantizer: {{kind: group, groups: 5, quantizer: {V8}}}}}",
        "quantizer.quantizer.groups: 5 groups do not divide 24 channels",
    ),
    "source": (
        f"{{kind: branches, branches: {{a: {{source: [2, 99], quantizer: {V8}}}}}}}",
        "quantizer.branches.a.source: channels 2 to 99 are beyond the 24",
    ),
    "rotation": (
        f"{{kind: chain, stages: [{V8}, {{kind: rotation, quantizer: {V8}}}]}}",
        "quantizer.stages.1: rotation applies to the value of the whole tree",
    ),
    "choices": (
        "{kind: gaussian, quantizer: {kind: residual, levels: 2, level_dropout: 1, level_choices: [3], "
        f"quantizer: {V8}}}}}",
        "quantizer.quantizer.level_choices: 3 is above the 2 levels",
    ),
    "kind": ("{kind: rsidual, levels: 2}", "quantizer: kind 'rsidual' is unknown; did you mean 'residual'?"),
    "key": ("{kind: vq, size: 8, decy: 0.9}", "quantizer.vq.decy: unknown key; did you mean 'decay'?"),
    "value": ("{kind: vq, size: 0}", "quantizer.vq.size: Input should be greater than 0 (found 0)"),
    "scales": (
        f"{{kind: scales, sizes: [[1, 1], [2, 2]], quantizer: {V8}}}",
        "quantizer.sizes: the last scale is 2 x 2, but the network makes a map of 4 x 4",
    ),
    "scales-inside": (
        f"{{kind: skip, share: 0.5, quantizer: {{kind: scales, sizes: [[1, 1], [4, 4]], quantizer: {V8}}}}}",
        "quantizer: scales cannot be inside another quantizer",
    ),
    "no-file": (
        FILE % (8, "nowhere.safetensors", SUM),
        "quantizer.codebook.file.path: nowhere.safetensors: no such file",
    ),
    "no-tensor": (FILE % (64, BOOKS, "codes"), "quantizer.codebook.file.tensor: "),
    "wrong-size": (FILE % (65, BOOKS, SUM), "is [64, 24], expected [65, 24]"),
}


@pytest.mark.sample(2)
@pytest.mark.parametrize(("tree", "message"), TREES.values(), ids=TREES)
def test_a_tree_that_cannot_be_has_one_line(tree, message, tmp_path, capsys):
    sets = ["data.path=nowhere", f"tokenizer.quantizer={tree}"]
    check_refused("digits", sets, message, tmp_path, capsys)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("config", "sets", "message"),
    [
        ("digits", ["tokenizer.encoder={kind: vit, patch: 3}"], "8 x 8 cannot be split into patches of 3"),
        (
            "digits",
            ["tokenizer.encoder={kind: transposed, tokens: 7}"],
            "gives 1 x 7 codes, the decoder 'convolutional'",
        ),
        ("digits", ["terms=[{kind: mel}]"], "terms.0: 'mel' is for audio, not for picture"),
        ("digits", ["tokenizer.height=7"], "an image of 7 x 8 cannot be halved 1 times"),
        ("speech", ["tokenizer.decoder={kind: fused}"], "tokenizer.audio.decoder: kind 'fused' is unknown"),
        ("speech", ["tokenizer.encoder={kind: dac, strides: [5]}"], "make 5 samples a frame, but hop is 320"),
        (
            "speech",
            [f"tokenizer.quantizer={{kind: stride, every: 3, quantizer: {V8}}}"],
            "encoder.chunk: audio is encoded 64 frames at a time, but the quantizer's codes span 3 frames",
        ),
        (
            "speech",
            [f"tokenizer.quantizer={{kind: scales, sizes: [[1, 1], [2, 2]], quantizer: {V8}}}"],
            "codes span all frames; quantize frame by frame",
        ),
    ],
)
def test_parts_that_do_not_fit_have_one_line(config, sets, message, tmp_path, capsys):
    check_refused(config, ["data.path=nowhere", *sets], message, tmp_path, capsys)


def check_refused(config, sets, message, folder, capsys):
    overrides = [word for setting in sets for word in ("--set", setting)]
    file = ROOT / "configs" / config / "tokenizer.yaml"
    assert run(["tokenizer", "train", str(file), *overrides, "--out", str(folder / "out")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("tessera: ") and said.err.count("\n") == 1
    assert message in said.err
    assert not (folder / "out").exists()
