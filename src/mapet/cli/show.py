"""``mapet show``: a recipe's attention pattern, what it costs, and how long its training takes."""

from dataclasses import dataclass, field

from mapet.cli.options import Preset, given, recipe_in
from mapet.cli.output import made
from mapet.config.estimate import EstimateSettings
from mapet.config.flat import updated
from mapet.config.recipe import Recipe

HINT = "hours      give --bench FILE (of mapet bench), --measure or --tflops"


@dataclass(frozen=True)
class Options(Preset):
    """Options of ``mapet show``."""

    figure: str | None = None
    """Also draw the pattern next to MIM's and PeT's, into this .svg or .png file."""
    overwrite: bool = False
    """Replace an earlier figure."""
    time: EstimateSettings = field(default_factory=EstimateSettings)
    settings: Recipe = field(default_factory=Recipe)


def command(arguments: list[str]) -> int:
    """Parse, draw, estimate, print."""
    from mapet.api.estimate import estimate
    from mapet.api.settings import named_recipe
    from mapet.api.show import draw, show

    about = "Draw a recipe's attention pattern, count its cost, and estimate the hours of its training."
    found = given(Options(settings=named_recipe(recipe_in(arguments))), arguments, "show", about)
    o = updated(Options(settings=named_recipe(found.get("recipe"))), **found)
    drawn = draw(o.figure, o.settings, overwrite=o.overwrite) if o.figure is not None else None
    print(made(show(o.settings)))
    print(made(estimate(o.settings, settings=o.time)) if o.time.has_rate else HINT)
    if drawn:
        print(f"figure     {drawn}")
    return 0
