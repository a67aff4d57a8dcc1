"""The chunked loss equals the plain one, and never stores all logits."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mapet.method import cross_entropy as module
from mapet.method.cross_entropy import chunked_cross_entropy

WIDTH, VOCABULARY = 16, 50


def case(dtype=torch.float32, count=21):
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY).to(dtype)
    rows = torch.randn(3, count // 3, WIDTH, dtype=dtype, requires_grad=True)
    return rows, head, torch.randint(VOCABULARY, rows.shape[:2])


def plain(rows, head, target):
    logits = head(rows)
    loss = F.cross_entropy(logits.flatten(0, 1).float(), target.flatten())
    return loss, (logits.argmax(-1) == target).float().mean()


def gradients(loss, rows, head):
    return torch.autograd.grad(3 * loss, [rows, *head.parameters()])


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setitem(module.CHUNK_LOGITS, "cpu", 4 * VOCABULARY)  # five chunks of four rows and one of one


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_plain_loss(dtype):
    rows, head, target = case(dtype)
    (loss, accuracy), (wanted, share) = chunked_cross_entropy(rows, head, target), plain(rows, head, target)
    torch.testing.assert_close(loss, wanted, atol=1e-6, rtol=1e-6)
    assert accuracy == share
    assert not accuracy.requires_grad
    for ours, theirs in zip(gradients(loss, rows, head), gradients(wanted, rows, head), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_is_as_accurate_as_the_plain_loss_under_autocast():
    rows, head, target = case()
    exact = plain(rows, head, target)[0]
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = chunked_cross_entropy(rows, head, target)[0], plain(rows, head, target)[0]
    assert ours.dtype == torch.float32
    assert abs(ours - exact) <= abs(theirs - exact) + 1e-6
    for got, rounded, right in zip(*(gradients(loss, rows, head) for loss in (ours, theirs, exact)), strict=True):
        assert got.dtype == torch.float32
        assert (got - right).norm() <= 1.2 * (rounded - right).norm() <= 0.02 * right.norm()


class LargestLogits(TorchDispatchMode):
    """Records the largest tensor of logits that any operation returns: vocabulary wide and not a weight."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, call, kinds, arguments=(), options=None):
        result = call(*arguments, **(options or {}))
        if isinstance(result, torch.Tensor) and result.shape[1:] == (VOCABULARY,) and len(result) != WIDTH:
            self.size = max(self.size, result.numel())
        return result


def test_only_one_chunk_of_logits_exists_at_a_time():
    rows, head, target = case(count=600)
    for loss, most in ((chunked_cross_entropy, 4 * VOCABULARY), (plain, 600 * VOCABULARY)):
        with LargestLogits() as largest:
            gradients(loss(rows, head, target)[0], rows, head)
        assert largest.size == most


def test_no_gradient_is_computed_under_no_grad():
    rows, head, target = case()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        loss, _ = chunked_cross_entropy(rows, head, target)
    assert counter.get_total_flops() == 2 * 21 * WIDTH * VOCABULARY
    assert not loss.requires_grad
    assert loss == chunked_cross_entropy(rows, head, target)[0]


def test_gradient_reaches_rows_through_a_frozen_head():
    rows, head, target = case()
    head.requires_grad_(False)
    (ours,), (theirs,) = (
        torch.autograd.grad(loss(rows, head, target)[0], [rows]) for loss in (chunked_cross_entropy, plain)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-5)


def test_a_chunk_has_at_least_one_row(monkeypatch):
    monkeypatch.setitem(module.CHUNK_LOGITS, "cpu", 1)
    rows, head, target = case()
    with LargestLogits() as largest:
        loss, _ = chunked_cross_entropy(rows, head, target)
    assert largest.size == VOCABULARY
    torch.testing.assert_close(loss, plain(rows, head, target)[0], atol=1e-6, rtol=1e-6)
