"""What is put aside comes back whole, wherever a kill ended the moving."""

import json
from contextlib import suppress
from pathlib import Path

import pytest

from mapet.utils import owned
from mapet.utils.errors import MapetError
from mapet.utils.owned import ASIDE, drop, is_aside, put_aside, put_back

TREE = {r"[ab]\.txt": None, "inner": {r"c\.txt": None}}
FILES = {"a.txt": "a", "b.txt": "b", "inner/c.txt": "c", "theirs.txt": "t"}


class Killed(BaseException):
    pass


def written(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def killed_at(number, patched):
    """Each change of the disk is one call; the ``number``-th does not happen."""
    left = [number]

    def counted(change):
        def wrapped(*given, **named):
            if not left[0]:
                raise Killed
            left[0] -= 1
            return change(*given, **named)

        return wrapped

    for name in ("rename", "rmdir", "unlink", "mkdir"):
        patched.setattr(Path, name, counted(getattr(Path, name)))


@pytest.mark.parametrize("number", range(13))
def test_a_kill_at_any_moment_is_undone(tmp_path, monkeypatch, number):
    written(tmp_path, FILES)
    done = False
    with monkeypatch.context() as patched:
        killed_at(number, patched)
        with suppress(Killed):
            put_aside(tmp_path, TREE)
            written(tmp_path, {"a.txt": "new"})
            done = True
            put_back(tmp_path, TREE)
    assert is_aside(tmp_path) or files(tmp_path) == FILES
    again = put_back(tmp_path, TREE)
    assert files(tmp_path) == FILES
    assert again or not number or done
    assert not is_aside(tmp_path)
    assert not put_back(tmp_path, TREE)


@pytest.mark.parametrize("number", range(9))
def test_what_is_dropped_is_gone_also_after_a_kill(tmp_path, monkeypatch, number):
    written(tmp_path, {"metrics.csv": "a", "tokens/complete": "b", "theirs.txt": "t"})
    put_aside(tmp_path, owned.RUN)
    written(tmp_path, {"metrics.csv": "new"})
    with monkeypatch.context() as patched:
        killed_at(number, patched)
        with suppress(Killed):
            drop(tmp_path)
    if number:
        assert not put_back(tmp_path, owned.RUN)
        assert files(tmp_path) == {"metrics.csv": "new", "theirs.txt": "t"}
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(ASIDE)]
    else:
        assert put_back(tmp_path, owned.RUN)
        assert files(tmp_path)["metrics.csv"] == "a"


def test_a_foreign_file_in_the_way_stays(tmp_path):
    written(tmp_path, {"a.txt": "a"})
    put_aside(tmp_path, TREE)
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(MapetError, match=r"a.txt is in the way of the earlier"):
        put_back(tmp_path, TREE)
    (tmp_path / "a.txt").rmdir()
    assert put_back(tmp_path, TREE)
    assert files(tmp_path) == {"a.txt": "a"}


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"format": "other"}'])
def test_a_mark_is_of_one_format(tmp_path, content):
    owned.mark(tmp_path / "run", "mapet run")
    assert owned.is_marked(tmp_path / "run", "mapet run")
    assert not owned.is_marked(tmp_path / "run", "mapet tokenizer")
    assert json.loads((tmp_path / "run" / owned.MARK).read_text()).keys() == {"format", "version"}
    (tmp_path / "run" / owned.MARK).write_text(content)
    assert not owned.is_marked(tmp_path / "run", "mapet run")
