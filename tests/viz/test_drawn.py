"""What figures hold: values, scales, labels and panels, read from matplotlib's objects."""

import warnings
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mapet.method.pattern import mapet
from mapet.viz import codes
from mapet.viz.attention import attention_figure, reveal_figure
from mapet.viz.comparison import accuracy_figure, curves_figure, seeds
from mapet.viz.figures import loss_figure, running_mean, smoothing
from mapet.viz.patterns import draw_patterns
from mapet.viz.report import charts, page
from mapet.viz.sheet import LONGEST, contact_sheet
from mapet.viz.table import Entry, Estimate

RNG = np.random.default_rng(0)
KNN, LINEAR = ("knn", "top1"), ("linear", "top1")


@pytest.fixture
def written(monkeypatch):
    """The figures that are written, in sequence."""
    found, save = [], Figure.savefig

    def kept(figure, *given, **named):
        found.append(figure)
        return save(figure, *given, **named)

    monkeypatch.setattr(Figure, "savefig", kept)
    return found


def rows_of(figure):
    """Number of panels in each row of a figure, from above."""
    rows = [axes.get_subplotspec().rowspan.start for axes in figure.axes]
    return [rows.count(row) for row in sorted(set(rows))]


def is_plain(axes):
    return {name: spine.get_visible() for name, spine in axes.spines.items()} == {
        "left": True,
        "bottom": True,
        "right": False,
        "top": False,
    }


