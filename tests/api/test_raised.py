"""More epochs at a resume: as if the run had been begun with them, or refused with the way that remains."""

import pytest

import mapet
from mapet.cli import main
from mapet.engine import fit
from mapet.engine.run import Run, load_checkpoint
from mapet.utils.errors import MapetError

SIZES = {"model": "custom", "image_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
SHORT = {"batch_size": 16, "warmup_epochs": 0, "accelerator": "cpu"}
CONSTANT = {"lr": 1e-3, "min_lr": 1.0}


def pretrain(images, out, **settings):
    return mapet.pretrain(data=images, out=out, objective="mae", **{**SIZES, **SHORT, **settings})


def finetune(images, out, **settings):
    return mapet.finetune("random", images, out, **{**SIZES, **SHORT, "ema_decay": 0.5, **settings})


def same(one, other):
    assert one.metrics.read_bytes() == other.metrics.read_bytes()
    assert one.completed == other.completed
    found = [
        {name: tensor.numpy().tobytes() for name, tensor in load_checkpoint(run.last)[1].items()}
        for run in (one, other)
    ]
    return found[0] == found[1] and one.recipe.read_bytes() == other.recipe.read_bytes()


@pytest.mark.parametrize("train", [pretrain, finetune])
def test_a_run_with_a_constant_rate_goes_on_after_its_end(train, images, tmp_path):
    run = train(images, tmp_path / "raised", epochs=1, **CONSTANT)
    mapet.resume(run.folder, epochs=2, accelerator="cpu")
    mapet.resume(run.folder, epochs=2.5, accelerator="cpu")
    assert same(run, train(images, tmp_path / "whole", epochs=2.5, **CONSTANT))
    mapet.resume(run.folder, epochs=2.5, accelerator="cpu")  # nothing is left to do
    with pytest.raises(MapetError, match=r"epochs 2\.5, which can be raised only, got 1"):
        mapet.resume(run.folder, epochs=1)


def test_a_warm_up_may_be_followed_by_another_cosine(images, tmp_path, monkeypatch):
    settings = {"warmup_epochs": 2, "lr": 1e-3}
    whole = pretrain(images, tmp_path / "whole", epochs=4, **settings)
    backward = fit.backward

    def broken(*given, **named):
        if Run(tmp_path / "raised").completed:
            raise KeyboardInterrupt
        return backward(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(fit, "backward", broken)
        with pytest.raises(KeyboardInterrupt):
            pretrain(images, tmp_path / "raised", epochs=3, **settings)
    recipe = tmp_path / "raised" / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(text.replace("epochs: 3.0", "epochs: 4.0", 1))
    with pytest.raises(MapetError, match=r"was trained with optimization\.epochs 3\.0, not 4\.0"):  # by hand
        mapet.resume(tmp_path / "raised", accelerator="cpu")
    recipe.write_text(text)
    run = mapet.resume(tmp_path / "raised", epochs=4, accelerator="cpu")
    assert same(run, whole)


def test_a_decayed_rate_is_refused_with_the_way_that_remains(images, tmp_path, capsys):
    run = pretrain(images, tmp_path / "run", epochs=2, lr=1e-3)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file() and path != run.log}
    assert main(["pretrain", "--resume", str(run.folder), "--epochs", "3", "--accelerator", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "cosine to 1.00e-05 at step 6, which ends after 2 epochs" in said
    assert f"--init {run.folder}" in said
    kept = ("recipe.yaml", "metrics.csv", "model", "step")
    for path, content in before.items():
        assert not path.name.startswith(kept) or path.read_bytes() == content
    assert Run(run.folder).completed == 6


def test_where_epochs_are_fixed_one_line_says_so(images, tmp_path):
    (tmp_path / "compare.yaml").touch()
    with pytest.raises(MapetError, match="holds a comparison, whose epochs are fixed"):
        mapet.resume(tmp_path, epochs=3)
    own = {"teacher": "pixels", "vocab_size": 8, "code_dim": 4, "decoder_depth": 1, "epochs": 1}
    sizes = {name: value for name, value in SIZES.items() if name != "model"}
    run = mapet.train_vqkd(images, tmp_path / "vqkd", **sizes, **SHORT, **own)
    with pytest.raises(MapetError, match="trains a tokenizer"):
        mapet.resume(run.folder, epochs=3)
