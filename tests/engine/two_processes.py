"""Run by torchrun: the toy under two gloo processes, its losses into the folder named."""

import sys
from pathlib import Path

from mapet.engine.distributed import distributed
from mapet.engine.fit import fit
from mapet.engine.run import Run
from mapet.utils.process_group import first_process
from toy import Numbers, Toy, optim


def main(folder: str) -> None:
    run = Run.create(folder) if first_process() else Run(folder)
    toy = Toy()
    toy.layers[2].p = 0.0
    with distributed(accelerator="cpu", devices=2) as fabric:
        fit(toy, Numbers(rank=fabric.global_rank, world=2), optim(toy, clip_grad=1.0), fabric, run)


if __name__ == "__main__":
    main(str(Path(sys.argv[1])))
