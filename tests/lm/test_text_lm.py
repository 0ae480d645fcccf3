"""The blocks of text language models that transformers wrote: the same hidden states, the same steps, and one clear
error otherwise."""

import json
import random

import pytest
import torch
from small_models import make_codes, make_spec

from tessera.configs.tensor_checks import WeightsError
from tessera.lm.config import LMConfig
from tessera.lm.kernels import cpu_gemv
from tessera.lm.layers.transformer import Transformer
from tessera.lm.models.causal import TokenLM
from tessera.lm.ops.rotary import rotary_table
from tessera.lm.patterns.pattern import ParallelConfig
from tessera.lm.public.text_lm import backbone_settings, is_text_lm, read_backbone
from tessera.lm.quantization.cpu_fast_decode import enable_fast_cpu_decode_
from tessera.lm.quantization.packed_linear import pack_

transformers = pytest.importorskip("transformers")

KINDS = {
    "llama": (transformers.LlamaConfig, "LlamaModel", "LlamaForCausalLM"),
    "qwen2": (transformers.Qwen2Config, "Qwen2Model", "Qwen2ForCausalLM"),
    "qwen3": (transformers.Qwen3Config, "Qwen3Model", "Qwen3ForCausalLM"),
}


def write(folder, kind: str, causal: bool = False, **settings):
    """A text model with random weights, norms and biases included, written by transformers."""
    config_class, bare, whole = KINDS[kind]
    sizes = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    if kind == "qwen3":
        sizes["head_dim"] = 8
    torch.manual_seed(0)
    model = getattr(transformers, whole if causal else bare)(config_class(**{**sizes, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3) if parameter.dim() > 1 else parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return model.model if causal else model


def lm_config(folder, **settings) -> LMConfig:
    given = backbone_settings(folder)
    return LMConfig(**given, **settings)


def backbone(folder) -> tuple[LMConfig, Transformer]:
    config = lm_config(folder)
    net = Transformer(config.transformer).eval()
    read = read_backbone(folder, config)
    net.load_state_dict({name.removeprefix("transformer."): tensor for name, tensor in read.items()})
    return config, net


def check_hidden_states(model, config: LMConfig, net: Transformer, first: int = 0):
    """The final hidden states of random vectors at positions first, first + 1, ..."""
    x = torch.randn(3, 11, config.width, generator=torch.Generator().manual_seed(1))
    places = torch.arange(first, first + 11)
    with torch.no_grad():
        expected = model(inputs_embeds=x, position_ids=places.expand(3, -1)).last_hidden_state
        table = rotary_table(places.unsqueeze(-1), config.head_width, config.rope.base, config.rope.scaling)
        found = net(x, table, causal=True)
    # float32 on both sides; matrices are multiplied in another order of their rows
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_transformers(kind, causal, tmp_path):
    model = write(tmp_path, kind, causal)
    assert is_text_lm(tmp_path)
    for first in (0, 17):
        check_hidden_states(model, *backbone(tmp_path), first)


@pytest.mark.parametrize("seed", range(6))
def test_hidden_states_of_random_shapes(seed, tmp_path):
    """Grouped queries, heads of another width than their share, another epsilon and base."""
    draw = random.Random(seed)
    kind = draw.choice(list(KINDS))
    groups, share, E = draw.choice([1, 2, 3]), draw.choice([1, 2]), draw.choice([4, 6, 8])
    settings = {
        "hidden_size": groups * share * (E if kind == "qwen2" else draw.choice([8, 9, 11])),
        "num_attention_heads": groups * share,
        "num_key_value_heads": groups,
        "intermediate_size": draw.choice([24, 33]),
        "num_hidden_layers": draw.choice([1, 3]),
        "rms_norm_eps": 1e-6 if kind == "qwen3" else draw.choice([1e-5, 1e-6]),
        "rope_parameters": {"rope_type": "default", "rope_theta": draw.choice([10000.0, 1e6])},
    }
    if kind != "qwen2":
        settings["head_dim"] = E
    model = write(tmp_path, kind, **settings)
    check_hidden_states(model, *backbone(tmp_path))


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize("seed", range(4))
def test_scaled_frequencies_are_those_of_llama3(seed, tmp_path):
    """With few original positions, so that heads of 16 have frequencies that stay, change, and lie between."""
    draw = random.Random(seed)
    steps = draw.choice([64, 256, 1024])
    rope = LLAMA3 | {"rope_theta": draw.choice([100.0, 5e5]), "original_max_position_embeddings": steps}
    rope["factor"] = draw.choice([2.0, 32.0])
    model = write(tmp_path, "llama", head_dim=16, rope_parameters=rope)
    config, net = backbone(tmp_path)
    assert config.rope.scaling.steps == steps
    for first in (0, 300):
        check_hidden_states(model, config, net, first)
    lm = TokenLM(config, make_spec()).eval()
    lm.load_state_dict(read_backbone(tmp_path, config), strict=False)
    codes = make_codes(2, 6)
    with torch.no_grad():
        expected = lm(codes).logits
        plain = TokenLM(
            config.model_copy(update={"rope": config.rope.model_copy(update={"scaling": None})}), make_spec()
        )
        plain.load_state_dict(lm.state_dict())
        assert not torch.allclose(plain.eval()(codes).logits, expected, atol=1e-4), "the scaling is used"


def test_weights_in_several_files(tmp_path):
    model = write(tmp_path, "qwen3", causal=True)
    model_whole = transformers.Qwen3ForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model_whole.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    check_hidden_states(model, *backbone(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_from_a_cache_equal_the_whole_sequence(kind, tmp_path):
    """Biases and heads of their own width pass through the plain, the fast and the packed decode step."""
    write(tmp_path, kind, **({"head_dim": 16} if kind != "qwen2" else {"num_attention_heads": 2}))
    lm = TokenLM(lm_config(tmp_path, arrangement=ParallelConfig()), make_spec()).eval()
    lm.load_state_dict(read_backbone(tmp_path, lm.config), strict=False)
    codes = make_codes(2, 6)
    with torch.no_grad():
        whole = lm(codes).logits

    def steps():
        state, ids, found = lm.start(num_rows=2, capacity=6), lm.start_ids(2), []
        for step in range(6):
            found.append(lm.step(state, ids))
            ids = codes[:, :, step]
        return torch.stack(found, dim=2)

    close = {"rtol": 1e-4, "atol": 1e-4}  # sums in another order
    torch.testing.assert_close(steps(), whole, **close)
    if not cpu_gemv.why_not():
        enable_fast_cpu_decode_(lm)
        torch.testing.assert_close(steps(), whole, **close)
        lm.train().eval()
        pack_(lm, "float32")
        torch.testing.assert_close(steps(), whole, **close)


BAD = [
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"mlp_bias": True}, "mlp_bias is True"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be from 1 to 256, found 0"),
    ({"num_key_value_heads": "two"}, "num_key_value_heads must be a whole number, found 'two'"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5}}, "rope_type is 'yarn'; default and llama3 are"),
    (
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}},
        "low_freq_factor must be a number above 0",
    ),
    ({"rope_parameters": LLAMA3}, "original_max_position_embeddings must be a whole number, found"),
    ({"rope_parameters": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor below high_freq_factor"),
    ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}}, "rope_type is 'linear'"),
    ({"rope_parameters": {"rope_theta": "far"}}, "rope_theta must be a number"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps must be a number"),
    ({"model_type": "qwen4"}, "model_type is 'qwen4'; did you mean 'qwen3'"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_our_blocks_cannot_compute_is_named(change, message, tmp_path):
    write(tmp_path, "llama")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        backbone_settings(tmp_path)


def test_old_files_say_rope_theta(tmp_path):
    write(tmp_path, "llama")
    path = tmp_path / "config.json"
    described = json.loads(path.read_text())
    del described["rope_parameters"]
    path.write_text(json.dumps(described | {"rope_theta": 500000.0}))
    assert backbone_settings(tmp_path)["rope"]["base"] == 500000.0


def test_absent_keys_mean_the_defaults_of_transformers(tmp_path):
    described = {"hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 1, "intermediate_size": 8}
    for kind, (config_class, _, _) in KINDS.items():
        (tmp_path / "config.json").write_text(json.dumps(described | {"model_type": kind}))
        found, theirs = backbone_settings(tmp_path), config_class(**described)
        assert found["kv_heads"] == theirs.num_key_value_heads
        assert (found["head_dim"] or 4096 // 32) == (getattr(theirs, "head_dim", None) or 4096 // 32)
        assert found["norm_eps"] == theirs.rms_norm_eps
        assert found["rope"]["base"] == theirs.rope_parameters["rope_theta"]


def test_a_config_that_lies_is_refused(tmp_path):
    write(tmp_path, "qwen2")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_key_value_heads": 4}))
    with pytest.raises(WeightsError, match=r"k_proj.* is \[16.*\], the config asks for \[32"):
        read_backbone(tmp_path, lm_config(tmp_path))


def test_a_model_of_other_blocks_is_refused(tmp_path):
    write(tmp_path, "llama")
    with pytest.raises(ValueError, match="lm.heads is 2, the blocks of .* need 4"):
        read_backbone(tmp_path, lm_config(tmp_path).model_copy(update={"heads": 2}))
