"""An LSTM over one sequence on a CPU, step by step, without gradients.

Reading the recurrent weights once a step is most of the work, and all of it for short chunks: torch's LSTM reorders
them on every call. A step is computed in the same way whatever the number of steps of a call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def run_lstm(lstm: nn.LSTM, x: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """`lstm(x, state)` of one sequence, up to rounding.

    Args:
        x: [T, inputs] float32.
        state: hidden and cell states [layers, 1, width]; None: zeros.
    Returns:
        results [T, width], and the state after them.
    """
    width = lstm.hidden_size
    hidden = [x.new_zeros(width)] * lstm.num_layers if state is None else list(state[0][:, 0])
    cell = x.new_zeros(lstm.num_layers, width) if state is None else state[1][:, 0].clone()
    for layer in range(lstm.num_layers):
        # inputs, forget, values, output: [4 * width] each step
        from_input, from_hidden, *biases = (
            getattr(lstm, f"{name}_l{layer}")
            for name in ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if lstm.bias else ()))
        )
        gates = x @ from_input.T
        for bias in biases:
            gates += bias
        results, last, held = x.new_empty(len(x), width), hidden[layer], cell[layer]
        parts = (gates, gates[:, : 2 * width], *gates.split(width, dim=1), results)
        for gate, both, inputs, forget, values, output, result in zip(*(one.unbind() for one in parts), strict=True):
            gate.addmv_(from_hidden, last)
            both.sigmoid_()
            held.mul_(forget).addcmul_(inputs, values.tanh_())
            last = torch.mul(output.sigmoid_(), held.tanh(), out=result)
        x, hidden[layer] = results, last
    return x, (torch.stack(hidden)[:, None], cell[:, None])
