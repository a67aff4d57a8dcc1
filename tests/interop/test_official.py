"""Parity with the published code, number by number, on its checkpoints."""

import argparse
import pickle

import pytest
import torch

from golden_numbers import FOLDER, Golden
from mapet.interop.official import load_finetuned, load_pretraining
from mapet.utils.errors import MapetError

OUTPUT, LOSS, GRADIENT = 2e-5, 1e-5, 2e-5  # float32 on a CPU; gradients: plus 1e-4 of the largest entry


@pytest.fixture(params=["mapet_pretrain_small", "mapet_pretrain_224"])
def golden(request):
    return Golden(request.param)


def load(golden, **changes):
    config = golden.config
    settings = {
        "image_size": config["img_size"],
        "patch_size": config["patch_size"],
        "heads": config["num_heads"],
        "context": config["context"],
    }
    return load_pretraining(golden.weights, **{**settings, **changes}).eval()


def test_logits(golden):
    model, order = load(golden), golden["order"]
    logits = model.logits(golden["images"], order)
    patches = order[:, golden.config["context"] :] - 1
    ascending = patches.argsort(dim=1)
    assert torch.equal(patches.gather(1, ascending), golden["predicted"])
    logits = logits.gather(1, ascending[:, :, None].expand_as(logits))
    torch.testing.assert_close(logits, golden["logits"], atol=OUTPUT, rtol=0)


def test_loss_and_every_gradient(golden):
    model = load(golden)
    loss = model(golden["images"], golden["tokens"], golden["order"])["loss"]
    torch.testing.assert_close(loss, golden["loss"], atol=LOSS, rtol=0)
    loss.backward()
    found = published_names(model)
    assert found.keys() == golden.gradients().keys()
    for name, expected in golden.gradients().items():
        bound = GRADIENT + 1e-4 * expected.abs().max().item()
        torch.testing.assert_close(found[name], expected, atol=bound, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def published_names(model):
    """Our gradients by published names, qkv split into q and kv."""
    found = {}
    for name, parameter in model.named_parameters():
        theirs = name.removeprefix("encoder.")
        theirs = {"mask_token": "mask_positional_token"}.get(theirs, theirs)
        theirs = theirs.replace("head.", "decoder.")
        if "attn.qkv" in theirs:
            q, kv = parameter.grad.split([len(parameter) // 3, 2 * len(parameter) // 3])
            found[theirs.replace("qkv", "q")], found[theirs.replace("qkv", "kv")] = q, kv
        else:
            found[theirs] = parameter.grad
    return found


def test_masks_entry_by_entry(golden):
    """Each row of the pattern equals its row of the published masks: N positions, then M placeholders."""
    pattern, order, context = load(golden).pattern, golden["order"][0], golden.config["context"]
    positions, predicted = len(order), golden["predicted"][0]
    column_of = {int(patch): positions + column for column, patch in enumerate(predicted)}
    columns = [
        column_of[int(order[index]) - 1] if is_masked else int(order[index])
        for index, is_masked in zip(pattern.position_in_order[: pattern.keys], pattern.is_masked, strict=False)
    ]
    first = pattern.rows - len(pattern.predict)
    for row in range(pattern.rows):
        index, is_masked = int(pattern.position_in_order[row]), bool(pattern.is_masked[row])
        ours = torch.zeros(positions + len(predicted), dtype=torch.bool)
        ours[columns] = pattern.visible[row, : pattern.keys]
        patch = int(order[index]) - 1
        if row < pattern.keys:
            theirs = golden["content_mask"][column_of[patch] if is_masked else int(order[index])]
            assert torch.equal(ours, theirs), f"readable row {row}"
        if row >= first:
            assert torch.equal(ours, golden["query_mask"][column_of[patch] - positions]), f"query row {row}"
    assert context == pattern.context


def test_errors_name_the_wrong_weights(golden):
    without = {name: tensor for name, tensor in golden.weights.items() if name != "blocks.0.attn.kv.bias"}
    with pytest.raises(MapetError, match=r"blocks\.0\.attn\.kv\.bias"):
        load_pretraining(without, image_size=32, patch_size=4, heads=3, context=17)
    with pytest.raises(MapetError, match="do not fit"):
        load(golden, image_size=2 * golden.config["img_size"])
    with pytest.raises(MapetError, match="context"):
        load(golden, context=0)
    with pytest.raises(MapetError, match="mask_token"):
        load_pretraining(Golden("mapet_finetuned").weights, image_size=32, patch_size=4, heads=3, context=17)


def test_finetuned_classifier():
    golden = Golden("mapet_finetuned")
    model = load_finetuned(FOLDER / "mapet_finetuned.checkpoint.pth.tar", heads=golden.config["num_heads"])
    features = super(type(model), model).forward(golden["images"])
    torch.testing.assert_close(features, golden["features"], atol=OUTPUT, rtol=0)
    pooled = model.fc_norm(features[:, 1:].mean(dim=1))
    torch.testing.assert_close(pooled, golden["pooled"], atol=OUTPUT, rtol=0)
    torch.testing.assert_close(model(golden["images"]), golden["logits"], atol=OUTPUT, rtol=0)


def test_archive_with_arguments(tmp_path):
    golden = Golden("mapet_finetuned")
    archive = {"state_dict": golden.weights, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(archive, tmp_path / "published.tar")
    model = load_finetuned(tmp_path / "published.tar", heads=3)
    torch.testing.assert_close(model(golden["images"]), golden["logits"], atol=OUTPUT, rtol=0)


@pytest.mark.parametrize("side", [1, 2, 5])
def test_the_grid_is_that_of_the_positions(tmp_path, side):
    golden = Golden("mapet_finetuned")
    (height, width), positions = golden.weights["patch_embed.proj.weight"].shape[2:], golden.weights["pos_embed"]
    golden.weights["pos_embed"] = positions[:, :1].repeat(1, 1 + side**2, 1)
    torch.save({"state_dict": golden.weights}, tmp_path / "published.tar")
    model = load_finetuned(tmp_path / "published.tar", heads=3)
    assert (model.grid, model.img_size) == ((side, side), (side * height, side * width))


def test_heads_must_divide_the_width():
    with pytest.raises(MapetError, match="These settings do not fit the weights") as caught:
        load_finetuned(FOLDER / "mapet_finetuned.checkpoint.pth.tar", heads=5)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not an archive", pickle.dumps(print)])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "other.tar").write_bytes(content)
    with pytest.raises(MapetError, match=r"other\.tar"):
        load_finetuned(tmp_path / "other.tar")
    with pytest.raises(MapetError, match="no weights file"):
        load_finetuned(tmp_path / "absent.tar")
