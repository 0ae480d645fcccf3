"""Voices of flite (Debian: apt install flite; CMU licence), with the end of each phoneme as flite prints it.

The units are those of the text front end, so that all voices are asked for in one alphabet; flite's phonemes are
matched to them, and a text that flite pronounces otherwise is left out.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from .alignment import (
    ARPABET,
    FRAME_SECONDS,
    Alignment,
    fit_boundaries,
    is_silent,
    join_silence,
    match_pronunciations,
    split_units,
    unit_name,
)
from .hibari_voice import HOP, SAMPLE_RATE, trim

FLITE_VOICES = ("slt", "rms", "awb")
MAX_COST = 0.15
"""Largest cost per phoneme of the match with the front end."""
LEVEL_DB = -20.0
"""Level of the speech, of full scale, as that of the voice "heart"."""


def speak_flite(text: str, phonemes: str, voice: str) -> tuple[np.ndarray, Alignment] | None:
    """Samples [N], float, and their units; None if flite pronounces the text otherwise than `phonemes`.

    Raises:
        FileNotFoundError: flite is not installed. ValueError: it failed.
    """
    import torch

    from ...tokenize.audio.resample import resample
    from ...tokenize.data.media import read_audio

    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "spoken.wav"
        try:
            done = subprocess.run(
                ["flite", "-voice", voice, "-psdur", "-o", str(wav), "-t", f" {text} "],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        except FileNotFoundError:
            raise FileNotFoundError("flite is not installed; on Debian: apt install flite") from None
        if done.returncode != 0 or not wav.exists():
            raise ValueError(f"flite failed on '{text}': {done.stderr.strip()}")
        spoken = read_audio(wav, 16000)
    samples = resample(spoken, 16000, SAMPLE_RATE)[0].to(torch.float32).numpy()
    samples = np.pad(samples, (0, -len(samples) % HOP))
    placed = place_phonemes(phonemes, parse_segments(done.stdout), len(samples) // HOP)
    trimmed = None if placed is None else trim(samples * gain(samples), placed)
    return trimmed


def parse_segments(printed: str) -> list[tuple[str, float]]:
    """Phonemes and their ends in seconds, from "pau:0.164 hh:0.255 ..."; "er" becomes a vowel and ɹ."""
    segments, start = [], 0.0
    for name, end in re.findall(r"([a-z]+):([0-9.]+)", printed):
        symbols = "" if name == "pau" else ARPABET[name]
        cut = start + 0.6 * (float(end) - start)
        segments += [(symbols[0], cut), (symbols[1], float(end))] if len(symbols) == 2 else [(symbols, float(end))]
        start = float(end)
    return segments


def place_phonemes(phonemes: str, segments: list[tuple[str, float]], total: int) -> Alignment | None:
    """Units of a phoneme string with the frames of flite's phonemes; None if the two do not match.

    Args:
        segments: phoneme, "" for a pause, and its end in seconds. total: frames of the audio.
    """
    groups = split_units(phonemes)
    if groups is None:
        return None
    units = [unit_name(phonemes, group) for group in groups]
    speech = [place for place, unit in enumerate(units) if not is_silent(unit)]
    heard = [place for place, (symbol, _) in enumerate(segments) if symbol]
    cost, pairs = match_pronunciations([segments[place][0] for place in heard], [units[place] for place in speech])
    if cost > MAX_COST:
        return None
    starts = [0.0, *(end for _, end in segments)]
    ends = [0.0] * len(units)
    reached = starts[heard[0]]
    ends[: speech[0]] = [reached] * speech[0]
    for number, place in enumerate(speech):
        pair = pairs[number]
        if pair is not None:
            begins = starts[heard[pair]]
            if begins > reached and is_silent(units[place - 1]):  # a pause; other gaps belong to the phoneme before
                ends[place - 1] = begins
            elif number:
                ends[speech[number - 1]] = begins
            reached = segments[heard[pair]][1]
        ends[place] = reached
        following = speech[number + 1] if number + 1 < len(speech) else len(units)
        ends[place + 1 : following] = [reached] * (following - place - 1)
    whole = [min(total, round(end / FRAME_SECONDS)) for end in ends]
    whole[-1] = total
    whole = np.maximum.accumulate(whole).tolist()
    return join_silence(units, fit_boundaries(whole, [not is_silent(unit) for unit in units]))


def gain(samples: np.ndarray) -> float:
    """Factor that brings the louder frames to LEVEL_DB, without clipping."""
    power = np.square(samples.reshape(-1, HOP)).mean(1)
    loud = power[power > 0.01 * power.max()].mean()
    return float(min(10 ** (LEVEL_DB / 20) / np.sqrt(loud), 0.98 / np.abs(samples).max()))
