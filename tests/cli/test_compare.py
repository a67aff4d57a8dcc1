"""``mapet compare``: five objectives on real images, killed and resumed; every mistake is one line."""

import csv
import json
import os
import shutil
import signal
import time
from contextlib import nullcontext

import pytest
import torch

from mapet.api.compare import trials
from mapet.cli import main
from mapet.config.evaluate import FeatureSettings
from mapet.config.finetune import FinetuneRecipe
from mapet.config.recipe import fair, load, read
from mapet.data.cifar import Cifar10
from mapet.engine.run import Run, load_checkpoint
from mapet.utils.lock import Lock
from mapet.utils.rng import randint
from processes import Forked

STUDENT = ["--image-size", "16", "--patch-size", "4"]
MODEL = ["--model", "custom", "--embed-dim", "16", "--depth", "3", "--num-heads", "2", "--drop-path", "0.1", *STUDENT]
SMALL = [*MODEL, "--batch-size", "16", "--epochs", "2", "--warmup-epochs", "1", "--lr", "1e-3"]
FIT = ["--teacher", "pixels", "--vocab-size", "16", "--iterations", "2"]
TWO = ["--objectives", "mim,mae", "--seeds", "1", "--knn-every", "1", "--budget", "epochs,compute"]


def arguments(images, out, *more):
    fit = [] if {"--tokens", "--tokenizers"} & set(more) and "--vocab-size" not in more else FIT
    return ["compare", "--data", str(images), "--out", str(out), *SMALL, *fit, *more]


def rows(folder, name="results.csv"):
    return list(csv.DictReader((folder / name).open()))


