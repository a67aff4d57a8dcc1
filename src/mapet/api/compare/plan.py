"""The plan of a comparison, and its runs.

A *variant* is a method (an objective or a baseline) with one choice of the varied settings; all variants share the rest
of the recipe. A *trial* is a variant with its epochs under a budget and one seed.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from mapet.config.compare import BASELINES, CompareSettings
from mapet.config.finetune import FinetuneRecipe
from mapet.config.flat import dotted, earlier, paths, updated
from mapet.config.objectives import is_own, reads_tokens, short_name
from mapet.config.recipe import OBJECTIVES, OWNERS, Objective, Recipe, fair
from mapet.config.setting import distinct, settings
from mapet.utils.errors import MapetError, nearest

EPOCHS = "optimization.epochs"
FIXED = {  # settings that --vary does not take
    "objective": "give --objectives",
    "seed": "give --seeds",
    "tokenizer": "give --tokenizers",
    "tokens": "give --tokenizers",
    "data": "compare on one data set at a time",
}

Label = tuple[tuple[str, str], ...]


@settings
class Plan(CompareSettings):
    """A comparison: its settings, the recipe that all variants share, and how they are fine-tuned."""

    recipe: Recipe = field(default_factory=Recipe)
    tuning: FinetuneRecipe = field(default_factory=FinetuneRecipe)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokenizers and (self.recipe.tokens or self.recipe.tokenizer.path):
            raise MapetError("--tokenizers only applies without --tokens and --tokenizer; remove one of them.")
        replace(self.recipe, seed=self.recipe.seed + self.seeds - 1)  # refuses seeds beyond the limit

    @property
    def labelled(self) -> str:
        """The labelled images."""
        return self.eval_data or self.recipe.data

    @property
    def reads_tokens(self) -> bool:
        """Whether any objective reads tokens; if so, the tokens decide for all runs which images are unreadable."""
        return any(for_method(self.recipe, method).reads_tokens for method in self.objectives)

    @property
    def measures(self) -> list[str]:
        """The evaluations, including that of training from scratch."""
        return list(dict.fromkeys([*self.evaluate, *(["finetune"] if "scratch" in self.baselines else [])]))


@dataclass(frozen=True)
class Variant:
    """One way of training; ``vocabulary`` is set once the tokens exist."""

    method: str
    label: Label
    recipe: Recipe
    vocabulary: int = 0

    @property
    def setting(self) -> str:
        """The varied settings as text."""
        return ", ".join(f"{name}={text}" for name, text in self.label)


@dataclass(frozen=True)
class Trial:
    """One run: a variant with the trial's epochs and seed."""

    variant: Variant
    number: int
    epochs: float

    @property
    def recipe(self) -> Recipe:
        """The recipe of this run, whose warm-up is the same share of the run under every budget."""
        r, o = self.variant.recipe, self.variant.recipe.optimization
        warmup = o.warmup_epochs * (self.epochs / o.epochs)
        o = replace(o, epochs=self.epochs, warmup_epochs=warmup)
        return replace(r, seed=r.seed + self.number, optimization=o)

    @property
    def name(self) -> str:
        """The name of its folder."""
        chosen = [re.sub(r"[^\w.-]", "_", f"{name}{text}") for name, text in self.variant.label]
        trained = [f"{self.epochs:.6g}epochs"] if self.variant.method not in BASELINES else []
        return "-".join([short_name(self.variant.method), *chosen, *trained, f"seed{self.recipe.seed}"])


def variants(plan: Plan) -> list[Variant]:
    """All variants of a plan: the objectives in its order, then the baselines.

    A varied setting that a method does not have is ignored for it: the method stays one variant.

    Raises:
        MapetError: a setting that does not exist or cannot vary, or a value that makes no sense.
    """
    choices = [*_tokenizers(plan.tokenizers), *(_values(text, plan.recipe) for text in plan.vary)]
    distinct(varied := [values[0].setting for values in choices], "vary")
    if EPOCHS in varied and "compute" in plan.budget:
        raise MapetError("--vary epochs does not apply under --budget compute, which sets the epochs; remove one.")
    found: dict[tuple[str, Label], Variant] = {}
    for method, *chosen in product([*plan.objectives, *plan.baselines], *choices):
        own = [choice for choice in chosen if _has(method, choice.setting)]
        label = tuple((choice.name, choice.text) for choice in own)
        recipe = updated(for_method(plan.recipe, method), **{choice.flat: choice.value for choice in own})
        found.setdefault((method, label), Variant(method, label, recipe))
    return list(found.values())


def for_method(recipe: Recipe, method: str) -> Recipe:
    """The recipe with another objective, without settings that only apply to other objectives."""
    if method in BASELINES:
        return replace(recipe, objective=Objective())
    foreign = {
        name: getattr(Objective, name) for name, owners in OWNERS.items() if not (is_own(method) or method in owners)
    }
    return replace(recipe, objective=replace(recipe.objective, name=method, **foreign))


