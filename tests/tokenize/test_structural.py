"""Clusters and codes by structural entropy, beside the entropy as it is defined."""

import copy
import math
from collections import Counter
from itertools import combinations

import pytest
import torch
from quantizer_trees import tree

from tessera.configs.files import write_safetensors
from tessera.configs.schema import ConfigError
from tessera.tokenize.quantizers import structural_entropy_vq as leaf_file
from tessera.tokenize.quantizers.codebooks import nearest as kmeans_file
from tessera.tokenize.quantizers.codebooks.graph_clustering import (
    Graph,
    joining_costs,
    least_cost,
    merge_change,
    merge_clusters,
    neighbour_graph,
)
from tessera.tokenize.quantizers.codebooks.nearest import nearest_few
from tessera.tokenize.quantizers.registry import make_quantizer

# The definition: edges are {(a, b): weight} with a < b, a partition is a list of sets of nodes.


def slow_entropy(edges, partition):
    """2-D structural entropy in bits, from the definition."""
    total, degree, bits = 2 * sum(edges.values()), Counter(), 0.0
    for (a, b), weight in edges.items():
        degree[a] += weight
        degree[b] += weight
    for cluster in partition:
        volume = sum(degree[node] for node in cluster)
        leaving = sum(weight for (a, b), weight in edges.items() if (a in cluster) != (b in cluster))
        bits -= leaving / total * math.log2(volume / total)
        for node in cluster:
            bits -= degree[node] / total * math.log2(degree[node] / volume)
    return bits


def merged(partition, a, b):
    """The partition with its clusters number a and b as one, where a was."""
    rest = [cluster for number, cluster in enumerate(partition) if number not in (a, b)]
    return sorted([*rest, partition[a] | partition[b]], key=min)


def touching(edges, a, b):
    return any((x in a and y in b) or (x in b and y in a) for x, y in edges)


def slow_clusters(edges, num_nodes, most):
    """Merge the pair whose whole entropy is least, computed anew for every pair."""
    partition = [{node} for node in range(num_nodes)]
    while len(partition) > 1:
        pairs = list(combinations(range(len(partition)), 2))
        near = [(a, b) for a, b in pairs if touching(edges, partition[a], partition[b])]
        candidates = [merged(partition, a, b) for a, b in near or pairs]
        best = min(candidates, key=lambda found: slow_entropy(edges, found))
        if slow_entropy(edges, best) >= slow_entropy(edges, partition) - 1e-12 and len(partition) <= most:
            break
        partition = best
    return partition


def all_partitions(nodes):
    if not nodes:
        yield []
        return
    first, *rest = nodes
    for smaller in all_partitions(rest):
        for number in range(len(smaller)):
            yield [*smaller[:number], {first} | smaller[number], *smaller[number + 1 :]]
        yield [{first}, *smaller]


def graph_of(edges, num_nodes):
    pairs = torch.tensor(sorted(edges)).view(-1, 2)
    weights = torch.tensor([edges[tuple(pair)] for pair in pairs.tolist()], dtype=torch.float64)
    return Graph(num_nodes, pairs[:, 0], pairs[:, 1], weights)


def as_sets(labels):
    return [{node for node, label in enumerate(labels) if label == number} for number in range(max(labels) + 1)]


def random_edges(num_nodes, share, seed):
    """Connected or not, but every node has an edge."""
    generator = torch.Generator().manual_seed(seed)
    edges = {}
    for pair in combinations(range(num_nodes), 2):
        draw, weight = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        if draw < share or (pair[1] == pair[0] + 1 and pair[0] % 2 == 0) or pair == (num_nodes - 2, num_nodes - 1):
            edges[pair] = 0.1 + weight
    return edges


@pytest.mark.parametrize("seed", range(8))
def test_the_change_of_a_merge_is_the_difference_of_entropies(seed):
    edges = random_edges(9, 0.5, seed)
    partition = [{0, 3}, {1, 2, 8}, {4}, {5, 6, 7}]
    labels = torch.tensor([next(n for n, cluster in enumerate(partition) if node in cluster) for node in range(9)])
    volume, inside = (numbers.tolist() for numbers in graph_of(edges, 9).volumes(labels))
    total = 2 * sum(edges.values())
    for a, b in combinations(range(4), 2):
        cut = sum(w for (x, y), w in edges.items() if {int(labels[x]), int(labels[y])} == {a, b})
        change = merge_change(inside[a], volume[a], inside[b], volume[b], cut, total)
        expected = slow_entropy(edges, merged(partition, a, b)) - slow_entropy(edges, partition)
        assert change / total == pytest.approx(expected, abs=1e-12)
        if not cut:
            assert change >= 0  # so only neighbours are looked at


