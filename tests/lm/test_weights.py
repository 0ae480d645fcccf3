"""The model directory: what is written is read back, and nothing else is accepted."""

import json
import struct

import pytest
import torch
from small_models import CASES, make_codes, make_conditions, make_config

from tessera.configs.files import read_safetensors, write_safetensors
from tessera.configs.schema import ConfigError
from tessera.configs.tensor_checks import WeightsError
from tessera.lm.checkpoints.config_file import read_model_config
from tessera.lm.checkpoints.model_directory import load_model, save_model
from tessera.lm.checkpoints.parameter_shapes import parameter_shapes
from tessera.lm.conditioning.registry import LabelConfig, TextConditionConfig
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.layers.input_embedding import CodesInputConfig, EmbeddingInputConfig
from tessera.lm.models.causal import TokenLM
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import ResidualConfig, VQConfig
from tessera.tokenize.text.bpe_text import BPETextConfig
from tessera.tokenize.text.byte_text import ByteTextConfig
from tessera.tokenize.text.registry import make_text
from tessera.tokenize.text.sentencepiece_text import SentencePieceConfig
from tessera.tokenize.tokenizer import make_tokenizer

LABELS = ["a", "b", "c", "d"]


def make_parts(seed=0, text_config=None, input_config=None):
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(
        ImageTokenizerConfig(
            name=f"tiny-{seed}",
            height=8,
            width=12,
            channels=3,
            features=8,
            blocks=1,
            latent_dim=8,
            quantizer=ResidualConfig(levels=2, quantizer=VQConfig(size=9)),
        )
    )
    text = make_text(text_config or ByteTextConfig(), ["one two three", "two one"])
    config = make_config(
        next(iter(CASES.values())),
        variable_length=False,
        input=input_config or EmbeddingInputConfig(),
        conditions=(LabelConfig(classes=4), TextConditionConfig(text=text.config, vocab_size=text.vocab_size)),
    )
    vectors = tokenizer.vectors() if input_config else None
    return TokenLM(config, tokenizer.spec, vectors).eval(), tokenizer, text


@pytest.fixture
def saved(tmp_path):
    lm, tokenizer, text = make_parts()
    save_model(tmp_path / "m", lm, tokenizer, text, LABELS, GenerationConfig(top_k=5), "# Card\n")
    (tmp_path / "m" / "fingerprint.json").unlink()  # what is refused behind it, as in models of earlier versions
    return tmp_path / "m"


@pytest.mark.parametrize("input_config", [None, CodesInputConfig()], ids=["embedding", "codes"])
@pytest.mark.parametrize(
    "text_config", [ByteTextConfig(), SentencePieceConfig(vocab_size=20), BPETextConfig(vocab_size=260)],
    ids=["bytes", "pieces", "bpe"],
)  # fmt: skip
def test_what_was_saved_is_loaded(tmp_path, input_config, text_config):
    lm, tokenizer, text = make_parts(0, text_config, input_config)
    defaults = GenerationConfig(temperature=(0.5, 1.0), guidance=2.0)
    save_model(tmp_path / "m", lm, tokenizer, text, LABELS, defaults, "# Card\n")
    assert (tmp_path / "m" / "README.md").read_text() == "# Card\n"
    loaded = load_model(tmp_path / "m")
    assert (loaded.labels, loaded.defaults, loaded.config, loaded.spec) == (LABELS, defaults, lm.config, tokenizer.spec)
    assert loaded.text is not None and loaded.text.encode("two") == text.encode("two")
    assert not loaded.lm.training and all(parameter.requires_grad for parameter in loaded.lm.parameters())
    codes = make_codes(2, 6, tokenizer.spec.cardinalities)
    conditions = make_conditions(lm.config, 2)
    assert loaded.lm(codes, None, conditions).logits.equal(lm(codes, None, conditions).logits)
    state = loaded.lm.start(conditions, 2)
    assert bool(loaded.lm.step(state, loaded.lm.start_ids(2)).isfinite().all())
    loaded.lm.loss(codes, None, conditions).loss.backward()  # the parameters are real ones, ready to train


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_storage_in_16_bits(tmp_path, dtype):
    lm, tokenizer, text = make_parts()
    save_model(tmp_path / "m", lm, tokenizer, text, LABELS, dtype=dtype)
    tensors, _ = read_safetensors(tmp_path / "m" / "lm.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    loaded = load_model(tmp_path / "m").lm
    for name, parameter in lm.named_parameters():
        kept = dict(loaded.named_parameters())[name]
        assert kept.dtype == torch.float32
        assert kept.equal(parameter.detach().to(getattr(torch, dtype)).float())
    half = load_model(tmp_path / "m", dtype=dtype).lm
    assert {parameter.dtype for parameter in half.parameters()} == {getattr(torch, dtype)}
    with torch.no_grad():
        logits = half(make_codes(1, 6, tokenizer.spec.cardinalities), None, make_conditions(lm.config, 1)).logits
    assert bool(logits.isfinite().all())


def test_the_same_model_gives_the_same_bytes(tmp_path):
    parts = make_parts()
    for name in ("one", "two"):
        save_model(tmp_path / name, *parts, LABELS)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert [str(path) for path in files] == [
        "README.md",
        "config.json",
        "fingerprint.json",
        "lm.safetensors",
        "tokenizer/config.json",
        "tokenizer/tokenizer.safetensors",
    ]
    for path in files:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_another_tokenizer_is_refused_by_name(saved):
    make_parts(1)[1].save(saved / "tokenizer")
    with pytest.raises(ValueError, match=r"codes of tokenizer 'tiny-1' .* but 'tiny-0'"):
        load_model(saved)
    lm, _, text = make_parts()
    with pytest.raises(ValueError, match="'tiny-1'"):
        save_model(saved, lm, make_parts(1)[1], text, LABELS)


def test_tensors_must_be_those_of_the_config(saved):
    path = saved / "lm.safetensors"
    tensors, _ = read_safetensors(path)
    name = "transformer.blocks.0.ffn.down.weight"

    def rewrite(changed):
        write_safetensors(path, changed)

    rewrite({key: value for key, value in tensors.items() if key != name})
    with pytest.raises(WeightsError, match=f"1 tensors that the config asks for are missing, first '{name}'"):
        load_model(saved)
    rewrite(tensors | {"extra.weight": torch.zeros(3)})
    with pytest.raises(WeightsError, match=r"1 tensors do not belong to the config, first 'extra.weight'"):
        load_model(saved)
    rewrite(tensors | {name: torch.zeros(2, 3)})
    with pytest.raises(WeightsError, match=r"'transformer.blocks.0.ffn.down.weight' is \[2, 3\], the config asks for"):
        load_model(saved)
    rewrite(tensors | {name: torch.zeros(tensors[name].shape, dtype=torch.int32)})
    with pytest.raises(WeightsError, match="floating point"):
        load_model(saved)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"lm.safetensors: no such file; the model directory is incomplete"):
        load_model(saved)


