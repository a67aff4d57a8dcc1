"""What ``--overwrite`` and every verb that writes leave alone: all that mapet did not write, byte for byte."""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

import mapet.api.pretrain as pretraining
from mapet.cli import main
from mapet.engine.run import Run, load_checkpoint
from mapet.interop.timm import load_export
from mapet.tokenizers.tokenizer import load_tokenizer
from mapet.utils import owned
from mapet.utils.errors import MapetError
from mapet.utils.owned import ASIDE
from processes import Forked, stopping

STUDENT = ["--image-size", "16", "--patch-size", "4"]
NETWORK = ["--model", "custom", "--embed-dim", "16", "--depth", "1", "--num-heads", "2", *STUDENT]
SHORT = ["--batch-size", "16", "--epochs", "1", "--warmup-epochs", "0", "--accelerator", "cpu"]
CODES = ["--teacher", "pixels", *STUDENT, "--vocab-size", "8", "--iterations", "2"]
VQKD = ["--teacher", "pixels", *STUDENT, "--vocab-size", "8", "--code-dim", "4", "--embed-dim", "8", "--depth", "1"]
VQKD += ["--num-heads", "1", "--decoder-depth", "1", *SHORT]
THESIS = b"years of work"


def pretrain(data, out, *more):
    return ["pretrain", "--data", str(data), "--out", str(out), "--objective", "mae", *NETWORK, *SHORT, *more]


def finetune(data, out, *more):
    return ["finetune", "random", "--data", str(data), "--out", str(out), *NETWORK, *SHORT, *more]


def vqkd(data, out, *more):
    return ["tokenizer", "train-vqkd", str(data), "--out", str(out), *VQKD, *more]


def fit(data, out, *more):
    return ["tokenizer", "fit", str(data), "--out", str(out), *CODES, "--restarts", "1", *more]


TRAINED = {"pretrain": pretrain, "finetune": finetune, "vqkd": vqkd}
VERBS = {**TRAINED, "fit": fit}
PARTS = {"pretrain": "checkpoints", "finetune": "tensorboard", "vqkd": "checkpoints", "fit": "inspect"}


@pytest.fixture(scope="module")
def made(images, tmp_path_factory):
    """A folder of every kind, by its verb."""
    root = tmp_path_factory.mktemp("made")
    for name, command in VERBS.items():
        assert main(command(images, root / name)) == 0
    assert main(["export", str(root / "pretrain"), "--out", str(root / "export")]) == 0
    assert main(["tokenize", str(images), "--out", str(root / "tokens"), *CODES]) == 0
    return root


@pytest.fixture
def folder(made, tmp_path):
    """Makes a copy of one of them, to be overwritten."""
    return lambda name: shutil.copytree(made / name, tmp_path / name)


def content(folder):
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def refused(capsys, command, *said):
    capsys.readouterr()
    assert main([str(word) for word in command]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(str(text) in message for text in said), message


def loadable(name, folder):
    if name in TRAINED:
        assert load_checkpoint(Run(folder).last)[0] == (2 if name == "finetune" else 3)
    if name in ("vqkd", "fit"):
        assert load_tokenizer(folder).vocabulary == 8


@pytest.mark.parametrize("name", VERBS)
def test_an_earlier_one_is_replaced_and_its_neighbours_stay(images, folder, tmp_path, name):
    (tmp_path / "thesis.tex").write_bytes(THESIS)
    out = folder(name)
    if name == "pretrain":
        (out / "scores.json").write_text("[]\n")
        assert main(["export", str(out)]) == 0
    if name == "fit":  # findings about the tokenizer that is replaced
        (out / "inspect").mkdir()
        (out / "inspect" / "inspect.json").write_text("{}\n")
    before = content(out)
    assert main(VERBS[name](images, out, "--seed", "1", "--overwrite")) == 0
    after = content(out)
    assert not [path for path in after if path.startswith("inspect")]
    assert not [path for path in after if path.startswith(ASIDE)]
    assert {"scores.json", "export"}.isdisjoint(after) or name == "finetune"
    assert after != before
    loadable(name, out)
    assert {path.name for path in tmp_path.iterdir()} == {"thesis.tex", name}
    assert (tmp_path / "thesis.tex").read_bytes() == THESIS


@pytest.mark.parametrize("entry", ["thesis.tex", ".git/config", "PART/best.pt", "PART", "loss.png"])
@pytest.mark.parametrize("name", VERBS)
def test_foreign_files_stay_byte_for_byte(images, folder, tmp_path, capsys, name, entry):
    out = folder(name)
    path = out / entry.replace("PART", PARTS[name])
    if entry == "PART":  # a link in the entry of what is ours
        shutil.rmtree(path, ignore_errors=True)
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "last.safetensors").write_bytes(THESIS)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(THESIS)
    before = content(tmp_path)
    first = entry.split("/")[0] if entry == ".git/config" else path.relative_to(out)
    refused(capsys, VERBS[name](images, out, "--overwrite"), out, first, "give another --out")
    assert content(tmp_path) == before
    if entry != "PART":
        loadable(name, out)


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_without_a_mark_is_known_by_its_provenance(images, folder, capsys, name):
    out = folder(name)
    (out / ".mapet").unlink()
    entries = json.loads((out / "provenance.json").read_text())
    for other in (None, "[]", json.dumps([{"command": "make"}])):
        (out / "provenance.json").unlink(missing_ok=True)
        if other is not None:
            (out / "provenance.json").write_text(other)
        before = content(out)
        refused(capsys, TRAINED[name](images, out, "--overwrite"), "has no mark", "remove the folder yourself")
        assert content(out) == before
    (out / "provenance.json").write_text(json.dumps(entries))
    assert main(TRAINED[name](images, out, "--overwrite")) == 0


