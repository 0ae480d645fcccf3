"""Clusters of codes: laws of the grouping, a slow k-means, the coarse TokenSpec, files, the check against chance."""

import itertools
import json

import pytest
import torch

from tessera.configs.files import read_safetensors, write_json, write_safetensors
from tessera.lm.clustering.algorithms import METHODS, group_centers, group_vectors, scatter_of_random, scatter_within
from tessera.lm.clustering.clustering import Clustering, cluster_codes, load_clustering, measure_clusters
from tessera.tokenize.image.networks import ImageTokenizerConfig
from tessera.tokenize.quantizers.registry import ResidualConfig, VQConfig
from tessera.tokenize.spec import ImageGeometry, TokenSpec
from tessera.tokenize.tokenizer import make_tokenizer

SPEC = TokenSpec(
    name="tiny",
    cardinalities=(7, 4),
    geometry=ImageGeometry(height=4, width=4, rows=2, columns=2),
    fingerprint="f" * 64,
)
LABELS = torch.tensor([[0, 1, 2, 0, 1, 2, 0], [0, 0, 1, 1, -1, -1, -1]])


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    quantizer = ResidualConfig(levels=2, quantizer=VQConfig(size=24, kmeans_init=False))
    config = ImageTokenizerConfig(
        name="tiny", height=4, width=4, channels=1, features=8, blocks=1, latent_dim=4, quantizer=quantizer
    )
    return make_tokenizer(config)


def vectors(count, width=3, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.sample(6)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("count", "groups"), [(1, 1), (9, 1), (9, 9), (10, 4), (40, 7), (33, 32)])
def test_every_vector_is_in_one_group_and_no_group_is_empty(method, count, groups):
    x = vectors(count)
    labels = group_vectors(x, groups, method, seed=3)
    sizes = torch.bincount(labels)
    assert labels.shape == (count,) and len(sizes) == groups and int(sizes.min()) >= 1
    assert torch.equal(labels, group_vectors(x.double(), groups, method, seed=3)), "a function of vectors and seed"
    firsts = [labels.tolist().index(group) for group in range(groups)]
    assert firsts == sorted(firsts), "numbered by their first vectors"
    if method == "balanced":
        assert int(sizes.max()) - int(sizes.min()) <= 1


@pytest.mark.parametrize("method", METHODS)
def test_copies_of_a_vector_do_not_leave_groups_empty(method):
    x = torch.cat([vectors(3)] * 4)
    assert torch.bincount(group_vectors(x, 5, method)).tolist().count(0) == 0
    three = group_vectors(x, 3, "kmeans")
    assert torch.equal(three, torch.arange(3).repeat(4)) and scatter_within(x, three) < 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_kmeans_is_near_the_best_grouping_of_few_vectors(seed):
    x = vectors(6, 2, seed)
    best = min(
        scatter_within(x, torch.tensor(labels))
        for labels in itertools.product(range(3), repeat=6)
        if len(set(labels)) == 3 and labels[0] == 0
    )
    assert best - 1e-9 <= scatter_within(x, group_vectors(x, 3)) <= 1.3 * best


@pytest.mark.parametrize("method", METHODS)
def test_planted_groups_are_found(method):
    planted = torch.arange(6).repeat(5)
    x = 10 * vectors(6, 4)[planted] + 0.1 * vectors(30, 4, 1)
    assert torch.equal(group_vectors(x, 6, method), planted)


@pytest.mark.slow
def test_scatter_of_random_is_the_mean_over_permutations():
    x, labels = vectors(12), group_vectors(vectors(12), 4)
    generator = torch.Generator().manual_seed(0)
    slow = [scatter_within(x, labels[torch.randperm(12, generator=generator)]) for _ in range(4000)]
    assert scatter_of_random(x, labels) == pytest.approx(sum(slow) / len(slow), rel=0.02)  # 4000 draws
    centres = torch.stack([x[labels == group].mean(0) for group in range(4)])
    torch.testing.assert_close(group_centers(x, labels, 4), centres)
    assert scatter_within(x, labels) == pytest.approx(float((x - centres[labels]).square().sum(1).mean()))


