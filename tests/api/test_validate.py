"""``validate`` and ``robustness`` in the layouts of ImageNet's variants equal slow references."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo

import mapet
from forms import as_finetuning, published, randomised
from mapet.api.validate import find_targets
from mapet.config.validate import ValidateSettings
from mapet.data import corrupt
from mapet.data.augment import normalize
from mapet.data.dataset import train_and_test
from mapet.data.image import read_image
from mapet.data.policy import Centre, Published
from mapet.method.encoder import Classifier
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize

SYNSETS = ImageNetInfo().label_names()
VIEW = CenterCropResize((16, 16))
CPU = {"accelerator": "cpu", "batch_size": 5}
installed = pytest.mark.skipif(corrupt.find_spec("corrupt_tta") is None, reason="corrupt-tta is not installed")


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def layout(root, names, each=2, file="{}.png"):
    for number, name in enumerate(names):
        for i in range(each):
            save(root / name / file.format(number * each + i), number * each + i)
    return root


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A classifier of ImageNet's classes as a published checkpoint and as a fine-tuning, and one of five classes."""
    root = tmp_path_factory.mktemp("validate")
    model = randomised(
        Classifier(16, 4, embed_dim=64, depth=1, num_heads=1, global_pool="avg", num_classes=1000, init_values=0.1)
    )
    theirs = {name.replace("decoder.", "head."): tensor for name, tensor in published(model).items()}
    torch.save({"state_dict": theirs, "epoch": 3}, root / "published.tar")
    as_finetuning(root / "imagenet", SYNSETS)
    as_finetuning(root / "five", ["a", "b", "c", "d", "e"])
    layout(root / "few", ["b", "d"], each=4)
    layout(root / "whole", ["a", "b", "c", "d", "e"], each=2)
    return root


def by_hand(model, path, crops):
    """The logits of one image."""
    pixels = np.array(crops(0, [0])[0](read_image(path), VIEW))
    with torch.no_grad():
        return model(normalize(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255))[0]


def logits(model, root, crops, names):
    """Of all images, and their labels."""
    rows, labels = [], []
    for path in sorted(root.rglob("*.png")):
        rows.append(by_hand(model, path, crops))
        labels.append(names.index(path.parent.name))
    return torch.stack(rows), labels


def slow(rows, labels, columns):
    """Top-1, top-5 and calibration error, with all but the ``columns`` at minus infinity."""
    masked = torch.full_like(rows, -torch.inf)
    masked[:, columns] = rows[:, columns]
    order = [sorted(range(len(row)), key=lambda c: (-row[c], c)) for row in masked.tolist()]
    top1, top5 = (np.mean([label in one[:k] for one, label in zip(order, labels, strict=True)]) for k in (1, 5))
    confidence = masked.double().softmax(dim=1).amax(dim=1).numpy()
    right = np.array([one[0] == label for one, label in zip(order, labels, strict=True)])
    bins = np.ceil(confidence * 15)
    error = sum(abs((right[bins == b] - confidence[bins == b]).sum()) for b in np.unique(bins)) / len(right)
    return top1, top5, error


def test_images_of_some_classes_compare_their_logits_only(desk, tmp_path):
    """As ImageNet-A and -R, whose folders are some of ImageNet's synsets."""
    chosen = SYNSETS[3:1000:90]
    root = layout(tmp_path / "imagenet-r", chosen, each=3)
    model = mapet.load_classifier(desk / "imagenet")
    rows, labels = logits(model, root, Centre(0.75), SYNSETS)
    for subset, columns in ((True, [SYNSETS.index(name) for name in chosen]), (False, range(1000))):
        found = mapet.validate(desk / "imagenet", root, subset=subset, **CPU)
        top1, top5, error = slow(rows, labels, list(columns))
        assert (found.scores["top1"].value, found.scores["top5"].value) == (top1, top5)
        assert found.ece == pytest.approx(error, abs=1e-6)
    assert mapet.validate(desk / "imagenet", root, **CPU).protocol.endswith(
        "12 of 1000 classes, only their logits compared"
    )


def test_a_published_checkpoint_is_validated_by_timm_s_crop_of_0_9(desk, tmp_path):
    """Its classes are ImageNet's by synset, though the file does not name them."""
    root = layout(tmp_path / "val", SYNSETS[::200], each=4)
    model = mapet.load_classifier(desk / "published.tar")
    rows, labels = logits(model, root, Published(0.9), SYNSETS)
    found = mapet.validate(desk / "published.tar", root, subset=False, **CPU)
    assert found.protocol == "timm's centre crop 0.9, 1000 classes"
    assert (found.scores["top1"].value, found.scores["top5"].value) == slow(rows, labels, list(range(1000)))[:2]
    other, _ = logits(model, root, Centre(0.9), SYNSETS)
    assert not torch.equal(rows, other)


