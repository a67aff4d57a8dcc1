"""Freed memory is kept: a step after the first ones takes few fresh pages."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from mapet.engine.memory import attempt, keep_freed, recompute

LAST_STEP = """
import resource, sys, torch
from torch.nn.functional import gelu
from mapet.engine.memory import keep_freed
if sys.argv[1] == "keep" and not keep_freed():
    sys.exit("no glibc")
rows, weight = torch.randn(4096, 64), torch.randn(4096, 64, requires_grad=True)
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    gelu(rows @ weight.T).square().mean().backward()  # three tensors of 64 MiB
    weight.grad = None
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def fresh_pages(how):
    done = subprocess.run([sys.executable, "-c", LAST_STEP, how], capture_output=True, text=True, check=False)
    if done.returncode and "no glibc" in done.stderr:
        pytest.skip("another allocator than glibc's")
    assert not done.returncode, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts pages as Linux does")
def test_a_later_step_takes_few_fresh_pages():
    assert fresh_pages("keep") < fresh_pages("give back") / 4


def refused(message):
    raise RuntimeError(message)


def test_exhausted_memory_is_no_result_and_every_other_error_is_raised():
    assert attempt(lambda: 5) == 5
    assert attempt(lambda: refused("[enforce fail] DefaultCPUAllocator: can't allocate memory")) is None
    with pytest.raises(RuntimeError, match="sizes differ"):
        attempt(lambda: refused("sizes differ"))


@pytest.mark.parametrize(("answers", "kept"), [([1, 1], True), ([1, 0], False), ([0], False)])
def test_freed_memory_is_kept_if_glibc_takes_both_settings(monkeypatch, answers, kept):
    """No blocks by mmap, and nothing trimmed below 2 GiB; see <malloc.h>."""
    asked, left = [], list(answers)
    library = SimpleNamespace(mallopt=lambda *setting: asked.append(setting) or left.pop(0))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    assert keep_freed() is kept
    assert asked == [(-4, 0), (-1, 2**31 - 1)][: len(answers)]


def test_without_glibc_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert keep_freed() is False


class Counting(torch.nn.Module):
    """A block that counts its forward passes."""

    calls = 0

    def forward(self, rows):
        self.calls += 1
        return rows.sin().exp()


@pytest.mark.parametrize("again", [False, True])
def test_blocks_are_computed_again_in_the_backward_pass(again):
    model = torch.nn.Module()
    model.blocks, model.other = torch.nn.ModuleList([Counting(), Counting()]), Counting()
    if again:
        recompute(model)
    rows = torch.ones(3, requires_grad=True)
    model.other(model.blocks[1](model.blocks[0](rows))).sum().backward()
    assert [block.calls for block in model.blocks] == [1 + again] * 2
    assert model.other.calls == 1
