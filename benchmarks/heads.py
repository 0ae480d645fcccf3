"""Depth against delay against flat against parallel: the same number of learned numbers, the same steps of training on
the bundled speech, then the loss on recordings that were not trained on and the speed of generation.

    python benchmarks/heads.py [--corpus DIR] [--steps 600] [--width 192] [--layers 5] [--threads N] [--json FILE]

Without --corpus it trains on the 240 recordings of samples/speech/train, which a model of this size learns by heart; a
corpus that it cannot is made by (see configs/speech/tokenizer.yaml)

    python -m tessera.samples.make_speech --count 6000 --seed 1 --exclude samples/speech/test/metadata.jsonl --out DIR

- parallel   all codes of a frame in one step, each by itself
- delay      the same with codebook k delayed k steps, so that it has read the coarser codes of its frame
- depth      all codes of a frame in one step, one after the other by a small transformer (a third of the layers)
- flat       a step for each code, with a head that computes the logits of that code alone

bits/frame: the loss of a frame on the test recordings, the sum over its codebooks. frames/s: generation of one sample
and of 16, without guidance. The feed-forwards are as wide as gives all the same number of learned numbers within 1 %.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import soundfile
import torch

import tessera
from tessera.generate.decoding.generate_codes import generate_codes
from tessera.generate.requests.request import Request
from tessera.generate.requests.settings import Length
from tessera.lm.checkpoints.parameter_shapes import parameter_shapes
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.config import LMConfig
from tessera.lm.heads.depth_transformer import DepthHeadConfig
from tessera.lm.heads.flat import FlatHeadConfig
from tessera.lm.heads.parallel import ParallelHeadConfig
from tessera.lm.layers.input_embedding import CodesInputConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.patterns.pattern import DelayConfig, FlatConfig, ParallelConfig
from tessera.lm.quantization.cpu_fast_decode import enable_fast_cpu_decode_
from tessera.tokenize.codes import pad_and_cat

SPEECH = Path(__file__).parent.parent / "samples" / "speech"
FRAMES = 100
"""Of a crop in training, and of a generated sample."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="a folder of recordings (.flac, .wav) to train on")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=192, help="of all models")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="train small models for a few steps")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.steps, args.batch, args.width, args.layers = 20, 4, 64, 2
    tokenizer = tessera.load("speech").tokenizer
    folders = (args.corpus or SPEECH / "train", SPEECH / "test")
    train, test = (read(tokenizer, folder, 24 if args.quick else None) for folder in folders)
    vectors = tokenizer.vectors().cpu()
    configs = equal_sizes(args, tokenizer.spec, vectors.shape[-1])
    print(
        f"{'head':<9} {'M numbers':>9} {'bits/frame':>10}  {'by codebook':<28} {'s/step':>7} {'f/s 1':>7} {'f/s 16':>7}"
    )
    rows = []
    for name, config in configs.items():
        torch.manual_seed(0)
        lm = TokenLM(config, tokenizer.spec, vectors)
        seconds = fit(lm, train, args.steps, args.batch)
        bits = evaluate(lm, test)
        speeds = [speed(lm, count, 1 if args.quick else 3) for count in (1, 16)]
        by_book = " ".join(f"{value:.2f}" for value in bits)
        print(
            f"{name:<9} {lm.num_parameters / 1e6:>9.2f} {sum(bits):>10.2f}  {by_book:<28} {seconds:>7.3f} "
            f"{speeds[0]:>7.1f} {speeds[1]:>7.1f}",
            flush=True,
        )
        rows.append(
            {
                "head": name, "parameters": lm.num_parameters, "bits_per_frame": sum(bits), "bits_by_codebook": bits,
                "seconds_per_step": seconds, "frames_per_second_1": speeds[0], "frames_per_second_16": speeds[1],
            }
        )  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"command": sys.argv, "threads": torch.get_num_threads(), "rows": rows}) + "\n")


def read(tokenizer, folder: Path, count: int | None) -> list[torch.Tensor]:
    """Codes [K, T] of the recordings of a folder."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".flac", ".wav"))[:count]
    media = [torch.from_numpy(soundfile.read(file, dtype="float32")[0])[None, None] for file in files]
    return [tokenizer.encode(sound).codes[0] for sound in media]


def equal_sizes(args: argparse.Namespace, spec, code_width: int) -> dict[str, LMConfig]:
    """A config of each kind, as large as the parallel one, by the width of the feed-forward."""
    third = max(1, args.layers // 3)
    kinds = {
        "parallel": (ParallelConfig(), ParallelHeadConfig(), args.layers),
        "delay": (DelayConfig(), ParallelHeadConfig(), args.layers),
        "depth": (ParallelConfig(), DepthHeadConfig(layers=third, heads=4), args.layers - third),
        "flat": (FlatConfig(), FlatHeadConfig(), args.layers),
    }

    def make(kind: str, ffn: int | None) -> LMConfig:
        arrangement, head, layers = kinds[kind]
        return LMConfig(
            width=args.width, layers=layers, heads=4, ffn=ffn, qk_norm=True, arrangement=arrangement, head=head,
            input=CodesInputConfig(),
        )  # fmt: skip

    def size(config: LMConfig) -> int:
        return sum(math.prod(shape) for shape in parameter_shapes(config, spec, code_width).values())

    wanted = size(make("parallel", None))
    widths = range(args.width, 4 * args.width, 8)
    return {kind: make(kind, min(widths, key=lambda w: abs(size(make(kind, w)) - wanted))) for kind in kinds}


def fit(lm: TokenLM, train: list[torch.Tensor], steps: int, batch: int) -> float:
    """Train on random crops; returns seconds per step."""
    optimizer = torch.optim.AdamW(lm.train().parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    generator = torch.Generator().manual_seed(0)
    began = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (1 - 0.9 * step / steps)
        picks = torch.randint(len(train), (batch,), generator=generator).tolist()
        starts = [int(torch.randint(max(1, train[i].shape[1] - FRAMES + 1), (), generator=generator)) for i in picks]
        crops = [train[i][:, start : start + FRAMES] for i, start in zip(picks, starts, strict=True)]
        codes, lengths = pad(crops)
        optimizer.zero_grad()
        lm.loss(codes, lengths).loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
    return (time.perf_counter() - began) / steps


def pad(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([row.shape[1] for row in rows])
    return pad_and_cat([row[None] for row in rows]), lengths


@torch.no_grad()
def evaluate(lm: TokenLM, test: list[torch.Tensor]) -> list[float]:
    """Bits a code of each codebook, on the first FRAMES frames of each recording."""
    lm.eval()
    sums = counts = torch.zeros(lm.num_codebooks, dtype=torch.float64)
    for first in range(0, len(test), 16):
        codes, lengths = pad([row[:, :FRAMES] for row in test[first : first + 16]])
        report = lm.loss(codes, lengths)
        sums = sums + report.per_codebook.double() * report.count
        counts = counts + report.count
    return (sums / counts / math.log(2)).tolist()


def speed(lm: TokenLM, count: int, repeats: int) -> float:
    """Frames per second of generating `count` samples at once, by a model as it is loaded; the median after a first."""
    enable_fast_cpu_decode_(lm.requires_grad_(False))
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        generate_codes(lm, Request(ConditionBatch(), list(range(count)), Length(FRAMES, fixed=True)))
        seconds.append(time.perf_counter() - began)
    return count * FRAMES / sorted(seconds[1:])[repeats // 2]


if __name__ == "__main__":
    main()
