"""Laws and drawings of the arrangement engine."""

import random

import pytest
import torch

from tessera.configs.schema import ConfigError
from tessera.lm.patterns.pattern import (
    UNKNOWN_LENGTH,
    CoarseFirstConfig,
    CodebookPattern,
    DelayConfig,
    FlatConfig,
    GroupedConfig,
    ParallelConfig,
    PartialFlatConfig,
    SpecialsConfig,
    UnrolledConfig,
)

# The drawings of audiocraft's patterns for T = 4, K = 3, less their leading column: 10 k + t + 1 in a cell, S for
# special.
DRAWINGS = [
    (
        DelayConfig(delays=(0, 1, 2)),
        """1  2  3  4  S  S
           S 11 12 13 14  S
           S  S 21 22 23 24""",
    ),
    (
        DelayConfig(),
        """1  2  3  4  S  S
           S 11 12 13 14  S
           S  S 21 22 23 24""",
    ),
    (
        DelayConfig(delays=(0, 1, 1)),
        """1  2  3  4  S
           S 11 12 13 14
           S 21 22 23 24""",
    ),
    (
        ParallelConfig(),
        """1  2  3  4
          11 12 13 14
          21 22 23 24""",
    ),
    (
        DelayConfig(delays=(0, 1, 2), flatten_first=1),
        """1  S  S  2  3  4  S  S
           S 11  S  S 12 13 14  S
           S  S 21  S  S 22 23 24""",
    ),
    (
        FlatConfig(),
        """1  S  S  2  S  S  3  S  S  4  S  S
           S 11  S  S 12  S  S 13  S  S 14  S
           S  S 21  S  S 22  S  S 23  S  S 24""",
    ),
    (
        PartialFlatConfig(groups=(0, 1, 1)),
        """1  S  2  S  3  S  4  S
           S 11  S 12  S 13  S 14
           S 21  S 22  S 23  S 24""",
    ),
    (
        UnrolledConfig(flattening=(0, 1, 1), delays=(0, 2, 2)),
        """1  2  S  3  S  4  S  S  S
           S  S 11  S 12  S 13  S 14
           S  S 21  S 22  S 23  S 24""",
    ),
    (
        CoarseFirstConfig(),
        """1  2  3  4  S  S  S  S
           S  S  S  S 11 12 13 14
           S  S  S  S 21 22 23 24""",
    ),
    (
        GroupedConfig(sizes=(2, 1)),
        """1  S  2  S  3  S  4  S  S  S  S  S
           S 11  S 12  S 13  S 14  S  S  S  S
           S  S  S  S  S  S  S  S 21 22 23 24""",
    ),
    (
        GroupedConfig(sizes=(2, 1), inside="parallel"),
        """1  2  3  4  S  S  S  S
          11 12 13 14  S  S  S  S
           S  S  S  S 21 22 23 24""",
    ),
    (
        GroupedConfig(sizes=(1, 2), inside="parallel", delays=(0, 0, 1)),
        """1  2  3  4  S  S  S  S  S
           S  S  S  S 11 12 13 14  S
           S  S  S  S  S 21 22 23 24""",
    ),
]


@pytest.mark.parametrize(("config", "drawing"), DRAWINGS)
def test_drawings(config, drawing):
    rows = [line.split() for line in drawing.strip().splitlines()]
    arrangement = CodebookPattern(config, (30, 30, 30), specials=SpecialsConfig(start=0, pad=0))
    codes = torch.tensor([[[10 * k + t + 1 for t in range(4)] for k in range(3)]]) - 1
    expected = torch.tensor([[30 if cell == "S" else int(cell) - 1 for cell in row] for row in rows])
    arranged = arrangement.arrange(codes)
    assert arranged.ids[0].tolist() == expected.tolist()
    assert arranged.mask[0].tolist() == (expected != 30).tolist()
    assert arrangement.table(4).tolist() == [[-1 if c == "S" else (int(c) - 1) % 10 for c in row] for row in rows]


def test_special_ids_of_a_row_that_ends():
    """V = 10, so end 10, start 11, pad 12; lengths 3 and 1 of T = 3."""
    arrangement = CodebookPattern(DelayConfig(delays=(0, 1)), (10, 10), variable_length=True)
    codes = torch.tensor([[[1, 2, 3], [4, 5, 6]], [[7, 0, 0], [8, 0, 0]]])
    arranged = arrangement.arrange(codes, torch.tensor([3, 1]))
    assert arranged.ids.tolist() == [
        [[1, 2, 3, 10, 12], [11, 4, 5, 6, 10]],
        [[7, 10, 12, 12, 12], [11, 8, 10, 12, 12]],
    ]
    assert arranged.mask.int().tolist() == [
        [[1, 1, 1, 1, 0], [0, 1, 1, 1, 0]],
        [[1, 1, 0, 0, 0], [0, 1, 0, 0, 0]],
    ]


