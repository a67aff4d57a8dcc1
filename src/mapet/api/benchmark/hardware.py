"""What figures were taken on, and how."""

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from mapet.engine.run import VERSIONS
from mapet.utils.versions import versions


def runtime(device: torch.device) -> str:
    """Device, processor, cores, threads, versions and load, in words."""
    gpu = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{gpu}{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}{load}"
    )


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.split(": ", 1)[1] for line in lines if line.startswith("model name") and ": " in line)
    return next(named, platform.processor() or platform.machine())


def provenance(device: torch.device) -> dict[str, Any]:
    """Date, command, machine and versions."""
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "command": shlex.join([Path(sys.argv[0]).name.replace("__main__.py", "mapet"), *sys.argv[1:]]),
        "machine": runtime(device),
        "versions": versions(VERSIONS),
    }
