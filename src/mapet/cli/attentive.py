"""``mapet attentive``: attentive-probe accuracy of an encoder."""

from dataclasses import dataclass, field

from mapet.cli.probe import Source, parse_from, report
from mapet.config.evaluate import AttentiveSettings, EvaluateSettings, FeatureSettings


@dataclass(frozen=True)
class Options:
    """Options of ``mapet attentive``."""

    seed: int = 0
    """Random seed of initial weights and batches."""
    attentive: AttentiveSettings = field(default_factory=AttentiveSettings)
    source: Source = field(default_factory=Source)
    features: FeatureSettings = field(default_factory=FeatureSettings)


def command(arguments: list[str]) -> int:
    """Parse, evaluate, print."""
    o = parse_from(Options(), arguments, "attentive", "Attentive-probe accuracy of a frozen encoder.")
    settings = EvaluateSettings(seed=o.seed, features=o.features, attentive=o.attentive)
    return report("attentive", o.source, ["attentive"], settings)
