"""Do the tests notice a wrong program? Run random one-token mutants of a room against the tests of that room.

    python tools/mutants.py --room evals --number 40 --seed 0

The tree is copied, and nothing in it is changed. The tests of the room run once under coverage; then each mutant is
tried in a process forked from one that has imported the libraries: first by the tests that run its line, then by those
that run its module, then by those in a file of its name, or by all if its line is run by none, as processes that tests
start are not measured; fastest first, until one fails. Survivors are printed. Exit code 1 if one of them is not listed
with a reason in benchmarks/mutants.yaml.

With --direct fewer are tried: for code in a function those that run its line, and others of their files that run its
module, as they may share what it made; else those that run its module; and those in a file of its name. So the rate is
a lower bound, as what is run by other processes alone is "not run", but a survivor costs little.
"""

import argparse
import ast
import compileall
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import yaml

from mutations import Mutant, mutants

ROOT = Path(__file__).parents[1]
EQUIVALENT = ROOT / "benchmarks" / "mutants.yaml"
ROOMS = ("method", "evals", "engine", "build", "config", "data", "tokenizers", "interop", "api", "utils", "viz", "cli")
CAUGHT, SURVIVED = 1, 0  # exit codes of pytest
PYTEST = ["-p", "no:cacheprovider", "-p", "no:xdist", "--no-header", "--tb=no"]


class Coverage:
    """A pytest plugin that notes which lines of the room each test runs, and for how long."""

    def __init__(self, source: Path) -> None:
        import coverage

        self.source, self.seconds = source, {}
        self.measured = coverage.Coverage(data_file=None, source=[str(source)], messages=False)

    def pytest_sessionstart(self) -> None:
        self.measured.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.measured.switch_context(nodeid)

    def pytest_runtest_logreport(self, report) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration

    def write(self, path: Path) -> None:
        self.measured.stop()
        data = self.measured.get_data()
        lines = {
            str(Path(file).relative_to(self.source)): data.contexts_by_lineno(file) for file in data.measured_files()
        }
        path.write_text(json.dumps({"seconds": self.seconds, "lines": lines}))


def pytest_in_a_fork(arguments: list[str], copy: Path, limit: float, note: Path | None = None) -> int:
    """pytest's exit code in a forked process, or the negative number of the signal that ended it."""
    child = os.fork()
    if not child:
        os.setsid()
        os.chdir(copy)
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silent, stream)
        sys.path[:0] = [str(copy / "src"), str(copy / "tests")]
        os.environ["PYTHONPATH"] = str(copy / "src")
        import pytest

        plugin = Coverage(copy / "src" / "mapet") if note else None
        code = int(pytest.main(arguments, plugins=[plugin] if plugin else []))
        if plugin:
            plugin.write(note)
        os._exit(code)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            stop(child)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    stop(child)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stop(group: int) -> None:
    """Kill what is left of a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def copied(folder: Path) -> Path:
    """A copy of the files that git knows or would, compiled such that a changed file is seen."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    for name in listed.stdout.decode().rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    compileall.compile_dir(
        folder / "src", quiet=2, invalidation_mode=compileall.py_compile.PycInvalidationMode.CHECKED_HASH
    )
    return folder


def noted(copy: Path, room: str, tests: list[str], limit: float) -> dict:
    """What each line of the room is run by, and how long each test takes."""
    note = copy / "covered.json"
    code = pytest_in_a_fork([*PYTEST, *tests], copy, limit, note)
    if code:
        sys.exit(f"The tests of {room} do not pass as they are (exit code {code}): {' '.join(tests)}")
    return json.loads(note.read_text())