def test_ids_of_other_projects():
    """Dia: start 1026, end 1024, pad 1025 over 1024 codes. Higgs: `end` behind the last code."""
    dia = CodebookPattern(DelayConfig(delays=(0, 1)), (1024, 1024), True, SpecialsConfig(start=2, pad=1))
    assert (dia.start_ids[0], dia.end_ids[0], dia.pad_ids[0]) == (1026, 1024, 1025)
    higgs = CodebookPattern(DelayConfig(delays=(0, 1)), (8, 8), True, SpecialsConfig(after="end"))
    assert higgs.arrange(torch.zeros(1, 2, 2, dtype=torch.long), torch.tensor([1])).ids.tolist() == [
        [[0, 8, 8, 8], [9, 0, 8, 8]]
    ]
    padded = CodebookPattern(DelayConfig(delays=(0, 1)), (8, 8), specials=SpecialsConfig(before="pad"))
    assert padded.arrange(torch.zeros(1, 2, 1, dtype=torch.long)).ids.tolist() == [[[0, 10], [10, 0]]]


NEED_LENGTH = ("grouped", "coarse_first")


def unrolled_as_in_audiocraft(flattening, delays, timesteps):
    """facebookresearch/audiocraft 896ec7c (MIT), codebooks_patterns.py: UnrolledPatternProvider.get_pattern, less its
    leading step and the coordinates beyond the last frame, as {(codebook, step): frame}."""
    books = {}
    for q, (inner, delay) in enumerate(zip(flattening, delays, strict=True)):
        books.setdefault(inner, (delay, []))[1].append(q)
    steps = []
    for t in range(timesteps + max(delays)):
        for inner in range(max(books) + 1):
            delay, together = books[inner]
            if t + delay < timesteps + max(delays):
                steps.append((t + delay, [(t, q) for q in together]))
    return {(q, s): t for s, (_, coords) in enumerate(sorted(steps)) for t, q in coords if t < timesteps}


def slow_table(config, K, T):
    """The obvious way: walk over frames and write each code down where its turn comes."""
    cells = {}
    if config.kind == "coarse_first":
        cells = {(k, t + (T if k else 0)): t for k in range(K) for t in range(T)}
    elif config.kind == "grouped":
        start = first = 0
        for size in config.sizes:
            books = range(first, first + size)
            for t in range(T):
                for place, k in enumerate(books):
                    late = t + (config.delays[k] if config.delays else 0)
                    cells[k, start + (late * size + place if config.inside == "flat" else late)] = t
            start, first = 1 + max(step for _, step in cells), first + size
    elif config.kind == "flat":
        step = 0
        for t in range(T):
            for k in range(K):
                cells[k, step] = t
                step += 1
    elif config.kind == "unrolled":
        cells = unrolled_as_in_audiocraft(config.flattening or range(K), config.delays or [0] * K, T)
    elif config.kind == "partial_flat":
        for t in range(T):
            for k in range(K):
                delay = config.delays[k] if config.delays else 0
                cells[k, (t + delay) * (max(config.groups) + 1) + config.groups[k]] = t
    else:
        delays = [0] * K if config.kind == "parallel" else config.delays or range(K)
        first = min(T, config.flatten_first) if config.kind == "delay" else 0
        step = 0
        for t in range(first):
            for k in range(K):
                cells[k, step] = t
                step += 1
        for t in range(first, T):
            for k in range(K):
                cells[k, step + t - first + delays[k]] = t
    S = 1 + max(step for _, step in cells)
    return [[cells.get((k, s), -1) for s in range(S)] for k in range(K)]


