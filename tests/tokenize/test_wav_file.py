"""A WAV file written in chunks is the one that is written at once."""

import io

import pytest
import soundfile
import torch

from tessera.tokenize.audio.wav_writer import WavWriter
from tessera.tokenize.data.media import write_audio


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("sizes", [[], [1], [3, 1, 5], [100, 7]])
def test_chunks_make_the_file_that_is_written_at_once(tmp_path, channels, sizes):
    torch.manual_seed(len(sizes))
    chunks = [torch.randn(channels, size) for size in sizes]
    with (tmp_path / "a.wav").open("wb") as file:
        writer = WavWriter(file, 8000, channels)
        for chunk in chunks:
            writer.write(chunk)
        writer.finish()
    write_audio(tmp_path / "b.wav", torch.cat([torch.zeros(channels, 0), *chunks], dim=1), 8000)
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    assert writer.num_samples == sum(sizes)


def test_a_pipe_gets_samples_as_they_come_and_no_sizes():
    pipe = io.BytesIO()
    pipe.seek = None  # type: ignore[method-assign]
    writer = WavWriter(pipe, 8000, seekable=False)
    writer.write(torch.tensor([[0.5, -0.25, 1.5]]))
    assert pipe.getvalue()[44:] == b"\x00\x40\x00\xe0\xff\x7f"
    writer.finish()
    assert pipe.getvalue()[4:8] == pipe.getvalue()[40:44] == b"\xff" * 4
    samples, rate = soundfile.read(io.BytesIO(pipe.getvalue()))
    assert rate == 8000 and samples.tolist() == [0.5, -0.25, 32767 / 32768]


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"samples must be \[1, n\], found \[2, 3\]"):
        WavWriter(io.BytesIO(), 8000).write(torch.zeros(2, 3))
