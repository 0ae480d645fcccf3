"""What papers say of their tokenizers, at small scale: each system beside its baseline, trained for equal steps.

    python benchmarks/tokenizer_claims.py --threads 1 --write docs/tokenizers.md [--only simvq fsq ...] [--steps 300]

The claims are in the YAML file. Every system is the config of its name in configs/tokenize, trained on patches of two
photographs (python -m tessera.samples.make_patches; made here when missing) or on the bundled speech, and so is its
baseline: the same config with another quantizer. What is trained already is not trained again (--out). Measured on
pictures and recordings that were not trained on, except the use of codes, which is counted over 128,000 training
tokens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessera.samples.make_patches import write_patches
from tessera.tokenize.config import check_config, override, read_yaml
from tessera.tokenize.corpus import ArraysCorpus, FolderCorpus, open_corpus
from tessera.tokenize.files import write_safetensors
from tessera.tokenize.kmeans import kmeans
from tessera.tokenize.tokenizer import PictureTokenizer, Tokenizer, load_tokenizer
from tessera.train.tokenizer_losses import mel_distance
from tessera.train.tokenizer_trainer import TokenizerTrainConfig, train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
PATCHES = Path("out/patches-16")
"""Where the configs look for them."""
MEMORY: dict[str, Any] = {}
"""Media, read once."""


@dataclass(frozen=True)
class Claim:
    """A statement of a paper, and how it is looked at here."""

    system: str
    """File in configs/tokenize."""
    says: str
    measure: str
    """Key of MEASURES."""
    wanted: str
    """Whether the system's figure should be "higher" or "lower" than the baseline's, or "near" it: at most a tenth
    above."""
    baseline: str
    """In words."""
    change: Sequence[str]
    """What makes the system's config the baseline's, as --set takes it."""
    own: Sequence[str] = ()
    """Settings of the system itself for this comparison."""


CLAIMS = [Claim(**row) for row in read_yaml(Path(__file__).with_suffix(".yaml"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted({claim.system for claim in CLAIMS}))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("out/tokenizers"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", type=Path, help="write the page (docs/tokenizers.md)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if not (PATCHES / "centres.safetensors").is_file():
        write_patches(PATCHES, side=16)
        write_centres()
    rows = []
    for claim in CLAIMS:
        if args.only and claim.system not in args.only:
            continue
        own = look(claim, claim.own, args.steps, args.out)
        other = look(claim, [*claim.own, *claim.change], args.steps, args.out)
        row = {
            "system": claim.system, "says": claim.says, "measure": claim.measure, "baseline": claim.baseline,
            "wanted": claim.wanted, "own": own, "other": other, "holds": holds(claim.wanted, own, other),
        }  # fmt: skip
        rows.append(row)
        answer = "yes" if row["holds"] else "no"
        print(
            f"{claim.system:<22} {claim.measure:<14} {own:10.4g} {other:10.4g}  {claim.wanted:<6} {answer}", flush=True
        )
    if args.json:
        args.json.write_text(json.dumps({"command": sys.argv, "steps": args.steps, "rows": rows}, indent=1) + "\n")
    if args.write:
        args.write.write_text(page(rows, args.steps))


def holds(wanted: str, own: float, other: float) -> bool:
    """Whether the system's figure is on the side of the baseline's that was said."""
    if wanted == "near":
        return own <= 1.1 * other
    return own > other if wanted == "higher" else own < other


def look(claim: Claim, sets: Sequence[str], steps: int, out: Path) -> float:
    """Train the config with these settings, unless that was done before, and measure it."""
    data = override(read_yaml(ROOT / "configs/tokenize" / f"{claim.system}.yaml"), [*sets, f"train.steps={steps}"])
    data["tokenizer"]["name"] = "t"  # the same settings are trained once, whatever their names
    data["train"]["snapshot_every"] = 0
    config = check_config(data, TokenizerTrainConfig, claim.system)
    said = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    folder = out / hashlib.sha256(said.encode()).hexdigest()[:16]
    tokenizer = load_tokenizer(folder) if (folder / "config.json").is_file() else train_tokenizer(config, folder)
    return MEASURES[claim.measure](tokenizer)


# Media


def pictures(part: str, count: int) -> Tensor:
    """Patches [count, 3, 16, 16] spread over a part."""
    if part not in MEMORY:
        corpus = open_corpus(ArraysCorpus(path=str(PATCHES / f"{part}.safetensors")))
        from tessera.tokenize.spec import PictureGeometry

        geometry = PictureGeometry(height=16, width=16, channels=3, rows=8, columns=8)
        MEMORY[part] = torch.stack([corpus.media(number, geometry) for number in range(len(corpus))])
    every = max(1, len(MEMORY[part]) // count)
    return MEMORY[part][::every][:count]


def sounds(part: str, count: int) -> list[Tensor]:
    """Recordings [1, N] of the bundled speech."""
    name = f"speech-{part}"
    if name not in MEMORY:
        corpus = open_corpus(FolderCorpus(path=str(ROOT / "samples/speech" / part)))
        from tessera.tokenize.spec import AudioGeometry

        geometry = AudioGeometry(sample_rate=16000, channels=1, samples_per_frame=320)
        MEMORY[name] = [corpus.media(number, geometry) for number in range(min(count, len(corpus)))]
    return MEMORY[name][:count]


def write_centres() -> None:
    """4096 centres of 2 x 2 pixels of the training patches: a stand-in for a pretrained encoder's features."""
    squares = pictures("train", 1500).unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    picked = squares[torch.randperm(len(squares), generator=torch.Generator().manual_seed(0))[:40000]]
    write_safetensors(PATCHES / "centres.safetensors", {"centres": kmeans(picked, 4096, 5)[0].contiguous()}, {})


