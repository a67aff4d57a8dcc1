"""Signals as terminals, SLURM and submitit send them: a checkpoint, the command that resumes, 128 + signal."""

import os
import signal
import subprocess
import sys
from functools import partial

import pytest

from mapet.cli import main
from mapet.engine.run import Run
from processes import Forked, free_port, pair, torchrun, wait_for_step

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TINY = [
    *("--objective", "mae", "--model", "custom", "--embed-dim", "16", "--depth", "1", "--num-heads", "2"),
    *("--accelerator", "cpu", "--cache-gib", "0", "--image-size", "16", "--patch-size", "4", "--batch-size", "8"),
    *("--epochs", "400"),
]
ALL = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]


def arguments(images, out, *more):
    return ["pretrain", "--data", str(images), "--out", str(out), *TINY, *more]


def signalled(images, folder, number, *more, true=False):
    """How the command ends, and what it says, if the signal comes after three steps to it and all its workers.

    A hang-up that these tests ignore, as under nohup, is not ignored there. The command is a ``true`` one, or a fork.
    """
    words, heard = arguments(images, folder / "r", *more), partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)

    def work():
        os.setsid()
        heard()
        return main(words)

    if true:
        command, started = [sys.executable, "-m", "mapet", *words], {"start_new_session": True, "preexec_fn": heard}
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=-1, stderr=-1, text=True, **started)
    else:
        process = Forked(folder, work=work)
    wait_for_step(folder / "r", 3, process)
    os.killpg(process.pid, number)
    if not true:
        return process.wait()
    said, complaint = process.communicate(timeout=60)
    return process.returncode, said, complaint


@pytest.mark.parametrize("number", ALL[1:])
def test_a_signal_writes_a_checkpoint(images, tmp_path, number):
    code, said, complaint = signalled(images, tmp_path, number, true=number == signal.SIGHUP)
    assert code == 128 + number, complaint
    assert f"resume with: mapet pretrain --resume {tmp_path / 'r'}" in said
    assert "Traceback" not in complaint
    assert Run(tmp_path / "r").completed >= 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_whole_group_leaves_the_workers_to_the_main_process(images, tmp_path, number):
    """SLURM signals every process of a step, loader workers too."""
    code, said, complaint = signalled(images, tmp_path, number, "--workers", "2")
    assert code == 128 + number, complaint
    assert "resume with: mapet pretrain --resume" in said
    assert not complaint or "Traceback" not in complaint


def test_a_signal_to_one_rank_stops_all_after_the_same_step(images, tmp_path):
    ranks = pair(tmp_path / "said", *arguments(images, tmp_path / "r", "--devices", "2"))
    while Run(tmp_path / "r").completed < 6 and not any(rank.ended() for rank in ranks):
        signal.sigtimedwait([], 0.05)
    os.kill(ranks[1].pid, signal.SIGUSR1)
    ends = [rank.wait() for rank in ranks]
    assert [code for code, _, _ in ends] == [128 + signal.SIGUSR1] * 2, ends
    assert len({out.split("after step ")[1].split(";")[0] for _, out, _ in ends}) == 1


@pytest.mark.parametrize("number", ALL[::3])
@pytest.mark.parametrize(("step", "begun"), [("mapet.api.pretrain.validate", False), ("lightning_fabric.Fabric", True)])
def test_before_the_first_step_nothing_is_lost(images, tmp_path, number, step, begun):
    def work():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(step, lambda *_, **__: os.kill(os.getpid(), number))
            return main(arguments(images, tmp_path / "r"))

    code, said, complaint = Forked(tmp_path, work=partial(work)).wait()
    assert code == 128 + number, complaint
    again = f"mapet pretrain --resume {tmp_path / 'r'}" if begun else "the same command"
    assert f"stopped   before the next step; resume with: {again}" in said
    assert "Traceback" not in complaint


def test_nohup_is_respected(images, tmp_path):
    """A hang-up that the caller ignores stays ignored."""

    def work():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mapet.cli.pretrain.pretrain", lambda *_, **__: os.kill(os.getpid(), signal.SIGHUP))
            return main(arguments(images, tmp_path / "r"))

    assert Forked(tmp_path, work=work).wait()[0] == 0


def test_a_killed_rank_is_named_and_the_run_goes_on(images, tmp_path):
    ranks = pair(tmp_path / "said", *arguments(images, tmp_path / "r", "--devices", "2"))
    while Run(tmp_path / "r").completed < 6 and not any(rank.ended() for rank in ranks):
        signal.sigtimedwait([], 0.05)
    ranks[1].kill()
    code, _, complaint = ranks[0].wait()
    assert code == 2, complaint
    assert "Of 2 processes, rank 1 ended: see its own messages, then resume all of them. Resume with:" in complaint
    assert "Traceback" not in complaint
    assert complaint.count("mapet (rank 0):") == 1


def test_a_rank_that_hangs_stops_the_others(images, tmp_path):
    """It is stopped, as a process that waits for a broken file system."""
    more = ["--devices", "2", "--timeout", "0.05"]
    ranks = pair(tmp_path / "said", *arguments(images, tmp_path / "r", *more))
    while Run(tmp_path / "r").completed < 6 and not any(rank.ended() for rank in ranks):
        signal.sigtimedwait([], 0.05)
    os.kill(ranks[1].pid, signal.SIGSTOP)
    code, _, complaint = ranks[0].wait()
    ranks[1].kill()
    assert code == 2, complaint
    assert "did not answer within --timeout 0.05 minutes" in complaint
    assert "Traceback" not in complaint


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_never_joins_is_told_in_one_line(images, tmp_path, rank):
    joint = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = arguments(images, tmp_path / "r", "--devices", "2", "--timeout", "0.02")
    alone = Forked(tmp_path, *words, **joint, RANK=str(rank), LOCAL_RANK=str(rank))
    code, _, complaint = alone.wait()
    assert code == 2, complaint
    assert "Not all of 2 processes joined within --timeout 0.02 minutes: see the messages of the others" in complaint
    assert "Traceback" not in complaint
    assert complaint.count(f"mapet (rank {rank}):") == 1


def test_torchrun_shows_the_line_last(images, tmp_path):
    """Its own report, after a traceback of its own code, quotes the line of the rank that failed."""
    words = ["--nproc-per-node", "2", "-m", "mapet", *arguments(images, tmp_path / "r", "--devices", "3")]
    code, _, complaint = Forked(tmp_path, work=partial(torchrun, *words), OMP_NUM_THREADS="1").wait()
    assert code == 1
    last = complaint.rpartition("Root Cause")[2]
    assert "The launcher started 2 processes, but --devices 3" in last
    assert not (tmp_path / "r").exists()  # the corrected command can be given at once
