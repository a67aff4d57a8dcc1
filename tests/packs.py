"""Images of noise, three of them broken, and their packed folders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mapet.data.dataset import ImageDataset, open_dataset
from mapet.data.packing import Packing, begin, pack
from mapet.utils.errors import MapetError
from mapet.utils.fingerprint import sealed

SIDE, COUNT, BROKEN = 12, 45, (3, 16, 44)
RAW, JPEG = Packing("uint8", SIDE), Packing("jpeg", SIDE, 90)


def noise(root: Path) -> ImageDataset:
    """Two classes of noise, wide, tall and small; three images cannot be read."""
    chance = np.random.default_rng(0)
    for name in ("a", "ü"):
        (root / name).mkdir()
    for number in range(COUNT):
        path = root / "aü"[number % 2] / f"{number:02d}.png"
        height, width = 6 + number % 5 * 4, 7 + number % 7 * 5
        Image.fromarray(chance.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    whole = open_dataset(str(root))
    for place in BROKEN:
        (root / whole.image_id(place)).write_bytes(b"")
    return open_dataset(str(root))


def start(source: ImageDataset, folder: Path, packing: Packing) -> Path:
    begin(folder, source, packing, {"source": source.name, "command": "mapet pack"})
    return folder


def packed(source: ImageDataset, folder: Path, packing: Packing, **options: Any) -> Path:
    counts = list(pack(start(source, folder, packing), source, packing, max_bad_fraction=0.5, **options))
    assert counts[-1] == len(source)
    return folder


def packed_both(source: ImageDataset, root: Path) -> dict[str, Path]:
    """A folder of each form."""
    return {one.form: packed(source, root / one.form, one) for one in (RAW, JPEG)}


def one_line(stop: pytest.ExceptionInfo[MapetError]) -> str:
    assert "\n" not in str(stop.value)
    return str(stop.value)


def spoil_header(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(sealed({**json.loads(path.read_text()), **fields})))
