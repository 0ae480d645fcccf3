"""`tessera encode`, `decode` and `shards` as they are typed."""

import json
from pathlib import Path

import pytest
import torch

from tessera.cli.app import run
from tessera.tokenize.audio.networks import AudioStackConfig, AudioTokenizerConfig
from tessera.tokenize.compression.file_format import write_compressed
from tessera.tokenize.compression.integer_network import CoderConfig, CoderNet, load_coder
from tessera.tokenize.compression.probability_models import UnigramModel
from tessera.tokenize.data.codes_file import CodesItem, read_codes, write_codes
from tessera.tokenize.data.media import bytes_to_image, read_audio, read_image, write_audio, write_image
from tessera.tokenize.data.shard_reader import Shards
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import ResidualConfig, VQConfig
from tessera.tokenize.tokenizer import load_tokenizer, make_tokenizer

RVQ = ResidualConfig(levels=2, quantizer=VQConfig(size=16))
STACK = AudioStackConfig(width=8, layers=1, kernel=3, chunk=8)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> Path:
    """A folder with the tokenizers sound, other (another sound) and pictures."""
    folder = tmp_path_factory.mktemp("tokenizers")
    sound = {"sample_rate": 4000, "hop": 20, "window": 80, "latent_dim": 4, "encoder": STACK, "decoder": STACK}
    configs = {
        "sound": AudioTokenizerConfig(name="tiny-sound", quantizer=RVQ, **sound),
        "other": AudioTokenizerConfig(name="tiny-other", quantizer=RVQ, **sound),
        "pictures": ImageTokenizerConfig(
            name="tiny-pictures", height=4, width=8, channels=1, features=4, blocks=1, latent_dim=4, quantizer=RVQ
        ),
    }
    for seed, (name, config) in enumerate(configs.items()):
        torch.manual_seed(seed)
        make_tokenizer(config).save(folder / name)
    return folder


@pytest.fixture
def media(tmp_path) -> Path:
    """A folder with a.wav, b.flac, sub/a.wav of different lengths and c.png, d.png."""
    generator = torch.Generator().manual_seed(0)
    for name, length in (("a.wav", 333), ("b.flac", 40), ("sub/a.wav", 100)):
        write_audio(tmp_path / "sound" / name, torch.rand(1, length, generator=generator) - 0.5, 4000)
    for name in ("c.png", "d.png"):
        pixels = torch.randint(0, 256, (4, 8, 1), generator=generator, dtype=torch.uint8)
        write_image(tmp_path / "pictures" / name, bytes_to_image(pixels))
    return tmp_path


def tessera(*arguments: object) -> int:
    return run([str(argument) for argument in arguments])


