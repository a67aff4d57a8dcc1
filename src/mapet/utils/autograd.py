"""Autograd's threads."""

import torch


def start_without_devices() -> None:
    """Run a backward pass, before anything uses fake tensors.

    They imitate a GPU, and autograd starts a thread for each GPU that it knows at its first backward pass; a fork of
    the process could not train after that.
    """
    with torch.enable_grad():
        torch.zeros((), requires_grad=True).backward()  # type: ignore[no-untyped-call]
