"""Our quantizers beside vector-quantize-pytorch: time and peak memory of a training step, same sizes, one run.

    pip install "tessera-lm[bench]"
    python benchmarks/quantizers.py [--quick] [--repeats 7] [--device cuda] [--json FILE]

A step is forward and backward of (values^2 and all losses), with the codebook's own update; k-means starts off,
revival of dead codes on, on both sides. Time: steps of both alternate in one process, the ratio is of medians; after
a minute of one case no more are taken. Memory: each side alone in a fresh process, what a step adds to the resident
memory at its peak (on CUDA: to the memory allocated), at least 1 MB. Ratios are ours over theirs. --quick: small
batches, to see that the benchmark runs.

Cases:
    residual-vq   8 levels of 1024 codes, dim 128, latents [8, 750]
    fsq           levels 8 5 5 5, latents [8, 750], no losses
    lfq-18, bsq-18   2^18 implicit codes with both entropies, latents [1, 512]: theirs over all codes, ours bit by bit
    vq-262144     one codebook, dim 32, latents [2, 512]
    encode-262144    the same, codes only, in evaluation
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tessera.configs.schema import Config, check_config
from tessera.tokenize.quantizers.registry import QuantizerConfig, make_quantizer

CASES: dict[str, tuple[int, int, int]] = {  # batch, places, channels
    "residual-vq": (8, 750, 128),
    "fsq": (8, 750, 4),
    "lfq-18": (1, 512, 18),
    "bsq-18": (1, 512, 18),
    "vq-262144": (2, 512, 32),
    "encode-262144": (2, 512, 32),
}
SMALLEST = 1 << 20
"""Bytes; less is below what resident memory can tell and counts as this."""
VQ = {"kind": "vq", "kmeans_init": False}


class Tree(Config):
    """A quantizer as in a YAML file."""

    quantizer: QuantizerConfig


def make_ours(case: str, dim: int) -> nn.Module:
    """Our quantizer of a case."""
    settings = {
        "residual-vq": {"kind": "residual", "levels": 8, "quantizer": {**VQ, "size": 1024}},
        "fsq": {"kind": "fsq", "levels": [8, 5, 5, 5], "commitment": 0.0},
        "lfq-18": {"kind": "lfq", "bits": 18, "entropy": {}},
        "bsq-18": {"kind": "bsq", "bits": 18, "entropy": {}},
        "vq-262144": {**VQ, "size": 262144},
        "encode-262144": {**VQ, "size": 262144},
    }
    return make_quantizer(check_config({"quantizer": settings[case]}, Tree).quantizer, dim)


def make_theirs(case: str, dim: int) -> nn.Module:
    """That of vector-quantize-pytorch."""
    import vector_quantize_pytorch as theirs  # pyright: ignore[reportMissingImports]

    if case == "residual-vq":
        return theirs.ResidualVQ(dim=dim, num_quantizers=8, codebook_size=1024, threshold_ema_dead_code=2)
    if case == "fsq":
        return theirs.FSQ(levels=[8, 5, 5, 5])
    if case in ("lfq-18", "bsq-18"):
        return theirs.LFQ(dim=dim, codebook_size=1 << 18, spherical=case == "bsq-18")
    return theirs.VectorQuantize(dim=dim, codebook_size=262144, threshold_ema_dead_code=2)


def make_step(side: str, case: str, x: Tensor) -> Callable[[Tensor], None]:
    """One training step (or one encoding) of latents like x."""
    torch.manual_seed(0)
    model = (make_ours if side == "ours" else make_theirs)(case, x.shape[-1]).to(x.device)
    if case.startswith("encode"):
        model.eval()

        @torch.no_grad()
        def encode(latents: Tensor) -> None:
            model.encode(latents) if side == "ours" else model(latents)  # pyright: ignore[reportCallIssue]

        return encode

    def train(latents: Tensor) -> None:
        latents = latents.detach().requires_grad_()
        if side == "ours":
            result = model(latents)
            total = result.values.square().mean() + sum(loss.mean() for loss in result.losses.values())
        else:
            values, *rest = model(latents)
            losses = [part for part in rest if isinstance(part, Tensor) and part.is_floating_point()]
            total = values.square().mean() + sum(loss.sum() for loss in losses)
        total.backward()
        if side == "ours":
            model.update()  # pyright: ignore[reportCallIssue]

    return train


def latents_of(case: str, quick: bool, device: str) -> Tensor:
    """Normal latents; few with `quick`."""
    batch, places, dim = CASES[case]
    places = 32 if quick else places
    return torch.randn(batch, places, dim, generator=torch.Generator().manual_seed(1)).to(device)


def time_both(case: str, quick: bool, device: str, repeats: int) -> tuple[float, float]:
    """Median seconds of a step, ours and theirs, alternating."""
    x = latents_of(case, quick, device)
    steps = {side: make_step(side, case, x) for side in ("ours", "theirs")}
    seconds: dict[str, list[float]] = {side: [] for side in steps}
    began = time.perf_counter()
    for number in range(repeats + 1):
        for side, step in steps.items():
            started = _now(device)
            step(x)
            if number:  # the first is for warming up
                seconds[side].append(_now(device) - started)
        if number and time.perf_counter() - began > 60:
            break
    return statistics.median(seconds["ours"]), statistics.median(seconds["theirs"])


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_of(side: str, case: str, quick: bool, device: str) -> int:
    """Bytes that the first steps add at their peak; in a process of its own."""
    x = latents_of(case, quick, device)
    step = make_step(side, case, x)
    step(x[:1, :2])  # libraries load what they need
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(x)
        return torch.cuda.max_memory_allocated() - before
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    step(x)
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=2, metavar=("SIDE", "CASE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        side, case = args.peak
        print(peak_of(side, case, args.quick, args.device))
        return
    rows = []
    for case in args.cases:
        memory = {}
        for side in ("ours", "theirs"):
            command = [sys.executable, __file__, "--device", args.device, "--peak", side, case]
            found = subprocess.run([*command, *(["--quick"] if args.quick else [])], capture_output=True, check=True)
            memory[side] = max(int(found.stdout), SMALLEST)
        ours, theirs = time_both(case, args.quick, args.device, 1 if args.quick else args.repeats)
        row = {"case": case, "time_ratio": ours / theirs, "memory_ratio": memory["ours"] / memory["theirs"]}
        rows.append(row | {"seconds": [ours, theirs], "bytes": [memory["ours"], memory["theirs"]]})
        print(
            f"{case:15} time {row['time_ratio']:6.3f} ({1e3 * ours:.1f} ms / {1e3 * theirs:.1f} ms)   "
            f"memory {row['memory_ratio']:6.3f} ({memory['ours'] / 2**20:.0f} MB / {memory['theirs'] / 2**20:.0f} MB)",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
