"""Weights that a pre-training starts from: those of another encoder, fitted to the recipe's."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mapet.config.recipe import Recipe
from mapet.evals.dense import resampled
from mapet.method.encoder import SIZES, Encoder
from mapet.utils.errors import MapetError

HEAD = ("head.",)  # depends on the tokenizer


def require_same_shape(found: Encoder, ours: Encoder, origin: str) -> None:
    """Refuse an encoder whose blocks differ from the recipe's; image size, patch size and channels may differ.

    Raises:
        MapetError: names every setting that differs, and the options with which the recipe fits.
    """
    theirs, mine = _shape(found), _shape(ours)
    differ = [name for name in mine if theirs[name] != mine[name]]
    if not differ:
        return
    said = ", ".join(f"{name.replace('_', ' ')} {theirs[name]:g} (the recipe's: {mine[name]:g})" for name in differ)
    raise MapetError(f"--init: {origin} has {said}: {_advice(found)}.")


def _shape(encoder: Encoder) -> dict[str, float]:
    return {
        "embed_dim": encoder.embed_dim,
        "depth": len(encoder.blocks),
        "num_heads": encoder.num_heads,
        "mlp_ratio": encoder.mlp_ratio,
    }


def _advice(found: Encoder) -> str:
    shape = _shape(found)
    if shape.pop("mlp_ratio") != 4:
        return "give another FROM; the MLPs of pre-training are 4 times as wide as its rows"
    name = next((name for name, size in SIZES.items() if size == shape), None)
    options = " ".join(f"--{key.replace('_', '-')} {value:g}" for key, value in shape.items())
    return f"give --model {name}" if name else f"give --model custom {options}"


@torch.no_grad()
def start_from(encoder: Encoder, found: Encoder) -> list[str]:
    """Copy the weights of ``found`` into ``encoder``, which has the same blocks.

    Position embeddings are interpolated (bicubic) to the encoder's grid, patch embeddings resized (FlexiViT, Beyer et
    al., arXiv 2212.08013) to its patch size, and those of one channel spread over three. Layer scales that ``found``
    lacks become 1, and those that ``encoder`` lacks are multiplied into its projections: no feature changes.

    Returns:
        What was adapted and what stays new, in words.
    """
    from timm.layers import resample_patch_embed

    notes, weights = [], dict(found.state_dict())
    if found.grid != encoder.grid:
        weights["pos_embed"] = resampled(weights["pos_embed"], found.grid, encoder.grid)
        notes.append(f"positions interpolated from {_by(found.grid)} to {_by(encoder.grid)}")
    patch = "patch_embed.proj.weight"
    if found.patch_size != encoder.patch_size:
        weights[patch] = resample_patch_embed(weights[patch], list(encoder.patch_size))
        notes.append(f"patch embedding resized from {_by(found.patch_size)} to {_by(encoder.patch_size)} pixels")
    if found.in_chans != encoder.in_chans:
        if found.in_chans != 1:
            raise MapetError(f"--init: FROM takes {found.in_chans} channels, and pre-training RGB: give another FROM.")
        weights[patch] = weights[patch].expand(-1, encoder.in_chans, -1, -1) / encoder.in_chans
        notes.append("patch embedding of one channel spread over three")
    notes += _layer_scales(weights, encoder)
    names = encoder.state_dict().keys()
    if left := sorted({name.split(".")[0] for name in weights if name not in names}):
        notes.append(f"not used: {', '.join(left)}")
    if new := sorted({name.split(".")[0] for name in names if name not in weights}):
        notes.append(f"new: {', '.join(new)}")
    encoder.load_state_dict({name: tensor for name, tensor in weights.items() if name in names}, strict=False)
    return notes


def _layer_scales(weights: dict[str, Tensor], encoder: Encoder) -> list[str]:
    """Make ``weights`` have layer scales if and only if the encoder has them."""
    names = [f"blocks.{i}.ls{part}.gamma" for i in range(len(encoder.blocks)) for part in (1, 2)]
    if encoder.init_values and names[0] not in weights:
        weights |= {name: torch.ones(encoder.embed_dim) for name in names}
        return ["layer scales 1"]
    if not encoder.init_values and names[0] in weights:
        for name in names:
            scale = weights.pop(name)
            block = name.partition(".ls")[0]
            last = f"{block}.attn.proj" if name.endswith("ls1.gamma") else f"{block}.mlp.fc2"
            weights[f"{last}.weight"] = weights[f"{last}.weight"] * scale[:, None]
            weights[f"{last}.bias"] = weights[f"{last}.bias"] * scale
        return ["layer scales multiplied into the projections"]
    return []


@torch.no_grad()
def continue_from(objective: nn.Module, state: Mapping[str, Tensor], same_tokens: bool) -> tuple[list[str], list[str]]:
    """Copy from a run's state what the objective has beyond its encoder, of equal name and shape.

    Args:
        objective: changed in place.
        state: weights of the other run's objective, by their names.
        same_tokens: whether both predict tokens of one tokenizer; else the head stays new.

    Returns:
        The first parts of the names that were used, and of those that stay new.
    """
    ours = {name: tensor for name, tensor in objective.state_dict().items() if not name.startswith("encoder.")}
    used = {
        name: state[name]
        for name, tensor in ours.items()
        if name in state and state[name].shape == tensor.shape and (same_tokens or not name.startswith(HEAD))
    }
    objective.load_state_dict(used, strict=False)
    return _parts(used), _parts(name for name in ours if name not in used)


def _parts(names: Any) -> list[str]:
    return sorted({name.split(".")[0] for name in names})


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def encoder_of(recipe: Recipe) -> Encoder:
    """The recipe's encoder without weights, to compare shapes."""
    from mapet.build.pretrain import build_encoder

    with torch.device("meta"):
        return build_encoder(recipe)
