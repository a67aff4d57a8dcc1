"""``mapet linear``: how much of the classes can a linear layer read from the frozen features?"""

from dataclasses import dataclass, field

from mapet.api.evaluate import Pooled, check_pool, probed
from mapet.cli.probe import asked, report
from mapet.utils.errors import MapetError, nearest


@dataclass(frozen=True)
class Options:
    """Options of ``mapet linear``."""

    protocol: str = "quick"
    """quick (logistic regression, L-BFGS), mae (batch norm, LARS, 90 epochs) or beit (every layer, AdamW, 100)."""
    seed: int = 0
    """Of the held-out tenth (quick, beit), and of the start and the batches (mae, beit)."""
    probe: Pooled = field(default_factory=Pooled)


def command(arguments: list[str]) -> int:
    """Parse, train the probe, print."""
    o = asked(Options(), arguments, "linear", "Linear-probe accuracy of a frozen encoder.")
    from mapet.engine.distributed import pick_device
    from mapet.evals.features import POOLS, UNPOOLED
    from mapet.evals.linear import PROTOCOLS, linear

    if o.protocol not in PROTOCOLS:
        raise MapetError(f'There is no linear protocol "{o.protocol}".{nearest(o.protocol, PROTOCOLS)}')
    check_pool(o.probe.pool)
    layers = o.protocol == "beit"
    if layers and o.probe.pool != Pooled.pool:
        raise MapetError("The beit protocol reads class token and mean of patches of every layer: leave --pool out.")
    p = probed(o.probe, "linear", "layers" if layers else o.probe.pool)
    device = None if o.protocol == "quick" else pick_device(o.probe.accelerator)
    scores = linear(p.train, p.test, classes=p.classes, protocol=o.protocol, seed=o.seed, device=device)
    read = UNPOOLED["layers"] if layers else POOLS[o.probe.pool]
    report(scores, f"{PROTOCOLS[o.protocol]}, {read}", o.probe, p.start)
    return 0
