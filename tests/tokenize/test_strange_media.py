"""Media as strangers have it: phones' pictures, MP3s without a length, sound tracks of FFmpeg, damage at any place."""

import os
import random
import socket
import sys
import threading

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import tessera.tokenize.data.audio_io as audio_io
from tessera.tokenize.data.media import MediaError, MediaLimits, Notes, read_audio, read_image, write_audio

RATE = 16000


def tone(seconds: float = 0.5, rate: int = RATE) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)


def encode(path, codec: str, samples: np.ndarray, rate: int = RATE, layout: str = "mono", demuxer: str = "") -> None:
    """Write samples [N] or [N, C] with PyAV."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w", format=demuxer or None) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout, bit_rate=64000)
        steps = np.ascontiguousarray(np.atleast_2d(samples.T).astype(np.float32))
        frame = av.AudioFrame.from_ndarray(steps, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        fifo = av.AudioFifo()
        fifo.write(frame)
        size = stream.codec_context.frame_size or 1024
        fit = av.AudioResampler(format=stream.codec_context.format.name, layout=layout, rate=rate)
        while (piece := fifo.read(size, partial=True)) is not None:
            for converted in fit.resample(piece):
                container.mux(stream.encode(converted))
        container.mux(stream.encode(None))


# Sound.


def mp3_without_length(path, samples: np.ndarray, rate: int, vary: bool) -> None:
    """An MP3 file whose first frame, which would count the others, is cut off."""
    mode = {"bitrate_mode": "VARIABLE"} if vary else {"bitrate_mode": "CONSTANT"}
    soundfile.write(path, samples, rate, format="MP3", compression_level=0.2, **mode)
    data = path.read_bytes()
    assert b"Xing" in data[:400] or b"Info" in data[:400]
    second = data.index(data[:2], 100)
    path.write_bytes(data[second:])


def test_mp3_without_a_length_is_read(tmp_path):
    path = tmp_path / "x.mp3"
    mp3_without_length(path, tone(4.0, 22050), 22050, vary=False)
    samples = read_audio(path, 22050)
    assert 4.0 <= samples.shape[1] / 22050 < 4.15
    spectrum = torch.fft.rfft(samples[0, 2000 : 2000 + 22050]).abs()
    assert int(spectrum.argmax()) == 440


def test_mp3_whose_beginning_promises_too_little(tmp_path, monkeypatch):
    """High bit rates at first make libsndfile's estimate too low, and it stops there without a word."""
    path = tmp_path / "x.mp3"
    generator = np.random.default_rng(0)
    loud = generator.uniform(-0.5, 0.5, 2 * 44100)
    mp3_without_length(path, np.concatenate([loud, np.zeros(8 * 44100)]), 44100, vary=True)
    with soundfile.SoundFile(path) as file:
        assert len(file.read()) < 8 * 44100, "what libsndfile reads is no longer short; the detour can go"
    if audio_io.has_av():
        assert 10.0 <= read_audio(path, RATE).shape[1] / RATE < 10.1
    monkeypatch.setattr(audio_io, "has_av", lambda: False)
    with pytest.raises(MediaError, match=r"x\.mp3: .* without its length; .*pip install 'tessera-lm\[media\]'"):
        read_audio(path, RATE)


def test_a_bomb_of_mp3_is_stopped_while_it_decodes(tmp_path):
    path = tmp_path / "x.mp3"
    mp3_without_length(path, np.zeros(RATE * 30), RATE, vary=False)
    with pytest.raises(MediaError, match="more than 5 s long, the limit is 5 s"):
        read_audio(path, RATE, limits=MediaLimits(max_seconds=5))


@pytest.mark.parametrize("extension", ["aiff", "aif"])
def test_aiff(tmp_path, extension):
    path = tmp_path / f"x.{extension}"
    samples = torch.randint(-32768, 32768, (1, 1600), generator=torch.Generator().manual_seed(0)) / 32768
    soundfile.write(path, samples[0].numpy(), RATE, format="AIFF", subtype="PCM_16")
    assert torch.equal(read_audio(path, RATE), samples)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MediaError, match="cut short, 100 bytes"):
        read_audio(path, RATE)


TRACKS = [("m4a", "aac"), ("mp4", "aac"), ("webm", "libopus"), ("wma", "wmav2"), ("mkv", "aac"), ("aac", "aac")]


