"""Between a decoded batch and its loss nothing makes the process wait for a GPU, as an imitation of one tells.

The imitation refuses by itself to tell values that lie on it; copies to it are watched.
"""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.data._utils.pin_memory import pin_memory as pinned_by_loader

from imitation import COUNT, CUDA, SIDE, Gpu, feeding, on_host, small
from mapet.build.pretrain import build_objective
from mapet.data import decode
from mapet.data.dataset import open_dataset
from mapet.data.decode import Batch
from mapet.data.device import to_device
from mapet.data.loader import Shuffled
from mapet.data.unreadable import UnreadableImages
from mapet.method.order import STRATEGIES
from mapet.utils.view import CenterCropResize

pytestmark = pytest.mark.isolated


@pytest.fixture
def gpu(monkeypatch):
    return Gpu(monkeypatch)


@pytest.fixture(scope="module")
def source(images):
    return open_dataset(str(images))


def test_the_imitation_sees_what_waits(gpu):
    with gpu:
        there = to_device(torch.arange(4), CUDA)
        there + 3, there * torch.tensor(3)
        assert (len(gpu.copies), gpu.waits) == (1, [])
        for wait in (
            lambda: torch.arange(4).to(CUDA),
            lambda: torch.arange(4).to(CUDA, non_blocking=True),
            lambda: torch.as_tensor(4, device=CUDA),
            lambda: there.new_tensor([4]),
            lambda: there[torch.arange(2)],
            lambda: there.cpu(),
        ):
            before = len(gpu.waits)
            wait()
            assert len(gpu.waits) == before + 1
        with pytest.raises(DataDependentOutputException):
            there.any().item()


@pytest.mark.parametrize("order", STRATEGIES)
@pytest.mark.parametrize("method", ["", "beit-"])
def test_a_batch_is_handed_over_without_waiting(gpu, source, monkeypatch, method, order):
    recipe = small(f"in1k-{method}vit-base")
    recipe = replace(recipe, objective=replace(recipe.objective, order=order))
    pretrain_batches, batch = feeding(recipe, source, monkeypatch)
    with gpu:
        given = pretrain_batches.prepared(batch)
    assert {tensor.device.type for tensor in given.values()} == {"cuda"}
    assert len(gpu.copies) == 7  # images, jitter (two), keys, tokens, orders, and channels' means and deviations
    assert gpu.waits == []


@pytest.mark.parametrize("method", ["", "beit-", "cae-", "mae-"])
def test_an_objective_copies_nothing(gpu, source, monkeypatch, method):
    """Stochastic depth and its streams beside the encoder's are drawn from the key where it lies."""
    recipe = small(f"in1k-{method}vit-base")
    objective = build_objective(recipe, 8).train()
    pretrain_batches, batch = feeding(recipe, source, monkeypatch)
    with gpu:
        objective.to(CUDA)
        given = pretrain_batches.prepared(batch)
        gpu.copies.clear()
        objective(**given)
    assert gpu.copies == []


def test_pictures_held_on_a_gpu_are_looked_up_without_waiting(gpu, source):
    shuffled = Shuffled(
        source,
        CenterCropResize((SIDE, SIDE)),
        batch_size=COUNT,
        epochs=1,
        seed=0,
        bad=UnreadableImages(len(source)),
        device=CUDA,
    )
    images = torch.empty((len(source), 3, SIDE, SIDE), dtype=torch.uint8)
    with gpu:
        shuffled._images = [to_device(images, CUDA)], on_host(torch.arange)(len(source))
        gpu.copies.clear()
        gpu.fake.shape_env = ShapeEnv()  # lets it choose good images without knowing how many there are
        batch = shuffled._look_up(0, [3, 1, 2])
    assert batch.images.device.type == "cuda"
    assert len(gpu.copies) == 1
    assert gpu.waits == []


@pytest.mark.parametrize(("device", "pin"), [("cuda", True), ("cpu", False)])
def test_decoded_pictures_are_pinned_for_a_gpu(source, monkeypatch, device, pin):
    asked = []

    def loaded(items, groups, workers, pin, *_):
        asked.append(pin)
        return map(items.__getitem__, groups)

    monkeypatch.setattr(decode, "load", loaded)
    settings = {"batch_size": COUNT, "epochs": 1, "seed": 0, "bad": UnreadableImages(len(source)), "memory": 0}
    next(Shuffled(source, CenterCropResize((SIDE, SIDE)), device=device, **settings)())
    assert asked == [pin]


@pytest.mark.parametrize("views", [1, 2])
def test_the_loader_pins_all_of_a_batch(gpu, views):
    images = [torch.zeros((COUNT, 3, SIDE, SIDE), dtype=torch.uint8)] * views
    batch, faults = pinned_by_loader((Batch(images[0], torch.arange(COUNT), 5, *images[1:]), [(3, "damaged")]))
    assert len(batch.views) == views
    assert all(tensor.is_pinned_here for tensor in (*batch.views, batch.index))
    assert (batch.epoch, [*map(tuple, faults)]) == (5, [(3, "damaged")])
