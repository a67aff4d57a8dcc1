"""Measurements in separate processes: peak memory on a CPU, which earlier work would hide, and several devices.

``python -m mapet.api.benchmark.process JOB.yaml`` runs a job and writes JSON next to it.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mapet.api.benchmark.case import OURS, Case, implementations
from mapet.api.benchmark.clock import Spent, synchronize
from mapet.api.benchmark.step import Runner, Timing, alternate
from mapet.config.recipe import Recipe, read, save
from mapet.utils.errors import MapetError
from mapet.utils.io import replace_file

ERROR = re.compile(r"(\[rank\d+\]: *)?([A-Za-z_]\w*\.)*[A-Z]\w*(Error|Exception)(:|$)")  # last line of a traceback
LAUNCHER = re.compile(r"E\d{4} .*torch/distributed/elastic.*exitcode")
PATIENCE = 1800.0  # seconds after which a measurement is given up


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        what: "memory" of one implementation, "pace" of ours in ``devices`` processes, or the time "until" step 1.
        implementation: whose memory.
        case: the step.
        accelerator: as ``Runtime.accelerator``.
        devices: processes.
        rounds: of timing.
    """

    what: str = "memory"
    implementation: str = OURS
    case: Case = field(default_factory=lambda: Case(Recipe()))
    accelerator: str = "cpu"
    devices: int = 1
    rounds: int = 1


def memory(case: Case, implementation: str, accelerator: str) -> int:
    """Peak bytes of an implementation's step on a CPU, beyond the process itself; raises as ``run``."""
    return int(run(Job("memory", implementation, case, accelerator))["memory"])


def pace(case: Case, devices: int, rounds: int, accelerator: str, threads: int) -> list[Timing]:
    """Timings of ours in the first of ``devices`` processes that share the batch; raises as ``run``."""
    found = run(Job("pace", OURS, case, accelerator, devices, rounds), threads)["timings"]
    return [Timing(Spent(*step), Spent(*passes)) for step, passes, _ in found]


def until_first_step(case: Case, accelerator: str) -> float:
    """Wall seconds from the start of a fresh process to the end of the first step of ours; raises as ``run``."""
    began = time.time()
    return float(run(Job("until", OURS, case, accelerator))["until"]) - began


def run(job: Job, threads: int | None = None) -> dict[str, Any]:
    """What the job found.

    Raises:
        MapetError: its process failed, with the error that it printed, or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="mapet-bench-") as folder:
        path = Path(folder) / "job.yaml"
        save(job, path)
        module = ["-m", "mapet.api.benchmark.process", str(path)]
        if job.devices > 1:
            joint = ["--standalone", "--nproc-per-node", str(job.devices)]
            module = ["-m", "torch.distributed.run", *joint, *module]
        environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        try:
            done = subprocess.run(
                [sys.executable, *module],
                capture_output=True,
                text=True,
                env=environment,
                timeout=PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise MapetError(f"{job.case}: no {job.what} after {PATIENCE:.0f} s.") from error
        if done.returncode:
            raise MapetError(f"{job.case}: its process ended with {done.returncode}: {last_error(done.stderr)}")
        found: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())
        return found


def last_error(said: str) -> str:
    """The line of a process's output that names its last error, not torchrun's own; without one, the last line.

    A process that was killed names none: torchrun then tells its exit code.
    """
    lines = [line for line in said.splitlines() if line.strip()]
    own = [line for line in lines if ERROR.match(line) and "torch.distributed.elastic" not in line]
    killed = [line.split("] ", 1)[-1] for line in lines if LAUNCHER.match(line)]
    return (own or killed or lines or ["nothing was said"])[-1].strip()


def main(path: Path) -> None:
    """Do the job and write what was found."""
    job = read(path, Job)
    found = {"memory": _memory, "pace": _pace, "until": _until}[job.what](job)
    if found is not None:
        replace_file(path.with_suffix(".json"), json.dumps(found))


def _memory(job: Job) -> dict[str, Any]:
    """The peak of one step, as later ones are: the optimiser's moments are there."""
    from mapet.engine.distributed import init_fabric
    from mapet.engine.peak import peak, reset_peak

    fabric = init_fabric(accelerator=job.accelerator, precision=job.case.recipe.precision)
    reset_peak(fabric.device)
    before = peak(fabric.device)
    chosen = next(one for one in implementations(job.case) if one.name == job.implementation)
    reset_peak(fabric.device)
    Runner(chosen, job.case, fabric, warm=1).step()
    return {"memory": peak(fabric.device) - before}


def _pace(job: Job) -> dict[str, Any] | None:
    from mapet.engine.distributed import distributed

    with distributed(accelerator=job.accelerator, devices=job.devices, precision=job.case.recipe.precision) as fabric:
        runner = Runner(implementations(job.case)[0], job.case, fabric)
        timings = alternate([runner], job.rounds, fabric.device)[0]
        return {"timings": timings} if fabric.is_global_zero else None


def _until(job: Job) -> dict[str, Any]:
    """The moment at which the first step was done, in seconds since 1970."""
    from mapet.engine.distributed import init_fabric

    fabric = init_fabric(accelerator=job.accelerator, precision=job.case.recipe.precision)
    Runner(implementations(job.case)[0], job.case, fabric, warm=1)
    synchronize(fabric.device)
    return {"until": time.time()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
