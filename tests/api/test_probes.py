"""Probes on the way: what they measure is right, and the training does not notice them."""

import csv

import pytest
import torch

import mapet
from mapet.api import probes
from mapet.api.encoders import load_encoder
from mapet.cli import main
from mapet.config.runtime import PretrainRuntime, Runtime
from mapet.engine.run import Run, load_checkpoint
from mapet.evals.features import effective_rank
from mapet.utils.errors import MapetError
from mapet.utils.owned import RUN, find_foreign

SMALL = {
    "model": "custom", "embed_dim": 16, "depth": 2, "num_heads": 2, "image_size": 16, "patch_size": 4, "batch_size": 8,
    "lr": 1e-3, "epochs": 3, "warmup_epochs": 1, "vocab_size": 16, "iterations": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def plain(images, tmp_path_factory):
    return mapet.pretrain(data=images, out=tmp_path_factory.mktemp("plain") / "run", **SMALL)


@pytest.fixture(scope="module")
def probed(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("probed") / "run"
    return mapet.pretrain(data=images, out=out, probe_every=1, probe_data=images, keep_best="knn", **SMALL)


def rows(run):
    return list(csv.DictReader((run.folder / probes.FILE).open()))


def test_probes_do_not_change_the_training_by_one_bit(plain, probed):
    one, two = load_checkpoint(plain.last), load_checkpoint(probed.last)
    assert one[0] == two[0]
    assert all(one[1][name].equal(two[1][name]) for name in one[1])
    assert plain.metrics.read_bytes() == probed.metrics.read_bytes()


def test_each_epoch_has_a_row_and_a_line(probed):
    found = rows(probed)
    assert [float(row["epoch"]) for row in found] == [1, 2, 3]
    assert [float(row["step"]) for row in found] == [6, 12, 18]
    text = probed.log.read_text()
    assert text.count("probe     epoch") == 3
    assert "guess" in text
    assert find_foreign(probed.folder, RUN) is None


def test_the_last_row_is_what_evaluate_finds(probed, images):
    score = mapet.evaluate(probed.folder, images, "knn", out=probed.folder.parent / "scores.json")["knn"]["top1"]
    last = rows(probed)[-1]
    assert float(last["knn"]) == pytest.approx(score.value)
    assert float(last["knn_low"]) == pytest.approx(score.low)


def test_figures_equal_slow_references(probed, images):
    from mapet.data.augment import normalize, to_float
    from mapet.data.dataset import open_dataset
    from mapet.data.loader import in_order
    from mapet.data.unreadable import UnreadableImages
    from mapet.utils.view import CenterCropResize

    encoder, source = load_encoder(probed.folder), open_dataset(str(images))
    (batch,) = in_order(source, CenterCropResize((16, 16)), 100, bad=UnreadableImages(len(source)))
    with torch.no_grad():
        features = torch.stack([encoder(normalize(to_float(image[None])))[0, 1:].mean(dim=0) for image in batch.images])
    last = rows(probed)[-1]
    assert float(last["rank"]) == pytest.approx(effective_rank(features), rel=1e-4)
    unit = features / features.norm(dim=1, keepdim=True)
    spread = sum(((unit[:, i] - unit[:, i].mean()) ** 2).mean() for i in range(16))
    assert float(last["variance"]) == pytest.approx(float(spread), rel=1e-4)


def test_the_best_checkpoint_is_one_of_the_measured(probed, images):
    best = max(rows(probed), key=lambda row: float(row["knn"]))
    first = next(row for row in rows(probed) if row["knn"] == best["knn"])
    step, _ = load_checkpoint(probed.checkpoints / probes.BEST)
    assert step == float(first["step"])


def test_a_resumed_run_goes_on_probing(images, plain, tmp_path):
    run = mapet.pretrain(data=images, out=tmp_path / "run", probe_every=1, **SMALL)
    for name in ("last", "previous"):
        (run.checkpoints / f"{name}.safetensors").unlink(missing_ok=True)
    (run.folder / "seconds.json").unlink()
    mapet.resume(run.folder)
    assert [float(row["epoch"]) for row in rows(run)] == [1, 2, 3]
    assert run.metrics.read_bytes() == plain.metrics.read_bytes()


def test_damaged_rows_do_not_block(images, tmp_path):
    run = Run(tmp_path)
    tmp_path.joinpath(probes.FILE).write_bytes(b"\xff\x00 step,,\n,1")
    probes.record(run, 6, 1.0, {"rank": 2.0, "variance": 0.5})
    probes.record(run, 12, 2.0, {"rank": 3.0, "variance": 0.5})
    probes.record(run, 6, 1.0, {"rank": 4.0, "variance": 0.5})
    assert [(row["step"], row["rank"]) for row in probes.history(run)] == [(6, 4)]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--keep-best", "knn"], "--keep-best needs --probe-every"),
        (["--probe-every", "1", "--keep-best", "knn"], "--keep-best knn needs labelled images: give --probe-data"),
        (["--probe-every", "-1"], "--probe-every must be >= 0, got -1"),
        (["--probe-every", "1", "--probe-data", "nowhere"], "nowhere"),
    ],
)
def test_refusals(options, text, images, tmp_path, capsys):
    sizes = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    assert main(["pretrain", str(images), "--out", str(tmp_path / "run"), *sizes, *options]) == 2
    assert text in capsys.readouterr().err


def test_other_trainings_do_not_have_the_options():
    assert PretrainRuntime.of(Runtime(workers=1)) == PretrainRuntime(workers=1)
    with pytest.raises(MapetError, match="probe_every"):
        mapet.finetune("random", "x", "y", probe_every=1)
