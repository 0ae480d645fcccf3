"""Upper limits of option values: far beyond useful values, so that absurd ones are rejected before any work."""

MAX_SAMPLES = 1_000_000
MAX_BATCH = 65_536
MAX_FRAMES = 10_000_000
"""55 hours of audio at 50 frames per second."""
MAX_SEED = 2**63 - 1
MAX_PROCESSES = 1024
MAX_ITEMS = 10_000_000
