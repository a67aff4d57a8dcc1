"""Tables of a comparison in all formats, sentences, and figures."""

import csv
import re
from io import StringIO

import numpy as np
import pytest
from PIL import Image

from mapet.viz.comparison import accuracy, curves
from mapet.viz.table import (
    Entry,
    Estimate,
    cells,
    heading,
    latex,
    markdown,
    plain,
    spreadsheet,
    statements,
)

KNN, LINEAR, SHOT = ("knn", "top1"), ("linear", "top1"), ("fewshot", "1-shot")
METHODS = {
    "mapet": (41.5, 0.0414),
    "pet": (38.0, 0.0281),
    "mim": (40.8, 0.0182),
    "cae": (37.0, 0.0271),
    "mae": (31, 0.0096),
}


def entry(method, value, gmac=1.0, reach=0.6, setting="", epochs=200, **more):
    found = {KNN: Estimate(value / 100, reach / 100, 3), LINEAR: Estimate(value / 100 + 0.12, 0.004, 3)}
    images = epochs * 49_920
    about = {"images": images, "gmac": gmac, "pflop": 6e-6 * gmac * images, "seconds": 3725.4, "peak": 3.21}
    return Entry(method, setting, epochs, **{**about, "accuracy": found, **more})


@pytest.fixture
def budgets():
    random = entry("random", 27.1, reach=0.3, epochs=0, images=0, pflop=0.0, seconds=None, peak=None)
    equal = [entry(method, *figures) for method, figures in METHODS.items()]
    compute = [
        entry(method, value + 0.7 * (method != "mapet"), gmac, epochs=round(200 * 0.0414 / gmac))
        for method, (value, gmac) in METHODS.items()
    ]
    return {"epochs": [*equal, random], "compute": [*compute, random]}


def test_two_evaluations_fit_into_80_columns(budgets):
    text = plain(budgets["epochs"])
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) == 1 + 6
    assert " ".join(lines[1].split()) == "mapet 200 9.984 M 0.0414 2.48 1:02:05 3.2 41.5 ± 0.6 53.5 ± 0.4"
    assert len({line.index("±") for line in lines[1:]}) == 1


def test_further_columns_follow_below_with_the_names_repeated():
    many = {("e", f"metric {number}"): Estimate(0.5, 0.01, 3) for number in range(9)}
    long = entry("mapet", 40, setting="context=0.25, groups=12", accuracy=many)
    blocks = plain([long, entry("mim", 40, accuracy=many)]).split("\n\n")
    assert len(blocks) > 1
    assert all(len(line) <= 80 for block in blocks for line in block.splitlines())
    assert all(block.splitlines()[1].startswith("mapet (context=0.25, groups=12)") for block in blocks)
    heads = [name for block in blocks for name in re.split(r"  +", block.splitlines()[0].strip())]
    assert heads == cells([long])[0][1:]


def test_markdown_has_one_table_per_budget_with_equal_rows(budgets):
    text = markdown(budgets, ["knn: the protocol"])
    assert text.index("## Equal epochs") < text.index("## Equal compute") < text.index("- knn: the protocol")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 * (2 + 6)
    assert len({row.count("|") for row in rows}) == 1
    assert "| mae | 862 | 43.03 M |" in text


def test_latex_rows_match_the_declared_columns(budgets):
    budgets["epochs"][0] = entry("mapet", 41, setting="drop_path=0.1")
    text = latex(budgets, ["100 % of it"])
    for declared, body in re.findall(r"\\begin\{tabular\}\{(l+r+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) == 1 + 6
        assert all(row.count(" & ") == len(declared) - 1 for row in rows)
    assert r"drop\_path" in text
    assert r"$\pm$" in text
    assert "\n% 100 % of it\n" in text


def test_csv_reads_back(budgets):
    budgets["epochs"][-1] = entry("scratch", 60, accuracy={SHOT: Estimate(0.3, None, 1)})
    rows = list(csv.DictReader(StringIO(spreadsheet(budgets))))
    assert len(rows) == 12
    assert (rows[0]["budget"], rows[6]["budget"]) == ("epochs", "compute")
    assert float(rows[0]["knn_top1"]) == 0.415
    assert float(rows[0]["knn_top1_reach"]) == 0.006
    assert (rows[0]["fewshot_1-shot"], rows[5]["fewshot_1-shot"], rows[5]["knn_top1"]) == ("", "0.3", "")
    assert float(rows[0]["seconds"]) == 3725.4


def test_statement_names_the_best_and_overlapping_intervals():
    found = [entry("mapet", 41.5, reach=0.4), entry("mim", 42.0, reach=0.2), entry("mae", 30.0), entry("pet", 41.3)]
    knn, linear = statements(found)
    assert knn.startswith("k-NN: best by the mean: mim, 42.0 ± 0.2 %; ")
    assert knn.endswith("overlap with it: mapet, pet")
    assert linear.startswith("linear: best by the mean: mim")
    assert statements([found[1], found[2]])[0].endswith("overlap with it: none")


def test_statement_for_one_seed_has_no_interval():
    one = Estimate(0.5, None, 1)
    (said,) = statements([entry(name, 1, accuracy={KNN: one}) for name in ("mapet", "mim")])
    assert said == "k-NN: best by the mean: mapet, mim, 50.0 % (all the same); one seed has no interval"


def test_method_without_a_metric_is_not_in_its_statement():
    lacking = entry("scratch", 1, accuracy={SHOT: Estimate(0.9, 0.1, 3)})
    assert [said.split(":")[0] for said in statements([entry("mapet", 40), entry("mim", 40), lacking])] == [
        "k-NN",
        "linear",
    ]
    assert cells([entry("mapet", 40), lacking])[2][-3:] == ["", "", "90.0 ± 10.0"]
    assert heading(SHOT) == "1-shot"


def pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def test_figures_show_the_color_of_every_method(budgets, tmp_path):
    shown = pixels(accuracy(budgets, tmp_path / "accuracy.png"))
    rows = [
        {
            "run": f"{method}{seed}{total}",
            "method": method,
            "setting": "",
            "seed": seed,
            "step": epoch * 195,
            "epoch": epoch,
            "pflop": epoch * gmac,
            "value": (value / 100 - 0.2) * (1 - np.exp(-epoch / 40)) + 0.2 + seed / 500,
        }
        for method, (value, gmac) in METHODS.items()
        for total in (200, round(200 * 0.0414 / gmac))
        for seed in range(3)
        for epoch in range(20, total + 1, 20)
    ]
    drawn = pixels(curves(rows, tmp_path / "curves.png"))
    for color in ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0)):
        for image in (shown, drawn):
            assert (np.abs(image.astype(int) - color).sum(axis=2) < 6).sum() > 50


def test_figures_of_one_seed_and_one_method(tmp_path):
    alone = entry("mapet", 40, accuracy={KNN: Estimate(0.4, None, 1)})
    pixels(accuracy({"epochs": [alone]}, tmp_path / "a.png"))
    row = {"run": "a", "method": "mapet", "setting": "groups=3", "seed": 0, "step": 1, "epoch": 1, "pflop": 0.1}
    pixels(curves([{**row, "value": 0.4}], tmp_path / "b.png"))
