"""Show a recipe: its attention pattern as text, and what it costs."""

from pathlib import Path
from textwrap import fill
from typing import Any

from mapet.api.memory import in_units, listed, memory_of
from mapet.api.settings import named_recipe, with_precision
from mapet.config.flat import updated
from mapet.config.objectives import short_name
from mapet.config.recipe import Objective, Recipe
from mapet.config.runtime import Runtime

SMALL = 6  # patches of the drawing
TITLES = {"mim": "MIM: all at once", "pet": "PeT: one at a time", "mapet": "MaPeT: one at a time, positions known"}


def show(recipe: Recipe | str | Path | None = None, **changes: Any) -> str:
    """A recipe's attention pattern, drawn on six patches, and the cost of one image.

    Args:
        recipe: a value, a name or a YAML file; None: the default recipe.
        changes: settings by flat names, as ``objective="pet"``.

    Raises:
        MapetError: no such recipe, or settings that do not fit.
    """
    r = with_precision(updated(named_recipe(recipe), **changes))
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


def draw(
    out: str | Path, recipe: Recipe | str | Path | None = None, *, overwrite: bool = False, **changes: Any
) -> Path:
    """Write a figure of which row reads which on six patches: MIM, PeT and, if it is another one, the recipe's.

    Args:
        out: file to write, ``.svg`` or ``.png``.
        recipe: as in ``show``.
        overwrite: replace an earlier figure.
        changes: as in ``show``.

    Raises:
        MapetError: a recipe whose objective has no attention pattern (mae, cae, a user's own), another suffix, or a
            file in the way.
    """
    from mapet.build.objectives import objective_pattern
    from mapet.utils.errors import MapetError
    from mapet.viz.figures import figure_file
    from mapet.viz.patterns import draw_patterns

    r, path = updated(named_recipe(recipe), **changes), figure_file(out, overwrite, "--figure")
    if r.objective.name not in TITLES:
        raise MapetError(f"--figure draws mapet, pet and mim, not {short_name(r.objective.name)}; remove it.")
    num_masked = max(2, round(r.objective.mask_ratio * SMALL))
    plain = (Objective("mim"), Objective("pet"), r.objective)
    return draw_patterns({TITLES[o.name]: objective_pattern(o, SMALL, num_masked) for o in plain}, path)


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
    tokens = f"; its tokens {in_units(2 * length)}" if recipe.reads_tokens else ""
    lines = {
        "model": f"{recipe.model.name}, {parameters / 1e6:.2f} M parameters ({in_units(parameters * 4)})",
        "patches": f"{length}, of which {recipe.num_masked} are predicted",
        "rows": objective_type(recipe.objective.name).rows(objective).replace(" rows", ""),
        "forward": f"{forward:.3f} GMAC per image; the encoder alone {alone:.3f}",
        "training": f"{training:.3f} GMAC per image, forward and backward",
        "pixels": f"{in_units(3 * side * side)} per image as uint8{tokens}",
    }
    if isinstance(objective, TokenPrediction):
        pattern, per_value = objective.pattern, 2 if recipe.precision == "bfloat16" else 4
        again = "" if (layer := recipe.objective.cls_layer) is None else f"; again in 2 blocks after block {layer}"
        lines |= {
            "rows": f"{pattern.rows}, of which {pattern.keys} are read{again}",
            "row state": f"{in_units(pattern.rows * encoder.embed_dim * per_value)} per image and layer",
            "mask": f"{in_units(pattern.rows * pattern.keys)} once, for all images, heads and layers",
        }
    if need := memory_of(recipe):
        parts = listed({"images": need.batch, **need.parts})
        one = memory_of(recipe, Runtime(micro_batch_size=1))
        single = f"; {in_units(one.total)} with --micro-batch-size 1" if one else ""
        lines["memory"] = f"{in_units(need.total)} for steps of {recipe.optimization.batch_size}: {parts}{single}"
    indent = " " * 11
    return "\n".join(fill(f"{name:<10} {text}", 80, subsequent_indent=indent) for name, text in lines.items())
