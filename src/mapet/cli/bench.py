"""``mapet bench``: the speed of a training step on this machine."""

from dataclasses import dataclass, field, fields

from mapet.api.benchmark.run import benchmark, without_data
from mapet.api.settings import changes
from mapet.cli.options import joined, parse, positional, separated, take
from mapet.config.benchmark import LISTS, BenchmarkSettings
from mapet.config.recipe import Recipe
from mapet.utils.errors import MapetError

ABOUT = """Time a training step: images/s, memory, share of the machine's peak, and the predicted time.

RECIPE is a name or FILE.yaml (or --recipe RECIPE); the options below change its settings. Every combination of the
lists is a case. Rows are written as soon as they are measured; Ctrl-C keeps them.

With --data, steps are also measured with loading of these images and random tokens."""


@dataclass(frozen=True)
class Options(BenchmarkSettings):
    """Options of ``mapet bench RECIPE``."""

    out: str = "bench"
    """Folder for bench.json and bench.md."""
    recipe: Recipe = field(default_factory=Recipe)


def command(arguments: list[str]) -> int:
    """Parse and measure, which prints each row; 2 if anything could not be measured."""
    name, arguments = take(arguments, "--recipe")
    words, rest = positional(joined(arguments, LISTS), Options())
    if len(words) + (name is not None) > 1:
        raise MapetError(f'mapet bench takes one RECIPE, got also "{words[-1]}": separate lists by commas.')
    base = without_data(words[0] if words else name)
    o = parse(Options(recipe=base), separated(rest, LISTS), "bench RECIPE", ABOUT)
    settings = BenchmarkSettings(**{one.name: getattr(o, one.name) for one in fields(BenchmarkSettings)})
    report = benchmark(base, o.out, settings=settings, **changes(base, o.recipe))
    return 2 if report.failed else 0
