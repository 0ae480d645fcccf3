"""The presets against the drawings and tables of the projects they are named after."""

import random

import pytest
import torch

from tessera.configs.schema import ConfigError, check_config
from tessera.lm.config import LMConfig
from tessera.lm.models.causal import TokenLM
from tessera.lm.models.masked import MaskedConfig
from tessera.lm.models.next_scale import NextScaleConfig
from tessera.lm.patterns.pattern import UNKNOWN_LENGTH, CodebookPattern, DelayConfig, ParallelConfig, SpecialsConfig
from tessera.lm.patterns.presets import PRESETS
from tessera.tokenize.spec import AudioGeometry, TokenSpec

# audiocraft's patterns for T = 4, their leading column included: 10 k + t + 1 in a cell, S for the special id.
DRAWINGS = {
    "musicgen": """S  1  2  3  4  S  S
                   S  S 11 12 13 14  S
                   S  S  S 21 22 23 24""",
    "partial-delay": """S  1  2  3  4  S
                        S  S 11 12 13 14
                        S  S 21 22 23 24""",
    "parallel": """S  1  2  3  4
                   S 11 12 13 14
                   S 21 22 23 24""",
    "delay-flatten-first": """S  1  S  S  2  3  4  S  S
                              S  S 11  S  S 12 13 14  S
                              S  S  S 21  S  S 22 23 24""",
    "flat": """S  1  S  S  2  S  S  3  S  S  4  S  S
               S  S 11  S  S 12  S  S 13  S  S 14  S
               S  S  S 21  S  S 22  S  S 23  S  S 24""",
    "partial-flat": """S  1  S  2  S  3  S  4  S
                       S  S 11  S 12  S 13  S 14
                       S  S 21  S 22  S 23  S 24""",
    "coarse-first": """S  1  2  3  4  S  S  S  S
                       S  S  S  S  S 11 12 13 14
                       S  S  S  S  S 21 22 23 24""",
    "musiclm": """S  1  S  2  S  3  S  4  S  S  S  S  S  S  S  S  S
                  S  S 11  S 12  S 13  S 14  S  S  S  S  S  S  S  S
                  S  S  S  S  S  S  S  S  S 21  S 22  S 23  S 24  S
                  S  S  S  S  S  S  S  S  S  S 31  S 32  S 33  S 34""",
    "musicgen-stereo": """S  1  2  3  4  S
                          S 11 12 13 14  S
                          S  S 21 22 23 24
                          S  S 31 32 33 34""",
    "musicgen-stereo-per-timestep": """S  1  S  2  S  3  S  4  S  S
                                       S  S 11  S 12  S 13  S 14  S
                                       S  S 21  S 22  S 23  S 24  S
                                       S  S  S 31  S 32  S 33  S 34""",
}


def rows_of(drawing: str, special: int) -> list[list[int]]:
    lines = [line.split() for line in drawing.strip().splitlines()]
    return [[special if cell == "S" else int(cell) - 1 for cell in line] for line in lines]


def make_codes(K: int, T: int, V: int = 40) -> torch.Tensor:
    return torch.randint(V, (1, K, T), generator=torch.Generator().manual_seed(K * 100 + T))


def with_start(name: str, codes: torch.Tensor, V: int = 40) -> tuple[CodebookPattern, list[list[int]]]:
    """What the model reads and predicts in the end: the column of start, then the arranged ids."""
    K = codes.shape[1]
    config, specials, variable = PRESETS[name](K)
    arrangement = CodebookPattern(config, (V,) * K, variable, specials)
    start = torch.tensor(arrangement.start_ids)[None, :, None]
    return arrangement, torch.cat([start, arrangement.arrange(codes).ids], dim=2)[0].tolist()


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawings_of_audiocraft(name):
    expected = rows_of(DRAWINGS[name], special=40)
    codes = torch.tensor([[[10 * k + t for t in range(4)] for k in range(len(expected))]])
    arrangement, found = with_start(name, codes)
    assert found == expected
    assert arrangement.input_sizes == (41,) * len(expected) and arrangement.output_sizes == (40,) * len(expected)


def test_a_drawing_kept_to_the_steps_that_are_trained():
    """The first T + 1 columns of the delay pattern are what audiocraft trains on."""
    found = with_start("musicgen", torch.tensor([[[10 * k + t for t in range(4)] for k in range(3)]]))[1]
    assert [row[:5] for row in found] == rows_of("S 1 2 3 4\nS S 11 12 13\nS S S 21 22", special=40)


@pytest.mark.parametrize(("K", "max_length"), [(4, 10), (4, 257), (3, 8), (8, 30)])
def test_delay_mask_of_transformers(K, max_length):
    """Row k of MusicGen's mask: pad in columns 0 .. k and in the last K - 1 - k, with T = max_length - K."""
    found = with_start("musicgen", make_codes(K, max_length - K, 40))[1]
    for k, row in enumerate(found):
        assert len(row) == max_length
        assert [s for s, id in enumerate(row) if id == 40] == [
            *range(k + 1),
            *range(max_length - (K - 1 - k), max_length),
        ]


