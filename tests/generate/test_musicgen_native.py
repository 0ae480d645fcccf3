"""MusicGen and AudioGen in audiocraft's own layout: the codes of audiocraft and of transformers, there and back."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from make_audiocraft_codes import FRAMES, SIZES, states, weights
from native_musicgen import native_folder, native_state, xp_config
from short_calls import generate_codes
from tiny_musicgen import make_composite, make_melody, save_whole, transformers

import tessera
from tessera.cli.app import run
from tessera.generate.requests.settings import Length
from tessera.lm.conditioning.registry import ConditionBatch
from tessera.lm.generation_config import GenerationConfig
from tessera.lm.public import musicgen_native
from tessera.lm.public.musicgen_native import load_musicgen_native, save_musicgen_native
from tessera.lm.public.registry import load_public_model, recognize_model
from tessera.tokenize.data.audio_io import write_audio
from tessera.tokenize.public.survey import Surveyed, surveying
from tessera.tokenize.public.tensor_map import CannotWrite

TEXTS = ["a calm piano", "drums", "a piano and drums and a calm piano", "calm drums"]
MADE = json.loads((Path(__file__).parents[1] / "lm" / "audiocraft_codes.json").read_text())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", list(MADE))
def test_the_codes_are_those_of_audiocraft_itself(name, guidance, tmp_path):
    config = xp_config(name, **SIZES, hidden_scale=4)
    content = {"best_state": weights(MADE[name]["shapes"]), "xp.cfg": json.dumps(config)}
    torch.save(content, tmp_path / "state_dict.bin")
    lm = load_musicgen_native(tmp_path)
    expected = torch.tensor(MADE[name]["codes"][str(guidance)])
    rows = torch.nn.utils.rnn.pad_sequence(states(), batch_first=True)
    lengths = torch.tensor([len(one) for one in states()])
    for batch in ([0, 1, 2, 3], [2]):
        conditions = ConditionBatch(embedding=rows[batch], embedding_lengths=lengths[batch])
        found = generate_codes(
            lm, conditions, batch, Length(FRAMES, fixed=True), GenerationConfig(temperature=0), guidance
        )
        assert torch.equal(found.codes, expected[batch])
    lm.conditions.parts["embedding"].pad = False  # mask: none
    conditions = ConditionBatch(embedding=rows, embedding_lengths=lengths)
    found = generate_codes(
        lm, conditions, [0, 1, 2, 3], Length(FRAMES, fixed=True), GenerationConfig(temperature=0), 3.0
    )
    assert torch.equal(found.codes, torch.tensor(MADE[name]["together"]))
    assert expected.shape == (4, 8 if "stereo" in name else 4, FRAMES) and len(expected.unique()) > 16


def sizes(model):
    decoder = model.config.decoder
    return {
        "dim": decoder.hidden_size, "num_heads": decoder.num_attention_heads, "num_layers": decoder.num_hidden_layers,
        "hidden_scale": decoder.ffn_dim / decoder.hidden_size, "n_q": decoder.num_codebooks, "card": decoder.vocab_size,
        "dropout": decoder.dropout,
    }  # fmt: skip


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(model, its folder in the layout of transformers, in audiocraft's)."""
    folder, model = tmp_path_factory.mktemp("both"), make_composite()
    save_whole(folder / "hub", model)
    config = xp_config("musicgen-small", **sizes(model)) | {"sample_rate": 8000}
    return model, folder / "hub", native_folder(folder / "native", model, config)


def check_equal(found, expected):
    """Two models compute the same with the same weights; folded norms of codecs agree up to rounding."""
    assert found.lm.config == expected.lm.config and found.spec.cardinalities == expected.spec.cardinalities
    for name, tensor in expected.lm.state_dict().items():
        assert torch.equal(found.lm.state_dict()[name], tensor), name
    for name, tensor in expected.tokenizer.net.state_dict().items():
        torch.testing.assert_close(found.tokenizer.net.state_dict()[name], tensor)


@pytest.mark.sample(2)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("rows", [1, 4])
def test_text_gives_what_the_layout_of_transformers_gives(both, rows, guidance):
    hub, native = (tessera.load(folder, device="cpu") for folder in both[1:])
    check_equal(native, hub)
    call = {"text": TEXTS[:rows], "num_frames": 48, "temperature": 0, "guidance": guidance}
    found, expected = native.generate(**call), hub.generate(**call)
    assert torch.equal(found.codes, expected.codes)
    torch.testing.assert_close(torch.stack(found.media), torch.stack(expected.media), rtol=1e-5, atol=1e-6)


