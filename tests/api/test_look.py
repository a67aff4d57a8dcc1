"""Look inside: what the figures show, and reveal against the objective."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import mapet
from mapet.api.reveal import Revealer
from mapet.cli import main
from mapet.tokenizers.codebook import Codebook
from mapet.tokenizers.store import TokenStore
from mapet.utils.errors import MapetError
from mapet.viz.codes import code_colors, typical_patches
from mapet.viz.figures import is_figure

SMALL = {"model": "custom", "embed_dim": 16, "depth": 2, "num_heads": 2, "image_size": 16, "patch_size": 4}
TRAINED = {**SMALL, "batch_size": 8, "lr": 1e-3, "epochs": 1, "vocab_size": 16, "iterations": 3}


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    return mapet.pretrain(data=images, out=tmp_path_factory.mktemp("look") / "run", **TRAINED).folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(path)
    return path


def test_codes_with_near_vectors_have_near_colors():
    vectors = torch.randn(3, 8).repeat_interleave(10, dim=0) * 10 + 0.01 * torch.randn(30, 8)
    colors = code_colors(vectors)
    assert colors.shape == (30, 3)
    own = np.abs(colors[:10, 0] - colors[:10, 0].mean()).max()
    assert own < np.ptp(colors[:, 0]) / 2
    assert code_colors(torch.randn(4, 2)).shape == (4, 3)


def test_the_typical_patch_is_one_of_the_code_s_own():
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 12), dtype=np.uint8)
    tokens = np.random.default_rng(1).integers(0, 4, (6, 6))
    for code, patch in typical_patches(images, tokens, (2, 3)).items():
        own = [
            images[i, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].transpose(1, 2, 0)
            for i in range(6) for row in range(2) for column in range(3) if tokens[i, 3 * row + column] == code
        ]  # fmt: skip
        far = [((one - np.mean(own, axis=0)) ** 2).sum() for one in own]
        assert (patch == own[int(np.argmin(far))]).all()


def test_attend_draws_and_returns(run, images, photo, tmp_path):
    found = mapet.attend(run, [photo, next(iter(sorted(images.rglob("*.png"))))], tmp_path / "a.png", patch=(0, 1))
    assert found.heads.shape == (2, 2, 4, 4)
    assert found.colors.shape == (2, 4, 4, 3)
    assert found.similarity[0, 0, 1] == pytest.approx(1)
    with Image.open(tmp_path / "a.png") as figure:
        assert figure.width > figure.height
    with pytest.raises(MapetError, match="overwrite"):
        mapet.attend(run, photo, tmp_path / "a.png")
    plain = mapet.attend(run, photo, tmp_path / "a.svg")
    assert is_figure(tmp_path / "a.svg")
    assert (plain.patch, plain.block) == ((2, 2), 2)  # the middle, and the last


def test_reveal_predicts_what_the_objective_predicts(run, photo, tmp_path):
    """Before the last patch is given, all at once is one at a time."""
    found = mapet.reveal_image(run, photo, tmp_path / "r.png", frames=3)
    assert found.given[0] == 4  # 16 patches, 75 % hidden
    assert found.given[-1] == 15
    assert found.accuracy[-1] in (0, 1)
    assert found.frames.shape == (5, 16, 16, 3)
    for line, given in zip(found.tokens, found.given, strict=False):
        shown = found.order[1 : 1 + given] - 1
        assert (line[shown] == found.tokens[-1][shown]).all()
    hidden = found.order[-1] - 1  # everywhere else the image itself
    differs = (found.frames[-3] != found.frames[-1]).any(axis=2).reshape(4, 4, 4, 4).any(axis=(1, 3)).flatten()
    assert differs.nonzero()[0].tolist() in ([hidden], [])


def test_typical_patches_are_those_of_the_stored_tokens(run, tmp_path, monkeypatch):
    """The tokenizer computes them only where the store is damaged."""
    calls, encode = [], Codebook.encode
    monkeypatch.setattr(Codebook, "encode", lambda book, images: calls.append(len(images)) or encode(book, images))
    typical = Revealer(run).typical
    assert not calls
    assert set(typical) == set(np.unique(TokenStore.open(run / "tokens").tokens).tolist())
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "tokens" / "store.json").write_text("{")
    assert set(Revealer(tmp_path / "run").typical) == set(typical)
    assert sum(calls) == 48


def test_images_are_read_as_the_training_read_them(images, tmp_path, monkeypatch):
    """With the run's --max-pixels and --draft, in figures and in reports."""
    again = mapet.pretrain(data=images, out=tmp_path / "run", max_pixels=2000, draft=16, **TRAINED).folder
    asked, opened = [], mapet.data.dataset.open_dataset

    def spied(data, split="train", max_pixels=0, draft=None):
        asked.append((max_pixels, draft))
        return opened(data, split, max_pixels, draft)

    monkeypatch.setattr("mapet.data.dataset.open_dataset", spied)
    Revealer(again)
    mapet.report(again)
    assert len(asked) >= 2
    assert set(asked) == {(2000, 16)}


