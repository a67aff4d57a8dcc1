"""Whether the installed torch has kernels for this machine's GPU."""

import re

import torch

from mapet.utils.errors import MapetError

KERNEL = re.compile(r"(sm|compute)_(\d+)(\d)")  # others are those of AMD's GPUs


def require_kernels() -> None:
    """Require that torch can compute on the current CUDA device.

    A binary kernel runs on GPUs of its major version and of its minor version or a later one; an intermediate one
    (``compute_``) on all later GPUs.

    Raises:
        MapetError: names the GPU and what the installed torch was built for.
    """
    have, built = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    known = [match for name in built if (match := KERNEL.match(name))]
    versions = [(kind, int(major), int(minor)) for kind, major, minor in (match.groups() for match in known)]
    fits = [(major, minor) <= have and (kind == "compute" or major == have[0]) for kind, major, minor in versions]
    if fits and not any(fits):
        raise MapetError(
            f"{torch.cuda.get_device_name()} (compute capability {have[0]}.{have[1]}) is not supported by the "
            f"installed torch {torch.__version__}, which is built for {', '.join(built)}: install a build of torch for "
            "it, or use --accelerator cpu."
        )
