"""Inspect a tokenizer: the health of its vocabulary, the information in its tokens, and images of its codes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api import tokenizer_report as report
from mapet.api.images import ImagePass, absolute, absolute_paths
from mapet.config.flat import updated
from mapet.config.verbs import InspectTokenizerSettings
from mapet.utils.errors import MapetError
from mapet.utils.log import log
from mapet.utils.owned import require_apart

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from mapet.data.dataset import ImageDataset
    from mapet.tokenizers.health import Distortion
    from mapet.tokenizers.tokenizer import Tokenizer
    from mapet.utils.view import CenterCropResize
    from mapet.viz.codes import Row

FINDINGS = "inspect.json"
PATCH = 32  # pixels of a patch in the figures, at least
EXAMPLES, REACH, INCHES = 10, 2, 1.25  # patches per code, neighbours on each side, size of a patch with neighbours
MAPS = 6  # images shown with their tokens
MOST_CODES = 100  # in one figure
CODES, IMAGES = 0x4943, 0x4953  # salts


@dataclass(frozen=True)
class Tokenized:
    """The tokens of N images; rows belong together.

    Attributes:
        indices: (N,) int64, of the images in their dataset.
        tokens: (N, L) int32.
        distance: (N, L) float32, from each patch to its code: smaller is nearer.
        distortion: for codes that are vectors, else None.
    """

    indices: "Tensor"
    tokens: "Tensor"
    distance: "Tensor"
    distortion: "Distortion | None"


def inspect_tokenizer(
    folder: str | Path,
    data: str | Path,
    out: str | Path | None = None,
    *,
    settings: InspectTokenizerSettings | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Inspect a tokenizer on images; write ``inspect.json`` and the figures, and return the findings.

    Args:
        folder: the tokenizer's.
        data: a folder of images, or ``"cifar10"``.
        out: folder for inspect.json and the figures; None: ``folder/inspect``.
        settings: the defaults, without any.
        changes: settings by name, for instance ``num_codes=16``.

    Returns:
        The content of inspect.json; its ``distortion``, ``token``, ``bag`` and ``agreement`` only where they apply.

    Raises:
        MapetError: settings that do not fit, no tokenizer or images there, or a second tokenizer with other patches.
    """
    from mapet.build.batches import choose_indices
    from mapet.data.dataset import open_dataset
    from mapet.utils.io import replace_file
    from mapet.viz.figures import is_figure

    s = updated(settings or InspectTokenizerSettings(), **changes)
    if not str(folder) or not str(data):
        raise MapetError("mapet tokenizer inspect needs one FOLDER of a tokenizer and one DATA (images).")
    data, out = absolute_paths("tokenizer inspect", data, out or Path(folder, "inspect"))
    folder = absolute(folder)
    tokenizer = _load(folder, s.teacher_weights, s)
    _require_figures_folder(out, folder, data)
    codes = _codes_to_show(s, tokenizer.vocabulary)
    other = _other(tokenizer, s)
    source = open_dataset(data, max_pixels=s.max_pixels)
    seen = tokens_of(tokenizer, images_of(source, choose_indices(source, s.max_images, s.seed), s))
    found = _findings(tokenizer, folder, source, seen, s)
    if other is not None:
        found["agreement"] = _agreement(seen, tokens_of(other, images_of(source, seen.indices, s)), s)
    out.mkdir(parents=True, exist_ok=True)
    found["figures"] = draw(tokenizer, source, seen, codes, out, s)
    if "codes.png" not in found["figures"]:
        for stale in filter(is_figure, list(out.glob("codes.*"))):  # of an earlier call
            stale.unlink()
    replace_file(out / FINDINGS, json.dumps(found, indent=1) + "\n")
    return found


def images_of(source: "ImageDataset", indices: "Tensor", s: InspectTokenizerSettings) -> ImagePass:
    """The images at ``indices``, to be read once."""
    from mapet.data.unreadable import UnreadableImages

    return ImagePass(source, indices, s.runtime, UnreadableImages(len(indices), s.max_bad_fraction))


def tokens_of(tokenizer: "Tokenizer", images: ImagePass) -> Tokenized:
    """Tokens of all readable images, and the distance of each patch to its code.

    Raises:
        MapetError: no readable images, too many unreadable ones, or features that are not finite.
    """
    import torch

    from mapet.data.augment import to_float
    from mapet.engine.distributed import pick_device
    from mapet.engine.stages import StageProgress
    from mapet.tokenizers.health import Distortion

    device, done, distortion = pick_device(images.runtime.accelerator), 0, None
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with StageProgress() as progress:
        for pixels, indices in images.decode(tokenizer.view, images.indices):
            tokens, distance, vectors = tokenizer.measure(to_float(pixels, device))
            if vectors is not None:
                distortion = distortion or Distortion()
                distortion.add(distance, vectors)
            found.append((indices, tokens.int().cpu(), distance.float().cpu()))
            done += len(indices)
            progress("tokens", done, len(images.indices))
    if note := images.unreadable.note():
        log.info(f"note      {note}")
    if not found:
        raise MapetError(f"{images.source.name} has no readable image among those chosen: use other images.")
    index, tokens, distance = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Tokenized(index, tokens, distance, distortion)


def _findings(
    tokenizer: "Tokenizer", folder: Path, source: "ImageDataset", seen: Tokenized, s: InspectTokenizerSettings
) -> dict[str, Any]:
    import torch

    from mapet.tokenizers.health import Health

    about = {"folder": str(folder), "kind": tokenizer.kind, "hash": tokenizer.hash, "grid": list(tokenizer.grid)}
    found: dict[str, Any] = {"tokenizer": about, "data": source.name, "seed": s.seed}
    found |= report.health_findings(Health.of(seen.tokens, tokenizer.vocabulary))
    found |= report.distortion_findings(seen.distortion)
    found |= report.position_findings(seen.tokens, s.seed)
    if source.classes:
        labels = torch.tensor([source.label(index) for index in seen.indices.tolist()])
        found |= report.label_findings(seen.tokens, labels, tokenizer.vocabulary, s.seed)
    return found


