"""``mapet linear``: how much of the classes can a linear layer read from the frozen features?"""

from dataclasses import dataclass, field

from mapet.cli.options import parse
from mapet.cli.probe import Probe, probed, report


@dataclass(frozen=True)
class Options:
    """Options of ``mapet linear``."""

    protocol: str = "quick"
    """quick (logistic regression, L-BFGS) or mae (batch norm, LARS, 90 epochs)."""
    seed: int = 0
    """Of the held-out tenth (quick), or of the start and the batches (mae)."""
    probe: Probe = field(default_factory=Probe)


def command(arguments: list[str]) -> int:
    """Parse, train the probe, print."""
    o = parse(Options(), arguments, "linear", "Linear-probe accuracy of a run's frozen encoder.")
    from mapet.errors import MapetError, nearest
    from mapet.evals.features import POOLS
    from mapet.evals.linear import PROTOCOLS, linear

    if o.protocol not in PROTOCOLS:
        raise MapetError(f'There is no linear protocol "{o.protocol}".{nearest(o.protocol, PROTOCOLS)}')
    train, test, classes = probed(o.probe, "linear")
    scores = linear(train, test, classes=classes, protocol=o.protocol, seed=o.seed)
    report(scores, f"{PROTOCOLS[o.protocol]}, {POOLS[o.probe.pool]}", o.probe)
    return 0
