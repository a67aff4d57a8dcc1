"""Folders of tokens, tokenizers and packs that version 0.1 wrote: read, compared and continued."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mapet.api.fit_tokenizer import fit_tokenizer
from mapet.api.inspect_tokenizer import inspect_tokenizer
from mapet.api.pack import pack
from mapet.api.tokenize import tokenize
from mapet.data.dataset import open_dataset
from mapet.data.unreadable import listed
from mapet.tokenizers.store import TokenStore
from mapet.tokenizers.tokenizer import load_tokenizer
from mapet.utils.errors import MapetError

WRITTEN = Path(__file__).parents[1] / "fixtures" / "v0.1"
FIT = {"image_size": 16, "patch_size": 4, "teacher": "pixels", "vocab_size": 8, "samples": 128, "iterations": 2}
IMAGE = "train/across/03.png"


def changed(path, **fields):
    """Replace fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture
def images(tmp_path):
    return shutil.copytree(WRITTEN / "images", tmp_path / "images")


@pytest.fixture
def tokens(images, tmp_path):
    """The tokens, as if made from ``images``."""
    folder = shutil.copytree(WRITTEN / "pretrain" / "tokens", tmp_path / "tokens")
    changed(folder / "store.json", extra={"data": open_dataset(str(images)).name})
    return folder


@pytest.fixture
def packed(images, tmp_path):
    """The packs of both splits, as if made from ``images``."""
    folder = shutil.copytree(WRITTEN / "pack", tmp_path / "pack")
    for split in ("train", "test"):
        changed(folder / split / "pack.json", source=open_dataset(str(images), split).name)
    return folder


def test_complete_tokens_stay_as_they_are(images, tokens):
    before = {path.name: path.read_bytes() for path in tokens.iterdir() if path.is_file()}
    assert len(tokenize(images, tokens, **FIT)) == 24
    after = {path.name: path.read_bytes() for path in tokens.iterdir() if path.is_file()}
    assert len(json.loads(after.pop("contents.json"))) == 12  # a sample, which this version adds
    assert after == before


def test_interrupted_tokens_are_continued(images, tokens):
    whole = TokenStore.open(tokens)
    keys = list(whole.image_ids())
    rows = whole.gather(keys)
    with (tokens / "tokens.bin").open("r+b") as file:
        file.truncate(32 * 10 + 5)
    assert torch.equal(tokenize(images, tokens, **FIT).gather(keys), rows)


def test_a_codebook_of_other_settings_is_refused(images, tokens):
    with pytest.raises(MapetError, match="fit_images None, not 9"):
        tokenize(images, tokens, **FIT, fit_images=9)
    path = tokens / "tokenizer" / "tokenizer.json"
    changed(path, provenance={**json.loads(path.read_text())["provenance"], "fit_pictures": 9})
    with pytest.raises(MapetError, match="fit_images 9, not None"):
        tokenize(images, tokens, **FIT)
    assert len(tokenize(images, tokens, **FIT, fit_images=9)) == 24


def test_the_same_settings_fit_the_same_codebook(images, tokens, tmp_path):
    found = fit_tokenizer(images, tmp_path / "book", **FIT, restarts=1)
    torch.testing.assert_close(found.centroids, load_tokenizer(tokens / "tokenizer").centroids)


def test_the_list_of_unreadable_images_is_continued(images, tokens):
    store = TokenStore.open(tokens)
    ids = [image_id for image_id in list(store.image_ids()) if image_id != IMAGE]
    kept = store.gather(ids)
    (tokens / "keys.txt").write_text("".join(f"{key}\n" for key in ids))
    (tokens / "tokens.bin").write_bytes(kept.numpy().astype("<u2").tobytes())
    (tokens / "bad-pictures.txt").write_text(f"{IMAGE}\tzero bytes\n")
    for name in (IMAGE, "train/plain/99.png"):
        (images / name).write_bytes(b"")
    assert len(tokenize(images, tokens, **FIT, max_bad_fraction=0.1)) == 23
    assert sorted(listed(tokens / "unreadable-images.txt")) == [IMAGE, "train/plain/99.png"]
    assert not (tokens / "bad-pictures.txt").exists()
    for name in (IMAGE, "train/plain/99.png"):
        shutil.copy(WRITTEN / "images" / IMAGE, images / name)
    assert len(tokenize(images, tokens, **FIT)) == 25
    assert list(tokens.glob("*.txt")) == [tokens / "keys.txt"]


def test_tokenizers_are_inspected(images, tokens, tmp_path):
    for folder in (tokens / "tokenizer", WRITTEN / "vqkd"):
        found = inspect_tokenizer(folder, images, tmp_path / folder.name, num_codes=0)
        assert found["tokenizer"]["hash"] == json.loads((folder / "tokenizer.json").read_text())["hash"]
        assert found["health"]["images"] == 24


def test_packs_show_the_images(images, packed):
    ours, theirs = open_dataset(str(packed)), open_dataset(str(images))
    assert len(ours) == 24
    for index in range(24):
        assert ours.image_id(index) == theirs.image_id(index)
        assert np.asarray(ours.read(index)).shape == (16, 16, 3)


def test_interrupted_packs_are_continued(images, packed):
    folder = packed / "train"
    pixels, offsets = (folder / "pictures.bin").read_bytes(), np.load(folder / "offsets.npy")
    changed(folder / "pack.json", complete=False)
    (folder / "pictures.bin").write_bytes(pixels[: offsets[10] + 7])
    np.save(folder / "offsets.npy", np.concatenate([offsets[:11], np.full(14, -1)]))
    pack(images, packed, size=16, workers=0)
    assert (folder / "pictures.bin").read_bytes() == pixels
    assert np.array_equal(np.load(folder / "offsets.npy"), offsets)
