"""A token store written by several processes: each appends to its own part, then the parts are merged."""

from collections.abc import Iterator
from itertools import islice
from shutil import rmtree

from mapet.tokenizers.store import HEADER, TokenStore

PARTS, MERGED = "parts", "parts.merged"
ROWS = 1 << 16  # merged at a time


def part_of(store: TokenStore, rank: int) -> TokenStore:
    """The part of process ``rank``, in a sub-folder of the store; continues an interrupted one."""
    return TokenStore.create(
        store.folder / PARTS / str(rank),
        view=store.view,
        grid=store.grid,
        vocabulary=store.vocabulary,
        tokenizer=store.tokenizer,
        extra=store.extra,
    )


def merge(store: TokenStore) -> None:
    """Move the rows of all parts into the store. One process calls it while none appends.

    Rows that the store has already are kept, so an interrupted call may be repeated. A part without a header is empty.

    Raises:
        MapetError: a part that is damaged, has other tokens, or is still written by another process.
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
        rmtree(done, ignore_errors=True)  # files that a network file system still holds open go with the next call


def _append(store: TokenStore, part: TokenStore) -> None:
    for image_ids in _batches(part.image_ids()):
        missing = store.missing(image_ids)
        new = [image_id for image_id, absent in zip(image_ids, missing, strict=True) if absent]
        if new:
            store.append(new, part.gather(new))


def _batches(image_ids: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(image_ids, ROWS)):
        yield batch
