"""What k-NN and the probes share: an encoder, labelled images, and a printed result."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from mapet.api.encoders import KINDS, LoadedEncoder
from mapet.api.scores import entries, write
from mapet.cli.options import parse, positional
from mapet.utils.errors import MapetError
from mapet.utils.log import say

if TYPE_CHECKING:
    from torch import Tensor

    from mapet.evals.score import Score

    Labelled = tuple[Tensor, Tensor]
from mapet.api.evaluate import Probe, T, _plain, _scores


def asked(options: T, arguments: Sequence[str], verb: str, about: str) -> T:
    """``parse`` for options with a ``Probe``, whose FROM may come first, without ``--run``."""
    words, rest = positional(list(arguments), options)
    if len(words) > 1:
        raise MapetError(f"mapet {verb} probes one FROM at a time, and was given {', '.join(words)}.")
    named = [*rest, *(f"--run={word}" for word in words)]
    return parse(options, named, f"{verb} FROM", f"{about}\n\nFROM is {KINDS}.")


def report(scores: "Mapping[str, Score]", protocol: str, probe: Probe, start: LoadedEncoder) -> None:
    """Print the scores under their protocol's name and add them to a run's ``scores.json`` or to ``probe.out``."""
    say(f"protocol  {protocol}")
    for name, score in scores.items():
        say(f"{name:<9} {score}" + (f"  {score.note}" if score.note else ""))
    if out := _scores(probe, start):
        about = {"from": start.origin, "protocol": protocol, "step": start.step}
        about |= {"data": probe.data, "limit": probe.max_images}
        entry = {**about, **{name: _plain(score) for name, score in scores.items()}}
        write(out, [*entries(out), entry])
