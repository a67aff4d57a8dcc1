"""What a pre-training starts from: the weights of FROM, and a record of them."""

import json
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.encoders import LoadedEncoder, load_from
from mapet.config.recipe import Recipe
from mapet.utils.errors import MapetError
from mapet.utils.io import load_json, replace_file
from mapet.utils.log import log

if TYPE_CHECKING:
    from torch import nn

    from mapet.engine.run import Run

RECORD = "init.json"


def load_init(recipe: Recipe) -> LoadedEncoder:
    """The encoder of ``recipe.init``, whose blocks are those of the recipe.

    Raises:
        MapetError: as ``load_from``, or blocks of other sizes.
    """
    from mapet.build.initial import encoder_of, require_same_shape

    custom = recipe.model.num_heads if Path(recipe.init).is_file() else None
    found = load_from(recipe.init, num_heads=custom)
    require_same_shape(found.encoder, encoder_of(recipe), found.origin)
    return found


def begin_from(found: LoadedEncoder, objective: "nn.Module", recipe: Recipe, run: "Run", tokenizer: str) -> None:
    """Copy the weights of FROM into a new objective, log what was used, and record it in the run's folder.

    Args:
        found: what ``load_init`` returned.
        objective: changed in place; its ``encoder`` is the recipe's.
        recipe: of the run.
        run: its folder.
        tokenizer: hash of the tokenizer whose tokens are predicted.

    Raises:
        MapetError: FROM has changed since the run was begun.
    """
    from mapet.build.initial import continue_from, start_from

    digest = _hash(found)
    record = {"from": recipe.init, "hash": digest}
    earlier = load_json(run.folder / RECORD)
    if isinstance(earlier, dict) and earlier.get("hash", digest) != digest:
        raise MapetError(
            f"--init {recipe.init} has changed since {run.folder} was begun: restore it, or begin a new run."
        )
    notes = start_from(objective.encoder, found.encoder)  # type: ignore[arg-type]
    log.info(f"init      {'; '.join(['encoder of ' + found.origin, *notes])}")
    if found.run is not None and isinstance(found.recipe, Recipe):
        used, new = continue_from(objective, run_state(found.run), _tokenizer(found.run) == tokenizer)
        lines = [f"{name}: {', '.join(parts)}" for name, parts in (("also used", used), ("new", new)) if parts]
        log.info(f"init      {'; '.join(lines)}")
    replace_file(run.folder / RECORD, json.dumps(record, indent=1) + "\n")


def run_state(run: "Run") -> dict[str, Any]:
    """All weights of a run's last checkpoint, averaged where it averages them."""
    from mapet.engine.checkpoint import Checkpoint
    from mapet.engine.run import parts

    found = Checkpoint(run.last)
    tensors = {name: found.read_finite(name) for name in found.shapes if not name.startswith("optimizer/")}
    return {**parts(tensors, "model"), **parts(tensors, "ema")}


def _tokenizer(run: "Run") -> str | None:
    content = load_json(run.folder / "inputs.json")
    return content.get("tokenizer") if isinstance(content, dict) else None


def _hash(found: LoadedEncoder) -> str:
    """The hash of FROM's weights, whichever file they come from."""
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(found.encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
