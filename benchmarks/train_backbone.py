"""Training tokens per second of the backbone, beside a plain loop around transformers' LlamaForCausalLM.

    python benchmarks/train_backbone.py --threads 2
    python benchmarks/train_backbone.py --quick --json out.json

Both have the same weights, read the same tokens and take the same steps (forward, cross-entropy, backward, AdamW of
torch); that their losses agree is checked first. Ours steps AdamW as `tessera train` does, fused; the plain loop leaves
it as torch makes it, or with --same-optimizer fused as well. Steps of the two are timed in turn, so that what else the
machine does meets both. A figure is the median over the steps after two to warm up; spread is (largest - smallest) /
median; ratio is the median of the ratios of neighbouring steps, with the quartiles of these ratios behind it. On a
machine that does other work take --clock process, the processor's time that the steps took (with one thread). Needs
transformers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from tessera.lm.attention.registry import BACKENDS
from tessera.lm.config import LMConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.patterns.pattern import ParallelConfig
from tessera.tokenize.spec import AudioGeometry, TokenSpec

SIZES = {
    # width, layers, heads, key heads, feed-forward, vocabulary, batch, length
    "quick": (256, 4, 4, 4, 704, 1024, 4, 128),
    "small": (512, 8, 8, 8, 1408, 2048, 4, 256),
    "grouped": (512, 8, 8, 2, 1408, 2048, 4, 256),
    "long": (256, 4, 4, 4, 704, 1024, 1, 1024),
    "wide": (1024, 2, 16, 16, 2816, 2048, 1, 512),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each")
    parser.add_argument("--sizes", nargs="*", choices=SIZES, help="default: all but quick")
    parser.add_argument("--quick", action="store_true", help="the size 'quick' alone, five steps")
    parser.add_argument("--precisions", nargs="*", choices=("float32", "bfloat16"), default=("float32", "bfloat16"))
    parser.add_argument("--attention", nargs="*", choices=BACKENDS, default=["sdpa"], help="backends of ours")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--same-optimizer", action="store_true", help="fused AdamW on both sides")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    steps = 5 if arguments.quick else arguments.steps
    names = ["quick"] if arguments.quick else arguments.sizes or [name for name in SIZES if name != "quick"]
    about = describe(arguments.device)
    print("  ".join(f"{name} {value}" for name, value in about.items()), file=sys.stderr)
    heads = f"{'tessera tok/s':>14} {'spread':>7} {'llama tok/s':>12} {'spread':>7} {'ratio':>6} quartiles"
    print(f"{'size':<9} {'precision':<9} {'attention':<9} {heads}")
    rows = []
    for name in names:
        for precision in arguments.precisions:
            for attention in arguments.attention:
                rows.append(compare(name, precision, attention, steps, arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps({**about, "command": sys.argv, "rows": rows}, indent=1) + "\n")


def compare(name: str, precision: str, attention: str, steps: int, arguments: argparse.Namespace) -> dict:
    """One size in one precision with one attention backend of ours, printed."""
    device, clock = arguments.device, CLOCKS[arguments.clock]
    *_, batch, length = SIZES[name]
    lm, llama = make_pair(name, device, attention)
    vocabulary = lm.arrangement.output_sizes[0]
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(vocabulary - 1, (batch, 1, length - 1), generator=generator).to(device)
    end = torch.full((batch, 1), vocabulary - 1, device=device)
    read = torch.cat([end, codes[:, 0]], dim=1)  # the start reads as the end
    wanted = torch.cat([codes[:, 0], end], dim=1)

    def our_loss() -> Tensor:
        return lm.loss(codes).loss

    def their_loss() -> Tensor:
        return llama(input_ids=read, labels=wanted, shift_labels=wanted).loss

    with torch.no_grad():
        found, expected = float(our_loss()), float(their_loss())
    assert abs(found - expected) < 1e-4 * expected, f"losses differ: {found} and {expected}"
    pair = [
        make_step(lm, our_loss, precision, device, clock, fused=True),
        make_step(llama, their_loss, precision, device, clock, fused=arguments.same_optimizer or None),
    ]
    times: list[list[float]] = [[], []]
    for turn in range(2 + steps):
        for side in (0, 1) if turn % 2 else (1, 0):
            seconds = pair[side]()
            if turn >= 2:
                times[side].append(seconds)
    tokens = batch * length
    row = {"size": name, "precision": precision, "attention": attention, "tokens_per_step": tokens}
    for side, who in enumerate(("tessera", "llama")):
        median = statistics.median(times[side])
        row[f"{who}_tokens_per_second"] = tokens / median
        row[f"{who}_spread"] = (max(times[side]) - min(times[side])) / median
        row[f"{who}_seconds"] = times[side]
    ratios = [theirs / ours for ours, theirs in zip(*times, strict=True)]
    row["ratio"] = statistics.median(ratios)
    row["ratio_quartiles"] = statistics.quantiles(ratios, n=4)[::2]
    print(
        f"{name:<9} {precision:<9} {attention:<9} "
        f"{row['tessera_tokens_per_second']:14.0f} {row['tessera_spread']:7.1%} "
        f"{row['llama_tokens_per_second']:12.0f} {row['llama_spread']:7.1%} {row['ratio']:6.3f} "
        f"{' - '.join(f'{quartile:.3f}' for quartile in row['ratio_quartiles'])}",
        flush=True,
    )
    return row


def make_step(
    module: torch.nn.Module,
    loss: Callable[[], Tensor],
    precision: str,
    device: str,
    clock: Callable[[], float],
    fused: bool | None,
) -> Callable[[], float]:
    """A function that trains one step and gives its seconds. fused: of AdamW; None: torch chooses."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=fused)
    kind = torch.device(device).type

    def step() -> float:
        synchronise(kind)
        began = clock()
        cast = torch.autocast(kind, torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()
        with cast:
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronise(kind)
        return clock() - began

    return step


def make_pair(name: str, device: str, attention: str = "sdpa") -> tuple[TokenLM, torch.nn.Module]:
    """A TokenLM and a LlamaForCausalLM of the same weights, in training mode."""
    transformers = import_module("transformers")  # an import statement would make pyright read thousands of files
    width, layers, heads, kv_heads, ffn, vocabulary, _, length = SIZES[name]
    torch.manual_seed(0)
    described = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=ffn,
        rms_norm_eps=1e-6,
        max_position_embeddings=2 * length,
        tie_word_embeddings=False,
        use_cache=False,
    )
    llama = transformers.LlamaForCausalLM(described)
    config = LMConfig(
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        ffn=ffn,
        attention=attention,  # pyright: ignore[reportArgumentType]
        arrangement=ParallelConfig(),
        variable_length=True,
    )
    geometry = AudioGeometry(sample_rate=16000, samples_per_frame=320)
    spec = TokenSpec(name="none", cardinalities=(vocabulary - 1,), geometry=geometry, fingerprint="0" * 64)
    lm = TokenLM(config, spec)
    lm.load_state_dict(weights_of(llama, lm))
    return lm.to(device).train(), llama.to(device).train()


