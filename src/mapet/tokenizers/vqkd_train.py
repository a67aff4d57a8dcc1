"""Training of VQ-KD: a decoder reconstructs a teacher's patch features from an image's codes.

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
from mapet.tokenizers.quantizer import Reduce, draw_features, ema_update, no_reduce, sum_by_code
from mapet.tokenizers.vqkd import VQKD, WHAT, Pair, patches, task_layer, vit
from mapet.utils.rng import exact, random_bits
from mapet.utils.weights import count, extent, fill, join_qkv_bias

RESTART = 0x5651  # salt
ITERATIONS = 10  # of the k-means that initialises the codes


class VQKDTraining(nn.Module):
    """The objective: loss = 1 − cosine(decoded, teacher) + commitment · mean squared (feature − code).

    The gradient passes from code to feature unchanged (straight-through estimator). Codes have no gradient: ``update``,
    called after each optimiser step, moves them towards the features assigned to them in the forward passes since, and
    replaces dead codes by such features. Parameters and buffers hold the whole state, and the choice of features is a
    pure function of (seed, step, image, patch).

    Args:
        network: the tokenizer, trained in place.
        width: F.
        decoder_dim: width of the decoder, a ViT on the grid of codes.
        decoder_depth: decoder blocks; published: 1 or 3.
        decoder_heads: attention heads of the decoder.
        commitment: weight of the second term.
        decay: decay of the moving averages of codes and usage.
        restart: a code is dead if its usage is below this share of the mean; it restarts with twice this share.
        seed: random seed of the initial codes and the restarts.
        reduce: sum or minimum of a tensor over all processes.
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
        reduce: Reduce = no_reduce,
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
        """Load a published state dict with decoder and usage, to continue its training; raises as ``VQKD.from_beit2``.

        Args:
            weights: state dict with the published names.
            image_size: pixels, or (height, width).
            patch_size: pixels, or (height, width).
            heads: attention heads of the encoder.
            decoder_heads: attention heads of the decoder.
            options: commitment, decay, restart, seed and reduce, as in the class.
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
        """Initialise the codes by cosine k-means of the features of these images, batches (B, 3, H, W).

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
        """Loss and metrics of a batch.

        Args:
            images: (B, 3, H, W) float32 in [0, 1].
            target: (B, L, F), the teacher's features of the same crops.
            index: (B,) int64, the images' indices, which seed the restarts.

        Returns:
            Scalars: loss, cosine, commitment, perplexity of the usage, and used: the number of codes whose usage is
            above twice the share at which a code is dead.
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

    def discard_last(self) -> None:
        """Leave the last forward pass out of the next ``update``; processes without images still take part in it."""
        self._seen[-1:] = [(unit[:0], tokens[:0], index[:0]) for unit, tokens, index in self._seen[-1:]]

    def decode(self, quantized: Tensor) -> Tensor:
        """Codes (B, L, C) to predicted features of the teacher, (B, L, F)."""
        code_map = quantized.transpose(1, 2).reshape(len(quantized), -1, *self.network.grid)
        return self.decode_task_layer(patches(self.decoder, code_map))

    @torch.no_grad()
    def update(self) -> None:
        """Update the codes from all forward passes in training mode since the last update."""
        if not self._seen:
            return
        device = exact(self.usage.device)
        unit, tokens, index = (torch.cat(parts).to(device) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        codes, usage = self.network.codes.to(device), self.usage.to(device)
        table = self.reduce(sum_by_code(unit.flatten(0, 1), tokens.flatten(), len(codes)), "sum")
        codes, usage = ema_update(codes, usage, table, self.decay)
        patch = torch.arange(unit.shape[1], device=device)
        keys = random_bits(self.seed, RESTART, self.steps.to(device), index[:, None], patch).flatten()
        features, available = draw_features(unit.flatten(0, 1), keys, len(codes), self.reduce)
        dead = (usage < self.restart * usage.mean()) & available
        self.network.codes.copy_(torch.where(dead[:, None], features, codes))
        self.usage.copy_(torch.where(dead, 2 * self.restart * usage.mean(), usage))
        self.steps += 1

    def tokenizer(self) -> VQKD:
        """A frozen copy of the current tokenizer on the CPU."""
        return deepcopy(self.network).cpu().requires_grad_(False).eval()

    def _health(self) -> dict[str, Tensor]:
        share = self.usage / self.usage.sum()
        used = (self.usage > 2 * self.restart * self.usage.mean()).sum()
        return {"perplexity": torch.special.entr(share).sum().exp(), "used": used.float()}
