"""k-means over images: any batches, any number of processes, either mode; and the memory that was promised."""

from typing import Any

import pytest
import torch

from fitted import MeanColour, Noise, Shown, coloured, together
from mapet.tokenizers import assign as nearest
from mapet.tokenizers import codebook_fit
from mapet.tokenizers.codebook import Codebook
from mapet.tokenizers.codebook_fit import Kept, KMeansSettings
from mapet.tokenizers.kmeans import kmeans
from mapet.tokenizers.kmeans_init import plus_plus
from mapet.utils.errors import MapetError
from mapet.utils.process_group import SINGLE_PROCESS, ProcessGroup
from peak import memory, reset_peak

IMAGES = coloured(40, (8, 12))


def fit(shown: Shown | None = None, process_group: ProcessGroup = SINGLE_PROCESS, **settings: Any) -> Codebook:
    shown = shown or Shown(IMAGES)
    return Codebook.fit(
        MeanColour(), shown, torch.arange(len(shown.images)), KMeansSettings(**settings), process_group=process_group
    )


@pytest.mark.parametrize("mode", ["sample", "stream"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("start", ["k-means++", "sample"])
def test_is_the_same_for_any_batches_and_order(mode: str, metric: str, start: str) -> None:
    options = {"codes": 10, "samples": 100, "metric": metric, "start": start, "mode": mode}
    one = fit(Shown(IMAGES, 40), **options)
    other = fit(Shown(IMAGES, 7, backwards=True), **options)
    torch.testing.assert_close(one.centroids, other.centroids)
    assert one.provenance["counts"] == other.provenance["counts"]
    assert (one.hash == other.hash) or mode == "stream"
    assert one.hash != fit(**options, seed=1).hash


@pytest.mark.parametrize("mode", ["sample", "stream"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("start", ["k-means++", "sample"])
@pytest.mark.parametrize("count", [2, 3])
def test_processes_agree_with_one(mode: str, metric: str, start: str, count: int) -> None:
    options = {"codes": 10, "samples": 100, "metric": metric, "start": start, "mode": mode, "restarts": 2}
    one, reads = fit(**options), [Shown(IMAGES) for _ in range(count)]
    books = together(count, lambda process_group: fit(reads[process_group.rank], process_group, **options))
    assert len({book.hash for book in books}) == 1
    assert min(books[0].provenance["objective"]) == pytest.approx(min(one.provenance["objective"]), rel=1e-4)
    torch.testing.assert_close(books[0].centroids, one.centroids)
    assert books[0].provenance["samples"] == one.provenance["samples"] == 100
    assert [set(shown.read) & set(reads[0].read) for shown in reads[1:]] == [set()] * (count - 1)


def test_stream_clusters_all_patches_from_a_start_among_the_held_ones() -> None:
    book = fit(codes=10, mode="stream", iterations=4)
    everything = MeanColour()(IMAGES / 255).flatten(0, 1)
    assert sum(book.provenance["counts"]) == len(everything) == 240
    assert book.provenance["samples"] == 80
    held = fit(codes=10, samples=80, iterations=4)
    assert book.provenance["objective"][0] != held.provenance["objective"][0]
    whole = fit(codes=10, mode="stream", samples=240, iterations=4)
    torch.testing.assert_close(whole.centroids, fit(codes=10, samples=240, iterations=4).centroids)


def test_a_sample_of_everything_is_plain_k_means_of_the_features() -> None:
    book = fit(codes=10, iterations=3)
    everything = MeanColour()(IMAGES / 255).flatten(0, 1)
    wanted = kmeans(everything, plus_plus(everything, 10, 0), iterations=100).objective
    assert min(fit(codes=10, iterations=100, restarts=8).provenance["objective"]) <= 1.02 * min(wanted)
    assert sum(book.provenance["counts"]) == 240


def test_unreadable_pictures_are_left_out() -> None:
    bad = (0, 3, 17, 39)
    for mode in ("sample", "stream"):
        book = fit(Shown(IMAGES, bad=bad), codes=10, mode=mode)
        assert sum(book.provenance["counts"]) == 6 * 36
    books = together(2, lambda process_group: fit(Shown(IMAGES, bad=bad), process_group, codes=10))
    torch.testing.assert_close(books[0].centroids, fit(Shown(IMAGES, bad=bad), codes=10).centroids)


def test_pictures_without_a_chosen_patch_are_not_read() -> None:
    shown = Shown(IMAGES)
    fit(shown, codes=2, samples=10)
    assert len(shown.read) == len(set(shown.read)) <= 10


def test_restarts_keep_the_best() -> None:
    def reached(restarts: int) -> float:
        return min(fit(codes=20, iterations=1, start="sample", restarts=restarts).provenance["objective"])

    values = [reached(restarts) for restarts in (1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


@pytest.mark.parametrize("settings", [{"metric": "cosine"}, {"mode": "stream", "start": "sample"}])
def test_memory_stays_within_what_is_stated(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """160 MB of vectors are held; a second copy of them would go far beyond the bound."""
    monkeypatch.setitem(nearest.CELLS, "cpu", 1 << 20)  # the five temporaries would else hide it
    indices, settings = torch.arange(1_600), {**settings, "codes": 16, "iterations": 1}
    shades = Shown((indices % 256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 1, 1), 16)
    Codebook.fit(Noise(), shades, indices[:20], KMeansSettings(**settings, samples=500))
    large = KMeansSettings(**settings, samples=80_000)
    before = reset_peak()
    Codebook.fit(Noise(), shades, indices, large)
    rise, bound = memory("VmHWM") - before, large.footprint(len(indices) * 64, Noise.width, SINGLE_PROCESS)
    assert 160e6 < rise < 1.3 * bound
    assert bound < 2 * 160e6


def test_several_processes_share_the_memory() -> None:
    alone = KMeansSettings(codes=8192).footprint(10**9, 4096, SINGLE_PROCESS)
    assert 68.7e9 < alone < 1.05 * 68.7e9 + 2e9
    assert KMeansSettings(codes=8192).footprint(10**9, 4096, ProcessGroup(0, 8)) < alone / 5
    assert KMeansSettings(codes=8192, mode="stream").footprint(10**9, 4096, SINGLE_PROCESS) < alone / 20


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"codes": 241}, r"got 240 \(40 images, grid 2x3\): use fewer codes"),
        ({"codes": 20, "samples": 19}, "20 codes need at least 20 patches, got 19"),
        ({"codes": 2, "start": "kmeans++"}, 'Did you mean "k-means'),
        ({"codes": 2, "metric": "cosinus"}, 'Did you mean "cosine"'),
        ({"codes": 2, "mode": "steam"}, 'Did you mean "stream"'),
        ({"codes": 2, "precision": "tf23"}, 'Did you mean "tf32"'),
    ],
)
def test_what_cannot_be_is_told_before_a_picture_is_read(settings: dict[str, Any], words: str) -> None:
    shown = Shown(IMAGES)
    with pytest.raises(MapetError, match=words) as caught:
        fit(shown, **settings)
    assert "\n" not in str(caught.value)
    assert not shown.read


def test_too_few_readable_pictures_are_explained() -> None:
    with pytest.raises(MapetError, match="30 codes need at least 30 patches, got 24"):
        fit(Shown(IMAGES[:6], bad=(1, 4)), codes=30)


@pytest.mark.parametrize("mode", ["sample", "stream"])
def test_features_that_are_no_numbers_are_explained(mode: str) -> None:
    class Broken(MeanColour):
        def forward(self, images):
            return super().forward(images) / 0

    with pytest.raises(MapetError, match="NaN or Inf"):
        Codebook.fit(Broken(), Shown(IMAGES), torch.arange(40), KMeansSettings(codes=4, mode=mode))


def test_the_first_features_are_kept_up_to_a_bound_and_forgotten_when_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    features, index = torch.randn(5, 2, 3), torch.tensor([7, 2, 9, 4, 1])
    monkeypatch.setattr(codebook_fit, "KEPT", features[:4].nbytes)
    kept = Kept()
    for part in (slice(0, 3), slice(3, 5), slice(3, 4), slice(4, 5)):  # the second and the last do not fit
        kept.add(features[part], index[part])
    assert kept.among(torch.tensor([1, 2, 3, 4, 7, 9])).tolist() == [False, True, False, True, True, True]
    assert torch.equal(kept.take(torch.tensor([4, 7])), features[[3, 0]])
    assert kept.among(torch.tensor([2, 4, 7, 9])).tolist() == [True, False, False, True]
