"""Tokenizers side by side on CIFAR-10: what each costs to make, and how healthy and telling its tokens are.

Every tokenizer is made by its own command in a process of its own, whose seconds and peak memory are taken, and then
looked at by ``mapet tokenizer inspect``. What is there already is not made again.

    python benchmarks/tokenizers.py --out results/tokenizers
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

STUDENT = ["--image-size", "32", "--patch-size", "4"]
COLUMNS = {
    "tokenizer": "{name}",
    "codes": "{vocabulary:,}",
    "processor, s": "{processor:,.0f}",
    "wall, s": "{seconds:,.0f}",
    "peak, GiB": "{peak:.2f}",
    "perplexity": "{perplexity:,.0f}",
    "dead codes": "{dead:,.0f}",
    "distortion": "{distortion}",
    "token → label, bits": "{bits:.3f}",
    "tokens → label": "{bag}",
}


def commands(codes: int, epochs: int) -> dict[str, list[str]]:
    """The commands that make tokenizers of ``codes`` codes, by the tokenizer's name."""
    fit = ["tokenizer", "fit", "cifar10", *STUDENT, "--codes", str(codes), "--restarts", "1"]
    vqkd = ["tokenizer", "train-vqkd", "cifar10", *STUDENT, "--codes", str(codes), "--epochs", str(epochs)]
    small = ["--embed-dim", "128", "--depth", "4", "--num-heads", "4", "--decoder-depth", "1"]
    rates = ["--decay", "0.9", "--batch-size", "128", "--lr", "1e-3", "--warmup-epochs", "0.2"]
    return {
        "k-means, Euclidean": [*fit, "--metric", "euclidean"],
        "k-means, cosine": [*fit, "--metric", "cosine"],
        "pixels": [*fit, "--teacher", "pixels"],
        f"VQ-KD, {epochs} epochs": [*vqkd, *small, *rates],
    }


def run(arguments: Sequence[str]) -> dict[str, float]:
    """Seconds on the wall and of all threads, and peak memory in GiB, of ``mapet ARGUMENTS`` in its own process."""
    began = time.monotonic()
    process = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "mapet", *arguments])
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"mapet {' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}")
    seconds = {"seconds": time.monotonic() - began, "processor": usage.ru_utime + usage.ru_stime}
    return {**seconds, "peak": usage.ru_maxrss / 2**20}


def measure(name: str, codes: int, arguments: list[str], out: Path, limit: int) -> dict[str, Any]:
    """One row: make the tokenizer, unless it is there, then inspect it."""
    folder = out / f"{name.replace(',', '').replace(' ', '-').lower()}-{codes}"
    cost = folder.with_suffix(".cost.json")
    if not cost.is_file():
        spent = run([*arguments, "--out", str(folder)])
        cost.write_text(json.dumps({"command": " ".join(arguments), **spent}) + "\n")
    found = folder / "inspect" / "inspect.json"
    if not found.is_file():
        run(["tokenizer", "inspect", str(folder), "cifar10", "--limit", str(limit)])
    return row(name, json.loads(cost.read_text()), json.loads(found.read_text()))


def row(name: str, cost: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The table's fields from a tokenizer's cost and what ``inspect`` found."""
    health, bag = found["health"], found["bag"]
    distortion = found.get("distortion")
    return {
        **cost,
        "name": name,
        "vocabulary": health["vocabulary"],
        "perplexity": health["perplexity"],
        "dead": health["dead"],
        "distortion": f"{distortion['share_of_variance']:.1%}" if distortion else "–",
        "bits": found["token"]["bits"],
        "bag": f"{bag['value']:.1%} ({bag['low']:.1%} – {bag['high']:.1%})",
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    lines += [" | ".join(form.format(**row) for form in COLUMNS.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizers, JSON and table")
    parser.add_argument("--codes", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--epochs", type=int, default=3, help="of VQ-KD")
    parser.add_argument("--limit", type=int, default=10_000, help="pictures that are inspected")
    parser.add_argument("--only", default="", help="tokenizers whose name contains this")
    o = parser.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)
    wanted = [(name, codes, made) for codes in o.codes for name, made in commands(codes, o.epochs).items()]
    rows = [measure(name, codes, made, o.out, o.limit) for name, codes, made in wanted if o.only in name]
    about = (
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores; inspected on {o.limit:,} pictures"
    )
    (o.out / "tokenizers.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    (o.out / "table.md").write_text(f"{about}\n\n{table(rows)}\n")
    print((o.out / "table.md").read_text())


if __name__ == "__main__":
    main()
