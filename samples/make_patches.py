"""Cut scikit-learn's two sample photographs into square patches, written as two safetensors files.

    python -m tessera.samples.make_patches --out out/patches/data

china.jpg (CC BY 2.0, flickr.com/photos/danielbuechele) and flower.jpg (CC BY 2.0, flickr.com/photos/vultilion), 427 x
640, color. The right fifth of each is cut into adjacent test patches, the rest into overlapping training patches; no
pixel is in both. Each file holds "images" uint8 [N, side, side, 3] and "labels" int64 [N], 0 for china and 1 for
flower.
"""

from __future__ import annotations

import argparse
from pathlib import Path

TEST_SHARE = 0.2


def main() -> None:
    """Parse the command line and write train.safetensors and test.safetensors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--side", type=int, default=32, help="side of a patch in pixels")
    parser.add_argument("--stride", type=int, default=8, help="stride of training patches in pixels")
    args = parser.parse_args()
    write_patches(args.out, args.side, args.stride)


def write_patches(out: Path, side: int = 32, stride: int = 8) -> None:
    """Write out/train.safetensors and out/test.safetensors, see the module docstring.

    Raises ValueError if side or stride is below 1, or if the side does not fit into the test part.
    """
    import torch
    from sklearn.datasets import load_sample_images

    from ..configs.files import write_safetensors

    photographs = [torch.from_numpy(image.copy()) for image in load_sample_images().images]
    fits = min(int(photo.shape[1] * TEST_SHARE) for photo in photographs)
    if not 1 <= side <= fits or stride < 1:
        raise ValueError(f"side must be 1 to {fits} pixels and stride at least 1, found {side} and {stride}")
    for name in ("train", "test"):
        parts = []
        for photo in photographs:
            border = photo.shape[1] - int(photo.shape[1] * TEST_SHARE)
            part, step = (photo[:, :border], stride) if name == "train" else (photo[:, border:], side)
            cut = part.unfold(0, side, step).unfold(1, side, step)  # [rows, columns, 3, side, side]
            parts.append(cut.flatten(0, 1).permute(0, 2, 3, 1))
        labels = torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts)])
        tensors = {"images": torch.cat(parts).contiguous(), "labels": labels.long()}
        write_safetensors(out / f"{name}.safetensors", tensors, {"source": "scikit-learn photographs", "split": name})


if __name__ == "__main__":
    main()
