"""Media files: exact round trips, conversions, and hostile files refused in one line before they cost memory."""

import math
import resource
import struct
import sys
import zlib

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from tessera.tokenize.data.audio_pyav import has_av
from tessera.tokenize.data.media import (
    MediaError,
    MediaLimits,
    bytes_to_image,
    media_kind,
    read_audio,
    read_image,
    write_audio,
    write_image,
)


def noise(channels: int = 1, length: int = 1600, seed: int = 0) -> torch.Tensor:
    steps = torch.randint(-32768, 32768, (channels, length), generator=torch.Generator().manual_seed(seed))
    return steps / 32768


def pixels(height: int = 20, width: int = 30, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height + channels)
    return torch.randint(0, 256, (height, width, channels), generator=generator, dtype=torch.uint8)


def refused(call, *arguments, match: str, **options) -> None:
    """The call raises MediaError in one line that begins with the file's name and goes on as `match`."""
    with pytest.raises(MediaError, match=match) as error:
        call(*arguments, **options)
    text = str(error.value)
    assert text.startswith(f"{arguments[0]}: ") and "\n" not in text and len(text) < 400


# Sound.


@pytest.mark.parametrize("extension", [".wav", ".flac", ".WAV"])
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_round_trip_is_exact(tmp_path, extension, channels):
    path = tmp_path / f"x{extension}"
    samples = noise(channels)
    write_audio(path, samples, 16000)
    assert torch.equal(read_audio(path, 16000, channels), samples)
    assert soundfile.info(path).samplerate == 16000 and soundfile.info(path).subtype == "PCM_16"


def test_loud_samples_are_clipped(tmp_path):
    write_audio(tmp_path / "x.wav", torch.tensor([[2.0, -2.0, 1.0, 0.5]]), 8000)
    assert read_audio(tmp_path / "x.wav", 8000).tolist() == [[32767 / 32768, -1.0, 32767 / 32768, 0.5]]
    soundfile.write(tmp_path / "y.wav", np.array([1.2, -1.2, 0.5], np.float32), 8000, subtype="FLOAT")
    assert read_audio(tmp_path / "y.wav", 8000).tolist() == [[1.0, -1.0, 0.5]]


def test_channels(tmp_path):
    samples = noise(2)
    write_audio(tmp_path / "x.wav", samples, 8000)
    assert torch.equal(read_audio(tmp_path / "x.wav", 8000), samples.mean(0, keepdim=True))
    refused(read_audio, tmp_path / "x.wav", 8000, 3, match="2 channels, expected 3")
    write_audio(tmp_path / "y.wav", samples[:1], 8000)
    assert torch.equal(read_audio(tmp_path / "y.wav", 8000, 2), samples[:1].expand(2, -1))


@pytest.mark.parametrize("extension, kind", [("ogg", "OGG"), ("opus", "OGG"), ("mp3", "MP3")])
def test_lossy_sound_at_another_rate(tmp_path, extension, kind):
    tone = 0.5 * np.sin(2 * math.pi * 440 * np.arange(24000) / 48000)
    subtype = "OPUS" if extension == "opus" else None
    soundfile.write(tmp_path / f"x.{extension}", tone, 48000, format=kind, subtype=subtype)
    samples = read_audio(tmp_path / f"x.{extension}", 16000)[0]
    assert len(samples) == 8000
    strongest = int(torch.fft.rfft(samples[:8000]).abs().argmax())
    assert strongest == 220  # bins of 2 Hz
    assert 0.4 < float(samples[2000:6000].abs().max()) < 0.6


def test_wav_of_a_stream_has_no_length(tmp_path):
    path = tmp_path / "x.wav"
    write_audio(path, noise(), 16000)
    data = bytearray(path.read_bytes())
    for size in (0xFFFFFFFF, 0x7FFFF000):
        data[40:44] = struct.pack("<I", size)
        path.write_bytes(data)
        assert read_audio(path, 16000).shape == (1, 1600)


