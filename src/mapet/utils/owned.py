"""Which files mapet wrote and may delete: file names per kind of folder, and marks that no other program writes.

A folder is overwritten only if it has a mark and holds nothing but names of its kind. Its content is first moved into a
hidden sub-folder: ``ASIDE`` is complete, ``ASIDE``.part is being moved out or back, and ``ASIDE``.gone is being
deleted. Symbolic links are never ours.
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
from mapet.utils.io import is_drawn, load_json, replace_file
from mapet.utils.lock import LOCK
from mapet.utils.versions import versions

Tree = Mapping[str, "Tree | None"]  # pattern of names → None for files, or the tree of sub-folders of that name
MARK, ASIDE = ".mapet", ".mapet-replaced"
A_RUN, A_TOKENIZER = "mapet run", "mapet tokenizer"  # formats of marks
AN_EXPORT = {"mapet": "export 1"}  # in the metadata of the weights, and in config.json
WORDS = (None, "", "cifar10", "random")  # inputs that are not paths
PROVENANCE = {"command", "time", "python", "system", "processor", "gpu", "versions"}
ARGUMENTS = {"img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "init_values",
             "global_pool"}  # fmt: skip


def _files(*names: str) -> dict[str, Tree | None]:
    """Files that are written atomically, as ``NAME.part`` first."""
    return {re.escape(name) + r"(\.part)?": None for name in names}


LISTS: dict[str, Tree | None] = {r"(unreadable-images|bad-pictures)\.txt(\.\w+)?": None}  # also 0.1's
EXPORT: Tree = {r"config\.json|model\.safetensors|README\.md": None, "onnx|torch": {r"model\.(onnx|pt2)": None}}
_NEW: Tree = {"timm|segmenter": EXPORT, re.escape(LOCK): None}
PAIR = _files("tokenizer.json", "tokenizer.safetensors")
TOKENIZER: Tree = {
    **(_files(MARK) | PAIR | LISTS),
    r"tokenizer\.(part|next)": PAIR,
    "inspect": {**_files("inspect.json", "report.html"), r"(codes|tokens|usage)\.(png|svg)(\.part)?": None},
    rf"{re.escape(ASIDE)}(\.part|\.gone)?": LISTS,
}
_STORE = _files("store.json", "tokens.bin", "sums.bin", "keys.txt", "contents.json", LOCK)
_TOKENS: Tree = {
    **_STORE,
    **LISTS,
    **_files("complete"),
    r"parts(\.merged)?": {r"\d+": _STORE},
    "tokenizer": TOKENIZER,
    r"tokenizer\.tokenizer\.part": PAIR,
}
_CHECKPOINTS: Tree = {
    r"(last|previous|best|step-\d+)\.(safetensors|partial)|\.tmp\w{6}": None,
    r"last|step-\d+": {
        r"\d+-\d+-of-\d+\.(safetensors|partial)|\.tmp\w{6}": None,
        **_files("index.json", "previous.json"),
    },
}
RUN: Tree = {
    **_files(MARK, "recipe.yaml", "provenance.json", "seconds.json", "inputs.json", "classifier.json", "scores.json"),
    **_files("segmenter.json", "metrics.csv", "log.txt", "runtime.json", "init.json", "probes.csv", "contents.json"),
    **(_files("epochs.json", "report.html") | LISTS),
    **PAIR,  # a VQ-KD run is a tokenizer, too
    **{name: TOKENIZER[name] for name in (r"tokenizer\.(part|next)", "inspect")},
    "checkpoints": _CHECKPOINTS,
    "panels|tensorboard": {r"step-\d{8,}\.png|events\.out\.tfevents\..+": None},
    "tokens": _TOKENS,
    "tokenizer": TOKENIZER,
    r"tokenizer\.tokenizer\.part": PAIR,
    "export": {r"(timm|segmenter)|\.(timm|segmenter)\.old": EXPORT, r"\.(timm|segmenter)(-\w+|\.part)": _NEW},
}
QUICKSTART: Tree = {**RUN, **_files("quickstart.json"), r"(loss|codes|tokens)\.(png|svg)(\.part)?": None}


def is_run(folder: Path) -> bool:
    """Whether the folder is a run: by its mark, or in version 0.1 by a provenance that only mapet writes."""
    entries = load_json(folder / "provenance.json")
    first = entries[0] if isinstance(entries, list) and entries else None
    unmarked = isinstance(first, dict) and first.keys() == PROVENANCE and "mapet" in first["versions"]
    return is_marked(folder, A_RUN) or (unmarked and (folder / "recipe.yaml").is_file())


def is_tokenizer(folder: Path) -> bool:
    """Whether mapet wrote a tokenizer here: by the fields of tokenizer.json, or without that file by the mark."""
    paths = (folder / "tokenizer.next" / "tokenizer.json", folder / "tokenizer.json")
    files = [_object(path) for path in paths if path.is_file()]
    if not files:
        return is_marked(folder, A_TOKENIZER)
    return all(
        re.fullmatch("[0-9a-f]{32}", str(fields.get("hash"))) and {"kind", "provenance"} <= fields.keys()
        for fields in files
    )


def is_export(folder: Path) -> bool:
    """Whether ``mapet export`` wrote the folder: by the weights' metadata, or in version 0.1 by card and config."""
    config, weights = _object(folder / "config.json"), _metadata(folder / "model.safetensors")
    if "mapet" in config or "mapet" in weights:
        return all(fields.get("mapet") == AN_EXPORT["mapet"] for fields in (config, weights))
    with suppress(OSError, ValueError):
        card, shape = (folder / "README.md").read_text(encoding="utf-8"), config.get("model_args")
        ours = "\n- mapet\n---\n" in card and "(mapet).\n" in card
        return ours and weights == {"format": "pt"} and isinstance(shape, dict) and shape.keys() == ARGUMENTS
    return False


