"""k-NN against a loop that says what it means, against scikit-learn, and under changes that must not matter."""

from collections import defaultdict
from math import exp

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mapet.evals import knn as module
from mapet.evals.knn import knn, protocol
from mapet.utils.errors import MapetError

CLASSES = 7


@pytest.fixture
def sets():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, 6, generator=generator)

    def draw(count):
        labels = torch.arange(count) % CLASSES
        return centres[labels] + torch.randn(count, 6, generator=generator), labels

    return draw(90), draw(60)


def votes_by_loop(train, query, k, temperature):
    similar = [
        (float(torch.cosine_similarity(query, vector, dim=0)), int(label)) for vector, label in zip(*train, strict=True)
    ]
    votes = defaultdict(float)
    for similarity, label in sorted(similar, reverse=True)[:k]:
        votes[label] += exp(similarity / temperature)
    return sorted(votes, key=votes.get, reverse=True)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (500, 0.07)])
def test_against_a_loop(sets, k, temperature):
    train, test = sets
    ranked = [votes_by_loop(train, query, k, temperature) for query in test[0]]
    found = knn(train, test, k=k, temperature=temperature, classes=CLASSES)
    for name, first in {"top1": 1, "top5": 5}.items():
        expected = sum(int(label) in best[:first] for best, label in zip(ranked, test[1], strict=True))
        assert found[name].value == expected / 60
        assert found[name].count == 60
    assert 0.3 < found["top1"].value < 1


def test_against_scikit_learn(sets):
    train, test = sets
    oracle = KNeighborsClassifier(
        20,
        metric="cosine",
        algorithm="brute",
        weights=lambda d: torch.exp((1 - torch.as_tensor(d)) / 0.07).numpy(),
    )
    oracle.fit(train[0], train[1])
    assert knn(train, test, classes=CLASSES)["top1"].value == pytest.approx(oracle.score(test[0], test[1]))


def test_scale_rotation_and_chunks_do_not_matter(sets, monkeypatch):
    train, test = sets
    expected = knn(train, test, classes=CLASSES)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q
    turned = [(1000 * vectors @ rotation, labels) for vectors, labels in sets]
    assert knn(*turned, classes=CLASSES) == expected
    monkeypatch.setattr(module, "CHUNK", 7 * 90)
    assert knn(train, test, classes=CLASSES) == expected


def test_small_temperatures_do_not_overflow(sets):
    train, test = sets
    nearest = knn(train, test, k=1, classes=CLASSES)["top1"]
    assert knn(train, test, temperature=1e-6, classes=CLASSES)["top1"] == nearest


def test_a_class_without_a_vote_is_never_right():
    train = torch.eye(6), torch.arange(6)
    test = torch.eye(6)[:1], torch.tensor([5])
    assert knn(train, test, k=1, classes=6)["top5"].value == 0


def test_few_classes_have_no_top5():
    vectors, labels = torch.eye(5), torch.arange(5)
    assert knn((vectors, labels), (vectors, labels), k=1, classes=5).keys() == {"top1"}


def test_the_protocol_names_its_settings():
    assert protocol() == "k-NN, k = 20, T = 0.07, cosine, mean of patches"
    assert protocol(k=5, temperature=0.1, pool="token") == "k-NN, k = 5, T = 0.1, cosine, class token"


@pytest.mark.parametrize("settings", [{"k": 0}, {"temperature": 0.0}])
def test_settings_out_of_range(sets, settings):
    with pytest.raises(MapetError, match="at least 1 and a temperature above 0"):
        knn(*sets, classes=CLASSES, **settings)
