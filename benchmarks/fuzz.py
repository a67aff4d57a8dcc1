"""Fuzz: damaged files and odd settings give one clear line or the undamaged result.

python benchmarks/fuzz.py --seconds 600
python benchmarks/fuzz.py --areas recipe,store --cases 500 --seed 7

Areas: recipes; every file of a run, a token store, a tokenizer, a pack, an export and a comparison (flipped bits,
truncated, emptied, deleted, exchanged, lengthened, changed numbers); foreign checkpoints; images.
A case is a pure function of its seed, which is printed with each failure: ``--areas AREA --seed SEED --cases 1``.
"""

import argparse
import contextlib
import hashlib
import io
import math
import pickle
import random
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from mapet.cli import main as mapet
from mapet.config.file import read, save
from mapet.config.finetune import FinetuneRecipe
from mapet.config.recipe import Recipe
from mapet.data.image import UnreadableImage, decode_image
from mapet.engine.run import Run, load_checkpoint
from mapet.tokenizers.store import TokenStore
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize

AREAS = ("recipe", "run", "store", "tokenizer", "pack", "export", "comparison", "checkpoint", "image")
SECONDS = 60  # per case; what takes longer hangs
KNOWN_SILENT = {"run"}  # a wrong result is counted there, not refused: rows of metrics.csv that are lost are logged
STUDENT = "--image-size 16 --patch-size 4 --model custom --embed-dim 16 --depth 2 --num-heads 2 --color-jitter 0"
TRAINING = "--batch-size 4 --epochs 2 --warmup-epochs 1 --lr 1e-3 --accelerator cpu --workers 0"
TOKENIZER = "--vocab-size 16 --iterations 2 --teacher pixels"
NUMBERS = (-1, 0, 1, 2**31, 2**64, 10**30, 0.5, -0.0, 1e-320, 1e308, math.inf, -math.inf, math.nan)
TEXTS = ("", "x", "1", "nan", "../..", "\0", "é" * 300, "2024-31-12", b"\xff")
ODD = (*NUMBERS, *TEXTS, None, True, [], [1, 2], {}, {"a": 1}, [[[[]]]])
YAML = (
    *("a: &a [*a]", "&a {x: *a}", "!!python/object/apply:os.getcwd []", "? [a]\n: b", "a: 2024-31-12", "[" * 3000),
    *("a: 0x", "a: 1_000", "- 1\n- 2", "42", "'", "\t", "%YAML 9.9\n---\n", "a: b: c", "{a: 1, a: 2}", "<<: 3"),
    *("a: !!binary x", "a: !!float x", "a: !!int ''", "a: !!timestamp x", "--- 1\n--- 2", "a: 1:60:60"),
    *("\ufeffseed: 1", "seed: 1e3", "\x00", "seed: 3\nseed: 4", "model: &m {depth: 2}\nobjective: *m"),
)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16")
FORMATS = ("PNG", "TIFF", "JPEG", "GIF", "BMP", "WEBP", "PPM", "TGA", "ICO", "PCX", "JPEG2000")


class Hang(BaseException):
    """A case took too long."""


@dataclass(frozen=True)
class Area:
    """One kind of input.

    Attributes:
        damage: writes a damaged input into a folder and says what it did.
        result: reads it; anything comparable, or MapetError.
        expected: the result of the undamaged input; None: there is none to compare with.
    """

    damage: Callable[[random.Random, Path], str]
    result: Callable[[Path], Any]
    expected: Any = None


@dataclass(frozen=True)
class Outcome:
    """``kind`` is error or correct, or a failure: wrong, traceback, hang."""

    kind: str
    what: str
    text: str = ""


