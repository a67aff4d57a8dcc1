"""Processes of the command line that are forks of this one: they start at once, and may be killed."""

import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

from mapet.cli import main
from mapet.engine.run import Run


class Forked:
    """``mapet ARGUMENTS``, or other ``work``, in a process of its own; what it says goes into files in ``folder``."""

    def __init__(
        self, folder: Path, *arguments: str, work: Callable[[], int | None] | None = None, **environment: str
    ) -> None:
        name = f"{sum(1 for _ in folder.glob('*.out'))}"
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        self.out.touch()
        self.code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            os._exit(self._run(work or partial(main, arguments), environment))

    def _run(self, work: Callable[[], int | None], environment: dict[str, str]) -> int:
        os.environ.update(environment)
        sys.stdout, sys.stderr = self.out.open("w"), self.err.open("w")
        try:
            return work() or 0
        except BaseException:
            traceback.print_exc()
            return 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    def ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def poll(self) -> int | None:
        self.ended()
        return self.code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait_for_stop(self) -> None:
        """Until it has stopped, as ``stopping`` makes it do."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        self.code = None if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)
        assert self.code is None, self.err.read_text()

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def wait(self) -> tuple[int, str, str]:
        """The exit code, and what was said on the two streams."""
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code, self.out.read_text(), self.err.read_text()


def stopping(
    owner: Any, name: str, number: int, work: Callable[[], int | None], ranks: tuple[int, ...] = (0, 1)
) -> Callable[[], int | None]:
    """``work`` for a process of its own, which stops, as by Ctrl-Z, before the ``number``-th call of ``owner.name``."""
    plain, numbers = getattr(owner, name), count(1)

    def counted(*given: Any, **named: Any) -> Any:
        if next(numbers) == number:
            os.kill(os.getpid(), signal.SIGSTOP)
        return plain(*given, **named)

    def stopped() -> int | None:
        if int(os.environ.get("RANK", "0")) in ranks:
            setattr(owner, name, counted)
        return work()

    return stopped


def torchrun(*options: str, work: Callable[[], int | None] | None = None) -> None:
    """torchrun with ``-m mapet ARGUMENTS`` or ``work``, for a fork; what it starts are forks of this process, too."""
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    given = parse_args([*options, *(["work"] if work else [])])
    if given.master_port is None and given.rdzv_backend == "static":  # as torchrun of 2.14 does itself
        given.rdzv_backend, given.rdzv_endpoint, given.rdzv_id = "c10d", "localhost:0", str(uuid4())
    config, _, _ = config_from_args(given)
    config.start_method = "fork"
    command = work or partial(main, given.training_script_args)
    elastic_launch(config, lambda: sys.exit(command() or 0))()


def pair(folder: Path, *arguments: str) -> list[Forked]:
    """``mapet ARGUMENTS`` as two processes, joined as torchrun joins them."""
    return crowd(folder, 2, partial(main, arguments))


def under_torchrun(folder: Path, *arguments: str, work: Callable[[], int | None] | None = None) -> tuple[int, str, str]:
    """How ``mapet ARGUMENTS``, or ``work``, ends in two processes of torchrun, and what was said."""
    options = ["--standalone", "--nproc-per-node", "2", *([] if work else ["-m", "mapet", *arguments])]
    return Forked(folder, work=partial(torchrun, *options, work=work), OMP_NUM_THREADS="1").wait()


def crowd(folder: Path, count: int, work: Callable[[], int | None], nodes: int = 1) -> list[Forked]:
    """``work`` in ``count`` processes, joined as torchrun joins them, on so many nodes."""
    folder.mkdir(exist_ok=True)
    each = count // nodes
    joint = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(each), "MASTER_ADDR": "127.0.0.1"}
    joint["MASTER_PORT"] = free_port()
    places = [{"RANK": rank, "LOCAL_RANK": rank % each, "GROUP_RANK": rank // each} for rank in range(count)]
    return [Forked(folder, work=work, **joint, **{n: str(v) for n, v in place.items()}) for place in places]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def finished(processes: list[Forked]) -> str:
    """What the processes said once all of them ended well."""
    ends = [process.wait() for process in processes]
    assert [code for code, _, _ in ends] == [0] * len(processes), ends
    return "".join(out for _, out, _ in ends)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str] | Forked) -> None:
    """Until the run in ``folder`` has written so many rows, or ended; a line still being written does not count."""
    metrics = Run(folder).metrics
    while (metrics.read_text().count("\n") if metrics.is_file() else 0) <= step and process.poll() is None:
        time.sleep(0.005)
