"""What a pre-trained model believes about the patches that it does not see, along one order of revealing them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.config.flat import updated
from mapet.config.recipe import Recipe
from mapet.config.use import RevealSettings
from mapet.utils.errors import MapetError
from mapet.utils.io import require_replaceable

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from mapet.data.dataset import ImageDataset
    from mapet.engine.run import Run
    from mapet.method.predict import TokenPrediction

SAMPLE, WITH_FILL = 2000, ("mapet", "mim")


@dataclass(frozen=True, eq=False)
class Revealed:
    """What ``reveal_image`` found.

    Attributes:
        order: (1 + L,) positions, CLS first, in which the patches are given.
        given: number of patches that each frame shows.
        tokens: (frames, L) predicted tokens; where a patch is given, and in the last line everywhere, the true ones.
        accuracy: share of the hidden patches of each frame whose token is predicted.
        frames: (frames + 2, H, W, 3) uint8: what is given and believed, then the true tokens, and the image.
    """

    order: "NDArray[Any]"
    given: tuple[int, ...]
    tokens: "NDArray[Any]"
    accuracy: tuple[float, ...]
    frames: "NDArray[Any]"


def reveal_image(
    run: str | Path,
    image: Any,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    settings: RevealSettings | None = None,
    **changes: Any,
) -> Revealed:
    """Reveal an image patch by patch, and draw what the model believes of the rest: each code by its typical patch.

    In every frame all hidden patches are predicted at once from those given so far, as the next ones are in training.

    Args:
        run: folder of a pre-training of mapet, pet or mim.
        image: one image, as for ``embed``.
        out: PNG file for the frames; None: none.
        overwrite: replace an earlier figure.
        settings: the defaults, without any.
        changes: settings by name, for instance ``frames=6``.

    Raises:
        MapetError: a run of another kind or without tokens, an image that cannot be read, or a file in the way.
    """
    import numpy as np
    import torch

    from mapet.data.given import open_images
    from mapet.method.order import STRATEGIES
    from mapet.viz.attention import reveal_figure
    from mapet.viz.sheet import is_sheet

    s = updated(settings or RevealSettings(), **changes)
    path = None if out is None else Path(out).expanduser()
    if path is not None:
        if path.suffix != ".png":
            raise MapetError(f"--out must end in .png, got {path}.")
        require_replaceable(path, overwrite, is_sheet)
    model, recipe, opened = _model(run)
    typical, pixels, true = _tokens(opened, recipe, open_images(image))
    length = recipe.grid[0] * recipe.grid[1]
    draw = STRATEGIES[recipe.objective.order]
    order = draw(recipe.grid, recipe.num_masked, s.seed, 0, torch.zeros(1, dtype=torch.int64))
    given = np.linspace(recipe.context - 1, length - 1, s.frames).round().astype(int).tolist()
    found = [believed(model, recipe, pixels, true, order, count) for count in given]
    tokens = torch.stack([*(tokens for tokens, _ in found), true[0]])
    shown = [set((order[0, 1 : 1 + count] - 1).tolist()) for count in given]
    canvas = [mosaic(recipe, line, typical, pixels[0], kept) for line, kept in zip(tokens[:-1], shown, strict=True)]
    canvas += [mosaic(recipe, tokens[-1], typical, pixels[0], set()), pixels[0].permute(1, 2, 0).numpy()]
    accuracy = tuple(share for _, share in found)
    if path is not None:
        titles = [f"{n} of {length} given\n{a:.0%} of the rest right" for n, a in zip(given, accuracy, strict=True)]
        reveal_figure(list(zip([*titles, "true tokens\n", "image\n"], canvas, strict=True)), path)
    return Revealed(order[0].numpy(), tuple(given), tokens.numpy(), accuracy, np.stack(canvas))


def _model(folder: str | Path) -> "tuple[TokenPrediction, Recipe, Run]":
    """The objective of a pre-training with its last weights, averaged where the run averages them."""
    from mapet.api.initial import state_of
    from mapet.build.pretrain import build_objective
    from mapet.config.recipe import load
    from mapet.engine.run import Run
    from mapet.method.predict import TokenPrediction

    run = Run.open(folder)
    if run.classifier.is_file() or not run.last.exists():
        raise MapetError(f"{folder} holds no pre-training with a checkpoint: give the folder of one.")
    recipe, state = load(run.recipe), state_of(run.last)
    head = state.get("head.weight")
    objective = None if head is None else build_objective(recipe, len(head))
    if not isinstance(objective, TokenPrediction):
        raise MapetError(f"{folder} was trained with {recipe.objective.name}: only mapet, pet and mim can be drawn.")
    objective.load_state_dict(state)
    return objective.eval(), recipe, run


def _tokens(run: "Run", recipe: Recipe, source: "ImageDataset") -> "tuple[dict[int, Any], Tensor, Tensor]":
    """A typical patch of each code, and the image's pixels (1, 3, H, W) uint8 and tokens (1, L)."""
    import torch

    from mapet.api.images import ImagePass
    from mapet.api.pretrain_inputs import run_tokenizer
    from mapet.config.runtime import Runtime
    from mapet.data.augment import to_float
    from mapet.data.dataset import open_dataset
    from mapet.data.unreadable import UnreadableImages
    from mapet.viz.codes import typical_patches

    tokenizer = run_tokenizer(run, recipe)
    images = open_dataset(recipe.data)
    indices = torch.arange(len(images))[:: -(-len(images) // SAMPLE)]
    side = (recipe.model.image_size,) * 2

    def encoded(source: "ImageDataset", indices: "Tensor") -> "tuple[Tensor, Tensor]":
        several = ImagePass(source, indices, Runtime(), UnreadableImages(len(indices), 1.0), batch_size=64)
        parts = [(pixels, tokenizer.encode(to_float(pixels))) for pixels, _ in several.decode(tokenizer.view, indices)]
        if not parts:
            raise MapetError(f"{source.name}: none can be read.")
        pixels, tokens = (torch.cat(part) for part in zip(*parts, strict=True))
        if tuple(pixels.shape[2:]) != side:
            pixels = torch.nn.functional.interpolate(pixels.float(), side, mode="area").round().to(torch.uint8)
        return pixels, tokens

    if len(source) != 1:
        raise MapetError(f"IMAGE must be one image, got {len(source):,}: give a file.")
    known, tokens = encoded(images, indices)
    pixels, true = encoded(source, torch.zeros(1, dtype=torch.int64))
    return typical_patches(known.numpy(), tokens.numpy(), recipe.grid), pixels, true


def believed(
    model: "TokenPrediction", recipe: Recipe, pixels: "Tensor", true: "Tensor", order: "Tensor", given: int
) -> "tuple[Tensor, float]":
    """Tokens (L,) predicted for all hidden patches from the first ``given`` of the order, and their accuracy."""
    import torch

    from mapet.data.augment import normalize, to_float
    from mapet.method.pattern import reveal as pattern
    from mapet.method.predict import TokenPrediction

    length = true.shape[1]
    fill = recipe.objective.name in WITH_FILL
    at_once = TokenPrediction(model.encoder, pattern(length, [length - given], fill), model.vocabulary)
    at_once.mask_token, at_once.head = model.mask_token, model.head
    with torch.no_grad():
        logits = at_once.eval().logits(normalize(to_float(pixels)), order)[0]
    found, hidden = true[0].clone(), order[0, 1 + given :] - 1
    found[hidden] = logits.argmax(dim=1)
    return found, float((found == true[0])[hidden].double().mean())


def mosaic(
    recipe: Recipe, tokens: "Tensor", typical: "dict[int, Any]", pixels: "Tensor", kept: set[int]
) -> "NDArray[Any]":
    """(H, W, 3) uint8: the image's own patches at ``kept``, and elsewhere the typical patch of each token, paler."""
    import numpy as np

    size, canvas = recipe.model.patch_size, pixels.permute(1, 2, 0).numpy().copy()
    for patch, code in enumerate(tokens.tolist()):
        if patch in kept:
            continue
        top, left = (size * part for part in divmod(patch, recipe.grid[1]))
        tile = typical.get(code)
        block = np.full((size, size, 3), 127.0) if tile is None else tile.astype(float)
        canvas[top : top + size, left : left + size] = (0.75 * block + 0.25 * 255).astype(np.uint8)
    return canvas
