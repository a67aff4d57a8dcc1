"""What a user is told when something of theirs does not fit: one line with the thing, the reason and the way out."""

from collections.abc import Iterable
from difflib import get_close_matches


class MapetError(Exception):
    """A mistake that the user can mend. The command line prints it as one line and ends with exit code 2."""


def nearest(name: str, names: Iterable[str]) -> str:
    """``' Did you mean "mapet"?'`` for the name closest to ``name``, or the list of ``names`` where none is close."""
    known = sorted(names)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f' Did you mean "{close[0]}"?' if close else f" Known: {', '.join(known)}."
