"""The outside judge of benchmarks/picture_quality.py: it learns a toy, the same each time, and its figures mean what
they say."""

import sys
from pathlib import Path

import pytest
import torch

from tessera.tokenize.data.media import bytes_to_image, write_image

FOLDER = Path(__file__).resolve().parent.parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def benchmark():
    """The two modules of the benchmark; they find each other as scripts do."""
    sys.path.insert(0, str(FOLDER))
    try:
        import picture_judge
        import picture_quality

        yield picture_judge, picture_quality
    finally:
        sys.path.remove(str(FOLDER))


def toy(count=96):
    """Squares in one of four corners and three colors: pictures uint8 [N, 3, 32, 32] and the idea of each."""
    pictures, ideas = torch.full((count, 3, 32, 32), 255, dtype=torch.uint8), []
    for number in range(count):
        corner, color = number % 4, number // 4 % 3
        rows, columns = (
            slice(16 * (corner // 2), 16 * (corner // 2) + 14),
            slice(16 * (corner % 2), 16 * (corner % 2) + 14),
        )
        pictures[number, :, rows, columns] = 40
        pictures[number, color, rows, columns] = 200
        ideas.append(f"corner {corner} color {color}")
    return pictures, ideas


@pytest.mark.slow
def test_the_judge_learns_and_is_the_same_each_time(benchmark, tmp_path):
    judging, _ = benchmark
    pictures, ideas = toy()
    classes = sorted(set(ideas))
    judge = judging.train_judge(pictures, ideas, classes, epochs=20, cache=tmp_path)
    media = pictures.float() / 127.5 - 1
    assert judge.share(media, ideas, 1) > 0.9
    wrong = ideas[1:] + ideas[:1]
    assert judge.share(media, wrong, 1) < 0.1 and judge.share(media, wrong, len(classes)) == 1
    large = torch.nn.functional.interpolate(media, scale_factor=2)
    assert torch.equal(judge.ranks(large, ideas), judge.ranks(media, ideas))
    stored = judging.train_judge(pictures, ideas, classes, epochs=20, cache=tmp_path)
    assert torch.equal(stored.ranks(media, wrong), judge.ranks(media, wrong)) and len(list(tmp_path.iterdir())) == 1
    one, other = (judging.train_judge(pictures[:24], ideas[:24], classes, epochs=2) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(one.net.state_dict().values(), other.net.state_dict().values(), strict=True)
    )


def test_augmentation_keeps_the_background_white(benchmark):
    judging, _ = benchmark
    torch.manual_seed(0)
    shown = judging.augmented(torch.ones(8, 3, 32, 32))
    assert abs(float(shown.mean()) - 1) < 0.01 and float(shown.std()) < 0.06


def test_entries_distances_and_kinds(benchmark, tmp_path):
    _, quality = benchmark
    pictures, _ = toy(4)
    lines = []
    for file in ("pairs/noto/1f34e.png", "colors/noto/1f34e.red.png", "scenes/noto-00001.png"):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, bytes_to_image(pictures[0].permute(1, 2, 0)))
        lines.append(f'{{"file": "{file}", "text": "apple", "label": "noto"}}\n')
    (tmp_path / "metadata.jsonl").write_text("".join(lines))
    entries = quality.read_entries(tmp_path)
    assert [len(quality.of_kind(entries, kind)) for kind in ("pairs", "colors", "scenes")] == [1, 1, 1]
    assert [(entry.idea, entry.word) for entry in entries[:2]] == [("1f34e", ""), ("1f34e", "red")]
    assert torch.equal(quality.to_bytes(quality.load(entries[:1])), pictures[:1])
    assert quality.spread(list(range(10)), 4) == [0, 2, 5, 7]
    flat = pictures.flatten(1)
    assert quality.nearest(flat, flat) < 1e-3
    white = torch.full_like(flat[:1], 255)
    assert abs(quality.nearest(white, torch.zeros_like(white)) - 1) < 1e-6
