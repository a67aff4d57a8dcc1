"""JSON that is readable or explained, and contents by hash."""

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torch import Tensor

from mapet.errors import MapetError


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object that a JSON file holds; ``what`` names the folder's kind in the errors.

    Raises:
        MapetError: the file is missing or is not a JSON object.
    """
    try:
        fields = json.loads(path.read_bytes())
    except OSError:
        raise MapetError(f"{path.parent} is not {what}: it has no readable {path.name}.") from None
    except ValueError as error:
        raise MapetError(f"{path} is damaged ({error}): make {what} anew or restore the file.") from None
    if not isinstance(fields, dict):
        raise MapetError(f"{path} is damaged (not an object): make {what} anew or restore the file.")
    return fields


def fingerprint(tensors: Mapping[str, Tensor], *notes: str) -> str:
    """BLAKE2b of names, types, shapes and bytes, then of the ``notes``: 32 hexadecimal digits."""
    digest = blake2b(digest_size=16)
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    for note in notes:
        digest.update(note.encode())
    return digest.hexdigest()
