"""Results of a comparison over its trials: rows of the CSV files, and entries of table and figures."""

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


def result_rows(plan: Plan, budgets: Mapping[str, Sequence[Trial]], results: ResultsFolder) -> list[dict[str, Any]]:
    """One row per trial and metric, in the plan's order; nothing in it depends on the machine's speed."""
    rows = []
    for budget, trials in budgets.items():
        for trial in trials:
            record = results.read(trial)
            for what in (name for name in plan.measures if name in record):
                for metric, score in record[what].items():
                    about = {**_about(trial, record), "budget": budget, "evaluation": what, "metric": metric}
                    rows.append({name: {"note": "", **about, **score}[name] for name in RESULT})
    return rows


def cost_rows(trials: Iterable[Trial], results: ResultsFolder) -> list[dict[str, Any]]:
    """One row per trained trial: images, compute, time and memory."""
    rows = []
    for trial in trials:
        if cost := results.read(trial).get("cost"):
            rows.append({**_about(trial, {"cost": cost}), "run": trial.name, **_shown(cost)})
    return [{name: row[name] for name in COST} for row in rows]


def curve_rows(trials: Iterable[Trial], results: ResultsFolder) -> list[dict[str, Any]]:
    """k-NN accuracy during training: one row per kept checkpoint."""
    rows = []
    for trial in trials:
        record = results.read(trial)
        for step, value in sorted(record.get("curve", {}).items(), key=lambda point: int(point[0])):
            cost, done = record["cost"], int(step) / record["cost"]["steps"]
            about = {"run": trial.name, "step": int(step), "value": value, "epoch": round(done * cost["epochs"], 6)}
            rows.append({**_about(trial, record), **about, "pflop": done * _shown(cost)["pflop"]})
    return [{name: row[name] for name in CURVE} for row in rows]


def csv_text(rows: Sequence[Mapping[str, Any]], header: Sequence[str]) -> str:
    """The rows as CSV."""
    text = StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def entries(plan: Plan, trials: Sequence[Trial], results: ResultsFolder) -> list[Entry]:
    """One entry per variant of one budget, over its finished seeds."""
    variants: dict[int, tuple[Variant, list[dict[str, Any]]]] = {}
    for trial in trials:
        record = results.read(trial)
        if "cost" in record:
            variants.setdefault(id(trial.variant), (trial.variant, []))[1].append(record)
    return [_entry(plan, variant, records) for variant, records in variants.values()]


def _entry(plan: Plan, variant: Variant, records: Sequence[Mapping[str, Any]]) -> Entry:
    cost, times = records[0]["cost"], [one["cost"]["seconds"] for one in records]
    peaks = [one["cost"]["peak"] for one in records if one["cost"]["peak"]]
    seconds = [time for time in times if time is not None]
    shown = _shown(cost)
    return Entry(
        method=short_name(variant.method),
        setting=variant.setting,
        epochs=cost["epochs"],
        images=cost["images"],
        gmac=shown["gmac"],
        pflop=shown["pflop"],
        seconds=fmean(seconds) if seconds else None,
        peak=max(peaks) / 2**30 if peaks else None,
        accuracy={
            (what, metric): _estimate([one[what][metric]["value"] for one in records if what in one])
            for what in plan.measures
            for metric in headlines(records[0].get(what, {}))
        },
    )


def headlines(scores: Mapping[str, Any]) -> list[str]:
    """The metrics of an evaluation that a table shows: ``top1`` or ``mIoU`` if it has that, else all."""
    return [name for name in ("top1", "mIoU") if name in scores] or list(scores)


def _estimate(values: Sequence[float]) -> Estimate:
    """The mean over seeds and half of its 95 % t-interval."""
    count = len(values)
    reach = student(count - 1) * stdev(values) / sqrt(count) if count > 1 else None
    return Estimate(fmean(values), reach, count)


def _about(trial: Trial, record: Mapping[str, Any]) -> dict[str, Any]:
    epochs = record["cost"]["epochs"] if "cost" in record else trial.epochs
    about = {"method": short_name(trial.variant.method), "setting": trial.variant.setting, "seed": trial.recipe.seed}
    return {**about, "epochs": f"{epochs:.6g}"}


def _shown(cost: Mapping[str, Any]) -> dict[str, Any]:
    """A cost in the units of the files: GMAC per image (forward, training), PFLOP in total, seconds, GiB."""
    return {
        "images": cost["images"],
        "gmac": cost["macs"] / 1e9,
        "training_gmac": cost["training_macs"] / 1e9,
        "pflop": FLOPS * cost["training_macs"] * cost["images"] / 1e15,
        "seconds": cost["seconds"],
        "peak_gib": cost["peak"] and cost["peak"] / 2**30,
    }
