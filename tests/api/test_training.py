"""Training through Python: flat settings, one resume for every kind, checks inside, folders of version 0.1."""

import json
import logging
import shutil

import pytest
import torch

import mapet
from mapet.api import vqkd_inputs
from mapet.api.inputs import check_inputs_unchanged
from mapet.api.kept_runtime import kept
from mapet.cli import main
from mapet.config.flat import updated
from mapet.config.runtime import Runtime
from mapet.config.vqkd import VQKDRecipe
from mapet.data.dataset import open_dataset
from mapet.engine import fit
from mapet.engine.run import Run, load_checkpoint
from mapet.utils.errors import MapetError
from mapet.utils.log import log, quiet

SIZES = {"image_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
SHORT = {"batch_size": 16, "epochs": 2, "warmup_epochs": 0, "accelerator": "cpu"}
SMALL = {"model": "custom", **SIZES, **SHORT}


def pretrain(images, out, **settings):
    return mapet.pretrain(data=images, out=out, objective="mae", **{**SMALL, **settings})


def finetune(images, out, **settings):
    return mapet.finetune("random", images, out, **{**SMALL, **settings})


def train_vqkd(images, out, **settings):
    own = {"teacher": "pixels", "vocab_size": 8, "code_dim": 4, "decoder_depth": 1}
    return mapet.train_vqkd(images, out, **{**SIZES, **SHORT, **own, **settings})


TRAINED = {"pretrain": pretrain, "finetune": finetune, "vqkd": train_vqkd}


@pytest.fixture(scope="module", params=TRAINED)
def whole(request, images, tmp_path_factory):
    """A kind of training, and an uninterrupted run of it."""
    folder = tmp_path_factory.mktemp(request.param) / "whole"
    return TRAINED[request.param], TRAINED[request.param](images, folder)


def weights(run):
    return load_checkpoint(run.last)[1]


def test_resume_takes_any_kind_of_run(images, whole, tmp_path, monkeypatch):
    train, first = whole
    out = tmp_path / "broken"

    def interrupted(*given, **named):
        if Run(out).metrics.is_file():
            raise KeyboardInterrupt
        return backward(*given, **named)

    backward = fit.backward
    with monkeypatch.context() as patched:
        patched.setattr(fit, "backward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(images, out, save_every=1)
    assert 0 < Run(out).completed < first.completed
    run = mapet.resume(out, accelerator="cpu", save_every=1)
    assert all(torch.equal(tensor, weights(first)[name]) for name, tensor in weights(run).items())
    assert run.metrics.read_bytes() == first.metrics.read_bytes()


@pytest.fixture(scope="module")
def mixed(images, tmp_path_factory):
    """The images, and two that cannot be read."""
    folder = shutil.copytree(images, tmp_path_factory.mktemp("mixed") / "images")
    for name in ("one", "two"):
        (folder / "along" / f"{name}.png").write_bytes(b"")
    return folder


@pytest.mark.parametrize("by", ["python", "command"])
@pytest.mark.parametrize("train", TRAINED.values(), ids=TRAINED)
def test_a_resume_keeps_the_fraction_of_bad_images(mixed, tmp_path, monkeypatch, train, by):
    calls, backward, out = [], fit.backward, tmp_path / "run"

    def interrupted(*given, **named):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return backward(*given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(fit, "backward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(mixed, out, epochs=4, batch_size=12, max_bad_fraction=0.2, save_every=1)
    steps = Run(out).completed
    verb = {"finetune": "finetune", "train_vqkd": "tokenizer train-vqkd"}.get(train.__name__, "pretrain").split()
    if by == "command":
        assert main([*verb, "--resume", str(out), "--accelerator", "cpu"]) == 0
    else:
        mapet.resume(out, accelerator="cpu")
    assert Run(out).completed > steps


def test_another_fraction_of_bad_images_is_kept_from_then_on(mixed, tmp_path):
    run = pretrain(mixed, tmp_path / "run", max_bad_fraction=0.2)
    assert kept(run.folder, Runtime) == Runtime(max_bad_fraction=0.2)
    mapet.resume(run.folder, accelerator="cpu", max_bad_fraction=0.3)
    assert kept(run.folder, Runtime) == Runtime(max_bad_fraction=0.3)
    for damaged in (b"", b"{", b"[]", b"3", b'{"max_bad_fraction": "x"}', b"\xff\xfe", None):
        file = run.folder / "runtime.json"
        file.unlink() if damaged is None else file.write_bytes(damaged)
        assert kept(run.folder, Runtime) == Runtime()
    mapet.resume(run.folder, accelerator="cpu", max_bad_fraction=0.1)


def test_what_a_run_gives(whole):
    train, run = whole
    assert isinstance(run, mapet.Run)
    assert run.completed == (4 if train is finetune else 6)
    assert [entry["step"] for entry in run.scores] == ([4] if train is finetune else [])
    lines = run.log.read_text()
    assert all(f"  {name} " in lines for name in ("data", "model", "steps", "rate", "done"))


@pytest.mark.parametrize("train", TRAINED.values(), ids=TRAINED)
def test_every_seed_within_the_limit_trains_and_others_make_no_folder(images, tmp_path, train):
    assert train(images, tmp_path / "largest", seed=2**63 - 1, epochs=1).completed
    for seed in (-1, 2**63, 2**64):
        with pytest.raises(MapetError, match=rf"^seed must be >= 0 and < {2**63}, got {seed}\.$"):
            train(images, tmp_path / "run", seed=seed)
    assert not (tmp_path / "run").exists()


def test_the_schedule_is_logged_with_what_does_not_suit_the_run(images, tmp_path):
    run = pretrain(images, tmp_path / "run", lr=4e-6, warmup_epochs=2, ema_decay=0.9)
    lines = [line.split("  ", 1)[1] for line in run.log.read_text().splitlines()]
    assert "rate      warm-up 1 step to 4.00e-06, cosine to 4.00e-06 at step 6" in lines
    notes = [line for line in lines if line.startswith("note")]
    assert notes == [
        "note      --warmup-epochs 2 is not shorter than the run: it is shortened to 1 of 6 steps",
        "note      --min-lr 1.00e-05 is above the peak 4.00e-06: the rate does not decay; lower --min-lr",
        "note      the moving average still holds 53% of the initial weights at the end; lower --ema-decay",
    ]
    names, *rows = [line.split(",") for line in run.metrics.read_text().splitlines()]
    rates = [float(row[names.index("lr")]) for row in rows]
    assert rates == pytest.approx([1e-6, *[4e-6] * 5])


def test_the_inputs_of_version_0_1_are_accepted(whole, tmp_path):
    """It called images pictures."""
    _, run = whole
    path = run.folder / "inputs.json"
    now = json.loads(path.read_text())
    path.write_text(json.dumps({"pictures" if name == "images" else name: value for name, value in now.items()}))
    mapet.resume(run.folder, accelerator="cpu")
    assert json.loads(path.read_text()) == now


def test_what_has_changed_since_a_run_was_begun_is_named(images, tmp_path):
    run, source = Run.create(tmp_path / "run"), open_dataset(str(images))

    def check(indices=(0, 1, 2), tokens="1", **same):
        same = {"tokenizer": "a", **same}
        check_inputs_unchanged(
            run, source, torch.tensor(indices), same, "images or tokens", contents={"tokens": tokens}
        )

    check()
    check()
    for given, said in (
        ({"indices": (0, 1, 2, 3)}, "has 4 images, not 3"),
        ({"indices": (0, 1, 3)}, "the names or labels of the images of .* differ"),
        ({"tokenizer": "b"}, "another tokenizer"),
        ({"classes": ["a", "b"]}, "other classes"),
        ({"tokens": "2"}, "other tokens"),
    ):
        with pytest.raises(MapetError, match=rf"run was begun with other images or tokens \(.*{said}\)"):
            check(**given)
    check()


def test_evaluate_every_is_for_fine_tunings(whole):
    train, run = whole
    if train is not finetune:
        with pytest.raises(MapetError, match=r"evaluate_every only applies to a fine-tuning"):
            mapet.resume(run.folder, evaluate_every=1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epoch": 1}, 'Did you mean "epochs"?'),
        ({"data": ""}, "data is missing: give a folder of images"),
        ({"out": None}, "out is missing"),
        ({"recipe": "cifar10-vit-tin"}, 'Did you mean "cifar10-vit-tiny"?'),
        ({"tokenizer": "somewhere", "fit_images": 3, "objective": "mapet"}, "fit_images"),
        ({"workers": -1}, "workers must be >= 0, got -1."),
    ],
)
def test_what_does_not_fit_is_refused_in_the_words_of_python(images, tmp_path, settings, said):
    with pytest.raises(MapetError) as refused:
        mapet.pretrain(**{"data": images, "out": tmp_path / "run", "objective": "mae", **SMALL, **settings})
    assert said in str(refused.value)
    assert "--" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("limit", "patches"), [(None, 48 * 16), (2, 2 * 16)])
def test_a_tokenizer_learns_at_most_as_many_codes_as_it_sees_patches(images, limit, patches):
    t = updated(VQKDRecipe(), data=str(images), teacher="pixels", image_size=16, patch_size=4, batch_size=2)
    vqkd_inputs.validate(updated(t, max_images=limit, vocab_size=patches), Runtime(accelerator="cpu"))
    with pytest.raises(MapetError, match=f"fewer patches than {patches + 1} codes"):
        vqkd_inputs.validate(updated(t, max_images=limit, vocab_size=patches + 1), Runtime(accelerator="cpu"))


def test_a_tokenizer_s_training_has_no_named_recipe(images, tmp_path):
    with pytest.raises(MapetError, match='no recipe "cifar10-quickstart" of this kind: give a file'):
        mapet.train_vqkd(images, tmp_path / "out", recipe="cifar10-quickstart")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("train", TRAINED.values())
def test_a_run_among_its_images_is_refused(images, train):
    with pytest.raises(MapetError, match=r"is to be written"):
        train(images, images)


def test_paths_are_made_absolute(images, tmp_path, monkeypatch):
    monkeypatch.chdir(images.parent)
    run = pretrain(images.name, tmp_path / "run", epochs=1)
    monkeypatch.chdir(tmp_path)
    assert mapet.resume("run", accelerator="cpu").completed == run.completed


def test_nothing_is_printed_but_the_log_is_written(images, tmp_path, capsys):
    heard = []
    handler = logging.Handler()
    handler.emit = heard.append
    log.addHandler(handler)
    try:
        with quiet():
            run = pretrain(images, tmp_path / "run", epochs=1)
    finally:
        log.removeHandler(handler)
    assert not heard
    assert not capsys.readouterr().out
    assert "steps" in run.log.read_text()


def test_nothing_to_resume(tmp_path):
    with pytest.raises(MapetError, match=r"holds no run"):
        mapet.resume(tmp_path)
