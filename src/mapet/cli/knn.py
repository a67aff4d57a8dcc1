"""``mapet knn``: does the encoder put pictures of one class beside one another?"""

from dataclasses import dataclass, field

from mapet.cli.options import parse
from mapet.cli.probe import Probe, probed, report


@dataclass(frozen=True)
class Options:
    """Options of ``mapet knn``."""

    k: int = 20
    """Neighbours that vote."""
    temperature: float = 0.07
    """T of a neighbour's weight exp(cosine / T)."""
    probe: Probe = field(default_factory=Probe)


def command(arguments: list[str]) -> int:
    """Parse, classify, print."""
    o = parse(Options(), arguments, "knn", "k-nearest-neighbour accuracy of a run's encoder; nothing is trained.")
    from mapet.evals.knn import knn, protocol

    train, test, classes = probed(o.probe, "knn")
    scores = knn(train, test, k=o.k, temperature=o.temperature, classes=classes)
    named = protocol(k=o.k, temperature=o.temperature, pool=o.probe.pool)
    report(scores, named, o.probe)
    return 0
