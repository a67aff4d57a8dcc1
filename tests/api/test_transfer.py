"""``transfer`` is ``evaluate`` and ``finetune`` of each set; an interrupted call is continued."""

import json
import shutil

import pytest

import mapet
from forms import MODEL, in_all_forms
from mapet.api import transfer as module
from mapet.config.finetune import FinetuneRecipe
from mapet.config.flat import updated
from mapet.config.recipe import Recipe
from mapet.utils.errors import MapetError

SHORT = updated(FinetuneRecipe(), epochs=1, batch_size=8, warmup_epochs=0)
CPU = {"accelerator": "cpu"}
NEAR = {"k": 3, **CPU}


@pytest.fixture(scope="module")
def desk(images, tmp_path_factory):
    root = tmp_path_factory.mktemp("transfer")
    in_all_forms(Recipe(model=MODEL), root)
    shutil.copytree(images, root / "one")
    for name in ("across", "along"):
        (root / "two" / name).mkdir(parents=True)
        for number in range(0, 24, 2):
            shutil.copy(images / name / f"{number:02d}.png", root / "two" / name)
    return root


def test_the_table_holds_what_each_verb_scores(desk, tmp_path):
    sets = [str(desk / "one"), str(desk / "two")]
    made = mapet.transfer(desk / "run", sets, tmp_path / "t", protocols="knn,fewshot", finetune=True, recipe=SHORT,
                          k=3, shots=(1, 2), draws=2, **CPU)  # fmt: skip
    for one in sets:
        alone = mapet.evaluate(desk / "export", one, ["knn", "fewshot"], k=3, shots=(1, 2), draws=2, **CPU)
        assert made.scores[one]["knn"] == alone["knn"]
        assert made.scores[one]["fewshot"] == alone["fewshot"]
        run = mapet.finetune(desk / "run", one, tmp_path / one[-3:], recipe=SHORT, **CPU)
        recorded = json.loads((run.folder / "scores.json").read_bytes())[-1]["top1"]
        assert vars(made.scores[one]["finetune"]["top1"]) == recorded
    head, *rows = made.rows()
    assert head[:2] == ["data", "k-NN"]
    assert head[-1] == "fine-tuning"
    assert [row[0] for row in rows] == sets
    page = (tmp_path / "t" / "transfer.md").read_text()
    kept = json.loads((tmp_path / "t" / "transfer.json").read_bytes())
    for one, row in zip(sets, rows, strict=True):
        assert f"| {' | '.join(row)} |" in page
        assert str(made.scores[one]["knn"]["top1"]) == row[1]
        assert kept["scores"][one]["knn"]["top1"]["value"] == made.scores[one]["knn"]["top1"].value
    assert len(made.text().splitlines()) == 3


def test_an_interrupted_call_is_continued(desk, tmp_path, monkeypatch):
    sets = f"{desk / 'one'},{desk / 'two'}"
    whole = mapet.transfer(desk / "run", sets, tmp_path / "whole", **NEAR)
    calls = []

    def broken(source, data, *args, **settings):
        calls.append(data)
        if data.endswith("two"):
            raise KeyboardInterrupt
        return mapet.evaluate(source, data, *args, **settings)

    monkeypatch.setattr(module, "evaluate", broken)
    with pytest.raises(KeyboardInterrupt):
        mapet.transfer(desk / "run", sets, tmp_path / "t", **NEAR)
    calls.append("again")
    monkeypatch.setattr(module, "evaluate", lambda *args, **s: calls.append(args[1]) or mapet.evaluate(*args, **s))
    again = mapet.transfer(desk / "run", sets, tmp_path / "t", **NEAR)
    assert again == whole
    assert calls == [str(desk / "one"), str(desk / "two"), "again", str(desk / "two")]
    for name in ("transfer.json", "transfer.md"):
        assert (tmp_path / "t" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_does_not_fit_is_refused(desk, tmp_path):
    mapet.transfer(desk / "run", desk / "one", tmp_path / "t", protocols="knn", k=3, **CPU)
    for call, reason in {
        lambda: mapet.transfer(
            desk / "run", desk / "one", tmp_path / "t", protocols="knn", k=4, **CPU
        ): "other settings",
        lambda: mapet.transfer("vit_tiny", "", tmp_path / "n"): "data is empty",
        lambda: mapet.transfer(desk / "run", "a,a", tmp_path / "n"): "names a twice",
        lambda: mapet.transfer(desk / "run", f"{desk / 'one'},none", tmp_path / "n"): 'no folder "none"',
        lambda: mapet.transfer(desk / "run", desk / "one", desk / "run"): "is not empty",
        lambda: mapet.transfer(desk / "run", desk / "one", desk): "one lies in out",
        lambda: mapet.transfer(desk / "run", "a", tmp_path / "n", recipe=SHORT): "only applies to finetune",
    }.items():
        with pytest.raises(MapetError, match=reason):
            call()
    assert not (tmp_path / "n").exists()