@pytest.mark.sample(4)
@pytest.mark.parametrize("num_nodes", [2, 5, 9])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("most", [1, 2, 99])
def test_clusters_equal_those_of_trying_every_pair(num_nodes, share, most):
    for seed in range(6):
        edges = random_edges(num_nodes, share, seed)
        found = as_sets(merge_clusters(graph_of(edges, num_nodes), most))
        assert found == slow_clusters(edges, num_nodes, most)
        assert len(found) <= most and found == sorted(found, key=min)


@pytest.mark.parametrize("sizes", [(4, 4), (3, 3, 2), (2, 3, 2)])
def test_clear_communities_are_found_and_no_partition_is_better(sizes):
    """Everyone knows everyone in a community, and one outside it a little."""
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    communities = [set(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]
    edges = {pair: 1.0 for group in communities for pair in combinations(sorted(group), 2)}
    edges |= {(min(a), min(b)): 0.3 for a, b in combinations(communities, 2)}
    found = as_sets(merge_clusters(graph_of(edges, sum(sizes)), 99))
    assert found == communities
    best = min(all_partitions(list(range(sum(sizes)))), key=lambda partition: slow_entropy(edges, partition))
    assert sorted(best, key=min) == communities


@pytest.mark.parametrize("seed", range(10))
def test_the_cost_of_joining_is_the_difference_of_whole_entropies(seed):
    edges = random_edges(9, 0.5, seed)
    partition = [{0, 3}, {1, 2, 8}, {4}, {5, 6, 7}]
    labels = torch.tensor([next(n for n, cluster in enumerate(partition) if node in cluster) for node in range(9)])
    generator = torch.Generator().manual_seed(seed)
    nodes = torch.randperm(9, generator=generator)[:4]
    weight = torch.rand(4, generator=generator, dtype=torch.float64)
    volume, inside = graph_of(edges, 9).volumes(labels)
    costs = joining_costs(labels[nodes][None], weight[None], inside, volume)
    joined = edges | {(int(node), 9): float(w) for node, w in zip(nodes, weight, strict=True)}
    alone = slow_entropy(joined, [*partition, {9}])
    expected = [
        slow_entropy(joined, [cluster | {9} if n == c else cluster for n, cluster in enumerate(partition)]) - alone
        for c in range(4)
    ]
    torch.testing.assert_close(costs[0] / (2 * sum(joined.values())), torch.tensor(expected, dtype=torch.float64))
    assert int(least_cost(costs, weight.sum()[None])) == min(range(4), key=expected.__getitem__)


def test_ties_go_to_the_lower_number():
    costs = torch.tensor([[-1.0, -2.0, -2.0 - 1e-15], [-3.0, 5.0, -3.0], [0.0, -1e-3, 0.0]], dtype=torch.float64)
    assert least_cost(costs, torch.ones(3, dtype=torch.float64)).tolist() == [1, 0, 1]
    quantizer = make(2, size=8, nodes=8, neighbours=3)
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    quantizer.fit(torch.cat([square + torch.tensor([3.0, 0.0]), -square - torch.tensor([3.0, 0.0])]))
    assert quantizer.cardinalities == (2,)
    middle = torch.tensor([[0.0, 0.0]])  # as far from the one as from the other; of 4 neighbours, 2 are in each
    even = copy.deepcopy(quantizer)
    even.config = quantizer.config.model_copy(update={"neighbours": 4})
    assert even.encode(middle).tolist() == [[0]]
    assert {quantizer.encode(point[None]).item() for point in middle + torch.tensor([[2.0, 0.0], [-2.0, 0.0]])} == {
        0,
        1,
    }


@pytest.mark.parametrize("count", [1, 3, 9])
def test_nearest_few(count, monkeypatch):
    monkeypatch.setattr(kmeans_file, "SEARCH_ELEMENTS", 100)  # several chunks
    torch.manual_seed(count)
    x, entries = torch.randn(70, 5) + 50, torch.randn(40, 5) + 50
    entries[7] = entries[31]
    x[:5] = entries[[7, 3, 31, 30, 12]]
    numbers, squared = nearest_few(x, entries, count)
    for row, found, distances in zip(x.double(), numbers, squared, strict=True):
        true = [(float((row - entry).square().sum()), number) for number, entry in enumerate(entries.double())]
        assert [number for _, number in sorted(true)[:count]] == found.tolist()
        torch.testing.assert_close(distances, torch.tensor([d for d, _ in sorted(true)[:count]]).double())
    assert nearest_few(x[:0], entries, count)[0].shape == (0, count)


def test_nearest_few_where_a_matrix_product_cannot_tell():
    """Entries on a sphere around the vector: more are as near as are looked at closely, and the lower numbers win."""
    entries = torch.cat([torch.eye(20), -torch.eye(20)]) * 1000
    entries[33, 13] += 1e-3
    numbers, _ = nearest_few(torch.zeros(2, 20), entries, 3)
    assert numbers.tolist() == [[33, 0, 1]] * 2


@pytest.mark.parametrize("similarity", ["gaussian", "cosine"])
def test_neighbour_graph(similarity):
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.normalize(x, dim=-1) if similarity == "cosine" else x
    graph, width = neighbour_graph(x, 3, similarity)
    squared = torch.cdist(x.double(), x.double()).square().fill_diagonal_(math.inf)
    near = [squared[node].argsort()[:3].tolist() for node in range(30)]
    expected = {tuple(sorted((node, other))) for node in range(30) for other in near[node]}
    mean = sum(float(squared[node, other]) for node in range(30) for other in near[node]) / 90
    assert float(width) == pytest.approx(mean)
    found = list(zip(graph.first.tolist(), graph.second.tolist(), strict=True))
    assert len(found) == len(expected) and set(found) == expected
    for (a, b), weight in zip(found, graph.weight.tolist(), strict=True):
        true = float(x[a].double() @ x[b].double()) if similarity == "cosine" else math.exp(-squared[a, b] / mean)
        assert weight == pytest.approx(max(true, 1e-12), abs=1e-6)  # lengths of 1 are rounded to float32


# The leaf.


def make(dim, read_files=True, **settings):
    return make_quantizer(tree(kind="structural", **settings), dim, read_files=read_files)


def blobs(num, each, dim, seed=0):
    """Points [num * each, dim] far apart from blob to blob."""
    generator = torch.Generator().manual_seed(seed)
    centres = 10 * torch.randn(num, 1, dim, generator=generator)
    return (centres + torch.randn(num, each, dim, generator=generator)).flatten(0, 1)


@pytest.mark.parametrize("similarity", ["gaussian", "cosine"])
@pytest.mark.parametrize("num", [3, 5, 9])
def test_there_are_as_many_codes_as_clusters(num, similarity):
    quantizer = make(6, size=50, neighbours=9, similarity=similarity)
    assert quantizer.cardinalities == (50,)
    x = blobs(num, 10, 6, seed=num)
    quantizer.fit(x)
    assert quantizer.cardinalities == (num,) and quantizer.vectors().shape == (1, num, 6)
    codes = quantizer.encode(x).view(num, 10)
    assert (codes == codes[:, :1]).all() and len(codes.unique()) == num
    torch.testing.assert_close(quantizer.decode(codes[:, :1]), x.view(num, 10, 6).mean(dim=1))
    assert quantizer(x).stats["usage"].tolist() == [1.0]


@pytest.mark.parametrize("neighbours", [2, 5])
def test_codes_equal_those_of_the_whole_entropy_of_every_choice(neighbours, monkeypatch):
    monkeypatch.setattr(leaf_file, "SEARCH_ELEMENTS", 40)  # several chunks
    torch.manual_seed(neighbours)
    quantizer = make(3, size=20, nodes=24, neighbours=neighbours)
    quantizer.fit(torch.randn(200, 3))
    (V,), nodes = quantizer.cardinalities, quantizer.nodes.double()
    assert V > 2
    squared = torch.cdist(nodes, nodes).square().fill_diagonal_(math.inf)
    pairs = [(node, other) for node in range(24) for other in squared[node].argsort()[:neighbours].tolist()]
    width = sum(float(squared[pair]) for pair in pairs) / len(pairs)
    edges = {tuple(sorted(pair)): math.exp(-float(squared[pair]) / width) for pair in pairs}
    partition = slow_clusters(edges, 24, 20)
    assert partition == as_sets(quantizer.clusters.tolist())
    for number, cluster in enumerate(partition):
        torch.testing.assert_close(quantizer.centres[number], quantizer.nodes[sorted(cluster)].mean(dim=0))
    x = 1.5 * torch.randn(30, 3)
    for point, code in zip(x, quantizer.encode(x), strict=True):
        away = (point.double() - nodes).square().sum(dim=-1)
        near = away.argsort()[:neighbours].tolist()
        joined = edges | {(node, 24): math.exp(-float(away[node]) / width) for node in near}
        costs = [
            slow_entropy(joined, [cluster | {24} if n == choice else cluster for n, cluster in enumerate(partition)])
            for choice in range(V)
        ]
        assert int(code) == min(range(V), key=costs.__getitem__)


def test_the_choice_is_not_always_the_nearest_vector():
    quantizer = make(3, size=99, nodes=300, neighbours=6)
    x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(1))
    quantizer.fit(x)
    nearest = torch.cdist(x, quantizer.vectors()[0]).argmin(dim=-1)
    share = float((nearest == quantizer.encode(x)[:, 0]).float().mean())
    assert 0.5 < share < 0.99


