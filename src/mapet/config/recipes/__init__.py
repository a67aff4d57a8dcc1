"""Complete settings of named experiments: each a function that returns a recipe and says what to expect of it."""

from collections.abc import Callable

from mapet.config.recipe import Recipe
from mapet.utils.errors import MapetError, nearest


def catalogue() -> dict[str, Callable[[], Recipe]]:
    """All pre-training recipes by name."""
    from mapet.config.recipes import cifar10, competitors, in1k

    found = {"cifar10-quickstart": cifar10.quickstart, "cifar10-vit-tiny": cifar10.vit_tiny}
    for size in ("tiny", "small", "base"):
        found[f"in1k-vit-{size}"] = getattr(in1k, f"vit_{size}")
    for method in ("beit", "beit2", "cae", "mae"):
        found[f"in1k-{method}-vit-base"] = getattr(competitors, f"{method}_vit_base")
    return found


def find(name: str) -> Recipe:
    """The recipe ``name``.

    Raises:
        MapetError: there is none.
    """
    known = catalogue()
    if name not in known:
        raise MapetError(f'There is no recipe "{name}" (a file would end in .yaml).{nearest(name, known)}')
    return known[name]()
