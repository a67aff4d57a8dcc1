"""The method, implemented naively: every row of every kind, dictionaries and loops, nothing optimised."""

import random

import torch
from torch.nn import functional as F

from mapet.method.order import uniform
from mapet.method.pattern import mapet, mim, pet, reveal


def times(length, groups):
    """The group in which each index of the order is revealed."""
    given = [0] * (1 + length - sum(groups))
    return given + [group for group, count in enumerate(groups, start=1) for _ in range(count)]


def all_rows(length, groups, fill):
    """Every row as (kind, index, clock)."""
    time = times(length, groups)
    masked = [index for index in range(1 + length) if time[index] > 0]
    rows = [("content", index, time[index]) for index in range(1 + length)]
    rows += [("placeholder", index, 0) for index in masked if fill]
    return rows + [("query", index, time[index] - 1) for index in masked]


def reads(clock, length, groups, fill):
    """The (kind, index) that a row with this clock reads: for every position its freshest row no later."""
    seen = set()
    for index, time in enumerate(times(length, groups)):
        if time <= clock:
            seen.add(("content", index))
        elif fill:
            seen.add(("placeholder", index))
    return seen


def cases(number, seed=0, largest=9):
    """Random (length, groups, fill), including the three named objectives."""
    rng = random.Random(seed)
    found = [
        (6, [4], True),
        (6, [1] * 4, False),
        (6, [1] * 4, True),
        (5, [5], False),
        (5, [1] * 5, True),
        (1, [1], True),
    ]
    while len(found) < number:
        length = rng.randint(1, largest)
        groups = [rng.randint(1, 3) for _ in range(rng.randint(1, 5))]
        if sum(groups) <= length:
            found.append((length, groups, rng.random() < 0.5))
    return found


NAMED = {"mapet": mapet, "pet": pet, "mim": mim}
PATTERNS = {f"{name}-12-8": pattern(12, 8) for name, pattern in NAMED.items()} | {
    "3+2+4-filled": reveal(12, [3, 2, 4], fill=True),
    "3+2+4-bare": reveal(12, [3, 2, 4], fill=False),
    "5+1-filled": reveal(12, [5, 1], fill=True),
    "7-bare": reveal(12, [7], fill=False),
    "all-of-12": mapet(12, 12),
}
GROUPS = {
    "mapet-12-8": ([1] * 8, True),
    "pet-12-8": ([1] * 8, False),
    "mim-12-8": ([8], True),
    "3+2+4-filled": ([3, 2, 4], True),
    "3+2+4-bare": ([3, 2, 4], False),
    "5+1-filled": ([5, 1], True),
    "7-bare": ([7], False),
    "all-of-12": ([1] * 12, True),
}


def shaken(module, seed=0, scale=0.3):
    """Add noise to all parameters, so that an error in any bias, norm or scale shows; returns the module."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
    return module


def plain_block(block, rows, mask):
    """Compute every row; attention by its formula; ``mask`` is (R, R) bool."""
    batch, count, width = rows.shape
    q, k, v = block.attn.qkv(block.norm1(rows)).view(batch, count, 3, block.attn.heads, -1).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-1, -2)) / (width // block.attn.heads) ** 0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    rows = rows + block.ls1(block.attn.proj((weights @ v).transpose(1, 2).reshape(batch, count, width)))
    activations = F.gelu(block.mlp.fc1(block.norm2(rows)))
    return rows + block.ls2(block.mlp.fc2(activations))


def naive_logits(model, images, order, groups, fill):
    """``TokenPrediction.logits`` over all rows of all kinds, masks by the rule."""
    encoder, length = model.encoder, model.encoder.length
    kinds = all_rows(length, groups, fill)
    number_of = {row[:2]: number for number, row in enumerate(kinds)}
    mask = torch.zeros(len(kinds), len(kinds), dtype=torch.bool)
    for number, (_, _, clock) in enumerate(kinds):
        mask[number, [number_of[row] for row in reads(clock, length, groups, fill)]] = True
    embedded = encoder.embed(images)
    starts = []
    for kind, index, _ in kinds:
        position = order[:, index]
        own = embedded[torch.arange(len(images)), position]
        start = own if kind == "content" else model.mask_token[0].expand_as(own)
        starts.append(start + encoder.pos_embed[0, position])
    rows = torch.stack(starts, dim=1)
    for block in encoder.blocks:
        rows = plain_block(block, rows, mask)
    queries = [number for number, row in enumerate(kinds) if row[0] == "query"]
    return model.head(encoder.norm(rows[:, queries]))


def drawn(encoder, size, vocabulary=11, seed=0):
    """Random images, tokens and orders for an encoder."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size, encoder.in_chans, *encoder.img_size)
    images = torch.randn(shape, generator=generator, dtype=encoder.cls_token.dtype)
    tokens = torch.randint(vocabulary, (size, encoder.length), generator=generator)
    return images, tokens, uniform(encoder.grid, 0, seed, 0, torch.arange(size))


def influence(outputs, images, patch):
    """(B, L): the influence of each patch on the outputs of its image, by gradient; 0 means none."""
    (gradient,) = torch.autograd.grad((outputs * torch.randn_like(outputs)).sum(), images, retain_graph=True)
    return gradient.abs().unfold(2, patch, patch).unfold(3, patch, patch).sum((1, 4, 5)).flatten(1)
