"""The package's one logger, ``mapet``: what a person reads while a verb works.

Records of processes other than rank 0 are dropped. Nothing is printed unless a handler is attached: the command line
attaches one to stdout; in Python, ``logging.basicConfig(level="INFO", format="%(message)s")`` does.
"""

import logging
import sys

from mapet.utils.process_group import first_process

log = logging.getLogger("mapet")
log.addFilter(lambda record: first_process())


def say(line: str = "") -> None:
    """Print one line."""
    print(line, flush=True, file=sys.stdout)


def silent(line: str = "") -> None:
    """Print nothing."""
