"""Content hashes: of named tensors, which find any changed name, type, shape or byte, of JSON objects and of files."""

import json
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KEY = "fingerprint"  # in the metadata of safetensors files, and in JSON objects


def fingerprint(names: Iterable[str], tensor: Callable[[str], Tensor], *context: object) -> str:
    """The hash of the tensors, one read at a time, and of what belongs to them.

    Args:
        names: of all tensors, in any sequence.
        tensor: gives the tensor of a name.
        context: further values, as the completed steps.
    """
    found = blake2b(json.dumps(context).encode(), digest_size=16)
    for name in sorted(names):
        content = tensor(name).detach().cpu().contiguous()
        found.update(json.dumps([name, str(content.dtype), list(content.shape)]).encode())
        found.update(content.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def sealed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with the hash of its fields as another field."""
    plain: dict[str, Any] = json.loads(json.dumps({name: fields[name] for name in fields if name != KEY}))
    return {**plain, KEY: text_hash(json.dumps(plain, sort_keys=True))}


def is_intact(fields: Mapping[str, Any]) -> bool:
    """Whether a JSON object has the hash of its fields, or none, as those of version 0.1."""
    return KEY not in fields or sealed(fields)[KEY] == fields[KEY]


def text_hash(text: str) -> str:
    """The hash of a text: 32 hexadecimal digits."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def file_hash(path: Path, size: int | None = None) -> str:
    """The hash of a file's content, or of its first ``size`` bytes."""
    found, left = blake2b(digest_size=16), path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while part := file.read(min(left, 1 << 22)):
            found.update(part)
            left -= len(part)
    return found.hexdigest()


def content_hash(content: Any) -> int:
    """A 64-bit hash of a buffer."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