def columns(steps=120):
    step = np.arange(1.0, steps + 1)
    values = {"loss": 6 - step / 100, "accuracy": step / 1000, "lr": step / 1e4, "grad_norm": 1 + RNG.random(steps)}
    return {"step": step, "epoch": 1 + step // 100, **values}


@pytest.mark.parametrize("chance", [None, 0.02])
def test_loss_and_accuracy_with_their_running_means(chance):
    found = columns()
    figure = loss_figure(found, chance)
    assert rows_of(figure) == [2]
    for axes, name, unit in zip(figure.axes, ("loss", "accuracy"), (1, 100), strict=True):
        each, mean, *guess = axes.get_lines()
        assert np.array_equal(each.get_xydata(), np.stack([found["step"], unit * found[name]], 1))
        assert np.array_equal(mean.get_ydata(), running_mean(unit * found[name], smoothing(120)))
        assert [line.get_ydata()[0] for line in guess] == [2.0] * (name == "accuracy" and chance is not None)
        assert mean.get_label() == "mean of 5 steps"
        assert axes.get_xlabel() == "step (2 epochs in all)"
        assert is_plain(axes)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (nats per token)", "token accuracy (%)"]


@pytest.mark.parametrize(("count", "window"), [(1, 1), (49, 1), (50, 3), (99, 3), (100, 5), (2500, 101)])
def test_about_a_25th_of_the_steps_is_one_mean(count, window):
    assert smoothing(count) == window


def test_rates_begin_at_0_and_norms_are_logarithmic():
    found = columns()
    figure = charts.rates(found)
    assert rows_of(figure) == [2]
    lr, norm = figure.axes
    assert (lr.get_ylim(), lr.get_yscale(), norm.get_yscale()) == ((0, 1.08 * 0.012), "linear", "log")
    assert np.array_equal(lr.get_lines()[0].get_ydata(), found["lr"])
    assert [np.array_equal(line.get_ydata(), found["grad_norm"]) for line in norm.get_lines()] == [True, False]
    assert np.array_equal(norm.get_lines()[1].get_ydata(), running_mean(found["grad_norm"], 5))
    assert all(map(is_plain, figure.axes))
    assert len(charts.rates({**found, "grad_norm": np.full(120, np.nan)}).axes) == 1


def test_probes_on_the_way():
    rows = [
        {"epoch": e, "knn": 0.2 * e, "knn_low": 0.1 * e, "knn_high": 0.3 * e, "guess": 0.1, "rank": 5.0 * e}
        for e in (1, 2)
    ]
    knn, rank = charts.probes([*rows, {"epoch": 3, "rank": 1.0}]).axes
    line, guess = knn.get_lines()
    assert line.get_xydata().tolist() == [[1, 20], [2, 40]]
    assert guess.get_ydata()[0] == 10
    ((area,),) = (collection.get_paths() for collection in knn.collections)
    assert {tuple(one) for one in area.vertices.tolist()} == {(1, 10), (2, 20), (2, 60), (1, 30)}
    assert rank.get_lines()[0].get_xydata().tolist() == [[1, 5], [2, 10], [3, 1]]
    assert rank.get_ylim()[0] == 0
    (alone,) = charts.probes([{"epoch": 3, "rank": 1.0}]).axes
    assert alone.get_lines()[0].get_xydata().tolist() == [[3, 1]]
    assert all(map(is_plain, (knn, rank, alone)))


def test_a_confusion_matrix_has_shares_of_the_true_class():
    axes, _ = charts.confusion(np.array([[3, 1, 0], [0, 200, 1], [0, 0, 0]]), ["a", "b" * 17, "c" * 18]).axes
    assert np.array_equal(
        axes.get_images()[0].get_array(), np.array([[75, 25, 0], [0, 20000 / 201, 100 / 201], [0, 0, 0]])
    )
    assert axes.get_images()[0].get_clim() == (0, 100)
    drawn = {(*text.get_position(), text.get_text(), text.get_color()) for text in axes.texts}
    assert drawn == {(0, 0, "75", "white"), (1, 0, "25", "black"), (1, 1, "100", "white")}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b" * 17, f"{'c' * 16}…"]
    many, _ = charts.confusion(np.eye(21), [str(n) for n in range(21)]).axes
    assert not many.texts


def test_a_chart_has_its_size_and_an_image_at_most_twice_its_own(tmp_path):
    figure = Figure((5.5, 2), layout="constrained")
    figure.subplots().plot([1, 3, 2])
    chart, again = (page.drawn(figure, "what", "how") for _ in range(2))
    assert (chart.width, chart.alt, chart.caption, chart.source) == (528, "what", "how", again.source)
    kind, _, content = chart.source.partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert b"<svg" in b64decode(content)
    assert b"<dc:date>" not in b64decode(content)
    for width, shown in ((40, 40), (41, 20), (20, 20), (10, 10)):
        Image.new("RGB", (width, 10)).save(tmp_path / "a.png")
        assert page.image(tmp_path / "a.png", "", "", most=20).width == min(20, shown)


@pytest.mark.parametrize(("size", "stored"), [((40, 99), (40, 99)), ((41, 10), (40, 10)), ((100, 400), (20, 80))])
def test_an_image_in_a_page_has_at_most_two_pixels_for_each_of_css(tmp_path, size, stored):
    Image.new("RGB", size).save(tmp_path / "a.png")
    kind, _, content = page.image(tmp_path / "a.png", "", "", most=20).source.partition(",")
    assert kind == "data:image/webp;base64"
    assert Image.open(BytesIO(b64decode(content))).size == stored


def test_figures_grow_with_what_they_show(tmp_path, written):
    """Sizes in inches, as a page or a paper takes them."""
    frame = RNG.integers(0, 256, (8, 8, 3), np.uint8)
    reveal_figure([("", frame)] * 3, tmp_path / "a.png")
    maps = RNG.random((2, 4, 4))
    attention_figure(
        np.stack([frame] * 2), maps[:, None], maps, RNG.random((2, 4, 4, 3)), maps, (0, 0), tmp_path / "a.png"
    )
    contact_sheet([("", "", None)] * 7, tmp_path / "a.png", columns=3)
    pattern = mapet(6, 4)
    draw_patterns({"one": pattern, "two": pattern}, tmp_path / "a.png")
    codes.token_map(frame.transpose(2, 0, 1)[None, :, :4], np.zeros((1, 8), int), (2, 4), tmp_path / "a.png")
    reveal, attention, sheet, patterns, tokens, _ = (figure.get_size_inches().tolist() for figure in written)
    assert reveal == pytest.approx([3 * 1.9, 2.5])
    assert attention == pytest.approx([5 * 1.3, 2 * 1.3 + 0.3])
    assert sheet == pytest.approx([3 * 1.5, 3 * 1.85])
    assert patterns == pytest.approx([2 * 0.26 * (pattern.keys + 3), 0.26 * (pattern.rows + 4)])
    assert tokens == pytest.approx([2.3, 2.2])
    rows, found = [{"epoch": 1, "rank": 5.0}], columns()
    labelled = [{**rows[0], "knn": 0.2, "knn_low": 0.1, "knn_high": 0.3, "guess": 0.1}]
    sizes = [(charts.rates(found), 9.2, 3), (charts.probes(rows), 4.6, 3), (charts.probes(labelled), 9.2, 3)]
    for count, side in ((20, 6.2), (21, 5.2)):
        sizes += [(charts.confusion(np.eye(count, dtype=int), ["a"] * count), side + 0.8, side)]
    sizes += [(accuracy_figure({"epochs": [entry("pet", 10, 0.5)]}), 10, 0.8 + 2.8)]
    for figure, *size in sizes:
        assert figure.get_size_inches().tolist() == pytest.approx(size)


def test_attention_of_an_oblong_image(tmp_path, written):
    """Images of 12 × 8 pixels in 4 × 2 patches; every map is in the panel of its title, and the patch is framed."""
    images, rollout = RNG.integers(0, 256, (2, 12, 8, 3), np.uint8), RNG.random((2, 4, 2))
    heads, colors, similarity = RNG.random((2, 7, 4, 2)), RNG.random((2, 4, 2, 3)), RNG.random((2, 4, 2)) * 2 - 1
    attention_figure(images, heads, rollout, colors, similarity, (3, 1), tmp_path / "a.png")
    (figure,) = written
    assert rows_of(figure) == [10, 10]
    titles = ["image", "rollout", *(f"head {n}" for n in range(1, 7)), "components", "similarity"]
    assert [axes.get_title() for axes in figure.axes] == titles + 10 * [""]
    for i, line in enumerate((figure.axes[:10], figure.axes[10:])):
        shown = [axes.get_images()[0] for axes in line]
        maps = [images[i], rollout[i], *heads[i, :6], colors[i], similarity[i]]
        assert all(np.array_equal(one.get_array(), values) for one, values in zip(shown, maps, strict=True))
        assert [one.get_clim() for one in shown[1:8]] == [(0, values.max()) for values in maps[1:8]]
        assert shown[-1].get_clim() == (-1, 1)
        assert [patch.get_bbox().extents.tolist() for patch in line[0].patches] == [[3.5, 8.5, 7.5, 11.5]]


def test_frames_of_a_reveal_stand_in_one_row(tmp_path, written):
    frames = [(f"{n} of 3", RNG.integers(0, 256, (4, 4, 3), np.uint8)) for n in range(3)]
    reveal_figure(frames, tmp_path / "a.png")
    assert rows_of(written[0]) == [3]
    for axes, (title, frame) in zip(written[0].axes, frames, strict=True):
        assert axes.get_title() == title
        assert np.array_equal(axes.get_images()[0].get_array(), frame)


@pytest.mark.parametrize(("count", "grid"), [(1, [1]), (2, [2]), (3, [3]), (4, [3, 3]), (6, [3, 3]), (7, [3, 3, 3])])
def test_tiles_stand_from_left_to_right(tmp_path, written, count, grid):
    tiles = [
        (f"{n}", "x" * (LONGEST + n - 1), Image.new("RGB", (9, 5), (n, 0, 0)) if n else None) for n in range(count)
    ]
    contact_sheet(tiles, tmp_path / "a.png", columns=3)
    assert rows_of(written[0]) == grid
    lines = ["x" * (LONGEST - 1), "x" * LONGEST] + [f"…{'x' * (LONGEST - 1)}"] * 5
    for n, axes in enumerate(written[0].axes[:count]):
        assert axes.get_title() == str(n)
        assert axes.texts[0].get_text() == lines[n]
        x, y = axes.texts[0].get_position()
        assert (x, y < 0, axes.texts[0].get_transform()) == (0.5, True, axes.transAxes)
        tile = axes.get_images()[0].get_array()
        assert tile.shape[0] == tile.shape[1]
        assert (tile == ([n, 0, 0] if n else 200)).all()
    assert not any(axes.get_images() or axes.axison for axes in written[0].axes[count:])


def test_a_name_that_the_font_lacks_is_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        contact_sheet([("\u6c34", "\u706b", None)], tmp_path / "a.png")


def test_a_pattern_is_drawn_cell_by_cell(tmp_path, written):
    pattern = mapet(6, 4)
    draw_patterns({"one": pattern, "two": mapet(5, 2)}, tmp_path / "a.png")
    assert rows_of(written[0]) == [2]
    axes = written[0].axes[0]
    cells = axes.get_images()[0].get_array()
    for row in range(pattern.rows):
        for column in range(pattern.keys):
            kind = 1 + pattern.is_masked[column].item() if pattern.visible[row, column] else 0
            assert cells[row, column] == kind
    names = [f"{'?' if m else ''}{p}" for m, p in zip(pattern.is_masked, pattern.position_in_order, strict=True)]
    labels = axes.get_yticklabels()
    assert [label.get_text() for label in labels] == names
    assert [label.get_text() for label in axes.get_xticklabels()] == names[: pattern.keys]
    bold = [row for row, label in enumerate(labels) if label.get_fontweight() == "bold"]
    assert bold == [row for row in range(pattern.rows) if row in pattern.predict]
    for ticks, count in ((axes.get_xticks(minor=True), pattern.keys), (axes.get_yticks(minor=True), pattern.rows)):
        assert np.array_equal(ticks, np.arange(count) - 0.5)
    lines = [*axes.xaxis.get_minorticklines(), *axes.yaxis.get_minorticklines()]
    grids = [tick.gridline for axis in (axes.xaxis, axes.yaxis) for tick in axis.get_minor_ticks()]
    assert lines
    assert all(line.get_visible() and line.get_color() == "white" for line in grids)


def entry(method, epochs, value, setting="", reach=0.01, images=100, accuracy=None):
    found = accuracy or {KNN: Estimate(value, reach, 2)}
    return Entry(method, setting, epochs, images, 1.0, 2.0 * epochs, 1.0, 1.0, found)


def test_final_accuracy_of_methods_settings_and_seeds():
    own = [entry("mapet", 10, 0.5), entry("mapet", 20, 0.6), entry("new", 20, 0.4, "k=1", reach=None)]
    base = entry("random", 0, 0.3, images=0)
    both = entry("mim", 20, 0, accuracy={KNN: Estimate(0.45, 0.01, 2), LINEAR: Estimate(0.7, 0.01, 2)})
    found = {("mapet", "", 10, KNN): [0.48, 0.52]}
    figure = accuracy_figure({"epochs": [*own, base], "compute": [own[0], both]}, found)
    assert rows_of(figure) == [2, 2]
    for axes, unit, label in zip(
        figure.axes, (1, 2, 1, 2), ("epochs", "compute of the training (PFLOP)") * 2, strict=True
    ):
        assert axes.get_xlabel() == label
        assert axes.get_xlim() == (0, 1.08 * 20 * unit)
        low, high = axes.get_ylim()
        drawn = [y for line in axes.get_lines() for y in np.atleast_1d(line.get_ydata())]
        assert low <= min(drawn)
        assert high >= max(drawn)
    first = figure.axes[0]
    data = [line.get_xydata().tolist() for line in first.get_lines()]
    for line in ([[10, 50], [20, 60]], [[10, 48], [10, 52]], [[20, 40]], [[0, 30], [1, 30]]):
        assert line in data
    assert [axes.get_ylabel() for axes in figure.axes] == ["k-NN accuracy (%)", "", "linear accuracy (%)", ""]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["mapet", "new (k=1)", "random", "mim"]
    colors = {line.get_label(): line.get_color() for line in first.get_lines() if line.get_label() == "random"}
    assert colors == {"random": "#6E6E6E"}


def test_a_wide_interval_is_cut_and_not_the_axis():
    one, other = (accuracy_figure({"epochs": [entry("mapet", 10, 0.5, reach=reach)]}).axes[0] for reach in (0.3, 0.001))
    assert one.get_ylim() == (47, 53)
    assert 49.8 < other.get_ylim()[0] < 49.9
    assert 50.1 < other.get_ylim()[1] < 50.2
    bounded = accuracy_figure({"epochs": [entry("mapet", 10, 0.005), entry("pet", 10, 0.995)]}).axes[0]
    assert bounded.get_ylim() == (0, 100)


@pytest.mark.parametrize(("names", "columns"), [(["a" * 11] * 7, 7), (["a" * 12] * 7, 3)])
def test_long_names_have_three_columns(names, columns):
    entries = [entry(name[:-1] + str(n), 10, 0.5) for n, name in enumerate(names)]
    (legend,) = accuracy_figure({"epochs": entries}).legends
    assert legend._ncols == columns


def test_seeds_are_those_of_trained_entries():
    row = {"method": "pet", "setting": "", "epochs": "10", "evaluation": "knn", "metric": "top1"}
    results = [{**row, "value": "0.5"}, {**row, "value": "0.6"}, {**row, "method": "random", "value": "0.1"}]
    assert seeds(results, [row]) == {("pet", "", 10.0, KNN): [0.5, 0.6]}


def test_curves_are_each_seed_and_their_mean():
    row = {"method": "pet", "setting": "", "pflop": 1.0}
    rows = [
        {**row, "run": f"{seed}", "seed": seed, "step": step, "epoch": step / 10, "value": step / 100 + seed / 10}
        for seed in (0, 1)
        for step in (20, 10)
    ]
    figure = curves_figure([{**one, "pflop": one["epoch"] / 2} for one in rows])
    assert rows_of(figure) == [2]
    for axes, unit in zip(figure.axes, (1, 0.5), strict=True):
        one, other, mean = axes.get_lines()
        assert one.get_xydata().tolist() == [[unit, 10], [2 * unit, 20]]
        assert np.allclose(other.get_xydata(), [[unit, 20], [2 * unit, 30]])
        assert np.allclose(mean.get_xydata(), [[unit, 15], [2 * unit, 25]])
        assert axes.get_xlim()[0] == 0


@pytest.mark.parametrize("reach", [0, 1, 2])
@pytest.mark.parametrize("at", [(0, 0), (1, 2), (2, 4)])
def test_surroundings_outside_the_image_are_light_grey(reach, at):
    image, patch = RNG.integers(0, 200, (3, 6, 20), np.uint8), np.array([2, 4])
    found = codes._surroundings(image, at, patch, reach)
    (height, width), (top, left) = (1 + 2 * reach) * patch, (np.array(at) - reach) * patch
    assert found.shape == (height, width, 3)
    for y in range(height):
        for x in range(width):
            inside = 0 <= top + y < 6 and 0 <= left + x < 20
            expected = image[:, top + y, left + x].tolist() if inside else [codes.PADDING] * 3
            assert found[y, x].tolist() == expected


def test_each_patch_has_its_frame_and_each_row_its_label(tmp_path, written):
    """Patches of 3 × 6 pixels; with one neighbour on each side a tile has 9 × 18, and gaps 1 × 2."""
    image = RNG.integers(0, 200, (2, 3, 9, 24), np.uint8)
    rows = [codes.Row("none", image[:0], []), codes.Row("two", image, [5, 0])]
    codes.patch_rows(rows, (3, 4), (9, 24), tmp_path / "a.png", examples=3)
    (axes,) = written[0].axes
    canvas = axes.get_images()[0].get_array()
    assert canvas.shape == (2 * 10, 3 * 20, 3)
    assert (canvas[:10] == 255).all()
    assert (canvas[:, 40:] == 255).all()
    assert (canvas[19] == 255).all()
    assert np.array_equal(canvas[10:19, :18], image[0].transpose(1, 2, 0)[:, :18])
    assert [path.vertices.min(0).tolist() for path in axes.collections[0].get_paths()] == [[5.5, 12.5], [25.5, 12.5]]
    assert [np.ptp(path.vertices, 0).tolist() for path in axes.collections[0].get_paths()] == [[6, 3]] * 2
    assert [label.get_text() for label in axes.get_yticklabels()] == ["none", "two"]
    assert axes.get_yticks().tolist() == [4.0, 14.0]


def test_usage_is_sorted_and_in_percent():
    axes = codes.usage_figure([10, 0, 70, 20, 0]).axes[0]
    values, edges, baseline = axes.patches[0].get_data()
    assert (values.tolist(), edges.tolist(), baseline) == ([70, 20, 10], [0, 1, 2, 3], 5.0)
    assert axes.get_lines()[0].get_ydata()[0] == 20
    assert axes.get_xlim() == (0, 5)
    assert np.allclose(axes.get_ylim(), (5, 105))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["uniform use: 20 %", "unused: 2 codes"]
    full = codes.usage_figure([1, 1]).axes[0]
    assert [text.get_text() for text in full.get_legend().get_texts()] == ["uniform use: 50 %"]


def test_colours_follow_the_principal_components():
    vectors = RNG.normal(size=(50, 6)) * [9, 5, 2, 0.1, 0.1, 0.1]
    found = codes.code_colors(vectors)
    u, s, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    for axis in range(3):
        order = found[:, axis].argsort().argsort()
        ours = (u[:, axis] * s[axis]).argsort().argsort()
        assert np.array_equal(order, ours) or np.array_equal(order, 49 - ours)
        assert np.allclose(np.sort(found[:, axis]), np.arange(50) / 49)
    assert np.array_equal(codes.code_colors(np.zeros((1, 2)))[:, 2], [0.5])


def test_images_stand_above_their_tokens(tmp_path, written):
    images = RNG.integers(0, 256, (5, 3, 8, 12), np.uint8)
    tokens, colors = RNG.integers(0, 9, (5, 6)), RNG.random((9, 3))
    codes.token_map(images, tokens, (2, 3), tmp_path / "a.png", count=3, colors=colors)
    figure, same = written  # as SVG and as PNG
    assert figure is same
    assert rows_of(figure) == [3, 3]
    for i, (above, below) in enumerate(zip(figure.axes[:3], figure.axes[3:], strict=True)):
        assert np.array_equal(above.get_images()[0].get_array(), images[i].transpose(1, 2, 0))
        assert np.array_equal(below.get_images()[0].get_array(), colors[tokens[i].reshape(2, 3)])
    assert (figure.axes[0].get_ylabel(), figure.axes[3].get_ylabel()) == ("image", "tokens, 2 × 3")
