"""``mapet show``: the attention pattern of a recipe, drawn, what it costs, and how long its training takes."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mapet.api.estimate import Hours, estimate_time
from mapet.cli.options import parse, positional, take
from mapet.config.recipe import Recipe
from mapet.utils.errors import MapetError
from mapet.utils.log import say

if TYPE_CHECKING:
    pass
from mapet.api.show import cost, drawing


@dataclass(frozen=True)
class Options:
    """Options of ``mapet show``."""

    vocabulary: int = 8192
    """Number of different tokens."""
    hours: Hours = field(default_factory=Hours)
    recipe: Recipe = field(default_factory=Recipe)


def command(arguments: list[str]) -> int:
    """Parse, draw, count."""
    from mapet.api.settings import named_recipe

    name, arguments = take(arguments, "--recipe")
    words, rest = positional(arguments, Options())
    if len(words) + (name is not None) > 1:
        raise MapetError(f'mapet show takes one RECIPE, got also "{words[-1]}".')
    about = "Draw a recipe's attention pattern, count its cost, and predict the hours of its training."
    o = parse(Options(recipe=named_recipe(words[0] if words else name)), rest, "show", about)
    say(drawing(o.recipe))
    say()
    say(cost(o.recipe, o.vocabulary))
    say(estimate_time(o.recipe, o.vocabulary, o.hours))
    return 0
