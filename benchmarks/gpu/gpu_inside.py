"""The parts of ``gpu.py`` that it runs itself, each in a separate process."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from mapet.cli import VERBS
from mapet.utils.io import replace_file

if TYPE_CHECKING:
    from torch import Tensor

COMPLETE = "complete"  # file in the folder of the images, once all of them are there


@dataclass(frozen=True)
class Context:
    """The output folder, and whether this is a dry run."""

    out: Path
    dry: bool

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    def cache(self, part: str) -> Path:
        """The cache of compiled code, shared by all parts except ``first``, which starts with an empty one."""
        return self.out / ("first/cache" if part == "first" else "cache")


def generate_images(context: Context) -> None:
    """Smooth images: JPEGs of 256 pixels, packed, and PNGs of 32 pixels."""
    random, count = np.random.default_rng(0), 8 if context.dry else 2048
    for kind, side, ending in (("large", 256, "jpg"), ("small", 32, "png")):
        folder = context.out / "images" / (f"{kind}-files" if kind == "large" and "pack" in VERBS else kind)
        folder.mkdir(parents=True)
        for number in range(count):
            blocks = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            blocks.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number:05d}.{ending}")
    if "pack" in VERBS:
        source, packed = (str(context.out / "images" / name) for name in ("large-files", "large"))
        size = "32" if context.dry else "224"
        subprocess.run([sys.executable, "-m", "mapet", "pack", source, "--out", packed, "--size", size], check=True)
    (context.out / "images" / COMPLETE).touch()


def start_twice(context: Context) -> None:
    """Time to the first step of a fresh process, with an empty cache of compiled code and then with the filled one."""
    from dataclasses import replace

    from mapet.api.benchmark.case import Case
    from mapet.api.benchmark.process import until_first_step
    from mapet.config.recipe import Model, Optimization, Recipe

    tiny = Model(name="custom", embed_dim=16, depth=1, num_heads=1, image_size=16, patch_size=8)
    recipe = Recipe(optimization=Optimization(batch_size=64), model=Model(name="vit_base"), precision="bfloat16")
    if context.dry:
        recipe = replace(recipe, model=tiny, precision="float32", optimization=Optimization(batch_size=2))
    case = Case(recipe, compiled=not context.dry, vocabulary=16 if context.dry else 8192)
    seconds = [until_first_step(case, context.device) for _ in range(2)]
    replace_file(context.out / "first" / "first.json", json.dumps(seconds))


def count_changes(context: Context) -> None:
    """The share of vectors whose nearest of 8192 centroids changes with a faster product."""
    import torch

    from mapet.tokenizers.assign import assign

    count, width, codes = (400, 8, 9) if context.dry else (200_000, 1024, 8192)
    generator = torch.Generator(context.device).manual_seed(0)
    spread = torch.arange(1, width + 1, device=context.device).pow(-0.5)
    vectors = torch.randn(count, width, generator=generator, device=context.device) * spread
    centroids = vectors[:codes] + 0.1 * spread
    exact, _ = assign(vectors, centroids)
    kinds = ["bfloat16"] if context.dry else ["tf32", "bfloat16"]
    shares = {kind: (assign(vectors, centroids, precision=kind)[0] != exact).float().mean().item() for kind in kinds}
    replace_file(context.out / "assignments" / "assignments.json", json.dumps(shares))


def weigh_attention(context: Context) -> None:
    """MaPeT's attention in one layer of ViT-B/16, forward and backward: constant mask, FlexAttention, windows."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from torch.nn.functional import scaled_dot_product_attention

    from mapet.api.benchmark.clock import timed
    from mapet.method.pattern import mapet

    pattern, (images, heads, width) = (mapet(16, 12), (2, 1, 16)) if context.dry else (mapet(196, 147), (64, 12, 64))
    visible, device = pattern.visible[:, : pattern.keys].to(context.device), torch.device(context.device)
    (rows, keys), dtype = visible.shape, torch.float32 if context.dry else torch.bfloat16
    q, k, v = (
        torch.randn(images, heads, n, width, dtype=dtype, device=device, requires_grad=not context.dry)
        for n in (rows, keys, keys)
    )
    blocks = create_block_mask(lambda b, h, row, key: visible[row, key], None, None, rows, keys, device=context.device)
    flex = flex_attention if context.dry else torch.compile(flex_attention)
    ways = {
        "mask": lambda: scaled_dot_product_attention(q, k, v, attn_mask=visible),
        "flex": lambda: flex(q, k, v, block_mask=blocks),
        "windows": lambda: by_windows(q, k, v, pattern.length),
    }
    for name in ("flex", "windows"):
        torch.testing.assert_close(ways[name](), ways["mask"](), atol=2e-2, rtol=2e-2)

    def passes(name: str) -> None:
        read = ways[name]()
        if not context.dry:  # FlexAttention has no backward pass on a CPU
            torch.autograd.grad(read, (q, k, v), torch.ones_like(read))

    seconds = {name: min(timed(lambda name=name: passes(name), device, 0.01 if context.dry else 2.0)) for name in ways}
    used = {"mask": backends(q, k, v, visible), "no mask": backends(k, k, v, None)}
    replace_file(context.out / "attention" / "attention.json", json.dumps({"seconds": seconds, "backends": used}))


