"""``mapet show``: a recipe's attention pattern, what it costs, and how long its training takes."""

from dataclasses import dataclass, field

from mapet.cli.options import parse, positional, take
from mapet.config.estimate import EstimateSettings
from mapet.config.recipe import Recipe
from mapet.utils.errors import MapetError

HINT = "hours      give --bench FILE (of mapet bench), --measure or --tflops"


@dataclass(frozen=True)
class Options:
    """Options of ``mapet show``."""

    time: EstimateSettings = field(default_factory=EstimateSettings)
    recipe: Recipe = field(default_factory=Recipe)


def command(arguments: list[str]) -> int:
    """Parse, draw, estimate, print."""
    from mapet.api.estimate import estimate
    from mapet.api.settings import named_recipe
    from mapet.api.show import show

    name, arguments = take(arguments, "--recipe")
    words, rest = positional(arguments, Options())
    if len(words) + (name is not None) > 1:
        raise MapetError(f'mapet show takes one RECIPE, got also "{words[-1]}".')
    about = "Draw a recipe's attention pattern, count its cost, and estimate the hours of its training."
    o = parse(Options(recipe=named_recipe(words[0] if words else name)), rest, "show", about)
    print(show(o.recipe))
    print(estimate(o.recipe, settings=o.time) if o.time.has_rate else HINT)
    return 0
