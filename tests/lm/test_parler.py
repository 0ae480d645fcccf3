"""Parler-TTS: logits and codes of its package, the tensors of published models, and what is refused."""

import json
import math
import shutil
import struct
from pathlib import Path

import make_parler_codes
import pytest
import torch

from tessera.configs.files import read_safetensors, write_safetensors
from tessera.configs.tensor_checks import WeightsError
from tessera.generate import generate
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.public import parler
from tessera.lm.public.registry import load_public_model, read_public_model, recognize_model
from tessera.lm.public.summary import summarize
from tessera.tokenize.public.building import parametrized, public_tensors, tokenizer_shapes, weight_g
from tessera.tokenize.public.dac import dac_config, dac_tensor_map
from tessera.tokenize.public.dac_native import NATIVE

transformers = pytest.importorskip("transformers")
HERE = Path(__file__).parent
TINY = HERE / "tiny_parler"
EXPECTED = read_safetensors(TINY / "expected.safetensors")[0]
PUBLISHED = sorted((HERE / "published").glob("parler-*.json"))
NAMES = ("projected", "grouped")
K = make_parler_codes.K


@pytest.fixture(scope="module", params=NAMES)
def tiny(request):
    """(name, loaded model)."""
    return request.param, load_public_model(TINY / request.param)


def given(name, what, row):
    return EXPECTED[f"{name}.{what}.{row}"].tolist()


def states(model, name, row):
    """Of the description's ids, as the package's own text encoder has them."""
    with torch.no_grad():
        return model.text_encoder.net(input_ids=torch.tensor([given(name, "description", row)])).last_hidden_state[0]


def test_logits_of_a_whole_sequence(tiny):
    name, model = tiny
    codes = EXPECTED[f"{name}.given"].long()[None]
    batch = ConditionBatch.make(texts=[given(name, "prompt", 0)], embeddings=[states(model, name, 1)])
    with torch.no_grad():
        output = model.lm(codes, None, batch)
    found, expected = output.logits[0], EXPECTED[f"{name}.logits"]
    V = model.spec.cardinalities[0]
    assert found.shape[:2] == expected.shape[:2] == (K, make_parler_codes.FRAMES + K)
    torch.testing.assert_close(found[..., :V], expected[..., :V], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[0, :, V], expected[0, :, V], rtol=0, atol=1e-4)  # the end, of codebook 0


@pytest.mark.parametrize("rows", [[0], [1], [0, 1], [1, 0]], ids=str)
def test_greedy_clips(tiny, rows):
    """Also of texts of different lengths in a batch: each clip is what the package makes of its texts alone."""
    name, model = tiny
    result = generate(
        model.lm,
        model.tokenizer,
        text_ids=[given(name, "prompt", row) for row in rows],
        embedding=[states(model, name, row) for row in rows],
        temperature=0.0,
        max_frames=make_parler_codes.LONGEST,
    )
    for place, row in enumerate(rows):
        expected, samples = EXPECTED[f"{name}.codes.{row}"].long(), EXPECTED[f"{name}.samples.{row}"]
        length = int(result.lengths[place])
        assert torch.equal(result.codes[place, :, :length], expected)
        assert result.ended[place] == (length < make_parler_codes.LONGEST)
        torch.testing.assert_close(result.media[place].flatten(), samples.flatten(), rtol=0, atol=1e-5)


def test_a_batch_of_the_package(tiny):
    """Descriptions padded on the right do not change its clips; transcripts padded on the left do, because its
    positions count the padding: only the longest row is then what it is alone."""
    name, model = tiny
    result = generate(
        model.lm,
        model.tokenizer,
        text_ids=given(name, "prompt", 1),
        embedding=[states(model, name, row) for row in (0, 1)],
        temperature=0.0,
        max_frames=make_parler_codes.LONGEST,
    )
    for row in (0, 1):
        length = int(result.lengths[row])
        assert torch.equal(result.codes[row, :, :length], EXPECTED[f"{name}.together.{row}"].long())
    assert torch.equal(EXPECTED[f"{name}.padded.1"], EXPECTED[f"{name}.codes.1"])


