"""What checkpoints of other models look like, why they cannot be used, and what can be done instead."""

import re
from collections.abc import Iterable
from pathlib import Path

from mapet.utils.errors import MapetError

TEACHER = "its name in timm can be the --teacher of a tokenizer instead"
PLAIN = "give another FROM, a plain vision transformer"
BIAS, CONVOLUTIONS = "its blocks add a bias to attention", "it is a convolutional network"
# The model, a pattern of names, why it cannot be used, and the way out. The first that fits counts.
FOREIGN: tuple[tuple[str, str, str, str], ...] = (
    (
        "a checkpoint of mapet outside its run",
        r"^(model|ema|optimizer)/",
        "the sizes of its model are in the run's recipe.yaml",
        "give the run's folder, or a file in that folder's checkpoints",
    ),
    (
        "transformers' ViT",
        r"^((vit|model)\.)?embeddings\.cls_token$",
        "the file stores no sizes",
        "give its folder, with config.json in it; there ViT and ViT-MAE are read",
    ),
    ("another model of transformers", r"^(beit|dinov[23]\w*|swin\w*|deit)\.", "only ViT and ViT-MAE are read", PLAIN),
    (
        "CLIP of transformers",
        r"^(vision_model|text_model|pre_layrnorm)\.",
        "it has a norm before its blocks",
        TEACHER,
    ),
    ("CLIP", r"^visual\.", "it has a norm before its blocks", TEACHER),
    ("Swin", r"^(layers|features)\.\d+\..*relative_position", "its attention is within windows", TEACHER),
    ("BEiT with a relative position bias", r"relative_position", BIAS, TEACHER),
    ("SAM or ViTDet", r"rel_pos_[hw]$", BIAS, PLAIN),
    ("DINOv3 or EVA-02", r"(^|\.)(rope\w*\.|storage_tokens$)", "its positions are rotations", TEACHER),
    ("DINOv2 with registers", r"(^|\.)reg(ister)?_tokens?$", "it has registers after CLS", "give DINOv2 without them"),
    ("DINOv2's ViT-g or EVA", r"\.mlp\.(w12|w1|fc1_g)\.", "its blocks have a gated MLP", TEACHER),
    ("a distilled DeiT", r"(^|\.)dist_token$", "it has a second CLS", "give DeiT without distillation"),
    ("torchvision's ViT", r"^class_token$", "its weights have other names", "give a ViT of timm"),
    ("ConvNeXt", r"^(stages\.\d+\.(blocks\.)?\d+\.(dwconv|conv_dw)|downsample_layers)\.", CONVOLUTIONS, TEACHER),
    ("ResNet", r"^layer1\.0\.conv1\.", CONVOLUTIONS, TEACHER),
    ("EfficientNet", r"^(_conv_stem|conv_stem)\.", CONVOLUTIONS, TEACHER),
)


def require_known(path: Path, names: Iterable[str]) -> None:
    """Refuse a checkpoint whose names are those of a model that cannot be used.

    Args:
        path: the file.
        names: of its tensors.

    Raises:
        MapetError: the first names, the model that they look like, the reason and the way out.
    """
    names = list(names)
    for model, pattern, reason, way in FOREIGN:
        if any(re.search(pattern, name) for name in names):
            raise MapetError(f"{path} looks like {model}, which cannot be used, as {reason}: {way}. {held(names)}")


def held(names: Iterable[str], count: int = 3) -> str:
    """The first names, as a sentence."""
    names = list(names)
    return f"It holds {', '.join(names[:count])}{' …' if len(names) > count else ''}."
