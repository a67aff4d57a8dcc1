"""Print the lowest version that pyproject.toml allows of each library, as constraints for pip."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest(requirements: list[str]) -> list[str]:
    """``name==version`` for each requirement with a lower bound."""
    found = []
    for requirement in map(Requirement, requirements):
        bounds = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        found += [f"{requirement.name}=={bound}" for bound in bounds]
    return found


if __name__ == "__main__":
    project = tomllib.loads(PROJECT.read_text())["project"]
    print("\n".join(lowest([*project["dependencies"], *project["optional-dependencies"]["dev"]])))
