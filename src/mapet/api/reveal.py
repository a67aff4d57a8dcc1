"""What a pre-trained model believes about the patches that it does not see, along one order of revealing them."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.config.flat import updated
from mapet.config.recipe import Recipe
from mapet.config.use import RevealSettings
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from mapet.api.images import ImagePass
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
        out: PNG or SVG file for the frames; None: none.
        overwrite: replace an earlier figure.
        settings: the defaults, without any.
        changes: settings by name, for instance ``frames=6``.

    Raises:
        MapetError: a run of another kind or without tokens, an image that cannot be read, or a file in the way.
    """
    from mapet.data.given import open_images
    from mapet.viz.figures import figure_file

    s = updated(settings or RevealSettings(), **changes)
    path = None if out is None else figure_file(out, overwrite)
    revealer, source = Revealer(run, accelerator=s.accelerator), open_images(image)
    if len(source) != 1:
        raise MapetError(f"IMAGE must be one image, got {len(source):,}: give a file.")
    found = revealer(source, 0, s)
    if path is not None:
        draw(found, path)
    return found


def draw(found: Revealed, out: Path) -> Path:
    """Draw all frames side by side; returns ``out``."""
    from mapet.viz.attention import reveal_figure

    length = found.tokens.shape[1]
    titles = [
        f"{n} of {length} given\n{a:.0%} of the rest right" for n, a in zip(found.given, found.accuracy, strict=True)
    ]
    return reveal_figure(list(zip([*titles, "true tokens\n", "image\n"], found.frames, strict=True)), out)


