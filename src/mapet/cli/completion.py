"""Completion of verbs and options in a shell."""

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import make_dataclass
from functools import reduce
from importlib import import_module
from operator import or_
from typing import Annotated, Any

from mapet.cli.options import leaves, table
from mapet.cli.verbs import GROUPS, SUBVERBS, VERBS, module
from mapet.utils.errors import MapetError

SHELLS = ("bash", "zsh", "fish", "tcsh")


def completion(shell: str = "") -> str:
    """The script that a shell evaluates.

    Raises:
        MapetError: another shell, or one whose script needs a package that is not installed.
    """
    import tyro

    if shell not in SHELLS:
        raise MapetError(f"--print-completion needs a shell: {', '.join(SHELLS)}.")
    names = [name for names in GROUPS.values() for name in names if name != "tokenizer"]
    inner = _either({name: _options(f"tokenizer {name}") for name in SUBVERBS}, "tokenizer ")
    tokenizer = make_dataclass("tokenizer", [("verb", inner)])
    every = _either({**{name: _options(name) for name in names}, "tokenizer": tokenizer})
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
    script, refusal = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(script), redirect_stderr(refusal):
            tyro.cli(every, args=["--tyro-print-completion", shell], prog="mapet", config=config)
    except SystemExit as end:
        if end.code:
            raise MapetError(" ".join(refusal.getvalue().split())) from None
    except ImportError as error:
        raise MapetError(f"Completion in {shell} needs the package {error.name}: pip install {error.name}.") from error
    return script.getvalue().strip()


def _options(verb: str) -> Any:
    return table({one.name: one.hint for one in leaves(import_module(module(verb)).Options())})


def _either(kinds: dict[str, Any], prefix: str = "") -> Any:
    """A choice of subcommands."""
    import tyro

    choices = (
        Annotated[kind, tyro.conf.subcommand(name, description=VERBS[prefix + name].about)]
        for name, kind in kinds.items()
    )
    return reduce(or_, choices)
