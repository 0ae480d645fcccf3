"""CSM: logits of transformers' class, the tensors of the published model, what is read and written, what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_csm import CODES, K, changed, hidden_input, make_csm, random_csm, save_csm_folder, text_of, transformers

from tessera.configs.files import read_safetensors, write_safetensors
from tessera.lm.checkpoints.parameter_shapes import parameter_shapes
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.patterns.text_stream import ExampleShape
from tessera.lm.public.csm import IN_CODEC, OTHER_TABLE, TABLE, csm_config, csm_tensor_map, read_csm_config
from tessera.lm.public.registry import load_public_model, recognize_model
from tessera.lm.public.summary import summarize
from tessera.tokenize.public.building import tokenizer_shapes
from tessera.tokenize.public.folder import PublicFolder
from tessera.tokenize.public.mimi import DEFAULTS as CODEC_DEFAULTS
from tessera.tokenize.public.mimi import HUB_NAMES, mimi_config, mimi_tensor_map
from tessera.tokenize.spec import AudioGeometry, TokenSpec

PUBLISHED = Path(__file__).parent / "published" / "csm-1b.json"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(model of transformers, its folder)."""
    model, folder = make_csm(), tmp_path_factory.mktemp("csm")
    save_csm_folder(folder, model)
    return model, folder


@pytest.fixture(scope="module")
def loaded(tiny):
    return load_public_model(tiny[1])


def make_sequence(stream, seed, books):
    """A conversation of two turns and the beginning of a third."""
    generator = torch.Generator().manual_seed(seed)
    first, second, third = text_of("[1]hello the cat", "[0]no", "[1]the dog said no")
    codes = [torch.randint(CODES, (books, count), generator=generator) for count in (5, 3, 4)]
    return stream.speak(third, codes[2], [(first, codes[0]), (second, codes[1])])


@pytest.mark.parametrize("seed", range(5))
def test_logits_of_a_conversation(seed, tmp_path, tiny, loaded):
    """Seed 0: the usual tiny model; others: random sizes."""
    theirs, model = tiny[0], loaded
    if seed:
        theirs = random_csm(seed)
        save_csm_folder(tmp_path, theirs)
        model = load_public_model(tmp_path)
    lm, books = model.lm, theirs.config.num_codebooks
    sequence = make_sequence(lm.text_stream, seed, books)
    with torch.no_grad():
        found = lm(sequence[None], None, ConditionBatch(given=torch.tensor([3]))).logits[0]
        backbone = theirs.backbone_model(inputs_embeds=hidden_input(theirs, sequence)).last_hidden_state[0]
        expected = theirs.lm_head(backbone)
        close(found[1, :-1, :CODES], expected[:-1, :CODES])
        frames = (sequence[0] == lm.text_stream.slot).nonzero().flatten()
        ids = torch.nn.functional.pad(sequence[1:, frames].t(), (1, 0))
        depth = theirs.depth_decoder(input_ids=ids[:, :-1], backbone_last_hidden_state=backbone[frames]).logits
        close(found[2:, frames, :CODES].transpose(0, 1), depth[..., :CODES])


def close(found, expected):
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_what_is_read(tiny, loaded):
    assert recognize_model(tiny[1]) == "csm"
    summary = summarize(tiny[1])
    assert summary.fits and not summary.lacks
    assert all(name.endswith("initialized") for name in summary.left_out)
    assert [part.name for part in summary.parts] == ["tokenizer", "language model"]
    found = loaded.defaults
    assert (found.temperature, found.top_k, found.top_p, found.max_frames) == (0.9, 50, 1.0, 40)
    assert loaded.lm.spec == loaded.tokenizer.spec and loaded.lm.spec.num_codebooks == K
    assert (
        loaded.text.encode("hello") == text_of("[0]hello")[0]
        and loaded.text.encode("[7]hello") == text_of("[7]hello")[0]
    )
    (tiny[1] / "generation_config.json").rename(tiny[1] / "kept")
    assert load_public_model(tiny[1]).defaults.max_frames == 125
    (tiny[1] / "kept").rename(tiny[1] / "generation_config.json")


