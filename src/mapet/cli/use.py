"""What ``mapet embed`` and ``mapet predict`` share: images on standard input, and an interruption."""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from mapet.utils.log import log

T = TypeVar("T")


def images_of(word: str) -> Any:
    """IMAGES, or the paths on standard input, one a line, for ``-``."""
    if word != "-":
        return word
    return [os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines() if line]


def continued(work: Callable[[], T]) -> T | None:
    """The result of work that running again continues; None after Ctrl-C."""
    try:
        return work()
    except KeyboardInterrupt:
        log.info("Interrupted. Run the same command to continue.")
        return None
