"""Files of features: what is written is read, by other programs too, and damage is found."""

from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np
import pytest

from mapet.evals import feature_file
from mapet.evals.feature_file import SUFFIXES, Embeddings, is_ours, write
from mapet.utils.errors import MapetError
from peak import memory, reset_peak

IDS = ["a.png", "Ω/日本.png", "long/" * 9 + "b.png", "c", "d"]
UNREADABLE = {"e.png": "zero bytes"}


@pytest.fixture(params=SUFFIXES)
def suffix(request):
    if request.param == ".parquet":
        pytest.importorskip("pyarrow")
    return request.param


def rows(*shape):
    return np.random.default_rng(0).normal(size=(len(IDS), *shape)).astype(np.float32)


def written(path, values, size=2):
    """The file, written in chunks of ``size`` rows."""
    about = {"shape": list(values.shape[1:]), "readable": len(IDS), "encoder": "abc"}

    def chunks():
        return ((IDS[i : i + size], values[i : i + size]) for i in range(0, len(IDS), size))

    write(path, path.suffix, about, UNREADABLE, chunks)
    return path


@pytest.mark.parametrize("shape", [(3,), (4, 3)])
@pytest.mark.parametrize("chunk", [1, 30, 1 << 22])
def test_what_is_written_is_read(tmp_path, monkeypatch, suffix, shape, chunk):
    monkeypatch.setattr(feature_file, "CHUNK", chunk)
    values = rows(*shape)
    found = Embeddings.open(written(tmp_path / f"f{suffix}", values))
    assert (found.image_ids, found.unreadable, len(found)) == (IDS, UNREADABLE, 5)
    assert (found.features == values).all()
    assert found.about["encoder"] == "abc"


def test_equal_features_are_equal_files(tmp_path, suffix):
    one, other = (written(tmp_path / f"{size}{suffix}", rows(3), size) for size in (5, 5))
    assert one.read_bytes() == other.read_bytes()


def test_numpy_and_pyarrow_read_them(tmp_path):
    with np.load(written(tmp_path / "f.npz", rows(4, 3))) as file:
        assert (file["features"] == rows(4, 3)).all()
        assert file["image_ids"].tolist() == IDS
        assert (file["unreadable"].tolist(), file["reasons"].tolist()) == (["e.png"], ["zero bytes"])
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(written(tmp_path / "f.parquet", rows(3)))
    assert table.column("image_id").to_pylist() == IDS
    assert np.array(table.column("features").to_pylist(), np.float32).tolist() == rows(3).tolist()


def read(path):
    found = Embeddings.open(path)
    return found.image_ids, found.features


def test_damage_is_found(tmp_path, suffix):
    """One changed byte of the features, and a file cut short at any length."""
    values = rows(30)
    path = written(tmp_path / f"f{suffix}", values, 5)
    content = path.read_bytes()
    at = content.index(values[2].tobytes()[:40])
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    for length in (None, 0, 3, len(content) // 3, len(content) - 30, len(content) - 1):
        if length is not None:
            path.write_bytes(content[:length])
        with pytest.raises(MapetError, match=r"f\.\w+ is damaged, or mapet embed did not write it \(.+\): embed the"):
            read(path)


def test_writing_and_reading_take_little_memory(tmp_path, suffix):
    """64 MB of features, after a first megabyte."""

    def passed(count):
        def chunks():
            for number in range(count):
                yield [f"{number}/{i}" for i in range(1000)], np.full((1000, 250), number, np.float32)

        path, before = tmp_path / f"{count}{suffix}", reset_peak()
        write(path, suffix, {"shape": [250], "readable": 1000 * count}, {}, chunks)
        total = sum(float(values[:, 0].sum()) for _, values in Embeddings.open(path).chunks())
        assert total == 1000 * sum(range(count))
        return memory("VmHWM") - before

    passed(1)
    assert passed(64) < 32 << 20


def test_files_of_others(tmp_path, suffix):
    path = tmp_path / f"f{suffix}"
    if suffix == ".npz":
        np.savez(path, features=rows(3), image_ids=np.array(IDS, object))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"image_id": IDS}), path)
    assert not is_ours(path)
    with pytest.raises(MapetError, match="mapet embed did not write it"):
        read(path)
    assert is_ours(written(path, rows(3)))


def test_ids_that_are_pickled_are_not_loaded(tmp_path):
    path = written(tmp_path / "f.npz", rows(3))
    with np.load(path) as file:
        members = dict(file)
    np.savez(path, **{**members, "image_ids": np.array(IDS, object)})
    with pytest.raises(MapetError, match="its arrays do not fit each other"):
        read(path)


def test_names_that_do_not_fit(tmp_path, monkeypatch):
    with pytest.raises(MapetError, match=r"^A file of features ends in \.npz or \.parquet, got f\.csv"):
        Embeddings.open("f.csv")
    with pytest.raises(MapetError, match=r"^There is no file .*f\.npz: write one with mapet embed"):
        Embeddings.open(tmp_path / "f.npz")
    monkeypatch.setattr(feature_file, "find_spec", lambda name: None)
    with pytest.raises(MapetError, match=r"f\.parquet needs the package pyarrow: pip install 'mapet\[parquet\]'"):
        Embeddings.open(tmp_path / "f.parquet")


def test_another_format_is_refused(tmp_path, monkeypatch, suffix):
    path = written(tmp_path / f"f{suffix}", rows(3))
    monkeypatch.setattr(feature_file, "FORMAT", "mapet-features-99")
    assert not is_ours(path)
    with pytest.raises(MapetError, match="its format is "):
        read(path)


def test_features_are_stored_as_they_are_and_ids_compressed(tmp_path):
    with ZipFile(written(tmp_path / "f.npz", rows(3))) as file:
        kinds = {one.filename: one.compress_type for one in file.infolist()}
    assert kinds.pop("features.npy") == ZIP_STORED
    assert {*kinds.values()} == {ZIP_DEFLATED}
