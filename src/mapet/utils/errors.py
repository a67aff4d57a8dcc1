"""What a user is told when something of theirs does not fit: one line with the thing, the reason and the way out."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


class MapetError(Exception):
    """A mistake that the user can correct. The command line prints it as one line and exits with code 2.

    The text names settings as options, ``--max-images``. ``str`` gives the form for Python, ``max_images``.
    """

    def __str__(self) -> str:
        return re.sub(r"(?<![\w-])--([a-z][\w-]*)", lambda option: option[1].replace("-", "_"), self.option_text)

    @property
    def option_text(self) -> str:
        """The text for the command line."""
        return super().__str__()


# What a setting or choice is called elsewhere.
OTHER_NAMES = {
    "beit": "mim",
    "simmim": "mim",
    "beit2": "mim",
    "num-workers": "workers",
    "jobs": "workers",
    "batch": "batch-size",
    "bs": "batch-size",
    "learning-rate": "lr",
    "base-learning-rate": "base-lr",
    "wd": "weight-decay",
    "output": "out",
    "output-dir": "out",
    "dataset": "data",
    "data-dir": "data",
    "device": "accelerator",
    "gpus": "devices",
    "arch": "model",
    "input-size": "image-size",
    "img-size": "image-size",
    "mask-fraction": "mask-ratio",
    "fp32": "float32",
    "fp16": "bfloat16",
    "bf16": "bfloat16",
    "amp": "precision",
    "resume-from": "resume",
}


def similar(name: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that ``name`` most likely means, whatever its case, ``_`` or ``-``; None if none is near."""
    spelled = {_plain(one): one for one in sorted(names)}
    asked = OTHER_NAMES.get(_plain(name), "")
    if asked in spelled:
        return spelled[asked]
    close = get_close_matches(_plain(name), spelled, n=1, cutoff=0.6)
    return spelled[close[0]] if close else None


def nearest(name: str, names: Iterable[str]) -> str:
    """``' Did you mean "mapet"?'`` for the name closest to ``name``, or the list of ``names`` where none is close."""
    known = sorted(names)
    close = similar(name, known)
    return f' Did you mean "{close}"?' if close else f" Known: {', '.join(known)}."


def _plain(name: str) -> str:
    return name.lower().removeprefix("--").replace("_", "-")
