from itertools import permutations
from math import prod

import faiss
import pytest
import torch
from sklearn.cluster import KMeans as SklearnKMeans
from torch import Tensor
from torch.nn.functional import normalize

from fitted import together
from mapet.tokenizers.assign import assign
from mapet.tokenizers.kmeans import kmeans
from mapet.tokenizers.kmeans_init import plus_plus, sampled
from mapet.tokenizers.vector_pool import VectorPool
from mapet.utils.errors import MapetError
from mapet.utils.process_group import ProcessGroup


def clouds(count: int = 2000, width: int = 8, centres: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    middles = 3 * torch.randn(centres, width, generator=generator)
    which = torch.randint(centres, (count,), generator=generator)
    return middles[which] + torch.randn(count, width, generator=generator)


def mean_squared(vectors: Tensor, centroids: Tensor) -> float:
    """Brute force, in float64."""
    difference = vectors.double()[:, None] - centroids.double()[None]
    return float(difference.square().sum(2).min(1).values.mean())


def faiss_objective(vectors: Tensor, start: Tensor, iterations: int) -> float:
    k, width = start.shape
    training = faiss.Clustering(width, k)
    training.niter, training.max_points_per_centroid, training.min_points_per_centroid = iterations, 10**9, 1
    faiss.copy_array_to_vector(start.numpy().ravel(), training.centroids)
    training.train(vectors.numpy(), faiss.IndexFlatL2(width))
    return mean_squared(vectors, torch.from_numpy(faiss.vector_to_array(training.centroids).reshape(k, width)))


@pytest.mark.parametrize("k", [5, 40])
def test_reaches_the_objective_of_faiss_from_the_same_start(k: int) -> None:
    vectors = clouds()
    start = plus_plus(vectors, k, seed=1)
    ours = kmeans(vectors, start, iterations=20)
    assert mean_squared(vectors, ours.centroids) <= 1.01 * faiss_objective(vectors, start, 20)


def test_reaches_the_inertia_of_sklearn_from_the_same_start() -> None:
    vectors = clouds()
    start = plus_plus(vectors, 12, seed=3)
    theirs = SklearnKMeans(12, init=start.numpy(), n_init=1, max_iter=100, tol=0).fit(vectors.numpy())
    ours = kmeans(vectors, start, iterations=100)
    assert min(ours.objective) == pytest.approx(theirs.inertia_ / len(vectors), rel=1e-4)


@pytest.mark.parametrize("seed", range(30))
def test_is_what_it_measured_and_never_above_its_start(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 40, (), generator=generator))
    k = int(torch.randint(1, count + 1, (), generator=generator))
    vectors = torch.randint(-2, 3, (count, 3), generator=generator).float()  # with duplicates
    start = torch.randint(-3, 4, (k, 3), generator=generator).float()
    result = kmeans(vectors, start, iterations=seed % 7)
    measured = mean_squared(vectors, result.centroids)
    assert measured <= mean_squared(vectors, start) + 1e-6
    assert measured == pytest.approx(min(result.objective), abs=1e-5)
    assert result.objective[0] == pytest.approx(mean_squared(vectors, start), abs=1e-5)
    assert result.counts.sum() == count
    assert len(result.objective) <= seed % 7 + 1


def test_one_cluster_is_the_mean_and_as_many_as_vectors_are_the_vectors() -> None:
    vectors = clouds(50)
    one = kmeans(vectors, vectors[:1])
    torch.testing.assert_close(one.centroids[0], vectors.mean(0))
    every = kmeans(vectors, vectors)
    assert set(every.objective) == {0.0}
    assert every.counts.tolist() == [1] * 50


def test_empty_clusters_are_refilled() -> None:
    vectors = clouds(600, centres=10)
    start = torch.cat([vectors[:1], torch.full((9, 8), 1e4)])
    result = kmeans(vectors, start, iterations=30)
    assert (result.counts > 0).all()
    assert min(result.objective) < 0.5 * result.objective[0]


