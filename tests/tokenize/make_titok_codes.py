"""Write what TiTok's own code makes of tiny models (public/titok_codes.safetensors), and the published models' tensors.

    git clone https://github.com/bytedance/1d-tokenizer DIR/titok        # 942a96f made the files
    pip install --no-deps --target DIR omegaconf antlr4-python3-runtime==4.9.3 accelerate psutil
    PYTHONPATH=DIR:DIR/titok python tests/tokenize/make_titok_codes.py
    PYTHONPATH=DIR:DIR/titok python tests/tokenize/make_titok_codes.py write FOLDER CASE # as TiTok saves a tiny model
    PYTHONPATH=DIR:DIR/titok python tests/tokenize/make_titok_codes.py check BACK CASE # a folder that was written back

einops, huggingface_hub and torch are needed too. TiTok's code has the sizes of its networks as numbers in the source:
the tiny models are of the same source with other numbers. Weights are not stored: `fill` makes them from their names.
"""

import importlib.util
import json
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import torch
from make_native_codecs import listing
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent / "public"
CODES, PUBLISHED = HERE / "titok_codes.safetensors", HERE / "published" / "titok.json"

SIZES = {"small": (16, 2, 2), "base": (24, 3, 3)}
"""Width, layers and heads of the tiny models."""
PIXELS = {"channels": 32, "multipliers": (1, 2, 2), "blocks": 1, "codes": 1024, "code_dim": 8}
"""Sizes of their pixel decoder."""
CASES = {
    "small": {"codebook_size": 250, "token_size": 3, "num_latent_tokens": 5, "crop_size": 16},
    "mixed": {"vit_dec_model_size": "base", "use_l2_norm": False, "codebook_size": 200, "token_size": 4}
    | {"num_latent_tokens": 12, "crop_size": 16, "vit_enc_patch_size": 2},
    "pixels": {"vit_enc_model_size": "base", "use_l2_norm": False, "codebook_size": 210, "token_size": 2}
    | {"num_latent_tokens": 7, "crop_size": 12, "vit_dec_patch_size": 2, "is_legacy": False, "finetune_decoder": False},
    "normed": {"codebook_size": 220, "token_size": 5, "num_latent_tokens": 9, "crop_size": 8}
    | {"is_legacy": False, "finetune_decoder": False},
}
"""Settings of the tiny models that differ from DEFAULTS."""
DEFAULTS = {"use_l2_norm": True, "commitment_cost": 0.25, "vit_enc_model_size": "small", "vit_dec_model_size": "small"}
DEFAULTS |= {"vit_enc_patch_size": 4, "vit_dec_patch_size": 4}
SEEDS = 3
WHOLE = "titok_s128"
"""The published model that is computed at its own size."""
STEP = 15
"""Of whose image each STEP-th row and column is stored."""


def config_of(case):
    """config.json of a tiny model."""
    settings = DEFAULTS | CASES[case]
    crop = settings.pop("crop_size")
    return {"model": {"vq_model": settings}, "dataset": {"preprocessing": {"crop_size": crop}}}


def uniform(name, seed, shape):
    """Numbers from -1 to 1 that depend on a name, a seed and nothing else: this generator of numpy never changes."""
    state = np.random.RandomState(zlib.crc32(f"{name} {seed}".encode()))
    return torch.from_numpy(2 * state.random_sample(shape) - 1).float()


def fill(shapes, seed):
    """A weight for each name and shape, such that pixels depend on codes and mostly stay between 0 and 1."""
    tensors = {}
    for name, shape in shapes.items():
        value = uniform(name, seed, shape)
        if len(shape) > 1 and "embedding" not in name and "token" not in name:
            value *= (3 / (value[0].numel())) ** 0.5
        elif "weight" in name and len(shape) == 1:
            value = 1 + 0.3 * value
        elif "bias" in name:
            value *= 0.3
        if name.startswith("encoder.") and ("patch_embed.weight" in name or "in_proj_weight" in name):
            value *= 3  # codes depend on the image
        elif name in ("decoder.conv_out.weight", "pixel_decoder.conv_out.weight"):
            value *= 0.15
        elif name in ("decoder.conv_out.bias", "pixel_decoder.conv_out.bias"):
            value = 0.5 + 0.3 * value
        elif name == "decoder.ffn.2.weight":
            value *= 4  # some codes have more weight than others
        tensors[name] = value.contiguous()
    return tensors


def images_of(case, seed, side):
    """Images [3, 3, side, side] from 0 to 1."""
    return (uniform(f"images {case}", seed, (3, 3, side, side)) + 1) / 2


