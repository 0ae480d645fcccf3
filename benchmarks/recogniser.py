"""An outside listener for spoken digit strings: pocketsphinx with a digit grammar, and word counts by edit distance."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

GRAMMAR = """#JSGF V1.0;
grammar digits;
public <string> = <digit>+;
<digit> = zero | one | two | three | four | five | six | seven | eight | nine;
"""
SAMPLE_RATE = 16000


class DigitRecogniser:
    """Hears digit words in 16 kHz mono samples. Its acoustic model comes inside the pocketsphinx package."""

    def __init__(self):
        from pocketsphinx import Decoder

        with tempfile.TemporaryDirectory() as folder:
            grammar = Path(folder) / "digits.jsgf"
            grammar.write_text(GRAMMAR)
            self.decoder = Decoder(jsgf=str(grammar), samprate=SAMPLE_RATE, loglevel="FATAL")

    def words(self, samples: np.ndarray) -> list[str]:
        """Words heard in samples [N], float in [-1, 1]; half a second of faint noise is put before and after."""
        noise = np.random.default_rng(0)
        silence = [noise.normal(0, 1e-3, SAMPLE_RATE // 2) for _ in range(2)]
        sound = np.concatenate([silence[0], samples + noise.normal(0, 1e-3, len(samples)), silence[1]])
        self.decoder.start_utt()
        self.decoder.process_raw((np.clip(sound, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
        self.decoder.end_utt()
        heard = self.decoder.hyp()
        return heard.hypstr.split() if heard else []


def hits(spoken: list[str], heard: list[str]) -> int:
    """Words of `spoken` that were heard, in order: the hits of the alignment behind the word error rate."""
    import jiwer

    return jiwer.process_words(" ".join(spoken), " ".join(heard)).hits if heard else 0