def test_the_text_and_the_codes_have_settings_of_their_own(tiny, tmp_path):
    shutil.copytree(tiny[1], tmp_path / "x")
    path = tmp_path / "x" / "generation_config.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"depth_decoder_temperature": 0.5, "top_k": 7, "depth_decoder_do_sample": None}))
    found = load_public_model(tmp_path / "x").defaults
    assert found.temperature == (0.9, 0.9, 0.0, 0.0, 0.0) and found.top_k == (7, 7, 50, 50, 50)
    path.write_text(json.dumps(held | {"temperature": "hot"}))
    with pytest.raises(ValueError, match="generation_config.json: temperature"):
        load_public_model(tmp_path / "x")


def test_files_in_parts_and_beside_those_of_another_library(tiny, tmp_path):
    """As in the published repository: its authors' file is model.safetensors, config.json names transformers' files."""
    save_csm_folder(tmp_path, tiny[0], max_shard_size="20KB")
    names = sorted(file.name for file in tmp_path.glob("model-*.safetensors"))
    assert len(names) > 2
    expected = load_public_model(tiny[1]).lm.state_dict()
    same(load_public_model(tmp_path).lm.state_dict(), expected)
    index = (tmp_path / "model.safetensors.index.json").read_text().replace("model-", "transformers-")
    for name in names:
        (tmp_path / name).rename(tmp_path / name.replace("model-", "transformers-"))
    (tmp_path / "transformers.safetensors.index.json").write_text(index)
    (tmp_path / "model.safetensors.index.json").unlink()
    write_safetensors(tmp_path / "model.safetensors", {"text_embeddings.weight": torch.zeros(2)})
    changed(tmp_path, {"transformers_weights": "transformers.safetensors.index.json"})
    same(load_public_model(tmp_path).lm.state_dict(), expected)
    changed(tmp_path, {"transformers_weights": "../elsewhere.safetensors"})
    with pytest.raises(ValueError, match=r"\.\./elsewhere"):
        load_public_model(tmp_path)
    changed(tmp_path, {"transformers_weights": 7})
    with pytest.raises(ValueError, match="transformers_weights must be the name of a file"):
        load_public_model(tmp_path)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("names", [(OTHER_TABLE,), (TABLE, OTHER_TABLE)])
def test_either_name_of_the_tied_table(names, tiny, tmp_path):
    shutil.copytree(tiny[1], tmp_path / "x")
    tensors = read_safetensors(tmp_path / "x" / "model.safetensors")[0]
    table = tensors.pop(TABLE)
    write_safetensors(tmp_path / "x" / "model.safetensors", tensors | {name: table.clone() for name in names})
    same(load_public_model(tmp_path / "x").lm.state_dict(), load_public_model(tiny[1]).lm.state_dict())
    if len(names) == 2:
        write_safetensors(tmp_path / "x" / "model.safetensors", tensors | {TABLE: table, OTHER_TABLE: table + 1})
        with pytest.raises(ValueError, match="differ, though tie_codebooks_embeddings is true"):
            load_public_model(tmp_path / "x")


def test_the_tensors_are_those_of_transformers():
    described = json.loads(PUBLISHED.read_text())
    config = transformers.CsmConfig(**{key: value for key, value in described.items() if key != "model_type"})
    with torch.device("meta"):
        theirs = transformers.CsmForConditionalGeneration(config)
    expected = {
        name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items() if not name.startswith(IN_CODEC)
    }
    assert expected.pop(OTHER_TABLE) == expected[TABLE]  # tied: once in a file

    class Folder(PublicFolder):
        config = described

    settings, depth = read_csm_config(Folder("nowhere"))
    lm = csm_config(settings, depth)
    values = {key: described["codec_config"].get(key, default) for key, default in CODEC_DEFAULTS.items()}
    codec = mimi_config(values, [1, 31], "codec_config", "padded")
    geometry = codec.geometry
    assert isinstance(geometry, AudioGeometry) and (geometry.sample_rate, geometry.frame_rate) == (24000, 12.5)
    spec = TokenSpec(name="csm", cardinalities=(2048,) * 32, geometry=geometry, fingerprint="0" * 64)
    shapes = parameter_shapes(lm, spec)
    found = csm_tensor_map(lm, spec).expected(shapes)
    assert found == expected
    assert sum(torch.Size(shape).numel() for shape in found.values()) == pytest.approx(1.553e9, rel=1e-3)
    of_codec = mimi_tensor_map(codec, HUB_NAMES, prefix=IN_CODEC).expected(tokenizer_shapes(codec))
    assert of_codec[f"{IN_CODEC}decoder.layers.0.conv.weight"] == (1024, 512, 7)
    scaling, own = lm.rope.scaling, lm.head.positions.scaling  # type: ignore[union-attr]
    # The original's figures for both, of which these are other ways to write the same change.
    for one in (scaling, own):
        assert one.steps / one.low_factor == 8192 and one.steps / one.high_factor == 2048 and one.factor == 32


