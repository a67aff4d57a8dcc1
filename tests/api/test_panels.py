"""Panels on the way: drawn by the codes' typical patches, and the training does not notice them."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

import mapet
from mapet.api import panels
from mapet.api.reveal import _model
from mapet.engine.run import load_checkpoint
from mapet.utils.errors import MapetError
from mapet.utils.owned import RUN, find_foreign

SMALL = {
    "model": "custom", "embed_dim": 16, "depth": 2, "num_heads": 2, "image_size": 16, "patch_size": 4, "batch_size": 8,
    "lr": 1e-3, "epochs": 2, "warmup_epochs": 1, "vocab_size": 16, "iterations": 3, "teacher": "pixels",
    "accelerator": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module", params=["mapet", "pet", "mim"])
def drawn(request, images, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "run"
    return mapet.pretrain(data=images, out=out, objective=request.param, panel_every=0.5, drop_path=0.1, **SMALL)


def test_the_training_does_not_notice_by_one_bit(drawn, images, tmp_path):
    plain = mapet.pretrain(
        data=images, out=tmp_path / "run", objective=drawn.folder.parent.name.rstrip("0"), drop_path=0.1, **SMALL
    )
    one, two = load_checkpoint(plain.last), load_checkpoint(drawn.last)
    assert one[0] == two[0]
    assert all(one[1][name].equal(two[1][name]) for name in one[1])
    assert plain.metrics.read_bytes() == drawn.metrics.read_bytes()
    assert not (plain.folder / panels.FOLDER).exists()


def test_each_half_epoch_has_a_panel(drawn):
    files = sorted(path.name for path in (drawn.folder / "panels").iterdir())
    assert files == [f"step-{step:08d}.png" for step in (3, 6, 9, 12)]
    assert find_foreign(drawn.folder, RUN) is None
    size = 6 * (4 * 16 + 3 * panels.GAP)
    assert {Image.open(drawn.folder / "panels" / name).size for name in files} == {(size, size)}
    events = b"".join(path.read_bytes() for path in (drawn.folder / "tensorboard").iterdir())
    assert events.count(b"panel") >= 4


def test_a_panel_shows_patches_tokens_and_image(drawn):
    """The last column is an image of the training; given patches are its own in the first two columns."""
    recipe = _model(drawn.folder)[1]
    panel = np.asarray(Image.open(drawn.folder / "panels" / "step-00000012.png"))[::6, ::6]
    line, columns = panel[:16], [slice(i * (16 + panels.GAP), i * (16 + panels.GAP) + 16) for i in range(4)]
    hidden, predicted, true, image = (line[:, part] for part in columns)
    kept = 0
    for top in range(0, 16, 4):
        for left in range(0, 16, 4):
            patch = slice(top, top + 4), slice(left, left + 4)
            if (hidden[patch] == image[patch]).all():
                kept += 1
                assert (predicted[patch] == image[patch]).all()
            else:
                assert len(np.unique(hidden[patch])) == 1
    assert kept == recipe.context - 1
    assert (true >= 63).all()  # paler


def test_drawing_leaves_random_states_and_modes(drawn):
    from mapet.build.batches import PretrainBatches

    objective, recipe, run = _model(drawn.folder)
    objective.train()

    class Known(panels.Panels):
        _known = None

    batch = type(
        "Batch", (), {"images": torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8), "index": torch.arange(2)}
    )
    Known._known = batch, torch.randint(16, (2, 16)), {}
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    Known(run, recipe, PretrainBatches).draw(objective, 99)
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])
    assert all(part.training for part in objective.modules())
    (run.folder / "panels" / "step-00000099.png").unlink()


@pytest.mark.parametrize("objective", ["mae", "cae"])
def test_other_objectives_are_refused(images, tmp_path, objective):
    with pytest.raises(MapetError, match=f"panel_every needs objective mapet, pet, mim, got {objective}"):
        mapet.pretrain(data=images, out=tmp_path / "run", objective=objective, panel_every=1, **SMALL)
    assert not (tmp_path / "run").exists()
