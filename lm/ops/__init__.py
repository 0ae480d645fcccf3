"""Operations that layers share: packed linear, fused autograd, rotary embedding, row-wise random numbers."""
