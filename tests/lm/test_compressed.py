"""Compressed codes: exact whole numbers, chunks that stand alone, damage that stays where it is.

Run as a script, this file writes golden.tsc beside itself again.
"""

import copy
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.configs.schema import ConfigError
from tessera.tokenize.compression import chunk_coder, file_format
from tessera.tokenize.compression.chunk_coder import Layout, read_chunks, write_chunks
from tessera.tokenize.compression.context import neighbours, symbol_table
from tessera.tokenize.compression.file_format import is_compressed, read_compressed, write_compressed
from tessera.tokenize.compression.integer_network import CoderConfig, CoderNet, context_symbols, load_coder
from tessera.tokenize.compression.probability_models import NetworkModel, UniformModel, UnigramModel
from tessera.tokenize.compression.range_coder import MAX_WEIGHT, SymbolReader, SymbolWriter, cost_in_bits, frequencies
from tessera.tokenize.data.codes_file import CodesItem
from tessera.tokenize.spec import AudioGeometry, ImageGeometry, TokenSpec

pytest.importorskip("constriction")

SOUND = AudioGeometry(sample_rate=8000, samples_per_frame=160)
GRID = ImageGeometry(height=6, width=8, rows=3, columns=4)


def spec_of(geometry=SOUND, sizes=(7, 5)):
    return TokenSpec(name="t", cardinalities=sizes, geometry=geometry, fingerprint="f" * 64)


def make_net(geometry=SOUND, sizes=(7, 5), **settings):
    torch.manual_seed(0)
    context = ((0, -1), (0, -3)) if geometry is SOUND else ((0, -1), (-1, 0), (-1, 1))
    net = CoderNet(CoderConfig(context=context, embedding=6, width=16, **settings), spec_of(geometry, sizes))
    with torch.no_grad():
        for layer in net.out:
            layer.weight.normal_(std=0.5)  # opinions, so that a wrong context is seen
    return net


