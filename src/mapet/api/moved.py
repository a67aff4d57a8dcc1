"""Inputs of a run that lie elsewhere than when it was begun."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mapet.api.settings import absolute
from mapet.config.flat import dotted, paths, updated
from mapet.utils.errors import MapetError

R = TypeVar("R")
MOVABLE = ("data", "tokens", "tokenizer", "teacher_weights")  # flat names of the settings that a resume may give anew
CIFAR = "cifar10"  # not a path


@dataclass(frozen=True)
class Moved:
    """Where inputs lay, and where they lie now, by flat name."""

    was: Mapping[str, str]
    now: Mapping[str, str]

    def __bool__(self) -> bool:
        return bool(self.now)

    def __str__(self) -> str:
        return ", ".join(f"{self.was[name]} → {path}" for name, path in self.now.items())


def relocated(recipe: R, folder: str | Path, given: Mapping[str, Any]) -> tuple[R, Moved]:
    """The recipe of the run in ``folder`` with the paths at which inputs lie now, and which of them are new.

    Raises:
        MapetError: a path for an input that the run does not have, or an input that is not there.
    """
    known, before = paths(recipe), dotted(recipe)
    was = {name: before.get(known.get(name, "")) for name in MOVABLE}
    for name in given:
        if not was[name]:
            raise MapetError(f"{_flag(name)} does not apply to {folder}, which was begun without it; remove it.")
    now = {name: absolute(os.fspath(path), CIFAR) for name, path in given.items()}
    now = {name: path for name, path in now.items() if path != was[name]}
    for name in ("data", "tokens"):  # the others may be needed no more
        path = {**was, **now}[name]
        if path and path != CIFAR and not os.path.exists(path):
            raise MapetError(f"{folder} reads {path}, which does not exist: say where that is now, {_flag(name)} PATH.")
    return updated(recipe, **now), Moved({name: str(was[name]) for name in now}, now)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
