"""Features of images without labels: one vector per image, or one per patch."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.encoders import headless, load_from
from mapet.api.journal import Journal, collect, fill, identity, unreadable_note
from mapet.config.flat import updated
from mapet.config.use import EmbedSettings
from mapet.utils.errors import MapetError
from mapet.utils.io import require_replaceable
from mapet.utils.log import log

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.api.journal import Rows
    from mapet.data.dataset import ImageDataset
    from mapet.evals.feature_file import Embeddings
    from mapet.method.encoder import Encoder


def embed(
    source: str | Path,
    images: Any,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    settings: EmbedSettings | None = None,
    **changes: Any,
) -> "Embeddings":
    """Features of images: in memory, or in a file, which takes constant memory and continues an interrupted call.

    >>> mapet.embed("runs/first", "photos", "features.npz", pool="token")

    Args:
        source: FROM: a run or export folder, or a checkpoint file. A classifier is used without its head.
        images: a folder, packed or not, ``"cifar10"``, a file, or one or several paths, PIL images, uint8 arrays
            (height, width, channels) or tensors (channels, height, width) of uint8 or float in 0 … 1.
        out: .npz or .parquet file; None: in memory.
        overwrite: replace an earlier file of features.
        settings: the defaults, without any.
        changes: settings by name, for instance ``layer=6``.

    Returns:
        Features (N, F), or (N, L, F) with ``pool="patches"``, in the sequence of the images; unreadable images are
        left out and listed.

    Raises:
        MapetError: a FROM, images or settings that do not fit, no readable image, or a file in the way.
    """
    from mapet.api.model_pass import ModelPass
    from mapet.data.given import open_images
    from mapet.evals.feature_file import Embeddings, is_ours, require_suffix

    s = updated(settings or EmbedSettings(), **changes)
    path = None if out is None else Path(out).expanduser()
    if path is not None:
        require_suffix(path)
        require_replaceable(path, overwrite, is_ours)
    found = headless(load_from(source, num_heads=s.num_heads))
    shape = feature_shape(found.encoder, s)
    run = ModelPass(open_images(images, s.split, s.max_pixels), found.encoder, 1.0, extractor(found.encoder, s), s)
    about: dict[str, Any] = {
        "encoder": encoder_hash(found.encoder),
        "pool": s.pool,
        "layer": s.layer,
        "normalize": s.normalize,
    }
    about |= {"shape": shape, **identity(run.source)}
    more = {"from": found.origin, **_place(images, run.source, s)}
    if path is None:
        lines, rows = collect(run, "embed")
        ids, unreadable = [one for one, reason in lines if not reason], dict(line for line in lines if line[1])
        made = Embeddings({**about, **more, "readable": len(ids)}, unreadable, lambda: iter([(ids, rows)]))
    else:
        journal = Journal(path, about, run.source, shape, s.batch_size, overwrite)
        fill(run, "embed", journal, lambda part: _write(journal, part, {**about, **more}))
        made = Embeddings.open(path)
    if made.unreadable:
        log.info(f"note      {unreadable_note(made.unreadable, len(run.source), 'left out')}")
    return made


def extractor(encoder: "Encoder", s: EmbedSettings) -> "Callable[[Tensor], Tensor]":
    """The function from images (B, 3, H, W), normalised, to features (B, …, F)."""
    from torch.nn.functional import normalize

    from mapet.evals.features import pooled

    def extract(images: "Tensor") -> "Tensor":
        features = pooled(encoder, images, s.pool, s.layer)
        return normalize(features, dim=-1) if s.normalize else features

    return extract


def feature_shape(encoder: "Encoder", s: EmbedSettings) -> list[int]:
    """[F], or [L, F] for patches.

    Raises:
        MapetError: the encoder has fewer blocks than the layer's number.
    """
    depth, width = len(encoder.blocks), encoder.embed_dim
    if s.layer is not None and s.layer > depth:
        raise MapetError(f"--layer must be <= {depth}, the number of FROM's blocks, got {s.layer}.")
    return [encoder.length, width] if s.pool == "patches" else [width * len(s.pool.split("+"))]


def encoder_hash(encoder: "Encoder") -> str:
    """A hash of an encoder's weights and architecture."""
    from mapet.interop.timm import arguments
    from mapet.utils.fingerprint import fingerprint

    state = encoder.state_dict()
    return fingerprint(state, state.__getitem__, arguments(encoder))


def _place(images: Any, source: "ImageDataset", s: EmbedSettings) -> dict[str, Any]:
    """Where the images lie: a folder with a split, or the root of given paths; neither for images in memory."""
    from mapet.data.given import GivenImages

    if isinstance(source, GivenImages):
        return {"folder": None, "split": None, "root": str(source.root)}
    known = isinstance(images, str | Path)
    folder = "cifar10" if images == "cifar10" else str(Path(images).expanduser().absolute()) if known else None
    return {"folder": folder, "split": s.split, "root": None}


def _write(journal: "Journal", path: Path, about: Mapping[str, Any]) -> None:
    from mapet.evals.feature_file import write

    def chunks() -> "Iterator[tuple[list[str], Rows]]":
        for lines, rows in journal.chunks():
            yield [image_id for image_id, reason in lines if not reason], rows

    write(path, journal.out.suffix, {**about, "readable": journal.readable}, dict(journal.unreadable), chunks)
