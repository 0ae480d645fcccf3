"""Public models: ours beside the library that they come from, with the same weights, turn by turn in one run.

    python benchmarks/peers.py [--threads 2] [--turns 5] [--seconds 10] [--json FILE] [--only SYSTEM ...]
    python benchmarks/peers.py --quick                    tiny shapes: whether it runs, under a minute

Random weights of the published shapes, saved by the other library's own class and read by `tessera.load_tokenizer` or
`tessera.load`; before anything is timed, both sides must give the same codes. A row of the table (and of `--json`):

    system   work   ratio = their time over ours, the median over turns in which both run once, beside each other
             spread = the smallest and largest of these ratios
             cpu    the same ratio of processor time: other programs take turns on a busy machine, and their turns are
                    in the other ratio
             load   the time to open the saved folder, each side in its own process, after its imports, files in the
                    page cache
             first  the time to open it and to encode and decode 1 s of audio, or to generate 1 s of music, in such a
                    process: both sides map the file and put off a part of the work until weights are used
             memory the peak resident memory of such a process after encoding and decoding all the audio

Settings are the best of the other side that were found: transformers in float32 (codecs have no faster dtype on a CPU:
bfloat16 convolutions are slower), inference mode, attention sdpa; generation in bfloat16 (benchmarks/musicgen.py,
benchmarks/csm.py).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from musicgen_whole import import_side, make_folder, make_music, open_side
from torch import Tensor

import tessera

QUICK_SECONDS = 1.0
FRESH_WORKS = ("load", "first")


@dataclass(frozen=True)
class Codec:
    """A tokenizer of the other library, with random weights."""

    kind: str
    """Class of transformers, without "Model" and "Config"."""
    config: dict[str, Any]
    """Where the published config differs from the class default."""
    quick: dict[str, Any]
    """Changes that make it tiny."""
    codebooks: int | None
    """Number of codebooks used; None: all."""
    encode: Callable[[Any, Tensor, int | None], Tensor]
    """encode(model, media [1, C, N], codebooks) -> codes [1, K, T]."""
    decode: Callable[[Any, Tensor], Any]
    """decode(model, codes) -> samples."""


def encodec_codes(model: Any, media: Tensor, codebooks: int | None) -> Tensor:
    """Codes of an EncodecModel at the bandwidth of this number of codebooks."""
    bandwidths = model.config.target_bandwidths
    bits = model.config.frame_rate * model.config.codebook_nbits
    wanted = bandwidths[-1] if codebooks is None else min(bandwidths, key=lambda kb: abs(1000 * kb - bits * codebooks))
    return model.encode(media, bandwidth=wanted).audio_codes[0]


SMALL_SEANET = {"num_filters": 4, "hidden_size": 16, "codebook_dim": 16, "codebook_size": 32}
CODECS = {
    "encodec-24khz": Codec(
        "Encodec", {}, SMALL_SEANET, 8, encodec_codes, lambda model, codes: model.decode(codes[None], [None])[0]
    ),
    "encodec-32khz": Codec(
        "Encodec",
        {
            "sampling_rate": 32000, "num_filters": 64, "upsampling_ratios": [8, 5, 4, 4], "codebook_size": 2048,
            "use_causal_conv": False, "use_conv_shortcut": False, "target_bandwidths": [2.2],
        },
        SMALL_SEANET | {"target_bandwidths": [1.0]}, None,
        encodec_codes, lambda model, codes: model.decode(codes[None], [None])[0],
    ),
    "dac-24khz": Codec(
        "Dac",
        {
            "sampling_rate": 24000, "encoder_hidden_size": 64, "downsampling_ratios": [2, 4, 5, 8],
            "upsampling_ratios": [8, 5, 4, 2], "decoder_hidden_size": 1536, "n_codebooks": 32, "hop_length": 320,
        },
        {"encoder_hidden_size": 4, "decoder_hidden_size": 32, "n_codebooks": 3},
        8, lambda model, media, k: model.encode(media, n_quantizers=k).audio_codes,
        lambda model, codes: model.decode(audio_codes=codes).audio_values,
    ),
    "dac-44khz": Codec(
        "Dac",
        {
            "sampling_rate": 44100, "encoder_hidden_size": 64, "downsampling_ratios": [2, 4, 8, 8],
            "upsampling_ratios": [8, 8, 4, 2], "decoder_hidden_size": 1536, "n_codebooks": 9, "hop_length": 512,
        },
        {"encoder_hidden_size": 4, "decoder_hidden_size": 32, "n_codebooks": 3},
        9, lambda model, media, k: model.encode(media, n_quantizers=k).audio_codes,
        lambda model, codes: model.decode(audio_codes=codes).audio_values,
    ),
    "mimi": Codec(
        "Mimi", {}, {
            "num_filters": 4, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8,
            "num_key_value_heads": 2, "intermediate_size": 32, "codebook_size": 32, "codebook_dim": 8,
            "vector_quantization_hidden_dimension": 8, "upsample_groups": 16,
        },
        8, lambda model, media, k: model.encode(media, num_quantizers=k).audio_codes,
        lambda model, codes: model.decode(codes).audio_values,
    ),
}  # fmt: skip


def make_theirs(codec: Codec, folder: Path, quick: bool) -> None:
    """Save a model with random weights; codebooks get the spread of latents, so that all codes occur."""
    transformers = import_module("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{codec.kind}Config")(**codec.config | (codec.quick if quick else {}))
    model = getattr(transformers, f"{codec.kind}Model")(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("codebook.embed", "embed_sum")):
                tensor.normal_()
            elif name.endswith("cluster_usage"):
                tensor.fill_(1.0)
    model.save_pretrained(folder)


def open_theirs(codec: Codec, folder: Path) -> Any:
    """Their model, as its library reads it."""
    transformers = import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return getattr(transformers, f"{codec.kind}Model").from_pretrained(folder).eval()


def media_of(rate: int, channels: int, seconds: float) -> Tensor:
    """Noise with a slow envelope, [1, C, N], N a multiple of all frame lengths here."""
    count = int(rate * seconds) // 15360 * 15360
    generator = torch.Generator().manual_seed(1)
    envelope = torch.linspace(0, 20, count).sin().square()
    return 0.3 * envelope * torch.randn(1, channels, count, generator=generator)


def turns_of(ours: Callable[[], object], theirs: Callable[[], object], turns: int) -> dict[str, Any]:
    """Time both, one beside the other; the first turn warms up and is not counted."""
    taken: list[list[tuple[float, float]]] = []
    for turn in range(turns + 1):
        pair = []
        for call in (ours, theirs) if turn % 2 else (theirs, ours):
            start, used = time.perf_counter(), time.process_time()
            call()
            pair.append((time.perf_counter() - start, time.process_time() - used))
        taken.append(pair if turn % 2 else pair[::-1])
    ratios = [other[0] / own[0] for own, other in taken[1:]]
    return {
        "ours_s": statistics.median(own[0] for own, _ in taken[1:]),
        "theirs_s": statistics.median(other[0] for _, other in taken[1:]),
        "ratio": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "ours_cpu_s": statistics.median(own[1] for own, _ in taken[1:]),
        "cpu": statistics.median(other[1] / own[1] for own, other in taken[1:]),
    }


def compare_codec(name: str, codec: Codec, turns: int, seconds: float, quick: bool) -> list[dict[str, Any]]:
    """Rows of one codec."""
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        folder = Path(temporary)
        make_theirs(codec, folder, quick)
        count = None if quick else codec.codebooks
        theirs, ours = open_theirs(codec, folder), tessera.load_tokenizer(folder, count)
        geometry: Any = ours.spec.geometry
        media = media_of(geometry.sample_rate, geometry.channels, seconds)
        codes = ours.encode(media).codes
        same = (codec.encode(theirs, media, count) == codes).float().mean().item()
        if same < 0.999:
            raise SystemExit(f"{name}: only {same:.2%} of the codes are equal, so there is nothing to compare")
        works: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "encode": (lambda: ours.encode(media), lambda: codec.encode(theirs, media, count)),
            "decode": (lambda: ours.decode(codes), lambda: codec.decode(theirs, codes)),
        }
        rows = [{"system": name, "work": work, **turns_of(own, other, turns)} for work, (own, other) in works.items()]
        return rows + rows_of_processes(name, folder, turns, seconds, quick)


def rows_of_processes(name: str, folder: Path, turns: int, seconds: float, quick: bool) -> list[dict[str, Any]]:
    """Rows of what is measured in new processes: the first pair of them for the memory, the others for the times."""
    fresh: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for turn in range(turns + 1):
        for side in ("ours", "theirs") if turn % 2 else ("theirs", "ours"):
            fresh[side].append(in_a_process(name, side, folder, QUICK_SECONDS if turn else seconds, quick))
    ours, theirs = fresh["ours"], fresh["theirs"]
    rows = [{"system": name, "work": work, **compare_processes(ours[1:], theirs[1:], work)} for work in FRESH_WORKS]
    own, other = ours[0]["peak_mb"], theirs[0]["peak_mb"]
    return [*rows, {"system": name, "work": "memory", "ratio": other / own, "ours": own, "theirs": other}]


def compare_processes(ours: list[dict[str, float]], theirs: list[dict[str, float]], work: str) -> dict[str, Any]:
    """Ratios of the times of processes that ran one after the other."""
    ratios = {
        unit: [other[f"{work}_{unit}"] / own[f"{work}_{unit}"] for own, other in zip(ours, theirs, strict=True)]
        for unit in ("s", "cpu_s")
    }
    return {
        "ours_s": statistics.median(own[f"{work}_s"] for own in ours),
        "theirs_s": statistics.median(other[f"{work}_s"] for other in theirs),
        "ratio": statistics.median(ratios["s"]),
        "spread": [min(ratios["s"]), max(ratios["s"])],
        "cpu": statistics.median(ratios["cpu_s"]),
    }


def in_a_process(name: str, side: str, folder: Path, seconds: float, quick: bool) -> dict[str, float]:
    """Times and peak memory of one side in a new process."""
    command = [sys.executable, __file__, "--one", name, side, str(folder), *(["--quick"] if quick else [])]
    command += ["--threads", str(torch.get_num_threads()), "--seconds", str(seconds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def one(name: str, side: str, folder: Path, seconds: float, quick: bool) -> None:
    """Load, encode and decode (or generate) once in this process, and print the figures."""
    if name not in CODECS:
        return one_model(side, folder, quick)
    codec = CODECS[name]
    count = None if quick else codec.codebooks
    if side == "theirs":  # importing is not loading
        getattr(import_module("transformers"), f"{codec.kind}Model")
    else:
        import_module("tessera.tokenize.tokenizer")
    start, used = time.perf_counter(), time.process_time()
    model: Any = open_theirs(codec, folder) if side == "theirs" else tessera.load_tokenizer(folder, count)
    found = {"load_s": time.perf_counter() - start, "load_cpu_s": time.process_time() - used}
    with torch.inference_mode():
        if side == "theirs":
            config = model.config
            media = media_of(config.sampling_rate, getattr(config, "audio_channels", 1), seconds)
            codec.decode(model, codec.encode(model, media, count))
        else:
            media = media_of(model.config.sample_rate, model.config.channels, seconds)
            model.decode(model.encode(media).codes)
    found |= {"first_s": time.perf_counter() - start, "first_cpu_s": time.process_time() - used}
    print(json.dumps(found | {"peak_mb": peak_memory()}))


def one_model(side: str, folder: Path, quick: bool) -> None:
    """As `one`, of the folder of MusicGen."""
    import_side(side)
    start, used = time.perf_counter(), time.process_time()
    model = open_side(side, folder)
    found = {"load_s": time.perf_counter() - start, "load_cpu_s": time.process_time() - used}
    make_music(side, model, quick)
    found |= {"first_s": time.perf_counter() - start, "first_cpu_s": time.process_time() - used}
    print(json.dumps(found | {"peak_mb": peak_memory()}))


def peak_memory() -> float:
    """Peak resident memory of this process in MiB. Linux's ru_maxrss would include the parent's, from before exec."""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def compare_generation(turns: int, quick: bool) -> list[dict[str, Any]]:
    """Rows of MusicGen-small's shape, from benchmarks/musicgen.py: frames a second over those of transformers."""
    musicgen = import_module("musicgen")
    sizes = {"frames": 10, "layers": 1} if quick else {}
    found = musicgen.compare(torch.device("cpu"), batches=(1, 4), turns=turns, budget=120.0, **sizes)
    rows = [
        {
            **row,
            "system": "musicgen-small",
            "work": f"generate {row['name'].split()[-1]} batch {row['batch']}",
            "spread": [min(row["ratios"]), max(row["ratios"])],
        }
        for row in found["rows"]
        if row.get("ratio") is not None
    ]
    return rows + compare_musicgen_folder(turns, quick)


