"""Peak memory of training steps on a CPU, predicted before the first step and measured after the third.

    python benchmarks/memory.py --batch 8 --image-size 224

Each cell is a process of its own: ``fit`` with random images, the process's peak as Linux counts it, one process at a
time. The prediction is the one that ``mapet pretrain`` logs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

OBJECTIVES, MODELS, STEPS = ("mapet", "pet", "mim", "cae", "mae"), ("vit_tiny", "vit_small", "vit_base"), 3


def cell(objective: str, model: str, side: int, batch: int, precision: str) -> dict[str, int]:
    """Bytes of one cell: predicted, measured, and what the process held before its weights."""
    import torch

    from mapet.api.benchmark.case import Case, random_batch
    from mapet.api.compare.plan import for_method
    from mapet.api.memory import Need
    from mapet.build.footprint import predict_footprint
    from mapet.build.pretrain import build_objective, build_optim
    from mapet.config.flat import updated
    from mapet.config.recipe import Recipe
    from mapet.engine.distributed import init_fabric
    from mapet.engine.fit import fit
    from mapet.engine.memory import resident
    from mapet.engine.peak import peak
    from mapet.engine.run import Run

    recipe = updated(
        for_method(Recipe(), objective), model=model, image_size=side, batch_size=batch, precision=precision
    )

    class Random:
        steps = steps_per_epoch = STEPS

        def __call__(self, start: int) -> Iterator[dict[str, torch.Tensor]]:
            return (random_batch(Case(recipe), recipe) for _ in range(start, STEPS))

    fabric = init_fabric(accelerator="cpu", precision=precision)
    trained, stream = build_objective(recipe, recipe.tokenizer.vocab_size), Random()
    held = sum(tensor.nbytes for tensor in (*trained.parameters(), *trained.buffers()))
    need = Need(predict_footprint(recipe, device="cpu"), (resident() or 0) - held, 0, held)
    with tempfile.TemporaryDirectory() as folder:
        fit(trained, stream, build_optim(recipe, trained, stream), fabric, Run.create(Path(folder) / "run"))
    return {"predicted": need.total, "measured": peak(torch.device("cpu")), "process": need.process}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--cell", nargs=2, metavar=("OBJECTIVE", "MODEL"), help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.cell:
        print(json.dumps(cell(*o.cell, o.image_size, o.batch, o.precision)))
        return

    import torch

    from mapet.api.benchmark.hardware import provenance

    about = provenance(torch.device("cpu"))
    print(f"{about['date']}, {about['machine']}, batch {o.batch}, {o.image_size} px, {o.precision}\n")
    print("| | " + " | ".join(f"{model}: predicted, measured, ratio" for model in o.models) + " |")
    print("|---|" + "---|" * len(o.models), flush=True)
    options = ["--image-size", str(o.image_size), "--batch", str(o.batch), "--precision", o.precision]
    for objective in o.objectives:
        texts = []
        for model in o.models:
            command = [sys.executable, __file__, "--cell", objective, model, *options]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(objective, model, found, file=sys.stderr, flush=True)
            gib = [f"{found[name] / 2**30:.2f}" for name in ("predicted", "measured")]
            texts.append(f"{', '.join(gib)}, **{found['predicted'] / found['measured']:.2f}**")
        print(f"| {objective} | {' | '.join(texts)} |", flush=True)


if __name__ == "__main__":
    main()
