"""Tiny models of text and audio in one sequence, and sequences that fit them."""

import itertools
from dataclasses import replace

import torch
from small_models import CONDITIONS, cardinalities_for, make_codes, make_conditions, make_lm

from tessera.lm.config import LMConfig
from tessera.lm.heads.bits import BitsHeadConfig
from tessera.lm.heads.depth_transformer import DepthHeadConfig, FactorHeadConfig, RopePositionsConfig
from tessera.lm.heads.parallel import ParallelHeadConfig
from tessera.lm.layers.input_embedding import (
    BitsInputConfig,
    CodesInputConfig,
    EmbeddingInputConfig,
    FactorInputConfig,
    NoisyInputConfig,
)
from tessera.lm.ops.rotary import SinusoidalConfig, TimeRopeConfig
from tessera.lm.patterns.pattern import DelayConfig, ParallelConfig, SpecialsConfig
from tessera.lm.patterns.text_stream import TextStreamConfig
from tessera.tokenize.text.byte_text import ByteTextConfig

NUM_IDS = 11

ARRANGEMENTS = {
    "parallel": ParallelConfig(),
    "delay": DelayConfig(),
    "text beside the first codebook": DelayConfig(delays=(0, 0, 1, 2)),
    "text well ahead": DelayConfig(delays=(0, 3, 4, 4)),
    "all late": DelayConfig(delays=(1, 2, 1, 3)),
}
HEADS = {
    "parallel": (ParallelHeadConfig(), EmbeddingInputConfig()),
    "depth": (DepthHeadConfig(layers=1, heads=2), NoisyInputConfig()),
    "depth behind backbone": (
        DepthHeadConfig(width=16, layers=1, heads=4, first="backbone", input="codes"),
        CodesInputConfig(),
    ),
    "depth with rope": (
        DepthHeadConfig(
            width=16, layers=1, heads=2, first="backbone", input="backbone", positions=RopePositionsConfig()
        ),
        EmbeddingInputConfig(),
    ),
    "factor": (FactorHeadConfig(sizes=(2, 3), layers=1, heads=2), FactorInputConfig(sizes=(3, 2))),
    "bits": (BitsHeadConfig(groups=2), BitsInputConfig()),
}
SPECIALS = (SpecialsConfig(), SpecialsConfig(absent=2), SpecialsConfig(start=0, pad=0, end=2, after="end"))
SOME_CONDITIONS = ("nothing", "label prefix", "label sum", "codes prefix", "embedding cross", "melody")
STREAMS = ({}, {"positions": "shared"}, {"predict": "end"}, {"loss": "all"})

# Every pattern with every head; the other choices go round.
CASES = {
    f"{arrangement}, {head}": dict(
        arrangement=ARRANGEMENTS[arrangement],
        head=HEADS[head][0],
        input=HEADS[head][1],
        specials=SPECIALS[i % 3],
        conditions=CONDITIONS[SOME_CONDITIONS[i % 6]],
        rope=SinusoidalConfig() if i % 7 == 3 else TimeRopeConfig(),
        start="condition" if i % 6 == 1 else "token",
        window=4 if i % 4 == 2 else None,
        kv_heads=2 if i % 5 == 4 else None,
        text_stream=STREAMS[i % 4],
    )
    for i, (arrangement, head) in enumerate(itertools.product(ARRANGEMENTS, HEADS))
}

# The end is a frame of zeros, whose codes are chosen one after another.
CASES |= {
    f"end frame, {head}": dict(
        head=HEADS[head][0],
        input=HEADS[head][1],
        conditions=CONDITIONS[conditions],
        kv_heads=2,
        text_stream={"predict": "none"} | settings,
    )
    for head, conditions, settings in (
        ("depth", "label prefix", {}),
        ("depth with rope", "nothing", {"empty": "zero"}),
    )
}


def make_config(text_stream=None, **settings) -> LMConfig:
    stream = TextStreamConfig(text=ByteTextConfig(), vocab_size=NUM_IDS, **(text_stream or {}))
    values = {"width": 32, "layers": 2, "heads": 4, "variable_length": True, "arrangement": ParallelConfig()}
    return LMConfig(**(values | settings), text_stream=stream)


def make_model(text_stream=None, seed=0, **settings):
    return make_lm(make_config(text_stream, **settings), seed)


def make_prompts(lm, task, count, seed=0):
    """The beginnings [K + 1, S] of sequences: texts to speak, some with frames after them, frames to write down, or for
    task None either, or nothing. Their lengths differ."""
    generator = torch.Generator().manual_seed(seed)
    prompts, stream = [], lm.text_stream
    for b in range(count):
        text = torch.randint(NUM_IDS, (1 + (3 * b + seed) % 5,), generator=generator)
        codes = make_codes(1, 1 + (2 * b + seed) % 4, cardinalities_for(lm.config), seed + 50 + b)[0]
        kind = task or ("speak", "write", "nothing")[b % 3]
        if kind == "speak":
            prompts.append(stream.speak(text, codes[:, : b % 2]))
        else:
            prompts.append(stream.write(codes[:, : None if kind == "write" else 0], text[: b % 2 if task else 0]))
    return prompts


def make_sequences(lm, count, seed=0):
    """Codes [B, K + 1, P] of texts and frames in random order and of random length, their lengths and given positions.

    With shared positions some rows have text beside their frames.
    """
    generator = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    rows, given, sizes = [], [], cardinalities_for(lm.config)
    for b in range(count):
        text = torch.randint(NUM_IDS, (number(1, 5),), generator=generator)
        codes = make_codes(1, number(1, 6), sizes, seed + 100 + b)[0]
        speaks = bool(number(0, 1)) or lm.config.text_stream.predict != "text"
        rows.append(lm.text_stream.speak(text, codes) if speaks else lm.text_stream.write(codes, text))
        given.append(len(text) if speaks else codes.shape[1])
        if lm.config.text_stream.positions == "shared" and number(0, 2):
            beside = lm.text_stream.speak([], codes)
            has_text = torch.rand(codes.shape[1], generator=generator) < 0.5
            beside[0][has_text] = torch.randint(NUM_IDS, (int(has_text.sum()),), generator=generator)
            rows[-1] = torch.cat([rows[-1], beside], dim=1)
    lengths = torch.tensor([row.shape[1] for row in rows])
    codes = torch.zeros(count, len(sizes) + 1, int(lengths.max()), dtype=torch.long)
    for place, row in zip(codes, rows, strict=True):
        place[:, : row.shape[1]] = row
    return codes, lengths, torch.tensor(given)


def make_all(case, count=4, seed=0):
    """A model of a case, sequences, their lengths, and conditions with the given positions."""
    lm = make_model(**case, seed=seed)
    codes, lengths, given = make_sequences(lm, count, seed)
    conditions = make_conditions(lm.config, count)
    return lm, codes, lengths, replace(conditions, given=given)