def is_unfinished_export(folder: Path) -> bool:
    """Whether the folder holds an export, or what is left of one that was being deleted: its weights go last."""
    if not folder.is_dir() or find_foreign(folder, EXPORT):
        return False
    marked = _metadata(folder / "model.safetensors").get("mapet") == AN_EXPORT["mapet"]
    return marked or is_export(folder) or not any(folder.iterdir())


@dataclass(frozen=True)
class Kind:
    """A kind of folder that can be overwritten."""

    name: str
    tree: Tree
    known: Callable[[Path], bool]


RUNS, TOKENIZERS = Kind("run", RUN, is_run), Kind("tokenizer", TOKENIZER, is_tokenizer)


def mark(folder: Path, form: str) -> None:
    """Mark a folder as written by mapet; creates it if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / MARK, json.dumps({"format": form, "version": versions(["mapet"])["mapet"]}) + "\n")


def is_marked(folder: Path, form: str) -> bool:
    """Whether ``mark`` marked the folder with this format."""
    return _object(folder / MARK).get("format") == form


def require_ours(folder: Path, kind: Kind) -> None:
    """Refuse to overwrite what mapet did not write.

    Raises:
        MapetError: names the first foreign entry, or the folder if it has no mark of mapet.
    """
    other = find_foreign(folder, {**tree_of(folder, kind), **_files(LOCK)})
    inner = folder / "export" / "timm"
    if other is None and inner.is_dir() and any(inner.iterdir()) and not is_export(inner):
        other = inner
    if other is not None:
        link = " (a symbolic link)" if other.is_symlink() else ""
        raise MapetError(
            f"{folder} holds {other.relative_to(folder)}{link}, which mapet did not write, so nothing is replaced: "
            "move it away, or give another --out."
        )
    if not kind.known(folder):
        raise MapetError(
            f"{folder} has no mark that mapet wrote a {kind.name} there, so nothing is replaced: "
            "give another --out, or remove the folder yourself."
        )


def tree_of(folder: Path, kind: Kind) -> Tree:
    """The names of a kind of folder; a quickstart's figures are ours only together with quickstart.json."""
    return QUICKSTART if kind is RUNS and (folder / "quickstart.json").is_file() else kind.tree


def find_foreign(folder: Path, tree: Tree) -> Path | None:
    """The first entry, at any depth, that the tree does not list."""
    for path in sorted(folder.iterdir()):
        inner = _listed(path, tree)
        if inner is None:
            return path
        if inner and (found := find_foreign(path, inner)):
            return found
    return None


