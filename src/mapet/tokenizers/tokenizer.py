"""What every tokenizer offers, and the one form in which all of them lie on disk.

A folder of ``tokenizer.safetensors`` (tensors) and ``tokenizer.json`` (``kind``, ``hash``, and whatever else the kind
needs to be built again).

A new pair replaces an old one in one go: it is written aside and renamed to the folder ``tokenizer.next`` beside the
old files, and from then on counts in their place, while its files are moved there one by one.
"""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mapet.tokenizers.files import fingerprint
from mapet.utils.errors import MapetError, nearest
from mapet.utils.io import read_json, replace_file
from mapet.utils.owned import PAIR, discard
from mapet.utils.view import CenterCropResize

KINDS = {
    "codebook": "codebook.Codebook",
    "vqkd": "vqkd.VQKD",
    "dalle": "dalle.DalleEncoder",
    "vqgan": "vqgan.VQGAN",
}
TENSORS, FIELDS = "tokenizer.safetensors", "tokenizer.json"
PART, NEXT = "tokenizer.part", "tokenizer.next"


class Tokenizer(Protocol):
    """Images in, one visual token a patch out.

    Attributes:
        kind: a key of ``KINDS``.
        view: the crop and the size in pixels that ``encode`` expects.
        grid: (rows, columns) of patches, L = rows × columns.
        vocabulary: tokens are below it.
    """

    kind: ClassVar[str]
    view: CenterCropResize
    grid: tuple[int, int]
    vocabulary: int

    @property
    def hash(self) -> str:
        """Identifies the tokenizer: equal hashes give equal tokens."""

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] at ``view.size`` to tokens (B, L) int64, patches row by row."""

    def measure(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens (B, L) of ``encode``; how badly each patch stands for its code (B, L); and vectors (B, L, F) or None.

        Of codes that are places among vectors the second are squared distances; of others the negative winning logits,
        and there are no vectors.
        """

    def to(self, device: Any) -> Self:
        """The tokenizer on another device."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer as a folder that ``load_tokenizer`` reads."""

    @classmethod
    def restored(
        cls, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path, teacher_weights: Path | None
    ) -> Self:
        """What ``save`` wrote; raises KeyError, TypeError, ValueError or RuntimeError where it does not fit."""


class Network(nn.Module):
    """A tokenizer that is a network by itself: frozen, and stored as its weights and the arguments that build it.

    A subclass sets ``kind``, calls ``super().__init__(config)`` with its own keyword arguments, ready for JSON, and
    sets ``view``, ``grid`` and ``vocabulary``.
    """

    kind: ClassVar[str]
    view: CenterCropResize
    grid: tuple[int, int]
    vocabulary: int

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config, self.provenance = dict(config), dict[str, Any]()

    @property
    def hash(self) -> str:
        """A BLAKE2b of the weights, the kind and the arguments."""
        return fingerprint(self.state_dict(), self.kind, json.dumps(self.config, sort_keys=True))

    def save(self, folder: Path) -> None:
        """Write a folder that ``load_tokenizer`` reads."""
        fields = {"kind": self.kind, "hash": self.hash, "config": self.config, "provenance": self.provenance}
        write_folder(folder, fields, self.state_dict())

    @classmethod
    def restored(
        cls, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path, teacher_weights: Path | None
    ) -> Self:
        """What ``save`` wrote."""
        network = cls(**fields["config"])
        network.load_state_dict(dict(tensors))
        network.provenance = dict(fields["provenance"])
        return network.requires_grad_(False).eval()


def in_view(images: Tensor, tokenizer: Tokenizer) -> Tensor:
    """``images``, if they are what the tokenizer's ``encode`` expects.

    Raises:
        MapetError: another size, another number of channels, or another type.
    """
    wanted = (3, *tokenizer.view.size)
    if tuple(images.shape[1:]) != wanted or images.dtype != torch.float32:
        raise MapetError(
            f"This {tokenizer.kind} tokenizer reads images (B, {', '.join(map(str, wanted))}) float32 in [0, 1], and "
            f"these are {tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}: put them into its view."
        )
    return images


def load_tokenizer(folder: str | Path, *, teacher_weights: str | Path | None = None) -> Tokenizer:
    """The tokenizer, of whatever kind, that lies in ``folder``, frozen and on the CPU.

    Args:
        folder: what a tokenizer's ``save`` wrote.
        teacher_weights: for a codebook whose teacher was read from a file: that file.

    Raises:
        MapetError: no tokenizer there, damaged, of an unknown kind, or a teacher whose weights cannot be had.
    """
    folder = Path(folder)
    fields = read_json(_current(folder, FIELDS), "a tokenizer")
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise MapetError(f'{folder / FIELDS} names a kind "{kind}" of tokenizer.{nearest(str(kind), KINDS)}')
    module, _, name = KINDS[kind].partition(".")
    cls: type[Tokenizer] = getattr(import_module(f"mapet.tokenizers.{module}"), name)
    weights = Path(teacher_weights) if teacher_weights else None
    try:
        tokenizer = cls.restored(fields, load_file(_current(folder, TENSORS)), folder, weights)
        intact = tokenizer.hash == fields["hash"]
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError):
        intact = False
    if not intact:
        raise MapetError(f"The tokenizer in {folder} is damaged: {TENSORS} and {FIELDS} do not belong together.")
    return tokenizer


def write_folder(folder: Path, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write ``tokenizer.safetensors`` and ``tokenizer.json``; a kill at any moment leaves the old pair or the new one.

    A new folder appears only when both are complete. Whatever else a folder holds is left alone.
    """
    there = folder.exists()
    part = folder / PART if there else folder.with_name(f"{folder.name}.{PART}")
    discard(part, PAIR)
    part.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(part / TENSORS, save(plain))
    replace_file(part / FIELDS, json.dumps(fields, indent=2).encode())
    _settle(folder)  # what an earlier kill left
    part.rename(folder / NEXT if there else folder)
    _settle(folder)


def _settle(folder: Path) -> None:
    """Move the next pair to its place."""
    for name in (TENSORS, FIELDS):
        if (folder / NEXT / name).exists():
            (folder / NEXT / name).replace(folder / name)
    discard(folder / NEXT, PAIR)


def _current(folder: Path, name: str) -> Path:
    """Where the file lies that counts."""
    following = folder / NEXT / name
    return following if following.exists() else folder / name
