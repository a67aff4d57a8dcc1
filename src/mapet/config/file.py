"""Settings as YAML."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from mapet.utils.errors import MapetError
from mapet.utils.io import replace_file

T = TypeVar("T")


def save(recipe: Any, path: Path) -> None:
    """Write a dataclass of settings as YAML, whole or not at all, that ``read`` reads back to an equal one."""
    import yaml

    replace_file(path, yaml.safe_dump(_plain(asdict(recipe)), sort_keys=False, allow_unicode=True))


def read(path: str | Path, kind: type[T]) -> T:
    """Read settings of the dataclass ``kind`` from YAML, also of version 0.1; those not given have their defaults.

    Raises:
        MapetError: no such file, not YAML, an unknown setting, or a value that is refused.
    """
    from pydantic import TypeAdapter, ValidationError

    from mapet.config.refusal import refusal
    from mapet.config.upgrade import upgraded

    try:
        return TypeAdapter(kind).validate_python(upgraded(content(path), kind))
    except ValidationError as error:
        raise refusal(error, kind, f"{path}: ") from error
    except MapetError as error:
        raise MapetError(f"{path}: {error.option_text}") from error


def content(path: str | Path) -> Any:
    """What a YAML file holds, unchecked; {} if it is empty.

    Raises:
        MapetError: no such file, or not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text()) or {}
    except OSError as error:
        raise MapetError(f"Cannot read the recipe {path}: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise MapetError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from error


def _plain(value: Any) -> Any:
    nested = isinstance(value, dict)
    return {n: _plain(v) for n, v in value.items()} if nested else list(value) if isinstance(value, tuple) else value