def test_coarse_labels_of_codes():
    clustering = Clustering(SPEC, LABELS)
    codes = torch.tensor([[[0, 4, 6, 2], [3, 0, 1, 2]]])
    assert clustering.coarse(codes).tolist() == [[[0, 1, 0, 2], [1, 0, 0, 1]]]
    assert clustering.clusters == (3, 2) and clustering.sizes(0).tolist() == [3, 2, 2]
    spec = clustering.spec
    assert spec.cardinalities == (3, 2) and spec.geometry == SPEC.geometry and spec.name == "tiny-coarse"
    others = LABELS.clone()
    others[0, :3] = torch.tensor([0, 2, 1])
    assert len({SPEC.fingerprint, spec.fingerprint, Clustering(SPEC, others).spec.fingerprint}) == 3
    with pytest.raises(ValueError, match="codes have 1 codebooks but the clusters have 2"):
        clustering.coarse(codes[:, :1])


def test_centres_and_middles():
    clustering, x = Clustering(SPEC, LABELS), torch.stack([vectors(7), vectors(7, seed=1)])
    centres, medoids = clustering.centers(x), clustering.medoids(x)
    assert centres.shape == (2, 3, 3) and not centres[1, 2].any() and int(medoids[1, 2]) == 0
    for k, m in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):
        members = (LABELS[k] == m).nonzero()[:, 0]
        torch.testing.assert_close(centres[k, m], x[k, members].mean(0))
        distances = (x[k, members] - centres[k, m]).norm(dim=1)
        chosen = (members == medoids[k, m]).nonzero()[0, 0]  # not argmin: two are equally far from their mean
        assert float(distances[chosen]) <= float(distances.min()) + 1e-6


def test_files(tmp_path, tokenizer):
    made = cluster_codes(tokenizer, [6, 3], "balanced", seed=5)
    made.save(tmp_path / "c")
    found = load_clustering(tmp_path / "c")
    assert torch.equal(found.labels, made.labels) and found.spec == made.spec and found.tokenizer == tokenizer.spec
    assert (found.method, found.seed, found.clusters) == ("balanced", 5, (6, 3))
    with pytest.raises(FileNotFoundError, match="no clusters here .* make them with: tessera coarse"):
        load_clustering(tmp_path)
    tensors, _ = read_safetensors(tmp_path / "c" / "clusters.safetensors")
    labels = tensors["labels"]
    changed = labels.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 6
    for wrong, message in ((changed, "the labels do not match config.json"), (labels + 1, "must use every")):
        write_safetensors(tmp_path / "c" / "clusters.safetensors", {"labels": wrong})
        with pytest.raises(ValueError, match=message):
            load_clustering(tmp_path / "c")
    write_safetensors(tmp_path / "c" / "clusters.safetensors", {"labels": labels.float()})
    with pytest.raises(ValueError, match="one tensor 'labels' of int32"):
        load_clustering(tmp_path / "c")
    write_json(tmp_path / "c" / "config.json", {"format": "tessera-model"})
    with pytest.raises(ValueError, match="this is a model, a folder of clusters is needed"):
        load_clustering(tmp_path / "c")
    assert "fingerprint" in json.dumps(made.spec.model_dump())


def test_refusals(tokenizer):
    with pytest.raises(ValueError, match="codebook 0 of tokenizer 'tiny' has 24 codes, which cannot form 25 clusters"):
        cluster_codes(tokenizer, 25)
    with pytest.raises(ValueError, match="cannot form 0 clusters"):
        cluster_codes(tokenizer, [4, 0])
    with pytest.raises(ValueError, match="clusters has 3 numbers but tokenizer 'tiny' has 2 codebooks"):
        cluster_codes(tokenizer, [4, 4, 4])
    with pytest.raises(ValueError, match=r"labels must be long \[2, 7\], found torch.int64 \[2, 6\]"):
        Clustering(SPEC, LABELS[:, :6])
    with pytest.raises(ValueError, match="codebook 1: its 4 labels must use every cluster"):
        Clustering(SPEC, LABELS.where(LABELS != -1, 0))


def test_the_check_against_chance(tokenizer):
    clustering = cluster_codes(tokenizer, 6)
    reports = measure_clusters(clustering, tokenizer.vectors())
    assert [(one.codes, one.clusters) for one in reports] == [(24, 6), (24, 6)]
    assert all(one.closer > 0.3 and not one.near_random for one in reports)
    shuffled = clustering.labels[:, torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    assert all(one.near_random for one in measure_clusters(Clustering(tokenizer.spec, shuffled), tokenizer.vectors()))
    equally_far = torch.eye(24).expand(2, -1, -1)  # no vector is nearer to one than to another: nothing to find
    assert [round(one.closer, 6) for one in measure_clusters(clustering, equally_far)] == [0, 0]
    whole = measure_clusters(cluster_codes(tokenizer, [1, 24]), tokenizer.vectors())
    assert not any(one.near_random for one in whole) and whole[1].distance == 0 and whole[1].closer == 1
