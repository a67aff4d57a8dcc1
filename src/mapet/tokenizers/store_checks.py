"""Checks of token stores: of two headers, two views, and of rows that were read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mapet.tokenizers import sums
from mapet.utils.errors import MapetError
from mapet.utils.fingerprint import KEY
from mapet.utils.view import CenterCropResize


def row_fault(tokens: NDArray[np.uint16], vocabulary: int, hashed: NDArray[np.uint64] | None) -> tuple[int, str] | None:
    """The first damaged row of tokens (B, L), and its fault; None if there is none.

    Args:
        tokens: rows of a store.
        vocabulary: tokens must be below it.
        hashed: the rows' hashes (B, 2); None: there are none.
    """
    if hashed is not None and (wrong := sums.first_wrong(tokens, hashed)) is not None:
        return wrong, f"tokens that do not match their hash in {sums.FILE}"
    if tokens.size and int(tokens.max()) >= vocabulary:
        row, column = np.argwhere(tokens >= vocabulary)[0]
        return int(row), f"the token {tokens[row, column]} at patch {column}, and its vocabulary is {vocabulary}"
    return None


def require_fitting(folder: Path, image_ids: Sequence[str], tokens: Tensor, limits: tuple[int, int]) -> None:
    """Require rows (B, L) that a store in ``folder`` takes; ``limits`` are L and the vocabulary.

    Raises:
        MapetError: tokens of another shape or vocabulary, or an image id with a line break.
    """
    length, vocabulary = limits
    if tokens.shape != (len(image_ids), length):
        raise MapetError(f"{folder} takes ({len(image_ids)}, {length}) tokens, not {tuple(tokens.shape)}.")
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        raise MapetError(f"{folder} takes tokens from 0 to {vocabulary - 1} only.")
    if bad := [image_id for image_id in image_ids if "\n" in image_id]:
        raise MapetError(f"The image id {bad[0]!r} has a line break: rename the image.")


def require_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compare two headers, the extra fields one by one.

    Raises:
        MapetError: a field differs.
    """
    there, here = ({**header, **(header.get("extra") or {})} for header in (found, wanted))
    for name in dict.fromkeys([*here, *there]):
        if name not in ("extra", "format", KEY) and there.get(name) != here.get(name):
            raise MapetError(
                f"{folder} holds tokens with {name} {there.get(name)}, not {here.get(name)}: choose another folder."
            )


def same_aspect(one: CenterCropResize, other: CenterCropResize) -> bool:
    """Whether two views crop alike."""
    return one.size[0] * other.size[1] == one.size[1] * other.size[0]


def view_text(view: CenterCropResize) -> str:
    """A view in words."""
    return f"a {view.interpolation} view of {view.size[0]}x{view.size[1]} pixels"
