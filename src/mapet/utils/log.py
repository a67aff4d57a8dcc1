"""The package's one logger, and the lines that it prints."""

import sys


def say(line: str = "") -> None:
    """Print one line."""
    print(line, flush=True, file=sys.stdout)


def silent(line: str = "") -> None:
    """Print nothing."""
