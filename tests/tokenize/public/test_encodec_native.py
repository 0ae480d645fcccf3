"""EnCodec of audiocraft and of the package `encodec`: the codec of transformers under other names, and back again."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest
import torch

from tessera.tokenize.public.registry import read_public_codec, recognize_codec, write_public_codec
from tessera.tokenize.public.tensor_map import CannotWrite

transformers = pytest.importorskip("transformers")

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("native_names", HERE / "native_names.py")
names = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(names)

TINY = {"num_filters": 4, "hidden_size": 8, "codebook_dim": 8, "codebook_size": 16, "upsampling_ratios": [4, 2]}
STEREO = {"audio_channels": 2, "norm_type": "time_group_norm", "use_causal_conv": False, "sampling_rate": 48000,
          "chunk_length_s": 1.0, "overlap": 0.01, "normalize": True}  # fmt: skip
MUSIC = {"use_causal_conv": False, "use_conv_shortcut": False, "pad_mode": "constant", "sampling_rate": 16000}


def make(**settings):
    """A tiny EncodecModel with random weights and three codebooks."""
    torch.manual_seed(0)
    config = transformers.EncodecConfig(**TINY | settings)
    config.target_bandwidths = [3.5 * config.frame_rate * config.codebook_nbits / 1000]
    model = transformers.EncodecModel(config).eval()
    for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
        if name.endswith("embed"):
            tensor.data.normal_(std=0.5)
        elif ".norm." in name:
            tensor.data.uniform_(0.5, 1.5)
    return model


def their_codes(model, samples):
    """[B, K, T] of audio without chunks."""
    return model.encode(samples, bandwidth=model.config.target_bandwidths[-1]).audio_codes[0]


def audiocraft_file(model, folder, **changes):
    """audiocraft's file of a model with the settings of MUSIC."""
    config = json.loads((HERE / "published/audiocraft_16khz.json").read_text())["config"]
    config["seanet"] |= {"dimension": 8, "n_filters": 4, "ratios": [4, 2]}
    config["rvq"] |= {"n_q": 3, "bins": 16}
    for key, value in changes.items():
        section, key = key.split("__")
        config[section][key] = value
    state = names.native_names(model.state_dict(), model)
    content = {"best_state": state, "xp.cfg": json.dumps(config), "version": "1.3.0", "exported": True}
    torch.save(content, folder / "compression_state_dict.bin")
    return state


@torch.no_grad()
def test_audiocraft_s_file_and_folder(tmp_path):
    theirs = make(**MUSIC)
    state = audiocraft_file(theirs, tmp_path)
    torch.save({"best_state": {}, "xp.cfg": ""}, tmp_path / "state_dict.bin")  # of the language model beside it
    for path in (tmp_path, tmp_path / "compression_state_dict.bin"):
        assert recognize_codec(path) == "audiocraft"
        ours = read_public_codec(path)
    for length in (8 * 20, 8 * 11 + 3):
        samples = torch.randn(1, 1, length)
        codes = their_codes(theirs, samples)
        assert torch.equal(ours.encode(samples).codes, codes)
        decoded = theirs.decode(codes[None], [None]).audio_values
        torch.testing.assert_close(ours.decode(codes), decoded, rtol=1e-5, atol=1e-5 * float(decoded.abs().max()))
    write_public_codec("audiocraft", tmp_path / "back", ours)
    written = torch.load(tmp_path / "back/compression_state_dict.bin", weights_only=True)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    assert {name: tensor.shape for name, tensor in written["best_state"].items()} == shapes
    again = read_public_codec(tmp_path / "back", 2)
    assert torch.equal(again.encode(samples).codes, codes[:, :2])
    write_public_codec("encodec", tmp_path / "hub", ours)
    hub, report = transformers.EncodecModel.from_pretrained(tmp_path / "hub", output_loading_info=True)
    assert not any(report.values()) and torch.equal(their_codes(hub.eval(), samples), codes)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, STEREO], ids=["24khz", "48khz"])