def test_stereo_in_time_is_delay_at_twice_the_rate():
    """audiocraft lays channels out in time, [B, Q, 2 T]: the same codes in the same steps."""
    Q, T = 3, 5
    codes = make_codes(2 * Q, T)
    in_time = codes.view(1, Q, 2, T).transpose(2, 3).reshape(1, Q, 2 * T)
    two = with_start("musicgen-stereo-per-timestep", codes)[1]
    one = with_start("musicgen", in_time)[1]
    assert len(two[0]) == len(one[0])
    for s in range(len(one[0])):
        for q in range(Q):
            assert [row[s] for row in two[2 * q : 2 * q + 2] if row[s] != 40] == [one[q][s]][: one[q][s] != 40]


# Preset, codebooks, delays, V, ids.
TABLE = [
    ("higgs-v2", 8, [*range(8)], 1024, {"start": 1024, "before": 1024, "end": 1025, "after": 1025}),
    ("zonos", 9, [*range(9)], 1024, {"start": 1025, "before": 1025, "end": 1024, "after": 1025}),
    ("dia", 9, [0, *range(8, 16)], 1024, {"start": 1026, "before": 1026, "end": 1024, "after": 1025}),
    ("parler", 9, [*range(9)], 1024, {"start": 1025, "before": 1025, "end": 1024, "after": 1024}),
    ("musicgen", 4, [*range(4)], 2048, {"start": 2048, "before": 2048, "end": None, "after": 2048}),
    ("moss-tts-delay", 32, [*range(32)], 1024, {"start": 1024, "before": 1024, "end": None, "after": 1024}),
    ("moshi", 17, [0, 0, *[1] * 7, 0, *[1] * 7], 2048, {"start": 2048, "before": 2048, "end": None, "after": 2048}),
    ("moshi-stream", 8, [0, *[1] * 7], 2048, {"start": 2048, "before": 2048, "end": None, "after": 2048}),
]


@pytest.mark.parametrize(("name", "K", "delays", "V", "ids"), TABLE, ids=[row[0] for row in TABLE])
def test_delays_and_fills_of_the_projects(name, K, delays, V, ids):
    T, codes = 5, torch.full((1, K, 5), 7)
    arrangement, found = with_start(name, codes, V)
    frames = T if ids["end"] is None else T + 1
    for k, row in enumerate(found):
        end = [] if ids["end"] is None else [ids["end"]]
        behind = [ids["after"]] * (max(delays) - delays[k])
        assert row == [ids["start"]] + [ids["before"]] * delays[k] + [7] * T + end + behind
    assert len(found[0]) == 1 + frames + max(delays)
    assert max(max(row) for row in found) < min(arrangement.input_sizes)
    assert arrangement.variable_length == (ids["end"] is not None)


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.variable_length])
def test_cascade_of_ends(name):
    """Codebook 0 draws its end at step s: codebook k has its own at s + delay_k and is filled up after that."""
    rng = random.Random(0)
    for _ in range(20):
        K, s = rng.randint(1, 9), rng.randint(0, 6)
        config, specials, variable = PRESETS[name](K)
        arrangement = CodebookPattern(config, (64,) * K, variable, specials)
        delays = arrangement.steps_of(torch.zeros(1, dtype=torch.long))[:, 0].tolist()
        after = 64 + (specials.end if specials.after == "end" else specials.pad)
        for step in range(s + max(delays) + 3):
            length = torch.tensor([s if step > s else UNKNOWN_LENGTH])
            for k, found in enumerate(arrangement.forced_ids(step, length)[0].tolist()):
                if step < delays[k]:
                    assert found == arrangement.start_ids[k]
                elif step < s + delays[k] or step == s:
                    assert found == -1
                else:
                    assert found == (arrangement.end_ids[k] if step == s + delays[k] else after)
        assert arrangement.num_steps(s + 1) == s + max(delays) + 1  # and then the row is finished


def make_config(arrangement, **settings):
    return check_config({"width": 16, "layers": 1, "heads": 2, "arrangement": arrangement, **settings}, LMConfig)


def make_lm(config, K, code_vectors=None):
    geometry = AudioGeometry(sample_rate=16000, samples_per_frame=4)
    spec = TokenSpec(name="t", cardinalities=(5,) * K, geometry=geometry, fingerprint="0" * 64)
    return TokenLM(config, spec, code_vectors)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_in_a_config_is_written_out_in_the_model(name):
    K = 3 if name == "moshi" else 4
    config = make_config({"kind": "preset", "name": name})
    arrangement, specials, variable = PRESETS[name](K)
    assert (config.specials, config.variable_length) == (specials, variable)
    assert check_config(config.model_dump(mode="json"), LMConfig) == config
    lm = make_lm(config, K)
    assert (lm.config.arrangement, lm.config.specials, lm.config.variable_length) == (arrangement, specials, variable)
    assert check_config(lm.config.model_dump(mode="json"), LMConfig) == lm.config
    assert lm.loss(torch.zeros(2, K, 3, dtype=torch.long)).loss.isfinite()


