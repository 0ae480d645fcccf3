"""How good are pictures from captions? Ideas and color words that an outside judge finds in them, and copies.

    python benchmarks/picture_quality.py [MODEL] [--corpus out/emoji/corpus] [--shards out/emoji/shards/train]
        [--count 300] [--guidance 2] [--json FILE] [--sheet FILE.png]

The corpus is made by samples/make_emoji.py. Its test captions are asked for: pairs of idea and style that are in no
training picture (the idea is, in other styles), pairs of idea and color word, and scenes.

- top5: share of the held-out pairs whose asked idea is among the first five of all ideas, as the judge ranks them. The
  judge (picture_judge.py) is trained on the real pictures of all styles, the held-out ones included; top1 likewise. The
  same for the tokenizer's reconstructions of the real pictures, which limit what the model can reach.
- top5_of_real_unseen: a second judge is trained without the held-out pictures, and reads the real ones: how well an
  idea can be recognized in a style from its drawings in other styles.
- colors: share of the pictures whose color is that of the word, by the rule of samples/emoji/colors.py: the word's
  color covers more of what is not white than any other color, and at least a quarter. All real pictures fulfill it.
- copies: share of the pictures whose codes equal those of a training picture. nearest: root mean square distance of
  pixels in [0, 1] to the nearest training picture, beside that of the real held-out pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from picture_judge import train_judge
from torch import Tensor

import tessera
from tessera.generate.result import make_grid, save_media
from tessera.samples.emoji.colors import obeys
from tessera.tokenize.data.media import read_image
from tessera.tokenize.data.shard_reader import Shards

CORPUS, SHARDS, JUDGES = "out/emoji/corpus", "out/emoji/shards/train", "out/emoji/judges"
SIDE = 32
BATCH = 50


@dataclass(frozen=True)
class Entry:
    """A line of a metadata.jsonl."""

    path: Path
    text: str
    label: str

    @property
    def idea(self) -> str:
        """Code points of a picture of one drawing, from its file name: STYLE/CODE.png, STYLE/CODE.red.png."""
        return self.path.name.split(".")[0]

    @property
    def word(self) -> str:
        """What stands between: the color word of STYLE/CODE.red.png, "" if there is nothing."""
        return ".".join(self.path.name.split(".")[1:-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="emoji")
    parser.add_argument("--corpus", type=Path, default=Path(CORPUS))
    parser.add_argument("--shards", default=SHARDS, help="training shards, whose codes are compared")
    parser.add_argument("--judges", type=Path, default=Path(JUDGES), help="folder where trained judges are kept")
    parser.add_argument("--count", type=int, default=300, help="captions of each kind, spread over the test captions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path, help="write generated pictures, each above the real one")
    args = parser.parse_args()
    settings = {name: value for name in ("guidance", "temperature") if (value := getattr(args, name)) is not None}

    model = tessera.load(args.model)
    train, test = read_entries(args.corpus / "train"), read_entries(args.corpus / "test")
    kinds = {kind: spread(of_kind(test, kind), args.count) for kind in ("pairs", "colors", "scenes")}
    started = time.perf_counter()
    made = {kind: generate(model, entries, args.seed, settings) for kind, entries in kinds.items()}
    seconds = time.perf_counter() - started

    singles = [entry for entry in train if entry.word == "" and entry.path.parent.name != "scenes"]
    report = {
        "pairs": judged(model, kinds["pairs"], made["pairs"][0], singles, of_kind(test, "pairs"), args.judges),
        "colors": colored(model, kinds["colors"], made["colors"][0]),
        "copies": copies(made, Shards(args.shards)),
        "nearest": distances(made, kinds, train),
        "pictures": {kind: len(entries) for kind, entries in kinds.items()},
        "seconds_per_picture": seconds / sum(map(len, kinds.values())),
    }
    print(json.dumps(report, indent=2))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    if args.sheet:
        shown = [(made[kind][0][:48], load(kinds[kind][:48])) for kind in kinds]
        save_media(args.sheet, sheet(shown), model.spec)


def read_entries(folder: Path) -> list[Entry]:
    """Pictures of a folder of the corpus."""
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    return [Entry(folder / line["file"], line["text"], line["label"]) for line in lines]


def of_kind(entries: list[Entry], kind: str) -> list[Entry]:
    """Test pictures in the folder of a kind."""
    return [entry for entry in entries if kind in (entry.path.parent.name, entry.path.parent.parent.name)]


def spread(entries: list[Entry], count: int) -> list[Entry]:
    """That many entries, evenly spread."""
    if len(entries) <= count:
        return entries
    return [entries[i * len(entries) // count] for i in range(count)]


def load(entries: list[Entry], side: int = SIDE) -> Tensor:
    """Real pictures [N, 3, side, side] in [-1, 1]."""
    return torch.stack([read_image(entry.path, side, side, 3, fit="stretch") for entry in entries])


def to_bytes(pictures: Tensor) -> Tensor:
    """[-1, 1] -> uint8."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def generate(model, entries: list[Entry], seed: int, settings: dict) -> tuple[Tensor, list[Tensor]]:
    """Pictures [N, 3, H, W] in [-1, 1] and codes [K, T] for captions in their styles."""
    media, codes = [], []
    for first in range(0, len(entries), BATCH):
        part = entries[first : first + BATCH]
        texts, labels = [entry.text for entry in part], [entry.label for entry in part]
        found = model.generate(text=texts, label=labels, seed=seed + first, **settings)
        media += [picture.cpu() for picture in found.media]
        codes += list(found.codes)
        print(f"{first + len(part)} of {len(entries)} pictures", file=sys.stderr)
    return torch.stack(media), codes


