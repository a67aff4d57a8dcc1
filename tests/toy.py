"""A small objective and a training stream for tests of the loop; importable by other processes."""

import torch
from torch import nn

from mapet.engine.optim import Optim, adamw, cosine
from mapet.utils.rng import random_bits


class Toy(nn.Module):
    """Regression with dropout: its result hangs on torch's generator, as a real objective's may."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.layers = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 1))

    def forward(self, x, y):
        loss = (self.layers(x) - y).square().mean()
        return {"loss": loss, "error": loss.detach().sqrt()}


class Numbers:
    """Batches as a pure function of the step, shared by ``world`` processes."""

    def __init__(self, steps=20, size=8, rank=0, world=1, poison=None, at=None, call=None):
        self.steps, self.steps_per_epoch, self.size = steps, 5, size
        self.rank, self.world, self.poison, self.at, self.call = rank, world, poison, at, call

    def __call__(self, start):
        for step in range(start, self.steps):
            if step + 1 == self.at:
                self.call()
            x = (random_bits(step, torch.arange(self.size)[:, None], torch.arange(6)) % 1000).float() / 1000
            if step + 1 == self.poison:
                x[0, 0] = float("nan")
            part = slice(self.rank * self.size // self.world, (self.rank + 1) * self.size // self.world)
            yield {"x": x[part], "y": x.sum(1, keepdim=True)[part]}


def optim(toy, steps=20, **settings):
    lr = cosine(peak=0.01, floor=1e-4, start=1e-5, warmup=4, total=steps)
    return Optim(adamw(toy, weight_decay=0.05, betas=(0.9, 0.999)), lr, **settings)
