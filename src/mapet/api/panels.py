"""Image panels of a pre-training: what the model believes of hidden patches, drawn by the codes' typical patches."""

from collections.abc import Iterable
from copy import deepcopy
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mapet.api.probes import some
from mapet.api.reveal import believed, mosaic
from mapet.config.recipe import Recipe
from mapet.utils.errors import MapetError, reason
from mapet.utils.log import log

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mapet.build.batches import PretrainBatches
    from mapet.data.decode import Batch
    from mapet.engine.run import Run

FOLDER, SHOWN, SAMPLE = "panels", 4, 256  # images that are drawn, and images that typical patches are taken from
GAP, SMALLEST = 4, 96  # pixels between images; the side below which they are enlarged
DRAWN = ("mapet", "pet", "mim")  # objectives


def require_drawn(objective: str) -> None:
    """Refuse panels of an objective that does not predict tokens of patches alone.

    Raises:
        MapetError: it is named.
    """
    if objective not in DRAWN:
        raise MapetError(f"--panel-every needs --objective {', '.join(DRAWN)}, got {objective}; remove it.")


class Panels:
    """The panels of one run: always the same images, with the same patches given.

    Args:
        run: its folder.
        recipe: the run's.
        batches: the training stream.
    """

    def __init__(self, run: "Run", recipe: Recipe, batches: "PretrainBatches") -> None:
        self.run, self.recipe, self.batches = run, recipe, batches

    def draw(self, objective: Any, step: int) -> None:
        """Write ``panels/step-….png`` and TensorBoard's; the objective and the random state stay as they are."""
        import torch
        from torch.utils.tensorboard import SummaryWriter

        devices = [parameter.device for parameter in objective.parameters() if parameter.is_cuda][:1]
        with torch.random.fork_rng(devices=devices):
            canvas = self.canvas(deepcopy(objective).cpu())
        try:
            _save(canvas, self.run, step)
            with SummaryWriter(self.run.folder / "tensorboard") as board:
                board.add_image("panel", canvas, step, dataformats="HWC")
        except OSError as error:
            log.info(f"note      the panel of step {step} is not written ({reason(error)})")

    def canvas(self, objective: Any) -> "NDArray[Any]":
        """(H, W, 3) uint8, a line per image: what is given, predicted tokens, true tokens, the image."""
        import numpy as np
        import torch

        from mapet.method.order import STRATEGIES

        batch, tokens, typical = self._known
        recipe, lines = self.recipe, []
        patches, given = recipe.grid[0] * recipe.grid[1], recipe.context - 1
        for pixels, true, index in zip(batch.images[:SHOWN].cpu(), tokens, batch.index, strict=False):
            draw = STRATEGIES[recipe.objective.order]
            order = draw(recipe.grid, recipe.num_masked, recipe.seed, 0, index[None])
            found, _ = believed(objective, recipe, pixels[None], true[None], order, given)
            kept = set((order[0, 1 : 1 + given] - 1).tolist())
            hidden = mosaic(recipe, torch.full((patches,), -1), typical, pixels, kept)
            predicted, right = (
                mosaic(recipe, found, typical, pixels, kept),
                mosaic(recipe, true, typical, pixels, set()),
            )
            lines.append(_joined([hidden, predicted, right, pixels.permute(1, 2, 0).numpy()], axis=1))
        canvas = _joined(lines, axis=0)
        times = -(-SMALLEST // recipe.model.image_size)
        return np.repeat(np.repeat(canvas, times, axis=0), times, axis=1)

    @cached_property
    def _known(self) -> "tuple[Batch, Any, dict[int, Any]]":
        """Some images of the training, their tokens (N, L), and a typical patch of each code among them."""
        from mapet.viz.codes import typical_patches

        shuffled = self.batches.shuffled
        batch = shuffled.at(0, some(shuffled.indices, SAMPLE, self.recipe.seed))
        tokens = self.batches.tokens(batch).cpu()
        return batch, tokens, typical_patches(batch.images.cpu().numpy(), tokens.numpy(), self.recipe.grid)


def _joined(parts: "Iterable[NDArray[Any]]", axis: int) -> "NDArray[Any]":
    """Images side by side, with a white gap between them."""
    import numpy as np

    whole: list[NDArray[Any]] = []
    for part in parts:
        shape = list(part.shape)
        shape[axis] = GAP
        whole += [np.full(shape, 255, np.uint8), part] if whole else [part]
    return np.concatenate(whole, axis=axis)


def _save(canvas: "NDArray[Any]", run: "Run", step: int) -> None:
    from io import BytesIO

    from PIL import Image

    from mapet.utils.io import replace_file

    content = BytesIO()
    Image.fromarray(canvas).save(content, "PNG")
    (run.folder / FOLDER).mkdir(exist_ok=True)
    replace_file(run.folder / FOLDER / f"step-{step:08d}.png", content.getvalue())
