"""Training a VQ-KD tokenizer: the codes of an image must suffice to say what a teacher sees in it.

Encoder → nearest code → decoder → the teacher's patch features (BEiT v2, arXiv 2208.06366, section 2.2).
Legend: B images, L patches, C width of a code, K codes, F width of the teacher's features.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss

from mapet.tokenizers.kmeans import kmeans
from mapet.tokenizers.kmeans_init import sampled
from mapet.tokenizers.quantizer import Reduce, alone, drawn, ema_update, sum_by_code
from mapet.tokenizers.vqkd import VQKD, WHAT, Pair, patches, task_layer, vit
from mapet.utils.rng import exact, random_bits
from mapet.utils.weights import count, extent, fill, join_qkv_bias

RESTART = 0x5651  # salt
ITERATIONS = 10  # of the k-means that the codes start from


class VQKDTraining(nn.Module):
    """The objective: loss = 1 − cosine(decoded, teacher) + commitment · mean squared (feature − code).

    The gradient passes from the chosen code to the feature unchanged (straight through). Codes take no gradient:
    ``update``, to be called after each step of the optimiser, moves them to the features that chose them in the
    forward passes since; those chosen too rarely get a new place among these features. All that a step changes lies
    in parameters and buffers, and the choice of features is a pure function of (seed, step, image, patch).

    Args:
        network: the tokenizer to be trained, in place.
        width: F.
        decoder_dim: width of the decoder, a ViT on the map of codes.
        decoder_depth: its blocks; published are 1 and 3.
        decoder_heads: its attention heads.
        commitment: weight of the second term.
        decay: of the moving averages of codes and usage.
        restart: a code is dead when its usage falls below this share of the mean; it comes back with twice as much.
        seed: of the start and the restarts.
        reduce: sums, or takes the minimum of, a tensor over all processes.
    """

    usage: Tensor
    steps: Tensor

    def __init__(
        self,
        network: VQKD,
        *,
        width: int,
        decoder_dim: int = 768,
        decoder_depth: int = 3,
        decoder_heads: int = 12,
        commitment: float = 1.0,
        decay: float = 0.99,
        restart: float = 0.05,
        seed: int = 0,
        reduce: Reduce = alone,
    ) -> None:
        super().__init__()
        self.network = network
        self.decoder = vit(network.grid, 1, network.codes.shape[1], decoder_dim, decoder_depth, decoder_heads)
        self.decode_task_layer = task_layer(decoder_dim, width)
        self.commitment, self.decay, self.restart, self.seed = commitment, decay, restart, seed
        self.reduce = reduce
        self.register_buffer("usage", torch.ones(network.vocabulary))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    @classmethod
    def from_beit2(
        cls,
        weights: Mapping[str, Tensor],
        *,
        image_size: Pair,
        patch_size: Pair,
        heads: int,
        decoder_heads: int,
        **options: Any,
    ) -> Self:
        """A published state dict with its decoder and usage, to train on; raises as ``VQKD.from_beit2``.

        Args:
            weights: by the published names.
            image_size: pixels, or (height, width).
            patch_size: pixels, or (height, width).
            heads: the encoder's attention heads.
            decoder_heads: the decoder's.
            options: commitment, decay, restart, seed and reduce, as of the class.
        """
        network = VQKD.from_beit2(weights, image_size=image_size, patch_size=patch_size, heads=heads)
        training = cls(
            network.requires_grad_(True),
            width=extent(weights, "decode_task_layer.2.weight", WHAT),
            decoder_dim=extent(weights, "decoder.fc_norm.weight", WHAT),
            decoder_depth=count(weights, "decoder.blocks."),
            decoder_heads=decoder_heads,
            **options,
        )
        decoder = {name: tensor for name, tensor in join_qkv_bias(weights, WHAT).items() if name.startswith("decode")}
        kept = {name: tensor for name, tensor in training.state_dict().items() if not name.startswith("decode")}
        fill(training, {**kept, **decoder, "usage": weights["quantize.cluster_size"]}, WHAT)
        return training

    @torch.no_grad()
    def start(self, batches: Iterable[Tensor]) -> None:
        """Put the codes where cosine k-means finds the features of these images, each batch (B, 3, H, W).

        Raises:
            MapetError: fewer patches than codes.
        """
        unit = torch.cat([self.network.unit(images).flatten(0, 1) for images in batches])
        unit = unit.to(exact(unit.device))
        first = sampled(unit, self.network.vocabulary, self.seed)
        found = kmeans(unit, first, iterations=ITERATIONS, metric="cosine")
        self.network.codes.copy_(found.centroids)
        self.usage.copy_(found.counts)

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """One step's figures, ``loss`` among them.

        Args:
            images: (B, 3, H, W) float32 in [0, 1].
            target: (B, L, F), the teacher's features of the same crops.
            index: (B,) int64, the images' numbers: an image's own key for restarts.

        Returns:
            Scalars: loss, cosine, commitment; and of the usage: perplexity, and used, the codes above twice the share
            at which a code is dead.
        """
        unit = self.network.unit(images)
        tokens, _ = self.network.nearest(unit.detach())
        chosen = self.network.codes[tokens]
        if self.training:
            self._seen.append((unit.detach(), tokens, index))
        decoded = self.decode(unit + (chosen - unit).detach())
        cosine = cosine_similarity(decoded.float(), target.float(), dim=-1).mean()
        commitment = mse_loss(unit, chosen)
        loss = 1 - cosine + self.commitment * commitment
        return {"loss": loss, "cosine": cosine, "commitment": commitment, **self._health()}

    def decode(self, quantized: Tensor) -> Tensor:
        """Codes (B, L, C) to what the teacher is thought to see, (B, L, F)."""
        code_map = quantized.transpose(1, 2).reshape(len(quantized), -1, *self.network.grid)
        return self.decode_task_layer(patches(self.decoder, code_map))

    @torch.no_grad()
    def update(self) -> None:
        """Move the codes by all that the forward passes in training mode since the last update have seen."""
        if not self._seen:
            return
        place = exact(self.usage.device)
        unit, tokens, index = (torch.cat(parts).to(place) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        codes, usage = self.network.codes.to(place), self.usage.to(place)
        table = self.reduce(sum_by_code(unit.flatten(0, 1), tokens.flatten(), len(codes)), "sum")
        codes, usage = ema_update(codes, usage, table, self.decay)
        patch = torch.arange(unit.shape[1], device=place)
        keys = random_bits(self.seed, RESTART, self.steps.to(place), index[:, None], patch).flatten()
        found, there = drawn(unit.flatten(0, 1), keys, len(codes), self.reduce)
        dead = (usage < self.restart * usage.mean()) & there
        self.network.codes.copy_(torch.where(dead[:, None], found, codes))
        self.usage.copy_(torch.where(dead, 2 * self.restart * usage.mean(), usage))
        self.steps += 1

    def tokenizer(self) -> VQKD:
        """The tokenizer as it is now: a frozen copy on the CPU."""
        return deepcopy(self.network).cpu().requires_grad_(False).eval()

    def _health(self) -> dict[str, Tensor]:
        share = self.usage / self.usage.sum()
        used = (self.usage > 2 * self.restart * self.usage.mean()).sum()
        return {"perplexity": torch.special.entr(share).sum().exp(), "used": used.float()}
