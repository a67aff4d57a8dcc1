"""JPEG files decoded at a fraction of their size: which one, what is seen, and that tokens name it."""

import numpy as np
import pytest
from PIL import Image

import mapet
from mapet.cli import main
from mapet.data.dataset import open_dataset
from mapet.data.image import read_image
from mapet.tokenizers.store import TokenStore
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize

TINY = {"model": "custom", "embed_dim": 16, "depth": 1, "num_heads": 2, "image_size": 16, "patch_size": 4}
STEPS = {"epochs": 1, "batch_size": 4, "warmup_epochs": 0, "accelerator": "cpu"}
KMEANS = {"teacher": "pixels", "vocab_size": 8, "iterations": 2, "restarts": 1}


def photo(width, height, seed=0):
    """Smooth colours, different in each corner."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(640, 480), (481, 640), (333, 333), (1000, 31)])
@pytest.mark.parametrize("draft", [1, 30, 61, 100, 240, 241, 480, 5000])
def test_the_smallest_fraction_that_is_large_enough_is_decoded(tmp_path, size, draft):
    path = tmp_path / "a.jpg"
    photo(*size).save(path, quality=90)
    whole, drafted = read_image(path), read_image(path, draft=draft)
    factor = max((n for n in (1, 2, 4, 8) if min(size) >= n * draft), default=1)
    assert drafted.size == tuple(-(-side // factor) for side in size)
    if factor == 1:
        assert drafted.tobytes() == whole.tobytes()
    else:
        view = CenterCropResize((16, 16))
        assert np.abs(np.subtract(view(drafted), view(whole), dtype=np.int64)).mean() < 3


@pytest.mark.parametrize("kind", ["L", "CMYK", "progressive", "turned", "png"])
def test_every_kind_of_file_shows_the_same_image(tmp_path, kind):
    path, image, settings = tmp_path / ("a.png" if kind == "png" else "a.jpg"), photo(320, 240), {}
    if kind == "turned":
        settings["exif"] = Image.Exif()
        settings["exif"][0x0112] = 6
    image = image.convert(kind) if kind in ("L", "CMYK") else image
    image.save(path, progressive=kind == "progressive", **settings)
    whole, drafted = read_image(path), read_image(path, draft=50)
    assert drafted.mode == "RGB"
    assert drafted.size == (whole.size if kind == "png" else tuple(side // 4 for side in whole.size))
    view = CenterCropResize((24, 24))
    assert np.abs(np.subtract(view(drafted), view(whole), dtype=np.int64)).mean() < 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(12):
        photo(200, 160, i).save(folder / f"{i:02}.jpg")
    return folder


def test_tokens_name_it_and_serve_only_a_student_with_the_same(photos, tmp_path, capsys):
    tokens = tmp_path / "tokens"
    words = ["tokenize", str(photos), "--out", str(tokens), "--image-size", "16", "--patch-size", "4", "--draft", "40"]
    words += ["--teacher", "pixels", "--vocab-size", "8", "--iterations", "2", "--restarts", "1"]
    assert main(words) == 0
    assert TokenStore.open(tokens).extra["draft"] == 40
    assert main(words) == 0
    assert main([*words[:-8], "--tokenizer", str(tokens / "tokenizer"), "--draft", "80"]) == 2
    assert "holds tokens with draft 40, not 80" in capsys.readouterr().err
    for draft, line in ((None, "without draft"), (80, "with draft 80")):
        with pytest.raises(MapetError, match=f"was made with draft 40, and the student would read images {line}:"):
            mapet.pretrain(data=photos, out=tmp_path / "x", tokens=tokens, draft=draft, **TINY, **STEPS)
    run = mapet.pretrain(data=photos, out=tmp_path / "run", tokens=tokens, draft=40, **TINY, **STEPS)
    own = mapet.pretrain(data=photos, out=tmp_path / "own", draft=40, **TINY, **STEPS, **KMEANS)
    other = mapet.pretrain(data=photos, out=tmp_path / "other", **TINY, **STEPS, **KMEANS)
    assert TokenStore.open(own.folder / "tokens").extra["draft"] == 40
    assert run.metrics.read_bytes() == own.metrics.read_bytes() != other.metrics.read_bytes()


def test_it_needs_files(photos, tmp_path):
    assert open_dataset(str(photos), draft=40).read(0).size == (50, 40)
    mapet.pack(photos, tmp_path / "packed", size=16)
    for data in (str(tmp_path / "packed"), "cifar10"):
        with pytest.raises(MapetError, match=r"draft 40 decodes JPEG files of a folder, and data .* has none"):
            open_dataset(data, draft=40)
