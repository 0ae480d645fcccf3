"""Hostile inputs for the command line: what a stranger, a damaged disk or an attacker may hand to each verb.

A case makes its files in a folder that holds "models" (tiny_models.py) and "shards", and gives the arguments.
"""

import json
import os
import shutil
import struct
import zlib

LONG = "x" * 5000
HUGE = "9" * 5000
LM = """
name: small
data: {{shards: {folder}/shards}}
tokenizer: {folder}/models/shapes/tokenizer
lm: {{width: 16, layers: 1, heads: 2, rope: {{kind: grid}}, conditions: [{{kind: label}}]}}
train: {{steps: 1, batch: 2, lr: 1e-3}}
engine: {{kind: torch}}
"""
TOKENIZER = """
data: {{kind: arrays, path: {folder}/pictures.safetensors}}
tokenizer:
  {{kind: picture, name: t, height: 4, width: 6, channels: 1, features: 8, blocks: 1, latent_dim: 8,
   quantizer: {{kind: residual, levels: 2, quantizer: {{kind: vq, size: 8}}}}}}
train: {{steps: 1, batch: 2}}
"""
SHARDS = """
corpus: {{kind: arrays, path: {folder}/pictures.safetensors}}
tokenizer: {folder}/models/shapes
out: {folder}/new-shards
"""


def yaml_bytes(content):
    """`tessera train` with a file of this content."""

    def case(folder):
        (folder / "hostile.yaml").write_bytes(content)
        return ["train", folder / "hostile.yaml", "--out", folder / "run"]

    return case


def train(*sets, out="run"):
    """`tessera train` of a small run with --set."""

    def case(folder):
        (folder / "lm.yaml").write_text(LM.format(folder=folder))
        return ["train", folder / "lm.yaml", *(["--out", folder / out] if out else []), *with_sets(sets)]

    return case


def train_tokenizer(*sets):
    def case(folder):
        (folder / "tokenizer.yaml").write_text(TOKENIZER.format(folder=folder))
        return ["tokenizer", "train", folder / "tokenizer.yaml", "--out", folder / "tokenizer", *with_sets(sets)]

    return case


def shards(*sets):
    def case(folder):
        (folder / "shards.yaml").write_text(SHARDS.format(folder=folder))
        return ["shards", folder / "shards.yaml", *with_sets(sets)]

    return case


def with_sets(sets):
    return [part for item in sets for part in ("--set", item)]


def shapes(*arguments, out="out"):
    return lambda folder: ["generate", folder / "models" / "shapes", "--label", "star", "-o", folder / out, *arguments]


def tones(*arguments):
    return lambda folder: ["generate", folder / "models" / "tones", "--text", "a", "-o", folder / "out", *arguments]


def model_file(name, content):
    """`tessera generate` with a model of which one file has this content (bytes, or a function of the old bytes)."""

    def case(folder):
        model = folder / "hostile-model"
        shutil.copytree(folder / "models" / "shapes", model)
        old = (model / name).read_bytes()
        (model / name).write_bytes(content(old) if callable(content) else content)
        return ["generate", model, "--label", "star", "-o", folder / "out"]

    return case


def changed(*keys, value):
    """Old bytes of JSON with the value at these keys changed."""

    def change(old):
        data = json.loads(old)
        data.pop("sha256", None)
        place = data
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        return json.dumps(data).encode()

    return change


def index(content):
    """`tessera eval` with shards of this index."""

    def case(folder):
        hostile = folder / "hostile-shards"
        shutil.copytree(folder / "shards", hostile)
        old = (hostile / "index.json").read_bytes()
        (hostile / "index.json").write_bytes(content(old) if callable(content) else content)
        return ["eval", folder / "models" / "shapes", "--data", hostile, "--no-speed"]

    return case