def _agreement(one: Tokenized, other: Tokenized, s: InspectTokenizerSettings) -> dict[str, Any]:
    from mapet.tokenizers.information import agreement

    value = agreement(one.tokens, other.tokens, s.seed)
    return {"with": str(absolute(str(s.compare_with))), "adjusted_mutual_information": value}


def draw(
    tokenizer: "Tokenizer",
    source: "ImageDataset",
    seen: Tokenized,
    codes: list[int],
    out: Path,
    s: InspectTokenizerSettings,
) -> list[str]:
    """Write the figures into ``out`` and return their names: codes (these and random ones), tokens, usage."""
    import torch

    from mapet.tokenizers.codebook import usage
    from mapet.utils.rng import random_bits
    from mapet.viz.codes import code_colors, patch_rows, token_map, usage_histogram

    counts = usage(seen.tokens, tokenizer.vocabulary)
    left = counts.index_fill(0, torch.tensor(codes, dtype=torch.int64), 0).nonzero().flatten()
    codes = codes + left[random_bits(s.seed, CODES, left).argsort()[: s.num_codes]].sort().values.tolist()
    view, names = _enlarged(tokenizer), []
    if codes:
        rows = (_row(source, view, seen, code, int(counts[code])) for code in codes)
        path = out / "codes.png"
        patch_rows(rows, tokenizer.grid, view.size, path, examples=EXAMPLES, reach=REACH, inches=INCHES)
        names.append(path.name)
    few = random_bits(s.seed, IMAGES, seen.indices).argsort()[:MAPS]
    images, vectors = _read(source, view, seen.indices[few]), getattr(tokenizer, "centroids", None)
    colors = None if vectors is None else code_colors(vectors.cpu())
    names.append(
        token_map(images, seen.tokens[few], tokenizer.grid, out / "tokens.png", count=MAPS, colors=colors).name
    )
    return [*names, usage_histogram(counts, out / "usage.png").name]


def _row(source: "ImageDataset", view: "CenterCropResize", seen: Tokenized, code: int, patches: int) -> "Row":
    """The patches nearest to a code, one per image."""
    from mapet.tokenizers.health import nearest_patches
    from mapet.viz.codes import Row, code_label

    rows, patch = nearest_patches(seen.tokens, seen.distance, code, EXAMPLES)
    return Row(code_label(code, patches), _read(source, view, seen.indices[rows]), patch.tolist())


def _read(source: "ImageDataset", view: "CenterCropResize", indices: "Tensor") -> "NDArray[np.uint8]":
    """The images at ``indices``: (n, 3, H, W)."""
    import numpy as np

    pixels = [np.asarray(view(source.read(index))).transpose(2, 0, 1) for index in indices.tolist()]
    return np.stack(pixels) if pixels else np.empty((0, 3, *view.size), np.uint8)


def _enlarged(tokenizer: "Tokenizer") -> "CenterCropResize":
    """The tokenizer's crop with patches of at least ``PATCH`` pixels, so that large images keep their detail."""
    height, width = tokenizer.view.size
    factor = max(1, -(-PATCH * tokenizer.grid[0] // height))
    return tokenizer.view.at((factor * height, factor * width))


def _load(folder: str | Path, weights: str | None, s: InspectTokenizerSettings) -> "Tokenizer":
    from mapet.engine.distributed import pick_device
    from mapet.tokenizers.tokenizer import load_tokenizer

    return load_tokenizer(Path(folder), teacher_weights=weights).to(pick_device(s.accelerator))


def _other(tokenizer: "Tokenizer", s: InspectTokenizerSettings) -> "Tokenizer | None":
    """The second tokenizer, which must have the same patches."""
    if s.compare_with is None:
        return None
    other = _load(absolute(s.compare_with), s.compare_with_teacher_weights, s)
    if tokenizer.grid != other.grid:
        raise MapetError(
            f"The tokenizers have grids {tokenizer.grid} and {other.grid}: only tokens of the same patches can be "
            "compared."
        )
    tokenizer.view.at(other.view.size)
    return other


def _require_figures_folder(out: Path, folder: Path, data: str) -> None:
    """Refuse a folder with other files, and one among the images, where the figures would become images too."""
    from mapet.utils.io import require_free

    require_apart(out, FOLDER=folder, data=data)
    if not _inspected(out):
        require_free(out)


def _inspected(out: Path) -> bool:
    """Whether an earlier call wrote into the folder; its figures are replaced then."""
    try:
        return {"tokenizer", "data", "health", "verdict"} <= set(json.loads((out / FINDINGS).read_bytes()))
    except (OSError, ValueError, TypeError):
        return False


def _codes_to_show(s: InspectTokenizerSettings, vocabulary: int) -> list[int]:
    """The codes of ``show``, each once."""
    words = s.show.replace(",", " ").split()
    if not all(word.isdecimal() and int(word) < vocabulary for word in words):
        raise MapetError(f'--show must be numbers from 0 to {vocabulary - 1}, as 3,17,99, got "{s.show}".')
    codes = list(dict.fromkeys(int(word) for word in words))
    if s.num_codes > MOST_CODES - len(codes):
        raise MapetError(
            f"--num-codes must be <= {MOST_CODES - len(codes)}, got {s.num_codes}: a figure shows up to {MOST_CODES} "
            f"codes, and --show has {len(codes)}."
        )
    return codes
