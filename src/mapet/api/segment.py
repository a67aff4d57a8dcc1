"""Train a segmentation model on pairs of images and masks, starting from a pre-trained encoder."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.batch_size import require_batch
from mapet.api.encoders import load_start
from mapet.api.settings import absolute, combined, is_file, named, require_given
from mapet.api.training import run_training
from mapet.api.tuned import Tuned
from mapet.config.finetune import RANDOM
from mapet.config.runtime import Runtime
from mapet.config.segmentation import SegmentRecipe, segmentation_protocol
from mapet.utils.owned import require_apart

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor

    from mapet.build.segment import SegmentBatches
    from mapet.data.segmentation import MaskedImages, SegmentationSet
    from mapet.engine.optim import Optim
    from mapet.engine.run import Run
    from mapet.evals.score import Score
    from mapet.evals.segmentation import Segmenting
    from mapet.evals.upernet import Segmenter


def segment(
    source: str | Path | None = None,
    data: str | Path | None = None,
    out: str | Path | None = None,
    *,
    recipe: SegmentRecipe | str | Path | None = None,
    runtime: Runtime | None = None,
    overwrite: bool = False,
    evaluate_every: int = 0,
    **settings: Any,
) -> "Run":
    """Train UPerNet over an encoder in the new folder ``out`` and test it: mIoU and the IoU of each class.

    >>> mapet.segment("runs/first", "shapes", "runs/segmenter", epochs=20)

    Args:
        source: FROM, a run, an export folder, a checkpoint file, or "random"; None: that of the recipe.
        data: a segmentation set: a folder in ADE20K's layout, or a YAML file of ``config.segmentation_set.SetFile``;
            None: that of the recipe.
        out: folder for the run; must be empty or absent.
        recipe: settings, their name or a YAML file; None: the defaults.
        runtime: what must not change the result; None: the defaults.
        overwrite: whether to replace a run in ``out`` once this one trains.
        evaluate_every: test after every so many epochs, and at the end; 0: at the end only.
        settings: of recipe and runtime, by the names of the command line's options.

    Raises:
        MapetError: a folder in use; settings, pairs or a FROM that do not fit; a loss that is not finite.
        Stopped: a signal to stop came (SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2); ``resume`` continues.
    """
    from mapet.build.segmentation_set import inputs_of
    from mapet.engine.run import Run

    t, runtime = combined(named_segmentation(recipe), runtime or Runtime(), settings)
    t = replace(t, init=str(source or t.init), data=str(data or t.data))
    require_given(
        FROM=(t.init, "a run, an export folder, a checkpoint, or random"),
        data=(t.data, "a folder in ADE20K's layout, or a YAML file that names folders of images and masks"),
        out=(out, "a folder for the run"),
    )
    assert out is not None
    require_apart(out, recipe=str(recipe) if is_file(recipe) else None, FROM=t.init)
    for path in inputs_of(t.data):
        require_apart(out, data=path)
    t = replace(t, init=absolute(t.init, RANDOM), data=absolute(t.data))
    return run_training(Segmentation(Run(out), t, runtime, evaluate_every), new=True, overwrite=overwrite)


def named_segmentation(name: SegmentRecipe | str | Path | None) -> SegmentRecipe:
    """A segmentation recipe by name or YAML file; the defaults for None."""
    from mapet.config.recipes.segmentation import find

    return named(name, SegmentRecipe, find)


def load_segmenter(source: str | Path) -> "Segmenter":
    """The model of a segmentation in eval mode: images (B, 3, H, W), normalised → logits (B, classes, H, W).

    Its ``classes`` are the class names. ``mapet.evals.upernet.sliding_logits`` is its test on large images.

    Args:
        source: a run of ``segment``, or an export of one.

    Raises:
        MapetError: not a segmentation, or no checkpoint yet.
    """
    from mapet.build.segment import load_exported_segmenter, load_run_segmenter
    from mapet.interop.segmenter import is_segmenter

    folder = Path(source).expanduser()
    return load_exported_segmenter(folder) if is_segmenter(folder) else load_run_segmenter(folder)


class Segmentation(Tuned[SegmentRecipe]):
    """A segmentation training, with tests on the way and at the end."""

    label, inputs = "segment", "images or classes"

    @property
    def protocol(self) -> str:
        """The settings in words."""
        return segmentation_protocol(self.recipe)

    def validate(self, *, new: bool) -> None:
        """Load FROM and check it and some pairs on rank 0, unless a checkpoint has the weights already."""
        from mapet.build.segment import segmenter_over
        from mapet.build.segmentation_set import both_splits
        from mapet.engine.distributed import pick_device
        from mapet.evals.upernet import require_stride
        from mapet.utils.process_group import first_process

        self.first: tuple[Segmenter, dict[str, Any]] | None = None
        if first_process() and (new or not self.run.last.exists()):
            t = self.recipe
            train, _ = both_splits(t.data, t.reduce_zero_label)
            require_batch(_images(train, t), t.max_images, t.optimization.batch_size)
            pick_device(self.runtime.accelerator)
            start = load_start(t)
            model = segmenter_over(start.encoder, t, len(train.classes))
            require_stride(t.stride, model)
            self.first = model, {"from": start.origin, "classes": train.classes}

    def prepare(self) -> None:
        """Write the model that the training starts from as checkpoint 0."""
        from mapet.build.segment import begin

        if self.first is not None:
            begin(self.run, self.first[0], self.recipe, self.first[1])

    def batches(self, fabric: "Fabric") -> "SegmentBatches":
        """Crops of images and masks."""
        from mapet.build.batches import Images, choose_indices, shuffled_images
        from mapet.build.segment import SegmentBatches, shaped
        from mapet.build.segmentation_set import open_segmentation
        from mapet.data.scene import MASK, Scenes
        from mapet.data.unreadable import UnreadableImages
        from mapet.utils.view import CenterCropResize

        t, a, size = self.recipe, self.recipe.augmentation, shaped(self.run)[0].img_size
        source = _images(open_segmentation(t.data, "train", t.reduce_zero_label), t)
        indices = choose_indices(source, t.max_images, t.seed)
        unreadable = UnreadableImages(len(indices), self.runtime.max_bad_fraction, self.run.unreadable_images)
        shuffled = shuffled_images(
            Images(source, indices, unreadable),
            (CenterCropResize(size), CenterCropResize(size, MASK)),
            Scenes(t.seed, a.scale, a.hflip, a.photometric, a.cat_max_ratio),
            batch_size=t.optimization.batch_size,
            epochs=t.optimization.epochs,
            seed=t.seed,
            runtime=self.runtime,
            fabric=fabric,
        )
        return SegmentBatches(t, shuffled, fabric.device)

    def identity(self, batches: "SegmentBatches") -> dict[str, Any]:
        """The classes."""
        source: Any = batches.shuffled.source
        return {"classes": list(source.pairs.classes)}

    def objective(self, batches: "SegmentBatches", fabric: "Fabric") -> "Segmenting":
        """The model under its loss; ``fit`` loads the weights of checkpoint 0. GPUs share the statistics of norms."""
        from torch.nn import SyncBatchNorm

        from mapet.build.segment import shaped
        from mapet.evals.segmentation import Segmenting

        model, self.about = shaped(self.run)
        if fabric.world_size > 1 and fabric.device.type == "cuda":
            model = SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return Segmenting(model, self.recipe.decoder.auxiliary_weight)

    def plan(self, batches: "SegmentBatches", objective: "Segmenting") -> Mapping[str, str]:
        """The model and its origin."""
        millions = sum(p.numel() for p in objective.parameters()) / 1e6
        s = objective.segmenter
        taps = f"UPerNet on blocks {', '.join(map(str, s.taps))}"
        return {
            "model": f"{millions:.1f} M parameters, {taps}, {s.num_classes} classes; from {self.about['from']}",
        }

    def optim(self, objective: "Segmenting", batches: "SegmentBatches") -> "Optim":
        """AdamW with layer decay."""
        from mapet.build.finetune import build_optim
        from mapet.build.segment import POWER

        return build_optim(self.recipe, objective, len(objective.segmenter.blocks), batches, POWER)

    def scores(self, objective: "Segmenting", fabric: "Fabric") -> "dict[str, Score]":
        """``mIoU``, ``accuracy`` and ``IoU NAME`` over the test images."""
        from mapet.build.segmentation_set import open_segmentation
        from mapet.evals.iou import iou_scores
        from mapet.evals.segmentation import counts_of

        t = self.recipe
        tests = open_segmentation(t.data, "test", t.reduce_zero_label)
        pairs = _tests(tests, objective.segmenter, fabric)
        counts = counts_of(objective.segmenter, pairs, len(tests), fabric.device, t.stride)
        counts = fabric.all_reduce(counts.to(fabric.device), reduce_op="sum").cpu()
        return iou_scores(counts, tests.classes)


def _images(pairs: "SegmentationSet", t: SegmentRecipe) -> "MaskedImages":
    from mapet.data.segmentation import MaskedImages

    return MaskedImages(pairs, f"segmentation set {t.data}")


def _tests(tests: "SegmentationSet", model: "Segmenter", fabric: "Fabric") -> "Iterator[tuple[int, Tensor, Tensor]]":
    """This process's share: index, image (3, H, W) normalised with a shorter side of one window, and targets."""
    import torch

    from mapet.engine.progress import Meter
    from mapet.evals.segmentation import shown

    indices = torch.arange(len(tests)).tensor_split(fabric.world_size)[fabric.global_rank].tolist()
    with Meter("test", len(indices)) as meter:
        for done, i in enumerate(indices, 1):
            image, targets = tests.pair(i)
            yield i, shown(image, model), torch.from_numpy(targets)
            if fabric.is_global_zero and meter.due(done):
                meter.update(done)
