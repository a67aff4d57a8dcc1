"""The parts of ``gpu.py``: the command of each, and how its figures are read from its files."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from gpu_inside import COMPLETE, Context

GPU = Path(__file__).with_name("gpu.py")
KMEANS = GPU.parents[1] / "kmeans.py"
TINY = ["--model", "custom", "--embed-dim", "64", "--depth", "1", "--num-heads", "1", "--image-size", "32"]
TINY += ["--patch-size", "8", "--vocab-size", "16", "--batch-sizes", "4", "--rounds", "1", "--skip-memory"]
TINY += ["--accelerator", "cpu", "--precisions", "float32"]


@dataclass(frozen=True)
class Figure:
    """One line of the table; ``bar`` is the target, and ``holds`` whether it is reached, if there is one."""

    what: str
    value: str
    bar: str = ""
    holds: bool | None = None


@dataclass(frozen=True)
class Part:
    """One measurement: its command in an empty folder, and how its figures are read from its files."""

    about: str
    command: Callable[["Context"], list[str]]
    figures: Callable[[Path, "Context"], list[Figure]]
    seconds: int = 150


def bench(context: Context, folder: str, *full: str, dry: tuple[str, ...] = ()) -> list[str]:
    """The command of ``mapet bench`` into a folder; in a dry run, with tiny settings."""
    chosen = [*TINY, *dry] if context.dry else ["--accelerator", "cuda", "--rounds", "3", *full]
    return [sys.executable, "-m", "mapet", "bench", *chosen, "--out", str(context.out / folder)]


def data(context: Context, kind: str) -> tuple[str, ...]:
    """Options to load the generated images: small ones are cached on the device, large ones are not."""
    if not (context.out / "images" / COMPLETE).exists():
        return ()
    return ("--data", str(context.out / "images" / kind), "--cache-gib", "2" if kind == "small" else "0")


def bench_report(folder: Path) -> dict[str, Any]:
    """The report of ``mapet bench`` in a part's folder, complete or not; without rows if there is none."""
    path = folder / "bench.json"
    return json.loads(path.read_text()) if path.is_file() else {"rows": [], "failed": {}}


def rows(folder: Path, implementation: str = "ours") -> list[dict[str, Any]]:
    """The rows of an implementation."""
    return [row for row in bench_report(folder)["rows"] if row["implementation"] == implementation]


def at_least(what: str, value: float, bar: float, unit: str) -> Figure:
    """A figure with a minimum as target; the units % and × are formatted."""
    shown = {"%": lambda x: f"{100 * x:.1f} %", "×": lambda x: f"{x:.2f} ×"}.get(unit, lambda x: f"{x:,.0f} {unit}")
    return Figure(what, shown(value), f"≥ {shown(bar)}", value >= bar)


def first(folder: Path, context: Context) -> list[Figure]:
    cold, warm = json.loads((folder / "first.json").read_text())
    return [
        Figure("ViT-B/16 MaPeT, compiled: process start to first step, empty cache", f"{cold:.1f} s", "stated"),
        Figure("the same, second start (uses the cache)", f"{warm:.1f} s", "shorter", warm < cold),
    ]


def against_dense(name: str, loading_bar: float, step_bar: float | None) -> Callable[[Path, Context], list[Figure]]:
    """Ours, eager and (if measured) compiled, against the dense reference as published."""
    fields = (
        ("step, forward and backward", "passes_seconds", step_bar),
        ("whole step", "seconds", None),
        ("end to end with loading", "loading", loading_bar),
    )

    def figures(folder: Path, context: Context) -> list[Figure]:
        found = []
        compiled = rows(folder.with_name(f"{folder.name}-compiled"))
        every = [("", rows(folder)), (", ours compiled", compiled)]
        for (how, own), dense in product(every, rows(folder, "dense")):
            for mine, (what, field, bar) in product(own, fields):
                if mine[field] and dense[field]:
                    title, ratio = f"{name} MaPeT over dense, {what}{how}", dense[field] / mine[field]
                    found.append(at_least(title, ratio, bar, "×") if bar else Figure(title, f"{ratio:.2f} ×"))
        for ours, dense in product(rows(folder), rows(folder, "dense")):
            if step_bar and ours["memory"] and dense["memory"]:
                share = ours["memory"] / dense["memory"]
                found.append(Figure(f"{name} peak memory over dense", f"{100 * share:.1f} %", "≤ 35 %", share <= 0.35))
        return found

    return figures


