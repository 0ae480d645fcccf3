"""The voice "heart" of hibari-tts (PyPI, Apache-2.0; distilled from Kokoro-82M), with the duration of each phoneme.

The model's graph rounds the duration of each input symbol to frames of 25 ms and repeats its vector that often; that
tensor becomes an output here. Phonemes are heard `LEAD` frames before the graph places them: with that shift, one
Gaussian per phoneme fits the log-mel frames of 300 sentences best.
"""

from __future__ import annotations

import re

import numpy as np

from .alignment import MARKS, Alignment, fit_boundaries, is_silent, join_silence, split_units, unit_name

SAMPLE_RATE, HOP = 24000, 600
LEAD = 2
SILENCE_DB = -52.0
"""Level, of full scale, below which a frame at an end of the audio is silence."""
START_FRAMES, END_FRAMES = 4, 6
"""Silence kept at the ends."""
SHORT_GAP = 3
"""A boundary of words without a mark of at most so many frames is no pause: its neighbors share them."""
DURATIONS = "/Clip_output_0"
INSTALL = "the voice 'heart' needs hibari-tts and onnx: pip install hibari-tts onnx"


class HibariVoice:
    """The synthesizer. Raises ImportError with the command that installs it."""

    def __init__(self):
        try:
            import onnx  # pyright: ignore[reportMissingImports]
            import onnxruntime  # pyright: ignore[reportMissingImports]
            from hibari import Hibari, dsp  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(f"{INSTALL} ({error})") from None
        self.hibari, self.dsp = Hibari(), dsp
        model = onnx.load(self.hibari.model_path)
        if not any(DURATIONS in node.output for node in model.graph.node):
            raise ImportError(f"this version of hibari-tts has no tensor {DURATIONS}; pip install hibari-tts==0.2.1")
        model.graph.output.append(onnx.helper.make_tensor_value_info(DURATIONS, onnx.TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def phonemes(self, text: str) -> str | None:
        """Phonemes of a text; None if a character is not read, or the text is too long for one call."""
        found = re.sub(r"\s+([.,?!;:…])", r"\1", " ".join(self.hibari.phonemize(text))).strip()
        return found if found and split_units(found) and len(found) <= 380 and found[0] not in MARKS else None

    def speak(self, text: str, seed: int) -> tuple[np.ndarray, Alignment] | None:
        """Samples [N], float, N a multiple of HOP, and their units; None if the text is not read cleanly."""
        phonemes = self.phonemes(text)
        if phonemes is None or len(self.hibari.ids(phonemes)) != len(phonemes) + 2:
            return None
        ids = np.asarray([self.hibari.ids(phonemes)], np.int64)
        *spectra, durations = self.session.run(None, {"ids": ids, "speed": np.ones(1, np.float32)})
        samples = self.dsp.synth(*(part[0] for part in spectra), np.random.default_rng(seed))
        frames = durations.reshape(-1).astype(int)
        assert len(samples) == HOP * frames.sum(), (len(samples), frames.sum())
        return trim(samples, place_units(phonemes, frames))


def place_units(phonemes: str, durations: np.ndarray) -> Alignment:
    """Units of a phoneme string from the frames of its characters and of the pads at both ends, LEAD frames earlier.

    Args:
        durations: [len(phonemes) + 2] integers.
    """
    groups = split_units(phonemes)
    assert groups is not None
    inner = durations[1:-1]
    counts = [durations[0], *(inner[group].sum() for group in groups[1:-1]), durations[-1]]
    units = [unit_name(phonemes, group) for group in groups]
    ends = np.cumsum(counts)
    ends[:-1] = np.maximum(ends[:-1] - LEAD, 0)
    for place in range(1, len(units) - 1):  # a short gap between words goes to its neighbors
        alone = units[place] == "|" and not is_silent(units[place - 1]) and not is_silent(units[place + 1])
        if alone and counts[place] <= SHORT_GAP:
            ends[place - 1] = ends[place] = (ends[place - 1] + ends[place]) // 2
    frames = fit_boundaries(ends.tolist(), [not is_silent(unit) for unit in units])
    return join_silence(units, frames)


def trim(samples: np.ndarray, alignment: Alignment) -> tuple[np.ndarray, Alignment] | None:
    """Cut silent frames at both ends down to START_FRAMES and END_FRAMES; the silence belongs to silent units.

    None: the audio is silent.
    """
    level = 10 * np.log10(np.square(samples.reshape(-1, HOP)).mean(1) + 1e-12)
    (loud,) = np.nonzero(level > SILENCE_DB)
    if not len(loud):
        return None
    ends = np.cumsum(alignment.frames)
    sounding = [not is_silent(unit) for unit in alignment.units]
    first, last = sounding.index(True), len(sounding) - 1 - sounding[::-1].index(True)
    begin = min(int(loud[0]), ends[first] - 1)  # the first phoneme begins where something is heard
    done = max(int(loud[-1]) + 1, ends[last - 1] + 1)
    start, stop = max(0, begin - START_FRAMES), min(len(level), done + END_FRAMES)
    ends[:first], ends[last], ends[last + 1 :] = begin, done, stop
    if len(ends) - last > 2:  # a mark, then a boundary
        ends[last + 1] = done + (stop - done) // 2
    frames = fit_boundaries((ends - start).tolist(), sounding)
    return samples[start * HOP : stop * HOP], Alignment(alignment.units, tuple(frames))
