"""The pictures that a verb goes through, each process its share, and the ledger of those that cannot be read."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.config.recipe import Machine, Recipe, Tokenizer
from mapet.utils.process_group import ALONE, Crew

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.data.dataset import Source
    from mapet.data.unreadable import BadPictures
    from mapet.utils.view import View

BATCH = 64  # pictures that a teacher or a tokenizer sees at a time
LEDGER = "bad-pictures.txt"


def require_free(folder: Path) -> None:
    """Refuse a folder that neither holds tokens nor was begun for them.

    Raises:
        MapetError: with what it holds.
    """
    from mapet.tokenizers.store import HEADER, KEYS, TOKENS
    from mapet.tokenizers.tokenizer import PART
    from mapet.utils import io as disk

    if not (folder / HEADER).exists() and not (folder / "tokenizer").exists():
        ours = (f"{HEADER}.part", KEYS, TOKENS, f"tokenizer.{PART}")
        disk.require_free(folder, (*ours, *(path.name for path in folder.glob(f"{LEDGER}*"))))


def require_apart(out: str, data: str, t: Tokenizer) -> None:
    """Refuse a folder for results that holds what is read; the tokenizer that an earlier call fitted there may be.

    Raises:
        MapetError: both are named.
    """
    from mapet.utils import owned

    own = t.tokenizer and Path(t.tokenizer).expanduser().resolve() == Path(out, "tokenizer").resolve()
    owned.require_apart(out, data=data, tokenizer=None if own else t.tokenizer)
    owned.require_apart(out, teacher=t.teacher, teacher_weights=t.teacher_weights)


@dataclass(frozen=True)
class Pictures:
    """Some pictures of a source, for one process or several.

    Attributes:
        source: what they are from.
        places: (N,) int64, where they are in it, the same on every process.
        machine: how they are read.
        bad: notes this process's unreadable ones.
        crew: the processes.
        batch_size: pictures handed out at a time.
    """

    source: "Source"
    places: "Tensor"
    machine: Machine
    bad: "BadPictures"
    crew: Crew = ALONE
    batch_size: int = BATCH

    @classmethod
    def of(cls, recipe: Recipe, machine: Machine, folder: Path, crew: Crew, batch_size: int = BATCH) -> "Pictures":
        """The pictures of a recipe; the unreadable ones are listed in ``folder``, which must be there when one comes.

        A list that is there is continued.

        Raises:
            MapetError: no pictures there.
        """
        from mapet.build.batches import chosen
        from mapet.data.dataset import open_source
        from mapet.data.unreadable import BadPictures

        source = open_source(recipe.data)
        places = chosen(source, recipe.limit, recipe.seed)
        ledger = folder / (LEDGER if crew.leads else f"{LEDGER}.{crew.rank}")
        return cls(source, places, machine, BadPictures(len(places), machine.max_bad, ledger), crew, batch_size)

    def decoded(self, view: "View", places: "Tensor") -> "Iterator[tuple[Tensor, Tensor]]":
        """(images (B, 3, H, W) uint8, places (B,)) of all good pictures at ``places``, in batches.

        Raises:
            MapetError: too many bad pictures.
        """
        import torch

        from mapet.data.decode import decode
        from mapet.engine.distributed import pick_device, pick_workers

        workers = pick_workers(self.machine.workers, pick_device(self.machine.accelerator))
        groups = ((0, part.tolist()) for part in torch.split(places, self.batch_size)) if len(places) else ()
        for batch in decode(self.source, [view], groups, workers=workers, bad=self.bad):
            if len(batch.index):
                yield batch.images, batch.index

    def settle(self) -> None:
        """Bring the lists of all processes, and of those of an interrupted call, into one.

        Raises:
            MapetError: too many bad pictures in all.
        """
        from mapet.data.unreadable import listed

        self.crew.wait()
        path = self.bad.path
        if path is not None and self.crew.leads:
            for part in sorted(path.parent.glob(f"{LEDGER}.*")):
                for key, reason in listed(part).items():
                    self.bad.add(key, reason)
                part.unlink()
        self.crew.wait()
