"""Write fsq_golden.json: codes and values of vector-quantize-pytorch's FSQ.

pip install vector-quantize-pytorch     (1.32.0 made the file)
python tests/tokenize/make_fsq_golden.py
"""

import json
import math
from pathlib import Path

import torch

FILE = Path(__file__).with_name("fsq_golden.json")
LEVELS = ((3,), (4,), (8, 5, 5, 5), (8, 8, 8, 5, 5, 5), (4,) * 8, (9, 8, 8, 7), (3, 16, 31, 64))


def latents(levels):
    """[60, d] float32, spread over what tanh tells apart and beyond, the same on every machine."""
    rows = [[5 * math.sin(1.7 * n * (axis + 1) + axis) ** 3 for axis in range(len(levels))] for n in range(60)]
    return torch.tensor(rows, dtype=torch.float64).mul(1024).round().div(1024).float()


def main():
    from vector_quantize_pytorch import FSQ

    golden = {}
    for levels in LEVELS:
        values, codes = FSQ(list(levels))(latents(levels)[None])
        golden[",".join(map(str, levels))] = {"codes": codes[0].tolist(), "values": values[0].tolist()}
    FILE.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
