"""Make tiny_var/: VAR models with tiny random weights, and what their authors' code computes from them.

    git clone https://github.com/FoundationVision/VAR DIR       # 78b9539 made the files beside this script
    PYTHONPATH=DIR python tests/lm/make_var_codes.py
    PYTHONPATH=DIR python tests/lm/make_var_codes.py shapes     # tensors of the published models

Of the tokenizer only the quantizer is made: the networks around it do not matter to the language model.
"""

import json
import re
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
TINY, PUBLISHED = HERE / "tiny_var", HERE / "published"
NUMBER = re.compile(r"(?<=blocks\.)\d+")
SIDES, CODES, DIM, CLASSES, WIDTH, HEADS, LAYERS = (1, 2, 3, 4), 24, 4, 5, 16, 2, 2
LABELS = (3, 0, CLASSES)
"""The last one is none."""
GROWTH = {"plain": 0.0, "guided": 4.0}
"""cfg of the authors' sampling."""
NAMES = {"own": False, "shared": True}
MODELS = {"d16": (16, 256), "d20": (20, 256), "d24": (24, 256), "d30": (30, 256), "d36": (36, 512)}
SCALES = {256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}


def make_quantizer(sides, codes, dim):
    from models.quant import VectorQuantizer2

    return VectorQuantizer2(codes, dim, using_znorm=False, v_patch_nums=sides)


def make(shared, seed):
    from models.var import VAR

    torch.manual_seed(seed)
    quantizer = make_quantizer(SIDES, CODES, DIM)
    tokenizer = types.SimpleNamespace(Cvae=DIM, vocab_size=CODES, quantize=quantizer, fhat_to_img=lambda sums: sums)
    model = VAR(
        tokenizer, num_classes=CLASSES, depth=LAYERS, embed_dim=WIDTH, num_heads=HEADS, mlp_ratio=2.0,
        shared_aln=shared, cond_drop_rate=0.0, attn_l2_norm=True, patch_nums=SIDES,
    ).eval()  # fmt: skip
    buffers = {name for name, _ in model.named_buffers()}
    for part in (model, quantizer):
        with torch.no_grad():
            for name, tensor in part.state_dict().items():
                if name not in buffers and "ema_vocab" not in name:
                    small = "head_nm" in name or name == "head.bias"  # what every code of a picture has in common
                    large = name in ("word_embed.weight", "pos_1LC", "embedding.weight")
                    tensor.normal_(std=0.1 if small else 1.5 if large else 0.4)
                    if "scale_mul" in name:  # one factor above the limit
                        tensor.copy_(torch.tensor([1.5, 5.0]).view(tensor.shape))
                    tensor.copy_(tensor.half())  # what the file can hold
    return model, quantizer


@torch.no_grad()
def pictures(model, cfg):
    """The greedy codes [B, T] of all labels."""
    import models.var

    found, sample = [], models.var.sample_with_top_k_top_p_

    def spy(*given, **named):
        drawn = sample(*given, **named)
        found.append(drawn[:, :, 0])
        return drawn

    models.var.sample_with_top_k_top_p_ = spy
    model.autoregressive_infer_cfg(len(LABELS), torch.tensor(LABELS), cfg=cfg, top_k=1)
    models.var.sample_with_top_k_top_p_ = sample
    return torch.cat(found, dim=1)


@torch.no_grad()
def logits_of(model, quantizer, codes):
    """[B, T, CODES] of these codes [B, T], one row for each label."""
    of_scales = list(codes.split([side * side for side in SIDES], dim=1))
    return model(torch.tensor(LABELS), quantizer.idxBl_to_var_input(of_scales))


def main():
    TINY.mkdir(exist_ok=True)
    expected = {}
    cells, generator = sum(side * side for side in SIDES), torch.Generator().manual_seed(1)
    given = torch.randint(CODES, (len(LABELS), cells), generator=generator)
    expected["given"] = given.to(torch.uint8)
    for name, shared in NAMES.items():
        for seed in range(100):
            model, quantizer = make(shared, seed)
            made = {key: pictures(model, cfg) for key, cfg in GROWTH.items()}
            counts = [row.unique().numel() for rows in made.values() for row in rows]
            if min(counts) > 5:
                print(name, "seed", seed, "different codes", counts)
                break
        expected |= {f"{name}.{key}": rows.to(torch.uint8) for key, rows in made.items()}
        expected[f"{name}.logits"] = logits_of(model, quantizer, given)
        state = model.state_dict()
        tensors = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
        tensors |= {f"quantize.{key}": tensor.half() for key, tensor in quantizer.state_dict().items()}
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, TINY / f"{name}.safetensors")
    save_file(expected, TINY / "expected.safetensors")


def shapes():
    """Names and shapes of the tensors of published models: those that differ in the number of a block once, with {} for
    it, and how many they are."""
    from models.var import VAR

    torch.Tensor.item = lambda tensor: 0.0  # of tensors without values
    for name, (depth, side) in MODELS.items():
        tokenizer = types.SimpleNamespace(Cvae=32, vocab_size=4096, quantize=None)
        with torch.device("meta"):
            model = VAR(
                tokenizer, depth=depth, embed_dim=64 * depth, num_heads=depth, shared_aln=side == 512,
                attn_l2_norm=True, patch_nums=SCALES[side],
            )  # fmt: skip
        found = {}
        for key, tensor in model.state_dict().items():
            short = NUMBER.sub("{}", key)
            found[short] = [list(tensor.shape), found.get(short, [0, 0])[1] + 1]
        described = {"v_patch_nums": SCALES[side], "tensors": found}
        (PUBLISHED / f"var-{name}.json").write_text(json.dumps(described) + "\n")


if __name__ == "__main__":
    {"shapes": shapes}.get(sys.argv[1] if len(sys.argv) > 1 else "", main)()
