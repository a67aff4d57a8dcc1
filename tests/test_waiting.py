"""Between a decoded batch and its loss nothing makes the process wait for a GPU, as an imitation of one tells.

The imitation refuses by itself to tell values that lie on it; copies to it are watched.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data._utils.pin_memory import pin_memory as pinned_by_loader

from mapet.assemble import build_objective
from mapet.data import decode
from mapet.data.bad import BadPictures
from mapet.data.decode import Batch
from mapet.data.device import to_device
from mapet.data.loader import Shuffled
from mapet.data.source import open_source
from mapet.feed import Feed, Stored
from mapet.method.order import STRATEGIES
from mapet.recipe import Model
from mapet.recipes import find
from mapet.view import View

CUDA, SIDE, COUNT = torch.device("cuda"), 32, 6
MODEL = Model("custom", embed_dim=32, depth=3, num_heads=2, image_size=SIDE, patch_size=8, drop_path=0.3)


class Gpu(TorchDispatchMode):
    """While it lasts, "cuda" is an imitation; ``copies`` to and from it are noted, ``waits`` are those that block."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.fake, self.copies, self.waits = FakeTensorMode(allow_non_fake_inputs=True), [], []
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: self.pinned(tensor))

    def pinned(self, tensor):
        """A copy that knows that it is pinned."""
        assert tensor.device.type == "cpu"
        copy = self.fake.from_tensor(tensor.detach().clone())
        copy.is_pinned_here = True
        return copy

    def __enter__(self):
        self.fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.fake.__exit__(*error)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        given, made = (
            [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)] for tree in ((args, kwargs), result)
        )
        # A CPU's scalar goes into a kernel as an argument, unless it is copied.
        cpu = [x for x in given + made if x.device.type == "cpu" and (x.dim() or "copy" in str(operation))]
        if cpu and any(x.device.type == "cuda" for x in given + made):
            self.copies.append(str(operation))
            if not (kwargs.get("non_blocking") and all(getattr(x, "is_pinned_here", False) for x in cpu)):
                self.waits.append((str(operation), [tuple(x.shape) for x in cpu]))
        return result


@pytest.fixture
def gpu(monkeypatch):
    return Gpu(monkeypatch)


def on_host(function):
    """``function`` with real numbers, of which the imitation knows none."""

    def run(*args):
        with unset_fake_temporarily():
            return function(*args)

    return run


@pytest.fixture(scope="module")
def source(pictures):
    return open_source(str(pictures))


def small(name):
    """A recipe's own settings with a little model; its colours are jittered."""
    return replace(find(name), model=MODEL, color_jitter=0.4)


def feeding(recipe, source, monkeypatch):
    """A feed of ``recipe`` for the imitation, its tokens from a store, and a decoded batch."""
    length = recipe.grid[0] * recipe.grid[1]
    tokens = np.zeros((len(source), length), np.uint16)
    store = SimpleNamespace(vocabulary=8, tokenizer="", tokens=tokens, rows=lambda keys: np.arange(len(keys)))
    stored = Stored(store, source, np.arange(len(source)))
    order = recipe.objective.order
    monkeypatch.setitem(STRATEGIES, order, on_host(STRATEGIES[order]))
    batch = Batch(torch.zeros((COUNT, 3, SIDE, SIDE), dtype=torch.uint8), torch.arange(COUNT), 1)
    return Feed(recipe, None, on_host(stored), CUDA), batch


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
    feed, batch = feeding(recipe, source, monkeypatch)
    with gpu:
        given = feed.prepared(batch)
    assert {tensor.device.type for tensor in given.values()} == {"cuda"}
    assert len(gpu.copies) == 5  # pictures, places, tokens, orders, and the channels' means and deviations
    assert gpu.waits == []


@pytest.mark.parametrize("method", ["", "beit-", "cae-", "mae-"])
def test_an_objective_copies_nothing(gpu, source, monkeypatch, method):
    """Stochastic depth and its streams beside the encoder's are drawn from the key where it lies."""
    recipe = small(f"in1k-{method}vit-base")
    objective = build_objective(recipe, 8).train()
    feed, batch = feeding(recipe, source, monkeypatch)
    with gpu:
        objective.to(CUDA)
        given = feed.prepared(batch)
        gpu.copies.clear()
        objective(**given)
    assert gpu.copies == []


def test_pictures_held_on_a_gpu_are_looked_up_without_waiting(gpu, source):
    shuffled = Shuffled(
        source, View((SIDE, SIDE)), batch_size=COUNT, epochs=1, seed=0, bad=BadPictures(len(source)), device=CUDA
    )
    images = torch.empty((len(source), 3, SIDE, SIDE), dtype=torch.uint8)
    with gpu:
        shuffled._pictures = [to_device(images, CUDA)], on_host(torch.arange)(len(source))
        gpu.copies.clear()
        gpu.fake.shape_env = ShapeEnv()  # lets it choose good pictures without knowing how many there are
        batch = shuffled._look_up(0, [3, 1, 2])
    assert batch.images.device.type == "cuda"
    assert len(gpu.copies) == 1
    assert gpu.waits == []


@pytest.mark.parametrize(("device", "pin"), [("cuda", True), ("cpu", False)])
def test_decoded_pictures_are_pinned_for_a_gpu(source, monkeypatch, device, pin):
    asked = []

    def loaded(items, groups, workers, pin):
        asked.append(pin)
        return map(items.__getitem__, groups)

    monkeypatch.setattr(decode, "loaded", loaded)
    settings = {"batch_size": COUNT, "epochs": 1, "seed": 0, "bad": BadPictures(len(source)), "memory": 0}
    next(Shuffled(source, View((SIDE, SIDE)), device=device, **settings)())
    assert asked == [pin]


@pytest.mark.parametrize("views", [1, 2])
def test_the_loader_pins_all_of_a_batch(gpu, views):
    images = [torch.zeros((COUNT, 3, SIDE, SIDE), dtype=torch.uint8)] * views
    batch, faults = pinned_by_loader((Batch(images[0], torch.arange(COUNT), 5, *images[1:]), [(3, "damaged")]))
    assert len(batch.views) == views
    assert all(tensor.is_pinned_here for tensor in (*batch.views, batch.index))
    assert (batch.epoch, [*map(tuple, faults)]) == (5, [(3, "damaged")])
