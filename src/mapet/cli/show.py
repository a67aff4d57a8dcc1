"""``mapet show``: the attention pattern of a recipe, drawn, and what it costs."""

from dataclasses import dataclass, field

from mapet.cli.options import parse, say, take
from mapet.recipe import Recipe

SMALL = 6  # patches of the drawing


@dataclass(frozen=True)
class Options:
    """Options of ``mapet show``."""

    vocabulary: int = 8192
    """Number of different tokens."""
    recipe: Recipe = field(default_factory=Recipe)


def command(arguments: list[str]) -> int:
    """Parse, draw, count."""
    from mapet.cli.pretrain import named_recipe

    name, arguments = take(arguments, "--recipe")
    about = "Draw a recipe's attention pattern and count its cost."
    o = parse(Options(recipe=named_recipe(name)), arguments, "show", about)
    say(drawing(o.recipe))
    say()
    say(cost(o.recipe, o.vocabulary))
    return 0


def drawing(recipe: Recipe) -> str:
    """The recipe's pattern on six patches; the real one would not fit a screen."""
    from mapet.assemble import objective_pattern

    hidden = max(2, round(recipe.objective.mask_ratio * SMALL))
    pattern = objective_pattern(recipe.objective, SMALL, hidden)
    title = (
        f"{recipe.objective.objective} on {SMALL} patches, {hidden} hidden; a line is a row, ■ a row that it reads:\n"
        "0 = CLS, 3 = the order's third patch, ?3 = its mask token, ▶ predicts."
    )
    return f"{title}\n\n{pattern}"


def cost(recipe: Recipe, vocabulary: int) -> str:
    """Rows, multiply-accumulates and bytes of one image under the recipe itself."""
    import torch

    from mapet.assemble import build_encoder, build_pattern
    from mapet.method.cost import macs
    from mapet.method.predict import TokenPrediction

    pattern = build_pattern(recipe)
    with torch.device("meta"):
        encoder = build_encoder(recipe)
        parameters = sum(p.numel() for p in TokenPrediction(encoder, pattern, vocabulary).parameters())
    forward, alone = macs(encoder, pattern, vocabulary) / 1e9, macs(encoder) / 1e9
    side, per_value = recipe.model.image_size, 2 if recipe.precision == "bfloat16" else 4
    lines = {
        "model": f"{recipe.model.model}, {parameters / 1e6:.2f} M parameters ({_bytes(parameters * 4)})",
        "patches": f"{pattern.length}, of which {len(pattern.predict)} are predicted",
        "rows": f"{pattern.rows}, of which {pattern.keys} are read",
        "forward": f"{forward:.3f} GMAC an image; the encoder alone {alone:.3f}",
        "pixels": f"{_bytes(3 * side * side)} an image as uint8; its tokens {_bytes(2 * pattern.length)}",
        "row state": f"{_bytes(pattern.rows * encoder.embed_dim * per_value)} an image and layer",
        "mask": f"{_bytes(pattern.rows * pattern.keys)} once, for all images, heads and layers",
    }
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def _bytes(count: int) -> str:
    size, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if size >= 10 or units[0] == "B" else f"{size:.1f} {units[0]}"
