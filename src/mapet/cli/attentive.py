"""``mapet attentive``: how much of the classes can one attention block read from the frozen patches?"""

from dataclasses import dataclass, field

from mapet.api.evaluate import Probe, probed
from mapet.cli.probe import asked, report


@dataclass(frozen=True)
class Options:
    """Options of ``mapet attentive``."""

    seed: int = 0
    """Of the start and the batches."""
    batch_size: int | None = None
    """Images a step; None: 1024, or all where there are fewer."""
    probe: Probe = field(default_factory=Probe)


def command(arguments: list[str]) -> int:
    """Parse, train the probe, print."""
    o = asked(Options(), arguments, "attentive", "Attentive-probe accuracy of a frozen encoder.")
    from mapet.engine.distributed import pick_device
    from mapet.evals.attentive import PROTOCOL, attentive
    from mapet.evals.checks import check_batch

    check_batch(o.batch_size)
    p = probed(o.probe, "attentive", "patches")
    device = pick_device(o.probe.accelerator)
    scores = attentive(p.train, p.test, classes=p.classes, seed=o.seed, batch=o.batch_size, device=device)
    report(scores, PROTOCOL, o.probe, p.start)
    return 0
