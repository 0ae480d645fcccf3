"""Logits of a model step by step and stage by stage, to compare with those of whole sequences."""

import torch

# Both sides are float32 and differ in the order of sums: kernels for one step and for a whole sequence round
# differently.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def close(found, expected):
    torch.testing.assert_close(found, expected, **CLOSE)


def step_through(lm, ids, conditions, sizes=None):
    """Logits [B, K, S, V'] of feeding arranged ids [B, K, S] in pieces of the given sizes (one by one)."""
    B, _, S = ids.shape
    read = torch.cat([lm.start_ids(B)[..., None], ids[:, :, :-1]], dim=2)
    state = lm.start(conditions, capacity=S, num_rows=B)
    if sizes is None:
        return torch.stack([lm.step(state, read[:, :, s], ids[:, :, s]) for s in range(S)], dim=2)
    pieces = zip(read.split(sizes, dim=2), ids.split(sizes, dim=2), strict=True)
    return torch.cat([lm.step(state, piece, chosen) for piece, chosen in pieces], dim=2)


def stage_through(lm, ids, conditions):
    """Logits [B, J, S, V'] stage by stage as in generation: before its stage a symbol is not known. NaN where a head
    gives none."""
    B, _, S = ids.shape
    read = torch.cat([lm.start_ids(B)[..., None], ids[:, :, :-1]], dim=2)
    state = lm.start(conditions, capacity=S, num_rows=B)
    sub_tokens, sizes = lm.head.sub_tokens.split(ids), lm.head.sub_tokens.output_sizes
    logits = torch.full((B, len(sizes), S, max(sizes)), float("nan"))
    for s in range(S):
        begun = lm.head.begin(state.head, lm.read(state, read[:, :, s]), s)
        known = torch.zeros_like(sub_tokens[:, :, s])
        for stage, places in enumerate(lm.head.stages_at(s)):
            found = lm.head.predict(begun, stage, known)
            for place, j in enumerate(places):
                logits[:, j, s, : sizes[j]] = found[:, place, : sizes[j]]
                logits[:, j, s, sizes[j] :] = float("-inf")
                known[:, j] = sub_tokens[:, j, s]
    return logits