def compare_musicgen_folder(turns: int, quick: bool) -> list[dict[str, Any]]:
    """Rows of opening the whole folder, from benchmarks/musicgen_whole.py."""
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), quick)
        return rows_of_processes("musicgen-small", Path(folder), turns, 0.0, quick)


def compare_csm(turns: int, quick: bool) -> list[dict[str, Any]]:
    """Rows of CSM-1B's shape, from benchmarks/csm.py."""
    return import_module("csm").compare(turns=turns, quick=quick, **({"frames": 3} if quick else {}))


MODELS = {"musicgen-small": compare_generation, "csm-1b": compare_csm}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="audio of the codecs")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, two turns")
    parser.add_argument("--only", nargs="*", help="systems to measure")
    parser.add_argument("--json", type=Path, help="write the rows")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        return one(args.one[0], args.one[1], Path(args.one[2]), args.seconds, args.quick)
    turns, rows = 2 if args.quick else args.turns, []
    seconds = QUICK_SECONDS if args.quick else args.seconds
    print(f"{'system':16} {'work':26} {'ratio':>6}  {'spread':>13}  {'cpu':>5}")
    for name in [*CODECS, *MODELS]:
        if args.only and name not in args.only:
            continue
        found = (
            compare_codec(name, CODECS[name], turns, seconds, args.quick)
            if name in CODECS
            else MODELS[name](turns, args.quick)
        )
        for row in found:
            spread = "-".join(f"{value:.2f}" for value in row.get("spread") or [])
            cpu = f"{row['cpu']:.2f}" if "cpu" in row else ""
            print(f"{row['system']:16} {row['work']:26} {row['ratio']:6.2f}  {spread:>13}  {cpu:>5}", flush=True)
        rows += found
    if args.json:
        described = {"torch": torch.__version__, "threads": args.threads, "turns": turns, "quick": args.quick}
        described["seconds"] = seconds
        args.json.write_text(json.dumps({**described, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