def random_config(rng: random.Random, K: int):
    kind = rng.choice(["parallel", "delay", "flat", "partial_flat", "unrolled", "grouped", "coarse_first"])
    if kind == "delay":
        return DelayConfig(delays=tuple(rng.randrange(6) for _ in range(K)), flatten_first=rng.choice([0, 0, 1, 3]))
    if kind == "grouped":
        cuts = sorted(rng.sample(range(1, K), rng.randint(0, K - 1)))
        sizes = tuple(end - start for start, end in zip([0, *cuts], [*cuts, K], strict=True))
        late = rng.choice([None, tuple(rng.randrange(3) for _ in range(K))])
        return GroupedConfig(sizes=sizes, inside=rng.choice(["flat", "parallel"]), delays=late)
    if kind == "unrolled":
        flattening, delays = [0], [rng.randrange(3)]
        for _ in range(K - 1):
            flattening.append(flattening[-1] + rng.randrange(2))
            delays.append(delays[-1] + (rng.randrange(4) if flattening[-1] > flattening[-2] else 0))
        return UnrolledConfig(
            flattening=rng.choice([tuple(flattening), None]), delays=rng.choice([None, tuple(delays)])
        )
    if kind == "partial_flat":
        count = rng.randint(1, K)
        groups = [*range(count), *(rng.randrange(count) for _ in range(K - count))]
        rng.shuffle(groups)
        return PartialFlatConfig(
            groups=tuple(groups), delays=rng.choice([None, tuple(rng.randrange(3) for _ in groups)])
        )
    return {"parallel": ParallelConfig(), "flat": FlatConfig(), "coarse_first": CoarseFirstConfig()}[kind]


def random_case(seed: int):
    rng = random.Random(seed)
    K, B, T = rng.randint(1, 6), rng.randint(1, 4), rng.randint(1, 12)
    config = random_config(rng, K)
    cardinalities = tuple(rng.randint(1, 20) for _ in range(K))
    arrangement = CodebookPattern(config, cardinalities, config.kind not in NEED_LENGTH and rng.random() < 0.5)
    codes = torch.tensor([[[rng.randrange(V) for _ in range(T)] for V in cardinalities] for _ in range(B)])
    lengths = torch.tensor([rng.randint(1, T) for _ in range(B)])
    return arrangement, codes, lengths


@pytest.mark.parametrize("seed", range(24))
def test_table_equals_the_slow_one(seed):
    rng = random.Random(seed)
    K, T = rng.randint(1, 6), rng.randint(1, 12)
    config = random_config(rng, K)
    arrangement = CodebookPattern(config, [4] * K)
    assert arrangement.table(T).tolist() == slow_table(config, K, T)
    assert arrangement.num_steps(T) == len(slow_table(config, K, T)[0])
    steps = arrangement.steps_of(torch.arange(T), T)
    table = arrangement.table(T)
    for k in range(K):
        assert table[k, steps[k]].tolist() == list(range(T))
    for step in range(arrangement.num_steps(T)):
        assert arrangement.cell_frames(step, T).tolist() == table[:, step].tolist()
        assert arrangement.known(step, T).tolist() == (table[:, step] >= 0).tolist()


@pytest.mark.parametrize("seed", range(24))
def test_undo_of_arrange_is_the_identity(seed):
    arrangement, codes, lengths = random_case(seed)
    B, K, T = codes.shape
    assert arrangement.undo(arrangement.arrange(codes).ids, T).equal(codes)
    back = arrangement.undo(arrangement.arrange(codes, lengths).ids, T, lengths)
    valid = (torch.arange(T) < lengths[:, None, None]).expand(B, K, T)
    assert back[valid].equal(codes[valid])
    as_logits = arrangement.undo(arrangement.arrange(codes).ids[..., None].expand(-1, -1, -1, 2), T)
    assert as_logits[..., 1].equal(codes)


@pytest.mark.parametrize("seed", range(24))
def test_every_code_is_asked_for_once(seed):
    """Mark each code by a number of its own and collect the marks under the mask."""
    arrangement, codes, lengths = random_case(seed)
    B, K, T = codes.shape
    arranged = arrangement.arrange(codes, lengths)
    marks = torch.arange(T).expand(B, K, T)
    wide = CodebookPattern(arrangement.config, [T] * K, arrangement.variable_length)
    placed = wide.arrange(marks, lengths)
    assert placed.mask.equal(arranged.mask)
    for b in range(B):
        for k in range(K):
            asked = placed.ids[b, k][placed.mask[b, k]].tolist()
            ends = [T] if arrangement.variable_length and k == 0 else []
            assert sorted(asked) == [*range(int(lengths[b])), *ends]
    special = arranged.ids >= torch.tensor(arrangement.cardinalities)[:, None]
    assert bool((special | arranged.mask).all())


