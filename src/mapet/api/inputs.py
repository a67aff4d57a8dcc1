"""What a run reads, kept in its folder: a resumed run must read the same."""

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.utils.errors import MapetError
from mapet.utils.io import load_json, replace_file

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.data.dataset import ImageDataset
    from mapet.engine.run import Run


def check_inputs_unchanged(
    run: "Run",
    source: "ImageDataset",
    indices: "Tensor",
    same: Mapping[str, Any],
    inputs: str,
    *,
    with_labels: bool = False,
) -> None:
    """Write into ``inputs.json`` what a new run reads; for a resumed one, refuse inputs other than those.

    Args:
        run: its folder.
        source: of the images.
        indices: (N,) int64, the images in it that are used.
        same: what else must not change, ready for JSON.
        inputs: what all of it is, in words.
        with_labels: whether the images' labels must not change either.

    Raises:
        MapetError: the run was begun with others.
    """
    names = (
        f"{i} {source.label(i)} {source.image_id(i)}" if with_labels else f"{i} {source.image_id(i)}"
        for i in indices.tolist()
    )
    digest = blake2b("\n".join(names).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    found = {**same, "images": len(indices), "keys": digest}
    path = run.folder / "inputs.json"
    if path.is_file() and _inputs(path) != found:
        raise MapetError(f"{run.folder} was begun with other {inputs}: restore them, or begin a new run.")
    replace_file(path, json.dumps(found, indent=1) + "\n")


def _inputs(path: Path) -> dict[str, Any]:
    """The content of ``inputs.json``; version 0.1 used another word for images."""
    content = load_json(path)
    if not isinstance(content, dict):
        raise MapetError(
            f"{path} is damaged, so nothing shows that the inputs are those of the run: restore it, or delete it "
            "to resume without this check."
        )
    return {"images" if name == "pictures" else name: value for name, value in content.items()}
