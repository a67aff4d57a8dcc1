"""BEiT's probe against one classifier a layer by torch's own parts; the test set does not choose the best layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mapet.evals.beit_probe import BATCHES, EPOCHS, Heads, train_heads
from mapet.evals.linear import linear
from mapet.evals.logistic import hold_out_tenth
from mapet.evals.sgd import loss
from mapet.utils.errors import MapetError
from mapet.utils.rng import random_bits

CPU = torch.device("cpu")


def layered(count, seed, noises, classes=4, width=6):
    """(count, layers, width): each layer the class's centre in its own noise."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    generator = torch.Generator().manual_seed(seed)
    layers = [centres[labels] + noise * torch.randn(count, width, generator=generator) for noise in noises]
    return torch.stack(layers, dim=1), labels


def test_heads_side_by_side_are_heads_alone():
    (features, labels), index = layered(70, 1, (0.5, 1.0, 3.0)), torch.arange(70)
    heads = train_heads((features, labels), index, 4, 0, 32, CPU)
    for layer in range(3):
        start = Heads(3, 6, 4, seed=0)
        alone = nn.Linear(6, 4)
        alone.weight.data, alone.bias.data = start.weight.data[layer].clone(), start.bias.data[layer].clone()
        optimizer = torch.optim.AdamW(alone.parameters(), lr=1e-3 * 32 / 256, weight_decay=1e-4)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        for epoch in range(EPOCHS):
            order = random_bits(0, BATCHES, epoch, index).argsort()
            for rows in (order[:32], order[32:64]):
                optimizer.zero_grad()
                F.cross_entropy(alone(features[rows, layer]), labels[rows]).backward()
                optimizer.step()
            rate.step()
        torch.testing.assert_close(heads.weight[layer], alone.weight, atol=2e-6, rtol=0)
        torch.testing.assert_close(heads.bias[layer], alone.bias, atol=2e-6, rtol=0)


def test_the_loss_is_the_sum_over_heads():
    scores, labels = torch.randn(10, 3, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 4
    torch.testing.assert_close(loss(scores, labels), sum(F.cross_entropy(head, labels) for head in scores.unbind(1)))
    torch.testing.assert_close(loss(scores[:, 0], labels), F.cross_entropy(scores[:, 0], labels))


def test_every_layer_is_reported_and_the_best_one_named():
    noises = (4.0, 0.05, 4.0)
    scores = linear(layered(2000, 1, noises), layered(400, 2, noises), classes=4, protocol="beit", batch=256)
    assert list(scores) == ["top1", "layer 1", "layer 2", "layer 3"]
    assert scores["top1"].value == scores["layer 2"].value == 1
    assert max(scores["layer 1"].value, scores["layer 3"].value) < 0.7
    assert scores["top1"].note == "layer 2, the best of 3 layers on a held-out tenth of the training set"
    assert scores["layer 2"].note == ""


def test_the_test_set_does_not_choose():
    """What is best in training is worst in the test: its number is the one reported."""
    train, test = layered(1000, 1, (0.05, 5.0)), layered(400, 2, (5.0, 0.05))
    scores = linear(train, test, classes=4, protocol="beit", batch=128)
    assert scores["layer 2"].value > scores["layer 1"].value + 0.1
    assert scores["top1"].value == scores["layer 1"].value


def test_nor_do_the_images_that_train_the_heads():
    """A layer that holds only each image's own name fits its images and no others."""
    labels = torch.arange(200) % 4
    own = torch.eye(200) * 300
    real = torch.zeros(200, 200)
    real[:, :4] = F.one_hot(labels, 4) * 3.0 + torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    train = torch.stack([own, real], dim=1), labels
    scores = linear(train, train, classes=4, protocol="beit")
    assert scores["layer 1"].value == 1 > scores["layer 2"].value
    assert scores["top1"].note.startswith("layer 2")


def test_random_labels_give_the_accuracy_of_guessing():
    features = torch.randn(2000, 2, 8, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(2000) % 4
    scores = linear((features[:1000], labels[:1000]), (features[1000:], labels[1000:]), classes=4, protocol="beit")
    assert all(score.low < 1 / 4 < score.high for score in scores.values())


def test_results_do_not_depend_on_the_global_seed():
    train, test = layered(100, 1, (1.0, 2.0)), layered(100, 2, (1.0, 2.0))
    first = linear(train, test, classes=4, protocol="beit")
    torch.manual_seed(123)
    state = torch.get_rng_state()
    with torch.no_grad():
        assert linear(train, test, classes=4, protocol="beit") == first
    assert torch.equal(torch.get_rng_state(), state)
    heads = [train_heads(train, torch.arange(100), 4, seed, 50, CPU).weight for seed in (0, 1)]
    assert not torch.equal(*heads)


def test_a_tenth_is_held_out():
    held, kept = hold_out_tenth(105, seed=0)
    assert len(held) == 10
    assert torch.equal(torch.cat([held, kept]).sort().values, torch.arange(105))
    assert not torch.equal(held, hold_out_tenth(105, seed=1)[0])


def test_top5_is_the_chosen_layers():
    noises = (0.05, 5.0)
    train, test = layered(300, 1, noises, classes=7), layered(200, 2, noises, classes=7)
    scores = linear(train, test, classes=7, protocol="beit", batch=60)
    assert list(scores) == ["top1", "top5", "layer 1", "layer 2"]
    assert scores["top5"].value >= scores["top1"].value == scores["layer 1"].value
    assert scores["top5"].note == scores["top1"].note


@pytest.mark.parametrize(("protocol", "layers"), [("beit", 0), ("quick", 1), ("mae", 1)])
def test_features_that_are_not_the_protocols(protocol, layers):
    features = torch.randn(8, *[3] * layers, 5), torch.arange(8) % 2
    with pytest.raises(MapetError, match=f"The {protocol} protocol cannot read features of shape"):
        linear(features, features, classes=2, protocol=protocol)
