"""Settings of ``mapet compare``."""

from typing import Annotated, Literal, get_args

from pydantic import Field

from mapet.config.objectives import known_objectives, short_name
from mapet.config.recipe import OBJECTIVES
from mapet.config.setting import Count, Listed, PathText, Rate, Repeated, distinct, require, settings
from mapet.utils.errors import nearest

Baseline = Literal["random", "scratch"]
BASELINES = get_args(Baseline)
Evaluation = Literal[
    "knn", "linear", "linear-mae", "linear-beit", "attentive", "fewshot", "finetune", "segment-linear", "segment-knn"
]
SEGMENTATION = ("segment-linear", "segment-knn")


@settings
class CompareSettings:
    """What is compared and how it is measured; lists of names may also be one string with commas."""

    objectives: Annotated[Listed[str], Field(min_length=1)] = OBJECTIVES
    """Objectives, separated by commas; under equal compute the first sets the budget."""
    baselines: Listed[Baseline] = ()
    """random (the untrained encoder), scratch (trained on labels alone, with --tuning), or both."""
    seeds: Count = 3
    """Runs per objective, with seeds from --seed on."""
    evaluate: Annotated[Listed[Evaluation], Field(min_length=1)] = ("knn", "linear")
    """One or more of knn, linear, linear-mae, linear-beit, attentive, fewshot, finetune; segment-linear, segment-knn
    with --segment-data."""
    budget: Annotated[Listed[Literal["epochs", "compute"]], Field(min_length=1)] = ("epochs",)
    """epochs (equal epochs for all), compute (equal compute, that of the first objective), or both."""
    vary: Repeated = ()
    """SETTING=VALUE,VALUE,...: a grid over any setting of the recipe, by its option's name; context is 1 - mask-ratio;
    all stands for None. May be repeated."""
    tokenizers: Listed[str] = ()
    """A grid over these folders of tokenizers or of tokens, separated by commas."""
    knn_every: Rate = 0.0
    """Measure k-NN accuracy during training every so many epochs (fractions allowed); 0: never."""
    eval_data: PathText | None = None
    """Labelled images: a folder with one sub-folder per class, or cifar10; None: the recipe's --data."""
    eval_limit: Count | None = None
    """Use only so many labelled training images, chosen at random; None: all."""
    segment_data: PathText | None = None
    """Segmentation set of segment-linear and segment-knn, as --data of segment."""

    def __post_init__(self) -> None:
        names, known = list(map(short_name, self.objectives)), known_objectives(self.objectives)
        require(
            *((name in known, f'--objectives: there is no "{name}".{nearest(name, known)}') for name in names),
            (
                "random" not in self.baselines or set(self.evaluate) != {"finetune"},
                "--baselines random cannot be fine-tuned; use scratch, or add another --evaluate.",
            ),
            (
                bool(self.segment_data) or not set(SEGMENTATION) & set(self.evaluate),
                "--evaluate segment-linear and segment-knn need --segment-data, a segmentation set.",
            ),
        )
        distinct(names, "objectives")  # of two files
