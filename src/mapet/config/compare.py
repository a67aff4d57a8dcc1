"""Settings of ``mapet compare``."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from math import inf
from typing import Any, ClassVar

from mapet.config.objectives import known_objectives, short_name
from mapet.config.recipe import OBJECTIVES
from mapet.utils.errors import MapetError, nearest

BASELINES = ("random", "scratch")
BUDGETS = ("epochs", "compute")
LISTS = ("objectives", "baselines", "evaluate", "budget", "tokenizers")  # given as names, or separated by commas


@dataclass(frozen=True)
class CompareSettings:
    """What is compared and how it is measured; lists of names may also be one string with commas.

    Raises:
        MapetError: on creation: a name or number that makes no sense.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    objectives: tuple[str, ...] = OBJECTIVES
    """Objectives, separated by commas; under equal compute the first sets the budget."""
    baselines: tuple[str, ...] = ()
    """random (the untrained encoder), scratch (trained on labels alone, with --tuning), or both."""
    seeds: int = 3
    """Runs per objective, with seeds from --seed on."""
    evaluate: tuple[str, ...] = ("knn", "linear")
    """One or more of knn, linear, linear-mae, linear-beit, attentive, fewshot, finetune."""
    budget: tuple[str, ...] = ("epochs",)
    """epochs (equal epochs for all), compute (equal compute, that of the first objective), or both."""
    vary: tuple[str, ...] = ()
    """SETTING=VALUE,VALUE,...: a grid over any setting of the recipe, by its option's name; context is 1 - mask-ratio;
    all stands for None. May be repeated."""
    tokenizers: tuple[str, ...] = ()
    """A grid over these folders of tokenizers or of tokens, separated by commas."""
    knn_every: float = 0.0
    """Measure k-NN accuracy during training every so many epochs (fractions allowed); 0: never."""
    eval_data: str | None = None
    """Labelled images: a folder with one sub-folder per class, or cifar10; None: the recipe's --data."""
    eval_limit: int | None = None
    """Use only so many labelled training images, chosen at random; None: all."""

    def __post_init__(self) -> None:
        for one in fields(self):
            if one.name in (*LISTS, "vary"):
                object.__setattr__(self, one.name, names_of(getattr(self, one.name), commas=one.name != "vary"))
        check_names("objectives", map(short_name, self.objectives), known_objectives(self.objectives))
        check_names("baselines", self.baselines, BASELINES)
        check_names("budget", self.budget, BUDGETS)
        for name in ("objectives", "evaluate", "budget"):
            if not getattr(self, name):
                raise MapetError(f"--{name} is empty: give at least one.")
        for option, value, fits, bound in (
            ("seeds", self.seeds, self.seeds >= 1, ">= 1"),
            ("knn-every", self.knn_every, 0 <= self.knn_every < inf, ">= 0"),
            ("eval-limit", self.eval_limit, self.eval_limit is None or self.eval_limit >= 1, ">= 1"),
        ):
            if not fits:
                raise MapetError(f"--{option} must be {bound}, got {value}.")
        if "random" in self.baselines and set(self.evaluate) == {"finetune"}:
            raise MapetError("--baselines random cannot be fine-tuned; use scratch, or add another --evaluate.")


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


def names_of(given: Any, *, commas: bool = True) -> tuple[str, ...]:
    """One value or several as a tuple of strings; with ``commas``, ("a, b",) → ("a", "b")."""
    parts = [str(given)] if isinstance(given, str) or not hasattr(given, "__iter__") else list(map(str, given))
    if commas:
        parts = [part for text in parts for part in text.split(",")]
    return tuple(part.strip() for part in parts if part.strip())
