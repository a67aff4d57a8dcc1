"""The quickstart: from nothing to an encoder pre-trained on CIFAR-10, its scores and its figures."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.encoders import LoadedEncoder, load_from, untrained
from mapet.api.features import Features
from mapet.api.protocols import PROTOCOLS
from mapet.config.evaluate import EvaluateSettings, FeatureSettings
from mapet.config.file import read_run
from mapet.config.flat import updated
from mapet.config.quickstart import QuickstartSettings
from mapet.config.recipe import Recipe, Runtime
from mapet.utils.errors import MapetError
from mapet.utils.io import replace_file

if TYPE_CHECKING:
    from mapet.engine.run import Run
    from mapet.evals.score import Score

GPU = {"max_images": None, "epochs": 30, "batch_size": 256, "warmup_epochs": 2}
CPU = {  # as accurate as the recipe itself, in a quarter of the time (``benchmarks/README.md``)
    "depth": 3, "mask_ratio": 0.5, "groups": 2, "pos_embed": "sincos", "color_jitter": 0.0,
    "batch_size": 16, "lr": 3e-3, "epochs": 1.5, "warmup_epochs": 0.15,
}  # fmt: skip
LABELLED = 10_000  # training images of the evaluations
MEASURED = {"knn": "k-NN (k = 20)", "linear": "linear probe"}
SCORES = "quickstart.json"
SHOWN = 2_000  # images that the figures choose from


@dataclass(frozen=True)
class QuickstartResult:
    """What a quickstart made: its run, top-1 accuracies by encoder and evaluation, an export, figures and a report."""

    run: "Run"
    scores: "dict[str, dict[str, Score]]"
    export: Path
    figures: tuple[Path, ...]
    report: Path

    def __str__(self) -> str:
        names = list(self.scores)
        lines = ["top-1 accuracy".ljust(16) + "".join(name.rjust(24) for name in names)]
        for what in self.scores[names[0]]:
            lines.append(what.ljust(16) + "".join(str(self.scores[name][what]).rjust(24) for name in names))
        return "\n".join(lines)


def quickstart(
    out: str | Path = "quickstart", *, settings: QuickstartSettings | None = None, **changes: Any
) -> QuickstartResult:
    """Pre-train a small encoder on CIFAR-10, evaluate it next to its random start, draw figures and export it.

    Args:
        out: folder for everything; one that was interrupted is resumed.
        settings: by default ``QuickstartSettings()``.
        changes: settings by name: ``epochs``, ``max_images``, ``seed``, ``accelerator``.

    Raises:
        MapetError: the images cannot be fetched, or a folder in use by something else.
        Stopped: a signal to stop came (SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2); the same call resumes.
    """
    from mapet.api.export import export
    from mapet.api.pretrain import pretrain
    from mapet.api.report.write import report
    from mapet.api.resume import resume_run
    from mapet.engine.run import Run

    s, folder = updated(settings or QuickstartSettings(), **changes), Path(out).expanduser()
    if (folder / SCORES).exists():
        raise MapetError(f"{out} holds a finished quickstart: delete it, or give another --out.")
    runtime, recipe, started = Runtime(accelerator=s.accelerator), quickstart_recipe(s), Run(folder).recipe.is_file()
    if started and read_run(Run(folder).recipe, Recipe) != recipe:
        raise MapetError(f"{out} holds another run, or a quickstart with other settings: give another --out.")
    run = resume_run(folder, runtime) if started else pretrain(recipe, folder, runtime=runtime)
    end = load_from(folder)
    scores = {"random start": _measure(untrained(end), recipe, s), "after MaPeT": _measure(end, recipe, s)}
    figures = _figures(run, recipe)
    exported = export(folder, overwrite=True)
    plain = {name: {what: vars(score) for what, score in row.items()} for name, row in scores.items()}
    replace_file(folder / SCORES, json.dumps(plain, indent=1) + "\n")
    return QuickstartResult(run, scores, exported, figures, report(folder, most=SHOWN // 4, accelerator=s.accelerator))


def quickstart_recipe(s: QuickstartSettings) -> Recipe:
    """``cifar10-quickstart`` for this machine: three minutes on two CPU cores, 30 epochs of all images on a GPU."""
    from mapet.api.settings import with_precision
    from mapet.config.recipes.cifar10 import quickstart as small
    from mapet.engine.distributed import pick_device

    recipe = with_precision(updated(replace(small(), seed=s.seed), precision="auto"), s.accelerator)
    recipe = updated(recipe, **(GPU if pick_device(s.accelerator).type == "cuda" else CPU))
    epochs, max_images = s.epochs or recipe.optimization.epochs, s.max_images or recipe.max_images
    if max_images and max_images < recipe.optimization.batch_size:
        least = f"at least {recipe.optimization.batch_size}, the images of a step"
        raise MapetError(f"--max-images must be {least}, got {max_images}.")
    return updated(recipe, epochs=epochs, max_images=max_images)


def _measure(start: LoadedEncoder, recipe: Recipe, s: QuickstartSettings) -> "dict[str, Score]":
    """Top-1 accuracies of the mean of patches, with ``LABELLED`` training images and all test images.

    They are added to the run's ``scores.json``.
    """
    from mapet.api.finetune_inputs import record

    assert start.run is not None
    settings = EvaluateSettings(features=FeatureSettings(max_images=LABELLED, accelerator=s.accelerator))
    features, found = Features(start.encoder, recipe.data, recipe.seed, settings.features), dict[str, "Score"]()
    about = {"from": start.origin, "step": start.step, "data": recipe.data, "limit": LABELLED}
    for protocol, name in MEASURED.items():
        scores = PROTOCOLS[protocol].measure(features, settings)
        record(start.run, {**about, "protocol": PROTOCOLS[protocol].describe(settings)}, scores)
        found[name] = scores["top1"]
    return found


def _figures(run: "Run", recipe: Recipe) -> tuple[Path, ...]:
    """The loss curve, patches of some codes, and some images with their tokens."""
    import numpy as np
    import torch

    from mapet.api.pretrain_inputs import run_tokenizer
    from mapet.build.batches import choose_indices
    from mapet.data.dataset import open_dataset
    from mapet.tokenizers.information import position_guess
    from mapet.tokenizers.store import TokenStore
    from mapet.viz.codes import code_colors, code_patches, token_map
    from mapet.viz.figures import loss_curve

    source, store = open_dataset(recipe.data), TokenStore.open(run.folder / "tokens")
    indices = choose_indices(source, recipe.max_images, recipe.seed)[:SHOWN].tolist()
    images = torch.from_numpy(np.stack([np.asarray(source.read(index)) for index in indices])).permute(0, 3, 1, 2)
    tokens = store.gather([source.image_id(index) for index in indices])
    loss, codes, maps = (run.folder / f"{name}.png" for name in ("loss", "codes", "tokens"))
    loss_curve(run.metrics, loss, chance=position_guess(tokens, recipe.seed).best)
    code_patches(images, tokens, store.grid, codes)
    centroids = run_tokenizer(run, recipe).centroids  # type: ignore[attr-defined]
    token_map(images, tokens, store.grid, maps, colors=code_colors(centroids))
    return loss, codes, maps
