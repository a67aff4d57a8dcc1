"""A hash of tensors, fields or files changes with each part of them, and stays from version to version."""

from hashlib import blake2b

import pytest
import torch

from mapet.utils.fingerprint import KEY, content_hash, file_hash, fingerprint, is_intact, sealed, text_hash

TENSORS = {"b": torch.tensor([[1.0, 2.0, 3.0]]).T, "a": torch.arange(4, dtype=torch.int16)}


def of(tensors, *context):
    return fingerprint(tensors, tensors.__getitem__, *context)


def test_each_part_of_tensors_counts():
    whole = of(TENSORS, 1, "x")
    flipped = TENSORS["b"].clone()
    flipped[2] = 3.0000002
    others = [
        of(TENSORS, 1),
        of(TENSORS, "x", 1),
        of({**TENSORS, "c": torch.zeros(0)}, 1, "x"),
        of({"b": TENSORS["b"], "c": TENSORS["a"]}, 1, "x"),
        of({**TENSORS, "b": TENSORS["b"].T}, 1, "x"),
        of({**TENSORS, "b": flipped}, 1, "x"),
        of({**TENSORS, "a": TENSORS["a"].view(torch.float16)}, 1, "x"),
    ]
    assert whole == of(dict(reversed(TENSORS.items())), 1, "x")
    assert len({whole, *others}) == 1 + len(others)


def test_a_sealed_object_shows_any_change():
    fields = sealed({"b": [1, None], "a": "ü"})
    assert fields.keys() == {"a", "b", KEY}
    assert is_intact(fields)
    assert is_intact(dict(reversed(fields.items())))
    assert sealed(fields) == fields
    assert is_intact({"of": "version 0.1"})
    for change in ({"a": "u"}, {"b": [1]}, {"c": 0}, {KEY: "0" * 32}):
        assert not is_intact({**fields, **change})


def test_hashes_are_those_of_blake2b(tmp_path):
    """They are kept in files of earlier versions."""
    path, content = tmp_path / "a", b"0123456789" * 1000
    path.write_bytes(content)
    for size in (None, 0, 1, 9999, 10_000, 20_000):
        assert file_hash(path, size) == blake2b(content[:size], digest_size=16).hexdigest()
    assert text_hash("ü\udcff") == blake2b("ü\udcff".encode(errors="surrogatepass"), digest_size=16).hexdigest()
    digest = blake2b(content, digest_size=8).digest()
    assert content_hash(memoryview(content)) == sum(byte << (8 * i) for i, byte in enumerate(digest))


def test_a_file_longer_than_one_piece(tmp_path):
    content = bytes(range(256)) * (1 << 15)
    (tmp_path / "a").write_bytes(content)
    for size in (None, (1 << 22) + 5):
        assert file_hash(tmp_path / "a", size) == blake2b(content[:size], digest_size=16).hexdigest()


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_tensors_are_read_one_at_a_time_in_the_sequence_of_their_names(order):
    read = []
    fingerprint(order, lambda name: read.append(name) or torch.zeros(1))
    assert read == ["a", "b"]
