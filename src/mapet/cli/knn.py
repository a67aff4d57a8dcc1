"""``mapet knn``: k-nearest-neighbour accuracy of an encoder."""

from dataclasses import dataclass, field

from mapet.cli.probe import Source, parse_from, report
from mapet.config.evaluate import EvaluateSettings, FeatureSettings, KNNSettings, PoolSettings


@dataclass(frozen=True)
class Options:
    """Options of ``mapet knn``."""

    knn: KNNSettings = field(default_factory=KNNSettings)
    source: Source = field(default_factory=Source)
    pooling: PoolSettings = field(default_factory=PoolSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)


def command(arguments: list[str]) -> int:
    """Parse, evaluate, print."""
    o = parse_from(Options(), arguments, "knn", "k-nearest-neighbour accuracy of an encoder; nothing is trained.")
    return report("knn", o.source, ["knn"], EvaluateSettings(features=o.features, pooling=o.pooling, knn=o.knn))
