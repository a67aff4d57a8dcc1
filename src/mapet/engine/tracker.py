"""Metrics for Trackio or Weights & Biases, besides metrics.csv and TensorBoard, which are always written."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mapet.engine.origin import settings
from mapet.utils.errors import MapetError, reason
from mapet.utils.log import log

PROJECT = "mapet"
Track = Callable[[int, Mapping[str, float]], None]  # step, metrics


def require_tracker(name: str) -> None:
    """Require the package of a tracker; "none" has none.

    Raises:
        MapetError: it is not installed.
    """
    if name != "none" and find_spec(name) is None:
        raise MapetError(f"--logger {name} needs its package: pip install 'mapet[{name}]'.")


@contextmanager
def tracking(name: str, folder: Path) -> Iterator[Track | None]:
    """Log steps to the tracker ``name`` until the end of the context; None without one.

    A resumed run continues its entry, which is named by the folder and a hash of its path. The recipe goes along
    without paths. If the tracker fails, that is noted, and the training goes on without it.

    Args:
        name: "trackio", "wandb" or "none".
        folder: of the run.
    """
    run = None if name == "none" else _begun(name, folder)
    if run is None:
        yield None
        return
    failed = False

    def track(step: int, metrics: Mapping[str, float]) -> None:
        nonlocal failed
        if not failed:
            failed = not _tried(name, lambda: run.log(dict(metrics), step=step))

    try:
        yield track
    finally:
        _tried(name, run.finish)


def _begun(name: str, folder: Path) -> Any:
    place = folder.absolute()
    title = f"{place.name}-{blake2b(str(place).encode('utf-8', 'surrogateescape'), digest_size=4).hexdigest()}"
    more = {"id": title} if name == "wandb" else {}
    found: list[Any] = []
    config = settings(folder)
    _tried(
        name,
        lambda: found.append(
            import_module(name).init(project=PROJECT, name=title, config=config, resume="allow", **more)
        ),
    )
    return found[0] if found else None


def _tried(name: str, call: Callable[[], object]) -> bool:
    """Whether a call of the tracker, whose exceptions vary, did not fail."""
    try:
        call()
    except Exception as error:
        log.info(f"note      {name} is not written any more ({type(error).__name__}: {reason(error)}); metrics.csv is")
        return False
    return True
