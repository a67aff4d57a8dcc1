"""The images of the tutorials: found, or fetched once; without them a page is built without its outputs."""

import os
import subprocess
from pathlib import Path

BUILD = Path(__file__).parents[1] / "build"
STAMPS, PACKAGE = "usr/share/tuxpaint/stamps", "tuxpaint-stamps-default"
SECONDS = 900  # of a download


def lacking() -> dict[str, str]:
    """The tutorials that cannot be executed here, with the reason. ``MAPET_STAMPS`` names the stamps for the others."""
    reasons = {"tutorials/cifar10": cifar10(), "tutorials/photographs": stamps()}
    return {page: reason for page, reason in reasons.items() if reason}


def cifar10() -> str:
    """Download CIFAR-10 if it is not in the cache; the reason why that fails."""
    from mapet.data.cifar import arrays
    from mapet.utils.errors import MapetError

    try:
        arrays()
    except MapetError as error:
        return str(error)
    return ""


def stamps() -> str:
    """Find Debian's package of stamps, installed or unpacked, or unpack it into the build folder; the reason if not."""
    given = os.environ.get("MAPET_STAMPS")
    places = [Path(given)] if given else [Path("/") / STAMPS, BUILD / PACKAGE / STAMPS]
    found, reason = next((place for place in places if place.is_dir()), None), f"MAPET_STAMPS={given} is not a folder."
    if found is None and not given and not (reason := unpack(BUILD / PACKAGE)):
        found = BUILD / PACKAGE / STAMPS
    if found is None:
        return reason
    os.environ["MAPET_STAMPS"] = str(found)
    return ""


def unpack(folder: Path) -> str:
    """Download the package with apt and unpack it, without installing it; the reason if that fails."""
    part = folder.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    try:
        _run(["apt-get", "download", PACKAGE], part)
        archive = next(part.glob(f"{PACKAGE}_*.deb"))
        _run(["dpkg-deb", "-x", archive.name, "."], part)
        archive.unlink()
        part.rename(folder)
    except (OSError, StopIteration, subprocess.SubprocessError) as error:
        return f"Debian's package {PACKAGE} cannot be had ({type(error).__name__})."
    return ""


def _run(words: list[str], folder: Path) -> None:
    subprocess.run(words, cwd=folder, capture_output=True, check=True, timeout=SECONDS)
