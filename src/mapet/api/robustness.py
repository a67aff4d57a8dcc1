"""A classifier on shifted and corrupted images: accuracy, calibration and corruption errors."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.trained_on import trained_on
from mapet.api.validate import Validation, find_targets, measure, open_classifier
from mapet.config.flat import updated
from mapet.config.setting import separated
from mapet.config.validate import RobustnessSettings
from mapet.utils.errors import MapetError, reason

if TYPE_CHECKING:
    from mapet.method.encoder import Classifier

CLEAN = "clean"
FORM = "mapet robustness 1"
Passes = Mapping[tuple[str, int], Validation]
SAME = ("split", "max_pixels", "crop_pct", "subset", "real", "seed")  # settings that decide the scores


@dataclass(frozen=True)
class Robustness:
    """The scores of one set of images.

    Attributes:
        passes: by corruption and strength, as ``("fog", 3)``; ``("clean", 0)`` are the images as they are.
        mce: mean corruption error: 1 − top1, averaged over strengths, then over corruptions; None without any.
        mce_of_baseline: the same divided by the baseline's, corruption by corruption; None without a baseline.
        relative_mce: the same of what exceeds that on clean images; None where the baseline loses nothing.
    """

    passes: Passes
    mce: float | None = None
    mce_of_baseline: float | None = None
    relative_mce: float | None = None

    @property
    def clean(self) -> Validation:
        """The images as they are."""
        return self.passes[CLEAN, 0]


def robustness(
    model: "str | Path | Classifier",
    data: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    baseline: str | Path | None = None,
    settings: RobustnessSettings | None = None,
    **changes: Any,
) -> dict[str, Robustness]:
    """Accuracy and calibration of a classifier on one or several sets of images, and under corruptions of them.

    >>> mapet.robustness("runs/classifier", ["imagenet-a", "imagenet-r"])["imagenet-a"].clean.scores["top1"]

    The corruptions are those of ImageNet-C, made on the fly at the classifier's image size by the package corrupt-tta,
    whose code and so whose images differ from the published set's. They are pure functions of the seed.

    Args:
        model: as in ``validate``.
        data: one set or several, each as in ``validate``.
        out: JSON file of the scores; an interrupted call is continued with it. None: no file.
        baseline: a file that another classifier's call wrote, for relative corruption errors.
        settings: the defaults, without any.
        changes: settings by name, for instance ``corruptions="fog,snow"``.

    Returns:
        The scores of each set, by its name in ``data``.

    Raises:
        MapetError: as ``validate``; corruptions without the package; a file of something else, of another classifier
            or of other settings; a baseline without these sets or corruptions.
    """
    from mapet.api.embed import encoder_hash
    from mapet.data.corrupt import Corrupted, require_corruptions

    s = updated(settings or RobustnessSettings(), **changes)
    if s.chosen:
        require_corruptions()
    names = list(dict.fromkeys(separated(data)))
    if not names:
        raise MapetError("--data is empty: give one or several sets of labelled images.")
    classifier, crops = open_classifier(model, s)
    about = {"classifier": encoder_hash(classifier), **{name: getattr(s, name) for name in SAME}}
    file = _File(out, about)
    wanted = [(CLEAN, 0), *product(s.chosen, sorted(s.severities))]
    bases = {} if baseline is None else _of_baseline(Path(baseline).expanduser(), names, wanted)
    found = {name: find_targets(classifier, name, s) for name in names}
    made: dict[str, Robustness] = {}
    for name, targets in found.items():
        seen = trained_on(model, targets.source)
        passes = dict[tuple[str, int], Validation]()
        for corruption, strength in wanted:
            key = f"{corruption} {strength}"
            if (known := file.get(name, key)) is None:
                shown = crops if corruption == CLEAN else Corrupted(s.seed, corruption, strength, crops)
                known = measure(classifier, targets, shown, s, key)
                file.add(name, key, known)
            passes[corruption, strength] = replace(known, trained_on=seen)
        made[name] = _summary(passes, bases.get(name))
    return made


def errors(passes: Passes) -> dict[str, list[float]]:
    """For each corruption the shares of wrong images, by strength."""
    found: dict[str, list[float]] = {}
    for (name, _), one in passes.items():
        if name != CLEAN:
            found.setdefault(name, []).append(1 - one.scores["top1"].value)
    return found


def _summary(passes: Passes, base: Passes | None) -> Robustness:
    from mapet.evals.robustness import against, mean_corruption_error

    if not (wrong := errors(passes)):
        return Robustness(passes)
    error = mean_corruption_error(wrong)
    if base is None:
        return Robustness(passes, error)
    clean, base_clean = (1 - one[CLEAN, 0].scores["top1"].value for one in (passes, base))
    return Robustness(passes, error, *against(wrong, clean, errors({key: base[key] for key in passes}), base_clean))


def _of_baseline(path: Path, names: Sequence[str], wanted: Sequence[tuple[str, int]]) -> dict[str, Passes]:
    """The baseline's scores of the sets under the wanted corruptions."""
    sets, found = _read(path, "--baseline")["sets"], dict[str, Passes]()
    for name in names:
        known = sets.get(name, {})
        if missing := [f"{corruption} {n}" for corruption, n in wanted if f"{corruption} {n}" not in known]:
            raise MapetError(f"--baseline has no scores of {name}, {missing[0]}: measure both with the same.")
        found[name] = {(corruption, n): _validation(known[f"{corruption} {n}"]) for corruption, n in wanted}
    return found


def _validation(one: Mapping[str, Any]) -> Validation:
    from mapet.evals.score import Score

    scores = {name: Score(**value) for name, value in one["scores"].items()}
    return Validation(scores, one["ece"], one["protocol"])


def _read(path: Path, option: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MapetError(
            f"{option} {path} cannot be read ({reason(error)}): give a file of mapet robustness."
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORM:
        raise MapetError(f"{option} {path} is not a file of mapet robustness: give another.")
    return content


class _File:
    """The file of the scores: what is in it is not measured again.

    Raises:
        MapetError: a file of something else, or of another classifier or settings.
    """

    def __init__(self, out: str | Path | None, about: dict[str, Any]) -> None:
        self.path = None if out is None else Path(out).expanduser()
        self.content: dict[str, Any] = {"format": FORM, "about": about, "sets": {}}
        if self.path is not None and self.path.exists():
            found = _read(self.path, "--out")
            if found["about"] != about:
                other = next(name for name in about if found["about"].get(name) != about[name])
                raise MapetError(
                    f"--out {self.path} has the scores of another {other.replace('_', ' ')}: give another file."
                )
            self.content = found
        elif self.path is not None and not self.path.absolute().parent.is_dir():
            raise MapetError(f"--out {self.path} cannot be written: there is no folder {self.path.absolute().parent}.")

    def get(self, name: str, key: str) -> Validation | None:
        """The scores of a set under a corruption, if they are there."""
        one = self.content["sets"].get(name, {}).get(key)
        return None if one is None else _validation(one)

    def add(self, name: str, key: str, one: Validation) -> None:
        """Write the scores of a set under a corruption."""
        from mapet.api.scores import plain
        from mapet.utils.io import replace_file

        entry = {"scores": plain(one.scores), "ece": one.ece, "protocol": one.protocol}
        self.content["sets"].setdefault(name, {})[key] = entry
        if self.path is not None:
            replace_file(self.path, json.dumps(self.content, indent=1) + "\n")
