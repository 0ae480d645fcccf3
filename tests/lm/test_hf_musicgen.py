"""MusicGen's decoder as transformers writes it: the same logits, the same bytes back, and one clear error otherwise."""

import json

import pytest
import torch
from small_models import make_config, make_lm
from tiny_musicgen import TEXT_WIDTH, D, V, make_bare, make_composite, make_states, transformers

from tessera.cli.app import run
from tessera.configs.files import read_safetensors, write_safetensors
from tessera.configs.tensor_checks import WeightsError
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.public.musicgen import UNKNOWN_CODEC, load_musicgen, save_musicgen

# float32 on both sides; a model of 24 layers adds up more rounding than two do
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare")
    model = make_bare()
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def composite(tmp_path_factory):
    folder = tmp_path_factory.mktemp("composite")
    model = make_composite()
    model.save_pretrained(folder)
    return model, folder


def check_logits(lm, decoder, conditions, states, mask, books=4):
    """Full forward and step by step against transformers, which is given the arranged columns."""
    B = len(states)
    codes = torch.randint(V, (B, books, 12), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        output = lm(codes, None, conditions)
        read = torch.cat([lm.start_ids(B)[..., None], output.targets[:, :, :-1]], dim=2)
        expected = decoder(
            input_ids=read.flatten(0, 1), encoder_hidden_states=states, encoder_attention_mask=mask
        ).logits.unflatten(0, (B, books))
    torch.testing.assert_close(output.logits, expected, **CLOSE)
    assert float(expected.std()) > 0.3
    state = lm.start(conditions, capacity=read.shape[2])
    stepped = torch.stack([lm.step(state, read[:, :, s]) for s in range(read.shape[2])], dim=2)
    torch.testing.assert_close(stepped, expected, **CLOSE)


def test_a_decoder_gives_the_logits_of_transformers(bare):
    model, folder = bare
    states, lengths, mask = make_states(4, D)
    lm = load_musicgen(folder)
    check_logits(lm, model, ConditionBatch(embedding=states, embedding_lengths=lengths), states, mask)
    assert lm.spec.fingerprint == UNKNOWN_CODEC
    assert (lm.spec.geometry.sample_rate, lm.spec.geometry.samples_per_frame) == (32000, 640)
    assert lm.arrangement.layout.offsets == [0, 1, 2, 3]
    # the delays' columns as transformers draws them: max_length = T + K
    _, pattern = model.build_delay_pattern_mask(torch.full((4, 1), V), pad_token_id=V, max_length=13)
    arranged = lm.arrangement.arrange(torch.zeros(1, 4, 9, dtype=torch.long))
    ours = torch.cat([lm.start_ids(1)[..., None], torch.where(arranged.mask, -1, arranged.ids)], dim=2)
    assert ours[0].equal(pattern)


def test_stereo_delays_pairs_of_codebooks(tmp_path):
    model = make_bare(books=8, channels=2)
    model.save_pretrained(tmp_path)
    states, lengths, mask = make_states(2, D)
    lm = load_musicgen(tmp_path)
    assert lm.arrangement.layout.offsets == [0, 0, 1, 1, 2, 2, 3, 3]
    check_logits(lm, model, ConditionBatch(embedding=states, embedding_lengths=lengths), states, mask, books=8)


def test_the_decoder_of_a_whole_model_reads_the_text_encoders_states(composite):
    model, folder = composite
    states, lengths, mask = make_states(4, TEXT_WIDTH)
    lm = load_musicgen(folder)
    with torch.no_grad():
        projected = model.enc_to_dec_proj(states) * mask[..., None]
    check_logits(lm, model.decoder, ConditionBatch(embedding=states, embedding_lengths=lengths), projected, mask)
    assert (lm.spec.geometry.sample_rate, lm.spec.geometry.samples_per_frame) == (8000, 8)


@pytest.mark.parametrize("source", ["bare", "composite"])
def test_written_back_nothing_has_changed(source, request, tmp_path):
    _, folder = request.getfixturevalue(source)
    lm = load_musicgen(folder)
    save_musicgen(tmp_path / "out", lm)
    theirs, written = read_safetensors(folder / "model.safetensors")[0], {}
    for file in (tmp_path / "out").glob("*.safetensors"):
        written |= read_safetensors(file)[0]
    prefix = "decoder." if source == "composite" else ""
    wanted = {name: t for name, t in theirs.items() if not name.startswith(("text_encoder.", "audio_encoder."))}
    assert written.keys() == {name.removeprefix(prefix) for name in wanted}
    assert all(written[name.removeprefix(prefix)].equal(tensor) for name, tensor in wanted.items())
    again = load_musicgen(tmp_path / "out", spec=lm.spec)
    assert again.config == lm.config
    assert all(tensor.equal(lm.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_transformers_reads_what_was_written(bare, tmp_path):
    model, folder = bare
    save_musicgen(tmp_path / "out", load_musicgen(folder))
    again, report = transformers.MusicgenForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, tensor in again.state_dict().items():
        assert tensor.equal(model.state_dict()[name]), name


def test_several_files_and_half_precision(bare, tmp_path):
    model, folder = bare
    model.save_pretrained(tmp_path / "parts", max_shard_size="8KB")
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    lm, parts = load_musicgen(folder), load_musicgen(tmp_path / "parts")
    assert all(tensor.equal(lm.state_dict()[name]) for name, tensor in parts.state_dict().items())
    save_musicgen(tmp_path / "half", lm, dtype="bfloat16")
    half = load_musicgen(tmp_path / "half", dtype="bfloat16")
    assert half.head.weight.equal(lm.head.weight.bfloat16())
    next((tmp_path / "parts").glob("model-00002*")).unlink()
    with pytest.raises(FileNotFoundError, match="model-00002.*no such file; the checkpoint is incomplete"):
        load_musicgen(tmp_path / "parts")


@pytest.fixture
def copied(bare, tmp_path):
    """A checkpoint to be damaged: (folder, its tensors, its config)."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((bare[1] / name).read_bytes())
    described = json.loads((tmp_path / "config.json").read_text())
    return tmp_path, read_safetensors(tmp_path / "model.safetensors")[0], described


def test_wrong_tensors_are_named(copied):
    folder, tensors, _ = copied
    name = "model.decoder.layers.1.encoder_attn.k_proj.weight"
    write_safetensors(folder / "model.safetensors", {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(WeightsError, match=f"1 tensors that the config asks for are missing, first '{name}'"):
        load_musicgen(folder)
    write_safetensors(folder / "model.safetensors", tensors | {"lm_heads.4.weight": torch.zeros(2, 2)})
    with pytest.raises(WeightsError, match="1 tensors do not belong to the config, first 'lm_heads.4.weight'"):
        load_musicgen(folder)
    write_safetensors(folder / "model.safetensors", tensors | {name: torch.zeros(D, D + 1)})
    with pytest.raises(WeightsError, match=rf"tensor '{name}' is \[24, 25\], the config asks for \[24, 24\]"):
        load_musicgen(folder)


def test_a_pickle_of_tensors_is_read_and_what_is_missing_is_said(copied):
    folder, tensors, _ = copied
    expected = load_musicgen(folder).state_dict()
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    found = load_musicgen(folder).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="no weights here"):
        load_musicgen(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        load_musicgen(folder)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model_type": "musicgen_style"}, "model_type is 'musicgen_style'; supported are"),
        ({"model_type": "musicgen_melody"}, "config.json: has no decoder"),
        ({"activation_function": "relu"}, "activation_function is 'relu'; only 'gelu' is supported"),
        ({"pad_token_id": 0}, "pad_token_id is 0; only 32 is supported"),
        ({"hidden_size": None}, "hidden_size must be a whole number, found None"),
        ({"num_codebooks": 3, "audio_channels": 2}, "3 codebooks cannot be shared by 2 channels"),
        ({"scale_embedding": True}, "scale_embedding is True; only False is supported"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True; only False is supported"),
        ({"audio_channels": 3}, "audio_channels is 3; only 1 or 2 is supported"),
        ({"hidden_size": 4}, "config.json: width: Input should be greater than or equal to 8"),
        ({"num_attention_heads": 5}, "config.json: .*width 24 is not a multiple of heads 5"),
        ({"ffn_dim": 2}, "config.json: ffn: Input should be greater than or equal to 8"),
        ({"dropout": "x"}, "config.json: dropout must be a number, found 'x'"),
        ({"dropout": 1}, "config.json: dropout: Input should be less than 1"),
    ],
)
def test_another_kind_of_model_is_refused(copied, change, error):
    folder, _, described = copied
    (folder / "config.json").write_text(json.dumps(described | change))
    with pytest.raises(ValueError, match=error) as refused:
        load_musicgen(folder)
    assert "\n" not in str(refused.value)


def test_positions_enough_for_the_rate_are_written(bare, tmp_path):
    lm = load_musicgen(bare[1])
    for rate, positions in ((32000, 2048), (86 * 640, 4096)):
        geometry = lm.spec.geometry.model_copy(update={"sample_rate": rate, "samples_per_frame": 640})
        lm.spec = lm.spec.model_copy(update={"geometry": geometry})
        save_musicgen(tmp_path, lm)
        assert json.loads((tmp_path / "config.json").read_text())["max_position_embeddings"] == positions


def test_a_spec_of_other_codes_is_refused(bare):
    lm = load_musicgen(bare[1])
    with pytest.raises(ValueError, match=r"4 codebooks of 32 codes, the tokenizer 'musicgen-codec' \[32, 32\]"):
        load_musicgen(bare[1], spec=lm.spec.model_copy(update={"cardinalities": (V, V)}))


def test_a_model_that_the_layout_cannot_say_is_not_written(tmp_path):
    lm = make_lm(make_config())
    with pytest.raises(ValueError, match=r"codebooks of one size in one or two channels, found \[7, 5, 6\]"):
        save_musicgen(tmp_path, lm)
    lm.spec = lm.spec.model_copy(update={"cardinalities": (7, 7, 7)})
    with pytest.raises(ValueError, match="MusicGen's layout does not support this lm.feed_forward: found 'swiglu'"):
        save_musicgen(tmp_path, lm)
    assert not list(tmp_path.iterdir())


def test_converted_by_the_command_and_back(composite, tmp_path):
    lm, out, back = load_musicgen(composite[1]), tmp_path / "lm", tmp_path / "back"
    assert run(["convert", str(composite[1]), str(out)]) == 0
    assert run(["convert", str(out), str(back), "--to", "musicgen"]) == 0
    again = load_musicgen(back, spec=lm.spec)
    assert all(tensor.equal(lm.state_dict()[name]) for name, tensor in again.state_dict().items())