def test_the_settings_of_the_package(tiny):
    name, model = tiny
    assert recognize_model(TINY / name) == "parler"
    found = model.defaults
    assert (found.temperature, found.top_k, found.guidance, found.max_frames) == (1.0, 50, 1.0, 31)
    assert model.spec.num_codebooks == 9 and model.spec.geometry.samples_per_frame == 8


def collapsed(shapes):
    """As `make_parler_codes.shapes` writes them."""
    found = {}
    for name, shape in shapes.items():
        key = make_parler_codes.NUMBER.sub("{}", name, count=1)
        found[key] = [list(shape), found.get(key, [0, 0])[1] + 1]
    return found


def spelled(tensors):
    """Names and shapes, one for each tensor."""
    return {name.replace("{}", str(n)): tuple(shape) for name, (shape, count) in tensors.items() for n in range(count)}


def hollow(path: Path, shapes) -> None:
    """A safetensors file of zeros that takes no space."""
    header, place = {}, 0
    for name, shape in shapes.items():
        end = place + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)


MILLION = {"parler-mini_v0.1": 647, "parler-mini-v1": 878}
"""Parameters of the published models, those of Large v1 are not known here."""


@pytest.mark.sample(3)
@pytest.mark.parametrize("weight", [parametrized, weight_g], ids=["parametrized", "weight_g"])
@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_the_tensors_of_published_models(path, weight, tmp_path):
    described = json.loads(path.read_text())
    (tmp_path / "config.json").write_text(json.dumps(described["config"]))
    shapes = spelled(described["tensors"])
    assert collapsed(shapes) == described["tensors"]
    del shapes["text_encoder.encoder.embed_tokens.weight"]  # tied, and not in the files
    codec = dac_config(json.loads(CODEC.read_text())["config"], 9)
    of_codec = dac_tensor_map(codec, NATIVE, weight, prefix="audio_encoder.model.").expected(tokenizer_shapes(codec))
    hollow(tmp_path / "model.safetensors", shapes | of_codec)
    summary = summarize(tmp_path)
    assert summary.fits, summary
    assert summary.left_out == ("decoder.model.decoder.embed_positions.weights",)
    assert [part.name for part in summary.parts] == ["tokenizer", "language model", "text encoder"]
    assert "86.1328 frames a second of 44100 Hz" in summary.parts[0].described
    assert sum(part.num_tensors for part in summary.parts) == len(shapes) + len(of_codec) - 1
    million = sum(part.num_parameters for part in summary.parts) / 1e6
    assert million == pytest.approx(MILLION.get(path.stem, million), rel=0.01)


CODEC = HERE.parent / "tokenize" / "public" / "published" / "dac-native-44khz.json"


@pytest.mark.parametrize("weight", [parametrized, weight_g], ids=["parametrized", "weight_g"])
def test_a_codec_of_the_original_library(weight, tmp_path, monkeypatch):
    """As in the published models, whose other sizes than those of the wrapper's config are the library's defaults."""
    plain = load_public_model(TINY / "projected")
    codec, config = plain.tokenizer, plain.tokenizer.config
    shutil.copytree(TINY / "projected", tmp_path / "native")
    tensors = {
        name: tensor
        for name, tensor in read_safetensors(tmp_path / "native" / "model.safetensors")[0].items()
        if not name.startswith("audio_encoder.")
    }
    tensors |= public_tensors(codec, dac_tensor_map(config, NATIVE, weight, prefix="audio_encoder.model."))
    write_safetensors(tmp_path / "native" / "model.safetensors", tensors)
    change_config(
        tmp_path / "native",
        "audio_encoder",
        lambda held: (
            {"model_type": "dac_on_the_hub", "latent_dim": config.latent_dim, "sampling_rate": 8000}
            | {"codebook_size": 32, "num_codebooks": 9}
        ),
    )
    sizes = {"encoder_dim": 1, "encoder_rates": [2, 4], "decoder_dim": 4, "decoder_rates": [4, 2], "codebook_dim": 2}
    monkeypatch.setattr(parler, "CODEC_SIZES", parler.CODEC_SIZES | sizes)
    model = load_public_model(tmp_path / "native")
    codes = EXPECTED["projected.codes.0"].long()[None]
    torch.testing.assert_close(model.tokenizer.decode(codes), codec.decode(codes), rtol=1e-5, atol=1e-6)
    assert summarize(tmp_path / "native").fits


