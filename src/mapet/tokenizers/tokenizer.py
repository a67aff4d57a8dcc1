"""The interface of all tokenizers, and their format on disk.

A folder of ``tokenizer.safetensors`` (tensors) and ``tokenizer.json`` (``kind``, ``hash``, and what the kind needs to
be rebuilt).

A new pair replaces an old one atomically: it is written to a temporary folder, which is renamed to ``tokenizer.next``
in the same folder. From then on this pair is the valid one, while its files replace the old ones one by one.
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
from mapet.utils.io import read_json, replace_file, sync
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
    """Maps images to one visual token per patch.

    Attributes:
        kind: a key of ``KINDS``.
        view: crop and size of the input.
        grid: (rows, columns) of patches, L = rows × columns.
        vocabulary: tokens are below it.
    """

    kind: ClassVar[str]
    view: CenterCropResize
    grid: tuple[int, int]
    vocabulary: int

    @property
    def hash(self) -> str:
        """Content hash: tokenizers with equal hashes give equal tokens."""

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] at ``view.size`` to tokens (B, L) int64, patches in row-major order."""

    def measure(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens (B, L) as ``encode``; distance (B, L) of each patch from its code; and vectors (B, L, F) or None.

        The squared distance and the vectors for vector codebooks; the negative logit and None otherwise.
        """

    def to(self, device: Any) -> Self:
        """The tokenizer on another device."""

    def save(self, folder: Path) -> None:
        """Write a folder for ``load_tokenizer``."""

    @classmethod
    def restored(
        cls, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path, teacher_weights: Path | None
    ) -> Self:
        """Rebuild a saved tokenizer; raises KeyError, TypeError, ValueError or RuntimeError if the files do not fit."""


class Network(nn.Module):
    """Base class of tokenizers that are a single network, stored as weights and constructor arguments.

    A subclass sets ``kind``, calls ``super().__init__(config)`` with its keyword arguments (JSON types), and sets
    ``view``, ``grid`` and ``vocabulary``.
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
        """BLAKE2b of the weights, the kind and the arguments."""
        return fingerprint(self.state_dict(), self.kind, json.dumps(self.config, sort_keys=True))

    def save(self, folder: Path) -> None:
        """Write a folder for ``load_tokenizer``."""
        fields = {"kind": self.kind, "hash": self.hash, "config": self.config, "provenance": self.provenance}
        write_folder(folder, fields, self.state_dict())

    @classmethod
    def restored(
        cls, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path, teacher_weights: Path | None
    ) -> Self:
        """Rebuild a saved network, frozen."""
        network = cls(**fields["config"])
        network.load_state_dict(dict(tensors))
        network.provenance = dict(fields["provenance"])
        return network.requires_grad_(False).eval()


def in_view(images: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Return ``images`` after checking that they fit the tokenizer's input.

    Raises:
        MapetError: another size, number of channels, or dtype.
    """
    wanted = (3, *tokenizer.view.size)
    if tuple(images.shape[1:]) != wanted or images.dtype != torch.float32:
        raise MapetError(
            f"This {tokenizer.kind} tokenizer reads images (B, {', '.join(map(str, wanted))}) float32 in [0, 1], got "
            f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}: convert them to its view."
        )
    return images


def load_tokenizer(folder: str | Path, *, teacher_weights: str | Path | None = None) -> Tokenizer:
    """Load a tokenizer of any kind, frozen, on the CPU.

    Args:
        folder: a folder written by a tokenizer's ``save``.
        teacher_weights: weights file of the teacher, for a codebook whose teacher was read from a file.

    Raises:
        MapetError: missing, damaged, of an unknown kind, or the teacher's weights cannot be loaded.
    """
    folder = Path(folder)
    fields = read_json(_current(folder, FIELDS), "a tokenizer")
    kind = fields.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise MapetError(f'{folder / FIELDS} has an unknown kind "{kind}".{nearest(str(kind), KINDS)}')
    module, _, name = KINDS[kind].partition(".")
    cls: type[Tokenizer] = getattr(import_module(f"mapet.tokenizers.{module}"), name)
    weights = Path(teacher_weights) if teacher_weights else None
    try:
        tensors = load_file(_current(folder, TENSORS))
        tokenizer = cls.restored(fields, tensors, folder, weights)
        intact = tokenizer.hash == fields["hash"]
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError):
        intact = False
    if not intact:
        raise MapetError(
            f"The tokenizer in {folder} is damaged ({TENSORS} and {FIELDS} do not match): restore or create it again."
        )
    if bad := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise MapetError(f"The tokenizer in {folder} is useless: {bad[0]} has values that are NaN or infinite.")
    return tokenizer


def write_folder(folder: Path, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write ``tokenizer.safetensors`` and ``tokenizer.json``; a kill at any moment leaves the old pair or the new one.

    A new folder appears with both files. Other files of an existing folder are kept.
    """
    exists = folder.exists()
    part = folder / PART if exists else folder.with_name(f"{folder.name}.{PART}")
    discard(part, PAIR)
    part.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        replace_file(part / TENSORS, save(plain))
        replace_file(part / FIELDS, json.dumps(fields, indent=2).encode())
    except (MapetError, OSError):
        discard(part, PAIR)
        raise
    _finish_replacement(folder)  # of an earlier, killed process
    part.rename(folder / NEXT if exists else folder)
    sync(folder if exists else folder.parent)
    _finish_replacement(folder)


def _finish_replacement(folder: Path) -> None:
    """Move the next pair over the old one."""
    for name in (TENSORS, FIELDS):
        if (folder / NEXT / name).exists():
            (folder / NEXT / name).replace(folder / name)
            sync(folder)
    discard(folder / NEXT, PAIR)


def _current(folder: Path, name: str) -> Path:
    """The path of the valid file."""
    replacement = folder / NEXT / name
    return replacement if replacement.exists() else folder / name
