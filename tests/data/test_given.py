"""Images by path and in memory are the same images; anything else is refused by one line."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.data.dataset import open_dataset
from mapet.data.given import GivenImages, open_images
from mapet.data.image import UnreadableImage, read_image
from mapet.utils.errors import MapetError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)


def pixels(dataset, i=0):
    return np.asarray(dataset.read(i))


def test_every_kind_is_the_same_image():
    channels_first = torch.from_numpy(PIXELS).permute(2, 0, 1)
    kinds = [Image.fromarray(PIXELS), PIXELS, channels_first, channels_first / 255, channels_first.double() / 255]
    for image in kinds:
        for given in (image, [image]):
            dataset = open_images(given)
            assert (len(dataset), dataset.image_id(0), dataset.label(0), dataset.classes) == (1, "0", -1, ())
            assert (pixels(dataset) == PIXELS).all()
    mixed = open_images(iter(kinds))
    assert [mixed.image_id(i) for i in range(5)] == ["0", "1", "2", "3", "4"]
    assert all((pixels(mixed, i) == PIXELS).all() for i in range(5))
    for several in (np.stack([PIXELS] * 2), torch.stack([channels_first] * 3)):
        assert len(open_images(several)) == len(several)


def test_grey_and_transparent_ones():
    grey, alpha = PIXELS[..., 0], np.dstack([PIXELS, np.zeros((5, 7), np.uint8)])
    for image in (grey, grey[..., None], torch.from_numpy(grey)[None]):
        assert (pixels(open_images(image)) == grey[..., None]).all()
    for image in (alpha, torch.from_numpy(alpha).permute(2, 0, 1)):
        assert (pixels(open_images(image)) == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "P", "I;16", "LA", "CMYK", "F"])
def test_an_open_file_is_the_file_and_stays_as_it_is(tmp_path, mode):
    """Turned by its EXIF orientation, too."""
    image = Image.fromarray(PIXELS) if mode not in ("F", "I;16") else Image.fromarray(PIXELS[..., 0])
    path = tmp_path / ("image.tif" if mode in ("F", "CMYK") else "image.png")
    exif = image.getexif()
    exif[0x0112] = 6
    image.convert(mode).save(path, exif=exif)
    with Image.open(path) as opened:
        opened.load()  # which turns a TIFF upright
        before = opened.size, dict(opened.getexif())
        assert (pixels(open_images(opened)) == np.asarray(read_image(path))).all()
        assert (opened.size, dict(opened.getexif())) == before


def test_paths_keep_their_names_and_count_once(images, tmp_path, monkeypatch):
    monkeypatch.chdir(images)
    names = ["across/03.png", str(images / "along" / "00.png"), "across/03.png", "missing\n.png"]
    dataset = open_images(names)
    assert [dataset.image_id(i) for i in range(len(dataset))] == [*names[:2], "missing\\n.png"]
    monkeypatch.chdir(tmp_path)
    assert (pixels(dataset) == np.asarray(Image.open(images / names[0]))).all()
    with pytest.raises(UnreadableImage, match=r"^unreadable: No such file"):
        dataset.read(2)


def test_folders(images, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.fromarray(PIXELS).save(tmp_path / split / "a.png")
    every = open_images(tmp_path)
    assert [every.image_id(i) for i in range(len(every))] == ["test/a.png", "train/a.png"]
    assert open_images(str(tmp_path), "test").image_id(0) == "test/a.png"
    assert open_images(images / "across" / "03.png").image_id(0) == str(images / "across" / "03.png")
    dataset = open_dataset(str(images))
    assert open_images(dataset) is dataset


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (PIXELS.astype(np.float32), "an array (5, 7, 3) of float32"),
        (PIXELS[..., :2], "an array (5, 7, 2) of uint8"),
        (torch.rand(7, 5, 5), "a tensor (7, 5, 5) of float32 with values 0"),
        (torch.full((3, 5, 5), 1.5), "a tensor (3, 5, 5) of float32 with values 1.5 … 1.5"),
        (torch.full((3, 5, 5), torch.nan), "a tensor (3, 5, 5) of float32 with values nan … nan"),
        (torch.zeros(3, 5, 5, dtype=torch.int64), "a tensor (3, 5, 5) of int64"),
        (torch.zeros(3, 0, 5), "a tensor (3, 0, 5) of float32"),
        (3, "int"),
    ],
)
def test_what_is_no_image_is_refused(image, said):
    with pytest.raises(MapetError, match=rf"^Image 1 is {re.escape(said)}.*: give a path, a PIL image, .*channels\.$"):
        open_images([PIXELS, image])


def test_no_images_are_refused():
    with pytest.raises(MapetError, match=r"^There are no images: give at least one"):
        GivenImages([])
    with pytest.raises(MapetError, match=r"^There is no file nowhere\.jpg: give an image"):
        open_images("nowhere.jpg")
    with pytest.raises(MapetError, match=r'^There is no folder "nowhere"'):
        open_images("nowhere")
