"""``mapet compare``: several objectives under one setting, with seeds, in one table."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mapet.api.compare.run import compare, resume
from mapet.api.kept_runtime import kept
from mapet.api.settings import named_recipe
from mapet.cli.options import Preset, given, parse, recipe_in, take
from mapet.cli.output import made
from mapet.config.compare import CompareSettings
from mapet.config.flat import updated_from
from mapet.config.recipe import Recipe, Runtime

ABOUT = """Train objectives under one setting, measure them, and write one table with seeds.

RECIPE is a name or FILE.yaml; the options below change its settings. All runs share them, their tokens, the order of
the images and, per seed, the initial weights of the encoder.

--resume OUT resumes an interrupted comparison; so does the same command. Re-running with other --objectives,
--baselines, --seeds, --evaluate or --budget adds to the existing results."""


@dataclass(frozen=True)
class Options(Preset):
    """Options of ``mapet compare RECIPE``."""

    out: str = ""
    """Folder for all files and runs; an interrupted comparison in it is resumed."""
    tuning: str | None = None
    """Settings of finetune and scratch: the name of a fine-tuning recipe or FILE.yaml; None: the defaults."""
    comparison: CompareSettings = field(default_factory=CompareSettings)
    settings: Recipe = field(default_factory=Recipe)
    runtime: Runtime = field(default_factory=Runtime)


def command(arguments: list[str]) -> int:
    """Parse, compare, print the tables."""
    from mapet.cli.training import again, stoppable

    folder, arguments = take(arguments, "--resume")
    if folder is not None:
        runtime = parse(kept(folder, Runtime), arguments, "compare --resume OUT", ABOUT)
        work, out = partial(resume, folder, runtime), folder
    else:
        default = Options(settings=named_recipe(recipe_in(arguments)))
        found = given(default, arguments, "compare RECIPE", ABOUT)
        runtime, out = updated_from(Runtime(), dict(found)), found.get("out", "")
        work = partial(compare, **found)
    return stoppable(lambda: print(f"\n{made(work())}"), again(out, runtime, "compare"), Path(out))