def test_from_one_layout_into_the_other_and_back(both, tmp_path):
    native, there, back = both[2], tmp_path / "there", tmp_path / "back"
    assert run(["convert", str(native), str(tmp_path / "ours")]) == 0
    assert run(["convert", str(tmp_path / "ours"), str(there), "--to", "musicgen"]) == 0
    model, report = transformers.MusicgenForConditionalGeneration.from_pretrained(there, output_loading_info=True)
    assert not any(report.values())
    for name, tensor in both[0].decoder.state_dict().items():
        assert torch.equal(model.decoder.state_dict()[name], tensor), name
    assert run(["convert", str(tmp_path / "ours"), str(back), "--to", "musicgen-audiocraft"]) == 0
    assert {path.name for path in back.iterdir()} == {"state_dict.bin", "compression_state_dict.bin", "t5"}
    for file in ("state_dict.bin", "compression_state_dict.bin"):
        old, new = (torch.load(folder / file, weights_only=True)["best_state"] for folder in (native, back))
        shapes = [{name: tensor.shape for name, tensor in one.items() if "embed_avg" not in name} for one in (old, new)]
        assert {name: shapes[1].get(name) for name in shapes[0]} == shapes[0]
        assert file[0] == "c" or all(torch.equal(new[name], tensor) for name, tensor in old.items())
    check_equal(tessera.load(back, device="cpu"), tessera.load(native, device="cpu"))
    assert tessera.load(back, device="cpu").defaults == tessera.load(native, device="cpu").defaults


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])
def test_stereo(rows, tmp_path):
    model = make_composite(seed=3, books=8, channels=2)
    save_whole(tmp_path / "hub", model)
    config = xp_config("musicgen-stereo-small", **sizes(model)) | {"sample_rate": 8000}
    native_folder(tmp_path / "native", model, config)
    hub, native = (tessera.load(tmp_path / name, device="cpu") for name in ("hub", "native"))
    check_equal(native, hub)
    call = {"text": TEXTS[:rows], "num_frames": 40, "temperature": 0}
    assert torch.equal(native.generate(**call).codes, hub.generate(**call).codes)
    assert run(["convert", str(tmp_path / "native"), str(tmp_path / "ours")]) == 0
    assert run(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "musicgen-audiocraft"]) == 0
    check_equal(tessera.load(tmp_path / "back", device="cpu"), native)


def test_melody(tmp_path):
    model = make_melody()
    model.config.chroma_length = 1 + 32000 * 30 // 4096
    save_whole(tmp_path / "hub", model)
    config = xp_config("musicgen-melody", **sizes(model))
    native_folder(tmp_path / "native", model, config)
    hub, native = (tessera.load(tmp_path / name, device="cpu") for name in ("hub", "native"))
    dropped = [one.dropout for one in native.lm.config.conditions]
    assert dropped == [0.2, 0.2]
    conditions = tuple(one.model_copy(update={"dropout": 0.3}) for one in native.lm.config.conditions)
    assert native.lm.config.model_copy(update={"conditions": conditions}) == hub.lm.config
    samples = torch.randn(1, 20000, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "tune.wav"
    write_audio(path, samples, 32000)
    call = {"text": TEXTS[:2], "melody": str(path), "num_frames": 20, "temperature": 0}
    assert torch.equal(native.generate(**call).codes, hub.generate(**call).codes)
    assert run(["convert", str(tmp_path / "native"), str(tmp_path / "ours")]) == 0
    assert run(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "musicgen-audiocraft"]) == 0
    old, new = (torch.load(tmp_path / name / "state_dict.bin", weights_only=True) for name in ("native", "back"))
    assert old["best_state"].keys() == new["best_state"].keys()
    assert all(torch.equal(new["best_state"][name], tensor) for name, tensor in old["best_state"].items())
    assert tessera.load(tmp_path / "back", device="cpu").lm.config == native.lm.config


