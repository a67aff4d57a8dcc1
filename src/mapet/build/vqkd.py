"""What a VQ-KD training step is given: images, and what the teacher sees in the same parts of them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mapet.data.augment import to_float
from mapet.data.decode import Batch, decode
from mapet.data.device import to_device
from mapet.data.loader import Shuffled, Stream
from mapet.tokenizers.codebook import perplexity, usage
from mapet.tokenizers.teacher import Features
from mapet.tokenizers.vqkd_train import VQKDTraining
from mapet.utils.rng import random_bits

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SOME = 0x534F  # salt
AT_ONCE = 64  # images that the teacher sees at a time


class DistillBatches(Stream):
    """The training stream of a VQ-KD: ``Shuffled`` images as arguments of ``VQKDTraining.forward``.

    ``shuffled`` has the tokenizer's view and as ``second`` the teacher's, so both are cut from the image itself. The
    teacher is no part of the objective: it is neither trained nor saved.
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
            target = [self.teacher(to_float(part, device)) for part in torch.split(batch.views[-1], AT_ONCE)]
        return {
            "images": to_float(batch.images, device),
            "target": torch.cat(target),
            "index": to_device(batch.index, device),
        }

    def some(self, count: int) -> Iterator[Batch]:
        """At most ``count`` images, always the same ones, whole: without random crops and flips."""
        s = self.shuffled
        drawn = s.indices[random_bits(s.seed, SOME, s.indices).argsort(stable=True)[:count]]
        groups = ((0, part.tolist()) for part in drawn.split(AT_ONCE))
        return (batch for batch in decode(s.source, s.views, groups, workers=s.workers, bad=s.bad) if len(batch.index))


@torch.no_grad()
def measure(objective: VQKDTraining, pairs: DistillBatches, count: int) -> dict[str, float]:
    """How the codes serve on at most ``count`` whole images.

    Returns:
        images; used, the codes that occur; perplexity of the codes; cosine of what the teacher sees and what the
        decoder makes of the codes.
    """
    objective.eval()
    network, cosine, images = objective.network, 0.0, 0
    counts = torch.zeros(network.vocabulary, dtype=torch.int64)
    for batch in map(pairs.prepared, pairs.some(count)):
        tokens = network.encode(batch["images"])
        decoded = objective.decode(network.codes[tokens])
        cosine += float(cosine_similarity(decoded, batch["target"].float(), dim=-1).mean(dim=1).sum())
        images += len(tokens)
        counts += usage(tokens.cpu(), network.vocabulary)
    used = int((counts > 0).sum())
    return {"images": images, "used": used, "perplexity": perplexity(counts), "cosine": cosine / images}
