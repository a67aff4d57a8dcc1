"""The table of evaluation protocols: name → what it reads, how it measures, and how its scores are reported."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from mapet.api.features import Features, LabelledFeatures
from mapet.config.evaluate import EvaluateSettings, FeatureSettings
from mapet.config.flat import paths
from mapet.utils.errors import MapetError, nearest

if TYPE_CHECKING:
    import torch

    from mapet.evals.score import Score

    Scores = dict[str, Score]


@dataclass(frozen=True)
class Protocol:
    """One way to measure a frozen encoder.

    ``run`` computes scores by name from features; ``describe`` is the text under which they are reported. ``reads``
    are the settings that change a score. ``pool`` names the features; None: those of the setting ``pool``.
    """

    run: "Callable[[LabelledFeatures, EvaluateSettings, torch.device], Scores]"
    describe: Callable[[EvaluateSettings], str]
    reads: tuple[str, ...]
    pool: str | None = None

    def pool_of(self, settings: EvaluateSettings) -> str:
        """The features that it reads: a key of ``evals.features.POOLS`` or ``UNPOOLED``."""
        return self.pool or settings.pooling.pool

    def measure(self, features: Features, settings: EvaluateSettings) -> "Scores":
        """Scores by name; raises as ``extract_features`` and the evaluation in ``mapet.evals``."""
        from mapet.engine.distributed import pick_device

        found = features(self.pool_of(settings))
        return self.run(found, settings, pick_device(settings.features.accelerator))


def _knn(f: LabelledFeatures, s: EvaluateSettings, device: "torch.device") -> "Scores":
    from mapet.evals.knn import knn

    return knn(f.train, f.test, k=s.knn.k, temperature=s.knn.temperature, classes=f.classes)


def _knn_text(s: EvaluateSettings) -> str:
    from mapet.evals.knn import protocol

    return protocol(k=s.knn.k, temperature=s.knn.temperature, pool=s.pooling.pool)


def _linear(name: str, pool: str | None = None) -> Protocol:
    def run(f: LabelledFeatures, s: EvaluateSettings, device: "torch.device") -> "Scores":
        from mapet.evals.linear import linear

        trained_on = None if name == "quick" else device
        return linear(f.train, f.test, classes=f.classes, protocol=name, seed=s.seed, device=trained_on)

    def describe(s: EvaluateSettings) -> str:
        from mapet.evals.features import POOLS, UNPOOLED
        from mapet.evals.linear import PROTOCOLS

        return f"{PROTOCOLS[name]}, {(POOLS | UNPOOLED)[pool or s.pooling.pool]}"

    return Protocol(run, describe, ("seed",) if pool else ("seed", "pool"), pool)


def _attentive(f: LabelledFeatures, s: EvaluateSettings, device: "torch.device") -> "Scores":
    from mapet.evals.attentive import attentive

    return attentive(f.train, f.test, classes=f.classes, seed=s.seed, batch=s.attentive.batch_size, device=device)


def _attentive_text(s: EvaluateSettings) -> str:
    from mapet.evals.attentive import PROTOCOL

    return PROTOCOL


def _fewshot(f: LabelledFeatures, s: EvaluateSettings, device: "torch.device") -> "Scores":
    from mapet.evals.fewshot import fewshot

    shots, draws = s.fewshot.shots, s.fewshot.draws
    return fewshot(f.train, f.test, classes=f.classes, shots=shots, draws=draws, seed=s.seed)


def _fewshot_text(s: EvaluateSettings) -> str:
    from mapet.evals.features import POOLS
    from mapet.evals.fewshot import protocol

    return f"{protocol(draws=s.fewshot.draws)}, {POOLS[s.pooling.pool]}"


PROTOCOLS = {
    "knn": Protocol(_knn, _knn_text, ("k", "temperature", "pool")),
    "linear": _linear("quick"),
    "linear-mae": _linear("mae"),
    "linear-beit": _linear("beit", "layers"),
    "attentive": Protocol(_attentive, _attentive_text, ("seed", "batch_size"), "patches"),
    "fewshot": Protocol(_fewshot, _fewshot_text, ("seed", "shots", "draws", "pool")),
}


def protocol_names(
    protocols: str | Iterable[str], known: Collection[str] = PROTOCOLS, kind: str = "protocol"
) -> tuple[str, ...]:
    """Names of ``known`` protocols without repetitions, from a list or from one string with commas.

    Raises:
        MapetError: none, or an unknown one, which it calls a ``kind``.
    """
    given = protocols.split(",") if isinstance(protocols, str) else protocols
    names = tuple(dict.fromkeys(name.strip() for name in given if name.strip()))
    if not names:
        raise MapetError(f"--protocols is empty: give one or more of {', '.join(known)}.")
    for name in names:
        if name not in known:
            raise MapetError(f'There is no {kind} "{name}".{nearest(name, known)}')
    return names


def require_read(names: Iterable[str], settings: EvaluateSettings) -> None:
    """Refuse a setting that none of the protocols reads.

    Raises:
        MapetError: it is not at its default.
    """
    names, common = tuple(names), {one.name for one in fields(FeatureSettings)}
    for setting, path in paths(settings).items():
        readers = [name for name, protocol in PROTOCOLS.items() if setting in protocol.reads]
        at_default = _value(settings, path) == _value(EvaluateSettings(), path)
        if setting not in common and not at_default and not set(names) & set(readers):
            option = setting.replace("_", "-")
            raise MapetError(f"--{option} only applies to {', '.join(readers)}, not {', '.join(names)}; remove it.")


def _value(settings: Any, path: str) -> Any:
    for name in path.split("."):
        settings = getattr(settings, name)
    return settings
