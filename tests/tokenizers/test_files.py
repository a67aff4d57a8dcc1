"""The hash of a tokenizer's content, by which token stores and runs know it."""

import json

import pytest
import torch

from mapet.tokenizers import sums, tokenizer
from mapet.tokenizers.files import fingerprint

VALUES = torch.arange(6, dtype=torch.int32)
FIRST = {"a": VALUES.view(2, 3), "b": torch.ones(2)}


def test_equal_content_has_one_hash():
    found = fingerprint(FIRST, "x")
    assert len(bytes.fromhex(found)) == 16
    strided = torch.stack([VALUES.view(2, 3)] * 2, dim=-1)[..., 0]
    assert not strided.is_contiguous()
    assert fingerprint({"a": strided, "b": torch.nn.Parameter(torch.ones(2))}, "x") == found


@pytest.mark.parametrize(
    "other",
    [
        {"c": FIRST["a"], "b": FIRST["b"]},
        {"a": VALUES.view(3, 2), "b": FIRST["b"]},
        {"a": VALUES.view(torch.float32).view(2, 3), "b": FIRST["b"]},
        {"a": VALUES.flip(0).view(2, 3), "b": FIRST["b"]},
        {"b": FIRST["b"], "a": FIRST["a"]},
        {"a": FIRST["a"]},
    ],
    ids=["name", "shape", "dtype", "values", "sequence", "fewer"],
)
def test_other_names_shapes_types_and_values_have_another_hash(other):
    assert fingerprint(other, "x") != fingerprint(FIRST, "x")


def test_other_notes_have_another_hash():
    assert len({fingerprint(FIRST, *notes) for notes in ((), ("x",), ("y",), ("x", "y"))}) == 4


def test_a_new_folder_is_on_the_disk_in_its_parent_and_new_files_in_their_folder(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(tokenizer, "sync", lambda path: synced.append(path.relative_to(tmp_path).as_posix()))
    for value in (1, 2):
        tokenizer.write_folder(tmp_path / "made", {"value": value}, FIRST)
    assert synced[0] == "."
    assert synced[1] == "made"
    assert json.loads((tmp_path / "made" / "tokenizer.json").read_text()) == {"value": 2}


def test_a_store_without_tokens_has_no_hashes(tmp_path):
    assert sums.mapped(tmp_path / "none", 0).shape == (0, 2)
