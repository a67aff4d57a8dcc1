"""One encoder on several data sets: k-NN, probes and fine-tuning in one table."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mapet.api.encoders import load_encoder
from mapet.api.evaluate import evaluate
from mapet.api.images import absolute
from mapet.api.protocols import PROTOCOLS, protocol_names, require_read
from mapet.api.scores import entries, plain
from mapet.config.evaluate import EvaluateSettings
from mapet.config.finetune import FinetuneRecipe, protocol
from mapet.config.flat import updated
from mapet.config.setting import distinct, separated
from mapet.utils.errors import MapetError
from mapet.utils.log import log
from mapet.utils.owned import require_apart

if TYPE_CHECKING:
    from mapet.evals.score import Score

FORM = "mapet transfer 1"
TABLE, PAGE, SCORES, RUNS = "transfer.json", "transfer.md", "scores.json", "finetune"
TITLES = {"knn": "k-NN", "finetune": "fine-tuning"}


@dataclass(frozen=True)
class Transfer:
    """The table.

    Attributes:
        scores: by data set and protocol ("finetune" for a fine-tuning), the scores by name, as ``top1``.
        protocols: the text under which each is reported.
        origin: FROM, as it was given.
    """

    scores: "Mapping[str, Mapping[str, Mapping[str, Score]]]"
    protocols: Mapping[str, str]
    origin: str

    def rows(self) -> list[list[str]]:
        """The head, then for each data set its name and its accuracies with 95 % intervals."""
        columns = [(name, metric) for name in self.protocols for metric in self._metrics(name)]
        head = [TITLES.get(name, name) + ("" if metric == "top1" else f" {metric}") for name, metric in columns]
        return [["data", *head], *([data, *(str(found[name][metric]) for name, metric in columns)]
                                   for data, found in self.scores.items())]  # fmt: skip

    def text(self) -> str:
        """Aligned columns."""
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def markdown(self) -> str:
        """The table and its protocols in Markdown."""
        head, *rows = self.rows()
        lines = [head, ["---"] * len(head), *rows]
        table = "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in lines)
        notes = [f"- {TITLES.get(name, name)}: {text}" for name, text in self.protocols.items()]
        return "\n".join([f"# {self.origin}", "", table, "", "Top-1 accuracy with 95 % intervals.", "", *notes, ""])

    def _metrics(self, name: str) -> list[str]:
        """``top1``, or what a protocol has instead of it, such as few-shot scores."""
        names = list(next(iter(self.scores.values()))[name])
        return ["top1"] if "top1" in names else names


def transfer(
    source: str | Path,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    protocols: str | Iterable[str] = ("knn", "linear"),
    finetune: bool = False,
    recipe: FinetuneRecipe | str | Path | None = None,
    settings: EvaluateSettings | None = None,
    **changes: Any,
) -> Transfer:
    """Evaluate an encoder on several data sets, and write one table of them.

    >>> print(mapet.transfer("runs/first", ["cifar10", "flowers"], "transfer").text())

    Args:
        source: FROM, as in ``evaluate``.
        data: two or more sets, each a folder with one sub-folder per class, or ``"cifar10"``.
        out: new or empty folder for ``transfer.json``, ``transfer.md``, ``scores.json`` and the fine-tunings; or that
            of an interrupted call, which continues.
        protocols: as in ``evaluate``.
        finetune: also fine-tune on each set.
        recipe: of the fine-tunings, settings, their name or a YAML file; None: the defaults.
        settings: as in ``evaluate``.
        changes: as in ``evaluate``.

    Raises:
        MapetError: as ``evaluate`` and ``finetune``, or ``out`` holds something else or a table of other settings.
        Stopped: as ``finetune``.
    """
    from mapet.api.embed import encoder_hash
    from mapet.api.finetune import named_tuning
    from mapet.data.dataset import require_labels, train_and_test

    s = updated(settings or EvaluateSettings(), **changes)
    names, sets = protocol_names(protocols), separated(data)
    distinct(sets, "data")
    if not sets:
        raise MapetError("--data is empty: give several sets of labelled images, separated by commas.")
    require_read(names, s)
    if recipe is not None and not finetune:
        raise MapetError("--recipe only applies to --finetune; remove it, or add that.")
    for one in sets:
        require_apart(out, data=one)
        require_labels(*train_and_test(one, max_pixels=s.features.max_pixels))
    t = named_tuning(recipe)
    about = {
        "encoder": encoder_hash(load_encoder(source, num_heads=s.features.num_heads)),
        "settings": _kept(s),
        **({"recipe": json.loads(json.dumps(asdict(t)))} if finetune else {}),
    }
    table = _Table(Path(out).expanduser(), about)
    texts = {name: PROTOCOLS[name].describe(s) for name in names} | ({"finetune": protocol(t)} if finetune else {})
    for one in sets:
        log.info(f"data      {one}")
        if missing := [name for name in names if name not in table.of(one)]:
            found = evaluate(source, one, missing, out=table.folder / SCORES, settings=s)
            table.add(one, {name: plain(found[name]) for name in names if name in found})
        if finetune and "finetune" not in table.of(one):
            table.add(one, {"finetune": _finetuned(source, one, table.folder, t, s)})
    made = Transfer(table.scores(sets, texts), texts, str(source))
    table.finish(made)
    return made


def _kept(s: EvaluateSettings) -> dict[str, Any]:
    """The settings that decide the scores."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(s)))
    for name in ("accelerator", "workers", "max_bad_fraction", "cache_gib"):
        del found["features"][name]
    return found