@pytest.mark.parametrize("extension, codec", TRACKS)
def test_sound_tracks(tmp_path, extension, codec):
    path = tmp_path / f"x.{extension}"
    encode(path, codec, tone(1.0, 48000), 48000, demuxer={"aac": "adts", "wma": "asf"}.get(extension, ""))
    samples = read_audio(path, RATE)
    assert torch.equal(samples, read_audio(path, RATE)), "the same file gives the same samples"
    assert abs(samples.shape[1] - RATE) < 0.07 * RATE
    spectrum = torch.fft.rfft(samples[0, RATE // 4 : RATE // 4 + RATE // 2]).abs()
    assert int(spectrum.argmax()) == 220
    assert 0.2 < float(samples[0, 4000:12000].abs().max()) < 0.5
    with pytest.raises(MediaError, match="limit is 0 s"):
        read_audio(path, RATE, limits=MediaLimits(max_seconds=0.3))


def test_encoder_delay_is_trimmed(tmp_path):
    path = tmp_path / "x.m4a"
    click = np.zeros(48000)
    click[24000] = 0.9
    encode(path, "aac", click, 48000)
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 16  # the edit list: from which sample on the track is heard
    data[place : place + 4] = (1024).to_bytes(4, "big")
    path.write_bytes(data)
    assert abs(int(read_audio(path, 48000)[0].abs().argmax()) - 24000) <= 2


def test_mp4_that_is_cut_short(tmp_path):
    path = tmp_path / "x.m4a"
    av = pytest.importorskip("av")
    encode(tmp_path / "whole.m4a", "aac", tone(2.0))
    with (
        av.open(str(tmp_path / "whole.m4a")) as read,
        av.open(str(path), "w", options={"movflags": "faststart"}) as write,
    ):
        stream = write.add_stream_from_template(read.streams.audio[0])
        for packet in read.demux(read.streams.audio[0]):
            if packet.size:
                packet.stream = stream
                write.mux(packet)
    assert read_audio(path, RATE).shape[1] > 1.9 * RATE
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(MediaError, match="cut short"):
        read_audio(path, RATE)


def test_mp4_index_bomb(tmp_path):
    path = tmp_path / "x.m4a"
    encode(path, "aac", tone())
    data = bytearray(path.read_bytes())
    place = data.index(b"stsz")
    data[place + 8 : place + 12] = (1).to_bytes(4, "big")  # all samples have one byte
    data[place + 12 : place + 16] = (2**31).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(MediaError, match="its index lists 2147483648 samples"):
        read_audio(path, RATE)


def test_a_playlist_opens_no_other_file(tmp_path):
    secret = tmp_path / "secret.m4a"
    encode(secret, "aac", tone())
    for extension in ("m4a", "mp3", "webm", "aac", "avi"):
        path = tmp_path / f"x.{extension}"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")
        with pytest.raises(MediaError, match=rf"x\.{extension}: "):
            read_audio(path, RATE)


def test_without_pyav_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "x.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    with pytest.raises(MediaError, match=r"x\.m4a: reading it needs PyAV: pip install 'tessera-lm\[media\]'"):
        read_audio(tmp_path / "x.m4a", RATE)


def test_ogg_streams_in_a_row(tmp_path):
    path = tmp_path / "x.ogg"
    soundfile.write(path, tone(1.0), RATE, format="OGG")
    path.write_bytes(path.read_bytes() * 2)
    if audio_io.has_av():
        assert 1.9 * RATE < read_audio(path, RATE).shape[1] < 2.1 * RATE
    else:
        with pytest.raises(MediaError, match="tessera-lm"):
            read_audio(path, RATE)


def test_mixing_down_is_noted(tmp_path):
    notes = Notes()
    for name in ("a", "b"):
        write_audio(tmp_path / f"{name}.wav", torch.rand(2, 800) - 0.5, RATE)
        read_audio(tmp_path / f"{name}.wav", RATE, notes=notes)
        read_audio(tmp_path / f"{name}.wav", RATE, channels=2, notes=notes)
    (line,) = notes.lines()
    assert line.startswith("2 files with several channels: they are mixed down to one") and "a.wav" in line


# Pictures.


def flat(color=(250, 10, 120), size=(30, 20)) -> Image.Image:
    return Image.new("RGB", size, color)


def read(path, **more) -> torch.Tensor:
    return read_image(path, 20, 30, **more)


def close_to(picture: torch.Tensor, color) -> bool:
    wanted = torch.tensor(color) / 127.5 - 1
    return torch.allclose(picture.mean((1, 2)), wanted, atol=0.05)


def test_phone_pictures(tmp_path):
    """Multi-Picture Format: the main picture, then a thumbnail. Nothing is said: nobody misses it."""
    notes = Notes()
    flat().save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[flat((0, 255, 0), (10, 10))])
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.format == "MPO" and image.n_frames == 2
    assert close_to(read(tmp_path / "x.jpg", notes=notes), (250, 10, 120)) and not notes.lines()


@pytest.mark.parametrize("extension", ["gif", "webp", "png", "tiff"])
def test_first_of_several_pictures(tmp_path, extension):
    notes = Notes()
    for name in ("a", "b"):
        flat().save(tmp_path / f"{name}.{extension}", save_all=True, append_images=[flat((0, 255, 0))])
        assert close_to(read(tmp_path / f"{name}.{extension}", notes=notes), (250, 10, 120))
    (line,) = notes.lines()
    assert line.startswith("2 files of several images (animations, pages): the first is read")


@pytest.mark.sample(12)
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_modes_of_tiff(tmp_path, mode, channels):
    if mode == "I;16":
        image = Image.fromarray(np.full((20, 30), 65535, np.uint16))
    else:
        image = Image.new("RGB", (30, 20), "white").convert(mode)
    image.save(tmp_path / "x.tif")
    assert float(read(tmp_path / "x.tif", channels=channels).min()) > 0.97


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, orientation):
    """One bright corner comes to the top left, whichever way the camera was held."""
    places = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (-1, 0), 7: (-1, -1), 8: (0, -1)}
    pixels = np.zeros((20, 30) if orientation < 5 else (30, 20), np.uint8)
    row, column = places[orientation]
    pixels[slice(0, 4) if row == 0 else slice(-4, None), slice(0, 4) if column == 0 else slice(-4, None)] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    for extension in ("jpg", "webp", "png", "tif"):
        Image.fromarray(pixels).save(tmp_path / f"x.{extension}", exif=exif)
        assert float(read(tmp_path / f"x.{extension}", channels=1)[0, :4, :4].mean()) > 0.9, extension