def weights_of(llama: torch.nn.Module, lm: TokenLM) -> dict[str, Tensor]:
    """Llama's weights under our names: its halves of a rotated head are our neighbours."""
    theirs = llama.state_dict()
    heads = lm.config.heads, lm.config.num_kv_heads

    def neighbours(weight: Tensor, count: int) -> Tensor:
        return weight.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)

    table = theirs["model.embed_tokens.weight"]
    special = table[-1:].expand(lm.arrangement.num_specials, -1)
    ours = {
        "input.table.weight": torch.cat([table[:-1], special]),
        "head.weight": theirs["lm_head.weight"],
        "transformer.norm.weight": theirs["model.norm.weight"],
    }
    for n in range(lm.config.layers):
        layer = {name: theirs[f"model.layers.{n}.{name}.weight"] for name in LAYER}
        q, k, v = (layer[f"self_attn.{part}_proj"] for part in "qkv")
        block = {
            "attention_norm": layer["input_layernorm"],
            "attention.qkv": torch.cat([neighbours(q, heads[0]), neighbours(k, heads[1]), v]),
            "attention.out": layer["self_attn.o_proj"],
            "ffn_norm": layer["post_attention_layernorm"],
            "ffn.gate_up": torch.cat([layer["mlp.gate_proj"], layer["mlp.up_proj"]]),
            "ffn.down": layer["mlp.down_proj"],
        }
        ours.update({f"transformer.blocks.{n}.{name}.weight": tensor for name, tensor in block.items()})
    return ours


CLOCKS = {"wall": time.perf_counter, "process": time.process_time}

LAYER = (
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    *("input_layernorm", "post_attention_layernorm"),
)


def synchronise(kind: str) -> None:
    if kind == "cuda":
        torch.cuda.synchronize()


def describe(device: str) -> dict[str, str]:
    """What a figure depends on."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else platform.processor()
    return {
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "device": f"{device} {name}".strip(),
        "threads": str(torch.get_num_threads()),
    }


if __name__ == "__main__":
    main()
