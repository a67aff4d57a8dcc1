"""``mapet bench``: how fast a training step is here, beside other formulations of it and what the machine could do."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mapet.cli.options import parse, positional, take
from mapet.config.recipe import diff
from mapet.utils.errors import MapetError
from mapet.utils.log import say

if TYPE_CHECKING:
    pass
from mapet.api.benchmark.run import (
    BATCH,
    LISTS,
    Options,
    _has_cuda,
    _measure,
    _rate,
    _wrapped,
    cases,
    settings,
    validate,
)

ABOUT = """Time a training step: images/s, memory, share of the machine's peak, and what was predicted.

RECIPE is a name or FILE.yaml (or --recipe RECIPE); its settings can be changed by the options below. Every combination
of the lists is a case. Rows are written as they are finished, and Ctrl-C keeps them.

With --data, steps are also measured with loading from these images, their tokens drawn by chance."""


def command(arguments: list[str]) -> int:
    """Parse, measure, write."""
    from mapet.api.benchmark.hardware import provenance
    from mapet.api.benchmark.report import begin
    from mapet.engine.distributed import pick_device

    o = _asked(arguments)
    device = pick_device("cpu" if o.accelerator == "auto" and not _has_cuda() else o.accelerator)
    if device.type not in BATCH:
        raise MapetError(f"mapet bench measures on cpu and cuda, not on {device.type}: choose --accelerator cpu.")
    every, how = cases(o, device), settings(o)
    validate(every, how, device)
    report = begin(Path(o.out), provenance(device))
    say(_wrapped(f"machine   {report.about['machine']}"))
    _rate(every, device, report)
    for case in every:
        _measure(case, how, device, report)
    say(f"\nwritten   bench.json, bench.md in {report.folder}")
    return 2 if report.failed else 0


def _asked(arguments: list[str]) -> Options:
    from mapet.api.settings import named_recipe

    name, arguments = take(arguments, "--recipe")
    words, rest = positional(arguments, Options())
    if len(words) + (name is not None) > 1:
        raise MapetError(f'mapet bench takes one RECIPE, got also "{words[-1]}": separate lists by commas.')
    recipe = replace(named_recipe(words[0] if words else name), data="", tokens=None)
    o = parse(Options(recipe=recipe), rest, "bench RECIPE", ABOUT)
    for setting in set(diff(recipe, o.recipe)) & set(LISTS):
        raise MapetError(f"--{LISTS[setting]} takes the place of --{LISTS[setting][:-1]} in mapet bench.")
    return o