def test_the_first_frame_is_a_forward_pass_of_masked_prediction(run, photo):
    from mapet.api.reveal import _model
    from mapet.data.augment import normalize, to_float
    from mapet.data.given import open_images
    from mapet.data.loader import in_order
    from mapet.data.unreadable import UnreadableImages
    from mapet.utils.view import CenterCropResize

    found, (model, _, _) = mapet.reveal_image(run, photo, frames=2), _model(run)
    (batch,) = in_order(open_images(photo), CenterCropResize((16, 16)), 1, bad=UnreadableImages(1))
    order = torch.from_numpy(found.order)[None]
    with torch.no_grad():
        logits = model.logits(normalize(to_float(batch.images)), order)  # the first is predicted from the context alone
    assert int(logits[0, 0].argmax()) == found.tokens[0][found.order[5] - 1]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["attend", "RUN", "PHOTO", "--out", "a.jpg"], "--out must end in .png or .svg"),
        (
            ["attend", "RUN", "PHOTO", "--out", "a.png", "--block", "3"],
            "--block must be <= 2",
        ),
        (["attend", "RUN", "PHOTO", "--out", "a.png", "--patch", "4", "0"], "from 0, got 4 0"),
        (["attend", "nowhere", "PHOTO", "--out", "a.png"], "does not exist"),
        (["reveal", "RUN", "IMAGES", "--out", "a.png"], "IMAGE must be one image, got 48"),
        (["reveal", "RUN", "PHOTO", "--out", "a.png", "--frames", "0"], "--frames must be >= 1 and <= 12, got 0"),
        (["reveal", "PHOTO", "PHOTO", "--out", "a.png"], "PHOTO"),
        (
            ["reveal", "RUN", "bad.jpg", "--out", "a.png"],
            "No image can be read: 1 of 1 images are unreadable: bad.jpg (not",
        ),
        (
            ["attend", "RUN", "bad.jpg", "--out", "a.png"],
            "No image can be read: 1 of 1 images are unreadable: bad.jpg (not",
        ),
    ],
)
def test_refusals(words, text, run, photo, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jpg").write_bytes(b"none")
    given = {"RUN": str(run), "PHOTO": str(photo), "IMAGES": str(images)}
    assert main([given.get(word, word) for word in words]) == 2
    assert given.get(text, text) in capsys.readouterr().err


def test_both_verbs_print_what_they_drew(run, photo, tmp_path, capsys):
    assert main(["attend", str(run), str(photo), "--out", str(tmp_path / "a.png")]) == 0
    assert "1 images, heads of block 2" in capsys.readouterr().out
    assert main(["reveal", str(run), str(photo), "--out", str(tmp_path / "b.png"), "--frames", "2"]) == 0
    assert "4 of 16 patches given" in capsys.readouterr().out
