"""What a VQ-KD training reads: images, and what the teacher sees in the same crops of them."""

from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.batch_size import require_batch
from mapet.config.runtime import Runtime
from mapet.config.vqkd import VQKDRecipe
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from mapet.build.vqkd import DistillBatches
    from mapet.engine.run import Run
    from mapet.tokenizers.teacher import Features


def validate(t: VQKDRecipe, runtime: Runtime) -> "Features":
    """Check images and device before anything is written, and load the teacher.

    Raises:
        MapetError: one that does not exist or does not fit.
    """
    from mapet.data.dataset import open_dataset
    from mapet.engine.distributed import pick_device
    from mapet.tokenizers.teacher import open_teacher

    if runtime.strategy != "ddp":
        raise MapetError("--strategy fsdp shards encoders, and a tokenizer in training is small: leave it out.")
    source, (rows, columns) = open_dataset(t.data), t.grid
    require_batch(source, t.max_images, t.batch_size)
    if min(len(source), t.max_images or len(source)) * rows * columns < t.vocab_size:
        raise MapetError(
            f"{source.name} gives fewer patches than {t.vocab_size} codes: lower --vocab-size or add images."
        )
    pick_device(runtime.accelerator)
    weights = Path(t.teacher_weights) if t.teacher_weights else None
    return open_teacher(
        t.teacher, t.grid, patch_size=t.patch_size, stage=t.teacher_stage, output=t.teacher_output, weights=weights
    )


def build_distill_batches(
    run: "Run", t: VQKDRecipe, runtime: Runtime, teacher: "Features", fabric: "Fabric"
) -> "DistillBatches":
    """The training stream: randomly cropped and flipped images, by the tokenizer's view and the teacher's."""
    from mapet.build.batches import open_images, shuffled_images
    from mapet.build.vqkd import DistillBatches
    from mapet.data.crop import Crops
    from mapet.utils.view import CenterCropResize

    shuffled = shuffled_images(
        open_images(t.data, t.max_images, t.seed, runtime, run.unreadable_images, t.max_pixels),
        (CenterCropResize((t.image_size, t.image_size)), teacher.view),
        Crops(t.seed, t.scale, hflip=t.hflip) if t.scale or t.hflip else None,
        batch_size=t.batch_size,
        epochs=t.epochs,
        seed=t.seed,
        runtime=runtime,
        fabric=fabric,
    )
    return DistillBatches(shuffled, teacher, fabric)
