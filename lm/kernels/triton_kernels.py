"""Triton kernels for single generation steps on a GPU: products with few rows, and attention of a single query.

A step reads each weight once for one or a few rows. cuBLAS is designed for many rows, and op by op each small operation
in between (a norm, an activation, a sum) is a separate kernel whose launch takes longer than its work. Here

    project     act(norm(x) @ weight.T + bias) + residual      in one kernel
    attend      rotate queries and keys, store the new key and value, attend

Each program of `project` computes a few outputs and loads all their weights before it waits for the kernel that
computes x (programmatic dependent launch, from compute capability 9.0 on), so memory stays busy while the previous
kernel ends.
Sources: CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization"; online softmax,
arXiv:1805.02867.
"""

# Triton's types do not describe the language inside a kernel.
# pyright: reportGeneralTypeIssues=false, reportArgumentType=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import triton  # type: ignore
import triton.language as tl  # type: ignore
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait  # type: ignore


@triton.jit
def _tile(numbers, outputs, inputs, N: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """Load all stored weights of some outputs: [outputs, inputs]; 4-bit weights as bytes of two inputs each."""
    where = outputs.to(tl.int64)[:, None] * WIDTH + inputs[None, :]
    if MASKED:
        return tl.load(numbers + where, mask=(outputs < N)[:, None] & (inputs < WIDTH)[None, :], other=0)
    return tl.load(numbers + where)


@triton.jit
def _product(own, weights):
    """[outputs]: the product of one row [inputs] and weights [outputs, inputs]."""
    return tl.sum(own[None, :] * weights, axis=1)


@triton.jit
def _scaled(
    tile, half: tl.constexpr, scales, outputs, place, inside,
    N: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Weights as float32, 8-bit ones without their scale; of bytes with two inputs, the first or the second."""
    if KIND == 2:
        GROUPS: tl.constexpr = (D + GROUP - 1) // GROUP
        values = ((tile >> 4) if half else (tile & 15)).to(tl.float32)
        where = outputs[:, None] * GROUPS + ((half * WIDTH + place) // GROUP)[None, :]
        real = (outputs < N)[:, None] & inside[None, :]
        steps = tl.load(scales + where, mask=real, other=0).to(tl.float32)
        result = values * steps + tl.load(scales + N * GROUPS + where, mask=real, other=0).to(tl.float32)
    else:
        result = tile.to(tl.float32)
    return result


@triton.jit
def project_kernel(
    x, y, numbers, scales, bias, norm_weight, norm_bias, residual, eps,
    R: tl.constexpr, N: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr, KIND: tl.constexpr, GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACT: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """y [R, O] = act(norm(x [R, D]) @ weight.T + bias) + residual.

    NORM: 0 none, 1 rms, 2 layer. KIND: 0 floating point, 1 8-bit with a scale per output, 2 4-bit (`PackedLinear`).
    ACT: 0 none, 1 gelu, 2 silu(first half of the outputs) times the second: O is N / 2.
    """
    HALVES: tl.constexpr = 2 if KIND == 2 else 1  # type: ignore
    WIDTH: tl.constexpr = D // HALVES
    MADE: tl.constexpr = N // 2 if ACT == 2 else N
    MASKED: tl.constexpr = (MADE % OUTPUTS != 0) or (INPUTS != WIDTH)
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    place = tl.arange(0, INPUTS)
    inside = place < WIDTH
    tile = _tile(numbers, outputs, place, MADE, WIDTH, MASKED)
    second = tile
    if ACT == 2:
        second = _tile(numbers, MADE + outputs, place, N, WIDTH, MASKED)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    for row in tl.static_range(R):
        # the second half of the inputs of 4-bit weights is processed separately
        own = tl.load(x + row * D + place, mask=inside, other=0).to(tl.float32)
        rest = own
        if HALVES == 2:
            rest = tl.load(x + row * D + WIDTH + place, mask=inside, other=0).to(tl.float32)
        if NORM:
            if NORM == 2:
                total = tl.sum(own, axis=0)
                if HALVES == 2:
                    total += tl.sum(rest, axis=0)
                own = tl.where(inside, own - total / D, 0)
                rest = tl.where(inside, rest - total / D, 0)
            squares = tl.sum(own * own, axis=0)
            if HALVES == 2:
                squares += tl.sum(rest * rest, axis=0)
            scale = tl.rsqrt(squares / D + eps)
            own = own * scale * tl.load(norm_weight + place, mask=inside, other=0).to(tl.float32)
            if NORM == 2:
                own += tl.load(norm_bias + place, mask=inside, other=0).to(tl.float32)
            if HALVES == 2:
                rest = rest * scale * tl.load(norm_weight + WIDTH + place, mask=inside, other=0).to(tl.float32)
                if NORM == 2:
                    rest += tl.load(norm_bias + WIDTH + place, mask=inside, other=0).to(tl.float32)
        result = _product(own, _scaled(tile, 0, scales, outputs, place, inside, N, D, WIDTH, KIND, GROUP))
        if HALVES == 2:
            result += _product(rest, _scaled(tile, 1, scales, outputs, place, inside, N, D, WIDTH, KIND, GROUP))
        if KIND == 1:
            result *= tl.load(scales + outputs, mask=outputs < MADE, other=0)
        if HAS_BIAS:
            result += tl.load(bias + outputs, mask=outputs < MADE, other=0).to(tl.float32)
        if ACT == 1:
            result = 0.5 * result * (1 + tl.erf(result * 0.7071067811865476))
        if ACT == 2:
            above = MADE + outputs
            other = _product(own, _scaled(second, 0, scales, above, place, inside, N, D, WIDTH, KIND, GROUP))
            if HALVES == 2:
                other += _product(rest, _scaled(second, 1, scales, above, place, inside, N, D, WIDTH, KIND, GROUP))
            if KIND == 1:
                other *= tl.load(scales + above, mask=outputs < MADE, other=0)
            if HAS_BIAS:
                other += tl.load(bias + above, mask=outputs < MADE, other=0).to(tl.float32)
            result = result / (1 + tl.exp(-result)) * other
        if HAS_RESIDUAL:
            # rounded before the sum, like a layer's output
            result = result.to(y.dtype.element_ty).to(tl.float32)
            result += tl.load(residual + row * MADE + outputs, mask=outputs < MADE, other=0).to(tl.float32)
        tl.store(y + row * MADE + outputs, result.to(y.dtype.element_ty), mask=outputs < MADE)


@triton.jit
def _rotated(source, norm_weight, angles, eps, E: tl.constexpr, NORMED: tl.constexpr, ROTATED: tl.constexpr):
    """Normalize and rotate a query or key [E], float32."""
    each = tl.arange(0, E)
    vector = tl.load(source + each).to(tl.float32)
    partner = each ^ 1
    other = tl.load(source + partner).to(tl.float32)
    if NORMED:
        scale = tl.rsqrt(tl.sum(vector * vector, axis=0) / E + eps)
        vector = vector * scale * tl.load(norm_weight + each).to(tl.float32)
        other = other * scale * tl.load(norm_weight + partner).to(tl.float32)
    if ROTATED:
        cos = tl.load(angles + each // 2 * 2)
        sin = tl.load(angles + each // 2 * 2 + 1)
        vector = vector * cos + other * tl.where(each % 2 == 0, -sin, sin)
    return vector


@triton.jit
def _seen(places, place, end, mask, row, mask_stride, HAS_MASK: tl.constexpr):
    """Which slots a query attends to besides its own."""
    seen = (places < end) & (places != place)
    if HAS_MASK:
        seen = seen & (tl.load(mask + row * mask_stride + places, mask=seen, other=0) != 0)
    return seen


@triton.jit
def _mixed(query, keys, values, seen, best, total, mixed):
    """Online softmax: update the maximum score, the sum and the weighted values with more slots [places, E]."""
    scores = tl.sum(keys.to(tl.float32) * query[None, :], axis=1)
    scores = tl.where(seen, scores, float("-inf"))
    highest = tl.maximum(best, tl.max(scores, axis=0))
    shift = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp(scores - shift)
    kept = tl.exp(best - shift)
    mixed = mixed * kept + tl.sum(values.to(tl.float32) * weights[:, None], axis=0)
    return highest, total * kept + tl.sum(weights, axis=0), mixed


@triton.jit
def attend_kernel(
    queries, y, keys, values, index, length, mask, angles, query_norm, key_norm,
    row_stride, group_stride, place_stride, value_row_stride, value_group_stride, value_place_stride,
    mask_stride, angle_stride, query_eps, key_eps, M,
    H: tl.constexpr, G: tl.constexpr, E: tl.constexpr, SELF: tl.constexpr, HAS_MASK: tl.constexpr,
    NORMED: tl.constexpr, ROTATED: tl.constexpr, PLACES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Attention of one query per row and head; program (row, head).

    SELF: queries is [B, (H + 2 G) E], queries, keys and values of the step. The key and value are written to slot
    `index` [1], and attended to together with the slots below min(`length` + 1, M). Otherwise queries is [B, H E], and
    all M slots are attended to. In both cases the mask applies.
    """
    row, head = tl.program_id(0), tl.program_id(1)
    group = head // (H // G)
    each = tl.arange(0, E)
    keys += row * row_stride + group * group_stride
    values += row * value_row_stride + group * value_group_stride
    place = -1
    end = M
    if SELF:  # all keys but the new one are known before the previous kernel has ended
        place = tl.load(index).to(tl.int32)
        end = tl.minimum(tl.load(length).to(tl.int32) + 1, M)
    places = tl.arange(0, PLACES)
    seen = _seen(places, place, end, mask, row, mask_stride, HAS_MASK)
    old_keys = tl.load(keys + places[:, None] * place_stride + each[None, :], mask=seen[:, None], other=0)
    old_values = tl.load(values + places[:, None] * value_place_stride + each[None, :], mask=seen[:, None], other=0)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    row_angles = angles + row * angle_stride
    if SELF:
        queries += row * ((H + 2 * G) * E)
    else:
        queries += row * (H * E)
    query = _rotated(queries + head * E, query_norm, row_angles, query_eps, E, NORMED, ROTATED) * (E**-0.5)
    best = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    mixed = tl.zeros((E,), tl.float32)
    if SELF:
        key = _rotated(queries + (H + group) * E, key_norm, row_angles, key_eps, E, NORMED, ROTATED).to(
            keys.dtype.element_ty
        )
        value = tl.load(queries + (H + G + group) * E + each).to(values.dtype.element_ty)
        if head % (H // G) == 0:
            tl.store(keys + place * place_stride + each, key)
            tl.store(values + place * value_place_stride + each, value)
        best = tl.zeros((1,), tl.float32) + tl.sum(query * key.to(tl.float32), axis=0)
        total += 1.0
        mixed += value.to(tl.float32)
    best, total, mixed = _mixed(query, old_keys, old_values, seen, best, total, mixed)
    for start in range(PLACES, end, PLACES):
        places = start + tl.arange(0, PLACES)
        seen = _seen(places, place, end, mask, row, mask_stride, HAS_MASK)
        old_keys = tl.load(keys + places[:, None] * place_stride + each[None, :], mask=seen[:, None], other=0)
        old_values = tl.load(values + places[:, None] * value_place_stride + each[None, :], mask=seen[:, None], other=0)
        best, total, mixed = _mixed(query, old_keys, old_values, seen, best, total, mixed)
    tl.store(y + (row * H + head) * E + each, (mixed / total).to(y.dtype.element_ty))