@pytest.mark.slow
def test_audiogen(tmp_path):
    model = make_composite(seed=2)
    config = xp_config("audiogen-medium", **sizes(model)) | {"sample_rate": 8000}
    native_folder(tmp_path / "native", model, config)
    found = tessera.load(tmp_path / "native", device="cpu")
    assert found.lm.config.conditions[0].dropout == 0.1
    defaults = found.defaults
    assert (defaults.max_frames, defaults.window_frames, defaults.stride_frames) == (10000, 10000, 2000)  # 10 s, by 2 s
    assert (defaults.guidance, defaults.top_k) == (3.0, 250)
    assert run(["convert", str(tmp_path / "native"), str(tmp_path / "ours")]) == 0
    assert run(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "musicgen-audiocraft"]) == 0
    again = tessera.load(tmp_path / "back", device="cpu")
    assert again.lm.config == found.lm.config and again.defaults == found.defaults


PUBLISHED = json.loads((Path(__file__).parents[1] / "lm" / "published" / "audiocraft-lm.json").read_text())


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_the_published_sizes(name, tmp_path, monkeypatch):
    """As many parameters as published, in millions; nothing is allocated."""
    given = PUBLISHED[name]["transformer_lm"]
    width, text = given["dim"], 1024 if name == "audiogen-medium" else 768
    shapes = {f"emb.{k}.weight": (given["card"] + 1, width) for k in range(given["n_q"])}
    shapes |= {"condition_provider.conditioners.description.output_proj.weight": (width, text)}
    shapes |= {"transformer.layers.0.linear1.weight": (4 * width, width)}
    if "melody" in name:
        shapes["condition_provider.conditioners.self_wav.output_proj.weight"] = (width, 12)
    held = SimpleNamespace(path=tmp_path, described={"xp.cfg": json.dumps(PUBLISHED[name])}, shapes=shapes)
    monkeypatch.setattr(musicgen_native, "open_checkpoint", lambda path: held)
    with surveying(), pytest.raises(Surveyed) as stopped:
        load_musicgen_native(tmp_path)
    survey = stopped.value.survey
    cross = 4 * width**2 * given["num_layers"] if "melody" in name else 0
    million = {1024: 420, 1536: 1840, 2048: 3255}[width]
    assert (survey.num_values + cross) / 1e6 == pytest.approx(million, rel=0.05)
    assert survey.config.heads == width // 64 and survey.spec.geometry.frame_rate == 50
    assert not survey.unexpected and not survey.misshapen


