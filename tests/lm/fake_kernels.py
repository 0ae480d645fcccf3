"""flash-attn and xformers as their documentation describes them, computed slowly in float64, for machines without CUDA.

They check what the real ones check (dtypes, shapes, int32 counts, last axis contiguous) and note which entry was
called. Signatures: flash_attn/flash_attn_interface.py of Dao-AILab/flash-attention 2.8.4;
xformers/ops/fmha/attn_bias.py of facebookresearch/xformers 0.0.35.
"""

from types import ModuleType

import torch


def attend(q, k, v, seen):
    """[N, H, E] from q [N, H, E], k and v [M, G, E] and seen [N, M]; where nothing is seen, zeros."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.double().repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("nhe,mhe->hnm", q.double(), k) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0)
    return torch.einsum("hnm,mhe->nhe", weights, v).to(q.dtype)


def bottom_right(n, m, causal, window_size=(-1, -1)):
    """What n queries see of m keys when the last query stands at the last key."""
    ahead = torch.arange(m) - (torch.arange(n)[:, None] + m - n)
    left, right = window_size
    seen = torch.ones(n, m, dtype=torch.bool)
    if causal or right >= 0:
        seen &= ahead <= (0 if causal else right)
    return seen & (ahead >= -left) if left >= 0 else seen


def check(*tensors):
    for x in tensors:
        assert x.dtype in (torch.float16, torch.bfloat16) and x.dtype == tensors[0].dtype
        assert x.stride(-1) == 1 and x.shape[-1] <= 256 and x.shape[-1] == tensors[0].shape[-1]


class FlashAttn(ModuleType):
    def __init__(self):
        super().__init__("flash_attn")
        self.called = []

    def flash_attn_func(
        self,
        q,
        k,
        v,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
        return_attn_probs=False,
    ):
        self.called.append("flash_attn_func")
        check(q, k, v)
        assert q.dim() == k.dim() == v.dim() == 4 and q.shape[0] == k.shape[0] and q.shape[2] % k.shape[2] == 0
        seen = bottom_right(q.shape[1], k.shape[1], causal, window_size)
        return torch.stack([attend(*row, seen) for row in zip(q, k, v, strict=True)])

    def flash_attn_varlen_func(
        self,
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        dropout_p=0.0,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        alibi_slopes=None,
        deterministic=False,
        return_attn_probs=False,
        block_table=None,
    ):
        self.called.append("flash_attn_varlen_func")
        check(q, k, v)
        assert q.dim() == k.dim() == v.dim() == 3
        spans = []
        for starts, longest, x in ((cu_seqlens_q, max_seqlen_q, q), (cu_seqlens_k, max_seqlen_k, k)):
            assert starts.dtype == torch.int32 and starts.is_contiguous() and isinstance(longest, int)
            assert int(starts[0]) == 0 and int(starts[-1]) == x.shape[0] and int(starts.diff().max()) == longest
            spans.append(list(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)))
        mixed = []
        for (a, b), (c, d) in zip(*spans, strict=True):
            mixed.append(attend(q[a:b], k[c:d], v[c:d], bottom_right(b - a, d - c, causal, window_size)))
        return torch.cat(mixed)

    def flash_attn_with_kvcache(
        self,
        q,
        k_cache,
        v_cache,
        k=None,
        v=None,
        rotary_cos=None,
        rotary_sin=None,
        cache_seqlens=None,
        cache_batch_idx=None,
        cache_leftpad=None,
        block_table=None,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
        softcap=0.0,
        rotary_interleaved=True,
        alibi_slopes=None,
        num_splits=0,
        return_softmax_lse=False,
    ):
        self.called.append("flash_attn_with_kvcache")
        check(q, k_cache, v_cache)
        B = q.shape[0]
        if isinstance(cache_seqlens, int):
            cache_seqlens = torch.full((B,), cache_seqlens, dtype=torch.int32)
        assert cache_seqlens.dtype == torch.int32 and cache_seqlens.shape == (B,) and cache_seqlens.is_contiguous()
        mixed = []
        for row, count in enumerate(cache_seqlens.tolist()):
            seen = bottom_right(q.shape[1], count, causal, window_size)
            mixed.append(attend(q[row], k_cache[row, :count], v_cache[row, :count], seen))
        return torch.stack(mixed)


class LowerTriangularMask:
    def seen(self, n, m):
        return torch.ones(n, m, dtype=torch.bool).tril()


class BlockDiagonalMask:
    causal = False

    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen=None, *, device=None):
        made = cls()
        made.pairs = list(zip(q_seqlen, q_seqlen if kv_seqlen is None else kv_seqlen, strict=True))
        assert all(isinstance(length, int) for pair in made.pairs for length in pair)
        return made

    def seen(self, n, m):
        blocks = [torch.ones(a, b, dtype=torch.bool) for a, b in self.pairs]
        seen = torch.block_diag(*(block.tril() if self.causal else block for block in blocks))
        assert seen.shape == (n, m)
        return seen


class BlockDiagonalCausalMask(BlockDiagonalMask):
    causal = True


class XFormersOps(ModuleType):
    def __init__(self):
        super().__init__("xformers.ops")
        self.called = []
        self.LowerTriangularMask = LowerTriangularMask
        self.fmha = ModuleType("xformers.ops.fmha")
        self.fmha.attn_bias = ModuleType("xformers.ops.fmha.attn_bias")
        self.fmha.attn_bias.BlockDiagonalMask = BlockDiagonalMask
        self.fmha.attn_bias.BlockDiagonalCausalMask = BlockDiagonalCausalMask

    def memory_efficient_attention(self, query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None):
        self.called.append(type(attn_bias).__name__)
        assert query.dim() == 4 and key.shape == value.shape
        assert query.shape[0] == key.shape[0] and query.shape[2:] == key.shape[2:]
        n, m = query.shape[1], key.shape[1]
        assert query.shape[0] == 1 or not isinstance(attn_bias, BlockDiagonalMask)
        seen = torch.ones(n, m, dtype=torch.bool) if attn_bias is None else attn_bias.seen(n, m)
        return torch.stack([attend(*row, seen) for row in zip(query, key, value, strict=True)])


def install(monkeypatch):
    """Put both where an import finds them; gives them."""
    flash, ops, package = FlashAttn(), XFormersOps(), ModuleType("xformers")
    package.ops = ops
    for name, module in (("flash_attn", flash), ("xformers", package), ("xformers.ops", ops)):
        monkeypatch.setitem(__import__("sys").modules, name, module)
    return flash, ops
