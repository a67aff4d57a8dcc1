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


@pytest.fixture
def rounding(monkeypatch) -> None:
    """Products of rounded factors on every CPU, with or without instructions for bfloat16."""

    def product(self, centred: Tensor, out: Tensor) -> Tensor:
        return torch.mm(centred.bfloat16().float(), self.factor.bfloat16().float().T, out=out)

    monkeypatch.setattr(nearest.Nearest, "_product", product)


@pytest.mark.parametrize("offset", [0.0, 20.0])
@pytest.mark.parametrize("width", [16, 112, 600])
def test_rounded_factors_change_no_assignment(width: int, offset: float, rounding, monkeypatch) -> None:
    """Means of two vectors as codes: most vectors have several codes almost as near. Ranking alone would not do."""
    vectors = noise(2000, width).relu() ** 3 + offset  # few large values, as after a rectifier
    centroids = vectors.view(500, 4, width)[:, :2].mean(1)
    assert wrong(vectors, centroids, "bfloat16") == 0
    monkeypatch.setattr(nearest, "DEVIATIONS", 0)
    assert wrong(vectors, centroids, "bfloat16") > 0


def test_rounded_factors_of_one_large_value_change_no_assignment(rounding) -> None:
    """The errors of one term do not cancel."""
    vectors, centroids = 0.01 * noise(2000, 16), 0.01 * noise(200, 16, seed=5)
    vectors[:, 3], centroids[:, 3] = 1 + 0.01 * noise(2000, seed=6), noise(200, seed=7)
    assert wrong(vectors, centroids, "bfloat16") == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4, 1e6])
@pytest.mark.parametrize("far", [1e4, 1e6, 1e8])
def test_a_far_centroid_does_not_cost_the_others_their_digits(far: float, offset: float, precision: str) -> None:
    vectors, centroids = noise(2000, 16) + offset, noise(64, 16, seed=5) + offset
    centroids[7] = far
    assert wrong(vectors, centroids, precision) == 0


@pytest.mark.parametrize("codes", [2, 3, 20, 64])
@pytest.mark.parametrize("far", [1e2, 1e3, 1e4, 1e6])
def test_two_groups_far_apart_keep_their_digits(far: float, codes: int) -> None:
    """No origin is near all centroids."""
    vectors, centroids = noise(2000, 16), noise(codes, 16, seed=5)
    vectors[::3] += far
    centroids[::2] += far
    assert wrong(vectors, centroids) == 0


def test_outliers_of_kmeans() -> None:
    """Of a tight group and a far vector, k-means gives the far one a centroid and divides the group as before."""
    vectors, first = noise(500, 8), noise(6, 8, seed=5)
    outlier, far = torch.full((1, 8), 1e6), torch.full((1, 8), 1e6)
    plain = kmeans(vectors, first, iterations=5)
    found = kmeans(torch.cat([vectors, outlier]), torch.cat([first, far]), iterations=5)
    torch.testing.assert_close(found.centroids[:-1], plain.centroids)
    assert torch.equal(found.counts[:-1], plain.counts)


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
