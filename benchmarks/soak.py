"""Soak: a training that is killed, damaged and starved again and again ends bit-equal to an undisturbed one.

python benchmarks/soak.py --seconds 3600 --processes 2
python benchmarks/soak.py --seconds 60 --seed 7 --faults write,full

Each start of the run has one fault, drawn by the seed, which is printed:

- ``group``: SIGKILL of all processes at some moment
- ``write``: the same at the n-th operation on files (rename, flush, deletion, new file), before or after it
- ``rank``: SIGKILL of one of two processes; the other one must end by itself
- ``worker``: SIGKILL of a loader worker
- ``full``: no file may grow beyond some size, as on a full disk
- ``image``: a damaged image, restored afterwards
- ``checkpoint``: the last checkpoint truncated or with a flipped bit before the start, then ``group``

The objective, which is a file beside the run, writes down which images and tokens it sees in which step: after each
complete training every image was seen exactly once in each epoch, with its own tokens, by any of the processes.
"""

import argparse
import ctypes
import os
import random
import re
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mapet.cli import main as mapet
from mapet.engine.fit import SALT
from mapet.engine.run import Run, load_checkpoint
from mapet.utils.rng import random_bits

FAULTS = ("group", "write", "rank", "worker", "full", "image", "checkpoint")
IMAGES, BATCH, EPOCHS, SEED = 24, 8, 6, 3
STEPS = IMAGES // BATCH * EPOCHS
PATIENCE = 120.0  # seconds; a process that takes longer hangs
MODEL = (
    "--model custom --embed-dim 16 --depth 2 --num-heads 2 --image-size 16 --patch-size 4 "
    "--drop-path 0.2 --color-jitter 0"
)
TRAINING = f"--batch-size {BATCH} --epochs {EPOCHS} --warmup-epochs 1 --seed {SEED} --save-every 2 --accelerator cpu"
LOADING = "--workers 1 --cache-gib 0 --max-bad-fraction 0"
OBJECTIVE = '''
"""Predicts the tokens of all patches, and writes down what it sees: the seed of the step, image and tokens."""

import hashlib
import os

import torch
from torch import nn


class Counted(nn.Module):
    def __init__(self, encoder, vocabulary):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.embed_dim, vocabulary)

    @classmethod
    def from_recipe(cls, recipe, encoder, vocabulary):
        return cls(encoder, vocabulary)

    def forward(self, images, tokens, order, seed):
        pairs = [(one.numpy().tobytes(), own.numpy().tobytes()) for one, own in zip(images, tokens)]
        lines = [" ".join(hashlib.sha1(part).hexdigest() for part in pair) for pair in pairs]
        file = os.open(os.environ["SOAK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, "".join(f"{torch.initial_seed()} {line}\\n" for line in lines).encode())
        os.close(file)
        logits = self.head(self.encoder(images)[:, 1:] + 0.1 * torch.rand(()))
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())}
'''


class Failed(Exception):
    """What must not be."""


class Group:
    """Processes of one training, each a fork of this one, in one process group."""

    def __init__(self, work: list[Callable[[], int]], folder: Path) -> None:
        self.errors = [folder / f"{rank}.err" for rank in range(len(work))]
        self.pids: list[int] = []
        self.codes: dict[int, int] = {}
        for one, error in zip(work, self.errors, strict=True):
            leader = self.pids[0] if self.pids else 0
            if not (pid := os.fork()):
                os._exit(_child(one, error, leader))
            with suppress(OSError):  # the child does the same; whoever is first
                os.setpgid(pid, leader or pid)
            self.pids.append(pid)

    def running(self) -> list[int]:
        for pid in self.pids:
            if pid not in self.codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                self.codes[pid] = os.waitstatus_to_exitcode(found[1])
        return [pid for pid in self.pids if pid not in self.codes]

    def wait(self, until: Callable[[], bool] = lambda: False, seconds: float = PATIENCE) -> bool:
        """Until all have ended (True), or before that something holds (False)."""
        end = time.monotonic() + seconds
        while self.running():
            if until():
                return False
            if time.monotonic() > end:
                self.kill()
                raise Failed(f"still running after {seconds:.0f} s: {self.said()}")
            time.sleep(0.01)
        return True

    def kill(self) -> None:
        """SIGKILL to all that is left, workers included."""
        with suppress(ProcessLookupError):
            os.killpg(self.pids[0], signal.SIGKILL)
        for pid in self.running():
            os.kill(pid, signal.SIGKILL)
            self.codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def workers(self) -> list[int]:
        """The children of the processes."""
        found = []
        for pid in self.running():
            with suppress(OSError):
                found += Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(pid) for pid in found]

    def said(self) -> str:
        return "".join(path.read_text() for path in self.errors if path.exists())


