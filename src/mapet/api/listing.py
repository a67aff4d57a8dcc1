"""What can be chosen: models, objectives, recipes, teachers and evaluation protocols."""

from collections.abc import Callable

from mapet.utils.errors import MapetError, nearest

MODELS = {
    "vit_tiny": "width 192, depth 12, 3 heads",
    "vit_small": "width 384, depth 12, 6 heads",
    "vit_base": "width 768, depth 12, 12 heads",
    "vit_large": "width 1024, depth 24, 16 heads",
    "custom": "any size: --embed-dim, --depth and --num-heads",
}
OBJECTIVES = {
    "mapet": "masked and permuted prediction of tokens (MaPeT)",
    "pet": "permuted prediction of tokens",
    "mim": "masked prediction of tokens (BEiT; with --cls-layer BEiT v2)",
    "cae": "masked prediction of tokens by a regressor and a decoder (CAE)",
    "mae": "masked prediction of pixels (MAE); needs no tokens",
}
PROTOCOLS = {
    "knn": "k nearest neighbours by cosine similarity; nothing is trained",
    "linear": "logistic regression by L-BFGS, penalty chosen on held-out images",
    "linear-mae": "linear probe of MAE: batch norm, LARS, 90 epochs",
    "linear-beit": "linear probe of BEiT: every layer, AdamW, 100 epochs",
    "attentive": "attentive probe of CAE: one cross-attention block",
    "fewshot": "logistic regression from a few labelled images per class",
    "finetune": "all weights are trained as a classifier",
    "segment-linear": "segmentation: logistic regression of patches (segment-probe)",
    "segment-knn": "segmentation: k nearest neighbours of patches (segment-probe)",
}
TEACHERS = {
    "efficientnet_lite0": "installed with mapet; works offline",
    "pixels": "the pixels of each patch; no network",
}


def listing(what: str) -> dict[str, str]:
    """The names of one kind, each with a description of one line.

    Args:
        what: models, objectives, recipes, teachers or protocols.

    Raises:
        MapetError: another kind.
    """
    kinds: dict[str, Callable[[], dict[str, str]]] = {
        "models": MODELS.copy,
        "objectives": OBJECTIVES.copy,
        "recipes": _recipes,
        "teachers": _teachers,
        "protocols": PROTOCOLS.copy,
    }
    if what not in kinds:
        raise MapetError(f'There is no list of "{what}".{nearest(what, kinds)}')
    return kinds[what]()


def _recipes() -> dict[str, str]:
    """Recipes of pre-training, fine-tuning and segmentation, with the first sentence of their docstrings."""
    from mapet.config import recipes
    from mapet.config.recipes import finetune, segmentation

    made = {**recipes.catalogue(), **finetune.catalogue(), **segmentation.catalogue()}
    return {name: (make.__doc__ or "").strip().splitlines()[0].replace("``", "") for name, make in made.items()}


def _teachers() -> dict[str, str]:
    """Teachers that need no download, then timm's models with published weights."""
    import timm

    return {**TEACHERS, **dict.fromkeys(timm.list_models(pretrained=True), "")}
