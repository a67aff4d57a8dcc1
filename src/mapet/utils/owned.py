"""What mapet wrote itself, and so may remove: names by kind of folder, and marks that no other program makes.

A folder is overwritten only when it bears a mark and holds nothing but names of its kind. Its content is first renamed
into a hidden sub-folder, ``ASIDE``; that is complete once it has this name, under ``ASIDE``.part it is on its way out
or back, and under ``ASIDE``.gone it is being deleted. Symbolic links are never ours.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mapet.utils.errors import MapetError
from mapet.utils.io import replace_file
from mapet.utils.lock import LOCK
from mapet.utils.versions import versions

Tree = Mapping[str, "Tree | None"]  # of a folder: a pattern of names, and None for files or what such folders hold
MARK, ASIDE = ".mapet", ".mapet-replaced"
A_RUN, A_TOKENIZER = "mapet run", "mapet tokenizer"  # formats of marks
AN_EXPORT = {"mapet": "export 1"}  # in the metadata of the weights, and in the settings
WORDS = (None, "", "cifar10", "random")  # inputs that are no path
PROVENANCE = {"command", "time", "python", "system", "processor", "gpu", "versions"}
ARGUMENTS = {"img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "init_values",
             "global_pool"}  # fmt: skip


def _files(*names: str) -> dict[str, Tree | None]:
    """Files that are replaced as a whole."""
    return {re.escape(name) + r"(\.part)?": None for name in names}


LISTS: Tree = {r"(unreadable-images|bad-pictures)\.txt(\.\w+)?": None}  # the second name is that of version 0.1
EXPORT: Tree = {r"config\.json|model\.safetensors|README\.md": None}
PAIR: Tree = _files("tokenizer.json", "tokenizer.safetensors")
TOKENIZER: Tree = {
    **_files(MARK),
    **PAIR,
    **LISTS,
    r"tokenizer\.(part|next)": PAIR,
    "inspect": _files("inspect.json", "codes.png", "tokens.png", "usage.png"),
    rf"{re.escape(ASIDE)}(\.part|\.gone)?": LISTS,
}
_STORE = _files("store.json", "tokens.bin", "keys.txt", LOCK)
_TOKENS: Tree = {
    **_STORE,
    **LISTS,
    **_files("complete"),
    r"parts(\.merged)?": {r"\d+": _STORE},
    "tokenizer": TOKENIZER,
    r"tokenizer\.tokenizer\.part": PAIR,
}
_CHECKPOINTS: Tree = {
    r"(last|step-\d+)\.(safetensors|partial)": None,
    r"last|step-\d+": {r"\d+-\d+-of-\d+\.(safetensors|partial)": None, **_files("index.json")},
}
RUN: Tree = {
    **_files(MARK, "recipe.yaml", "provenance.json", "seconds.json", "inputs.json", "classifier.json", "scores.json"),
    **_files("metrics.csv", "log.txt"),
    **LISTS,
    **PAIR,  # of a VQ-KD
    **{name: TOKENIZER[name] for name in (r"tokenizer\.(part|next)", "inspect")},
    "checkpoints": _CHECKPOINTS,
    "tensorboard": {r"events\.out\.tfevents\..+": None},
    "tokens": _TOKENS,
    "tokenizer": TOKENIZER,
    r"tokenizer\.tokenizer\.part": PAIR,
    "export": {r"timm|\.timm\.old": EXPORT, r"\.timm-\w+": {"timm": EXPORT}},
}
QUICKSTART: Tree = {**RUN, **_files("quickstart.json", "loss.png", "codes.png", "tokens.png")}


def is_run(folder: Path) -> bool:
    """Whether a run was begun here: by its mark, or for those without by a provenance that only mapet writes."""
    entries = _json(folder / "provenance.json")
    told = entries[0] if isinstance(entries, list) and entries else None
    earlier = isinstance(told, dict) and told.keys() == PROVENANCE and "mapet" in told["versions"]
    return is_marked(folder, A_RUN) or (earlier and (folder / "recipe.yaml").is_file())


def is_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer of ours is here: by its kind and its content's hash, or where it is not whole by a mark."""
    paths = (folder / "tokenizer.next" / "tokenizer.json", folder / "tokenizer.json")
    there = [path for path in paths if path.is_file()]
    fields = [_object(path) for path in there]
    ours = all(
        re.fullmatch("[0-9a-f]{32}", str(one.get("hash"))) and {"kind", "provenance"} <= one.keys() for one in fields
    )
    return ours if there else is_marked(folder, A_TOKENIZER)


def is_export(folder: Path) -> bool:
    """Whether ``mapet export`` wrote the weights here: by their metadata, or for those without by card and settings."""
    config, weights = _object(folder / "config.json"), _metadata(folder / "model.safetensors")
    if "mapet" in config or "mapet" in weights:
        return all(one.get("mapet") == AN_EXPORT["mapet"] for one in (config, weights))
    with suppress(OSError, ValueError):
        card, shape = (folder / "README.md").read_text(encoding="utf-8"), config.get("model_args")
        signed = "\n- mapet\n---\n" in card and "(mapet).\n" in card
        return signed and weights == {"format": "pt"} and isinstance(shape, dict) and shape.keys() == ARGUMENTS
    return False


@dataclass(frozen=True)
class Kind:
    """A kind of folder that can be overwritten."""

    name: str
    tree: Tree
    known: Callable[[Path], bool]


RUNS, TOKENIZERS = Kind("run", RUN, is_run), Kind("tokenizer", TOKENIZER, is_tokenizer)


