"""The folder of a comparison, which records what is done.

compare.yaml   the plan; a comparison with other settings is refused
runtime.json   settings that a resume takes over: --max-bad-fraction, --micro-batch-size
tokens/        made once for all runs, unless given
runs/          one run folder per trial
scores/        one JSON file per trial: its cost and every finished evaluation
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.compare.plan import Plan, Trial
from mapet.config.compare import SEGMENTATION
from mapet.config.file import read, read_run, save
from mapet.config.flat import diff
from mapet.utils.errors import MapetError
from mapet.utils.fingerprint import KEY, is_intact, sealed
from mapet.utils.io import load_json, replace_file
from mapet.utils.lock import LOCK, Lock
from mapet.utils.log import log

if TYPE_CHECKING:
    from mapet.engine.run import Run
    from mapet.evals.score import Score

PLAN = "compare.yaml"
LISTS = ("objectives", "baselines", "evaluate", "budget")  # a trial's result does not depend on the others
GROWING = (*LISTS, "seeds")
PATHS = {"tokens", "tokenizer.path", "init"}  # settings that may point into the comparison's folder
LABELLED = ("eval_data", "eval_limit", "segment_data")  # scores depend on them, runs do not


class ResultsFolder:
    """The folder of one comparison. Every file in it is complete even after a kill."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, plan: Plan) -> Iterator["ResultsFolder"]:
        """The folder of this plan, locked for this process; it is created if it does not exist.

        Args:
            folder: new, empty, or of a comparison.
            plan: as returned by ``merge_plans`` for this folder.

        Raises:
            MapetError: it holds something else, or another process works on it or has just extended it.
        """
        old = (PLAN, f"{PLAN}.part", LOCK)
        taken = folder.exists() and (not folder.is_dir() or any(path.name not in old for path in folder.iterdir()))
        if taken and not (folder / PLAN).is_file():
            raise MapetError(f"{folder} is not empty and is not a comparison: give another --out.")
        with Lock(folder, "working on the comparison in"):
            if merge_plans(folder, plan) != plan:
                raise MapetError(f"{folder} was extended by another process in the meantime: run this again.")
            folder.mkdir(parents=True, exist_ok=True)
            save(plan, folder / PLAN)
            yield cls(folder)

    def run(self, trial: Trial) -> Path:
        """The folder of the trial's run."""
        return self.path / "runs" / trial.name

    def read(self, trial: Trial) -> dict[str, Any]:
        """What is recorded of a trial; nothing if that is damaged, which is logged: it is measured again."""
        path = self._path(trial)
        if (found := recorded(path)) is None:
            log.info(f"note      {path} is damaged: {trial.name} is measured again")
        return found or {}

    def record(self, trial: Trial, what: str, value: Any) -> None:
        """Record one more thing of a trial."""
        path = self._path(trial)
        path.parent.mkdir(exist_ok=True)
        replace_file(path, json.dumps(sealed({**self.read(trial), what: value}), indent=1) + "\n")

    def record_scores(self, trial: Trial, what: str, scores: "Mapping[str, Score]") -> None:
        """Record the scores of one evaluation."""
        self.record(trial, what, {name: vars(score) for name, score in scores.items()})

    def _path(self, trial: Trial) -> Path:
        return self.path / "scores" / f"{trial.name}.json"


def recorded(path: Path) -> dict[str, Any] | None:
    """What a file of scores holds; nothing if there is none, None if it is damaged."""
    if not path.is_file():
        return {}
    content = load_json(path)
    if not isinstance(content, dict) or not is_intact(content):
        return None
    return {name: value for name, value in content.items() if name != KEY}


def relink(settings: Any, run: "Run") -> None:
    """Update the paths of tokens and start in a run's recipe after the comparison's folder was moved.

    Raises:
        MapetError: another process trains there.
    """
    with run.lock():
        if PATHS.issuperset(other := diff(read(run.recipe, type(settings)), settings)) and other:
            save(settings, run.recipe)


def merge_plans(folder: Path, plan: Plan) -> Plan:
    """The plan merged with the one in the folder, whose runs and evaluations come first.

    Raises:
        MapetError: the folder's plan has other settings.
    """
    if not (folder / PLAN).is_file():
        return plan
    before = read_run(folder / PLAN, Plan)
    _require_alike(folder, plan, before)
    lists: dict[str, Any] = {
        name: tuple(dict.fromkeys([*getattr(before, name), *getattr(plan, name)])) for name in LISTS
    }
    return replace(plan, **lists, seeds=max(before.seeds, plan.seeds))


def _require_alike(folder: Path, plan: Plan, before: Plan) -> None:
    for name, (asked, there) in diff(plan, before).items():
        tokens = name == "objectives" and plan.reads_tokens > before.reads_tokens  # existing runs have not used tokens
        if tokens or not (name in GROWING or _unused(folder, name)):
            raise MapetError(
                f"{folder} holds another comparison, with {name} = {_short(there)}, not {_short(asked)}: "
                f"give another --out, or resume it with --resume {folder}."
            )


def _unused(folder: Path, name: str) -> bool:
    """Whether nothing in the folder depends on a setting yet."""
    tuned = any((folder / "runs").glob("*-finetune")) or any((folder / "runs").glob("scratch-*"))
    scores = ((recorded(path) or {}).keys() - {"cost"} for path in (folder / "scores").glob("*.json"))
    if name == "segment_data":
        return not any(one & set(SEGMENTATION) for one in scores)
    return not tuned and (name.startswith("tuning.") or (name in LABELLED and not any(scores)))


def _short(value: Any) -> str:
    return ",".join(value) or "nothing" if isinstance(value, tuple) else str(value)