def _child(work: Callable[[], int], error: Path, leader: int) -> int:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it does not outlive the soak
    with suppress(OSError):
        os.setpgid(0, leader)
    for stream, path in ((1, os.devnull), (2, error)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), stream)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w") for number in (1, 2))
    try:
        return work()
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


class Soak:
    """One data set, its tokens, the undisturbed run, and the disturbed one."""

    def __init__(self, folder: Path, processes: int, seed: int, faults: tuple[str, ...] = FAULTS) -> None:
        self.folder, self.processes = folder, processes
        self.faults = [one for one in faults if one != "rank" or processes > 1]
        self.chance = random.Random(seed)
        self.data, self.tokens, self.objective = folder / "images", folder / "tokens", folder / "counted.py"
        self.starts: Counter[str] = Counter()
        self.bag: list[str] = []
        _import()
        _draw(self.data)
        self.objective.write_text(OBJECTIVE)
        options = "--image-size 16 --patch-size 4 --vocab-size 16 --iterations 3"
        self._finish("tokenize", f"--data {self.data} --out {self.tokens} {options}")
        self.whole = folder / "whole"
        group = self._begin(self.whole)
        group.wait()
        if not self.complete(self.whole):
            raise Failed(f"the undisturbed training did not end: {group.said()}")
        self.check(self.whole)

    def disturb(self, out: Path) -> str:
        """One start of the run in ``out`` with a fault. Returns the fault's name."""
        if not self.bag:  # each fault once before any comes again
            self.bag = self.chance.sample(self.faults, len(self.faults))
        fault = self.bag.pop()
        self.starts[fault] += 1
        getattr(self, f"_{fault}")(out)
        return fault

    def finish(self, out: Path) -> None:
        """Train to the end without a fault, then compare with the undisturbed run."""
        group = self._begin(out)
        group.wait()
        if set(group.codes.values()) != {0} or not self.complete(out):
            raise Failed(f"the last start did not end well: {group.codes}, {group.said()}")
        self.check(out)

    def complete(self, out: Path) -> bool:
        return _steps(out) >= STEPS and Run(out).completed == STEPS

    def check(self, out: Path) -> None:
        """Weights and metrics of the undisturbed run; every image once in each epoch, with its own tokens."""
        (_, found), (_, wanted) = (load_checkpoint(Run(one).last) for one in (out, self.whole))
        different = [name for name in wanted if name not in found or not torch.equal(found[name], wanted[name])]
        if different or found.keys() != wanted.keys():
            raise Failed(f"other weights than the undisturbed run: {different[:3]}")
        if Run(out).metrics.read_bytes() != Run(self.whole).metrics.read_bytes():
            raise Failed("other metrics than the undisturbed run")
        counted(_log(out), self.processes, _log(self.whole))

    def _finish(self, verb: str, options: str) -> None:
        group = Group([lambda: mapet([verb, *options.split()])], self.folder)
        group.wait()
        if set(group.codes.values()) != {0}:
            raise Failed(f"mapet {verb}: {group.said()}")

    def _begin(self, out: Path, before: Callable[[int], None] = lambda rank: None) -> Group:
        """Start the run, or resume it; ``before`` is called in each process."""
        devices = ["--devices", str(self.processes), "--timeout", "0.5"]  # minutes; torch tries to join twice
        if Run(out).recipe.exists():
            words = ["pretrain", "--resume", str(out), *devices]
        else:
            given = f"--data {self.data} --tokens {self.tokens} --out {out} --objective {self.objective}:Counted"
            words = ["pretrain", *f"{given} {MODEL} {TRAINING} {LOADING}".split(), *devices]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        size = str(self.processes)
        joint = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

        def work(rank: int) -> Callable[[], int]:
            def run() -> int:
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
                os.environ.update({"SOAK_LOG": str(_log(out)), **(joint | own if self.processes > 1 else {})})
                before(rank)
                return mapet(words)

            return run

        return Group([work(rank) for rank in range(self.processes)], self.folder)

    def _moment(self, out: Path) -> Callable[[], bool]:
        """A random moment: soon after the start, or after some more steps."""
        begun, delay = time.monotonic(), self.chance.uniform(0, 1)
        steps = self.chance.choice((0, _steps(out) + self.chance.randint(1, 4)))
        return lambda: _steps(out) >= steps and (steps or time.monotonic() > begun + delay)

    def _group(self, out: Path) -> None:
        group = self._begin(out)
        group.wait(self._moment(out))
        group.kill()
        _expect(group, {0, -9})

    def _write(self, out: Path) -> None:
        number, after, rank = self.chance.randint(1, 60), self.chance.random() < 0.5, 0
        group = self._begin(out, lambda own: _die_at(number, after) if own == rank else None)
        group.wait(lambda: -9 in group.codes.values())
        group.kill()
        _expect(group, {0, -9})

    def _rank(self, out: Path) -> None:
        group, victim = self._begin(out), self.chance.randrange(self.processes)
        if not group.wait(self._moment(out)):
            if group.pids[victim] in group.running():
                os.kill(group.pids[victim], signal.SIGKILL)
            group.wait()
        group.kill()

    def _worker(self, out: Path) -> None:
        group, moment = self._begin(out), self._moment(out)
        if not group.wait(lambda: bool(moment() and group.workers())):
            for worker in self.chance.sample(group.workers(), min(1, len(group.workers()))):
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
            group.wait()
        group.kill()

    def _full(self, out: Path) -> None:
        largest = Run(self.whole).last.stat().st_size
        limit = self.chance.choice((largest // 2, largest - 1, self.chance.randint(2_000, largest)))
        group = self._begin(out, lambda rank: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        group.wait(lambda: self.processes > 1 and 2 in group.codes.values())
        group.kill()
        _expect(group, {0, 2} if self.processes == 1 else {0, 2, -9, 1})

    def _image(self, out: Path) -> None:
        path = self.chance.choice(sorted(self.data.iterdir()))
        content = path.read_bytes()
        path.write_bytes(content[: self.chance.randrange(len(content) // 2)])
        try:
            group = self._begin(out)
            group.wait(lambda: self.processes > 1 and 2 in group.codes.values())
            group.kill()
        finally:
            path.write_bytes(content)
        (out / "unreadable-images.txt").unlink(missing_ok=True)  # as the message says
        _expect(group, {0, 2} if self.processes == 1 else {0, 2, -9, 1}, path.name)

    def _checkpoint(self, out: Path) -> None:
        last = Run(out).checkpoints / "last.safetensors"
        if last.exists() and (last.parent / "previous.safetensors").exists():
            content = bytearray(last.read_bytes())
            if self.chance.random() < 0.5:
                del content[self.chance.randrange(len(content)) :]
            else:
                content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
            last.write_bytes(bytes(content))
        self._group(out)


def counted(log: Path, processes: int, whole: Path) -> None:
    """Every image once in each epoch, with its own tokens; a step that was repeated saw the same.

    Raises:
        Failed: names the epoch.
    """
    numbers = torch.arange(1, STEPS + 1)
    steps = {
        int(bits) % 2**64: (int(step), rank)
        for rank in range(processes)
        for step, bits in zip(numbers, random_bits(SEED, SALT, numbers, rank), strict=True)
    }
    seen = dict(_passes(log, steps))
    own = {pair for pairs in dict(_passes(whole, steps)).values() for pair in pairs}
    if len(own) != IMAGES or len({image for image, _ in own}) != IMAGES:
        raise Failed(f"{len(own)} pairs of image and tokens for {IMAGES} images")
    per_epoch = STEPS // EPOCHS
    for epoch in range(EPOCHS):
        span = range(epoch * per_epoch + 1, (epoch + 1) * per_epoch + 1)
        found = Counter(pair for (step, _), pairs in seen.items() if step in span for pair in pairs)
        if found != Counter(own):
            twice, missed = (found - Counter(own)).total(), (Counter(own) - found).total()
            raise Failed(f"epoch {epoch + 1}: {twice} images too often or with foreign tokens, {missed} missed")


def _passes(log: Path, steps: dict[int, tuple[int, int]]) -> Iterator[tuple[tuple[int, int], frozenset[Any]]]:
    """((step, rank), the images with tokens) of all forward passes."""
    found: dict[tuple[int, int], list[tuple[str, str]]] = {}
    for line in log.read_text().splitlines():
        seed, image, tokens = line.split()
        if int(seed) in steps:
            found.setdefault(steps[int(seed)], []).append((image, tokens))
    for key, pairs in found.items():
        repeats = Counter(pairs)
        if len(set(repeats.values())) > 1:
            raise Failed(f"step {key[0]} of process {key[1]} saw other images when it was repeated")
        yield key, frozenset(pairs)


def _import() -> None:
    """What every fork would import for itself."""
    for name in ("api.pretrain", "api.resume", "api.tokenize", "api.training", "cli.pretrain", "cli.tokenize"):
        import_module(f"mapet.{name}")
    for name in ("lightning_fabric", "timm", "tensorboard", "torch.utils.tensorboard"):
        import_module(name)


def _die_at(number: int, after: bool) -> None:
    """Kill the process group of this process at its ``number``-th operation on files."""
    numbers = count(1)

    def fatal(plain: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*given: Any, **named: Any) -> Any:
            last = next(numbers) == number
            result = None if last and not after else plain(*given, **named)
            if last:
                os.killpg(0, signal.SIGKILL)
            return result

        return operation

    for name in ("replace", "rename", "fsync", "unlink", "mkdir", "ftruncate"):
        setattr(os, name, fatal(getattr(os, name)))


def _expect(group: Group, codes: set[int], named: str = "") -> None:
    """No traceback, one of these exit codes; code 2 with a line that names a file."""
    said = group.said()
    if "Traceback" in said:
        raise Failed(f"a traceback: {said}")
    if not set(group.codes.values()) <= codes:
        raise Failed(f"exit codes {sorted(group.codes.values())}, not {sorted(codes)}: {said}")
    lines = [line for line in said.splitlines() if re.match(r"mapet( \(rank \d\))?: ", line)]
    if 2 in group.codes.values() and not any(named in line for line in lines):
        raise Failed(f"no line that names {named or 'the reason'}: {said}")


def _draw(folder: Path) -> None:
    folder.mkdir()
    chance = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = chance.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")


def _log(out: Path) -> Path:
    return out.with_name(f"{out.name}.seen")


def _steps(out: Path) -> int:
    """Rows of the metrics."""
    try:
        return max(0, Run(out).metrics.read_bytes().count(b"\n") - 1)
    except OSError:
        return 0


def soak(folder: Path, seconds: float, processes: int, seed: int, faults: tuple[str, ...], starts: int = 0) -> Counter:
    """Trainings with faults for so many seconds, or ``starts`` starts. Returns the number of starts per fault."""
    one = Soak(folder, processes, seed, faults)
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end and (not starts or one.starts.total() < starts):
        out, number, history = folder / f"run{number}", number + 1, []
        try:
            while not (history and one.complete(out)) and time.monotonic() < end:
                history.append(one.disturb(out))
                if starts and one.starts.total() >= starts:
                    break
            one.finish(out)
        except Failed as error:
            raise Failed(f"seed {seed}, {processes} processes, {out}, after {' '.join(history)}: {error}") from error
        shutil.rmtree(out)
    return one.starts


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--faults", type=lambda text: tuple(text.split(",")), default=FAULTS)
    options = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    torch.set_num_threads(1)
    try:
        done = soak(folder, options.seconds, options.processes, seed, options.faults)
    except Failed as error:
        print(f"FAILED: {error}\nthe folder is kept: {folder}")
        return 1
    shutil.rmtree(folder)
    each = ", ".join(f"{name} {number}" for name, number in sorted(done.items()))
    print(f"{done.total()} starts ({each}): all ended bit-equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
