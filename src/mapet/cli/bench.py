"""``mapet bench``: the speed of a training step on this machine."""

from dataclasses import dataclass, field

from mapet.api.benchmark.run import benchmark, without_data
from mapet.cli.options import Preset, given, recipe_in
from mapet.cli.output import made
from mapet.config.benchmark import BenchmarkSettings
from mapet.config.recipe import Recipe

ABOUT = """Time a training step: images/s, memory, share of the machine's peak, and the predicted time.

RECIPE is a name or FILE.yaml (or --recipe RECIPE); the options below change its settings. Every combination of the
lists is a case. Rows are written as soon as they are measured; Ctrl-C keeps them.

With --data, steps are also measured with loading of these images and random tokens."""


@dataclass(frozen=True)
class Options(Preset):
    """Options of ``mapet bench RECIPE``."""

    out: str = "bench"
    """Folder for bench.json and bench.md."""
    benchmark: BenchmarkSettings = field(default_factory=BenchmarkSettings)
    settings: Recipe = field(default_factory=Recipe)


def command(arguments: list[str]) -> int:
    """Parse and measure, which prints each row; 2 if anything could not be measured."""
    default = Options(settings=without_data(recipe_in(arguments)))
    report = made(benchmark(**given(default, arguments, "bench RECIPE", ABOUT)))
    return 2 if report.failed else 0
