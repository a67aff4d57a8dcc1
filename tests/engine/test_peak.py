"""Peak memory as the system tells it."""

import resource
from types import SimpleNamespace

import torch

from mapet.engine import peak as module
from mapet.engine.peak import peak, reset_peak

CPU = torch.device("cpu")


def test_the_system_tells_kibibytes(tmp_path, monkeypatch):
    (tmp_path / "status").write_text("VmPeak:\t    9000 kB\nVmHWM:\t    3000 kB\nVmRSS:\t    2000 kB\n")
    monkeypatch.setattr(module, "STATUS", tmp_path / "status")
    assert peak(CPU) == 3000 * 1024


def test_without_a_status_it_is_the_largest_of_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STATUS", tmp_path / "none")
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=3000 + who))
    assert peak(CPU) == (3000 + resource.RUSAGE_SELF) * 1024


def test_of_a_gpu_it_is_what_torch_allocated(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 if device.type == "cuda" else 0)
    assert peak(torch.device("cuda")) == 5


def test_unused_memory_is_returned_before_a_measurement(monkeypatch):
    done = []
    monkeypatch.setattr(module, "give_back", lambda: done.append("returned"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: done.append(device.type))
    reset_peak(CPU)
    assert done == ["returned"]
    reset_peak(torch.device("cuda"))
    assert done == ["returned", "cuda"]
