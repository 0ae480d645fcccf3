"""Settings of every test: Triton's interpreter where there is no GPU."""

import os

import torch

# Triton reads this once, at its first import, and transformers imports Triton: set it before any test file is read.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
