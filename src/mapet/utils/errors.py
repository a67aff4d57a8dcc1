"""Errors that a user can correct: one line with the setting, the value, the reason and the way out."""

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches

# An option, and before it the command that it belongs to, if the text names one: "run mapet export RUN --to timm".
OPTION = re.compile(r"((?:mapet|srun)(?: (?!needs|takes|has|bench)[^\s,;]+)* )?(?<![\w-])--([a-z][\w-]*)")
OTHER_NAMES = {  # what a setting or a choice is called elsewhere
    "beit": "mim",
    "simmim": "mim",
    "num-workers": "workers",
    "jobs": "workers",
    "batch": "batch-size",
    "bs": "batch-size",
    "learning-rate": "lr",
    "base-learning-rate": "base-lr",
    "wd": "weight-decay",
    "output": "out",
    "output-dir": "out",
    "input": "data",
    "dataset": "data",
    "data-dir": "data",
    "data-path": "data",
    "device": "accelerator",
    "gpus": "devices",
    "arch": "model",
    "input-size": "image-size",
    "img-size": "image-size",
    "amp": "precision",
    "bf16": "precision bfloat16",
    "fp16": "precision bfloat16",
    "fp32": "precision float32",
    "resume-from": "resume",
}
LONGEST_LIST = 12  # names that are listed where none is near
LONGEST_REASON = 120  # characters


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


def reason(error: BaseException) -> str:
    """Why something failed, in one plain line without a full stop, whichever library raised it."""
    if isinstance(error, UnicodeDecodeError):
        return f"not text in UTF-8, byte {error.start}"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON, line {error.lineno} column {error.colno}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f'"{error.args[0]}" is missing' if error.args else "an entry is missing"
    text = " ".join((error.option_text if isinstance(error, MapetError) else str(error)).split())
    if text.startswith("Error(s) in loading state_dict"):
        return "the weights do not fit the model"
    if type(error).__name__ == "SafetensorError":
        return f"not a whole safetensors file, {text.rpartition(': ')[2]}"
    text = text if len(text) <= LONGEST_REASON or isinstance(error, MapetError) else f"{text[:LONGEST_REASON]}…"
    return text.rstrip(".") or type(error).__name__


def similar(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of ``names`` that ``name`` most likely means, whatever its case, ``_`` or ``-``; None if none is near.

    The only name that begins with ``name`` is near.
    """
    spelled = {_plain(one): one for one in sorted(names)}
    asked = _plain(name)
    begins = [one for one in spelled if len(asked) > 2 and one.startswith(asked)]
    close = [other for other in OTHER_NAMES.get(asked, "").split() if other in spelled]
    close += begins if len(begins) == 1 else get_close_matches(asked, spelled, n=1, cutoff=cutoff)
    return spelled[close[0]] if close else None


def nearest(name: str, names: Iterable[str]) -> str:
    """``' Did you mean "mapet"?'`` for the name closest to ``name``, or the list of a few ``names``."""
    known = sorted(names)
    if close := similar(name, known):
        return f' Did you mean "{close}"?'
    return f" Known: {', '.join(known)}." if len(known) <= LONGEST_LIST else ""


def _plain(name: str) -> str:
    return name.lstrip("-").replace("_", "-").casefold()
