"""How an encoder was trained, for the model card of its export, without paths of this machine."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.encoders import LoadedEncoder
from mapet.config.file import read_run
from mapet.config.finetune import FinetuneRecipe, protocol
from mapet.config.recipe import Recipe
from mapet.config.segmentation import SegmentRecipe, segmentation_protocol
from mapet.utils.io import load_json

if TYPE_CHECKING:
    from mapet.engine.run import Run

NOT_SCORES = {"from", "protocol", "step", "data", "limit", "epoch"}  # fields of an entry of scores.json


def training_notes(found: LoadedEncoder, source: str | Path) -> dict[str, Any]:
    """Settings, data and scores by name; of paths only the last part is told."""
    if found.run is None or found.recipe is None:
        return {"from": public(found.origin, source)}
    steps = {"epochs": f"{found.recipe.optimization.epochs:g}", "steps": found.step}
    if isinstance(found.recipe, Recipe):
        o = found.recipe.objective
        notes = {"objective": public(o.name), "mask ratio": o.mask_ratio, **_tokenizer(found.run, found.recipe)}
        return notes | {"data": public(found.recipe.data, found.recipe.data), **steps, **_scores(found.run)}
    about = json.loads(found.run.classifier.read_text())
    classes = {"classes, in the order of the logits": ", ".join(about["classes"])}
    return {**_tuned(found.recipe, protocol(found.recipe), about), **steps, **_scores(found.run), **classes}


def segmentation_notes(run: "Run") -> dict[str, Any]:
    """The same of a segmentation model, without the IoU of each class."""
    from mapet.engine.checkpoint import Checkpoint

    t, about = read_run(run.recipe, SegmentRecipe), json.loads(run.segmenter.read_text())
    steps = {"epochs": f"{t.optimization.epochs:g}", "steps": Checkpoint(run.last).step}
    known = segmentation_protocol(t)  # not told again with each score
    scores = {name.removesuffix(f", {known}"): value for name, value in _scores(run).items() if name[:4] != "IoU "}
    return {**_tuned(t, known, about), **steps, **scores}


def _tuned(t: FinetuneRecipe | SegmentRecipe, protocol: str, about: Mapping[str, Any]) -> dict[str, str]:
    return {"protocol": protocol, "from": public(about["from"], t.init), "data": public(t.data, t.data)}


def public(text: str, path: str | Path = "") -> str:
    """The text with the last part only of ``path`` and of everything else that has a slash within a word.

    >>> public("the run /home/me/runs/first after 9 steps")
    'the run first after 9 steps'
    """
    for known in {str(path), str(Path(path).expanduser()), str(Path(path).expanduser().resolve())} - {"", "."}:
        text = text.replace(known, Path(known).name)
    if text.startswith(("/", "~", ".")):  # a path as a whole, which may have spaces
        text = Path(text).name
    return re.sub(r"[^\s,;()]*[/\\](?=[^\s,;()])", "", text)


def _tokenizer(run: "Run", recipe: Recipe) -> dict[str, str]:
    """Kind, size and hash of the tokenizer whose tokens were predicted."""
    inputs = load_json(run.folder / "inputs.json")
    digest = inputs.get("tokenizer") if isinstance(inputs, dict) else None
    if not recipe.reads_tokens or not digest:
        return {}
    stores = [run.folder, run.folder / "tokens", *([Path(recipe.tokens)] if recipe.tokens else [])]
    paths = [Path(recipe.tokenizer.path)] if recipe.tokenizer.path else []
    for folder in [*paths, *(store / "tokenizer" for store in stores), run.folder / "tokens"]:
        about = load_json(folder / "tokenizer.json")
        if isinstance(about, dict) and about.get("hash") == digest:
            return {"tokenizer": f"{about.get('kind')}, hash {digest}"}
    return {"tokenizer": f"hash {digest}"}


def _scores(run: "Run") -> dict[str, str]:
    """The scores of the run's ``scores.json``, each with its protocol, data and step."""
    found = {}
    for entry in run.scores:
        for name in entry.keys() - NOT_SCORES:
            score = entry[name]
            if isinstance(score, dict) and {"value", "low", "high"} <= score.keys():
                value = f"{100 * score['value']:.1f} % ({100 * score['low']:.1f} – {100 * score['high']:.1f})"
                data = str(entry.get("data") or "the run's own data")
                where = f"on {public(data, data)} after {entry.get('step')} steps"
                found[f"{name} {where}, {entry['protocol']}"] = value
    return dict(sorted(found.items()))
