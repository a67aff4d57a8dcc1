"""Memory that is predicted before the first step, and how much there is."""

import json
import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mapet.engine import memory
from mapet.engine.footprint import WASTE, WORKSPACE, Allocated, footprint
from mapet.method.encoder import Encoder

ROOT = Path(__file__).parents[2]


class Wide(nn.Module):
    """A loss over activations whose size is known: (B, width) after each of two layers and of a square."""

    def __init__(self, width=1024):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return {"loss": self.second(self.first(x)).square().mean()}


def predicted(images, device="cpu", **settings):
    with torch.device("meta"):
        module = Wide()
    return footprint(module, lambda: {"x": torch.empty(images, 1024)}, device=device, **settings)


def test_weights_moments_and_average_are_counted_exactly():
    weights = 4 * sum(p.numel() for p in Wide().parameters())
    found, averaged = predicted(8), predicted(8, ema=True)
    assert (found.weights, found.optimizer, found.batch) == (weights, 2 * weights, 8 * 1024 * 4)
    assert averaged.optimizer == 3 * weights
    assert averaged.total - found.total == weights
    assert found.total == sum(found.parts.values()) + found.batch


def test_by_default_gradients_have_no_copies_and_the_objective_trains():
    assert predicted(8).step == predicted(8, copies=0).step < predicted(8, copies=1).step
    with torch.device("meta"):
        module = Wide().eval()
    footprint(module, lambda: {"x": torch.empty(1, 1024)})
    assert module.training


def test_recomputed_activations_take_less():
    def step(**settings):
        with torch.device("meta"):
            encoder = Encoder(32, 4, embed_dim=64, depth=6, num_heads=2)
        encoder.forward = lambda x: {"loss": Encoder.forward(encoder, x).square().mean()}
        return footprint(encoder, lambda: {"x": torch.empty(64, 3, 32, 32)}, **settings).step

    assert step() == step(grad_checkpointing=False) > 1.5 * step(grad_checkpointing=True)


def test_gradients_are_counted():
    found = predicted(1)
    assert 1 < (found.step - WORKSPACE["cpu"]) / (WASTE["cpu"] * found.weights) < 2


def test_activations_grow_with_the_micro_batch_only():
    row = 1024 * 4
    step = {images: predicted(images).step for images in (20_000, 40_000)}
    assert 2 * 20_000 * row <= step[40_000] - step[20_000] <= 9 * 20_000 * row
    split = predicted(40_000, accumulate=2)
    assert split.batch == 40_000 * row
    assert step[20_000] <= split.step <= 1.1 * step[20_000] + 20_000 * row


def test_a_heap_uses_holes_but_does_not_join_them():
    for holes, peak in ((True, 700), (False, 500)):
        with Allocated(holes) as found:
            first, second = torch.empty(200, dtype=torch.uint8), torch.empty(200, dtype=torch.uint8)
            del first, second
            third, fourth = torch.empty(150, dtype=torch.uint8), torch.empty(300, dtype=torch.uint8)
            fifth = torch.empty(50, dtype=torch.uint8)
            assert found.now == sum(len(one) for one in (third, fourth, fifth))
        assert found.peak == peak


class Holes(nn.Module):
    """Two tensors of the size of the images that are gone before larger ones are needed."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        one, two = x + 1, x + 2
        del one, two
        return {"loss": (self.factor * torch.cat([x, x])).mean()}


def test_what_freed_tensors_leave_counts_on_a_cpu():
    with torch.device("meta"):
        module = Holes()
    size = 4 * 1024 * 100_000
    found = footprint(module, lambda: {"x": torch.empty(100_000, 1024)})
    assert found.step == pytest.approx(WASTE["cpu"] * 8 * size + WORKSPACE["cpu"], rel=0.01)  # 6 if holes were joined


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures as Linux does")
@pytest.mark.parametrize("objective", ["mapet", "mae"])
def test_the_measured_peak_is_near_the_predicted_one(objective):
    command = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "--cell", objective, "vit_tiny"]
    done = subprocess.run(
        [*command, "--image-size", "112", "--batch", "16"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.15)


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_control_group_bounds_what_is_available(tmp_path, monkeypatch, version):
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    root = tmp_path / "groups" / ("memory" if version == 1 else "")
    group, device = root / "jobs" / "mine:1", torch.device("cpu")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    group.mkdir(parents=True)
    assert memory.available(device) is None
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    assert memory.available(device) == 5000 * 1024
    line = "4:memory:/jobs/mine:1\n3:cpu:/other\n" if version == 1 else "0::/jobs/mine:1\n"
    (tmp_path / "proc" / "self" / "cgroup").write_text(line)
    limit, usage, droppable = memory.LIMITS[2 - version]
    (group / limit).write_text("3000000\n")
    (group / usage).write_text("1000000\n")
    assert memory.available(device) == 2_000_000
    (group / "memory.stat").write_text(f"anon 5\n{droppable} 400000\n")
    assert memory.available(device) == 2_400_000
    (root / limit).write_text("max\n")
    (group.parent / limit).write_text("1500000\n")  # of a group above
    (group.parent / usage).write_text("1000000\n")
    assert memory.available(device) == 500_000
    (group.parent / limit).write_text("5\n")
    assert memory.available(device) == 0
    (group.parent / limit).write_text("1500000\n")
    if version == 1:  # the group of another controller
        (root / "other").mkdir()
        (root / "other" / limit).write_text("9\n")
        (root / "other" / usage).write_text("1\n")
        assert memory.available(device) == 500_000


def test_the_memory_that_this_process_has_now(tmp_path, monkeypatch):
    before, size = memory.resident(), 1 << 27
    with mmap.mmap(-1, size) as fresh:  # a tensor may be given memory that this process has already
        for start in range(0, size, mmap.PAGESIZE):
            fresh[start] = 1
        if before is not None:
            assert 0.9 * size < memory.resident() - before < 2 * size
    monkeypatch.setattr(memory, "PROC", tmp_path)
    assert memory.resident() is None
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "status").write_text("Name:\tpython\nVmPeak:\t  9000 kB\nVmRSS:\t   70 kB\n")
    assert memory.resident() == 70 * 1024


def test_a_fork_can_train_after_a_prediction():
    """Fake tensors would start autograd's threads, as for a GPU; a process of its own, as forks of this one trained."""
    work = """if True:
        import os, torch, test_footprint
        test_footprint.predicted(2)
        if not (pid := os.fork()):
            torch.zeros((), requires_grad=True).backward()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0"""
    run = subprocess.run([sys.executable, "-c", work], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_activations_of_bfloat16_take_less():
    whole, half = (predicted(20_000, precision=precision).step for precision in ("float32", "bfloat16"))
    assert half < whole - 20_000 * 1024 * 2