def _has(method: str, setting: str) -> bool:
    """Whether a method's result depends on a setting."""
    group, _, name = setting.rpartition(".")
    if method in BASELINES:
        return group == "model" and name != "drop_path"  # the fine-tuning recipe has its own
    if not reads_tokens(method) and (group == "tokenizer" or name == "tokens"):
        return False
    return is_own(method) or method in OWNERS.get(name, OBJECTIVES)


class Choice(NamedTuple):
    """One value of a varied setting: name and text as shown, flat and dotted name, value."""

    name: str
    text: str
    flat: str
    setting: str
    value: Any


def _tokenizers(folders: Sequence[str]) -> list[list[Choice]]:
    """The choice among folders of tokenizers or of tokens, if there is one."""
    names, known = [Path(folder).name for folder in folders], paths(Recipe())
    if len(set(names)) < len(names):
        raise MapetError(f"--tokenizers has two folders of one name ({', '.join(names)}): rename one.")
    kinds = ["tokens" if (Path(folder) / "store.json").is_file() else "tokenizer" for folder in folders]
    found = [
        Choice("tokenizer", name, kind, known[kind], folder)
        for name, kind, folder in zip(names, kinds, folders, strict=True)
    ]
    return [found] if found else []


def _values(text: str, recipe: Recipe) -> list[Choice]:
    """ "context=0.15,0.25" → one choice per value."""
    from pydantic import TypeAdapter, ValidationError

    flag, equals, values = text.partition("=")
    name = flag.strip().removeprefix("--").replace("-", "_")
    old = earlier(recipe)
    known = paths(recipe) | {"context": "objective.mask_ratio"}
    known |= {name: known[now] for name, now in old.items()}
    if name not in known or not equals or not values:
        hint = "" if name in known else nearest(name, known)
        raise MapetError(f'--vary takes SETTING=VALUE,VALUE, got "{text}".{hint}')
    if name in FIXED:
        raise MapetError(f"--vary {name} is not possible: {FIXED[name]}.")
    found, kind, shown = [], TypeAdapter(_type(known[name])), name.replace("_", "-")
    flat = "mask_ratio" if name == "context" else old.get(name, name)
    for written in values.split(","):
        given: Any = None if written in ("all", "None") else written.split(":") if ":" in written else written
        try:
            value = kind.validate_python(given)
        except ValidationError as error:
            raise MapetError(f"--vary {shown}={written}: {error.errors()[0]['msg']}.") from error
        found.append(Choice(shown, written, flat, known[name], 1 - value if name == "context" else value))
    return found


def _type(setting: str) -> Any:
    owner, name = Recipe, setting
    if "." in setting:
        group, name = setting.split(".")
        owner = get_type_hints(Recipe)[group]
    return get_type_hints(owner)[name]


def budgeted(
    plan: Plan, every: Sequence[Variant], macs: Callable[[Variant], int], images: Callable[[Recipe], int]
) -> dict[str, list[Trial]]:
    """The trials of each budget, seed by seed.

    Under equal epochs every variant trains for its recipe's epochs. Under equal compute it takes the number of steps
    (at least 1) whose training MACs × images come nearest to those of the first variant.

    Args:
        plan: names the budgets and counts the seeds.
        every: all variants; the first sets the compute.
        macs: of a variant's training step, per image.
        images: per epoch of a recipe.
    """

    def epochs(variant: Variant, budget: str) -> float:
        own = variant.recipe.optimization.epochs
        if budget == "epochs" or variant.method in BASELINES:
            return own
        first = every[0]
        total = macs(first) * images(first.recipe) * first.recipe.optimization.epochs
        batch_size = variant.recipe.optimization.batch_size
        return max(1, round(total / (macs(variant) * batch_size))) * batch_size / images(variant.recipe)

    counts = {budget: [epochs(variant, budget) for variant in every] for budget in plan.budget}
    return {
        budget: [
            Trial(variant, number, count)
            for number in range(plan.seeds)
            for variant, count in zip(every, own, strict=True)
        ]
        for budget, own in counts.items()
    }


def differences(trials: Sequence[Trial]) -> list[str]:
    """The settings outside objective and seed in which any two trained trials differ."""
    recipes = [trial.recipe for trial in trials if trial.variant.method not in BASELINES]
    names = {name for recipe in recipes for name in fair(recipes[0], recipe)} - {"seed"}
    return [name for name in dotted(recipes[0]) if name in names]


def unique(trials: Iterable[Trial]) -> list[Trial]:
    """The trials in order; those that two budgets share come once."""
    return list({trial.name: trial for trial in trials}.values())
