"""How good are generated digits? Recognition by an outside classifier, copies of the training data, precision and
coverage.

    python benchmarks/digits_quality.py [MODEL] [--guidance 1.5] [--json FILE] [--sheet FILE.png]

- recognised: share of 500 generated pictures (50 of each digit) that a support vector machine (RBF kernel,
  scikit-learn's defaults), trained on the real training digits, takes for the digit that was asked for; the real test
  digits beside it.
- copies: share of generated pictures whose codes equal those of a training picture.
- precision, recall, density, coverage (arXiv:2002.09797, package prdc, 5 neighbours, on pixels): against the test
  digits, with as many training digits in the place of the generated ones as a yardstick.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import tessera
from tessera.cli.report.digit_classifier import DigitClassifier, real_digits
from tessera.generate.result import save_media


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="digits")
    parser.add_argument("--each", type=int, default=50, help="images of each digit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--sheet", type=Path, help="write a sheet of generated digits above real ones, four times enlarged"
    )
    args = parser.parse_args()
    settings = {name: value for name in ("guidance", "temperature") if (value := getattr(args, name)) is not None}

    model = tessera.load(args.model)
    started = time.perf_counter()
    result = model.generate(label=model.labels, n=args.each, seed=args.seed, **settings)
    seconds = time.perf_counter() - started
    pictures = torch.stack([picture.cpu() for picture in result.media])
    asked = [label for label in model.labels for _ in range(args.each)]

    train, _ = real_digits("train")
    test, test_labels = real_digits("test")
    classifier = DigitClassifier()
    known = {tuple(codes.flatten().tolist()) for codes in model.tokenizer.encode(train).codes}
    copies = sum(tuple(codes.flatten().tolist()) in known for codes in result.codes)
    report = {
        "pictures": len(result),
        "recognised": classifier.share(pictures, asked),
        "recognised_real_test": classifier.share(test, test_labels),
        "recognised_reconstructed_test": classifier.share(
            model.tokenizer.decode(model.tokenizer.encode(test).codes), test_labels
        ),
        "recognised_each": {
            label: classifier.share(pictures[[a == label for a in asked]], [label] * args.each)
            for label in model.labels
        },
        "copies": copies / len(result),
        "generated": neighbours(test, pictures),
        "real_train": neighbours(
            test, train[torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: len(pictures)]]
        ),
        "seconds": seconds,
    }
    print(json.dumps(report, indent=2))
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    if args.sheet:
        save_media(args.sheet, sheet(pictures, asked, test, test_labels), model.spec)


def neighbours(real: torch.Tensor, other: torch.Tensor) -> dict[str, float]:
    """Precision, recall, density and coverage of `other` against `real`, pictures [n, 1, 8, 8]."""
    from prdc import compute_prdc

    found = compute_prdc(real_features=real.flatten(1).numpy(), fake_features=other.flatten(1).numpy(), nearest_k=5)
    return {name: float(value) for name, value in found.items()}


def sheet(
    made: torch.Tensor, made_labels: list[str], real: torch.Tensor, real_labels: list[str], columns: int = 16
) -> torch.Tensor:
    """One row for each digit: `columns` generated pictures, a white line, `columns` real ones: [1, height, width]."""
    rows = []
    for label in sorted(set(made_labels)):
        parts = []
        for pictures, labels in ((made, made_labels), (real, real_labels)):
            chosen = pictures[[found == label for found in labels]][:columns]
            parts.append(torch.cat([torch.nn.functional.pad(p, (1, 1, 1, 1), value=-1) for p in chosen], dim=2))
        line = torch.ones(1, parts[0].shape[1], 2)
        rows.append(torch.cat([parts[0], line, parts[1]], dim=2))
    return torch.cat(rows, dim=1).repeat_interleave(4, 1).repeat_interleave(4, 2)


if __name__ == "__main__":
    main()
