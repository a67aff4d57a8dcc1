"""``mapet robustness``: a classifier on shifted and corrupted images."""

from dataclasses import dataclass, field

from mapet.api.robustness import Robustness, errors, robustness
from mapet.cli.options import parse, require
from mapet.cli.output import made
from mapet.cli.use import continued
from mapet.cli.validate import show
from mapet.config.validate import RobustnessSettings

ABOUT = """Accuracy and calibration of a classifier on shifted images, and errors under ImageNet-C's corruptions.

DATA is one folder or several, separated by commas: ImageNet-A, -R, -Sketch, V2 or any with one sub-folder per class.

Run the same command again to continue after an interruption."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet robustness``."""

    run: str = ""
    """CLASSIFIER: a fine-tuning, an export of one, a checkpoint file with a head, or a timm model."""
    data: str = ""
    """One or several sets of labelled images, separated by commas."""
    out: str | None = None
    """JSON file of the scores; the call continues what it holds; None: no file."""
    baseline: str | None = None
    """JSON file of another classifier on the same images, for relative corruption errors."""
    settings: RobustnessSettings = field(default_factory=RobustnessSettings)


def command(arguments: list[str]) -> int:
    """Parse, measure, print one block per set."""
    o = parse(Options(), arguments, "robustness CLASSIFIER", ABOUT)
    require("robustness", run=o.run, data=o.data)
    found = continued(lambda: robustness(o.run, o.data, o.out, baseline=o.baseline, settings=o.settings))
    for name, one in (made(found) or {}).items():
        print(f"set       {name}")
        show(one.clean)
        _show_corruptions(one)
    return 0 if found is not None else 130


def _show_corruptions(one: Robustness) -> None:
    for name, wrong in errors(one.passes).items():
        print(f"{name:<18}error {' '.join(f'{100 * value:5.1f}' for value in wrong)} %")
    if one.mce is not None:
        print(f"mean corruption error {100 * one.mce:.1f} %")
    if one.mce_of_baseline is not None:
        relative = "" if one.relative_mce is None else f", relative {100 * one.relative_mce:.1f} %"
        print(f"of the baseline's {100 * one.mce_of_baseline:.1f} %{relative}")
