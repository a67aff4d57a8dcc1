"""What a recipe's names and numbers must be."""

from math import inf
from typing import TYPE_CHECKING, Any

from mapet.config.objectives import BUILT_IN, is_own, require_objective
from mapet.utils.errors import MapetError, nearest

if TYPE_CHECKING:
    from mapet.config.recipe import Recipe

MODELS = ("vit_tiny", "vit_small", "vit_base", "vit_large", "custom")
OBJECTIVES = tuple(BUILT_IN)
OWN = {  # settings of some objectives alone
    "groups": ("mapet", "pet"),
    "cls_layer": ("mapet", "pet", "mim"),
    "decoder_embed_dim": ("cae", "mae"),
    "decoder_num_heads": ("cae", "mae"),
    "decoder_depth": ("cae", "mae"),
    "regressor_depth": ("cae",),
    "alignment_weight": ("cae",),
    "normalize_pixels": ("mae",),
}
ORDERS = ("uniform", "blockwise", "raster")
METRICS, STARTS, MODES = ("euclidean", "cosine"), ("k-means++", "sample"), ("sample", "stream")
DISTANCES = ("float32", "tf32", "bfloat16")
PRECISIONS = ("float32", "bfloat16")
POSITIONS = ("learn", "sincos")
CUSTOM = "custom with --embed-dim, --depth and --num-heads, or a named size without these"
FIXED = "left out beside --tokens, which are of one fixed view: give their --tokenizer instead"


def check(recipe: "Recipe") -> None:
    """Refuse names that do not exist and numbers that make no sense.

    Raises:
        MapetError: the setting, its value and what would do.
    """
    require_objective(recipe.objective.objective)
    m, o, t, z = recipe.model, recipe.objective, recipe.tokenizer, recipe.optimization
    for option, value, names in (
        ("model", m.model, MODELS),
        ("pos-embed", m.pos_embed, POSITIONS),
        ("order", o.order, ORDERS),
        ("metric", t.metric, METRICS),
        ("start", t.start, STARTS),
        ("mode", t.mode, MODES),
        ("distances", t.distances, DISTANCES),
        ("precision", recipe.precision, PRECISIONS),
    ):
        if value not in names:
            raise MapetError(f'There is no {option} "{value}".{nearest(value, names)}')
    custom = [number is not None for number in (m.embed_dim, m.depth, m.num_heads)]
    side, (low, high) = m.image_size / max(1, m.patch_size), recipe.scale or (1, 1)
    counts = {"embed-dim": m.embed_dim, "depth": m.depth, "num-heads": m.num_heads, "patch-size": m.patch_size}
    counts |= {"samples": t.samples, "fit-pictures": t.fit_images, "restarts": t.restarts, "iterations": t.iterations}
    counts |= {"regressor-depth": o.regressor_depth, "decoder-depth": o.decoder_depth}
    counts |= {"decoder-num-heads": o.decoder_num_heads}
    counts |= {"max-images": recipe.max_images, "batch-size": z.batch_size}
    fixed = m.pos_embed == "sincos"
    for option, fits, wanted in (
        *((option, count is None or count >= 1, "at least 1") for option, count in counts.items()),
        ("pos-embed", not (fixed and m.embed_dim and m.embed_dim % 4), "learn, or a width divisible by 4"),
        ("betas", all(0 <= beta < 1 for beta in z.betas), "two numbers of at least 0 and below 1"),
        ("patch-size", side == int(side) >= 2, f"a divisor of --image-size {m.image_size}, at least twice in it"),
        ("mask-ratio", 0 < o.mask_ratio <= 1 and recipe.num_masked >= 1, "above 0, at most 1, and at least one patch"),
        *_objective_rules(recipe),
        ("model", all(custom) if m.model == "custom" else not any(custom), CUSTOM),
        ("num-heads", m.embed_dim is None or not m.embed_dim % max(1, m.num_heads or 1), "a divisor of --embed-dim"),
        ("codes", 2 <= t.codes <= 65536, "2 … 65536"),
        ("drop-path", 0 <= m.drop_path < 1, "at least 0 and below 1"),
        ("scale", 0 < low <= high <= 1, "two numbers, 0 < low ≤ high ≤ 1"),
        ("ratio", 0 < recipe.ratio[0] <= recipe.ratio[1], "two numbers, 0 < low ≤ high"),
        ("hflip", 0 <= recipe.hflip <= 1, "0 … 1"),
        ("tokens", not (recipe.tokens and t.tokenizer), "left out beside --tokenizer, which makes them"),
        ("scale", not (recipe.tokens and recipe.scale), FIXED),
        ("hflip", not (recipe.tokens and recipe.hflip), FIXED),
        ("color-jitter", 0 <= recipe.color_jitter <= 1, "0 … 1"),
        ("epochs", 0 < z.epochs < inf, "above 0"),
        *rate_rules(z),
        ("ema-decay", z.ema_decay is None or 0 < z.ema_decay < 1, "between 0 and 1"),
    ):
        if not fits:
            raise MapetError(f"--{option} does not fit: it must be {wanted}.")


def rate_rules(settings: Any) -> list[tuple[str, bool, str]]:
    """Those of an optimisation's settings that may be any number from 0 on: option, whether it fits, what is wanted."""
    names = ("lr", "base_lr", "min_lr", "warmup_lr", "warmup_epochs", "weight_decay", "clip_grad")
    rates = {name.replace("_", "-"): getattr(settings, name) for name in names if hasattr(settings, name)}
    return [(option, rate is None or 0 <= rate < inf, "at least 0") for option, rate in rates.items()]


def _objective_rules(recipe: "Recipe") -> list[tuple[str, bool, str]]:
    m, o = recipe.model, recipe.objective
    layers = (m.depth or (24 if m.model == "vit_large" else 12)) - 2
    width, heads = o.decoder_embed_dim, o.decoder_num_heads
    wide = width or (m.embed_dim if o.objective == "cae" else None) or 4
    return [
        *(
            (
                name.replace("_", "-"),
                o.objective in owners or is_default,
                f"left out: it is for {' and '.join(owners)}",
            )
            for name, owners in OWN.items()
            for is_default in [is_own(o.objective) or getattr(o, name) == getattr(type(o), name)]
        ),
        (
            "groups",
            o.groups is None or 1 <= o.groups <= recipe.num_masked,
            f"1 … {recipe.num_masked}, the hidden patches",
        ),
        ("mask-ratio", o.objective != "cae" or recipe.context >= 2, "less: cae starts from at least one patch"),
        ("cls-layer", o.cls_layer is None or 1 <= o.cls_layer <= layers, f"1 … {layers}, the depth less 2"),
        ("decoder-num-heads", (width is None) == (heads is None), "given together with --decoder-embed-dim"),
        ("decoder-embed-dim", wide > 0 and not wide % 4, "divisible by 4, as --embed-dim for cae without it"),
        ("decoder-num-heads", not (width or 0) % (heads or 1), "a divisor of --decoder-embed-dim"),
        ("alignment-weight", 0 <= o.alignment_weight < inf, "at least 0"),
    ]
