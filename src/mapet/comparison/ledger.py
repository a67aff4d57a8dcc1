"""How far a comparison has come: its folder.

compare.yaml   all that was asked for; a comparison under other settings is refused here
tokens/        made once for all runs, where they were not given
runs/          one run's folder a cell
scores/        one JSON file a cell: its cost and every finished evaluation
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.comparison.plan import Cell, Plan
from mapet.disk import replace_file
from mapet.errors import MapetError
from mapet.lock import alone
from mapet.recipe import diff, read, save

if TYPE_CHECKING:
    from mapet.evals.score import Score

PLAN = "compare.yaml"
LISTS = ("objectives", "baselines", "evaluate", "budget")  # a cell's result does not hang on its neighbours
GROWING = (*LISTS, "seeds")
PLACES = {"tokens", "tokenizer.tokenizer", "start"}  # that may lie in the comparison's folder
LABELLED = ("eval_data", "eval_limit")  # what scores hang on, and runs do not


class Ledger:
    """The folder of one comparison. What is written is whole after a kill at any moment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def begin(cls, folder: Path, plan: Plan) -> "Ledger":
        """The folder of this plan, made if need be; one that holds a comparison goes on with it ``grown``.

        Raises:
            MapetError: it holds something other than a comparison, or another process works on that.
        """
        ledger = cls(folder)
        taken = folder.exists() and (
            not folder.is_dir() or any(path.name != f"{PLAN}.part" for path in folder.iterdir())
        )
        if (folder / PLAN).is_file():
            with ledger.alone():
                if read(folder / PLAN, Plan) == plan:
                    return ledger
        elif taken:
            raise MapetError(f"{folder} is not empty and holds no comparison: give another --out.")
        folder.mkdir(parents=True, exist_ok=True)
        save(plan, folder / PLAN)
        return ledger

    def alone(self) -> AbstractContextManager[None]:
        """Keep other processes from working on this comparison meanwhile.

        Raises:
            MapetError: one does.
        """
        return alone(self.folder / PLAN, "working on the comparison in")

    def run(self, cell: Cell) -> Path:
        """The run's folder."""
        return self.folder / "runs" / cell.name

    def known(self, cell: Cell) -> dict[str, Any]:
        """What has been noted of a cell."""
        path = self._path(cell)
        known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return known

    def note(self, cell: Cell, what: str, value: Any) -> None:
        """Add to what is known of a cell."""
        path = self._path(cell)
        path.parent.mkdir(exist_ok=True)
        replace_file(path, json.dumps({**self.known(cell), what: value}, indent=1) + "\n")

    def note_scores(self, cell: Cell, what: str, scores: "Mapping[str, Score]") -> None:
        """Add the scores of one evaluation."""
        self.note(cell, what, {name: vars(score) for name, score in scores.items()})

    def _path(self, cell: Cell) -> Path:
        return self.folder / "scores" / f"{cell.name}.json"


def follow(settings: Any, path: Path) -> None:
    """Let a run's recipe at ``path`` name its tokens and its start where they are, after the folder was moved."""
    if PLACES.issuperset(other := diff(read(path, type(settings)), settings)) and other:
        save(settings, path)


def grown(folder: Path, plan: Plan) -> Plan:
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
