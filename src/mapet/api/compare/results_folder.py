"""How far a comparison has come: its folder.

compare.yaml   all that was asked for; a comparison under other settings is refused here
tokens/        made once for all runs, where they were not given
runs/          one run's folder a cell
scores/        one JSON file a cell: its cost and every finished evaluation
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.compare.plan import Plan, Trial
from mapet.config.recipe import diff, read, save
from mapet.utils.errors import MapetError
from mapet.utils.io import replace_file
from mapet.utils.lock import LOCK, Lock

if TYPE_CHECKING:
    from mapet.engine.run import Run
    from mapet.evals.score import Score

PLAN = "compare.yaml"
LISTS = ("objectives", "baselines", "evaluate", "budget")  # a cell's result does not hang on its neighbours
GROWING = (*LISTS, "seeds")
PLACES = {"tokens", "tokenizer.tokenizer", "start"}  # that may lie in the comparison's folder
LABELLED = ("eval_data", "eval_limit")  # what scores hang on, and runs do not


class ResultsFolder:
    """The folder of one comparison. What is written is whole after a kill at any moment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    @contextmanager
    def begun(cls, folder: Path, plan: Plan) -> Iterator["ResultsFolder"]:
        """The folder of this plan, for this process alone; it is made if need be.

        Args:
            folder: new, empty, or of a comparison.
            plan: as it is ``merge_plans`` there.

        Raises:
            MapetError: it holds something other than a comparison, another process works on that, or has just made it
                grow.
        """
        old = (PLAN, f"{PLAN}.part", LOCK)
        taken = folder.exists() and (not folder.is_dir() or any(path.name not in old for path in folder.iterdir()))
        if taken and not (folder / PLAN).is_file():
            raise MapetError(f"{folder} is not empty and holds no comparison: give another --out.")
        with Lock(folder, "working on the comparison in"):
            if merge_plans(folder, plan) != plan:
                raise MapetError(f"{folder} has grown since this command began: give it again.")
            folder.mkdir(parents=True, exist_ok=True)
            save(plan, folder / PLAN)
            yield cls(folder)

    def run(self, cell: Trial) -> Path:
        """The run's folder."""
        return self.folder / "runs" / cell.name

    def known(self, cell: Trial) -> dict[str, Any]:
        """What has been noted of a cell."""
        path = self._path(cell)
        known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return known

    def note(self, cell: Trial, what: str, value: Any) -> None:
        """Add to what is known of a cell."""
        path = self._path(cell)
        path.parent.mkdir(exist_ok=True)
        replace_file(path, json.dumps({**self.known(cell), what: value}, indent=1) + "\n")

    def note_scores(self, cell: Trial, what: str, scores: "Mapping[str, Score]") -> None:
        """Add the scores of one evaluation."""
        self.note(cell, what, {name: vars(score) for name, score in scores.items()})

    def _path(self, cell: Trial) -> Path:
        return self.folder / "scores" / f"{cell.name}.json"


def follow(settings: Any, run: "Run") -> None:
    """Let a run's recipe name its tokens and its start where they are, after the folder was moved.

    Raises:
        MapetError: another process trains there.
    """
    with run.lock():
        if PLACES.issuperset(other := diff(read(run.recipe, type(settings)), settings)) and other:
            save(settings, run.recipe)


def merge_plans(folder: Path, plan: Plan) -> Plan:
    """The plan together with what the folder's comparison has already, whose runs and measures come first.

    Raises:
        MapetError: that is a comparison under other settings.
    """
    if not (folder / PLAN).is_file():
        return plan
    before = read(folder / PLAN, Plan)
    _require_alike(folder, plan, before)
    both: dict[str, Any] = {
        name: tuple(dict.fromkeys([*getattr(before, name), *getattr(plan, name)])) for name in LISTS
    }
    return replace(plan, **both, seeds=max(before.seeds, plan.seeds))


def _require_alike(folder: Path, plan: Plan, before: Plan) -> None:
    for name, (asked, there) in diff(plan, before).items():
        tokens = name == "objectives" and plan.reads_tokens > before.reads_tokens  # runs that know of none are there
        if tokens or not (name in GROWING or _idle(folder, name)):
            raise MapetError(
                f"{folder} holds another comparison, with {name} = {_short(there)}, and {_short(asked)} is asked "
                f"for: give another --out, or go on with that by --resume {folder}."
            )


def _idle(folder: Path, name: str) -> bool:
    """Whether nothing that the folder holds hangs on a setting yet."""
    tuned = any((folder / "runs").glob("*-finetune")) or any((folder / "runs").glob("scratch-*"))
    scores = (json.loads(path.read_text()).keys() - {"cost"} for path in (folder / "scores").glob("*.json"))
    return not tuned and (name.startswith("tuning.") or (name in LABELLED and not any(scores)))


def _short(value: Any) -> str:
    return ",".join(value) or "nothing" if isinstance(value, tuple) else str(value)