@pytest.fixture(scope="module")
def five(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compared") / "five"
    assert main(arguments(images, folder, "--seeds", "2", "--baselines", "random", "--evaluate", "knn,fewshot")) == 0
    return folder


@pytest.fixture(scope="module")
def two(images, tmp_path_factory):
    """An unbroken comparison, to which the broken ones must be equal."""
    folder = tmp_path_factory.mktemp("compared") / "two"
    with pytest.MonkeyPatch.context() as patch:
        left = watch(patch)
        assert main(arguments(images, folder, *TWO)) == 0
    (folder.parent / "moments").write_text(str(-left[0]))
    return folder


class Killed(BaseException):
    """What stands for a kill inside this process."""


def watch(patch):
    """How many moments are left to a kill, which is none from 0 on; each is before something goes to the disk."""
    left = [0]

    def watched(act):
        def acted(*given, **named):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return act(*given, **named)

        return acted

    for owner, name in ((os, "fsync"), (os, "replace"), (Run, "append_metrics")):
        patch.setattr(owner, name, watched(getattr(owner, name)))
    return left


def assert_equal(one, other):
    for name in ("results.csv", "curves.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_five_objectives_come_to_one_table(five):
    found = rows(five)
    assert {row["method"] for row in found} == {"mapet", "pet", "mim", "cae", "mae", "random"}
    assert len(found) == 6 * 2 * (1 + 3)
    assert all(0 <= float(row["low"]) <= float(row["value"]) <= float(row["high"]) <= 1 for row in found)
    costs = {row["method"]: row for row in rows(five, "costs.csv")}
    assert costs["mapet"]["images"] == "96"
    assert float(costs["mapet"]["pflop"]) == 2 * float(costs["mapet"]["training_gmac"]) * 1e9 * 96 / 1e15
    assert float(costs["mapet"]["gmac"]) > float(costs["pet"]["gmac"]) > float(costs["mim"]["gmac"])
    assert float(costs["mae"]["peak_gib"]) > 0
    table = (five / "table.md").read_text()
    assert "| mae | 2 | 96 |" in table
    assert "few-shot, logistic regression" in table
    assert "the data has no split" in table
    assert "k-NN: best by the mean: " in table
    assert {path.name for path in five.iterdir()} >= {"table.tex", "table.csv", "accuracy.png", "compare.yaml"}


def test_all_start_alike_and_see_the_same(five):
    """Equal first weights and settings outside the objective, equal images in every step; tokens made once."""
    folders = [five / "runs" / f"{method}-2epochs-seed0" for method in ("mapet", "pet", "mim", "cae", "mae")]
    recipes = [load(Run(folder).recipe) for folder in folders]
    assert not any(fair(recipes[0], recipe) for recipe in recipes)
    pinned = [json.loads((folder / "inputs.json").read_text()) for folder in folders]
    assert {one["keys"] for one in pinned} == {pinned[0]["keys"]}
    assert {one["tokenizer"] for one in pinned[:4]} == {pinned[0]["tokenizer"]} != {"none"}
    assert not any((folder / "tokens").exists() for folder in folders)
    rates = [[row["lr"] for row in rows(folder, "metrics.csv")] for folder in folders]
    assert all(rate == rates[0] for rate in rates)


def test_a_resume_keeps_the_fraction_of_bad_images(images, tmp_path, monkeypatch):
    mixed, out = shutil.copytree(images, tmp_path / "images"), tmp_path / "out"
    (mixed / "along" / "bad.png").write_bytes(b"")
    words = ["--objectives", "mae", "--seeds", "1", "--evaluate", "knn", "--epochs", "1", "--warmup-epochs", "0"]
    with monkeypatch.context() as patched:
        patched.setattr(trials, "_train", interrupted)
        assert main(arguments(mixed, out, *words, "--max-bad-fraction", "0.2")) == 130
    assert main(["compare", "--resume", str(out)]) == 0


def interrupted(*given):
    raise KeyboardInterrupt


def test_seeds_differ(five):
    weights = [load_checkpoint(Run(five / "runs" / f"mim-2epochs-seed{seed}").last)[1] for seed in (0, 1)]
    assert not torch.equal(weights[0]["model/encoder.pos_embed"], weights[1]["model/encoder.pos_embed"])


def test_finished_trials_are_not_repeated(images, five, monkeypatch, capsys):
    monkeypatch.setattr(trials, "_train", None)
    monkeypatch.setattr(trials, "Subject", None)
    before = (five / "results.csv").read_bytes()
    assert main(["compare", "--resume", str(five)]) == 0
    assert (five / "results.csv").read_bytes() == before
    shown = capsys.readouterr().out
    assert "12/12" in shown
    assert "differ in nothing" in shown
    assert max(map(len, shown.splitlines())) <= 80 + len(str(five))


def test_new_trials_are_added_to_the_existing_ones(images, tmp_path, monkeypatch):
    """Another objective, seed, measure and budget are added; what was there stays, byte for byte, and in the tables."""
    out = tmp_path / "grown"
    assert main(arguments(images, out, "--objectives", "mim,mae", "--seeds", "1", "--evaluate", "knn")) == 0
    before = (out / "results.csv").read_text().splitlines()
    trained = []
    train = trials._train
    monkeypatch.setattr(trials, "_train", lambda trial, *given: trained.append(trial.name) or train(trial, *given))
    more = ["--objectives", "pet", "--seeds", "2", "--baselines", "random", "--budget", "compute"]
    assert main(arguments(images, out, *more, "--evaluate", "linear")) == 0
    assert not {"mim-2epochs-seed0", "mae-2epochs-seed0"} & set(trained)
    assert len(trained) == 2 * (3 + 2 + 1) - 2  # under equal compute mim is the measure; two were there
    assert set(before) < set((out / "results.csv").read_text().splitlines())
    found = {(row["budget"], row["method"], row["seed"], row["evaluation"]) for row in rows(out)}
    assert len(found) == 2 * 4 * 2 * 2
    assert main(["compare", "--resume", str(out)]) == 0
    assert main(arguments(images, out, "--objectives", "mae", "--seeds", "1", "--evaluate", "knn")) == 0
    assert len(trained) == 2 * (3 + 2 + 1) - 2
    assert {row["method"] for row in rows(out)} == {"mim", "mae", "pet", "random"}


def test_every_evaluation_of_features_has_its_figures(images, tmp_path):
    """Full protocols on one trained encoder and its start, each under its name in the table."""
    out = tmp_path / "out"
    asked = ["knn", "linear", "linear-mae", "linear-beit", "attentive", "fewshot"]
    more = ["--objectives", "mim", "--seeds", "1", "--baselines", "random", "--evaluate", ",".join(asked)]
    assert main(arguments(images, out, *more)) == 0
    found = {(row["method"], row["evaluation"]) for row in rows(out)}
    assert found == {(method, name) for method in ("mim", "random") for name in asked}
    table = (out / "table.md").read_text()
    for told in ("of LARS", "best of all layers", "cross-attention", "5 draws"):
        assert told in table
    notes = {row["evaluation"]: row["note"] for row in rows(out) if row["metric"] == "top1"}
    assert "the best of 3 layers" in notes["linear-beit"]
    assert notes["linear"] == ""


def test_other_settings_of_finetune_as_long_as_nothing_is_tuned(images, tmp_path):
    out, tuning = tmp_path / "out", tmp_path / "tuning.yaml"
    asked = ["--objectives", "mae", "--seeds", "1", "--evaluate", "knn"]
    assert main(arguments(images, out, *asked)) == 0
    tuning.write_text("optimization: {epochs: 1, batch_size: 8}\naugmentation: {auto_augment: null}\n")
    assert main(arguments(images, out, *asked[:4], "--evaluate", "finetune", "--tuning", str(tuning))) == 0
    assert [row["evaluation"] for row in rows(out)] == ["knn", "finetune"]
    assert main(arguments(images, out, *asked)) == 2


def test_more_seeds_of_a_limit_have_tokens_too(images, tmp_path):
    limited = ["--objectives", "mim", "--max-images", "20", "--evaluate", "knn"]
    for seeds in ("1", "2"):
        assert main(arguments(images, tmp_path / "out", *limited, "--seeds", seeds)) == 0
    assert {row["seed"] for row in rows(tmp_path / "out")} == {"0", "1"}


def test_killed_at_five_moments_it_ends_as_if_it_had_not_been(images, two, tmp_path, monkeypatch):
    """A moment is before something goes to the disk: a step's figures, a checkpoint, tokens, a score, a table."""
    out, left, moments = tmp_path / "out", watch(monkeypatch), int((two.parent / "moments").read_text())
    assert moments > 40
    for number in range(5):
        left[0] = 1 + int(randint(moments // 5, 17, number))
        with pytest.raises(Killed):
            main(arguments(images, out, *TWO))
    left[0] = 0
    assert main(["compare", "--resume", str(out)]) == 0
    assert_equal(out, two)


def test_a_folder_that_was_moved_resumes(images, tmp_path, monkeypatch):
    """Stopped in a pre-training, moved, stopped in a fine-tuning, moved: the same end as without."""
    tuning = tmp_path / "tuning.yaml"
    tuning.write_text("optimization: {epochs: 2, batch_size: 8}\naugmentation: {auto_augment: null}\n")
    asked = ["--objectives", "mim", "--seeds", "1", "--evaluate", "finetune", "--tuning", str(tuning)]
    assert main(arguments(images, tmp_path / "whole", *asked)) == 0
    append, left = Run.append_metrics, [4]

    def broken(run, rows):
        append(run, rows)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    out = tmp_path / "0"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "append_metrics", broken)
        with pytest.raises(Killed):
            main(arguments(images, out, *asked))
        for left[0] in (6, 0):
            out = out.rename(tmp_path / f"{out.name}0")
            with pytest.raises(Killed) if left[0] else nullcontext():
                main(["compare", "--resume", str(out)])
    assert (out / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()
    pretrained, tuned = (Run(out / "runs" / f"mim-2epochs-seed0{end}").recipe for end in ("", "-finetune"))
    assert load(pretrained).tokens == str(tmp_path / "00" / "tokens"), "it was done there"
    assert read(tuned, FinetuneRecipe).init == str(out / "runs" / "mim-2epochs-seed0")


def test_a_real_kill_in_the_middle_of_a_run(images, two, tmp_path):
    out = tmp_path / "out"
    last = out / "runs" / next(path.name for path in (two / "runs").iterdir() if path.name.startswith("mae-2"))
    process = Forked(tmp_path, *arguments(images, out, *TWO))
    while not Run(last).metrics.is_file() and not process.ended():
        time.sleep(0.002)
    process.kill()
    assert process.wait()[0] == -signal.SIGKILL
    assert not (out / "table.md").exists()
    assert main(arguments(images, out, *TWO)) == 0
    assert_equal(out, two)


def test_ctrl_c_prints_how_to_resume(images, two, tmp_path, monkeypatch, capsys):
    def interrupted(trial, *given):
        if trial.variant.method == "mae":
            raise KeyboardInterrupt
        return finish(trial, *given)

    finish = trials.finish
    monkeypatch.setattr(trials, "finish", interrupted)
    assert main(arguments(images, tmp_path / "out", *TWO, "--accelerator", "cpu")) == 130
    assert f"mapet compare --resume {tmp_path / 'out'} --accelerator cpu" in capsys.readouterr().out
    assert {row["method"] for row in rows(tmp_path / "out")} == {"mim"}


def test_curves_run_to_the_end_and_kept_checkpoints_go(two):
    points = rows(two, "curves.csv")
    mae = [row for row in points if row["run"].startswith("mae-")]
    most = max(int(row["step"]) for row in mae)
    assert most > 6
    longest = next(row["run"] for row in mae if int(row["step"]) == most)
    assert [float(row["epoch"]) for row in mae if row["run"] == longest] == [
        pytest.approx(step / 3, abs=1e-5) for step in [*range(3, most, 3), most]
    ]
    assert not list(two.glob("runs/*/checkpoints/step-*"))
    last = {row["run"]: row["value"] for row in points}
    for row in rows(two):
        run = f"{row['method']}-{row['epochs']}epochs-seed{row['seed']}"
        assert row["evaluation"] != "knn" or row["metric"] != "top1" or row["value"] == last[run]


def test_curves_of_parts_of_an_epoch(images, tmp_path):
    """Three steps an epoch, of which a third is one."""
    asked = ["--objectives", "mim", "--seeds", "1", "--evaluate", "knn", "--knn-every", "0.34"]
    assert main(arguments(images, tmp_path / "out", *asked)) == 0
    assert [row["step"] for row in rows(tmp_path / "out", "curves.csv")] == ["1", "2", "3", "4", "5", "6"]


def test_a_grid_with_a_limit_and_fine_tuning(images, tmp_path):
    """Every seed's own images have tokens; scratch is fine-tuning from the same first weights."""
    tuning = tmp_path / "tuning.yaml"
    tuning.write_text("optimization: {epochs: 1, batch_size: 8}\naugmentation: {auto_augment: null}\n")
    grid = ["--objectives", "mapet,mim", "--vary", "groups=1,3", "--seeds", "2", "--max-images", "20"]
    tuned = ["--evaluate", "finetune", "--baselines", "scratch", "--tuning", str(tuning)]
    assert main(arguments(images, tmp_path / "out", *grid, *tuned)) == 0
    found = rows(tmp_path / "out")
    assert [(row["method"], row["setting"]) for row in found] == 2 * [
        ("mapet", "groups=1"), ("mapet", "groups=3"), ("mim", ""), ("scratch", "")
    ]  # fmt: skip
    costs = {row["method"]: row for row in rows(tmp_path / "out", "costs.csv")}
    assert costs["scratch"]["epochs"] == "1"
    assert costs["mapet"]["images"] == "32"
    keys = [
        json.loads((tmp_path / "out" / "runs" / f"mim-2epochs-seed{seed}" / "inputs.json").read_text())["keys"]
        for seed in (0, 1)
    ]
    assert keys[0] != keys[1]


def test_one_setting_over_tokenizers_and_random_crops(images, five, tmp_path):
    other = tmp_path / "other"
    options = [*STUDENT, "--teacher", "pixels", "--vocab-size", "8", "--iterations", "2"]
    assert main(["tokenize", str(images), "--out", str(other), *options]) == 0
    tokenizers = f"{five / 'tokens' / 'tokenizer'},{other}"
    more = ["--objectives", "mim,mae", "--seeds", "1", "--tokenizers", tokenizers, "--evaluate", "knn"]
    assert main(arguments(images, tmp_path / "stored", *more)) == 0
    assert [row["setting"] for row in rows(tmp_path / "stored")] == ["tokenizer=tokenizer", "tokenizer=other", ""]
    crops = [*more[:4], "--evaluate", "knn", "--scale", "0.3", "1", "--hflip", "0.5"]
    assert main(arguments(images, tmp_path / "crops", *crops)) == 0
    assert (tmp_path / "crops" / "tokenizer" / "tokenizer.json").is_file()
    assert not (tmp_path / "crops" / "tokens").exists()


def test_cifar10_in_a_few_steps(cifar10, tmp_path, monkeypatch):
    """--eval-limit is of the training images; the test images are all of them, here 100."""
    monkeypatch.setattr(Cifar10, "__len__", lambda self: {"train": 2_000, "test": 100}[self.split])
    model = [*MODEL[:-4], "--image-size", "32", "--patch-size", "8", "--batch-size", "16", "--epochs", "1"]
    fit = [
        "--teacher",
        "pixels",
        "--vocab-size",
        "16",
        "--iterations",
        "2",
        "--max-images",
        "64",
        "--eval-limit",
        "50",
    ]
    asked = ["--objectives", "mapet,pet,mim,cae,mae", "--seeds", "1", "--evaluate", "knn"]
    out = tmp_path / "out"
    assert main(["compare", "--data", "cifar10", "--out", str(out), *model, *fit, *asked]) == 0
    assert {row["count"] for row in rows(out)} == {"100"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--objectives", "mapet,mime"], 'Did you mean "mim"?'),
        (["--seeds", "0"], "--seeds"),
        (["--evaluate", "knn,linea"], 'Did you mean "linear"?'),
        (["--vary", "groups=1,99"], "masked patches"),
        (["--vary"], "--vary needs a value"),
        (["--tokens", "TOKENS", "--patch-size", "8"], "grid"),
        (
            ["--tokens", "TOKENS", "--vocab-size", "9"],
            "only applies when a codebook is fitted; remove it, or remove --tokens",
        ),
        (
            ["--tokenizers", "a,b", "--vocab-size", "9"],
            "only applies when a codebook is fitted; remove it, or remove --tokenizers",
        ),
        (["--eval-data", "FLAT"], "no labels"),
        (["--devices", "2"], "one device"),
        (["in1k-vit-base", "in1k-vit-tiny"], 'Unexpected "in1k-vit-tiny"'),
        (["in1k-vit-bas"], 'Did you mean "in1k-vit-base"?'),
        (["--tuning", "in1k-finetune-vit-bas"], "in1k-finetune-vit-base"),
        (["--batch-size", "64"], "--batch-size"),
        (["--baselines", "random", "--evaluate", "finetune"], "scratch"),
        (["--objective", "mim"], "--objectives"),
        (["--decoder-depth", "2"], "--vary decoder-depth=VALUE"),
        (["--no-normalize-pixels"], "--vary normalize-pixels=VALUE"),
        (["--evaluate", "finetune"], "lower --batch-size, in the FILE.yaml of --tuning"),
        (["--baselines", "scratch"], "fewer than one batch of 256"),
        (["--evaluate", "finetune", "--tuning", "BACKBONE"], "--tuning sets model"),
        (["--evaluate", "fewshot", "--eval-limit", "12"], "needs 10: raise --eval-limit"),
        (["--eval-limit", "1"], "needs 1: raise --eval-limit"),
        (["--evaluate", "knn,attentive", "--eval-limit", "38"], "for --evaluate attentive, more than"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_is_trained(
    images, five, tmp_path, monkeypatch, capsys, wrong, said
):
    monkeypatch.setattr(FeatureSettings, "cache_gib", 2e-5)  # as much as pooled features take
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        shutil.copy(path, flat / f"{number}.png")
    backbone = tmp_path / "backbone.yaml"
    backbone.write_text("backbone: {model: vit_tiny}\n")
    named = {"TOKENS": five / "tokens", "FLAT": flat, "BACKBONE": backbone}
    wrong = [str(named.get(word, word)) for word in wrong]
    assert main(arguments(images, tmp_path / "out", *wrong)) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out" / "runs").exists()


def test_the_folder_of_another_comparison_is_refused(images, five, capsys):
    before = (five / "results.csv").read_bytes()
    assert main(arguments(images, five, "--seeds", "3", "--eval-limit", "9")) == 2
    message = capsys.readouterr().err
    assert "holds another comparison, with eval_limit = None" in message
    assert message.count("\n") == 1
    assert main(["compare", "--resume", str(images)]) == 2
    assert "is not a comparison" in capsys.readouterr().err
    with Lock(five, "working on the comparison in"):
        assert main(["compare", "--resume", str(five)]) == 2
    assert "Another process is working on the comparison in" in capsys.readouterr().err
    assert (five / "results.csv").read_bytes() == before
