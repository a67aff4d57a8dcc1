"""What a library's exception says to a user: one plain line."""

import ast
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mapet.utils.errors import LONGEST_LIST, LONGEST_REASON, MapetError, nearest, reason, similar
from mapet.utils.io import replace_file

PACKAGE = Path(__file__).parents[2] / "src" / "mapet"


def other_weights(path):
    torch.nn.Linear(2, 3).load_state_dict(torch.nn.Linear(3, 2).state_dict())


def several_lines(path):
    raise ValueError("one\n  two\n" + 1000 * "x")


def silent(path):
    raise AssertionError


PROVOKED = {
    "not text in UTF-8, byte 1": lambda path: path.read_text(encoding="utf-8"),
    "not JSON, line 1 column 1": lambda path: json.loads(""),
    "No such file or directory": lambda path: path.with_name("none").read_bytes(),
    '"two" is missing': lambda path: {"one": 1}["two"],
    "not a whole safetensors file": lambda path: safe_open(path, "pt"),
    "the weights do not fit the model": other_weights,
    "one two xxx": several_lines,
    "AssertionError": silent,
}


@pytest.mark.parametrize("said", PROVOKED)
def test_the_reason_is_one_plain_line(tmp_path, said):
    path = tmp_path / "file"
    path.write_bytes(b"a\xff\x00 {")
    with pytest.raises(Exception) as caught:  # noqa: PT011
        PROVOKED[said](path)
    text = reason(caught.value)
    assert text.startswith(said)
    assert "\n" not in text
    assert len(text) <= LONGEST_REASON + 1
    assert not text.endswith((".", ":"))


def test_no_exception_is_put_into_a_text_as_it_is():
    """Each goes through ``reason``: what torch, json and codecs say is cut, long, or names no file."""
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for handler in ast.walk(ast.parse(path.read_text()))
        if isinstance(handler, ast.ExceptHandler) and handler.name
        for node in ast.walk(handler)
        if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name) and node.value.id == handler.name
    ]
    assert not found


def test_what_cannot_be_written_is_named_not_its_temporary(tmp_path):
    with pytest.raises(OSError, match="No such file") as caught:
        replace_file(tmp_path / "none" / "report.html", "")
    assert caught.value.filename == str(tmp_path / "none" / "report.html")


@pytest.mark.parametrize(
    ("name", "names", "meant"),
    [
        ("maped", ["mapet", "mae"], "mapet"),
        ("--Batch_Size", ["batch-size", "seed"], "batch-size"),
        ("BATCH-SIZE", ["batch_size"], "batch_size"),
        ("bs", ["batch-size", "base-lr"], "batch-size"),
        ("bs", ["seed"], None),
        ("max", ["max-images", "epochs"], "max-images"),
        ("ma", ["max-images"], None),
        ("max", ["max-images", "max-samples"], None),
        ("zzz", ["mapet"], None),
        ("a", [], None),
    ],
)
def test_the_name_that_was_meant(name, names, meant):
    assert similar(name, names) == meant


def test_a_hint_is_the_nearest_name_or_a_short_list():
    many = [f"name-{n:02d}" for n in range(LONGEST_LIST + 1)]
    assert nearest("maped", ["mapet", "mae"]) == ' Did you mean "mapet"?'
    assert nearest("zzz", ["b", "a"]) == " Known: a, b."
    assert nearest("zzz", many[1:]).startswith(" Known: name-01, ")
    assert nearest("zzz", many) == ""


def test_options_are_arguments_in_python():
    error = MapetError("--max-images 3 is below --batch-size; run mapet export RUN --to timm, or give a-b --c.")
    assert str(error) == "max_images 3 is below batch_size; run mapet export RUN --to timm, or give a-b c."
    assert error.option_text == error.args[0]


def test_a_long_reason_is_cut_but_not_ours():
    assert reason(ValueError(LONGEST_REASON * "x")) == LONGEST_REASON * "x"
    assert reason(ValueError((LONGEST_REASON + 1) * "x")) == f"{LONGEST_REASON * 'x'}…"
    assert reason(MapetError(999 * "x" + ".")) == 999 * "x"
    assert reason(KeyError()) == "an entry is missing"
    assert reason(OSError("plain")) == "plain"
