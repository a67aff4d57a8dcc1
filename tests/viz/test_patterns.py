import pytest

from mapet.api.show import draw
from mapet.method.pattern import mapet, mim, pet
from mapet.utils.errors import MapetError
from mapet.viz.patterns import COLORS, draw_patterns


def test_every_cell_has_the_color_of_what_is_read(tmp_path):
    patterns = {"mim": mim(6, 4), "pet": pet(6, 4), "mapet": mapet(6, 4)}
    text = draw_patterns(patterns, tmp_path / "drawn.svg").read_text()
    assert text == draw_patterns(patterns, tmp_path / "again.svg").read_text()
    assert all(color in text for color in (COLORS["content"], COLORS["mask token"]))


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_recipe_is_drawn(tmp_path, suffix):
    out = draw(tmp_path / f"drawn.{suffix}", objective="mapet", groups=3)
    assert out.stat().st_size > 10_000
    with pytest.raises(MapetError, match="exists: give another figure, or replace it"):
        draw(out)
    assert draw(out, overwrite=True) == out
    out.write_bytes(b"a photograph")
    with pytest.raises(MapetError, match="mapet did not write it"):
        draw(out, overwrite=True)
    assert out.read_bytes() == b"a photograph"


@pytest.mark.parametrize(("name", "changes", "reason"), [("a.pdf", {}, "svg"), ("a.svg", {"objective": "mae"}, "mae")])
def test_a_mistake_is_one_line(tmp_path, name, changes, reason):
    with pytest.raises(MapetError, match=reason):
        draw(tmp_path / name, **changes)
    assert not (tmp_path / name).exists()
