"""All figures of one GPU in one command of at most eight minutes, each with its target.

    python benchmarks/gpu/gpu.py --out gpu            # on an H200-class GPU
    python benchmarks/gpu/gpu.py --out gpu --parts kmeans,first --minutes 4  # parts for which no time was left
    python benchmarks/gpu/gpu.py --out dry --dry-run  # the same parts on a CPU, tiny: the figures mean nothing

Each part runs in a separate process with a time-out; ``gpu.json`` and ``gpu.md`` are rewritten after each, so that a
part that fails, or Ctrl-C, loses no other. What a part wrote before it failed or timed out counts. Steps with a target
come first. With the ``--out`` of an earlier call, parts replace their earlier figures. Images are generated here; their
content does not matter. The models of transformers have our weights.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu_inside import INSIDE, Context
from gpu_parts import PARTS, bench_report
from mapet.api.benchmark.process import last_error
from mapet.utils.io import replace_file


def ended(command: list[str], log: Path, environment: dict[str, str], seconds: float) -> int:
    """The exit code of a command; after ``seconds``, or on Ctrl-C, it is killed with all its child processes."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            return process.wait(seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise


def measured(name: str, context: Context, seconds: float) -> dict[str, Any]:
    """Run one part: its figures, and why some are missing."""
    part, folder = PARTS[name], context.out / name
    command, began = part.command(context), time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    if "bench" not in command:  # mapet bench creates it
        folder.mkdir()
    found: dict[str, Any] = {"about": part.about, "command": shlex.join(["python", *command[1:]]), "figures": []}
    log = context.out / f"{name}.log"
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(context.cache(name))}
    failed = problem(command, log, environment, seconds, folder)
    try:
        found["figures"] = [asdict(figure) for figure in part.figures(folder, context)]
    except Exception as error:  # from incomplete files of a killed process
        failed = failed or f"{type(error).__name__}: {error}"
    if not failed and not found["figures"] and name != "images":
        failed = "no figure came out"
    if failed:
        found["failed"] = f"{failed} (see {log.name})"
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def problem(command: list[str], log: Path, environment: dict[str, str], seconds: float, folder: Path) -> str:
    """Why a command failed; empty if it did not."""
    try:
        code = ended(command, log, environment, seconds)
        reason = f"ended with {code}: {last_error(log.read_text() if log.is_file() else '')}" if code else ""
    except subprocess.TimeoutExpired:
        code, reason = None, f"no end after {seconds:.0f} s"
    noted = [f"{what}: {why}" for what, why in bench_report(folder)["failed"].items()]
    return "; ".join(([reason] if reason and not (code and noted) else []) + noted)


def markdown(report: dict[str, Any]) -> str:
    """The table, and the missing figures."""
    lines = ["| what | measured | bar | holds |", "|---|---|---|---|", *_lines(report)]
    missing = [f"- {name}: {part['failed']}" for name, part in report["parts"].items() if "failed" in part]
    dry = ["**A dry run on a CPU at a tiny size: these figures mean nothing.**"] if report["dry run"] else []
    head = f"{report['date']}, {report['machine']}:\n`{report['command']}`"
    end = ["Not measured, or only in part:", "\n".join(missing)] if missing else []
    return "\n\n".join([*dry, head, "\n".join(lines), *end]) + "\n"


def _lines(report: dict[str, Any]) -> Iterator[str]:
    words = {None: "", True: "yes", False: "**no**"}
    for part in report["parts"].values():
        for one in part["figures"]:
            yield f"| {one['what']} | {one['value']} | {one['bar']} | {words[one['holds']]} |"


def begun(context: Context) -> dict[str, Any]:
    """The report so far, of an earlier call or new."""
    import torch

    from mapet.api.benchmark.hardware import provenance

    path = context.out / "gpu.json"
    earlier = json.loads(path.read_text()) if path.is_file() else {"parts": {}, "dry run": context.dry}
    if earlier["dry run"] != context.dry:
        sys.exit(f"{context.out} is {'' if earlier['dry run'] else 'not '}of a dry run: give another --out.")
    if not path.is_file() and context.out.exists() and any(context.out.iterdir()):
        sys.exit(f"{context.out} is not empty: give another --out.")
    if not context.dry and not torch.cuda.is_available():
        sys.exit("There is no GPU here that torch can use: --dry-run runs every part on the CPU at a tiny size.")
    context.out.mkdir(parents=True, exist_ok=True)
    return {**provenance(torch.device(context.device)), "dry run": context.dry, "parts": earlier["parts"]}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--parts", default=",".join(PARTS), help="only these, separated by commas")
    parser.add_argument("--minutes", type=float, default=8, help="time limit of all parts together")
    parser.add_argument("--dry-run", action="store_true", help="every part on the CPU at a tiny size")
    parser.add_argument("--inside", choices=INSIDE, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    for name in chosen.parts.split(","):
        if name not in PARTS:
            parser.error(f"there is no part {name}: choose among {', '.join(PARTS)}")
    return chosen


def main() -> None:
    o = arguments()
    context, began = Context(o.out.absolute(), o.dry_run), time.monotonic()
    if o.inside:
        INSIDE[o.inside](context)
        return
    report, end = begun(context), began + 60 * o.minutes
    for name in o.parts.split(","):
        if name == "images" and "failed" not in report["parts"].get(name, {"failed": "not there yet"}):
            continue
        left = min(PARTS[name].seconds * (10 if o.dry_run else 1), end - time.monotonic())
        late = {"about": PARTS[name].about, "figures": [], "failed": f"no time was left: --parts {name} measures it"}
        part = measured(name, context, left) if left > 5 else late
        known = len(report["parts"].get(name, late)["figures"])
        if "failed" not in part or len(part["figures"]) >= known:  # earlier figures outlive a failure
            report["parts"][name] = part
        replace_file(context.out / "gpu.json", json.dumps(report, indent=1) + "\n")
        replace_file(context.out / "gpu.md", markdown(report))
        print(f"{name:<14} {part.get('seconds', 0):5.0f} s  {part.get('failed', '')}", flush=True)
        for one in part["figures"]:
            bar = f"  (bar {one['bar']})" if one["bar"] else ""
            print(f"    {one['what']}: {one['value']}{bar}", flush=True)


if __name__ == "__main__":
    main()
