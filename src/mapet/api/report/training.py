"""The report of a training of another kind: of a segmentation model, or of a VQ-KD tokenizer."""

from functools import partial
from pathlib import Path

from mapet.api.report.sections import RunFiles, filled, section
from mapet.config.report import ReportSettings
from mapet.utils.errors import MapetError
from mapet.viz.report.page import Page

TITLES = {"segmenter.json": "Segmentation", "tokenizer.json": "Tokenizer"}


def page(folder: Path, s: ReportSettings) -> Page:
    """Scores, curves, recipe.

    Raises:
        MapetError: the folder is of a tokenizer that was not trained.
    """
    files, name = RunFiles(folder), folder.resolve().name
    if not files.run.recipe.is_file():
        raise MapetError(
            f"{folder} holds a tokenizer: mapet tokenizer inspect measures it, and its folder has a report."
        )
    title = next(one for file, one in TITLES.items() if (folder / file).is_file())
    sections = [
        section("Scores", files.scores),
        section("Training", partial(files.curves, "Loss over steps")),
        section("Recipe, command and versions", files.origin),
    ]
    return Page(f"{title}: {name}", f"A training of {files.steps:,} steps.", filled(sections), files.notes())