def by_windows(q: "Tensor", k: "Tensor", v: "Tensor", length: int) -> "Tensor":
    """MaPeT's attention without a mask: plain for the rows of clock 0, a sliding window for content and queries.

    Args:
        q, k, v: (B, N, R, E), (B, N, K, E) and (B, N, K, E), in the sequence of ``mapet.method.pattern.mapet``.
        length: L; every row reads 1 + L keys.

    Returns:
        (B, N, R, E).
    """
    import torch
    from torch.nn.attention.varlen import varlen_attn
    from torch.nn.functional import scaled_dot_product_attention

    shifted = k.shape[2] - 1 - length  # rows of content, and as many queries: row i reads the keys i … i + L
    first, last = shifted, shifted + 1 + length
    plain = scaled_dot_product_attention(q[:, :, first:last], k[:, :, first:], v[:, :, first:])
    attend = varlen_attn if q.is_cuda else sliding
    images, keys = q.shape[0], shifted + length
    starts = [torch.arange(images + 1, dtype=torch.int32, device=q.device) * rows for rows in (shifted, keys)]

    def slide(rows: "Tensor") -> "Tensor":
        packed = (part.transpose(1, 2).flatten(0, 1) for part in (rows, k[:, :, :keys], v[:, :, :keys]))
        out = attend(*packed, *starts, shifted, keys, window_size=(length, 0))
        return out.unflatten(0, (images, shifted)).transpose(1, 2)

    queries = slide(q[:, :, last:].flip(2)).flip(2)  # which come in the opposite sequence
    return torch.cat([slide(q[:, :, :first]), plain, queries], dim=2)


def sliding(q, k, v, starts_q, starts_k, rows, keys, *, window_size):
    """``torch.nn.attention.varlen.varlen_attn`` for equal lengths, by a mask: what a dry run has on a CPU.

    The last row is aligned with the last key, and a row reads ``window_size`` keys to the left and right of its own.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    images = len(starts_q) - 1
    assert starts_q[-1] == images * rows == len(q)
    assert starts_k[-1] == images * keys == len(k)
    own = torch.arange(rows)[:, None] + keys - rows
    distance = torch.arange(keys) - own
    visible = (distance >= -window_size[0]) & (distance <= window_size[1])
    parts = (part.unflatten(0, (images, -1)).transpose(1, 2) for part in (q, k, v))
    return scaled_dot_product_attention(*parts, attn_mask=visible).transpose(1, 2).flatten(0, 1)


def backends(q: "Tensor", k: "Tensor", v: "Tensor", visible: "Tensor | None") -> list[str]:
    """The kernels of scaled_dot_product_attention that take these rows and this mask."""
    import warnings

    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    found = []
    kinds = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
    for kind in kinds:
        with warnings.catch_warnings(action="ignore"), sdpa_kernel(kind):
            try:
                scaled_dot_product_attention(q, k, v, attn_mask=visible)
            except RuntimeError:
                continue
            found.append(kind.name.removesuffix("_ATTENTION").lower())
    return found


INSIDE = {
    "images": generate_images,
    "first": start_twice,
    "assignments": count_changes,
    "attention": weigh_attention,
}
