"""Linear layers with few rows at memory speed: cpu_gemv.c, compiled once and stored in the user's cache folder.

A generation step multiplies every weight by one row per sample (two with guidance), so it is bound by reading the
weights. torch's layers convert the layout of bfloat16 weights for every product, and read float32 weights once per row.
Only a C compiler is needed, no headers: compiling takes two seconds, once per machine. Without one, `why_not` gives the
reason and callers use torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..attention.mask_types import AttentionMask
from .huge_pages import zeros_on_huge_pages
from .kernel_cache import cache_folder, load_code, private_folder, read_cached, write_cached

SOURCE = Path(__file__).with_name("cpu_gemv.c")
KINDS = ("float32", "bfloat16", "int8", "int4")
"""In the order of the enum in cpu_gemv.c."""
OUTPUTS, INPUTS, INT4_INPUTS = 4, 32, 128
"""Tile sizes; int4 has its own."""
MAX_ROWS = 16
"""Above this, products are compute-bound, and torch's matrix product is faster."""


class Matrix(ctypes.Structure):
    """A linear layer; the tensors it points to must outlive it."""

    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        *[(name, ctypes.c_int64) for name in ("kind", "inputs", "outputs", "group")],
    ]


class Past(ctypes.Structure):
    """Keys and values of the positions so far."""

    _fields_ = [
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("mask", ctypes.c_void_p),
        ("positions", ctypes.c_int64),
        ("key_strides", ctypes.c_int64 * 3),
        ("value_strides", ctypes.c_int64 * 3),
        ("mask_stride", ctypes.c_int64),
        ("half", ctypes.c_int64),
    ]


class Norm(ctypes.Structure):
    """A norm; none if weight is null."""

    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("eps", ctypes.c_double)]


MATRICES = ("qkv", "out", "cross_query", "cross_out", "up", "down")
NORMS = ("attention_norm", "query_norm", "key_norm", "cross_norm", "cross_query_norm", "ffn_norm")
SIZES = ("width", "heads", "groups", "head_width", "gated")


class Layer(ctypes.Structure):
    """Description of a block for cpu_gemv.c."""

    kept: list[Tensor]
    """Tensors it points to that nothing else keeps alive."""
    _fields_ = [
        *[(name, Matrix) for name in MATRICES],
        *[(name, Norm) for name in NORMS],
        *[(name, ctypes.c_int64) for name in SIZES],
    ]


def tiled(weight: Tensor, inputs: int = INPUTS) -> Tensor:
    """Weights [N, D] of any dtype in the kernels' order, [N / 4, D / inputs, 4, inputs], zero-padded."""
    N, D = weight.shape
    weight = torch.nn.functional.pad(weight, (0, -D % inputs, 0, -N % OUTPUTS))
    return weight.unflatten(1, (-1, inputs)).unflatten(0, (-1, OUTPUTS)).transpose(1, 2).contiguous()


