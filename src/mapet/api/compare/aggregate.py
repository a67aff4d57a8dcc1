"""What came out of a comparison: rows for the CSV files, and entries for table and figures."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from mapet.api.compare.plan import Plan, Trial, Variant
from mapet.api.compare.results_folder import ResultsFolder
from mapet.config.objectives import short_name
from mapet.evals.score import student
from mapet.viz.table import Entry, Estimate

FLOPS = 2  # of one multiply-accumulate
SCORE = ("evaluation", "metric", "value", "low", "high", "count", "note")
RESULT = ("budget", "method", "setting", "epochs", "seed", *SCORE)
COST = ("run", "method", "setting", "epochs", "seed", "images", "gmac", "training_gmac", "pflop", "seconds", "peak_gib")
CURVE = ("run", "method", "setting", "seed", "epoch", "step", "pflop", "value")


def results(plan: Plan, cells: Mapping[str, Sequence[Trial]], ledger: ResultsFolder) -> list[dict[str, Any]]:
    """One row a cell and metric, in the plan's sequence; nothing in it hangs on the machine's speed."""
    rows = []
    for budget, own in cells.items():
        for cell in own:
            known = ledger.known(cell)
            for what in (name for name in plan.measures if name in known):
                for metric, score in known[what].items():
                    about = {**_about(cell, known), "budget": budget, "evaluation": what, "metric": metric}
                    rows.append({name: {"note": "", **about, **score}[name] for name in RESULT})
    return rows


def costs(cells: Iterable[Trial], ledger: ResultsFolder) -> list[dict[str, Any]]:
    """One row a trained cell: images, compute, and what hangs on the machine."""
    rows = []
    for cell in cells:
        if cost := ledger.known(cell).get("cost"):
            rows.append({**_about(cell, {"cost": cost}), "run": cell.name, **_shown(cost)})
    return [{name: row[name] for name in COST} for row in rows]


def curves(cells: Iterable[Trial], ledger: ResultsFolder) -> list[dict[str, Any]]:
    """k-NN accuracy while training: one row a kept checkpoint."""
    rows = []
    for cell in cells:
        known = ledger.known(cell)
        for step, value in sorted(known.get("curve", {}).items(), key=lambda point: int(point[0])):
            cost, done = known["cost"], int(step) / known["cost"]["steps"]
            about = {"run": cell.name, "step": int(step), "value": value, "epoch": round(done * cost["epochs"], 6)}
            rows.append({**_about(cell, known), **about, "pflop": done * _shown(cost)["pflop"]})
    return [{name: row[name] for name in CURVE} for row in rows]


def written(rows: Sequence[Mapping[str, Any]], header: Sequence[str]) -> str:
    """The rows as CSV."""
    text = StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def entries(plan: Plan, own: Sequence[Trial], ledger: ResultsFolder) -> list[Entry]:
    """One entry an arm of one budget, over its seeds that are done."""
    arms: dict[int, tuple[Variant, list[dict[str, Any]]]] = {}
    for cell in own:
        known = ledger.known(cell)
        if "cost" in known:
            arms.setdefault(id(cell.arm), (cell.arm, []))[1].append(known)
    return [_entry(plan, arm, known) for arm, known in arms.values()]


def _entry(plan: Plan, arm: Variant, known: Sequence[Mapping[str, Any]]) -> Entry:
    cost, times = known[0]["cost"], [one["cost"]["seconds"] for one in known]
    peaks = [one["cost"]["peak"] for one in known if one["cost"]["peak"]]
    seconds = [time for time in times if time is not None]
    shown = _shown(cost)
    return Entry(
        method=short_name(arm.method),
        setting=arm.setting,
        epochs=cost["epochs"],
        images=cost["images"],
        gmac=shown["gmac"],
        pflop=shown["pflop"],
        seconds=fmean(seconds) if seconds else None,
        peak=max(peaks) / 2**30 if peaks else None,
        accuracy={
            (what, metric): _estimate([one[what][metric]["value"] for one in known if what in one])
            for what in plan.measures
            for metric in headlines(known[0].get(what, {}))
        },
    )


def headlines(scores: Mapping[str, Any]) -> list[str]:
    """The metrics of an evaluation that a table shows: ``top1``, or all where there is none."""
    return ["top1"] if "top1" in scores else list(scores)


def _estimate(values: Sequence[float]) -> Estimate:
    """The mean over seeds and how far its 95 % t-interval reaches."""
    count = len(values)
    reach = student(count - 1) * stdev(values) / sqrt(count) if count > 1 else None
    return Estimate(fmean(values), reach, count)


def _about(cell: Trial, known: Mapping[str, Any]) -> dict[str, Any]:
    epochs = known["cost"]["epochs"] if "cost" in known else cell.epochs
    about = {"method": short_name(cell.arm.method), "setting": cell.arm.setting, "seed": cell.recipe.seed}
    return {**about, "epochs": f"{epochs:.6g}"}


def _shown(cost: Mapping[str, Any]) -> dict[str, Any]:
    """A cost as it is written down: GMAC an image forward and in training, PFLOP in all, seconds, GiB."""
    return {
        "images": cost["images"],
        "gmac": cost["macs"] / 1e9,
        "training_gmac": cost["training_macs"] / 1e9,
        "pflop": FLOPS * cost["training_macs"] * cost["images"] / 1e15,
        "seconds": cost["seconds"],
        "peak_gib": cost["peak"] and cost["peak"] / 2**30,
    }