def test_the_order_of_vectors_and_their_repetition_do_not_matter():
    torch.manual_seed(0)
    x, states = torch.randn(100, 4), []
    for rows in (x, x.flip(0), x.repeat(2, 1)[torch.randperm(200)], x[None].view(10, 10, 4)):
        quantizer = make(4, size=40, nodes=60, neighbours=4)
        quantizer.fit(rows)
        states.append(quantizer.state_dict())
    assert all(torch.equal(tensor, state[name]) for state in states for name, tensor in states[0].items())
    assert int(states[0]["num_nodes"]) == 60


def test_a_vector_far_from_all_has_a_code_near_it():
    quantizer = make(2, size=9, neighbours=5)
    x = blobs(3, 12, 2, seed=4)
    quantizer.fit(x)
    away = 1e4 * torch.nn.functional.normalize(x, dim=-1)
    nearest = torch.cdist(away.double(), x.double()).argmin(dim=-1)
    assert torch.equal(quantizer.encode(away), quantizer.encode(x)[nearest])


@pytest.mark.parametrize("kind", ["group", "residual", "branches"])
def test_parts_of_a_tree_find_numbers_of_their_own_which_saving_keeps(kind):
    leaf = {"kind": "structural", "size": 40, "neighbours": 3}
    halves = {"a": {"source": [0, 4], "quantizer": leaf}, "b": {"source": [4, 8], "quantizer": leaf}}
    settings = {"group": {"groups": 2, "quantizer": leaf}, "residual": {"levels": 2, "quantizer": leaf}}
    settings["branches"] = {"branches": halves}
    quantizer = make_quantizer(tree(kind="tail", shortest=1, quantizer={"kind": kind, **settings[kind]}), 8)
    assert quantizer.cardinalities == (40, 40)
    torch.manual_seed(0)
    x = torch.cat([blobs(2, 30, 4), torch.randn(60, 4)], dim=-1)
    other = copy.deepcopy(quantizer)
    quantizer.fit(x)
    first, second = quantizer.cardinalities
    assert first != second and other.cardinalities == (40, 40)
    codes = quantizer.encode(x)
    assert codes.amax(dim=0).tolist() == [first - 1, second - 1]
    assert torch.equal(quantizer.unpack(quantizer.pack(codes)), codes)
    assert quantizer.vectors().shape == (2, max(first, second), 8)
    other.load_state_dict(quantizer.state_dict())
    assert other.cardinalities == (first, second) and torch.equal(other.encode(x), codes)


