"""What tyro refuses, as errors of one line."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, get_args, get_origin

from mapet.cli.verbs import VERBS
from mapet.config.refusal import choices, wanted
from mapet.config.setting import plain
from mapet.utils.errors import MapetError, similar


@contextmanager
def refusing(arguments: Sequence[str], hints: Mapping[str, Any], verb: str) -> Iterator[None]:
    """Turn tyro's refusals of ``arguments`` into errors; ``hints`` are the types of the options, by flat name.

    Raises:
        MapetError: what is wrong; for versions of tyro that do not say it, where to look.
    """
    from tyro import _errors

    def refuse(event: Any) -> None:
        if tokens := getattr(event, "tokens", None):
            _refuse_unknown(tokens[0], hints, verb)
        if (argument := getattr(event, "argument", None)) is not None:
            _refuse_value(argument.field.intern_name, hints, arguments)

    try:
        with _errors.on_parse_error(refuse):
            yield
    except SystemExit:
        raise MapetError(f"mapet {verb} cannot read these options. See mapet {verb} --help.") from None


def _refuse_unknown(token: str, hints: Mapping[str, Any], verb: str) -> NoReturn:
    if not token.startswith("-"):
        raise MapetError(f'Unexpected "{token}": mapet {VERBS[verb].usage}')
    option = token.partition("=")[0]
    close = similar(option, [_option(name) for name in hints], cutoff=0.75)
    hint = f' Did you mean "{close}"?' if close else ""
    raise MapetError(f'mapet {verb} has no option "{option}".{hint} See mapet {verb} --help-all.')


def _refuse_value(name: str, hints: Mapping[str, Any], arguments: Sequence[str]) -> NoReturn:
    option, hint = _option(name), hints[name]
    index = max(i for i, word in enumerate(arguments) if word.partition("=")[0] == option)
    value = arguments[index].partition("=")[2]
    values = [value] if value else []
    for word in arguments[index + 1 :]:
        if word.startswith("--"):
            break
        values.append(word)
    if not values:
        raise MapetError(f"{option} needs a value.")
    size = max((len(get_args(kind)) for kind in (plain(hint), *get_args(hint)) if get_origin(kind) is tuple), default=1)
    got = " ".join(values[:size])
    close = similar(got, choices(hint))
    raise MapetError(f'{option} must be {wanted(hint)}, got "{got}".' + (f' Did you mean "{close}"?' if close else ""))


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