@pytest.mark.parametrize("seed", range(24))
def test_a_row_alone_is_a_row_of_the_batch(seed):
    arrangement, codes, lengths = random_case(seed)
    whole = arrangement.arrange(codes, lengths)
    pads = torch.tensor(arrangement.pad_ids)[:, None]
    for b, length in enumerate(lengths.tolist()):
        alone = arrangement.arrange(codes[b : b + 1, :, :length])
        S = alone.ids.shape[2]
        assert whole.ids[b, :, :S].equal(alone.ids[0])
        assert whole.mask[b, :, :S].equal(alone.mask[0])
        assert bool((whole.ids[b, :, S:] == pads).all())
        assert not bool(whole.mask[b, :, S:].any())


@pytest.mark.parametrize("seed", range(24))
def test_a_prefix_of_frames_is_a_prefix_of_the_table(seed):
    rng = random.Random(seed)
    K, T = rng.randint(1, 6), rng.randint(2, 12)
    config = random_config(rng, K)
    if config.kind in NEED_LENGTH:  # must know T beforehand
        config = DelayConfig(flatten_first=2)
    arrangement = CodebookPattern(config, [4] * K)
    long, short = arrangement.table(T), arrangement.table(rng.randint(1, T - 1))
    shown = long[:, : short.shape[1]]
    assert bool(((shown == short) | (short == -1)).all())
    for step in range(long.shape[1]):  # unbounded: the frame a longer sequence would have there
        unbounded = arrangement.cell_frames(step)
        assert bool(((unbounded == long[:, step]) | (long[:, step] == -1)).all())


@pytest.mark.parametrize("seed", range(24))
def test_forced_ids_are_what_arrange_writes(seed):
    """The decode loop's view of a step agrees with the training targets."""
    arrangement, codes, lengths = random_case(seed)
    arranged = arrangement.arrange(codes, lengths)
    for step in range(arranged.ids.shape[2]):
        forced = arrangement.forced_ids(step, lengths)
        real = forced == -1
        asked = arranged.mask[:, :, step].clone()
        asked[:, 0] &= arranged.ids[:, 0, step] != arrangement.end_ids[0]
        assert real.equal(asked)
        assert forced[~real].equal(arranged.ids[:, :, step][~real])


@pytest.mark.parametrize("seed", range(24))
def test_the_table_of_steps_says_what_each_step_says(seed):
    arrangement, _, lengths = random_case(seed)
    table = arrangement.step_table(40, "cpu")
    assert (table is None) == arrangement.needs_length
    lengths = torch.cat([lengths, torch.tensor([UNKNOWN_LENGTH])])
    for step in range(40) if table is not None else ():
        now = torch.tensor(step)
        assert table.forced_ids(now, lengths).equal(arrangement.forced_ids(step, lengths))
        assert table.frames_around(now).equal(arrangement.current_frames(torch.tensor([step, step + 1])))


def test_forced_ids_while_the_end_is_unknown():
    arrangement = CodebookPattern(DelayConfig(delays=(0, 2)), (4, 4), variable_length=True)
    unknown = torch.full((1,), UNKNOWN_LENGTH)
    assert arrangement.forced_ids(0, unknown).tolist() == [[-1, 5]]
    assert arrangement.forced_ids(2, unknown).tolist() == [[-1, -1]]
    ended = torch.tensor([2])  # codebook 0 drew the end at frame 2
    assert arrangement.forced_ids(3, ended).tolist() == [[6, -1]]
    assert arrangement.forced_ids(4, ended).tolist() == [[6, 4]]


def test_what_stands_beyond_a_length_does_not_matter():
    arrangement = CodebookPattern(DelayConfig(), (4, 4))
    codes = torch.randint(0, 4, (2, 2, 5))
    lengths = torch.tensor([2, 5])
    changed = codes.clone()
    changed[0, :, 2:] = -7
    assert arrangement.arrange(codes, lengths).ids.equal(arrangement.arrange(changed, lengths).ids)


def test_sizes():
    arrangement = CodebookPattern(DelayConfig(), (5, 9), variable_length=True)
    assert arrangement.input_sizes == (8, 12)
    assert arrangement.output_sizes == (6, 9)
    assert arrangement.max_delay == 1
    assert CodebookPattern(DelayConfig(delays=(1, 2, 3)), (5,) * 3).max_delay == 2
    assert CodebookPattern(DelayConfig(delays=(0, 0, 0), flatten_first=2), (5,) * 3).max_delay == 2
    assert CodebookPattern(FlatConfig(), (5,) * 4).max_delay == 3
    assert CodebookPattern(FlatConfig(), (5,) * 4).num_steps(0) == 0


