"""Fine-tuning: the same start from every form of an encoder, its objective, its stream, and what it refuses."""

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from forms import MODEL, in_all_forms, randomised
from golden_numbers import FOLDER, Golden
from mapet.api.encoders import load_start
from mapet.api.export import export
from mapet.build.finetune import FinetuneBatches, begin, classifier_over, load_run_classifier, load_trained
from mapet.build.pretrain import build_objective
from mapet.config.finetune import Augmentation, Backbone, FinetuneRecipe, protocol
from mapet.config.flat import dotted, paths
from mapet.config.recipe import Recipe, read, save
from mapet.config.recipes.finetune import catalogue
from mapet.data.dataset import open_dataset
from mapet.data.loader import Shuffled
from mapet.data.policy import Policy
from mapet.data.unreadable import UnreadableImages
from mapet.engine.run import Run
from mapet.evals.finetune import FineTuning, rank_histogram, ranks_from_histogram
from mapet.evals.score import rank_of_target, share, tops
from mapet.interop.checkpoint import load_checkpoint_encoder
from mapet.method.encoder import Classifier, Encoder
from mapet.utils.errors import MapetError
from mapet.utils.view import CenterCropResize

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    return in_all_forms(Recipe(data="images", model=MODEL), tmp_path_factory.mktemp("forms"))


def started(path, classes=5, heads=None, **settings):
    t = FinetuneRecipe(init=str(path), backbone=Backbone(num_heads=heads, image_size=settings.pop("image_size", None)))
    return classifier_over(load_start(t).encoder, replace(t, **settings), classes).eval()


@pytest.mark.parametrize("size", [None, 24])
def test_run_export_and_official_checkpoint_start_from_the_same_logits(forms, size):
    images = F.interpolate(IMAGES, (size or 16, size or 16))
    run, exported = (started(forms[name], image_size=size) for name in ("run", "export"))
    official = started(forms["published.pth.tar"], heads=2, image_size=size)
    logits = run(images)
    assert torch.equal(logits, exported(images))
    assert torch.equal(logits, official(images))
    assert torch.equal(logits, started(forms["run"], image_size=size)(images))
    assert not torch.equal(logits, started(forms["run"], image_size=size, seed=1)(images))
    assert logits.abs().max() < 0.05, "a fresh head is small"
    assert not torch.equal(logits[0], logits[1])


def test_the_encoder_is_taken_over_whole_and_the_mean_of_patches_is_read(forms):
    from mapet.build.pretrain import load_run_encoder

    model, (encoder, _, _) = started(forms["run"]), load_run_encoder(forms["run"])
    features = model.run(model.embed(IMAGES) + model.pos_embed)
    torch.testing.assert_close(encoder.norm(features), encoder(IMAGES))
    expected = F.linear(F.layer_norm(features[:, 1:].mean(1), (16,), eps=1e-6), model.head.weight)
    torch.testing.assert_close(model(IMAGES), expected)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_folder_of_a_fine_tuning_is_whole_without_from(forms, tmp_path):
    t = FinetuneRecipe(init=str(forms["run"]), drop_path=0.3)
    model, run = started(forms["run"], drop_path=0.3), Run.create(tmp_path / "ft")
    save(t, run.recipe)
    begin(run, model, t, {"from": "x", "classes": list("abcde")})
    loaded, again, step = load_run_classifier(run.folder)
    assert (again, step, loaded.drop_path_rate) == (t, 0, 0.3)
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    kept, fresh = started(run.folder), started(run.folder, fresh_head=True, seed=5)
    assert torch.equal(kept(IMAGES), model(IMAGES))
    assert not torch.equal(fresh(IMAGES), model(IMAGES))
    export(run.folder, tmp_path / "export")
    assert torch.equal(started(tmp_path / "export")(IMAGES), model(IMAGES))
    with pytest.raises(MapetError, match=r"5 classes, and the data have 3.*fresh_head"):
        started(run.folder, classes=3)
    assert started(run.folder, classes=3, fresh_head=True)(IMAGES).shape == (3, 3)


def test_a_checkpoint_that_does_not_fit_its_classifier_is_refused(forms, tmp_path):
    run = Run.create(tmp_path / "ft")
    begin(run, started(forms["run"]), FinetuneRecipe(init="x"), {})
    with pytest.raises(MapetError, match=r"last\.safetensors does not fit .*classifier\.json"):
        load_trained(FineTuning(started(forms["run"], classes=4)), run.last, run.classifier)
    with pytest.raises(MapetError, match="has no checkpoint yet"):
        load_trained(FineTuning(started(forms["run"])), run.folder / "none", run.classifier)