# Measures, each of a frozen tokenizer


def codes_of(tokenizer: Tokenizer, part: str) -> Tensor:
    """Codes [tokens, Q] of about 128,000 training tokens, or of the test media."""
    if isinstance(tokenizer, PictureTokenizer):
        media = pictures(part, 2000 if part == "train" else 200)
        return tokenizer.encode(media).codes.transpose(1, 2).flatten(0, 1)
    return torch.cat([tokenizer.encode(item[None]).codes[0].T for item in sounds(part, 240 if part == "train" else 40)])


def share_used(tokenizer: Tokenizer) -> float:
    """Share of all codes (of the product of codebooks where there are several) that occur, in per cent of what can."""
    codes = codes_of(tokenizer, "train")
    packed = tokenizer.quantizer.pack(codes.clamp_min(0))
    possible = min(len(packed), int(torch.tensor(tokenizer.spec.cardinalities).double().prod()))
    return 100 * len(packed.unique()) / possible


def share_used_each(tokenizer: Tokenizer) -> float:
    """The mean over codebooks of the share of codes that occur, in per cent."""
    codes = codes_of(tokenizer, "train")
    shares = [
        len(column[column >= 0].unique()) / min(size, len(column))
        for column, size in zip(codes.T, tokenizer.spec.cardinalities, strict=True)
    ]
    return 100 * statistics.mean(shares)


def perplexity(tokenizer: Tokenizer) -> float:
    """exp of the entropy of the codes' frequencies, the mean over codebooks."""
    found = []
    for column in codes_of(tokenizer, "train").T:
        counts = column[column >= 0].unique(return_counts=True)[1].double()
        found.append(float(torch.special.entr(counts / counts.sum()).sum().exp()))
    return statistics.mean(found)


def error(tokenizer: Tokenizer, levels: int | None = None) -> float:
    """Mean squared error of test pictures (x 1000), or log-mel distance of test recordings, with the first levels."""
    if isinstance(tokenizer, PictureTokenizer):
        media = pictures("test", 200)
        made = tokenizer.decode(first_levels(tokenizer.encode(media).codes, levels))
        return 1000 * float((made.clamp(-1, 1) - media).square().mean())
    found = []
    for item in sounds("test", 40):
        made = tokenizer.decode(first_levels(tokenizer.encode(item[None]).codes, levels))[0, :, : item.shape[1]]
        rate = tokenizer.config.sample_rate  # pyright: ignore[reportAttributeAccessIssue]
        found.append(float(mel_distance(made, item, rate).mean()))
    return statistics.mean(found)


def first_levels(codes: Tensor, levels: int | None) -> Tensor:
    """Codes [B, K, T] with those of later levels dropped."""
    if levels is None:
        return codes
    return torch.cat([codes[:, :levels], torch.full_like(codes[:, levels:], -1)], dim=1)


def error_of_half(tokenizer: Tokenizer) -> float:
    """`error` with the first half of the codebooks."""
    return error(tokenizer, tokenizer.spec.num_codebooks // 2)


def first_level(tokenizer: Tokenizer) -> float:
    """Per cent of the quantized latents' energy that is in the first codebook's share of them."""
    codes = codes_of(tokenizer, "test")[None]
    whole = tokenizer.quantizer.decode(codes)[0]
    alone = tokenizer.quantizer.decode(first_levels(codes.transpose(1, 2), 1).transpose(1, 2))[0]
    mean = whole.mean(0)
    return 100 * (1 - float((whole - alone).square().sum() / (whole - mean).square().sum()))


def alike(tokenizer: Tokenizer) -> float:
    """Mean squared cosine between the code vectors that the first two codebooks choose for a token."""
    codes, vectors = codes_of(tokenizer, "test"), tokenizer.vectors()
    first, second = vectors[0][codes[:, 0]], vectors[1][codes[:, 1]]
    return float(torch.nn.functional.cosine_similarity(first, second, dim=-1).square().mean())


MEASURES: dict[str, Callable[[Tokenizer], float]] = {
    "used": share_used, "used each": share_used_each, "perplexity": perplexity, "error": error,
    "error of half": error_of_half, "first level": first_level, "alike": alike,
}  # fmt: skip


def page(rows: Sequence[dict], steps: int) -> str:
    """The table as Markdown."""
    held = sum(row["holds"] for row in rows)
    lines = [
        "# What papers say of their tokenizers, at small scale",
        "",
        f"Written by `python benchmarks/tokenizer_claims.py --threads 1 --steps {steps} --write docs/tokenizers.md`.",
        "Every row is a config in `configs/tokenize`, trained for as many steps as its baseline, which is the same",
        "config with another quantizer. At this scale (16 x 16 patches of two photographs, six minutes of speech, some",
        "hundred steps) a direction can be seen or not; sizes of effects cannot.",
        f"It holds in {held} of {len(rows)} rows.",
        "",
        "| system | the paper says | measured | system | baseline | baseline is | holds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        holds = "yes" if row["holds"] else "**no**"
        lines.append(
            f"| [{row['system']}](../configs/tokenize/{row['system']}.yaml) | {row['says']} | {row['measure']} | "
            f"{row['own']:.4g} | {row['other']:.4g} | {row['baseline']} | {holds} |"
        )
    lines += ["", "| measure | what it is |", "|---|---|"]
    for name, measure in MEASURES.items():
        about = " ".join((measure.__doc__ or "").split()).rstrip(".")
        lines.append(f"| {name} | {about} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
