"""Health of a vocabulary: what must not change the numbers, what they are on samples whose truth is known."""

import math

import pytest
import torch
from torch import Tensor, nn

from mapet.tokenizers.assign import assign
from mapet.tokenizers.codebook import Codebook
from mapet.tokenizers.health import Distortion, Health, missed, nearest_patches, occurrence
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(images: int, length: int, weights: Tensor, seed: int = 0) -> Tensor:
    """Tokens (N, L) of independent patches."""
    flat = torch.multinomial(weights.float(), images * length, replacement=True, generator=chance(seed))
    return flat.view(images, length)


def test_even_and_single_use_are_the_two_ends() -> None:
    even = Health.of(torch.arange(24).view(4, 6) % 8, 8)
    assert (even.seen, even.dead, even.missed) == (8, 0, 0)
    assert (even.perplexity, even.bits, even.share) == pytest.approx((8, 3, 1 / 8))
    single = Health.of(torch.full((4, 6), 3, dtype=torch.int32), 8)
    assert (single.images, single.patches, single.seen, single.dead, single.most) == (4, 24, 1, 7, 3)
    assert (single.perplexity, single.bits, single.share) == pytest.approx((1, 0, 1))


def test_names_and_places_of_codes_do_not_count() -> None:
    tokens = drawn(40, 9, torch.arange(60).double())
    names, order = torch.randperm(60, generator=chance(1)), torch.randperm(40, generator=chance(2))
    one, other = Health.of(tokens, 60), Health.of(names[tokens][order].flip(1), 60)
    assert other.most == names[one.most]
    for name in ("seen", "missed", "dead", "share", "patches"):
        assert getattr(one, name) == getattr(other, name)
    assert one.perplexity == pytest.approx(other.perplexity)


def test_occurrence_counts_pictures() -> None:
    tokens = drawn(30, 12, torch.ones(20))
    expected = [sum(code in row for row in tokens.tolist()) for code in range(21)]
    assert occurrence(tokens, 21).tolist() == expected


