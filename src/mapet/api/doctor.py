"""What this machine offers to mapet, and what will not work."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mapet.utils.errors import reason

VERSIONS = ("mapet", "torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow", "safetensors")
HARMFUL = {  # versions that must not be installed, and why
    ("lightning-fabric", "2.6.2"): "this release was compromised",
    ("lightning-fabric", "2.6.3"): "this release was compromised",
}
EXTRAS = {
    "pyarrow": "features as .parquet",
    "faiss": "the comparison of k-means in benchmarks",
    "transformers": "its models",
}
SHARED, LITTLE_SHARED, LITTLE_DISK = Path("/dev/shm"), 1 << 30, 5 << 30  # bytes that are worth a note


@dataclass(frozen=True)
class Diagnosis:
    """One line of ``doctor``.

    Attributes:
        topic: what was looked at.
        found: what it is.
        problem: what will not work, and the way out; empty if nothing.
    """

    topic: str
    found: str
    problem: str = ""


def doctor() -> list[Diagnosis]:
    """Look at versions, devices, precision, memory, disk and caches; nothing is downloaded or written."""
    checks = (_versions, _images, _cpu, _gpus, _compiler, _memory, _shared, _disk, _caches, _extras)
    return [one for check in checks for one in _guarded(check)]


def _guarded(check: "Callable[[], Iterator[Diagnosis]]") -> Iterator[Diagnosis]:
    try:
        yield from check()
    except Exception as error:  # that it fails is the finding
        yield Diagnosis(check.__name__.strip("_"), "failed", f"{reason(error)}: reinstall the package that it names")


def _versions() -> Iterator[Diagnosis]:
    from mapet.utils.versions import versions

    found = versions(VERSIONS)
    reasons = [f"{name} {found[name]}: {why}" for (name, number), why in HARMFUL.items() if found.get(name) == number]
    text = ", ".join(f"{name} {number or '(source folder)'}" for name, number in found.items())
    yield Diagnosis("versions", f"Python {platform.python_version()}, {text}",
                    "; ".join(reasons) and f"{'; '.join(reasons)}: install another version")  # fmt: skip


def _images() -> Iterator[Diagnosis]:
    """An image goes through the whole chain of decoding, tensors and torchvision's operations."""
    from io import BytesIO

    import torch
    import torchvision
    from PIL import Image

    from mapet.data.image import decode_image

    content = BytesIO()
    Image.new("RGB", (8, 8), (10, 20, 30)).save(content, "JPEG")
    decode_image(content.getvalue())
    torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    yield Diagnosis("images", "JPEG is decoded, and torchvision's operations fit this torch")


def _cpu() -> Iterator[Diagnosis]:
    import torch

    from mapet.engine.distributed import cores
    from mapet.engine.precision import fastest_precision

    kinds = {
        "AVX-512": torch.cpu._is_avx512_supported(),
        "bfloat16": torch.cpu._is_avx512_bf16_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    have = ", ".join(name for name, there in kinds.items() if there) or "none of AVX-512, bfloat16, AMX"
    chosen, _ = fastest_precision(torch.device("cpu"))
    yield Diagnosis("processor", f"{cores()} cores; {have}; --precision auto is {chosen}")


def _gpus() -> Iterator[Diagnosis]:
    import torch

    from mapet.engine.gpu import require_kernels
    from mapet.utils.errors import MapetError

    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        problem = ""
        try:
            with torch.cuda.device(index):
                require_kernels()
        except MapetError as error:
            problem = str(error)
        yield Diagnosis("gpu", f"cuda:{index} {about.name}, {about.total_memory / 2**30:.0f} GiB, bfloat16 "
                        f"{'yes' if torch.cuda.is_bf16_supported() else 'no'}", problem)  # fmt: skip
    if torch.backends.mps.is_available():
        yield Diagnosis("gpu", "mps (Apple)")
    elif not torch.cuda.device_count():
        wanted = "a driver is there, and the installed torch has no CUDA: install a build with it"
        yield Diagnosis("gpu", "none", wanted if shutil.which("nvidia-smi") else "")


def _compiler() -> Iterator[Diagnosis]:
    found = next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)
    yield Diagnosis("compiler", found or "none", "" if found else "--compile needs a C++ compiler: install g++")


def _memory() -> Iterator[Diagnosis]:
    import torch

    from mapet.engine.memory import available

    room = available(torch.device("cpu"))
    yield Diagnosis("memory", "unknown" if room is None else f"{room / 2**30:.1f} GiB are available")


def _shared() -> Iterator[Diagnosis]:
    if sys.platform == "linux" and SHARED.is_dir():
        free = shutil.disk_usage(SHARED).free
        way = "workers hand images over there: docker run --shm-size=8g, or --workers 0"
        yield Diagnosis(str(SHARED), f"{free / 2**30:.1f} GiB free", way if free < LITTLE_SHARED else "")


def _disk() -> Iterator[Diagnosis]:
    free = shutil.disk_usage(os.curdir).free
    way = "checkpoints and tokens need room: train on another disk"
    yield Diagnosis("disk", f"{free / 2**30:.1f} GiB free in {Path.cwd()}", way if free < LITTLE_DISK else "")


def _caches() -> Iterator[Diagnosis]:
    from mapet.data.cifar import cache_folder

    folder = cache_folder()
    near = next(path for path in (folder, *folder.parents) if path.exists())
    problem = "" if os.access(near, os.W_OK) else "it cannot be written: set MAPET_CACHE"
    there = "CIFAR-10 is there" if (folder / "cifar10").is_dir() else "empty"
    yield Diagnosis("cache", f"{folder}: {there}", problem)


def _extras() -> Iterator[Diagnosis]:
    found = [f"{name} ({what}) {'yes' if find_spec(name) else 'no'}" for name, what in EXTRAS.items()]
    yield Diagnosis("extras", ", ".join(found))
