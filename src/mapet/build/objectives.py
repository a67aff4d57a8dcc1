"""The table of objectives, one row each, and a user's own.

A built-in objective is one file in ``mapet/method``, one row in ``OBJECTIVES``, its name in ``config/objectives.py``,
and one recipe. Its settings are fields of ``mapet.config.recipe.Objective``.

A user's own objective needs no change of the package: ``--objective path/file.py:Class``, or in Python
``objective="path/file.py:Class"`` or ``mapet.register_objective("name", Class)``. The class is an ``nn.Module`` with

    Class(encoder, vocabulary)      or, where settings matter, a class method from_recipe(recipe, encoder, vocabulary)
    self.encoder                    the ``Encoder`` that was given: what is kept after pre-training
    forward(images, tokens, order, seed) -> {"loss": scalar, ...}     all scalars are logged; "accuracy" is shown
        images  (B, 3, H, W) float, normalised
        tokens  (B, L) int64 in 0 … vocabulary − 1, one for each patch, row by row
        order   (B, 1 + L) int64, a random permutation of the positions with CLS (0) first; the first
                ``recipe.context`` are meant to be given and the others, ``recipe.num_masked``, to be predicted
        seed    (B,) int64, each sample's own random seed, to hand to ``encoder.run`` for stochastic depth
    reads_tokens = False            optional: no tokens are made, ``tokens`` is (B, 0)
    macs(training=False)            optional: multiply-accumulates of an image; without it those of the encoder count

Draw random numbers from ``seed`` or torch's generator, which is seeded before each step, and a resumed run equals an
uninterrupted one. ``examples/own_objective.py`` is one.

iGPT's order needs no objective: ``--objective pet --order raster`` predicts the patches row by row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import lcm
from typing import Any

import torch
from torch import nn

from mapet.config import objectives as names
from mapet.config.recipe import Objective, Recipe
from mapet.method import cost
from mapet.method.cae import CAE
from mapet.method.cls_aggregation import ClassAggregation
from mapet.method.encoder import Encoder
from mapet.method.mae import DECODERS, MAE
from mapet.method.pattern import Pattern, mapet, mim, pet, reveal
from mapet.method.predict import TokenPrediction
from mapet.utils.errors import MapetError


@dataclass(frozen=True)
class ObjectiveType:
    """A row of the table.

    Attributes:
        build: recipe, encoder, vocabulary → the objective, its own weights drawn from torch's generator.
        settings: the fields of ``Objective`` that only some objectives have and this one does.
        rows: an objective → the rows that each of its parts computes for an image, in words.
        draw: settings, number of patches and of masked ones → the rows drawn, after a line that explains the drawing.
        reads_tokens: whether it needs visual tokens.
    """

    build: Callable[[Recipe, Encoder, int], nn.Module]
    settings: tuple[str, ...]
    rows: Callable[[Any], str]
    draw: Callable[[Objective, int, int], tuple[str, str]]
    reads_tokens: bool = True


def objective_type(name: str) -> ObjectiveType:
    """The row of an objective; one is made for a user's own.

    Raises:
        MapetError: there is none.
    """
    return OBJECTIVES[name] if name in OBJECTIVES else _own(name)


def register_objective(name: str, constructor: Callable[..., nn.Module]) -> None:
    """Let ``objective=name`` stand for a user's own objective in this process.

    A run of it is resumed in a process that has registered it too.

    Args:
        name: a word.
        constructor: a class as this module's docstring describes, or a function of (recipe, encoder, vocabulary).

    Raises:
        MapetError: a built-in name.
    """
    names.register(name, constructor)


def objective_pattern(objective: Objective, length: int, num_masked: int) -> Pattern:
    """The pattern of token prediction over ``length`` patches, the last ``num_masked`` predicted; on the CPU."""
    with torch.device("cpu"):
        if objective.groups is not None:
            sizes = [len(part) for part in torch.arange(num_masked).tensor_split(min(num_masked, objective.groups))]
            return reveal(length, sizes, fill=objective.name == "mapet")
        return {"mapet": mapet, "pet": pet, "mim": mim}[objective.name](length, num_masked)


def build_pattern(recipe: Recipe) -> Pattern:
    """The pattern of a recipe of token prediction (mapet, pet, mim) over its grid."""
    return objective_pattern(recipe.objective, recipe.grid[0] * recipe.grid[1], recipe.num_masked)


def mae_decoder(recipe: Recipe) -> dict[str, int]:
    """Width, depth and heads of MAE's decoder: the recipe's, else those published for the encoder's size.

    A custom encoder has MAE-Lite's rule for small ones: one block, half the encoder's width and its heads; the width is
    rounded to a multiple of 4 and of the heads.
    """
    m, o = recipe.model, recipe.objective
    heads, width = m.num_heads or 1, m.embed_dim or 0
    unit = lcm(4, heads)
    half = {"decoder_embed_dim": max(1, round(width / 2 / unit)) * unit, "decoder_depth": 1, "decoder_num_heads": heads}
    given = {name: getattr(o, name) for name in half}
    return {**DECODERS.get(m.name, half), **{name: n for name, n in given.items() if n is not None}}


def objective_macs(objective: Any, training: bool = False) -> int:
    """Multiply-accumulates of one image; of an objective that does not count them, those of its encoder alone."""
    if hasattr(objective, "macs"):
        return int(objective.macs(training=training))
    return cost.macs(objective.encoder) * (3 if training else 1)


def _token_prediction(recipe: Recipe, encoder: Encoder, vocabulary: int) -> TokenPrediction:
    pattern, layer = build_pattern(recipe), recipe.objective.cls_layer
    if layer is not None:
        return ClassAggregation(encoder, pattern, vocabulary, layer=layer)
    return TokenPrediction(encoder, pattern, vocabulary)


def _cae(recipe: Recipe, encoder: Encoder, vocabulary: int) -> CAE:
    o = recipe.objective
    return CAE(
        encoder,
        context=recipe.context,
        vocabulary=vocabulary,
        regressor_depth=o.regressor_depth,
        decoder_depth=o.decoder_depth or 4,
        decoder_embed_dim=o.decoder_embed_dim,
        decoder_num_heads=o.decoder_num_heads,
        alignment_weight=o.alignment_weight,
    )


def _mae(recipe: Recipe, encoder: Encoder, vocabulary: int) -> MAE:
    normalize = recipe.objective.normalize_pixels
    return MAE(encoder, context=recipe.context, normalize_pixels=normalize, **mae_decoder(recipe))


def _draw_pattern(o: Objective, length: int, num_masked: int) -> tuple[str, str]:
    return "a line is a row, ■ a row that it reads", str(objective_pattern(o, length, num_masked))


def _draw_mae(o: Objective, length: int, num_masked: int) -> tuple[str, str]:
    first = 1 + length - num_masked
    given = " ".join(map(str, range(first)))
    masked = " ".join(f"▶?{position}" for position in range(first, 1 + length))
    return DENSE, f"encoder    {given}\ndecoder    {given} {masked}"


def _draw_cae(o: Objective, length: int, num_masked: int) -> tuple[str, str]:
    first = 1 + length - num_masked
    given, masked = [str(position) for position in range(first)], [str(i) for i in range(first, 1 + length)]
    queries = " ".join(f"?{position}" for position in masked)
    lines = (
        f"encoder    {' '.join(given)}",
        f"teacher    0 {' '.join(masked)}, without gradient: the regressor's target",
        f"regressor  {queries}, reading {' '.join(given[1:])} too",
        f"decoder    {queries.replace('?', '▶?')}",
    )
    return DENSE, "\n".join(lines)


def _cae_rows(objective: CAE) -> str:
    return f"{objective.context} rows encoded, {1 + objective.encoder.length - objective.context} guessed and decoded"


def _mae_rows(objective: MAE) -> str:
    return f"{objective.context} rows encoded, {1 + objective.encoder.length} decoded"


def _pattern_rows(objective: TokenPrediction) -> str:
    return f"{objective.pattern.rows} rows"


def _own(name: str) -> ObjectiveType:
    """The row of a user's own objective."""
    constructor = names.constructor(name)

    def build(recipe: Recipe, encoder: Encoder, vocabulary: int) -> nn.Module:
        made = getattr(constructor, "from_recipe", None) or (None if isinstance(constructor, type) else constructor)
        found = made(recipe, encoder, vocabulary) if made else constructor(encoder, vocabulary)
        if not isinstance(found, nn.Module) or getattr(found, "encoder", None) is not encoder:
            raise MapetError(f"--objective {name} must make an nn.Module whose attribute encoder is the given encoder.")
        return found

    def rows(objective: Any) -> str:
        return _pattern_rows(objective) if hasattr(objective, "pattern") else f"rows of {names.short_name(name)}"

    def draw(o: Objective, length: int, num_masked: int) -> tuple[str, str]:
        return "an objective of your own has no drawing", ""

    return ObjectiveType(build, (), rows, draw, names.reads_tokens(name))


DENSE = "in each part every row reads every row"
OBJECTIVES = {
    "mapet": ObjectiveType(_token_prediction, ("groups", "cls_layer"), _pattern_rows, _draw_pattern),
    "pet": ObjectiveType(_token_prediction, ("groups", "cls_layer"), _pattern_rows, _draw_pattern),
    "mim": ObjectiveType(_token_prediction, ("cls_layer",), _pattern_rows, _draw_pattern),
    "cae": ObjectiveType(
        _cae,
        ("decoder_embed_dim", "decoder_num_heads", "decoder_depth", "regressor_depth", "alignment_weight"),
        _cae_rows,
        _draw_cae,
    ),
    "mae": ObjectiveType(
        _mae,
        ("decoder_embed_dim", "decoder_num_heads", "decoder_depth", "normalize_pixels"),
        _mae_rows,
        _draw_mae,
        reads_tokens=False,
    ),
}
