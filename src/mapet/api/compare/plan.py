"""What a comparison asks for, and the runs that follow from it.

An *arm* is a way of training: an objective (or a baseline) under one choice of the varied settings. All arms share the
recipe's other settings; a *cell* is an arm with its epochs under a budget, and one seed.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import inf
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from mapet.config.finetune import FinetuneRecipe
from mapet.config.flat import dotted, earlier, paths, with_settings
from mapet.config.objectives import is_own, known_objectives, reads_tokens, short_name
from mapet.config.recipe import OBJECTIVES, OWNERS, Objective, Recipe, fair
from mapet.utils.errors import MapetError, nearest

BASELINES = ("random", "scratch")
BUDGETS = ("epochs", "compute")
EPOCHS = "optimization.epochs"
TUNED = "scratch, not random, where finetune is the only evaluation"
FIXED = {  # what varies otherwise, or cannot
    "objective": "give --objectives",
    "seed": "give --seeds",
    "tokenizer": "give --tokenizers",
    "tokens": "give --tokenizers",
    "data": "compare on one data set at a time",
}

Label = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Plan:
    """A comparison as it was asked for: the options of ``mapet compare``, lists as tuples.

    Raises:
        MapetError: on creation: a name or number that makes no sense.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    objectives: tuple[str, ...] = OBJECTIVES
    baselines: tuple[str, ...] = ()
    seeds: int = 3
    evaluate: tuple[str, ...] = ("knn", "linear")
    budget: tuple[str, ...] = ("epochs",)
    vary: tuple[str, ...] = ()
    tokenizers: tuple[str, ...] = ()
    knn_every: float = 0.0
    eval_data: str | None = None
    eval_limit: int | None = None
    recipe: Recipe = field(default_factory=Recipe)
    tuning: FinetuneRecipe = field(default_factory=FinetuneRecipe)

    def __post_init__(self) -> None:
        named = self.recipe.tokens or self.recipe.tokenizer.path
        for option, chosen, names in (
            ("objectives", list(map(short_name, self.objectives)), known_objectives(self.objectives)),
            ("baselines", self.baselines, BASELINES),
            ("budget", self.budget, BUDGETS),
        ):
            check_names(option, chosen, names)
        for option, fits, wanted in (
            ("objectives", len(self.objectives) > 0, "at least one"),
            ("evaluate", len(self.evaluate) > 0, "at least one"),
            ("budget", len(self.budget) > 0, "epochs, compute or both"),
            ("seeds", self.seeds >= 1, "at least 1"),
            ("knn-every", 0 <= self.knn_every < inf, "at least 0"),
            ("eval-limit", self.eval_limit is None or self.eval_limit >= 1, "at least 1"),
            ("baselines", "random" not in self.baselines or set(self.evaluate) != {"finetune"}, TUNED),
            ("tokenizers", not (self.tokenizers and named), "left out beside --tokens or --tokenizer"),
        ):
            if not fits:
                raise MapetError(f"--{option} does not fit: it must be {wanted}.")

    @property
    def labelled(self) -> str:
        """The labelled images."""
        return self.eval_data or self.recipe.data

    @property
    def reads_tokens(self) -> bool:
        """Whether there are tokens, which then tell all runs which images cannot be read."""
        return any(for_method(self.recipe, method).reads_tokens for method in self.objectives)

    @property
    def measures(self) -> list[str]:
        """The evaluations, with the one that training from scratch has."""
        return list(dict.fromkeys([*self.evaluate, *(["finetune"] if "scratch" in self.baselines else [])]))


def check_names(option: str, chosen: Iterable[str], names: Iterable[str]) -> None:
    """Refuse names that do not exist or come twice.

    Raises:
        MapetError: the first such name.
    """
    seen: set[str] = set()
    for name in chosen:
        if name not in names:
            raise MapetError(f'--{option} knows no "{name}".{nearest(name, names)}')
        if name in seen:
            raise MapetError(f"--{option} names {name} twice.")
        seen.add(name)


@dataclass(frozen=True)
class Variant:
    """One way of training; ``vocabulary`` is known once there are tokens."""

    method: str
    label: Label
    recipe: Recipe
    vocabulary: int = 0

    @property
    def setting(self) -> str:
        """The choice of the varied settings, in words."""
        return ", ".join(f"{name}={text}" for name, text in self.label)


@dataclass(frozen=True)
class Trial:
    """One run: an arm whose recipe has the cell's epochs and seed."""

    arm: Variant
    number: int
    epochs: float

    @property
    def recipe(self) -> Recipe:
        """The recipe of exactly this run."""
        r = self.arm.recipe
        return replace(r, seed=r.seed + self.number, optimization=replace(r.optimization, epochs=self.epochs))

    @property
    def name(self) -> str:
        """The name of its folder."""
        chosen = [re.sub(r"[^\w.-]", "_", f"{name}{text}") for name, text in self.arm.label]
        trained = [f"{self.epochs:.6g}epochs"] if self.arm.method not in BASELINES else []
        return "-".join([short_name(self.arm.method), *chosen, *trained, f"seed{self.recipe.seed}"])


