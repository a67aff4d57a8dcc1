"""Sizes, layers and words that hold for the whole package; whoever must raise a number says why in the same commit."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "mapet"
FILES = sorted(PACKAGE.rglob("*.py"))
LIMITS = {
    "": 35_860,
    "cli": 2_610,
    "method": 1_425,
}
# Lines of a folder; method: 1,300 and windows.py; cli: 2,000 and nine verbs.
# The package was meant to have 17,500 lines. Since then came typed Python functions for every verb, settings that carry
# their rules, objectives of a user's own, the care for files that are not ours, the upgrade of version 0.1, and checks
# of images, checkpoints, schedules and signals; then windows, starting from weights,
# probes on the way, embed, neighbours and predict; then validate, robustness, transfer, panels and trackers;
# segmentation: probes, UPerNet, its augmentation (1,100); exports for ONNX and torch.export, reports (1,500);
# segmentation models exported, and plain reasons for damage (200); sets of any folders, masks of
# images (500); teachers at twice the speed (100); large photographs, outputs that appear whole (200).
LONGEST_FILE, LONGEST_FUNCTION, MEDIAN_FUNCTION = 300, 45, 8
LOOP = ("engine/fit.py", "fit")  # the training loop may be longer
WORDS = {  # what is not written, and what is
    r"(?<![\"'])pictures?(?!\.bin)": "image",  # the names of version 0.1 are quoted
    "crew": "process group",
    "lessons": "FinetuneBatches",
    r"hang(s|ing)? on": "depends on",
    r"of its own(?! \w)": "its own",
    r"(?<!there )is no(?= [a-z]+[^a-z])(?! longer| more| other| less)": "is not a",
    r"mends?|mended": "fix",
    "of all chance": "random seed",
}


def lines(path):
    return len(path.read_text().splitlines())


def functions():
    """(file, name, lines without the docstring) of every function."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = node.body[0]
                documented = ast.get_docstring(node) is not None
                prose = first.end_lineno - first.lineno + 1 if documented else 0
                yield path.relative_to(PACKAGE).as_posix(), node.name, node.end_lineno - node.lineno + 1 - prose


@pytest.mark.parametrize("folder", LIMITS)
def test_folders_stay_small(folder):
    assert sum(map(lines, (PACKAGE / folder).rglob("*.py"))) <= LIMITS[folder]


def test_files_stay_small():
    assert not {path.relative_to(PACKAGE).as_posix(): n for path in FILES if (n := lines(path)) > LONGEST_FILE}


def test_functions_stay_small():
    found = list(functions())
    assert not [one for one in found if one[2] > LONGEST_FUNCTION and one[:2] != LOOP]
    assert median(length for *_, length in found) <= MEDIAN_FUNCTION


def test_dataclasses_are_frozen():
    """A result or setting that is passed on is not changed elsewhere; a benchmark's report grows row by row."""
    mutable = {
        f"{path.relative_to(PACKAGE).as_posix()}:{node.name}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for one in map(ast.unparse, node.decorator_list)
        if one.startswith("dataclass") and "frozen=True" not in one
    }
    assert mutable == {"api/benchmark/report.py:Report"}


def test_nothing_but_the_entry_point_imports_the_command_line():
    importing = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if re.search(r"^\s*(from|import) mapet\.cli\b", path.read_text(), re.M) and path.parent.name != "tokenizer"
    }
    assert {name for name in importing if not name.startswith("cli/")} == {"__main__.py"}


def test_the_library_prints_nothing():
    printing = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in FILES
        if "cli" not in path.relative_to(PACKAGE).parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing


@pytest.mark.parametrize("pattern", WORDS)
def test_private_words_are_not_written(pattern):
    told = re.compile(rf"(?<![\w-])({pattern})(?![\w-])", re.I)
    pages = [*FILES, ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("C*.md")]
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in pages
        if path.name not in ("upgrade.py", "CHANGELOG.md")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if told.search(line)
    ]
    assert not found, f"write {WORDS[pattern]} instead"


def test_the_import_of_the_package_is_light():
    heavy = "{'torch', 'numpy', 'timm', 'pydantic', 'tyro', 'matplotlib', 'lightning_fabric'}"
    code = f"import sys, mapet; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
