"""Content hashes."""

from collections.abc import Mapping
from hashlib import blake2b

from torch import Tensor


def fingerprint(tensors: Mapping[str, Tensor], *notes: str) -> str:
    """BLAKE2b of names, dtypes, shapes and bytes, then of ``notes``: 32 hexadecimal digits."""
    digest = blake2b(digest_size=16)
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    for note in notes:
        digest.update(note.encode())
    return digest.hexdigest()
