"""A tiny MusicGen of random weights and captioned music, for the steps of docs/fine-tuning.md; and their comparison.

    python benchmarks/tune_musicgen.py make out/tiny                  # out/tiny/musicgen and out/tiny/music
    python benchmarks/tune_musicgen.py compare out/tiny/lm/model out/tiny/back

`make` writes a directory in the layout of transformers, whole with T5, its tokenizer and an EnCodec of 32 kHz and 50
frames a second, and clips of four seconds with their captions: four kinds of notes, in a random key each.
`compare` reads a model here and what it was written back as in transformers, gives both the same codes and texts, and
prints the largest difference of their logits.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import tessera
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.tokenize.data.media import write_audio

RATE, SECONDS, CODES = 32000, 4, 64
KINDS = {"slow low notes": (1, 110.0), "slow high notes": (1, 880.0), "fast low notes": (4, 110.0)}
KINDS |= {"fast high notes": (4, 880.0)}
"""Captions: notes a second, and the lowest frequency in Hz."""
SCALE = (0, 2, 4, 5, 7, 9, 11, 12)


def make_model(folder: Path) -> None:
    """A `MusicgenForConditionalGeneration` of random weights with its tokenizer."""
    transformers: Any = import_module("transformers")
    torch.manual_seed(0)
    text = transformers.T5Config(vocab_size=20, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4)
    codec = transformers.EncodecConfig(
        sampling_rate=RATE, num_filters=4, hidden_size=16, codebook_dim=16, codebook_size=CODES, num_lstm_layers=1,
        upsampling_ratios=[8, 5, 4, 4], use_causal_conv=False, use_conv_shortcut=False,
    )  # fmt: skip
    codec.target_bandwidths = [codec.frame_rate * codec.codebook_nbits * 4 / 1000]
    decoder = transformers.MusicgenDecoderConfig(
        vocab_size=CODES, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=256, num_codebooks=4,
        pad_token_id=CODES, bos_token_id=CODES, dropout=0.0,
    )  # fmt: skip
    config = transformers.MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder)
    model = transformers.MusicgenForConditionalGeneration(config)
    with torch.no_grad():
        clips = torch.stack([notes(caption, number) for number, caption in enumerate(KINDS)])[:, None]
        left = model.audio_encoder.encoder(clips).transpose(1, 2).flatten(0, 1)
        for layer in model.audio_encoder.quantizer.layers:  # random frames of what the level before left
            table = left[torch.randperm(len(left))[:CODES]]
            layer.codebook.embed.copy_(table)
            left = left - table[torch.cdist(left, table).argmin(dim=1)]
    model.save_pretrained(folder)
    words = sorted({word for caption in KINDS for word in caption.split()})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    vocabulary = [*pieces, *((f"\u2581{word}", -2.5) for word in words)]
    transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0).save_pretrained(folder)


def notes(caption: str, seed: int) -> torch.Tensor:
    """Samples [N] of random notes of a scale."""
    generator = torch.Generator().manual_seed(seed)
    rate, base = KINDS[caption]
    key = int(torch.randint(12, (), generator=generator))
    chosen = torch.randint(len(SCALE), (SECONDS * rate,), generator=generator).tolist()
    time = torch.arange(RATE // rate) / RATE
    fade = torch.exp(-3 * rate * time)
    return torch.cat(
        [0.5 * fade * torch.sin(2 * torch.pi * base * 2 ** ((key + SCALE[n]) / 12) * time) for n in chosen]
    )


def make_music(folder: Path, count: int) -> None:
    """`count` recordings with captions of the same names."""
    for number in range(count):
        caption = list(KINDS)[number % len(KINDS)]
        write_audio(folder / f"{number:03}.wav", notes(caption, 100 + number)[None], RATE)
        (folder / f"{number:03}.txt").write_text(caption + "\n")


@torch.no_grad()
def compare(ours: Path, theirs: Path) -> float:
    """The largest difference of the logits of two models, for the same codes and every caption."""
    transformers: Any = import_module("transformers")
    model = tessera.load(ours, device="cpu")
    other, report = transformers.MusicgenForConditionalGeneration.from_pretrained(theirs, output_loading_info=True)
    assert not any(report.values()), report
    assert model.text_encoder is not None
    texts = list(KINDS)
    states = model.text_encoder.encode(texts)
    lm: Any = model.lm
    codes = torch.randint(CODES, (len(texts), 4, 50), generator=torch.Generator().manual_seed(1))
    columns = lm.arrangement.arrange(codes).ids
    read = torch.cat([lm.start_ids(len(texts))[..., None], columns[:, :, :-1]], dim=2)
    found = lm(codes, None, ConditionBatch.make(embeddings=states)).logits
    tokens = transformers.T5Tokenizer.from_pretrained(theirs)(texts, padding=True, return_tensors="pt")
    expected = other.eval()(**tokens, decoder_input_ids=read.flatten(0, 1)).logits.view_as(found)
    difference = float((found - expected).abs().max())
    print(
        f"largest difference of {found.numel():,} logits: {difference:.1e}, their largest: {expected.abs().max():.1f}"
    )
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    making = steps.add_parser("make")
    making.add_argument("folder", type=Path)
    making.add_argument("--count", type=int, default=40, help="recordings")
    comparing = steps.add_parser("compare")
    comparing.add_argument("ours", type=Path)
    comparing.add_argument("theirs", type=Path)
    arguments = parser.parse_args()
    if arguments.step == "compare":
        compare(arguments.ours, arguments.theirs)
        return
    make_model(arguments.folder / "musicgen")
    make_music(arguments.folder / "music", arguments.count)


if __name__ == "__main__":
    main()
