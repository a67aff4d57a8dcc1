"""``mapet tokenizer VERB``: make, import or inspect a tokenizer."""

from importlib import import_module

from mapet.cli.verbs import SUBVERBS, module
from mapet.utils.errors import MapetError, nearest


def usage() -> str:
    """The help of ``mapet tokenizer`` itself."""
    verbs = "\n".join(f"  {name:<12}{verb.about}" for name, verb in SUBVERBS.items())
    return (
        "usage: mapet tokenizer VERB [options]\n\n"
        f"{verbs}\n\n"
        "mapet tokenizer VERB --help lists the options of a verb.\n"
        "mapet tokenize writes the tokens of all images."
    )


def command(arguments: list[str]) -> int:
    """Run one of ``SUBVERBS``."""
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help", "--help-all", "help"):
        print(usage())
        return 0
    if verb not in SUBVERBS:
        raise MapetError(f'There is no verb "tokenizer {verb}".{nearest(verb, SUBVERBS)}')
    code: int = import_module(module(f"tokenizer {verb}")).command(rest)
    return code
