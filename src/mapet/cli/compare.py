"""``mapet compare``: several objectives under one setting, with seeds, into one table."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.compare.plan import Plan
from mapet.cli.options import listed, parse, positional, take
from mapet.config.objectives import absolute_name
from mapet.config.recipe import OWNERS, Recipe, Runtime
from mapet.utils.errors import MapetError
from mapet.utils.owned import require_apart

if TYPE_CHECKING:
    pass
from mapet.api.compare.run import _begun, compare

ABOUT = """Train objectives under one setting, measure them, and write one table with seeds.

RECIPE is a name or FILE.yaml; its settings can be changed by the options below. All runs share them, their tokens, the
sequence of the images and, seed by seed, the encoder's first weights.

--resume OUT goes on with an interrupted comparison; so does the same command again. With other --objectives,
--baselines, --seeds, --evaluate or --budget it grows by them: nothing is done twice, and the tables hold all."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet compare RECIPE``."""

    out: str = ""
    """Folder for everything; one that was interrupted goes on."""
    objectives: str = "mapet,pet,mim,cae,mae"
    """Objectives, separated by commas; under equal compute the first is the measure."""
    baselines: str = ""
    """random (the encoder as it is drawn), scratch (trained with labels alone, by --tuning), or both."""
    seeds: int = 3
    """Runs of each, under seeds from --seed on."""
    evaluate: str = "knn,linear"
    """knn, linear, linear-mae, linear-beit, attentive, fewshot, finetune: any of them."""
    budget: str = "epochs"
    """epochs (the same number for all), compute (as many steps as cost the first one's), or both."""
    vary: tuple[str, ...] = ()
    """SETTING=VALUE,VALUE,...: a grid over any setting of the recipe by its option's name; context is the share that is
    given, 1 - mask-ratio; all stands for None. May come several times."""
    tokenizers: str = ""
    """Folders of tokenizers or of their tokens, separated by commas: a grid over them."""
    knn_every: float = 0.0
    """k-NN accuracy while training, every so many epochs, which may be a fraction; 0: none."""
    eval_data: str | None = None
    """Labelled images: a folder with one sub-folder per class, or cifar10; None: those of the recipe."""
    eval_limit: int | None = None
    """Use only so many labelled training images, chosen at random; None: all."""
    tuning: str | None = None
    """Settings of finetune and scratch: the name of a fine-tuning recipe or FILE.yaml; None: the defaults."""
    recipe: Recipe = field(default_factory=Recipe)
    runtime: Runtime = field(default_factory=Runtime)


def command(arguments: list[str]) -> int:
    """Parse, train and measure, write."""
    from mapet.cli.training import again, stoppable

    folder, arguments = take(arguments, "--resume")
    if folder is not None:
        runtime = parse(Runtime(), arguments, "compare --resume OUT", ABOUT)
        plan, out = _begun(Path(folder)), Path(folder)
    else:
        plan, out, runtime = _asked(arguments)
    if runtime.processes > 1:
        raise MapetError("mapet compare trains one run after another on one device: leave --devices out.")
    return stoppable(lambda: compare(plan, out, runtime), again(str(out), runtime, "compare"), out)


def _asked(arguments: list[str]) -> tuple[Plan, Path, Runtime]:
    from mapet.api.finetune import named_tuning
    from mapet.api.pretrain import anchored
    from mapet.api.settings import is_file, named_recipe
    from mapet.api.tokenize import require_one_way

    varied, arguments = _all(arguments, "--vary")
    words, rest = positional(arguments, Options())
    if len(words) > 1:
        raise MapetError(f'mapet compare takes one RECIPE, got also "{words[1]}": separate lists by commas.')
    recipe = named_recipe(words[0] if words else None)
    _check_objective(rest, recipe.objective.name)
    o = parse(Options(recipe=recipe), rest, "compare RECIPE", ABOUT)
    if not o.recipe.data or not o.out:
        raise MapetError("mapet compare needs --data (a folder of images, or cifar10) and --out (a folder).")
    t = o.recipe.tokenizer
    require_apart(o.out, RECIPE=words[0] if words and is_file(words[0]) else None, tuning=o.tuning)
    require_apart(o.out, data=o.recipe.data, eval_data=o.eval_data, tokens=o.recipe.tokens, tokenizer=t.path)
    require_apart(o.out, teacher=t.teacher, teacher_weights=t.teacher_weights)
    for folder in listed(o.tokenizers):
        require_apart(o.out, tokenizers=folder)
    ready = {"tokens": o.recipe.tokens, "tokenizer": t.path, "tokenizers": o.tokenizers}
    require_one_way(t, recipe.tokenizer, **ready)
    plan = Plan(
        objectives=tuple(map(absolute_name, listed(o.objectives))),
        baselines=listed(o.baselines),
        seeds=o.seeds,
        evaluate=listed(o.evaluate),
        budget=listed(o.budget),
        vary=varied,
        tokenizers=tuple(str(Path(folder).expanduser().absolute()) for folder in listed(o.tokenizers)),
        knn_every=o.knn_every,
        eval_data=_absolute(o.eval_data),
        eval_limit=o.eval_limit,
        recipe=anchored(o.recipe),
        tuning=named_tuning(o.tuning),
    )
    return plan, Path(o.out), o.runtime


def _check_objective(arguments: list[str], named: str) -> None:
    """Refuse options that would fit one objective alone."""
    given = {argument.partition("=")[0].replace("_", "-").replace("--no-", "--") for argument in arguments}
    if "--objective" in given:
        raise MapetError("mapet compare takes --objectives, separated by commas, and no --objective.")
    for name, owners in OWNERS.items():
        option = name.replace("_", "-")
        if f"--{option}" in given and named not in owners:
            raise MapetError(f"--{option} is for {' and '.join(owners)}: in a comparison say --vary {option}=VALUE.")


def _all(arguments: list[str], option: str) -> tuple[tuple[str, ...], list[str]]:
    """The values of an option that may come several times, and the rest of the arguments."""
    found: list[str] = []
    while True:
        value, arguments = take(arguments, option)
        if value is None:
            return tuple(found), arguments
        found.append(value)


def _absolute(data: str | None) -> str | None:
    return data if data in (None, "cifar10") else str(Path(data).expanduser().absolute())
