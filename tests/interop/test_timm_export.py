"""timm's model of an export computes what the encoder computes, for every setting of an encoder."""

import json
import os
import re
import shutil

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from mapet.data.augment import IMAGENET_MEAN, IMAGENET_STD
from mapet.interop.card import loading_lines
from mapet.interop.export_folder import verify
from mapet.interop.timm import from_timm, load_export, to_timm
from mapet.method.encoder import Classifier, Encoder
from mapet.utils.errors import MapetError

PLAIN = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
SETTINGS = {
    "plain": {},
    "tiny's width": {"embed_dim": 192, "num_heads": 3, "depth": 1},
    "oblong image": {"img_size": (8, 24)},
    "oblong patches": {"patch_size": (2, 8)},
    "one patch": {"img_size": 4},
    "grey": {"in_chans": 1},
    "four channels": {"in_chans": 4},
    "fixed positions": {"pos_embed": "sincos"},
    "layer scale": {"init_values": 0.1},
    "mean of patches": {"global_pool": "avg"},
    "narrow mlp": {"mlp_ratio": 1.5},
    "drop path": {"drop_path_rate": 0.5},
    "all at once": {
        "img_size": (12, 20),
        "in_chans": 2,
        "init_values": 1e-5,
        "global_pool": "avg",
        "mlp_ratio": 3.0,
        "pos_embed": "sincos",
    },
}


def make(kind=Encoder, **settings):
    torch.manual_seed(0)
    encoder = kind(**{**PLAIN, **settings})
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)  # no norm, bias or scale keeps a neutral value
    return encoder.eval()


def images(encoder):
    return torch.randn(3, encoder.in_chans, *encoder.img_size, generator=torch.Generator().manual_seed(1))


def export(encoder, folder, **settings):
    channels = encoder.in_chans
    return to_timm(encoder, folder, mean=[0.4] * channels, std=[0.2] * channels, **settings)


def load(folder, **settings):
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **settings).eval()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_timm_computes_the_same(tmp_path, settings):
    encoder = make(**settings)
    model = load(export(encoder, tmp_path / "out"))
    assert model.state_dict().keys() == encoder.state_dict().keys()
    with torch.no_grad():
        found, expected = model.forward_features(images(encoder)), encoder(images(encoder))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(images(encoder)), encoder.forward_head(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(224, 224), (256, 192)], ids=str)
