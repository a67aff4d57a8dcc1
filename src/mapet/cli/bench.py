"""``mapet bench``: the speed of a training step on this machine."""

from dataclasses import dataclass, field

from mapet.api.benchmark.run import benchmark, without_data
from mapet.api.settings import changes
from mapet.cli.options import Preset, given
from mapet.config.benchmark import BenchmarkSettings
from mapet.config.flat import updated
from mapet.config.recipe import Recipe

ABOUT = """Time a training step: images/s, memory, share of the machine's peak, and the predicted time.

RECIPE is a name or FILE.yaml (or --recipe RECIPE); the options below change its settings. Every combination of the
lists is a case. Rows are written as soon as they are measured; Ctrl-C keeps them.

With --data, steps are also measured with loading of these images and random tokens."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet bench RECIPE``."""

    out: str = "bench"
    """Folder for bench.json and bench.md."""
    preset: Preset = field(default_factory=Preset)
    settings: BenchmarkSettings = field(default_factory=BenchmarkSettings)
    recipe: Recipe = field(default_factory=Recipe)


def command(arguments: list[str]) -> int:
    """Parse and measure, which prints each row; 2 if anything could not be measured."""
    settings = given(Options(), arguments, "bench", ABOUT)
    base = without_data(settings.pop("recipe", None))
    o = updated(Options(recipe=base), **settings)
    report = benchmark(base, o.out, settings=o.settings, **changes(base, o.recipe))
    return 2 if report.failed else 0
