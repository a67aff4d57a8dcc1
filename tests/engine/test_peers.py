"""A process that another one left says which, and whether it ended or did not answer."""

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from mapet.engine import peers
from mapet.engine.peers import PeersLost, all_joined, losses_named

OURS = socket.gethostname(), os.getpid()
LATE, CLOSED = "Timed out waiting 1800000ms for recv operation", "Connection closed by peer [127.0.0.1]:1"


@pytest.fixture(scope="module")
def ended():
    """A process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return socket.gethostname(), process.pid


def said(monkeypatch, error, *group, seconds=0.0):
    """What a process says of an error of its group."""
    monkeypatch.setattr(peers, "DYING", seconds)
    monkeypatch.setattr(
        torch.distributed, "all_gather_object", lambda found, _: found.__setitem__(slice(None), list(group))
    )
    with pytest.raises((PeersLost, type(error))) as caught, losses_named(SimpleNamespace(world_size=len(group)), 0.5):
        raise error
    return str(caught.value)


def test_who_ended_and_who_did_not_answer(monkeypatch, ended):
    answers = "Of 3 processes, {}: see its own messages, then resume all of them."
    late, other = "another process did not answer within timeout 0.5 minutes", "another process ended"
    elsewhere = "another machine", ended[1]
    for error in (RuntimeError, torch.distributed.DistBackendError):
        assert said(monkeypatch, error(LATE), OURS, OURS, OURS) == answers.format(late)
        assert said(monkeypatch, error(LATE), OURS, ended, OURS) == answers.format("rank 1 ended")
        assert said(monkeypatch, error(CLOSED), OURS, ended, ended) == answers.format("rank 1, 2 ended")
        assert said(monkeypatch, error(CLOSED), OURS, OURS, elsewhere) == answers.format(other)


def test_a_process_that_takes_a_moment_to_end_is_named(monkeypatch):
    found = iter([[], [], [1]])
    monkeypatch.setattr(peers, "_ended", lambda group: next(found))
    assert "rank 1 ended" in said(monkeypatch, RuntimeError(CLOSED), OURS, OURS, seconds=60.0)
    looks = []
    monkeypatch.setattr(peers, "_ended", looks.append)
    assert "did not answer" in said(monkeypatch, RuntimeError(LATE), OURS, OURS, seconds=60.0)
    assert len(looks) == 1


def test_an_error_of_this_process_stays(monkeypatch, ended):
    assert said(monkeypatch, RuntimeError("shapes differ"), OURS, ended) == "shapes differ"
    assert said(monkeypatch, RuntimeError(CLOSED), OURS) == CLOSED  # there is no other one


@pytest.mark.parametrize(
    ("error", "lives"), [(PermissionError(1, "not yours"), True), (ProcessLookupError(3, "none"), False)]
)
def test_the_process_of_someone_else_lives(monkeypatch, error, lives):
    def kill(*_):
        raise error

    monkeypatch.setattr(os, "kill", kill)
    assert peers._lives(os.getpid()) is lives


def test_to_ask_whether_a_process_lives_sends_it_no_signal(monkeypatch):
    sent = []
    monkeypatch.setattr(os, "kill", lambda *given: sent.append(given))
    assert peers._lives(os.getpid())
    assert sent == [(os.getpid(), 0)]


def test_a_process_that_nobody_has_waited_for_has_ended():
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    process.stdout.read()  # until it ends
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not peers._lives(process.pid)
    assert peers._lives(os.getpid())
    process.wait()


def test_a_group_that_does_not_come_about_is_one_line():
    with pytest.raises(PeersLost, match="Not all of 4 processes joined within timeout 2 minutes"), all_joined(4, 2.0):
        raise torch.distributed.DistNetworkError("timeout")
    with pytest.raises(OSError, match="else"), all_joined(4, 2.0):
        raise OSError("else")
