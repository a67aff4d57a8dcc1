"""The command line: ``mapet VERB``. Nothing heavy is imported before a verb is known."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from mapet.utils.errors import MapetError, nearest
from mapet.utils.log import log

VERBS = {
    "quickstart": "CIFAR-10 from nothing to a pre-trained encoder and its numbers",
    "pack": "decode all images once, into a folder that loads fast",
    "tokenizer": "fit, train, import or inspect a tokenizer",
    "tokenize": "write one token per patch for all images",
    "pretrain": "train an encoder without labels by predicting tokens",
    "evaluate": "accuracy of an encoder under several protocols",
    "knn": "k-nearest-neighbour accuracy of an encoder",
    "linear": "linear-probe accuracy of an encoder",
    "attentive": "attentive-probe accuracy of an encoder",
    "fewshot": "accuracy of an encoder from few labelled images a class",
    "finetune": "train an encoder on as a classifier, and its accuracy",
    "compare": "several objectives under one setting: a table, and figures",
    "export": "write an encoder for other libraries",
    "bench": "how fast a training step is here, and the machine's limit",
    "show": "draw a recipe's attention pattern and count its cost",
}


def usage() -> str:
    """The help of ``mapet`` itself."""
    verbs = "\n".join(f"  {verb:<12}{what}" for verb, what in VERBS.items())
    return (
        "usage: mapet VERB [options]\n\n"
        "Pre-train vision transformers on unlabelled images by predicting tokens.\n\n"
        f"{verbs}\n\nmapet VERB --help lists a verb's options."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; a user's mistake is one line on stderr and exit code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from mapet.utils.versions import versions

        print(f"mapet {versions(['mapet'])['mapet'] or 'from its source folder'}")
        return 0
    try:
        with printing():
            return _run(arguments[0], arguments[1:])
    except MapetError as error:
        print(f"mapet: {error.option_text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mapet: interrupted; what was written already stays as it is.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        print("mapet: the device's memory does not suffice: lower --micro-batch-size, --batch-size or --samples.",
              file=sys.stderr)  # fmt: skip
        return 2
    except OSError as error:
        print(f"mapet: {error.filename or 'a file'} cannot be used: {error.strerror or error}.", file=sys.stderr)
        return 2


@contextmanager
def printing() -> Iterator[None]:
    """Print the log's lines on stdout."""
    handler, level = logging.StreamHandler(sys.stdout), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _run(verb: str, arguments: list[str]) -> int:
    if verb not in VERBS:
        raise MapetError(f'There is no verb "{verb}".{nearest(verb, VERBS)}')
    module = import_module(f"mapet.cli.{verb}")
    code: int = module.command(arguments)
    return code
