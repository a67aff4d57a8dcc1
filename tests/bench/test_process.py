"""Jobs that are done in a process of their own; here by this one, but for one that fails."""

import json
import time

import pytest

from mapet.bench import process
from mapet.bench.case import Case
from mapet.errors import MapetError
from mapet.recipe import Model, Optimization, Recipe, save

TINY = Model(model="custom", embed_dim=16, depth=1, num_heads=2, image_size=16, patch_size=4)
CASE = Case(Recipe(model=TINY, optimization=Optimization(batch_size=4)), against=("dense",), vocabulary=11)


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


def test_a_process_that_fails_says_why():
    with pytest.raises(MapetError, match=r'^mapet, custom, batch 4, float32: .*no accelerator "tpu"'):
        process.run(process.Job(case=CASE, accelerator="tpu"))
