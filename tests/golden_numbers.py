"""Outputs of reference implementations on tiny random models; see ``golden/README.md``."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


class Golden:
    """One case: ``config``, ``weights``, and arrays as tensors by name."""

    def __init__(self, case: str) -> None:
        self.arrays = np.load(FOLDER / f"{case}.npz")
        self.config = json.loads(str(self.arrays["config"]))
        self.weights = load_file(FOLDER / f"{case}.weights.safetensors")

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])

    def gradients(self) -> dict[str, Tensor]:
        return {name[5:]: self[name] for name in self.arrays if name.startswith("grad/")}
