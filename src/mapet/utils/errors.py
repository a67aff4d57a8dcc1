"""What a user is told when something of theirs does not fit: one line with the thing, the reason and the way out."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

# An option, and before it the command that it belongs to, if the text names one: "run mapet export RUN --to timm".
OPTION = re.compile(r"((?:mapet|srun)(?: (?!needs|takes|has|bench)[^\s,;]+)* )?(?<![\w-])--([a-z][\w-]*)")


class MapetError(Exception):
    """A mistake that the user can correct. The command line prints it as one line and exits with code 2.

    The text names settings as options, ``--max-images``. ``str`` gives the form for Python, ``max_images``.
    """

    def __str__(self) -> str:
        return OPTION.sub(lambda found: found[0] if found[1] else found[2].replace("-", "_"), self.option_text)

    @property
    def option_text(self) -> str:
        """The text for the command line."""
        return super().__str__()


def nearest(name: str, names: Iterable[str]) -> str:
    """``' Did you mean "mapet"?'`` for the name closest to ``name``, or the list of ``names`` where none is close."""
    known = sorted(names)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f' Did you mean "{close[0]}"?' if close else f" Known: {', '.join(known)}."