@pytest.mark.parametrize("kind", [Encoder, Classifier])
def test_timm_and_transformers_compute_the_same_from_photographs(tmp_path, size, kind):
    auto, sets = pytest.importorskip("transformers"), pytest.importorskip("sklearn.datasets")
    encoder = make(kind, img_size=size, patch_size=16, **({"num_classes": 3} if kind is Classifier else {}))
    folder = to_timm(encoder, tmp_path / "out", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    photos = [Image.fromarray(pixels) for pixels in sets.load_sample_images().images]
    crops = [photo.crop((x, 0, x + 400, 427)) for photo in photos for x in (0, 120, 240)][:5]
    model, classifies = load(folder), kind is Classifier
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    batch = torch.stack([transform(crop) for crop in crops])
    theirs = (auto.AutoModelForImageClassification if classifies else auto.AutoModel).from_pretrained(folder).eval()
    processed = auto.AutoImageProcessor.from_pretrained(folder)(crops, return_tensors="pt")["pixel_values"]
    assert batch.shape == (5, 3, *size)
    assert torch.equal(processed, batch)
    for pixels in (batch, batch[:1]):
        with torch.no_grad():
            expected = encoder(pixels)
            timms = model(pixels) if classifies else model.forward_features(pixels)
            found = theirs(pixels)
        found = found.logits if classifies else found.last_hidden_state
        torch.testing.assert_close(timms, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_round_trip(tmp_path, settings):
    encoder = make(**settings)
    back = from_timm(load(export(encoder, tmp_path / "out")))
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in encoder.state_dict().items())
    assert torch.equal(back.eval()(images(encoder)), encoder(images(encoder)))


def test_classifier_keeps_its_head(tmp_path):
    classifier = make(Classifier, num_classes=5)
    logits = load(export(classifier, tmp_path / "out"))(images(classifier))
    torch.testing.assert_close(logits, classifier(images(classifier)), atol=1e-5, rtol=1e-5)


def test_timm_adds_a_new_head_for_fine_tuning(tmp_path):
    encoder = make()
    model = load(export(encoder, tmp_path / "out"), num_classes=7)
    assert model(images(encoder)).shape == (3, 7)
    torch.testing.assert_close(model.forward_features(images(encoder)), encoder(images(encoder)), atol=1e-5, rtol=1e-5)


def test_timm_reads_the_preprocessing(tmp_path):
    folder = to_timm(
        make(img_size=(8, 24)),
        tmp_path / "out",
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        interpolation="bilinear",
    )
    data = timm.data.resolve_model_data_config(load(folder))
    expected = {"input_size": (3, 8, 24), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    assert {name: tuple(data[name]) for name in expected} == expected  # a list or a tuple, by timm's version
    assert data["crop_pct"] == 1
    assert data["interpolation"] == "bilinear"


@pytest.mark.parametrize(
    ("width", "patch", "name"), [(384, 16, "ViT-Small/16"), (192, 4, "ViT-Tiny/4"), (16, (2, 4), "ViT/2")]
)
def test_a_card_names_a_known_size(tmp_path, width, patch, name):
    encoder = make(img_size=16, patch_size=patch, embed_dim=width, depth=1)
    export(encoder, tmp_path / "out")
    assert re.search(rf"\b{re.escape(name)}(?!\d)", (tmp_path / "out" / "README.md").read_text())


def test_code_of_the_model_card_runs(tmp_path):
    encoder = make()
    folder = export(encoder, tmp_path / "out", notes={"objective": "mapet", "epochs": 3})
    lines = loading_lines(folder)
    card = (folder / "README.md").read_text()
    assert len(lines.splitlines()) == 3
    assert all(line in card for line in loading_lines("./out").splitlines())
    assert str(tmp_path) not in card
    assert "- objective: mapet\n- epochs: 3\n" in card
    names = {"images": images(encoder)}
    exec(lines, names)
    torch.testing.assert_close(names["features"], encoder(images(encoder))[:, 1:].mean(1), atol=1e-5, rtol=1e-5)


def test_existing_export_is_not_replaced_without_overwrite(tmp_path):
    folder = export(make(), tmp_path / "out")
    with pytest.raises(MapetError, match="name another folder, or replace it with overwrite") as caught:
        export(make(), folder)
    assert "--overwrite" in caught.value.option_text
    other = make(depth=3)
    export(other, folder, overwrite=True)
    assert len(load(folder).blocks) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_other_files_are_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(MapetError, match=r'holds "thesis.tex", which no export wrote'):
            export(make(), tmp_path, overwrite=overwrite)
    with pytest.raises(MapetError, match="is a file"):
        export(make(), tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_empty_folder_and_missing_parents_are_accepted(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "deep"):
        assert load(export(make(), folder)).embed_dim == 16


def test_failure_leaves_no_files(tmp_path, monkeypatch):
    earlier = export(make(), tmp_path / "out") / "model.safetensors"
    content = earlier.read_bytes()
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(make(depth=3), tmp_path / "out", overwrite=True)
    assert earlier.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("kind", [Encoder, Classifier])
def test_an_export_that_timm_reads_otherwise_is_refused(tmp_path, monkeypatch, kind):
    earlier = export(make(), tmp_path / "out") / "model.safetensors"
    content, create = earlier.read_bytes(), timm.create_model

    def changed(*given, **settings):
        model = create(*given, **settings)
        with torch.no_grad():
            (model.head.bias if kind is Classifier else model.norm.bias)[0] += 1e-3
        return model

    monkeypatch.setattr(timm, "create_model", changed)
    name = "logits" if kind is Classifier else "features"
    with pytest.raises(MapetError, match=rf"The timm export computes other {name} .* try another version of timm"):
        export(make(kind, **({"num_classes": 3} if kind is Classifier else {})), tmp_path / "out", overwrite=True)
    assert earlier.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_the_comparison_draws_no_random_numbers(tmp_path):
    encoder = make()
    before = torch.random.get_rng_state()
    export(encoder, tmp_path / "out")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_files_have_default_permissions(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "written").write_text("")
    folder = export(make(), tmp_path / "out")
    assert folder.stat().st_mode == (tmp_path / "made").stat().st_mode
    assert all(path.stat().st_mode == (tmp_path / "written").stat().st_mode for path in folder.iterdir())


def test_statistics_must_match_the_channels(tmp_path):
    with pytest.raises(MapetError, match="must have 1 entries, one per channel of the encoder, got 3 and 3"):
        to_timm(make(in_chans=1), tmp_path / "out", mean=[0.5] * 3, std=[0.5] * 3)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit3_small_patch16_224"])
def test_models_of_timm_are_imported(name):
    model = timm.create_model(name, img_size=32, depth=2)
    if name.startswith("deit3"):
        with pytest.raises(MapetError, match="is not a plain vision transformer"):
            from_timm(model)  # its CLS has no position embedding
        return
    encoder = from_timm(model)
    assert encoder.training == model.training
    model.eval()
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoder.eval()(image), model.forward_features(image), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change", [{"act_layer": "relu"}, {"qk_norm": True}, {"reg_tokens": 2}, {"pre_norm": True}])
def test_other_transformers_are_refused(change):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, **change)
    with pytest.raises(MapetError, match="plain vision transformer") as caught:
        from_timm(model)
    assert "\n" not in str(caught.value)


def test_other_modules_are_refused():
    with pytest.raises(MapetError, match="This Linear is not a plain vision transformer"):
        from_timm(nn.Linear(2, 2))


def sample(tmp_path):
    classifier = make(Classifier, num_classes=3)
    classifier.classes = ("cat", "dog", "owl")
    return to_timm(classifier, tmp_path / "out", mean=IMAGENET_MEAN, std=IMAGENET_STD)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, name):
    folder = sample(tmp_path)
    whole = load_export(folder)
    content = (folder / name).read_bytes()
    refused = 0
    for position in range(3, len(content), 1 + len(content) // 60):
        changed = bytearray(content)
        changed[position] ^= 1 << (position % 8)
        (folder / name).write_bytes(bytes(changed))
        try:
            found = load_export(folder)
        except MapetError:
            refused += 1
            continue
        assert (found.classes, found.crop_pct, found.num_heads) == (whole.classes, whole.crop_pct, whole.num_heads)
        assert all(torch.equal(tensor, found.state_dict()[key]) for key, tensor in whole.state_dict().items())
    assert refused > 20


def test_weights_that_are_not_finite_are_refused(tmp_path, monkeypatch):
    encoder = make()
    encoder.norm.weight.data[0] = float("nan")
    with pytest.raises(MapetError, match=r"features of the encoder are NaN or infinite, so nothing is exported"):
        to_timm(encoder, tmp_path / "out", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert not os.listdir(tmp_path)
    monkeypatch.setattr("mapet.interop.timm.compare", lambda *_: None)
    folder = to_timm(encoder, tmp_path / "out", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    with pytest.raises(MapetError, match=r"model.safetensors is damaged: norm.weight has values"):
        load_export(folder)


def test_what_kills_leave_goes_with_the_next_export_and_nothing_else(tmp_path):
    folder = sample(tmp_path)
    shutil.copytree(folder, tmp_path / ".out.part" / "out")
    shutil.copytree(folder, tmp_path / ".out.old")
    (tmp_path / ".out.old" / "config.json").unlink()
    (tmp_path / ".out.part" / ".lock").touch()
    sample_again = to_timm(load_export(folder), folder, mean=IMAGENET_MEAN, std=IMAGENET_STD, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert verify(sample_again)
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part" / "thesis.tex").touch()
    with pytest.raises(MapetError, match=r"thesis.tex is in the way of the export"):
        export(make(), folder, overwrite=True)
    assert verify(folder)
