"""The benchmarks compare like with like: at a tiny size, equal losses, logits and gradients. Nothing is timed."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from mapet.method.encoder import Encoder

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def step():
    spec = importlib.util.spec_from_file_location("benchmark_step", BENCHMARKS / "step.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pair(step):
    encoder = Encoder((12, 16), 4, embed_dim=24, depth=3, num_heads=3, init_values=0.5)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter)))
    return step.build(encoder, 8, 13, 4, "cpu", compiled=False)


def test_dense_reference_gives_our_loss_and_gradients(pair):
    ours, dense = pair.ours(), pair.dense()
    torch.testing.assert_close(ours, dense, atol=1e-5, rtol=0)
    ours.backward()
    dense.backward()
    theirs = {name: parameter.grad for name, parameter in pair.models[1].named_parameters()}
    for name, parameter in pair.models[0].named_parameters():
        parts = [name.replace("qkv", part) for part in ("q", "kv")] if ".qkv." in name else [name]
        expected = torch.cat([theirs.pop(part) for part in parts])
        torch.testing.assert_close(parameter.grad, expected, atol=2e-5, rtol=1e-4)
    assert not theirs


def test_disagreeing_models_are_not_timed(step, pair):
    step.check_equal(pair, "float32", "cpu")
    with torch.no_grad():
        pair.models[1].head.bias[0] += 1
    with pytest.raises(SystemExit, match="disagree"):
        step.check_equal(pair, "float32", "cpu")


def test_masks_hide_as_much_as_the_pattern(step):
    """Every row of both streams sees as many keys as there are positions."""
    order = torch.stack([torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(12)]) for _ in range(3)])
    content, query = step.dense_masks(order, 5, heads=2)
    assert content.shape == (3, 2, 21, 21)
    assert query.shape == (3, 2, 8, 21)
    assert content.dtype == query.dtype == torch.float32
    assert ((content == 0).sum(-1) == 13).all()
    assert ((query == 0).sum(-1) == 13).all()


def test_command_line(step, monkeypatch, tmp_path, capsys):
    tiny = {"embed_dim": 8, "depth": 1, "num_heads": 2}
    monkeypatch.setitem(step.SIZES, "vit_tiny", tiny)
    monkeypatch.setattr(step, "VOCABULARY", 7)
    options = ["--size=vit_tiny", "--batch=1", "--rounds=2", "--device=cpu", "--include-masks"]
    monkeypatch.setattr(sys, "argv", ["step.py", *options, f"--json={tmp_path / 'step.json'}"])
    step.main()
    assert "| vit_tiny | 1 | float32 | no |" in capsys.readouterr().out
    report = json.loads((tmp_path / "step.json").read_text())
    assert len(report["results"][0]["ours"]) == len(report["results"][0]["dense"]) == 2
    assert report["results"][0]["ratio"] > 0
