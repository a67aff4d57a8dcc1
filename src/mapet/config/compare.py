"""Settings of ``mapet compare``."""

from collections.abc import Iterable

from mapet.config.objectives import known_objectives, short_name
from mapet.config.recipe import OBJECTIVES
from mapet.config.setting import Count, Names, PathText, Rate, Repeated, require, settings
from mapet.utils.errors import MapetError, nearest

BASELINES = ("random", "scratch")
BUDGETS = ("epochs", "compute")


@settings
class CompareSettings:
    """What is compared and how it is measured; lists of names may also be one string with commas.

    Raises:
        MapetError: on creation: a name or number that makes no sense.
    """

    objectives: Names = OBJECTIVES
    """Objectives, separated by commas; under equal compute the first sets the budget."""
    baselines: Names = ()
    """random (the untrained encoder), scratch (trained on labels alone, with --tuning), or both."""
    seeds: Count = 3
    """Runs per objective, with seeds from --seed on."""
    evaluate: Names = ("knn", "linear")
    """One or more of knn, linear, linear-mae, linear-beit, attentive, fewshot, finetune."""
    budget: Names = ("epochs",)
    """epochs (equal epochs for all), compute (equal compute, that of the first objective), or both."""
    vary: Repeated = ()
    """SETTING=VALUE,VALUE,...: a grid over any setting of the recipe, by its option's name; context is 1 - mask-ratio;
    all stands for None. May be repeated."""
    tokenizers: Names = ()
    """A grid over these folders of tokenizers or of tokens, separated by commas."""
    knn_every: Rate = 0.0
    """Measure k-NN accuracy during training every so many epochs (fractions allowed); 0: never."""
    eval_data: PathText | None = None
    """Labelled images: a folder with one sub-folder per class, or cifar10; None: the recipe's --data."""
    eval_limit: Count | None = None
    """Use only so many labelled training images, chosen at random; None: all."""

    def __post_init__(self) -> None:
        check_names("objectives", map(short_name, self.objectives), known_objectives(self.objectives))
        check_names("baselines", self.baselines, BASELINES)
        check_names("budget", self.budget, BUDGETS)
        for name in ("objectives", "evaluate", "budget"):
            require((bool(getattr(self, name)), f"--{name} is empty: give at least one."))
        frozen_only = "random" in self.baselines and set(self.evaluate) == {"finetune"}
        require(
            (not frozen_only, "--baselines random cannot be fine-tuned; use scratch, or add another --evaluate."),
        )


def check_names(option: str, chosen: Iterable[str], names: Iterable[str]) -> None:
    """Refuse names that do not exist or come twice.

    Raises:
        MapetError: the first such name.
    """
    seen: set[str] = set()
    for name in chosen:
        if name not in names:
            raise MapetError(f'--{option}: there is no "{name}".{nearest(name, names)}')
        if name in seen:
            raise MapetError(f"--{option} names {name} twice.")
        seen.add(name)
