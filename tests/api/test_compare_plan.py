"""The plan of a comparison: which runs follow from it, under which budget, and that they are fair."""

import csv
import json
from dataclasses import replace
from io import StringIO

import pytest
import torch

from mapet.api.compare import tokens
from mapet.api.compare.aggregate import RESULT, csv_text, entries, result_rows
from mapet.api.compare.plan import Plan, Trial, Variant, budgeted, differences, unique, variants
from mapet.api.compare.results_folder import PLAN, ResultsFolder, merge_plans
from mapet.api.compare.trials import macs
from mapet.build.pretrain import build_objective
from mapet.config.finetune import FinetuneRecipe
from mapet.config.flat import updated
from mapet.config.recipe import OBJECTIVES, Model, Objective, Optimization, Recipe, Runtime, fair, read
from mapet.evals.score import Score, mean
from mapet.utils.errors import MapetError

SMALL = Model(name="custom", embed_dim=16, depth=3, num_heads=2, image_size=16, patch_size=4)
RECIPE = Recipe(data="x", seed=5, model=SMALL, optimization=Optimization(epochs=10, batch_size=8))


def planned(**changes):
    return Plan(**{"recipe": RECIPE, **changes})


def told(found):
    return [(variant.method, variant.setting) for variant in found]


def test_every_objective_is_a_variant_that_differs_in_the_objective_alone():
    found = variants(planned())
    assert told(found) == [(name, "") for name in OBJECTIVES]
    assert [variant.recipe.objective.name for variant in found] == list(OBJECTIVES)
    assert not any(fair(found[0].recipe, variant.recipe) for variant in found)


def test_what_the_recipe_says_of_its_own_objective_stays_with_those_that_have_it():
    own = replace(RECIPE, objective=Objective(name="mapet", groups=3, mask_ratio=0.5, order="raster"))
    for variant in variants(planned(recipe=own)):
        o = variant.recipe.objective
        assert (o.mask_ratio, o.order) == (0.5, "raster")
        assert o.groups == (3 if variant.method in ("mapet", "pet") else None)


def test_a_grid_is_the_product_and_leaves_alone_whom_a_setting_does_not_concern():
    plan = planned(
        objectives=("mapet", "mim", "mae"), vary=("context=0.25,0.5", "groups=1,3,all"), baselines=("random",)
    )
    found = variants(plan)
    assert len(found) == 6 + 2 + 2 + 1
    assert found[0].setting == "context=0.25, groups=1"
    own = {variant.setting: variant.recipe.objective for variant in found[:6]}
    shares = {setting: (objective.mask_ratio, objective.groups) for setting, objective in own.items()}
    assert shares["context=0.25, groups=3"] == (0.75, 3)
    assert shares["context=0.5, groups=all"] == (0.5, None)
    assert told(found[6:]) == [
        *(("mim", f"context={share}") for share in ("0.25", "0.5")),
        *(("mae", f"context={share}") for share in ("0.25", "0.5")),
        ("random", ""),
    ]


def test_a_baseline_has_no_setting_of_training_alone():
    plan = planned(
        objectives=("mim",), baselines=("random", "scratch"), vary=("drop-path=0,0.5", "init-values=0.1,None")
    )
    assert [setting for method, setting in told(variants(plan)) if method == "scratch"] == [
        "init-values=0.1", "init-values=None"
    ]  # fmt: skip


def test_tokenizers_are_a_grid_for_those_that_read_tokens(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "store.json").write_text("{}")
    folders = (str(tmp_path / "a"), str(tmp_path / "b"))
    found = variants(planned(objectives=("mim", "mae"), tokenizers=folders))
    assert told(found) == [("mim", "tokenizer=a"), ("mim", "tokenizer=b"), ("mae", "")]
    assert (found[0].recipe.tokenizer.path, found[1].recipe.tokens) == folders
    assert found[0].recipe.tokens is None


