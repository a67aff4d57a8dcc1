"""Find the images of a dataset in a token store that knows them under other ids.

The ids of images are paths below the folder that was given, so those of IMAGENET begin with "train/" and those of
IMAGENET/train do not. Both are the same images if their contents are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice

from mapet.data.contents import FILE, differences
from mapet.data.dataset import ImageDataset, Subset
from mapet.tokenizers.id_index import IdIndex
from mapet.tokenizers.store import TokenStore
from mapet.utils.errors import MapetError
from mapet.utils.io import encode_id, load_json
from mapet.utils.log import log

LOOKUP = 1 << 16  # ids at a time
PROBES = 16  # ids of a store, evenly spaced, from which prefixes are taken


@dataclass(frozen=True)
class Renamed(Subset):
    """A dataset whose ids begin otherwise: ``remove`` is taken off, and ``add`` is put before the rest."""

    remove: str = ""
    add: str = ""

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.source.name

    def image_id(self, i: int) -> str:
        """The id under which it is known elsewhere."""
        image_id = self.source.image_id(i)
        return self.add + image_id.removeprefix(self.remove) if image_id.startswith(self.remove) else image_id


def under_known_ids(source: ImageDataset, store: TokenStore) -> ImageDataset:
    """The dataset with the ids by which the store knows its images; unchanged where it knows one of them.

    Raises:
        MapetError: the store has these images under several prefixes, or other images under the same names.
    """
    if not len(store) or matches(source, store, at_least=1):
        return source
    least = 0.9 * min(len(source), len(store))
    found = [one for one in _candidates(source, store) if matches(one, store, at_least=least) >= least]
    if not found:
        return source
    made, same = made_from(store), [one for one in found if _same(one, store)]
    if len(same) != 1:
        known = ", ".join(f'"{one.add}…"' if one.add else f'without "{one.remove}"' for one in found)
        reason = "several fit" if same else other_contents(found[0], store) or "nothing shows that they are the same"
        raise MapetError(
            f"{store.folder} knows images with the names of {source.name} by other prefixes ({known}), and {reason}: "
            f"give the images as the tokens were made from them, {made}, or make others in another folder."
        )
    prefix = f'before them "{same[0].add}"' if same[0].add else f'not the "{same[0].remove}" before them'
    _log_once(f"{store.folder} knows the images of {source.name} by names that have {prefix}: they are found so")
    return same[0]


def _same(source: "Renamed", store: TokenStore) -> bool:
    """Whether these are the images of the store: by the sample of contents, or without one by the dataset's name."""
    if recorded(store):
        return not other_contents(source, store)
    made, prefix = made_from(store), f"/{(source.add or source.remove)[:-1]}"
    return source.name == made or (source.name == made + prefix if source.add else source.name + prefix == made)


def other_contents(source: ImageDataset, store: TokenStore) -> str:
    """How images differ from those of the store's sample, whose ids they have; "" if they do not, or without one."""
    wrong = differences(source, recorded(store))
    return f"{wrong[0]}{f' (and {len(wrong) - 1} more)' if len(wrong) > 1 else ''}" if wrong else ""


def made_from(store: TokenStore) -> str:
    """The name of the dataset that was tokenized."""
    return str(store.extra.get("data", "an unknown folder"))


def recorded(store: TokenStore) -> dict[str, str]:
    """The hashes of some images by id; none in stores of earlier versions."""
    content = load_json(store.folder / FILE)
    return content if isinstance(content, dict) else {}


def _candidates(source: ImageDataset, store: TokenStore) -> Iterator[Renamed]:
    """The dataset under each prefix by which one of its ids becomes one of the store's."""
    every = max(1, len(store) // PROBES)
    probes = list(islice(store.image_ids(), 0, None, every))
    ours = IdIndex()
    ours.add(encode_id(source.image_id(i)) for i in range(len(source)))
    changes = dict[tuple[str, str], None]()
    for probe in probes:
        heads = [probe[: at + 1] for at, letter in enumerate(probe) if letter == "/"]
        rests = ours.find([probe.removeprefix(head) for head in heads])
        changes |= dict.fromkeys(("", head) for head, row in zip(heads, rests, strict=True) if row >= 0)
    ends = tuple(f"/{probe}" for probe in probes)
    for image_id in (source.image_id(i) for i in range(len(source))):
        if image_id.endswith(ends):
            heads = [image_id.removesuffix(end[1:]) for end in ends if image_id.endswith(end)]
            changes |= dict.fromkeys((head, "") for head in heads)
    for remove, add in changes:
        yield Renamed(source, range(len(source)), remove=remove, add=add)


def matches(source: ImageDataset, store: TokenStore, *, at_least: float) -> int:
    """How many images the store knows; counting ends at ``at_least`` of them."""
    found = 0
    for start in range(0, len(source), LOOKUP):
        ids = [source.image_id(i) for i in range(start, min(start + LOOKUP, len(source)))]
        found += int((~store.missing(ids)).sum())
        if found >= at_least:
            break
    return found


@cache
def _log_once(note: str) -> None:
    """Log a note, once per process: a verb may open a store several times."""
    log.info(f"note      {note}")
