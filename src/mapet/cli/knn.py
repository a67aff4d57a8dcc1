"""``mapet knn``: does the encoder put images of one class beside one another?"""

from dataclasses import dataclass, field

from mapet.api.evaluate import Pooled, check_pool, probed
from mapet.cli.probe import asked, report


@dataclass(frozen=True)
class Options:
    """Options of ``mapet knn``."""

    k: int = 20
    """Neighbours that vote."""
    temperature: float = 0.07
    """T of a neighbour's weight exp(cosine / T)."""
    probe: Pooled = field(default_factory=Pooled)


def command(arguments: list[str]) -> int:
    """Parse, classify, print."""
    o = asked(Options(), arguments, "knn", "k-nearest-neighbour accuracy of an encoder; nothing is trained.")
    from mapet.evals.knn import knn, protocol

    check_pool(o.probe.pool)
    p = probed(o.probe, "knn", o.probe.pool)
    scores = knn(p.train, p.test, k=o.k, temperature=o.temperature, classes=p.classes)
    named = protocol(k=o.k, temperature=o.temperature, pool=o.probe.pool)
    report(scores, named, o.probe, p.start)
    return 0
