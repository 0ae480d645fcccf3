"""CSM-1B's shape with random weights: our generation beside that of transformers, turn by turn in one run.

    python benchmarks/csm.py [--threads 2] [--turns 3] [--frames 16] [--batches 1 4] [--json FILE]
    python benchmarks/csm.py --quick            tiny shapes: whether it runs

benchmarks/peers.py prints these rows as well. Both sides open the folder that transformers saved, in bfloat16, read a
text of 24 ids and make the same number of frames of 32 codes, at temperature 0.9 with top-k 50: the settings of the
published model. Audio is not decoded. Before anything is timed, both must give the same greedy codes with tiny weights
in float32. Rows `int8` and `int4` are ours with smaller weights, over transformers in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tessera
from tessera.generate.decoding.generate_codes import generate_codes
from tessera.generate.requests.request import Request, StreamPrompt
from tessera.generate.requests.settings import Length
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.models.causal import TokenLM

KINDS = ("bfloat16", "int8", "int4")
TEXT_LENGTH, TEMPERATURE, TOP_K = 24, 0.9, 50
ROPE = {"rope_type": "llama3", "factor": 32.0}
BACKBONE_ROPE = ROPE | {"low_freq_factor": 0.125, "high_freq_factor": 0.5, "original_max_position_embeddings": 1024}
DEPTH_ROPE = ROPE | {
    "low_freq_factor": 0.001953125, "high_freq_factor": 0.0078125, "original_max_position_embeddings": 16
}  # fmt: skip
TINY = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
TINY_CODEC = {
    "num_filters": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
    "num_key_value_heads": 2, "intermediate_size": 32, "codebook_size": 16, "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8, "upsample_groups": 16,
}  # fmt: skip


def save_theirs(folder: Path, quick: bool, dtype: torch.dtype) -> None:
    """Save a model of transformers with random weights, and a text tokenizer of bytes."""
    transformers, tokenizers = import_module("transformers"), import_module("tokenizers")
    quiet(transformers)
    text = tokenizers.Tokenizer(tokenizers.models.BPE())
    text.pre_tokenizer, text.decoder = tokenizers.pre_tokenizers.ByteLevel(), tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    text.train_from_iterator([], tokenizers.trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    names = ("<|begin_of_text|>", "<|end_of_text|>")
    text.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in names])
    ids = [(name, text.token_to_id(name)) for name in names]
    text.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{names[0]} $A {names[1]}", special_tokens=ids
    )
    codes = 16 if quick else 2048
    backbone = TINY | {"text_vocab_size": 300} if quick else {}
    depth = TINY | {"hidden_size": 32, "backbone_hidden_size": 64} if quick else {}
    books = 4 if quick else 32
    config = transformers.CsmConfig(
        num_codebooks=books,
        vocab_size=codes + 3,
        codebook_pad_token_id=codes + 2,
        bos_token_id=ids[0][1],
        pad_token_id=ids[1][1],
        rope_scaling=dict(BACKBONE_ROPE),
        codec_config=transformers.MimiConfig(**(TINY_CODEC if quick else {}), num_quantizers=books),
        depth_decoder_config=transformers.CsmDepthDecoderConfig(
            num_codebooks=books, vocab_size=codes + 3, rope_scaling=dict(DEPTH_ROPE), **depth
        ),
        **backbone,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = transformers.CsmForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    if quick:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 and not name.startswith("codec_model."):
                    parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    text.save(str(folder / "tokenizer.json"))


def quiet(transformers: Any) -> None:
    """No messages and no progress bars."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def open_theirs(folder: Path, dtype: str = "bfloat16") -> Any:
    """Their model, as its library reads it."""
    transformers = import_module("transformers")
    quiet(transformers)
    return transformers.CsmForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()


def text_ids(begin: int, batch: int, generator: torch.Generator) -> Tensor:
    """[B, L]: texts of random ids between begin and end."""
    ids = torch.randint(begin, (batch, TEXT_LENGTH), generator=generator)
    ids[:, 0], ids[:, -1] = begin, begin + 1
    return ids


def run_theirs(model: Any, ids: Tensor, frames: int, greedy: bool = False) -> Tensor:
    """Codes [B, T, K] of texts [B, L]; greedy without the ids after the codes, as ours."""
    settings: dict[str, Any] = {"do_sample": not greedy, "depth_decoder_do_sample": not greedy}
    if greedy:
        never = list(range(model.config.vocab_size - 3, model.config.vocab_size))
        settings |= {"suppress_tokens": never, "depth_decoder_suppress_tokens": never}
    else:
        drawn = {"temperature": TEMPERATURE, "top_k": TOP_K}
        settings |= drawn | {f"depth_decoder_{name}": value for name, value in drawn.items()}
    with torch.inference_mode():
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=frames, **settings)