def change_config(folder: Path, section, change) -> None:
    path = folder / "config.json"
    described = json.loads(path.read_text())
    if section is None:
        described |= change(described)
    else:
        described[section] = change(described[section])
    path.write_text(json.dumps(described))


LIES = [
    ("decoder", {"rope_embeddings": 1}, "rope_embeddings must be of type bool, found '1'"),
    ("decoder", {"rope_embeddings": True}, "'decoder.model.decoder.embed_positions.weights'"),
    ("decoder", {"rope_embeddings": True, "rope_theta": 0.0}, "base: Input should be greater than 0"),
    ("decoder", {"activation_function": "relu"}, "decoder.activation_function is 'relu'; only 'gelu' is supported"),
    ("decoder", {"scale_embedding": True}, "decoder.scale_embedding is 'True'"),
    ("decoder", {"eos_token_id": 31}, "decoder.eos_token_id is '31'; only 32 is supported"),
    ("decoder", {"bos_token_id": 34}, "decoder.bos_token_id is '34'; only 33 is supported"),
    ("decoder", {"num_cross_attention_key_value_heads": 2}, "num_cross_attention_key_value_heads is '2'; only 4 is"),
    ("decoder", {"num_key_value_heads": 9}, "decoder.num_key_value_heads is '9'"),
    (
        "decoder",
        {"num_key_value_heads": 3, "num_cross_attention_key_value_heads": 3},
        "heads 4 is not a multiple of kv_heads 3",
    ),
    ("decoder", {"num_key_value_heads": True}, "decoder.num_key_value_heads is 'True'"),
    ("decoder", {"cross_attention_hidden_size": 16}, "cross_attention_hidden_size is '16'; only null is supported"),
    ("decoder", {"vocab_size": 32}, "decoder.vocab_size is 32, too few for 32 codes and the end of a sequence"),
    ("decoder", {"vocab_size": 37}, r"'decoder.lm_heads.0.weight' is \[36, 16\], the config asks for \[37, 16\]"),
    ("decoder", {"vocab_size": 10**12}, "vocab_size must be from 1 to"),
    ("decoder", {"num_hidden_layers": 3}, "the config asks for are missing, first 'decoder.model.decoder.layers.2"),
    ("decoder", {"num_hidden_layers": 1}, "decoder.model.decoder.layers.1"),
    ("decoder", {"num_hidden_layers": 10**9}, "num_hidden_layers must be from 1 to 256"),
    ("decoder", {"hidden_size": 24}, "the config asks for"),
    ("decoder", {"ffn_dim": "24"}, "ffn_dim must be of type int"),
    ("decoder", {"num_codebooks": 10}, "10 codebooks were asked for, the file has 9"),
    ("decoder", {"num_codebooks": 8}, "'decoder.lm_heads.8.weight'|'decoder.model.decoder.embed_tokens.8.weight'"),
    ("decoder", {"use_fused_lm_heads": True}, "missing, first 'decoder.lm_heads.weight'"),
    ("audio_encoder", {"codebook_size": 64}, "decoder.eos_token_id is '32'; only 64 is supported"),
    ("audio_encoder", {"model_type": "encodec"}, "audio_encoder.model_type is 'encodec'; only 'dac' or"),
    ("audio_encoder", {"decoder_hidden_size": 8}, "the config asks for"),
    ("text_encoder", {"d_model": 16}, "the config asks for"),
    ("text_encoder", {"model_type": "bert"}, "model_type is 'bert'; only 't5' is supported"),
    (None, {"prompt_cross_attention": True}, "prompt_cross_attention is 'True'; only False is supported"),
    (None, {"vocab_size": 64}, r"tensor 'embed_prompts.weight' is \[48, 16\], the config asks for \[64, 16\]"),
    (None, {"vocab_size": 20}, r"tensor 'embed_prompts.weight' is \[48, 16\], the config asks for \[20, 16\]"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "change", "message"), LIES, ids=[f"{lie[0]}-{lie[1]}" for lie in LIES])
