"""Loader workers that are started anew (spawn), as on macOS and Windows, instead of forked."""

import os
import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler

import pytest
from torch.utils.data import DataLoader

from mapet.cli import main
from mapet.data import workers
from mapet.data.cifar import Cifar10
from mapet.data.dataset import open_dataset

WORKERS = ["--workers", "2", "--accelerator", "cpu"]
SIZE = ["--image-size", "16", "--patch-size", "4"]
MODEL = ["--model", "custom", "--embed-dim", "16", "--depth", "1", "--num-heads", "2", *SIZE]
SHORT = ["--batch-size", "16", "--epochs", "1", "--warmup-epochs", "0"]
DECODED = [*SHORT, "--cache-gib", "0"]  # each batch by workers
FIT = ["--teacher", "pixels", "--vocab-size", "12", "--iterations", "2"]

# Each verb reads what an earlier one wrote. IMAGES, and these names, become paths.
VERBS = {
    "raw": ["pack", "IMAGES", "--out", "raw", "--workers", "2"],
    "jpeg": ["pack", "IMAGES", "--out", "jpeg", "--form", "jpeg", "--workers", "2"],
    "book": ["tokenizer", "fit", "IMAGES", "--out", "book", *FIT, *SIZE, *WORKERS],
    "tokens": ["tokenize", "jpeg", "--out", "tokens", "--tokenizer", "book", *SIZE, *WORKERS],
    "stored": ["pretrain", "jpeg", "--out", "stored", "--tokens", "tokens", *MODEL, *DECODED, *WORKERS],
    "online": ["pretrain", "IMAGES", "--out", "online", "--tokenizer", "book", *MODEL, *DECODED, *WORKERS],
    "crops": [
        "pretrain",
        "IMAGES",
        "--out",
        "crops",
        "--objective",
        "mae",
        "--scale",
        "0.2",
        "1",
        *MODEL,
        *SHORT,
        *WORKERS,
    ],
    "tuned": ["finetune", "stored", "--data", "IMAGES", "--out", "tuned", *DECODED, *WORKERS],
    "knn": ["knn", "stored", "--data", "IMAGES", *WORKERS],
    "linear": ["linear", "stored", "--data", "jpeg", "--protocol", "mae", *WORKERS],
    "f.npz": ["embed", "stored", "IMAGES", "--out", "f.npz", *WORKERS],
    "p.csv": ["predict", "tuned", "IMAGES", "--out", "p.csv", *WORKERS],
    "seen": ["tokenizer", "inspect", "book", "IMAGES", "--out", "seen", *WORKERS],
    "vqkd": ["tokenizer", "train-vqkd", "IMAGES", "--out", "vqkd", *MODEL[2:], *SHORT, "--vocab-size", "8", *WORKERS],
}
SCRIPT = """
import multiprocessing
import sys

import numpy as np
from PIL import Image

class Own:
    name, classes = "own", ("a", "b")

    def __len__(self):
        return 20

    def image_id(self, i):
        return f"own/{i}"

    def label(self, i):
        return i % 2

    def read(self, i):
        return Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3)).astype(np.uint8))

class Open(Own):
    def __init__(self):
        self.file = open(__file__)

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    import mapet
    from mapet.cli import main

    mapet.pack(Own(), "own", size=32, form="jpeg", workers=1)
    assert main(sys.argv[1:]) == 0
    try:
        mapet.pack(Open(), "open", size=32, workers=1)
    except mapet.MapetError as error:
        print("refused", error)
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    return tmp_path_factory.mktemp("spawn")


class Copied(DataLoader):
    """Loads with a copy of all that a spawned worker is given."""

    def __init__(self, dataset, *, num_workers, collate_fn, worker_init_fn, prefetch_factor, timeout, **given):
        parts = pickle.loads(ForkingPickler.dumps((dataset, collate_fn, worker_init_fn)))
        Copied.counts.append(num_workers)
        super().__init__(parts[0], collate_fn=parts[1], **given)


@pytest.mark.parametrize("name", VERBS)
def test_what_workers_are_given_can_be_pickled(name, images, desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    monkeypatch.setattr(workers, "DataLoader", Copied)
    monkeypatch.setattr(Copied, "counts", [], raising=False)
    assert main([str(images) if word == "IMAGES" else word for word in VERBS[name]]) == 0, capsys.readouterr().err
    assert max(Copied.counts) == 2


def test_spawned_workers(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [
            sys.executable,
            "script.py",
            "pretrain",
            "own",
            "--out",
            "run",
            "--objective",
            "mae",
            *MODEL,
            *DECODED,
            *WORKERS,
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "done      step 1" in done.stdout
    refused = done.stdout.splitlines()[-1]
    assert refused.startswith("refused The dataset cannot be given to loader workers (cannot pickle")
    assert "use workers 0" in refused


def test_memory_maps_are_not_copied(cifar10, desk):
    packs = [open_dataset(str(desk / name)) for name in ("raw", "jpeg")]
    for source in (*packs, *cifar10):
        assert len(ForkingPickler.dumps(source)) < 1000
        copy = pickle.loads(ForkingPickler.dumps(source))
        assert (copy.name, copy.image_id(1), copy.label(1)) == (source.name, source.image_id(1), source.label(1))
        assert copy.read(1).tobytes() == source.read(1).tobytes()
    assert isinstance(cifar10[0], Cifar10)


@pytest.mark.parametrize("guarded", [False, True])
def test_a_script_without_a_guard_is_told_so(images, tmp_path, guarded):
    script = tmp_path / "script.py"
    call = f"mapet.pack({str(images)!r}, {str(tmp_path / 'pack')!r}, size=16, workers=1)"
    guard = 'if __name__ == "__main__":\n    ' if guarded else ""
    script.write_text(f'import multiprocessing, mapet\n{guard}multiprocessing.set_start_method("spawn"); {call}\n')
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode == 0) == guarded, done.stderr
    said = done.stderr.splitlines()[-1] if done.stderr else ""
    assert (f"Loader workers import {script} again" in said and 'if __name__ == "__main__":' in said) != guarded
