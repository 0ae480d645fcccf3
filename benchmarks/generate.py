"""Frames per second of generation, time to the first audio of a stream, and MusicGen's shape beside transformers.

    python benchmarks/generate.py --threads 2                   the bundled models, and musicgen.py at batch 1, 8, 32
    python benchmarks/generate.py runs/mine/lm/model            other models alone
    python benchmarks/generate.py --threads 2 --quick --json out.json

--quick is for a minute: of the bundled models one stream of sound; of MusicGen's shape, all its layers, batch 1 and 50
frames in up to three turns, of which transformers makes as few as its share of the time allows.

The models' figures are medians of the repetitions after one to warm up, from the call of `generate` to the media on the
CPU, language model and tokenizer together. With guidance the model runs with and without the condition. The share of
the first audio is of the time that the whole stream of four seconds of audio takes. What the comparison with
transformers measures, and what was tried in vain, stands in musicgen.py; it is left out where transformers is missing.
The JSON has under their names: ratio_bf16_b1, ratio_int8_b1, ratio_int4_b1, bandwidth_share_bf16_b1, first_audio_share.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import tessera
from tessera.generate.model import Model
from tessera.generate.throughput import example_condition, measure_speed
from tessera.tokenize.bundled import bundled_models
from tessera.tokenize.spec import AudioGeometry

QUICK_SECONDS = 15.0
"""Of the turns with transformers in --quick."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="directories or bundled names; default: all bundled models")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--quick", action="store_true", help="one repetition of short samples")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    names = arguments.models or bundled_models()
    if not names:
        sys.exit("no bundled model in this checkout; name a model directory")
    about = describe_machine(arguments.device)
    print("  ".join(f"{name} {value}" for name, value in about.items()), file=sys.stderr)
    heads = ("at a time", "guidance", "frames/s", "ms/frame", "audio s/s", "spread")
    print(f"{'model':<12} " + " ".join(f"{head:>9}" for head in heads))
    rows, compared = [], {}
    for name in names:
        rows += measure(tessera.load(name, arguments.device), Path(name).name, arguments.quick)
    shares = [row["first_audio_share"] for row in rows if "first_audio_share" in row]
    if not arguments.models:
        compared = compare_with_transformers(arguments.device, arguments.quick)
    if arguments.json:
        found = {**about, "command": sys.argv, "rows": rows, "first_audio_share": max(shares, default=None)}
        found |= {name: value for name, value in compared.items() if name != "rows"}
        found["musicgen"] = compared.get("rows", [])
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def compare_with_transformers(device: str, quick: bool) -> dict:
    """The figures of musicgen.py; none, and a message, without transformers."""
    from musicgen import compare

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if quick:
            return compare(torch.device(device), frames=50, turns=3, budget=QUICK_SECONDS)
        return compare(torch.device(device), batches=(1, 8, 32))
    except ImportError as error:
        print(f"no comparison with transformers: {error}", file=sys.stderr)
        return {}


def measure(model: Model, name: str, quick: bool) -> list[dict]:
    """All settings of one model, printed as they come."""
    audio, repeats, rows = isinstance(model.spec.geometry, AudioGeometry), 1 if quick else 3, []
    guided = [1.0, 2.0] if all(c.dropout for c in model.lm.config.conditions) and model.lm.config.conditions else [1.0]
    for count in () if quick else (1, 16):
        for guidance in guided:
            speed = measure_speed(model, count, guidance, repeats=repeats)
            spread = (max(speed.seconds) - min(speed.seconds)) / speed.median
            sound = speed.audio_seconds / speed.median
            row = {
                "model": name,
                "at_a_time": count,
                "guidance": guidance,
                "frames": speed.frames,
                "seconds": speed.seconds,
                "frames_per_second": speed.frames_per_second,
                "audio_per_second": sound,
            }
            rows.append(row)
            print(
                f"{name:<12} {count:9d} {guidance:9.1f} {speed.frames_per_second:9.1f} "
                f"{1000 * speed.median / speed.frames:9.2f} {sound or float('nan'):9.2f} {spread:9.1%}",
                flush=True,
            )
    if audio:
        streams = [stream_times(model, seed) for seed in range(repeats)]
        seconds = [times[0] for times in streams] if quick else measure_first_audio(model, repeats)
        share = statistics.median(times[0] / times[-1] for times in streams)
        rows.append({"model": name, "first_audio_seconds": seconds, "first_audio_share": share})
        first = 1000 * statistics.median(seconds)
        print(f"{name:<12} first audio of stream(): {first:.0f} ms, {share:.1%} of four seconds of audio", flush=True)
    return rows


def measure_first_audio(model: Model, repeats: int = 3) -> list[float]:
    """Seconds from the call of `stream` to its first chunk, for each repetition, after one warm-up run."""
    seconds = []
    for seed in range(repeats + 1):
        started = time.perf_counter()
        next(model.stream(seed=seed, min_frames=1000, max_frames=1000, **example_condition(model)))
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def stream_times(model: Model, seed: int) -> list[float]:
    """Seconds from the call to each chunk of a stream of four seconds."""
    geometry = model.spec.geometry
    assert isinstance(geometry, AudioGeometry)
    frames = round(4 * geometry.frame_rate)
    started, times = time.perf_counter(), []
    for _ in model.stream(seed=seed, num_frames=frames, **example_condition(model)):
        times.append(time.perf_counter() - started)
    return times


def describe_machine(device: str) -> dict:
    """What the figures depend on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    cuda = torch.cuda.get_device_name() if device != "cpu" and torch.cuda.is_available() else "cpu"
    return {
        "commit": commit.stdout.strip() or "?",
        "device": cuda,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
