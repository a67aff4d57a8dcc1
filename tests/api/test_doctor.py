"""``mapet doctor`` names what works, and each provoked problem with the way out."""

import shutil

import pytest

from mapet.api import doctor as module
from mapet.api.doctor import doctor
from mapet.cli import main


def problems():
    return {one.topic: one.problem for one in doctor() if one.problem}


def test_every_topic_is_looked_at(capsys):
    topics = [one.topic for one in doctor()]
    assert {"versions", "images", "processor", "gpu", "compiler", "memory", "disk", "cache", "extras"} <= set(topics)
    assert main(["doctor"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_problems_are_named_with_a_way_out(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    monkeypatch.setattr(module.shutil, "which", lambda name: "/bin/nvidia-smi" if name == "nvidia-smi" else None)
    monkeypatch.setattr("mapet.utils.versions._version", lambda name: "2.6.2")
    monkeypatch.setenv("MAPET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module.os, "access", lambda *_: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    found = problems()
    assert "install another version" in found["versions"]
    assert "--compile needs" in found["compiler"]
    assert "another disk" in found["disk"]
    assert "MAPET_CACHE" in found["cache"]
    assert "no CUDA" in found["gpu"]
    if module.SHARED.is_dir():
        assert "--shm-size" in found[str(module.SHARED)]


def test_a_part_that_fails_is_the_finding(monkeypatch):
    def broken(*_):
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr("torchvision.ops.nms", broken)
    assert "torchvision::nms does not exist" in problems()["images"]


@pytest.mark.parametrize("words", [["here"], ["--fast"]])
def test_it_takes_no_words(words, capsys):
    assert main(["doctor", *words]) == 2
    assert words[0] in capsys.readouterr().err