def test_sound_there_and_back(tokenizers, media, capsys):
    file, sound = media / "codes.safetensors", media / "sound"
    listed = [sound / "b.flac", sound / "a.wav", sound / "sub"]
    assert tessera("encode", *listed, "--tokenizer", tokenizers / "sound", "-o", file, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [item["name"] for item in told["items"]] == ["b.flac", "a.wav", "a.wav"] and told["skipped"] == []
    tokenizer = load_tokenizer(tokenizers / "sound")
    _, items = read_codes(file, tokenizer.spec)
    for item, path in zip(items, (sound / "b.flac", sound / "a.wav", sound / "sub" / "a.wav"), strict=True):
        samples = read_audio(path, 4000)
        assert torch.equal(item.codes, tokenizer.encode(samples[None]).codes[0])
        assert item.num_samples == samples.shape[1]

    assert tessera("decode", file, "--tokenizer", tokenizers / "sound", "-o", media / "out") == 0
    written = capsys.readouterr().out.split()
    assert written == [str(media / "out" / name) for name in ("b.wav", "a.wav", "a-1.wav")]
    for item, path in zip(items, written, strict=True):
        decoded = tokenizer.decode(item.codes[None])[0, :, : item.num_samples].clamp(-1, 1)
        found = read_audio(path, 4000)
        assert found.shape == decoded.shape and float((found - decoded).abs().max()) <= 1 / 32768
    assert tessera("decode", file, "--tokenizer", tokenizers / "sound", "-o", media / "out", "--format", "flac") == 0
    assert (media / "out" / "b.flac").is_file()


def test_pictures_there_and_back(tokenizers, media):
    file = media / "codes.safetensors"
    assert tessera("encode", media / "pictures", "--tokenizer", tokenizers / "pictures", "-o", file) == 0
    assert tessera("decode", file, "--tokenizer", tokenizers / "pictures", "-o", media / "out") == 0
    tokenizer = load_tokenizer(tokenizers / "pictures")
    wanted = tokenizer.decode(read_codes(file)[1][1].codes[None])[0].clamp(-1, 1)
    found = read_image(media / "out" / "d.png", 4, 8, 1)
    assert float((found - wanted).abs().max()) <= 1 / 127.5


def save_coder(folder, spec):
    torch.manual_seed(0)
    net = CoderNet(CoderConfig(context=((0, -1),), embedding=4, width=8), spec)
    net.save(folder)
    return net


def test_compressed_there_and_back(tokenizers, media, capsys, monkeypatch):
    pytest.importorskip("constriction")
    file, plain, spec = media / "codes.tsc", media / "codes.safetensors", load_tokenizer(tokenizers / "sound").spec
    arguments = [media / "sound", "--tokenizer", tokenizers / "sound"]
    assert tessera("encode", *arguments, "-o", plain) == 0
    assert tessera("encode", *arguments, "--compress", "-o", file, "--json") == 0
    told = json.loads(capsys.readouterr().out)["compressed"]
    assert told["size"] == file.stat().st_size and told["model"] == "uniform"
    assert tessera("decode", file, "--tokenizer", tokenizers / "sound", "-o", media / "out") == 0
    assert tessera("decode", plain, "--tokenizer", tokenizers / "sound", "-o", media / "wanted") == 0
    for path in sorted((media / "wanted").iterdir()):
        assert path.read_bytes() == (media / "out" / path.name).read_bytes()
    assert tessera("decode", plain, "--tokenizer", tokenizers / "sound", "--model", media, "-o", media / "out") == 2
    assert "is not compressed" in capsys.readouterr().err

    data = bytearray(file.read_bytes())
    data[-told["chunk_bytes"]] ^= 255
    file.write_bytes(data)
    assert tessera("decode", file, "--tokenizer", tokenizers / "sound", "-o", media / "out") == 1
    said = capsys.readouterr()
    assert len(said.out.split()) == 3 and "chunk 0 is damaged: frames 0 to 16 of a.wav" in said.err

    net = save_coder(media / "model" / "coder", spec)
    assert tessera("encode", *arguments, "--compress", "--model", media / "model", "-o", file) == 0
    items = [CodesItem("a", torch.full((2, 300), 3))]
    with torch.no_grad():
        for layer in net.out:
            layer.bias[3] = 1e5
    net.save(media / "model" / "coder")
    monkeypatch.setattr(UnigramModel, "measure", lambda *_: bytes(range(1, 33)))  # else it knows these codes as well
    write_compressed(file, spec, items, load_coder(media / "model" / "coder"))
    assert (
        tessera("decode", file, "--tokenizer", tokenizers / "sound", "--model", media / "model", "-o", media / "n") == 0
    )
    assert (media / "n" / "a.wav").is_file()
    capsys.readouterr()
    assert tessera("decode", file, "--tokenizer", tokenizers / "sound", "-o", media / "n") == 2
    assert "--model" in capsys.readouterr().err
    save_coder(media / "other", spec)
    assert (
        tessera("decode", file, "--tokenizer", tokenizers / "sound", "--model", media / "other", "-o", media / "n") == 2
    )
    assert "pass the right one as --model" in capsys.readouterr().err
    save_coder(media / "foreign", load_tokenizer(tokenizers / "other").spec)
    assert tessera("encode", *arguments, "--compress", "--model", media / "foreign", "-o", file) == 2
    assert "'tiny-sound'" in capsys.readouterr().err


def test_bad_media_is_left_out_and_listed(tokenizers, media, capsys):
    sound = media / "sound"
    (sound / "bad.wav").write_bytes(b"RIFF")
    file = media / "codes.safetensors"
    assert tessera("encode", sound, media / "pictures", "--tokenizer", tokenizers / "sound", "-o", file) == 0
    told = capsys.readouterr().err
    assert "bad.wav: cannot be read as .wav" in told and "c.png: an audio file is needed here" in told
    assert "tessera: 3 of 6 items could not be used" in told
    assert [item.name for item in read_codes(file)[1]] == ["a.wav", "b.flac", "a.wav"]
    assert tessera("encode", sound / "bad.wav", "--tokenizer", tokenizers / "sound", "-o", media / "x.safetensors") == 2
    assert "none of 1 files could be used" in capsys.readouterr().err and not (media / "x.safetensors").exists()


def test_pictures_of_another_size(tokenizers, media, capsys):
    write_image(media / "large.png", torch.zeros(1, 9, 9))
    arguments = ["encode", media / "large.png", "--tokenizer", tokenizers / "pictures", "-o", media / "x.safetensors"]
    assert tessera(*arguments) == 2
    assert "9 x 9 pixels, needed are 8 x 4" in capsys.readouterr().err
    assert tessera(*arguments, "--fit", "crop") == 0


def test_codes_of_another_tokenizer_are_refused(tokenizers, media, capsys):
    file = media / "codes.safetensors"
    assert tessera("encode", media / "sound", "--tokenizer", tokenizers / "sound", "-o", file) == 0
    capsys.readouterr()
    assert tessera("decode", file, "--tokenizer", tokenizers / "other", "-o", media / "out") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"tessera: {file}: codes of tokenizer 'tiny-sound' (") and "but 'tiny-other' (" in told
    assert not (media / "out").exists()


