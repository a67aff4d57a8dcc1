"""A tracker gets every step, and changes or stops nothing; an imitation stands for Trackio and Weights & Biases."""

import csv
import sys
from types import ModuleType

import pytest

import mapet
from mapet.engine import tracker
from mapet.engine.run import load_checkpoint
from mapet.utils.errors import MapetError

SMALL = {
    "model": "custom", "image_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "batch_size": 16,
    "epochs": 2, "warmup_epochs": 0, "accelerator": "cpu",
}  # fmt: skip


class Fake(ModuleType):
    """``init``, ``log`` and ``finish`` as both packages have them; fails at a step, or at the begin."""

    def __init__(self, fails=None):
        super().__init__("fake")
        self.begun, self.rows, self.finished, self.fails = [], [], 0, fails

    def init(self, *, project, name, config, resume, **more):
        if self.fails == 0:
            raise ConnectionError("no answer")
        self.begun.append((project, name, config, resume, more))
        return self

    def log(self, metrics, step=None):
        if self.fails and step >= self.fails:
            raise ConnectionError("no answer")
        self.rows.append({"step": step, **metrics})

    def finish(self):
        self.finished += 1


@pytest.fixture
def fake(monkeypatch):
    def put(name, fails=None):
        module = Fake(fails)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(tracker, "find_spec", lambda wanted: wanted in sys.modules)
        return module

    return put


def train(images, out, **settings):
    return mapet.pretrain(data=images, out=out, objective="mae", **SMALL, **settings)


@pytest.fixture(scope="module")
def plain(images, tmp_path_factory):
    return train(images, tmp_path_factory.mktemp("plain") / "run")


def same(run, other):
    found = [load_checkpoint(one.last)[1] for one in (run, other)]
    assert all(found[0][name].equal(found[1][name]) for name in found[0])
    assert run.metrics.read_bytes() == other.metrics.read_bytes()


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_every_row_of_the_metrics_is_tracked(fake, images, plain, tmp_path, name):
    module = fake(name)
    run = train(images, tmp_path / "run", logger=name)
    same(run, plain)
    rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(run.metrics.open())]
    assert module.rows == rows
    ((project, title, config, resume, more),) = module.begun
    assert (project, title[:4], resume, module.finished) == ("mapet", "run-", "allow", 1)
    assert more == ({"id": title} if name == "wandb" else {})
    assert config["recipe.yaml: optimization.epochs"] == 2
    assert str(images) not in str(config)


def test_a_resumed_run_continues_its_entry(fake, images, tmp_path):
    module = fake("trackio")
    run = train(images, tmp_path / "run", logger="trackio", lr=1e-3, min_lr=1.0)
    mapet.resume(run.folder, epochs=3, accelerator="cpu")
    assert [row["step"] for row in module.rows] == list(range(1, 10))
    assert module.begun[0][1] == module.begun[1][1]
    assert module.finished == 2


@pytest.mark.parametrize("fails", [0, 3])
def test_a_tracker_that_fails_stops_nothing(fake, images, plain, tmp_path, fails):
    module = fake("wandb", fails)
    run = train(images, tmp_path / "run", logger="wandb")
    same(run, plain)
    assert len(module.rows) == max(0, fails - 1)
    assert run.log.read_text().count("wandb is not written any more (ConnectionError: no answer)") == 1


def test_without_its_package_one_line_names_it(images, tmp_path, monkeypatch):
    monkeypatch.setattr(tracker, "find_spec", lambda name: None)
    with pytest.raises(MapetError, match=r"logger wandb needs its package: pip install 'mapet\[wandb\]'"):
        train(images, tmp_path / "run", logger="wandb")
    assert not (tmp_path / "run").exists()
