"""Write what the package qwen-tts makes of tiny tokenizers (public/qwen3_tts_tokenizer.safetensors), and the tensors of
the published one (public/published/qwen3-tts-tokenizer.json).

    pip install transformers==4.57.3 accelerate==1.12.0 einops soundfile librosa
    pip install --no-deps qwen-tts==0.1.1
    python tests/tokenize/make_qwen3_tts_tokenizer.py
    python tests/tokenize/make_qwen3_tts_tokenizer.py write FOLDER CASE    # as the package saves a tiny tokenizer
    python tests/tokenize/make_qwen3_tts_tokenizer.py check BACK CASE      # a folder that was written back

In an environment of its own: the package asks for this old transformers. sox, onnxruntime and torchaudio, which it
imports for its other tokenizer, are not needed. Weights are not stored: `fill` makes them from their names.
"""

import importlib.machinery
import json
import sys
import types
from pathlib import Path

import torch
from make_native_codecs import listing
from make_titok_codes import uniform
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent / "public"
CODES, PUBLISHED = HERE / "qwen3_tts_tokenizer.safetensors", HERE / "published" / "qwen3-tts-tokenizer.json"

SIZE = 16
ENCODER = {
    "model_type": "mimi", "num_filters": 4, "hidden_size": 16, "upsampling_ratios": [3, 2], "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 24, "num_quantizers": 6,
    "num_semantic_quantizers": 1, "codebook_size": SIZE, "codebook_dim": 6, "vector_quantization_hidden_dimension": 6,
    "upsample_groups": 16, "sampling_rate": 120, "frame_rate": 10.0, "sliding_window": 250,
}  # fmt: skip
DECODER = {
    "codebook_size": SIZE, "codebook_dim": 16, "latent_dim": 12, "hidden_size": 10, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 18, "num_hidden_layers": 2, "sliding_window": 4,
    "num_quantizers": 4, "upsampling_ratios": [2], "upsample_rates": [3, 2], "decoder_dim": 8,
}  # fmt: skip
CASES = {
    "small": ({}, {}),
    "other": (
        {"upsampling_ratios": [2, 2], "use_conv_shortcut": True, "sampling_rate": 80}
        | {"vector_quantization_hidden_dimension": 16, "codebook_dim": 16},
        {"upsampling_ratios": [], "upsample_rates": [2, 4], "num_attention_heads": 3, "num_key_value_heads": 3}
        | {"head_dim": 4, "rope_theta": 50, "sliding_window": 72, "num_hidden_layers": 3},
    ),
    "deep": ({}, {"upsampling_ratios": [2, 2], "upsample_rates": [3, 1], "latent_dim": 6, "sliding_window": 1}),
}
"""Settings of the tiny encoders and decoders that differ. No recording is longer than the encoder's window, which
transformers 4.57 applies with flash-attn only."""
SEEDS = 2
LENGTHS = (1, 11, 12, 13, 300)
"""Samples of the recordings that are encoded."""
FRAMES = 40
LONG = 330
"""Frames of a clip that the package decodes in two chunks; LONG is of `small`."""
PUBLISHED_ENCODER = {
    "model_type": "mimi", "sampling_rate": 24000, "audio_channels": 1, "hidden_size": 512, "num_filters": 64,
    "num_residual_layers": 1, "upsampling_ratios": [8, 6, 5, 4], "kernel_size": 7, "last_kernel_size": 3,
    "residual_kernel_size": 3, "dilation_growth_rate": 2, "use_causal_conv": True, "pad_mode": "constant",
    "compress": 2, "trim_right_ratio": 1.0, "codebook_size": 2048, "codebook_dim": 256, "num_quantizers": 32,
    "use_conv_shortcut": False, "vector_quantization_hidden_dimension": 256, "num_semantic_quantizers": 1,
    "upsample_groups": 512, "num_hidden_layers": 8, "intermediate_size": 2048, "num_attention_heads": 8,
    "num_key_value_heads": 8, "head_dim": 64, "hidden_act": "gelu", "norm_eps": 1e-5, "rope_theta": 10000.0,
    "sliding_window": 250, "layer_scale_initial_scale": 0.01, "attention_bias": False,
}  # fmt: skip
PUBLISHED_DECODER = {
    "attention_bias": False, "attention_dropout": 0.0, "latent_dim": 1024, "codebook_dim": 512, "codebook_size": 2048,
    "decoder_dim": 1536, "hidden_act": "silu", "hidden_size": 512, "intermediate_size": 1024,
    "layer_scale_initial_scale": 0.01, "max_position_embeddings": 8000, "head_dim": 64, "num_attention_heads": 16,
    "num_hidden_layers": 8, "num_key_value_heads": 16, "num_quantizers": 16, "num_semantic_quantizers": 1,
    "rms_norm_eps": 1e-5, "rope_theta": 10000, "semantic_codebook_size": 4096, "sliding_window": 72,
    "upsample_rates": [8, 5, 4, 3], "upsampling_ratios": [2, 2], "vector_quantization_hidden_dimension": 512,
}  # fmt: skip
MODEL = {"architectures": ["Qwen3TTSTokenizerV2Model"], "model_type": "qwen3_tts_tokenizer_12hz"}


def config_of(case):
    """config.json of a tiny tokenizer."""
    encoder, decoder = (ours | other for ours, other in zip((ENCODER, DECODER), CASES[case], strict=True))
    hop = 2
    for ratio in encoder["upsampling_ratios"]:
        hop *= ratio
    rate = encoder["sampling_rate"]
    rates = {"input_sample_rate": rate, "output_sample_rate": rate}
    rates |= {"encode_downsample_rate": hop, "decode_upsample_rate": hop, "encoder_valid_num_quantizers": 4}
    return MODEL | rates | {"encoder_config": encoder, "decoder_config": decoder}


