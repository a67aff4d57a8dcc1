"""What a library's exception says to a user: one plain line."""

import ast
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mapet.utils.errors import LONGEST_REASON, reason
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
