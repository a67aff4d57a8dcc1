"""``mapet linear``: linear-probe accuracy of an encoder."""

from dataclasses import dataclass, field

from mapet.cli.probe import Source, parse_from, report
from mapet.config.evaluate import EvaluateSettings, FeatureSettings, PoolSettings
from mapet.utils.errors import MapetError, nearest

PROTOCOLS = {"quick": "linear", "mae": "linear-mae", "beit": "linear-beit"}


@dataclass(frozen=True)
class Options:
    """Options of ``mapet linear``."""

    protocol: str = "quick"
    """quick (logistic regression, L-BFGS), mae (batch norm, LARS, 90 epochs) or beit (every layer, AdamW, 100)."""
    seed: int = 0
    """Random seed of the held-out tenth (quick, beit), initial weights and batches (mae, beit)."""
    source: Source = field(default_factory=Source)
    pooling: PoolSettings = field(default_factory=PoolSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)


def command(arguments: list[str]) -> int:
    """Parse, evaluate, print."""
    o = parse_from(Options(), arguments, "linear", "Linear-probe accuracy of a frozen encoder.")
    if o.protocol not in PROTOCOLS:
        raise MapetError(f'There is no linear protocol "{o.protocol}".{nearest(o.protocol, PROTOCOLS)}')
    settings = EvaluateSettings(seed=o.seed, features=o.features, pooling=o.pooling)
    return report("linear", o.source, [PROTOCOLS[o.protocol]], settings)
