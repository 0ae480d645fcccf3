"""Frames per second of generation, and time to the first audio of a stream.

    python benchmarks/generate.py                        the bundled models
    python benchmarks/generate.py runs/mine/lm/model     others
    python benchmarks/generate.py --quick --json out.json

Each figure is the median of the repetitions after one to warm up, from the call of `generate` to the media on the CPU,
language model and tokenizer together. With guidance the model runs with and without the condition.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import torch

import tessera
from tessera.generate.model import Model, bundled_models
from tessera.generate.speed import measure_first_audio, measure_speed
from tessera.tokenize.spec import AudioGeometry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="directories or bundled names; default: all bundled models")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--quick", action="store_true", help="one repetition of short samples")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    names = arguments.models or bundled_models()
    if not names:
        sys.exit("no bundled model in this checkout; name a model directory")
    about = describe_machine(arguments.device)
    print("  ".join(f"{name} {value}" for name, value in about.items()), file=sys.stderr)
    heads = ("at a time", "guidance", "frames/s", "ms/frame", "sound s/s", "spread")
    print(f"{'model':<12} " + " ".join(f"{head:>9}" for head in heads))
    rows = []
    for name in names:
        rows += measure(tessera.load(name, arguments.device), Path(name).name, arguments.quick)
    if arguments.json:
        arguments.json.write_text(json.dumps({**about, "command": sys.argv, "rows": rows}, indent=1) + "\n")


def measure(model: Model, name: str, quick: bool) -> list[dict]:
    """All settings of one model, printed as they come."""
    repeats, frames, rows = (1, 25, []) if quick else (3, None, [])
    guided = [1.0, 2.0] if all(c.dropout for c in model.lm.config.conditions) and model.lm.config.conditions else [1.0]
    for count in (1, 16):
        for guidance in guided:
            speed = measure_speed(model, count, guidance, frames, repeats)
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
    if isinstance(model.spec.geometry, AudioGeometry):
        seconds = measure_first_audio(model, repeats)
        rows.append({"model": name, "first_audio_seconds": seconds})
        print(f"{name:<12} first audio of stream(): {1000 * statistics.median(seconds):.0f} ms", flush=True)
    return rows


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
