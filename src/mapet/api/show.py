"""Show a recipe: its attention pattern as text, and what it costs."""

from pathlib import Path
from typing import Any

from mapet.api.settings import named_recipe
from mapet.config.flat import updated
from mapet.config.objectives import short_name
from mapet.config.recipe import Recipe

SMALL = 6  # patches of the drawing


def show(recipe: Recipe | str | Path | None = None, **changes: Any) -> str:
    """A recipe's attention pattern, drawn on six patches, and the cost of one image.

    Args:
        recipe: a value, a name or a YAML file; None: the default recipe.
        changes: settings by flat names, as ``objective="pet"``.

    Raises:
        MapetError: no such recipe, or settings that do not fit.
    """
    r = updated(named_recipe(recipe), **changes)
    return f"{drawing(r)}\n\n{cost(r)}"


def drawing(recipe: Recipe) -> str:
    """The recipe's rows on six patches; those of a whole image would not fit a screen."""
    from mapet.build.objectives import objective_type

    o, num_masked = recipe.objective, max(2, round(recipe.objective.mask_ratio * SMALL))
    legend, drawn = objective_type(o.name).draw(o, SMALL, num_masked)
    if not drawn:
        return f"{short_name(o.name)}: {legend}"
    names = "0 = CLS, 3 = the order's third patch, ?3 = its mask token, ▶ predicts."
    return f"{o.name} on {SMALL} patches, {num_masked} masked; {legend}:\n{names}\n\n{drawn}"


def cost(recipe: Recipe) -> str:
    """Rows, multiply-accumulates and bytes of one image under the recipe."""
    import torch

    from mapet.build.objectives import objective_macs, objective_type
    from mapet.build.pretrain import build_objective
    from mapet.method.cost import macs
    from mapet.method.predict import TokenPrediction

    with torch.device("meta"):
        objective = build_objective(recipe, recipe.tokenizer.vocab_size)
    parameters, encoder = sum(p.numel() for p in objective.parameters()), objective.encoder
    alone = macs(encoder) / 1e9
    forward, training = (objective_macs(objective, training) / 1e9 for training in (False, True))
    side, length = recipe.model.image_size, encoder.length
    tokens = f"; its tokens {_bytes(2 * length)}" if recipe.reads_tokens else ""
    lines = {
        "model": f"{recipe.model.name}, {parameters / 1e6:.2f} M parameters ({_bytes(parameters * 4)})",
        "patches": f"{length}, of which {recipe.num_masked} are predicted",
        "rows": objective_type(recipe.objective.name).rows(objective).replace(" rows", ""),
        "forward": f"{forward:.3f} GMAC per image; the encoder alone {alone:.3f}",
        "training": f"{training:.3f} GMAC per image, forward and backward",
        "pixels": f"{_bytes(3 * side * side)} per image as uint8{tokens}",
    }
    if isinstance(objective, TokenPrediction):
        pattern, per_value = objective.pattern, 2 if recipe.precision == "bfloat16" else 4
        again = "" if (layer := recipe.objective.cls_layer) is None else f"; again in 2 blocks after block {layer}"
        lines |= {
            "rows": f"{pattern.rows}, of which {pattern.keys} are read{again}",
            "row state": f"{_bytes(pattern.rows * encoder.embed_dim * per_value)} per image and layer",
            "mask": f"{_bytes(pattern.rows * pattern.keys)} once, for all images, heads and layers",
        }
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def _bytes(count: int) -> str:
    size, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if size >= 10 or units[0] == "B" else f"{size:.1f} {units[0]}"
