"""Write scikit-learn's handwritten digits as two safetensors files.

    python -m tessera.samples.make_digits --out samples/digits

1797 grayscale images, 8x8 (UCI "optical recognition of handwritten digits", its test half; CC BY 4.0, E. Alpaydin and
C. Kaynak). They keep their original order, which is that of the 13 writers: the first 1297 are for training, the last
500, by later writers, for testing.
Each file holds "images" uint8 [N, 8, 8] (the 17 gray levels scaled to 0..255, ink is bright) and "labels" int64 [N].
"""

from __future__ import annotations

import argparse
from pathlib import Path

NUM_TRAIN = 1297


def main() -> None:
    """Parse the command line and write train.safetensors and test.safetensors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    write_digits(parser.parse_args().out)


def write_digits(out: Path) -> None:
    """Write out/train.safetensors and out/test.safetensors, see the module docstring."""
    import torch
    from sklearn.datasets import load_digits

    from ..configs.files import write_safetensors

    pixels, targets = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels / 16 * 255).round().to(torch.uint8).reshape(-1, 8, 8)
    labels = torch.from_numpy(targets).long()
    for name, part in (("train", slice(0, NUM_TRAIN)), ("test", slice(NUM_TRAIN, None))):
        tensors = {"images": images[part].contiguous(), "labels": labels[part].contiguous()}
        write_safetensors(out / f"{name}.safetensors", tensors, {"source": "scikit-learn load_digits", "split": name})


if __name__ == "__main__":
    main()
