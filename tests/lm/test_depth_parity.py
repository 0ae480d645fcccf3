"""The depth head with the weights of two public depth transformers: the logits and greedy codes of transformers.

CSM           CsmDepthDecoderForCausalLM, whose table the backbone shares
Qwen3-TTS     the code predictor of Qwen3-Omni's talker, of the same kind; Qwen3-TTS 1.7B projects what it reads
"""

import pytest
import torch
from small_models import make_config, make_spec
from torch import nn

from tessera.lm.heads.depth_transformer import DepthHeadConfig, RopePositionsConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.ops.rotary import Llama3ScalingConfig
from tessera.lm.patterns.pattern import ParallelConfig
from tessera.lm.public.rotary_order import interleaved_rows

transformers = pytest.importorskip("transformers")

K, V, SPECIALS, WIDTH, ROWS = 4, 8, 3, 24, 5
SIZES = {"layers": 2, "heads": 4, "kv_heads": 2, "ffn": 40, "first": "backbone", "input": "backbone"}


def make_lm(head: DepthHeadConfig) -> TokenLM:
    torch.manual_seed(1)
    config = make_config(arrangement=ParallelConfig(), width=WIDTH, heads=2, head=head)
    return TokenLM(config, make_spec((V,) * K)).eval()


def strong(model: nn.Module) -> nn.Module:
    """With random weights so large that codes differ from row to row, norms and biases included."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4) if parameter.dim() > 1 else parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


@torch.no_grad()
def copy_blocks(head, blocks, norm) -> None:
    """Copy the layers and the final norm of a transformer in the layout of Llama or Qwen3."""
    E = head.cache_shape[3]
    for own, given in zip(head.transformer.blocks, blocks, strict=True):
        attention, ffn = given.self_attn, given.mlp
        q, k, v = (getattr(attention, f"{name}_proj").weight for name in "qkv")
        q, k = (weight[interleaved_rows(len(weight) // E, E)] for weight in (q, k))
        own.attention.qkv.weight.copy_(torch.cat([q, k, v]))
        own.attention.out.weight.copy_(attention.o_proj.weight)
        own.ffn.gate_up.weight.copy_(torch.cat([ffn.gate_proj.weight, ffn.up_proj.weight]))
        own.ffn.down.weight.copy_(ffn.down_proj.weight)
        own.attention_norm.weight.copy_(given.input_layernorm.weight)
        own.ffn_norm.weight.copy_(given.post_attention_layernorm.weight)
        if own.attention.query_norm is not None:
            own.attention.query_norm.weight.copy_(attention.q_norm.weight[interleaved_rows(1, E)])
            own.attention.key_norm.weight.copy_(attention.k_norm.weight[interleaved_rows(1, E)])
    head.transformer.norm.weight.copy_(norm.weight)


@torch.no_grad()
def check(lm, predict) -> None:
    """predict: hidden [N, D] and the first n codes [N, n] of a step -> the logits [N, V] of the next one."""
    generator = torch.Generator().manual_seed(2)
    hidden, codes = torch.randn(ROWS, WIDTH, generator=generator), torch.randint(V, (ROWS, K), generator=generator)
    whole = lm.head(hidden.unsqueeze(1), codes.unsqueeze(2))[:, 0]
    torch.testing.assert_close(whole[:, 0, :V], lm.head.first(hidden)[:, :V])
    begun = lm.head.begin(lm.head.start(ROWS, torch.float32, hidden.device), hidden, 0)
    made, greedy = torch.zeros_like(codes), lm.head.first(hidden)[:, :V].argmax(-1, keepdim=True)
    for k in range(K):
        made[:, k] = lm.head.predict(begun, k, made)[:, 0, :V].argmax(-1)
        if k:
            expected = predict(hidden, codes[:, :k])
            torch.testing.assert_close(whole[:, k, :V], expected, atol=1e-4, rtol=1e-4)  # float32, sums in other orders
            greedy = torch.cat([greedy, predict(hidden, greedy).argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(made, greedy)
    assert len(made.unique(dim=0)) > 1


PUBLISHED = {"factor": 32.0, "low_freq_factor": 1 / 512, "high_freq_factor": 1 / 128}
STRONG = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0}
"""Whose frequencies all change within four positions."""


@pytest.mark.parametrize(("base", "theirs", "steps"), [(5e5, PUBLISHED, 8192), (4.0, STRONG, 16)])
def test_the_depth_decoder_of_csm(base, theirs, steps):
    rope = {"rope_type": "llama3", "rope_theta": base, "original_max_position_embeddings": 16, **theirs}
    csm = strong(
        transformers.CsmDepthDecoderForCausalLM(
            transformers.CsmDepthDecoderConfig(
                num_codebooks=K, backbone_hidden_size=WIDTH, vocab_size=V + SPECIALS, hidden_size=32,
                intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                rope_parameters=rope,
            )
        )
    )  # fmt: skip
    scale = steps / 16  # the same wavelengths, told with another length of the first training
    scaling = Llama3ScalingConfig(
        factor=theirs["factor"],
        low_factor=scale * theirs["low_freq_factor"],
        high_factor=scale * theirs["high_freq_factor"],
        steps=steps,
    )
    positions = RopePositionsConfig(base=base, scaling=scaling)
    lm = make_lm(DepthHeadConfig(width=32, norm_eps=1e-5, positions=positions, **SIZES))
    copy_blocks(lm.head, csm.model.layers, csm.model.norm)
    with torch.no_grad():
        lm.input.table.weight.copy_(csm.model.embed_tokens.weight)
        lm.head.project.weight.copy_(csm.model.inputs_embeds_projector.weight)
        for k, layer in enumerate(lm.head.outputs):
            layer.weight.copy_(csm.codebooks_head.weight[k, :, :V].T)

    def predict(hidden, codes):
        ids = torch.cat([torch.zeros_like(codes[:, :1]), codes], dim=1)  # the place of the hidden state
        return csm(input_ids=ids, backbone_last_hidden_state=hidden).logits[:, -1, :V]

    check(lm, predict)


@pytest.mark.parametrize(("width", "projection"), [(WIDTH, "none"), (32, "affine")], ids=["0.6B", "1.7B"])
def test_the_code_predictor_of_qwen(width, projection):
    omni = pytest.importorskip("transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe")
    config = omni.Qwen3OmniMoeTalkerCodePredictorConfig(
        num_code_groups=K, vocab_size=V, hidden_size=width, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    predictor = strong(omni.Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration(config))
    torch.manual_seed(3)
    # Row for row: the talker's table of the first code, and the predictor's of the others, in the talker's width.
    tables = [torch.randn(V, WIDTH) for _ in range(K)]
    project = nn.Identity() if projection == "none" else nn.Linear(WIDTH, width)
    positions = RopePositionsConfig(base=1e6)
    head = DepthHeadConfig(width=width, head_dim=16, qk_norm=True, positions=positions, projection=projection, **SIZES)
    lm = make_lm(head)
    copy_blocks(lm.head, predictor.model.layers, predictor.model.norm)
    with torch.no_grad():
        if projection == "none":
            for k in range(1, K):
                tables[k] = predictor.model.codec_embedding[k - 1].weight
        lm.input.table.weight.view(K, V + SPECIALS, WIDTH)[:, :V] = torch.stack(tables)
        lm.head.project.load_state_dict(project.state_dict())
        for layer, given in zip(lm.head.outputs, predictor.lm_head, strict=True):
            layer.weight.copy_(given.weight)

    def predict(hidden, codes):
        read = [hidden, *(tables[k][codes[:, k]] for k in range(codes.shape[1]))]
        return predictor(inputs_embeds=project(torch.stack(read, dim=1))).logits[:, -1]

    check(lm, predict)
