"""The command line: ``mapet VERB``. Nothing heavy is imported before a verb is known."""

import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from textwrap import TextWrapper

from mapet.cli.output import muted, print_json, take_flags
from mapet.cli.verbs import DISTRIBUTED, GROUPS, VERBS, module
from mapet.utils.errors import MapetError, nearest
from mapet.utils.log import log
from mapet.utils.process_group import launched
from mapet.utils.signals import never_lost

OUT_OF_MEMORY = "Out of device memory: lower --micro-batch-size, --batch-size or --samples."


def usage() -> str:
    """The help of ``mapet`` itself."""
    groups = "\n\n".join(
        "\n".join([f"{group}:", *(f"  {verb:<15}{VERBS[verb].about}" for verb in verbs)])
        for group, verbs in GROUPS.items()
    )
    return (
        "usage: mapet VERB [options]\n\n"
        "Pre-train vision transformers on unlabelled images by predicting tokens.\n\n"
        f"{groups}\n\n"
        "mapet VERB --help       the options that people use, and examples\n"
        "mapet VERB --help-all   all options\n"
        "mapet VERB --quiet      nothing but refusals; --json: the result as last line\n"
        "mapet --version\n"
        "mapet --print-completion bash|zsh|tcsh\n"
        '    completion of verbs and options: eval "$(mapet --print-completion bash)"'
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; a mistake of the user is one line on stderr and exit code 2."""
    _encode()
    try:
        arguments, flags = take_flags(list(sys.argv[1:] if argv is None else argv))
        with never_lost(), muted(flags), printing():
            code = _run(arguments)
        if "--json" in flags:
            print_json(code)
        sys.stdout.flush()
        return code
    except MapetError as error:
        return _fail(error.option_text)
    except KeyboardInterrupt as end:
        return _fail("interrupted.", 128 + getattr(end, "number", signal.SIGINT))
    except BrokenPipeError:
        _close_stdout()
        return 141
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):
            return _fail(OUT_OF_MEMORY)
        from mapet.data.workers import workers_failed

        if (named := workers_failed(error)) is None:
            raise
        return _fail(named.option_text)
    except OSError as error:
        return _fail(f"cannot use {error.filename or 'a file'}: {error.strerror or error}.")


@contextmanager
def printing() -> Iterator[None]:
    """Print the log's lines on stdout."""
    handler, level = _Printer(sys.stdout), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class _Printer(logging.StreamHandler):  # type: ignore[type-arg]
    def format(self, record: logging.LogRecord) -> str:
        """The text; on a terminal, long lines continue below their second word, and no word is broken."""
        text = super().format(record)
        if not self.stream.isatty():
            return text
        columns = max(40, shutil.get_terminal_size().columns)
        fill = TextWrapper(columns, subsequent_indent=" " * 10, break_long_words=False, break_on_hyphens=False).fill
        return "\n".join(map(fill, text.split("\n")))

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise, as ``print`` does: a closed pipe ends the verb."""
        raise


def _run(arguments: list[str]) -> int:
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help", "--help-all", "help"):
        print(usage())
        return 0
    if verb == "--version":
        from mapet.utils.versions import versions

        print(f"mapet {versions(['mapet'])['mapet'] or '(source folder)'}")
        return 0
    if verb == "--print-completion":
        from mapet.cli.completion import completion

        print(completion(*rest[:1]))
        return 0
    names = [name for names in GROUPS.values() for name in names]
    if verb not in names:
        raise MapetError(f'There is no verb "{verb}".{nearest(verb, names) or " See mapet --help."}')
    if verb not in DISTRIBUTED and launched().rank:
        raise MapetError(f"mapet {verb} works in one process: start it without torchrun, and once under srun.")
    code: int = import_module(module(verb)).command(rest)
    return code


def _fail(line: str, code: int = 2) -> int:
    rank = os.environ.get("RANK")
    line = f"mapet: {line}" if rank is None else f"mapet (rank {rank}): {line}"
    print(line, file=sys.stderr)
    if report := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun prints its content last
        with suppress(OSError):
            Path(report).write_text(json.dumps({"message": line, "timestamp": int(time.time())}))
    return code


def _encode() -> None:
    """Print what the stream's encoding lacks as ``?``."""
    for stream in (sys.stdout, sys.stderr):
        if not (stream.encoding or "").lower().startswith("utf") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _close_stdout() -> None:
    """Send what is still buffered nowhere, or Python complains of the closed pipe at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
