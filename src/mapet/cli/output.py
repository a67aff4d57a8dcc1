"""``--quiet`` and ``--json``, which all verbs have: less on the screen, and the result for programs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import fields, is_dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
FLAGS = ("--quiet", "--json")
_results: list[Any] = []


def made(result: T) -> T:
    """Note the result of a verb for ``--json``, unless it is None, and return it."""
    if result is not None:
        _results[:] = [result]
    return result


def take_flags(arguments: list[str]) -> tuple[list[str], set[str]]:
    """The arguments without ``FLAGS``, and those flags that were among them."""
    return [word for word in arguments if word not in FLAGS], {word for word in arguments if word in FLAGS}


@contextmanager
def muted(flags: set[str]) -> Iterator[None]:
    """Without text and progress if ``--quiet`` is given; what a verb refuses is still printed, by who calls this."""
    _results.clear()
    if "--quiet" not in flags:
        yield
        return
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        yield


def print_json(code: int) -> None:
    """Print one line with the exit code and the result of the verb; null if it has none."""
    print(json.dumps({"exit_code": code, "result": plain(_results[0]) if _results else None}))


def plain(value: Any) -> Any:
    """A result as JSON: folders and files by path, data classes by field, without arrays and modules."""
    from mapet.engine.run import Run

    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Run):
        return {"run": str(value.folder), "step": value.completed, "scores": value.scores}
    if isinstance(value, Mapping):
        return {_key(name): plain(one) for name, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        named = {one.name: getattr(value, one.name) for one in fields(value)}
        return {name: plain(one) for name, one in named.items() if _is_plain(one)}
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if getattr(value, "path", None) is not None or hasattr(value, "folder"):
        where = str(getattr(value, "path", None) or value.folder)
        return {"path": where, "count": len(value)} if hasattr(value, "__len__") else {"path": where}
    if isinstance(value, Sequence):
        return [plain(one) for one in value]
    return str(value)


def _key(name: Any) -> str:
    """("fog", 3) → "fog 3"."""
    return " ".join(map(str, name)) if isinstance(name, tuple) else str(name)


def _is_plain(value: Any) -> bool:
    return not (hasattr(value, "dtype") or hasattr(value, "state_dict"))
