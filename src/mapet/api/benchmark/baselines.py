"""Finds the baselines, which are in the repository and not in the package."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from mapet.utils.errors import MapetError


def find() -> Any:
    """The Python package ``benchmarks/baselines`` of the repository.

    Raises:
        MapetError: neither this source file nor the current directory is in a clone of the repository.
    """
    for root in (Path(__file__).parents[4], Path.cwd()):
        folder = root / "benchmarks"
        if (folder / "baselines" / "__init__.py").is_file():
            if str(folder) not in sys.path:
                sys.path.append(str(folder))
            return import_module("baselines")
    raise MapetError("--baseline needs benchmarks/baselines of the repository: run mapet bench in a clone of it.")
