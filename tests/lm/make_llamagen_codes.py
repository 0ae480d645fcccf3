"""Make tiny_llamagen/: a t2i model of LlamaGen with tiny random weights, and what its authors' code computes from it.

    git clone https://github.com/FoundationVision/LlamaGen DIR        # ce98ec4 made the files beside this script
    PYTHONPATH=DIR python tests/lm/make_llamagen_codes.py
    PYTHONPATH=DIR python tests/lm/make_llamagen_codes.py shapes      # tensors of the published models

Captions are states of a text encoder: random vectors here, padded on the left as in sample_t2i.py.
"""

import json
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
TINY, PUBLISHED = HERE / "tiny_llamagen", HERE / "published"
NUMBER = re.compile(r"(?<=layers\.)\d+")
D, HEADS, LAYERS, CODES, SIDE, PLACES, CAPTION_WIDTH = 16, 2, 2, 48, 4, 120, 12
LENGTHS = (3, 7, PLACES)
"""States of the captions."""
GUIDANCE = {"plain": 1.0, "guided": 7.5}
MODELS = {
    "c2i_B_256": ("GPT-B", "c2i", 256),
    "c2i_L_384": ("GPT-L", "c2i", 384),
    "c2i_3B_384": ("GPT-3B", "c2i", 384),
    "t2i_XL_stage1_256": ("GPT-XL", "t2i", 256),
    "t2i_XL_stage2_512": ("GPT-XL", "t2i", 512),
}


def make(seed):
    from autoregressive.models.gpt import ModelArgs, Transformer

    torch.manual_seed(seed)
    model = Transformer(
        ModelArgs(
            dim=D,
            n_layer=LAYERS,
            n_head=HEADS,
            multiple_of=8,
            vocab_size=CODES,
            caption_dim=CAPTION_WIDTH,
            block_size=SIDE * SIDE,
            cls_token_num=PLACES,
            model_type="t2i",
        )
    ).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.normal_(std=0.4)
            if tensor.dim() == 1:
                tensor.add_(1)
            if name == "output.weight":
                tensor.mul_(3)
            tensor.copy_(tensor.half())  # what the file can hold
    return model


def left_padded(captions):
    states = torch.stack([torch.cat([one.new_zeros(PLACES - len(one), CAPTION_WIDTH), one]) for one in captions])
    masks = torch.stack([torch.arange(PLACES) >= PLACES - len(one) for one in captions])
    return states, masks


@torch.no_grad()
def logits_of(model, states, mask, codes):
    """[T, CODES] of one picture with these codes, through the key/value cache as `generate` uses it."""
    total = PLACES + len(codes)
    model.setup_caches(1, total, torch.float32)
    seen = model.causal_mask[:, :, :PLACES] & mask
    model.causal_mask[:, :, :PLACES] = seen
    model.causal_mask |= torch.eye(model.causal_mask.shape[1], dtype=torch.bool)
    found = [model(None, states[None], torch.arange(PLACES))[0][:, -1]]
    for place, code in enumerate(codes[:-1]):
        found.append(model(code.view(1, 1), None, torch.tensor([PLACES + place]))[0][:, -1])
    return torch.cat(found)


def main():
    from autoregressive.models.generate import generate

    TINY.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(1)
    captions = [torch.randn(length, CAPTION_WIDTH, generator=generator) for length in LENGTHS]
    states, masks = left_padded(captions)
    expected = {f"caption.{i}": one for i, one in enumerate(captions)}
    for seed in range(100):  # until every picture has several codes
        model, sampling = make(seed), {"temperature": 1.0, "top_k": CODES, "sample_logits": False}
        pictures = {name: generate(model, states, SIDE * SIDE, masks, s, **sampling) for name, s in GUIDANCE.items()}
        counts = [row.unique().numel() for rows in pictures.values() for row in rows]
        if min(counts) > 7:
            print("seed", seed, "different codes", counts)
            break
    expected |= {f"codes.{name}": rows.to(torch.uint8) for name, rows in pictures.items()}
    given = torch.randint(CODES, (len(LENGTHS), SIDE * SIDE), generator=generator)
    expected["given"] = given.to(torch.uint8)
    for i, (state, mask) in enumerate(zip(states, masks, strict=True)):
        expected[f"logits.{i}"] = logits_of(model, state, mask, given[i])
        expected[f"null.{i}"] = logits_of(model, model.cls_embedding.uncond_embedding.data, mask, given[i])
    save_file(expected, TINY / "expected.safetensors")
    state = {name: tensor.half() for name, tensor in model.state_dict().items() if "kv_cache" not in name}
    save_file(state, TINY / "model.safetensors")
    described = {"model_type": "llamagen", "gpt_type": "t2i", "image_size": 16 * SIDE, "n_head": HEADS}
    (TINY / "config.json").write_text(json.dumps(described) + "\n")


def shapes():
    """Names and shapes of the tensors of published models: those that differ in the number of a layer once, with {} for
    it, and how many they are."""
    from autoregressive.models.gpt import GPT_models

    torch.linspace = lambda first, last, count: torch.full((count,), first, device="cpu")  # rates of drop path, read
    for name, (size, kind, side) in MODELS.items():
        places = 1 if kind == "c2i" else 120
        with torch.device("meta"):
            model = GPT_models[size](block_size=(side // 16) ** 2, cls_token_num=places, model_type=kind)
        found = {}
        for tensor_name, tensor in model.state_dict().items():
            key = NUMBER.sub("{}", tensor_name)
            found[key] = [list(tensor.shape), found.get(key, [0, 0])[1] + 1]
        described = {"codes": (side // 16) ** 2, "heads": model.config.n_head, "tensors": found}
        (PUBLISHED / f"llamagen-{name}.json").write_text(json.dumps(described) + "\n")


if __name__ == "__main__":
    {"shapes": shapes}.get(sys.argv[1] if len(sys.argv) > 1 else "", main)()
