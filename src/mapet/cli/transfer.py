"""``mapet transfer``: one encoder on several data sets."""

from dataclasses import dataclass, field

from mapet.api.transfer import transfer
from mapet.cli.options import require
from mapet.cli.output import made
from mapet.cli.probe import parse_from
from mapet.cli.training import stoppable
from mapet.config.evaluate import EvaluateSettings

ABOUT = """Evaluate an encoder on several data sets: one table with 95 % intervals, printed, and as JSON and Markdown.

Run the same command again to continue after an interruption."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet transfer``."""

    run: str = ""
    """FROM: a run or export folder, an official-format checkpoint, or a timm model; the same as FROM."""
    data: str = ""
    """Sets of labelled images, separated by commas: folders with one sub-folder per class, or cifar10."""
    out: str = ""
    """Folder for the table and the fine-tunings; must be empty or absent, or hold an interrupted call."""
    protocols: str = "knn,linear"
    """One or more of knn, linear, linear-mae, linear-beit, attentive, fewshot, separated by commas."""
    finetune: bool = False
    """Also fine-tune on each set."""
    recipe: str | None = None
    """Settings of the fine-tunings: a recipe's name, or FILE.yaml; None: the defaults."""
    settings: EvaluateSettings = field(default_factory=EvaluateSettings)


def command(arguments: list[str]) -> int:
    """Parse, evaluate, print the table."""
    o = parse_from(Options(), arguments, "transfer", ABOUT)
    require("transfer", run=o.run, data=o.data, out=o.out)

    def work() -> None:
        found = transfer(
            o.run, o.data, o.out, protocols=o.protocols, finetune=o.finetune, recipe=o.recipe, settings=o.settings
        )
        print(made(found).text())
        print(f"table in {o.out}")

    return stoppable(work, "the same command")