def share_of_peak(name: str, bar: float) -> Callable[[Path, Context], list[Figure]]:
    def figures(folder: Path, context: Context) -> list[Figure]:
        found, what = [], f"{name} MaPeT, compiled: model FLOP/s over the fastest product"
        for row in rows(folder):
            peak = f"({median(row['peak']) / 1e12:.4g} TFLOP/s)"
            found.append(at_least(f"{what} {peak}, forward and backward", row["passes_share"], bar, "%"))
            found.append(at_least(f"{what} {peak}, whole step", row["share"], bar, "%"))
        return found

    return figures


def over_peer(name: str, bar: float) -> Callable[[Path, Context], list[Figure]]:
    def figures(folder: Path, context: Context) -> list[Figure]:
        return [
            at_least(f"{name}, {what}", theirs[field] / ours[field], bar, "×")
            for ours, theirs in product(rows(folder), rows(folder, "transformers"))
            for what, field in (("forward and backward", "passes_seconds"), ("whole step", "seconds"))
        ]

    return figures


def small_images(folder: Path, context: Context) -> list[Figure]:
    speeds = {row["batch"]: row["batch"] / row["loading"] for row in rows(folder) if row["loading"]}
    what = "32-pixel images held on the device, ViT-Ti/4 MaPeT, batch {}, compiled"
    best = sorted(speeds, key=speeds.__getitem__)[-1:]
    return [at_least(what.format(batch), speeds[batch], 20_000, "images/s") for batch in best]


def pace(name: str) -> Callable[[Path, Context], list[Figure]]:
    return lambda folder, context: [Figure(name, f"{row['images_per_second']:,.0f} images/s") for row in rows(folder)]


def lloyd(folder: Path, context: Context) -> list[Figure]:
    found = json.loads((folder / "kmeans.json").read_text())
    s = found["settings"]
    sizes = f"{s['vectors']:,} × {s['width']}, k = {s['codes']}"
    what = f"k-means over {sizes}: {s['iterations']} iterations over faiss on the CPU ({s['faiss_iterations']}, scaled)"
    ours = Figure(f"k-means over {sizes}, {s['iterations']} iterations", f"{found['ours']['wall']:.2f} s")
    return [ours, at_least(what, found["faiss / ours"], 20, "×")]


def changed(folder: Path, context: Context) -> list[Figure]:
    found = json.loads((folder / "assignments.json").read_text())
    return [
        Figure(f"assignments that {how} changes", f"{100 * share:.4f} %", "< 0.1 %", share < 1e-3)
        for how, share in found.items()
    ]


def attention(folder: Path, context: Context) -> list[Figure]:
    found = json.loads((folder / "attention.json").read_text())
    seconds, what = found["seconds"], "one layer's attention of ViT-B/16 MaPeT, batch 64, forward and backward"
    others = {"flex": "FlexAttention", "windows": "flash attention by windows"}
    over = {name: f"{seconds['mask'] / seconds[name]:.2f} × ({1000 * seconds['mask']:.2f} ms)" for name in others}
    figures = [Figure(f"{what}: constant mask over {others[name]}", over[name], "stated") for name in others]
    kernels = "; ".join(f"{name}: {', '.join(kinds)}" for name, kinds in found["backends"].items())
    return [*figures, Figure("kernels of scaled_dot_product_attention that take it", kernels, "stated")]


