"""Verify the content of any folder that mapet wrote."""

from collections.abc import Callable, Iterator
from pathlib import Path

from mapet.utils.errors import MapetError

TOKENIZERS = ("tokenizer", "tokens/tokenizer")  # in a run
ROWS = 1 << 16  # of tokens, read at a time


def check(folder: str | Path) -> dict[str, str]:
    """Verify a run, tokens, a tokenizer, a pack or an export completely.

    Args:
        folder: what mapet wrote.

    Returns:
        For each part its fault; an empty text for a valid part.

    Raises:
        MapetError: the folder holds nothing of the kind.
    """
    folder = Path(folder).expanduser()
    found = {str(path.relative_to(folder)): _fault(verify, path) for path, verify in _parts(folder)}
    if not found:
        raise MapetError(f"{folder} holds no run, tokens, tokenizer, pack or export: give the folder of one.")
    return found


def _parts(folder: Path) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """The parts that are in the folder, and what verifies each."""
    for path in sorted((folder / "checkpoints").glob("*")):
        if path.suffix == ".safetensors" or path.is_dir():
            yield path, _checkpoint
    for inner, marker, content, verify in PARTS:
        if (folder / inner / marker).is_file():
            yield folder / inner / content, verify


def _fault(verify: Callable[[Path], None], path: Path) -> str:
    try:
        verify(path)
    except MapetError as error:
        return error.option_text
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}."
    return ""


def _checkpoint(path: Path) -> None:
    from mapet.engine.checkpoint import Checkpoint

    found = Checkpoint(path)
    found.verify()
    for name in found.shapes:
        found.read_finite(name)


def _tokens(path: Path) -> None:
    from mapet.tokenizers.store import TokenStore

    store = TokenStore.open(path.parent)  # refuses ids that are there twice
    tokens, size = store.tokens, path.stat().st_size
    if size != 2 * tokens.size:
        raise MapetError(f"{path} has {size:,} bytes, and its {len(store):,} images need {2 * tokens.size:,}.")
    for start in range(0, len(tokens), ROWS):
        if (largest := int(tokens[start : start + ROWS].max())) >= store.vocabulary:
            raise MapetError(
                f"{path} has the token {largest}, and its vocabulary is {store.vocabulary}: tokenize again."
            )


def _tokenizer(path: Path) -> None:
    from mapet.tokenizers.tokenizer import load_tokenizer

    load_tokenizer(path.parent)


def _pack(path: Path) -> None:
    from mapet.data.packed import open_pack

    open_pack(path.parent)


def _export(path: Path) -> None:
    import torch

    from mapet.interop.timm import load_export

    for name, tensor in load_export(path.parent).state_dict().items():
        if not torch.isfinite(tensor).all():
            raise MapetError(f"{path} is damaged: {name} has values that are NaN or infinite. Export again.")


PARTS: tuple[tuple[str, str, str, Callable[[Path], None]], ...] = (  # folder, file that shows it, content, verifier
    *((inner, "store.json", "tokens.bin", _tokens) for inner in ("", "tokens")),
    *(
        (inner, "tokenizer.json", "tokenizer.safetensors", _tokenizer)
        for inner in ("", "tokenizer", "tokens/tokenizer")
    ),
    *((inner, "pack.json", "pack.json", _pack) for inner in ("", "train", "test", "val")),
    *((inner, "config.json", "model.safetensors", _export) for inner in ("", "export/timm")),
)
