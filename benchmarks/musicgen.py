"""MusicGen-small's shape with random weights: our generation beside that of transformers, turn by turn in one run.

    python benchmarks/musicgen.py --threads 2 --json out.json        (benchmarks/generate.py runs it as well)
    python benchmarks/musicgen.py --threads 2 --also drafts compile openvino     (pip install openvino nncf)

What all do: 24 layers of width 1024, 4 codebooks of 2048 codes with delays, cross-attention to 16 states, guidance 3
(two rows a sample), top-k 250, keys and values cached, for 250 frames. transformers makes the weights of one layer and
writes them, our loader reads them; every layer has these weights, each in memory of its own.

Each figure is the median over turns in which everybody runs once, so that other work on the machine hits all alike:

    frames/s     frames of a sample times the batch, over the time of the whole call
    ratio        steps a second, ours over transformers' bfloat16 at the same batch, turn by turn
    bandwidth    bytes of weights and cache that the steps must read, over the time; the share is of what a product of a
                 large matrix with a vector reads in the same turn: torch's of 268 MB float32, or that of cpu_gemv.c of
                 134 MB bfloat16, whichever is faster

What was tried for the layers of few rows and is not used (one thread of a Zen 4 server core, 24 matrices [4096, 1024]
so that none stays in a cache, GB/s of weights at one and two rows, best of several; the large product reads 21):

    torch linear                  float32 14.1 / 7.0, bfloat16 9.8 / 10.0 (oneDNN lays the weights out each time)
    torch._weight_int8pack_mm     7.8 / 7.0
    torch._weight_int4pack_mm     8.6 / 7.1
    inductor, one sum a row       bfloat16 24.0 / 16.4, int8 15.8 / 10.2 (a second row costs as much again)
    C, four rows of the matrix    bfloat16 10.8 / 9.8 (four short streams; prefetching by hand 13.3)
    C, rows one by one            bfloat16 27.2 / 19.0, 8.7 with other work on the core (x is loaded for each row)
    C, tiles (lm/kernels/cpu_gemv.c)        float32 18.5 / 20.1, bfloat16 23.1 / 22.3, int8 22.1 / 18.2, int4 11.1 / 8.1

and torch's attention of one bfloat16 query to 250 keys, 16 heads and two rows takes 860 us, that of cpu_gemv.c 94 us
(float32: 113 and 96 us).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from openvino_musicgen import Decoder

from tessera.generate.decoding.generate_codes import generate_codes
from tessera.generate.requests.request import Request
from tessera.generate.requests.settings import Length
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.heads.multi_token_prediction import Ahead, AheadConfig
from tessera.lm.kernels.cpu_fused_block import fuse_all
from tessera.lm.layers.attention_layers import CrossAttention
from tessera.lm.models.causal import TokenLM
from tessera.lm.public.musicgen import load_musicgen
from tessera.lm.quantization.packed_linear import PackedLinear, pack_

STATES, WIDTH, LAYERS, BOOKS, CODES, GUIDANCE, TOP_K = 16, 1024, 24, 4, 2048, 3.0, 250
KINDS = ("bfloat16", "int8", "int4")
DRAFTS = 3


@dataclass
class Contender:
    """Somebody who generates."""

    name: str
    run: Callable[[int, int], object]
    """run(batch, frames)"""
    weight_bytes: int
    """Memory of all weights."""
    bytes_per_step: int = 0
    """Weights that a step reads; 0: not counted."""
    warm_up: Callable[[int, int], object] | None = None
    """warm_up(batch, frames), once before each batch; None: two frames."""
    seconds: dict[int, list[float]] = field(default_factory=dict)
    """By batch, one for each turn."""
    peak_bytes: dict[int, int] = field(default_factory=dict)
    """By batch, on a CUDA device."""
    frames: int = 0
    """Of each sample."""


def compare(
    device: torch.device,
    batches: Sequence[int] = (1,),
    frames: int = 250,
    turns: int = 5,
    layers: int = LAYERS,
    budget: float | None = None,
    also: Sequence[str] = (),
) -> dict:
    """Measure and print; returns the figures under their names. ImportError where transformers is missing.

    Args:
        also: further contenders on a CPU: "compile", transformers under torch.compile; "openvino"
            (openvino_musicgen.py); "drafts", ours in bfloat16 with three drafts a step, never right and always.
        budget: seconds that the turns of a batch may take: transformers makes so few frames that three turns fit, and
            there is at least one turn. None: as long as it takes.
    """
    attention = choose_attention(device)
    contenders = make_contenders(device, layers, attention or "sdpa", also)
    theirs = contenders[0] if attention else None
    if theirs is None:
        contenders = contenders[1:]
    print(
        f"\nMusicGen-small's shape, {layers} layers, {frames} frames, guidance {GUIDANCE:g}, {turns} turns, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{'':<22} {'batch':>5} {'frames/s':>9} {'spread':>7} {'ratio':>6} {'GB/s':>6} {'share':>6} {'weights':>9}")
    found: dict = {"transformers_attention": attention, "rows": []}
    for batch in batches:
        bandwidths = take_turns(contenders, device, batch, frames, turns, budget)
        for contender in contenders:
            row = figures(contender, theirs, batch, bandwidths, layers)
            found["rows"].append(row)
            print_row(row)
            if contender.name.startswith("tessera"):
                found[f"ratio_{short(contender.name)}_b{batch}"] = row["ratio"]
                if row["bandwidth_share"] is not None:
                    found[f"bandwidth_share_{short(contender.name)}_b{batch}"] = row["bandwidth_share"]
    return found


def choose_attention(device: torch.device) -> str | None:
    """The attention with which transformers generates on this device: "sdpa", its default, or "eager"; None: neither.

    On a CUDA device each is tried in a process of its own, because a failed assertion of a kernel ends the use of the
    device for the process that met it. What a failed one printed last goes to stderr.
    """
    if device.type != "cuda":
        return "sdpa"
    for name in ("sdpa", "eager"):
        command = [sys.executable, __file__, "--device", str(device), "--try-attention", name]
        tried = subprocess.run(command, capture_output=True, text=True)
        if tried.returncode == 0:
            return name
        printed = (tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"])[-1]
        print(f"transformers does not generate on {device} with attention {name}: {printed}", file=sys.stderr)
    return None


def make_contenders(
    device: torch.device, layers: int = LAYERS, attention: str = "sdpa", also: Sequence[str] = ()
) -> list[Contender]:
    """transformers first, with this attention, then ours with each kind of weights, then `also`."""
    transformers = import_module("transformers")  # an import statement would make pyright read thousands of files
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if device.type == "cuda":  # torch 2.11's attention by cuDNN fails with the shapes that transformers gives it
        torch.backends.cuda.enable_cudnn_sdp(False)
    torch.manual_seed(0)
    config = transformers.MusicgenDecoderConfig(
        vocab_size=CODES, num_hidden_layers=1, hidden_size=WIDTH, num_attention_heads=16, ffn_dim=4 * WIDTH,
        num_codebooks=BOOKS, pad_token_id=CODES, bos_token_id=CODES, attn_implementation=attention,
    )  # fmt: skip
    theirs = transformers.MusicgenForCausalLM(config).to(device, torch.bfloat16).eval()
    for name in ("pad_token_id", "bos_token_id", "decoder_start_token_id"):
        setattr(theirs.generation_config, name, CODES)
    generator = torch.Generator().manual_seed(1)

    def states(batch: int) -> torch.Tensor:
        return torch.randn(batch, STATES, WIDTH, generator=generator).to(device, torch.bfloat16)

    def run_theirs(batch: int, frames: int, model=theirs):
        given = states(batch)
        with torch.inference_mode():
            return model.generate(
                inputs=torch.full((batch * BOOKS, 1), CODES, device=device),
                attention_mask=torch.ones(batch, 1, dtype=torch.long, device=device),
                encoder_hidden_states=torch.cat([given, torch.zeros_like(given)]),
                guidance_scale=GUIDANCE, do_sample=True, top_k=TOP_K, num_return_sequences=1,
                min_length=frames + BOOKS, max_length=frames + BOOKS,
            )  # fmt: skip

    contenders, drafted = [Contender("transformers bfloat16", run_theirs, 0)], []
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        for kind in KINDS:
            lm = load_musicgen(Path(folder), device=device, dtype="bfloat16")
            if device.type == "cpu" or kind != "bfloat16":
                pack_(lm, kind)
            lm.transformer.blocks = repeated(lm.transformer.blocks[0], layers)
            lm.config = lm.config.model_copy(update={"layers": layers})
            lm.transformer.fused = fuse_all(lm.transformer)
            size, read = sum(x.nbytes for x in (*lm.parameters(), *lm.buffers())), step_bytes(lm)
            contenders.append(Contender(f"tessera {kind}", ours(lm, states), size, read))
            if kind == "bfloat16" and "drafts" in also:
                for name, model in (("wrong", lm), ("right", without_preference(lm))):
                    model.ahead = Ahead(AheadConfig(steps=DRAFTS), WIDTH).to(device, torch.bfloat16)
                    drafted.append(Contender(f"tessera drafts-{name}", ours(model, states, DRAFTS), size))
    decoder = theirs.model.decoder
    decoder.layers = repeated(decoder.layers[0], layers)
    config.num_hidden_layers = layers
    for number, layer in enumerate(decoder.layers):  # the place in the cache
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number  # pyright: ignore[reportArgumentType]
    contenders[0].weight_bytes = sum(parameter.nbytes for parameter in theirs.parameters())
    if "compile" in also:
        compiled = copy.deepcopy(theirs)
        compiled.forward = torch.compile(compiled.forward, dynamic=True)
        run_compiled = partial(run_theirs, model=compiled)
        contenders.append(Contender("transformers compiled", run_compiled, contenders[0].weight_bytes))
    for kind in KINDS if "openvino" in also else ():
        contenders.append(in_openvino(copy.deepcopy(theirs), kind, states))
    return contenders + drafted


def without_preference(lm: TokenLM) -> TokenLM:
    """The model with a head that gives all codes the same logit, so that drafts are drawn as the model itself draws."""
    changed = copy.copy(lm)
    changed._modules = dict(lm._modules)
    changed.head = copy.deepcopy(lm.head)
    for tensor in (*changed.head.parameters(), *changed.head.buffers()):
        if tensor.is_floating_point():
            tensor.detach().zero_()
    return changed


def in_openvino(theirs: Any, kind: str, states: Callable[[int], torch.Tensor]) -> Contender:
    """Generation by OpenVINO with weights of this kind, from a copy of transformers' model."""
    decoder = Decoder(theirs, kind, torch.get_num_threads())
    count, bits = sum(parameter.numel() for parameter in theirs.parameters()), {"bfloat16": 16, "int8": 8, "int4": 4}

    def run(batch: int, frames: int, warm_up: bool = False) -> object:
        return decoder.generate(states(batch).float(), frames, GUIDANCE, CODES, warm_up)

    return Contender(f"openvino {kind}", run, count * bits[kind] // 8, warm_up=partial(run, warm_up=True))


def bytes_of(packed: PackedLinear) -> int:
    """Memory of weights, scales and bias."""
    return sum(buffer.nbytes for buffer in packed.buffers())


def step_bytes(lm: TokenLM) -> int:
    """Bytes of the matrices read by one generation step: backbone and head, without the projections of the conditions
    to keys and values, which run once per generation."""
    once = {id(module.key_value) for module in lm.transformer.modules() if isinstance(module, CrossAttention)}
    total = 0
    for part in (lm.transformer, lm.head):
        for module in part.modules():
            if isinstance(module, PackedLinear) and id(module) not in once:
                total += bytes_of(module)
            elif isinstance(module, torch.nn.Linear) and id(module) not in once:
                total += module.weight.nbytes
    weight = getattr(lm.head, "weight", None)
    return total if weight is None else total + weight.nbytes


def repeated(layer: torch.nn.Module, count: int) -> torch.nn.ModuleList:
    """The layer and copies of it."""
    return torch.nn.ModuleList([layer, *[copy.deepcopy(layer) for _ in range(count - 1)]])


def ours(lm: TokenLM, states: Callable[[int], torch.Tensor], draft: int = 0) -> Callable[[int, int], object]:
    """Generation with a model of ours and so many drafts a step."""

    def run(batch: int, frames: int):
        conditions = ConditionBatch(embedding=states(batch), embedding_lengths=torch.full((batch,), STATES))
        config = GenerationConfig(top_k=TOP_K, guidance=GUIDANCE, draft=draft)
        return generate_codes(lm, Request(conditions, list(range(batch)), Length(frames, fixed=True), config))

    return run


def take_turns(
    contenders: list[Contender], device: torch.device, batch: int, frames: int, turns: int, budget: float | None
) -> list[float]:
    """Time everybody in each turn, after a few frames to warm up; returns each turn's bandwidth, bytes a second."""
    matrix, vector = torch.randn(1 << 10, 1 << 12, device=device).repeat(16, 1), torch.randn(1, 1 << 12, device=device)
    packed = PackedLinear(matrix, None, "bfloat16")
    started = time.perf_counter()
    for contender in contenders:
        first = contender.warm_up or (lambda batch, _, run=contender.run: run(batch, 2))
        took = timed(device, lambda first=first: first(batch, frames))
        contender.seconds[batch], contender.frames = [], frames
        if budget is not None and contender.bytes_per_step == 0:  # transformers
            steps = budget / 4 / (took / (2 + BOOKS - 1))  # a quarter for the warm-up and for ours
            contender.frames = max(2, min(frames, int(steps) - BOOKS + 1))
            print(f"transformers makes {contender.frames} frames a turn, the others {frames}", flush=True)
    bandwidths = []
    for turn in range(turns):
        if turn and budget is not None and (time.perf_counter() - started) * (turn + 1) / turn > budget:
            break
        plain = matrix.nbytes / min(timed(device, lambda: torch.mv(matrix, vector[0])) for _ in range(5))
        bandwidths.append(max(plain, bytes_of(packed) / min(timed(device, lambda: packed(vector)) for _ in range(5))))
        for contender in contenders:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            contender.seconds[batch].append(timed(device, lambda one=contender: one.run(batch, one.frames)))
            if device.type == "cuda":
                contender.peak_bytes[batch] = torch.cuda.max_memory_allocated(device)
    return bandwidths


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds that work takes, until the device has done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def figures(contender: Contender, base: Contender | None, batch: int, bandwidths: list[float], layers: int) -> dict:
    """The figures of one contender at one batch; base: transformers, None where it does not generate."""
    frames, seconds = contender.frames, contender.seconds[batch]
    steps = frames + BOOKS - 1
    ratios = []
    if base is not None:
        base_steps = base.frames + BOOKS - 1
        ratios = [(b / base_steps) / (s / steps) for s, b in zip(seconds, base.seconds[batch], strict=True)]
    rows = 2 * batch
    # keys and values of all positions so far, half of them on the average, and those of the states
    cache = rows * layers * 2 * WIDTH * 2 * (steps / 2 + STATES)
    read = contender.bytes_per_step + cache if contender.bytes_per_step else None
    shares = None if read is None else [read * steps / s / b for s, b in zip(seconds, bandwidths, strict=True)]
    return {
        "name": contender.name,
        "batch": batch,
        "frames": frames,
        "seconds": seconds,
        "frames_per_second": batch * frames / statistics.median(seconds),
        "spread": (max(seconds) - min(seconds)) / statistics.median(seconds),
        "ratio": statistics.median(ratios) if ratios else None,
        "ratios": ratios,
        "bytes_per_step": read,
        "bytes_per_second": None if read is None else read * steps / statistics.median(seconds),
        "bandwidths": bandwidths,
        "bandwidth_share": None if shares is None else statistics.median(shares),
        "weight_bytes": contender.weight_bytes,
        "peak_bytes": contender.peak_bytes.get(batch),
    }


def print_row(row: dict) -> None:
    """One line of the table."""
    speed = "" if row["bytes_per_second"] is None else f"{row['bytes_per_second'] / 1e9:.1f}"
    share = "" if row["bandwidth_share"] is None else f"{row['bandwidth_share']:.0%}"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    print(
        f"{row['name']:<22} {row['batch']:5d} {row['frames_per_second']:9.1f} {row['spread']:7.0%} {ratio:>6} "
        f"{speed:>6} {share:>6} {row['weight_bytes'] / 1e6:6.0f} MB",
        flush=True,
    )


def short(name: str) -> str:
    """bf16, int8 or int4."""
    return name.split()[1].replace("bfloat", "bf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--layers", type=int, default=LAYERS, help="decoder layers")
    parser.add_argument("--frames", type=int, default=250)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument(
        "--also", nargs="+", choices=("drafts", "compile", "openvino"), default=(), help="further contenders"
    )
    parser.add_argument("--try-attention", choices=("sdpa", "eager"), help="only generate 4 frames with transformers")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.try_attention:
        device = torch.device(arguments.device)
        contender = make_contenders(device, 1, arguments.try_attention)[0]
        timed(device, lambda: contender.run(8, 4))
        return
    batches = [int(batch) for batch in arguments.batches.split(",")]
    device, also = torch.device(arguments.device), arguments.also
    found = compare(device, batches, arguments.frames, arguments.turns, layers=arguments.layers, also=also)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
