"""The frozen tokenizer: codes never depend on company, padding or the caller's precision."""

import pytest
import torch

from tessera.tokenize.audio.networks import AudioStackConfig, AudioTokenizerConfig
from tessera.tokenize.audio.streaming import StagesStream, window_stage
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.layers.stft import frame_signal, inverse_spectrum
from tessera.tokenize.quantizers.registry import FSQConfig, ResidualConfig, ScalesConfig, StrideConfig, VQConfig
from tessera.tokenize.spec import check_same_tokenizer
from tessera.tokenize.tokenizer import load_tokenizer, make_tokenizer

RVQ = ResidualConfig(levels=3, quantizer=VQConfig(size=16))


def audio_config(causal=False, quantizer=RVQ, hop=16, window=64):
    stack = AudioStackConfig(width=16, layers=2, kernel=3, causal=causal, chunk=5)
    return AudioTokenizerConfig(
        name="tiny-audio",
        sample_rate=800,
        hop=hop,
        window=window,
        latent_dim=8,
        encoder=stack,
        decoder=stack,
        quantizer=quantizer,
    )


def picture_config(quantizer=RVQ):
    return ImageTokenizerConfig(
        name="tiny-picture", height=8, width=12, channels=3, features=8, blocks=1, latent_dim=8, quantizer=quantizer
    )


def tiny(config, seed=0):
    torch.manual_seed(seed)
    return make_tokenizer(config)


AUDIO = {
    "rvq": audio_config(),
    "causal": audio_config(causal=True),
    "fsq": audio_config(quantizer=FSQConfig(levels=(5, 4, 3))),
    "strided": audio_config(quantizer=StrideConfig(every=5, quantizer=VQConfig(size=16))),
    "odd-hop": audio_config(hop=15, window=64),
}


@pytest.mark.parametrize("config", AUDIO.values(), ids=AUDIO.keys())
def test_audio_codes_do_not_depend_on_batch_padding_or_autocast(config):
    tokenizer = tiny(config)
    torch.manual_seed(1)
    lengths = torch.tensor([1, 333, 80, 500])
    media = torch.randn(4, 1, 500)
    together = tokenizer.encode(media, lengths)
    assert together.codes.shape == (4, tokenizer.spec.num_codebooks, -(-500 // config.hop))
    assert together.lengths.tolist() == [-(-int(n) // config.hop) for n in lengths]
    for row, length in enumerate(lengths.tolist()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            alone = tokenizer.encode(media[row : row + 1, :, :length])
        frames = int(together.lengths[row])
        assert torch.equal(alone.codes[0], together.codes[row, :, :frames])
        assert not together.codes[row, :, frames:].any()


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        (StrideConfig(every=2, quantizer=VQConfig(size=4)), "span 2 frames; choose a chunk that is a multiple of 2"),
        (ScalesConfig(sizes=((1, 4),), quantizer=VQConfig(size=4)), "span all frames; quantize frame by frame"),
    ],
)
def test_codes_that_windows_would_cut_are_refused(quantizer, message):
    with pytest.raises(ValueError, match=message):
        make_tokenizer(audio_config(quantizer=quantizer))


def test_a_causal_stream_starts_after_chunk_and_overlap():
    tokenizer = tiny(audio_config(causal=True))
    stream, codes = tokenizer.stream_decoder(), torch.zeros(3, 1, dtype=torch.long)
    silent = 0
    while stream.push(codes).shape[1] == 0:
        silent += 1
    assert silent + 1 == stream.delay == 5 + 2


@pytest.mark.parametrize("config", AUDIO.values(), ids=AUDIO.keys())
def test_windows_compute_what_one_pass_over_everything_computes(config):
    """The slow obvious way: no windows at all. Equal up to how kernels round by shape."""
    tokenizer = tiny(config)
    net, frames = tokenizer.net, 17
    codes = torch.stack([torch.randint(0, n, (frames,)) for n in tokenizer.spec.cardinalities])
    mask = torch.ones(1, frames, dtype=torch.bool)
    whole = net.decode_latents(tokenizer.quantizer.decode(codes.T[None]), mask)
    assert torch.allclose(tokenizer.decode(codes[None])[0], whole, atol=1e-4)
    samples = torch.randn(frames * config.hop)
    latents = net.encode_samples(samples[None], mask)[0]
    windowed = StagesStream(net.encoder.stages(), config.encoder.chunk).run(net.encoder.frame(samples))
    assert torch.allclose(latents, windowed, atol=1e-4)


def test_decode_of_a_batch_with_lengths_is_each_alone():
    tokenizer = tiny(audio_config())
    codes, lengths = torch.randint(0, 16, (3, 3, 12)), torch.tensor([12, 0, 7])
    together = tokenizer.decode(codes, lengths)
    assert torch.equal(together[2, :, : 7 * 16], tokenizer.decode(codes[2:, :, :7])[0])
    assert not together[1].any() and not together[2, :, 7 * 16 :].any()


@pytest.mark.parametrize("quantizer", [RVQ, VQConfig(size=16), FSQConfig(levels=(4, 4))], ids=["rvq", "vq", "fsq"])
def test_picture_codes_do_not_depend_on_batch_or_autocast(quantizer):
    tokenizer = tiny(picture_config(quantizer))
    pictures = torch.rand(5, 3, 8, 12) * 2 - 1
    encoded = tokenizer.encode(pictures)
    assert encoded.codes.shape == (5, tokenizer.spec.num_codebooks, 4 * 6) and encoded.lengths.tolist() == [24] * 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.encode(pictures[3:4]).codes[0], encoded.codes[3])
        alone = tokenizer.decode(encoded.codes[3:4])
    decoded = tokenizer.decode(encoded.codes)
    assert decoded.shape == pictures.shape and torch.equal(decoded[3:4], alone) and float(decoded.abs().max()) <= 1


@pytest.mark.parametrize(
    "config", [audio_config(), picture_config(), audio_config(quantizer=FSQConfig(levels=(5, 4, 3)))]
)
def test_saved_and_loaded_is_the_same_tokenizer(tmp_path, config):
    tokenizer = tiny(config)
    tokenizer.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "tokenizer.safetensors"]
    loaded = load_tokenizer(tmp_path)
    assert loaded.spec == tokenizer.spec
    shape = (2, 1, 300) if config.kind == "audio" else (2, 3, 8, 12)
    media = torch.rand(shape) * 2 - 1
    codes = tokenizer.encode(media).codes
    assert torch.equal(loaded.encode(media).codes, codes)
    assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))
    assert torch.allclose(loaded.embed(codes), loaded.quantizer.decode(codes.transpose(1, 2)).transpose(1, 2))


