"""What a VQ-KD training is put together from, each part by its settings."""

from pathlib import Path
from typing import TYPE_CHECKING

from mapet.api.training import pin, require_batch
from mapet.config.recipe import Runtime
from mapet.config.vqkd import VQKDRecipe
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor

    from mapet.build.vqkd import DistillBatches
    from mapet.engine.optim import Optim
    from mapet.engine.run import Run
    from mapet.tokenizers.teacher import Features
    from mapet.tokenizers.vqkd_train import VQKDTraining

START = 16  # patches a code, from which k-means makes the first codes


def validate(t: VQKDRecipe, runtime: Runtime) -> "Features":
    """Find what cannot work before anything is written; the teacher, which is the longest to find."""
    from mapet.data.dataset import open_dataset
    from mapet.engine.distributed import pick_device
    from mapet.tokenizers.teacher import open_teacher

    if runtime.strategy != "ddp":
        raise MapetError("--strategy fsdp spreads encoders; a tokenizer in training is small: leave it out.")
    source, (rows, columns) = open_dataset(t.data), t.grid
    require_batch(source, t.max_images, t.batch_size)
    if min(len(source), t.max_images or len(source)) * rows * columns < t.codes:
        raise MapetError(f"{source.name} gives fewer patches than {t.codes} codes: lower --codes or add images.")
    pick_device(runtime.accelerator)
    weights = Path(t.teacher_weights) if t.teacher_weights else None
    return open_teacher(
        t.teacher, t.grid, patch_size=t.patch_size, stage=t.teacher_stage, output=t.teacher_output, weights=weights
    )


def build_distill_batches(
    run: "Run", t: VQKDRecipe, runtime: Runtime, teacher: "Features", fabric: "Fabric"
) -> "DistillBatches":
    """The training stream: the images, cropped and mirrored at random, for the tokenizer and for the teacher."""
    from mapet.build.batches import chosen
    from mapet.build.vqkd import DistillBatches
    from mapet.data.crop import Crops
    from mapet.data.dataset import open_dataset
    from mapet.data.loader import Shuffled
    from mapet.data.unreadable import UnreadableImages
    from mapet.engine.distributed import pick_workers
    from mapet.utils.view import CenterCropResize

    source = open_dataset(t.data)
    indices = chosen(source, t.max_images, t.seed)
    shuffled = Shuffled(
        source,
        CenterCropResize((t.image_size, t.image_size)),
        second=teacher.view,
        crops=Crops(t.seed, t.scale, hflip=t.hflip) if t.scale or t.hflip else None,
        batch_size=t.batch_size,
        epochs=t.epochs,
        seed=t.seed,
        bad=UnreadableImages(len(indices), runtime.max_bad_fraction, run.unreadable_images),
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        workers=pick_workers(runtime.workers, fabric.device),
        memory=int(runtime.cache_gib * 2**30),
        indices=indices,
        device=fabric.device,
    )
    return DistillBatches(shuffled, teacher, fabric)


def build_objective(t: VQKDRecipe, width: int, fabric: "Fabric") -> "VQKDTraining":
    """Tokenizer and decoder, drawn from the seed; ``width`` is that of the teacher's features."""
    import torch

    from mapet.tokenizers.vqkd import VQKD
    from mapet.tokenizers.vqkd_train import VQKDTraining

    def reduce(tensor: "Tensor", operation: str) -> "Tensor":
        return fabric.all_reduce(tensor, reduce_op=operation)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(t.seed)
        network = VQKD(
            image_size=t.image_size,
            patch_size=t.patch_size,
            embed_dim=t.embed_dim,
            depth=t.depth,
            num_heads=t.num_heads,
            codes=t.codes,
            code_dim=t.code_dim,
        )
        return VQKDTraining(
            network,
            width=width,
            decoder_dim=t.embed_dim,
            decoder_depth=t.decoder_depth,
            decoder_heads=t.num_heads,
            commitment=t.commitment,
            decay=t.decay,
            restart=t.restart,
            seed=t.seed,
            reduce=reduce,
        )


def start(objective: "VQKDTraining", pairs: "DistillBatches") -> None:
    """The first codes, by one process."""
    from mapet.data.augment import to_float

    rows, columns = objective.network.grid
    images = -(-START * objective.network.vocabulary // (rows * columns))
    device = pairs.fabric.device
    objective.to(device).start(to_float(batch.images, device) for batch in pairs.some(images))


def build_optim(t: VQKDRecipe, objective: "VQKDTraining", pairs: "DistillBatches") -> "Optim":
    """AdamW under a warm-up cosine in steps, after each of which the codes move."""
    from mapet.engine.optim import Optim, adamw, scheduled

    optimizer = adamw(objective, weight_decay=t.weight_decay, betas=t.betas, no_decay=("pos_embed", "cls_token"))
    optimizer.register_step_post_hook(lambda *_: objective.update())
    floor, first = min(t.min_lr, t.peak), min(t.warmup_lr, t.peak)
    lr = scheduled(pairs, peak=t.peak, floor=floor, start=first, warmup_epochs=t.warmup_epochs)
    return Optim(optimizer, lr, t.clip_grad)


def require_same(run: "Run", pairs: "DistillBatches") -> None:
    """Pin the images and the teacher of a run when it begins, and refuse others when it goes on."""
    told, s = "other images or another teacher: restore them.", pairs.shuffled
    pin(run, s.source, s.indices, {"teacher": pairs.teacher.describe()}, told, labels=False)
