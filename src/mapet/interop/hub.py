"""Upload an exported folder to the Hugging Face Hub, with the login of ``huggingface_hub``."""

import re
from collections.abc import Sequence
from pathlib import Path

from mapet.interop.export_folder import CARD, CONFIG, WEIGHTS
from mapet.interop.graphs import FILES
from mapet.utils.errors import MapetError, reason


def require_hub(name: str) -> None:
    """Refuse a name that is not USER/NAME, or a missing package.

    Raises:
        MapetError: with the way out.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII):
        raise MapetError(f'--push takes USER/NAME, got "{name}".')
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise MapetError("--push needs huggingface_hub: pip install huggingface_hub.") from error


def push(folder: Path, name: str, formats: Sequence[str] = ()) -> str:
    """Upload an export with its programs in one commit; a new repository is private. Returns its address.

    Raises:
        MapetError: the upload was refused or interrupted; the folder stays.
    """
    from huggingface_hub import HfApi

    files = [WEIGHTS, CONFIG, CARD, *(FILES[one] for one in formats)]
    try:
        api = HfApi()
        address = str(api.create_repo(name, private=True, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=files, commit_message="mapet export")
    except Exception as error:  # the HTTP library, and so the class of its errors, depends on the version
        raise MapetError(
            f"--push {name} failed: {reason(error)}. The export is in {folder}; "
            "log in with hf auth login, then repeat with --overwrite."
        ) from error
    return address