@pytest.mark.parametrize(
    ("config", "columns"),
    [
        (ParallelConfig(), [0, 1, 2, 3]),
        (DelayConfig(), [0, 1, 2, 3, 4, 5]),
        (FlatConfig(), [0, 0, 0, 1, 1, 1, 2]),
        (CoarseFirstConfig(), [0, 1, 2, 3, 0, 1, 2, 3]),
        (DelayConfig(flatten_first=1), [0, 0, 0, 1, 2, 3]),
        (GroupedConfig(sizes=(2, 1)), [0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 2, 3]),
        (GroupedConfig(sizes=(1, 2), inside="parallel", delays=(0, 0, 1)), [0, 1, 2, 3, 0, 1, 2, 3, 3]),
    ],
)
def test_current_frames(config, columns):
    arrangement = CodebookPattern(config, (5, 5, 5))
    assert arrangement.current_frames(torch.arange(len(columns)), 4).tolist() == columns


def test_bad_inputs_have_one_clear_error():
    arrangement = CodebookPattern(DelayConfig(), (5, 5, 5))
    codes = torch.zeros(2, 3, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="have 4 codebooks but the model has 3"):
        arrangement.arrange(torch.zeros(2, 4, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="codebook 1 holds codes 0 to 4, found 5"):
        arrangement.arrange(codes.index_fill(1, torch.tensor([1]), 5))
    with pytest.raises(ValueError, match="found -1"):
        arrangement.arrange(codes - 1)
    with pytest.raises(ValueError, match="lengths must be 1 to the 4 frames given, found 2 to 5"):
        arrangement.arrange(codes, torch.tensor([2, 5]))
    with pytest.raises(ValueError, match="found 0 to 4"):
        arrangement.arrange(codes, torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"lengths must be long \[2\]"):
        arrangement.arrange(codes, torch.tensor([4]))
    with pytest.raises(ValueError, match="codes must be long"):
        arrangement.arrange(codes.float())
    with pytest.raises(ValueError, match="empty"):
        arrangement.arrange(codes[:, :, :0])
    with pytest.raises(ValueError, match="4 frames take 6 steps, but 5 were given"):
        arrangement.undo(torch.zeros(1, 3, 5, dtype=torch.long), 4)
    with pytest.raises(ValueError, match="needs the number of frames"):
        CodebookPattern(CoarseFirstConfig(), (5, 5)).cell_frames(0)
    with pytest.raises(ValueError, match="max_delay depends"):
        _ = CodebookPattern(CoarseFirstConfig(), (5, 5)).max_delay


def test_bad_configs_have_one_clear_error():
    with pytest.raises(ConfigError, match=r"arrangement.delays has 2 entries \[0, 1\], but there are 3 codebooks"):
        CodebookPattern(DelayConfig(delays=(0, 1)), (5, 5, 5))
    with pytest.raises(ConfigError, match="set variable_length: false"):
        CodebookPattern(CoarseFirstConfig(), (5, 5), variable_length=True)
    with pytest.raises(ConfigError, match="every number from 0"):
        CodebookPattern(PartialFlatConfig(groups=(0, 2)), (5, 5))
    for flattening, delays, message in [
        ((0, 2), None, "flattening must begin with 0"),
        ((1, 0), None, "flattening must begin with 0"),
        ((0, 1), (1, 0), "delays must not fall"),
        ((0, 0), (0, 1), "the same for codebooks of a step"),
        ((0, 1, 1), None, "has 3 entries"),
    ]:
        with pytest.raises(ConfigError, match=message):
            CodebookPattern(UnrolledConfig(flattening=flattening, delays=delays), (5, 5))
    with pytest.raises(ConfigError, match="arrangement grouped needs a known .* set variable_length: false"):
        CodebookPattern(GroupedConfig(sizes=(1, 1)), (5, 5), variable_length=True)
    with pytest.raises(ConfigError, match=r"sizes \[2, 2\] add up to 4, but there are 3 codebooks"):
        CodebookPattern(GroupedConfig(sizes=(2, 2)), (5, 5, 5))
    with pytest.raises(ConfigError, match="specials: start and end are both 0"):
        CodebookPattern(ParallelConfig(), (5,), True, SpecialsConfig(start=0))
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        DelayConfig(delays=(0, -1))