def stored_tiles(weight: Tensor) -> Tensor:
    """`tiled(weight)` of a CPU tensor, written to huge pages in one pass."""
    N, D = weight.shape
    if weight.stride(1) != 1 or weight.stride(0) < D:
        weight = weight.contiguous()
    tiles = zeros_on_huge_pages((-(-N // OUTPUTS), -(-D // INPUTS), OUTPUTS, INPUTS), weight.dtype)
    size = weight.element_size()
    threads = torch.get_num_threads()
    library().tile(weight.data_ptr(), tiles.data_ptr(), N, D * size, weight.stride(0) * size, INPUTS * size, threads)
    return tiles


def untiled(tiles: Tensor, outputs: int, inputs: int) -> Tensor:
    """The inverse of `tiled`: weights [N, D]."""
    return tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)[:outputs, :inputs]


def tiled_int4(numbers: Tensor) -> Tensor:
    """Numbers 0..15 [N, D], uint8, in the kernels' order: bytes [N / 4, D / 128, 4, 64]."""
    a, b, c, d = tiled(numbers, INT4_INPUTS).chunk(4, dim=-1)
    return torch.cat([a | (b << 4), c | (d << 4)], dim=-1)


def untiled_int4(tiles: Tensor, outputs: int, inputs: int) -> Tensor:
    """The inverse of `tiled_int4`: numbers [N, D]."""
    low, high = tiles.chunk(2, dim=-1)
    return untiled(torch.cat([low & 15, low >> 4, high & 15, high >> 4], dim=-1), outputs, inputs)


def matrix_of(
    weight: Tensor, scales: Tensor | None, bias: Tensor | None, kind: str, inputs: int, outputs: int, group: int
) -> Matrix:
    """Describe a layer stored as in `PackedLinear` (lm/quantization/packed_linear.py); arguments as `gemv_linear`."""
    return Matrix(weight.data_ptr(), _pointer(scales), _pointer(bias), KINDS.index(kind), inputs, outputs, group)


def gemv_linear(
    x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None, kind: str, outputs: int, group: int
) -> Tensor:
    """x W^T + bias for a matrix stored as in `PackedLinear` (lm/quantization/packed_linear.py).

    Args:
        x: [*, D] float32 or bfloat16 on the CPU.
        weight: `tiled` of kind, or `tiled_int4`.
        scales: int8: float32 [N]. int4: bfloat16 [N / 4, groups, 2, 4], scales and offsets, zero-padded.
        bias: float32 [N].
        kind: one of KINDS.
        outputs: N.
        group: inputs that share an int4 scale: 32, 64 or 128; for other kinds 32.
    Returns:
        [*, N] in x's dtype; sums are float32.
    """
    if torch.compiler.is_compiling():
        return torch.ops.tessera.gemv_linear(x, weight, scales, bias, KINDS.index(kind), outputs, group)
    return _linear(x, weight, scales, bias, KINDS.index(kind), outputs, group)


def multiply(x: Tensor, matrix: Matrix) -> Tensor:
    """`gemv_linear` with an existing description of the matrix."""
    x = x.contiguous()
    y = x.new_empty((*x.shape[:-1], matrix.outputs))
    half, threads = _is_half(x), torch.get_num_threads()
    at_once = library().rows_at_once(matrix, half)
    inputs, outputs = (rows.view(-1, rows.shape[-1]).split(at_once) for rows in (x, y))
    for some, into in zip(inputs, outputs, strict=True):
        check_memory(library().linear(matrix, some.data_ptr(), into.data_ptr(), len(some), half, threads))
    return y


def multiplies_tiles(matrix: Matrix, dtype: torch.dtype) -> bool:
    """Whether products of many rows of this dtype use the tile registers of AMX."""
    return library().rows_at_once(matrix, dtype == torch.bfloat16) > MAX_ROWS


def gemv_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of a single query to the positions so far, [B, H, 1, E] -> [B, H, 1, E].

    Args:
        queries: [B, H, 1, E] float32 or bfloat16 on the CPU, E a multiple of 16.
        keys, values: [B, G, M, E] of the same dtype; contiguous in the last dimension, the others may be strided.
        mask: bool [B or 1, 1, 1, M], True where the query attends to a key; None: all. Masked keys are not read.
    """
    if torch.compiler.is_compiling():
        return torch.ops.tessera.gemv_attention(queries, keys, values, mask)
    return _attend(queries, keys, values, mask)


def can_attend(queries: Tensor, keys: Tensor, values: Tensor, mask: AttentionMask) -> bool:
    """Whether `gemv_attention` supports these tensors."""
    return (
        queries.shape[2] == 1
        and queries.shape[3] % 16 == 0
        and queries.dtype in (torch.float32, torch.bfloat16)
        and queries.dtype == keys.dtype == values.dtype
        and queries.device.type == "cpu"
        and keys.stride(3) == values.stride(3) == 1
        and (mask is None or (isinstance(mask, Tensor) and mask.shape[1:3] == (1, 1)))
        and not why_not()
    )


def past_of(keys: Tensor, values: Tensor, mask: AttentionMask) -> tuple[Past, Tensor | None]:
    """Describe keys, values and mask that pass `can_attend`; also returns a tensor to keep alive."""
    assert mask is None or isinstance(mask, Tensor)
    B, _, M, _ = keys.shape
    seen = None if mask is None else mask.expand(B, 1, 1, M).contiguous()
    strides, half = ctypes.c_int64 * 3, keys.dtype == torch.bfloat16
    of_keys, of_values = strides(*keys.stride()[:3]), strides(*values.stride()[:3])
    return Past(keys.data_ptr(), values.data_ptr(), _pointer(seen), M, of_keys, of_values, M, half), seen


def why_not() -> str:
    """Why the kernels cannot be used here; "" if they can."""
    return library().why_not


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    B, H, _, E = queries.shape
    queries = queries.contiguous()
    out = torch.empty_like(queries)
    past, _seen = past_of(keys, values, mask)
    threads = torch.get_num_threads()
    status = library().attention(past, queries.data_ptr(), out.data_ptr(), B, H, keys.shape[1], E, threads)
    check_memory(status)
    return out


def _linear(
    x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None, kind: int, outputs: int, group: int
) -> Tensor:
    return multiply(x, matrix_of(weight, scales, bias, KINDS[kind], x.shape[-1], outputs, group))


def _linear_shape(
    x: Tensor, weight: Tensor, scales: Tensor | None, bias: Tensor | None, kind: int, outputs: int, group: int
) -> Tensor:
    return x.new_empty((*x.shape[:-1], outputs))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _is_half(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16


def check_memory(status: int) -> None:
    """Raise MemoryError if a function of cpu_gemv.c reports that allocation failed."""
    if status:
        raise MemoryError("out of memory in a decode step")


@cache
def register_operators() -> torch.library.Library:
    """Register the kernels as operators torch.ops.tessera.gemv_linear and gemv_attention, which torch.compile needs in
    order to trace through them. The operators live as long as the process."""
    operators = torch.library.Library("tessera", "FRAGMENT")
    operators.define(
        "gemv_linear(Tensor x, Tensor weight, Tensor? scales, Tensor? bias, int kind, int outputs, int group) -> Tensor"
    )
    operators.define("gemv_attention(Tensor queries, Tensor keys, Tensor values, Tensor? mask) -> Tensor")
    operators.impl("gemv_linear", _linear, "CPU")
    operators.impl("gemv_attention", _attend, "CPU")
    torch.library.register_fake("tessera::gemv_linear", _linear_shape, lib=operators)
    torch.library.register_fake("tessera::gemv_attention", lambda queries, *_: torch.empty_like(queries), lib=operators)
    return operators


# The compiled library


FUNCTIONS = ("linear", "rows_at_once", "tile", "attention", "project", "finish", "stack")


@dataclass(frozen=True)
class Library:
    """The functions of cpu_gemv.c, or the reason they are missing."""

    linear: Any = None
    rows_at_once: Any = None
    tile: Any = None
    attention: Any = None
    project: Any = None
    finish: Any = None
    stack: Any = None
    hash: Any = None
    why_not: str = ""


@cache
def library() -> Library:
    """Compile and load on first use, and register the operators."""
    try:
        loaded = _functions(_load_library())
    except (OSError, RuntimeError) as error:
        return Library(why_not=" ".join(str(error).split()))
    register_operators()
    return loaded


def _functions(loaded: ctypes.CDLL) -> Library:
    pointer, number, integer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    matrix, past, layer = ctypes.POINTER(Matrix), ctypes.POINTER(Past), ctypes.POINTER(Layer)
    arguments = {
        "hash": [pointer, number, ctypes.POINTER(ctypes.c_uint64)],
        "linear": [matrix, pointer, pointer, number, integer, integer],
        "rows_at_once": [matrix, integer],
        "tile": [pointer, pointer, number, number, number, number, integer],
        "attention": [past, pointer, pointer, number, number, number, number, integer],
        "project": [layer, *[pointer] * 5, number, integer, number, integer, integer],
        "finish": [layer, past, past, *[pointer] * 3, number, integer, integer],
        "stack": [
            ctypes.POINTER(layer),
            number,
            past,
            number,
            number,
            past,
            ctypes.POINTER(Norm),
            *[pointer] * 3,
            number,
            number,
            integer,
            integer,
        ],
    }
    functions = {}
    for name, types in arguments.items():
        functions[name] = getattr(loaded, f"gemv_{name}")
        functions[name].argtypes, functions[name].restype = types, integer
    return Library(**functions)


def _load_library() -> ctypes.CDLL:
    """The shared library for this CPU and source: from the cache if trusted and intact, else compiled."""
    compiler = next(
        (found for name in (os.environ.get("CC"), "gcc", "clang", "cc") if (found := _find_compiler(name))), None
    )
    if compiler is None or os.name == "nt":
        raise RuntimeError("no C compiler was found (gcc or clang); install one, or set CC")
    described = "\n".join([SOURCE.read_text(encoding="utf-8"), compiler, _cpu_features()])
    name = f"gemv-{hashlib.sha256(described.encode()).hexdigest()[:16]}.so"
    folder = cache_folder()
    with contextlib.suppress(OSError):  # missing, untrusted, or not a library: compile again
        content = None if folder is None else read_cached(folder, name)
        if content is not None:
            return _with_all_functions(load_code(content, name))
    content = _compile(compiler)
    loaded = _with_all_functions(load_code(content, name))
    if folder is not None:
        with contextlib.suppress(OSError):  # if the disk is full or read-only, it is compiled each time
            write_cached(folder, name, content)
    return loaded


def _compile(compiler: str) -> bytes:
    with private_folder() as folder:
        made, failures = folder / "gemv.so", []
        for flags in (["-march=native", "-fopenmp"], ["-fopenmp"], ["-march=native"], []):
            command = [compiler, "-O3", *flags, "-shared", "-fPIC", "-w", str(SOURCE), "-o", str(made), "-lm"]
            environment = {**os.environ, "TMPDIR": str(folder)}
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", env=environment, check=False
            )
            if done.returncode == 0:
                return made.read_bytes()
            failures.append((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0])
    raise RuntimeError(f"{compiler} could not compile {SOURCE.name}: {failures[0]}")


def _with_all_functions(loaded: ctypes.CDLL) -> ctypes.CDLL:
    missing = [name for name in FUNCTIONS if not hasattr(loaded, f"gemv_{name}")]
    if missing:
        raise OSError(f"the library has no function gemv_{missing[0]}")
    return loaded


def _find_compiler(name: str | None) -> str | None:
    """Absolute path of a compiler; paths relative to the current directory are ignored, because nobody chose them."""
    path = shutil.which(name) if name else None
    return path if path is not None and os.path.isabs(path) else None


def _cpu_features() -> str:
    """The CPU features that determine which instructions are used: a library compiled for another CPU would crash."""
    wanted = ("model name", "flags", "Features", "CPU part")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.node()}"