def published():
    """config.json of Qwen/Qwen3-TTS-Tokenizer-12Hz."""
    rates = {"input_sample_rate": 24000, "output_sample_rate": 24000, "encoder_valid_num_quantizers": 16}
    rates |= {"encode_downsample_rate": 1920, "decode_upsample_rate": 1920}
    return MODEL | rates | {"encoder_config": PUBLISHED_ENCODER, "decoder_config": PUBLISHED_DECODER}


def fill(shapes, seed):
    """A weight for each name and shape, such that all layers matter and codes and samples vary."""
    tensors = {}
    for name, shape in shapes.items():
        value, leaf = uniform(name, seed, shape), name.rpartition(".")[2]
        if leaf == "initialized":
            value = torch.ones(shape)
        elif leaf == "cluster_usage":
            value = 1.25 + 0.75 * value
            value[0] = 0  # a dead code, whose sum has vanished too
        elif leaf in ("embed_sum", "embedding_sum"):
            value[0] *= 1e-5
        elif leaf in ("alpha", "beta", "bias"):
            value *= 0.3
        elif leaf in ("scale", "gamma") or "norm" in name:
            value = 0.8 + 0.4 * value
        elif len(shape) > 1:
            value *= (3 / value[0].numel()) ** 0.5
        if name == f"decoder.decoder.{_last(shapes)}.conv.weight":
            value *= 0.1
        tensors[name] = value.contiguous()
    return tensors


def _last(shapes):
    """Number of the decoder's last convolution."""
    return max(int(name.split(".")[2]) for name in shapes if name.startswith("decoder.decoder."))


def recording(case, seed, length):
    """Samples [N] from -1 to 1."""
    return uniform(f"samples {case}", seed, (length,))


def clip(case, seed, frames):
    """Codes [4, T]."""
    return ((uniform(f"codes {case}", seed, (4, frames)) + 1) / 2 * SIZE).long().clamp(max=SIZE - 1)


def import_package():
    """Modules of the package: the tokenizer's class and its config."""
    for name in ("sox", "onnxruntime", "torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules.setdefault(name, module)
    from qwen_tts.core.tokenizer_12hz import configuration_qwen3_tts_tokenizer_v2 as configuration
    from qwen_tts.core.tokenizer_12hz import modeling_qwen3_tts_tokenizer_v2 as modeling

    return modeling.Qwen3TTSTokenizerV2Model, configuration.Qwen3TTSTokenizerV2Config


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def build(described, seed=0):
    """A tokenizer of the package with weights of a seed."""
    kind, config = import_package()
    model = kind._from_config(config(**described), attn_implementation="eager").eval()
    model.load_state_dict(fill(shapes_of(model), seed))
    return model


@torch.no_grad()
def encode(model, samples):
    """Codes [K, T] of samples [N]."""
    found = model.encode(samples[None], torch.ones(1, len(samples), dtype=torch.long))
    return found.audio_codes[0].T


@torch.no_grad()
def main():
    found = {}
    for case in CASES:
        for seed in range(SEEDS):
            model = build(config_of(case), seed)
            for length in LENGTHS:
                found[f"{case}.{seed}.codes.{length}"] = encode(model, recording(case, seed, length)).to(torch.uint8)
            samples = model.decoder(clip(case, seed, FRAMES)[None])[0, 0]
            found[f"{case}.{seed}.samples"] = samples
            limited = float((samples.abs() == 1).float().mean())
            codes = found[f"{case}.{seed}.codes.300"]
            print(case, seed, "codes", [len(book.unique()) for book in codes], "samples", float(samples.std()), limited)
    model, codes = build(config_of("small")), clip("small", 0, LONG)
    found["long.whole"] = model.decoder(codes[None])[0, 0]
    chunked = model.decode(codes.T[None]).audio_values[0]
    difference = (chunked - found["long.whole"]).abs().unflatten(0, (LONG, -1)).amax(dim=1)
    first = int((difference > 1e-5).nonzero()[0])
    print(f"chunks of 300 frames: differ from frame {first} on, by up to {float(difference.max()):g}")
    save_file({name: tensor.contiguous() for name, tensor in found.items()}, CODES)
    with torch.device("meta"):
        kind, config = import_package()
        shapes = shapes_of(kind(config(**published())))
    PUBLISHED.write_text(json.dumps({"config": published()} | listing(shapes), indent=1) + "\n")


def write(folder, case):
    """A tiny tokenizer of the first seed as `save_pretrained` writes it."""
    build(config_of(case)).save_pretrained(folder)


@torch.no_grad()
def check(folder, case):
    """Print whether the package reads a folder that was written back, and makes the same of it."""
    kind, _ = import_package()
    model, report = kind.from_pretrained(folder, output_loading_info=True, attn_implementation="eager")
    wrong = {name: value for name, value in report.items() if value}
    expected = load_file(CODES)
    same = all(
        torch.equal(encode(model.eval(), recording(case, 0, length)), expected[f"{case}.0.codes.{length}"].long())
        for length in LENGTHS
    )
    samples = model.decoder(clip(case, 0, FRAMES)[None])[0, 0]
    difference = float((samples - expected[f"{case}.0.samples"]).abs().max())
    print(f"{case}: loading {wrong or 'complete'}, codes equal: {same}, samples differ by at most {difference:g}")


if __name__ == "__main__":
    {"write": write, "check": check}.get(sys.argv[1] if len(sys.argv) > 1 else "", main)(*sys.argv[2:])