def arms(plan: Plan) -> list[Variant]:
    """All arms of a plan, the objectives in its order and then the baselines.

    A varied setting that a method does not have leaves it as it is: it then is one arm.

    Raises:
        MapetError: a setting that does not exist or cannot vary, or a value that makes no sense.
    """
    choices = [*_tokenizers(plan.tokenizers), *(_values(text, plan.recipe) for text in plan.vary)]
    check_names("vary", varied := [choice[0][2] for choice in choices], varied)
    if EPOCHS in varied and "compute" in plan.budget:
        raise MapetError("--vary epochs does not fit: under --budget compute the epochs follow from the compute.")
    found: dict[tuple[str, Label], Variant] = {}
    for method, *chosen in product([*plan.objectives, *plan.baselines], *choices):
        own = [(name, text, setting, value) for name, text, setting, value in chosen if _has(method, setting)]
        label = tuple((name, text) for name, text, _, _ in own)
        start = for_method(plan.recipe, method)
        changed = with_settings(start, {setting: value for _, _, setting, value in own})
        found.setdefault((method, label), Variant(method, label, changed))
    return list(found.values())


def for_method(recipe: Recipe, method: str) -> Recipe:
    """The recipe under another objective, settings that are another's own left out; a baseline has the first's."""
    if method in BASELINES:
        return replace(recipe, objective=Objective())
    foreign = {
        name: getattr(Objective, name) for name, owners in OWNERS.items() if not (is_own(method) or method in owners)
    }
    return replace(recipe, objective=replace(recipe.objective, name=method, **foreign))


def _has(method: str, setting: str) -> bool:
    """Whether a method's result hangs on a setting."""
    group, _, name = setting.rpartition(".")
    if method in BASELINES:
        return group == "model" and name != "drop_path"  # the tuning has its own
    if not reads_tokens(method) and (group == "tokenizer" or name == "tokens"):
        return False
    return is_own(method) or method in OWNERS.get(name, OBJECTIVES)


def _tokenizers(folders: Sequence[str]) -> list[list[tuple[str, str, str, str]]]:
    """The choice among folders of tokenizers or of their tokens, if there is one."""
    names = [Path(folder).name for folder in folders]
    if len(set(names)) < len(names):
        raise MapetError(f"--tokenizers has two folders of one name ({', '.join(names)}): rename one.")
    kinds = ["tokens" if (Path(folder) / "store.json").is_file() else "tokenizer.path" for folder in folders]
    return [[("tokenizer", *three) for three in zip(names, kinds, folders, strict=True)]] if folders else []


def _values(text: str, recipe: Recipe) -> list[tuple[str, str, str, Any]]:
    """ "context=0.15,0.25" → name, value as it was written, setting, value, for each value."""
    from pydantic import TypeAdapter, ValidationError

    flag, equals, values = text.partition("=")
    name = flag.strip().removeprefix("--").replace("-", "_")
    known = paths(recipe) | {"context": "objective.mask_ratio"}
    known |= {old: known[now] for old, now in earlier(recipe).items()}
    if name not in known or not equals or not values:
        raise MapetError(f'--vary takes SETTING=VALUE,VALUE, got "{text}".{nearest(name, known)}')
    if name in FIXED:
        raise MapetError(f"--vary {name} does not fit: {FIXED[name]}.")
    found, kind, shown = [], TypeAdapter(_type(known[name])), name.replace("_", "-")
    for written in values.split(","):
        given: Any = None if written in ("all", "None") else written.split(":") if ":" in written else written
        try:
            value = kind.validate_python(given)
        except ValidationError as error:
            raise MapetError(f"--vary {shown}={written} does not fit: {error.errors()[0]['msg']}.") from error
        found.append((shown, written, known[name], 1 - value if name == "context" else value))
    return found


def _type(setting: str) -> Any:
    owner, name = Recipe, setting
    if "." in setting:
        group, name = setting.split(".")
        owner = get_type_hints(Recipe)[group]
    return get_type_hints(owner)[name]


def budgeted(
    plan: Plan, all_arms: Sequence[Variant], macs: Callable[[Variant], int], images: Callable[[Recipe], int]
) -> dict[str, list[Trial]]:
    """The cells of each budget, seed by seed.

    Under equal epochs every arm has its recipe's. Under equal compute it has so many steps, at least 1, that
    multiply-accumulates of training × images come nearest to those of the first arm under its recipe's epochs.

    Args:
        plan: names the budgets and counts the seeds.
        all_arms: the first is the measure.
        macs: of an arm's training step, per image.
        images: of one epoch of a recipe.
    """

    def epochs(arm: Variant, budget: str) -> float:
        own = arm.recipe.optimization.epochs
        if budget == "epochs" or arm.method in BASELINES:
            return own
        first = all_arms[0]
        whole = macs(first) * images(first.recipe) * first.recipe.optimization.epochs
        step = arm.recipe.optimization.batch_size
        return max(1, round(whole / (macs(arm) * step))) * step / images(arm.recipe)

    counts = {budget: [epochs(arm, budget) for arm in all_arms] for budget in plan.budget}
    return {
        budget: [
            Trial(arm, number, count) for number in range(plan.seeds) for arm, count in zip(all_arms, own, strict=True)
        ]
        for budget, own in counts.items()
    }


def differences(cells: Sequence[Trial]) -> list[str]:
    """The settings outside the objective in which any two trained cells differ: ``fair``, beside the seed."""
    recipes = [cell.recipe for cell in cells if cell.arm.method not in BASELINES]
    names = {name for recipe in recipes for name in fair(recipes[0], recipe)} - {"seed"}
    return [name for name in dotted(recipes[0]) if name in names]


def unique(cells: Iterable[Trial]) -> list[Trial]:
    """The cells in their sequence, those that two budgets share once."""
    return list({cell.name: cell for cell in cells}.values())
