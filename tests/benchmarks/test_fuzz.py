"""Damaged inputs give one clear line or the undamaged result: the short form of benchmarks/fuzz.py."""

import importlib.util
import sys
from pathlib import Path

import pytest

from peak import memory, reset_peak

FILE = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
CASES = {"recipe": 60, "image": 60, "checkpoint": 25, "tokenizer": 25, "store": 25, "export": 15, "pack": 20}
CASES |= {"run": 4}  # seconds each; comparisons are left to the long form


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", FILE)
    module = sys.modules["fuzz"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fuzz"]


@pytest.fixture(scope="module")
def areas(fuzz, tmp_path_factory):
    return fuzz.make(tmp_path_factory.mktemp("fuzz"), CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_clear_line_or_the_same_result(fuzz, areas, tmp_path, name):
    found = {seed: fuzz.case(areas[name], seed, tmp_path) for seed in range(CASES[name])}
    assert not {seed: outcome for seed, outcome in found.items() if fuzz.failed(name, outcome)}
    assert "error" in {outcome.kind for outcome in found.values()} or name == "run"


def test_bombs_are_refused_without_their_memory(fuzz, tmp_path):
    for name, make in fuzz.BOMBS.items():
        content = make()
        assert len(content) < 300_000
        before = reset_peak()
        with pytest.raises(fuzz.UnreadableImage) as refused:
            fuzz.decode_image(content)
        assert memory("VmHWM") - before < 150 << 20, name
        assert "\n" not in str(refused.value)


def test_what_must_not_be_is_noticed(fuzz, tmp_path):
    """A traceback, a wrong result, an error of two lines, and a hang."""

    def area(result):
        return fuzz.Area(lambda chance, folder: "nothing", result, expected=1)

    def two_lines(folder):
        raise fuzz.MapetError("one\ntwo")

    def endless(folder):
        while True:
            pass

    def kind(result):
        return fuzz.case(area(result), 0, tmp_path).kind

    assert [kind(result) for result in (lambda _: 1, lambda _: 2, lambda _: 1 / 0, two_lines)] == [
        "correct",
        "wrong",
        "traceback",
        "traceback",
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fuzz, "SECONDS", 0.05)
        assert kind(endless) == "hang"