def case(area: Area, seed: int, root: Path) -> Outcome:
    """One damaged input and what came of it."""
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        what = area.damage(random.Random(seed), folder)
        try:
            with limited(SECONDS), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                found = area.result(folder)
        except (MapetError, UnreadableImage) as error:
            line = str(error)
            return Outcome("error" if line and "\n" not in line else "traceback", what, line)
        except OSError as error:  # the command line makes one line of it, if it names a file
            if error.filename and error.strerror:
                return Outcome("error", what, str(error))
            return Outcome("traceback", what, _last_lines())
        except Hang:
            return Outcome("hang", what)
        except Exception:
            return Outcome("traceback", what, _last_lines())
        equal = area.expected is None or found == area.expected
        return Outcome("correct" if equal else "wrong", what, "" if equal else f"{found} instead of {area.expected}")
    finally:
        shutil.rmtree(folder)


def _last_lines() -> str:
    """The end of a traceback, and where it comes from in the package."""
    lines = traceback.format_exc().splitlines()
    return "\n".join([line for line in lines if "/mapet/" in line][-3:] + lines[-1:])[:2000]


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def damage_file(whole: Path, chance: random.Random, folder: Path) -> str:
    """Copy a folder, then damage one of its files."""
    target = folder / "it"
    shutil.copytree(whole, target)
    files = sorted(path for path in target.rglob("*") if path.is_file() and "tfevents" not in path.name)
    path, other, kind = chance.choice(files), chance.choice(files), chance.choice(DAMAGES)
    if kind == "delete":
        path.unlink()
    elif kind == "exchange":
        path.write_bytes(other.read_bytes())
    else:
        content = path.read_bytes()
        path.write_bytes(CHANGES[kind](content, chance) if content else b"x")
    with_other = f" with {other.relative_to(target)}" if kind == "exchange" else ""
    return f"{kind} of {path.relative_to(target)}{with_other}"


def _flip(content: bytes, chance: random.Random, number: int = 1) -> bytes:
    changed = bytearray(content)
    for _ in range(number):
        changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _zeros(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    part = content[start : start + 64]
    return content[:start] + bytes(len(part)) + content[start + 64 :]


def _other_number(content: bytes, chance: random.Random) -> bytes:
    """Change one number of a text."""
    if not (found := list(re.finditer(rb"\d+", content))):
        return content
    one = chance.choice(found)
    new = str(chance.choice((0, 1, 7, 10**12, int(one[0][:15]) + 1))).encode()
    return content[: one.start()] + new + content[one.end() :]


CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flip": _flip,
    "flips": partial(_flip, number=20),
    "cut": lambda content, chance: content[: chance.randrange(len(content))],
    "empty": lambda content, chance: b"",
    "lengthen": lambda content, chance: content + chance.randbytes(chance.randint(1, 40)),
    "number": _other_number,
    "zeros": _zeros,
}
DAMAGES = (*CHANGES, "flip", "delete", "exchange")


def make(root: Path, names: Iterable[str] = AREAS) -> dict[str, Area]:
    """The areas of these names, on small folders that are made in ``root``."""
    areas = {"recipe": Area(damage_recipe, read_recipe), "image": Area(damage_image, read_image)}
    if set(names) <= set(areas):
        return {name: areas[name] for name in names}
    images, tokens, run = root / "images", root / "tokens", root / "run"
    _draw(images)
    _run(f"tokenize --data {images} --out {tokens} --image-size 16 --patch-size 4 {TOKENIZER}")
    _run(f"pretrain --data {images} --tokens {tokens} --out {run} {STUDENT} {TRAINING} --save-every 2")
    _run(f"export {run} --out {root / 'export'}")
    ids = tuple(sorted(TokenStore.open(tokens).image_ids()))
    areas["store"] = _damaged(tokens, partial(read_store, ids))
    areas["tokenizer"] = _damaged(next(path.parent for path in tokens.rglob("tokenizer.json")), read_tokenizer)
    areas["export"] = _damaged(root / "export", read_encoder)
    if "pack" in names:
        _run(f"pack --data {images} --out {root / 'pack'} --size 16 --form uint8")
        areas["pack"] = _damaged(root / "pack", read_pack)
    if "comparison" in names:
        words = f"--objectives mim --seeds 1 --evaluate knn {TOKENIZER} {STUDENT} {TRAINING}"
        _run(f"compare --data {images} --out {root / 'comparison'} {words}")
        areas["comparison"] = _damaged(root / "comparison", read_comparison)
    shutil.copy(run / "checkpoints" / "step-00000004.safetensors", run / "checkpoints" / "last.safetensors")
    areas["run"] = _damaged(run, resume)
    weights = load_file(root / "export" / "model.safetensors")
    areas["checkpoint"] = Area(partial(damage_checkpoint, weights), read_checkpoint, _checkpoint_result(weights, root))
    return {name: areas[name] for name in names}