def test_a_config_that_lies_is_refused(section, change, message, tmp_path):
    shutil.copytree(TINY / "projected", tmp_path / "folder")
    change_config(tmp_path / "folder", section, lambda held: held | change)
    with pytest.raises(ValueError, match=message) as refused:
        load_public_model(tmp_path / "folder").text_encoder.net  # noqa: B018
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("embed_prompts.weight"), "missing.* 'embed_prompts.weight'"),
        (lambda held: held.pop("enc_to_dec_proj.bias"), "missing.* 'enc_to_dec_proj.bias'"),
        (lambda held: held.pop("audio_encoder.quantizer.quantizers.4.in_proj.bias"), "quantizers.4.in_proj.bias"),
        (lambda held: held.pop("text_encoder.encoder.final_layer_norm.weight"), "encoder.final_layer_norm.weight"),
        (lambda held: held.update({"decoder.lm_heads.9.weight": torch.zeros(2)}), "'decoder.lm_heads.9.weight'"),
        (lambda held: held.update({"decoder.extra": torch.zeros(2)}), "'decoder.extra'"),
    ],
    ids=["prompts", "projection", "codec", "text", "head", "extra"],
)
def test_missing_and_unknown_tensors_are_named(change, message, tmp_path):
    shutil.copytree(TINY / "projected", tmp_path / "folder")
    path = tmp_path / "folder" / "model.safetensors"
    held = read_safetensors(path)[0]
    change(held)
    write_safetensors(path, held)
    with pytest.raises(WeightsError, match=message):
        load_public_model(tmp_path / "folder")


def test_transcripts_by_tokenizer_json(tmp_path):
    """As transformers writes it, which leaves out spiece.model."""
    folder = tmp_path / "folder"
    shutil.copytree(TINY / "projected", folder)
    given = read_public_model(folder)
    assert given.text is not None
    transformers.T5Tokenizer.from_pretrained(folder, extra_ids=0).save_pretrained(folder)
    (folder / "spiece.model").unlink()
    found = read_public_model(folder)
    assert found.text is not None
    for text in (*make_parler_codes.DESCRIPTIONS, *make_parler_codes.PROMPTS, "xyz  a"):
        assert found.text.encode(text) == given.text.encode(text)
    assert summarize(folder).lacks == ()


def test_other_tokenizers_of_transcripts_are_refused(tmp_path):
    folder = tmp_path / "folder"
    shutil.copytree(TINY / "projected", folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(ValueError, match="tokenizer_class is 'LlamaTokenizer'; only transcripts in the pieces of T5"):
        read_public_model(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    (folder / "spiece.model").write_bytes(b"no")
    with pytest.raises(ValueError, match="spiece.model: not a SentencePiece model"):
        read_public_model(folder)
    (folder / "spiece.model").unlink()
    assert "the text tokenizer" in summarize(folder).lacks
    with pytest.raises(FileNotFoundError, match="transcripts are read by the tokenizer of T5"):
        read_public_model(folder)
