"""The largest numbers that options take: far beyond what is useful, and near enough to be refused before any work."""

MAX_SAMPLES = 1_000_000
MAX_BATCH = 65_536
MAX_FRAMES = 10_000_000
"""55 hours of sound at 50 frames a second."""
MAX_SEED = 2**63 - 1
MAX_PROCESSES = 1024
MAX_PASSES = 100_000
MAX_DRAFT = 1024
MAX_ITEMS = 10_000_000
