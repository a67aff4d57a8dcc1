"""The images whose features are nearest to those of one image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mapet.api.embed import encoder_hash, extractor
from mapet.api.encoders import headless, load_from
from mapet.api.journal import collect
from mapet.config.flat import updated
from mapet.config.use import EmbedSettings, NeighboursSettings
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from PIL import Image

    from mapet.api.journal import Rows
    from mapet.evals.feature_file import Embeddings


class Neighbour(NamedTuple):
    """One image, and the cosine of the angle between its features and the query's."""

    image_id: str
    similarity: float


def neighbours(
    source: str | Path,
    image: Any,
    features: "str | Path | Embeddings",
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    settings: NeighboursSettings | None = None,
    **changes: Any,
) -> list[Neighbour]:
    """The images nearest to ``image`` by cosine, the nearest first; ``image`` itself may be one of them.

    Args:
        source: FROM, whose encoder made the features.
        image: a path, a PIL image, an array or a tensor, as for ``embed``.
        features: a file that ``embed`` wrote, or what it returned.
        out: PNG or SVG file for a contact sheet of the image and its neighbours; None: none.
        overwrite: replace an earlier sheet.
        settings: the defaults, without any.
        changes: settings by name, for instance ``k=5``.

    Raises:
        MapetError: features of another encoder or of patches, a damaged file, an image that cannot be read, or a
            file in the way.
    """
    from mapet.evals.feature_file import Embeddings
    from mapet.utils.owned import require_outside
    from mapet.viz.figures import figure_file
    from mapet.viz.sheet import contact_sheet

    s = updated(settings or NeighboursSettings(), **changes)
    path = None if out is None else figure_file(out, overwrite)
    known = features if isinstance(features, Embeddings) else Embeddings.open(features)
    folder = s.images or known.about["folder"] or ""
    if path is not None and folder:
        require_outside(path, folder)
    shown, query = _query(source, image, known, s)
    found = _nearest(query, known, s.k)
    if path is not None:
        images = _images(known.about, [one.image_id for one in found], s.images)
        tiles = [(f"{one.similarity:.3f}", one.image_id, images.get(one.image_id)) for one in found]
        contact_sheet([("query", shown[0], shown[1]), *tiles], path)
    return found


def _query(
    source: str | Path, image: Any, known: "Embeddings", s: NeighboursSettings
) -> "tuple[tuple[str, Image.Image], Rows]":
    """The image with its id, and its features (F,), made as the known ones."""
    from mapet.api.model_pass import ModelPass
    from mapet.data.given import open_images

    about, where = known.about, known.path or "The features"
    if about["pool"] == "patches":
        raise MapetError(f"{where} holds the features of patches: embed with --pool avg, token or avg+token.")
    start = headless(load_from(source, num_heads=s.num_heads))
    if encoder_hash(start.encoder) != about["encoder"]:
        raise MapetError(
            f"{where} was made by another encoder ({about['from']}) than {start.origin}: give that one as FROM, or "
            "embed the images again."
        )
    dataset = open_images(image)
    if len(dataset) != 1:
        raise MapetError(f"IMAGE must be one image, got {len(dataset):,}: give a file.")
    how = EmbedSettings(pool=about["pool"], layer=about["layer"], normalize=True, accelerator=s.accelerator)
    run = ModelPass(dataset, start.encoder, 1.0, extractor(start.encoder, how), how)
    query = collect(run, "query")[1][0]
    return (dataset.image_id(0), dataset.read(0)), query


def _nearest(query: "Rows", known: "Embeddings", k: int) -> list[Neighbour]:
    """The ``k`` rows with the largest cosine; of equal ones the first."""
    import numpy as np

    best: list[Neighbour] = []
    for ids, rows in known.chunks():
        similarity = rows @ query / np.maximum(np.linalg.norm(rows, axis=1), 1e-12)
        order = np.argsort(-similarity, kind="stable")[:k].tolist()
        best = sorted([*best, *(Neighbour(ids[i], float(similarity[i])) for i in order)], key=lambda one: -one[1])[:k]
    return best


def _images(about: Mapping[str, Any], image_ids: Sequence[str], folder: str | None) -> "dict[str, Image.Image | None]":
    """The images by id, from ``folder`` or from where they were embedded; None for those that cannot be read."""
    from mapet.data.given import GivenImages, open_images
    from mapet.data.image import UnreadableImage

    where = folder or about["folder"]
    if not where and about["root"] is None:
        raise MapetError("The sheet needs the images of the features, which were in memory: remove --out.")
    dataset = open_images(where, about["split"]) if where else GivenImages(image_ids, Path(about["root"]))
    wanted, found = set(image_ids), dict[str, "Image.Image | None"]()
    for i in range(len(dataset)):
        if (image_id := dataset.image_id(i)) in wanted:
            try:
                found[image_id] = dataset.read(i)
            except UnreadableImage:
                found[image_id] = None
    if not found:
        raise MapetError(f"{where} holds none of the images of the features: give the folder that does as --images.")
    return found
