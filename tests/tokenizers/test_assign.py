import pytest
import torch
from torch import Tensor

from mapet.tokenizers import assign as nearest
from mapet.tokenizers.assign import assign
from mapet.tokenizers.kmeans import kmeans
from mapet.utils.errors import MapetError


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("chunk", [None, 1, 77])
def test_is_the_nearest_by_brute_force(precision: str, chunk: int | None) -> None:
    vectors, centroids = noise(400, 8), noise(30, 8, seed=5)
    labels, squared = assign(vectors, centroids, chunk, precision)
    every = (vectors.double()[:, None] - centroids.double()).square().sum(2)
    assert torch.equal(labels, every.argmin(1))
    torch.testing.assert_close(squared.double(), every.min(1).values, rtol=1e-5, atol=1e-5)
    assert (assign(centroids, centroids)[1] == 0).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_threads_share_the_work_and_leave_their_number_as_it_was(precision: str) -> None:
    vectors, centroids, before = noise(1000, 24), noise(40, 24, seed=5), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = assign(vectors, centroids, 90, precision)
        torch.set_num_threads(3)
        shared = assign(vectors, centroids, 90, precision)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone[0], shared[0])
    torch.testing.assert_close(alone[1], shared[1])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_threads_follow_the_mode_of_their_caller(mode) -> None:
    vectors, centroids, before = noise(100, 8).requires_grad_(), noise(9, 8, seed=5), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        near = nearest.Nearest(centroids, 10)
        plain = near(vectors)[0]
        with mode():
            assert torch.equal(near(vectors)[0], plain)
            assert torch.equal(nearest.Nearest(centroids, 10)(vectors)[0], plain)
        assert torch.equal(near(vectors)[0], plain)
    finally:
        torch.set_num_threads(before)


def wrong(vectors: Tensor, centroids: Tensor, precision: str = "float32") -> int:
    """Vectors whose centroid is not the nearest in float64; an exact tie is not wrong."""
    labels = assign(vectors, centroids, precision=precision)[0]
    found = 0
    for some, label in zip(vectors.double().split(50), labels.split(50), strict=True):
        every = (some[:, None] - centroids.double()).square().sum(2)
        found += int((every.gather(1, label[:, None])[:, 0] > every.min(1).values).sum())
    return found


@pytest.fixture(params=["scores in bfloat16, as on a CPU", "scores in float32, as on a GPU"])
def rounding(request, monkeypatch) -> None:
    """Products of rounded factors on every CPU, with or without instructions for bfloat16."""
    monkeypatch.setattr(nearest, "multiplies_bfloat16", lambda: True)
    if "GPU" not in request.param:
        return
    make, multiply = nearest.Nearest.__init__, nearest.Nearest._product

    def init(self, *settings) -> None:
        make(self, *settings)
        if self.halved:
            self.halved, self.factor = False, self.centred

    def product(self, centred: Tensor, out: Tensor) -> Tensor:
        if self.precision == "float32":
            return multiply(self, centred, out)
        return torch.mm(centred.bfloat16().float(), self.factor.bfloat16().float().T, out=out)

    monkeypatch.setattr(nearest.Nearest, "__init__", init)
    monkeypatch.setattr(nearest.Nearest, "_product", product)


@pytest.mark.parametrize("offset", [0.0, 20.0])
@pytest.mark.parametrize("width", [16, 112, 600])
def test_rounded_factors_change_no_assignment(width: int, offset: float, rounding, monkeypatch) -> None:
    """Means of two vectors as codes: most vectors have several codes almost as near. Ranking alone would not do."""
    vectors = noise(2000, width).relu() ** 3 + offset  # few large values, as after a rectifier
    centroids = vectors.view(500, 4, width)[:, :2].mean(1)
    assert wrong(vectors, centroids, "bfloat16") == 0
    none = torch.empty(0, dtype=torch.int64)
    monkeypatch.setattr(nearest.Nearest, "_near_ties", lambda self, *scores: (none, scores[-1]))
    assert wrong(vectors, centroids, "bfloat16") > 0


def test_rounded_factors_of_one_large_value_change_no_assignment(rounding) -> None:
    """The errors of one term do not cancel."""
    vectors, centroids = 0.01 * noise(2000, 16), 0.01 * noise(200, 16, seed=5)
    vectors[:, 3], centroids[:, 3] = 1 + 0.01 * noise(2000, seed=6), noise(200, seed=7)
    assert wrong(vectors, centroids, "bfloat16") == 0


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_vectors_that_are_centroids_or_next_to_one(scale: float, rounding) -> None:
    """The errors of a score are larger than its distance: it may be on the wrong side of zero."""
    centroids = 3 + noise(300, 40)
    vectors = torch.cat([centroids, centroids + 1e-4 * noise(300, 40, seed=5)]) * scale
    assert wrong(vectors, centroids * scale, "bfloat16") == 0


