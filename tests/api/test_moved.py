"""Inputs that lie elsewhere now: a run goes on with them, bit-equal, and others are refused in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import mapet
from mapet.api import tokenize_inputs
from mapet.api.moved import MOVABLE, Moved, relocated
from mapet.build import known_ids
from mapet.cli import main
from mapet.config.file import read
from mapet.config.flat import updated
from mapet.config.recipe import Recipe
from mapet.engine import fit
from mapet.engine.run import Run, load_checkpoint
from mapet.utils.errors import MapetError
from mapet.utils.fingerprint import sealed

SIZES = {"image_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
SHORT = {"batch_size": 16, "epochs": 2, "warmup_epochs": 0, "accelerator": "cpu", "save_every": 1}
SMALL = {"model": "custom", **SIZES, **SHORT}
VQKD = {**SIZES, **SHORT, "teacher": "pixels", "vocab_size": 8, "code_dim": 4, "decoder_depth": 1}
TRAINED = {
    "pretrain": lambda images, out: mapet.pretrain(data=images, out=out, objective="mae", **SMALL),
    "finetune": lambda images, out: mapet.finetune("random", images, out, **SMALL),
    "vqkd": lambda images, out: mapet.train_vqkd(images, out, **VQKD),
}
FIT = {"image_size": 16, "patch_size": 4, "teacher": "pixels", "vocab_size": 8, "iterations": 2, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def tokens(images, tmp_path_factory):
    return mapet.tokenize(images, tmp_path_factory.mktemp("tokens") / "tokens", **FIT).folder


def pretrain(images, tokens, out, **settings):
    return mapet.pretrain(data=images, tokens=tokens, out=out, **{**SMALL, "objective": "mim", **settings})


@pytest.fixture(scope="module")
def whole(images, tokens, tmp_path_factory):
    return pretrain(images, tokens, tmp_path_factory.mktemp("runs") / "whole")


def stop(train, monkeypatch, out):
    """Interrupt a training after a step."""

    def interrupted(*given, **named):
        if Run(out).metrics.is_file():
            raise KeyboardInterrupt
        return backward(*given, **named)

    backward = fit.backward
    with monkeypatch.context() as patch:
        patch.setattr(fit, "backward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train()
    assert Run(out).completed
    return Run(out)


def assert_same(one, other):
    ours, theirs = (load_checkpoint(run.last)[1] for run in (one, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert one.metrics.read_bytes() == other.metrics.read_bytes()


@pytest.fixture
def begun(images, tokens, tmp_path, monkeypatch):
    """An interrupted run whose images and tokens were moved: its folder, and the new folders."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    shutil.copytree(images, old / "images")
    shutil.copytree(tokens, old / "tokens")
    run = stop(lambda: pretrain(old / "images", old / "tokens", tmp_path / "run"), monkeypatch, tmp_path / "run")
    old.rename(new)
    return run, new / "images", new / "tokens"


@pytest.mark.parametrize("way", ["python", "command"])
def test_a_moved_run_ends_as_one_that_was_not_moved(begun, whole, way, capsys):
    run, images, tokens = begun
    if way == "python":
        mapet.resume(run.folder, data=images, tokens=str(tokens), accelerator="cpu")
    else:
        options = ["--data", str(images), "--tokens", str(tokens), "--accelerator", "cpu"]
        assert main(["pretrain", "--resume", str(run.folder), *options]) == 0
        assert "names and contents of 16 images agree" in capsys.readouterr().out
    assert_same(run, whole)
    recipe = read(run.recipe, Recipe)
    assert (recipe.data, recipe.tokens) == (str(images), str(tokens))
    mapet.resume(run.folder, accelerator="cpu")  # needs no option any more
    assert "→" in run.log.read_text()