def in_function(source: bytes, line: int) -> bool:
    """Whether the line is in the body of a function, which does not run when its module is imported."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds))
    return any(one.body[0].lineno <= line <= one.end_lineno for one in functions)


def judged(mutant: Mutant, module: str, covered: dict, copy: Path, limit: float, direct: bool) -> str:
    """ "killed", "timeout", "survived" or "not run"."""
    lines, seconds = covered["lines"].get(module, {}), covered["seconds"]
    of_line = {test for test in lines.get(str(mutant.line), []) if test}
    of_module = {test for tests in lines.values() for test in tests if test} - of_line
    path = copy / "src" / "mapet" / module
    own = {test for test in seconds if f"/test_{path.stem}" in test}  # their forks are not measured
    elsewhere = own if of_line or direct else seconds.keys()
    before = path.read_bytes()
    if direct:
        files = {test.partition("::")[0] for test in of_line}
        if in_function(before, mutant.line):
            of_module = {test for test in of_module if test.partition("::")[0] in files}
        else:  # attributed to the test that happened to import the module
            of_line, of_module = of_line | of_module, set()
    path.write_bytes(mutant.source)
    try:
        for tests in (of_line, of_module, elsewhere - of_line - of_module):
            if tests:
                first = sorted(tests, key=lambda test: (test in elsewhere - own, seconds[test]))
                allowed = limit + 3 * sum(seconds[test] for test in first)
                code = pytest_in_a_fork([*PYTEST, "-x", *first], copy, allowed)
                if code != SURVIVED:
                    return "timeout" if code == -signal.SIGKILL else "killed"
    finally:
        path.write_bytes(before)
    return "survived" if of_line else "not run"


def drawn(room: str, number: int, seed: int, only: list[str]) -> list[tuple[str, Mutant]]:
    """``number`` mutants of the room, one of each module in turn."""
    source, chance = ROOT / "src" / "mapet", random.Random(f"{room} {seed}")
    decks = {}
    for path in sorted((source / room).rglob("*.py")):
        if (path.stem in only or not only) and (deck := mutants(path.read_bytes())):
            chance.shuffle(deck)
            decks[path.relative_to(source).as_posix()] = deck
    chosen, names = [], list(decks)
    chance.shuffle(names)
    while len(chosen) < number and any(decks.values()):
        chosen += [(name, decks[name].pop()) for name in names if decks[name]]
    return chosen[:number]


def listed() -> set[tuple[str, str, str]]:
    """(module, line, changed line) of the mutants that change nothing that matters; "" for any change of the line."""
    known = yaml.safe_load(EQUIVALENT.read_text()) or []
    return {(one["module"], one["line"], one.get("mutant", "")) for one in known if one["reason"]}


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", required=True, choices=ROOMS, help="folder of src/mapet")
    parser.add_argument("--number", type=int, default=40, help="mutants, spread over the modules of the room")
    parser.add_argument("--seed", type=int, default=0, help="which mutants")
    parser.add_argument("--modules", nargs="+", default=[], help="only the files of these names, without .py")
    parser.add_argument("--tests", nargs="+", help="test files; by default the folder of the room")
    parser.add_argument("--minutes", type=float, default=600.0, help="begin no mutant after this time")
    parser.add_argument("--direct", action="store_true", help="only the tests that run the line: a lower bound, faster")
    parser.add_argument("--covered", type=Path, help="file of what the tests run: read if it is there, else written")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds added to thrice the tests' own time")
    return parser.parse_args()


def main() -> int:
    """Try the mutants and print the survivors."""
    options = arguments()
    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    import lightning_fabric  # noqa: F401  the processes are forked, so each library is imported once
    import pytest  # noqa: F401
    import timm  # noqa: F401
    import torchvision  # noqa: F401

    known, results, end = listed(), defaultdict(list), time.monotonic() + 60 * options.minutes
    chosen = drawn(options.room, options.number, options.seed, options.modules)
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        tests = options.tests or [f"tests/{options.room}"]
        if options.covered and options.covered.is_file():
            covered = json.loads(options.covered.read_text())
        else:
            covered = noted(copy, options.room, tests, 3600.0)
            if options.covered:
                options.covered.write_text(json.dumps(covered))
        seconds = covered["seconds"].values()
        print(f"{len(chosen)} mutants of {options.room}, seed {options.seed}", flush=True)
        print(f"{len(seconds)} tests, {sum(seconds):.0f} s", flush=True)
        for module, mutant in chosen:
            if time.monotonic() > end:
                break
            verdict = judged(mutant, module, covered, copy, options.limit, options.direct)
            equivalent = {(module, mutant.before, after) for after in ("", mutant.after)} & known
            if verdict in ("survived", "not run") and equivalent:
                verdict = "equivalent"
            results[verdict].append(module)
            if verdict in ("survived", "not run"):
                print(f"{verdict}: {module}:{mutant.line}\n  - {mutant.before}\n  + {mutant.after}", flush=True)
    counts = Counter({verdict: len(modules) for verdict, modules in results.items()})
    caught, alive = counts["killed"] + counts["timeout"], counts["survived"] + counts["not run"]
    share = 100 * caught / max(1, caught + alive)
    print(
        f"{options.room}: {share:.0f} % of {caught + alive} caught, {counts['equivalent']} equivalent ({dict(counts)})"
    )
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main())
