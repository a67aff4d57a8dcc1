"""What benchmarks/loading.py compares shows the same images, at a tiny size. Nothing is timed."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

SIZE = 8


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "loading.py"
    spec = importlib.util.spec_from_file_location("benchmark_loading", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(benchmark, monkeypatch, tmp_path, images, *options):
    report = tmp_path / "loading.json"
    settings = [f"--size={SIZE}", "--batch=16", "--rounds=2", "--epochs=2", "--device=cpu", f"--json={report}"]
    given = [f"--folder={tmp_path}", f"--data={images}", *settings, *options]
    monkeypatch.setattr(sys, "argv", ["loading.py", *given])
    benchmark.main()
    return json.loads(report.read_text())["results"]


def test_every_way_shows_every_picture(benchmark, monkeypatch, tmp_path, images, capsys):
    results = run(benchmark, monkeypatch, tmp_path, images, "--workers", "0", "1")
    shown = capsys.readouterr().out
    assert "| folder | random crops | 1 |" in shown
    assert "| uint8 pack | centre | none |" in shown
    for found in results:
        decoded = found["data"] in ("folder", "jpeg pack")
        assert [one["images"] for one in found["rounds"]] == 2 * [48 if decoded else 96]
    assert {found["data"]: found["bytes"] for found in results}["uint8 pack"] == 3 * SIZE**2
    assert len(results) == 2 * 2 * 2 + 2


def test_a_pack_that_differs_is_not_timed(benchmark, monkeypatch, tmp_path, images):
    photos = shutil.copytree(images, tmp_path / "photos")
    run(benchmark, monkeypatch, tmp_path, photos, "--workers", "0")
    for path in photos.rglob("*.png"):
        Image.new("RGB", (32, 32)).save(path)
    with pytest.raises(SystemExit, match="disagree"):
        run(benchmark, monkeypatch, tmp_path, photos, "--workers", "0")


def test_photographs_are_made_once(benchmark, monkeypatch, tmp_path):
    class Flat:
        def read(self, place):
            return Image.new("RGB", (32, 32), (place * 50, 90, 30))

    monkeypatch.setattr(benchmark, "open_dataset", lambda name: Flat())
    benchmark.photographs(tmp_path, 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["00000.jpg", "00001.jpg"]
    with Image.open(tmp_path / "00001.jpg") as image:
        assert image.size == (500, 375)
    (tmp_path / "00001.jpg").unlink()
    benchmark.photographs(tmp_path, 2)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
