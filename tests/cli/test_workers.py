"""Loader workers that cannot hand over their batches, are killed or hang end a verb with one line."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mapet.cli import main
from mapet.data import workers as module
from mapet.data.loader import in_order
from mapet.data.unreadable import UnreadableImages
from mapet.data.workers import WorkersFailed
from mapet.engine.run import Run
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize
from processes import Forked, wait_for_step

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TINY = [
    *("--objective", "mae", "--model", "custom", "--embed-dim", "16", "--depth", "1", "--num-heads", "2"),
    *("--accelerator", "cpu", "--cache-gib", "0"),
]
SMALL_SHM = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "sh"]
needs_unshare = pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*SMALL_SHM, "true"], capture_output=True).returncode != 0,
    reason="needs Linux, root and unshare",
)


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    return ["pretrain", "--data", str(data), "--out", str(out), *TINY, *more]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """600 images, of which a batch of 256 at 224 pixels takes 37 MiB."""
    root = tmp_path_factory.mktemp("many")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / "0.png")
    for number in range(1, 600):
        os.link(root / "0.png", root / f"{number}.png")
    return root


LARGE = ["--image-size", "224", "--patch-size", "56", "--batch-size", "256", "--workers", "4", "--epochs", "2"]


@needs_unshare
def test_docker_s_shared_memory_is_refused_at_the_start(many, tmp_path):
    command = [*SMALL_SHM, sys.executable, "-m", "mapet", *arguments(many, tmp_path / "r", *LARGE)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 2, done.stderr
    for part in ("/dev/shm has 64 MiB free", "4 loader workers need", "--workers 0", "--shm-size", "mapet pack"):
        assert part in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_shared_memory_of_all_ranks_counts(monkeypatch):
    monkeypatch.setattr(module.os, "statvfs", lambda _: SimpleNamespace(f_bavail=100, f_frsize=1 << 20))
    module._require_shared_memory(100 << 20, 8)
    module._require_shared_memory(0, 8)
    with pytest.raises(MapetError, match="100 MiB free, but 8 loader workers need 101 MiB") as refused:
        module._require_shared_memory((100 << 20) + 1, 8)
    assert "workers 0" in str(refused.value)


def children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(word) for word in found.split()]


def test_a_killed_worker_is_one_line_and_the_run_goes_on(images, tmp_path):
    more = ["--image-size", "16", "--patch-size", "4", "--batch-size", "8", "--epochs", "300", "--workers", "2"]
    process = Forked(tmp_path, *arguments(images, tmp_path / "r", *more))
    wait_for_step(tmp_path / "r", 8, process)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    code, _, complaint = process.wait()
    assert code == 2, complaint
    assert re.search(
        r"A loader worker (was killed \(SIGKILL\)|ended), most likely because the memory ran out", complaint
    )
    assert "lower --workers" in complaint
    assert f"Resume with: mapet pretrain --resume {tmp_path / 'r'}" in complaint
    assert "Traceback" not in complaint
    assert Run(tmp_path / "r").completed >= 6


class Slow:
    """A dataset that takes for ever, or whose reader's process dies."""

    name, classes = "slow", ()

    def __init__(self, dies: bool = False) -> None:
        self.dies = dies

    def __len__(self) -> int:
        return 1

    def image_id(self, i: int) -> str:
        return "key"

    def label(self, i: int) -> int:
        return -1

    def read(self, i: int) -> Image.Image:
        if self.dies:
            os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(30)
        return Image.new("RGB", (8, 8))


def test_a_hanging_worker_is_one_line(monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 2)
    with pytest.raises(WorkersFailed, match="no batch for 2 seconds: use workers 0"):
        next(in_order(Slow(), CenterCropResize((8, 8)), 1, workers=1, bad=UnreadableImages(1, 1.0)))


def test_a_worker_that_crashes_is_one_line():
    with pytest.raises(WorkersFailed, match=r"A loader worker (was )?ended"):
        next(in_order(Slow(dies=True), CenterCropResize((8, 8)), 1, workers=1, bad=UnreadableImages(1, 1.0)))


def test_torch_s_report_outside_of_the_loader_is_one_line_too(monkeypatch, capsys, images):
    """It comes from a handler of SIGCHLD: anywhere."""

    def dead(*_, **__):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr("mapet.api.evaluate.evaluate", dead)
    monkeypatch.setattr("mapet.cli.knn.command", dead)
    assert main(["knn", "x", "--data", str(images)]) == 2
    assert "A loader worker was killed (SIGKILL)" in capsys.readouterr().err
