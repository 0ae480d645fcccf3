"""Write what the original libraries of DAC and SNAC make: tiny models with random weights in public/native_codecs/, and
the tensor lists of published models in public/published/.

pip install descript-audio-codec snac     (1.0.0 and 1.2.1 made the files)
python tests/tokenize/make_native_codecs.py
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent / "public"
FOLDER = HERE / "native_codecs"

DAC_FORM = {"encoder_dim": 4, "encoder_rates": [2, 3], "decoder_dim": 16, "decoder_rates": [3, 2], "n_codebooks": 3}
DAC_FORM |= {"codebook_size": 16, "codebook_dim": 3, "sample_rate": 600}
SNAC_FORM = {"sampling_rate": 600, "encoder_dim": 4, "encoder_rates": [2, 3], "latent_dim": None, "decoder_dim": 16}
SNAC_FORM |= {"decoder_rates": [3, 2], "attn_window_size": None, "codebook_size": 16, "codebook_dim": 3}
SNAC_FORM |= {"vq_strides": [4, 2, 1], "noise": True, "depthwise": True}

DAC = {"encoder_dim": 64, "latent_dim": 1024, "decoder_dim": 1536, "codebook_size": 1024, "codebook_dim": 8}
SPEECH = {"encoder_rates": [2, 4, 5, 8], "decoder_rates": [8, 5, 4, 2]}
MUSIC = {"encoder_rates": [2, 4, 8, 8], "decoder_rates": [8, 8, 4, 2], "sample_rate": 44100}
SNAC = {"codebook_size": 4096, "codebook_dim": 8, "noise": True, "depthwise": True}
WIDE = {"encoder_dim": 64, "encoder_rates": [2, 3, 8, 8], "decoder_dim": 1536, "decoder_rates": [8, 8, 3, 2]}
WIDE |= {"attn_window_size": 32, "vq_strides": [8, 4, 2, 1]}
PUBLISHED = {
    "dac-native-16khz": DAC | SPEECH | {"n_codebooks": 12, "sample_rate": 16000},
    "dac-native-24khz": DAC | SPEECH | {"n_codebooks": 32, "sample_rate": 24000},
    "dac-native-44khz": DAC | MUSIC | {"n_codebooks": 9},
    "dac-native-44khz-16kbps": DAC | MUSIC | {"n_codebooks": 18, "latent_dim": 128},
    "snac-24khz": SNAC
    | {"sampling_rate": 24000, "encoder_dim": 48, "encoder_rates": [2, 4, 8, 8], "decoder_dim": 1024}
    | {"decoder_rates": [8, 8, 4, 2], "attn_window_size": None, "vq_strides": [4, 2, 1]},
    "snac-32khz": SNAC | WIDE | {"sampling_rate": 32000},
    "snac-44khz": SNAC | WIDE | {"sampling_rate": 44100},
}
"""Arguments of the published models; the rates of SNAC at 32 and 44.1 kHz follow from the published token rates."""


def lively(model, seed):
    """Random weights that keep the size of what they are applied to, and of Snake's parameters near 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "alpha" in name:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
        elif parameter.dim() > 1 and "_g" not in name and "original0" not in name:
            linear = parameter.dim() == 2 and "codebook" not in name  # which has no norm that would set its size
            parameter.data.normal_(std=parameter.shape[1] ** -0.5 if linear else 1, generator=generator)
        elif "bias" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    return model.eval()


def listing(shapes):
    """What a published model's tensors are: their number, that of the elements, and a hash of names and shapes."""
    lines = "\n".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
    elements = sum(torch.Size(shape).numel() for shape in shapes.values())
    return {"tensors": len(shapes), "elements": elements, "sha256": hashlib.sha256(lines.encode()).hexdigest()}


@torch.no_grad()
def main():
    from dac.model import DAC as TheirDAC
    from snac import SNAC as TheirSNAC

    FOLDER.mkdir(exist_ok=True)
    torch.manual_seed(0)
    dac, samples = lively(TheirDAC(**DAC_FORM), 0), torch.randn(1, 1, 6 * 20 + 1)
    dac.save(FOLDER / "dac.pth", package=False)
    codes = dac.encode(dac.preprocess(samples, 600))[1]
    decoded = dac.decode(dac.quantizer.from_codes(codes)[0])
    expected = {"samples": samples, "dac.codes": codes, "dac.decoded": decoded}

    snac = lively(TheirSNAC(**SNAC_FORM), 1)
    (FOLDER / "snac").mkdir(exist_ok=True)
    torch.save(snac.state_dict(), FOLDER / "snac" / "pytorch_model.bin")
    (FOLDER / "snac" / "config.json").write_text(json.dumps(SNAC_FORM) + "\n")
    codes = snac.encode(samples)
    drawn, torch.randn = torch.randn, lambda shape, **kind: torch.zeros(shape, **kind)
    expected |= {"snac.decoded": snac.decode(codes)}
    torch.randn = drawn
    expected |= {f"snac.codes.{k}": part for k, part in enumerate(codes)}
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, FOLDER / "expected.safetensors")

    (HERE / "published").mkdir(exist_ok=True)
    for name, arguments in PUBLISHED.items():
        with torch.device("meta"):
            model = (TheirDAC if name.startswith("dac") else TheirSNAC)(**arguments)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        described = json.dumps({"config": arguments} | listing(shapes), indent=1)
        (HERE / "published" / f"{name}.json").write_text(described + "\n")


if __name__ == "__main__":
    main()