def test_an_empty_cluster_takes_half_of_the_one_with_the_largest_spread() -> None:
    """The two halves lie on a diagonal about the donor's mean, an eighth of its deviation away; others are means."""
    wide, narrow = 4 * clouds(150, centres=1), 500 + clouds(300, centres=1, seed=1)
    start = torch.stack([narrow.mean(0), torch.full((8,), 1e4), wide.mean(0)])
    found = kmeans(torch.cat([wide, narrow]), start, iterations=1).centroids
    torch.testing.assert_close(found[0], narrow.mean(0))
    torch.testing.assert_close((found[1] + found[2]) / 2, wide.mean(0), atol=1e-4, rtol=1e-4)
    reach = wide.std(dim=0, correction=0).square().mean().sqrt() / 8
    half = (found[1] - found[2]) / 2
    torch.testing.assert_close(half.abs(), reach.expand(8), atol=1e-4, rtol=1e-4)
    assert half.min() < 0 < half.max()  # the diagonal is a random one


def test_empty_clusters_stay_where_no_cluster_can_be_split() -> None:
    vectors = torch.tensor([[0.0], [0.0], [5.0]])
    found = kmeans(vectors, torch.tensor([[0.0], [5.0], [1e3]]))
    assert found.centroids.flatten().tolist() == [0, 5, 1e3]
    assert found.counts.tolist() == [2, 1, 0]


def test_stops_when_nothing_moves() -> None:
    assert len(kmeans(clouds(200), plus_plus(clouds(200), 4, 0), iterations=500).objective) < 100


def test_a_large_common_offset_costs_little() -> None:
    vectors = clouds()
    start = plus_plus(vectors, 12, 0)
    far = kmeans(vectors + 1000, start + 1000)
    assert min(far.objective) == pytest.approx(min(kmeans(vectors, start).objective), rel=1e-3)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_chunk_size_does_not_matter(metric: str) -> None:
    vectors = clouds(300)
    start = plus_plus(vectors, 9, 0)
    whole = kmeans(vectors, start, metric=metric)
    for chunk in (1, 7, 299):
        torch.testing.assert_close(kmeans(vectors, start, metric=metric, chunk=chunk).centroids, whole.centroids)


