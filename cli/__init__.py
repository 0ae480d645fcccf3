"""The command line. A verb is one file with `register(app)` and one entry here; none imports torch at import time."""

from importlib import import_module

VERB_FILES = (
    *("doctor", "demo", "train", "export", "generate", "tts", "image", "eval"),
    *("tokenizer", "encode", "decode", "shards", "coarse", "convert", "seal", "configs"),
)

VERBS = [import_module(f".{name}", __name__).register for name in VERB_FILES]
