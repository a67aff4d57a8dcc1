"""``mapet compare``: several objectives under one setting, with seeds, in one table."""

from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

from mapet.api.compare.run import compare, require_shared, resume
from mapet.api.kept_runtime import kept
from mapet.api.settings import changes
from mapet.cli.options import joined, parse, positional, take, take_all
from mapet.config.compare import LISTS, CompareSettings
from mapet.config.recipe import Recipe, Runtime
from mapet.utils.errors import MapetError

ABOUT = """Train objectives under one setting, measure them, and write one table with seeds.

RECIPE is a name or FILE.yaml; the options below change its settings. All runs share them, their tokens, the order of
the images and, per seed, the initial weights of the encoder.

--resume OUT resumes an interrupted comparison; so does the same command. Re-running with other --objectives,
--baselines, --seeds, --evaluate or --budget adds to the existing results."""


@dataclass(frozen=True)
class Options(CompareSettings):
    """Options of ``mapet compare RECIPE``."""

    out: str = ""
    """Folder for all files and runs; an interrupted comparison in it is resumed."""
    tuning: str | None = None
    """Settings of finetune and scratch: the name of a fine-tuning recipe or FILE.yaml; None: the defaults."""
    recipe: Recipe = field(default_factory=Recipe)
    runtime: Runtime = field(default_factory=Runtime)


def command(arguments: list[str]) -> int:
    """Parse, compare, print the tables."""
    from mapet.cli.training import again, stoppable

    folder, arguments = take(arguments, "--resume")
    if folder is not None:
        runtime = parse(kept(folder, Runtime), arguments, "compare --resume OUT", ABOUT)
        work, out = partial(resume, folder, runtime), folder
    else:
        word, base, o = _parsed(arguments)
        runtime, out = o.runtime, o.out
        chosen = CompareSettings(**{one.name: getattr(o, one.name) for one in fields(CompareSettings)})
        changed = changes(base, o.recipe)
        work = partial(compare, word, out, settings=chosen, tuning=o.tuning, runtime=runtime, **changed)
    return stoppable(lambda: print(f"\n{work()}"), again(out, runtime, "compare"), Path(out))


def _parsed(arguments: list[str]) -> tuple[str | None, Recipe, Options]:
    """RECIPE, its settings, and all options."""
    from mapet.api.settings import named_recipe

    varied, arguments = take_all(arguments, "--vary")
    words, rest = positional(joined(arguments, LISTS), Options())
    if len(words) > 1:
        raise MapetError(f'mapet compare takes one RECIPE, got also "{words[1]}": separate lists by commas.')
    word = words[0] if words else None
    base = named_recipe(word)
    names = (argument.partition("=")[0].replace("--no-", "--") for argument in rest if argument.startswith("--"))
    require_shared((name[2:].replace("-", "_") for name in names), base.objective.name)
    return word, base, parse(Options(vary=varied, recipe=base), rest, "compare RECIPE", ABOUT)
