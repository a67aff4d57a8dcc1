"""``mapet pretrain``: unlabelled pictures in, an encoder out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.cli.options import parse, say, take
from mapet.cli.tokenize import tokenize
from mapet.errors import MapetError
from mapet.recipe import Machine, Recipe, diff, load, save

if TYPE_CHECKING:
    import torch
    from lightning.fabric import Fabric

    from mapet.engine.run import Run
    from mapet.feed import Feed
    from mapet.tokenizers.store import TokenStore

ABOUT = """Pre-train an encoder on unlabelled pictures.

--recipe NAME (or FILE.yaml) sets the defaults of all other options.

--resume RUN goes on with an interrupted run."""


@dataclass(frozen=True)
class Options:
    """Options of ``mapet pretrain``."""

    out: str = ""
    """Folder for the run; must be empty or absent."""
    overwrite: bool = False
    """Delete the run that is in the folder and start afresh."""
    recipe: Recipe = field(default_factory=Recipe)
    machine: Machine = field(default_factory=Machine)


def command(arguments: list[str]) -> int:
    """Parse, train or go on, tell what came out."""
    folder, arguments = take(arguments, "--resume")
    if folder is not None:
        return stoppable(lambda: _resume(folder, arguments), f"mapet pretrain --resume {folder}")
    name, arguments = take(arguments, "--recipe")
    o = parse(Options(recipe=named_recipe(name)), arguments, "pretrain", ABOUT)
    if not o.recipe.data or not o.out:
        raise MapetError("mapet pretrain needs --data (a folder of pictures, or cifar10) and --out (a folder).")
    recipe = _anchored(o.recipe)
    return stoppable(
        lambda: pretrain(recipe, o.out, o.machine, overwrite=o.overwrite), f"mapet pretrain --resume {o.out}"
    )


def stoppable(train: Callable[[], object], again: str) -> int:
    """0 when ``train`` ends; 128 + the signal's number when it is stopped, and the command that goes on is told."""
    from mapet.engine.world import Stopped

    try:
        train()
    except Stopped as stopped:
        say(f"stopped   after step {stopped.step}; go on with: {again}")
        return 128 + stopped.number
    except KeyboardInterrupt:
        say(f"stopped   before the next step; go on with: {again}")
        return 130
    return 0


def _anchored(recipe: Recipe) -> Recipe:
    """Folders by their absolute path, so that the run can go on from anywhere."""
    data = recipe.data if recipe.data == "cifar10" else str(Path(recipe.data).expanduser().absolute())
    tokens = recipe.tokens and str(Path(recipe.tokens).expanduser().absolute())
    return replace(recipe, data=data, tokens=tokens)


def named_recipe(name: str | None) -> Recipe:
    """A recipe by name or YAML file; the defaults without either."""
    if name is None:
        return Recipe()
    if name.endswith((".yaml", ".yml")):
        return load(name)
    from mapet.recipes import find

    return find(name)


def _resume(folder: str, arguments: list[str]) -> "Run":
    from mapet.engine.run import Run

    recipe = load(Run.open(folder).recipe)
    o = parse(Options(recipe=recipe), arguments, "pretrain", ABOUT)
    changed = diff(recipe, o.recipe)
    if changed:
        name, (before, after) = next(iter(changed.items()))
        raise MapetError(
            f"{folder} was begun with {name} = {before}, so it cannot go on with {after}: leave the option out, "
            "or begin a new run in another --out."
        )
    return resume(folder, o.machine)


def pretrain(
    recipe: Recipe,
    out: str | Path,
    machine: Machine | None = None,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = say,
) -> "Run":
    """Train from nothing in the new folder ``out``; without ``recipe.tokens`` the tokens are made there first.

    Raises:
        MapetError: a folder in use, settings, pictures or tokens that do not fit, or a loss that is no number.
        Stopped: SIGINT or SIGTERM came; ``resume`` goes on.
    """
    from mapet.engine.run import Run
    from mapet.engine.world import first_process

    machine = machine or Machine()
    if first_process():
        _look_ahead(recipe, machine)
        save(recipe, Run.create(out, overwrite=overwrite).recipe)
    return _go(Run(out), recipe, machine, say)


def _look_ahead(recipe: Recipe, machine: Machine) -> None:
    """Find what cannot work before anything is written."""
    from mapet.data.source import open_source
    from mapet.engine.world import pick_device
    from mapet.tokenizers.store import TokenStore
    from mapet.tokenizers.tower import stages

    source, batch = open_source(recipe.data), recipe.optimization.batch_size
    count = min(len(source), recipe.limit or len(source))
    if count < batch:
        raise MapetError(f"{source.name} gives {count} pictures, fewer than one batch of {batch}: lower --batch-size.")
    pick_device(machine.accelerator)
    if recipe.tokens:
        TokenStore.open(Path(recipe.tokens))
    elif machine.devices * machine.num_nodes > 1:
        raise MapetError("Several processes need ready tokens: run mapet tokenize, then give its folder as --tokens.")
    else:
        stages(recipe.tokenizer.teacher)


def resume(folder: str | Path, machine: Machine | None = None, *, say: Callable[[str], None] = say) -> "Run":
    """Go on with the run in ``folder`` from its last checkpoint; raises as ``pretrain``."""
    from mapet.engine.run import Run

    run = Run.open(folder)
    return _go(run, load(run.recipe), machine or Machine(), say)


