"""CSM from one directory: codes and samples of transformers, conversations, the command line, converted and back."""

import json

import pytest
import torch
from tiny_csm import CODES, K, make_csm, make_text, random_csm, save_csm_folder, text_of, their_clips, transformers

import tessera
from tessera.cli.app import run
from tessera.configs.files import read_safetensors
from tessera.lm.public.summary import summarize
from tessera.tokenize.data.media import read_audio, write_audio

TEXTS = ["[0]hello the cat", "[1]no", "[0]the dog said hello to the cat, and the cat said no", "[0]cat"]
FRAMES = 14


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(model of transformers, its folder)."""
    model, folder = make_csm(), tmp_path_factory.mktemp("whole")
    save_csm_folder(folder, model)
    return model, folder


@pytest.fixture(scope="module")
def converted(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "model"
    assert run(["convert", str(whole[1]), str(folder)]) == 0
    return folder


def recordings(seed, *frames):
    generator = torch.Generator().manual_seed(seed)
    return [0.3 * torch.randn(16 * count, generator=generator) for count in frames]


def turns_of(audio):
    """The same turns for transformers and for us."""
    texts = ["[1]the cat said hello", "[0]no, no"]
    ids = zip(text_of(*texts), audio, strict=True)
    return list(ids), [(text, samples[None]) for text, samples in zip(texts, audio, strict=True)]


def check_clips(result, clips, first=0):
    for row, clip in enumerate(clips, first):
        length, T = int(result.lengths[row]), clip.codes.shape[1]
        assert length == T if clip.ended is not None else length >= T
        assert result.codes[row, :, :T].equal(clip.codes)
        assert clip.ended is None or result.ended[row] == clip.ended
        if length == T and T:
            most = 1e-5 * float(clip.samples.abs().max())
            torch.testing.assert_close(result.media[row][0], clip.samples, rtol=0, atol=most)


@pytest.mark.sample(2)
@pytest.mark.parametrize("seed", [0, 2, 9])
def test_greedy_clips_with_and_without_earlier_turns(seed, tmp_path, whole):
    """Seed 0: the usual tiny model; others: random sizes. Rows of different texts are the same alone and together."""
    theirs, folder = whole if not seed else (random_csm(seed), tmp_path)
    if seed:
        save_csm_folder(folder, theirs)
    model, settings = tessera.load(folder), {"temperature": 0.0, "max_frames": FRAMES}
    said, turns = turns_of(recordings(seed, 5, 9))
    texts = text_of(*TEXTS)
    check_clips(model.generate(TEXTS, **settings), their_clips(theirs, [[(text, None)] for text in texts], FRAMES))
    told = their_clips(theirs, [[*said, (text, None)] for text in texts], FRAMES)
    check_clips(model.generate(TEXTS, turns=turns, **settings), told)
    for row in (0, 2):
        check_clips(model.generate(TEXTS[row], turns=turns, **settings), told[row : row + 1])
    one = model.generate(TEXTS[1], voice=turns[0][1], voice_text=turns[0][0], **settings)
    check_clips(one, their_clips(theirs, [[said[0], (texts[1], None)]], FRAMES))


def test_clips_end(tmp_path):
    """Each of a row of seeds ends at a frame of zeros, which is not part of the clip; min_frames puts that off."""
    theirs = make_csm(3, books=2)
    save_csm_folder(tmp_path, theirs)
    model = tessera.load(tmp_path)
    call = {"n": 24, "temperature": 1.5, "max_frames": 20, "seed": 5}
    found = model.generate("[0]cat", **call)
    assert 4 < sum(found.ended) and len(set(found.lengths.tolist())) > 3
    for codes, length in zip(found.codes, found.lengths.tolist(), strict=True):
        assert not (codes[:, :length] == 0).all(dim=0).any()
    later = model.generate("[0]cat", min_frames=6, **call)
    assert int(later.lengths.min()) == 6 and sum(later.ended)
    assert not (later.codes[:, :, :6] == 0).all(dim=1).any()
    fixed = model.generate("[0]cat", num_frames=20, **{k: v for k, v in call.items() if k != "max_frames"})
    assert fixed.lengths.unique().tolist() == [20]
    assert not (fixed.codes == 0).all(dim=1).any()
    shortest = int(found.lengths.argmin())
    alone = model.generate("[0]cat", **call | {"n": 1, "seed": 5 + shortest})
    assert alone.codes[0].equal(found.codes[shortest, :, : int(found.lengths[shortest])])
    streamed = torch.cat([*model.stream("[0]cat", **{k: v for k, v in call.items() if k != "n"})], dim=1)
    assert streamed.equal(found.media[0])


def test_a_conversation_is_no_part_of_the_result(whole):
    model = tessera.load(whole[1])
    _, turns = turns_of(recordings(1, 6, 3))
    call = {"turns": turns, "seed": 3, "num_frames": 10}
    result = model.generate(TEXTS, **call)
    assert result.codes.shape == (4, K, 10) and result.media[0].shape == (1, 160)
    for row, text in enumerate(TEXTS):
        chunks = [*model.stream(text, **call | {"seed": 3 + row})]
        assert torch.cat(chunks, dim=1).equal(result.media[row]) and len(chunks) > 1
    prompt = result.codes[0, :, :4]
    begun = model.generate(TEXTS[0], prompt=prompt, **call)
    assert begun.codes[0, :, :4].equal(prompt) and begun.codes.shape == (1, K, 10)
    assert begun.codes[0].equal(result.codes[0])  # the same sample goes on in the same way
    for weights in ("bfloat16", "int8", "int4"):
        packed = tessera.load(whole[1], weights=weights).generate(TEXTS, **call)
        assert packed.codes.shape == (4, K, 10)


WRONG = [
    ({"voice": torch.zeros(1, 160)}, "give voice_text, the words of the voice"),
    ({"voice_text": "hello"}, "give voice, the recording of voice_text"),
    ({"voice": [torch.zeros(1, 160)] * 2, "voice_text": "hello"}, "give several as turns"),
    ({"turns": [("hello",)]}, "a turn is a pair, its text and its recording"),
    ({"turns": [("hello", torch.zeros(1, 7))]}, "7 samples"),
    ({"guidance": 2.0}, "without dropping its text"),
    ({"end_bias": 1.0}, "end_bias was set, but the end of this model is a frame"),
    ({"end_rule": "likeliest"}, "end_rule was set, but the end of this model is a frame"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=[str(list(one[0])) for one in WRONG])
def test_what_does_not_fit_is_refused(wrong, message, whole):
    with pytest.raises(ValueError, match=message) as refused:
        tessera.load(whole[1]).generate(TEXTS[0], num_frames=2, **wrong)
    assert "\n" not in str(refused.value)


def test_other_models_take_no_turns():
    with pytest.raises(ValueError, match="reads no earlier turns of a conversation"):
        tessera.load("digits").generate(1, turns=[("one", torch.zeros(4, 3, dtype=torch.long))])


def test_from_the_command_line(whole, converted, tmp_path, capsys):
    write_audio(tmp_path / "voice.wav", recordings(2, 20)[0][None], 8000)
    call = ["tts", "hello", "--model", str(converted), "--max-seconds", "0.02", "--seed", "4", "--json"]
    assert run([*call, "-o", str(tmp_path / "plain.wav")]) == 0
    voice = ["--voice", str(tmp_path / "voice.wav"), "--voice-text", "[1]no"]
    assert run([*call, *voice, "-o", str(tmp_path / "told.wav")]) == 0
    capsys.readouterr()
    plain, told = (read_audio(tmp_path / f"{name}.wav", 8000, 1) for name in ("plain", "told"))
    assert 0 < plain.shape[1] <= 160 and not torch.equal(plain[:, :160], told[:, :160])
    model = tessera.load(whole[1])
    expected = model.generate("[0]hello", max_seconds=0.02, seed=4, voice=tmp_path / "voice.wav", voice_text="[1]no")
    assert expected.lengths.tolist() == [told.shape[1] // 16]
    assert run([*call[:-1], "--voice", str(tmp_path / "voice.wav"), "-o", str(tmp_path / "x.wav")]) == 2
    assert "give --voice-text" in capsys.readouterr().err
    generate = ["generate", str(converted), "--text", "hello", "--frames", "3", *voice, "-o", str(tmp_path / "y.wav")]
    assert run(generate) == 0
    assert run(["load", "--check", str(whole[1])]) == 0
    assert "csm" in capsys.readouterr().out


def test_converted_it_is_an_ordinary_model(whole, converted):
    one, other = tessera.load(whole[1]), tessera.load(converted)
    assert other.defaults == one.defaults and other.condition_kinds == ["text"]
    for weights in (None, "int8"):
        first, second = (
            tessera.load(folder, weights=weights).generate(TEXTS, num_frames=8, seed=3)
            for folder in (whole[1], converted)
        )
        assert torch.equal(first.codes, second.codes) and torch.equal(first.media[0], second.media[0])


def test_written_back_it_is_read_by_transformers(whole, converted, tmp_path):
    back = tmp_path / "back"
    assert run(["convert", str(converted), str(back), "--to", "csm"]) == 0
    kind = transformers.CsmForConditionalGeneration
    model, report = kind.from_pretrained(back, output_loading_info=True)
    assert not any(report.values())
    rows = [[(text, None)] for text in text_of(*TEXTS)]
    for one, other in zip(their_clips(model.eval(), rows, 8), their_clips(whole[0], rows, 8), strict=True):
        assert one.codes.equal(other.codes)
        torch.testing.assert_close(one.samples, other.samples, rtol=0, atol=1e-5)
    there, here = (read_safetensors(folder / "model.safetensors")[0] for folder in (whole[1], back))
    assert there.keys() == here.keys()
    for name, tensor in there.items():  # averages of the codec's codebooks are written with a count of 1
        if not name.startswith("codec_model.quantizer."):
            assert torch.equal(here[name], tensor), name
    settings = ("temperature", "top_k", "do_sample", "max_new_tokens")
    for name in settings:
        assert getattr(model.generation_config, name) == getattr(whole[0].generation_config, name)
    assert model.depth_decoder.generation_config.temperature == 0.9
    for name in ("audio_token_id", "audio_eos_token_id", "bos_token_id"):
        assert getattr(model.config, name) == getattr(whole[0].config, name)
    one, other = tessera.load(converted), tessera.load(back)
    assert one.lm.config == other.lm.config and other.defaults == one.defaults
    for name, tensor in one.lm.state_dict().items():
        assert torch.equal(other.lm.state_dict()[name], tensor), name
    for name, tensor in one.tokenizer.net.state_dict().items():
        torch.testing.assert_close(other.tokenizer.net.state_dict()[name], tensor, rtol=0, atol=0)


def test_the_processor_reads_what_is_written(whole, converted, tmp_path):
    """A conversation as the original's processor makes it is the sequence that we read."""
    back = tmp_path / "back"
    assert run(["convert", str(converted), str(back), "--to", "csm", "--dtype", "bfloat16"]) == 0
    assert kind_of(back) == torch.bfloat16
    processor = transformers.AutoProcessor.from_pretrained(back)
    audio = recordings(3, 4)[0]
    talk = [
        {"role": "1", "content": [{"type": "text", "text": "no"}, {"type": "audio", "path": audio.numpy()}]},
        {"role": "0", "content": [{"type": "text", "text": "hello"}]},
    ]
    said = processor.apply_chat_template(talk, tokenize=False)
    no, hello = text_of("[1]no", "[0]hello")
    marks = [make_text().token_to_id(name) for name in ("<|AUDIO|>", "<|audio_eos|>")]
    assert processor.tokenizer(said, add_special_tokens=False).input_ids == [*no, *marks, *hello]


def kind_of(folder):
    tensors = read_safetensors(folder / "model.safetensors")[0]
    assert tensors["codec_model.downsample.conv.weight"].dtype == torch.float32
    return tensors["lm_head.weight"].dtype


def test_another_model_is_not_written_in_this_layout(converted, tmp_path, capsys):
    for source, message in (("digits", "CSM's layout holds"), ("voice", "CSM's layout")):
        from tessera.tokenize.bundled import bundled_model

        assert run(["convert", str(bundled_model(source)), str(tmp_path / source), "--to", "csm"]) == 2
        assert message in capsys.readouterr().err
    described = json.loads((converted / "config.json").read_text())
    assert described["lm"]["text_stream"]["predict"] == "none"


def test_what_is_missing_or_damaged(whole, tmp_path, capsys):
    import shutil

    shutil.copytree(whole[1], tmp_path / "x")
    (tmp_path / "x" / "tokenizer.json").unlink()
    assert summarize(tmp_path / "x").lacks == ("the text tokenizer",)
    assert run(["convert", str(tmp_path / "x"), str(tmp_path / "y")]) == 2
    assert "tokenizer.json: no such file" in capsys.readouterr().err
    file = tmp_path / "x" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert run(["load", "--check", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert CODES == 16