@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0])
def test_the_error_that_is_assumed_bounds_that_of_the_scores(spread: float, monkeypatch) -> None:
    """Rounding the score of a long distance loses more than rounding the factors does."""
    monkeypatch.setattr(nearest, "multiplies_bfloat16", lambda: True)
    vectors, centroids = noise(500, 64), spread * noise(200, 64, seed=5)
    near = nearest.Nearest(centroids, precision="bfloat16")
    centred, scores = vectors - near.origin, torch.empty(500, 200, dtype=torch.bfloat16)
    labels = near._product(centred, scores).argmax(1)
    halves = (vectors.double() - centroids[labels].double()).square().sum(1) / 2
    off = scores.gather(1, labels[:, None])[:, 0].double() + halves
    _, error = near._near_ties(centred, scores, labels, 2 * halves.float())
    assert off.abs().max() > 0
    assert (off.abs() <= error / 2).all()


def test_three_numbers_of_bfloat16_add_up_to_one_of_float32() -> None:
    values = torch.cat([noise(1000) * 10.0 ** noise(1000, seed=5), torch.tensor([0.0, -torch.inf])])
    assert torch.equal(nearest._parts(values).float().sum(1), values)


def test_bfloat16_ranks_without_comparing_most_vectors_again(rounding, monkeypatch) -> None:
    again, compare = [], nearest._in_float64

    def in_float64(vectors: Tensor, centroids: Tensor, row: Tensor, code: Tensor) -> Tensor:
        again.append(len(row.unique()))
        return compare(vectors, centroids, row, code)

    monkeypatch.setattr(nearest, "_in_float64", in_float64)
    centroids = noise(300, 64)
    vectors = centroids.repeat(4, 1) + 0.3 * noise(1200, 64, seed=5)
    assert wrong(vectors, centroids, "bfloat16") == 0
    assert sum(again) < 0.1 * len(vectors)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_values_that_are_not_finite_stay_so(broken: float, rounding) -> None:
    vectors, centroids = noise(40, 8), noise(5, 8, seed=5)
    vectors[3, 2] = broken
    labels, squared = assign(vectors, centroids, precision="bfloat16")
    assert not squared[3].isfinite()
    assert squared.isfinite().sum() == 39
    assert torch.equal(labels[4:], assign(vectors[4:], centroids)[0])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4, 1e6])
@pytest.mark.parametrize("far", [1e4, 1e6, 1e8, 1e18])
def test_a_far_centroid_does_not_cost_the_others_their_digits(
    far: float, offset: float, precision: str, monkeypatch
) -> None:
    monkeypatch.setattr(nearest, "multiplies_bfloat16", lambda: True)
    vectors, centroids = noise(2000, 16) + offset, noise(64, 16, seed=5) + offset
    centroids[7] = far
    assert wrong(vectors, centroids, precision) == 0


@pytest.mark.parametrize("codes", [2, 3, 20, 64])
@pytest.mark.parametrize("far", [1e2, 1e3, 1e4, 1e6])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_groups_far_apart_keep_their_digits(far: float, codes: int, precision: str, monkeypatch) -> None:
    """No origin is near all centroids."""
    monkeypatch.setattr(nearest, "multiplies_bfloat16", lambda: True)
    vectors, centroids = noise(2000, 16), noise(codes, 16, seed=5)
    vectors[::3] += far
    centroids[::2] += far
    assert wrong(vectors, centroids, precision) == 0


def test_outliers_of_kmeans() -> None:
    """Of a tight group and a far vector, k-means gives the far one a centroid and divides the group as before."""
    vectors, first = noise(500, 8), noise(6, 8, seed=5)
    outlier, far = torch.full((1, 8), 1e6), torch.full((1, 8), 1e6)
    plain = kmeans(vectors, first, iterations=5)
    found = kmeans(torch.cat([vectors, outlier]), torch.cat([first, far]), iterations=5)
    torch.testing.assert_close(found.centroids[:-1], plain.centroids)
    assert torch.equal(found.counts[:-1], plain.counts)


def test_a_processor_without_instructions_for_bfloat16_computes_in_float32(monkeypatch) -> None:
    monkeypatch.setattr(nearest, "multiplies_bfloat16", lambda: False)
    vectors, centroids = noise(200, 16), noise(30, 16, seed=5)
    near = nearest.Nearest(centroids, precision="bfloat16")
    assert near.precision == "float32"
    assert near.fused
    assert all(map(torch.equal, near(vectors), assign(vectors, centroids)))


def test_the_global_setting_of_products_comes_back() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for wanted in ("highest", "high"):
            torch.set_float32_matmul_precision(wanted)
            cuda = torch.backends.cuda.matmul.fp32_precision
            for precision in nearest.PRECISIONS:
                assign(noise(5, 3), noise(2, 3), precision=precision)
            assert torch.get_float32_matmul_precision() == wanted
            assert torch.backends.cuda.matmul.fp32_precision == cuda
    finally:
        torch.set_float32_matmul_precision(before)


def test_two_centroids() -> None:
    vectors, centroids = noise(20, 4), noise(2, 4, seed=1)
    assert torch.equal(assign(vectors, centroids, precision="bfloat16")[0], assign(vectors, centroids)[0])


def test_an_unknown_precision_is_explained() -> None:
    with pytest.raises(MapetError, match='Did you mean "bfloat16"'):
        assign(noise(5, 3), noise(2, 3), precision="bf16")
