"""Whatever is stored in an image file, RGB comes out, or the reason why not."""

import os
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mapet
from mapet.config import training
from mapet.data.contents import sample
from mapet.data.dataset import open_dataset
from mapet.data.image import KINDS, MAX_PIXELS, UnreadableImage, image_suffixes, read_image
from mapet.utils.errors import MapetError

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def pixels(path: Path) -> list[list[tuple[int, int, int]]]:
    image = read_image(path)
    assert image.mode == "RGB"
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


@pytest.mark.parametrize(
    ("dtype", "stored", "shown"),
    [
        (np.uint8, [0, 7, 128, 255], [0, 7, 128, 255]),
        (np.uint16, [0, 257, 257 * 128, 65535], [0, 1, 128, 255]),
        (np.int32, [0, 257, 257 * 128, 65535], [0, 1, 128, 255]),
        (np.uint16, [0, 100, 200, 4095], [0, 0, 1, 16]),
        (np.int32, [0, 7, 128, 255], [0, 7, 128, 255]),
        (np.int32, [0, 7, 128, 256], [0, 0, 0, 1]),
        (np.int32, [100] * 4, [100] * 4),
        (np.float32, [0.0, 0.2, 0.6, 1.0], [0, 51, 153, 255]),
        (np.float32, [0.0, 0.2, 101.6, 255.0], [0, 0, 102, 255]),
        (np.float32, [0.0, 257.0, 65535.0, 65278.0], [0, 1, 255, 254]),
        (np.float32, [0.0] * 4, [0] * 4),
        (np.float32, [100.0] * 4, [100] * 4),
    ],
)
def test_grey_values_follow_one_rule_per_mode(
    tmp_path: Path, dtype: type, stored: list[float], shown: list[int]
) -> None:
    path = saved(tmp_path / "grey.tiff", Image.fromarray(np.array([stored], dtype=dtype)))
    warnings.simplefilter("error")
    assert pixels(path) == [[(value, value, value) for value in shown]]


@pytest.mark.parametrize("stored", [[-3.0], [-0.1, 1.0], [70_000.0], [0.0, np.inf], [np.nan] * 2])
@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_outside_every_range_are_unreadable(tmp_path: Path, dtype: type, stored: list[float]) -> None:
    if dtype is np.int32 and not all(map(float.is_integer, stored)):
        pytest.skip("no integers")
    path = saved(tmp_path / "grey.tiff", Image.fromarray(np.array([stored], dtype=dtype)))
    with pytest.raises(UnreadableImage, match="0 … 65535"):
        read_image(path)


def test_a_dark_16_bit_pgm_is_not_read_as_8_bits(tmp_path: Path) -> None:
    path = saved(tmp_path / "dark.pgm", Image.fromarray(np.array([[0, 200, 255]], np.uint16)))
    assert pixels(path) == [[(0, 0, 0), (1, 1, 1), (1, 1, 1)]]


def test_a_transparent_16_bit_grey_is_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1000, 1001, 65535]], np.uint16))
    path = saved(tmp_path / "clear.png", image, transparency=1000)
    assert pixels(path) == [[(0, 0, 0), WHITE, (4, 4, 4), WHITE]]


def test_strips_give_the_same_pixels_and_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (700, 500)).astype(np.uint16)
    path = saved(tmp_path / "deep.png", Image.fromarray(values))
    monkeypatch.setattr("mapet.data.image.STRIP", 3 * 500)
    tracemalloc.start()
    image = read_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(np.asarray(image)[..., 1], np.rint(values * (255 / 65535)))
    assert peak < 3 * values.size  # of numpy; 8 bytes a pixel and more when converted at once


@pytest.mark.parametrize("suffix", ["png", "pgm", "tiff"])
def test_sixteen_bit_files_of_every_kind_agree(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    read = np.asarray(read_image(saved(tmp_path / f"ramp.{suffix}", Image.fromarray(ramp))))
    assert np.array_equal(read[..., 0], np.rint(ramp / 257))


def test_big_endian_sixteen_bits(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 257 * 3, 65535))
    assert pixels(saved(tmp_path / "big.tiff", image)) == [[(3, 3, 3), (255, 255, 255)]]


