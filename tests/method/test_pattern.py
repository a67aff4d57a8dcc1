"""Patterns against the rule evaluated with dictionaries and loops, and the theorems that make the objectives sound."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from mapet.method.pattern import mapet, mim, pet, reveal
from method_oracle import NAMED, all_rows, cases, reads, times

SWEEP = cases(80)


def kinds(pattern, groups):
    """(kind, index, clock) of each row, derived from ``is_masked`` and the row's number."""
    time, first = times(pattern.length, groups), pattern.rows - len(pattern.predict)
    named = []
    for row, (index, is_masked) in enumerate(
        zip(pattern.position_in_order.tolist(), pattern.is_masked.tolist(), strict=True)
    ):
        kind = "content" if not is_masked else "query" if row >= first else "placeholder"
        named.append((kind, index, {"content": time[index], "placeholder": 0, "query": time[index] - 1}[kind]))
    return named


@pytest.mark.parametrize(("length", "groups", "fill"), SWEEP)
def test_every_row_reads_what_the_rule_says(length, groups, fill):
    pattern = reveal(length, groups, fill)
    rows = kinds(pattern, groups)
    columns = [("placeholder" if kind == "query" else kind, index) for kind, index, _ in rows]
    for row, (_, _, clock) in enumerate(rows):
        found = [columns[column] for column in pattern.visible[row].nonzero().flatten().tolist()]
        assert len(found) == len(set(found))
        assert set(found) == reads(clock, length, groups, fill)


@pytest.mark.parametrize(("length", "groups", "fill"), SWEEP)
def test_rows_are_exactly_those_needed(length, groups, fill):
    rows = kinds(reveal(length, groups, fill), groups)
    time, final = times(length, groups), len(groups)
    needed = {
        row
        for row in all_rows(length, groups, fill)
        if row[0] == "query"
        or (row[0] == "content" and time[row[1]] < final)
        or (row[0] == "placeholder" and time[row[1]] > 1)
    }
    assert len(rows) == len(set(rows))
    assert set(rows) == needed
    assert len(rows) == 1 + length - groups[-1] + (sum(groups) - groups[0]) * fill + sum(groups)


@pytest.mark.parametrize(("length", "groups", "fill"), SWEEP)
def test_readable_rows_first_and_predicting_rows_last(length, groups, fill):
    pattern = reveal(length, groups, fill)
    count = sum(groups)
    assert pattern.context == 1 + length - count
    assert pattern.visible[:, : pattern.keys].any(0).all()
    assert not pattern.visible[:, pattern.keys :].any()
    assert pattern.visible.any(1).all()
    assert torch.equal(pattern.predict, torch.arange(pattern.rows - count, pattern.rows))
    assert torch.equal(pattern.position_in_order[pattern.predict], torch.arange(pattern.context, 1 + length))
    assert pattern.is_masked[pattern.predict].all()


@pytest.mark.parametrize(("length", "groups", "fill"), [case for case in SWEEP if case[2]])
def test_filled_rows_read_every_position_once(length, groups, fill):
    pattern = reveal(length, groups, fill)
    assert (pattern.visible.sum(1) == 1 + length).all()
    for row in pattern.visible:
        assert torch.equal(pattern.position_in_order[row].sort().values, torch.arange(1 + length))


@pytest.mark.parametrize(("length", "groups", "fill"), SWEEP)
def test_nothing_leaks_through_any_number_of_layers(length, groups, fill):
    pattern = reveal(length, groups, fill)
    reach = (pattern.visible | torch.eye(pattern.rows, dtype=torch.bool)).double()
    for _ in range(6):  # 64 layers, more than the longest path
        reach = (reach @ reach > 0).double()
    time = torch.tensor(times(length, groups))[pattern.position_in_order]
    content = ~pattern.is_masked
    for row, (kind, index, clock) in enumerate(kinds(pattern, groups)):
        reached = reach[row].bool() & content
        assert torch.equal(reached, content & (time <= clock)), f"{kind} {index}"


def test_numbers_of_rows_at_224_pixels():
    assert [pattern(196, 147).rows for pattern in (mim, pet, mapet)] == [197, 343, 489]


@pytest.mark.parametrize(("length", "num_masked"), [(1, 1), (9, 4), (12, 12), (49, 37), (196, 147), (256, 100)])
def test_numbers_of_rows_in_general(length, num_masked):
    assert mim(length, num_masked).rows == mim(length, num_masked).keys == 1 + length
    assert pet(length, num_masked).rows == length + num_masked
    assert pet(length, num_masked).keys == length
    assert mapet(length, num_masked).rows == length + 2 * num_masked - 1
    assert mapet(length, num_masked).keys == length + num_masked


@pytest.mark.parametrize(("length", "num_masked"), [(1, 1), (9, 4), (12, 12)])
def test_mim_reads_everything(length, num_masked):
    assert mim(length, num_masked).visible.all()


@pytest.mark.parametrize(("length", "groups"), [(4, []), (4, [0]), (4, [2, 0, 1]), (4, [-1, 2]), (4, [5]), (4, [3, 2])])
@pytest.mark.parametrize("fill", [True, False])
def test_invalid_groups(length, groups, fill):
    with pytest.raises(ValueError, match="groups"):
        reveal(length, groups, fill)


@pytest.mark.parametrize("name", NAMED)
def test_drawing(name):
    pattern = NAMED[name](5, 3)
    header, *lines = str(pattern).splitlines()
    assert len(header.split()) == pattern.keys
    assert len(lines) == pattern.rows
    marks = [[mark == "■" for mark in line if mark in "■·"] for line in lines]
    assert torch.equal(torch.tensor(marks), pattern.visible[:, : pattern.keys])
    assert [line.startswith("▶") for line in lines] == [row in pattern.predict for row in range(pattern.rows)]
    labels = [line.lstrip("▶ ").split()[0] for line in lines]
    expected = zip(pattern.is_masked.tolist(), pattern.position_in_order.tolist(), strict=True)
    assert labels == [f"{'?' * is_masked}{index}" for is_masked, index in expected]
    assert header.split() == labels[: pattern.keys]


@pytest.mark.parametrize(("length", "groups", "fill"), cases(40, seed=9))
def test_each_row_reads_one_contiguous_window(length, groups, fill):
    visible = reveal(length, groups, fill).visible
    for row in visible:
        seen = row.nonzero().flatten()
        assert torch.equal(seen, torch.arange(seen[0], seen[-1] + 1))
        assert not fill or len(seen) == 1 + length


def test_patterns_are_equal_to_themselves_alone():
    """Tensors have no single answer to ==, so fields are not compared."""
    pattern = mapet(4, 3)
    assert pattern == pattern
    assert pattern != mapet(4, 3)


def test_a_pattern_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        mapet(4, 3).length = 5


def test_columns_of_a_drawing_stand_under_their_names():
    header, *lines = str(NAMED["mapet"](5, 3)).splitlines()
    assert {len(line) for line in lines} == {len(header)}
    places = {place for line in lines for place, mark in enumerate(line) if mark in "■·"}
    assert places == {place for place, mark in enumerate(header) if mark.isdigit()}