def _damaged(whole: Path, result: Callable[[Path], Any]) -> Area:
    """The area of a folder; its undamaged result comes from a copy, as the cases' do."""
    with tempfile.TemporaryDirectory(dir=whole.parent) as folder:
        shutil.copytree(whole, Path(folder) / "it")
        with contextlib.redirect_stdout(io.StringIO()):
            expected = result(Path(folder))
    return Area(partial(damage_file, whole), result, expected)


def _run(words: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = mapet(words.split())
    if code:
        raise RuntimeError(f"mapet {words}: {out.getvalue()}")


def _draw(folder: Path) -> None:
    chance = np.random.default_rng(0)
    for number in range(16):
        path = folder / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (16, 16, 3), np.uint8)).save(path)


def hashed(*values: Any) -> str:
    """A short hash of tensors, arrays and plain values."""
    total = hashlib.sha256()
    for value in values:
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else value
        total.update(array.tobytes() if isinstance(array, np.ndarray) else repr(array).encode())
    return total.hexdigest()[:16]


def _noise() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def read_store(ids: tuple[str, ...], folder: Path) -> Any:
    """All images' tokens: a store that was cut is one that was interrupted, and lacks some."""
    store = TokenStore.open(folder / "it")
    return hashed(ids, store.gather(ids), store.view, store.grid, store.vocabulary, store.tokenizer)


def read_tokenizer(folder: Path) -> Any:
    from mapet.tokenizers.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder / "it")
    return hashed(tokenizer.encode(_noise()), tokenizer.grid, tokenizer.view, tokenizer.vocabulary, tokenizer.hash)


def read_pack(folder: Path) -> Any:
    from mapet.data.packed import open_pack

    pack = open_pack(folder / "it")
    each = [(pack.image_id(i), pack.label(i), hashed(np.array(pack.read(i)))) for i in range(len(pack))]
    return hashed(each, pack.classes, pack.name)


@torch.no_grad()
def read_encoder(folder: Path) -> Any:
    from mapet.api.encoders import load_encoder

    return hashed(load_encoder(folder / "it")(_noise()))


def _verb(words: str) -> None:
    """Run a verb; its one line on stderr is raised.

    Raises:
        MapetError: exit code 2.
    """
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        code = mapet(words.split())
    if code:
        lines = [line for line in err.getvalue().splitlines() if line]
        if code != 2 or len(lines) != 1:
            raise RuntimeError(f"exit code {code}: {err.getvalue()}")
        raise MapetError(lines[0])


def resume(folder: Path) -> Any:
    """Weights, and the steps in the metrics unless the log says that rows are missing."""
    run = Run(folder / "it")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        _verb(f"pretrain --resume {run.folder} --accelerator cpu")
    step, tensors = load_checkpoint(run.last)
    numbers = [int(line.split(",")[0]) for line in run.metrics.read_text().splitlines()[1:]]
    told = "completed steps are missing" in out.getvalue()
    return hashed(step, told or numbers == list(range(1, step + 1)), *(tensors[name] for name in sorted(tensors)))


def read_comparison(folder: Path) -> Any:
    _verb(f"compare --resume {folder / 'it'} --accelerator cpu")
    return hashed((folder / "it" / "results.csv").read_bytes())


