"""An evaluation of your own: accuracy of the nearest class mean, from features that ``mapet`` extracts.

python examples/own_evaluation.py runs/first labelled
"""

import sys

import torch

import mapet


def nearest_mean(
    train: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor], classes: int
) -> float:
    """Top-1 accuracy by cosine similarity to the mean feature of each class.

    Args:
        train: features (N, F) float and labels (N,) int64.
        test: the same of the test images.
        classes: number of classes.
    """
    features, labels = train
    means = torch.stack([features[labels == label].mean(0) for label in range(classes)])
    similarity = torch.nn.functional.normalize(test[0], dim=1) @ torch.nn.functional.normalize(means, dim=1).T
    return float((similarity.argmax(1) == test[1]).float().mean())


if __name__ == "__main__":
    train, test, classes = mapet.extract_features(mapet.load_encoder(sys.argv[1]), sys.argv[2])
    print(f"nearest class mean {nearest_mean(train, test, classes):.1%} of {len(test[1])} test images")