def import_titok(tiny):
    """The modules of TiTok and its blocks; their package's own __init__ imports losses, which are not needed."""
    root = next(Path(path) / "modeling" for path in sys.path if (Path(path) / "modeling" / "titok.py").is_file())
    for name in [name for name in sys.modules if name.partition(".")[0] == "modeling"]:
        del sys.modules[name]
    for name, folder in (("modeling", root), ("modeling.modules", root / "modules")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    source = (root / "modules" / "blocks.py").read_text()
    if tiny:
        for name, published in (("small", (512, 8, 8)), ("base", (768, 12, 12))):
            for before, after in zip(published[:2], SIZES[name][:2], strict=True):
                assert f'"{name}": {before},' in source
                source = source.replace(f'"{name}": {before},', f'"{name}": {after},')
    spec = importlib.util.spec_from_file_location("modeling.modules.blocks", root / "modules" / "blocks.py")
    blocks = sys.modules["modeling.modules.blocks"] = importlib.util.module_from_spec(spec)
    exec(compile(source, blocks.__file__, "exec"), blocks.__dict__)  # layers and heads are one number in the source
    import modeling.titok as titok

    if tiny:
        decoder, quantizer = titok.Pixel_Decoder, titok.Pixel_Quantizer
        sizes = {
            "channel_mult": PIXELS["multipliers"], "num_resolutions": len(PIXELS["multipliers"]), "dropout": 0.0,
            "hidden_channels": PIXELS["channels"], "num_channels": 3, "num_res_blocks": PIXELS["blocks"],
            "resolution": 16, "z_channels": PIXELS["code_dim"],
        }  # fmt: skip
        titok.Pixel_Decoder = lambda _: decoder(titok.OmegaConf.create(sizes))
        titok.Pixel_Quantizer = lambda **_: quantizer(PIXELS["codes"], PIXELS["code_dim"], 0.25)
    return titok


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@torch.no_grad()
def compute(model, images):
    """Codes [B, T] and decoded images [B, 3, side, side], before they are limited to 0..1."""
    codes = model.encode(images)[1]["min_encoding_indices"]
    return codes[:, 0], model.decode_tokens(codes)


def main():
    found, published = {}, {}
    titok = import_titok(tiny=True)
    for case in CASES:
        for seed in range(SEEDS):
            model = titok.TiTok(config_of(case)).eval()
            model.load_state_dict(fill(shapes_of(model), seed))
            codes, images = compute(model, images_of(case, seed, CASES[case]["crop_size"]))
            differ = float((codes[0] != codes[1]).float().mean())
            print(case, seed, "codes", len(codes.unique()), "differing by image", differ, "pixels", *images.aminmax())
            found |= {f"{case}.{seed}.codes": codes.to(torch.uint8), f"{case}.{seed}.images": images}
    titok = import_titok(tiny=False)
    folder = Path(titok.__file__).parent.parent / "configs" / "infer" / "TiTok"
    for path in sorted(folder.glob("*.yaml")):
        config = titok.OmegaConf.load(path)
        config.pop("experiment"), config.model.pop("generator", None)
        with torch.device("meta"):
            model = titok.TiTok(config)
        heads = [side.transformer[0].attn.num_heads for side in (model.encoder, model.decoder)]
        published[path.stem] = {"config": titok.OmegaConf.to_container(config), "heads": heads}
        published[path.stem] |= listing(shapes_of(model))
        if path.stem == WHOLE:
            weights = fill(shapes_of(model), 0)
            model = titok.TiTok(config).eval()
            model.load_state_dict(weights)
            codes, images = compute(model, images_of(WHOLE, 0, 256)[:1])
            print(WHOLE, "codes", len(codes.unique()), "pixels", float(images.min()), float(images.max()))
            found |= {f"{WHOLE}.codes": codes.to(torch.int16), f"{WHOLE}.images": images[..., ::STEP, ::STEP]}
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, CODES)
    PUBLISHED.write_text(json.dumps(published, indent=1) + "\n")


def write(folder, case):
    """A tiny model of the first seed as `save_pretrained` writes it."""
    model = import_titok(tiny=True).TiTok(config_of(case)).eval()
    model.load_state_dict(fill(shapes_of(model), 0))
    model.save_pretrained(folder)


def check(folder, case):
    """Print whether TiTok reads a folder that was written back, and makes the same of it."""
    model = import_titok(tiny=True).TiTok.from_pretrained(folder, strict=True).eval()
    expected = load_file(CODES)
    codes, images = compute(model, images_of(case, 0, CASES[case]["crop_size"]))
    same = torch.equal(codes, expected[f"{case}.0.codes"].long())
    difference = float((images - expected[f"{case}.0.images"]).abs().max())
    print(f"{case}: codes equal: {same}, pixels differ by at most {difference:g}")


if __name__ == "__main__":
    {"write": write, "check": check}.get(sys.argv[1] if len(sys.argv) > 1 else "", main)(*sys.argv[2:])
