"""Qwen3-TTS: logits, greedy codes and speakers are those that its own package made of the same weights."""

import json
from pathlib import Path

import pytest
import torch
from make_native_codecs import listing
from make_qwen3_tts_codes import (
    ASKED,
    CASES,
    LONGEST,
    REFERENCE,
    TEXTS,
    V,
    config_of,
    fill,
    published,
    recording,
    text_files,
    vector,
)
from make_qwen3_tts_tokenizer import config_of as codec_config
from make_qwen3_tts_tokenizer import fill as fill_codec
from safetensors.torch import load_file, save_file

import tessera
from tessera.configs.files import read_json
from tessera.lm.checkpoints.model_directory import load_model, save_model
from tessera.lm.checkpoints.parameter_shapes import parameter_shapes
from tessera.lm.conditioning.dual_track import make_track, track_fields
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.public import qwen3_tts as layout
from tessera.lm.public.registry import load_public_model, recognize_model
from tessera.lm.public.summary import summarize
from tessera.tokenize.public import qwen3_tts_tokenizer as codec_layout
from tessera.tokenize.public.building import tokenizer_shapes
from tessera.tokenize.public.folder import PublicFolder, typed_values
from tessera.tokenize.public.mimi import DEFAULTS as ENCODER_DEFAULTS

pytest.importorskip("tokenizers")

HERE = Path(__file__).parent
EXPECTED = load_file(HERE / "qwen3_tts_codes.safetensors")
PUBLISHED = json.loads((HERE / "published" / "qwen3-tts.json").read_text())
GREEDY = {"temperature": 0.0, "max_frames": LONGEST - 1}


def codec_shapes(described):
    """Names and shapes of the tensors of a codec, of whose encoder the file has 6 codebooks."""
    values = typed_values(described, codec_layout.DEFAULTS, "x")
    encoder = typed_values(described["encoder_config"], ENCODER_DEFAULTS, "x")
    decoder = typed_values(described["decoder_config"], codec_layout.DECODER_DEFAULTS, "x")
    config = codec_layout.qwen3_tts_tokenizer_config(values, encoder, decoder, [1, 3], "x")
    return codec_layout.qwen3_tts_tokenizer_map(config, [[1, 5], [1, 3]]).expected(tokenizer_shapes(config))


