"""Versions are told of what is installed, and nothing stops where a name is not."""

import importlib.metadata
import json
import os

import pytest
import torch

from mapet.api.benchmark.hardware import provenance, runtime
from mapet.cli import main
from mapet.engine.run import VERSIONS, Run


@pytest.fixture
def uninstalled(monkeypatch):
    """As from a source folder, with lightning in the place of lightning-fabric."""
    real = importlib.metadata.distribution

    def distribution(name):
        if name in ("mapet", "lightning-fabric"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)


def test_the_source_folder_tells_that_it_is_one(uninstalled, capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "mapet (source folder)\n"


def test_what_is_not_installed_has_no_version(uninstalled, tmp_path):
    run = Run.create(tmp_path / "run")
    run.write_provenance()
    (entry,) = json.loads((run.folder / "provenance.json").read_text())
    for found in (entry["versions"], provenance(torch.device("cpu"))["versions"]):
        assert list(found) == list(VERSIONS)
        assert [name for name, version in found.items() if version is None] == ["mapet", "lightning-fabric"]
        assert found["torch"] == importlib.metadata.version("torch")


def test_the_machine_is_told_with_its_load_where_that_is_known(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1.26, 5.0, 9.0), raising=False)
    assert runtime(torch.device("cpu")).endswith(f"torch {torch.__version__}, load 1.3")
    monkeypatch.delattr(os, "getloadavg")
    assert runtime(torch.device("cpu")).endswith(f"torch {torch.__version__}")