def test_a_config_that_claims_too_much_is_refused_before_any_memory_is_taken(saved):
    def change(**settings):
        data = json.loads(path.read_text())
        data["lm"] |= settings
        path.write_text(json.dumps(data))

    path = saved / "config.json"
    change(width=65536, ffn=1 << 20, heads=1024)  # terabytes, if they were allocated
    with pytest.raises(WeightsError, match="the config asks for"):
        load_model(saved)
    change(layers=10**9)
    with pytest.raises(ConfigError, match=r"lm.causal.layers: .*1024"):
        load_model(saved)


def test_damaged_and_foreign_directories(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model here"):
        load_model(tmp_path)
    weights = saved / "lm.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"lm.safetensors: not a usable safetensors file"):
        load_model(saved)
    weights.write_bytes(b"\x80\x04." + whole)  # a pickle's first bytes
    with pytest.raises(ValueError, match=r"lm.safetensors: not a safetensors file"):
        load_model(saved)
    header = b'{"x":{"dtype":"F32","data_offsets":[0,0]}}'
    weights.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="must have dtype, shape and data_offsets"):
        load_model(saved)
    config = saved / "config.json"
    data = json.loads(config.read_text())
    for changed, message in [
        (data | {"version": 2}, "another version of Tessera"),
        (data | {"format": "other"}, "not a model's config.json"),
        ([], "not a model's config.json"),
        (data | {"lables": []}, "did you mean 'labels'"),
        (data | {"labels": ["a"]}, "1 label names, but the model has 4 labels"),
        (data | {"spec": data["spec"] | {"cardinalities": [1 << 40]}}, "cardinalities.0: Input should be less"),
    ]:
        config.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            load_model(saved)
    config.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_model(saved)


def test_parts_that_do_not_belong_together_are_not_saved(tmp_path):
    lm, tokenizer, text = make_parts()
    with pytest.raises(ValueError, match="2 label names, but the model has 4 labels"):
        save_model(tmp_path, lm, tokenizer, text, ["a", "b"])
    with pytest.raises(ValueError, match="the model reads text, but no text tokenizer was given"):
        save_model(tmp_path, lm, tokenizer, None, LABELS)
    other = make_text(SentencePieceConfig(vocab_size=20), ["one two three", "two one"])
    with pytest.raises(ValueError, match=r"the text tokenizer has \d+ ids but the model has 256"):
        save_model(tmp_path, lm, tokenizer, other, LABELS)
    with torch.no_grad():
        lm.head.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"tensor 'head.weight' is not finite in float32"):
        save_model(tmp_path, lm, tokenizer, text, LABELS)
    assert not (tmp_path / "config.json").exists()


def test_an_incomplete_save_is_no_model(saved):
    """config.json comes last: a save that was killed leaves none."""
    lm, tokenizer, text = make_parts()
    (saved / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no model here"):
        read_model_config(saved)
    save_model(saved, lm, tokenizer, text, LABELS)
    assert read_model_config(saved).lm == lm.config


def test_parameter_shapes_need_no_memory():
    lm, tokenizer, _ = make_parts(0, None, CodesInputConfig())
    shapes = parameter_shapes(lm.config, lm.spec, tokenizer.vectors().shape[-1])
    assert shapes == {name: tuple(tensor.shape) for name, tensor in lm.state_dict().items()}
    large = lm.config.model_copy(update={"width": 16384, "ffn": 65536, "layers": 100})
    assert parameter_shapes(large, lm.spec, 8)["head.weight"] == (18, 16384)
