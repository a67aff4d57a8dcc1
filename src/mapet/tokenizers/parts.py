"""One store made by several processes: each appends to a part of its own, and the parts become rows of the store."""

from collections.abc import Iterator
from itertools import islice
from shutil import rmtree

from mapet.tokenizers.store import HEADER, TokenStore

PARTS, MERGED = "parts", "parts.merged"
ROWS = 1 << 16  # moved at a time


def part_of(store: TokenStore, rank: int) -> TokenStore:
    """The part of one process, beside the store's own files; an interrupted one is continued."""
    return TokenStore.create(
        store.folder / PARTS / str(rank),
        view=store.view,
        grid=store.grid,
        vocabulary=store.vocabulary,
        tokenizer=store.tokenizer,
        extra=store.extra,
    )


def merge(store: TokenStore) -> None:
    """Move the rows of all parts into the store, by one process while none appends.

    A row that is there already stays as it is, so that this may be interrupted and repeated at any moment. A part that
    got no header has no rows.

    Raises:
        MapetError: a part that is damaged, of other tokens, or still written by another process.
    """
    folder, done = store.folder / PARTS, store.folder / MERGED
    rmtree(done, ignore_errors=True)
    ranks = sorted(path.parent.name for path in folder.glob(f"*/{HEADER}"))
    parts = [part_of(store, int(rank)) for rank in ranks if rank.isdecimal()]
    try:
        for part in parts:
            part.reserve()
        for part in parts:
            _append(store, part)
    finally:
        for part in parts:
            part.release()
    if folder.exists():
        folder.rename(done)
        rmtree(done, ignore_errors=True)  # what a network file system still holds open goes with the next call


def _append(store: TokenStore, part: TokenStore) -> None:
    for keys in _batches(part.keys()):
        new = [key for key, missing in zip(keys, store.missing(keys), strict=True) if missing]
        if new:
            store.append(new, part.gather(new))


def _batches(keys: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(keys, ROWS)):
        yield batch
