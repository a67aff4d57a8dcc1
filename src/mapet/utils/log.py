"""The package's one logger, ``mapet``: what a person reads while a verb works.

Records of processes other than rank 0 are dropped. Nothing is printed unless a handler is attached: the command line
attaches one to stdout; in Python, ``logging.basicConfig(level="INFO", format="%(message)s")`` does.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mapet.utils.process_group import first_process

FABRIC = "lightning_fabric"  # the logger of Lightning Fabric
log = logging.getLogger("mapet")
log.addFilter(lambda record: first_process())


def without_fabric() -> None:
    """Keep the lines of Lightning Fabric, once it is imported, off the screen; a run's log.txt still gets them."""
    theirs = logging.getLogger(FABRIC)
    theirs.handlers = [one for one in theirs.handlers if type(one) is not logging.StreamHandler]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep records from the handlers attached so far; those attached inside, such as a run's log.txt, get them."""
    handlers, propagate = log.handlers, log.propagate
    log.handlers, log.propagate = [], False
    try:
        yield
    finally:
        log.handlers, log.propagate = handlers, propagate