def discard(folder: Path, tree: Tree) -> None:
    """Delete what the tree lists, and the folder if it is empty then."""
    if folder.is_dir() and not folder.is_symlink():
        _clear(folder, tree)
        with suppress(OSError):  # not empty
            folder.rmdir()


def put_aside(folder: Path, tree: Tree) -> None:
    """Move everything that the tree lists into ``ASIDE``; ``put_back`` reverts it, also after a kill half way."""
    part = folder / f"{ASIDE}.part"
    part.mkdir()
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(ASIDE) and _listed(path, tree) is not None:
            path.rename(part / path.name)
    part.rename(folder / ASIDE)


def put_back(folder: Path, tree: Tree) -> bool:
    """Move back what was put aside, after deleting what else the tree lists. Returns whether there was any.

    Raises:
        MapetError: a file that the tree does not list is in the way.
    """
    aside, part = folder / ASIDE, folder / f"{ASIDE}.part"
    discard(folder / f"{ASIDE}.gone", QUICKSTART)
    if aside.is_dir():
        _clear(folder, tree)
        aside.rename(part)
    if not part.is_dir():
        return False
    for path in sorted(part.iterdir()):
        if os.path.lexists(target := folder / path.name):
            raise MapetError(f"{target} is in the way of the earlier {path}: move it away, then try again.")
        path.rename(target)
    part.rmdir()
    return True


def is_aside(folder: Path) -> bool:
    """Whether something is put aside."""
    return (folder / ASIDE).is_dir() or (folder / f"{ASIDE}.part").is_dir()


def drop(folder: Path) -> None:
    """Delete what was put aside."""
    if (folder / ASIDE).is_dir():
        (folder / ASIDE).rename(folder / f"{ASIDE}.gone")
        discard(folder / f"{ASIDE}.gone", QUICKSTART)


def require_apart(out: str | Path, **inputs: str | Path | None) -> None:
    """Refuse an output folder that is, or contains, an input, or that lies among the images of one.

    Args:
        out: output folder.
        inputs: inputs by option name, positionals in capitals; values that are not paths are skipped.

    Raises:
        MapetError: names both.
    """
    folder = Path(out).resolve()
    for name, given in inputs.items():
        if given in WORDS or not os.path.lexists(path := Path(str(given)).expanduser()):
            continue
        resolved, link = path.resolve(), path.parent.resolve() / path.name
        if resolved.is_relative_to(folder) or link.is_relative_to(folder):
            where = "is" if folder == resolved else "lies in"
            option = name if name.isupper() else f"--{name.replace('_', '-')}"
            raise MapetError(f"{option} {given} {where} --out {out}, which is to be written: give another --out.")
        if name in ("data", "eval_data", "images", "shapes", "photographs"):
            require_outside(Path(out), str(path), name)


def require_outside(out: Path, images: str | Path | None, name: str = "", option: str = "--out") -> None:
    """Refuse, by a MapetError, an output inside the folder of ``images``, which is given as the option ``name``."""
    folder = Path(images or "").expanduser()
    if images and folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        given = f"--{name.replace('_', '-')} {images}" if name else images
        raise MapetError(f"{option} {out} is inside {given}, where it would be among images: give another {option}.")


def is_listed(path: Path, tree: Tree) -> bool:
    """Whether the tree lists the file or folder."""
    return _listed(path, tree) is not None


def _listed(path: Path, tree: Tree) -> Tree | None:
    """The tree of a listed folder, an empty one for a listed file; None for an entry that is not listed."""
    if path.is_symlink() or not (path.is_dir() or path.is_file()) or (path.suffix == ".svg" and not is_drawn(path)):
        return None
    for pattern, inner in tree.items():
        if (inner is not None) == path.is_dir() and re.fullmatch(pattern, path.name):
            return inner or {}
    return None


def _clear(folder: Path, tree: Tree) -> None:
    for path in sorted(folder.iterdir(), key=lambda path: (not path.is_dir(), path)):  # an export's weights go last
        inner = _listed(path, tree)
        if inner:
            discard(path, inner)
        elif inner is not None:
            path.unlink()


def _object(path: Path) -> dict[str, Any]:
    found = load_json(path)
    return found if isinstance(found, dict) else {}


def _metadata(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file, which starts with the length of its header and the header."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 1 << 26)))
        return header.get("__metadata__") or {} if isinstance(header, dict) else {}
    return {}