def test_check_says_what_is_there_and_what_is_missing(both, tmp_path, capsys):
    assert run(["load", str(both[2]), "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{both[2]}: musicgen-audiocraft"
    assert [line.split(":")[0].strip() for line in lines[1:]][:3] == ["tokenizer", "language model", "text encoder"]
    native_folder(tmp_path / "less", both[0], xp_config("musicgen-small", **sizes(both[0])), False, False)
    assert run(["load", str(tmp_path / "less"), "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lacks"] == ["the audio codec", "the text encoder in t5/"]
    assert run(["convert", str(tmp_path / "less"), str(tmp_path / "lm")]) == 0
    assert "left out: the audio codec and the text encoder in t5/" in capsys.readouterr().err
    with pytest.raises(ValueError, match="the audio codec of this musicgen-audiocraft checkpoint is not in the folder"):
        tessera.load(tmp_path / "less")
    assert recognize_model(tmp_path / "less" / "state_dict.bin") == "musicgen-audiocraft"
    assert run(["convert", str(tmp_path / "less" / "state_dict.bin"), str(tmp_path / "file")]) == 0
    native_folder(tmp_path / "mute", both[0], xp_config("musicgen-small", **sizes(both[0])), True, False)
    with pytest.raises(ValueError, match="has no text encoder.*t5"):
        tessera.load(tmp_path / "mute", device="cpu").generate(text="a", num_frames=2)


def test_a_codec_that_is_only_named(both, tmp_path):
    config = xp_config("musicgen-small", **sizes(both[0])) | {"sample_rate": 8000}
    folder = native_folder(tmp_path / "native", both[0], config, codec=False)
    named = {"pretrained": "facebook/encodec_32khz", "exported": True, "version": "1.3.0"}
    torch.save(named, folder / "compression_state_dict.bin")
    with pytest.raises(
        ValueError, match="holds only the name of a codec, 'facebook/encodec_32khz'; put that codec into"
    ):
        tessera.load(folder)
    both[0].audio_encoder.save_pretrained(folder / "codec")
    check_equal(tessera.load(folder, device="cpu"), tessera.load(both[2], device="cpu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm_model": "transformer_lm_magnet"}, "lm_model is 'transformer_lm_magnet'; only 'transformer_lm'"),
        ({"transformer_lm": {"positional_embedding": "rope"}}, "positional_embedding is 'rope'; only 'sin'"),
        ({"transformer_lm": {"kv_repeat": 2}}, "kv_repeat is 2; only 1"),
        ({"transformer_lm": {"num_heads": None}}, "num_heads must be of type int"),
        ({"transformer_lm": {"num_heads": 5}}, "width 24 is not a multiple of heads 5"),
        ({"transformer_lm": {"dim": 32, "num_heads": 4}}, "the config asks for"),
        ({"transformer_lm": {"n_q": 5}}, "delays is .0, 1, 2, 3.; only .0, 1, 2, 3, 4."),
        ({"codebooks_pattern": {"modeling": "parallel"}}, "modeling is 'parallel'; only 'delay'"),
        ({"conditioners": {"description": {"t5": {"finetune": True}}}}, "t5.finetune is True; only False"),
        ({"conditioners": {"genre": {"model": "lut"}}}, "conditioners.genre is set; only description"),
        ({"conditioners": {"self_wav": {"model": "style"}}}, "self_wav.model is 'style'; only 'chroma_stem'"),
        ({"fuser": {"cross": [], "prepend": ["description"]}}, r"fuser.cross is \[\]; only \['description'\]"),
        ({"classifier_free_guidance": {"training_dropout": 1.0}}, "training_dropout must be below 1, found 1.0"),
    ],
)
def test_what_is_not_supported_is_named(both, change, message, tmp_path):
    config = xp_config("musicgen-small", **sizes(both[0]))

    def merge(into, more):
        for key, value in more.items():
            into[key] = merge(into.get(key, {}), value) if isinstance(value, dict) else value
        return into

    native_folder(tmp_path, both[0], merge(config, change), False, False)
    with pytest.raises(ValueError, match=message) as refused:
        load_musicgen_native(tmp_path)
    assert "\n" not in str(refused.value)


class Payload:
    """What a pickle with code asks for; a config of OmegaConf is refused in the same way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_wrong_files_are_one_clear_line(both, tmp_path, capsys):
    config, state = xp_config("musicgen-small", **sizes(both[0])), native_state(both[0])
    path = tmp_path / "state_dict.bin"

    def save(**changes):
        torch.save({"best_state": state, "xp.cfg": json.dumps(config)} | changes, path)

    save(**{"xp.cfg": Payload(str(tmp_path / "ran"))})
    with pytest.raises(ValueError, match="this pickle asks for .*open, more than tensors and plain containers"):
        load_public_model(tmp_path)
    assert not (tmp_path / "ran").exists()
    save(**{"xp.cfg": 3})
    with pytest.raises(ValueError, match="xp.cfg must be text, found int"):
        load_public_model(tmp_path)
    save(best_state={name: tensor for name, tensor in state.items() if name != "out_norm.bias"})
    with pytest.raises(ValueError, match="missing, first 'out_norm.bias'"):
        load_musicgen_native(tmp_path)
    save(best_state=state | {"linears.0.bias": torch.zeros(32)})
    with pytest.raises(ValueError, match="do not belong to the config, first 'linears.0.bias'"):
        load_musicgen_native(tmp_path)
    save(best_state={"weight": torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=r"tensor 'emb.0.weight' is missing; this is no MusicGen"):
        load_musicgen_native(tmp_path)
    del config["transformer_lm"]["num_heads"]
    save()
    with pytest.raises(ValueError, match="num_heads is missing, and no published model has width 24"):
        load_musicgen_native(tmp_path)
    assert run(["convert", str(tmp_path), str(tmp_path.parent / "no")]) == 2
    both[0].text_encoder.config.d_model = 16
    make_composite(text_width=24).text_encoder.save_pretrained(tmp_path / "t5")
    config["transformer_lm"]["num_heads"] = 3
    save()
    with pytest.raises(ValueError, match="its states are 24 wide, the model reads those of 't5-base', 16 wide"):
        load_public_model(tmp_path)


def test_a_model_without_projection_is_not_written(tmp_path):
    model = make_composite(seed=2, text_width=24)
    save_whole(tmp_path / "hub", model)
    with pytest.raises(CannotWrite, match="has a projection of the text encoder's states, this model has none"):
        save_musicgen_native(tmp_path / "no", load_public_model(tmp_path / "hub").lm)
