"""``mapet tokenizer VERB``: make a tokenizer, bring one, look at one."""

from importlib import import_module

from mapet.utils.errors import MapetError, nearest

VERBS = {
    "fit": "k-means over a frozen teacher's features (with CLIP: k-CLIP)",
    "train-vqkd": "train a VQ-KD tokenizer (BEiT v2) on a teacher's features",
    "import": "published weights (VQ-KD, DALL-E, VQGAN) into a folder",
    "inspect": "health of a tokenizer, and images of its codes",
}


def usage() -> str:
    """The help of ``mapet tokenizer`` itself."""
    verbs = "\n".join(f"  {verb:<12}{what}" for verb, what in VERBS.items())
    return (
        "usage: mapet tokenizer VERB [options]\n\n"
        f"{verbs}\n\nmapet tokenizer VERB --help lists a verb's options.\n"
        "mapet tokenize writes the tokens of all images."
    )


def command(arguments: list[str]) -> int:
    """Run one of ``VERBS``."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        raise MapetError(f'There is no verb "tokenizer {verb}".{nearest(verb, VERBS)}')
    module = import_module(f"mapet.cli.tokenizer.{verb.replace('-', '_')}{'_' * (verb == 'import')}")
    code: int = module.command(rest)
    return code
