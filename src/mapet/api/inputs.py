"""What a run reads, kept in its folder: a resumed run must read the same."""

import json
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.moved import Moved
from mapet.utils.errors import MapetError
from mapet.utils.io import load_json, replace_file
from mapet.utils.log import log

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.data.dataset import ImageDataset
    from mapet.engine.run import Run

COUNT, IDS = "images", "keys"  # fields of inputs.json
HASHES = "images"  # in contents.json: the hashes of a sample, by image id


def check_inputs_unchanged(
    run: "Run",
    source: "ImageDataset",
    indices: "Tensor",
    same: Mapping[str, Any],
    inputs: str,
    *,
    with_labels: bool = False,
    contents: Mapping[str, str] | None = None,
    moved: Moved | None = None,
) -> None:
    """Write what a new run reads into ``inputs.json`` and ``contents.json``; for a resumed one, refuse other inputs.

    Args:
        run: its folder.
        source: of the images.
        indices: (N,) int64, the images in it that are used.
        same: what else must not change, ready for JSON.
        inputs: what all of it is, in words.
        with_labels: whether the images' labels must not change either.
        contents: hashes of other contents that must not change.
        moved: inputs that lie elsewhere now; if images do, a sample of their contents is compared, too.

    Raises:
        MapetError: the run was begun with others.
    """
    names = (
        f"{i} {source.label(i)} {source.image_id(i)}" if with_labels else f"{i} {source.image_id(i)}"
        for i in indices.tolist()
    )
    digest = blake2b("\n".join(names).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    found = {**same, COUNT: len(indices), IDS: digest}
    path = run.folder / "inputs.json"
    was = _inputs(path) if path.is_file() else found
    known = _contents(run)
    wrong = next(_differences(was, found, source, known, contents or {}), "")
    if not wrong and moved and path.is_file():
        wrong = _moved_apart(known, source, moved)
    if wrong:
        now = f" than {', '.join(moved.now.values())}" if moved else ""
        raise MapetError(f"{run.folder} was begun with other {inputs}{now} ({wrong}): give those, or begin a new run.")
    replace_file(path, json.dumps(found, indent=1) + "\n")
    if not known:
        _note_contents(run, source, indices, contents or {})


def _differences(
    was: Mapping[str, Any],
    found: Mapping[str, Any],
    source: "ImageDataset",
    known: Mapping[str, Any],
    contents: Mapping[str, str],
) -> Iterator[str]:
    """What differs from the inputs of the begin, in words."""
    for name in {**was, **found}:
        if name not in (COUNT, IDS) and was.get(name) != found.get(name):
            yield f"another {name}" if name != "classes" else "other classes"
    if was.get(COUNT) != found[COUNT]:
        yield f"{source.name} has {found[COUNT]} images, not {was.get(COUNT)}"
    if was.get(IDS) != found[IDS]:
        yield _names_apart(source, known)
    for name, text in contents.items():
        if known.get(name, text) != text:
            yield f"other {name}"


def _names_apart(source: "ImageDataset", known: Mapping[str, Any]) -> str:
    """How the names of images differ from those of the begin."""
    ids = {source.image_id(i) for i in range(len(source))}
    lost = next((image_id for image_id in known.get(HASHES, {}) if image_id not in ids), None)
    if lost is None:
        return f"the names or labels of the images of {source.name} differ"
    longer = next((image_id for image_id in ids if image_id.endswith(f"/{lost}")), None)
    shorter = next((image_id for image_id in ids if lost.endswith(f"/{image_id}")), None)
    hint = f', which it has as "{longer or shorter}": give the folder {"in" if longer else "above"} it'
    return f'{source.name} lacks "{lost}"{hint if longer or shorter else ""}'


def _moved_apart(known: Mapping[str, Any], source: "ImageDataset", moved: Moved) -> str:
    """How images that lie elsewhere now differ in contents; if they do not, what was compared is logged."""
    from mapet.data.contents import differences

    hashes = known.get(HASHES, {}) if "data" in moved.now else {}
    if wrong := differences(source, hashes):
        return wrong[0]
    compared = f"names and contents of {len(hashes)} images" if hashes else "what is known of them"
    missing = "" if hashes or "data" not in moved.now else " (their contents were not recorded)"
    log.info(f"moved     {moved}: {compared} agree{missing}")
    return ""


def _note_contents(run: "Run", source: "ImageDataset", indices: "Tensor", contents: Mapping[str, str]) -> None:
    from mapet.data.contents import FILE, sample

    known = {HASHES: sample(source, indices), **contents}
    replace_file(run.folder / FILE, json.dumps(known, indent=1) + "\n")


def _contents(run: "Run") -> dict[str, Any]:
    """What ``contents.json`` says; empty if it is missing or damaged, as it can be made anew."""
    from mapet.data.contents import FILE

    content = load_json(run.folder / FILE)
    return content if isinstance(content, dict) and isinstance(content.get(HASHES), dict) else {}


def _inputs(path: Path) -> dict[str, Any]:
    """The content of ``inputs.json``; version 0.1 used another word for images."""
    content = load_json(path)
    if not isinstance(content, dict):
        raise MapetError(
            f"{path} is damaged, so nothing shows that the inputs are those of the run: restore it, or delete it "
            "to resume without this check."
        )
    return {"images" if name == "pictures" else name: value for name, value in content.items()}