@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_truncated_sound(tmp_path, extension):
    path = tmp_path / f"x.{extension}"
    write_audio(path, noise(), 16000)
    whole = path.read_bytes()
    for size in [0, 1, 4, 12, 20, 36, 43, 44, 45, 60, 100, 500, len(whole) // 2, len(whole) - 100, len(whole) - 2]:
        path.write_bytes(whole[:size])
        refused(read_audio, path, 16000, match="empty|cannot be read|no samples|cut short|damaged")


def wav(rate: int = 16000, channels: int = 1, bits: int = 16, kind: int = 1, data: bytes = b"\0\0" * 100) -> bytes:
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", kind, channels, rate, min(rate * block, 2**32 - 1), block % 65536, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    "content, message",
    [
        (wav(channels=0), "cannot be read as .wav"),
        (wav(channels=1024, data=b"\0" * 4096), "1024 channels, expected 1 to 16"),
        (wav(channels=17, data=b"\0" * 34), "17 channels, expected 1 to 16"),
        (wav(rate=0), "cannot be read as .wav"),
        (wav(rate=3999), "sample rate 3999 Hz, expected 4000 to 192000 Hz"),
        (wav(rate=2**31 - 1), "sample rate 2147483647 Hz"),
        (wav(bits=0), "cannot be read as .wav"),
        (wav(kind=77), "cannot be read as .wav"),
        (wav(data=b""), "holds no samples"),
        (wav(bits=32, kind=3, data=struct.pack("<4f", 0, float("nan"), 0, 0)), "not finite"),
        (wav(bits=32, kind=3, data=struct.pack("<4f", 0, float("-inf"), 0, 0)), "not finite"),
        (wav(bits=32, kind=3, data=struct.pack("<4f", 0, 3e38, 0, 0)), r"samples reach 3e\+38, expected -1 to 1"),
        (wav(bits=64, kind=3, data=struct.pack("<2d", 0, 20000)), r"samples reach 2e\+04"),
        (b"ID3" + b"\0" * 100, "cannot be read as .wav"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "cannot be read as .wav"),
        (b"#!/bin/sh\n", "cannot be read as .wav"),
        (b"\0" * 10_000, "cannot be read as .wav"),
    ],
)
def test_hostile_wav(tmp_path, content, message):
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    refused(read_audio, path, 16000, match=message)


def test_wrong_extension(tmp_path):
    write_audio(tmp_path / "x.flac", noise(), 16000)
    for name in ("x.wav", "x.mp3", "x.ogg"):
        (tmp_path / name).write_bytes((tmp_path / "x.flac").read_bytes())
        refused(read_audio, tmp_path / name, 16000, match="contains FLAC, not")
    refused(read_audio, tmp_path / "x.xyz", 16000, match="'.xyz' is not a supported media file type; use one of .wav")
    refused(read_audio, tmp_path / "x.png", 16000, match="an audio file is needed here, '.png' is an image")
    assert media_kind("a/B.JPEG") == "picture" and media_kind("x.opus") == "audio"
    (tmp_path / "folder.wav").mkdir()
    refused(read_audio, tmp_path / "folder.wav", 16000, match="not a file")
    with pytest.raises(FileNotFoundError, match=r"y\.wav: no such file"):
        read_audio(tmp_path / "y.wav", 16000)