@pytest.mark.parametrize(
    ("settings", "head", "pattern"),
    [
        ({}, "depth", "parallel"),
        ({"input": {"kind": "codes"}, "layers": 8}, "depth", "parallel"),
        ({"ahead": {}}, "parallel", "delay"),
        ({"head": {"kind": "parallel"}}, "parallel", "delay"),
        ({"head": {"kind": "depth", "layers": 1, "heads": 2}}, "depth", "parallel"),
        ({"head": {"kind": "flat"}}, "flat", "flat"),
        ({"arrangement": {"kind": "parallel"}}, "parallel", "parallel"),
        ({"arrangement": {"kind": "flat"}}, "parallel", "flat"),
    ],
)
@pytest.mark.parametrize("K", [1, 4])
def test_what_a_config_leaves_out_goes_with_what_it_says(settings, head, pattern, K):
    config = check_config({"width": 16, "layers": 1, "heads": 2, **settings}, LMConfig)
    auto = {"head": {"kind": "auto"}, "arrangement": {"kind": "auto"}}
    assert config == check_config({"width": 16, "layers": 1, "heads": 2, **auto, **settings}, LMConfig)
    assert check_config(config.model_dump(mode="json"), LMConfig) == config
    whole = config.explicit(K)
    if K == 1 and config.head.kind == "auto":  # a depth transformer over one code would be of no use
        head = pattern = "parallel"
    assert (whole.head.kind, whole.arrangement.kind) == (head, pattern)
    assert whole.explicit(K) == whole == check_config(whole.model_dump(mode="json"), LMConfig)
    lm = make_lm(config, K, torch.randn(K, 5, 3))
    assert lm.config == whole
    assert lm.loss(torch.zeros(2, K, 3, dtype=torch.long)).loss.isfinite()


def test_the_recommended_head_is_in_proportion_to_the_backbone():
    found = check_config({"width": 64, "layers": 9, "heads": 2, "head_dim": 48, "input": {"kind": "codes"}}, LMConfig)
    head = found.explicit(8).head
    assert (head.layers, head.heads, head.head_dim, head.input) == (2, 2, 48, "codes")


@pytest.mark.parametrize("model", [MaskedConfig, NextScaleConfig])
def test_models_that_fill_in_place_have_no_delay(model):
    assert model().arrangement == ParallelConfig()


@pytest.mark.parametrize("variable", [False, True])
def test_the_delay_of_one_codebook_is_none(variable):
    delay, parallel = (CodebookPattern(kind(), (6,), variable) for kind in (DelayConfig, ParallelConfig))
    assert delay.layout == parallel.layout
    for length in range(1, 5):
        assert torch.equal(delay.table(length), parallel.table(length))


def test_bad_presets_have_one_clear_error():
    with pytest.raises(ConfigError, match="arrangement.preset.name: preset 'dai' is unknown; did you mean 'dia'"):
        make_config({"kind": "preset", "name": "dai"})
    with pytest.raises(ConfigError, match="variable_length: arrangement preset 'dia' needs true, found false; leave"):
        make_config({"kind": "preset", "name": "dia"}, variable_length=False)
    with pytest.raises(ConfigError, match="specials: arrangement preset 'musicgen' needs .*'start': 0"):
        make_config({"kind": "preset", "name": "musicgen"}, specials={"start": 3})
    assert make_config({"kind": "preset", "name": "dia"}, variable_length=True).variable_length
    with pytest.raises(ConfigError, match="preset 'moshi': .* codebooks, found 4; .* preset moshi-stream"):
        make_lm(make_config({"kind": "preset", "name": "moshi"}), 4)
    with pytest.raises(ConfigError, match="preset 'musicgen-stereo': .* must be even, found 3"):
        make_lm(make_config({"kind": "preset", "name": "musicgen-stereo"}), 3)


def test_ids_between_codes_and_end():
    """Higgs ends at V + 1: codebook 0 has an output in between, which the sampler never draws (tests/generate)."""
    config, specials, variable = PRESETS["higgs-v2"](2)
    arrangement = CodebookPattern(config, (6, 6), variable, specials)
    assert arrangement.end_ids == (7, 7) and arrangement.output_sizes == (8, 6) and arrangement.input_sizes == (8, 8)
    fixed = CodebookPattern(config, (6, 6), False, SpecialsConfig(start=0, pad=0, end=3, after="end"))
    assert max(fixed.arrange(torch.zeros(1, 2, 1, dtype=torch.long)).ids.flatten()) < min(fixed.input_sizes)