def run_ours(lm: TokenLM, ids: Tensor, frames: int, greedy: bool = False) -> Tensor:
    """Codes [B, K, T] of texts [B, L]."""
    stream = lm.text_stream
    assert stream is not None
    none = torch.zeros(lm.spec.num_codebooks, 0, dtype=torch.long)
    prompt = StreamPrompt.make("speak", [stream.speak(row, none) for row in ids], frames, frames)
    config = GenerationConfig(temperature=0.0 if greedy else TEMPERATURE, top_k=0 if greedy else TOP_K)
    length = Length(int(prompt.longest.max()), 0, fixed=True)
    request = Request(ConditionBatch(), list(range(len(ids))), length, config, stream=prompt)
    return generate_codes(lm, request).codes


def check_equal() -> None:
    """SystemExit unless both give the same greedy codes, with tiny weights in float32."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_theirs(folder, True, torch.float32)
        theirs, ours = open_theirs(folder, "float32"), tessera.load(folder)
        ids = text_ids(theirs.config.bos_token_id, 2, torch.Generator().manual_seed(1))
        assert isinstance(ours.lm, TokenLM)
        if not torch.equal(run_theirs(theirs, ids, 8, True).transpose(1, 2), run_ours(ours.lm, ids, 8, True)):
            raise SystemExit("csm: the greedy codes differ, so there is nothing to compare")


def compare(
    batches: tuple[int, ...] = (1, 4),
    turns: int = 3,
    frames: int = 16,
    quick: bool = False,
    kinds: tuple[str, ...] = KINDS,
) -> list[dict[str, Any]]:
    """Rows of generation and of loading; printed by the caller."""
    peers = import_module("peers")
    check_equal()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_theirs(folder, quick, torch.bfloat16)
        theirs = open_theirs(folder)
        begin = theirs.config.bos_token_id
        for kind in kinds:
            model = tessera.load(folder, dtype="bfloat16", weights=kind)  # pyright: ignore[reportArgumentType]
            lm = model.lm
            assert isinstance(lm, TokenLM)
            for batch in batches:
                ids = text_ids(begin, batch, torch.Generator().manual_seed(1))
                count = turns if kind == "bfloat16" else 1
                taken = peers.turns_of(
                    lambda ids=ids, lm=lm: run_ours(lm, ids, frames),
                    lambda ids=ids, theirs=theirs: run_theirs(theirs, ids, frames),
                    count,
                )
                taken |= {"frames": frames, "ours_frames_s": batch * frames / taken["ours_s"]}
                rows.append({"system": "csm-1b", "work": f"generate {kind} batch {batch}", **taken})
            del model, lm
        del theirs
        own, other = (in_a_process(folder, side) for side in ("ours", "theirs"))
        load = {"ratio": other["load_s"] / own["load_s"], "ours": own["load_s"], "theirs": other["load_s"]}
        load["cpu"] = other["load_cpu_s"] / own["load_cpu_s"]
        rows.append({"system": "csm-1b", "work": "load", **load})
        memory = {"ratio": other["peak_mb"] / own["peak_mb"], "ours": own["peak_mb"], "theirs": other["peak_mb"]}
        rows.append({"system": "csm-1b", "work": "memory", **memory})
    return rows


def in_a_process(folder: Path, side: str) -> dict[str, float]:
    """Load time and peak memory of one side in a new process that makes two frames."""
    command = [sys.executable, __file__, "--one", side, str(folder), "--threads", str(torch.get_num_threads())]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def one(side: str, folder: Path) -> None:
    """Load and generate once in this process, and print the figures."""
    peers = import_module("peers")
    if side == "theirs":  # importing is not loading
        import_module("transformers").CsmForConditionalGeneration  # noqa: B018
    else:
        import_module("tessera.generate.loading")
    start, used = time.perf_counter(), time.process_time()
    model: Any = open_theirs(folder) if side == "theirs" else tessera.load(folder, dtype="bfloat16", weights="bfloat16")
    loaded, used = time.perf_counter() - start, time.process_time() - used
    begin = json.loads((folder / "config.json").read_text())["bos_token_id"]
    ids = text_ids(begin, 1, torch.Generator().manual_seed(1))
    run_theirs(model, ids, 2) if side == "theirs" else run_ours(model.lm, ids, 2)
    print(json.dumps({"load_s": loaded, "load_cpu_s": used, "peak_mb": peers.peak_memory()}))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    parser.add_argument("--json", type=Path, help="write the rows")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.one:
        return one(args.one[0], Path(args.one[1]))
    rows = compare(tuple(args.batches), args.turns, args.frames, args.quick, tuple(args.kinds))
    for row in rows:
        print(json.dumps(row))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
