"""``mapet fewshot``: how much of the classes do a few labelled images of each tell?"""

from dataclasses import dataclass, field

from mapet.api.evaluate import Pooled, check_pool, probed
from mapet.cli.probe import asked, report


@dataclass(frozen=True)
class Options:
    """Options of ``mapet fewshot``."""

    shots: tuple[int, ...] = (1, 5, 10)
    """Labelled images of each class; one result for each number."""
    draws: int = 5
    """Repetitions with other labelled images."""
    seed: int = 0
    """Of the draws."""
    probe: Pooled = field(default_factory=Pooled)


def command(arguments: list[str]) -> int:
    """Parse, draw, fit, print."""
    o = asked(Options(), arguments, "fewshot", "Accuracy of an encoder with few labelled images of each class.")
    from mapet.evals.features import POOLS
    from mapet.evals.fewshot import check_settings, fewshot, protocol

    check_settings(o.shots, o.draws)
    check_pool(o.probe.pool)
    p = probed(o.probe, "fewshot", o.probe.pool)
    scores = fewshot(p.train, p.test, classes=p.classes, shots=o.shots, draws=o.draws, seed=o.seed)
    report(scores, f"{protocol(draws=o.draws)}, {POOLS[o.probe.pool]}", o.probe, p.start)
    return 0
