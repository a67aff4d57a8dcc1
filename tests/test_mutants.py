"""The mutants of tools/mutants.py: one token each, and none where nothing runs."""

import ast
import importlib.util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SOURCE = b'''"""A docstring with 1 number."""
def clip(value: "int | None", low=0, flag=True) -> int:
    if value < low and not flag:  # \xc3\xa9
        raise ValueError(f"{value + 1}")
    return max(low, power(value, 2.5)) - value
'''
FROM_LINE = {
    2: {"low=1", "flag=False"},
    3: {"value <= low", "or not", "and flag", "not (value"},
    4: {"pass"},
    5: {"power(2.5, value)", "power(value, 5.0)", "+ value"},
}


@pytest.fixture(scope="module")
def mutations():
    spec = importlib.util.spec_from_file_location("mutations", ROOT / "tools" / "mutations.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_kind_of_token_is_changed_and_nothing_else(mutations):
    found = mutations.mutants(SOURCE)
    for line, wanted in FROM_LINE.items():
        changed = [one.after for one in found if one.line == line]
        assert len(changed) == len(wanted)
        assert all(sum(text in after for after in changed) == 1 for text in wanted)
    assert {one.line for one in found} == FROM_LINE.keys()
    for one in found:
        ast.parse(one.source)
        lines = zip(SOURCE.splitlines(), one.source.splitlines(), strict=True)
        assert [number for number, (old, new) in enumerate(lines, 1) if old != new] == [one.line]


def test_the_listed_mutants_exist(mutations):
    """An equivalent whose line was rewritten must be judged anew."""
    for one in yaml.safe_load((ROOT / "benchmarks" / "mutants.yaml").read_text()):
        source = (ROOT / "src" / "mapet" / one["module"]).read_bytes()
        same_line = [mutant.after for mutant in mutations.mutants(source) if mutant.before == one["line"]]
        assert one["reason"]
        assert one["mutant"] in same_line if "mutant" in one else same_line, one
