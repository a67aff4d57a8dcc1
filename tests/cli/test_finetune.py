"""Fine-tuning through the command line: exact resume, workers, stages, what comes out, and what is refused."""

import csv
import json
import shutil
from itertools import islice

import numpy as np
import pytest
import torch

from mapet.build.finetune import load_run_classifier
from mapet.cli import main
from mapet.data.augment import normalize
from mapet.data.dataset import train_and_test
from mapet.engine.run import Run, load_checkpoint
from mapet.utils.view import CenterCropResize
from processes import Forked, wait_for_step

NETWORK = ["--model", "custom", "--embed-dim", "16", "--depth", "2", "--num-heads", "2"]
NETWORK += ["--image-size", "16", "--patch-size", "4"]
SHORT = ["--batch-size", "8", "--epochs", "5", "--warmup-epochs", "1", "--lr", "1e-3", "--ema-decay", "0.9"]


def arguments(images, out, *more):
    return ["finetune", "random", "--data", str(images), "--out", str(out), *NETWORK, *SHORT, *more]


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    """An uninterrupted run of 20 steps with everything switched on."""
    folder = tmp_path_factory.mktemp("tuned") / "whole"
    assert main(arguments(images, folder)) == 0
    return folder


def rows(folder):
    path = Run(folder).metrics
    return list(csv.DictReader(path.open())) if path.is_file() else []


def assert_equal(one, other):
    (step, ours), (theirs_step, theirs) = load_checkpoint(Run(one).last), load_checkpoint(Run(other).last)
    assert step == theirs_step == 20
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert Run(one).metrics.read_bytes() == Run(other).metrics.read_bytes()
    assert scores(one)[-1] == scores(other)[-1]


def scores(folder):
    return json.loads((folder / "scores.json").read_text())


def test_killed_and_resumed_with_workers_is_uninterrupted_without(images, whole, tmp_path):
    out = tmp_path / "killed"
    process = Forked(tmp_path, *arguments(images, out, "--workers", "2"))
    wait_for_step(out, 6, process)
    process.kill()
    process.wait()
    assert main(["finetune", "--resume", str(out)]) == 0
    assert_equal(whole, out)


def test_killed_before_the_first_checkpoint(images, whole, tmp_path):
    out = tmp_path / "early"
    out.mkdir()
    shutil.copy(whole / "recipe.yaml", out)
    assert main(["finetune", "--resume", str(out)]) == 0
    assert_equal(whole, out)


def test_testing_on_the_way_changes_nothing(images, whole, tmp_path, capsys):
    out = tmp_path / "tested"
    assert main(arguments(images, out, "--evaluate-every", "2")) == 0
    assert_equal(whole, out)
    assert [(entry["epoch"], entry["step"]) for entry in scores(out)] == [(2, 8), (4, 16), (5, 20)]
    text = capsys.readouterr().out
    assert text.count("protocol  training from random, 5 epochs of AdamW, batch 8") == text.count("top1 ") == 3
    before = scores(out)
    assert main(["finetune", "--resume", str(out), "--evaluate-every", "2"]) == 0
    assert scores(out) == before, "a finished run is tested again, not trained"
    assert_equal(whole, out)


def test_the_recipe_of_a_run_trains_the_same_again(whole, tmp_path):
    again = tmp_path / "again"
    assert (
        main(["finetune", "--recipe", str(whole / "recipe.yaml"), "--out", str(again), "--micro-batch-size", "2"]) == 0
    )
    a, b = (torch.tensor([float(row["loss"]) for row in rows(folder)]) for folder in (whole, again))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_stripes_are_learnt(images, tmp_path):
    out = tmp_path / "learnt"
    plain = ["--mixup", "0", "--cutmix", "0", "--smoothing", "0", "--reprob", "0", "--auto-augment", "None"]
    rate = ["--epochs", "30", "--lr", "5e-3", "--layer-decay", "1", "--scale", "0.5", "1", "--drop-path", "0"]
    assert main(arguments(images, out, *plain, *rate)) == 0
    losses = [float(row["loss"]) for row in rows(out)]
    assert sum(losses[-8:]) < 0.5 * sum(losses[:8])
    assert scores(out)[0]["top1"]["value"] == right(out, train_and_test(str(images))[1])


def test_small_photographs_by_the_named_recipe(cifar10, tmp_path, capsys):
    """Real images, six classes in train and test folders, trained on and tested by both shares."""
    photos = tmp_path / "photos"
    for name, source, count in (("train", cifar10[0], 12), ("test", cifar10[1], 4)):
        for label in range(6):
            indices = (index for index in range(len(source)) if source.label(index) == label)
            (photos / name / source.classes[label]).mkdir(parents=True)
            for index in islice(indices, count):
                source.read(index).save(photos / name / source.classes[label] / f"{index}.png")
    plain = ["--mixup", "0", "--cutmix", "0", "--smoothing", "0", "--drop-path", "0", "--layer-decay", "1"]
    plain += ["--auto-augment", "None", "--scale", "0.8", "1", "--lr", "5e-3"]
    sizes = ["--batch-size", "12", "--epochs", "12", "--warmup-epochs", "1", *NETWORK[:-4], "--image-size", "32"]
    options = ["--data", str(photos), "--out", str(tmp_path / "ft"), *sizes, "--patch-size", "8", *plain]
    assert main(["finetune", "random", "--recipe", "cifar10-finetune", *options]) == 0
    losses = [float(row["loss"]) for row in rows(tmp_path / "ft")]
    assert sum(losses[-18:]) < 0.95 * sum(losses[:18])
    (entry,) = scores(tmp_path / "ft")
    assert entry["top1"]["count"] == entry["top5"]["count"] == 24
    assert entry["top1"]["low"] < entry["top1"]["value"] < entry["top5"]["value"] <= entry["top5"]["high"]
    assert f"protocol  {entry['protocol']}" in capsys.readouterr().out