@pytest.mark.parametrize(("limits", "most"), [("8,16", 16), ("16,8", 16), ("8,all", None)])
def test_tokens_are_made_of_as_many_images_as_any_run_reads(tmp_path, monkeypatch, limits, most):
    asked = []

    def write(recipe, folder, runtime):
        folder.mkdir()
        asked.append(recipe.max_images)

    monkeypatch.setattr(tokens, "write_tokens", write)
    monkeypatch.setattr(tokens, "_vocabulary", lambda folder, recipe: 32)
    plan = planned(objectives=("mim", "mae"), vary=(f"max-images={limits}",), seeds=1)
    found = tokens.with_tokens(plan, variants(plan), tmp_path, Runtime())
    assert asked == [most]
    assert [variant.recipe.tokens for variant in found] == [str(tmp_path / "tokens")] * 4
    assert [variant.vocabulary for variant in found] == [32, 32, 0, 0]


def test_any_setting_varies_by_its_option_s_name():
    plan = planned(objectives=("mim",), vary=("lr=1e-3,2e-3", "drop-path=0,0.1", "scale=None,0.2:1", "codes=16"))
    found = variants(plan)
    assert len(found) == 8
    last = found[-1]
    assert last.setting == "lr=2e-3, drop-path=0.1, scale=0.2:1, codes=16"
    assert (last.recipe.lr, last.recipe.model.drop_path, last.recipe.scale) == (2e-3, 0.1, (0.2, 1.0))
    assert Trial(last, 1, 10).name == "mim-lr2e-3-drop-path0.1-scale0.2_1-codes16-10epochs-seed6"
    assert found[0].recipe.scale is None


def test_settings_that_hang_together_change_together():
    assert updated(RECIPE, embed_dim=24, num_heads=3, objective="cae").model.embed_dim == 24


def counted(plan, vocabulary=32):
    known = [replace(variant, vocabulary=vocabulary * variant.recipe.reads_tokens) for variant in variants(plan)]
    return budgeted(plan, known, macs, images)


def images(recipe):
    """Of an epoch of 48 images."""
    return 48 // recipe.optimization.batch_size * recipe.optimization.batch_size


def test_equal_epochs_and_equal_compute():
    plan = planned(budget=("epochs", "compute"), seeds=2, objectives=("mim", "mapet", "cae", "mae"))
    found = counted(plan)
    assert [trial.epochs for trial in found["epochs"]] == [10] * 8
    assert [trial.recipe.seed for trial in found["epochs"]] == [5] * 4 + [6] * 4
    training = {}
    for trial in found["compute"]:
        with torch.device("meta"):
            training[trial.variant.method] = build_objective(trial.recipe, trial.variant.vocabulary).macs(training=True)
        spent = training[trial.variant.method] * trial.epochs
        step = 1 / 6  # of an epoch
        assert abs(spent - 10 * training["mim"]) <= training[trial.variant.method] * step / 2 * (1 + 1e-9)
    assert found["compute"][0].epochs == 10
    assert found["compute"][1].epochs < 10 < found["compute"][3].epochs


def test_the_dearest_has_one_step_at_least():
    short = replace(RECIPE, optimization=Optimization(epochs=1 / 6, batch_size=8))
    plan = planned(recipe=short, budget=("compute",), objectives=("mae", "mapet"))
    assert [trial.epochs for trial in counted(plan)["compute"][:2]] == [1 / 6, 1 / 6]


def test_equal_compute_has_one_share_of_warm_up():
    plan = planned(budget=("epochs", "compute"), objectives=("mim", "mapet", "cae", "mae"))
    found = counted(replace(plan, recipe=updated(plan.recipe, warmup_epochs=2.5)))
    for trial in [*found["epochs"], *found["compute"]]:
        o = trial.recipe.optimization
        assert o.warmup_epochs / o.epochs == pytest.approx(0.25)
    assert all(trial.recipe.optimization.warmup_epochs == 2.5 for trial in found["epochs"])


