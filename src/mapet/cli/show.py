"""``mapet show``: a recipe's attention pattern, what it costs, and how long its training takes."""

from dataclasses import dataclass, field

from mapet.cli.options import Preset, given
from mapet.config.estimate import EstimateSettings
from mapet.config.flat import updated
from mapet.config.recipe import Recipe

HINT = "hours      give --bench FILE (of mapet bench), --measure or --tflops"


@dataclass(frozen=True)
class Options:
    """Options of ``mapet show``."""

    figure: str | None = None
    """Also draw the pattern next to MIM's and PeT's, into this .svg or .png file."""
    preset: Preset = field(default_factory=Preset)
    time: EstimateSettings = field(default_factory=EstimateSettings)
    recipe: Recipe = field(default_factory=Recipe)


def command(arguments: list[str]) -> int:
    """Parse, draw, estimate, print."""
    from mapet.api.estimate import estimate
    from mapet.api.settings import named_recipe
    from mapet.api.show import draw, show

    about = "Draw a recipe's attention pattern, count its cost, and estimate the hours of its training."
    settings = given(Options(), arguments, "show", about)
    o = updated(Options(recipe=named_recipe(settings.pop("recipe", None))), **settings)
    print(show(o.recipe))
    print(estimate(o.recipe, settings=o.time) if o.time.has_rate else HINT)
    if o.figure:
        print(f"figure     {draw(o.figure, o.recipe)}")
    return 0
