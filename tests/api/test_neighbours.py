"""Neighbours are those of a search by hand, and of the encoder that made the features."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import mapet
from forms import MODEL, as_finetuning, in_all_forms
from mapet.api.embed import embed
from mapet.api.neighbours import neighbours
from mapet.config.recipe import Recipe
from mapet.evals import feature_file
from mapet.utils.errors import MapetError
from mapet.viz.figures import is_figure
from mapet.viz.sheet import contact_sheet


@pytest.fixture(scope="module")
def desk(images, tmp_path_factory):
    root = tmp_path_factory.mktemp("near")
    shutil.copytree(images, root / "images")
    in_all_forms(Recipe(model=MODEL), root)
    as_finetuning(root / "classifier", ["across", "along"])
    for name in ("run", "classifier"):
        embed(root / name, root / "images", root / f"{name}.npz")
    return root


@pytest.mark.parametrize("form", ["run", "classifier"])
@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_they_are_those_of_a_search_by_hand(desk, form, chunk, monkeypatch):
    monkeypatch.setattr(feature_file, "CHUNK", chunk)
    path = desk / "images/along/07.png"
    known = mapet.Embeddings.open(desk / f"{form}.npz")
    query = embed(desk / form, path).features
    similarity = torch.nn.functional.cosine_similarity(torch.from_numpy(known.features), torch.from_numpy(query))
    order = similarity.argsort(descending=True).tolist()
    for k in (1, 5, 100):
        found = neighbours(desk / form, path, desk / f"{form}.npz", k=k)
        assert [one.image_id for one in found] == [known.image_ids[i] for i in order[:k]]
        torch.testing.assert_close(torch.tensor([one.similarity for one in found]), similarity[order[:k]])
    assert found[0] == ("along/07.png", pytest.approx(1))
    assert neighbours(desk / form, np.asarray(Image.open(path)), known, k=100) == found
    assert len(found) == 48


def test_the_sheet_shows_the_images(desk, tmp_path):
    path, out = desk / "images/along/07.png", tmp_path / "new" / "sheet.png"
    neighbours(desk / "run", path, desk / "run.npz", out, k=7)
    assert is_figure(out)
    with Image.open(out) as image:
        assert image.width > 5 * 100
    with pytest.raises(MapetError, match="exists: give another out, or replace it"):
        neighbours(desk / "run", path, desk / "run.npz", out)
    before = out.read_bytes()
    neighbours(desk / "run", path, desk / "run.npz", out, k=7, overwrite=True)
    assert out.read_bytes() == before
    moved = shutil.copytree(desk / "images", tmp_path / "moved")
    (moved / "across").rename(moved / "else")  # some are missing: grey
    neighbours(desk / "run", path, desk / "run.npz", tmp_path / "moved.png", k=7, images=str(moved))
    assert is_figure(tmp_path / "moved.png")


@pytest.mark.filterwarnings("error")
def test_a_tile_is_the_image_or_grey(tmp_path):
    """Names with what matplotlib would read as formulas, or cannot draw; a name without end is cut."""
    red = Image.new("RGB", (20, 10), "red")
    out = contact_sheet([("$a_", "b$^" * 90, red), ("b", "日本", None)] * 4, tmp_path / "sheet.png", columns=3)
    with Image.open(out) as image:
        colours = {colour: count for count, colour in image.convert("RGB").getcolors(1 << 24)}
    assert colours[255, 0, 0] == pytest.approx(colours[200, 200, 200], rel=0.05)
    assert colours[255, 0, 0] > 4 * 100**2


def test_given_paths_are_found_again(desk, tmp_path, monkeypatch):
    monkeypatch.chdir(desk)
    names = ["images/along/07.png", "images/along/08.png"]
    known = embed("run", names)
    monkeypatch.chdir(tmp_path)
    assert {one.image_id for one in neighbours(desk / "run", desk / names[0], known, "sheet.png")} == set(names)
    in_memory = embed(desk / "run", Image.open(desk / names[0]))
    neighbours(desk / "run", desk / names[0], in_memory)


def test_what_does_not_fit_is_one_line(desk, tmp_path, monkeypatch):
    path, monkeyed = desk / "images/along/07.png", tmp_path / "sheet.png"
    with pytest.raises(
        MapetError, match=r"run\.npz was made by another encoder \(the run .*\) than the fine-tuning .*:"
    ):
        neighbours(desk / "classifier", path, desk / "run.npz")
    with pytest.raises(MapetError, match="holds the features of patches: embed with pool avg"):
        neighbours(desk / "run", path, embed(desk / "run", path, tmp_path / "patches.npz", pool="patches").path)
    with pytest.raises(MapetError, match=r"^IMAGE must be one image, got 48: give a file"):
        neighbours(desk / "run", desk / "images", desk / "run.npz")
    with pytest.raises(MapetError, match=r"is inside .*images, where it would be among images"):
        neighbours(desk / "run", path, desk / "run.npz", desk / "images/sheet.png")
    with pytest.raises(MapetError, match=r"^out must end in .png or .svg, got sheet\.jpg"):
        neighbours(desk / "run", path, desk / "run.npz", "sheet.jpg")
    Image.new("RGB", (4, 4)).save(monkeyed)
    with pytest.raises(MapetError, match="mapet did not write it"):
        neighbours(desk / "run", path, desk / "run.npz", monkeyed, overwrite=True)
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "empty/other.png")
    with pytest.raises(
        MapetError, match=r"holds none of the images of the features: give the folder that does as imag"
    ):
        neighbours(desk / "run", path, desk / "run.npz", tmp_path / "s.png", images=str(tmp_path / "empty"))
