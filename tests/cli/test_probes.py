"""The probes through the command line, on a run of an encoder that was never trained."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from forms import MODEL, in_all_forms, randomised
from mapet.api.export import export
from mapet.build.finetune import begin, classifier_over
from mapet.build.pretrain import build_objective, load_run_encoder
from mapet.cli import main
from mapet.config.finetune import FinetuneRecipe
from mapet.config.recipe import Recipe, load, save
from mapet.engine.run import Run, prefixed
from mapet.evals.features import POOLS, UNPOOLED, features
from mapet.method.encoder import Classifier, Encoder


@pytest.fixture
def run(images, tmp_path):
    """A run folder with a checkpoint after 7 steps: 16 patches, width 16, 2 blocks."""
    recipe = Recipe(data=str(images), model=MODEL)
    made = Run.create(tmp_path / "run")
    save(recipe, made.recipe)
    made.save(7, prefixed("model", build_objective(recipe, 8).state_dict().items()))
    return made.folder


@pytest.fixture(scope="module")
def forms(images, tmp_path_factory):
    """Of a run with a seed of its own, and a fine-tuning that started from it."""
    root = tmp_path_factory.mktemp("forms")
    found = in_all_forms(Recipe(data=str(images), model=MODEL, seed=3), root)
    t = FinetuneRecipe(init=str(found["run"]), data=str(images), seed=3)
    tuned, classifier = Run.create(root / "tuned"), randomised(classifier_over(load_run_encoder(found["run"])[0], t, 5))
    save(t, tuned.recipe)
    begin(tuned, classifier, t, {"from": "x", "classes": list("abcde")})
    export(tuned.folder, root / "tuned-export")
    torch.save(classifier.state_dict(), root / "tuned.pth")
    return {**found, **{name: root / name for name in ("tuned", "tuned-export", "tuned.pth")}}


def probe(run, verb, *options):
    data = [] if "--data" in options else ["--data", load(Run(run).recipe).data]
    return main([verb, "--run", str(run), "--accelerator", "cpu", *data, *options])


def entries(run):
    return json.loads((run / "scores.json").read_text())


@pytest.mark.parametrize(
    ("options", "names", "named"),
    [
        (["linear", "--protocol", "beit"], ["top1", "layer 1", "layer 2"], "linear, BEiT's 100 epochs"),
        (["linear", "--protocol", "mae"], ["top1"], "linear, MAE's 90 epochs"),
        (["attentive"], ["top1"], "attentive, CAE's"),
        (["fewshot", "--shots", "1", "3", "--draws", "3"], ["1-shot", "3-shot"], "t-interval over 3 draws"),
    ],
)
def test_a_probe_prints_and_adds_its_scores(run, capsys, options, names, named):
    assert probe(run, *options) == 0
    assert probe(run, *options, "--random", "--max-images", "30") == 0
    text = capsys.readouterr().out
    for name in names:
        assert len(re.findall(rf"^{name} +\d+\.\d % \(", text, flags=re.MULTILINE)) == 2
    assert text.count(named) == 2
    first, second = entries(run)
    assert (first["step"], second["step"], second["limit"]) == (7, 0, 30)
    assert named in first["protocol"]
    assert list(first)[5:] == names
    assert first[names[0]].keys() >= {"value", "low", "high", "count"}
    assert ("note" in first[names[0]]) == ("beit" in options)


def test_the_best_layer_is_named(run, capsys):
    assert probe(run, "linear", "--protocol", "beit") == 0
    top = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("top1"))
    layer = re.search(r"(layer [12]), the best of 2 layers on a held-out tenth", top)[1]
    (entry,) = entries(run)
    assert entry["top1"]["value"] == entry[layer]["value"]


@pytest.mark.parametrize("options", [["linear", "--protocol", "beit"], ["attentive"], ["fewshot", "--shots", "2"]])
def test_the_batch_of_features_does_not_matter(run, options, monkeypatch):
    assert probe(run, *options) == 0
    monkeypatch.setattr("mapet.api.features.BATCH", 7)
    assert probe(run, *options) == 0
    first, second = entries(run)
    for name in list(first)[5:]:
        assert first[name]["value"] == pytest.approx(second[name]["value"], abs=0.101)  # one of some ten test images


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["attentive", "--cache-gib", "1e-6"], r"48 images take 0\.\d\d GiB, more than --cache-gib 1e-06"),
        (["linear", "--protocol", "beit", "--cache-gib", "1e-6"], "--max-images"),
        (["attentive", "--batch-size", "1"], "--batch-size must be >= 2, got 1"),
        (["attentive", "--pool", "token"], 'no option "--pool"'),
        (["linear", "--protocol", "biet"], 'Did you mean "beit"'),
        (["linear", "--protocol", "beit", "--pool", "token"], "--pool only applies to .*, not linear-beit; remove it"),
        (["knn", "--pool", "patches"], '--pool must be one of avg, token, avg.token, got "patches"'),
        (["fewshot", "--pool", "layers"], '--pool must be one of avg, token, avg.token, got "layers"'),
        (["fewshot", "--shots", "0"], "--shots must be >= 1"),
        (["fewshot", "--shots", "100"], "fewer than 100 shots"),
        (["fewshot", "--draws", "1"], "--draws must be >= 2"),
        (
            ["fewshot", "--run", "absent"],
            r"FROM = absent does not exist: give a run, an export folder, an official-format",
        ),
        (["knn", "--num-heads", "2"], "--num-heads is fixed by .*run; remove it"),
        (["knn", "--num-heads", "0"], "--num-heads must be >= 1, got 0"),
        (["knn", "one", "two"], 'Unexpected "two": mapet knn FROM'),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(run, capsys, options, said):
    assert probe(run, *options) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert re.search(said, captured.err)
    assert not (run / "scores.json").exists()


def years(images, root):
    """A folder of unlabelled images sorted by year: 30 of 2023, 10 of 2024."""
    for number, path in enumerate(sorted(Path(images).rglob("*.png"))[:40]):
        folder = root / ("2024" if number % 4 == 0 else "2023")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / f"{number}.png")
    return root


@pytest.mark.parametrize("options", [["knn"], ["evaluate", "--protocols", "knn,linear"], ["fewshot", "--shots", "1"]])
def test_sub_folders_that_nobody_called_classes_are_not_scored(images, tmp_path, capsys, options):
    data = years(images, tmp_path / "photos")
    run = in_all_forms(Recipe(data=str(data), model=MODEL), tmp_path)["run"]
    assert main([options[0], str(run), *options[1:], "--accelerator", "cpu"]) == 2
    captured = capsys.readouterr()
    assert f"{run} was trained on {data}, whose sub-folders may not be classes: give --data {data}" in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out
    assert not (run / "scores.json").exists()
    assert main([options[0], str(run), *options[1:], "--data", str(data), "--accelerator", "cpu"]) == 0


def test_a_split_says_that_sub_folders_are_classes(images, tmp_path, capsys):
    for split in ("train", "test"):
        shutil.copytree(images, tmp_path / "data" / split)
    run = in_all_forms(Recipe(data=str(tmp_path / "data"), model=MODEL), tmp_path)["run"]
    assert main(["knn", str(run), "--accelerator", "cpu"]) == 0
    assert "2 classes, guess 50.0 %" in capsys.readouterr().out


def test_classes_and_the_accuracy_of_a_guess_are_printed(run, images, tmp_path, capsys):
    data = tmp_path / "data"
    for split in ("train", "test"):
        years(images, data / split)
    assert main(["knn", str(run), "--data", str(data), "--accelerator", "cpu"]) == 0
    assert "labels    2 classes, guess 75.0 % (the most frequent training class)\n" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["knn"], ["evaluate", "--protocols", "linear,knn"]])
def test_more_neighbours_than_images_are_refused(run, capsys, options):
    assert probe(run, *options, "--k", "31", "--max-images", "30") == 2
    assert capsys.readouterr().err == "mapet: --k must be <= 30, the number of training images, got 31.\n"
    assert not (run / "scores.json").exists()
    assert probe(run, *options, "--k", "30", "--max-images", "30") == 0


def test_scores_make_one_folder_at_most(run, tmp_path, capsys):
    assert probe(run, "knn", "--out", str(tmp_path / "absent" / "new" / "scores.json")) == 2
    captured = capsys.readouterr()
    assert f"there is no folder {tmp_path / 'absent'}; make it" in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("verb", ["attentive", "fewshot", "linear"])
def test_labels_are_needed(images, run, tmp_path, capsys, verb):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(Path(images).rglob("*.png"))[:20]):
        shutil.copy(path, flat / f"{number}.png")
    assert probe(run, verb, "--data", str(flat)) == 2
    assert "no labels" in capsys.readouterr().err


def test_the_memory_of_features_is_that_of_their_tensors(run):
    """The refusal's number is the size of what would have been stored."""
    from mapet.api.features import features_gib
    from mapet.config.evaluate import FeatureSettings

    encoder, _, _ = load_run_encoder(run)
    for pool in (*POOLS, *UNPOOLED):
        found, _ = features(encoder, [(torch.zeros(5, 3, 16, 16), torch.zeros(5))], pool=pool)
        assert features_gib(encoder, pool, 5) == found.numel() * found.element_size() / 2**30
    assert FeatureSettings().cache_gib == 16