def test_no_more_codes_than_asked_for():
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    found = []
    for size in (99, 7, 1):
        quantizer = make(3, size=size, nodes=200, neighbours=3)
        quantizer.fit(x)
        found += quantizer.cardinalities
        assert len(quantizer.encode(x).unique()) == found[-1]
    assert found[0] > 7 and found[1:] == [7, 1]


def test_vectors_from_a_file(tmp_path):
    path, x = tmp_path / "features.safetensors", blobs(4, 12, 5)
    write_safetensors(path, {"x": x, "few": x[:3].clone(), "bad": x / 0}, {})
    file = {"path": str(path), "tensor": "x"}
    quantizer = make(5, size=9, file=file)
    assert quantizer.cardinalities == (4,) and len(quantizer.encode(x).unique()) == 4
    again = make(5, False, size=9, file=file)
    assert again.cardinalities == (9,)
    again.load_state_dict(quantizer.state_dict())
    assert torch.equal(again.encode(x), quantizer.encode(x))
    with pytest.raises(ConfigError, match=r"quantizer.file.tensor: 'x' of .* is \[48, 5\], expected \[any, 4\]"):
        make(4, size=9, file=file)
    with pytest.raises(ConfigError, match=r"quantizer.file: .* found 3 different vectors .* neighbours need 9"):
        make(5, size=9, file={**file, "tensor": "few"})
    with pytest.raises(ConfigError, match="holds NaN"):
        make(5, size=9, file={**file, "tensor": "bad"})


def test_what_cannot_be_fitted_says_so():
    with pytest.raises(ConfigError, match=r"quantizer.size: 65 codes cannot be formed from 64 nodes"):
        make(2, size=65, nodes=64)
    quantizer = make(2, size=8, nodes=64)
    with pytest.raises(ValueError, match="no codes yet; call fit"):
        quantizer(torch.randn(5, 2))
    with pytest.raises(ValueError, match=r"found 2 different vectors .* but 8 neighbours need 9"):
        quantizer.fit(torch.tensor([[0.0, 1.0], [2.0, 3.0]]).repeat(30, 1))
    with pytest.raises(ValueError, match="to fit hold NaN"):
        quantizer.fit(torch.full((20, 2), math.nan))
    with pytest.raises(ValueError, match=r"floats \[..., 2\], found torch.float32 \[20, 3\]"):
        quantizer.fit(torch.randn(20, 3))
    assert quantizer.cardinalities == (8,)
