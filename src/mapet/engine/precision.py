"""Which precision a device trains fastest in."""

from typing import Literal

import torch

from mapet.utils.processor import multiplies_bfloat16


def fastest_precision(device: torch.device) -> tuple[Literal["float32", "bfloat16"], str]:
    """``bfloat16`` where the device has instructions for it, otherwise ``float32``; and the reason in words."""
    if device.type == "cuda":
        fast, name = torch.cuda.is_bf16_supported(including_emulation=False), torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        fast, name = multiplies_bfloat16(), "this processor"
    else:
        fast, name = False, f"torch's {device.type}"
    return ("bfloat16", f"{name} has instructions for it") if fast else ("float32", f"{name} has none for bfloat16")
