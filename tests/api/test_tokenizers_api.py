"""Tokenizers and packing from Python: what the command line does, with the same files and the same refusals."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from golden_numbers import FOLDER
from mapet.api.fit_tokenizer import fit_tokenizer
from mapet.api.images import require_inputs_outside
from mapet.api.import_tokenizer import IMAGE_SIZE, import_tokenizer
from mapet.api.inspect_tokenizer import inspect_tokenizer
from mapet.api.pack import pack
from mapet.api.tokenize import tokenize
from mapet.cli import main
from mapet.config.recipe import Tokenizer
from mapet.config.verbs import PackSettings
from mapet.tokenizers.store import TokenStore
from mapet.utils.errors import MapetError
from processes import under_torchrun

FIT = {"image_size": 16, "patch_size": 4, "teacher": "pixels", "vocab_size": 12, "iterations": 2}


def options(settings):
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def content(folder):
    """All files in a folder, without the command in a pack's header, which names the folder, and its hash."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in [name for name in found if name.endswith("pack.json")]:
        found[name] = {**json.loads(found[name]), "command": None, "fingerprint": None}
    return found


def run(*arguments):
    assert main([str(word) for word in arguments]) == 0


@pytest.fixture(scope="module")
def book(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted") / "book"
    fit_tokenizer(images, folder, **FIT)
    return folder


def test_fit_tokenizer(images, book, tmp_path):
    run("tokenizer", "fit", images, "--out", tmp_path / "book", *options(FIT))
    assert content(book) == content(tmp_path / "book")


def test_tokenize(images, book, tmp_path):
    store = tokenize(images, tmp_path / "python", **FIT, restarts=2)
    run("tokenize", images, "--out", tmp_path / "command", *options(FIT), "--restarts", "2")
    assert isinstance(store, TokenStore)
    assert (len(store), store.grid) == (48, (4, 4))
    assert content(tmp_path / "python") == content(tmp_path / "command")
    ready = tokenize(str(images), str(tmp_path / "ready"), book, image_size=16, patch_size=4)
    assert ready.tokenizer == json.loads((book / "tokenizer.json").read_text())["hash"]
    assert not (tmp_path / "ready" / "tokenizer").exists()


def test_import_tokenizer(tmp_path):
    network = import_tokenizer(
        FOLDER / "dalle_encoder.weights.safetensors", tmp_path / "python", "dalle", image_size=64
    )
    file = FOLDER / "dalle_encoder.weights.safetensors"
    run("tokenizer", "import", file, "--kind", "dalle", "--image-size", "64", "--out", tmp_path / "command")
    assert network.grid == (8, 8)
    assert content(tmp_path / "python") == content(tmp_path / "command")


def test_inspect_tokenizer(images, book, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    found = inspect_tokenizer(book, images, tmp_path / "python", show=[3, 5], num_codes=2, compare_with=book)
    assert (capsys.readouterr().out, caplog.messages) == ("", [])
    run("tokenizer", "inspect", book, images, "--out", tmp_path / "command", "--show", "3,5", "--num-codes", "2",
        "--compare-with", book)  # fmt: skip
    assert content(tmp_path / "python") == content(tmp_path / "command")
    assert found == json.loads((tmp_path / "command" / "inspect.json").read_text())
    assert found["figures"] == ["codes.png", "tokens.png", "usage.png"]
    assert found["agreement"]["adjusted_mutual_information"] == pytest.approx(1)


@pytest.mark.parametrize("settings", [{"size": 16}, {"form": "jpeg", "size": 16, "quality": 80, "max_images": 20}])
def test_pack(images, tmp_path, settings):
    folder = pack(images, tmp_path / "python", settings=PackSettings(workers=0), **settings)
    run("pack", images, "--out", tmp_path / "command", "--workers", "0", *options(settings))
    assert folder == tmp_path / "python"
    assert content(folder) == content(tmp_path / "command")


def calls(images, out):
    """Calls that are refused, and why."""
    return {
        "tokenize needs one DATA": lambda: tokenize("", out),
        "needs one DATA (a folder of images, or cifar10) and one --out FOLDER": lambda: pack(images, ""),
        "batch_size must be >= 1, got 0": lambda: tokenize(images, out, batch_size=0),
        "max_images must be >= 1, got 0": lambda: fit_tokenizer(images, out, max_images=0),
        "max_bad_fraction must be >= 0 and <= 1, got 2": lambda: pack(images, out, max_bad_fraction=2),
        "max_images must be >= 1, got -1": lambda: inspect_tokenizer(out, images, max_images=-1),
        "vocab_size only applies when a codebook is fitted": lambda: tokenize(images, out, "book", vocab_size=5),
        "data": lambda: tokenize(images, images.parent),
        "which is to be written": lambda: pack(images, images),
        "makes a tokenizer; remove tokenizer": lambda: fit_tokenizer(images, out, tokenizer="book"),
        'There is no setting "vocabulary"': lambda: tokenize(images, out, vocabulary=5),
        "grid must be two equal numbers": lambda: fit_tokenizer(images, out, grid=(2, 3)),
        'There is no kind "dall-e". Did you mean "dalle"?': lambda: import_tokenizer("file", out, "dall-e"),
    }


@pytest.mark.parametrize("said", calls(Path("images"), Path("out")))
def test_mistakes_are_refused_in_python_too(images, tmp_path, said):
    before = sorted(images.rglob("*"))
    with pytest.raises(MapetError) as refused:
        calls(images, tmp_path / "out")[said]()
    assert said.replace("--out", "out") in str(refused.value)
    assert sorted(images.rglob("*")) == before
    assert not (tmp_path / "out").exists()


def test_a_script_under_torchrun_calls_one_verb_after_another(images, book, tmp_path):
    def script():
        size, codes = {"image_size": 16, "patch_size": 4}, {"teacher": "pixels", "vocab_size": 12, "iterations": 2}
        fit_tokenizer(images, tmp_path / "book", **size, **codes)
        number = len(tokenize(images, tmp_path / "tokens", tmp_path / "book", **size))
        (tmp_path / f"{os.environ['RANK']}.number").write_text(str(number))

    code, _, complaint = under_torchrun(tmp_path, work=script)
    assert code == 0, complaint[-2000:]
    assert [(tmp_path / f"{rank}.number").read_text() for rank in range(2)] == ["48", "48"]
    alone = tokenize(images, tmp_path / "alone", tmp_path / "book", image_size=16, patch_size=4)
    both, keys = TokenStore.open(tmp_path / "tokens"), list(alone.image_ids())
    assert torch.equal(both.gather(keys), alone.gather(keys))


def test_an_unreadable_image_is_listed_once_by_two_calls(images, book, tmp_path):
    mixed = shutil.copytree(images, tmp_path / "mixed")
    (mixed / "along" / "zero.png").write_bytes(b"")
    for _ in range(2):
        tokenize(mixed, tmp_path / "tokens", book, image_size=16, patch_size=4, max_bad_fraction=0.1)
        listed = (tmp_path / "tokens" / "unreadable-images.txt").read_text()
        assert (listed.startswith("along/zero.png\t"), listed.count("\n")) == (True, 1)


@pytest.mark.parametrize("option", ["path", "teacher", "teacher_weights"])
def test_no_input_of_a_tokenizer_lies_in_its_out(tmp_path, option):
    """But the tokenizer that an earlier call fitted there."""
    out = tmp_path / "out"
    (out / "tokenizer").mkdir(parents=True)
    (out / "input").touch()
    with pytest.raises(MapetError, match=r"input lies in out .*give another out"):
        require_inputs_outside(out, "cifar10", Tokenizer(**{option: str(out / "input")}))
    require_inputs_outside(tmp_path / "other", "cifar10", Tokenizer(**{option: str(out / "input")}))
    require_inputs_outside(out, "cifar10", Tokenizer(path=str(out / "tokenizer")))
    with pytest.raises(MapetError, match=r"data .* lies in out"):
        require_inputs_outside(tmp_path, str(out), Tokenizer())


def test_published_tokenizers_give_a_vit_b_16s_196_tokens_unless_another_size_is_asked_for():
    patch = {"dalle": 8, "vqgan": 16, "vqkd": 16}
    assert {kind: (size // patch[kind], size % patch[kind]) for kind, size in IMAGE_SIZE.items()} == dict.fromkeys(
        patch, (14, 0)
    )
