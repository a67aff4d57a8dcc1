"""Names of objectives: the built-in ones, those that were registered, and ``file.py:Class`` for one in a user's file.

Recipes hold the name. The table in ``mapet.build.objectives``, which has the same built-in names, builds what it stands
for.
"""

from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from mapet.utils.errors import MapetError, nearest, similar

BuiltIn = Literal["mapet", "pet", "mim", "cae", "mae"]
BUILT_IN: dict[str, bool] = {"mapet": True, "pet": True, "mim": True, "cae": True, "mae": False}
"""Whether each reads visual tokens."""
_registered: dict[str, Any] = {}
_loaded: dict[str, Any] = {}


def register(name: str, constructor: Any) -> None:
    """Let ``name`` stand for a user's objective in this process.

    Raises:
        MapetError: a built-in name, or one that is not a word.
    """
    if name in BUILT_IN or not name.replace("-", "_").isidentifier():
        kind = "is a built-in objective" if name in BUILT_IN else "must consist of letters, digits, _ and -"
        raise MapetError(f'The name "{name}" of an objective {kind}: give another name.')
    _registered[name] = constructor


def require_objective(name: str) -> None:
    """Refuse a name that stands for nothing. A file need not exist here: a finished run is read without it.

    Raises:
        MapetError: with the nearest name.
    """
    if name not in BUILT_IN and name not in _registered and _file(name) is None:
        known = known_objectives()
        close = similar(name, known)
        hint = f' Did you mean "{close}"?' if close else ""
        raise MapetError(f'--objective must be one of {", ".join(known)}, or file.py:Class, got "{name}".{hint}')


def known_objectives(names: Iterable[str] = ()) -> list[str]:
    """The short names of all objectives, those among ``names`` that are classes in files included."""
    return [*BUILT_IN, *_registered, *(short_name(name) for name in names if _file(name))]


def is_own(name: str) -> bool:
    """Whether the objective is a user's own: such a one may use all settings."""
    return name not in BUILT_IN


def short_name(name: str) -> str:
    """The name without a file: ``Class`` for ``file.py:Class``."""
    return name if _file(name) is None else name.rpartition(":")[2]


def absolute_name(name: str) -> str:
    """The name with its file's absolute path."""
    path = _file(name)
    return name if path is None else f"{path.expanduser().absolute()}:{short_name(name)}"


def reads_tokens(name: str) -> bool:
    """Whether the objective needs visual tokens; one of a user's own does unless its ``reads_tokens`` is false."""
    return BUILT_IN[name] if name in BUILT_IN else bool(getattr(constructor(name), "reads_tokens", True))


def constructor(name: str) -> Any:
    """What makes a user's own objective: as it was registered, or the class in the file.

    Raises:
        MapetError: not registered in this process, no such file, or no such class in it.
    """
    require_objective(name)
    path = _file(name)
    if path is None:
        return _registered[name]
    if name not in _loaded:
        _loaded[name] = _load(path.expanduser().absolute(), short_name(name))
    return _loaded[name]


def file_hash(name: str) -> str | None:
    """Hash of the content of the objective's file, in 32 hexadecimal digits; None for one without a file."""
    path = _file(name)
    return None if path is None else blake2b(path.expanduser().read_bytes(), digest_size=16).hexdigest()


def _file(name: str) -> Path | None:
    path, colon, last = name.rpartition(":")
    return Path(path) if colon and path.endswith(".py") and last.isidentifier() else None


def _load(path: Path, class_name: str) -> Any:
    import sys
    from importlib.util import module_from_spec, spec_from_file_location

    if not path.is_file():
        raise MapetError(f"--objective {path}:{class_name} names a file that does not exist.")
    module_name = f"mapet_objective_{blake2b(str(path).encode(), digest_size=8).hexdigest()}"
    spec = spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    classes = [name for name, value in vars(module).items() if isinstance(value, type)]
    if class_name not in classes:
        raise MapetError(f"{path} has no class {class_name}.{nearest(class_name, classes)}")
    return getattr(module, class_name)