def test_files_of_the_package(settings, tmp_path):
    theirs = make(**settings)
    theirs.save_pretrained(tmp_path / "hub")
    torch.save(names.native_names(theirs.state_dict(), theirs), tmp_path / "encodec.th")
    assert recognize_codec(tmp_path / "encodec.th") == "encodec-package"
    ours, hub = read_public_codec(tmp_path / "encodec.th"), read_public_codec(tmp_path / "hub")
    assert ours.config == hub.config
    assert all(torch.equal(tensor, hub.net.state_dict()[name]) for name, tensor in ours.net.state_dict().items())
    write_public_codec("encodec-package", tmp_path / "back", ours)
    assert read_public_codec(tmp_path / "back").config == ours.config
    package = import_package()
    if package is None:
        return
    wide = {"n_filters": 4, "dimension": 8, "ratios": [4, 2], "channels": theirs.config.audio_channels}
    wide |= {"norm": theirs.config.norm_type, "causal": theirs.config.use_causal_conv}
    model = package.EncodecModel(
        package.modules.SEANetEncoder(**wide), package.modules.SEANetDecoder(**wide),
        package.quantization.ResidualVectorQuantizer(dimension=8, n_q=3, bins=16), [24.0], theirs.config.sampling_rate,
        theirs.config.audio_channels, normalize=theirs.config.normalize, segment=theirs.config.chunk_length_s,
    ).eval()  # fmt: skip
    model.load_state_dict(torch.load(tmp_path / "back/encodec.th", weights_only=True))
    samples = 0.1 * torch.randn(1, theirs.config.audio_channels, 60003 if settings else 803)
    frames, found = model.encode(samples), ours.encode(samples)
    assert torch.equal(torch.cat([codes for codes, _ in frames], dim=2), found.codes)
    decoded = model.decode(frames)
    made = ours.decode(found.codes, scales=found.scales)
    torch.testing.assert_close(made, decoded, rtol=1e-5, atol=1e-5 * float(decoded.abs().max()))


def test_the_command(tmp_path, capsys):
    import tessera
    from tessera.cli.app import run

    audiocraft_file(make(**MUSIC), tmp_path)
    path = tmp_path / "compression_state_dict.bin"
    assert run(["convert", str(path), str(tmp_path / "ours"), "--codebooks", "2"]) == 0
    assert "audiocraft, 2 codebooks of 16 codes, 2000 frames a second" in capsys.readouterr().err
    assert tessera.load_tokenizer(tmp_path / "ours").spec == tessera.load_tokenizer(path, codebooks=2).spec


class Payload:
    """What a pickle with code asks for."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path):
    path = tmp_path / "compression_state_dict.bin"
    torch.save({"best_state": Payload(str(tmp_path / "ran")), "xp.cfg": ""}, path)
    with pytest.raises(ValueError, match="this pickle asks for .*open, more than tensors and plain containers"):
        read_public_codec(tmp_path)
    assert not (tmp_path / "ran").exists()


def import_package():
    """The package `encodec` if it is installed; it imports torchaudio, which it does not need here."""
    if importlib.util.find_spec("encodec") is None:
        return None
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
    import encodec

    return encodec


def test_what_is_not_supported(tmp_path):
    model, path = make(**MUSIC), tmp_path / "compression_state_dict.bin"
    for change, message in (
        ({"seanet__activation": "ReLU"}, "seanet.activation is 'ReLU'; only 'ELU' is supported"),
        ({"encodec__renormalize": True}, "encodec.renormalize is True; only False"),
        ({"seanet__decoder": {"n_filters": 8}}, "seanet.decoder.n_filters is set"),
        ({"seanet__norm": "layer_norm"}, "seanet.norm is 'layer_norm'"),
        ({"seanet__ratios": "${seanet.ratio}"}, None),
        ({"seanet__n_filters": 8}, "the config asks for"),
        ({"seanet__lstm": "${seanet.lstm}"}, "seanet.lstm must be of type int"),
        ({"encodec__quantizer": "no_quant"}, "encodec.quantizer is 'no_quant'"),
    ):
        audiocraft_file(model, tmp_path, **change)
        with pytest.raises(ValueError, match=message):
            read_public_codec(tmp_path)
    torch.save({"best_state": names.native_names(model.state_dict(), model), "xp.cfg": 3}, path)
    with pytest.raises(ValueError, match="xp.cfg must be text, found int"):
        read_public_codec(path)
    torch.save({"pretrained": "facebook/encodec_32khz", "exported": True}, path)
    with pytest.raises(ValueError, match="holds only the name of a codec, 'facebook/encodec_32khz'"):
        read_public_codec(path)
    path.write_bytes(b"PK\3\4 cut")
    with pytest.raises(ValueError, match="not a usable file of tensors"):
        read_public_codec(tmp_path)
    make(**STEREO).save_pretrained(tmp_path / "hub")
    with pytest.raises(CannotWrite, match="segments"):
        write_public_codec("audiocraft", tmp_path / "no", read_public_codec(tmp_path / "hub"))
    make(**MUSIC).save_pretrained(tmp_path / "music")
    with pytest.raises(CannotWrite, match="does not support this tokenizer's"):
        write_public_codec("encodec-package", tmp_path / "no", read_public_codec(tmp_path / "music"))