def test_a_tokenizer_of_another_program_stays(images, tmp_path, capsys):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": {"type": "BPE"}}))
    before = content(tmp_path)
    refused(capsys, fit(images, tmp_path, "--overwrite"), "has no mark that mapet wrote a tokenizer")
    assert content(tmp_path) == before


def test_a_list_of_unreadable_images_that_is_not_ours_stays(images, tmp_path, capsys):
    (tmp_path / "unreadable-images.txt").write_bytes(THESIS)
    refused(capsys, fit(images, tmp_path), "is not empty (it holds unreadable-images.txt)")
    assert content(tmp_path) == {"unreadable-images.txt": THESIS}


def test_a_project_with_a_recipe_is_no_run(images, made, tmp_path, capsys):
    """A project's folder around its images, tokens in a run's folder, labelled images in one."""
    project = tmp_path / "proj"
    shutil.copytree(images, project / "images")
    shutil.copy(made / "pretrain" / "recipe.yaml", project)
    (project / ".git").mkdir()
    (project / "thesis.tex").write_bytes(THESIS)
    run = shutil.copytree(made / "pretrain", tmp_path / "run")
    shutil.copytree(made / "tokens", run / "tokens")
    shutil.copytree(images, run / "pics")
    before = content(tmp_path)
    recipe = ["--recipe", project / "recipe.yaml"]
    for more in ([], ["--overwrite"]):
        start = ["pretrain", *recipe, *SHORT, *more]
        refused(
            capsys, [*start, "--data", project / "images", "--out", project], "--recipe", f"lies in --out {project}"
        )
        refused(capsys, pretrain(project / "images", project, *more), "--data", f"lies in --out {project}")
        refused(capsys, pretrain(images, run, "--tokens", run / "tokens", *more), "--tokens", f"--out {run}")
        refused(capsys, finetune(run / "pics", run, *more), "--data", f"lies in --out {run}")
        refused(capsys, pretrain(run, run, *more), f"--data {run} is --out {run}")
    refused(capsys, pretrain(images, project, "--overwrite"), "holds .git")
    assert content(tmp_path) == before


def test_no_verb_writes_around_what_it_reads(images, made, tmp_path, capsys):
    for name in ("pretrain", "fit", "tokens", "export"):
        shutil.copytree(made / name, tmp_path / name)
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "weights.pth").write_bytes(THESIS)
    (tmp_path / "settings.yaml").write_text("seed: 1\n")
    shutil.copy(made / "pretrain" / "recipe.yaml", tmp_path / "recipe.yaml")
    before, here = content(tmp_path), ["--out", tmp_path]
    for command, said in (
        (pretrain(images, tmp_path, "--tokenizer", tmp_path / "fit"), "--tokenizer"),
        (pretrain(images, tmp_path, "--teacher-weights", tmp_path / "weights.pth"), "--teacher-weights"),
        (["finetune", tmp_path / "pretrain", "--data", images, *here, *SHORT], "FROM"),
        ([*finetune(images, tmp_path), "--recipe", tmp_path / "settings.yaml"], "--recipe"),
        (vqkd(tmp_path / "images", tmp_path), "--data"),
        (vqkd(images, tmp_path, "--teacher", tmp_path / "export"), "--teacher"),
        (fit(tmp_path / "images", tmp_path), "--data"),
        (["tokenize", tmp_path / "images", *here, *CODES], "--data"),
        (["tokenize", images, *here, "--tokenizer", tmp_path / "fit"], "--tokenizer"),
        (["tokenizer", "import", tmp_path / "weights.pth", "--kind", "dalle", *here], "FILE"),
        (["tokenizer", "inspect", tmp_path / "fit", images, *here], "FOLDER"),
        (["pack", tmp_path / "images", *here], "--data"),
        (["compare", tmp_path / "recipe.yaml", "--data", images, *here], "RECIPE"),
        (["compare", "--data", tmp_path / "images", *here], "--data"),
        (["compare", "--data", images, "--tokenizers", tmp_path / "fit", *here], "--tokenizers"),
        (["export", tmp_path / "pretrain", *here], "FROM"),
    ):
        refused(capsys, command, said, f"lies in --out {tmp_path}")
    inside = ["--out", tmp_path / "images" / "new"]
    for command, said in (
        (["transfer", tmp_path / "pretrain", "--data", tmp_path / "images", *inside], "data"),
        (["shapes", made, tmp_path / "images", *inside], "photographs"),
        (["shapes", tmp_path / "images", made, *inside], "shapes"),
    ):
        refused(capsys, command, f"inside --{said} {tmp_path / 'images'}, where it would be among images")
    assert content(tmp_path) == before