def rss_mb() -> float:
    """Peak resident memory so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def promise_samples(flac: bytes, count: int) -> bytes:
    """A FLAC file whose header promises `count` samples."""
    fields = int.from_bytes(flac[18:26], "big")  # rate 20 bits, channels 3, bits 5, samples 36
    return flac[:18] + ((fields >> 36 << 36) | count).to_bytes(8, "big") + flac[26:]


def test_flac_bomb(tmp_path):
    path = tmp_path / "x.flac"
    with soundfile.SoundFile(path, "w", 8000, 1, "PCM_16", format="FLAC") as file:
        file.write(np.zeros(40 * 8000, np.int16))
    small = path.read_bytes()
    assert len(small) < 2000, "a minute of nothing costs almost no bytes"
    read_audio(path, 16000)
    if has_av():
        import av  # noqa: F401
    before = rss_mb()  # with what was imported
    refused(read_audio, path, 16000, limits=MediaLimits(max_seconds=30), match="40 s long, the limit is 30 s")
    path.write_bytes(promise_samples(small, 1860 * 8000))
    refused(read_audio, path, 16000, match="1860 s long, the limit is 1800 s")
    path.write_bytes(promise_samples(small, 2**36 - 1))
    refused(read_audio, path, 16000, match="8589935 s long, the limit is 1800 s")
    path.write_bytes(promise_samples(small, 0))  # unknown, as a stream writes it
    if has_av():
        assert read_audio(path, 16000).shape == (1, 40 * 16000)
        refused(read_audio, path, 16000, limits=MediaLimits(max_seconds=30), match="more than 30 s long")
    else:
        refused(read_audio, path, 16000, match=r"pip install 'tessera-lm\[media\]'")
    path.write_bytes(promise_samples(small, 1700 * 8000))  # within the limit, but a lie
    refused(read_audio, path, 16000, match="cut short|damaged")
    assert rss_mb() - before < 150


def test_sound_that_cannot_be_written(tmp_path):
    for path, samples, message in (
        ("x.mp3", noise(), "audio is written as .wav or .flac, not '.mp3'"),
        ("x.wav", noise()[0], r"needs finite samples \[C, N\] .* found \[1600\]"),
        ("x.wav", torch.full((1, 3), float("nan")), "needs finite samples"),
        ("x.wav", torch.zeros(9, 3), "with 1 to 8 channels"),
    ):
        with pytest.raises(ValueError, match=message):
            write_audio(tmp_path / path, samples, 16000)
    assert list(tmp_path.iterdir()) == []


# Pictures.


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_picture_round_trip_is_exact(tmp_path, channels):
    picture = bytes_to_image(pixels(channels=channels))
    assert picture.shape == (channels, 20, 30) and float(picture.min()) >= -1 and float(picture.max()) <= 1
    write_image(tmp_path / "x.png", picture)
    assert torch.equal(read_image(tmp_path / "x.png", 20, 30, channels), picture)
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (30, 20)


def test_all_bytes_survive(tmp_path):
    ramp = bytes_to_image(torch.arange(256, dtype=torch.uint8).reshape(16, 16, 1))
    assert float(ramp.min()) == -1 and float(ramp.max()) == 1
    write_image(tmp_path / "x.png", ramp)
    assert torch.equal(read_image(tmp_path / "x.png", 16, 16, 1), ramp)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "bmp"])
def test_formats(tmp_path, extension):
    flat = np.full((20, 30, 3), (255, 0, 128), np.uint8)
    Image.fromarray(flat).save(tmp_path / f"x.{extension}")
    picture = read_image(tmp_path / f"x.{extension}", 20, 30)
    assert torch.allclose(picture.mean((1, 2)), torch.tensor([1.0, -1.0, 0.004]), atol=0.05)


def test_odd_modes(tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray((np.arange(600).reshape(20, 30) * 109).astype(np.uint16)).save(path)  # 16-bit grey
    assert torch.allclose(read_image(path, 20, 30, 1).flatten(), torch.arange(600) * 109 / 32767.5 - 1, atol=0.005)
    Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(path)  # transparent is white
    assert float(read_image(path, 20, 30, 3).min()) == 1 and float(read_image(path, 20, 30, 1).min()) == 1
    assert read_image(path, 20, 30, 4).amax((1, 2)).tolist() == [-1, -1, -1, -1]
    Image.fromarray(pixels().numpy()).convert("P").save(path)
    assert read_image(path, 20, 30, 3).shape == (3, 20, 30)


def test_turned_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right when shown
    Image.fromarray(pixels().numpy()).save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg", 30, 20).shape == (3, 30, 20)


def test_a_jpeg_of_many_scans(tmp_path):
    """Each scan of a progressive JPEG is a pass over the whole picture: 500 of 5600 x 5600 pixels take 17 s."""
    path = tmp_path / "x.jpg"
    Image.fromarray(pixels().numpy()).save(path, progressive=True)
    assert read_image(path, 20, 30).shape == (3, 20, 30)
    content = path.read_bytes()
    path.write_bytes(content[:-2] + 300 * content[content.rfind(b"\xff\xda") : -2] + content[-2:])
    refused(read_image, path, 20, 30, match="a JPEG of more than 200 scans")


def test_fit(tmp_path):
    path = tmp_path / "x.png"
    wide = torch.zeros(1, 10, 40) - 1
    wide[:, :, 15:25] = 1  # the middle square is white
    write_image(path, wide)
    refused(
        read_image, path, 5, 5, 1, match="40 x 10 pixels, needed are 5 x 5; scale it, or set fit to crop or stretch"
    )
    assert float(read_image(path, 5, 5, 1, fit="crop").min()) > 0.8
    stretched = read_image(path, 5, 8, 1, fit="stretch")
    assert float(stretched[0, 2, 0]) < -0.9 < 0.9 < float(stretched[0, 2, 4])


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "bmp"])
def test_truncated_picture(tmp_path, extension):
    path = tmp_path / f"x.{extension}"
    Image.fromarray(pixels().numpy()).save(path)
    whole = path.read_bytes()
    for size in (0, 1, 4, 10, 24, 50, 200, len(whole) // 2, len(whole) * 3 // 4):
        path.write_bytes(whole[:size])
        refused(read_image, path, 20, 30, match="empty|cannot be read|content is not|cut short")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, data: bytes = b"\0" * 10_000, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content, message",
    [
        (png(12_000, 12_000), "12000 x 12000 pixels, the limit is 32000000 in all"),
        (png(60_000, 60_000), "cannot be read as .png"),
        (png(2**31 - 1, 2**31 - 1), "cannot be read as .png"),
        (png(0, 30), "content is not PNG"),
        (png(30, 20, b""), "damaged or cut short"),
        (png(3000, 2000), "damaged or cut short"),
        (png(30, 20, b"\x07" * 10_000), "damaged or cut short|cannot be read"),
        (png(30, 20, extra=chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 10**8, 1))), "cannot be read|damaged"),
        (png(30, 20)[:8] + b"\0" * 100, "cannot be read|content is not PNG"),
        (b"RIFF\0\0\0\0WAVE", "content is not PNG"),
        (b"<svg/>", "content is not PNG"),
    ],
)
def test_hostile_png(tmp_path, content, message):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    before = rss_mb()
    refused(read_image, path, 20, 30, match=message)
    assert rss_mb() - before < 150


def test_picture_of_another_kind(tmp_path):
    Image.fromarray(pixels().numpy()).save(tmp_path / "x.png")
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.png").read_bytes())
    refused(read_image, tmp_path / "x.jpg", 20, 30, match="its content is not JPEG")
    refused(read_image, tmp_path / "x.wav", 20, 30, match="an image is needed here, '.wav' is an audio file")
    with pytest.raises(ValueError, match="images have 1, 3 or 4 channels, not 2"):
        read_image(tmp_path / "x.png", 20, 30, 2)


def test_a_written_picture_may_be_enlarged_and_is_read_as_it_was(tmp_path):
    picture = bytes_to_image(pixels())
    for scale in (1, 2, 7):
        write_image(tmp_path / "x.png", picture, scale)
        assert Image.open(tmp_path / "x.png").size == (30 * scale, 20 * scale)
        assert torch.equal(read_image(tmp_path / "x.png", 20, 30), picture), "nothing is lost on the way"
    shown = np.array(Image.open(tmp_path / "x.png"))
    assert (shown == pixels().numpy().repeat(7, 0).repeat(7, 1)).all(), "nearest neighbour"
    shown[0, 0] ^= 1  # no longer a repeated pixel
    Image.fromarray(shown).save(tmp_path / "x.png")
    refused(read_image, tmp_path / "x.png", 20, 30, match="210 x 140 pixels, needed are 30 x 20")
    for scale in (0, -1, 1.5, True, 1 << 40):
        with pytest.raises(ValueError, match="scale"):
            write_image(tmp_path / "x.png", picture, scale)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossy_files_are_near(suffix, channels, tmp_path):
    picture = torch.linspace(-1, 1, 32 * 24).reshape(1, 32, 24).expand(channels, -1, -1)
    write_image(tmp_path / f"x{suffix}", picture)
    found = read_image(tmp_path / f"x{suffix}", 32, 24, channels)
    assert float((found - picture).abs().max()) < 0.1


def test_pixel_limit(tmp_path):
    write_image(tmp_path / "x.png", bytes_to_image(pixels()))
    assert read_image(tmp_path / "x.png", 20, 30, limits=MediaLimits(max_pixels=600)).shape == (3, 20, 30)
    limits = MediaLimits(max_pixels=599)
    refused(read_image, tmp_path / "x.png", 20, 30, limits=limits, match="30 x 20 pixels, the limit is 599")


def test_picture_that_cannot_be_written(tmp_path):
    for path, picture, message in (
        ("x.gif", torch.zeros(3, 2, 2), "images are written as .png, .jpg, .jpeg, .webp, not '.gif'"),
        ("x.jpg", torch.zeros(4, 2, 2), "JPEG has no alpha channel"),
        ("x.png", torch.zeros(2, 2), r"needs finite values .* found \[2, 2\]"),
        ("x.png", torch.zeros(2, 2, 2), r"with C 1, 3 or 4, found \[2, 2, 2\]"),
        ("x.png", torch.full((1, 2, 2), float("inf")), "needs finite values"),
    ):
        with pytest.raises(ValueError, match=message):
            write_image(tmp_path / path, picture)
    assert list(tmp_path.iterdir()) == []
