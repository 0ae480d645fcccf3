"""Linear layers of few rows at the speed of memory: skinny.c, compiled once and kept in the user's cache.

One step of generation multiplies every weight with one row (two with guidance) for each sample, so it takes as long as
reading the weights takes. torch's own layers lay bfloat16 weights out anew for each product, and read float32 weights
once for each row. Only a C compiler is needed, no headers: it takes two seconds, once for a machine. Where there is
none, `why_not` says so and callers use torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("skinny.c")
TILE = (4, 32)
"""Outputs and inputs of a tile."""
KINDS = ("float32", "bfloat16", "int8", "int4")
"""In the order of the numbers skinny.c has for them."""
MAX_ROWS = 16
"""From here on products, not memory, take the time, and torch's matrix product is better."""


def tiled(weight: Tensor, filler: float = 0) -> Tensor:
    """Weights [N, D] of any dtype in the order they are read, [N / 4, D / 32, 4, 32] rounded up."""
    outputs, inputs = TILE
    N, D = weight.shape
    weight = torch.nn.functional.pad(weight, (0, -D % inputs, 0, -N % outputs), value=filler)
    return weight.unflatten(1, (-1, inputs)).unflatten(0, (-1, outputs)).transpose(1, 2).contiguous()


def untiled(tiles: Tensor, outputs: int, inputs: int) -> Tensor:
    """The weights [N, D] that `tiled` was given."""
    return tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)[:outputs, :inputs]


def skinny_linear(
    x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None, kind: str, outputs: int, group: int
) -> Tensor:
    """x W^T + bias for a matrix as `PackedLinear` (quantise.py) keeps it.

    Args:
        x: [*, D] float32 or bfloat16 on the CPU.
        weight: tiles of `kind`; int4: uint8 [N / 4, D / 32, 4, 16], rounded up.
        scales: int8: float32 [N rounded up]. int4: bfloat16 [N / 4, groups, 2, 4], scales and offsets.
        bias: float32 [N].
        kind: one of KINDS.
        outputs: N.
        group: inputs that share an int4 scale, a multiple of 32; for other kinds 32.
    Returns:
        [*, N] in x's dtype; sums are float32.
    """
    if torch.compiler.is_compiling():
        return torch.ops.tessera.skinny_linear(x, weight, scales, bias, KINDS.index(kind), outputs, group)
    return _call(x, weight, scales, bias, KINDS.index(kind), outputs, group)


