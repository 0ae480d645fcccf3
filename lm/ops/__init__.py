"""Operations shared by layers: linear, fused autograd, rotary embedding, loss, per-row random numbers."""
