"""The precision that a device trains fastest in."""

import pytest
import torch

from mapet.engine import precision
from mapet.engine.precision import fastest_precision


@pytest.mark.parametrize("fast", [False, True])
def test_of_a_processor(monkeypatch, fast):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: fast)
    found = fastest_precision(torch.device("cpu"))
    if fast:
        assert found == ("bfloat16", "this processor has instructions for it")
    else:
        assert found == ("float32", "this processor has none for bfloat16")


@pytest.mark.parametrize("fast", [False, True])
def test_of_a_gpu(monkeypatch, fast):
    """What only emulates bfloat16 is slow."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast or including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    found = fastest_precision(torch.device("cuda"))
    if fast:
        assert found == ("bfloat16", "a GPU has instructions for it")
    else:
        assert found == ("float32", "a GPU has none for bfloat16")


def test_of_any_other_device(monkeypatch):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)
    assert fastest_precision(torch.device("mps")) == ("float32", "torch's mps has none for bfloat16")
