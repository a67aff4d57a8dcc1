"""``mapet show``: the attention pattern of a recipe, drawn, what it costs, and how long its training takes."""

from typing import TYPE_CHECKING

from mapet.config.recipe import Recipe

if TYPE_CHECKING:
    from mapet.method.cae import CAE
    from mapet.method.mae import MAE
    from mapet.method.predict import TokenPrediction


SMALL = 6  # patches of the drawing


def drawing(recipe: Recipe) -> str:
    """The recipe's rows on six patches; the real ones would not fit a screen."""
    o, hidden = recipe.objective, max(2, round(recipe.objective.mask_ratio * SMALL))
    about = f"{o.name} on {SMALL} patches, {hidden} hidden; "
    names = "0 = CLS, 3 = the order's third patch, ?3 = its mask token, ▶ predicts."
    if o.name in PARTS:
        given, later = range(1 + SMALL - hidden), range(1 + SMALL - hidden, 1 + SMALL)
        return f"{about}in each part every row reads every row:\n{names}\n\n{PARTS[o.name](given, later)}"
    from mapet.build.pretrain import objective_pattern

    return f"{about}a line is a row, ■ a row that it reads:\n{names}\n\n{objective_pattern(o, SMALL, hidden)}"


def _mae(given: range, hidden: range) -> str:
    seen, painted = " ".join(map(str, given)), " ".join(f"▶?{place}" for place in hidden)
    return f"encoder    {seen}\ndecoder    {seen} {painted}"


def _cae(given: range, hidden: range) -> str:
    seen, later = " ".join(map(str, given)), " ".join(map(str, hidden))
    masks, reads = " ".join(f"?{place}" for place in hidden), " ".join(map(str, given[1:]))
    return (
        f"encoder    {seen}\n"
        f"teacher    0 {later}, without gradient: what the regressor is to guess\n"
        f"regressor  {masks}, reading {reads} too\n"
        f"decoder    {masks.replace('?', '▶?')}"
    )


PARTS = {"mae": _mae, "cae": _cae}


def rows(objective: "TokenPrediction | CAE | MAE") -> str:
    """The rows that each part of the objective computes for an image."""
    from mapet.method.cae import CAE
    from mapet.method.mae import MAE

    length = objective.encoder.length
    if isinstance(objective, MAE):
        return f"{objective.context} rows encoded, {1 + length} decoded"
    if isinstance(objective, CAE):
        return f"{objective.context} rows encoded, {1 + length - objective.context} guessed and decoded"
    return f"{objective.pattern.rows} rows"


def cost(recipe: Recipe, vocabulary: int) -> str:
    """Rows, multiply-accumulates and bytes of one image under the recipe itself."""
    import torch

    from mapet.build.pretrain import build_objective
    from mapet.method.cost import macs
    from mapet.method.predict import TokenPrediction

    with torch.device("meta"):
        objective = build_objective(recipe, vocabulary)
    parameters, encoder = sum(p.numel() for p in objective.parameters()), objective.encoder
    forward, training, alone = objective.macs() / 1e9, objective.macs(training=True) / 1e9, macs(encoder) / 1e9
    side, length = recipe.model.image_size, encoder.length
    tokens = f"; its tokens {_bytes(2 * length)}" if recipe.reads_tokens else ""
    lines = {
        "model": f"{recipe.model.name}, {parameters / 1e6:.2f} M parameters ({_bytes(parameters * 4)})",
        "patches": f"{length}, of which {recipe.num_masked} are predicted",
        "rows": rows(objective).replace(" rows", ""),
        "forward": f"{forward:.3f} GMAC an image; the encoder alone {alone:.3f}",
        "training": f"{training:.3f} GMAC an image, forward and backward",
        "pixels": f"{_bytes(3 * side * side)} an image as uint8{tokens}",
    }
    if isinstance(objective, TokenPrediction):
        pattern, per_value = objective.pattern, 2 if recipe.precision == "bfloat16" else 4
        again = "" if (layer := recipe.objective.cls_layer) is None else f"; again in 2 blocks after block {layer}"
        lines |= {
            "rows": f"{pattern.rows}, of which {pattern.keys} are read{again}",
            "row state": f"{_bytes(pattern.rows * encoder.embed_dim * per_value)} an image and layer",
            "mask": f"{_bytes(pattern.rows * pattern.keys)} once, for all images, heads and layers",
        }
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def _bytes(count: int) -> str:
    size, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} {units[0]}" if size >= 10 or units[0] == "B" else f"{size:.1f} {units[0]}"