def test_positions_on_another_grid_are_timms(forms, tmp_path):
    import timm

    theirs = timm.create_model(f"local-dir:{forms['export']}", pretrained=True, img_size=32).eval()
    ours = started(forms["export"], image_size=32)
    torch.testing.assert_close(ours.pos_embed, theirs.pos_embed)


def test_from_random_is_the_start_of_pre_training():
    t = FinetuneRecipe(init="random", backbone=Backbone(16, 2, "custom", 16, 2, 4), seed=3)
    ours = classifier_over(load_start(t).encoder, t, 5).state_dict()
    theirs = build_objective(Recipe(model=MODEL, seed=3), 12).encoder.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items() if not name.startswith("norm."))


@pytest.mark.parametrize("case", ["mapet_pretrain_small", "mae", "beit_mim", "cae"])
def test_every_published_format_is_known_by_its_tensors(case, tmp_path):
    golden = Golden(case)
    torch.save({"model": golden.weights}, tmp_path / "checkpoint.pth")
    found = load_checkpoint_encoder(tmp_path / "checkpoint.pth", heads=golden.config["num_heads"])
    start = "encoder." if case == "cae" else ""
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.1.mlp.fc2.weight"):
        assert torch.equal(found.state_dict()[name], golden.weights[start + name])
    assert found.grid[0] * found.patch_size[0] == golden.config["img_size"]


def test_an_encoder_alone_under_plain_names(tmp_path):
    encoder = randomised(Encoder(16, 4, embed_dim=64, depth=2, num_heads=1)).eval()
    torch.save(encoder.state_dict(), tmp_path / "plain.pth")
    assert torch.equal(load_checkpoint_encoder(tmp_path / "plain.pth")(IMAGES), encoder(IMAGES))


def test_a_published_classifier_keeps_its_head():
    golden, path = Golden("mapet_finetuned"), FOLDER / "mapet_finetuned.checkpoint.pth.tar"
    classes, heads = golden["logits"].shape[1], golden.config["num_heads"]
    model = started(path, classes=classes, heads=heads)
    torch.testing.assert_close(model(golden["images"]), golden["logits"], atol=2e-5, rtol=0)
    with pytest.raises(MapetError, match="fresh_head"):
        started(path, classes=classes + 1, heads=heads)