def big(start, repeated, size):
    """A file of `size` bytes; made in pieces."""

    def content(old):
        return start + repeated * (size // len(repeated))

    return content


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def decode(content):
    def case(folder):
        (folder / "hostile.safetensors").write_bytes(content)
        tokenizer = folder / "models" / "shapes"
        return ["decode", folder / "hostile.safetensors", "--tokenizer", tokenizer, "-o", folder / "out"]

    return case


def compressed(frames):
    """A small .tsc that claims so many frames."""

    def case(folder):
        spec = json.loads((folder / "models" / "shapes" / "config.json").read_bytes())["spec"]
        header = {"spec": spec, "items": [{"name": "a", "frames": frames}], "model": "uniform"}
        header |= {"chunk_frames": frames, "bytes_crc": 0}
        packed = zlib.compress(json.dumps(header).encode() + b"\0" + bytes(8))
        content = b"TESSERAC" + struct.pack("<III", 1, len(packed), zlib.crc32(packed)) + packed
        return decode(content)(folder)

    return case


def public(config, weights=None):
    """`tessera convert` of a public checkpoint."""

    def case(folder):
        source = folder / "public"
        source.mkdir()
        (source / "config.json").write_bytes(config)
        if weights is not None:
            (source / "model.safetensors.index.json").write_bytes(weights)
        return ["convert", source, folder / "converted"]

    return case


def corpus(lines):
    """`tessera shards` of a folder with this metadata.jsonl."""

    def case(folder):
        (folder / "media").mkdir()
        (folder / "media" / "metadata.jsonl").write_bytes(lines)
        return shards(f"corpus={{kind: folder, path: {folder}/media}}")(folder)

    return case


def fifo(folder):
    os.mkfifo(folder / "pipe.yaml")
    return ["train", folder / "pipe.yaml"]


def loop(folder):
    os.symlink(folder / "loop.yaml", folder / "loop.yaml")
    return ["train", folder / "loop.yaml"]


MUSICGEN = json.dumps({"model_type": "musicgen_decoder"}).encode()
LLAMAGEN = json.dumps({"model_type": "llamagen", "image_size": 256}).encode()

CASES = {
    # YAML
    "yaml: many keys": yaml_bytes(b"\n".join(b"k%d: 1" % number for number in range(40_000))),
    "yaml: 10000 keys": yaml_bytes(b"\n".join(b"k%d: 1" % number for number in range(4_999))),
    "yaml: deep lists": yaml_bytes(b"[" * 200_000),
    "yaml: deep mappings": yaml_bytes(b"a: " + b"{a: " * 50_000),
    "yaml: a date": yaml_bytes(b"name: 2024-01-01\ndata: 2024-01-01"),
    "yaml: no date": yaml_bytes(b"name: 2001-99-99"),
    "yaml: binary": yaml_bytes(b"name: !!binary aGVsbG8="),
    "yaml: a set": yaml_bytes(b"name: !!set {a, b}"),
    "yaml: python": yaml_bytes(b"name: !!python/object/apply:os.system [ls]"),
    "yaml: aliases": yaml_bytes(b"a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]"),
    "yaml: digits": yaml_bytes(b"seed: " + HUGE.encode()),
    "yaml: NUL": yaml_bytes(b"name: \x00"),
    "yaml: UTF-16": yaml_bytes("name: x".encode("utf-16")),
    "yaml: latin-1": yaml_bytes("name: ü".encode("latin-1")),
    "yaml: escape sequences": yaml_bytes(b'"\\e[31mx": 1'),
    "yaml: a surrogate": yaml_bytes(b'name: "\\ud800"'),
    "yaml: empty": yaml_bytes(b""),
    "yaml: a list": yaml_bytes(b"- 1"),
    "yaml: 2 MB": yaml_bytes(b"# x\n" * 500_000),
    "yaml: a long key": yaml_bytes(b"x" * 200_000 + b": 1"),
    # Paths
    "path: a folder": lambda folder: ["train", folder],
    "path: too long": lambda folder: ["train", folder / LONG],
    "path: a loop": loop,
    "path: a pipe": fifo,
    "path: a device": lambda folder: ["shards", "/dev/null"],
    "path: out too long": train(out=LONG),
    "path: out below a file": train(out="lm.yaml/x"),
    "path: shards too long": train(f"data.shards={LONG}"),
    "path: tokenizer too long": train(f"tokenizer={LONG}"),
    "path: corpus too long": shards(f"corpus.path={LONG}"),
    "path: model too long": lambda folder: ["generate", LONG, "-o", folder / "out"],
    "path: output too long": shapes(out=LONG + ".png"),
    "path: output below a device": shapes(out="../../../../../../../dev/null/x.png"),
    # Names
    "name: ../x": train("name=../x", out=None),
    "name: /etc/x": train("name=/etc/x", out=None),
    "name: a line end": train('name="a\\nb"', out=None),
    "name: a trailing line end": train('name="a\\n"', out=None),
    "name: ..": train("name=..", out=None),
    "name: empty": train("name=''", out=None),
    "name: a device": train("name=con", out=None),
    "name: long": train("name=" + "x" * 300, out=None),
    "name: escape sequences": train('name="\\e[31m"', out=None),
    # Numbers of configs
    "number: batch of 10^9": train("train.batch=1000000000"),
    "number: batch of 10^7": train("train.batch=10000000"),
    "number: batch of 10^30": train("train.batch=1" + 30 * "0"),
    "number: steps of 1e999": train("train.steps=1e999"),
    "number: steps of 10^18": train("train.steps=1" + 18 * "0"),
    "number: negative steps": train("train.steps=-1"),
    "number: lr of NaN": train("train.lr=.nan"),
    "number: lr of infinity": train("train.lr=.inf"),
    "number: pools of 10^9": train("data.pool_batches=1000000000"),
    "number: seed of 10^30": train("seed=1" + 30 * "0"),
    "number: width and layers": train("lm.width=65536", "lm.heads=1024", "lm.layers=1024"),
    "number: layers of 10^9": train("lm.layers=1000000000"),
    "number: window of 10^30": train("lm.window=1" + 30 * "0"),
    "number: device": train("device=meta"),
    "number: tokenizer width": train_tokenizer("tokenizer.features=1000000000"),
    "number: tokenizer latents": train_tokenizer("tokenizer.latent_dim=1000000000"),
    "number: tokenizer blocks": train_tokenizer("tokenizer.blocks=1000000000"),
    "number: tokenizer height": train_tokenizer("tokenizer.height=1000000000"),
    "number: codebook of 10^12": train_tokenizer("tokenizer.quantizer.quantizer.size=1000000000000"),
    "number: levels of 10^9": train_tokenizer("tokenizer.quantizer.levels=1000000000"),
    "number: tokenizer batch": train_tokenizer("train.batch=1000000000"),
    "number: tokenizer steps": train_tokenizer("train.steps=1e999"),
    "number: shards": shards("items_per_shard=-1"),
    # Options
    "option: -n 10^9": shapes("-n", "1000000000"),
    "option: -n of digits": shapes("-n", HUGE),
    "option: -n 10^6 of an hour": tones("-n", "1000000", "--frames", "1000000"),
    "option: --frames 10^9": tones("--frames", "1000000000"),
    "option: --frames of a picture": shapes("--frames", "1000000"),
    "option: --max-seconds 10^12": tones("--max-seconds", "1000000000000"),
    "option: --max-seconds nan": tones("--max-seconds", "nan"),
    "option: --max-seconds inf": tones("--max-seconds", "inf"),
    "option: --seed 10^30": shapes("--seed", "1" + 30 * "0"),
    "option: --batch 10^9": shapes("--batch", "1000000000"),
    "option: --passes 10^9": shapes("--passes", "1000000000"),
    "option: --draft 10^9": shapes("--draft", "1000000000"),
    "option: --temperature nan": shapes("--temperature", "nan"),
    "option: --temperature inf": shapes("--temperature", "inf"),
    "option: --temperature -1": shapes("--temperature", "-1"),
    "option: --temperature 1e999": shapes("--temperature", "1,1,1e999"),
    "option: --top-k of digits": shapes("--top-k", HUGE),
    "option: --top-k 10^18": shapes("--top-k", "1" + 18 * "0"),
    "option: --guidance deep": shapes("--guidance", "{a: " * 1000),
    "option: --guidance nan": shapes("--guidance", "{kind: linear, scale: .nan}"),
    "option: --cache": shapes("--cache", "{kind: ring, window: !!set {1}}"),
    "option: --device meta": shapes("--device", "meta"),
    "option: --device xyz": shapes("--device", "xyz"),
    "option: --device empty": shapes("--device", ""),
    "option: --device cuda:99": shapes("--device", "cuda:99"),
    "option: --device escapes": shapes("--device", "a\x1b[31m"),
    "option: --label escapes": shapes("--label", "\x1b[31m"),
    "option: --nproc 10^9": lambda folder: [*train()(folder), "--nproc", "1000000000"],
    "option: --clusters": lambda folder: ["coarse", folder / "models/shapes", "--clusters", HUGE, "-o", folder / "c"],
    "option: --items": lambda folder: ["tokenizer", "eval", folder / "models/shapes", "--items", "1" + 30 * "0"],
    "option: --window": lambda folder: ["tokenizer", "eval", folder / "models/shapes", "--window", "1" + 30 * "0"],
    "option: --set deep": train("train=" + "[" * 50_000),
    "option: --set nothing": train("train.steps"),
    # JSON
    "json: 60 MB of lists": model_file("config.json", big(b"[", b"[],", 60 << 20)),
    "json: 10 MB of lists": model_file("config.json", big(b"[", b"[],", 10 << 20)),
    "json: deep": model_file("config.json", b"[" * 40_000),
    "json: UTF-16": model_file("config.json", lambda old: old.decode().encode("utf-16")),
    "json: NaN": model_file("config.json", changed("generation", "temperature", value=float("nan"))),
    "json: twice": model_file("config.json", b'{"format": "tessera-model", "format": "tessera-model"}'),
    "json: digits": model_file("config.json", b'{"version": ' + HUGE.encode() + b"}"),
    "json: wrong labels": model_file("config.json", changed("labels", value=[1] * 150_000)),
    "json: codebooks of 2^24": model_file("config.json", changed("spec", "cardinalities", value=[1 << 24] * 3)),
    "json: codebooks of 2^60": model_file("config.json", changed("spec", "cardinalities", value=[1 << 60] * 3)),
    "json: width and layers": model_file("config.json", changed("lm", "layers", value=1024)),
    "json: index of lists": index(big(b'{"ids": [', b"[],", 60 << 20)),
    "json: index of wrong numbers": index(changed("lengths", value=["x"] * 300_000)),
    "json: index of huge numbers": index(changed("lengths", 0, value=10**18)),
    "json: index names ../x": index(changed("files", 0, "file", value="../../x.safetensors")),
    "json: index names ..": index(changed("files", 0, "file", value="..")),
    "json: index names a long file": index(changed("files", 0, "file", value="x" * 3000)),
    "json: index names escapes": index(changed("files", 0, "file", value="\x1b[31m")),
    "json: public config": public(b"[" * 40_000),
    "json: public config of lists": public(b"[" + b"[]," * (3 << 20)),
    "json: public index names ../x": public(LLAMAGEN, b'{"weight_map": {"a": "../../x.safetensors"}}'),
    "json: public index names a long file": public(LLAMAGEN, b'{"weight_map": {"a": "%s"}}' % LONG.encode()),
    "json: public numbers": public(MUSICGEN.replace(b"}", b', "hidden_size": 1e999}')),
    "json: metadata.jsonl deep": corpus(b"[" * 40_000),
    "json: metadata.jsonl in one line": corpus(b'{"file": [' + b"1," * (4 << 20)),
    "json: metadata.jsonl names ../x": corpus(b'{"file": "../x.png"}'),
    # safetensors
    "safetensors: shape 1e999": decode(safetensors(b'{"x":{"dtype":"U8","shape":[1e999],"data_offsets":[0,0]}}')),
    "safetensors: shape 2^62": decode(
        safetensors({"x": {"dtype": "U8", "shape": [1 << 62, 4], "data_offsets": [0, 0]}})
    ),
    "safetensors: negative": decode(safetensors({"x": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 0]}})),
    "safetensors: lists": decode(safetensors(b'{"x":[' + b"[]," * (1 << 21))),
    "safetensors: deep": decode(safetensors(b"[" * 100_000)),
    "safetensors: cut": decode(b"\xff" * 8),
    "safetensors: empty": decode(b""),
    "safetensors: weights": model_file("lm.safetensors", safetensors(b"{" * 1000)),
    "compressed: 10^12 frames": compressed(10**12),
    "compressed: 10^7 frames": compressed(10**7),
}