def _go(run: "Run", recipe: Recipe, machine: Machine, say: Callable[[str], None]) -> "Run":
    from mapet.engine.world import first_process, world

    def tell(line: str) -> None:
        if first_process():
            say(line)
            run.write_log(line)

    if first_process():
        run.write_provenance()
        _make_tokens(run, recipe, machine, tell)
    fabric = world(
        accelerator=machine.accelerator,
        devices=machine.devices,
        num_nodes=machine.num_nodes,
        precision=recipe.precision,
    )
    fabric.barrier()
    return _train(run, recipe, machine, fabric, tell)


def _make_tokens(run: "Run", recipe: Recipe, machine: Machine, tell: Callable[[str], None]) -> None:
    done = run.folder / "tokens" / "complete"
    if recipe.tokens is None and not done.exists():
        tokenize(recipe, run.folder / "tokens", machine, say=tell)
        done.touch()


def _train(run: "Run", recipe: Recipe, machine: Machine, fabric: "Fabric", tell: Callable[[str], None]) -> "Run":
    from mapet.assemble import build_objective, build_optim
    from mapet.engine.fit import fit
    from mapet.tokenizers.store import TokenStore

    store = TokenStore.open(Path(recipe.tokens) if recipe.tokens else run.folder / "tokens")
    feed = _feed(run, recipe, machine, store, fabric)
    if fabric.is_global_zero:
        _require_same_inputs(run, feed, tell)
    objective = build_objective(recipe, store.vocabulary)
    chance = feed.chance()
    tell(f"data      {feed.shuffled.source.name}: {len(feed.shuffled.places):,} pictures")
    tell(f"model     {_model_line(recipe, objective)}")
    epochs = recipe.optimization.epochs
    tell(f"steps     {epochs} epochs × {feed.steps_per_epoch} steps of {_batch_line(recipe, machine)}")

    def figures(recent: Mapping[str, float]) -> str:
        return f"loss {recent['loss']:.3f}  tokens {recent['accuracy']:.1%} (chance {chance:.1%})"

    fit(
        objective,
        feed,
        build_optim(recipe, objective, feed),
        fabric,
        run,
        seed=recipe.seed,
        accumulate=machine.accumulate,
        save_every=machine.save_every,
        compiled=machine.compile,
        describe=figures,
    )
    tell(f"done      {_last_line(run)} (chance {chance:.1%}) → {run.folder}")
    return run


def _require_same_inputs(run: "Run", feed: "Feed", tell: Callable[[str], None]) -> None:
    """Pin the pictures and tokens of a run when it begins, and refuse others when it goes on."""
    import json
    from hashlib import blake2b

    from mapet.engine.run import write_atomically

    source, store, places = feed.shuffled.source, feed.store, feed.shuffled.places
    keys = "\n".join(f"{place} {source.key(place)}" for place in places.tolist())
    digest = blake2b(keys.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    inputs = {"tokenizer": store.tokenizer, "pictures": len(places), "keys": digest}
    path = run.folder / "inputs.json"
    if path.is_file() and json.loads(path.read_text()) != inputs:
        raise MapetError(f"{run.folder} was begun with other pictures or tokens: restore them, or begin a new run.")
    write_atomically(path, json.dumps(inputs, indent=1) + "\n")
    if (made := store.extra.get("data")) not in (None, source.name):
        tell(f"note      the tokens were made from {made}: their pictures must be the same")


def _feed(run: "Run", recipe: Recipe, machine: Machine, store: "TokenStore", fabric: "Fabric") -> "Feed":
    from mapet.data.bad import BadPictures
    from mapet.data.loader import Shuffled
    from mapet.data.source import open_source
    from mapet.engine.world import pick_workers
    from mapet.feed import Feed, chosen, tokenized
    from mapet.view import View

    source = open_source(recipe.data)
    places = chosen(source, recipe.limit, recipe.seed)
    bad = BadPictures(len(places), machine.max_bad, run.folder / "bad-pictures.txt" if fabric.is_global_zero else None)
    places = tokenized(source, places, store, bad, recipe)
    shuffled = Shuffled(
        source,
        View((recipe.model.image_size, recipe.model.image_size)),  # the tokens' crop: ``tokenized`` has compared them
        batch_size=recipe.optimization.batch_size,
        epochs=recipe.optimization.epochs,
        seed=recipe.seed,
        bad=bad,
        rank=fabric.global_rank,
        world=fabric.world_size,
        workers=pick_workers(machine.workers, fabric.device),
        memory=int(machine.memory * 2**30),
        places=places,
        device=fabric.device,
    )
    return Feed(recipe, shuffled, store, fabric.device)


def _model_line(recipe: Recipe, objective: "torch.nn.Module") -> str:
    from mapet.assemble import build_pattern

    pattern = build_pattern(recipe)
    millions = sum(p.numel() for p in objective.parameters()) / 1e6
    return (
        f"{recipe.model.model}, {millions:.1f} M parameters; {recipe.objective.objective}: "
        f"{len(pattern.predict)} of {pattern.length} patches predicted, {pattern.rows} rows"
    )


def _batch_line(recipe: Recipe, machine: Machine) -> str:
    whole, devices = recipe.optimization.batch_size, machine.devices * machine.num_nodes
    split = f" ({devices} devices × {machine.accumulate} × {whole // devices // machine.accumulate})"
    return f"{whole}{split if devices * machine.accumulate > 1 else ''}, lr {recipe.lr:.2e}"


def _last_line(run: "Run") -> str:
    names, *_, last = run.metrics.read_text().splitlines()
    row = dict(zip(names.split(","), map(float, last.split(",")), strict=True))
    return f"step {row['step']:.0f}, loss {row['loss']:.3f}, token accuracy {row['accuracy']:.1%}"
