"""Linear probes against scikit-learn, on data whose answer is known, and under changes that must not matter."""

from functools import partial
from importlib import import_module

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mapet.evals import logistic, sgd
from mapet.evals.attentive import attentive
from mapet.evals.fewshot import fewshot
from mapet.evals.knn import knn
from mapet.evals.linear import PROTOCOLS, linear, standardised
from mapet.evals.mae_probe import EPOCHS, WARMUP, Probe
from mapet.evals.sgd import warm_cosine
from mapet.utils.errors import MapetError

POOLED = [name for name in PROTOCOLS if name != "beit"]


def layered(train, test, **settings):
    return linear(unpooled(train), unpooled(test), protocol="beit", **settings)


def attended(train, test, **settings):
    return attentive(unpooled(train), unpooled(test), **settings)


def unpooled(data):
    return data[0][:, None], data[1]


EVALUATIONS = [knn, linear, layered, attended, partial(fewshot, shots=(1,))]


def clusters(count, classes, noise, seed, width=8):
    """Points about one random centre a class, the centres the same for every seed."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % classes
    generator = torch.Generator().manual_seed(seed)
    return centres[labels] + noise * torch.randn(count, width, generator=generator), labels


@pytest.fixture
def sets():
    return clusters(600, 6, 1.0, seed=1), clusters(300, 6, 1.0, seed=2)


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_the_minimum_is_scikit_learns(penalty):
    vectors, labels = clusters(200, 4, 1.0, seed=1)
    vectors = vectors.double()
    weights = logistic.fit(vectors, labels, 4, penalty)
    oracle = LogisticRegression(C=1 / (penalty * 200), tol=1e-10, max_iter=1000).fit(vectors, labels)
    torch.testing.assert_close(weights[:, :-1], torch.from_numpy(oracle.coef_), atol=2e-3, rtol=2e-3)
    bias = weights[:, -1] - weights[:, -1].mean()  # the minimum leaves a constant free
    expected = torch.from_numpy(oracle.intercept_ - oracle.intercept_.mean())
    torch.testing.assert_close(bias, expected, atol=2e-3, rtol=2e-3)


def test_accuracy_is_near_scikit_learns_best(sets):
    train, test = sets
    found = linear(train, test, classes=6)["top1"].value
    best = max(
        LogisticRegression(C=1 / (penalty * 600), max_iter=1000).fit(*train).score(*test)
        for penalty in logistic.PENALTIES
    )
    assert 0.5 < best < 0.99
    assert found == pytest.approx(best, abs=0.02)


@pytest.mark.parametrize(("protocol", "count"), [("quick", 300), ("mae", 12_000)])
def test_separable_data_are_separated(protocol, count):
    train, test = clusters(count, 6, 0.05, seed=1), clusters(200, 6, 0.05, seed=2)
    scores = linear(train, test, classes=6, protocol=protocol)
    assert scores["top1"].value == scores["top5"].value == 1


@pytest.mark.parametrize("protocol", POOLED)
def test_random_labels_give_the_accuracy_of_guessing(protocol):
    vectors = torch.randn(2000, 8, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(2000) % 4
    score = linear((vectors[:1000], labels[:1000]), (vectors[1000:], labels[1000:]), classes=4, protocol=protocol)
    assert score["top1"].low < 1 / 4 < score["top1"].high


@pytest.mark.parametrize("protocol", POOLED)
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_scale_and_shift_do_not_matter(sets, protocol, scale):
    ema_update = [(scale * (vectors + torch.arange(8.0)), labels) for vectors, labels in sets]
    expected = linear(*sets, classes=6, protocol=protocol)["top1"].value
    found = linear(*ema_update, classes=6, protocol=protocol)["top1"].value
    assert found == pytest.approx(expected, abs=1 / 300)


@pytest.mark.parametrize("protocol", POOLED)
def test_results_do_not_depend_on_the_global_seed(sets, protocol):
    first = linear(*sets, classes=6, protocol=protocol)
    torch.manual_seed(123)
    state = torch.get_rng_state()
    with torch.no_grad():
        assert linear(*sets, classes=6, protocol=protocol) == first
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("batch", [5_000, 1_000])
def test_the_mae_protocol_in_batches(batch):
    train, test = clusters(12_000, 6, 0.05, seed=1), clusters(200, 6, 0.05, seed=2)
    assert linear(train, test, classes=6, protocol="mae", batch=batch)["top1"].value == 1


def test_standardised_by_the_training_set():
    train, test = torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[4.0, 9.0]])
    expected = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    for found, wanted in zip(standardised(train, test), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_start_of_maes_head():
    weight = Probe(200, 100, seed=0).weight
    assert weight.mean().abs() < 3e-4  # 4 standard errors: 0.01 / sqrt(20000) = 7e-5
    assert weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert not torch.equal(weight, Probe(200, 100, seed=1).weight)


def test_the_rate_of_mae():
    rates = [warm_cosine(epoch, WARMUP, EPOCHS) for epoch in (0, WARMUP / 2, WARMUP, (WARMUP + EPOCHS) / 2, EPOCHS)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0])


@pytest.mark.parametrize("evaluate", EVALUATIONS)
def test_mistakes_with_labels(evaluate):
    vectors, labels = clusters(30, 3, 1.0, 1)
    good = vectors, labels
    bad = [
        ((vectors, labels - 1), 3, "10 of 30 training images have no label"),
        ((vectors, labels), 2, "label 2, but the data have 2 classes"),
        ((vectors, labels), 5, r"2 of 5 classes have no training image \(3, 4\)"),
        ((vectors, torch.zeros_like(labels)), 1, "at least 2 classes"),
        ((vectors, labels[:7]), 3, "30 features and 7 labels"),
        ((vectors[:0], labels[:0]), 3, "0 features and 0 labels"),
        ((vectors / 0, labels), 3, "30 of 30 training features hold NaN"),
    ]
    for train, classes, reason in bad:
        with pytest.raises(MapetError, match=reason) as caught:
            evaluate(train, good, classes=classes)
        assert "\n" not in str(caught.value)
    with pytest.raises(MapetError, match="10 of 30 test images have no label"):
        evaluate(good, (vectors, labels - 1), classes=3)


def test_mistakes_with_settings(sets):
    with pytest.raises(MapetError, match='Did you mean "quick"'):
        linear(*sets, classes=6, protocol="quik")
    with pytest.raises(MapetError, match="batch_size must be >= 2"):
        linear(*sets, classes=6, protocol="mae", batch=1)


def test_two_images_are_enough():
    pair = torch.eye(2), torch.arange(2)
    assert linear(pair, pair, classes=2)["top1"].value == 1


def test_weights_drawn_from_a_normal_are_finite_and_a_function_of_the_seed(monkeypatch):
    one, same, other = (sgd.normal((50, 40), 0.5, seed).detach() for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert abs(one.std() - 0.5) < 0.02
    monkeypatch.setattr(sgd, "uniform", lambda *seed: torch.zeros(2, dtype=torch.float64))
    least = torch.special.ndtri(torch.tensor(2.0**-54, dtype=torch.float64)).float()
    assert sgd.normal((2,), 1.0, 0).tolist() == [least, least]


def test_a_schedule_without_warm_up_begins_at_its_peak():
    assert warm_cosine(0, 0, 10) == 1
    assert warm_cosine(5, 0, 10) == pytest.approx(0.5)


def test_the_loss_of_one_image_is_the_sum_over_heads():
    scores, label = torch.randn(1, 2, 3), torch.tensor([1])
    expected = sum(torch.nn.functional.cross_entropy(scores[:, head], label) for head in range(2))
    torch.testing.assert_close(sgd.loss(scores, label), expected)


def test_the_start_and_the_batches_of_a_probe_are_drawn_apart():
    for name in ("attentive", "mae_probe"):
        probe = import_module(f"mapet.evals.{name}")
        assert probe.START != probe.BATCHES