def test_runs_of_two_budgets_are_shared_and_differ_in_epochs_alone():
    found = counted(planned(budget=("epochs", "compute"), seeds=2))
    every = unique([*found["epochs"], *found["compute"]])
    assert len(every) < 20
    assert len({trial.name for trial in every}) == len(every)
    assert differences(found["epochs"]) == []
    assert differences(every) == ["optimization.epochs", "optimization.warmup_epochs"]
    varied = counted(planned(vary=("batch-size=8,16",), baselines=("random",)))["epochs"]
    assert differences(varied) == ["optimization.batch_size"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"objectives": ("mapet", "mim", "mapt")}, 'Did you mean "mapet"?'),
        ({"objectives": ("mim", "mim")}, "names mim twice"),
        ({"objectives": ()}, "at least one"),
        ({"baselines": ("chance",)}, "--baselines"),
        ({"budget": ("time",)}, "--budget"),
        ({"seeds": 0}, "--seeds must be >= 1, got 0"),
        ({"knn_every": -1}, "--knn-every"),
        ({"eval_limit": 0}, "--eval-limit"),
        ({"evaluate": ()}, "--evaluate"),
        ({"vary": ("contxt=0.1",)}, 'Did you mean "context"?'),
        ({"vary": ("groups",)}, "SETTING=VALUE"),
        ({"vary": ("groups=many",)}, "groups=many"),
        ({"vary": ("groups=1000",)}, "masked patches"),
        ({"vary": ("context=1",)}, "--mask-ratio"),
        ({"vary": ("seed=1,2",)}, "--seeds"),
        ({"vary": ("objective=mim",)}, "--objectives"),
        ({"vary": ("tokens=a,b",)}, "--tokenizers"),
        ({"vary": ("context=0.2,0.3", "mask-ratio=0.5")}, "twice"),
        ({"vary": ("epochs=1,2",), "budget": ("compute",)}, "--vary epochs"),
        ({"tokenizers": ("a/x", "b/x")}, "of one name"),
        ({"tokenizers": ("a",), "recipe": replace(RECIPE, tokens="t")}, "--tokenizers"),
    ],
)
def test_what_makes_no_sense_is_one_line(wrong, said):
    with pytest.raises(MapetError, match=r".") as error:
        variants(planned(**wrong))
    assert said in error.value.option_text
    assert "\n" not in str(error.value)


def begin(folder, plan):
    with ResultsFolder.opened(folder, plan) as results:
        return results


def test_a_folder_is_one_comparison_s(tmp_path):
    plan = planned(vary=("groups=1,3",))
    begin(tmp_path / "out", plan)
    assert read(tmp_path / "out" / PLAN, Plan) == plan
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    with pytest.raises(MapetError, match="is not a comparison"):
        begin(tmp_path / "other", plan)
    with pytest.raises(MapetError, match="is not a comparison"):
        begin(tmp_path / "other" / "file", plan)


@pytest.mark.parametrize("seeds", [3, 4], ids=["same", "grown"])
def test_a_comparison_is_one_process_s(tmp_path, seeds):
    out, plan = tmp_path / "out", planned(seeds=3)
    refused = pytest.raises(MapetError, match="Another process is working on the comparison in")
    with ResultsFolder.opened(out, plan), refused, ResultsFolder.opened(out, replace(plan, seeds=seeds)):
        pass
    assert read(out / PLAN, Plan).seeds == 3
    with ResultsFolder.opened(out, replace(plan, seeds=seeds)):
        assert read(out / PLAN, Plan).seeds == seeds


def test_what_grew_meanwhile_is_not_lost(tmp_path):
    out, plan = tmp_path / "out", planned(objectives=("mim",))
    begin(out, plan)
    mine = merge_plans(out, replace(plan, seeds=9))
    begin(out, merge_plans(out, replace(plan, objectives=("mae",))))
    with pytest.raises(MapetError, match="was extended by another process"):
        begin(out, mine)
    assert read(out / PLAN, Plan).objectives == ("mim", "mae")


