"""The command line. Each command is one file in commands/ with `register(app)` and one entry here.

No command imports torch at import time.
"""

from importlib import import_module

VERB_FILES = (
    *("doctor", "demo", "train", "export", "generate", "tts", "transcribe", "image", "eval", "tokenizer"),
    *("encode", "decode"),
    *("align", "shards", "cluster", "convert", "directories.load", "directories.seal", "configs"),
)

VERBS = [import_module(f".commands.{name}", __name__).register for name in VERB_FILES]
