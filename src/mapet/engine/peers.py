"""Processes that do not join, end or do not answer: the others end, too, with a line that names them."""

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LOST = r"gloo|Gloo|NCCL|Connection (closed|reset)|Broken pipe|[Tt]imed out"
LATE = r"timed out|timeout"
DYING = 5.0  # seconds that a process may take to end after its connections closed


class PeersLost(MapetError):
    """Another process of the group ended or did not answer; what was written is kept."""


@contextmanager
def all_joined(count: int, minutes: float) -> Iterator[None]:
    """Turn the error of a group that does not come about into a line.

    Raises:
        PeersLost: not all of ``count`` processes joined.
    """
    try:
        yield
    except torch.distributed.DistError as error:
        raise PeersLost(
            f"Not all of {count} processes joined within --timeout {minutes:g} minutes: see the messages of the "
            "others, then start all of them again."
        ) from error


@contextmanager
def losses_named(fabric: "Fabric", minutes: float) -> Iterator[None]:
    """Turn the error of a collective that another process left into a line that names that process.

    Raises:
        PeersLost: another process ended or did not answer.
    """
    if fabric.world_size == 1:
        yield
        return
    peers: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(peers, (socket.gethostname(), os.getpid()))
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.distributed.DistError) or re.search(LOST, str(error))):
            raise
        late, end = re.search(LATE, str(error), re.I), time.monotonic() + DYING
        while not (dead := _ended(peers)) and not late and time.monotonic() < end:
            time.sleep(0.05)
        who = f"rank {', '.join(map(str, dead))}" if dead else "another process"
        what = f"did not answer within --timeout {minutes:g} minutes" if late and not dead else "ended"
        raise PeersLost(
            f"Of {fabric.world_size} processes, {who} {what}: see its own messages, then resume all of them."
        ) from None


def _ended(peers: list[tuple[str, int]]) -> list[int]:
    """The ranks of this machine's processes, as (host, pid), that do not run."""
    return [rank for rank, (host, pid) in enumerate(peers) if host == socket.gethostname() and not _lives(pid)]


def _lives(pid: int) -> bool:
    """Whether a process of this machine runs; one that ended and was not waited for yet does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except ProcessLookupError:
        return False
    except OSError:  # no /proc, or the process of someone else
        return True