def test_a_comparison_grows_and_never_shrinks(tmp_path):
    plan = planned(objectives=("mim", "mae"), seeds=2, evaluate=("knn",))
    assert merge_plans(tmp_path, plan) == plan
    begin(tmp_path / "out", plan)
    asked = replace(plan, objectives=("pet", "mae"), seeds=1, evaluate=("linear",), budget=("compute",))
    whole = merge_plans(tmp_path / "out", asked)
    assert whole == replace(
        plan, objectives=("mim", "mae", "pet"), evaluate=("knn", "linear"), budget=("epochs", "compute")
    )
    with pytest.raises(MapetError, match=r"with recipe\.seed = 5, not 6"):
        merge_plans(tmp_path / "out", replace(plan, recipe=replace(RECIPE, seed=6)))
    begin(tmp_path / "pixels", planned(objectives=("mae",)))
    with pytest.raises(MapetError, match="with objectives = mae, not mim"):
        merge_plans(tmp_path / "pixels", planned(objectives=("mim",)))  # mae's runs know of no tokens


def test_a_setting_changes_as_long_as_nothing_hangs_on_it(tmp_path):
    plan = planned(objectives=("mim",), seeds=1)
    results, (trial,) = begin(tmp_path, plan), counted(plan)["epochs"]
    tuned = replace(plan, tuning=FinetuneRecipe(drop_path=0.5))
    results.record(trial, "cost", {"steps": 3})
    for other in (tuned, replace(plan, eval_limit=7), replace(plan, eval_data="y")):
        assert merge_plans(tmp_path, other) == other
    results.record_scores(trial, "knn", {"top1": mean([0.1, 0.2])})
    assert merge_plans(tmp_path, tuned) == tuned
    with pytest.raises(MapetError, match="with eval_limit = None, not 7"):
        merge_plans(tmp_path, replace(plan, eval_limit=7))
    results.run(trial).with_name(f"{trial.name}-finetune").mkdir(parents=True)
    with pytest.raises(MapetError, match=r"with tuning\.drop_path = 0\.1, not 0\.5"):
        merge_plans(tmp_path, tuned)


def test_results_are_read_back_from_the_folder_bit_by_bit(tmp_path):
    plan = planned(objectives=("mim", "mae"), evaluate=("knn",), seeds=3)
    results, found = begin(tmp_path / "out", plan), counted(plan)
    third = 1 / 3
    for number, trial in enumerate(found["epochs"][:-1]):
        score = Score(third + number / 100, 0.1, 0.9, 10)
        results.record_scores(trial, "knn", {"top1": score, "top5": score})
        cost = {"epochs": 10, "images": 480, "macs": 10, "training_macs": 30, "steps": 60, "seconds": 2.0 + number}
        results.record(trial, "cost", {**cost, "peak": None})
    rows = list(csv.DictReader(StringIO(csv_text(result_rows(plan, found, results), RESULT))))
    assert len(rows) == 2 * 5
    assert float(rows[0]["value"]) == third
    assert {row["metric"] for row in rows} == {"top1", "top5"}
    mim, mae = entries(plan, found["epochs"], results)
    known = [third, third + 0.02, third + 0.04]
    assert mim.accuracy["knn", "top1"].value == pytest.approx(mean(known).value)
    assert mim.accuracy["knn", "top1"].reach == pytest.approx(mean(known).high - mean(known).value)
    assert (mim.seconds, mim.accuracy["knn", "top1"].count, mae.accuracy["knn", "top1"].count) == (4.0, 3, 2)
    assert mim.pflop == 2 * 30 * 480 / 1e15
    assert (
        json.loads((tmp_path / "out" / "scores" / "mim-10epochs-seed5.json").read_text())["knn"]["top1"]["note"] == ""
    )


def test_an_arm_is_told_by_method_and_setting():
    assert Variant("mim", (("a", "1"), ("b", "2")), RECIPE).setting == "a=1, b=2"
