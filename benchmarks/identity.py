"""Record what tiny runs compute, and compare later: a refactor must not change one bit of it.

    python benchmarks/identity.py record before.json      # at the commit before the change
    python benchmarks/identity.py compare before.json     # after it, on the same machine with the same packages

Recorded are the metrics of 20 steps of every objective and the weights that they lead to, the tokens of 20 images, the
scores of every evaluation protocol, a fine-tuning, a VQ-KD training and a small comparison. Everything is run through
the command line in one thread, so the script needs no knowledge of the package's inside. About five minutes.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open

MODEL = [
    "--model",
    "custom",
    "--embed-dim",
    "32",
    "--depth",
    "4",
    "--num-heads",
    "2",
    "--image-size",
    "32",
    "--patch-size",
    "4",
]
CODEBOOK = ["--teacher", "pixels", "--vocab-size", "16", "--samples", "512", "--iterations", "3", "--restarts", "2"]
STEPS = ["--batch-size", "12", "--epochs", "5", "--warmup-epochs", "1", "--lr", "1e-3", "--accelerator", "cpu"]
OBJECTIVES = {
    "mapet": ["--objective", "mapet"],
    "mapet-groups": ["--objective", "mapet", "--groups", "3", "--mask-ratio", "0.5"],
    "mapet-cls": ["--objective", "mapet", "--cls-layer", "2", "--order", "blockwise"],
    "pet": ["--objective", "pet", "--order", "raster"],
    "mim": ["--objective", "mim", "--order", "blockwise", "--mask-ratio", "0.4"],
    "cae": ["--objective", "cae", "--pos-embed", "sincos"],
    "mae": ["--objective", "mae", "--pos-embed", "sincos", "--ema-decay", "0.9"],
}
PROBES = {
    "knn": ["knn", "--k", "5"],
    "linear": ["linear"],
    "linear-mae": ["linear", "--protocol", "mae"],
    "linear-beit": ["linear", "--protocol", "beit"],
    "attentive": ["attentive"],
    "fewshot": ["fewshot", "--shots", "1", "5", "--draws", "2"],
}


def images(root: Path, count: int = 24) -> Path:
    """Labelled images: stripes across, along or neither on a coloured ground, of several sizes."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, name in enumerate(("across", "along", "plain")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                shape = (32 + number % 3 * 8, 36)
                stripes = np.indices(shape)[label % 2] // random.integers(2, 5) % 2 * (label < 2)
                pixels = stripes[..., None] * random.integers(60, 200, 3) + random.integers(0, 50, (*shape, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02d}.png")
    return root


def mapet(*words: object) -> None:
    """Run one command of the command line; its output is shown where it fails."""
    surrounding = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "mapet", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=surrounding, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")


def digest(path: Path) -> str:
    """Names, shapes and bytes of a file's tensors; of a file without tensors its bytes."""
    found = hashlib.blake2b(digest_size=12)
    if path.suffix != ".safetensors":
        found.update(path.read_bytes())
        return found.hexdigest()
    with safe_open(path, "np") as file:
        for name in sorted(file.keys()):
            found.update(f"{name} {file.get_slice(name).get_shape()}".encode())
            found.update(np.ascontiguousarray(file.get_tensor(name)).tobytes())
    return found.hexdigest()


def run_of(folder: Path) -> dict[str, object]:
    """The losses of a run, step by step, and its last weights."""
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    loss = rows[0].index("loss")
    return {
        "loss": [row[loss] for row in rows[1:]],
        "metrics": digest(folder / "metrics.csv"),
        "weights": digest(folder / "checkpoints" / "last.safetensors"),
    }


def scores_of(path: Path) -> list[object]:
    """Values and intervals of the scores in a file, in sequence."""
    numbers = ("value", "low", "high", "count")
    entries = json.loads(path.read_text())
    return [[s.get(n) for n in numbers] for e in entries for s in e.values() if isinstance(s, dict) and "value" in s]


def record(root: Path) -> dict[str, object]:
    """All that is recorded, by name."""
    data = images(root / "images")
    tokens, found = root / "tokens", dict[str, object]()
    mapet("tokenize", data, "--out", tokens, "--image-size", 32, "--patch-size", 4, "--accelerator", "cpu", *CODEBOOK)
    found["tokens"] = np.fromfile(tokens / "tokens.bin", np.uint8).reshape(72, -1)[:20].tolist()
    found["codebook"] = digest(tokens / "tokenizer" / "tokenizer.safetensors")

    def pretrain(name: str, *words: object) -> None:
        mapet("pretrain", "--data", data, "--out", root / name, *MODEL, *STEPS, *words)
        found[f"pretrain {name}"] = run_of(root / name)

    def probe(name: str) -> None:
        verb, *words = PROBES[name]
        mapet(verb, root / "mapet", "--data", data, "--accelerator", "cpu", "--out", root / f"{name}.json", *words)
        found[f"score {name}"] = scores_of(root / f"{name}.json")

    def finetune() -> None:
        words = ["--batch-size", "12", "--epochs", "3", "--warmup-epochs", "1", "--accelerator", "cpu"]
        mapet("finetune", root / "mapet", "--data", data, "--out", root / "tuned", *words)
        found["finetune"] = [run_of(root / "tuned"), scores_of(root / "tuned" / "scores.json")]

    def vqkd() -> None:
        words = "--teacher pixels --image-size 32 --patch-size 4 --vocab-size 16 --batch-size 12 --epochs 2"
        small = "--embed-dim 16 --depth 1 --num-heads 1 --accelerator cpu"
        mapet("tokenizer", "train-vqkd", data, "--out", root / "vqkd", *words.split(), *small.split())
        found["vqkd"] = run_of(root / "vqkd")

    def compare() -> None:
        own = ["--objectives", "mapet,mim,mae", "--seeds", 1, "--evaluate", "knn", "--budget", "epochs,compute"]
        mapet("compare", "--out", root / "compare", "--data", data, "--tokens", tokens, *own, *MODEL, *STEPS)
        columns = [line.rsplit(",", 1)[0] for line in (root / "compare" / "results.csv").read_text().splitlines()]
        found["compare"] = columns

    work = [lambda n=name, w=words: pretrain(n, "--tokens", tokens, *w) for name, words in OBJECTIVES.items()]
    work.append(lambda: pretrain("online", "--scale", 0.3, 1, "--hflip", 0.5, *CODEBOOK))
    work += [vqkd, compare]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: job(), work))
        list(pool.map(lambda job: job(), [finetune, *(lambda n=name: probe(n) for name in PROBES)]))
    return found


def main() -> None:
    """Record into FILE, or compare with what it holds."""
    if len(sys.argv) != 3 or sys.argv[1] not in ("record", "compare"):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as root:
        found = json.loads(json.dumps(record(Path(root))))
    file = Path(sys.argv[2])
    if sys.argv[1] == "record":
        file.write_text(json.dumps(found, indent=1))
        print(f"recorded {len(found)} results in {file}")
        return
    before = json.loads(file.read_text())
    changed = sorted(name for name in before.keys() | found.keys() if before.get(name) != found.get(name))
    print("\n".join(f"changed: {name}" for name in changed) or f"all {len(found)} results are bit-identical")
    sys.exit(bool(changed))


if __name__ == "__main__":
    main()