def test_cosine_clusters_directions() -> None:
    vectors = clouds(300)
    start = plus_plus(normalize(vectors), 9, 0)
    scale = torch.rand(300, 1, generator=torch.Generator().manual_seed(0)) * 9 + 0.1
    result = kmeans(scale * vectors, start, metric="cosine")
    torch.testing.assert_close(result.centroids.norm(dim=1), torch.ones(9))
    torch.testing.assert_close(result.centroids, kmeans(vectors, start, metric="cosine").centroids)
    labels, squared = assign(normalize(vectors), result.centroids)
    similarity = normalize(vectors) @ result.centroids.T
    torch.testing.assert_close(2 - 2 * similarity.max(1).values, squared, atol=1e-5, rtol=1e-4)
    for code in range(9):  # a fixed point of spherical k-means
        mean = normalize(normalize(vectors[labels == code]).sum(0), dim=0)
        torch.testing.assert_close(result.centroids[code], mean, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_two_processes_equal_one(metric: str) -> None:
    vectors = clouds(500)
    start = torch.cat([vectors[:6], torch.full((3, 8), 1e4)])  # empty clusters too
    shares = (vectors[:123], vectors[123:])
    results = together(
        2, lambda process_group: kmeans(shares[process_group.rank], start, metric=metric, reduce=process_group.sum)
    )
    alone = kmeans(vectors, start, metric=metric)
    assert torch.equal(results[0].centroids, results[1].centroids)
    assert results[0].counts.tolist() == results[1].counts.tolist()
    torch.testing.assert_close(results[0].centroids, alone.centroids)
    assert results[0].objective == pytest.approx(alone.objective)


def test_a_process_may_have_nothing() -> None:
    vectors = clouds(100)
    results = together(
        2,
        lambda process_group: kmeans(
            vectors if process_group.leads else vectors[:0], vectors[:5], reduce=process_group.sum
        ),
    )
    torch.testing.assert_close(results[1].centroids, kmeans(vectors, vectors[:5]).centroids)


@pytest.mark.parametrize("start", [plus_plus, sampled])
def test_starts_are_the_same_whoever_holds_the_vectors(start) -> None:
    vectors = clouds(300)
    owner = (torch.arange(300) * 7 % 11 > 3).long()

    def drawn(process_group: ProcessGroup) -> Tensor:
        rows = (owner == process_group.rank).nonzero().flatten().flip(0)
        return start(VectorPool(vectors[rows], rows=rows, total=300, process_group=process_group), 60, 3)

    for found in together(2, drawn):
        assert torch.equal(found, start(vectors, 60, 3))


def test_chunks_that_are_made_anew_are_the_tensor() -> None:
    vectors, passes = clouds(300), []

    class Again:
        def __iter__(self):
            passes.append(1)
            return iter(vectors.split(41))

    start = plus_plus(vectors, 9, 0)
    wanted, found = kmeans(vectors, start, iterations=6), kmeans(Again(), start, iterations=6)
    torch.testing.assert_close(found.centroids, wanted.centroids)
    assert len(passes) == len(found.objective) == len(wanted.objective)


@pytest.mark.parametrize("start", [plus_plus, sampled])
def test_starts_are_distinct_rows_and_pure_functions_of_the_seed(start) -> None:
    vectors = clouds(300)
    rows = start(vectors, 120, 7)
    assert len(torch.unique(rows, dim=0)) == 120
    assert (assign(rows, vectors)[1] == 0).all()
    assert torch.equal(rows, start(vectors, 120, 7))
    assert not torch.equal(rows, start(vectors, 120, 8))


def test_starts_cope_with_duplicates() -> None:
    vectors = torch.tensor([[0.0], [0.0], [5.0], [5.0], [5.0]])
    assert plus_plus(vectors, 4, 0).unique().tolist() == [0.0, 5.0]
    assert sampled(vectors, 5, 0).flatten().sort().values.tolist() == [0, 0, 5, 5, 5]


def test_plus_plus_draws_by_squared_distance() -> None:
    """Third and fourth rows come out of one block, the fourth by rejection: their joint law is k-means++'s own."""
    vectors, seeds = torch.tensor([[0.0], [10.0], [11.0], [13.0], [17.0]]), 600
    wanted, found = torch.zeros(5, 5), torch.zeros(5, 5)
    for order in permutations(range(5), 4):
        wanted[order[2:]] += 0.2 * prod(share(vectors, order[:turn], order[turn]) for turn in (1, 2, 3))
    for seed in range(seeds):
        third, fourth = plus_plus(vectors, 4, seed)[2:]
        found[(vectors == third).flatten(), (vectors == fourth).flatten()] += 1
    assert wanted.sum() == pytest.approx(1)
    error = (found - seeds * wanted) / (seeds * wanted).sqrt().clamp_min(1)
    assert error.abs().max() < 4.5


def share(vectors: Tensor, chosen: tuple[int, ...], following: int) -> float:
    """The probability of ``following`` after ``chosen``."""
    weights = (vectors - vectors[list(chosen)].T).square().min(1).values
    return float(weights[following] / weights.sum())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: kmeans(clouds(5), clouds(6)), "use fewer codes or more data"),
        (lambda: plus_plus(clouds(5), 6, 0), "use fewer codes or more data"),
        (lambda: sampled(clouds(5), 6, 0), "use fewer codes or more data"),
        (lambda: kmeans(clouds(5), clouds(2), metric="cosin"), 'Did you mean "cosine"'),
        (lambda: kmeans(clouds(5) / 0, clouds(2)), "NaN or Inf"),
        (lambda: kmeans(torch.full((5, 8), torch.nan), clouds(2)), "NaN or Inf"),
        (lambda: plus_plus(torch.full((5, 8), torch.nan), 2, 0), "NaN or Inf"),
    ],
)
def test_mistakes_are_explained(call, words: str) -> None:
    with pytest.raises(MapetError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
