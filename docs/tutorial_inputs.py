"""The images of the tutorials: found, or fetched once; where they cannot be had, a page is built without its outputs."""

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
    found = next((place for place in places if place.is_dir()), None)
    if found is None and not given and not (reason := unpack(BUILD / PACKAGE)):
        found = BUILD / PACKAGE / STAMPS
    if found is None:
        return (
            f"MAPET_STAMPS={given} is not a folder."
            if given
            else f"Debian's package {PACKAGE} cannot be had ({reason})."
        )
    os.environ["MAPET_STAMPS"] = str(found)
    return ""


def unpack(folder: Path) -> str:
    """Download the package with apt and unpack it, without installing it; the reason if that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for words in (["apt-get", "download", PACKAGE], ["dpkg-deb", "-x", None, "."]):
            files = [str(path) for path in folder.glob(f"{PACKAGE}_*.deb")]
            subprocess.run(
                [word or files[0] for word in words], cwd=folder, capture_output=True, check=True, timeout=SECONDS
            )
    except (OSError, IndexError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: apt-get download {PACKAGE}"
    return ""