def test_broken_exif_turns_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    flat().save(tmp_path / "x.jpg", exif=exif)
    data = (tmp_path / "x.jpg").read_bytes()
    place = data.index(b"Exif\0\0") + 6
    for broken in (b"MM\0*\xff\xff\xff\xff", b"\0" * 8, b"II*\0\x08\0\0\0\xff\xff"):
        (tmp_path / "x.jpg").write_bytes(data[:place] + broken + data[place + len(broken) :])
        assert read_image(tmp_path / "x.jpg", 20, 30, fit="crop").shape == (3, 20, 30)


def test_pixels_without_a_range(tmp_path):
    Image.fromarray(np.full((20, 30), 1e6, np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(MediaError, match="floating point numbers of an unknown range"):
        read(tmp_path / "x.tif")
    Image.fromarray(np.full((20, 30), 10**6, np.int32)).save(tmp_path / "y.tif")
    with pytest.raises(MediaError, match="32 bits of an unknown range"):
        read(tmp_path / "y.tif")


# Files that are none, and damage.


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)  # socket addresses are short
        server.bind("b.png")
        for path, call in ((tmp_path / "a.wav", lambda p: read_audio(p, RATE)), (tmp_path / "b.png", read)):
            done = threading.Event()
            errors: list[Exception] = []

            def attempt(path=path, call=call, done=done, errors=errors):
                try:
                    call(path)
                except MediaError as error:
                    errors.append(error)
                done.set()

            threading.Thread(target=attempt, daemon=True).start()
            assert done.wait(20), f"{path} hangs"
            assert errors and str(errors[0]).startswith(f"{path}: ")
    (tmp_path / "c.wav").symlink_to("/dev/zero")
    with pytest.raises(MediaError, match=r"c\.wav: not a file"):
        read_audio(tmp_path / "c.wav", RATE)


def test_messages_are_printable(tmp_path):
    name = os.fsdecode(b"a\xff\x1b[31m\n.wav")
    (tmp_path / name).write_bytes(b"RIFF")
    with pytest.raises(MediaError) as error:
        read_audio(tmp_path / name, RATE)
    assert str(error.value).isprintable() and "\\xff" in str(error.value).replace("\\udcff", "\\xff")
    str(error.value).encode()


def samples_of(folder, extension):
    path = folder / f"x.{extension}"
    if extension in ("wav", "flac", "ogg", "mp3", "aiff"):
        soundfile.write(path, tone(), RATE, format=extension.upper())
    elif extension in dict(TRACKS):
        encode(path, dict(TRACKS)[extension], tone(0.5, 48000), 48000, demuxer={"wma": "asf"}.get(extension, ""))
    else:
        pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, **({"compression": "tiff_lzw"} if extension == "tif" else {}))
    return path.read_bytes()


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "extension", ["wav", "flac", "ogg", "mp3", "aiff", "m4a", "webm", "wma", "png", "jpg", "gif", "tif", "webp", "bmp"]
)
def test_damage_is_a_media_error_or_an_array(tmp_path, capfd, extension):
    """Flipped, cut and blown up at 100 places: never another exception, never a word on stderr."""
    whole = samples_of(tmp_path, extension)
    path = tmp_path / f"y.{extension}"
    chance = random.Random(0)
    sound = extension in ("wav", "flac", "ogg", "mp3", "aiff", *dict(TRACKS))
    refused = 0
    for number in range(100):
        data = bytearray(whole)
        if number % 4 == 0:
            data = data[: len(data) * number // 100]
        else:
            for _ in range(chance.choice((1, 2, 8))):
                data[chance.randrange(min(len(data), chance.choice((64, 600, 10**9))))] = chance.choice(
                    (0, 127, 128, 255)
                )
        path.write_bytes(data)
        try:
            found = read_audio(path, RATE) if sound else read_image(path, 20, 30, fit="stretch")
        except MediaError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ") and str(error).isprintable() and len(str(error)) < 500
        else:
            assert found.numel() and bool(found.isfinite().all()) and float(found.abs().max()) <= 1
    assert refused >= 10
    assert capfd.readouterr() == ("", "")
