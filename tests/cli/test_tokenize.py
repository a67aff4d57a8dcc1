"""``mapet tokenize``: one row of tokens an image, whatever stopped it in between and on however many processes."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.api.tokenize import write_tokens
from mapet.build.batches import Images, with_tokens
from mapet.cli import main
from mapet.config.recipe import Model, Recipe, Runtime, Tokenizer
from mapet.data.dataset import open_dataset
from mapet.data.unreadable import UnreadableImages, listed
from mapet.tokenizers import store as stores
from mapet.tokenizers import tokenizer as tokenizers
from mapet.tokenizers.pixels import Pixels
from mapet.tokenizers.store import TokenStore
from mapet.tokenizers.tokenizer import load_tokenizer
from mapet.tokenizers.vqkd import VQKD
from processes import Forked, crowd, finished, pair, stopping

STUDENT = ["--image-size", "16", "--patch-size", "4"]
FIT = [*STUDENT, "--teacher", "pixels", "--vocab-size", "12", "--iterations", "2"]
COUNT = 400


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder of 400 images of noise, no two alike."""
    root, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (16, 16 + number % 3, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number:03d}.png")
    return root


@pytest.fixture(scope="module")
def whole(many, tmp_path_factory):
    """The tokens of all of them, made without interruption, and the tokenizer that made them."""
    folder = tmp_path_factory.mktemp("whole") / "tokens"
    assert main(["tokenize", str(many), "--out", str(folder), *FIT]) == 0
    return folder


def again(many, whole, out, *options):
    return ["tokenize", str(many), "--out", str(out), "--tokenizer", str(whole / "tokenizer"), *STUDENT, *options]


def assert_equal(one, other):
    ours, theirs = TokenStore.open(one), TokenStore.open(other)
    keys = sorted(ours.image_ids())
    assert keys == sorted(theirs.image_ids())
    assert len(keys) == COUNT
    assert torch.equal(ours.gather(keys), theirs.gather(keys))
    assert not list(other.glob("parts*"))


def test_the_tokens_are_the_tokenizer_s(many, whole):
    store, tokenizer = TokenStore.open(whole), load_tokenizer(whole / "tokenizer")
    assert (store.vocabulary, store.grid, store.tokenizer) == (12, (4, 4), tokenizer.hash)
    for name in ("000.png", "251.png"):
        image = torch.from_numpy(np.array(tokenizer.view(Image.open(many / name)))).permute(2, 0, 1)[None]
        assert store[name].tolist() == tokenizer.encode(image / 255)[0].tolist()


def test_logs_its_pace_and_nothing_twice(many, whole, tmp_path, capsys):
    assert main(again(many, whole, tmp_path / "tokens")) == 0
    text = capsys.readouterr().out
    assert "400 images in 0:0" in text
    assert "images/s" in text
    assert_equal(whole, tmp_path / "tokens")
    assert main(again(many, whole, tmp_path / "tokens")) == 0
    assert "images/s" not in capsys.readouterr().out
    assert_equal(whole, tmp_path / "tokens")


@pytest.mark.parametrize("rows", [1, 90, 250])
def test_killed_at_any_moment_it_continues(many, whole, tmp_path, rows):
    out = tmp_path / "tokens"
    work = partial(main, again(many, whole, out, "--batch-size", "1"))
    process = Forked(tmp_path, work=stopping(stores, "write_from", 3 * rows, work))
    process.wait_for_stop()
    process.kill()
    assert process.wait()[0] == -9
    assert len(TokenStore.open(out)) == rows - 1
    assert main(again(many, whole, out)) == 0
    assert_equal(whole, out)


@pytest.mark.parametrize("number", [1, 2])
def test_killed_while_the_codebook_is_saved_it_continues(many, whole, tmp_path, number):
    out = tmp_path / "tokens"
    command = ["tokenize", str(many), "--out", str(out), *FIT]
    process = Forked(tmp_path, work=stopping(tokenizers, "replace_file", number, partial(main, command)))
    process.wait_for_stop()
    process.kill()
    assert process.wait()[0] == -9
    assert main(command) == 0
    assert_equal(whole, out)