PROBES = (
    ["knn", "--pool", "avg+token"],
    ["linear"],
    ["linear", "--protocol", "beit"],
    ["attentive"],
    ["fewshot", "--shots", "2"],
)


def figures(text):
    """What was measured: all lines but the first, which names the encoder."""
    return text.splitlines()[1:]


def heads(path):
    return [] if path.is_dir() else ["--num-heads", "2"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("start", ["", "tuned"])
@pytest.mark.parametrize("options", PROBES)
def test_run_export_and_official_checkpoint_have_the_same_scores(forms, images, tmp_path, capsys, options, start):
    """With all images; a fine-tuned classifier is probed by what its head reads."""
    names = ("tuned", "tuned-export", "tuned.pth") if start else ("run", "export", "published.pth.tar")
    before = contents(forms[names[1]])
    printed, kept = [], tmp_path / "new" / "scores.json"
    for name in names:
        path = forms[name]
        words = [options[0], str(path), *options[1:], "--data", str(images), "--accelerator", "cpu", *heads(path)]
        assert main([*words, "--out", str(kept)]) == 0
        printed.append(capsys.readouterr().out)
    assert figures(printed[0]) == figures(printed[1]) == figures(printed[2])
    assert "top1" in printed[0] or "2-shot" in printed[0]
    entries = json.loads(kept.read_text())
    origins = [entry.pop("from") for entry in entries]
    steps = [entry.pop("step") for entry in entries]
    assert entries[0] == entries[1] == entries[2]
    assert steps == [0 if start else 9, None, None]
    assert [origin.split()[1] for origin in origins] == ["fine-tuning" if start else "run", "export", "checkpoint"]
    assert all(origin in text for origin, text in zip(origins, printed, strict=True))
    assert contents(forms[names[1]]) == before
    assert not (forms[names[0]] / "scores.json").exists()


def test_a_classifier_is_probed_by_the_features_that_its_head_reads(forms):
    from mapet.api.encoders import headless, load_from

    images = torch.randn(3, 3, 16, 16)
    classifier = load_from(forms["tuned"])
    assert isinstance(classifier.encoder, Classifier)
    found, _ = features(headless(classifier).encoder, [(images, torch.zeros(3))])
    torch.testing.assert_close(classifier.encoder.head(found), classifier.encoder(images))


def test_what_only_a_run_knows_must_be_given_for_the_others(forms, images, capsys):
    """Its images, its first weights, and the seed that draws some of them; an export's is 0, whatever the run's."""
    for name in ("export", "published.pth.tar", "tuned-export"):
        path = forms[name]
        common = ["knn", str(path), "--accelerator", "cpu", *heads(path)]
        for options, said in (([], "needs --data"), (["--data", str(images), "--random"], "pre-training run")):
            assert main([*common, *options]) == 2
            message = capsys.readouterr().err
            assert said in message
            assert str(path) in message
            assert message.count("\n") == 1
    assert main(["knn", str(forms["tuned"]), "--random"]) == 2
    assert "--random needs a pre-training run" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "seed"), [("run", 3), ("tuned", 3), ("export", 0), ("published.pth.tar", 0)])
