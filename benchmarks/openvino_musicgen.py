"""MusicGen's decoder in OpenVINO, from transformers' weights, for `musicgen.py --also openvino`.

optimum-intel 2.2 has no export of MusicGen, so one step of the decoder is written here in plain torch and converted.
Keys and values are states of the OpenVINO model, with the gather by row that optimum-intel gives its decoders, because
the CPU plugin joins that with the attention; those of the cross-attention are an input. Products are in bfloat16 where
the processor has them; weights are stored in bfloat16, or in 8 or 4 bits by NNCF.

    pip install openvino nncf
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOP_K = 250


class Step(nn.Module):
    """One step: ids [R, K], place [1], rows [R] int32 of the states, keys and values of the cross-attention
    [L, 2, R, H, S, E], then those so far [R, H, T, E], two per layer -> logits [R, K, V] and the longer ones."""

    places: Tensor

    def __init__(self, lm: Any):
        super().__init__()
        decoder = lm.model.decoder
        self.tables, self.layers, self.norm, self.heads = (
            decoder.embed_tokens,
            decoder.layers,
            decoder.layer_norm,
            lm.lm_heads,
        )
        self.register_buffer("places", decoder.embed_positions.weights.float())
        self.num_heads = lm.config.num_attention_heads

    def split(self, x: Tensor) -> Tensor:
        """[R, T, D] -> [R, H, T, E]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def attend(self, layer: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        found = F.scaled_dot_product_attention(query, key, value)
        return layer.out_proj(found.transpose(1, 2).flatten(2))

    def forward(self, ids: Tensor, place: Tensor, rows: Tensor, cross: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        x = torch.stack([table(ids[:, k]) for k, table in enumerate(self.tables)], dim=1).sum(dim=1, keepdim=True)
        x = x + self.places.index_select(0, place)
        longer = []
        for number, layer in enumerate(self.layers):
            own = layer.self_attn
            normed = layer.self_attn_layer_norm(x)
            key, value = (past[2 * number + i].index_select(0, rows) for i in range(2))
            key = torch.cat([key, self.split(own.k_proj(normed))], dim=2)
            value = torch.cat([value, self.split(own.v_proj(normed))], dim=2)
            longer += [key, value]
            x = x + self.attend(own, self.split(own.q_proj(normed)), key, value)
            other = layer.encoder_attn
            query = self.split(other.q_proj(layer.encoder_attn_layer_norm(x)))
            x = x + self.attend(other, query, cross[number, 0], cross[number, 1])
            x = x + layer.fc2(F.gelu(layer.fc1(layer.final_layer_norm(x))))
        x = self.norm(x)[:, 0]
        return torch.stack([head(x) for head in self.heads], dim=1), *longer


def start_empty(ov: Any, model: Any) -> None:
    """Let each state begin as [R, H, 0, E]: the CPU plugin joins a state with its attention only if it begins so."""
    ops = ov.opset13
    rows = ops.shape_of(model.input("rows"), output_type="i64")
    for state in model.get_ops():
        if state.get_type_name() != "ReadValue":
            continue
        heads, width = (state.get_output_partial_shape(0)[i].get_length() for i in (1, 3))
        shape = ops.concat([rows, ops.constant(np.array([heads, 0, width]))], axis=0)
        state.set_arguments([ops.broadcast(ops.constant(np.float32(0)), shape)])
    model.validate_nodes_and_infer_types()


class Decoder:
    """Generation by OpenVINO; `kind`: "bfloat16", "int8" or "int4" weights."""

    def __init__(self, lm: Any, kind: str, threads: int):
        ov = import_module("openvino")
        stateful = import_module("openvino._offline_transformations").apply_make_stateful_transformation
        step = Step(lm.float()).eval()
        self.lm, self.layers, self.heads = lm, len(step.layers), step.num_heads
        self.width = lm.config.hidden_size // self.heads
        past = [torch.zeros(2, self.heads, 3, self.width)] * (2 * self.layers)
        cross = torch.zeros(self.layers, 2, 2, self.heads, 5, self.width)
        ids = torch.zeros(2, len(step.tables), dtype=torch.long)
        example = (ids, torch.zeros(1, dtype=torch.long), torch.zeros(2, dtype=torch.int32), cross, *past)
        shapes = [[-1, len(step.tables)], [1], [-1], [self.layers, 2, -1, self.heads, -1, self.width]]
        shapes += [[-1, self.heads, -1, self.width]] * len(past)
        with torch.no_grad():
            model = ov.convert_model(step, example_input=example, input=[ov.PartialShape(shape) for shape in shapes])
        names = ["ids", "place", "rows", "cross", *[f"past{i}" for i in range(len(past))]]
        for port, name in zip(model.inputs, names, strict=True):
            port.get_tensor().set_names({name})
        for port, name in zip(model.outputs, ["logits", *[f"longer{i}" for i in range(len(past))]], strict=True):
            port.get_tensor().set_names({name})
        stateful(model, {f"past{i}": f"longer{i}" for i in range(len(past))})
        start_empty(ov, model)
        if kind != "bfloat16":
            nncf = import_module("nncf")
            mode = {"int8": "INT8_SYM", "int4": "INT4_SYM"}[kind]
            more = {"group_size": 64, "ratio": 1.0, "all_layers": True} if kind == "int4" else {}
            model = nncf.compress_weights(model, mode=getattr(nncf.CompressWeightsMode, mode), **more)
        core = ov.Core()
        bfloat = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        self.program = core.compile_model(
            model, "CPU", {**settings, "INFERENCE_PRECISION_HINT": "bf16" if bfloat else "f32"}
        )
        self.request = self.program.create_infer_request()

    def cross(self, states: Tensor) -> np.ndarray:
        """Keys and values of the cross-attention to states [R, S, D]."""
        split = lambda x: x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # noqa: E731
        layers = [layer.encoder_attn for layer in self.lm.model.decoder.layers]
        return torch.stack([torch.stack([split(a.k_proj(states)), split(a.v_proj(states))]) for a in layers]).numpy()

    @torch.inference_mode()
    def logits(self, columns: Tensor, states: Tensor) -> Tensor:
        """Logits [R, T, K, V] of given ids [R, K, T], step by step, without guidance: what a test compares."""
        R, cross = len(columns), self.cross(states)
        self.request.reset_state()
        found = []
        for place in range(columns.shape[2]):
            ids = columns[:, :, place].contiguous().numpy()
            self.request.infer(
                {"ids": ids, "place": np.array([place]), "rows": np.arange(R, dtype=np.int32), "cross": cross}
            )
            found.append(torch.from_numpy(self.request.get_output_tensor(0).data.copy()))
        return torch.stack(found, dim=1)

    @torch.inference_mode()
    def generate(self, states: Tensor, frames: int, guidance: float, start: int, warm_up: bool = False) -> Tensor:
        """Codes [B, K, frames + K - 1] in steps of the delay pattern, by top-k sampling.

        warm_up: where the cache grows for the first time, OpenVINO 2026.4 may give logits that are no numbers (batch 4,
        from step 3 on); they are taken as 0. Otherwise such logits raise FloatingPointError.
        """
        B, K = len(states), len(self.lm.lm_heads)
        self.request.reset_state()
        cross = self.cross(torch.cat([states, torch.zeros_like(states)]).float())
        columns = torch.full((B, K, frames + K), start)
        book = torch.arange(K)
        for place in range(frames + K - 1):
            ids = columns[:, :, place].repeat(2, 1).numpy()
            given = {"ids": ids, "place": np.array([place]), "rows": np.arange(2 * B, dtype=np.int32), "cross": cross}
            self.request.infer(given, share_inputs=True)
            both = torch.from_numpy(self.request.get_output_tensor(0).data).float()
            if not (warm_up or both.isfinite().all()):
                raise FloatingPointError(f"OpenVINO's logits of step {place} are not finite")
            both = both.nan_to_num()
            logits = both[B:] + guidance * (both[:B] - both[B:])
            top = logits.topk(TOP_K, dim=-1)
            chosen = torch.multinomial(top.values.softmax(-1).flatten(0, 1), 1).view(B, K, 1)
            drawn = top.indices.gather(2, chosen).squeeze(2)
            inside = (place >= book) & (place - book < frames)
            columns[:, :, place + 1] = torch.where(inside, drawn, start)
        return columns[:, :, 1:]