@pytest.mark.parametrize("name", VERBS)
def test_a_folder_whose_name_weights_cannot_have_is_refused(images, made, tmp_path, capsys, name):
    said = r"/\udcff is not UTF-8, so weights in it could not be read: give another --out."
    refused(capsys, VERBS[name](images, tmp_path / "\udcff"), said)
    refused(capsys, ["export", made / "pretrain", "--out", tmp_path / "\udcff"], said)
    assert not content(tmp_path)


@pytest.mark.parametrize("name", VERBS)
def test_a_file_in_the_place_of_a_folder_is_named(images, tmp_path, capsys, name):
    (tmp_path / "notes").write_bytes(THESIS)
    refused(capsys, VERBS[name](images, tmp_path / "notes"), f"{tmp_path / 'notes'} is a file: give another --out.")
    assert content(tmp_path) == {"notes": THESIS}


def test_other_files_in_the_place_of_results_stay(images, made, folder, tmp_path, capsys):
    run = folder("pretrain")
    (tmp_path / "notes.json").write_text('[{"image": "cat"}]')
    (tmp_path / "look").mkdir()
    (tmp_path / "look" / "inspect.json").write_text("{}")
    (tmp_path / "look" / "codes.png").write_bytes(THESIS)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "bench.md").write_bytes(THESIS)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(THESIS)
    before = content(tmp_path)
    refused(capsys, ["knn", run, "--data", images, "--out", tmp_path / "notes.json"], "is not a list of scores")
    refused(capsys, ["tokenizer", "inspect", made / "fit", images, "--out", tmp_path / "look"], "holds codes.png")
    measured = ["bench", *NETWORK, "--objective", "mae", "--rounds", "1", "--skip-memory", "--accelerator", "cpu"]
    refused(capsys, [*measured, "--out", tmp_path / "bench"], "already has a bench.md")
    for command in (["pack", images], ["tokenize", images, *CODES]):
        refused(capsys, [*command, "--out", tmp_path / "photos"], "is not empty (it holds a.png)")
    refused(capsys, ["compare", "--data", images, "--out", tmp_path / "photos"], "")
    assert content(tmp_path) == before


def unmarked(folder):
    """As earlier versions wrote an export."""
    config = json.loads((folder / "config.json").read_text())
    del config["mapet"]
    (folder / "config.json").write_text(json.dumps(config))
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", {"format": "pt"})


def test_an_export_replaces_exports_alone(made, folder, tmp_path, capsys):
    out, command = folder("export"), ["export", str(made / "pretrain"), "--overwrite", "--out"]
    (tmp_path / "thesis.tex").write_bytes(THESIS)
    assert main([*command, str(out)]) == 0
    unmarked(out)
    assert main([*command, str(out)]) == 0, "one of an earlier version is known by its card"
    tensors = load_file(out / "model.safetensors")
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    before = content(tmp_path)
    refused(capsys, [*command, out], "holds a model without the mark")
    unmarked(out)
    (out / "README.md").write_text("# My model, trained with timm\n")
    refused(capsys, [*command, out], "holds a model without the mark", "remove this one yourself")
    assert content(tmp_path).keys() == before.keys()
    assert load_file(out / "model.safetensors").keys() == tensors.keys()
    for entry in ("notes.txt", ".git"):
        (out / entry).write_bytes(THESIS)
        refused(capsys, [*command, out], entry, "which no export wrote")
        (out / entry).unlink()