def test_folders_may_be_numbers_as_imagenet_v2_s(desk, tmp_path):
    root = layout(tmp_path / "v2", [str(number) for number in (0, 2, 10, 999)])
    targets = find_targets(mapet.load_classifier(desk / "imagenet"), root, ValidateSettings(subset=False))
    assert [SYNSETS[column] for (column,) in targets.labels] == [SYNSETS[n] for n in (0, 0, 10, 10, 2, 2, 999, 999)]


def test_several_labels_as_real(desk, tmp_path):
    """An image is right if its first class is one of its labels; images without labels do not count."""
    root, name = tmp_path / "val", "ILSVRC2012_val_{:08d}.png"
    for number in range(1, 9):
        save(root / name.format(number), number)
    save(root / "x" / name.format(9), 9)
    real: list[list[int]] = [[] for _ in range(12)]
    model = mapet.load_classifier(desk / "imagenet")
    pixels = {
        n: np.array(Centre(0.75)(0, [0])[0](read_image(next(root.rglob(name.format(n)))), VIEW)) for n in range(1, 10)
    }
    with torch.no_grad():
        best = {
            n: int(model(normalize(torch.from_numpy(p).permute(2, 0, 1)[None] / 255)).argmax())
            for n, p in pixels.items()
        }
    for number in (1, 2, 3, 9):
        real[number - 1] = [(best[number] + 7) % 1000, best[number]]
    for number in (5, 6):
        real[number - 1] = [(best[number] + 1) % 1000]
    (tmp_path / "real.json").write_text(json.dumps(real))
    (tmp_path / "named.json").write_text(json.dumps({name.format(n): real[n - 1] for n in range(1, 10)}))
    for file in ("real.json", "named.json"):
        found = mapet.validate(desk / "imagenet", root, real=tmp_path / file, **CPU).scores["top1"]
        assert (found.value, found.count) == (4 / 6, 6)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "cannot be read"),
        (b"[[1000]]", "0 … 999"),
        (b"[[true]]", "0 … 999"),
        (b"[1]", "0 … 999"),
        (b'{"other.png": [1]}', "no entry for ILSVRC2012_val_00000001.png"),
        (b"[[]]", "no class for any image"),
        (None, "cannot be read"),
    ],
)
def test_a_wrong_file_of_labels_is_refused(desk, tmp_path, content, reason):
    save(tmp_path / "val" / "ILSVRC2012_val_00000001.png", 0)
    if content is not None:
        (tmp_path / "real.json").write_bytes(content)
    with pytest.raises(MapetError, match=reason):
        mapet.validate(desk / "imagenet", tmp_path / "val", real=tmp_path / "real.json", **CPU)


def test_unknown_classes_and_models_without_a_head_are_refused(desk, tmp_path):
    with pytest.raises(MapetError, match=r"does not have the class x .*\(1 of 2 are unknown\)"):
        mapet.validate(desk / "five", layout(tmp_path / "other", ["a", "x"]), **CPU)
    with pytest.raises(MapetError, match="no labels"):
        mapet.validate(desk / "five", layout(tmp_path / "flat", ["a"]), **CPU)
    with pytest.raises(MapetError, match="no classifier's head"):
        mapet.validate(mapet.load_encoder(desk / "five"), desk / "few", **CPU)


def test_a_fine_tuning_scores_as_at_its_end(images, tmp_path):
    steps = {"epochs": 1, "batch_size": 16, "warmup_epochs": 0, "accelerator": "cpu"}
    vit = {"model": "custom", "embed_dim": 16, "depth": 1, "num_heads": 2, "image_size": 16, "patch_size": 4}
    for name, part in (("train", range(16)), ("test", range(16, 24))):
        for path in (images / label / f"{i:02d}.png" for label in ("across", "along") for i in part):
            (tmp_path / "data" / name / path.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "data" / name / path.parent.name)
    run = mapet.finetune("random", tmp_path / "data", tmp_path / "run", crop_pct=0.8, **vit, **steps)
    recorded = json.loads((run.folder / "scores.json").read_bytes())[-1]["top1"]
    found = mapet.validate(run.folder, tmp_path / "data", accelerator="cpu").scores["top1"]
    assert (found.value, found.count) == (recorded["value"], recorded["count"])