def reconstructed(model, pictures: Tensor) -> Tensor:
    """Real pictures through the tokenizer."""
    return model.tokenizer.decode(model.tokenizer.encode(pictures).codes)


def judged(model, asked: list[Entry], made: Tensor, seen: list[Entry], held: list[Entry], cache: Path) -> dict:
    """Shares of pictures with the asked idea among the judge's first five, and first."""
    geometry = model.spec.geometry
    everything = [*seen, *held]
    classes = sorted({entry.idea for entry in everything})
    pictures = to_bytes(load(everything))
    judge = train_judge(pictures, [entry.idea for entry in everything], classes, cache=cache)
    unseen = train_judge(pictures[: len(seen)], [entry.idea for entry in seen], classes, cache=cache)
    ideas = [entry.idea for entry in asked]
    real, coded = load(asked), reconstructed(model, load(asked, geometry.height))
    styles = sorted({entry.label for entry in asked})
    ranks = judge.ranks(made, ideas)
    return {
        "ideas": len(classes),
        "top5": float((ranks < 5).float().mean()),
        "top1": float((ranks < 1).float().mean()),
        "top5_of_style": {
            style: float((ranks[[entry.label == style for entry in asked]] < 5).float().mean()) for style in styles
        },
        "top5_of_real": judge.share(real, ideas),
        "top5_of_reconstructed": judge.share(coded, ideas),
        "top1_of_reconstructed": judge.share(coded, ideas, 1),
        "top5_of_real_unseen": unseen.share(real, ideas),
        "top5_by_judge_of_others": unseen.share(made, ideas),
    }


def colored(model, asked: list[Entry], made: Tensor) -> dict:
    """Shares of pictures that have the color of their word, in all and by word."""
    found = _obeying(made, asked)
    kept = _obeying(reconstructed(model, load(asked, model.spec.geometry.height)), asked)
    words = sorted({entry.word for entry in asked})
    each = {word: [hit for hit, entry in zip(found, asked, strict=True) if entry.word == word] for word in words}
    return {
        "obeyed": sum(found) / len(found),
        "obeyed_of_reconstructed": sum(kept) / len(kept),
        "obeyed_of_word": {word: sum(hits) / len(hits) for word, hits in each.items()},
    }


def _obeying(pictures: Tensor, asked: list[Entry]) -> list[bool]:
    pixels = to_bytes(pictures).permute(0, 2, 3, 1).numpy()
    return [obeys(picture, entry.word) for picture, entry in zip(pixels, asked, strict=True)]


def copies(made: dict[str, tuple[Tensor, list[Tensor]]], shards: Shards) -> dict[str, float]:
    """Share of each kind whose codes are those of a training picture."""
    known = {shards.item(number).codes.numpy().tobytes() for number in range(len(shards))}
    return {
        kind: sum(codes.long().contiguous().numpy().tobytes() in known for codes in found) / len(found)
        for kind, (_, found) in made.items()
    }


def distances(made: dict, kinds: dict[str, list[Entry]], train: list[Entry]) -> dict:
    """Mean distance to the nearest training picture, of generated and of real test pictures, by kind."""
    known = to_bytes(load(train)).flatten(1)
    return {
        kind: {
            "generated": nearest(to_bytes(shrunk(made[kind][0])).flatten(1), known),
            "real": nearest(to_bytes(load(entries)).flatten(1), known),
        }
        for kind, entries in kinds.items()
    }


def shrunk(pictures: Tensor) -> Tensor:
    """Pictures at the size that they are compared at."""
    return torch.nn.functional.interpolate(pictures, size=(SIDE, SIDE), mode="area")


def nearest(pictures: Tensor, known: Tensor) -> float:
    """Mean over uint8 [N, P] of the root mean square distance to the nearest of uint8 [M, P], of full scale."""
    wanted = pictures.float() / 255
    best = torch.full((len(wanted),), float("inf"))
    for part in known.split(4096):
        best = torch.minimum(best, torch.cdist(wanted, part.float() / 255).min(1).values)
    return float((best / known.shape[1] ** 0.5).mean())


def sheet(shown: list[tuple[Tensor, Tensor]], columns: int = 16, scale: int = 3) -> Tensor:
    """Rows of generated pictures, each above the row of the real ones: [3, height, width]."""
    rows = []
    for made, real in shown:
        for first in range(0, len(made), columns):
            rows += list(shrunk(made[first : first + columns])) + list(real[first : first + columns])
    return make_grid(rows, columns).repeat_interleave(scale, 1).repeat_interleave(scale, 2)


if __name__ == "__main__":
    main()
