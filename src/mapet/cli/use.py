"""What ``mapet embed``, ``predict`` and ``masks`` share: images on standard input, and an interruption."""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from mapet.utils.errors import MapetError
from mapet.utils.log import log

T = TypeVar("T")
OF_IMAGES = """IMAGES is a folder, packed or not, cifar10, a file, or - for paths on standard input, one a line.

Run the same command again to continue after an interruption."""


def images_of(word: str) -> Any:
    """IMAGES, or for ``-`` the paths on standard input: one a line, or separated by zero bytes (``find -print0``).

    Raises:
        MapetError: there is no standard input.
    """
    if word != "-":
        return word
    if sys.stdin is None:
        raise MapetError("IMAGES is -, and there is no standard input: give a folder or a file.")
    content = sys.stdin.buffer.read()
    lines = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [os.fsdecode(line) for line in lines if line]


def continued(work: Callable[[], T]) -> T | None:
    """The result of work that running again continues; None after Ctrl-C."""
    try:
        return work()
    except KeyboardInterrupt:
        log.info("Interrupted. Run the same command to continue.")
        return None
