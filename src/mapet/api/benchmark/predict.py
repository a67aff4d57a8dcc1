"""What a training step should take: each kind of its work at the rate that the machine was measured to do it.

Nothing is fitted to any training step, so that a measured step can contradict the prediction. Left out are what little
the objectives do beside their blocks, a GPU's time between kernels (small batches), and the gain of compiling.
"""

from collections.abc import Sequence
from math import log
from typing import TYPE_CHECKING

from mapet.api.benchmark.rates import Rates
from mapet.utils.errors import MapetError

if TYPE_CHECKING:
    from mapet.method.cae import CAE
    from mapet.method.mae import MAE
    from mapet.method.predict import TokenPrediction


def parts(objective: "TokenPrediction | CAE | MAE", batch: int, rates: Rates) -> dict[str, float]:
    """Seconds of one training step of ``batch`` images, by kind of work."""
    work = objective.work(training=True)
    masked = getattr(objective, "visible", None) is not None
    return {
        "products with weights": batch * 2 * work.linear / rates.linear,
        "attention": batch * 2 * work.attention / (rates.masked if masked else rates.attention),
        "norms, activations, sums": batch * work.states / rates.states,
        "loss": batch * work.scores / rates.scores,
        "optimiser": sum(p.numel() for p in objective.parameters() if p.requires_grad) / rates.parameters,
    }


def nearest(known: Sequence[Rates], width: int, precision: str) -> Rates:
    """Those of the precision that were measured for the width, or for the one nearest to it by ratio.

    Raises:
        MapetError: none is of the precision.
    """
    fitting = [rates for rates in known if rates.precision == precision]
    if not fitting:
        have = ", ".join(sorted({rates.precision for rates in known})) or "none"
        raise MapetError(
            f"No rates of {precision} were measured (there: {have}): run mapet bench --precisions {precision}."
        )
    return min(fitting, key=lambda rates: abs(log(rates.width / width)))
