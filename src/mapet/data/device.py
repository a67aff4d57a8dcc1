"""The way of a batch to the device that trains."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """``tensor`` on ``device``, without waiting for the work before it.

    Only from page-locked memory does a GPU copy by itself; torch gives such memory to nobody else before that is done.
    """
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
