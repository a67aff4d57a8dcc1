"""What the commands share that start from an encoder: FROM, and for evaluations the images and the printed scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mapet.api.encoders import KINDS
from mapet.cli.options import parse
from mapet.cli.output import made
from mapet.config.evaluate import EvaluateSettings
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from mapet.evals.score import Score

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """What is evaluated, on which images, and where the scores are kept."""

    run: str = ""
    """FROM: a run or export folder, an official-format checkpoint, or a timm model; the same as FROM."""
    data: str | None = None
    """Labelled images: a folder with one sub-folder per class, or cifar10; None: a run's, if they have a split."""
    out: str | None = None
    """JSON file to which the scores are added; None: a run's scores.json, and otherwise no file."""


def parse_from(options: T, arguments: Sequence[str], verb: str, about: str) -> T:
    """``parse`` for options with FROM."""
    return parse(options, arguments, f"{verb} FROM", f"{about}\n\nFROM is {KINDS}.")


def require_from(run: str, verb: str) -> None:
    """Refuse a command without FROM.

    Raises:
        MapetError: it is empty.
    """
    if not run:
        raise MapetError(f"mapet {verb} needs FROM: {KINDS}.")


def report(verb: str, source: Source, protocols: str | Sequence[str], settings: EvaluateSettings) -> int:
    """Evaluate, and print each protocol with its scores."""
    from mapet.api.evaluate import evaluate
    from mapet.api.protocols import PROTOCOLS

    require_from(source.run, verb)
    found = made(evaluate(source.run, source.data, protocols, out=source.out, settings=settings))
    for protocol, scores in found.items():
        print_scores(PROTOCOLS[protocol].describe(settings), scores)
    return 0


def print_scores(protocol: str, scores: "Mapping[str, Score]") -> None:
    """Print a protocol with its scores."""
    print(f"protocol  {protocol}")
    width = max(9, *map(len, scores))
    for name, score in scores.items():
        print(f"{name:<{width}} {score}" + (f"  {score.note}" if score.note else ""))
