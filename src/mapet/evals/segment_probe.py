"""Segmentation probes of a frozen encoder: each patch is classified by its feature alone, linearly or by neighbours."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mapet.evals import logistic
from mapet.evals.dense import class_shares, patch_features
from mapet.evals.features import evaluating
from mapet.evals.iou import IGNORED, overlap
from mapet.evals.linear import standardised
from mapet.method.encoder import Encoder
from mapet.utils.errors import MapetError
from mapet.utils.rng import random_bits

PATCHES = 0x5E6  # salt
CHUNK = 2**26  # similarities in memory at a time: 256 MiB of float32
Pair = tuple[Tensor, Tensor]  # (3, H, W) normalised, in whole patches; (h, w) int64 targets, -1 for ignored pixels
Classify = Callable[[Tensor], Tensor]  # features (n, F) → scores (n, classes) float32


class Patches(NamedTuple):
    """Training patches.

    Attributes:
        features: (N, F) float32.
        shares: (N, classes) float32, the share of each class in the patch; the rest is ignored.
        image: (N,) int64, the image of each patch.
        pixels: (classes,) int64, the pixels of each class in all images.
    """

    features: Tensor
    shares: Tensor
    image: Tensor
    pixels: Tensor


@torch.no_grad()
def training_patches(
    encoder: Encoder, pairs: Iterator[Pair], classes: int, *, per_image: int, seed: int, device: torch.device
) -> Patches:
    """Encode the training images one by one; keep at most ``per_image`` labelled patches of each, drawn by ``seed``.

    Raises:
        MapetError: no pixel has a class.
    """
    found, pixels = list[tuple[Tensor, Tensor, Tensor]](), torch.zeros(classes, dtype=torch.int64)
    with evaluating(encoder.to(device)):
        for number, (image, target) in enumerate(pairs):
            features, grid = patch_features(encoder, image[None].to(device))
            shares = class_shares(target, grid, encoder.patch_size, classes)
            order = random_bits(seed, PATCHES, number, torch.arange(len(shares))).argsort()
            kept = order[shares[order].sum(dim=1) > 0][:per_image]
            found.append((features[0].float().cpu()[kept], shares[kept], torch.full_like(kept, number)))
            pixels += target[target != IGNORED].bincount(minlength=classes)
    if not pixels.any():
        raise MapetError("No pixel of the training masks has a class: all their labels are ignored, 0 or 255.")
    features, shares, image = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Patches(features, shares, image, pixels)


def linear_probe(train: Patches, seed: int) -> Classify:
    """Logistic regression by L-BFGS on standardised features; its loss is the cross-entropy of the patches' pixels.

    The penalty is that of ``logistic.PENALTIES`` with the lowest loss on a held-out tenth of the images.
    """
    classes = train.shares.shape[1]
    features, _ = standardised(train.features, train.features[:1])
    images = torch.tensor(sorted(set(train.image.tolist())))
    held_images = images[logistic.hold_out_tenth(len(images), seed)[0]] if len(images) > 1 else images
    held, losses = torch.isin(train.image, held_images), []
    kept = ~held if len(images) > 1 else held
    with torch.enable_grad():
        for penalty in logistic.PENALTIES:
            weights = logistic.fit(features[kept], train.shares[kept], classes, penalty)
            losses.append(float(F.cross_entropy(logistic.scores(features[held], weights), train.shares[held])))
        weights = logistic.fit(features, train.shares, classes, logistic.PENALTIES[losses.index(min(losses))])
    return lambda test: logistic.scores(standardised(train.features, test)[1], weights)


def knn_probe(train: Patches, *, k: int, temperature: float) -> Classify:
    """The ``k`` training patches of the largest cosine vote with their shares of classes and weight exp(cosine / T)."""
    bank, k = F.normalize(train.features, dim=1), min(k, len(train.features))

    def votes(test: Tensor) -> Tensor:
        found = []
        for part in torch.split(test, max(1, CHUNK // len(bank))):
            similar, neighbours = (F.normalize(part, dim=1) @ bank.T).topk(k, dim=1)
            weights = (similar / temperature).softmax(dim=1)
            found.append((weights[..., None] * train.shares[neighbours]).sum(dim=1))
        return torch.cat(found)

    return votes


def majority(train: Patches) -> Classify:
    """Always the class with the most training pixels."""
    scores = F.one_hot(train.pixels.argmax(), len(train.pixels)).float()
    return lambda test: scores.expand(len(test), -1)


@torch.no_grad()
def probe_overlaps(
    encoder: Encoder, pairs: Iterator[Pair], probes: Mapping[str, Classify], classes: int, device: torch.device
) -> dict[str, Tensor]:
    """Counts (N, classes, 3) of ``iou.overlap`` by probe; scores are resized to the mask before the argmax."""
    found: dict[str, list[Tensor]] = {name: [] for name in probes}
    with evaluating(encoder.to(device)):
        for image, target in pairs:
            features, grid = patch_features(encoder, image[None].to(device))
            for name, classify in probes.items():
                scores = classify(features[0].float().cpu()).T.reshape(1, classes, *grid)
                dense = F.interpolate(scores, target.shape, mode="bilinear", align_corners=False)[0]
                found[name].append(overlap(dense.argmax(dim=0), target, classes))
    return {name: torch.stack(counts) for name, counts in found.items()}
