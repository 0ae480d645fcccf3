"""What compressed codes save: nominal bits, unigram entropy, the network's bits, and the bytes of whole files.

    python benchmarks/compress.py [--only speech] [--json FILE]

Encodes the bundled test data (500 pictures of samples/digits/test.safetensors, 100 recordings of samples/speech/test)
with the bundled tokenizers, writes files with and without the bundled networks, reads each back and compares every
code, and prints a table. Minutes on one CPU core.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from tessera.tokenize.compression.file_format import read_compressed, write_compressed
from tessera.tokenize.compression.integer_network import load_coder
from tessera.tokenize.data.codes_file import CodesItem, write_codes
from tessera.tokenize.tokenizer import load_tokenizer
from tessera.train.evaluation.code_usage import codebook_use, conditional_bits, total_bits
from tessera.train.evaluation.tokenizer_eval import corpus_for

BUNDLED = Path(__file__).resolve().parent.parent / "bundled"


def measure(name: str, folder: Path) -> dict:
    """Bits and bytes of one bundled tokenizer's test data."""
    tokenizer, net = load_tokenizer(BUNDLED / name / "tokenizer"), load_coder(BUNDLED / name / "coder")
    corpus, spec = corpus_for(tokenizer.spec, None), tokenizer.spec
    codes = [tokenizer.encode(corpus.media(i, spec.geometry)[None]).codes[0] for i in range(len(corpus))]
    items = [CodesItem(f"{i:05}", item) for i, item in enumerate(codes)]
    joined, known = torch.cat(codes, dim=1), conditional_bits(codes, net)
    books = [
        codebook_use(row, size, conditional=bits)
        for row, size, bits in zip(joined, spec.cardinalities, known, strict=True)
    ]
    bits = total_bits(spec, books, joined.shape[1])
    write_codes(folder / "plain.safetensors", spec, items)
    found = {
        "name": name,
        "items": len(items),
        "frames": bits.frames,
        "nominal_bits": bits.nominal_per_frame,
        "unigram_bits": bits.unigram_per_frame,
        "network_bits": bits.conditional_per_frame,
        "fixed_length_bytes": bits.frames * bits.nominal_per_frame / 8,
        "safetensors_bytes": (folder / "plain.safetensors").stat().st_size,
        "network_parameter_bytes": sum(path.stat().st_size for path in (BUNDLED / name / "coder").iterdir()),
    }
    for kind, own in (("alone", None), ("network", net)):
        started = time.perf_counter()
        wrote = write_compressed(folder / "codes.tsc", spec, items, own)
        written = time.perf_counter()
        read = read_compressed(folder / "codes.tsc", spec, lambda _: net)
        seconds = (written - started, time.perf_counter() - written)
        assert not read.damage and all(torch.equal(a.codes, b.codes) for a, b in zip(read.items, items, strict=True))
        found[kind] = {
            "model": wrote.model,
            "file_bytes": wrote.size,
            "chunk_bytes": wrote.chunk_bytes,
            "saved": 1 - wrote.size / found["fixed_length_bytes"],
            "saved_without_header": 1 - wrote.chunk_bytes / found["fixed_length_bytes"],
            "frames_per_second_written": bits.frames / seconds[0],
            "frames_per_second_read": bits.frames / seconds[1],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("digits", "speech"))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        results = [measure(name, Path(folder)) for name in ("digits", "speech") if arguments.only in (None, name)]
    print(
        "| codes | bits a frame: nominal | unigram | network | fixed length | file alone | file with network | saved |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for found in results:
        alone, network = found["alone"], found["network"]
        print(
            f"| {found['name']}, {found['items']} items, {found['frames']} frames | {found['nominal_bits']:.2f} "
            f"| {found['unigram_bits']:.2f} | {found['network_bits']:.2f} | {found['fixed_length_bytes']:,.0f} bytes "
            f"| {alone['file_bytes']:,} ({alone['model']}) | {network['file_bytes']:,} ({network['model']}) "
            f"| {network['saved']:.1%} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
