"""``mapet finetune``: a pre-trained encoder and labelled images in, a classifier and its accuracy out."""

from dataclasses import dataclass, field

from mapet.api.finetune import finetune, named_tuning
from mapet.cli.training import train_from
from mapet.config.finetune import FinetuneRecipe
from mapet.config.runtime import Runtime

ABOUT = """Train a classifier on labelled images, starting from FROM.

FROM is a run, an export folder, an official-format checkpoint, a timm model, or random.

--recipe NAME (or FILE.yaml) sets the defaults of all other options.

--resume OUT continues an interrupted fine-tuning; with --data, if the images lie elsewhere now."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet finetune FROM``."""

    out: str = ""
    """Folder for the run; must be empty or absent."""
    overwrite: bool = False
    """Replace the run in the folder once this one trains; only files that mapet wrote are deleted."""
    evaluate_every: int = 0
    """Test after every so many epochs, and at the end; 0: at the end only."""
    tuning: FinetuneRecipe = field(default_factory=FinetuneRecipe)
    runtime: Runtime = field(default_factory=Runtime)


def command(arguments: list[str]) -> int:
    """Parse, then train or resume."""
    return train_from(arguments, Options, "tuning", named_tuning, finetune, "finetune", ABOUT)
