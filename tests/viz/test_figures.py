"""Figures are valid PNG files of a readable size, also for one step or gaps in the metrics."""

import numpy as np
import pytest
from PIL import Image

from mapet.utils.errors import MapetError
from mapet.utils.owned import discard, find_foreign
from mapet.viz.figures import DPI, blank, figure_file, is_figure, loss_curve, save, write

HEADER = "step,epoch,loss,accuracy,lr"


def size_of(path):
    """(width, height) of a PNG that decodes and is not blank."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("L")))) > 1
        return image.size


def metrics(folder, *rows, header=HEADER):
    path = folder / "metrics.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.mark.parametrize("steps", [1, 2, 500])
def test_loss_curve(tmp_path, steps):
    rows = [f"{step},{1 + step // 100},{6 - step / 100},{step / 1000},0.001" for step in range(1, steps + 1)]
    width, height = size_of(loss_curve(metrics(tmp_path, *rows), tmp_path / "new" / "loss.png", chance=0.01))
    assert (width, height) == pytest.approx((9.2 * DPI, 3.4 * DPI), abs=1)


def test_loss_without_accuracy_is_one_panel(tmp_path):
    path = metrics(tmp_path, "1,2.5,", "2,2.0,", header="step,loss,accuracy")
    width, height = size_of(loss_curve(path, tmp_path / "loss.png", chance=0.1))
    assert width < 2 * height


def test_gaps_in_the_metrics_are_skipped(tmp_path):
    path = metrics(tmp_path, "1,1,3.0,,0.1", "2,1,,0.1,0.1", "3,1,nan,0.2,0.1", "4,1,2.0,0.3,0.1")
    size_of(loss_curve(path, tmp_path / "loss.png"))


def test_invalid_metrics_are_refused(tmp_path):
    with pytest.raises(MapetError, match="no metrics file"):
        loss_curve(tmp_path / "absent.csv", tmp_path / "loss.png")
    with pytest.raises(MapetError, match="no rows"):
        loss_curve(metrics(tmp_path), tmp_path / "loss.png")
    with pytest.raises(MapetError, match="no rows with step and loss"):
        loss_curve(metrics(tmp_path, "1,2", header="a,b"), tmp_path / "loss.png")


def test_a_figure_is_a_png_file_and_an_svg_file(tmp_path):
    """Of the same bytes for the same values, known as ours; the same without the mark is not."""

    def figure():
        drawn = blank(2, 1)
        drawn.subplots().plot([0, 1])
        return drawn

    assert save(figure(), tmp_path / "new" / "a.png") == tmp_path / "new" / "a.png"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["a.png", "a.svg"]
    with Image.open(tmp_path / "new" / "a.png") as image:
        assert image.info["dpi"] == pytest.approx((DPI, DPI), abs=0.1)
    for suffix in ("png", "svg"):
        assert is_figure(tmp_path / "new" / f"a.{suffix}")
        again = save(figure(), tmp_path / "again.png").with_suffix(f".{suffix}")
        assert again.read_bytes() == (tmp_path / "new" / f"a.{suffix}").read_bytes()
        figure().savefig(tmp_path / f"foreign.{suffix}", dpi=DPI)
        assert not is_figure(tmp_path / f"foreign.{suffix}")


def test_the_file_of_a_figure_is_refused_before_the_work(tmp_path):
    foreign = tmp_path / "photo.png"
    foreign.write_bytes(b"a photograph")
    (tmp_path / "link.png").symlink_to(foreign)
    (tmp_path / "b.svg.part").write_bytes(b"a part")
    for out, reason in (
        ("a.jpg", "out must end in .png or .svg"),
        (foreign, "mapet did not write it"),
        (foreign / "a.svg", "photo.png is not a folder"),
        ("link.png", "link.png is a symbolic link"),
        ("b.svg", "b.svg.part is in the way"),
    ):
        with pytest.raises(MapetError, match=reason):
            figure_file(tmp_path / out, overwrite=True)
    assert foreign.read_bytes() == b"a photograph"
    with pytest.raises(MapetError, match="where it would be among images"):
        figure_file(tmp_path / "c.png", overwrite=True, images=tmp_path)


def test_an_svg_file_of_another_program_stays(tmp_path, caplog):
    """Also in a folder of ours, whose own figures go."""
    (tmp_path / "a.svg").write_text("<svg>mine</svg>")
    figure = blank(2, 1)
    with caplog.at_level("INFO", "mapet"):
        save(figure, tmp_path / "a.png")
    assert "a.svg stays: mapet did not write it" in caplog.text
    assert (tmp_path / "a.svg").read_text() == "<svg>mine</svg>"
    save(figure, tmp_path / "loss.png")
    tree = {r"(a|loss)\.(png|svg)": None}
    assert find_foreign(tmp_path, tree) == tmp_path / "a.svg"
    discard(tmp_path, tree)
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]


def test_a_link_beside_the_file_is_not_followed(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "a.svg.part").symlink_to(tmp_path / "mine")
    with pytest.raises(MapetError, match="is a symbolic link"):
        write(blank(2, 1), tmp_path / "a.svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg.part", "mine"]
    assert (tmp_path / "mine").read_text() == "mine"
