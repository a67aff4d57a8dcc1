"""Export from Python: every form of FROM becomes a folder that timm loads with equal features."""

import json

import pytest
import timm
import torch

import mapet
from forms import MODEL, in_all_forms, randomised
from mapet.api.export import export, loading_text
from mapet.build.finetune import begin, classifier_over
from mapet.config.finetune import FinetuneRecipe
from mapet.config.recipe import Recipe, save
from mapet.engine.run import Run
from mapet.utils.errors import MapetError

HEADS = {"published.pth.tar": 2, "tuned.pth": 2}  # of checkpoint files, which do not tell them
CROP = 0.875


@pytest.fixture(scope="module")
def forms(images, tmp_path_factory):
    """A pre-training run and a fine-tuning of it: as a run, an export and a checkpoint file each."""
    root = tmp_path_factory.mktemp("forms")
    found = in_all_forms(Recipe(data=str(images), model=MODEL), root)
    t = FinetuneRecipe(init=str(found["run"]), data=str(images), crop_pct=CROP)
    classifier = randomised(classifier_over(mapet.load_encoder(found["run"]), t, 5))
    tuned = Run.create(root / "tuned")
    save(t, tuned.recipe)
    begin(tuned, classifier, t, {"from": "x", "classes": list("abcde")})
    torch.save(classifier.state_dict(), root / "tuned.pth")
    export(tuned.folder, root / "tuned-export")
    return {**found, **{name: root / name for name in ("tuned", "tuned-export", "tuned.pth")}}


@pytest.mark.parametrize("name", ["run", "export", "published.pth.tar", "tuned", "tuned-export", "tuned.pth"])
def test_timm_loads_an_export_of_every_form(forms, tmp_path, capsys, name):
    source, heads = forms[name], HEADS.get(name)
    folder = export(source, tmp_path / "out", num_heads=heads)
    assert not capsys.readouterr().out
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = mapet.load_encoder(source, num_heads=heads)(images)
        torch.testing.assert_close(model.forward_features(images), expected, atol=1e-5, rtol=1e-5)
        if name.startswith("tuned"):
            logits = mapet.load_classifier(source, num_heads=heads)(images)
            torch.testing.assert_close(model(images), logits, atol=1e-5, rtol=1e-5)
    assert ("logits" if name.startswith("tuned") else "forward_features") in loading_text(folder)
    crop_pct = json.loads((folder / "config.json").read_text())["pretrained_cfg"]["crop_pct"]
    assert crop_pct == (CROP if name in ("tuned", "tuned-export") else 1.0)


def test_a_run_has_a_folder_for_its_exports_and_others_need_one(forms):
    assert export(forms["tuned"]) == forms["tuned"] / "export" / "timm"
    with pytest.raises(MapetError, match="already holds an export"):
        export(forms["tuned"])
    assert export(forms["tuned"], overwrite=True) == forms["tuned"] / "export" / "timm"
    with pytest.raises(MapetError, match=r"^out is missing: FROM is the export"):
        export(forms["export"])
    with pytest.raises(MapetError, match='Did you mean "timm"'):
        export(forms["run"], to="tim")
    with pytest.raises(MapetError, match=r"^FROM .* is out"):
        export(forms["export"], forms["export"], overwrite=True)
