"""What the verbs that train share: the exit code of an interrupted training, and the command that resumes it."""

import shlex
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mapet.api.kept_runtime import kept
from mapet.api.moved import MOVABLE
from mapet.api.report.write import report_at_end
from mapet.api.resume import begun_recipe, resume
from mapet.api.settings import require_unchanged
from mapet.api.training import RESTORED, RestoredEarlierRun
from mapet.cli.options import changed, given, parse, require, take
from mapet.cli.output import made
from mapet.config.flat import updated
from mapet.config.recipe import Runtime
from mapet.utils.errors import MapetError
from mapet.utils.signals import raised_signals

RAISED = ("epochs",)  # flat names of the settings that a resume may raise


def stoppable(train: Callable[[], object], again: str, folder: Path | None = None) -> int:
    """Run ``train``; exit code 0, or 128 + signal if interrupted, when the command ``again`` that resumes is printed.

    Where nothing is in ``folder`` yet, that is the same command. At the end a report is written there.

    Raises:
        MapetError: as ``train``; if loader workers or other processes failed, it names that command, too.
    """
    with raised_signals():
        from mapet.data.workers import WorkersFailed, workers_failed
        from mapet.engine.distributed import Stopped
        from mapet.engine.peers import PeersLost
        from mapet.utils.process_group import first_process

        try:
            made(train())
            if folder is not None and first_process():
                report_at_end(folder.expanduser())
        except Stopped as stopped:
            print(f"stopped   after step {stopped.step}; resume with: {again}", flush=True)
            return 128 + stopped.number
        except KeyboardInterrupt as end:
            command = again if _begun(folder, end) else "the same command"
            print(f"stopped   before the next step; resume with: {command}", flush=True)
            return 128 + getattr(end, "number", signal.SIGINT)
        except (WorkersFailed, PeersLost, RuntimeError) as error:
            named = workers_failed(error) if isinstance(error, RuntimeError) else error
            if named is None:
                raise
            command = again if _begun(folder, error) else "the same command"
            raise MapetError(f"{named.option_text} Resume with: {command}") from None
    return 0


def _begun(folder: Path | None, end: BaseException) -> bool:
    """Whether there is anything to resume."""
    names = ("recipe.yaml", "compare.yaml")
    restored = isinstance(end, RestoredEarlierRun) or RESTORED in getattr(end, "__notes__", ())
    return folder is None or (not restored and any((folder / name).exists() for name in names))


def again(folder: str, runtime: Runtime, *verb: str) -> str:
    """The command that resumes the run in ``folder``, with its runtime settings; without a verb, of pretrain."""
    return shlex.join(["mapet", *(verb or ("pretrain",)), "--resume", folder, *changed(runtime)])


def train_from(
    arguments: list[str],
    options: Callable[..., Any],
    name: str,
    named: Callable[[str | None], Any],
    train: Callable[..., object],
    verb: str,
    about: str,
) -> int:
    """Parse, then train from an encoder, with tests, or resume.

    Args:
        arguments: after the verb.
        options: its options, with ``out``, ``evaluate_every``, ``runtime`` and a recipe.
        name: the recipe's field.
        named: gives a recipe by its name or file, the defaults for None.
        train: the function of the verb.
        verb, about: for refusals and the help.
    """
    folder, arguments = take(arguments, "--resume")
    if folder is not None:
        default = options(**{name: begun_recipe(folder, type(named(None)))}, runtime=kept(folder, Runtime))
        o, moved = resumed_options(folder, default, name, arguments, verb, about)
        work = partial(resume, folder, runtime=o.runtime, evaluate_every=o.evaluate_every, **moved)
        return stoppable(work, _tested_again(folder, o, verb), Path(folder))
    recipe, arguments = take(arguments, "--recipe")
    default = options(**{name: named(recipe)})
    settings = given(default, arguments, verb, about)
    o = updated(default, **settings)
    wanted = getattr(o, name)
    require(verb, init=wanted.init, data=wanted.data, out=o.out)
    return stoppable(partial(train, recipe=recipe, **settings), _tested_again(o.out, o, verb), Path(o.out))


def _tested_again(folder: str, o: Any, verb: str) -> str:
    every = f" --evaluate-every {o.evaluate_every}" if o.evaluate_every else ""
    return again(folder, o.runtime, verb) + every


def resumed_options(
    folder: str, default: Any, name: str, arguments: list[str], verb: str, about: str
) -> tuple[Any, dict[str, Any]]:
    """The options to resume with, and the inputs that were moved, or the epochs if there are to be more.

    Other settings of the recipe, the field ``name``, must be those of the run.

    Raises:
        MapetError: another setting, or an option that only a new run has.
    """
    options = parse(default, arguments, verb, about)
    if options.out and Path(options.out).expanduser().resolve() != Path(folder).expanduser().resolve():
        raise MapetError(f"--out {options.out} does not apply to --resume, which continues in {folder}; remove it.")
    if options.overwrite:
        raise MapetError(f"--overwrite does not apply to --resume, which continues the run in {folder}; remove it.")
    return options, require_unchanged(folder, getattr(default, name), getattr(options, name), (*MOVABLE, *RAISED))