class Touch:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def damage_checkpoint(weights: dict[str, torch.Tensor], chance: random.Random, folder: Path) -> str:
    """Write the weights with one change as a PyTorch file, a plain pickle or a safetensors file."""
    content: dict[str, Any] = {name: tensor.clone() for name, tensor in weights.items()}
    name, kind = chance.choice(sorted(content)), chance.choice((*TENSORS, *STRUCTURES, "bytes", "pickle", "as is"))
    if kind in TENSORS:
        content[name] = TENSORS[kind](content[name], chance)
    elif kind in STRUCTURES:
        content = STRUCTURES[kind](content, name, chance)
    elif kind == "pickle":
        content["x"] = Touch(folder / "ran")
    path, plain = folder / "it.pth", all(isinstance(one, torch.Tensor) for one in content.values())
    if kind == "pickle" and chance.random() < 0.5:
        path.write_bytes(pickle.dumps(content))
    elif plain and chance.random() < 0.3:
        save_file({key: one.contiguous() for key, one in content.items()}, path := folder / "it.safetensors")
    else:
        torch.save(content, path)
    if kind == "bytes":
        data = path.read_bytes()
        path.write_bytes(data[: chance.randrange(len(data))])
    return f"{kind} {name} as {path.suffix}"


def _with(tensor: torch.Tensor, value: float, chance: random.Random) -> torch.Tensor:
    tensor.flatten()[chance.randrange(tensor.numel())] = value
    return tensor


