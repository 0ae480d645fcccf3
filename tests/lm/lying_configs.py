"""Load directories whose config lies, each in a process of its own with little memory and time; prints JSON lines.

    python tests/lm/lying_configs.py KIND FOLDER CONFIG [EVERY]

KIND is model, tokenizer, coder or clusters; CONFIG is the file in FOLDER to change. Every number of it is set to each
of VALUES, one at a time (of all those cases, each EVERY-th).
"""

import json
import os
import resource
import sys
from pathlib import Path

VALUES = (
    0,
    1 << 10,
    1 << 16,
    1 << 20,
    (1 << 24) - 1,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    10**12,
    1 << 62,
    10**20,
    -1,
    1e300,
)
SECONDS, MEGABYTES = 2, 500


def numbers(data, path=()):
    """Paths of all numbers in JSON data."""
    if isinstance(data, dict):
        entries = data.items()
    elif isinstance(data, list):
        entries = enumerate(data[:3])
    else:
        return [path] if isinstance(data, int | float) and not isinstance(data, bool) else []
    return [found for key, value in entries for found in numbers(value, (*path, key))]


def changed(data, path, value):
    """A copy of JSON data with another value at a path."""
    copy = json.loads(json.dumps(data))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copy


def load_limited(load, folder):
    """What becomes of loading: a line, and the seconds and megabytes it took."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + (MEGABYTES << 20),) * 2)
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + 10 * SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        try:
            load(folder)
            line = "loaded"
        except BaseException as error:  # whatever a user would be shown
            line = f"{type(error).__name__}: {error}"
        now = resource.getrusage(resource.RUSAGE_SELF)
        took = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        with os.fdopen(writer, "w") as file:
            file.write(
                json.dumps({"line": line, "seconds": took, "megabytes": (now.ru_maxrss - used.ru_maxrss) / 1024})
            )
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    return json.loads(said) if said else {"line": f"killed: {status}", "seconds": 99, "megabytes": 0}


def main(kind, folder, config, every=1):
    from tessera.lm.checkpoints.model_directory import load_model
    from tessera.lm.clustering.clustering import load_clustering
    from tessera.tokenize.compression.integer_network import load_coder
    from tessera.tokenize.tokenizer import load_tokenizer

    load = {"model": load_model, "tokenizer": load_tokenizer, "coder": load_coder, "clusters": load_clustering}[kind]
    load(folder)  # imports and caches are there before anything is measured
    path = Path(folder) / config
    whole = json.loads(path.read_text())
    whole.pop("sha256", None)  # what an attacker can make right again
    for place in (Path(folder), Path(folder).parent):
        (place / "fingerprint.json").unlink(missing_ok=True)
    cases = [(where, value) for where in numbers(whole) for value in VALUES]
    for number, (where, value) in enumerate(cases):
        if number % int(every):
            continue
        path.write_text(json.dumps(changed(whole, where, value)))
        found = load_limited(load, folder)
        print(json.dumps({"where": ".".join(map(str, where)), "value": value, **found}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
