"""Training on Apple's GPU, which has no float64 and no shifts of int64, imitated by a fake GPU."""

from functools import cache
from pathlib import Path

import pytest
import torch
import torchgen
import yaml
from torch.utils._pytree import tree_leaves

from imitation import COUNT, CUDA, SIDE, Gpu, feeding, small
from mapet.build.pretrain import build_objective
from mapet.data.dataset import open_dataset
from mapet.tokenizers import vqkd_train
from mapet.tokenizers.vqkd import VQKD
from mapet.utils import rng as hashing
from mapet.utils.rng import exact, random_bits

pytestmark = pytest.mark.isolated


@cache
def operations():
    """Torch's table of its operations, by name."""
    path = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    entries = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {entry["func"].partition("(")[0]: entry for entry in entries}


def has_kernel(name):
    """Whether Apple's GPU has a kernel of its own or a composite of other operations."""
    entry = operations()[name]
    if "structured_delegate" in entry:
        return has_kernel(entry["structured_delegate"])
    return "dispatch" not in entry or any("MPS" in keys or "Composite" in keys for keys in entry["dispatch"])


class Apple(Gpu):
    """Refuses unsupported dtypes and operations without a kernel."""

    def __init__(self, monkeypatch):
        super().__init__(monkeypatch)
        monkeypatch.setattr(hashing, "NARROW", {CUDA.type})

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(operation, types, args, kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == CUDA.type:
                name = operation.name().removeprefix("aten::")
                assert name == "prim::device" or has_kernel(name), name
            wide = {torch.float64, torch.int64} if "shift" in str(operation) else {torch.float64}
            if isinstance(tensor, torch.Tensor) and tensor.device.type == CUDA.type and tensor.dtype in wide:
                raise TypeError(f"{operation} of {tensor.dtype}")
        return result


@pytest.fixture
def apple(monkeypatch):
    return Apple(monkeypatch)


def test_fake_gpu_refuses_unsupported_dtypes_and_operations(apple):
    with apple:
        there = torch.arange(4).to(CUDA)
        for wide in (there.double, lambda: there.float().mean(dtype=torch.float64), lambda: random_bits(there)):
            with pytest.raises(TypeError):
                wide()
        assert there.to(exact(CUDA)).double().device.type == "cpu"
        with pytest.raises(AssertionError, match="_pdist_forward"):
            torch.ops.aten._pdist_forward(torch.rand(3, 2, device=CUDA), 2.0)


@pytest.mark.parametrize("method", ["", "beit-", "beit2-", "cae-", "mae-"])
def test_a_step_of_every_objective(apple, images, monkeypatch, method):
    recipe = small(f"in1k-{method}vit-base")
    objective = build_objective(recipe, 8).train()
    pretrain_batches, batch = feeding(recipe, open_dataset(str(images)), monkeypatch)
    with apple:
        objective.to(CUDA)
        given = pretrain_batches.prepared(batch)
        assert objective(**given)["loss"].device.type == CUDA.type
    assert given["seed"].device.type == "cpu"


def test_vqkd_updates_its_codes_on_the_cpu(apple, monkeypatch):
    """Zeros replace the sums of ``sum_by_code``, as fake tensors have no values."""
    network = VQKD(image_size=SIDE, patch_size=8, embed_dim=16, depth=1, num_heads=2, codes=5, code_dim=4)
    training = vqkd_train.VQKDTraining(network, width=3, decoder_dim=16, decoder_depth=1, decoder_heads=2)
    indices = []

    def sum_by_code(unit, tokens, codes):
        indices.append(unit.device.type)
        return unit.double().new_zeros(codes, unit.shape[1] + 1)

    monkeypatch.setattr(vqkd_train, "sum_by_code", sum_by_code)
    with apple:
        training.to(CUDA)
        seen = torch.rand(COUNT, 16, 4), torch.zeros(COUNT, 16, dtype=torch.int64), torch.arange(COUNT)
        training._seen.append(tuple(part.to(CUDA) for part in seen))
        training.update()
    assert indices == ["cpu"]
    assert network.codes.device.type == training.usage.device.type == CUDA.type
