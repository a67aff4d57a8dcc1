"""The optimiser, rate and length of each probe are those that its paper and published code state."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from mapet.evals import attentive, beit_probe, fewshot, logistic, mae_probe
from mapet.evals.sgd import train_sgd

BATCH = 64
CPU = torch.device("cpu")


@pytest.fixture
def trained(monkeypatch):
    """The settings with which a probe calls its training."""

    def settings(module, train, features):
        caught = {}

        def watch(probe, optimizer, data, index, **settings):
            caught.update(settings, probe=probe, optimizer=optimizer, index=index)

        monkeypatch.setattr(module, "train_sgd", watch)
        train(features)
        return caught

    return settings


def labelled(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)), torch.arange(shape[0]) % 3


@pytest.mark.parametrize(
    ("module", "shape", "peak", "most"),
    [(mae_probe, (80, 6), 0.1 * BATCH / 256, 16384), (attentive, (80, 4, 6), 0.4 * BATCH / 8192, 1024)],
)
def test_ninety_epochs_with_momentum_ten_of_them_warm_up(trained, module, shape, peak, most):
    found = trained(module, lambda data: module.train_probe(data, 3, 0, BATCH, CPU), labelled(*shape))
    assert (found["epochs"], found["batch"], len(found["index"])) == (90, BATCH, 80)
    shares = {0: 0, 2.5: 0.25, 10: 1, 50: 0.5, 90: 0}
    assert [found["rate"](epoch) for epoch in shares] == pytest.approx([peak * share for share in shares.values()])
    for group in found["optimizer"].param_groups:
        assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 0, False)
    assert most == module.LARGEST_BATCH
    assert {p for group in found["optimizer"].param_groups for p in group["params"]} == set(found["probe"].parameters())


def test_maes_weights_adapt_their_rate_and_its_bias_does_not(trained):
    found = trained(mae_probe, lambda data: mae_probe.train_probe(data, 3, 0, BATCH, CPU), labelled(80, 6))
    (weight, bias), optimizer = found["probe"].parameters(), found["optimizer"]
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    before = weight.detach().clone(), bias.detach().clone()
    weight.grad, bias.grad = torch.full_like(weight, 2.0), torch.full_like(bias, 2.0)
    optimizer.step()
    trust = 0.001 * before[0].norm() / weight.grad.norm()  # You et al., arXiv 1708.03888
    torch.testing.assert_close(before[0] - weight, trust * weight.grad)
    torch.testing.assert_close(before[1] - bias, bias.grad)
    assert (found["probe"].norm.eps, found["probe"].norm.affine) == (1e-6, False)


def test_beits_hundred_epochs_of_adamw(trained):
    found = trained(
        beit_probe,
        lambda data: beit_probe.train_heads(data, torch.arange(70), 3, 0, BATCH, CPU),
        labelled(80, 2, 6),
    )
    assert (found["epochs"], found["batch"], len(found["index"])) == (100, BATCH, 70)
    peak = 4e-3 * BATCH / 1024
    assert [found["rate"](epoch) for epoch in (0, 0.9, 50.9)] == pytest.approx([peak, peak, peak / 2])
    assert found["optimizer"].defaults["weight_decay"] == 1e-4
    assert beit_probe.LARGEST_BATCH == 1024


def test_the_initial_weights_of_the_attentive_probe():
    probe = attentive.AttentiveProbe(256, 4, 50, seed=0)
    for name in ("q_weight", "k_weight", "v_weight", "proj"):
        assert getattr(probe, name).std().item() == pytest.approx(0.02, rel=0.02)
    assert probe.head_weight.std().item() == pytest.approx(0.01, rel=0.03)
    flat = torch.stack([getattr(probe, name).flatten() for name in ("q_weight", "k_weight", "v_weight", "proj")])
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.03  # each from its own draw
    for name, value in {"query_token": 0, "q_bias": 0, "head_bias": 0, "norm_k": 1, "norm_v": 1}.items():
        assert (getattr(probe, name) == value).all()
    assert (probe.norm_q.eps, probe.norm.affine) == (1e-6, False)


def test_the_penalty_is_the_best_on_the_held_out_tenth():
    assert list(logistic.PENALTIES) == pytest.approx([10.0**-power for power in range(1, 7)])
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 4
    vectors = torch.nn.functional.one_hot(labels, 6) + 0.4 * torch.randn(300, 6, generator=generator).double()
    held, kept = logistic.hold_out_tenth(300, seed=5)

    def loss(penalty):
        oracle = LogisticRegression(C=1 / (penalty * 270), max_iter=1000, tol=1e-8).fit(vectors[kept], labels[kept])
        return log_loss(labels[held], oracle.predict_proba(vectors[held]))

    losses = list(map(loss, logistic.PENALTIES))
    best = logistic.PENALTIES[losses.index(min(losses))]
    found = logistic.fit_chosen(vectors, labels, 4, seed=5)
    torch.testing.assert_close(found, logistic.fit(vectors, labels, 4, best))
    assert best not in (logistic.PENALTIES[0], logistic.PENALTIES[-1])
    held, kept = logistic.hold_out_tenth(9, seed=0)
    assert (len(held), len(kept)) == (1, 8)


def test_each_epoch_trains_on_each_image_once_in_another_sequence():
    """With batches that divide the images: the recorded rows of an epoch are a permutation of the index."""
    features, index, seen = torch.arange(12.0)[:, None], torch.arange(2, 12), []

    class Recorder(torch.nn.Linear):
        def forward(self, rows):
            seen.append(rows[:, 0].long().tolist())
            return super().forward(rows)

    probe = Recorder(1, 2)
    optimizer, rates = torch.optim.SGD(probe.parameters(), lr=1.0), []
    labels = torch.arange(12) % 2
    train_sgd(
        probe,
        optimizer,
        (features, labels),
        index,
        epochs=2,
        batch=4,
        rate=lambda epoch: rates.append(epoch) or 0.0,
        seed=(1, 2),
    )
    assert rates == [0, 0.5, 1, 1.5]  # the last two images of an epoch make no batch
    assert list(map(len, seen)) == [4] * 4
    epochs = [seen[0] + seen[1], seen[2] + seen[3]]
    assert all(len(set(epoch)) == 8 and set(epoch) <= set(range(2, 12)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert not probe.training


def test_every_draw_has_its_own_salt():
    """Else the initial weights would be drawn from the bits that shuffle the images."""
    salts = [(module.START, module.BATCHES) for module in (mae_probe, beit_probe, attentive)]
    assert len({*sum(salts, ()), logistic.HELD_OUT, fewshot.DRAW}) == 8