def test_a_foreign_model_in_a_runs_folder_keeps_the_run(images, folder, made, capsys):
    out = folder("pretrain")
    shutil.copytree(made / "export", out / "export" / "timm")
    (out / "export" / "timm" / "config.json").write_text("{}")
    before = content(out)
    refused(capsys, pretrain(images, out, "--overwrite"), "holds export/timm")
    refused(capsys, ["export", out, "--overwrite"], "holds a model without the mark")
    assert content(out) == before


FIRST = {
    "pretrain": "mapet.api.pretrain.pretrain_batches",
    "finetune": "mapet.api.finetune.finetune_batches",
    "vqkd": "mapet.api.train_vqkd.build_distill_batches",
    "fit": "mapet.api.fit_tokenizer.fit",
}


@pytest.mark.parametrize("error", [MapetError("no such thing"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("name", FIRST)
def test_what_fails_before_the_first_step_leaves_the_earlier_one(images, folder, monkeypatch, capsys, name, error):
    def fails(*given, **named):
        raise error

    out = folder(name)
    (out / "unreadable-images.txt").write_text("a\tb\n")
    before = content(out)
    monkeypatch.setattr(FIRST[name], fails)
    assert main(VERBS[name](images, out, "--seed", "1", "--overwrite")) == (130 if error.args == () else 2)
    if name in TRAINED and error.args == ():
        assert "resume with: the same command" in capsys.readouterr().out
    assert content(out) == before
    loadable(name, out)


def test_a_first_step_that_is_no_number_leaves_the_earlier_run(images, folder, monkeypatch):
    out = folder("pretrain")
    before = content(out)
    monkeypatch.setattr("mapet.engine.metrics.math", SimpleNamespace(isfinite=lambda _: False))
    assert main(pretrain(images, out, "--overwrite")) == 2
    assert content(out) == before


@pytest.mark.parametrize(
    ("owner", "method", "number"),
    [(pretraining, "pretrain_batches", 1), (Path, "rename", 1), (Path, "rename", 4), (Run, "write_provenance", 1)],
)
def test_a_kill_before_the_first_step_loses_nothing(images, folder, tmp_path, capsys, owner, method, number):
    out = folder("pretrain")
    before = content(out)
    overwrite = pretrain(images, out, "--seed", "1", "--overwrite")
    process = Forked(tmp_path, work=stopping(owner, method, number, partial(main, overwrite)))
    process.wait_for_stop()
    process.kill()
    process.wait()
    assert (out / ASIDE).exists() or (out / f"{ASIDE}.part").exists()
    copy = shutil.copytree(out, tmp_path / "copy")
    capsys.readouterr()
    assert main(["pretrain", "--resume", str(out)]) == 0
    assert f"restored  {out}" in capsys.readouterr().out
    after = content(out)
    assert {name: after[name] for name in before if name not in ("log.txt", "provenance.json")} == {
        name: before[name] for name in before if name not in ("log.txt", "provenance.json")
    }
    refused(capsys, pretrain(images, copy), "is not empty", "--resume")
    assert content(copy) == before, "the refusal restored the earlier run"
    assert main([word.replace(str(out), str(copy)) for word in overwrite]) == 0
    loadable("pretrain", copy)


def test_a_kill_while_the_earlier_run_is_deleted(images, folder, tmp_path):
    out = folder("pretrain")
    command = pretrain(images, out, "--seed", "1", "--overwrite")
    process = Forked(tmp_path, work=stopping(owned, "_clear", 1, partial(main, command)))
    process.wait_for_stop()
    process.kill()
    process.wait()
    assert (out / f"{ASIDE}.gone").exists()
    assert main(["pretrain", "--resume", str(out)]) == 0
    assert load_checkpoint(Run(out).last)[0] == 3
    assert main(command) == 0
    assert not list(out.glob(f"{ASIDE}*"))


def test_a_kill_between_the_renames_of_an_export(made, folder, tmp_path):
    out = folder("export")
    before = content(out)
    command = ["export", str(made / "pretrain"), "--overwrite", "--out", str(out)]
    process = Forked(tmp_path, work=stopping(Path, "rename", 2, partial(main, command)))
    process.wait_for_stop()
    process.kill()
    process.wait()
    assert content(tmp_path / ".export.old") == before
    assert main(command[:2] + command[3:]) == 2, "the earlier one is restored"
    assert content(out) == before
    assert main(command) == 0
    assert load_export(out).embed_dim == 16
    assert not (tmp_path / ".export.old").exists()