def own(name: str) -> Callable[[Context], list[str]]:
    """The command of a part that ``gpu_inside`` runs."""
    return lambda context: [
        sys.executable,
        str(GPU),
        "--out",
        str(context.out),
        "--inside",
        name,
        *(["--dry-run"] if context.dry else []),
    ]


def kmeans_command(context: Context) -> list[str]:
    sizes = (
        ["--vectors", "400", "--width", "8", "--codes", "9", "--iterations", "2"]
        if context.dry
        else ["--vectors", "1000000", "--width", "1024", "--codes", "8192", "--iterations", "20"]
    )
    ending = ["--faiss-iterations", "1", "--rounds", "1", "--device", context.device]
    return [sys.executable, str(KMEANS), *sizes, *ending, "--json", str(context.out / "kmeans" / "kmeans.json")]


def model(name: str, batch: int, *more: str) -> tuple[str, ...]:
    return ("--models", name, "--batch-sizes", str(batch), *more)


DENSE, COMPILED = ("--baseline", "dense"), ("--compile", "on")
PARTS = {  # steps with a target first, in case the time runs out
    "mim": Part(
        "MIM against transformers",
        lambda c: bench(
            c,
            "mim",
            "in1k-beit-vit-base",
            *("--batch-sizes", "64", *COMPILED, "--baseline", "transformers"),
            dry=("--objectives", "mim", "--baseline", "transformers"),
        ),
        over_peer("MIM step over BeitForMaskedImageModeling, ViT-B/16, both compiled", 1.2),
    ),
    "mae": Part(
        "MAE against transformers",
        lambda c: bench(
            c,
            "mae",
            "in1k-mae-vit-base",
            *("--batch-sizes", "64", *COMPILED, "--baseline", "transformers"),
            dry=("--objectives", "mae", "--baseline", "transformers", "--init-values", "None"),
        ),
        over_peer("MAE step over ViTMAEForPreTraining, ViT-B/16, both compiled", 1.1),
    ),
    "large": Part(
        "ViT-L/16, compiled",
        lambda c: bench(c, "large", *model("vit_large", 64, *COMPILED)),
        share_of_peak("ViT-L/16", 0.55),
    ),
    "images": Part("images to load", own("images"), lambda folder, context: [], 90),
    "base-compiled": Part(
        "ViT-B/16, compiled",
        lambda c: bench(c, "base-compiled", *model("vit_base", 64, *COMPILED, *data(c, "large")), dry=data(c, "large")),
        share_of_peak("ViT-B/16", 0.50),
    ),
    "base": Part(
        "ViT-B/16 against the dense reference",
        lambda c: bench(c, "base", *model("vit_base", 64, *DENSE, *data(c, "large")), dry=(*DENSE, *data(c, "large"))),
        against_dense("ViT-B/16", 5, 4),
        180,
    ),
    "tiny-compiled": Part(
        "ViT-Ti/16, compiled",
        lambda c: bench(c, "tiny-compiled", *model("vit_tiny", 64, *COMPILED, *data(c, "large")), dry=data(c, "large")),
        pace("ViT-Ti/16 MaPeT, compiled"),
    ),
    "tiny": Part(
        "ViT-Ti/16 against the dense reference",
        lambda c: bench(c, "tiny", *model("vit_tiny", 64, *DENSE, *data(c, "large")), dry=(*DENSE, *data(c, "large"))),
        against_dense("ViT-Ti/16", 10, None),
    ),
    "small": Part(
        "CIFAR-10's size",
        lambda c: bench(
            c,
            "small",
            "cifar10-vit-tiny",
            *("--batch-sizes", "256,1024", *COMPILED, *data(c, "small")),
            dry=data(c, "small"),
        ),
        small_images,
    ),
    "first": Part("time to the first step", own("first"), first, 240),
    "kmeans": Part("k-means", kmeans_command, lloyd, 180),
    "assignments": Part("products in less than float32", own("assignments"), changed, 60),
    "attention": Part("the mask compared with FlexAttention", own("attention"), attention, 60),
}