def test_only_the_command_says_where_lost_inputs_are(begun, capsys):
    run, images, tokens = begun
    for options, option in ([[], "--data"], [["--data", str(images)], "--tokens"]):
        assert main(["pretrain", "--resume", str(run.folder), *options]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert f"does not exist: say where that is now, {option} PATH" in message
    with pytest.raises(MapetError, match=r"tokenizer does not apply to .*run, which was begun without it"):
        mapet.resume(run.folder, data=images, tokens=tokens, tokenizer=tokens / "tokenizer")
    with pytest.raises(MapetError, match=r"was trained on .*old/images, which does not exist: give labelled images"):
        mapet.evaluate(run.folder)
    assert mapet.evaluate(run.folder, images, "knn", k=3, accelerator="cpu")["knn"]["top1"].count


def test_a_tokenizer_and_its_teacher_move_too(tmp_path):
    began = updated(Recipe(), data="cifar10", tokenizer="/old/book", teacher_weights="/old/teacher.pth")
    now = {"tokenizer": str(tmp_path / "book"), "teacher_weights": str(tmp_path / "teacher.pth")}
    found, moved = relocated(began, "run", {name: Path(path) for name, path in now.items()})
    assert found == updated(began, **now)
    assert moved.now == now
    assert str(moved) == f"/old/book → {now['tokenizer']}, /old/teacher.pth → {now['teacher_weights']}"
    assert relocated(found, "run", now) == (found, Moved({}, {}))


def change_content(images, tokens):
    shutil.copy(images / "along" / "00.png", images / "across" / "00.png")


def lose_an_image(images, tokens):
    (images / "across" / "00.png").unlink()


def move_a_level_down(images, tokens):
    (images / "more").mkdir()
    for name in ("across", "along"):
        (images / name).rename(images / "more" / name)


def change_tokens(images, tokens):
    content = bytearray((tokens / "tokens.bin").read_bytes())
    content[0] ^= 1
    (tokens / "tokens.bin").write_bytes(content)


def change_tokenizer(images, tokens):
    header = json.loads((tokens / "store.json").read_text())
    (tokens / "store.json").write_text(json.dumps(sealed({**header, "tokenizer": "other"})))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_content, r'other images or tokens than .*\(its image "across/00.png" has another content\)'),
        (lose_an_image, r"has 47 images, not 48"),
        (change_tokens, r"tokens that do not match their hash"),
        (change_tokenizer, r"another tokenizer"),
    ],
)
def test_other_inputs_are_refused(begun, change, said):
    run, images, tokens = begun
    before, recipe = load_checkpoint(run.last)[0], run.recipe.read_text()
    change(images, tokens)
    with pytest.raises(MapetError, match=said):
        mapet.resume(run.folder, data=images, tokens=tokens, accelerator="cpu")
    assert load_checkpoint(run.last)[0] == before
    assert run.recipe.read_text() == recipe


def test_tokens_find_moved_images_a_level_down(begun, whole):
    run, images, tokens = begun
    move_a_level_down(images, tokens)
    mapet.resume(run.folder, data=images, tokens=tokens, accelerator="cpu")
    assert_same(run, whole)


@pytest.mark.parametrize("kind", TRAINED)
def test_every_kind_of_run_goes_on_with_moved_images(images, tmp_path, monkeypatch, kind):
    train, old, new = TRAINED[kind], tmp_path / "old", tmp_path / "new"
    whole = train(images, tmp_path / "whole")
    run = stop(lambda: train(shutil.copytree(images, old), tmp_path / "run"), monkeypatch, tmp_path / "run")
    old.rename(new)
    move_a_level_down(new, None)
    said = r'lacks "across/00.png", which it has as "more/across/00.png": give the folder in it'
    with pytest.raises(MapetError, match="other classes" if kind == "finetune" else said):
        mapet.resume(run.folder, data=new, accelerator="cpu")
    mapet.resume(run.folder, data=new / "more", accelerator="cpu")
    assert_same(run, whole)


def test_an_image_that_broke_meanwhile_does_not_block(begun, tmp_path):
    """As in training, where unreadable images are left out."""
    run, images, tokens = begun
    (images / "across" / "00.png").write_bytes(b"broken")
    mapet.resume(run.folder, data=images, tokens=tokens, accelerator="cpu", max_bad_fraction=0.1)


def test_a_run_without_a_record_of_contents_is_compared_by_names(begun, whole):
    run, images, tokens = begun
    (run.folder / "contents.json").write_text("{")
    mapet.resume(run.folder, data=images, tokens=tokens, accelerator="cpu")
    assert_same(run, whole)
    assert "their contents were not recorded" in run.log.read_text()


def test_a_comparison_cannot_be_moved(tmp_path, images):
    (tmp_path / "compare.yaml").touch()
    for name in MOVABLE:
        with pytest.raises(MapetError, match="put them, or a link, there"):
            mapet.resume(tmp_path, **{name: images})


