"""A process that used fake tensors can still fork workers that train."""

import subprocess
import sys

CODE = """
import os, torch
from torch._subclasses.fake_tensor import FakeTensorMode
from mapet.utils.autograd import start_without_devices

with torch.no_grad():
    start_without_devices()
with FakeTensorMode():
    (2 * torch.ones(1, requires_grad=True)).sum().backward()
if not (pid := os.fork()):
    torch.ones(1, requires_grad=True).sum().backward()
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_fork_can_train_after_fake_tensors():
    """In a process of its own, as autograd's threads start once."""
    assert subprocess.run([sys.executable, "-c", CODE], capture_output=True).returncode == 0