def mark(folder: Path, form: str) -> None:
    """Make the folder if need be, and say that mapet writes here."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / MARK, json.dumps({"format": form, "version": versions(["mapet"])["mapet"]}) + "\n")


def is_marked(folder: Path, form: str) -> bool:
    """Whether ``mark`` said so."""
    return _object(folder / MARK).get("format") == form


def require_ours(folder: Path, kind: Kind) -> None:
    """Refuse to overwrite what mapet did not write.

    Raises:
        MapetError: with the first foreign entry, or where the folder cannot be recognised.
    """
    other = stranger(folder, {**tree_of(folder, kind), **_files(LOCK)})
    inner = folder / "export" / "timm"
    if other is None and inner.is_dir() and any(inner.iterdir()) and not is_export(inner):
        other = inner
    if other is not None:
        link = " (a symbolic link)" if other.is_symlink() else ""
        raise MapetError(
            f"{folder} holds {other.relative_to(folder)}{link}, which mapet did not write, so nothing there is "
            "replaced: move it away, or give another --out."
        )
    if not kind.known(folder):
        raise MapetError(
            f"{folder} bears no mark that mapet wrote a {kind.name} there, so nothing there is replaced: "
            "give another --out, or remove the folder yourself."
        )


def tree_of(folder: Path, kind: Kind) -> Tree:
    """The names of the kind; the figures of a quickstart are ours only beside its scores."""
    return QUICKSTART if kind is RUNS and (folder / "quickstart.json").is_file() else kind.tree


def stranger(folder: Path, tree: Tree) -> Path | None:
    """The first entry that the tree does not list, at any depth."""
    for path in sorted(folder.iterdir()):
        inner = _listed(path, tree)
        if inner is None:
            return path
        if inner and (found := stranger(path, inner)):
            return found
    return None


def discard(folder: Path, tree: Tree) -> None:
    """Delete what the tree lists, and the folder when nothing else is in it."""
    if folder.is_dir() and not folder.is_symlink():
        _clear(folder, tree)
        with suppress(OSError):  # something else is in it
            folder.rmdir()


def put_aside(folder: Path, tree: Tree) -> None:
    """Rename all that the tree lists into ``ASIDE``; a kill in between leaves what ``put_back`` mends."""
    part = folder / f"{ASIDE}.part"
    part.mkdir()
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(ASIDE) and _listed(path, tree) is not None:
            path.rename(part / path.name)
    part.rename(folder / ASIDE)


def put_back(folder: Path, tree: Tree) -> bool:
    """Give what was put aside its place again, where all else that the tree lists is deleted; whether there was any.

    Raises:
        MapetError: something else is in the way.
    """
    aside, part = folder / ASIDE, folder / f"{ASIDE}.part"
    discard(folder / f"{ASIDE}.gone", QUICKSTART)
    if aside.is_dir():
        _clear(folder, tree)
        aside.rename(part)
    if not part.is_dir():
        return False
    for path in sorted(part.iterdir()):
        if os.path.lexists(place := folder / path.name):
            raise MapetError(f"{place} is in the way of the earlier one, {path}: move it away, then try again.")
        path.rename(place)
    part.rmdir()
    return True


def is_aside(folder: Path) -> bool:
    """Whether something was put aside and neither put back nor dropped."""
    return (folder / ASIDE).is_dir() or (folder / f"{ASIDE}.part").is_dir()


def drop(folder: Path) -> None:
    """Delete what was put aside, if anything was."""
    if (folder / ASIDE).is_dir():
        (folder / ASIDE).rename(folder / f"{ASIDE}.gone")
        discard(folder / f"{ASIDE}.gone", QUICKSTART)


def require_apart(out: str | Path, **inputs: str | Path | None) -> None:
    """Refuse to write into a folder that holds what is read, or is that itself.

    Args:
        out: to be written.
        inputs: by the options that name them, or in capitals by their names; words that are no path may be among them.

    Raises:
        MapetError: both are named.
    """
    folder = Path(out).resolve()
    for name, given in inputs.items():
        if given in WORDS or not os.path.lexists(path := Path(str(given)).expanduser()):
            continue
        if folder == path.resolve() or any(
            place.is_relative_to(folder) for place in (path.resolve(), path.parent.resolve() / path.name)
        ):
            where = "is" if folder == path.resolve() else "lies in"
            option = name if name.isupper() else f"--{name.replace('_', '-')}"
            raise MapetError(f"{option} {given} {where} --out {out}, which is to be written: give another --out.")


def require_outside(out: Path, data: str | None) -> None:
    """Refuse an output folder inside the folder of images ``data``, where its figures would count as images.

    Raises:
        MapetError: with both folders.
    """
    if data and Path(data).is_dir() and out.resolve().is_relative_to(Path(data).resolve()):
        raise MapetError(f"{out} is inside {data}, where its figures would count as images: give another --out.")


def _listed(path: Path, tree: Tree) -> Tree | None:
    """What the tree lists in the folder ``path``, nothing for a file; None where it does not list it."""
    if path.is_symlink() or not (path.is_dir() or path.is_file()):
        return None
    for pattern, inner in tree.items():
        if (inner is not None) == path.is_dir() and re.fullmatch(pattern, path.name):
            return inner or {}
    return None


def _clear(folder: Path, tree: Tree) -> None:
    for path in sorted(folder.iterdir()):
        inner = _listed(path, tree)
        if inner:
            discard(path, inner)
        elif inner is not None:
            path.unlink()


def _json(path: Path) -> Any:
    """What a JSON file holds; None where it cannot be read."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_bytes())
    return None


def _object(path: Path) -> dict[str, Any]:
    found = _json(path)
    return found if isinstance(found, dict) else {}


def _metadata(path: Path) -> dict[str, Any]:
    """That of a safetensors file: its length and its header come first."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 1 << 26)))
        return header.get("__metadata__") or {} if isinstance(header, dict) else {}
    return {}
