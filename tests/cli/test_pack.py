"""``mapet pack``, and a packed folder as --data of the other verbs."""

import json
import os
import shutil
import signal
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.cli import main
from mapet.data import packing
from mapet.data.dataset import open_dataset, split_held_out
from mapet.engine.run import Run, load_checkpoint
from mapet.tokenizers.store import TokenStore
from processes import Forked, stopping

COUNT = 150
SMALL = ["--model", "custom", "--embed-dim", "8", "--depth", "1", "--num-heads", "1", "--batch-size", "8"]
STUDENT = ["--image-size", "16", "--patch-size", "4"]
TRAINED = [*SMALL, *STUDENT, "--epochs", "1", "--warmup-epochs", "0", "--lr", "1e-3", "--cache-gib", "0"]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (16, 16 + number % 3, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number:03d}.png")
    (root / "100.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def packed(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "uint8"
    assert main(["pack", str(images), "--out", str(folder), "--size", "16", "--workers", "0"]) == 0
    return folder


@pytest.fixture(scope="module")
def tokens(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenized") / "tokens"
    options = [*STUDENT, "--teacher", "pixels", "--vocab-size", "8", "--iterations", "1", "--out", str(folder)]
    assert main(["tokenize", str(images), *options]) == 0
    return folder


def content(folder):
    """All files but for the header's command, which names the folder."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**files, "pack.json": {**json.loads(files["pack.json"]), "command": None, "fingerprint": None}}


def command(many, out, form="uint8"):
    return ["pack", str(many), "--out", str(out), "--size", "16", "--form", form, "--workers", "0"]


@pytest.fixture
def begun(many, tmp_path, monkeypatch):
    """A process that packs an image at a time, stopped on its way, and its folder."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(packing, "GROUP", 1)
        process = Forked(tmp_path, work=stopping(packing, "write_from", 40, partial(main, command(many, out))))
    process.wait_for_stop()
    return process, out


def test_killed_at_any_moment_it_continues(many, begun, tmp_path, capsys):
    (process, out), whole = begun, tmp_path / "whole"
    process.kill()
    assert process.wait()[0] == -9
    assert main(command(many, whole)) == 0
    said = capsys.readouterr().out
    assert "150 images of folder" in said
    assert "1 of them unreadable" in said
    assert "images/s" in said
    assert main(["tokenize", str(out), "--out", str(tmp_path / "tokens"), *STUDENT]) == 2
    refused = capsys.readouterr().err
    assert refused.count("\n") == 1
    assert f"{out} is an incomplete pack" in refused
    assert f"complete it with mapet pack {many} --out {out} --size 16" in refused
    assert main(refused.split("complete it with mapet ")[1].split()) == 0
    assert content(out) == content(whole)
    assert "images/s" in capsys.readouterr().out
    assert main(command(many, out)) == 0
    assert "images/s" not in capsys.readouterr().out


def test_ctrl_c_prints_how_to_continue(many, begun):
    process, out = begun
    os.kill(process.pid, signal.SIGINT)
    process.go_on()
    code, said, complaints = process.wait()
    assert (code, complaints) == (130, "")
    assert f"Interrupted. Continue with: mapet pack {many} --out {out} --size 16" in said
    assert not json.loads((out / "pack.json").read_text())["complete"]


def test_two_processes_do_not_pack_into_one_folder(many, begun, capsys):
    process, out = begun
    assert main(command(many, out)) == 2
    assert "Another process is packing" in capsys.readouterr().err
    process.go_on()
    assert process.wait()[0] == 0
    assert main(command(many, out)) == 0


def test_training_on_a_pack_is_training_on_its_original(images, packed, tokens, tmp_path, capsys):
    """With tokens that were made for either, to the last bit, and nothing is said of another source."""
    ends = []
    for name, data in (("folder", images), ("pack", packed)):
        out = tmp_path / name
        assert main(["pretrain", "--data", str(data), "--tokens", str(tokens), "--out", str(out), *TRAINED]) == 0
        ends.append((Run(out).metrics.read_bytes(), load_checkpoint(Run(out).last)))
    assert "note" not in capsys.readouterr().out
    (metrics, (step, ours)), (their_metrics, (their_step, theirs)) = ends
    assert (step, metrics) == (their_step, their_metrics)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert json.loads((tmp_path / "pack" / "inputs.json").read_text())["images"] == 48


def test_tokens_begun_with_the_original_are_continued_with_the_pack(images, packed, tokens, tmp_path):
    out, given = tmp_path / "tokens", ["--tokenizer", str(tokens / "tokenizer"), *STUDENT]
    for data, limit in ((images, ["--max-images", "20"]), (packed, [])):
        assert main(["tokenize", str(data), "--out", str(out), *given, *limit]) == 0
    keys = sorted(TokenStore.open(tokens).image_ids())
    assert keys == sorted(TokenStore.open(out).image_ids())
    assert torch.equal(TokenStore.open(tokens).gather(keys), TokenStore.open(out).gather(keys))


def test_a_jpeg_pack_is_another_source_to_a_store_of_tokens(images, tokens, tmp_path, capsys):
    out = tmp_path / "jpeg"
    assert main(["pack", str(images), "--out", str(out), "--size", "16", "--form", "jpeg"]) == 0
    given = ["--tokenizer", str(tokens / "tokenizer"), *STUDENT]
    copied = shutil.copytree(tokens, tmp_path / "tokens")
    assert main(["tokenize", str(out), "--out", str(copied), *given]) == 2
    assert "jpeg pack" in capsys.readouterr().err
    training = ["pretrain", "--data", str(out), "--tokens", str(tokens), "--out", str(tmp_path / "run"), *TRAINED]
    assert main(training) == 0
    assert "the tokens were made from folder" in capsys.readouterr().out


def test_splits_are_packed_side_by_side_and_probed(images, tmp_path, capsys):
    divided, out = tmp_path / "divided", tmp_path / "out"
    for part in ("train", "test"):
        shutil.copytree(images, divided / part)
    assert main(["pack", str(divided), "--out", str(out), "--size", "16", "--max-images", "40"]) == 0
    for split in ("train", "test"):
        ours, theirs = open_dataset(str(out), split), open_dataset(str(divided), split)
        keys = {ours.image_id(i) for i in range(len(ours))}
        assert len(keys) == 40
        assert keys < {theirs.image_id(i) for i in range(len(theirs))}
        assert ours.classes == theirs.classes
    run = tmp_path / "run"
    training = ["pretrain", "--data", str(out), "--objective", "mae", "--out", str(run), *TRAINED]
    assert main([*training, "--decoder-embed-dim", "8", "--decoder-num-heads", "1", "--decoder-depth", "1"]) == 0
    assert main(["knn", "--run", str(run)]) == 0
    assert "40 training, 40 test images" in capsys.readouterr().out


def test_a_share_held_out_of_a_pack_is_that_of_the_original(images, packed):
    ours, theirs = (split_held_out(open_dataset(str(data))) for data in (packed, images))
    assert [part.indices for part in ours] == [part.indices for part in theirs]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pack"], "mapet pack needs one DATA (a folder of images, or cifar10) and one --out FOLDER"),
        (["pack", "DATA"], "mapet pack needs one DATA (a folder of images, or cifar10) and one --out FOLDER"),
        (["pack", "DATA", "--out", "OUT", "--form", "unit8"], 'Did you mean "uint8"?'),
        (["pack", "DATA", "--out", "OUT", "--size", "0"], "--size"),
        (["pack", "DATA", "--out", "OUT", "--quality", "90"], "--form jpeg"),
        (["pack", "DATA", "--out", "OUT", "--form", "jpeg", "--quality", "101"], "--quality"),
        (["pack", "DATA", "--out", "OUT", "--max-images", "0"], "--max-images"),
        (["pack", "DATA", "--out", "OUT", "--workers", "-1"], "--workers"),
        (["pack", "DATA", "--out", "OUT", "--max-bad-fraction", "2"], "--max-bad-fraction"),
        (["pack", "DATA", "--out", "DATA"], "which is to be written: give another --out"),
        (["pack", "DATA", "--out", "PACKED"], "size 16, not 224"),
        (["pack", "PACKED", "--out", "OUT"], "16 x 16"),
        (["tokenize", "PACKED", "--out", "OUT", "--tokenizer", "TOKENS", "--image-size", "32"], "grid"),
        (["pretrain", "--data", "PACKED", "--out", "OUT", *SMALL, "--image-size", "32"], "--size 32"),
        (["pretrain", "--data", "PACKED", "--out", "OUT", *TRAINED, "--scale", "0.2", "1"], "--form jpeg"),
        (["finetune", "random", "--data", "PACKED", "--out", "OUT", *STUDENT, *SMALL], "--form jpeg"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(images, packed, tokens, tmp_path, capsys, arguments, said):
    before = content(packed)
    indices = {"DATA": images, "PACKED": packed, "OUT": tmp_path / "out", "TOKENS": tokens / "tokenizer"}
    assert main([str(indices.get(word, word)) for word in arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    assert content(packed) == before
