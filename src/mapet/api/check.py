"""Verify the content of any folder that mapet wrote."""

from collections.abc import Callable, Iterator
from pathlib import Path

from mapet.utils.errors import MapetError
from mapet.utils.io import require_folder
from mapet.utils.log import log
from mapet.utils.owned import RUN, is_listed

TOKENIZERS = ("tokenizer", "tokens/tokenizer")  # in a run
ROWS = 1 << 16  # of tokens, read at a time


def check(folder: str | Path) -> dict[str, str]:
    """Verify a run, a comparison, tokens, a tokenizer, a pack, an export or masks completely.

    Args:
        folder: what mapet wrote.

    Returns:
        For each part its fault; an empty text for a valid part. What has no fingerprint, as files of version 0.1, is
        logged.

    Raises:
        MapetError: the folder holds nothing of the kind.
    """
    folder = require_folder(folder, "FOLDER")
    found = {str(path.relative_to(folder)): _fault(verify, path) for path, verify in _parts(folder)}
    if not found:
        raise MapetError(f"{folder} holds no run, tokens, tokenizer, pack, export or masks: give the folder of one.")
    return found


def _parts(folder: Path) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """The parts that are in the folder, and what verifies each."""
    if (folder / "checkpoints").is_dir():
        yield from _parts_of_run(folder)
    if (folder / "compare.yaml").is_file():
        yield folder / "compare.yaml", _plan
    for path in sorted((folder / "scores").glob("*.json")):
        yield path, _scores
    for path in sorted((folder / "runs").glob("*")):  # of a comparison
        yield from _parts(path)
    for inner, marker, content, verify in PARTS:
        if (folder / inner / marker).is_file():
            yield folder / inner / content, verify


def _parts_of_run(folder: Path) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    for path in sorted((folder / "checkpoints").glob("*")):
        if path.suffix == ".safetensors" or path.is_dir():
            yield path, _checkpoint
        if (path / "previous.json").is_file():
            yield path / "previous.json", _checkpoint
    for name, verify in (("recipe.yaml", _recipe), ("metrics.csv", _metrics)):
        if (folder / name).is_file():
            yield folder / name, verify
    yield from ((path, _json) for path in sorted(folder.glob("*.json")) if is_listed(path, RUN))


def _fault(verify: Callable[[Path], None], path: Path) -> str:
    try:
        verify(path)
    except MapetError as error:
        return error.option_text
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}."
    return ""


def _recipe(path: Path) -> None:
    from mapet.api.resume import recipe_of, require_shape
    from mapet.engine.run import Run

    run = Run.open(path.parent)
    recipe_of(run)
    require_shape(run)


def _plan(path: Path) -> None:
    from mapet.api.compare.plan import Plan
    from mapet.config.file import read_run

    read_run(path, Plan)


def _json(path: Path) -> None:
    import json

    from mapet.utils.errors import reason

    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise MapetError(f"{path} is damaged ({reason(error)}): restore it.") from None
    if not isinstance(found, dict | list):
        raise MapetError(f"{path} is damaged (neither an object nor a list): restore it.")


def _metrics(path: Path) -> None:
    from mapet.engine.metrics_file import fault
    from mapet.engine.run import Run

    checkpoint = Run(path.parent).checkpoint
    if checkpoint and (text := fault(path, checkpoint.step, checkpoint.metrics)):
        raise MapetError(f"{path} {text}.")


def _scores(path: Path) -> None:
    from mapet.api.compare.results_folder import recorded

    if recorded(path) is None:
        raise MapetError(f"{path} is damaged: resume the comparison, which measures again.")


def _checkpoint(path: Path) -> None:
    from mapet.engine.checkpoint import Checkpoint
    from mapet.engine.origin import require_same

    found = Checkpoint(path)
    require_same(path, next(one for one in path.parents if one.name == "checkpoints").parent)
    if not found.verify():
        _note(path, "only that its weights are finite was checked")
    for name in found.shapes:
        found.read_finite(name)


def _tokens(path: Path) -> None:
    import numpy as np

    from mapet.tokenizers.store import TokenStore

    store = TokenStore.open(path.parent)  # verifies header and image ids, and refuses ids that are there twice
    for name, expected in store.expected_sizes().items():
        if (size := (path.parent / name).stat().st_size) != expected:
            raise MapetError(
                f"{path.parent / name} has {size:,} bytes, and its {len(store):,} images need {expected:,}: "
                "tokenize again, which completes what was interrupted."
            )
    for start in range(0, len(store), ROWS):
        store.read(np.arange(start, min(start + ROWS, len(store))))
    if not store.verified:
        _note(path, "only its sizes and the vocabulary were checked")


def _tokenizer(path: Path) -> None:
    from mapet.tokenizers.tokenizer import load_tokenizer

    load_tokenizer(path.parent)


def _pack(path: Path) -> None:
    import numpy as np

    from mapet.data.packed import HEADER, IMAGES, open_pack, read_header
    from mapet.data.packing import digest

    pack = open_pack(path.parent)
    if not pack.verified:
        if read_header(path.parent)["keys"] != digest(pack):
            raise MapetError(f"{path.parent} is damaged (ids or labels do not match {HEADER}): pack again.")
        _note(path.parent / IMAGES, "only its size, and the ids and labels were checked")
    bad = [
        pack.image_id(start + int(i))
        for start in range(0, len(pack), ROWS)
        for i in np.flatnonzero(~pack.intact(range(start, min(start + ROWS, len(pack)))))
    ]
    if bad:
        raise MapetError(
            f'{path.parent / IMAGES} is damaged: {len(bad):,} of {len(pack):,} images were changed, the first is "'
            f'{bad[0]}". Restore it, or delete the folder and pack again.'
        )


def _export(path: Path) -> None:
    from mapet.api.segment import load_segmenter
    from mapet.interop.export_folder import verify, verify_programs
    from mapet.interop.segmenter import is_segmenter
    from mapet.interop.timm import load_export

    if not verify(path.parent):
        _note(path, "only that it can be loaded was checked")
    load_segmenter(path.parent) if is_segmenter(path.parent) else load_export(path.parent)
    verify_programs(path.parent)


def _masks(path: Path) -> None:
    from mapet.api.masks import verify

    verify(path.parent)


def _note(path: Path, checked: str) -> None:
    log.info(f"note      {path} was written without a fingerprint, so {checked}")


PARTS: tuple[tuple[str, str, str, Callable[[Path], None]], ...] = (  # folder, file that shows it, content, verifier
    *((inner, "store.json", "tokens.bin", _tokens) for inner in ("", "tokens")),
    *(
        (inner, "tokenizer.json", "tokenizer.safetensors", _tokenizer)
        for inner in ("", "tokenizer", "tokens/tokenizer")
    ),
    ("", "masks.json", "masks.json", _masks),
    *((inner, "pack.json", "pack.json", _pack) for inner in ("", "train", "test", "val")),
    *((inner, "config.json", "model.safetensors", _export) for inner in ("", "export/timm", "export/segmenter")),
)
