"""What the verbs that train share: the log beside the screen, and what a run must keep from its beginning."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.config.recipe import Runtime, diff
from mapet.utils.errors import MapetError
from mapet.utils.log import say
from mapet.utils.owned import RUN, is_aside, put_back

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor

    from mapet.data.dataset import ImageDataset
    from mapet.engine.run import Run


def teller(run: "Run", say: Callable[[str], None]) -> Callable[[str], None]:
    """Lines of the first process for the screen and the run's log."""
    from mapet.utils.process_group import first_process

    def tell(line: str) -> None:
        if first_process():
            say(line)
            run.write_log(line)

    return tell


class Undone(KeyboardInterrupt):
    """Ctrl-C came before a new run began to train, and the earlier one has its place again."""


def reopened(folder: str | Path, say: Callable[[str], None] = say) -> "Run":
    """The run to go on with; what an ``--overwrite`` that was killed had put aside has its place again first.

    Raises:
        MapetError: no run, another process that trains there, or several processes before what was put aside.
    """
    from mapet.engine.run import Run
    from mapet.utils.process_group import launched

    run = Run(folder)
    if is_aside(run.folder):
        if launched().count > 1:
            raise MapetError(f"{run.folder} was being overwritten when that was killed: go on with one process first.")
        with run.lock():
            put_back(run.folder, RUN)
        say(f"restored  {run.folder}: the run that was there before an --overwrite which was killed")
    return Run.open(folder)


@contextmanager
def training_in(run: "Run", runtime: Runtime, precision: str, prepare: Callable[[], object]) -> Iterator["Fabric"]:
    """The processes that train in the run's folder, from which the first keeps all others away.

    An earlier run that was put aside has its place again when this ends before the first step.

    Args:
        run: begun, or to be begun by ``prepare``.
        machine: which processes.
        precision: of the training.
        prepare: done by the first process before they meet.

    Raises:
        MapetError: another process trains there, or as ``init_fabric``.
        Undone: Ctrl-C came before the first step, and an earlier run has its place again.
    """
    from mapet.engine.distributed import distributed
    from mapet.utils.process_group import first_process

    leads = first_process()
    with run.lock() if leads else nullcontext(), _undone(run) if leads else nullcontext():
        if leads:
            prepare()
            run.write_provenance()
        with distributed(
            accelerator=runtime.accelerator,
            devices=runtime.devices,
            num_nodes=runtime.num_nodes,
            precision=precision,
            strategy=runtime.strategy,
        ) as fabric:
            yield fabric


@contextmanager
def _undone(run: "Run") -> Iterator[None]:
    """Give what is put aside its place again where something fails."""
    try:
        yield
    except BaseException as error:
        if put_back(run.folder, RUN) and isinstance(error, KeyboardInterrupt):
            raise Undone from None
        raise


def require_unchanged(folder: str, before: Any, after: Any) -> None:
    """Refuse settings other than those that the run in ``folder`` was begun with."""
    for name, (was, asked) in diff(before, after).items():
        if name == "data":
            raise MapetError(f"{folder} was begun with the images {was}: put them, or a link to them, there again.")
        raise MapetError(
            f"{folder} was begun with {name} = {was}, so it cannot go on with {asked}: leave the option out, "
            "or begin a new run in another --out."
        )


def require_batch(source: "ImageDataset", max_images: int | None, batch: int) -> None:
    """Refuse a source that gives fewer images than one batch."""
    count = min(len(source), max_images or len(source))
    if count < batch:
        raise MapetError(f"{source.name} gives {count} images, fewer than one batch of {batch}: lower --batch-size.")


def batch_line(batch: int, lr: float, runtime: Runtime) -> str:
    """The batch size, how it is divided, and the largest learning rate: "2048 = 8 devices × 4 parts × 64, lr …"."""
    parts, share = runtime.parts(batch), batch // runtime.processes
    factors = [(runtime.processes, " devices"), (parts, " parts"), (-(-share // parts), "")]
    most = "at most " if share % parts else ""
    split = " × ".join(f"{most * (not what)}{number}{what}" for number, what in factors if number > 1 or not what)
    return f"{batch}{f' = {split}' if runtime.processes * parts > 1 else ''}, lr {lr:.2e}"


def pin(
    run: "Run", source: "ImageDataset", indices: "Tensor", about: Mapping[str, Any], told: str, labels: bool
) -> None:
    """Note in ``inputs.json`` which images a run has and what belongs to them, or see that they are the same.

    Args:
        run: just begun, or gone on with.
        source: of the images.
        places: (N,) int64, where they are in it.
        about: what else must stay, ready for JSON.
        told: what is said of others.
        labels: whether the images' labels must stay too.

    Raises:
        MapetError: the run was begun with others.
    """
    import json
    from hashlib import blake2b

    from mapet.utils.io import replace_file

    names = (
        f"{i} {source.label(i)} {source.image_id(i)}" if labels else f"{i} {source.image_id(i)}"
        for i in indices.tolist()
    )
    digest = blake2b("\n".join(names).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    inputs = {**about, "images": len(indices), "keys": digest}
    path = run.folder / "inputs.json"
    if path.is_file() and json.loads(path.read_text()) != inputs:
        raise MapetError(f"{run.folder} was begun with {told}")
    replace_file(path, json.dumps(inputs, indent=1) + "\n")
