"""Figures of codes are valid PNG files of a readable size, and show the right patches."""

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.utils.errors import MapetError
from mapet.viz import codes
from mapet.viz.codes import Row, code_patches, patch_rows, token_map, usage_histogram
from mapet.viz.figures import DPI


def size_of(path):
    """(width, height) of a PNG that decodes and is not blank."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 1
        return image.size


def labelled(count=6, grid=(4, 4), patch=(4, 4), codes=20):
    rng = np.random.default_rng(0)
    height, width = grid[0] * patch[0], grid[1] * patch[1]
    images = rng.integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    return images, rng.integers(0, codes, (count, grid[0] * grid[1]))


SHAPES = {
    "square": {},
    "one image": {"count": 1},
    "oblong": {"grid": (2, 6), "patch": (8, 4)},
    "one patch": {"grid": (1, 1)},
    "patches of a pixel": {"patch": (1, 1)},
    "one code": {"codes": 1},
    "codes used once": {"count": 1, "codes": 10_000},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_figures_of_tokens(tmp_path, shape):
    images, tokens = labelled(**shape)
    grid = shape.get("grid", (4, 4))
    for draw in (code_patches, token_map):
        width, height = size_of(draw(images, tokens, grid, tmp_path / "out.png"))
        assert 0.5 * DPI < width <= 15 * DPI
        assert 0.25 * DPI < height <= 25 * DPI


def test_arrays_and_tensors_give_the_same_figure(tmp_path):
    images, tokens = labelled()
    kinds = [
        (images, tokens),
        (torch.from_numpy(images), torch.from_numpy(tokens)),
        (images, tokens.astype("uint16")),
    ]
    for draw in (code_patches, token_map):
        drawn = [draw(*kind, (4, 4), tmp_path / "out.png").read_bytes() for kind in kinds]
        assert drawn[0] == drawn[1] == drawn[2]


def test_patches_depend_on_the_seed(tmp_path):
    images, tokens = labelled()
    first, again, other = (
        code_patches(images, tokens, (4, 4), tmp_path / "out.png", codes=3, seed=seed).read_bytes()
        for seed in (0, 0, 1)
    )
    assert first == again != other


def pixels(path):
    return {tuple(pixel) for pixel in np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).tolist()}


def test_row_shows_its_code_with_its_neighbours(tmp_path):
    """All red except a green patch of code 1 in a corner and a blue one two patches away, outside its surroundings."""
    images = np.zeros((1, 3, 12, 12), dtype=np.uint8)
    images[0, 0] = 255
    images[0, :, :4, :4] = np.array([0, 255, 0], dtype=np.uint8)[:, None, None]
    images[0, :, :4, 8:] = np.array([0, 0, 255], dtype=np.uint8)[:, None, None]
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    tokens = np.array([[1, 0, 0, 0, 0, 0, 0, 0, 0]])
    kinds = {
        frozenset({red, green, blue} & pixels(code_patches(images, tokens, (3, 3), tmp_path / "out.png", **settings)))
        for settings in [{}, *({"codes": 1, "seed": seed} for seed in range(10))]
    }
    assert kinds == {frozenset({red, green, blue}), frozenset({red, green})}  # code 0 or both; code 1 alone


def test_code_has_the_same_color_in_every_figure(tmp_path):
    images = np.zeros((1, 3, 4, 4), dtype=np.uint8)
    first, again, other = (
        pixels(token_map(images, np.full((1, 1), code), (1, 1), tmp_path / "out.png")) for code in (7, 7, 8)
    )
    assert first == again != other


@pytest.mark.parametrize("draw", [code_patches, token_map])
def test_mismatched_shapes_are_refused(tmp_path, draw):
    images, tokens = labelled()
    bad = [(images, tokens, (4, 5)), (images, tokens[:2], (4, 4)), (images[:, :1], tokens, (4, 4))]
    bad += [(images[:0], tokens[:0], (4, 4)), (images[:, :, :-1], tokens, (4, 4))]
    for pixels_, tokens_, grid in bad:
        with pytest.raises(MapetError, match="do not fit one another") as caught:
            draw(pixels_, tokens_, grid, tmp_path / "out.png")
        assert "\n" not in str(caught.value)


def numbered(patch=6, grid=(4, 5)):
    """An image (1, 3, H, W) whose patches have grey levels 10, 20, …"""
    greys = np.arange(10, 10 + 10 * grid[0] * grid[1], 10, dtype=np.uint8).reshape(grid)
    return np.broadcast_to(greys.repeat(patch, 0).repeat(patch, 1), (1, 3, patch * grid[0], patch * grid[1]))


@pytest.mark.parametrize(("reach", "index"), [(0, 7), (1, 0), (1, 12), (2, 12), (2, 19)])
def test_patch_is_shown_with_reach_neighbours(tmp_path, reach, index):
    image = numbered()
    out = patch_rows([Row("", image, [index])], (4, 5), (24, 30), tmp_path / "out.png", examples=1, reach=reach)
    down, across = divmod(index, 5)
    near = {
        10 + 10 * (5 * row + column)
        for row in range(max(0, down - reach), min(4, down + reach + 1))
        for column in range(max(0, across - reach), min(5, across + reach + 1))
    }
    greys = set(range(10, 210, 10))
    found, counts = np.unique(np.asarray(Image.open(out).convert("RGB"))[..., 0], return_counts=True)
    assert {grey for grey, count in zip(found.tolist(), counts, strict=True) if count > 50} & greys == near


def test_rows_are_consumed_one_at_a_time_and_may_be_empty(tmp_path):
    alive = []

    def rows():
        for number in range(3):
            alive.append(number)
            yield Row(f"code {number}", numbered()[:number], [7][:number])

    out = patch_rows(rows(), (4, 5), (24, 30), tmp_path / "out.png", examples=2)
    assert alive == [0, 1, 2]
    assert size_of(out)[1] == pytest.approx(3 * 0.8 * DPI, abs=2)
    empty = patch_rows([Row("code 3", numbered()[:0], [])], (4, 5), (24, 30), tmp_path / "one.png", examples=2)
    assert size_of(empty)[1] == pytest.approx(0.8 * DPI, abs=2)


@pytest.mark.parametrize(
    "counts", [[5] * 4, [0, 0, 5, 0], [1], [1000, 100, 10, 1, 0], torch.arange(8192), np.arange(1, 300)]
)
def test_usage(tmp_path, counts):
    width, height = size_of(usage_histogram(counts, tmp_path / "usage.png"))
    assert (width, height) == (7 * DPI, round(3.6 * DPI))


def test_usage_does_not_depend_on_code_numbers(tmp_path):
    counts = np.array([5, 0, 80, 1, 14])
    first, again, other = (
        usage_histogram(some, tmp_path / "usage.png").read_bytes() for some in (counts, counts[::-1], counts + 1)
    )
    assert first == again != other


def test_a_row_shows_patches_of_its_code_and_their_number(tmp_path, monkeypatch):
    images, shown = np.arange(2, dtype=np.uint8)[:, None, None, None].repeat(3, 1).repeat(4, 2).repeat(4, 3), []
    monkeypatch.setattr(codes, "patch_rows", lambda rows, *_, **__: shown.extend(rows))
    code_patches(images, np.array([[7, 7, 7, 2], [2, 7, 7, 7]]), (2, 2), tmp_path / "out.png", examples=9)
    assert [row.label for row in shown] == ["code 2\n2 patches", "code 7\n6 patches"]
    places = {(int(image.max()), index) for image, index in zip(shown[0].images, shown[0].patches, strict=True)}
    assert places == {(0, 3), (1, 0)}
