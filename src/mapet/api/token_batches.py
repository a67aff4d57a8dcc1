"""Tokens of images in batches; of those whose features a fit has computed without computing them again."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mapet.api.images import ImagePass

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.tokenizers.codebook_fit import Kept
    from mapet.tokenizers.tokenizer import Tokenizer


def token_batches(
    tokenizer: "Tokenizer", images: ImagePass, missing: "Tensor", kept: "Kept"
) -> "Iterator[tuple[Tensor, Tensor]]":
    """Tokens (B, L) and indices (B,) of all readable images among ``missing``, in their order if it is ascending."""
    import torch

    from mapet.data.augment import to_float
    from mapet.engine.distributed import pick_device
    from mapet.tokenizers.codebook import Codebook

    device, known = pick_device(images.runtime.accelerator), kept.among(missing)
    waiting = missing[known]
    for pixels, indices in images.decode(tokenizer.view, missing[~known]):
        tokens, before = tokenizer.encode(to_float(pixels, device)), waiting < indices[-1]
        if isinstance(tokenizer, Codebook) and before.any():
            tokens = torch.cat([tokens, tokenizer.assigned(kept.take(waiting[before]))[0]])
            indices, order = torch.cat([indices, waiting[before]]).sort()
            tokens, waiting = tokens[order], waiting[~before]
        yield tokens, indices
    for part in torch.split(waiting, images.batch_size):
        if isinstance(tokenizer, Codebook) and len(part):
            yield tokenizer.assigned(kept.take(part))[0], part