class Revealer:
    """Reveals images with the last weights of a pre-training.

    Args:
        folder: of the run.
        sample: images of the training that the typical patches are chosen from.
        accelerator: device type.

    Raises:
        MapetError: a run of another kind or without tokens, or no image of the training that can be read.
    """

    def __init__(self, folder: str | Path, sample: int = SAMPLE, accelerator: str = "auto") -> None:
        from mapet.api.pretrain_inputs import run_tokenizer
        from mapet.build.batches import choose_indices
        from mapet.data.dataset import open_dataset
        from mapet.engine.distributed import pick_device
        from mapet.viz.codes import typical_patches

        self.model, self.recipe, run = _model(folder)
        self.device = pick_device(accelerator)
        self.model, self.tokenizer = self.model.to(self.device), run_tokenizer(run, self.recipe).to(self.device)
        images = open_dataset(self.recipe.data, max_pixels=self.recipe.max_pixels, draft=self.recipe.draft)
        indices = choose_indices(images, self.recipe.max_images, self.recipe.seed)
        indices = indices[:: -(-len(indices) // sample)]
        found = None
        with suppress(MapetError):  # a damaged store
            found = self._stored(images, indices, run)
        known, tokens = found or self.encoded(images, indices)
        self.typical = typical_patches(known.numpy(), tokens.numpy(), self.recipe.grid)

    def _stored(self, source: "ImageDataset", indices: "Tensor", run: "Run") -> "tuple[Tensor, Tensor] | None":
        """As ``encoded``, with the tokens that the run has read; None without any."""
        import torch

        from mapet.build.batches import student_view
        from mapet.tokenizers.store import HEADER, TokenStore

        folder = Path(self.recipe.tokens or run.folder / "tokens")
        if not (folder / HEADER).is_file():
            return None
        store = TokenStore.open(folder)
        indices = indices[~torch.from_numpy(store.missing([source.image_id(index) for index in indices.tolist()]))]
        parts = list(_several(source, indices).decode(student_view(self.recipe), indices))
        if not parts:
            return None
        pixels, found = (torch.cat(part) for part in zip(*parts, strict=True))
        return pixels, store.gather([source.image_id(index) for index in found.tolist()])

    def encoded(self, source: "ImageDataset", indices: "Tensor") -> "tuple[Tensor, Tensor]":
        """Pixels (N, 3, H, W) uint8 as the student sees them, and tokens (N, L), of the readable images.

        Raises:
            MapetError: none can be read.
        """
        import torch

        from mapet.data.augment import to_float

        several, view, encode = _several(source, indices), self.tokenizer.view, self.tokenizer.encode
        parts = [(pixels, encode(to_float(pixels, self.device)).cpu()) for pixels, _ in several.decode(view, indices)]
        if not parts:
            raise MapetError(f"No image can be read: {several.unreadable.note()}")
        pixels, tokens = (torch.cat(part) for part in zip(*parts, strict=True))
        side = (self.recipe.model.image_size,) * 2
        if tuple(pixels.shape[2:]) != side:
            pixels = torch.nn.functional.interpolate(pixels.float(), side, mode="area").round().to(torch.uint8)
        return pixels, tokens

    def __call__(self, source: "ImageDataset", index: int, s: RevealSettings) -> Revealed:
        """Reveal the image of a data set at ``index``."""
        import numpy as np
        import torch

        from mapet.method.order import STRATEGIES

        recipe, length = self.recipe, self.recipe.grid[0] * self.recipe.grid[1]
        pixels, true = self.encoded(source, torch.tensor([index]))
        strategy = STRATEGIES[recipe.objective.order]
        order = strategy(recipe.grid, recipe.num_masked, s.seed, 0, torch.zeros(1, dtype=torch.int64))
        given = np.linspace(recipe.context - 1, length - 1, s.frames).round().astype(int).tolist()
        found = [believed(self.model, recipe, pixels, true, order, count) for count in given]
        tokens = torch.stack([*(tokens for tokens, _ in found), true[0]])
        shown = [*(set((order[0, 1 : 1 + count] - 1).tolist()) for count in given), set()]
        frames = [mosaic(recipe, line, self.typical, pixels[0], kept) for line, kept in zip(tokens, shown, strict=True)]
        frames.append(pixels[0].permute(1, 2, 0).numpy())
        accuracy = tuple(share for _, share in found)
        return Revealed(order[0].numpy(), tuple(given), tokens.numpy(), accuracy, np.stack(frames))


def _several(source: "ImageDataset", indices: "Tensor") -> "ImagePass":
    """Images of which any number may be unreadable."""
    from mapet.api.images import ImagePass
    from mapet.config.runtime import Runtime
    from mapet.data.unreadable import UnreadableImages

    return ImagePass(source, indices, Runtime(), UnreadableImages(len(indices), 1.0), batch_size=64)


def _model(folder: str | Path) -> "tuple[TokenPrediction, Recipe, Run]":
    """The objective of a pre-training with its last weights, averaged where the run averages them."""
    from mapet.api.initial import state_of
    from mapet.build.pretrain import build_objective
    from mapet.config.file import read_run
    from mapet.engine.run import Run
    from mapet.method.predict import TokenPrediction

    run = Run.open(folder)
    if run.classifier.is_file() or not run.last.exists():
        raise MapetError(f"{folder} holds no pre-training with a checkpoint: give the folder of one.")
    recipe, state = read_run(run.recipe, Recipe), state_of(run.last)
    head = state.get("head.weight")
    objective = None if head is None else build_objective(recipe, len(head))
    if not isinstance(objective, TokenPrediction):
        raise MapetError(f"{folder} was trained with {recipe.objective.name}: only mapet, pet and mim can be drawn.")
    try:
        objective.load_state_dict(state)
    except RuntimeError as error:
        raise MapetError(f"{run.last} does not fit {run.recipe}: was one of them changed by hand?") from error
    return objective.eval(), recipe, run


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
    at_once.mask_token, at_once.head, device = model.mask_token, model.head, model.mask_token.device
    with torch.no_grad():
        logits = at_once.eval().to(device).logits(normalize(to_float(pixels, device)), order.to(device))[0].cpu()
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
