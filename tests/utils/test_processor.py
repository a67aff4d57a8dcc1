"""What a processor is, by what the system and torch say of it."""

from pathlib import Path

import pytest
import torch

from mapet.utils.processor import has_fast_mkl, has_slow_mkl


@pytest.fixture(autouse=True)
def asked_anew():
    has_fast_mkl.cache_clear()
    yield
    has_fast_mkl.cache_clear()


@pytest.mark.parametrize(
    ("maker", "mkl", "onednn", "fast", "slow"),
    [
        ("GenuineIntel", True, True, True, False),
        ("AuthenticAMD", True, True, False, True),
        ("AuthenticAMD", True, False, False, False),
        ("AuthenticAMD", False, True, False, False),
        ("GenuineIntel", False, True, False, False),
    ],
)
def test_mkl_is_fast_on_the_processors_of_its_maker(monkeypatch, maker, mkl, onednn, fast, slow):
    monkeypatch.setattr(Path, "read_text", lambda _: f"vendor_id : {maker}\n")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    assert (has_fast_mkl(), has_slow_mkl()) == (fast, slow)


def test_a_system_that_does_not_tell_has_no_fast_mkl(monkeypatch):
    def unreadable(_):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", unreadable)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert (has_fast_mkl(), has_slow_mkl()) == (False, True)
