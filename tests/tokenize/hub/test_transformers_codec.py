"""Codecs that transformers computes: its own classes, tiny and with random weights, and the tokenizer around them."""

import importlib.util
import json
import sys

import numpy
import pytest
import torch

import tessera
from tessera.cli.app import run
from tessera.configs.files import read_safetensors, write_safetensors
from tessera.tokenize.data.codes_file import read_codes
from tessera.tokenize.data.media import write_audio
from tessera.tokenize.data.shard_reader import Shards
from tessera.tokenize.hub.tokenizer import TransformersTokenizer
from tessera.tokenize.public.registry import PUBLIC_CODECS, recognize_codec, write_public_codec
from tessera.tokenize.tokenizer import check_same_codes

transformers = pytest.importorskip("transformers")

HUBERT = {
    **{"model_type": "hubert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 20, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2},
}
FACTORS = [8, 5, 4, 2]
DAC = {"model_type": "dac", "encoder_hidden_size": 4, "decoder_hidden_size": 64, "hidden_size": 12}
BERT = {
    **{"model_type": "wav2vec2-bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 20, "feature_projection_input_dim": 160, "conv_depthwise_kernel_size": 7},
}
FSQ = {
    **{"hidden_size": 64, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16},
    **{"num_key_value_heads": 2, "encoder_hidden_size": 4, "quantization_dim": 80, "quantization_levels": [4, 3, 2]},
    "semantic_model_config": BERT,
}
CODECS = {  # class, arguments of its config, class of its preprocessor
    "xcodec": (
        "Xcodec",
        {"target_bandwidths": [0.5, 1], "codebook_size": 32, "sample_rate": 16000, "semantic_model_config": HUBERT}
        | {"acoustic_model_config": DAC | {"downsampling_ratios": FACTORS, "upsampling_ratios": FACTORS}},
        None,
    ),
    "wavtokenizer": (
        "WavTokenizer",
        {"num_filters": 4, "upsampling_ratios": [5, 4, 3], "hidden_size": 10, "codebook_size": 37, "codebook_dim": 10}
        | {"decoder_hidden_size": 12, "decoder_intermediate_size": 14, "decoder_num_layers": 2, "num_lstm_layers": 1}
        | {"decoder_attention_num_groups": 3, "sampling_rate": 12000},
        None,
    ),
    "higgs": (
        "HiggsAudioV2Tokenizer",
        {"target_bandwidths": [0.25, 0.5], "codebook_size": 32, "codebook_dim": 6, "semantic_model_config": HUBERT}
        | {"acoustic_model_config": DAC | {"downsampling_ratios": [*FACTORS, 3], "upsampling_ratios": [*FACTORS, 3]}},
        None,
    ),
    "neucodec": ("NeuCodec", FSQ, "NeuCodecFeatureExtractor"),
    "xcodec2": ("Xcodec2", FSQ, "Xcodec2FeatureExtractor"),
}
NEED_TORCHAUDIO = ("higgs", "neucodec", "xcodec2")


def each(*names):
    """The codecs with these names, skipped where torchaudio is missing that they need."""
    missing = importlib.util.find_spec("torchaudio") is None
    skip = pytest.mark.skipif(missing, reason="this class needs torchaudio")
    return [pytest.param(name, marks=[skip] if name in NEED_TORCHAUDIO else []) for name in names or CODECS]


def make(name):
    """A tiny model whose codes and samples vary."""
    kind, arguments, _ = CODECS[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**arguments)).eval()
    with torch.no_grad():
        for place, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if place not in model.state_dict():  # computed, not saved
                continue
            if place.endswith((".embed", "embed.weight", "codebook")):
                tensor.normal_(std=0.3)
            elif tensor.dim() > 1 and place in dict(model.named_parameters()) and "norm" not in place:
                tensor.add_(torch.randn_like(tensor), alpha=0.1)
        if name == "wavtokenizer":  # its latents vary little: codes that are near some of them
            codebook = model.encoder_model.quantizer.codebook.embed
            codebook.copy_(model.encoder_model.encoder(torch.randn(1, 1, 60 * len(codebook)))[0].T)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> (the folder that its class saved, the model); made when asked for."""
    made = {}

    def get(name):
        if name not in made:
            folder, model = tmp_path_factory.mktemp(name), make(name)
            model.save_pretrained(folder)
            if CODECS[name][2] is not None:
                getattr(transformers, CODECS[name][2])().save_pretrained(folder)
            made[name] = folder, model
        return made[name]

    return get


def their_codes(name, model, samples):
    """Codes [K, T] of samples [n], as the class makes them."""
    if CODECS[name][2] is None:
        return model.encode(samples[None, None]).audio_codes[0]
    inputs = getattr(transformers, CODECS[name][2])()(samples.numpy(), sampling_rate=16000, return_tensors="pt")
    return model.encode(**inputs).audio_codes[0]


@torch.no_grad()
@pytest.mark.parametrize("name", each())
def test_codes_and_samples_are_those_of_the_class(name, folders, tmp_path):
    folder, model = folders(name)
    assert recognize_codec(folder) == "transformers"
    ours = tessera.load_tokenizer(folder)
    assert isinstance(ours, TransformersTokenizer)
    hop, rate = ours.config.hop, ours.config.encoder_rate
    assert ours.spec.geometry.frame_rate * hop == ours.config.sample_rate
    for frames in (2, 3, 9):
        samples = 0.2 * torch.randn(frames * hop)
        read = samples if rate == ours.config.sample_rate else None
        encoded = ours.encode(samples[None, None])
        assert encoded.codes.dtype == torch.long and encoded.codes.shape == (1, ours.spec.num_codebooks, frames)
        if read is not None:
            theirs = their_codes(name, model, read)[:, :frames].long()
            assert torch.equal(encoded.codes[0], theirs)
        decoded = model.decode(audio_codes=encoded.codes).audio_values
        assert torch.equal(ours.decode(encoded.codes), decoded)
        assert decoded.shape == (1, 1, frames * hop) and decoded.std() > 0
    assert len(encoded.codes.unique()) > 1

    # any length, in any company
    lengths = torch.tensor([7 * hop + 3, 1, 4 * hop, 5 * hop - 1])
    batch = 0.2 * torch.randn(4, 1, 8 * hop)
    together = ours.encode(batch, lengths)
    assert together.lengths.tolist() == [8, 1, 4, 5]
    media = ours.decode(together.codes, together.lengths)
    for row, (n, t) in enumerate(zip(lengths.tolist(), together.lengths.tolist(), strict=True)):
        alone = ours.encode(batch[row : row + 1, :, :n])
        assert torch.equal(alone.codes[0], together.codes[row, :, :t])
        assert not together.codes[row, :, t:].any()
        assert torch.equal(ours.decode(alone.codes)[0], media[row, :, : t * hop])
        assert not media[row, :, t * hop :].any()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours.encode(batch, lengths).codes, together.codes)
    assert not any(parameter.requires_grad for parameter in ours.net.parameters())

    # streams are wholes
    encoder, decoder = ours.stream_encoder(), ours.stream_decoder()
    pieces = [encoder.push(piece) for piece in batch[0, :, : 7 * hop + 3].split(hop // 3 + 1, dim=1)]
    codes = torch.cat([*pieces, encoder.finish()], dim=1)
    assert torch.equal(codes, together.codes[0]) and encoder.scales.numel() == 0
    pieces = [decoder.push(piece) for piece in codes.split(3, dim=1)]
    assert torch.equal(torch.cat([*pieces, decoder.finish()], dim=1), media[0])
    assert ours.stream_encoder().finish().shape[1] == ours.stream_decoder().finish().shape[1] == 0

    # saved and loaded
    ours.save(tmp_path / "saved")
    back = tessera.load_tokenizer(tmp_path / "saved")
    assert back.spec == ours.spec == tessera.load_tokenizer(folder).spec
    check_same_codes(ours, back)
    assert torch.equal(back.encode(batch, lengths).codes, together.codes)
    assert torch.equal(back.decode(together.codes, together.lengths), media)


@torch.no_grad()
@pytest.mark.parametrize("name", each("neucodec"))
def test_audio_is_resampled_where_the_encoder_has_another_rate(name, folders):
    folder, model = folders(name)
    from tessera.tokenize.audio.resample import resample

    ours = tessera.load_tokenizer(folder)
    assert (ours.config.encoder_rate, ours.config.sample_rate, ours.config.hop) == (16000, 24000, 480)
    samples = 0.2 * torch.randn(1, 6 * 480)
    theirs = their_codes(name, model, resample(samples, 24000, 16000)[0])
    assert torch.equal(ours.encode(samples[None]).codes[0], theirs.long())


@torch.no_grad()
@pytest.mark.parametrize("name", each("xcodec", "higgs"))
def test_the_first_codebooks(name, folders, tmp_path):
    folder, model = folders(name)
    whole, ours = tessera.load_tokenizer(folder), tessera.load_tokenizer(folder, codebooks=2)
    samples = 0.2 * torch.randn(1, 1, 5 * ours.config.hop)
    codes = ours.encode(samples).codes
    assert whole.spec.num_codebooks == 4 and ours.spec.num_codebooks == 2
    assert torch.equal(codes, whole.encode(samples).codes[:, :2])
    assert torch.equal(ours.decode(codes), model.decode(codes).audio_values)
    assert ours.spec.fingerprint != whole.spec.fingerprint
    ours.save(tmp_path)
    assert tessera.load_tokenizer(tmp_path).spec == ours.spec
    for number in (0, 5):
        with pytest.raises(ValueError, match=f"{number} codebooks were asked for"):
            tessera.load_tokenizer(folder, codebooks=number)


def test_the_rate_counts_every_code(folders):
    ours = tessera.load_tokenizer(folders("xcodec")[0])
    number, bits = ours.rate(torch.zeros(3, 4, 7, dtype=torch.long))
    assert number.tolist() == [28] * 3 and bits.tolist() == [140] * 3


def test_what_it_cannot_do(folders, tmp_path, capsys):
    folder, _ = folders("wavtokenizer")
    ours = tessera.load_tokenizer(folder)
    for unknown in (ours.vectors, lambda: ours.embed(torch.zeros(1, 1, 2, dtype=torch.long))):
        with pytest.raises(ValueError, match=r"does not give its code vectors; .* input: \{kind: embedding\}"):
            unknown()
    with pytest.raises(ValueError, match="cannot leave out codes"):
        ours.decode(torch.full((1, 1, 3), -1))
    with pytest.raises(ValueError, match="does not normalize"):
        ours.stream_decoder(torch.ones(1))
    with pytest.raises(ValueError, match="found \\[1, 2, 600\\]; mix down to mono first"):
        ours.encode(torch.zeros(1, 2, 600))
    for layout in PUBLIC_CODECS:
        with pytest.raises(ValueError, match=f"{layout}'s layout does not support tokenizer 'wavtokenizer-12khz'"):
            write_public_codec(layout, tmp_path / "out", ours)
    ours.save(tmp_path / "saved")
    assert run(["convert", str(tmp_path / "saved"), str(tmp_path / "out"), "--to", "encodec"]) == 2
    assert "which transformers computes" in capsys.readouterr().err


def changed(folder, to, change, file="config.json"):
    """A copy of a folder with another config.json."""
    to.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (to / path.name).write_bytes(path.read_bytes())
    described = json.loads((to / file).read_text())
    described.update(change)
    (to / file).write_text(json.dumps(described))
    return to


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "has 'auto_map'"),
        ({"attn_implementation": "someone/kernel"}, "has 'attn_implementation'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "has 'quantization_config'"),
        ({"hop_length": 61}, "config of 'wavtokenizer'"),
        ({"sampling_rate": "fast"}, "config of 'wavtokenizer'"),
        ({"sampling_rate": 0}, "sample rate"),
        ({"codebook_size": 38}, "another shape"),
        ({"upsampling_ratios": [5, 4, 4]}, "another shape"),
        ({"num_lstm_layers": 2}, "is missing"),
        ({"decoder_num_layers": 10**7}, "asks for far more than"),
        ({"decoder_num_layers": 1}, "does not belong there"),
    ],
)
def test_configs_that_lie(change, message, folders, tmp_path):
    folder, _ = folders("wavtokenizer")
    with pytest.raises(ValueError, match=message):
        tessera.load_tokenizer(changed(folder, tmp_path / "x", change))


def test_code_named_inside_a_part_is_refused(folders, tmp_path):
    folder, _ = folders("xcodec")
    inner = json.loads((folder / "config.json").read_text())["semantic_model_config"] | {"auto_map": {"AutoModel": "x"}}
    with pytest.raises(ValueError, match="has 'auto_map'"):
        tessera.load_tokenizer(changed(folder, tmp_path / "x", {"semantic_model_config": inner}))


@pytest.mark.parametrize("rates", [[0.5], [3.0]])
def test_another_number_of_codebooks_is_refused(rates, folders, tmp_path):
    folder, _ = folders("xcodec")
    with pytest.raises(ValueError, match="is missing|does not belong there"):
        tessera.load_tokenizer(changed(folder, tmp_path / "x", {"target_bandwidths": rates}))


def test_a_saved_config_that_lies_is_refused(folders, tmp_path):
    """Also where its fingerprint is that of the lie."""
    ours = tessera.load_tokenizer(folders("wavtokenizer")[0])
    for name, value in (("hop", 50), ("lost", 3), ("shortest", 2), ("all_codebooks", 2), ("codebook_size", 36)):
        config = ours.config.model_copy(update={name: value})
        TransformersTokenizer(config, ours.net, probed=True).save(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name} is {value} in its config"):
            tessera.load_tokenizer(tmp_path / name)
    ours.save(tmp_path / "damaged")
    tensors, _ = read_safetensors(tmp_path / "damaged" / "tokenizer.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.dim() > 1)
    tensors[name] = tensors[name] + 1
    write_safetensors(tmp_path / "damaged" / "tokenizer.safetensors", tensors, {"format": "tessera-tokenizer"})
    with pytest.raises(ValueError, match="the files hold tokenizer"):
        tessera.load_tokenizer(tmp_path / "damaged")


def test_pickles_are_not_read(folders, tmp_path):
    folder, model = folders("wavtokenizer")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing; pickles of such a codec are not read"):
        tessera.load_tokenizer(tmp_path)


def test_weights_that_are_not_finite(folders, tmp_path):
    folder, _ = folders("wavtokenizer")
    copy = changed(folder, tmp_path / "x", {})
    tensors, metadata = read_safetensors(copy / "model.safetensors")
    name = max(name for name in tensors if name.endswith("weight"))
    tensors[name] = tensors[name].fill_(numpy.inf)
    write_safetensors(copy / "model.safetensors", tensors, metadata)
    with pytest.raises(ValueError, match=f"{name}: weights must be finite"):
        tessera.load_tokenizer(copy)


def test_continuous_latents_are_no_codes(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "pocket_tts_audio_tokenizer"}')
    with pytest.raises(ValueError, match="has no codes, only continuous latents"):
        tessera.load_tokenizer(tmp_path)


def test_a_model_of_transformers_that_is_no_codec(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(FileNotFoundError, match="another library.*a tokenizer is needed here"):
        tessera.load_tokenizer(tmp_path)


def test_a_missing_preprocessor(tmp_path):
    model = make("xcodec2")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"input_values and input_features.* preprocessor_config\.json is missing"):
        tessera.load_tokenizer(tmp_path)


def test_without_transformers_the_extra_is_named(folders, tmp_path, monkeypatch, capsys):
    folder, _ = folders("wavtokenizer")
    tessera.load_tokenizer(folder).save(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "transformers", None)
    for path in (folder, tmp_path / "saved"):
        with pytest.raises(ImportError, match=r"pip install 'tessera-lm\[hub\]'"):
            tessera.load_tokenizer(path)
        assert run(["tokenizer", "eval", str(path)]) != 0
        assert "tessera-lm[hub]" in capsys.readouterr().err


def say(*arguments):
    return run([str(argument) for argument in arguments])


@pytest.mark.slow
def test_from_the_command_line(folders, tmp_path, capsys):
    """Evaluate, encode, decode, shards, train, export, generate."""
    folder, _ = folders("xcodec")
    for number in range(4):
        write_audio(tmp_path / "media" / f"{number}.wav", 0.3 * torch.randn(1, 320 * 9 - number), 16000)
    assert say("load", "--check", folder) == 0
    assert "transformers\n" in capsys.readouterr().out
    tessera.load_tokenizer(folder).save(tmp_path / "saved")
    assert say("load", "--check", tmp_path / "saved") == 0
    assert "xcodec-16khz: 4 codebooks of 32 codes, 50 frames a second" in capsys.readouterr().out
    assert say("tokenizer", "eval", folder, "--data", tmp_path / "media") == 0
    file = tmp_path / "codes.safetensors"
    assert say("encode", tmp_path / "media", "--tokenizer", folder, "-o", file) == 0
    assert [item.codes.shape for item in read_codes(file)[1]] == [(4, 9)] * 4
    assert say("decode", file, "--tokenizer", folder, "-o", tmp_path / "decoded") == 0
    assert len(list((tmp_path / "decoded").rglob("*.wav"))) == 4
    config = {"corpus": {"kind": "folder", "path": str(tmp_path / "media")}, "tokenizer": str(folder)}
    (tmp_path / "shards.yaml").write_text(json.dumps(config | {"out": str(tmp_path / "shards")}))
    assert say("shards", tmp_path / "shards.yaml") == 0
    assert len(Shards(tmp_path / "shards")) == 4
    lm = {"width": 16, "layers": 1, "heads": 2, "arrangement": {"kind": "delay"}, "input": {"kind": "embedding"}}
    lm |= {"variable_length": True}
    config = {"name": "tiny", "data": {"shards": str(tmp_path / "shards")}, "tokenizer": str(folder), "lm": lm}
    config["train"] = {"steps": 2, "batch": 2, "lr": 1e-3, "dtype": "float32"}
    (tmp_path / "lm.yaml").write_text(json.dumps(config | {"generation": {"max_frames": 6}}))
    capsys.readouterr()
    assert say("train", tmp_path / "lm.yaml", "--out", tmp_path / "codes", "--set", "lm.input.kind=codes") == 2
    assert "choose input: {kind: embedding}" in capsys.readouterr().err
    assert say("train", tmp_path / "lm.yaml", "--out", tmp_path / "run", "--set", "engine.kind=torch") == 0
    assert say("export", tmp_path / "run", "--out", tmp_path / "model") == 0
    model = tessera.load(tmp_path / "model")
    assert model.tokenizer.spec == tessera.load_tokenizer(folder).spec
    made = model.generate(seed=1, num_frames=5)
    assert made.media[0].shape == (1, 5 * 320)
    streamed = torch.cat(list(model.stream(seed=1, num_frames=5)), dim=1)
    assert torch.equal(streamed, made.media[0])
    assert say("generate", tmp_path / "model", "-o", tmp_path / "made.wav", "--seed", 1) == 0
    assert (tmp_path / "made.wav").is_file()
