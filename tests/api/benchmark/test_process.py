"""Jobs that are done in a process of their own; here by this one, but for one that fails."""

import json
import time

import pytest

from mapet.api.benchmark import process
from mapet.api.benchmark.case import Case
from mapet.config.recipe import Model, Optimization, Recipe, save
from mapet.utils.errors import MapetError

TINY = Model(name="custom", embed_dim=16, depth=1, num_heads=2, image_size=16, patch_size=4)
CASE = Case(Recipe(model=TINY, optimization=Optimization(batch_size=4)), baseline=("dense",), vocabulary=11)


def done(tmp_path, job):
    save(job, tmp_path / "job.yaml")
    process.main(tmp_path / "job.yaml")
    return json.loads((tmp_path / "job.json").read_text())


def test_each_job(tmp_path):
    assert done(tmp_path, process.Job("memory", "dense", CASE))["memory"] >= 0
    began = time.time()
    assert began < done(tmp_path, process.Job("until", case=CASE))["until"] < time.time()
    found = done(tmp_path, process.Job("pace", case=CASE, rounds=2))["timings"]
    assert len(found) == 2
    for (step, _), (passes, _), _ in found:
        assert step > passes > 0


TORCHRUN = """W1126 05:36:32.118000 14561 torch/distributed/run.py:851] Setting OMP_NUM_THREADS to 1
*****************************************
{worker}
W1126 05:36:33.118000 14561 torch/distributed/elastic/multiprocessing/api.py:1012] Sending process 14575 closing signal
E1126 05:36:33.128000 14561 torch/distributed/elastic/multiprocessing/api.py:9] failed (exitcode: {code}) local_rank: 0
Traceback (most recent call last):
  File "torch/distributed/launcher/api.py", line 317, in launch_agent
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
mapet.api.benchmark.process FAILED
============================================================
"""
RAISED = """Traceback (most recent call last):
  File "process.py", line 99, in main
    raise Error: never mind
torch.OutOfMemoryError: CUDA out of memory.
If reserved memory is large, try setting something."""


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (TORCHRUN.format(worker=RAISED, code=1), "torch.OutOfMemoryError: CUDA out of memory."),
        (TORCHRUN.format(worker="[rank0]: ValueError: no\n[rank0]: more", code=1), "[rank0]: ValueError: no"),
        (TORCHRUN.format(worker="", code=-9), "failed (exitcode: -9) local_rank: 0"),
        (RAISED, "torch.OutOfMemoryError: CUDA out of memory."),
        ("mapet: there is no such thing.\n\n", "mapet: there is no such thing."),
        ("", "nothing was said"),
    ],
)
def test_the_error_of_the_process_is_told_not_its_launchers(said, told):
    assert process.last_error(said) == told


def test_a_process_that_fails_says_why():
    with pytest.raises(MapetError, match=r'^mapet, custom, batch 4, float32: .*no accelerator "tpu"'):
        process.run(process.Job(case=CASE, accelerator="tpu"))