def test_one_bit(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert pixels(saved(tmp_path / "bit.png", image)) == [[(0, 0, 0), WHITE]]


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([*RED, *GREEN])
    assert pixels(saved(tmp_path / "palette.png", image)) == [[RED, GREEN]]
    assert pixels(saved(tmp_path / "clear.png", image, transparency=1)) == [[RED, WHITE]]
    assert pixels(saved(tmp_path / "half.png", image, transparency=bytes([255, 0]))) == [[RED, WHITE]]


@pytest.mark.parametrize(("mode", "colour", "shown"), [("RGBA", (255, 0, 0), RED), ("LA", (90,), (90, 90, 90))])
def test_alpha_is_laid_over_white(
    tmp_path: Path, mode: str, colour: tuple[int, ...], shown: tuple[int, int, int]
) -> None:
    image = Image.new(mode, (3, 1), (*colour, 255))
    image.putpixel((1, 0), (*colour, 0))
    image.putpixel((2, 0), (*colour, 128))
    solid, clear, half = pixels(saved(tmp_path / "alpha.png", image))[0]
    assert (solid, clear) == (shown, WHITE)
    blend = [value * 128 / 255 + 255 * 127 / 255 for value in shown]
    assert np.allclose(half, blend, atol=1)


def test_transparent_colour_without_alpha(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    assert pixels(saved(tmp_path / "key.png", image, transparency=GREEN)) == [[RED, WHITE]]


def test_cmyk(tmp_path: Path) -> None:
    no_ink, all_cyan = (0, 0, 0, 0), (255, 0, 0, 0)
    image = Image.new("CMYK", (2, 1), no_ink)
    image.putpixel((1, 0), all_cyan)
    assert pixels(saved(tmp_path / "print.tiff", image)) == [[WHITE, (0, 255, 255)]]


def test_exif_orientation_turns_the_picture_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: a quarter turn clockwise is needed
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), GREEN)
    assert pixels(saved(tmp_path / "side.png", image, exif=exif)) == [[RED], [GREEN]]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_an_animation_shows_its_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    options = {"lossless": True} if suffix == "webp" else {}
    path = saved(tmp_path / f"film.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options)
    assert pixels(path)[0][0] == RED


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tiff", "ppm"])
def test_every_kind_is_read_under_any_name_and_a_cut_file_is_bad(tmp_path: Path, suffix: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    path = saved(tmp_path / f"noise.{suffix}", noise)
    assert read_image(path.rename(tmp_path / "any.name")).size == (32, 32)
    whole = (tmp_path / "any.name").read_bytes()
    for share in (0.02, 0.3, 0.7):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UnreadableImage, match=r"damaged|not an image"):
            read_image(path)


@pytest.mark.parametrize("suffix", ["avif", "jfif", "jpe", "jp2", "tga", "ico", "pcx", "qoi"])
def test_all_that_pillow_decodes_is_read(tmp_path: Path, suffix: str) -> None:
    if f".{suffix}" not in image_suffixes():
        pytest.skip("not in this Pillow")
    image = saved(tmp_path / f"red.{suffix}", Image.new("RGB", (32, 32), (250, 0, 0)))
    assert np.allclose(np.asarray(read_image(image)), (250, 0, 0), atol=9)


@pytest.mark.parametrize("suffix", [".h5", ".mpg", ".eps", ".pdf", ".grib", ".wmf", ".heic"])
def test_what_pillow_only_names_is_not_an_image(suffix: str) -> None:
    assert suffix not in image_suffixes()


def test_postscript_is_never_handed_to_another_program(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.eps", Image.new("RGB", (4, 4)))
    with pytest.raises(UnreadableImage, match="not an image"):
        read_image(path.rename(tmp_path / "x.jpg"))


def test_the_kinds_are_those_that_pil_knows() -> None:
    Image.init()
    assert set(KINDS) <= set(Image.OPEN)


@pytest.mark.parametrize("content", [b"<html>", b"B", b"P", b"P6", b"GIF89a", b"BMxx", b"\xff\xd8\xff", bytes(64)])
def test_what_is_not_a_picture(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "no.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"not an image|damaged"):
        read_image(path)


def test_zero_bytes(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    with pytest.raises(UnreadableImage, match="zero bytes"):
        read_image(path)


def test_values_that_are_not_numbers(tmp_path: Path) -> None:
    path = saved(tmp_path / "nan.tiff", Image.fromarray(np.array([[0.5, np.nan]], dtype=np.float32)))
    with pytest.raises(UnreadableImage, match="not finite numbers"):
        read_image(path)


def bomb(path: Path, width: int, height: int) -> Path:
    """A PNG that announces width x height pixels and holds almost none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize("side", [10_000, 30_000])  # PIL would warn at the first and refuse the second
def test_a_decompression_bomb_is_bad_without_a_warning(tmp_path: Path, side: int) -> None:
    filters, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(UnreadableImage, match=f"decompression bomb: {side} x {side} pixels"):
            read_image(bomb(tmp_path / "bomb.png", side, side))
    assert not seen
    assert (list(warnings.filters), Image.MAX_IMAGE_PIXELS) == (filters, limit)


def test_a_gif_bomb_within_a_small_frame_header(tmp_path: Path) -> None:
    screen = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x4c\x01\x00;"
    path = tmp_path / "bomb.gif"
    path.write_bytes(screen + frame)
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        read_image(path)


def test_vanished_images_folders_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="unreadable: No such file"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(UnreadableImage, match="not a regular file"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableImage, match="not a regular file"):
        read_image(tmp_path / "pipe.jpg")


def test_no_reader_of_a_folder_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    source = open_dataset(str(tmp_path))
    assert sample(source, torch.tensor([0])) == {"pipe.png": ""}
    with pytest.raises(UnreadableImage, match="not a regular file"):
        source.read(0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_permissions(tmp_path: Path) -> None:
    path = saved(tmp_path / "mine.png", Image.new("RGB", (2, 2)))
    path.chmod(0)
    with pytest.raises(UnreadableImage, match="unreadable: Permission denied"):
        read_image(path)


PEAK = """
import sys
from pathlib import Path
from mapet.data.image import read_image
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
from PIL import Image
import numpy
Image.init()
before = peak()
assert read_image(Path(sys.argv[1])).mode == "RGB"
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("mode", ["I;16", "F", "L", "P", "RGB", "RGBA", "CMYK"])
def test_decoding_takes_eight_bytes_for_each_pixel(tmp_path: Path, mode: str) -> None:
    side = 3000
    deep = np.zeros((side, side), np.uint16 if mode == "I;16" else np.float32)
    image = Image.fromarray(deep) if mode in ("I;16", "F") else Image.new(mode, (side, side))
    path = saved(tmp_path / "large.tiff", image, **({"transparency": 0} if mode == "P" else {}))
    if mode in ("I;16", "P"):
        path = saved(tmp_path / "large.png", image, **({"transparency": 0} if mode == "P" else {}))
    found = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 8.5 * side**2 + (48 << 20)  # strips, and buffers of the decoders


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_strips_do_not_change_transparent_images(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 256, (17, 5, 4), dtype=np.uint8)
    image = Image.fromarray(values).convert(mode)
    options = {"transparency": 3} if mode == "P" else {}
    path = saved(tmp_path / "some.png", image, **options)
    layer = Image.open(path).convert("RGBA")
    whole = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    for strip in (1, 12, 1 << 20):
        monkeypatch.setattr("mapet.data.image.STRIP", strip)
        assert np.array_equal(np.asarray(read_image(path)), np.asarray(whole))


def test_the_largest_number_of_pixels_can_be_given(images: Path, tmp_path: Path) -> None:
    assert training.MAX_PIXELS == MAX_PIXELS
    (tmp_path / "large").mkdir()
    path = saved(tmp_path / "large" / "mosaic.png", Image.new("L", (10_000, 10_000)))
    with pytest.raises(UnreadableImage, match=r"bomb: 10000 x 10000 pixels, more than 89,478,485 \(--max-pixels\)"):
        read_image(path)
    assert read_image(path, 10**8).size == (10_000, 10_000)
    assert open_dataset(str(path.parent), max_pixels=10**8).read(0).size == (10_000, 10_000)


SIZES = {"image_size": 16, "patch_size": 4, "accelerator": "cpu"}
SMALL = {**SIZES, "model": "custom", "embed_dim": 16, "depth": 1, "num_heads": 2, "batch_size": 4, "epochs": 1}
SMALL |= {"warmup_epochs": 0}
FIT = {**SIZES, "teacher": "pixels", "vocab_size": 4, "iterations": 1}
VQKD = {**SMALL, "teacher": "pixels", "vocab_size": 4, "code_dim": 4, "decoder_depth": 1}
VQKD.pop("model")
VERBS = {
    "pretrain": lambda data, out, **few: mapet.pretrain(data=data, out=out, objective="mae", **SMALL, **few),
    "finetune": lambda data, out, **few: mapet.finetune("random", data, out, **SMALL, **few),
    "train_vqkd": lambda data, out, **few: mapet.train_vqkd(data, out, **VQKD, **few),
    "tokenize": lambda data, out, **few: mapet.tokenize(data, out, **FIT, **few),
    "fit_tokenizer": lambda data, out, **few: mapet.fit_tokenizer(data, out, **FIT, restarts=1, **few),
    "pack": lambda data, out, **few: mapet.pack(data, out, size=16, **few),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_reads_images_takes_it(images: Path, tmp_path: Path, verb: str) -> None:
    """The images have 24, 32 or 40 rows of 32 pixels."""
    few = {"max_pixels": 32 * 32}
    with pytest.raises(MapetError, match=r"pixels, more than 1,024 \(max_pixels\)|pixels, more than 1,024"):
        VERBS[verb](images, tmp_path / "strict", **few)
    out = tmp_path / "out"
    VERBS[verb](images, out, **few, max_bad_fraction=0.6)
    assert len((out / "unreadable-images.txt").read_text().splitlines()) >= 1
