"""Figures are valid PNG files of a readable size, also for one step, one picture or a code used once."""

import numpy as np
import pytest
import torch
from PIL import Image

from mapet.errors import MapetError
from mapet.report.figures import code_patches, loss_curve, token_map

HEADER = "step,epoch,loss,accuracy,lr"


def size_of(path):
    """(width, height) of a PNG that decodes and is not blank."""
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert len(np.unique(np.asarray(picture.convert("L")))) > 1
        return picture.size


def metrics(folder, *rows, header=HEADER):
    path = folder / "metrics.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def labelled(count=6, grid=(4, 4), patch=(4, 4), codes=20):
    chance = np.random.default_rng(0)
    height, width = grid[0] * patch[0], grid[1] * patch[1]
    pictures = chance.integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    return pictures, chance.integers(0, codes, (count, grid[0] * grid[1]))


@pytest.mark.parametrize("steps", [1, 2, 500])
def test_loss_curve(tmp_path, steps):
    rows = [f"{step},{1 + step // 100},{6 - step / 100},{step / 1000},0.001" for step in range(1, steps + 1)]
    width, height = size_of(loss_curve(metrics(tmp_path, *rows), tmp_path / "new" / "loss.png", chance=0.01))
    assert 800 <= width <= 1200
    assert 300 <= height <= 500


def test_loss_without_accuracy_is_one_panel(tmp_path):
    path = metrics(tmp_path, "1,2.5,", "2,2.0,", header="step,loss,accuracy")
    width, height = size_of(loss_curve(path, tmp_path / "loss.png", chance=0.1))
    assert width < 2 * height


def test_gaps_in_the_metrics_are_left_out(tmp_path):
    path = metrics(tmp_path, "1,1,3.0,,0.1", "2,1,,0.1,0.1", "3,1,nan,0.2,0.1", "4,1,2.0,0.3,0.1")
    size_of(loss_curve(path, tmp_path / "loss.png"))


def test_metrics_that_are_none(tmp_path):
    with pytest.raises(MapetError, match="no metrics file"):
        loss_curve(tmp_path / "absent.csv", tmp_path / "loss.png")
    with pytest.raises(MapetError, match="no rows"):
        loss_curve(metrics(tmp_path), tmp_path / "loss.png")
    with pytest.raises(MapetError, match="no rows with step and loss"):
        loss_curve(metrics(tmp_path, "1,2", header="a,b"), tmp_path / "loss.png")


SHAPES = {
    "square": {},
    "one picture": {"count": 1},
    "oblong": {"grid": (2, 6), "patch": (8, 4)},
    "one patch": {"grid": (1, 1)},
    "patches of a pixel": {"patch": (1, 1)},
    "one code": {"codes": 1},
    "codes used once": {"count": 1, "codes": 10_000},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_pictures_of_tokens(tmp_path, shape):
    pictures, tokens = labelled(**shape)
    grid = shape.get("grid", (4, 4))
    for draw in (code_patches, token_map):
        width, height = size_of(draw(pictures, tokens, grid, tmp_path / "out.png"))
        assert 100 < width <= 1500
        assert 50 < height <= 2500


def test_tensors_and_stored_tokens_are_taken_alike(tmp_path):
    pictures, tokens = labelled()
    kinds = [
        (pictures, tokens),
        (torch.from_numpy(pictures), torch.from_numpy(tokens)),
        (pictures, tokens.astype("uint16")),
    ]
    for draw in (code_patches, token_map):
        drawn = [draw(*kind, (4, 4), tmp_path / "out.png").read_bytes() for kind in kinds]
        assert drawn[0] == drawn[1] == drawn[2]


def test_chance_is_the_seed(tmp_path):
    pictures, tokens = labelled()
    first, again, other = (
        code_patches(pictures, tokens, (4, 4), tmp_path / "out.png", codes=3, seed=seed).read_bytes()
        for seed in (0, 0, 1)
    )
    assert first == again != other


def pixels(path):
    return {tuple(pixel) for pixel in np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3).tolist()}


def test_a_row_shows_its_code_amid_its_neighbours(tmp_path):
    """All red but a green patch of code 1 in a corner and a blue one two patches off, out of its sight."""
    pictures = np.zeros((1, 3, 12, 12), dtype=np.uint8)
    pictures[0, 0] = 255
    pictures[0, :, :4, :4] = np.array([0, 255, 0], dtype=np.uint8)[:, None, None]
    pictures[0, :, :4, 8:] = np.array([0, 0, 255], dtype=np.uint8)[:, None, None]
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    tokens = np.array([[1, 0, 0, 0, 0, 0, 0, 0, 0]])
    kinds = {
        frozenset({red, green, blue} & pixels(code_patches(pictures, tokens, (3, 3), tmp_path / "out.png", **settings)))
        for settings in [{}, *({"codes": 1, "seed": seed} for seed in range(10))]
    }
    assert kinds == {frozenset({red, green, blue}), frozenset({red, green})}  # code 0 or both; code 1 alone


def test_a_code_has_one_colour_in_every_figure(tmp_path):
    pictures = np.zeros((1, 3, 4, 4), dtype=np.uint8)
    first, again, other = (
        pixels(token_map(pictures, np.full((1, 1), code), (1, 1), tmp_path / "out.png")) for code in (7, 7, 8)
    )
    assert first == again != other


@pytest.mark.parametrize("draw", [code_patches, token_map])
def test_what_does_not_fit_is_refused(tmp_path, draw):
    pictures, tokens = labelled()
    bad = [(pictures, tokens, (4, 5)), (pictures, tokens[:2], (4, 4)), (pictures[:, :1], tokens, (4, 4))]
    bad += [(pictures[:0], tokens[:0], (4, 4)), (pictures[:, :, :-1], tokens, (4, 4))]
    for pixels_, tokens_, grid in bad:
        with pytest.raises(MapetError, match="do not fit one another") as caught:
            draw(pixels_, tokens_, grid, tmp_path / "out.png")
        assert "\n" not in str(caught.value)
