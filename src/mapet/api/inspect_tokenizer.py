"""``mapet tokenizer inspect``: is a tokenizer healthy, what do its tokens tell, and what do its codes look like?"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.utils.errors import MapetError
from mapet.utils.log import say
from mapet.utils.owned import require_apart, require_outside

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from mapet.data.dataset import ImageDataset
    from mapet.tokenizers.health import Distortion
    from mapet.tokenizers.tokenizer import Tokenizer
    from mapet.utils.view import CenterCropResize
    from mapet.viz.codes import Row


BATCH = 64  # images that the tokenizer sees at a time


PATCH = 32  # pixels of a patch in the figures, at least


EXAMPLES, REACH, INCHES = 10, 2, 1.25  # patches a code, neighbours on each side, size of a patch with neighbours


MAPS = 6  # images beside their tokens


MOST_CODES = 100  # that one figure shows


FOUND = "inspect.json"


CODES, IMAGES = 0x4943, 0x4953  # salts


@dataclass(frozen=True)
class Options:
    """Options of ``mapet tokenizer inspect FOLDER DATA``."""

    out: str | None = None
    """Folder for inspect.json and the figures; None: FOLDER/inspect."""
    max_images: int | None = 10_000
    """Use only so many of the images, chosen at random; None: all (8 bytes of memory for each of their patches)."""
    codes: int = 8
    """Codes drawn at random from those in use, whose patches are shown."""
    show: str = ""
    """More codes to show, as 3,17,99."""
    against: str | None = None
    """Folder of a second tokenizer, for instance of another seed, to compare the tokens with."""
    teacher_weights: str | None = None
    """Local file with the weights of the teacher, for a codebook that was fitted with such a file."""
    against_teacher_weights: str | None = None
    """The same for the second tokenizer."""
    seed: int = 0
    """Of all chance."""
    accelerator: str = "auto"
    """auto, cpu, cuda or mps."""
    workers: int | None = None
    """Processes that decode images; None: up to 8 beside an accelerator, none on a CPU."""
    max_bad_fraction: float = 0.01
    """Largest share of images that may be unreadable."""


@dataclass(frozen=True)
class Seen:
    """What a tokenizer made of N images; rows belong together.

    Attributes:
        places: (N,) int64, of the images in their source.
        tokens: (N, L) int32.
        rank: (N, L) float32, the smaller, the better the patch stands for its code.
        distortion: of codes that are places among vectors, else None.
    """

    indices: "Tensor"
    tokens: "Tensor"
    rank: "Tensor"
    distortion: "Distortion | None"


def inspect(folder: Path, data: str, o: Options) -> dict[str, Any]:
    """Everything about the tokenizer in ``folder`` on the images ``data``, as written to ``inspect.json``.

    Raises:
        MapetError: no tokenizer or images there, codes that do not exist, or a second tokenizer of other patches.
    """
    import torch

    from mapet.api import tokenizer_report as findings
    from mapet.build.batches import chosen
    from mapet.data.dataset import open_dataset
    from mapet.tokenizers.health import Health
    from mapet.utils.io import replace_file, require_free

    if o.max_images is not None and o.max_images < 1:
        raise MapetError("--max-images does not fit: it must be at least 1.")
    tokenizer = _loaded(folder, o.teacher_weights, o)
    out = Path(o.out) if o.out else folder / "inspect"
    require_apart(out, FOLDER=folder, data=data)
    if not _inspected(out):
        require_free(out)
    require_outside(out, data)
    asked = _asked(o, tokenizer.vocabulary)
    other = _loaded(Path(o.against), o.against_teacher_weights, o) if o.against else None
    if other is not None:
        _require_same_patches(tokenizer, other)
    source = open_dataset(data)
    seen = look(tokenizer, source, chosen(source, o.max_images, o.seed), o)
    health = Health.of(seen.tokens, tokenizer.vocabulary)
    found = findings.subject(tokenizer, folder, source.name, health)
    found |= {"seed": o.seed} | findings.use(health) | findings.distance(seen.distortion)
    if source.classes:
        labels = torch.tensor([source.label(place) for place in seen.indices.tolist()])
        found |= findings.labels(seen.tokens, labels, tokenizer.vocabulary, o.seed)
    if other is not None:
        found |= findings.other(seen.tokens, look(other, source, seen.indices, o).tokens, Path(str(o.against)), o.seed)
    found |= findings.verdict(health)
    out.mkdir(parents=True, exist_ok=True)
    names = draw(tokenizer, source, seen, asked, out, o)
    replace_file(out / FOUND, json.dumps(found, indent=1) + "\n")
    findings.line("saved", f"inspect.json, {', '.join(names)} in {out}")
    return found


def _inspected(out: Path) -> bool:
    """Whether an earlier call wrote into the folder, whose figures are replaced then."""
    try:
        return {"tokenizer", "data", "health", "verdict"} <= set(json.loads((out / FOUND).read_bytes()))
    except (OSError, ValueError, TypeError):
        return False


def look(tokenizer: "Tokenizer", source: "ImageDataset", indices: "Tensor", o: Options) -> Seen:
    """Tokens of all good images at ``indices``, and how well each patch stands for its code.

    Raises:
        MapetError: no good images, too many bad ones, or features that are not finite.
    """
    import torch

    from mapet.tokenizers.health import Distortion

    distortion = None
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for images, index in _batches(tokenizer, source, indices, o):
        tokens, rank, vectors = tokenizer.measure(images)
        if vectors is not None:
            distortion = distortion or Distortion()
            distortion.add(rank, vectors)
        found.append((index, tokens.int().cpu(), rank.float().cpu()))
    if not found:
        raise MapetError(f"{source.name} gave no image to look at: give others, or a --max-images above 0.")
    index, tokens, rank = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Seen(index, tokens, rank, distortion)


def _batches(
    tokenizer: "Tokenizer", source: "ImageDataset", indices: "Tensor", o: Options
) -> "Iterator[tuple[Tensor, Tensor]]":
    """Images (B, 3, H, W) float32 in [0, 1] on the device, and their places (B,)."""
    from mapet.data.augment import to_float
    from mapet.data.loader import in_order
    from mapet.data.unreadable import UnreadableImages
    from mapet.engine.distributed import pick_device, pick_workers
    from mapet.engine.progress import Meter

    device, done, bad = pick_device(o.accelerator), 0, UnreadableImages(len(indices), o.max_bad_fraction)
    workers = pick_workers(o.workers, device)
    with Meter("tokens", len(indices)) as meter:
        for batch in in_order(source, tokenizer.view, BATCH, workers=workers, bad=bad, indices=indices.tolist()):
            yield to_float(batch.images, device), batch.index
            done += len(batch.index)
            if meter.due(done):
                meter.update(done)
    if note := bad.note():
        say(f"note      {note}")


def draw(
    tokenizer: "Tokenizer", source: "ImageDataset", seen: Seen, asked: list[int], out: Path, o: Options
) -> list[str]:
    """Write the figures into ``out``, and return their names: codes, the first ``asked``; tokens; usage."""
    import torch

    from mapet.tokenizers.codebook import usage
    from mapet.utils.rng import random_bits
    from mapet.viz.codes import patch_rows, token_map, usage_histogram

    counts = usage(seen.tokens, tokenizer.vocabulary)
    left = counts.index_fill(0, torch.tensor(asked, dtype=torch.int64), 0).nonzero().flatten()
    codes = asked + left[random_bits(o.seed, CODES, left).argsort()[: o.codes]].sort().values.tolist()
    view = _enlarged(tokenizer)
    names = []
    if codes:
        rows = (_row(source, view, seen, code, int(counts[code])) for code in codes)
        shown = patch_rows(
            rows, tokenizer.grid, view.size, out / "codes.png", examples=EXAMPLES, reach=REACH, inches=INCHES
        )
        names.append(shown.name)
    few = random_bits(o.seed, IMAGES, seen.indices).argsort()[:MAPS]
    images = _images(source, view, seen.indices[few])
    names.append(token_map(images, seen.tokens[few], tokenizer.grid, out / "tokens.png", count=MAPS).name)
    return [*names, usage_histogram(counts, out / "usage.png").name]


def _row(source: "ImageDataset", view: "CenterCropResize", seen: Seen, code: int, patches: int) -> "Row":
    """The patches that stand best for a code, one an image."""
    from mapet.tokenizers.health import nearest_patches
    from mapet.viz.codes import Row, code_label

    rows, patch = nearest_patches(seen.tokens, seen.rank, code, EXAMPLES)
    return Row(code_label(code, patches), _images(source, view, seen.indices[rows]), patch.tolist())


def _images(source: "ImageDataset", view: "CenterCropResize", indices: "Tensor") -> "NDArray[np.uint8]":
    """(n, 3, H, W) of the images at ``indices``, read again."""
    import numpy as np

    pixels = [np.asarray(view(source.read(place))).transpose(2, 0, 1) for place in indices.tolist()]
    return np.stack(pixels) if pixels else np.empty((0, 3, *view.size), np.uint8)


def _enlarged(tokenizer: "Tokenizer") -> "CenterCropResize":
    """The tokenizer's crop with patches of at least ``PATCH`` pixels, so that large images are seen as such."""
    height, width = tokenizer.view.size
    factor = max(1, -(-PATCH * tokenizer.grid[0] // height))
    return tokenizer.view.at((factor * height, factor * width))


def _loaded(folder: Path, weights: str | None, o: Options) -> "Tokenizer":
    from mapet.engine.distributed import pick_device
    from mapet.tokenizers.tokenizer import load_tokenizer

    return load_tokenizer(folder, teacher_weights=weights).to(pick_device(o.accelerator))


def _asked(o: Options, vocabulary: int) -> list[int]:
    """The codes of ``--show``, each once."""
    words = o.show.replace(",", " ").split()
    asked = list(dict.fromkeys(int(word) for word in words if word.isdecimal() and int(word) < vocabulary))
    if not all(word.isdecimal() and int(word) < vocabulary for word in words):
        raise MapetError(f'--show "{o.show}" is no list of codes: give numbers from 0 to {vocabulary - 1}, as 3,17,99.')
    if not 0 <= o.codes <= MOST_CODES - len(asked):
        raise MapetError(f"--codes {o.codes} beside {len(asked)} of --show: a figure shows 0 to {MOST_CODES} codes.")
    return asked


def _require_same_patches(one: "Tokenizer", other: "Tokenizer") -> None:
    if one.grid != other.grid:
        raise MapetError(
            f"The two tokenizers have grids of {one.grid} and {other.grid}: only tokens of the same patches compare."
        )
    one.view.at(other.view.size)