def test_an_interrupted_tokenization_goes_on_with_moved_images(images, tokens, tmp_path, capsys):
    old, new, out = tmp_path / "old", tmp_path / "new", tmp_path / "tokens"
    shutil.copytree(images, old)
    (old / "along").rename(tmp_path / "along")
    mapet.tokenize(old, out, tokens / "tokenizer", image_size=16, patch_size=4, accelerator="cpu")
    (tmp_path / "along").rename(old / "along")
    old.rename(new)
    command = ["tokenize", str(new), "--tokenizer", str(tokens / "tokenizer"), "--out", str(out)]
    command += ["--image-size", "16", "--patch-size", "4", "--accelerator", "cpu"]
    assert main(command) == 0
    assert "agree" in capsys.readouterr().out
    assert (out / "tokens.bin").read_bytes() == (tokens / "tokens.bin").read_bytes()
    change_content(new, None)
    new.rename(tmp_path / "newer")
    assert main([*command[:1], str(tmp_path / "newer"), *command[2:]]) == 2
    assert '(its image "across/00.png" has another content): choose another folder' in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- one folder, two names


@pytest.fixture
def split(images, tmp_path):
    """A folder with images in train and test."""
    for part in ("train", "test"):
        shutil.copytree(images, tmp_path / "set" / part)
    return tmp_path / "set"


def tokenize(data, out, tokens):
    options = {"image_size": 16, "patch_size": 4, "accelerator": "cpu"}
    return mapet.tokenize(data, out, tokens / "tokenizer", **options)


@pytest.mark.parametrize("first", ["", "train"])
def test_the_whole_folder_and_its_train_part_are_the_same_images(split, tokens, tmp_path, first, capsys):
    one, other = (split / first, split / ("" if first else "train"))
    store = tokenize(one, tmp_path / "tokens", tokens)
    before = {path.name: path.read_bytes() for path in store.folder.glob("*.*")}
    command = ["tokenize", str(other), "--tokenizer", str(tokens / "tokenizer"), "--out", str(store.folder)]
    assert main([*command, "--image-size", "16", "--patch-size", "4", "--accelerator", "cpu"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "they are found so" in line]
    assert len(lines) == 1
    assert '"train/"' in lines[0]
    assert {path.name: path.read_bytes() for path in store.folder.glob("*.*")} == before
    runs = [pretrain(data, store.folder, tmp_path / f"run{i}", epochs=1) for i, data in enumerate((one, other))]
    assert_same(*runs)


def test_the_same_names_do_not_make_the_same_images(split, images, tokens, tmp_path):
    store = tokenize(split, tmp_path / "tokens", tokens)
    other = shutil.copytree(images, tmp_path / "other")
    assert len(tokenize(other, store.folder, tokens)) == 48  # the same contents elsewhere
    change_content(other, None)
    before = (store.folder / "tokens.bin").read_bytes()
    for use in (lambda: tokenize(other, store.folder, tokens), lambda: pretrain(other, store.folder, tmp_path / "run")):
        with pytest.raises(
            MapetError, match=r'prefixes \("train/…"\), and its image "train/across/00.png" has another'
        ):
            use()
    (store.folder / "contents.json").unlink()
    with pytest.raises(MapetError, match="nothing shows that they are the same: give the images as the tokens were"):
        tokenize(other, store.folder, tokens)
    assert len(tokenize(split / "train", store.folder, tokens)) == 48  # one folder: its name shows it
    assert (store.folder / "tokens.bin").read_bytes() == before


def test_a_class_is_found_by_what_its_images_hold(images, tokens, tmp_path, capsys):
    """Both classes have the same file names."""
    command = ["pretrain", str(images / "along"), "--tokens", str(tokens), "--out", str(tmp_path / "run")]
    options = {**SMALL, "objective": "mim", "batch_size": 8, "epochs": 1}
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    assert main(command) == 0
    assert 'by names that have before them "along/"' in capsys.readouterr().out


def test_moved_images_of_which_no_content_is_recorded_are_not_taken(monkeypatch):
    """Equal names alone show nothing."""

    class Images(list):
        image_id = list.__getitem__

    source, store = Images(["a.png", "b.png"]), ["a.png", "b.png"]
    monkeypatch.setattr(known_ids, "matches", lambda source, store, at_least: 2)
    monkeypatch.setattr(known_ids, "other_contents", lambda source, store: "")
    for recorded, refused in (({}, True), ({"c.png": "1"}, True), ({"b.png": "1", "c.png": "2"}, False)):
        monkeypatch.setattr(known_ids, "recorded", lambda store, found=recorded: found)
        assert tokenize_inputs._difference(source, store).startswith("nothing shows") == refused
