"""MusicGen-small as a folder, with its T5 and EnCodec and random weights: opening it and the first second of music, in
new processes beside transformers. benchmarks/peers.py prints the rows `load`, `first` and `memory`.

    python benchmarks/peers.py --only musicgen-small

Both sides open the folder in bfloat16 and make music without a text; EnCodec decodes it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import tessera

FRAMES = 50
"""A second."""
QUICK_FRAMES = 5
TEXT = {"d_model": 768, "d_ff": 3072, "d_kv": 64, "num_heads": 12, "num_layers": 12, "feed_forward_proj": "relu"}
CODEC = {
    "sampling_rate": 32000, "num_filters": 64, "upsampling_ratios": [8, 5, 4, 4], "codebook_size": 2048,
    "use_causal_conv": False, "use_conv_shortcut": False, "target_bandwidths": [2.2],
}  # fmt: skip
DECODER = {"num_hidden_layers": 24, "ffn_dim": 4096, "num_attention_heads": 16, "hidden_size": 1024}
QUICK = (
    {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1, "vocab_size": 32},
    {"num_filters": 4, "hidden_size": 16, "codebook_dim": 16},
    {"num_hidden_layers": 1, "ffn_dim": 32, "num_attention_heads": 2, "hidden_size": 16},
)


def make_folder(folder: Path, quick: bool) -> None:
    """Save a model of transformers with random weights, float32."""
    transformers = import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    text, codec, decoder = (
        one | (small if quick else {}) for one, small in zip((TEXT, CODEC, DECODER), QUICK, strict=True)
    )
    config = transformers.MusicgenConfig(
        text_encoder=transformers.T5Config(**text),
        audio_encoder=transformers.EncodecConfig(**codec),
        decoder=transformers.MusicgenDecoderConfig(vocab_size=2048, num_codebooks=4, **decoder),
    )
    transformers.MusicgenForConditionalGeneration(config).eval().save_pretrained(folder)


def import_side(side: str) -> None:
    """What a side imports before it is timed."""
    transformers = import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    transformers.MusicgenForConditionalGeneration  # noqa: B018
    if side == "ours":
        import_module("tessera.generate.loading")


def open_side(side: str, folder: Path) -> Any:
    """The model, in bfloat16."""
    if side == "ours":
        return tessera.load(folder, dtype="bfloat16")
    transformers = import_module("transformers")
    return transformers.MusicgenForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()


def make_music(side: str, model: Any, quick: bool) -> None:
    """Music without a text."""
    frames = QUICK_FRAMES if quick else FRAMES
    if side == "ours":
        samples = model.generate(num_frames=frames, unconditional=True, seed=1).media[0]
    else:
        given = model.get_unconditional_inputs(num_samples=1)
        samples = model.generate(**given, do_sample=True, top_k=250, max_new_tokens=frames + 3)
    assert samples.shape[-1] == frames * 640, samples.shape
