"""Products with weights by oneDNN are those of ``F.linear``, in both passes, and are used where they are faster."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mapet.utils import linear as module
from mapet.utils.linear import Linear, grad_rows, grad_weight, linear

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
SHAPES = {  # rows, inputs, outputs
    "more outputs": ((3, 41), 64, 160),
    "more inputs": ((3, 41), 160, 64),
    "as many": ((123,), 64, 64),
    "four dimensions": ((2, 3, 7), 24, 40),
    "one row": ((1,), 24, 40),
}


@pytest.fixture(autouse=True)
def by_onednn(monkeypatch):
    """Whatever the processor and the size of the product."""
    monkeypatch.setattr(module, "SLOW_MKL", True)
    monkeypatch.setattr(module, "SMALLEST", 0)


@pytest.fixture
def products(monkeypatch):
    """The (rows, factor) shapes that oneDNN was given."""
    given, compute = [], module._onednn

    def counted(rows, weight, bias=None):
        given.append((tuple(rows.shape), tuple(weight.shape)))
        return compute(rows, weight, bias)

    monkeypatch.setattr(module, "_onednn", counted)
    return given


def drawn(shape, inputs, outputs, bias=True):
    generator = torch.Generator().manual_seed(0)
    sizes = [(*shape, inputs), (outputs, inputs), *[(outputs,)] * bias]
    return [torch.randn(*size, generator=generator).requires_grad_() for size in sizes]


def with_gradients(function, given):
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    out = function(*leaves)
    out.backward(torch.arange(out.numel(), dtype=out.dtype).view_as(out).sin())
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_outputs_and_gradients_are_those_of_float64(shape, bias, products):
    given = drawn(*shape, bias=bias)
    found = with_gradients(linear, given)
    assert len(products) == 3  # outputs and two gradients
    expected = with_gradients(F.linear, [tensor.double() for tensor in given])
    for one, wanted in zip(found, expected, strict=True):
        assert one.shape == wanted.shape
        torch.testing.assert_close(one.double(), wanted, atol=1e-4, rtol=1e-5)


def test_rows_and_weights_may_be_parts_of_others():
    rows, weight, bias = drawn((4, 30), 32, 48)
    _queries, keys = torch.split(weight, [16, 32])
    found = linear(rows[:, 7:], keys, bias[16:])
    torch.testing.assert_close(found, F.linear(rows[:, 7:], keys, bias[16:]), atol=1e-5, rtol=1e-5)
    found.sum().backward()
    assert not weight.grad[:16].any()
    assert weight.grad[16:].all()
    assert not rows.grad[:, :7].any()
    assert rows.grad[:, 7:].all()


@pytest.mark.parametrize("frozen", range(3))
def test_a_frozen_tensor_gets_no_gradient(frozen, products):
    given = drawn((123,), 64, 160)
    given[frozen].requires_grad_(False)
    linear(*given).sum().backward()
    assert [tensor.grad is None for tensor in given] == [place == frozen for place in range(3)]
    assert len(products) == 3 - (frozen < 2)


@pytest.mark.parametrize(("many", "sides"), [(123, (64, 64)), (124, (160, 64))])
def test_the_gradient_of_a_weight_from_many_rows_has_the_smaller_side_as_rows(monkeypatch, many, sides, products):
    monkeypatch.setattr(module, "MANY_ROWS", many)
    for inputs, outputs in [(64, 160), (160, 64)]:
        rows, weight, _ = drawn((123,), inputs, outputs)
        grad = torch.randn(123, outputs)
        torch.testing.assert_close(grad_weight(grad, rows), grad.T @ rows, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(grad_rows(grad, weight), grad @ weight, atol=1e-4, rtol=1e-5)
    assert [rows for rows, _ in products] == [(sides[0], 123), (123, 160), (sides[1], 123), (123, 64)]


@pytest.mark.parametrize("many", [1, 1000])
def test_a_gradient_of_a_gradient_is_torchs(monkeypatch, many, products):
    monkeypatch.setattr(module, "MANY_ROWS", many)
    found = []
    for function in (linear, F.linear):
        leaves = drawn((5, 3), 24, 40)
        grads = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        sum(grad.square().sum() for grad in grads).backward()
        found.append([leaf.grad for leaf in leaves])
    assert len(products) > 3
    for ours, torchs in zip(*found, strict=True):
        assert (ours - torchs).norm() < 1e-5 * torchs.norm()


def test_a_layer_has_the_parameters_of_torchs_layer(products):
    torch.manual_seed(0)
    ours = Linear(64, 160)
    torch.manual_seed(0)
    torchs = nn.Linear(64, 160)
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    rows = torch.randn(7, 64)
    torch.testing.assert_close(ours(rows), torchs(rows))
    assert products == [((7, 64), (160, 64))]


def test_sizes_below_the_smallest_are_torchs(monkeypatch, products):
    given = drawn((16,), 8, 4)
    monkeypatch.setattr(module, "SMALLEST", 16 * 8 * 4)
    with_gradients(linear, given)
    assert len(products) == 3
    monkeypatch.setattr(module, "SMALLEST", 16 * 8 * 4 + 1)
    found, expected = with_gradients(linear, given), with_gradients(F.linear, given)
    assert len(products) == 3
    assert all(torch.equal(one, wanted) for one, wanted in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_torchs(dtype, products):
    given = [tensor.detach().to(dtype) for tensor in drawn((123,), 64, 160)]
    assert torch.equal(linear(*given), F.linear(*given))
    assert torch.equal(grad_rows(given[0], given[1].T), given[0] @ given[1].T)
    assert torch.equal(grad_weight(given[0], given[0]), given[0].T @ given[0])
    assert not products


def test_autocast_is_torchs(products):
    given = drawn((123,), 64, 160)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = linear(*given), F.linear(*given)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    assert not products


def test_where_mkl_is_fast_products_are_torchs(monkeypatch, products):
    monkeypatch.setattr(module, "SLOW_MKL", False)
    given = drawn((123,), 64, 160)
    found, expected = with_gradients(linear, given), with_gradients(F.linear, given)
    assert all(torch.equal(one, wanted) for one, wanted in zip(found, expected, strict=True))
    assert not products


def test_other_devices_are_torchs(products):
    given = [tensor.detach().to("meta") for tensor in drawn((123,), 64, 160)]
    assert linear(*given).shape == (123, 160)
    assert not products


def test_an_exported_program_has_torchs_operations():
    """And any number of rows."""
    many = ({0: torch.export.Dim("rows")},)
    exported = torch.export.export(Linear(64, 160), (torch.randn(7, 64),), dynamic_shapes=many)
    targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert targets == ["aten.linear.default"]