def skinny_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of one query to the positions so far, [B, H, 1, E] -> [B, H, 1, E].

    Args:
        queries: [B, H, 1, E] float32 or bfloat16 on the CPU, E a multiple of 16.
        keys, values: [B, G, M, E] of the same dtype; the numbers of a head lie together, all else may be strided.
        mask: bool [B or 1, 1, 1, M], True where a key is seen; None: all are.
    """
    if torch.compiler.is_compiling():
        return torch.ops.tessera.skinny_attention(queries, keys, values, mask)
    return _attend(queries, keys, values, mask)


def can_attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> bool:
    """Whether `skinny_attention` takes these."""
    return (
        queries.shape[2] == 1
        and queries.shape[3] % 16 == 0
        and queries.dtype in (torch.float32, torch.bfloat16)
        and queries.dtype == keys.dtype == values.dtype
        and queries.device.type == "cpu"
        and keys.stride(3) == values.stride(3) == 1
        and (mask is None or mask.shape[1:3] == (1, 1))
        and not why_not()
    )


@torch.compiler.assume_constant_result
def why_not() -> str:
    """Why the kernels cannot be used here; "" where they can."""
    return _library()[2]


def _call(
    x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None, kind: int, outputs: int, group: int
) -> Tensor:
    x = x.contiguous()
    inputs = x.shape[-1]
    y = x.new_empty((*x.shape[:-1], outputs))
    function = _library()[0]
    assert function is not None
    status = function(
        kind,
        weight.data_ptr(),
        None if scales is None else scales.data_ptr(),
        None if bias is None else bias.data_ptr(),
        x.data_ptr(),
        y.data_ptr(),
        x.numel() // inputs,
        inputs,
        outputs,
        group,
        x.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    if status:
        raise MemoryError(f"no memory for a linear layer of {inputs} inputs and {outputs} outputs")
    return y


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    B, H, _, E = queries.shape
    G, M = keys.shape[1:3]
    queries = queries.contiguous()
    out = torch.empty_like(queries)
    function = _library()[1]
    assert function is not None
    seen = None if mask is None else mask.expand(B, 1, 1, M).contiguous()
    strides = (*keys.stride()[:3], *values.stride()[:3], M)
    status = function(
        KINDS.index("float32" if queries.dtype == torch.float32 else "bfloat16"),
        queries.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        None if seen is None else seen.data_ptr(),
        out.data_ptr(),
        B,
        H,
        G,
        M,
        E,
        (ctypes.c_int64 * 7)(*strides),
        torch.get_num_threads(),
    )
    if status:
        raise MemoryError(f"no memory for attention to {M} positions")
    return out


def _shape_of(
    x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None, kind: int, outputs: int, group: int
) -> Tensor:
    return x.new_empty((*x.shape[:-1], outputs))


_operators = torch.library.Library("tessera", "FRAGMENT")
_operators.define(
    "skinny_linear(Tensor x, Tensor weight, Tensor? scales, Tensor? bias, int kind, int outputs, int group) -> Tensor"
)
_operators.impl("skinny_linear", _call, "CPU")
_operators.define("skinny_attention(Tensor queries, Tensor keys, Tensor values, Tensor? mask) -> Tensor")
_operators.impl("skinny_attention", _attend, "CPU")
torch.library.register_fake("tessera::skinny_linear", _shape_of, lib=_operators)
torch.library.register_fake("tessera::skinny_attention", lambda queries, *_: torch.empty_like(queries), lib=_operators)


# The compiled library


@cache
def _library():
    """(linear, attention, "") or (None, None, why there are none)."""
    try:
        library = ctypes.CDLL(str(_built()))
        linear, attention = library.skinny_linear, library.skinny_attention
    except (OSError, RuntimeError) as error:
        return None, None, str(error)
    integer, pointer, number = ctypes.c_int, ctypes.c_void_p, ctypes.c_int64
    linear.argtypes = [integer, *[pointer] * 5, *[number] * 4, integer, integer]
    attention.argtypes = [integer, *[pointer] * 5, *[number] * 5, pointer, integer]
    linear.restype = attention.restype = integer
    return linear, attention, ""


def _built() -> Path:
    """The shared library for this machine and this source, compiled where the cache has none."""
    compiler = next((found for name in (os.environ.get("CC"), "gcc", "clang", "cc") if (found := _found(name))), None)
    if compiler is None or os.name == "nt":
        raise RuntimeError("no C compiler was found (gcc or clang); install one, or set CC")
    described = "\n".join([SOURCE.read_text(encoding="utf-8"), compiler, _processor()])
    path = cache_folder() / f"skinny-{hashlib.sha256(described.encode()).hexdigest()[:16]}.so"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Made under another name and then renamed: a process beside this one never loads half a file.
    handle, made = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        failures = []
        for flags in (["-march=native", "-fopenmp"], ["-fopenmp"], ["-march=native"], []):
            command = [compiler, "-O3", *flags, "-shared", "-fPIC", "-w", str(SOURCE), "-o", made, "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                os.replace(made, path)
                return path
            failures.append(done.stderr.strip().splitlines()[:1])
        raise RuntimeError(f"{compiler} could not compile {SOURCE.name}: {failures[0]}")
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(made)


def cache_folder() -> Path:
    """Where compiled kernels are kept: $XDG_CACHE_HOME/tessera, by default ~/.cache/tessera."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tessera"


def _found(name: str | None) -> str | None:
    return shutil.which(name) if name else None


def _processor() -> str:
    """What decides which instructions may be used: a library compiled for another processor would crash."""
    wanted = ("model name", "flags", "Features", "CPU part")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