def test_training_images_of_the_fine_tuning_are_counted(tmp_path, caplog):
    """As files, whichever folder is given: the training ones of a folder with and without a split."""
    caplog.set_level("INFO", "mapet")
    names = ["a", "b", "c", "d", "e"]
    split = layout(tmp_path / "split" / "train", names).parent
    layout(split / "test", names)
    folder = layout(tmp_path / "whole", names, each=4)
    whole = as_finetuning(tmp_path / "of-whole", names, data=folder)
    held_in = len(train_and_test(str(folder))[0])
    assert 10 < held_in < 20
    trained = as_finetuning(tmp_path / "of-split", names, data=split)
    mapet.export(trained)
    link = tmp_path / "link"
    link.symlink_to(split / "train")
    for model, data, count in (
        (whole, folder, held_in),
        (trained, split, 0),
        (trained, split / "train", 10),
        (trained, link, 10),
        (trained / "export" / "timm", link, 10),
        (trained, folder, 0),
        (mapet.load_classifier(trained), split / "train", 0),  # of a module nothing is known
    ):
        caplog.clear()
        assert mapet.validate(model, data, **CPU).trained_on == count
        assert (f"note      {count:,} of the" in caplog.text) == (count > 0)
    out = tmp_path / "scores.json"
    for _ in range(2):  # measured, and read again
        both = mapet.robustness(trained, [split, link], out, **CPU)
        assert [one.clean.trained_on for one in both.values()] == [0, 10]


def test_broken_images_do_not_count(desk, tmp_path):
    root = shutil.copytree(desk / "few", tmp_path / "few")
    (root / "b" / "0.png").write_bytes(b"nothing")
    assert mapet.validate(desk / "five", root, max_bad_fraction=0.5, **CPU).scores["top1"].count == 7
    with pytest.raises(MapetError, match="unreadable"):
        mapet.validate(desk / "five", root, **CPU)


@installed
def test_robustness_is_validate_under_each_corruption(desk, tmp_path):
    """Also after an interruption, with what the file holds; and equal to itself as a baseline."""
    sets, chosen = [desk / "few", desk / "whole"], {"corruptions": "fog,impulse_noise", "severities": "1,4", **CPU}
    out = tmp_path / "r.json"
    found = mapet.robustness(desk / "five", sets, out, **chosen)
    assert list(found) == [str(one) for one in sets]
    assert found[str(sets[0])].clean == mapet.validate(desk / "five", sets[0], **CPU)
    one = found[str(sets[1])]
    assert list(one.passes) == [("clean", 0), *((name, n) for name in ("impulse_noise", "fog") for n in (1, 4))]
    wrong = [1 - one.passes[name, n].scores["top1"].value for name in ("impulse_noise", "fog") for n in (1, 4)]
    assert one.mce == pytest.approx(np.mean(wrong))
    shutil.copy(out, tmp_path / "base.json")
    content = json.loads(out.read_bytes())
    del content["sets"][str(sets[1])]["fog 4"]
    out.write_text(json.dumps(content))
    again = mapet.robustness(desk / "five", sets, out, baseline=tmp_path / "base.json", **chosen)
    assert {name: one.passes for name, one in again.items()} == {name: one.passes for name, one in found.items()}
    assert again[str(sets[1])].mce_of_baseline == pytest.approx(1)
    assert (
        mapet.robustness(desk / "five", sets, tmp_path / "s.json", seed=1, **chosen)[str(sets[1])].passes != one.passes
    )


def test_a_file_that_does_not_fit_is_refused(desk, tmp_path):
    out = tmp_path / "r.json"
    mapet.robustness(desk / "five", desk / "few", out, **CPU)
    for changed, reason in ({"crop_pct": 0.5}, "another crop pct"), ({"seed": 3}, "another seed"):
        with pytest.raises(MapetError, match=reason):
            mapet.robustness(desk / "five", desk / "few", out, **CPU, **changed)
    with pytest.raises(MapetError, match="another classifier"):
        mapet.robustness(as_finetuning(tmp_path / "six", list("abcdef")), desk / "few", out, **CPU)
    with pytest.raises(MapetError, match=f"no scores of {desk / 'whole'}, clean 0"):
        mapet.robustness(desk / "five", desk / "whole", baseline=out, **CPU)
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(MapetError, match="not a file of mapet robustness"):
        mapet.robustness(desk / "five", desk / "few", tmp_path / "other.json", **CPU)
    with pytest.raises(MapetError, match="no folder"):
        mapet.robustness(desk / "five", desk / "few", tmp_path / "no" / "r.json", **CPU)
    with pytest.raises(MapetError, match=r'no corruption "foggy"\. Did you mean "fog"'):
        mapet.robustness(desk / "five", desk / "few", corruptions="foggy", **CPU)
    with pytest.raises(MapetError, match="data is empty"):
        mapet.robustness(desk / "five", "", **CPU)
