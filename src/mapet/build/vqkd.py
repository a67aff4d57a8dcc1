"""The objective, optimizer and training stream of a VQ-KD tokenizer."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mapet.config.vqkd import VQKDRecipe
from mapet.data.augment import to_float
from mapet.data.decode import Batch, decode
from mapet.data.device import to_device
from mapet.data.loader import Shuffled, Stream
from mapet.engine.optim import Optim, adamw, scheduled
from mapet.tokenizers.codebook import perplexity, usage
from mapet.tokenizers.teacher import Features
from mapet.tokenizers.vqkd import VQKD
from mapet.tokenizers.vqkd_train import VQKDTraining
from mapet.utils.rng import random_bits

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SAMPLE = 0x534F  # salt
ENCODED = 64  # images that the teacher sees at a time
PATCHES_PER_CODE = 16  # from which k-means makes the first codes


def build_objective(t: VQKDRecipe, width: int, fabric: "Fabric") -> VQKDTraining:
    """Tokenizer and decoder, initialised from the seed; ``width`` is the number of channels of the teacher."""

    def reduce(tensor: Tensor, operation: str) -> Tensor:
        return fabric.all_reduce(tensor, reduce_op=operation)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(t.seed)
        network = VQKD(
            image_size=t.image_size,
            patch_size=t.patch_size,
            embed_dim=t.embed_dim,
            depth=t.depth,
            num_heads=t.num_heads,
            codes=t.vocab_size,
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


def initialize_codes(objective: VQKDTraining, batches: "DistillBatches") -> None:
    """Set the first codes by k-means over the patches of some images; on one process."""
    rows, columns = objective.network.grid
    images = -(-PATCHES_PER_CODE * objective.network.vocabulary // (rows * columns))
    device = batches.fabric.device
    objective.to(device).start(to_float(batch.images, device) for batch in batches.some(images))


def build_optim(t: VQKDRecipe, objective: VQKDTraining, batches: "DistillBatches") -> Optim:
    """AdamW with warm-up and cosine decay; the codes are updated after each step."""
    optimizer = adamw(objective, weight_decay=t.weight_decay, betas=t.betas, no_decay=("pos_embed", "cls_token"))
    optimizer.register_step_post_hook(lambda *_: objective.update())
    lr = scheduled(batches, peak=t.peak, floor=t.min_lr, start=t.warmup_lr, warmup_epochs=t.warmup_epochs)
    return Optim(optimizer, lr, t.clip_grad)


class DistillBatches(Stream):
    """The training stream of a VQ-KD: ``Shuffled`` images as arguments of ``VQKDTraining.forward``.

    ``shuffled`` has the tokenizer's view first and the teacher's second, so both are cut from the image itself. The
    teacher is not part of the objective: it is neither trained nor saved.
    """

    def __init__(self, shuffled: Shuffled, teacher: Features, fabric: "Fabric") -> None:
        self.shuffled, self.fabric = shuffled, fabric
        self.teacher = teacher.to(fabric.device)

    def __call__(self, start: int) -> Iterator[dict[str, Tensor]]:
        """The batches from step ``start`` on, on the device."""
        return map(self.prepared, self.shuffled(start))

    def prepared(self, batch: Batch) -> dict[str, Tensor]:
        """One batch as ``images`` (B, 3, H, W) in [0, 1], ``target`` (B, L, F) and ``index`` (B,)."""
        device = self.fabric.device
        with self.fabric.autocast():
            target = [self.teacher(to_float(part, device)) for part in torch.split(batch.views[-1], ENCODED)]
        return {
            "images": to_float(batch.images, device),
            "target": torch.cat(target),
            "index": to_device(batch.index, device),
        }

    def some(self, count: int) -> Iterator[Batch]:
        """A fixed sample of at most ``count`` images, without random crops and flips."""
        s = self.shuffled
        drawn = s.indices[random_bits(s.seed, SAMPLE, s.indices).argsort(stable=True)[:count]]
        groups = ((0, part.tolist()) for part in drawn.split(ENCODED))
        return (batch for batch in decode(s.source, s.views, groups, workers=s.workers, bad=s.bad) if len(batch.index))


@torch.no_grad()
def measure(objective: VQKDTraining, batches: DistillBatches, count: int) -> dict[str, float]:
    """Use of the codes, and quality of the reconstruction, on at most ``count`` images without random crops.

    Returns:
        images, their number; used, the number of codes that occur; perplexity of the codes; cosine similarity between
        the teacher's features and those decoded from the codes.
    """
    objective.eval()
    network, cosine, images = objective.network, 0.0, 0
    counts = torch.zeros(network.vocabulary, dtype=torch.int64)
    for batch in map(batches.prepared, batches.some(count)):
        tokens = network.encode(batch["images"])
        decoded = objective.decode(network.codes[tokens])
        cosine += float(cosine_similarity(decoded, batch["target"].float(), dim=-1).mean(dim=1).sum())
        images += len(tokens)
        counts += usage(tokens.cpu(), network.vocabulary)
    used = int((counts > 0).sum())
    return {"images": images, "used": used, "perplexity": perplexity(counts), "cosine": cosine / images}