def test_the_limit_is_drawn_by_a_run_s_seed_and_elsewhere_by_0(forms, images, tmp_path, monkeypatch, name, seed):
    from mapet.build import batches as pretrain_batches

    seeds, choose = set(), pretrain_batches.choose_indices
    monkeypatch.setattr(
        pretrain_batches,
        "choose_indices",
        lambda source, max_images, seed: seeds.add(seed) or choose(source, max_images, seed),
    )
    options = ["--data", str(images), "--max-images", "20", "--out", str(tmp_path / "scores.json")]
    assert main(["knn", str(forms[name]), *options, *heads(forms[name])]) == 0
    assert seeds == {seed}


def test_without_out_the_scores_go_into_a_run_alone(forms, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tuned-export", "published.pth.tar"):
        before = contents(forms[name].parent)
        assert main(["knn", str(forms[name]), "--data", str(images), *heads(forms[name])]) == 0
        assert contents(forms[name].parent) == before
    assert not list(tmp_path.iterdir())
    copy = shutil.copytree(forms["tuned"], tmp_path / "copy")
    assert main(["knn", "--run", str(copy)]) == 0
    assert entries(copy)[0]["from"] == f"the fine-tuning {copy} after 0 steps"


def test_what_cannot_be_evaluated_is_refused_in_one_line(forms, images, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    grey = Encoder(16, 4, in_chans=1, embed_dim=64, depth=1, num_heads=1)
    torch.save(grey.state_dict(), tmp_path / "grey.pth")
    (tmp_path / "text.json").write_text("no scores")
    (tmp_path / "object.json").write_text("{}")
    published = str(forms["published.pth.tar"])
    for options, said in (
        ([str(tmp_path / "empty")], "holds neither a run nor an export"),
        ([str(tmp_path / "absent.pth")], "does not exist"),
        ([str(tmp_path / "other.pth")], "not a checkpoint of a vision transformer"),
        ([str(tmp_path / "grey.pth")], "1 channels"),
        ([str(forms["export"]), "--num-heads", "2"], "--num-heads is"),
        ([published, "--num-heads", "3"], "3 heads"),
        ([published, "--num-heads", "2", "--out", str(tmp_path / "empty")], "not a list of scores"),
        ([published, "--num-heads", "2", "--out", str(tmp_path / "text.json")], "not a list of scores"),
        ([published, "--num-heads", "2", "--out", str(tmp_path / "object.json")], "not a list of scores"),
    ):
        assert main(["knn", *options, "--data", str(images)]) == 2, options
        captured = capsys.readouterr()
        assert said in captured.err
        assert captured.err.count("\n") == 1
        assert not captured.out, "nothing is computed before"