@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_processes_is_killed(many, whole, tmp_path, victim):
    """The other ends with a line of its own; then one process finishes what two began, and two what one began."""
    out = tmp_path / "tokens"
    work = partial(main, again(many, whole, out, "--batch-size", "1"))
    processes = crowd(tmp_path / "said", 2, stopping(TokenStore, "append", 41, work, (victim,)))
    processes[victim].wait_for_stop()
    processes[victim].kill()
    code, _, said = processes[1 - victim].wait()
    assert processes[victim].wait()[0] == -9
    assert (code, said.count("\n")) == (2, 1), said
    assert "One of the 2 processes ended" in said
    begun = [len(TokenStore.open(out / "parts" / str(rank))) for rank in range(2)]
    assert (begun[victim], begun[1 - victim]) == (40, COUNT // 2)
    if victim:
        assert main(again(many, whole, out)) == 0
    else:
        assert "400 images × 16 tokens" in finished(pair(tmp_path / "said", *again(many, whole, out)))
    assert_equal(whole, out)


@pytest.mark.parametrize(
    ("ranks", "owner", "name", "number"),
    [
        ((0,), TokenStore, "append", 1),
        ((0,), TokenStore, "append", 100),
        ((0, 1), TokenStore, "append", 1),
        ((0, 1), TokenStore, "append", 100),
        ((1,), stores, "replace_file", 1),
    ],
    ids=["one-ready", "one-writes", "pair-ready", "pair-writes", "pair-half-ready"],
)
def test_the_same_command_given_twice_at_once_writes_once(many, whole, tmp_path, capsys, ranks, owner, name, number):
    out = tmp_path / "tokens"
    work = stopping(owner, name, number, partial(main, again(many, whole, out, "--batch-size", "1")), ranks)
    processes = [Forked(tmp_path, work=work)] if ranks == (0,) else crowd(tmp_path, 2, work)
    for rank in ranks:
        processes[rank].wait_for_stop()
    assert main(again(many, whole, out)) == 2
    for rank in ranks:
        processes[rank].go_on()
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "Another process is writing tokens into" in message
    finished(processes)
    assert_equal(whole, out)


def test_two_processes_list_unreadable_images_together(many, whole, tmp_path, capsys):
    mixed = shutil.copytree(many, tmp_path / "mixed")
    for name in ("003.png", "300.png", "301.png"):
        (mixed / name).write_bytes(b"")
    refused = pair(tmp_path / "said", *again(mixed, whole, tmp_path / "refused", "--max-bad-fraction", "0.005"))
    ends = [process.wait() for process in refused]
    assert [code for code, _, _ in ends] == [2, 2]
    errors = sorted((error.partition(": ")[2] for _, _, error in ends))
    assert "3 of 400 images are unreadable" in errors[0]
    assert "One of the 2 processes ended" in errors[1]
    finished(pair(tmp_path / "said", *again(mixed, whole, tmp_path / "tokens")))
    assert len(TokenStore.open(tmp_path / "tokens")) == COUNT - 3
    listed = (tmp_path / "tokens" / "unreadable-images.txt").read_text()
    assert sorted(line.split("\t")[0] for line in listed.splitlines()) == ["003.png", "300.png", "301.png"]
    assert not list((tmp_path / "tokens").glob("unreadable-images.txt.*"))


def test_a_repaired_image_leaves_the_list_of_unreadable_ones(many, whole, tmp_path, capsys):
    mixed, out = shutil.copytree(many, tmp_path / "mixed"), tmp_path / "tokens"
    for name in ("003.png", "300.png"):
        (mixed / name).write_bytes(b"")
    recipe = Recipe(data=str(mixed), model=Model(image_size=16, patch_size=4))
    source, indices = open_dataset(str(mixed)), torch.arange(COUNT)
    for names in (["003.png", "300.png"], ["300.png"], []):
        capsys.readouterr()
        assert main(again(mixed, whole, out)) == 0
        assert (f"{len(names)} of 400 images are unreadable: " in capsys.readouterr().out) == bool(names)
        ledger = out / "unreadable-images.txt"
        assert sorted(listed(ledger)) == names
        assert ledger.exists() == bool(names)
        store, bad = TokenStore.open(out), UnreadableImages(COUNT)
        (out / "unreadable-images.txt").write_text("003.png\tan older list\n" + (ledger.read_text() if names else ""))
        assert len(with_tokens(Images(source, indices, bad), store, recipe).indices) == len(store) == COUNT - len(names)
        assert len(bad) == len(names)
        if names:
            shutil.copy(many / names[0], mixed / names[0])


@pytest.mark.parametrize("verb", [["tokenize"], ["tokenizer", "fit"]], ids=" ".join)
def test_a_folder_of_something_else_is_left_alone(many, tmp_path, capsys, verb):
    (tmp_path / "photos").mkdir()
    shutil.copy(many / "000.png", tmp_path / "photos")
    for out, said in (("photos", "is not empty (it holds 000.png)"), ("photos/000.png", "is a file")):
        assert main([*verb, str(many), "--out", str(tmp_path / out), *FIT]) == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["000.png"]


def test_an_interrupted_one_is_continued_by_the_same_command(many, whole, tmp_path, capsys, monkeypatch):
    append, left = TokenStore.append, [100]

    def stopped(*given):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        append(*given)

    with monkeypatch.context() as patch:
        patch.setattr(TokenStore, "append", stopped)
        assert main(again(many, whole, tmp_path / "tokens", "--batch-size", "1")) == 130
    assert "Interrupted. Run the same command to continue." in capsys.readouterr().out
    assert len(TokenStore.open(tmp_path / "tokens")) == 99
    assert main(again(many, whole, tmp_path / "tokens", "--batch-size", "1")) == 0
    assert_equal(whole, tmp_path / "tokens")


def test_a_tokenizer_of_any_kind(images, tmp_path, capsys):
    network = VQKD(image_size=16, patch_size=4, embed_dim=8, depth=1, num_heads=2, codes=5, code_dim=3)
    network.requires_grad_(False).eval().save(tmp_path / "vqkd")
    command = ["tokenize", "--data", str(images), "--tokenizer", str(tmp_path / "vqkd"), "--out", str(tmp_path / "t")]
    assert main([*command, *STUDENT]) == 0
    assert "tokenizer vqkd, 5 codes at 4 × 4 patches" in capsys.readouterr().out
    assert TokenStore.open(tmp_path / "t").vocabulary == 5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--patch-size", "8"], "grid"),
        (["--vocab-size", "8"], "vocab_size 12, not 8"),
        (["--iterations", "3"], "iterations 2, not 3"),
        (["--seed", "1"], "seed 0, not 1"),
        (["--teacher", "efficientnet_lite0"], "teacher pixels, not efficientnet_lite0"),
        (["--teacher-output", "norm"], "teacher_output stage, not norm"),
        (["--samples", "100"], "samples None, not 100"),
        (["--fit-images", "9"], "fit_images None, not 9"),
        (["--kmeans-mode", "stream"], "kmeans_mode sample, not stream"),
        (
            ["--tokenizer", "absent"],
            "--teacher only applies when a codebook is fitted; remove it, or remove --tokenizer",
        ),
        (["--batch-size", "0"], "--batch-size"),
    ],
)
def test_settings_unlike_those_of_a_started_folder_are_refused(many, whole, capsys, options, said):
    before = (whole / "keys.txt").read_bytes()
    assert main(["tokenize", str(many), "--out", str(whole), *FIT, *options]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert said in message
    assert (whole / "keys.txt").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--vocab-size", "8"], "--vocab-size only applies when a codebook is fitted"),
        (["--metric", "cosine"], "--metric only applies when a codebook is fitted"),
        (["--teacher-stage", "0"], "--teacher-stage only applies when a codebook is fitted"),
        (["--tokenizer", "absent"], "is not a tokenizer"),
    ],
)
def test_a_ready_tokenizer_takes_no_settings_of_a_fit(many, whole, tmp_path, capsys, options, said):
    assert main(again(many, whole, tmp_path / "tokens", *options)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert said in message


def test_a_recipe_with_a_ready_tokenizer_may_hold_settings_of_a_fit(images, whole, tmp_path):
    """As the recipes of a comparison do, whose settings were those of the fit."""
    fitted = Tokenizer(path=str(whole / "tokenizer"), teacher="pixels", vocab_size=12)
    recipe = Recipe(data=str(images), model=Model(image_size=16, patch_size=4), tokenizer=fitted)
    assert len(write_tokens(recipe, tmp_path / "tokens", Runtime())) == 48


def test_another_tokenizer_grid_or_dataset_is_refused(many, images, whole, tmp_path, capsys):
    other = ["tokenizer", "fit", str(many), "--out", str(tmp_path / "other"), *FIT, "--seed", "1"]
    assert main(other) == 0
    for command, said in (
        (["tokenize", str(many), "--tokenizer", str(tmp_path / "other"), *STUDENT], "tokens with tokenizer"),
        (again(many, whole, whole, "--patch-size", "8")[:2] + ["--tokenizer", str(tmp_path / "other")], "grid"),
        (["tokenize", str(images), "--tokenizer", str(whole / "tokenizer"), *STUDENT], f"folder {images}"),
    ):
        capsys.readouterr()
        assert main([*command, "--out", str(whole)]) == 2
        assert said in capsys.readouterr().err


def test_a_half_written_store_is_continued(many, whole, tmp_path):
    half = shutil.copytree(whole, tmp_path / "half")
    with (half / "tokens.bin").open("r+b") as file:
        file.truncate(32 * 100 + 5)
    assert main(["tokenize", str(many), "--out", str(half), *FIT]) == 0
    assert_equal(whole, half)


@pytest.mark.parametrize("fit_images", [None, 37])
def test_features_of_a_fit_are_not_computed_again_for_the_tokens(many, tmp_path, monkeypatch, fit_images):
    """The file of tokens is the same byte for byte as without them, in the same sequence."""
    seen, teach = [], Pixels.forward

    def counted(teacher, images):
        seen.append(len(images))
        return teach(teacher, images)

    monkeypatch.setattr(Pixels, "forward", counted)
    fitted = Tokenizer(teacher="pixels", vocab_size=12, samples=4_000, iterations=3, fit_images=fit_images)
    recipe = Recipe(data=str(many), model=Model(image_size=16, patch_size=4), tokenizer=fitted)
    made = {}
    for limit in (1 << 21, 20_000, 0):
        monkeypatch.setattr("mapet.tokenizers.codebook_fit.KEPT", limit)
        seen.clear()
        store = write_tokens(recipe, tmp_path / str(limit), Runtime(workers=0), batch_size=7)
        made[limit] = (store.folder / "tokens.bin").read_bytes(), sum(seen)
    count, fit = len(store), fit_images or len(store)
    assert made[1 << 21][0] == made[20_000][0] == made[0][0]
    assert made[1 << 21][1] == count < made[20_000][1] < made[0][1] == count + fit
