"""``mapet quickstart``: from nothing to a pre-trained encoder, its numbers and its images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.config.recipe import Optimization, Recipe, Runtime, load
from mapet.utils.errors import MapetError
from mapet.utils.log import say

if TYPE_CHECKING:
    from mapet.engine.run import Run
    from mapet.evals.score import Score
    from mapet.method.encoder import Encoder


LABELLED = 10_000  # training images of the two evaluations


SCORES = "quickstart.json"


SHOWN = 2_000  # images that the figures choose from


@dataclass(frozen=True)
class Options:
    """Options of ``mapet quickstart``."""

    out: str = "quickstart"
    """Folder for everything; one that was interrupted goes on."""
    epochs: float | None = None
    """Passes over the images; None: sized to the machine."""
    max_images: int | None = None
    """Images to pre-train on; None: sized to the machine."""
    seed: int = 0
    """Of all chance."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""


def sized(o: Options) -> Recipe:
    """The quickstart recipe for this machine: about four minutes on two CPU cores, 30 epochs of everything on a GPU."""
    from mapet.config.recipes.cifar10 import quickstart as small
    from mapet.engine.distributed import pick_device

    recipe = replace(small(), seed=o.seed)
    if pick_device(o.accelerator).type == "cuda":
        faster = replace(recipe.optimization, epochs=30, batch_size=256, warmup_epochs=2)
        recipe = replace(recipe, max_images=None, precision="bfloat16", optimization=faster)
    changed: Optimization = replace(recipe.optimization, epochs=o.epochs or recipe.optimization.epochs)
    return replace(recipe, max_images=o.max_images or recipe.max_images, optimization=changed)


def quickstart(o: Options) -> None:
    """Everything, into ``o.out``.

    Raises:
        MapetError: the images cannot be had, or a folder in use by something else.
        Stopped: a signal came; calling again goes on.
    """
    from mapet.api.export import export
    from mapet.api.pretrain import pretrain, resume
    from mapet.build.pretrain import build_encoder, load_run_encoder
    from mapet.engine.run import Run
    from mapet.interop.timm import loading_lines

    runtime, folder = Runtime(accelerator=o.accelerator), Path(o.out)
    if (folder / SCORES).exists():
        raise MapetError(f"{folder} holds a finished quickstart: delete it, or give another --out.")
    started = Run(folder).recipe.is_file()
    if started and load(Run(folder).recipe) != sized(o):
        raise MapetError(f"{folder} holds another run, or a quickstart with other settings: give another --out.")
    run = resume(folder, runtime) if started else pretrain(sized(o), folder, runtime)
    encoder, recipe, _ = load_run_encoder(folder)
    scores = {"random start": evaluate(build_encoder(recipe), recipe, o), "after MaPeT": evaluate(encoder, recipe, o)}
    figures(run, recipe)
    exported = export(folder, folder / "export" / "timm", overwrite=True)
    write_scores(scores, folder / SCORES)
    say(f"\n{table(scores)}\n")
    say(f"figures   {folder}/loss.png, codes.png, tokens.png\n\nLoad the encoder anywhere:\n{loading_lines(exported)}")


def evaluate(encoder: "Encoder", recipe: Recipe, o: Options) -> "dict[str, Score]":
    """k-NN and linear probe of the mean of patches, on ``LABELLED`` training and all test images."""
    from mapet.api.features import extract_features
    from mapet.config.verbs import FeatureSettings
    from mapet.evals.knn import knn
    from mapet.evals.linear import linear

    probe = FeatureSettings(max_images=LABELLED, accelerator=o.accelerator)
    train, test, classes = extract_features(encoder, recipe.data, recipe.seed, probe)
    neighbours, line = knn(train, test, classes=classes), linear(train, test, classes=classes)
    return {"k-NN (k = 20)": neighbours["top1"], "linear probe": line["top1"]}


def figures(run: "Run", recipe: Recipe) -> None:
    """The loss curve, patches of some codes, and some images beside their tokens."""
    import numpy as np
    import torch

    from mapet.build.batches import chosen
    from mapet.data.dataset import open_dataset
    from mapet.tokenizers.store import TokenStore
    from mapet.viz.codes import code_patches, token_map
    from mapet.viz.figures import loss_curve

    source, store = open_dataset(recipe.data), TokenStore.open(run.folder / "tokens")
    indices = chosen(source, recipe.max_images, recipe.seed)[:SHOWN].tolist()
    images = torch.from_numpy(np.stack([np.asarray(source.read(place)) for place in indices])).permute(0, 3, 1, 2)
    tokens = store.gather([source.image_id(place) for place in indices])
    most = float(tokens.flatten().bincount().max() / tokens.numel())
    loss_curve(run.metrics, run.folder / "loss.png", chance=most)
    code_patches(images, tokens, store.grid, run.folder / "codes.png")
    token_map(images, tokens, store.grid, run.folder / "tokens.png")


def write_scores(scores: "dict[str, dict[str, Score]]", path: Path) -> None:
    """All scores as JSON."""
    import json

    plain = {name: {what: vars(score) for what, score in row.items()} for name, row in scores.items()}
    path.write_text(json.dumps(plain, indent=1) + "\n")


def table(scores: "dict[str, dict[str, Score]]") -> str:
    """Top-1 accuracy with 95 % intervals, a column an encoder."""
    names = list(scores)
    lines = ["top-1 accuracy".ljust(16) + "".join(name.rjust(24) for name in names)]
    for what in scores[names[0]]:
        lines.append(what.ljust(16) + "".join(str(scores[name][what]).rjust(24) for name in names))
    return "\n".join(lines)