def shapes_of(described, folder):
    """Names and shapes of the tensors that a model with this config has."""
    (folder / "config.json").write_text(json.dumps(described))
    opened = PublicFolder(folder)
    values = layout.read_qwen3_tts_config(opened)
    config, spec = layout.qwen3_tts_config(values), layout.qwen3_tts_spec(opened, values)
    return layout.qwen3_tts_tensor_map(config, spec).expected(parameter_shapes(config, spec))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The tiny models as their folders are published."""
    root = tmp_path_factory.mktemp("qwen3-tts")
    codec = codec_config("small")
    for case in CASES:
        folder = root / case
        (folder / "speech_tokenizer").mkdir(parents=True)
        save_file(fill(shapes_of(config_of(case), folder)), folder / "model.safetensors")
        for name, content in text_files().items():
            (folder / name).write_text(content)
        (folder / "speech_tokenizer" / "config.json").write_text(json.dumps(codec))
        save_file(fill_codec(codec_shapes(codec), 0), folder / "speech_tokenizer" / "model.safetensors")
        (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "max_new_tokens": 8192}))
    return root


@pytest.fixture(scope="module")
def models(folders):
    return {case: tessera.load(folders / case) for case in CASES}


def asked(case, i):
    """The arguments of `generate` for what the package was asked."""
    given = ASKED[case][i]
    names = {"speaker": "label", "instruct": "description", "language": "language"}
    found = {names[name]: value for name, value in given.items() if name in names}
    if given.get("vector") is not None:
        found["embedding"] = vector(given["vector"])
    return found | {"text": TEXTS[i]}


def all_asked(case):
    """The same of all of TEXTS, as lists."""
    given = [asked(case, i) for i in range(len(TEXTS))]
    names = ("text", "label", "description", "language", "embedding")
    lists = {name: [one.get(name) for one in given] for name in names}
    return {name: values for name, values in lists.items() if any(value is not None for value in values)}


def frames(result, row=0):
    return result.codes[row, :, : result.lengths[row]].T


def reordered(model, order):
    """The model with its text before the frames, or beside them."""
    (dual,) = model.lm.config.conditions
    changed = model.lm.config.model_copy(update={"conditions": (dual.model_copy(update={"order": order}),)})
    model.lm.config = changed
    return model


@pytest.mark.parametrize("case", CASES)
def test_greedy_codes_are_those_of_the_package_alone_and_in_a_batch(case, models):
    model, rows = models[case], range(len(TEXTS))
    alone = list(CASES).index(case)
    assert torch.equal(frames(model.generate(**asked(case, alone), **GREEDY)), EXPECTED[f"{case}.{alone}.codes"])
    together = model.generate(**all_asked(case), **GREEDY)
    for i in rows:
        assert torch.equal(frames(together, i), EXPECTED[f"{case}.{i}.codes"]), i


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_the_package(case, models):
    """Of all rows at once, whose texts and clips are of unequal length."""
    model = models[case]
    (dual,) = model.lm.config.conditions
    tracks = []
    for i in range(len(TEXTS)):
        one = asked(case, i)
        given = {"language": one.get("language", "auto"), "speaker": one.get("label")}
        given |= {"description": one.get("description"), "vector": one.get("embedding")}
        tracks.append(make_track(dual, model.spec.cardinalities, model.text.encode, one["text"], **given))
    wanted = [EXPECTED[f"{case}.{i}.codes"] for i in range(len(TEXTS))]
    lengths = torch.tensor([len(codes) for codes in wanted])
    codes = torch.nn.utils.rnn.pad_sequence(wanted, batch_first=True).transpose(1, 2)
    output = model.lm(codes, lengths, ConditionBatch(**track_fields(tracks)))
    for i, length in enumerate(lengths.tolist()):
        logits = output.logits[i, :, :length]
        for found, name in ((logits[:1, :, : V + 1], "first"), (logits[1:, :, :V], "others")):
            theirs = EXPECTED[f"{case}.{i}.{name}"]
            theirs = theirs[None] if name == "first" else theirs.transpose(0, 1)
            torch.testing.assert_close(found, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))


def test_the_text_before_the_frames_or_beside_them(folders):
    for case, order, name in (("voices", "beside", "beside"), ("base", "before", "before.vector")):
        made = reordered(tessera.load(folders / case), order).generate(**all_asked(case), **GREEDY)
        for i in range(len(TEXTS)):
            assert torch.equal(frames(made, i), EXPECTED[f"{case}.{i}.{name}"])


@pytest.mark.parametrize("order", ["before", "beside"])
def test_a_recording_with_its_words(order, folders):
    model = reordered(tessera.load(folders / "base"), order)
    (dual,) = model.lm.config.conditions
    tracks = [
        make_track(
            dual, model.spec.cardinalities, model.text.encode, TEXTS[i], asked("base", i).get("language", "auto"),
            vector=vector(number), recording=(REFERENCE, recording()[1]),
        )
        for i, number in ((1, 0), (2, 1))
    ]  # fmt: skip
    made = tessera.generate.generate(model.lm, model.tokenizer, tracks=tracks, defaults=model.defaults, **GREEDY)
    for row, i in enumerate((1, 2)):
        assert torch.equal(frames(made, row), EXPECTED[f"base.{i}.{order}.heard"])


def test_the_speaker_of_a_recording(models):
    model = models["base"]
    encoder, samples = model.lm.conditions.parts["dual_track"].speaker_encoder, recording()[0]
    found = encoder.of(samples)
    torch.testing.assert_close(found, EXPECTED["speaker"], rtol=0, atol=1e-4 * float(EXPECTED["speaker"].abs().max()))
    short = GREEDY | {"max_frames": 4, "min_frames": 4}
    made = model.generate("the", voice=samples[None], **short)
    assert torch.equal(made.codes, model.generate("the", embedding=found, **short).codes)
    heard = model.generate("the", voice=samples[None], voice_text="the cat", **short)
    assert not torch.equal(heard.codes, made.codes)
    with pytest.raises(ValueError, match="the voice has 1000 samples, its speaker needs 1280 or more"):
        encoder.of(samples[:1000])


def test_texts_are_read_as_by_the_package(models):
    for i, text in enumerate(TEXTS):
        assert models["design"].text.encode(text) == EXPECTED[f"text.{i}"].tolist()


def test_defaults_are_those_of_the_package(models):
    defaults = models["voices"].defaults
    assert defaults.temperature == (0.9,) * 4 and defaults.top_k == (50,) * 4 and defaults.top_p == (1.0,) * 4
    assert defaults.repetition_penalty == (1.05, 1.0, 1.0, 1.0) and defaults.repetition_window >= 2048
    assert (defaults.min_frames, defaults.max_frames) == (2, 2047)
    assert models["voices"].labels == ["anna", "eric"]


@pytest.mark.sample(2)
@pytest.mark.parametrize("case", CASES)
def test_converted_written_back_and_read_again(case, folders, models, tmp_path):
    model, own = models[case], tmp_path / "own"
    found = load_public_model(folders / case)
    save_model(own, found.lm, found.tokenizer, found.text, found.labels, found.defaults)
    loaded = tessera.load(own)
    given = asked(case, 0) | {"seed": 3, "max_frames": 12}
    codes = model.generate(**given).codes
    assert torch.equal(loaded.generate(**given).codes, codes)
    layout.save_qwen3_tts_whole(tmp_path / "back", load_model(own))
    again = tessera.load(tmp_path / "back")
    assert torch.equal(again.generate(**given).codes, codes)
    assert again.lm.config == model.lm.config and again.spec == model.spec and again.labels == model.labels
    assert again.defaults == model.defaults
    assert {name: tensor.tolist() for name, tensor in again.lm.state_dict().items() if tensor.numel() < 100} == {
        name: tensor.tolist() for name, tensor in model.lm.state_dict().items() if tensor.numel() < 100
    }
    before, after = (load_file(path / "model.safetensors") for path in (folders / case, tmp_path / "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    described, wanted = read_json(tmp_path / "back" / "config.json"), config_of(case)
    for key in ("tts_model_type", "tts_model_size", "tts_pad_token_id", "tts_bos_token_id", "tts_eos_token_id"):
        if key != "tts_model_size" or case in ("voices", "small"):
            assert described[key] == wanted[key]
    inner = described["talker_config"]
    for key, value in wanted["talker_config"].items():
        if isinstance(value, dict) and key != "code_predictor_config":
            assert inner[key] == value or key == "rope_scaling", key
        elif key not in ("code_predictor_config", "max_position_embeddings"):
            assert inner[key] == value, key


def test_streams_seeds_and_packed_weights(models, folders):
    """An ordinary model: a stream is the whole, a row of a batch is the row alone, weights may be packed."""
    model = models["voices"]
    given = {"text": "the cat", "label": "anna", "max_frames": 5, "min_frames": 5}
    whole = model.generate(**given, seed=5)
    assert torch.equal(torch.cat(list(model.stream(**given, seed=5)), dim=1), whole.media[0])
    batch = model.generate(**given | {"text": ["hello", "the cat", TEXTS[2]]}, seed=4)
    assert torch.equal(batch.codes[1], whole.codes[0])
    packed = tessera.load(folders / "voices", weights="int8")
    assert packed.generate(**given, seed=5, cache="int8").codes.shape == whole.codes.shape


def test_the_loss_of_packed_rows_and_the_gradient(models, folders):
    from tessera.lm.models.packed_sequences import packed_loss

    lm = tessera.load(folders / "voices").lm.train()
    model = models["voices"]
    (dual,) = lm.config.conditions
    tracks = [make_track(dual, model.spec.cardinalities, model.text.encode, text) for text in TEXTS[:3]]
    batch, lengths = ConditionBatch(**track_fields(tracks)), torch.tensor([5, 2, 7])
    codes = torch.randint(0, V, (3, 4, 7))
    report = lm.loss(codes, lengths, batch)
    torch.testing.assert_close(packed_loss(lm, codes, lengths, batch).loss, report.loss)
    report.loss.backward()
    for name, parameter in lm.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tensors(name, tmp_path):
    facts = PUBLISHED[name]
    assert facts["config"] == json.loads(json.dumps(published()[name]))
    wanted = {key: facts[key] for key in ("tensors", "elements", "sha256")}
    assert listing(shapes_of(facts["config"], tmp_path)) == wanted


def test_what_is_there_and_what_is_missing(folders, tmp_path):
    assert recognize_model(folders / "base") == "qwen3-tts"
    found = summarize(folders / "base")
    assert found.fits and not found.lacks and [part.name for part in found.parts] == ["tokenizer", "language model"]
    (tmp_path / "config.json").write_text(json.dumps(config_of("design")))
    save_file(fill(shapes_of(config_of("design"), tmp_path)), tmp_path / "model.safetensors")
    found = summarize(tmp_path)
    assert found.lacks == ("the audio codec in speech_tokenizer/", "the text tokenizer")
    with pytest.raises(FileNotFoundError, match="vocab.json: no such file"):
        load_public_model(tmp_path)
    for name, content in text_files().items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match="the audio codec in speech_tokenizer/ of this qwen3-tts checkpoint is not in"):
        load_public_model(tmp_path)
    (tmp_path / "merges.txt").write_text("a b c\n")
    with pytest.raises(ValueError, match="merges.txt: a line is no pair of pieces"):
        load_public_model(tmp_path)


def test_what_is_not_supported_is_refused_by_name(folders, tmp_path):
    described = config_of("voices")
    save_file(load_file(folders / "voices" / "model.safetensors"), tmp_path / "model.safetensors")
    talker, predictor = "talker_config", "code_predictor_config"
    for keys, value, message in (
        (("tts_model_type",), "other", "tts_model_type is 'other'; supported are base, custom_voice, voice_design"),
        ((talker, "hidden_act"), "gelu", "talker_config.hidden_act is 'gelu'; only 'silu'"),
        ((talker, "rms_norm_eps"), 1e-5, "talker_config.rms_norm_eps is '1e-05'; only 1e-06"),
        ((talker, "vocab_size"), 2000, "talker_config.vocab_size is '2000'; only 1040"),
        ((talker, "use_sliding_window"), True, "use_sliding_window is 'True'"),
        ((talker, "rope_scaling"), {"rope_type": "yarn"}, "rope_type is 'yarn'; only 'default'"),
        ((talker, "codec_pad_id"), 3, "codec_pad_id must be an id from 16 to 1039, found '3'"),
        ((talker, "codec_language_id"), {"x": 9999}, "codec_language_id: x must be an id from 16 to 1039"),
        ((talker, "codec_language_id"), [], "codec_language_id must be a mapping of names to ids"),
        ((talker, "spk_is_dialect"), {"anna": "nowhere"}, "speaks 'nowhere', which is no language of the model"),
        ((talker, "text_vocab_size"), 10, "tts_pad_token_id is"),
        ((talker, "num_hidden_layers"), 1, "tensors do not belong to the config, first 'talker.model.layers.1"),
        ((talker, predictor, "num_code_groups"), 5, "code_predictor_config.num_code_groups is '5'; only 4"),
        ((talker, predictor, "head_dim"), 14, "the config asks for"),
        ((talker, predictor, "vocab_size"), "16", "vocab_size must be of type int"),
    ):
        changed = json.loads(json.dumps(described))
        inner = changed
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            layout.load_qwen3_tts(tmp_path)


def test_wrong_requests_say_what_is_wrong(models):
    for case, given, message in (
        ("voices", {"language": "klingon"}, "language 'klingon' is unknown"),
        ("voices", {"label": "otto"}, "no label"),
        ("voices", {"embedding": vector(0)}, "takes no embedding; leave embedding out"),
        ("voices", {"voice": "x.wav"}, "takes no voice"),
        ("voices", {"guidance": 2.0}, "without dropping its dual_track"),
        ("voices", {"text": "  "}, "is empty"),
        ("small", {"description": "calm"}, "takes no description beside the text; leave description out"),
        ("base", {"description": "calm"}, "takes no description beside the text"),
        ("base", {"embedding": vector(0)[:5]}, "the vector of a speaker, floating point \\[24\\]"),
        ("base", {"voice_text": "hello"}, "voice_text was given without its recording"),
        ("base", {"voice": recording()[1]}, "the voice must be a recording, a file or samples"),
        ("design", {"language": 3}, "language must be a string"),
    ):
        with pytest.raises(ValueError, match=message):
            models[case].generate(**{"text": "the"} | given)