def test_training_terms_are_those_of_the_frames_and_the_end_frame(loaded):
    lm, stream = loaded.lm, loaded.lm.text_stream
    text, codes = text_of("[0]no")[0], torch.randint(CODES, (K, 6))
    sequence, given = stream.example(text, codes, "speak")
    assert sequence.shape[1] == len(text) - 1 + 7 and given == len(text) - 1
    assert bool((sequence[1:, -1] == 0).all()) and sequence[0, given:].eq(stream.slot).all()
    report = lm.loss(sequence[None], None, ConditionBatch(given=torch.tensor([given])))
    assert report.count.tolist() == lm.count_terms(ExampleShape(len(text), 6, "speak")).tolist() == [0, *[7] * K]
    with torch.no_grad():
        logits = lm(sequence[None], None, ConditionBatch(given=torch.tensor([given]))).logits[0]
    for k in range(K):
        targets = sequence[1 + k, given:]
        expected = torch.nn.functional.cross_entropy(logits[1 + k, given:-1, :CODES], targets)
        torch.testing.assert_close(report.per_codebook[1 + k], expected)
    with pytest.raises(ValueError, match="a text of this model begins with the id"):
        stream.speak(text[1:], codes)


def test_null_heads_are_those_of_the_queries(tiny):
    described = json.loads((tiny[1] / "config.json").read_text())
    described["num_key_value_heads"] = described["depth_decoder_config"]["num_key_value_heads"] = None

    class Folder(PublicFolder):
        config = described

    config = csm_config(*read_csm_config(Folder(tiny[1])))
    assert (config.num_kv_heads, config.head.kv_heads) == (4, 2)  # type: ignore[union-attr]


LIES = [
    ({"vocab_size": 2051}, "vocab_size is '2051'; only 19 is supported here"),
    ({"codebook_eos_token_id": 3}, "codebook_eos_token_id is '3'; only 0 is supported"),
    ({"codebook_eos_token_id": False}, "codebook_eos_token_id must be|codebook_eos_token_id is 'False'"),
    ({"tie_codebooks_embeddings": False}, "tie_codebooks_embeddings is 'False'; only True is supported"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' is supported"),
    ({"attention_bias": True}, "attention_bias is 'True'; only False is supported"),
    ({"num_codebooks": 3}, "depth_decoder_config.num_codebooks is '4'; only 3 is supported"),
    ({"num_codebooks": 10**9}, "num_codebooks must be from 1 to"),
    ({"bos_token_id": 5000}, "bos_token_id is 5000, but text_vocab_size"),
    ({"bos_token_id": 7}, "puts .* before a text"),
    ({"hidden_size": 24}, "depth_decoder_config.backbone_hidden_size is '32'; only 24"),
    ({"intermediate_size": 40}, "the config asks for"),
    ({"num_hidden_layers": 3}, "the config asks for are missing, first 'backbone_model.layers.2"),
    ({"num_hidden_layers": 1}, "backbone_model.layers.1"),
    ({"num_attention_heads": 3}, "heads 3 is not a multiple of kv_heads 2"),
    ({"head_dim": 16}, "the config asks for"),
    ({"head_dim": "8"}, "head_dim must be a whole number"),
    ({"rms_norm_eps": 2.0}, "norm_eps"),
    ({"text_vocab_size": 60}, "bos_token_id is|the config asks for"),
    ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'; default and llama3 are supported"),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 0.5}}, "must be a number above 0"),
    ({"codec_config": {"model_type": "encodec", "codebook_size": CODES}}, "codec_config.model_type is 'encodec'"),
    ({"codec_config": None}, "codec_config: is missing"),
    ({"depth_decoder_config": 3}, "depth_decoder_config: is missing"),
    ({"model_type": "csm2"}, "model_type is 'csm2'"),
]


@pytest.mark.parametrize(("change", "message"), LIES, ids=[str(lie[0])[:50] for lie in LIES])
def test_a_config_that_lies_is_refused(change, message, tiny, tmp_path):
    shutil.copytree(tiny[1], tmp_path / "x")
    changed(tmp_path / "x", change)
    with pytest.raises(ValueError, match=message) as refused:
        load_public_model(tmp_path / "x")
    assert "\n" not in str(refused.value)
