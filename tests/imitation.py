"""A fake GPU: shapes, dtypes and devices of what a step computes, without values."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mapet.build.batches import PretrainBatches, Stored
from mapet.config.recipe import Model
from mapet.config.recipes import find
from mapet.data.decode import Batch
from mapet.method.order import STRATEGIES

CUDA, SIDE, COUNT = torch.device("cuda"), 32, 6
MODEL = Model("custom", embed_dim=32, depth=12, num_heads=2, image_size=SIDE, patch_size=8, drop_path=0.3)


class Gpu(TorchDispatchMode):
    """Inside this context, "cuda" is fake; records ``copies`` to and from it, and ``waits``, those that block."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.fake, self.copies, self.waits = FakeTensorMode(allow_non_fake_inputs=True), [], []
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: self.pinned(tensor))

    def pinned(self, tensor):
        """A copy marked as pinned."""
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
        # A CPU scalar is passed to a kernel as an argument, unless it is copied.
        cpu = [x for x in given + made if x.device.type == "cpu" and (x.dim() or "copy" in str(operation))]
        if cpu and any(x.device.type == "cuda" for x in given + made):
            self.copies.append(str(operation))
            if not (kwargs.get("non_blocking") and all(getattr(x, "is_pinned_here", False) for x in cpu)):
                self.waits.append((str(operation), [tuple(x.shape) for x in cpu]))
        return result


def on_host(function):
    """``function`` on real tensors, outside the fake mode."""

    def run(*args):
        with unset_fake_temporarily():
            return function(*args)

    return run


def small(name):
    """A named recipe with a small model and color jitter."""
    return replace(find(name), model=MODEL, color_jitter=0.4)


def feeding(recipe, source, monkeypatch):
    """``PretrainBatches`` of ``recipe`` for the fake GPU with stored tokens, and a decoded batch."""
    length = recipe.grid[0] * recipe.grid[1]
    tokens = np.zeros((len(source), length), np.uint16)
    store = SimpleNamespace(
        vocabulary=8, tokenizer="", read=tokens.__getitem__, rows=lambda image_ids: np.arange(len(image_ids))
    )
    stored = Stored(store, source, np.arange(len(source)))
    order = recipe.objective.order
    monkeypatch.setitem(STRATEGIES, order, on_host(STRATEGIES[order]))
    batch = Batch(torch.zeros((COUNT, 3, SIDE, SIDE), dtype=torch.uint8), torch.arange(COUNT), 1)
    return PretrainBatches(recipe, None, on_host(stored), CUDA), batch
