"""``mapet evaluate``: an encoder under several protocols, with features shared between them."""

from dataclasses import dataclass, field

from mapet.cli.probe import Source, parse_from, report
from mapet.config.evaluate import EvaluateSettings


@dataclass(frozen=True)
class Options:
    """Options of ``mapet evaluate``."""

    protocols: str = "knn,linear"
    """One or more of knn, linear, linear-mae, linear-beit, attentive, fewshot, separated by commas."""
    source: Source = field(default_factory=Source)
    settings: EvaluateSettings = field(default_factory=EvaluateSettings)


def command(arguments: list[str]) -> int:
    """Parse, evaluate, print."""
    o = parse_from(Options(), arguments, "evaluate", "Accuracy of a frozen encoder under several protocols.")
    return report("evaluate", o.source, o.protocols, o.settings)
