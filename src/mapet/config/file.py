"""Settings as YAML."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from mapet.config.setting import group
from mapet.utils.errors import MapetError, reason
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

    found = content(path)
    try:
        return TypeAdapter(kind).validate_python(upgraded(found, kind))
    except ValidationError as error:
        raise refusal(error, kind, f"{path}: ") from error
    except MapetError as error:
        raise MapetError(f"{path}: {error.option_text}") from error


def read_run(path: str | Path, kind: type[T]) -> T:
    """As ``read``, of the file of a run or comparison, in which ``save`` wrote all settings.

    Raises:
        MapetError: as ``read``, or the file is empty or was cut.
    """
    found = content(path)
    if not isinstance(found, dict) or not {"data", "recipe"} & found.keys() or not _ends_with(found, kind):
        raise MapetError(f"{path} is damaged: it {'lacks settings' if found else 'is empty'}. Restore it.")
    return read(path, kind)


def _ends_with(content: dict[str, Any], kind: Any) -> bool:
    """Whether the last setting of ``kind`` is there, which a cut file lacks; it has had its name since version 0.1."""
    last = fields(kind)[-1]
    inner, value = group(last), content.get(last.name)
    return last.name in content and (inner is None or (isinstance(value, dict) and _ends_with(value, inner)))


def content(path: str | Path) -> Any:
    """What a YAML file holds, unchecked; {} if it is empty.

    Raises:
        MapetError: no such file, or not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise MapetError(f"Cannot read the recipe {path}: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise MapetError(f"{path} is not YAML: {reason(error)}") from error
    except RecursionError as error:
        raise MapetError(f"{path} is not YAML of settings: it is nested too deeply.") from error
    except UnicodeDecodeError as error:
        raise MapetError(f"{path} is not YAML: it is not text in UTF-8 (byte {error.start}).") from error
    except Exception as error:  # PyYAML builds dates and numbers, whose exceptions vary
        raise MapetError(
            f"{path} is not YAML: a value like a date or a number is none ({reason(error)}); put it in quotes if it is "
            "text."
        ) from error


def _plain(value: Any) -> Any:
    nested = isinstance(value, dict)
    return {n: _plain(v) for n, v in value.items()} if nested else list(value) if isinstance(value, tuple) else value