@pytest.mark.parametrize(("shape", "code", "says"), [((2, 3), 200, "codes up to [200, 0]"), ((3, 3), 0, "[3, 3]")])
def test_codes_out_of_range_or_of_another_shape_have_one_line(tokenizers, media, shape, code, says, capsys):
    codes = torch.zeros(shape, dtype=torch.long)
    codes[0, 1] = code
    write_codes(media / "x.safetensors", load_tokenizer(tokenizers / "sound").spec, [CodesItem("a", codes)])
    assert tessera("decode", media / "x.safetensors", "--tokenizer", tokenizers / "sound", "-o", media / "out") == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith(f"tessera: {media}/x.safetensors: codes") and says in told[0]


@pytest.mark.parametrize("name", ["../../evil.wav", "/etc/evil.wav", "..\\evil", "....", "a/\x00b\n", "", "x" * 300])
def test_names_in_a_file_stay_in_the_folder(tokenizers, media, name, capsys):
    spec = load_tokenizer(tokenizers / "sound").spec
    write_codes(media / "x.safetensors", spec, [CodesItem(name, torch.zeros(2, 3).long())])
    file, out = media / "x.safetensors", media / "in" / "out"
    assert tessera("decode", file, "--tokenizer", tokenizers / "sound", "-o", out) == 0
    files = [path for path in media.rglob("*") if path.is_file() and path.parts[-2] not in ("sound", "sub", "pictures")]
    assert sorted({path.parent for path in files}) == [media, out]
    assert [path.name for path in files if path.parent == media] == ["x.safetensors"]


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "command, message",
    [
        ("encode {media}/nothing.wav --tokenizer {t}/sound -o {media}/x.safetensors", "nothing.wav: no such file"),
        ("encode {media}/sound --tokenizer {t}/none -o {media}/x.safetensors", "none: no tokenizer here"),
        ("encode {media}/sound --tokenizer {t}/sound -o {media}/x.bin", "ends in .safetensors"),
        ("encode {media}/sound -o {media}/x.safetensors", "--tokenizer"),
        ("decode {media}/sound/a.wav --tokenizer {t}/sound -o {media}/out", "a.wav: not a safetensors file"),
        ("decode {t}/sound/tokenizer.safetensors --tokenizer {t}/sound -o {media}/out", "not a file of codes"),
        ("decode {media}/no.safetensors --tokenizer {t}/sound -o {media}/out", "no such file"),
        ("shards {media}/no.yaml", "no.yaml: no such file, and no config of that name comes"),
    ],
)
def test_misuse_is_one_line_and_code_2(tokenizers, media, command, message, capsys):
    assert tessera(*command.format(media=media, t=tokenizers).split()) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("tessera: ") and message in told[0]


def write_config(media: Path, tokenizers: Path) -> Path:
    lines = ["corpus: {kind: folder, path: %s/sound}", "tokenizer: %s/sound", "out: %s/shards"]
    text = "\n".join(line % place for line, place in zip(lines, (media, tokenizers, media), strict=True))
    (media / "shards.yaml").write_text(text + "\n")
    return media / "shards.yaml"


def test_shards(tokenizers, media, capsys):
    config = write_config(media, tokenizers)
    (media / "sound" / "a.txt").write_text("hello")
    (media / "sound" / "bad.wav").write_bytes(b"")
    for _ in range(2):  # the second finds everything done
        assert tessera("shards", config, "--json") == 0
        told = capsys.readouterr()
        expected = {"out": f"{media}/shards", "items": 3, "frames": 17 + 2 + 5, "labels": 1, "texts": 1, "skipped": 1}
        assert json.loads(told.out) == expected
        assert "bad.wav: the file is empty" in told.err and "1 of 4 items could not be used" in told.err
    shards = Shards(media / "shards")
    assert shards.item(0).text == "hello" and shards.spec.name == "tiny-sound"
    capsys.readouterr()
    assert tessera("shards", config, "--set", f"tokenizer={tokenizers}/other") == 2
    assert "holds shards of another corpus, tokenizer or setting" in capsys.readouterr().err
    assert tessera("shards", config, "--set", "item_per_shard=3") == 2
    assert "did you mean 'items_per_shard'?" in capsys.readouterr().err


def test_interrupted_shards_say_how_to_go_on(tokenizers, media, capsys, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("tessera.tokenize.data.shard_writer.build_shards", interrupt)
    assert tessera("shards", write_config(media, tokenizers)) == 130
    assert "is not finished; run the same command again to resume" in capsys.readouterr().err
