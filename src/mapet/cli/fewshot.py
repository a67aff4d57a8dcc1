"""``mapet fewshot``: accuracy of an encoder from few labelled images of each class."""

from dataclasses import dataclass, field

from mapet.cli.probe import Source, parse_from, report
from mapet.config.evaluate import EvaluateSettings, FeatureSettings, FewshotSettings, PoolSettings


@dataclass(frozen=True)
class Options:
    """Options of ``mapet fewshot``."""

    seed: int = 0
    """Random seed of the draws."""
    fewshot: FewshotSettings = field(default_factory=FewshotSettings)
    source: Source = field(default_factory=Source)
    pooling: PoolSettings = field(default_factory=PoolSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)


def command(arguments: list[str]) -> int:
    """Parse, evaluate, print."""
    o = parse_from(Options(), arguments, "fewshot", "Accuracy of an encoder from few labelled images of each class.")
    settings = EvaluateSettings(seed=o.seed, features=o.features, pooling=o.pooling, fewshot=o.fewshot)
    return report("fewshot", o.source, ["fewshot"], settings)