def right(run, source):
    """The share of the images that the run's classifier names rightly, one by one."""
    classifier, _, _ = load_run_classifier(run)
    found = []
    for index in range(len(source)):
        pixels = torch.from_numpy(np.array(CenterCropResize((16, 16))(source.read(index)))).permute(2, 0, 1)[None]
        found.append(classifier(normalize(pixels / 255)).argmax().item() == source.label(index))
    return sum(found) / len(found)


def test_a_fine_tuned_classifier_is_exported_with_its_head(whole, tmp_path, capsys):
    import timm

    assert main(["export", str(whole), "--out", str(tmp_path / "export")]) == 0
    assert "logits = model(images)" in capsys.readouterr().out
    classifier, _, step = load_run_classifier(whole)
    assert step == 20
    model = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(images), classifier(images), atol=1e-5, rtol=0)
    _, tensors = load_checkpoint(Run(whole).last)
    assert torch.equal(classifier.head.weight, tensors["ema/classifier.head.weight"])
    assert "across, along" in (tmp_path / "export" / "README.md").read_text()


def test_fine_tuning_goes_on_from_a_fine_tuning(images, whole, tmp_path, capsys):
    options = ["--data", str(images), *SHORT, "--epochs", "1"]
    assert main(["finetune", str(whole), "--out", str(tmp_path / "more"), *options]) == 0
    assert f"from the fine-tuning {whole} after 20 steps" in capsys.readouterr().out
    three = shutil.copytree(images, tmp_path / "three")
    shutil.copytree(images / "along", three / "third")
    options[1] = str(three)
    assert main(["finetune", str(whole), "--out", str(tmp_path / "three-ft"), *options]) == 2
    assert "--fresh-head" in capsys.readouterr().err
    assert main(["finetune", str(whole), "--out", str(tmp_path / "three-ft"), *options, "--fresh-head"]) == 0


def test_a_fine_tuning_is_trained_by_one_command_at_a_time(whole, capsys):
    before = (whole / "provenance.json").read_bytes()
    with Run(whole).lock():
        assert main(["finetune", "--resume", str(whole)]) == 2
    assert "Another process is training in" in capsys.readouterr().err
    assert (whole / "provenance.json").read_bytes() == before


def test_other_labels_on_resume_are_refused(images, tmp_path, capsys):
    mine = shutil.copytree(images, tmp_path / "mine")
    assert main(arguments(mine, tmp_path / "run", "--epochs", "1")) == 0
    (mine / "along").rename(mine / "about")
    assert main(["finetune", "--resume", str(tmp_path / "run")]) == 2
    assert "other images or labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--model", "vit_tinny"], 'Did you mean "vit_tiny"?'),
        (["--patch-size", "5"], "--patch-size"),
        (["--batch-size", "64"], "--batch-size"),
        (["--batch-size", "7"], "multiple of 2"),
        (["--accelerator", "tpu"], "accelerator"),
        (["--auto-augment", "rand-x"], "--auto-augment"),
        (["--layer-decay", "0"], "--layer-decay"),
        (["--crop-pct", "1.5"], "--crop-pct"),
        (["--remode", "pixels"], 'Did you mean "pixel"?'),
        (["--recipe", "in1k-finetune-vit-bas"], 'Did you mean "in1k-finetune-vit-base"?'),
        (["--evaluate-every", "-1"], "--evaluate-every"),
        (["--mixp", "1"], 'Did you mean "--mixup"?'),
        (["--data", "/nowhere"], "/nowhere"),
        (["another"], "FROM --data DATA --out RUN"),
    ],
)
def test_what_cannot_work_is_reported_before_anything_is_written(images, tmp_path, capsys, wrong, said):
    assert main([*arguments(images, tmp_path / "run"), *wrong]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert said in message
    assert not (tmp_path / "run").exists()


def test_without_labels_and_in_a_folder_in_use(images, whole, tmp_path, capsys):
    assert main(arguments(images / "along", tmp_path / "run")) == 2
    assert "no labels" in capsys.readouterr().err
    before = Run(whole).metrics.read_bytes()
    assert main(arguments(images, whole)) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert Run(whole).metrics.read_bytes() == before
    assert main(["finetune", "--resume", str(whole), "--seed", "1"]) == 2
    assert "seed = 0" in capsys.readouterr().err