def test_what_from_cannot_be(forms, tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    (tmp_path / "empty").mkdir()
    fits_none = "a run, an export folder, an official-format checkpoint or a timm model, or random"
    for start, backbone, said in (
        (tmp_path / "absent", {}, f"does not exist: give {fits_none}"),
        (tmp_path / "empty", {}, f"holds neither a run nor an export: give {fits_none}"),
        (tmp_path / "other.pth", {}, "not a checkpoint of a vision transformer"),
        (forms["run"], {"name": "vit_tiny"}, "model"),
        (forms["run"], {"num_heads": 2}, "num_heads"),
        (forms["run"], {"image_size": 18}, "image_size must be a multiple of"),
        (forms["published.pth.tar"], {"num_heads": 3}, "3 heads"),
        ("random", {}, "needs model"),
    ):
        t = FinetuneRecipe(init=str(start), backbone=Backbone(**backbone))
        with pytest.raises(MapetError) as error:
            classifier_over(load_start(t).encoder, t, 5)
        assert said in str(error.value)
        assert "\n" not in str(error.value)


def test_an_export_with_another_normalization_is_refused(forms, tmp_path):
    from mapet.build.pretrain import load_run_encoder
    from mapet.interop.timm import to_timm

    to_timm(load_run_encoder(forms["run"])[0], tmp_path / "other", mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(MapetError, match="normalises"):
        load_start(FinetuneRecipe(init=str(tmp_path / "other")))
    grey = Encoder(16, 4, in_chans=1, embed_dim=16, depth=1, num_heads=2)
    with pytest.raises(MapetError, match="1 × 16 × 16"):
        classifier_over(grey, FinetuneRecipe(), 3)


def test_the_loss_is_cross_entropy_with_soft_targets():
    model = FineTuning(randomised(Classifier(16, 4, embed_dim=16, depth=1, num_heads=2, num_classes=4)))
    labels, key = torch.tensor([2, 0, 3]), torch.arange(3)
    logits = model.classifier(IMAGES)
    smoothed = 0.9 * torch.eye(4)[labels] + 0.025
    found = model(IMAGES, smoothed, key)
    torch.testing.assert_close(found["loss"], F.cross_entropy(logits, labels, label_smoothing=0.1))
    assert found["accuracy"] == (logits.argmax(1) == labels).float().mean()


def test_stochastic_depth_hangs_on_the_key():
    model = FineTuning(
        randomised(Classifier(16, 4, embed_dim=16, depth=4, num_heads=2, num_classes=4, drop_path_rate=0.8))
    )
    targets = torch.eye(4)[:3]
    one, same, other = (model(IMAGES, targets, torch.tensor(key))["loss"] for key in ([1, 2, 3], [1, 2, 3], [4, 5, 6]))
    assert one == same != other


def test_histograms_count_ranks_and_add_up():
    classifier = randomised(Classifier(16, 4, embed_dim=16, depth=1, num_heads=2, num_classes=7, drop_path_rate=0.9))
    images, labels = torch.randn(20, 3, 16, 16), torch.arange(20) % 7
    with torch.no_grad():
        expected = rank_of_target(classifier.eval()(images), labels)
    classifier.train()
    device = torch.device("cpu")
    parts = [rank_histogram(classifier, [(images[part], labels[part])], device) for part in (slice(0, 9), slice(9, 20))]
    assert all(part.shape == (1 + 7,) for part in parts)
    assert torch.equal(ranks_from_histogram(sum(parts)), expected.sort().values)
    assert tops(ranks_from_histogram(sum(parts)), 7)["top1"] == share(int((expected == 0).sum()), 20)


def finetune_batches(images, rank=0, world_size=1, **mixing):
    source = open_dataset(str(images))
    t = FinetuneRecipe(augmentation=Augmentation(reprob=0.5, **mixing), seed=2)
    shuffled = Shuffled(
        source,
        CenterCropResize((16, 16)),
        crops=Policy(t.seed, auto_augment=t.augmentation.auto_augment),
        batch_size=12,
        epochs=2,
        seed=t.seed,
        bad=UnreadableImages(len(source)),
        rank=rank,
        world_size=world_size,
    )
    return FinetuneBatches(t, shuffled, 2, torch.device("cpu"))


def test_a_stream_can_begin_anywhere(images):
    whole, late = list(finetune_batches(images)(0)), list(finetune_batches(images)(5))
    assert len(whole) == 8
    for a, b in zip(whole[5:], late, strict=True):
        assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_processes_share_a_batch_and_only_mixing_knows_of_it(images):
    plain = {"mixup": 0.0, "cutmix": 0.0}
    whole = next(finetune_batches(images, **plain)(3))
    parts = [next(finetune_batches(images, rank, 2, **plain)(3)) for rank in (0, 1)]
    for name, tensor in whole.items():
        assert torch.equal(tensor, torch.cat([part[name] for part in parts]))
    mixed, halves = next(finetune_batches(images)(3)), [next(finetune_batches(images, rank, 2)(3)) for rank in (0, 1)]
    assert torch.equal(mixed["seed"], torch.cat([half["seed"] for half in halves]))
    weights = [targets.max(dim=1).values.min() for targets in (mixed["targets"], *(h["targets"] for h in halves))]
    assert max(weights) < 1


@pytest.mark.parametrize("name", catalogue())
def test_every_named_fine_tuning_survives_yaml(name, tmp_path):
    t = catalogue()[name]()
    save(t, tmp_path / "recipe.yaml")
    assert read(tmp_path / "recipe.yaml", FinetuneRecipe) == t
    assert (catalogue()[name].__doc__ or "").strip()


def test_a_protocol_names_every_setting_that_a_table_must_tell():
    names = {
        protocol(t)
        for t in (
            FinetuneRecipe(),
            FinetuneRecipe(layer_decay=0.9),
            FinetuneRecipe(crop_pct=0.9),
            FinetuneRecipe(init="random"),
        )
    }
    names |= {
        protocol(FinetuneRecipe(augmentation=Augmentation(**one))) for one in ({"mixup_prob": 0.0}, {"reprob": 0.1})
    }
    assert len(names) == 6
    assert all("\n" not in name for name in names)


def test_flat_option_names_are_unique():
    assert len(paths(FinetuneRecipe)) == len(dotted(FinetuneRecipe()))
    assert json.dumps(dotted(FinetuneRecipe()))


def test_ranks_are_counted_in_evaluation_mode():
    torch.manual_seed(0)
    classifier = Classifier(16, 4, embed_dim=16, depth=4, num_heads=2, num_classes=5, drop_path_rate=0.9).train()
    randomised(classifier)
    labels = torch.tensor([0, 3, 4])
    counts = rank_histogram(classifier, [(IMAGES, labels)], torch.device("cpu"))
    assert not classifier.training
    assert torch.equal(counts, rank_of_target(classifier(IMAGES), labels).bincount(minlength=6))