def test_the_fingerprint_is_of_weights_and_config(tmp_path):
    first, second = tiny(audio_config(), 0), tiny(audio_config(), 1)
    assert first.spec.fingerprint != second.spec.fingerprint
    with pytest.raises(ValueError, match=r"shards x: codes of tokenizer 'tiny-audio' .* encode the media again"):
        check_same_tokenizer(first.spec, second.spec, "shards x")
    first.save(tmp_path)
    weights = tmp_path / "tokenizer.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-3] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(ValueError, match="changed or damaged"):
        load_tokenizer(tmp_path)


def test_weights_of_another_config_are_refused(tmp_path):
    tiny(audio_config()).save(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"width": 16', '"width": 24'))
    with pytest.raises(ValueError, match=r"tensor '.*' is .* the config asks for"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="no tokenizer here"):
        load_tokenizer(tmp_path / "missing")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda t: t.encode(torch.zeros(1, 2, 100)), r"must be \[B, 1, N\]"),
        (lambda t: t.encode(torch.zeros(1, 1, 100), torch.tensor([0])), "between 1 and 100"),
        (lambda t: t.encode(torch.zeros(2, 1, 100), torch.tensor([1])), "lengths must be 2 numbers"),
        (lambda t: t.encode(torch.full((1, 1, 100), float("nan"))), "NaN"),
        (lambda t: t.decode(torch.zeros(1, 4, 5, dtype=torch.long)), "has 4 codebooks but|codes have 4 codebooks"),
        (lambda t: t.decode(torch.full((1, 3, 5), 16)), "range from 16 to 16"),
        (lambda t: t.decode(torch.zeros(1, 3, 5)), "must be long"),
    ],
)
def test_bad_input_has_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny(audio_config()))


def test_frames_that_do_not_exist_leave_no_trace():
    """A spectrum inverted under a mask equals the inverse of the existing frames alone."""
    torch.manual_seed(0)
    window, hop = torch.hann_window(64), 16
    spectrum = torch.randn(1, 9, 33, dtype=torch.complex64)
    mask = torch.arange(9)[None] < 6
    full = inverse_spectrum(spectrum, mask, window, hop)
    assert torch.allclose(full[:, : 6 * hop], inverse_spectrum(spectrum[:, :6], mask[:, :6], window, hop), atol=1e-6)


def test_spectrum_and_inverse_return_the_signal():
    window, hop = torch.hann_window(64), 16
    samples = torch.randn(2, 12 * hop)
    frames = frame_signal(samples, 64, hop)
    assert frames.shape == (2, 12, 64)
    back = inverse_spectrum(torch.fft.rfft(frames * window), torch.ones(2, 12, dtype=torch.bool), window, hop)
    assert torch.allclose(back, samples, atol=1e-5)


def test_windows_cover_every_frame_once():
    frames = torch.arange(1, 14.0)[:, None]
    for chunk, back, ahead in ((4, 0, 0), (4, 3, 2), (20, 1, 1)):
        stage = window_stage(lambda w, m: w * m[..., None], back, ahead)
        assert torch.equal(StagesStream([stage, stage], chunk).run(frames), frames)