@pytest.mark.parametrize("dead", [0, 300])
@pytest.mark.parametrize("images", [100, 1000])
@pytest.mark.parametrize("alike", [1, 4], ids=["free patches", "four patches of a kind"])
def test_few_pictures_are_not_taken_for_dead_codes(dead: int, images: int, alike: int) -> None:
    """1,000 codes of which some never occur; 100 images of 16 patches miss many of the others too."""
    live = torch.cat([torch.rand(1000 - dead, generator=chance(3)) + 1, torch.zeros(dead)])
    tokens = drawn(images, 16 // alike, live).repeat_interleave(alike, dim=1)
    health = Health.of(tokens, 1000)
    alive = 1000 - dead - health.seen  # and not seen
    assert health.dead == pytest.approx(dead, abs=max(15, alive / 2))
    assert alive < 40 if images == 1000 else alive > 50


def test_missed_codes_are_bounded() -> None:
    assert missed(torch.tensor([1, 1, 1, 0]), images=1) == 0
    assert missed(torch.tensor([1] * 50 + [0]), images=50) == 1
    assert missed(torch.tensor([1, 1, 1, 1, 2, 2, 5, 0, 0, 0, 0]), images=10) == pytest.approx(0.9 * 6 / 3)


SICK = {
    "healthy": (torch.ones(64), []),
    "long tail": (torch.arange(1, 65) ** -0.5, []),
    "dead": (torch.cat([torch.ones(40), torch.zeros(24)]), ["38% of the codes are dead"]),
    "uneven": (torch.cat([torch.ones(11), torch.full((53,), 0.01)]), ["Uneven use: 64 codes do the work of"]),
    "excess": (torch.cat([torch.tensor([20.0]), torch.ones(63)]), ["Code 0 is 2"]),
    "collapsed": (torch.eye(64)[5], ["98% of the codes", "of 1.", "Code 5 is 100% of all patches"]),
}


@pytest.mark.parametrize(("weights", "said"), SICK.values(), ids=SICK)
def test_warnings(weights: Tensor, said: list[str]) -> None:
    health = Health.of(drawn(200, 16, weights), 64)
    warnings = health.warnings()
    assert health.judged
    assert len(warnings) == len(said)
    assert all(part in line and len(line) <= 68 for part, line in zip(said, warnings, strict=True))


def test_the_longest_warnings_fit_a_line() -> None:
    health = Health(1000, 65536 * 20, 65536, 2, 0.0, 16383.0, 65535, 1.0)
    assert [len(line) <= 68 for line in health.warnings()] == [True] * 3


def test_a_small_sample_is_not_judged() -> None:
    tokens = torch.zeros(4, 70, dtype=torch.int64)
    assert (Health.of(tokens, 64).judged, Health.of(tokens, 64).warnings()) == (False, [])
    assert Health.of(torch.zeros(10, 64, dtype=torch.int64), 64).warnings()


@pytest.mark.parametrize(("images", "patches"), [(100, 100), (51, 196)])
def test_a_collapse_shows_in_few_pictures(images: int, patches: int) -> None:
    collapsed = Health.of(drawn(images, patches, torch.ones(8)), 8192)
    assert [line.partition(":")[0] for line in collapsed.warnings()][:2] == ["100% of the codes are dead", "Uneven use"]
    assert not Health.of(drawn(images, patches, torch.ones(8192)), 8192).judged
    own = torch.arange(images)[:, None].expand(-1, patches)  # nothing but skies, each of a code of its own
    assert not Health.of(own, 8192).judged


@pytest.mark.parametrize("split", [1, 3, 10])
def test_distortion_is_that_of_all_vectors(split: int) -> None:
    vectors = torch.randn(10, 6, 5, generator=chance()) + 1000  # an offset that would cost float32 its digits
    centroids = vectors.flatten(0, 1)[:7]
    squared = assign(vectors.flatten(0, 1), centroids)[1].view(10, 6)
    distortion = Distortion()
    for part, some in zip(squared.split(split), vectors.split(split), strict=True):
        distortion.add(part, some)
    exact = vectors.double().flatten(0, 1)
    mean = (exact[:, None] - centroids).square().sum(-1).min(1).values.mean()
    variance = (exact - exact.mean(0)).square().sum(1).mean()
    assert distortion.result() == pytest.approx((float(mean), float(mean / variance)), rel=1e-4)


def test_distortion_of_one_centroid_and_of_own_centroids() -> None:
    vectors = torch.randn(4, 6, 5, generator=chance())
    for centroids, share in ((vectors.mean((0, 1))[None], 1), (vectors.flatten(0, 1), 0)):
        distortion = Distortion()
        distortion.add(assign(vectors.flatten(0, 1), centroids)[1], vectors)
        assert distortion.result()[1] == pytest.approx(share, abs=1e-6)


def test_features_that_are_not_finite_are_refused() -> None:
    distortion = Distortion()
    distortion.add(torch.full((1, 2), math.nan), torch.full((1, 2, 3), math.nan))
    with pytest.raises(MapetError, match="NaN or Inf"):
        distortion.result()


@pytest.mark.parametrize("count", [1, 3, 50])
def test_nearest_patches_are_the_nearest_and_one_a_picture(count: int) -> None:
    tokens, squared = drawn(30, 8, torch.ones(6)), torch.rand(30, 8, generator=chance(5))
    best = []
    for row in range(30):
        own = [(float(squared[row, place]), row, place) for place in range(8) if tokens[row, place] == 2]
        best += [min(own)] if own else []
    rows, places = nearest_patches(tokens, squared, 2, count)
    assert list(zip(rows.tolist(), places.tolist(), strict=True)) == [found[1:] for found in sorted(best)[:count]]
    assert [part.tolist() for part in nearest_patches(tokens, squared, 99, count)] == [[], []]


class Colours(nn.Module):
    """A teacher whose features are the colours of 2x2 pixels on a 2x3 grid."""

    grid, width, view = (2, 3), 12, CenterCropResize((4, 6))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.unfold(images, 2, stride=2).transpose(1, 2)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_codebook_measures_what_it_encodes(metric: str) -> None:
    images, centroids = torch.rand(5, 3, 4, 6, generator=chance()), torch.rand(9, 12, generator=chance(1))
    if metric == "cosine":
        centroids = nn.functional.normalize(centroids)
    book = Codebook(Colours(), centroids, metric, {})
    tokens, squared, vectors = book.measure(images)
    assert torch.equal(tokens, book.encode(images))
    assert (tokens.shape, squared.shape, vectors.shape) == ((5, 6), (5, 6), (5, 6, 12))
    everything = (vectors[:, :, None] - centroids).square().sum(-1)
    torch.testing.assert_close(squared, everything.min(-1).values)
    assert torch.equal(everything.argmin(-1), tokens)
    if metric == "cosine":
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(5, 6))