def items_of(spec, lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for number, length in enumerate(lengths):
        codes = [torch.randint(size, (length,), generator=generator) for size in spec.cardinalities]
        drawn.append(CodesItem(f"{number}.wav", torch.stack(codes)))
    return drawn


# Symbols and probabilities.


@pytest.mark.parametrize("sizes", [(7, 5), (1, 3), (4096,), (4097, 2), (1 << 18, 9), (1 << 30,), (10**6, 10**5)])
def test_symbols_of_codes(sizes):
    table = symbol_table(sizes)
    assert max(table.sizes) <= 4096
    generator = np.random.default_rng(0)
    codes = np.stack([np.append(generator.integers(0, size, 40), size - 1) for size in sizes])
    symbols = table.split(codes)
    assert (symbols < np.array(table.sizes)).all() and (symbols >= 0).all()
    assert (table.join(symbols) == codes).all()


@pytest.mark.sample(2)
@pytest.mark.parametrize("values", [1, 2, 3, 100, 4096])
def test_frequencies_are_whole_numbers_that_sum(values):
    weights = np.random.default_rng(values).integers(0, MAX_WEIGHT, (20, values))
    weights[:, 0] += 1
    weights[0] = MAX_WEIGHT
    shares = frequencies(weights)
    for row, own in zip(weights.tolist(), shares.tolist(), strict=True):
        free = 2**24 - values
        wanted = [weight * free // sum(row) for weight in row]  # Python's integers
        wanted[row.index(max(row))] += free - sum(wanted)
        assert own == wanted and sum(own) + values == 2**24


@pytest.mark.parametrize("values", [1, 2, 300])
def test_what_is_written_is_read_at_its_cost(values):
    generator = np.random.default_rng(values)
    shares = frequencies(generator.integers(1, MAX_WEIGHT, (400, values)))
    shares[5:9] = frequencies(np.eye(1, values, dtype=np.int64) * MAX_WEIGHT)  # the others all but impossible
    symbols = generator.integers(0, values, 400)
    writer = SymbolWriter()
    for symbol, own in zip(symbols, shares, strict=True):
        writer.put(symbol, own)
    data = writer.finish()
    reader = SymbolReader(data)
    assert [reader.take(own) for own in shares] == symbols.tolist()
    cost = cost_in_bits(symbols, shares).sum()
    assert cost - 1 <= 8 * len(data) <= cost + 64


# The network.


@pytest.mark.parametrize("geometry", [SOUND, GRID])
def test_the_network_is_whole_numbers(geometry):
    """Beside it, Python's integers: no float, no rounding, no order of sums."""
    net = make_net(geometry, layers=2, by_place=geometry is GRID).freeze()
    generator = torch.Generator().manual_seed(1)
    near = torch.stack(
        [torch.randint(size + 1, (5, len(net.config.context)), generator=generator) for size in (7, 5)], -1
    )
    place, current = torch.arange(5), torch.randint(7, (5, 1), generator=generator)
    stored = {name: tensor.tolist() for name, tensor in net._stored().items()}

    def layer(name, x):
        rows = zip(stored[f"{name}.weight"], stored[f"{name}.bias"], strict=True)
        return [sum(a * b for a, b in zip(row, x, strict=True)) + bias for row, bias in rows]

    def activate(x):
        return [min(127, max(0, number // 64)) for number in x]

    hidden = net(near, place)
    for row in range(5):
        x = [n for j in (0, 1) for s in near[row, :, j].tolist() for n in stored[f"embeddings.{j}.weight"][s]]
        x += stored["cells.weight"][row] if geometry is GRID else []
        for number in range(2):
            x = activate(layer(f"hidden.{number}", x))
        assert hidden[row].tolist() == x
        mixed = activate(layer("mix.1", x + stored["embeddings.0.weight"][current[row, 0].item()]))
        logits = [number // 32 for number in layer("out.1", mixed)]
        assert net.logits(hidden[row : row + 1], current[row : row + 1])[0].tolist() == logits
        wanted = [stored["exponential"][min(320, max(logits) - number)] for number in logits]
        assert net.weights(hidden, current)[row].tolist() == wanted


def test_no_sum_of_the_largest_network_leaves_the_whole_numbers_of_float64():
    """A sum of 2^20 products of 127 x 127, and a bias of 32 bits."""
    assert (1 << 20) * 127 * 127 + (1 << 31) < 1 << 53


def test_neither_batch_nor_threads_change_a_weight():
    net = make_net(sizes=(300, 40)).freeze()
    near, place, current = torch.randint(40, (257, 2, 2)), torch.arange(257), torch.randint(300, (257, 1))
    whole = net.weights(net(near, place), current)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for rows in (slice(0, 1), slice(7, 20), slice(None)):
                assert (net.weights(net(near[rows], place[rows]), current[rows]) == whole[rows]).all()
    finally:
        torch.set_num_threads(threads)


def test_training_sees_what_is_stored():
    net = make_net()
    near, place, symbols = torch.randint(5, (64, 2, 2)), torch.arange(64), torch.randint(5, (64, 2))
    net.losses(near, place, symbols).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in net.parameters())
    trained = net.eval().losses(near, place, symbols)
    torch.testing.assert_close(net.freeze().losses(near, place, symbols).float(), trained.detach())


def test_a_coder_is_saved_exactly(tmp_path):
    net = make_net(GRID, by_place=True)
    net.save(tmp_path / "coder")
    again = load_coder(tmp_path / "coder")
    assert again.fingerprint == net.fingerprint
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    bytes_ = bytearray((tmp_path / "coder" / "coder.safetensors").read_bytes())
    bytes_[-1] ^= 1
    (tmp_path / "coder" / "coder.safetensors").write_bytes(bytes_)
    with pytest.raises(ValueError, match="damaged, its fingerprint is not"):
        load_coder(tmp_path / "coder")
    with pytest.raises(FileNotFoundError, match="no coder here"):
        load_coder(tmp_path / "nothing")


def test_a_context_must_be_earlier():
    with pytest.raises(ValueError, match="does not precede the frame"):
        CoderConfig(context=((0, 0),))
    with pytest.raises(ConfigError, match="context rows must be 0"):
        CoderNet(CoderConfig(context=((-1, 0),)), spec_of())


# Context and chunks.


@pytest.mark.parametrize("geometry", [SOUND, GRID])
def test_neighbours(geometry):
    lengths = [5, 1, 9] if geometry is SOUND else [12, 12, 12]
    layout = Layout.of(lengths, 7)
    offsets = [(0, -1), (-1, 0), (-1, 1), (0, -2)]
    found = neighbours(layout.place, layout.first, geometry, offsets)
    frame = 0
    for length in lengths:
        start = frame
        for place in range(length):
            for (down, right), other in zip(offsets, found[frame], strict=True):
                wanted = -1
                if geometry is SOUND:
                    target = place + right if down == 0 else -1
                else:
                    row, column = place // 4 + down, place % 4 + right
                    target = 4 * row + column if row >= 0 and 0 <= column < 4 else -1
                if target >= 0 and start + target >= frame // 7 * 7:
                    wanted = start + target
                assert other == wanted
            frame += 1


@pytest.mark.sample(2)
@pytest.mark.parametrize("kind", ["uniform", "unigram", "sound", "grid"])
@pytest.mark.parametrize("chunk_frames", [1, 5, 1000])
def test_chunks_come_back(kind, chunk_frames, monkeypatch):
    monkeypatch.setattr(chunk_coder, "FRAMES_AT_ONCE", 4)
    geometry = GRID if kind == "grid" else SOUND
    spec = spec_of(geometry, (7, 5000))
    items = items_of(spec, [12, 12, 12] if kind == "grid" else [3, 1, 22])
    table = symbol_table(spec.cardinalities)
    symbols = table.split(torch.cat([item.codes for item in items], dim=1).numpy())
    models = {"uniform": UniformModel(table), "unigram": UnigramModel(table, UnigramModel.measure(symbols, table))}
    model = models.get(kind) or NetworkModel(make_net(geometry, (7, 5000)))
    layout = Layout.of([item.codes.shape[1] for item in items], chunk_frames)
    chunks, costs = write_chunks(symbols, layout, spec, model)
    assert len(chunks) == -(-len(symbols) // chunk_frames)
    found, refused = read_chunks(chunks, layout, spec, model)
    assert (found == symbols).all() and not refused
    assert 8 * sum(map(len, chunks)) <= costs.sum() + 64 * len(chunks)
    for number, (start, end) in enumerate(layout.chunks):  # each alone, the others lost
        others = [data if i == number else b"" for i, data in enumerate(chunks)]
        assert (read_chunks(others, layout, spec, model)[0][start:end] == symbols[start:end]).all()


def test_context_symbols_outside_are_a_value_of_their_own():
    symbols = np.array([[1, 2], [3, 4]])
    found = context_symbols(symbols, np.array([[-1, 0], [1, -1]]), (7, 5))
    assert found.tolist() == [[[7, 5], [1, 2]], [[3, 4], [7, 5]]]


# The file.

GOLDEN = Path(__file__).with_name("golden.tsc")


def golden_net():
    """Weights by a formula, so that no random generator of another release changes them."""
    net = make_net(GRID, (7, 50), by_place=True, layers=2).freeze()
    for number, tensor in enumerate(net.parameters()):
        size, largest = torch.arange(tensor.numel()), 5000 if tensor.dim() == 1 else 127
        tensor.copy_(((size * (2 * number + 3) + size**2) % (2 * largest + 1) - largest).view(tensor.shape))
    return net


def golden_items():
    frames = torch.arange(24)
    codes = torch.stack([(3 * frames**2 + frames) % 7, (frames**3 + 5) % 50])
    return [CodesItem("a.png", codes[:, :12]), CodesItem("b.png", codes[:, 12:])]


def test_the_golden_file_is_read_everywhere():
    """Written once: it holds every later release, package and machine to the same codes."""
    net = golden_net()
    read = read_compressed(GOLDEN, net.spec, lambda fingerprint: net)
    assert not read.damage
    for a, b in zip(read.items, golden_items(), strict=True):
        assert a.name == b.name and torch.equal(a.codes, b.codes)


def find_none(fingerprint):
    raise AssertionError("no network was used")


@pytest.mark.parametrize("geometry", [SOUND, GRID])
def test_files_come_back(geometry, tmp_path):
    spec, path = spec_of(geometry), tmp_path / "codes.tsc"
    items = items_of(spec, [12] * 4 if geometry is GRID else [5, 1, 40])
    wrote = write_compressed(path, spec, items, chunk_frames=7)
    assert wrote.size == path.stat().st_size and is_compressed(path) and not is_compressed(tmp_path)
    read = read_compressed(path, spec, find_none)
    assert read.spec == spec and not read.damage
    for a, b in zip(read.items, items, strict=True):
        assert a.name == b.name and torch.equal(a.codes, b.codes) and a.num_samples == b.num_samples


@pytest.mark.slow
def test_the_smallest_kind_of_model_is_taken(tmp_path):
    spec, path = spec_of(sizes=(200, 50)), tmp_path / "codes.tsc"
    generator = torch.Generator().manual_seed(0)
    even = torch.stack([torch.randint(size, (2000,), generator=generator) for size in (200, 50)])
    assert write_compressed(path, spec, [CodesItem("even", even)]).model == "uniform"
    assert write_compressed(path, spec, [CodesItem("few", even // 20)]).model == "unigram"
    assert torch.equal(read_compressed(path, spec).items[0].codes, even // 20)
    net = make_net(sizes=(200, 50))
    assert write_compressed(path, spec, [CodesItem("even", even)], copy.deepcopy(net)).model == "uniform"  # it is new
    step = torch.stack([torch.arange(2000) % 50, torch.arange(2000) % 50])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    symbols, near = step.T, step.T[torch.tensor([[t - 1, t - 3] for t in range(2000)])]
    for _ in range(60):
        optimizer.zero_grad()
        net.losses(near, torch.zeros(2000, dtype=torch.long), symbols).mean().backward()
        optimizer.step()
    wrote = write_compressed(path, spec, [CodesItem("step", step)], net)
    assert wrote.model == "network" and wrote.coded_bits < 0.5 * wrote.nominal_bits
    assert torch.equal(read_compressed(path, spec, lambda _: net).items[0].codes, step)
    with pytest.raises(ValueError, match="pass --model"):
        read_compressed(path, spec)
    with pytest.raises(ValueError, match="codes of tokenizer"):
        write_compressed(path, spec.model_copy(update={"fingerprint": "0" * 64}), [CodesItem("step", step)], net)


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_chunk_loses_only_itself(seed, tmp_path):
    """Any byte of any chunk: its frames are -1 and named, all others are right."""
    spec, path = spec_of(), tmp_path / "codes.tsc"
    items = items_of(spec, [20, 9, 31])
    size = write_compressed(path, spec, items, chunk_frames=10).chunk_bytes
    data = bytearray(path.read_bytes())
    place = len(data) - size + int(torch.randint(size, (1,), generator=torch.Generator().manual_seed(seed)))
    data[place] ^= 1 << seed
    path.write_bytes(data)
    read = read_compressed(path, spec)
    whole, found = (torch.cat([item.codes for item in part], dim=1) for part in (items, read.items))
    lost = (found == -1).all(dim=0)
    assert torch.equal(found[:, ~lost], whole[:, ~lost])
    if not read.damage:  # bits after the last symbol mean nothing
        assert not lost.any()
        return
    (line,) = read.damage
    chunk = int(line.split()[1])
    assert lost.nonzero()[:, 0].tolist() == list(range(10 * chunk, 10 * chunk + 10))
    names = {0: "frames 0 to 9 of 0.wav", 2: "frames 0 to 8 of 1.wav, frames 0 to 0 of 2.wav"}
    assert names.get(chunk, "") in line


def test_a_file_that_was_cut_off_keeps_its_beginning(tmp_path):
    spec, path = spec_of(), tmp_path / "codes.tsc"
    items = items_of(spec, [60])
    write_compressed(path, spec, items, chunk_frames=10)
    path.write_bytes(path.read_bytes()[:-8])
    read = read_compressed(path, spec)
    assert torch.equal(read.items[0].codes[:, :40], items[0].codes[:, :40])
    assert len(read.damage) in (1, 2) and (read.items[0].codes[:, 50:] == -1).all()


def test_headers_are_checked(tmp_path):
    spec, path = spec_of(), tmp_path / "codes.tsc"
    write_compressed(path, spec, items_of(spec, [60]))
    good = path.read_bytes()
    for changed, message in (
        (b"RIFF" + good[4:], "not a file of compressed codes"),
        (good[:8] + struct.pack("<I", 2) + good[12:], "version 2, this Tessera reads version 1"),
        (good[:40] + bytes([good[40] ^ 1]) + good[41:], "its header is damaged"),
        (good[:30], "its header is damaged"),
    ):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=message):
            read_compressed(path, spec)
    path.write_bytes(good)
    with pytest.raises(ValueError, match="codes of tokenizer"):
        read_compressed(path, spec.model_copy(update={"fingerprint": "0" * 64}))
    with pytest.raises(ValueError, match="no codes to write"):
        write_compressed(path, spec, [])


def test_a_decoder_that_disagrees_is_not_called_damage(tmp_path, monkeypatch):
    spec, path = spec_of(), tmp_path / "codes.tsc"
    write_compressed(path, spec, items_of(spec, [60]))
    monkeypatch.setattr(file_format, "read_chunks", lambda *_: (np.zeros((60, 2), dtype=np.int64), set()))
    with pytest.raises(file_format.DecoderDisagrees, match="the file is whole, but 1 of 1 chunks"):
        read_compressed(path, spec)


if __name__ == "__main__":
    net = golden_net()
    only = pytest.MonkeyPatch()
    only.setattr(file_format, "_candidates", lambda table, stored, net: [(NetworkModel(net), b"")])
    write_compressed(sys.argv[1] if len(sys.argv) > 1 else GOLDEN, net.spec, golden_items(), net, chunk_frames=10)