def _finetuned(
    source: str | Path, data: str, folder: Path, t: FinetuneRecipe, s: EvaluateSettings
) -> dict[str, dict[str, Any]]:
    """The scores of a fine-tuning on one set, which is resumed if it was begun."""
    from mapet.api.finetune import finetune
    from mapet.api.resume import resume
    from mapet.config.runtime import Runtime

    out = folder / RUNS / re.sub(r"[^\w.-]+", "-", str(absolute(data)) if data != "cifar10" else data).strip("-")
    runtime = Runtime(
        accelerator=s.features.accelerator, workers=s.features.workers, max_bad_fraction=s.features.max_bad_fraction
    )
    if (out / "recipe.yaml").is_file():
        resume(out, runtime=runtime)
    else:
        out.parent.mkdir(exist_ok=True)
        finetune(source, data, out, recipe=updated(t, max_pixels=s.features.max_pixels), runtime=runtime)
    last = entries(out / "scores.json")[-1]
    return {name: value for name, value in last.items() if isinstance(value, dict)}


class _Table:
    """The folder with the table: what is in it is not measured again.

    Raises:
        MapetError: it holds something else, or a table of another encoder or settings.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        from mapet.utils.io import read_json, require_free

        self.folder, self.path = folder, folder / TABLE
        self.content: dict[str, Any] = {"format": FORM, "about": about, "scores": {}}
        if not self.path.exists():
            require_free(folder)
            folder.mkdir(parents=True, exist_ok=True)
            return
        self.content = read_json(self.path, "a table of mapet transfer")
        if self.content.get("format") != FORM:
            raise MapetError(f"{self.path} is not a table of mapet transfer: give another --out.")
        if self.content["about"] != about:
            kinds = {"encoder": "another encoder", "settings": "other settings"}
            other = next((kinds[name] for name in kinds if self.content["about"].get(name) != about[name]), "")
            raise MapetError(f"{folder} has a table of {other or 'other fine-tunings'}: give another --out.")

    def of(self, data: str) -> Mapping[str, Any]:
        """What is known of a set."""
        known: Mapping[str, Any] = self.content["scores"].get(data, {})
        return known

    def add(self, data: str, found: Mapping[str, Any]) -> None:
        """Keep the scores of a set."""
        from mapet.utils.io import replace_file

        self.content["scores"].setdefault(data, {}).update(found)
        replace_file(self.path, json.dumps(self.content, indent=1) + "\n")

    def scores(self, sets: Iterable[str], names: Iterable[str]) -> "dict[str, dict[str, dict[str, Score]]]":
        """The scores of the table."""
        from mapet.evals.score import Score

        return {
            data: {name: {metric: Score(**one) for metric, one in self.of(data)[name].items()} for name in names}
            for data in sets
        }

    def finish(self, made: Transfer) -> None:
        """Write the page."""
        from mapet.utils.io import replace_file

        self.content["protocols"] = dict(made.protocols)
        replace_file(self.path, json.dumps(self.content, indent=1) + "\n")
        replace_file(self.folder / PAGE, made.markdown())