def _nested(content: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    for _ in range(chance.choice((1, 2, 200))):
        content = {chance.choice(("model", "state_dict", "teacher", "x")): content}
    return content


def _prefixed(content: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    prefix = chance.choice(("module.", "_orig_mod.", "module._orig_mod.", "backbone.", "nonsense."))
    return {prefix + key: value for key, value in content.items()}


SURPLUS = ("extra", "blocks.99.x", "optimizer", "0", "ü")
TENSORS: dict[str, Callable[[torch.Tensor, random.Random], Any]] = {
    "dtype": lambda tensor, chance: tensor.to(torch.float64),  # an exact one
    "nan": lambda tensor, chance: _with(tensor, math.nan, chance),
    "inf": lambda tensor, chance: _with(tensor, math.inf, chance),
    "shape": lambda tensor, chance: chance.choice(
        (tensor[None], tensor.flatten()[:-1], torch.zeros(()), torch.zeros(0), tensor.flatten()[None, None])
    ),
    "type": lambda tensor, chance: chance.choice((None, 3, "x", [1], np.zeros(3), {"a": 1})),
}
STRUCTURES: dict[str, Callable[[dict[str, Any], str, random.Random], dict[str, Any]]] = {
    "drop": lambda content, name, chance: {key: value for key, value in content.items() if key != name},
    "add": lambda content, name, chance: {**content, chance.choice(SURPLUS): torch.zeros(3)},
    "nest": lambda content, name, chance: _nested(content, chance),
    "prefix": lambda content, name, chance: _prefixed(content, chance),
}


def read_checkpoint(folder: Path) -> Any:
    from mapet.api.encoders import load_encoder

    (path,) = folder.glob("it.*")
    try:
        with torch.no_grad():
            return hashed(load_encoder(path, num_heads=2)(_noise()))
    finally:
        if (folder / "ran").exists():
            raise RuntimeError("the pickle ran")


def _checkpoint_result(weights: dict[str, torch.Tensor], root: Path) -> Any:
    with tempfile.TemporaryDirectory(dir=root) as folder:
        torch.save(weights, Path(folder) / "it.pth")
        return read_checkpoint(Path(folder))


def damage_recipe(chance: random.Random, folder: Path) -> str:
    kind = chance.choice((Recipe, FinetuneRecipe))
    path = folder / f"{kind.__name__}.yaml"
    if chance.random() < 0.2:
        text = chance.choice(YAML)
        path.write_text(text)
        return f"YAML {text[:40]!r}"
    save(kind(init="random") if kind is FinetuneRecipe else kind(), path)
    content = yaml.safe_load(path.read_text())
    group = chance.choice([content, *(one for one in content.values() if isinstance(one, dict))])
    name = chance.choice([*group, "surplus", 3])
    value = chance.choice(ODD)
    if chance.random() < 0.1:
        for _ in range(2000):
            value = [value]
    group[name] = value
    try:
        path.write_text(yaml.dump(content))
    except RecursionError:
        path.write_text(f"{name}: {'[' * 2000}{']' * 2000}")
    return f"{kind.__name__} {name}: {str(value)[:40] if not isinstance(value, list) else 'list'}"


def read_recipe(folder: Path) -> Any:
    (path,) = folder.iterdir()
    kind = Recipe if path.name.startswith("Recipe") else FinetuneRecipe
    recipe = read(path, kind)
    save(recipe, folder / "again.yaml")
    if read(folder / "again.yaml", kind) != recipe:
        raise RuntimeError(f"written and read again it is another recipe: {recipe}")
    if kind is Recipe and (recipe.model.depth or 0) < 100:
        _verb(f"show --recipe {path} --vocab-size 8")
    return None


def damage_image(chance: random.Random, folder: Path) -> str:
    if chance.random() < 0.2:
        kind = chance.choice(sorted(BOMBS))
        (folder / "it.png").write_bytes(BOMBS[kind]())
        (folder / "intact").write_text("bomb")
        return f"bomb: {kind}"
    mode, size = chance.choice(MODES), chance.choice(((1, 1), (7, 5), (64, 48), (1, 900)))
    form, content = chance.choice(FORMATS), io.BytesIO()
    image = _image(mode, size, chance)
    try:
        image.save(content, form)
    except (OSError, ValueError, KeyError):  # this kind of file has no such mode
        form, content = "TIFF", io.BytesIO()
        (image if mode in ("L", "RGB", "I", "F", "I;16", "CMYK", "LAB") else image.convert("RGB")).save(content, form)
    data = bytearray(content.getvalue())
    kind = chance.choice(("none", "flips", "cut", "empty", "lengthen", "header"))
    if kind == "cut":
        del data[chance.randrange(len(data)) :]
    elif kind == "empty":
        data.clear()
    elif kind == "lengthen":
        data += chance.randbytes(99)
    elif kind in ("flips", "header"):
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(min(len(data), 40) if kind == "header" else len(data))] = chance.randrange(256)
    (folder / f"it.{chance.choice(('png', 'jpg', 'tif', 'none'))}").write_bytes(bytes(data))
    odd = mode in ("I", "F", "I;16") and _has_odd(image)
    known = kind == "none" and not odd and form != "TGA" and _pillow_reads(content.getvalue())
    (folder / "intact").write_text("yes" if known else "")
    return f"{kind} of {form} {mode} {size}{' with odd values' * odd}"


def _has_odd(image: Image.Image) -> bool:
    values = np.asarray(image, float)
    return bool(((values < 0) | (values > 2**16) | ~np.isfinite(values)).any())


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(width: int, height: int, before: bytes = b"") -> bytes:
    """A PNG of black and white whose pixels are all black, and as many as its header says, if they are few."""
    lines = bytes(min(1 + -(-width // 8), 10_000)) * min(height, 99)
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + _chunk(b"IDAT", zlib.compress(lines)) + _chunk(b"IEND", b"")


BOMBS: dict[str, Callable[[], bytes]] = {  # small files that claim, or decode to, more than memory holds
    "PNG of 4 gigapixels": lambda: _png(2**16, 2**16),
    "PNG of 4 exapixels": lambda: _png(2**31 - 1, 2**31 - 1),
    "PNG with 80 MB of text": lambda: _png(8, 8, _chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(80_000_000)))),
    "GIF": lambda: b"GIF89a" + 2 * b"\xff" * 2 + b"\0\0\0," + bytes(4) + 4 * b"\xff" + b"\0\2\2L\1\0;",
    "BMP": lambda: b"BM" + struct.pack("<IIIIiiHHIIIIII", 62, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
    "PPM": lambda: b"P6 100000 100000 255\n" + bytes(30),
}


def _image(mode: str, size: tuple[int, int], chance: random.Random) -> Image.Image:
    pixels = np.random.default_rng(chance.randrange(2**32)).integers(0, 256, (*size[::-1], 3), np.uint8)
    if mode in ("I", "F", "I;16"):
        values = pixels[..., 0].astype({"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode])
        if chance.random() < 0.5:
            known = np.finfo if mode == "F" else np.iinfo
            odd = [
                known(values.dtype).min,
                known(values.dtype).max,
                *((np.nan, np.inf, 1e-40) if mode == "F" else (0,)),
            ]
            values.flat[chance.randrange(values.size) :: chance.randint(1, 9)] = chance.choice(odd)
        return Image.fromarray(values)
    image = Image.fromarray(pixels)
    return (
        image.convert("L").convert("LA") if mode == "LA" else _to_lab(image) if mode == "LAB" else image.convert(mode)
    )


def _pillow_reads(content: bytes) -> bool:
    """Before version 13 Pillow cannot read every TIFF file that it writes."""
    try:
        Image.open(io.BytesIO(content)).load()
    except OSError:
        return False
    return True


def _to_lab(image: Image.Image) -> Image.Image:
    return Image.merge("LAB", image.split())


def read_image(folder: Path) -> Any:
    (path,) = folder.glob("it.*")
    try:
        image = decode_image(path.read_bytes())
    except UnreadableImage as error:
        if (folder / "intact").read_text() == "yes":
            raise RuntimeError(f"an undamaged image is refused: {error}") from error
        raise
    if (folder / "intact").read_text() == "bomb":
        raise RuntimeError("a bomb is decoded")
    view = CenterCropResize((8, 8))
    from mapet.data.crop import Crop

    shown = np.array(Crop()(image, view))
    if image.mode != "RGB" or shown.shape != (8, 8, 3) or shown.dtype != np.uint8:
        raise RuntimeError(f"decoded to {image.mode}, {shown.shape}, {shown.dtype}")
    return None


def failed(area: str, outcome: Outcome) -> bool:
    """Whether a case is a fault that is not known."""
    return outcome.kind not in ("error", "correct") and not (outcome.kind == "wrong" and area in KNOWN_SILENT)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--areas", type=lambda text: text.split(","), default=AREAS)
    parser.add_argument("--cases", type=int, default=10**9, help="per area")
    parser.add_argument("--seconds", type=float, default=math.inf, help="for all areas together; default 600")
    parser.add_argument("--strict", action="store_true", help="known faults count, too")
    parser.add_argument("--seed", type=int, default=None, help="of the first case; default: drawn")
    options = parser.parse_args(argv)
    if options.cases == 10**9 and options.seconds == math.inf:
        options.seconds = 600
    first = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"first seed {first}", flush=True)
    torch.set_num_threads(1)
    counts: dict[str, Counter[str]] = {}
    bad, end = 0, time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        areas = make(Path(name), options.areas)
        for seed in range(first, first + options.cases):
            for area in areas:
                if time.monotonic() > end:
                    break
                outcome = case(areas[area], seed, Path(name))
                counts.setdefault(area, Counter())[outcome.kind] += 1
                if failed("" if options.strict else area, outcome):
                    bad += 1
                    print(
                        f"FAILED {outcome.kind}: --areas {area} --seed {seed} --cases 1: {outcome.what}\n{outcome.text}"
                    )
            if time.monotonic() > end:
                break
    for area, found in counts.items():
        print(f"{area:<12}" + "  ".join(f"{kind} {number}" for kind, number in sorted(found.items())))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
