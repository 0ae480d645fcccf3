"""Padding spared by packed rows, and what that is worth in training time.

    python benchmarks/packing.py                                  lengths of the bundled test recordings
    python benchmarks/packing.py --shards out/speech/shards/train

Items of these lengths (repeated up to --items) are trained on with a small model, forward and backward: side by side in
batches sorted by length within pools, as `data.packing: {kind: padded}` has them, with one pool of 16 batches and with
pools of one; and end to end, best_fit. The three take turns. waste: positions that hold padding, of all positions
computed. A time is the processor's, for the same number of frames; the ratio's median and quartiles are over turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

import tessera
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.config import LMConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.patterns.pattern import DelayConfig
from tessera.tokenize.data.shard_reader import Shards
from tessera.tokenize.spec import AudioGeometry, TokenSpec
from tessera.train.common.batch_sampler import Sampler
from tessera.train.lm.objective import Objective
from tessera.train.lm.sequence_packing import BestFitConfig, PackedSampler

SAMPLES_PER_FRAME = 320
V = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, help="use the lengths of these items")
    parser.add_argument("--items", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16, help="items of a padded batch")
    parser.add_argument("--steps", type=int, help="of a packed row; default: four times the longest item")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the processor's time is then what one thread takes
    found = shard_lengths(arguments.shards) if arguments.shards else recorded_lengths()
    lengths = np.resize(np.random.default_rng(0).permutation(found), arguments.items)
    print(f"{len(found)} lengths, {found.min()} to {found.max()} frames, median {int(np.median(found))}")
    lm = make_lm(arguments.width)
    arrangement = lm.arrangement
    steps = np.array([arrangement.num_steps(int(length) + 1) for length in lengths])
    room = arguments.steps or 4 * int(steps.max())
    packed = PackedSampler(steps, 1, 0, BestFitConfig(steps=room))
    per_row = len(lengths) / packed.num_rows
    together = max(1, round(arguments.batch / per_row))  # rows that hold about as many items as a padded batch
    ways = {
        "padded, unsorted": (Sampler(lengths, arguments.batch, 0, 1).batch, False),
        "padded, sorted": (Sampler(lengths, arguments.batch, 0, 16).batch, False),
        "packed": (lambda step: np.hstack([packed.batch(step * together + i)[0] for i in range(together)]), True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    report = {}
    for name, (batch, is_packed) in ways.items():
        computed = real = 0
        for step in range(arguments.items // arguments.batch):
            rows = steps[batch(step)]
            real += int(rows.sum())
            computed += int(rows.sum() if is_packed else rows.max() * len(rows))
        report[name] = {"waste": 1 - real / computed}
    for turn in range(arguments.turns + 1):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            batch, is_packed = ways[name]
            objective = Objective(lm, packed=is_packed)
            took = frames = 0.0
            for step in range(2 * turn, 2 * turn + 2):
                rows = batch(step)
                codes = torch.randint(V, (len(rows), 4, int(lengths[rows].max())))
                given = torch.from_numpy(lengths[rows])
                began = time.process_time()
                objective(codes, given, ConditionBatch())[0].backward()
                took += time.process_time() - began
                frames += float(lengths[rows].sum())
                lm.zero_grad()
            if turn:
                seconds[name].append(1e6 * took / frames)
    for name in ways:
        ratios = [a / b for a, b in zip(seconds["padded, sorted"], seconds[name], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        report[name] |= {
            "microseconds_per_frame": statistics.median(seconds[name]),
            "speed": statistics.median(ratios),
            "speed_quartiles": [low, high],
        }
        print(
            f"{name:<17} waste {report[name]['waste']:6.1%}  {report[name]['microseconds_per_frame']:7.0f} us a frame"
            f"  speed {statistics.median(ratios):.2f} ({low:.2f} - {high:.2f}) of sorted padding"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def make_lm(width: int) -> TokenLM:
    """Four codebooks with delays, of the shape of the bundled speech model."""
    geometry = AudioGeometry(sample_rate=16000, samples_per_frame=SAMPLES_PER_FRAME)
    spec = TokenSpec(name="none", cardinalities=(V,) * 4, geometry=geometry, fingerprint="0" * 64)
    config = LMConfig(width=width, layers=5, heads=4, qk_norm=True, arrangement=DelayConfig(), variable_length=True)
    torch.manual_seed(0)
    return TokenLM(config, spec).train()


def shard_lengths(folder: Path) -> np.ndarray:
    return np.asarray(Shards(str(folder)).lengths)


def recorded_lengths() -> np.ndarray:
    """Frames of the recordings in samples/speech."""
    found = []
    for path in sorted((Path(tessera.__file__).parent / "samples" / "speech").rglob("*.flac")):
        about = soundfile.info(str(path))
        found.append(int(about.frames * 16000 / about.samplerate / SAMPLES_PER_FRAME) + 1)
    return np.array(found)


if __name__ == "__main__":
    main()
