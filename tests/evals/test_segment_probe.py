"""Segmentation probes: counts and shares against slow references, what is learnt, and that ignored pixels are."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from forms import randomised
from mapet.build.segmentation_set import both_splits, open_segmentation
from mapet.data.segmentation import MaskedImages
from mapet.evals import logistic
from mapet.evals.dense import class_shares, embedded, patch_features, patch_size_of
from mapet.evals.iou import iou_scores, overlap
from mapet.evals.segment_probe import Patches, knn_probe, linear_probe, majority, probe_overlaps, training_patches
from mapet.method.encoder import Encoder
from mapet.utils.errors import MapetError

CPU = torch.device("cpu")


def masks(images=6, classes=5, side=9, seed=0):
    chance = np.random.default_rng(seed)
    predicted, target = (chance.integers(0, classes - 1, (images, side, side + 2)) for _ in range(2))
    target[chance.random(target.shape) < 0.3] = -1
    return torch.from_numpy(predicted), torch.from_numpy(target)


def slow_iou(predicted, target, label):
    """Pixel by pixel."""
    both = either = 0
    for p, t in zip(predicted.flatten().tolist(), target.flatten().tolist(), strict=True):
        if t != -1:
            both += p == t == label
            either += label in (p, t)
    return both / either if either else None


def test_iou_equals_a_slow_reference_and_torchmetrics():
    from torchmetrics.classification import MulticlassJaccardIndex

    predicted, target = masks()
    names = [str(i) for i in range(5)]
    found = iou_scores(torch.stack([overlap(p, t, 5) for p, t in zip(predicted, target, strict=True)]), names)
    slow = {name: slow_iou(predicted, target, int(name)) for name in names}
    assert slow.pop("4") is None
    assert "IoU 4" not in found, "a class that nobody has is left out"
    for name, value in slow.items():
        assert found[f"IoU {name}"].value == pytest.approx(value)
        assert found[f"IoU {name}"].low <= value <= found[f"IoU {name}"].high
    assert found["mIoU"].value == pytest.approx(np.mean(list(slow.values())))
    correct = (predicted == target).sum() / (target != -1).sum()
    assert found["accuracy"].value == pytest.approx(float(correct))
    metric = MulticlassJaccardIndex(4, average="none", ignore_index=-1)
    assert metric(predicted, target).tolist() == pytest.approx(list(slow.values()))


def test_an_image_without_labelled_pixels_counts_nothing():
    assert not overlap(torch.zeros(3, 3, dtype=torch.int64), torch.full((3, 3), -1), 4).any()


def test_class_shares_equal_a_slow_reference():
    _, target = masks(1, 4, 12)
    target = target[0, :, :12]
    shares = class_shares(target, (3, 2), (4, 6), 4)
    for row in range(3):
        for column in range(2):
            part = target[4 * row : 4 * row + 4, 6 * column : 6 * column + 6]
            expected = [(part == label).sum().item() / 24 for label in range(4)]
            assert shares[2 * row + column].tolist() == pytest.approx(expected)


def test_positions_of_another_grid_are_interpolated():
    encoder = randomised(Encoder(16, 4, embed_dim=16, depth=1, num_heads=2)).eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(patch_features(encoder, images)[0], encoder(images)[:, 1:])
    rows, grid = embedded(encoder, torch.zeros(1, 3, 24, 8))
    assert grid == (6, 2)
    table = encoder.pos_embed[0, 1:].view(1, 4, 4, 16).permute(0, 3, 1, 2)
    expected = F.interpolate(table, (6, 2), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    found = rows - encoder.embed(torch.zeros(1, 3, 24, 8))
    torch.testing.assert_close(found[:, 1:], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:, :1], encoder.pos_embed[:, :1])


@pytest.mark.parametrize(("size", "expected"), [((64, 64), (32, 32)), ((100, 50), (64, 32)), ((30, 90), (32, 96))])
def test_images_keep_their_aspect_in_whole_patches(size, expected):
    assert patch_size_of(size, 32, (8, 8)) == expected


def striped(count, seed):
    """Images of two colours, left and right of a random column; class 0 is dark, 1 bright, the first row ignored."""
    chance = np.random.default_rng(seed)
    for _ in range(count):
        target = torch.zeros(16, 16, dtype=torch.int64)
        target[:, int(chance.integers(2, 14)) :] = 1
        image = (2.0 * target - 1).expand(3, 16, 16) + 0.1 * torch.randn(3, 16, 16)
        target[0] = -1
        yield image, target


@pytest.mark.parametrize("probe", ["linear", "knn"])
def test_colours_are_learnt_and_the_majority_is_not_enough(probe):
    encoder = Encoder(16, 4, embed_dim=16, depth=1, num_heads=2).eval()
    patches = training_patches(encoder, striped(20, 0), 2, per_image=16, seed=0, device=CPU)
    assert patches.features.shape == (320, 16)
    fitted = linear_probe(patches, 0) if probe == "linear" else knn_probe(patches, k=5, temperature=0.07)
    counts = probe_overlaps(encoder, striped(10, 1), {"probe": fitted, "guess": majority(patches)}, 2, CPU)
    found = {name: iou_scores(one, "ab")["mIoU"].value for name, one in counts.items()}
    assert found["probe"] > 0.75 > 0.5 > found["guess"]


def test_neighbours_equal_a_slow_reference():
    train = Patches(torch.randn(30, 8), torch.rand(30, 3), torch.arange(30), torch.ones(3))
    test = torch.randn(4, 8)
    found = knn_probe(train, k=7, temperature=0.5)(test)
    for row, one in zip(found, test, strict=True):
        cosines = [float(F.cosine_similarity(one, other, dim=0)) for other in train.features]
        nearest = sorted(range(30), key=lambda i: -cosines[i])[:7]
        weights = np.exp([cosines[i] / 0.5 for i in nearest])
        expected = (weights[:, None] * train.shares[nearest].numpy()).sum(0) / weights.sum()
        np.testing.assert_allclose(row.numpy(), expected, rtol=1e-4)


def test_the_linear_loss_is_that_of_pixels():
    """With shares as targets, the loss of a patch is the mean cross-entropy of its pixels."""
    logits, pixels = torch.randn(1, 3), torch.tensor([0, 0, 2, 1])
    shares = class_shares(pixels.view(2, 2), (1, 1), (2, 2), 3)
    torch.testing.assert_close(F.cross_entropy(logits, shares), F.cross_entropy(logits.expand(4, -1), pixels))


@pytest.mark.parametrize(("images", "rows"), [(1, 4), (2, 4), (5, 16), (20, 72)])
def test_the_penalty_is_chosen_on_a_tenth_of_the_images(monkeypatch, images, rows):
    """At least one, which is not fitted; a single image is all there is. The last fit is to all images."""
    fitted, fit = [], logistic.fit
    monkeypatch.setattr(logistic, "fit", lambda rows, *given: fitted.append(len(rows)) or fit(rows, *given))
    labels, image = torch.arange(4 * images) % 2, torch.arange(images).repeat_interleave(4)
    linear_probe(Patches(torch.randn(len(image), 3), torch.eye(2)[labels], image, torch.ones(2)), 0)
    assert fitted == [rows] * len(logistic.PENALTIES) + [len(image)]


def test_patches_of_an_image_are_drawn_by_the_seed():
    encoder = Encoder(16, 4, embed_dim=16, depth=1, num_heads=2).eval()

    def drawn(seed):
        return training_patches(encoder, striped(3, 0), 2, per_image=4, seed=seed, device=CPU).features

    torch.manual_seed(1)
    one = drawn(0)
    torch.manual_seed(1)
    again = drawn(0)
    torch.manual_seed(1)
    assert torch.equal(one, again)
    assert not torch.equal(one, drawn(1))
    assert len(one) == 12


@pytest.fixture
def pairs(tmp_path):
    """Two images a split; labels 0, 1, 2 and 255."""
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    for split in ("training", "validation"):
        for part in ("images", "annotations"):
            (tmp_path / part / split).mkdir(parents=True)
        for name in "ab":
            Image.new("RGB", (2, 2), (10, 20, 30)).save(tmp_path / "images" / split / f"{name}.png")
            Image.fromarray(labels).save(tmp_path / "annotations" / split / f"{name}.png")
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    return tmp_path


def test_zero_is_ignored_or_a_class(pairs):
    assert open_segmentation(pairs).pair(0)[1].tolist() == [[-1, 0], [1, -1]]
    with pytest.raises(MapetError, match="has the label 2, but the set has 2 classes: labels must be <= 1 or 255"):
        open_segmentation(pairs, reduce_zero_label=False).pair(0)
    (pairs / "classes.txt").write_text("zero\none\ntwo\n")
    assert open_segmentation(pairs, reduce_zero_label=False).pair(0)[1].tolist() == [[0, 1], [2, -1]]


def test_targets_travel_as_alpha(pairs):
    image = MaskedImages(open_segmentation(pairs), "pairs").read(1)
    assert image.mode == "RGBA"
    assert np.asarray(image)[..., 3].tolist() == [[255, 0], [1, 255]]
    assert np.asarray(image)[0, 0, :3].tolist() == [10, 20, 30]


def test_wrong_pairs_are_seen_before_the_work(pairs):
    both_splits(pairs)
    Image.new("L", (3, 2)).save(pairs / "annotations" / "validation" / "b.png")
    with pytest.raises(MapetError, match="is 3 × 2 pixels"):
        both_splits(pairs)
    Image.new("L", (2, 2)).save(pairs / "annotations" / "validation" / "b.png")
    Image.new("L", (2, 2), 255).save(pairs / "annotations" / "validation" / "a.png")
    with pytest.raises(MapetError, match="have only labels that are ignored, 0 or 255"):
        both_splits(pairs)
    os.unlink(pairs / "images" / "validation" / "b.png")
    os.mkfifo(pairs / "images" / "validation" / "b.png")
    with pytest.raises(MapetError, match="not a regular file"):
        both_splits(pairs)
    (pairs / "classes.txt").write_bytes("one\ntwo\n".encode("utf-8-sig"))
    assert open_segmentation(pairs).classes == ("one", "two")
    (pairs / "classes.txt").write_text("one\ntwo\none\n")
    with pytest.raises(MapetError, match='has the class "one" twice'):
        both_splits(pairs)
    (pairs / "classes.txt").write_text("one\n")
    with pytest.raises(MapetError, match="must have 2 to 254 classes, got 1"):
        both_splits(pairs)


def test_masks_without_any_class_are_refused():
    encoder = Encoder(16, 4, embed_dim=16, depth=1, num_heads=2).eval()
    ignored = ((image, torch.full_like(target, -1)) for image, target in striped(2, 0))
    with pytest.raises(MapetError, match="No pixel of the training masks has a class"):
        training_patches(encoder, ignored, 2, per_image=4, seed=0, device=CPU)


def test_a_narrow_image_has_at_least_one_patch():
    assert patch_size_of((4, 100), 7, (16, 16)) == (16, 176)


def test_patches_need_not_be_square():
    encoder = randomised(Encoder((8, 32), (2, 8), embed_dim=16, depth=1, num_heads=2)).eval()
    images = torch.randn(1, 3, 4, 32)
    assert embedded(encoder, images)[1] == (2, 4)
    assert patch_features(encoder, images)[0].shape == (1, 8, 16)


def test_intervals_are_percentiles_of_a_thousand_resamples():
    counts = torch.stack([overlap(p, t, 5) for p, t in zip(*masks(8), strict=True)])
    picked = torch.randint(8, (1000, 8), generator=torch.Generator().manual_seed(0))
    drawn = []
    for images in picked:
        both, either, _ = counts[images].sum(dim=0).double().unbind(dim=1)
        drawn.append(float((both / either).nanmean()))
    found = iou_scores(counts, "abcde")["mIoU"]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def test_the_penalty_has_the_lowest_cross_entropy_of_the_held_patches(monkeypatch):
    """Sure of one class, or of none: half of the patches have the other class."""
    chosen = []
    monkeypatch.setattr(logistic, "PENALTIES", (1.0, 2.0))
    monkeypatch.setattr(logistic, "fit", lambda rows, shares, classes, penalty: chosen.append(penalty) or penalty)
    monkeypatch.setattr(
        logistic, "scores", lambda rows, penalty: torch.tensor([[2.0, -2.0]]).expand(len(rows), 2) * (penalty == 1)
    )
    shares = torch.eye(2).repeat(10, 1)
    linear_probe(Patches(torch.randn(20, 3), shares, torch.zeros(20, dtype=torch.int64), torch.ones(2)), 0)
    assert chosen == [1.0, 2.0, 2.0]
