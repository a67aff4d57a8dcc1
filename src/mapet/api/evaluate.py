"""Evaluate a frozen encoder on labelled images: k-NN, linear and attentive probes, few-shot classification."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.encoders import LoadedEncoder, headless, load_from, untrained
from mapet.api.features import Features, LabelledFeatures
from mapet.api.protocols import PROTOCOLS, protocol_names, require_read
from mapet.api.scores import append, entries, plain
from mapet.config.evaluate import EvaluateSettings
from mapet.config.flat import updated
from mapet.config.recipe import Recipe
from mapet.utils.errors import MapetError
from mapet.utils.log import log

if TYPE_CHECKING:
    from mapet.evals.score import Score


def evaluate(
    source: str | Path,
    data: str | Path | None = None,
    protocols: str | Iterable[str] = ("knn", "linear"),
    *,
    out: str | Path | None = None,
    settings: EvaluateSettings | None = None,
    **changes: Any,
) -> "dict[str, dict[str, Score]]":
    """Evaluate the frozen encoder of ``source``; protocols that read the same features share them.

    Args:
        source: FROM: a run or export folder, or a checkpoint file. A classifier is evaluated without its head.
        data: labelled images: a folder with one sub-folder per class, or ``"cifar10"``; None: those of the run, if
            it is a fine-tuning or they have a split into train and test.
        protocols: names of ``PROTOCOLS``: knn, linear, linear-mae, linear-beit, attentive, fewshot.
        out: JSON file to which the scores are added; None: a run's ``scores.json``, and otherwise no file.
        settings: by default ``EvaluateSettings()``.
        changes: settings by flat names, as ``k=10`` or ``max_images=5000``.

    Returns:
        For each protocol its scores by name, as ``{"knn": {"top1": Score, "top5": Score}}``.

    Raises:
        MapetError: a FROM, data, labels or settings that do not fit, or a setting that none of the protocols reads.
    """
    s = updated(settings or EvaluateSettings(), **changes)
    names = protocol_names(protocols)
    require_read(names, s)
    start = subject(source, random=s.features.random, num_heads=s.features.num_heads)
    images = str(data or "") or _own_images(start)
    if file := scores_file(out, start):
        entries(file)  # refuses a file of something else before the work
    about = {"step": start.step, "data": None if data is None else str(data), "limit": s.features.max_images}
    features = Features(start.encoder, images, start.seed, s.features)
    found: dict[str, dict[str, Score]] = {}
    for pool in dict.fromkeys(PROTOCOLS[name].pool_of(s) for name in names):
        _log_features(start, images, pool, features(pool), first=not found)
        _require_enough(s.knn.k if "knn" in names else 0, len(features(pool).train[0]))
        for name in (name for name in names if PROTOCOLS[name].pool_of(s) == pool):
            found[name] = PROTOCOLS[name].measure(features, s)
            if file:
                text = PROTOCOLS[name].describe(s)
                file = saved(file, {"from": start.origin, "protocol": text, **about, **plain(found[name])})
    return {name: found[name] for name in names}


def subject(source: str | Path, *, random: bool, num_heads: int | None) -> LoadedEncoder:
    """The encoder that is evaluated, with ``random`` as before training.

    Raises:
        MapetError: as ``load_from`` and ``untrained``, or its images are not RGB.
    """
    start = load_from(source, num_heads=num_heads)
    start = untrained(start) if random else headless(start)
    if (channels := start.encoder.in_chans) != 3:
        raise MapetError(f"FROM takes images of {channels} channels, and --data has RGB ones: give another FROM.")
    return start


def _own_images(start: LoadedEncoder) -> str:
    """The images of the run that is evaluated, if their labels are classes for certain.

    Raises:
        MapetError: not a run, or a pre-training on a folder without a split, whose sub-folders may be anything.
    """
    from mapet.data.dataset import has_held_out

    if start.run is None or start.recipe is None:
        raise MapetError(f"An evaluation needs --data, labelled images: {start.origin} names none.")
    images = start.recipe.data
    if images != "cifar10" and not Path(images).exists():
        raise MapetError(
            f"{start.run.folder} was trained on {images}, which does not exist: give labelled images with --data."
        )
    if isinstance(start.recipe, Recipe) and Path(images).is_dir() and not has_held_out(images):
        raise MapetError(
            f"{start.run.folder} was trained on {images}, whose sub-folders may not be classes: "
            f"give --data {images} if they are, or other labelled images."
        )
    return images


def _require_enough(k: int, images: int) -> None:
    """Refuse more neighbours than there are."""
    if k > images:
        raise MapetError(f"--k must be <= {images}, the number of training images, got {k}.")


def scores_file(out: str | Path | None, start: LoadedEncoder) -> Path | None:
    """The file of the scores; without ``out`` nothing is written next to an export or a checkpoint file."""
    if out is not None:
        file = Path(out).expanduser()
        folder = file.absolute().parent
        if not (above := folder if folder.exists() else folder.parent).is_dir():
            raise MapetError(f"--out {out} cannot be written: there is no folder {above}; make it, or give another.")
        return file
    return start.run.folder / "scores.json" if start.run else None


def _guess(found: LabelledFeatures) -> float:
    """The accuracy on the test images of always naming the most frequent class of the training images."""
    most = found.train[1].bincount(minlength=found.classes).argmax()
    return float((found.test[1] == most).float().mean())


def saved(file: Path, entry: Mapping[str, Any]) -> Path | None:
    """Add an entry to the file of the scores. Returns the file; None, with a note in the log, if it is not writable."""
    try:
        append(file, entry)
    except OSError as error:
        log.info(f"note      the scores could not be saved in {file}: {error.strerror or error}")
        return None
    return file


def _log_features(start: LoadedEncoder, data: str, pool: str, found: LabelledFeatures, *, first: bool) -> None:
    from mapet.evals.features import effective_rank

    x_train = found.train[0]
    if first:
        counts = f"{len(x_train):,} training, {len(found.test[0]):,} test images"
        log.info(f"encoder   {start.origin}; {data}: {counts}")
        guess = f"guess {100 * _guess(found):.1f} % (the most frequent training class)"
        log.info(f"labels    {found.classes} classes, {guess}")
    if x_train.ndim == 2:
        log.info(f"features  {x_train.shape[1]} wide, of effective rank {effective_rank(x_train):.1f}")
    else:
        log.info(f"features  {x_train.shape[1]} {pool}, {x_train.shape[2]} wide")
